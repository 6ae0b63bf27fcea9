import json
import time
from dataclasses import dataclass

import pytest
from conftest import ROOT
from forking import run_bare, run_command

from bertchain.arguments.common import LabelArguments, TextArguments, arg
from bertchain.cli import changed, flags_of, parse, refuse_data_parallel
from bertchain.errors import InputError


@dataclass
class Numbers:
    rate: float = arg(0.1, "")
    many: list[str] = arg(["a"], "")
    switch: bool = arg(False, "")
    hub_token: str | None = arg(None, "")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_stands_for_arguments_and_flags_override_it(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = {"rate": "1e-4", "many": ["b", "c"], "switch": True}
    path.write_text(
        json.dumps(content) if suffix == "json" else "rate: 1e-4\nmany: [b, c]\nswitch: yes"
    )
    numbers, _ = parse([Numbers], [str(path)])
    assert numbers == Numbers(1e-4, ["b", "c"], True)
    numbers, run_config = parse([Numbers], [str(path), "--rate", "2", "--many", "d"])
    assert numbers == Numbers(2.0, ["d"], True)
    assert run_config == {"rate": 2.0, "many": ["d"], "switch": True}


def test_what_was_run_round_trips():
    first, run_config = parse([Numbers], ["--rate=-3", "--many", "x y", "z", "--switch"])
    again, _ = parse([Numbers], flags_of(run_config))
    assert again == first == parse([Numbers], run_config)[0]


def test_secrets_are_not_kept():
    numbers, run_config = parse([Numbers], ["--hub_token", "s3cret"])
    assert numbers.hub_token == "s3cret" and "hub_token" not in run_config


def test_defaults_of_the_script_and_what_a_run_changed():
    numbers, run_config = parse([Numbers], ["--switch"], {"rate": 0.5})
    assert numbers.rate == 0.5
    assert changed(run_config, [Numbers]) == {"rate": 0.5, "switch": True}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rat", "1"], r"unknown argument --rat \(did you mean rate\?\)"),
        (["--rate", "x"], "invalid float value: 'x'"),
        (["oops"], "'oops' belongs to no argument"),
        (["none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(InputError, match=message) as error:
        parse([Numbers], argv)
    assert "\n" not in str(error.value)


def test_checks_of_shared_arguments():
    assert TextArguments(text_separator="\\n\\t").text_separator == "\n\t"
    with pytest.raises(InputError, match="--text_pair needs two"):
        TextArguments(text_pair=True)
    with pytest.raises(InputError, match=r"--problem_type multi .*did you mean multi_label"):
        LabelArguments(problem_type="multi")
    with pytest.raises(InputError, match="--validation_split"):
        LabelArguments(validation_split=1.0)
    with pytest.raises(InputError, match="accelerate launch --num_processes 2"):
        refuse_data_parallel(2)


@pytest.mark.parametrize("script", ["run_itpt.py", "run_finetune.py", "run_probe.py"])
def test_help_is_grouped_and_imports_nothing_heavy(script, tmp_path):
    code = (
        f"import runpy, sys; sys.argv = [{script!r}, '--help']\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules and 'datasets' not in sys.modules"
    )
    start = time.perf_counter()
    done = run_bare("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("text:", "--text_column_names", "--model"):
        assert line in done.stdout
    assert time.perf_counter() - start < 60  # a hang; the time itself depends on the machine


SCRIPTS = ["run_itpt.py", "run_finetune.py", "run_probe.py", "examples/multitask/run_multitask.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_line_comes_before_anything_heavy_is_imported(script, tmp_path):
    """What it says it loads cannot be loaded here, and the line is there all the same, once."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'datasets', 'pandas']))\n"
        f"sys.argv = [{script!r}]; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    for rank in ("0", "1"):
        done = run_command("-c", code, cwd=tmp_path, env={"RANK": rank})
        first = done.stderr.splitlines()[0]
        assert first.endswith("Loading torch, transformers and datasets") == (rank == "0")
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_what_a_script_does_not_need_at_first_is_not_imported():
    """scikit-learn scores and splits, matplotlib draws: further pretraining waits for neither."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run_itpt\n"
    code += "print(sorted({'sklearn', 'matplotlib', 'evaluate', 'joblib'} & {*sys.modules}))\n"
    code += "import run_probe; print('matplotlib' in sys.modules)"
    assert run_bare("-c", code).stdout == "[]\nFalse\n"
