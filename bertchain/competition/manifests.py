"""The manifest of a run: what it consists of, and which of its members are done."""

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertchain.data.tables import Table
from bertchain.errors import InputError
from bertchain.runtime import given, outputs
from bertchain.runtime.distributed import rank_and_size
from bertchain.runtime.files import hash_file
from bertchain.runtime.outputs import RESULTS
from bertchain.runtime.resuming import ROWS, refuse_other_steps
from bertchain.scoring.metric_files import split_name

logger = logging.getLogger(__name__)

FILE, EARLIER_FILE = outputs.MANIFESTS
ROWS_AT_ONCE = 10_000
NAMES = re.compile(r"(seed-\d+-)?(fold-\d+|full)|seed-\d+")  # that `plan_members` gives
TABLES = ("predictions_validation.csv", "predictions_test.csv")


def read_manifest(file: Path) -> dict[str, Any]:
    """Read a manifest; `arguments` and `files` are there in any case.

    Raises:
        InputError: for a file that holds none, or no longer what was written.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise _garbled(file, "is not JSON") from error
    empty: dict[str, Any] = {"arguments": {}, "files": {}}
    content = empty | content if isinstance(content, dict) else {}
    if not all(isinstance(content.get(part), dict) for part in empty):
        raise _garbled(file, "holds no manifest")
    digest = content.pop("digest", None)
    if "step" in content and digest != digest_of(content):  # earlier versions wrote neither
        raise _garbled(file, "is damaged")
    return content


def digest_of(manifest: dict[str, Any]) -> str:
    """Shorten a manifest to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def read_members(file: Path, key: str) -> list[dict[str, Any]]:
    """Read name, fold and seed of a run's members.

    Names become paths, from which models are read and to which predictions are written; so only
    those that the scripts give are taken.

    Args:
        key: under which the manifest lists them.

    Raises:
        InputError: for anything else.
    """
    rows = read_manifest(file).get(key)
    if not isinstance(rows, list):
        raise _garbled(file, f"lists no {key}")
    found = []
    for row in rows:
        row = row if isinstance(row, dict) else {}
        name, fold, seed = row.get("name"), row.get("fold"), row.get("seed")
        if not (isinstance(name, str) and NAMES.fullmatch(name)):
            raise _garbled(file, f"has a member of the name {name!r}")
        if type(seed) is not int or not (fold is None or type(fold) is int):
            raise _garbled(file, f"gives {name} the fold {fold!r} and the seed {seed!r}")
        found.append({"name": name, "fold": fold, "seed": seed})
    return found


def _garbled(file: Path, what: str) -> InputError:
    return InputError(
        f"{file} {what}: it is not as run_finetune.py wrote it; take the folder anew from where it "
        "was written, or name one of its models"
    )


def is_done(folder: Path) -> bool:
    """Return whether a member's training has ended, and its files are those that it wrote.

    all_results.json is the last file that it writes, and holds a hash of each table of predictions.
    """
    file = folder / RESULTS
    if not file.is_file():
        return False
    try:
        hashes = json.loads(file.read_text(encoding="utf-8")).get("files", {})
        known = [name for name in TABLES if name in hashes]
        changed = [name for name in known if hash_file(folder / name) != hashes[name]]
    except (OSError, ValueError, AttributeError, TypeError):
        changed = [RESULTS]
    if changed:
        logger.warning("%s is not as its training wrote it: trained again", folder / changed[0])
    return not changed


# ---------------------------------------------------------------- what a run consists of

# Arguments that change no model: a run may be resumed with another value.
FREE = {
    "at_least_one_label",
    "checkpoint_dir",
    "dataloader_num_workers",
    "disable_tqdm",
    "fit_thresholds",
    "folds",
    "full_fit",
    "keep_checkpoints",
    "log_level",
    "log_level_replica",
    "logging_steps",
    "logging_strategy",
    "output_dir",
    "per_device_eval_batch_size",
    "positive_label",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "sample_submission",
    "seeds",
    "submission_values",
    "time_budget",
    "use_cpu",
}
# Arguments that count by their product, see `make_manifest`.
SHARES = ("per_device_train_batch_size", "gradient_accumulation_steps")
# Arguments whose content counts, not their path.
FILES = ("train_file", "validation_file", "test_file", "extra_train_file", "pseudo_label_file")
FOLDERS = ("model_name_or_path", "tokenizer_name", "teacher")


