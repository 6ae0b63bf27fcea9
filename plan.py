"""What a run of several models consists of: its command goes on with it, another is refused."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from command_line import InputError
from folds import Part
from outputs import write_json

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
