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

A script that takes words before its flags has them in a list `arguments`; its output folder is the
last of them. LAUNCH="accelerate launch --num_processes 2" in the environment starts each step in
that way. A step whose output folder says that it ended with these arguments is not run again.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bertchain.cli import flags_of, read_arguments, run_script
from bertchain.errors import InputError
from bertchain.runtime.files import write_json

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("set", "shared", "steps")


def main() -> None:
    for command, folder in read_steps(sys.argv[1:]):
        done = folder / "step.json"
        if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == command:
            print(f"{folder}: done", flush=True)
            continue
        print(" ".join(command), flush=True)
        launch = os.environ.get("LAUNCH", sys.executable).split()
        code = subprocess.run([*launch, str(ROOT / command[0]), *command[1:]]).returncode
        if code != 0:
            raise InputError(f"{command[0]} ended with code {code}; what it wrote above says why")
        write_json(done, command)


def read_steps(argv: list[str]) -> list[tuple[list[str], Path]]:
    """Read the script and arguments of each step, and its output folder.

    Args:
        argv: a YAML file, then name=value for what its {names} stand for.

    Raises:
        InputError: for a file of another form, or a name that nothing stands for.
    """
    if not argv or any("=" not in word for word in argv[1:]):
        raise InputError("give a YAML file, then what its {names} stand for, as data=input")
    recipe = read_arguments(argv[0])
    stray = [key for key in recipe if key not in KEYS]
    if stray or not recipe.get("steps"):
        raise InputError(
            f"{argv[0]}: holds set, shared and steps, not {', '.join(stray) or 'none'}"
        )
    names = {key: str(value) for key, value in (recipe.get("set") or {}).items()}
    names |= dict(word.split("=", 1) for word in argv[1:])
    steps = []
    for number, step in enumerate(recipe["steps"], 1):
        where = f"{argv[0]}, step {number}"
        fields = fill({**(recipe.get("shared") or {}), **step}, names, where)
        script, words = fields.pop("script", None), [*map(str, fields.pop("arguments", []))]
        folder = fields.get("output_dir") or (words[-1] if words else None)
        if script is None or not (ROOT / script).is_file() or folder is None:
            raise InputError(f"{where}: needs a script of {ROOT}, and output_dir")
        steps.append(([script, *words, *flags_of(fields)], Path(folder)))
    return steps


def fill(value: Any, names: dict[str, str], where: str) -> Any:
    """Replace each {name} in the texts of a value by what it stands for."""
    if isinstance(value, dict):
        return {key: fill(item, names, where) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, names, where) for item in value]
    if not isinstance(value, str):
        return value
    try:
        return value.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{where}: {value}: say what {error} stands for, as name=value") from error


if __name__ == "__main__":
    run_script(main, __doc__)
