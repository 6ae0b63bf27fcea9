"""What a run of several models consists of: its command goes on with it, another is refused."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertchain.errors import InputError
from bertchain.runtime.files import write_json


@dataclass(frozen=True)
class Part:
    """One of the models of a run.

    Attributes:
        name: of its folder, such as fold-0 or seed-1-fold-0; "" where a run trains one model, in
            the output folder itself.
        fold: whose rows it validates; None without folds.
        seed: of everything random in its training.
    """

    name: str
    fold: int | None
    seed: int


def plan_parts(
    folds: np.ndarray | None, wanted: Sequence[int], seeds: Sequence[int], seed: int
) -> list[Part]:
    """The models of a run, fold by fold, each with all seeds.

    Args:
        folds: of each row, or None.
        wanted: --folds, or [] for all.
        seeds: --seeds, or [] for `seed` alone.

    Raises:
        InputError: for a wanted fold that there is not.
    """
    numbers = [None] if folds is None else sorted(set(folds.tolist()))
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        there = ", ".join(map(str, numbers))
        raise InputError(f"--folds {unknown[0]}: there are {there}")
    parts = []
    for fold in numbers:
        if wanted and fold not in wanted:
            continue
        for own in seeds or [seed]:
            names = [f"seed-{own}"] if seeds else []
            names += [] if fold is None else [f"fold-{fold}"]
            parts.append(Part("-".join(names), fold, part_seed(own, fold)))
    return parts


def part_seed(seed: int, fold: int | None) -> int:
    """A seed of its own for each fold, the same in every run."""
    if fold is None:
        return seed
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0] >> 1)  # below 2^31


def rows_of_part(part: Part, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers that a fold's model trains on, and those that it validates."""
    return np.flatnonzero(folds != part.fold), np.flatnonzero(folds == part.fold)


FILE = "plan.json"

# Arguments that a run may be continued with another value of: they change no model.
FREE = {
    *("output_dir", "checkpoint_dir", "folds", "seeds", "time_budget", "keep_checkpoints"),
    *("sample_submission", "submission_values", "fit_thresholds", "resume_from_checkpoint"),
    *("disable_tqdm", "log_level", "log_level_replica", "logging_steps", "logging_strategy"),
    *("report_to", "run_name", "dataloader_num_workers", "per_device_eval_batch_size"),
    *("train_file", "test_file", "model_name_or_path", "tokenizer_name", "pseudo_label_file"),
}  # the last ones by what is in them


def make_plan(as_run: dict[str, Any], seed: int) -> dict[str, Any]:
    """The arguments that make the models, the content of the files they name, and the seed."""
    arguments = {name: value for name, value in sorted(as_run.items()) if name not in FREE}
    model = as_run["model_name_or_path"]
    named = ("train_file", "test_file", "pseudo_label_file")
    files = {name: hash_files([Path(as_run[name])]) for name in named if as_run.get(name)}
    for name in ("model_name_or_path", "tokenizer_name"):
        folder = as_run.get(name)
        if folder and os.path.isdir(folder):
            files[name] = hash_files(p for p in Path(folder).iterdir() if p.is_file())
    if not os.path.isdir(model):
        arguments["model_name_or_path"] = model
    return {"arguments": json.loads(json.dumps(arguments)), "files": files, "seed": seed}


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 of names' order and contents; a file that is not there counts as empty."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        if not path.is_file():
            continue
        with path.open("rb") as file:
            digest.update(_sha256(file))
    return digest.hexdigest()


def _sha256(file: Any) -> bytes:
    digest = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
    return digest.digest()


def digest_of(plan: dict[str, Any]) -> str:
    """A short name for the plan."""
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:12]


def check_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Raises InputError, naming what differs, if models of another plan are in the folder."""
    file = folder / FILE
    begun = [*folder.glob("*/all_results.json"), *folder.glob("*/checkpoint-*")]
    if not file.is_file() or not begun:
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for kind in ("arguments", "files"):
        names = {*before[kind], *plan[kind]}
        for name in sorted(names):
            then, now = before[kind].get(name), plan[kind].get(name)
            if then == now:
                continue
            what = f"was {then} and is {now}" if kind == "arguments" else "holds something else now"
            raise InputError(
                f"--{name} {what}, and {folder} has models that were trained before; choose "
                "another --output_dir, or delete it"
            )


def write_plan(folder: Path, plan: dict[str, Any], parts: Sequence[Part]) -> None:
    """plan.json; models that an earlier command has trained stay named in it."""
    there = {part.name: part for part in read_parts(folder)}
    named = there | {part.name: part for part in parts}
    rows = [{"name": p.name, "fold": p.fold, "seed": p.seed} for p in named.values()]
    write_json(folder / FILE, plan | {"parts": rows})


def read_parts(folder: str | os.PathLike) -> list[Part]:
    """The models of a run that are trained to their end; [] for any other folder."""
    file = Path(folder) / FILE
    if not file.is_file():
        return []
    rows = json.loads(file.read_text(encoding="utf-8"))["parts"]
    parts = [Part(row["name"], row["fold"], row["seed"]) for row in rows]
    return [part for part in parts if is_done(Path(folder), part)]


def is_done(folder: Path, part: Part) -> bool:
    """all_results.json is the last file that a model's training writes."""
    return (folder / part.name / "all_results.json").is_file()
