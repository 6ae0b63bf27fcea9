"""Damage the newest checkpoint of a run that was cut off, go on, and see what comes out.

    python benchmarks/damages.py --model "$(python examples/find_encoder.py minilm)" \\
        --train_file train.csv --test_file test.csv

Each file of a checkpoint gets each kind of damage, with no other checkpoint beside it and with an
older whole one. The table says what --resume_from_checkpoint last makes of it: the predictions of
a run left alone, one line that refuses, or anything else, which is wrong.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run_finetune
from bertchain.errors import InputError
from bertchain.runtime.checkpoints import checkpoints_in
from bertchain.runtime.records import markdown_table

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "whole",
)
OUTPUT = "predictions_test.csv"


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


KINDS: dict[str, Callable[[Path], Any]] = {
    "a flipped bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": lambda path: path.unlink(),
}


def cut_off(arguments: dict[str, Any], folder: Path) -> bytes:
    """Make a run and leave two checkpoints of it, as if it had been cut off.

    Returns:
        the predictions of the run left alone.
    """
    run_finetune.main(arguments | {"output_dir": str(folder), "keep_checkpoints": True})
    whole = (folder / OUTPUT).read_bytes()
    left = checkpoints_in(folder)[-3:-1]
    for path in [*folder.iterdir()]:
        if path not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return whole


def go_on(arguments: dict[str, Any], folder: Path, whole: bytes) -> str:
    """Go on with a run; say what came of it."""
    resumed = {"output_dir": str(folder), "resume_from_checkpoint": "last"}
    try:
        run_finetune.main(arguments | resumed)
    except InputError as error:
        return "refused in one line" if "\n" not in str(error) else f"wrong: {error}"
    except Exception as error:
        return f"wrong: {type(error).__name__}"
    return "same predictions" if (folder / OUTPUT).read_bytes() == whole else "wrong predictions"


def try_damages(
    arguments: dict[str, Any], folder: Path, files: tuple[str, ...], kinds: list[str]
) -> pd.DataFrame:
    """Try each damage, alone and with an older checkpoint beside it; a row each."""
    whole = cut_off(arguments, folder / "cut")
    rows = []
    for file, kind in [("", "none"), *((file, kind) for file in files for kind in kinds)]:
        row = {"file": file, "damage": kind}
        for case in ("alone", "an older one beside it"):
            copy = shutil.copytree(folder / "cut", folder / "copy")
            older, newest = checkpoints_in(copy)
            if file:
                KINDS[kind](newest / file)
            if case == "alone":
                shutil.rmtree(older)
            row[case] = go_on(arguments, copy, whole)
            shutil.rmtree(copy)
        rows.append(row)
    return pd.DataFrame(rows)


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """Print the table; it is returned."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("model", "train_file", "test_file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--files", nargs="+", default=[*FILES], choices=FILES)
    parser.add_argument("--kinds", nargs="+", default=[*KINDS], choices=[*KINDS])
    args = parser.parse_args(argv)
    arguments = {
        "model_name_or_path": args.model,
        "train_file": args.train_file,
        "test_file": args.test_file,
        "label_column_name": args.label_column_name,
        "max_train_samples": 100,
        "max_predict_samples": 50,
        "max_seq_length": 32,
        "learning_rate": 1e-3,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 9,
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        table = try_damages(arguments, Path(folder), tuple(args.files), args.kinds)
    print(markdown_table(table))
    return table


if __name__ == "__main__":
    main()
