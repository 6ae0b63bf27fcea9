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
last of them. A script that takes a YAML file, such as examples/sweep.py, has its content under
`content`. LAUNCH="accelerate launch --num_processes 2" in the environment starts each step in that
way. A step whose output folder says that it ended with these arguments is not run again.

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
        InputError: for a file of another form, a name that nothing stands for, or a study that no
            step names.
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
    wanted = choose_studies(names.pop("only", None), recipe["steps"], argv[0])
    steps = []
    for number, step in enumerate(recipe["steps"], 1):
        if wanted is not None and not wanted & studies_of(step):
            continue
        where = f"{argv[0]}, step {number}"
        fields = fill({**(recipe.get("shared") or {}), **step}, names, where)
        fields.pop("study", None)
        script, words = fields.pop("script", None), [*map(str, fields.pop("arguments", []))]
        content = fields.pop("content", {})
        folder = {**content, **fields}.get("output_dir") or (words[-1] if words else None)
        if script is None or not (ROOT / script).is_file() or folder is None:
            raise InputError(f"{where}: needs a script of {ROOT}, and output_dir")
        words += [json.dumps(content)] if content else []
        steps.append(([script, *words, *flags_of(fields)], Path(folder)))
    return steps


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
