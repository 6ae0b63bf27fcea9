"""Run scripts one after the other from one YAML file.

    python examples/recipe.py examples/competition.yaml data=input model=bert-base-uncased out=work

    set: {data: input, out: work}     # what {data} and {out} stand for; the command line overrides
    shared:                           # arguments of every step
      text_column_names: [title, abstract]
    steps:
      - script: run_itpt.py
        model_name_or_path: "{model}"
        train_file: "{data}/train.tsv"
        output_dir: "{out}/itpt"
      - script: run_finetune.py
        model_name_or_path: "{out}/itpt"
        ...

A step with `when: "{name}"` is run where that stands for true. An argument that is {name} alone is
left out where the name stands for null, and is a list where that is one. A value of `set` may hold
the names above it.

A script that takes words before its flags has them in a list `arguments`; its output folder is the
last of them, or output_dir. A script that takes a YAML file, such as examples/sweep.py, has its
content under `content`. LAUNCH="accelerate launch --num_processes 2" in the environment starts each
script that trains (run_*.py) in that way. A step whose output folder says that it ended with these
arguments is not run again.

Where steps name the studies that need them, as study: [layers, rates], `only=layers,rates` on the
command line runs the steps of these studies alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bertchain.cli import flags_of, read_arguments, run_script
from bertchain.errors import InputError, nearest
from bertchain.runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("set", "shared", "steps")
LONGEST = 2000  # characters of a command that are shown


def main() -> None:
    for command, folder in read_steps(sys.argv[1:]):
        done = folder / "step.json"
        if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == command:
            print(f"{folder}: done", flush=True)
            continue
        print(" ".join(command)[:LONGEST], flush=True)
        launch = [sys.executable]
        if Path(command[0]).name.startswith("run_"):  # the others know of one process
            launch = os.environ.get("LAUNCH", sys.executable).split()
        code = subprocess.run([*launch, str(ROOT / command[0]), *command[1:]]).returncode
        if code != 0:
            raise InputError(f"{command[0]} ended with code {code}; what it wrote above says why")
        write_json(done, command)


def read_steps(argv: list[str]) -> list[tuple[list[str], Path]]:
    """Read the script and arguments of each step, and its output folder.

    Args:
        argv: a YAML file, then name=value for what its {names} stand for, and perhaps only=STUDIES.

    Raises:
        InputError: for a file of another form, a name that nothing stands for or nothing uses, or a
            study that no step names.
    """
    if not argv or any("=" not in word for word in argv[1:]):
        raise InputError("give a YAML file, then what its {names} stand for, as data=input")
    recipe = read_arguments(argv[0])
    stray = [key for key in recipe if key not in KEYS]
    if stray or not recipe.get("steps"):
        raise InputError(
            f"{argv[0]}: holds set, shared and steps, not {', '.join(stray) or 'none'}"
        )
    given = dict(word.split("=", 1) for word in argv[1:])
    wanted = choose_studies(given.pop("only", None), recipe["steps"], argv[0])
    names = read_names(recipe, given, argv[0])
    steps = []
    for number, step in enumerate(recipe["steps"], 1):
        if wanted is not None and not wanted & studies_of(step):
            continue
        where = f"{argv[0]}, step {number}"
        fields = fill({**(recipe.get("shared") or {}), **step}, names, where)
        fields.pop("study", None)
        if not is_wanted(fields.pop("when", True), where):
            continue
        script, words = fields.pop("script", None), [*map(str, fields.pop("arguments", []))]
        content = fields.pop("content", {})
        folder = {**content, **fields}.get("output_dir") or (words[-1] if words else None)
        if script is None or not (ROOT / script).is_file() or folder is None:
            raise InputError(f"{where}: needs a script of {ROOT}, and output_dir")
        words += [json.dumps(content)] if content else []
        steps.append(([script, *words, *flags_of(fields)], Path(folder)))
    return steps


def read_names(recipe: dict[str, Any], given: dict[str, str], path: str) -> dict[str, Any]:
    """Read what each name stands for.

    Args:
        given: on the command line, where null is null and [a, b] a list.

    Raises:
        InputError: for a name of the command line that the recipe does not know.
    """
    own = recipe.get("set") or {}
    for name in given:
        if name not in own and f"{{{name}}}" not in json.dumps(recipe):
            raise InputError(f"{name}={given[name]}: {path} has no {name}{nearest(name, [*own])}")
    names = {name: from_command_line(value) for name, value in given.items()}
    for name, value in own.items():
        if name not in names:
            names[name] = fill(value, names, f"{path}, set")
    return names


def from_command_line(value: str) -> str | list[str] | None:
    if value[:1] + value[-1:] == "[]":
        return [item.strip() for item in value[1:-1].split(",")]
    return None if value == "null" else value


def is_wanted(when: Any, where: str) -> bool:
    """Read whether a step is to be run. Raises InputError for what is neither true nor false."""
    word = str(when).lower()
    if word not in ("true", "false"):
        raise InputError(f"{where}: when has to be true or false, not {when}")
    return word == "true"


def choose_studies(asked: str | None, steps: list[dict[str, Any]], path: str) -> set[str] | None:
    """Read which studies are to be run; None: all.

    Raises:
        InputError: naming a study that no step names.
    """
    if asked is None:
        return None
    wanted, known = set(asked.split(",")), sorted(set().union(*map(studies_of, steps)))
    for study in sorted(wanted.difference(known)):
        raise InputError(
            f"only={asked}: {path} has the studies {', '.join(known) or 'none'}, "
            f"not {study}{nearest(study, known)}"
        )
    return wanted


def studies_of(step: dict[str, Any]) -> set[str]:
    """Read the studies that need a step."""
    named = step.get("study", [])
    return set(named if isinstance(named, list) else [named])


def fill(value: Any, names: dict[str, Any], where: str) -> Any:
    """Replace each {name} in the texts of a value by what it stands for."""
    if isinstance(value, dict):
        return {key: fill(item, names, where) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, names, where) for item in value]
    if not isinstance(value, str):
        return value
    alone = names.get(value[1:-1], "") if value[:1] + value[-1:] == "{}" else ""
    if alone is None or isinstance(alone, list):
        return alone
    try:
        return value.format(**{name: own for name, own in names.items() if own is not None})
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{where}: {value}: say what {error} stands for, as name=value") from error


if __name__ == "__main__":
    run_script(main, __doc__)
