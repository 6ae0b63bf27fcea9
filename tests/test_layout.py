"""The house: what lies at the top, and which folder of the package may import which."""

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

TOP = {
    "run_itpt.py",
    "run_finetune.py",
    "run_probe.py",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "pyproject.toml",
    "bertchain",
    "docs",
    "examples",
    "benchmarks",
    "tests",
    ".ci",
    ".gitignore",
}
ORDER = [  # each imports from itself and from what stands below it
    "reporting",
    "competition",
    "probing",
    "training",
    "pretraining",
    "metrics",
    "scoring",
    "data",
    "arguments",
    "cli",
    "help",
    "runtime",
    "models",
    "directprobe",
    "errors",
]
FILES = sorted((ROOT / "bertchain").rglob("*.py"))


def test_the_top_level_holds_the_three_scripts_and_nothing_else():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} == TOP


def imports_of(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in it: data.labels ..."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add(f"{path.parent.name}.{node.module}")
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "bertchain":
            module = node.module.partition(".")[2]
            found |= {".".join(filter(None, (module, alias.name))) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.startswith("bertchain.")
            }
    return found


def level(module: str) -> int:
    return ORDER.index(module.split(".")[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_its_own_folder_and_from_those_below(path):
    own = path.relative_to(ROOT / "bertchain").with_suffix("").parts[0]
    if own == "__init__":
        assert not imports_of(path)
        return
    above = [module for module in imports_of(path) if level(module) < level(own)]
    assert not above


def test_no_folder_is_missing_in_the_order():
    names = {p.relative_to(ROOT / "bertchain").with_suffix("").parts[0] for p in FILES}
    assert names - {"__init__"} == {*ORDER}


def test_files_that_travel_with_a_checkpoint_import_each_other_alone():
    travelling = {"encoding", "pooling", "windows"}
    for name in ("modeling", *travelling):
        found = imports_of(ROOT / "bertchain" / "models" / f"{name}.py")
        assert {module.removeprefix("models.") for module in found} <= travelling


def test_arguments_and_errors_import_nothing_heavy():
    """--help answers before torch is there."""
    light = [*(ROOT / "bertchain" / "arguments").glob("*.py")]
    light += [ROOT / "bertchain" / f"{name}.py" for name in ("cli", "help", "errors")]
    for path in light:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            modules = names if isinstance(node, ast.Import) else [getattr(node, "module", "")]
            for module in modules:
                heavy = {"torch", "transformers", "datasets", "numpy", "pandas"}
                assert str(module).split(".")[0] not in heavy, f"{path.name} imports {module}"


SCRIPTS = sorted(ROOT.glob("run_*.py"))
CODE = [*SCRIPTS, *FILES, *ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/*.py")]


def functions_of(path: Path) -> list[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.FunctionDef)]


def test_everything_can_be_read_in_one_sitting():
    for path in SCRIPTS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
    long, wide = [], []
    for path in CODE:
        for function in functions_of(path):
            name = f"{path.name}: {function.name}"
            if function.end_lineno - function.lineno >= 60:
                long.append(name)
            given = {"self", "cls"}
            arguments = function.args
            all_of_them = arguments.posonlyargs + arguments.args + arguments.kwonlyargs
            if function.name != "__init__" and sum(a.arg not in given for a in all_of_them) > 7:
                wide.append(name)
    assert not long and not wide


def test_every_loading_states_whether_code_may_run():
    """Left out, transformers asks at the terminal."""
    own = {"LabelSpec", "DocumentClassifierConfig"}  # these run no code of a checkpoint
    silent = [
        f"{path.name}:{call.lineno}"
        for path in CODE
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("from_pretrained", "from_config")
        and ast.unparse(call.func.value) not in own
        and not any(
            word.arg == "trust_remote_code" or (not word.arg and "NO_CODE" in ast.unparse(word))
            for word in call.keywords
        )
    ]
    assert not silent


def test_no_tuple_is_packed_only_to_be_unpacked():
    """options = (a, b); f(*options): pass a and b by their names."""
    found = []
    for path in CODE:
        for function in functions_of(path):
            packed = {
                target.id
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            found += [
                f"{path.name}:{call.lineno} *{argument.value.id}"
                for call in ast.walk(function)
                if isinstance(call, ast.Call)
                for argument in call.args
                if isinstance(argument, ast.Starred)
                and isinstance(argument.value, ast.Name)
                and argument.value.id in packed
            ]
    assert not found