def make_manifest(
    run_config: dict[str, Any], seed: int, tables: dict[str, Table] | None = None
) -> dict[str, Any]:
    """Build the manifest of a run: what makes its models and what they predict.

    Args:
        run_config: all arguments by name.
        tables: by split; of a --dataset_name their rows are hashed, as the files of others are.

    Returns:
        arguments that change a model (of --metric_file the function's name); files: hash by
        argument; seed; step: its number of rows, by whatever processes, batches and accumulation.
    """
    left_out = {*FREE, *FILES, *FOLDERS, *SHARES}
    arguments = {name: v for name, v in sorted(run_config.items()) if name not in left_out}
    model = run_config["model_name_or_path"]
    files = {n: hash_input(run_config[n]) for n in FILES if run_config.get(n)}
    if run_config.get("metric_file"):
        path, arguments["metric_file"] = split_name(run_config["metric_file"])
        files["metric_file"] = hash_input(path)
    for name in FOLDERS:
        folder = run_config.get(name)
        if folder and os.path.isdir(folder):
            files[name] = hash_files(p for p in Path(folder).iterdir() if p.is_file())
    if not os.path.isdir(model):
        arguments["model_name_or_path"] = model
    if run_config.get("dataset_name") and tables:
        files["dataset_name"] = hash_tables(tables)
    rows = rank_and_size()[1] * math.prod(run_config.get(name) or 1 for name in SHARES)
    arguments = json.loads(json.dumps(arguments))
    return {"arguments": arguments, "files": files, "seed": seed, "step": {ROWS: rows}}


def hash_input(path: str) -> str:
    """SHA-256 of a file's content, or of the rows of a table in memory."""
    if given.is_held(path):
        return hash_tables({"": Table(given.find(path), path)})
    return hash_files([Path(path)])


def hash_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the files' contents, in the order of their paths; missing files are left out."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        if not path.is_file():
            continue
        digest.update(bytes.fromhex(hash_file(path)))
    return digest.hexdigest()


def hash_tables(tables: dict[str, Table]) -> str:
    """SHA-256 of the rows of all splits: where their copy lies, and how old it is, do not count."""
    digest = hashlib.sha256()
    for split, (rows, _) in sorted(tables.items()):
        digest.update(split.encode())
        for piece in rows.with_format("arrow").iter(ROWS_AT_ONCE):
            digest.update(json.dumps(piece.to_pylist(), default=str).encode())
    return digest.hexdigest()


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises InputError, naming what differs, if the folder holds models of another run."""
    if not any((folder / name).is_file() for name in outputs.MANIFESTS):
        outputs.check_unused(folder)
    begun = [*folder.glob("*/all_results.json"), *folder.glob("*/checkpoint-*")]
    if not begun:
        return
    previous = read_manifest(folder / FILE) if (folder / FILE).is_file() else None
    if (folder / EARLIER_FILE).is_file() or (previous and "step" not in previous):
        raise InputError(
            f"--output_dir {folder} holds a run of an earlier version, which this one predicts "
            "with but does not continue; choose another --output_dir, or delete it"
        )
    if previous is None:
        return
    refuse_other_steps(str(folder), previous["step"], manifest["step"])
    for kind in ("arguments", "files"):
        for name in sorted({*previous[kind], *manifest[kind]}):
            old, new = previous[kind].get(name), manifest[kind].get(name)
            if old == new:
                continue
            what = f"was {old} and is {new}" if kind == "arguments" else "holds something else now"
            raise InputError(
                f"--{name} {what}, and {folder} has models that were trained before; choose "
                "another --output_dir, or delete it"
            )
