"""The output folder of a run: its members, its manifest, its lock, and where checkpoints go."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertchain.arguments.competition import FoldArguments
from bertchain.arguments.finetuning import RunArguments
from bertchain.data.tables import Table
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier
from bertchain.runtime import given
from bertchain.runtime.checkpoints import find_checkpoint, latest_checkpoint, remove_checkpoints
from bertchain.runtime.distributed import barrier, broadcast, is_main_process
from bertchain.runtime.files import write_json, write_yaml
from bertchain.runtime.locks import lock
from bertchain.runtime.records import versions

logger = logging.getLogger(__name__)

FILE = "manifest.json"
EARLIER_FILE = "plan.json"  # its name in earlier versions
ROWS_AT_ONCE = 10_000


# ---------------------------------------------------------------- members


@dataclass(frozen=True)
class Member:
    """One model of a run.

    Attributes:
        name: of its folder, such as fold-0 or seed-1-fold-0; "" where a run trains one model, in
            the output folder itself.
        fold: number of the fold that validates it; None without folds.
        seed: of its head, dropout and order of rows.
        checkpoint: hub name or folder to load: the encoder to train, or the trained member.
    """

    name: str
    fold: int | None
    seed: int
    checkpoint: str


def plan_members(
    folds: np.ndarray | None, options: FoldArguments, seed: int, checkpoint: str
) -> list[Member]:
    """List the models of a run, fold by fold, each with all --seeds.

    Args:
        folds: of each training row, or None.
        seed: holds where no --seeds are given.

    Raises:
        InputError: where --folds names one that does not exist.
    """
    wanted, seeds = options.wanted, options.seeds
    numbers = [None] if folds is None else sorted(set(folds.tolist()))
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        there = ", ".join(map(str, numbers))
        raise InputError(f"--folds {unknown[0]}: there are {there}")
    members = []
    for fold in numbers:
        if wanted and fold not in wanted:
            continue
        for own in seeds or [seed]:
            names = [f"seed-{own}"] if seeds else []
            names += [] if fold is None else [f"fold-{fold}"]
            members.append(Member("-".join(names), fold, member_seed(own, fold), checkpoint))
    return members


def member_seed(seed: int, fold: int | None) -> int:
    """Derive a seed for a fold, the same in every run; without folds the seed itself."""
    if fold is None:
        return seed
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0] >> 1)  # below 2^31


def read_members(folder: str | os.PathLike) -> list[Member]:
    """Read the members of a run whose training has ended; [] for any other folder."""
    folder = Path(folder)
    for name, key in ((FILE, "members"), (EARLIER_FILE, "parts")):
        if (folder / name).is_file():
            rows = json.loads((folder / name).read_text(encoding="utf-8"))[key]
            members = [
                Member(row["name"], row["fold"], row["seed"], str(folder / row["name"]))
                for row in rows
            ]
            return [member for member in members if _is_trained(folder, member)]
    return []


def _is_trained(folder: Path, member: Member) -> bool:
    """Return whether a member's training has ended: all_results.json is the last file it writes."""
    return (folder / member.name / "all_results.json").is_file()


# ---------------------------------------------------------------- the folder


class RunFolder:
    """Output folder of a run, locked inside `with`.

    A run with several members has a manifest: the same command resumes it, any other is refused.
    All processes use it alike; only the main process locks and writes.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        members: Sequence[Member],
        manifest: dict[str, Any] | None,
        options: RunArguments,
    ):
        """Args:
        manifest: see `make_manifest`; None where nothing is trained.
        options: where checkpoints go, and whether they are kept.
        """
        self.folder, self.members, self.manifest = Path(folder), list(members), manifest
        self.keep_checkpoints = options.keep_checkpoints
        self.scratch = self.folder
        if manifest is not None and options.checkpoint_dir is not None:
            name = f"{self.folder.name}-{digest_of(manifest)}"
            self.scratch = Path(options.checkpoint_dir) / name
        self._stack = ExitStack()

    @property
    def has_several(self) -> bool:
        """Whether its members have folders of their own."""
        return bool(self.members[0].name)

    def __enter__(self) -> "RunFolder":
        """Lock the folder, and check and write the manifest.

        Raises:
            InputError: where another run holds the lock, or has trained members in the folder.
        """
        with self._stack as stack:  # releases the lock if the manifest does not fit
            stack.enter_context(lock(self.folder))
            if self.manifest is not None and self.has_several:
                check_manifest(self.folder, self.manifest)
                if is_main_process():
                    write_manifest(self.folder, self.manifest, self.members)
                barrier()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def folder_of(self, member: Member) -> Path:
        """Where a member's model and predictions go."""
        return self.folder / member.name

    def scratch_of(self, member: Member) -> Path:
        """Where a member's checkpoints go."""
        return self.scratch / member.name

    def unfinished(self) -> list[Member]:
        """List the members to train: those that an earlier run of this command has not trained.

        Where nothing is trained, all members. All processes must call this.
        """
        if self.manifest is None or not self.has_several:
            return self.members
        done = broadcast([m.name for m in self.members if _is_trained(self.folder, m)])
        if done:
            logger.info("done before: %s", ", ".join(done))
        if is_main_process() and not self.keep_checkpoints:  # a kill may have left some
            for name in done:
                remove_checkpoints(self.scratch / name)
        return [member for member in self.members if member.name not in done]

    def trained(self) -> list[Member]:
        """List the members whose training has ended, in this run or an earlier one.

        All processes must call this.
        """
        return self.members if self.manifest is None else broadcast(read_members(self.folder))

    def resume_from(self, member: Member, asked: str | None) -> str | None:
        """Find the checkpoint to resume a member from; None: it is trained from step 0.

        All processes must call this.

        Args:
            asked: --resume_from_checkpoint, which holds for a single member; one of several resumes
                from its latest checkpoint.

        Raises:
            InputError: see `find_checkpoint`.
        """
        if not self.has_several:
            return find_checkpoint(self.scratch, asked)
        return broadcast(latest_checkpoint(self.scratch_of(member)) if is_main_process() else None)

    def write_results(self, results: dict[str, Any], run_config: dict[str, Any], seed: int) -> None:
        """Write run_args.yaml, and all_results.json with the seed and the versions.

        All processes must call this.
        """
        if is_main_process():
            write_yaml(self.folder / "run_args.yaml", run_config)
            content = results | {"seed": seed, "versions": versions()}
            write_json(self.folder / "all_results.json", content)
            logger.info("Wrote %s", self.folder)
        barrier()

    def models(self, hooks: given.Hooks) -> dict[str, Any] | None:
        """Return the trained models by name, if they are kept; those trained before are loaded."""
        if hooks.models is None:
            return None
        for member in self.members:
            if member.name not in hooks.models:
                path = self.folder_of(member)
                hooks.models[member.name] = DocumentClassifier.from_pretrained(path)
        return {member.name: hooks.models[member.name] for member in self.members}

    def remove_checkpoints(self, member: Member) -> None:
        """Delete a member's checkpoints, unless --keep_checkpoints; the main process calls this."""
        if not self.keep_checkpoints:
            remove_checkpoints(self.scratch_of(member))


# ---------------------------------------------------------------- manifest

# Arguments that change no model: a run may be resumed with another value.
FREE = {
    "at_least_one_label",
    "checkpoint_dir",
    "dataloader_num_workers",
    "disable_tqdm",
    "fit_thresholds",
    "folds",
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
}
# Arguments whose content counts, not their path.
FILES = ("train_file", "validation_file", "test_file", "pseudo_label_file")
FOLDERS = ("model_name_or_path", "tokenizer_name")


def make_manifest(
    run_config: dict[str, Any], seed: int, tables: dict[str, Table] | None = None
) -> dict[str, Any]:
    """Build the manifest of a run: what makes its models and what they predict.

    Args:
        run_config: all arguments by name.
        tables: by split; of a --dataset_name their rows are hashed, as the files of others are.

    Returns:
        arguments that change a model; files: hash by argument; seed.
    """
    left_out = {*FREE, *FILES, *FOLDERS}
    arguments = {name: v for name, v in sorted(run_config.items()) if name not in left_out}
    model = run_config["model_name_or_path"]
    files = {n: hash_file(run_config[n]) for n in FILES if run_config.get(n)}
    for name in FOLDERS:
        folder = run_config.get(name)
        if folder and os.path.isdir(folder):
            files[name] = hash_files(p for p in Path(folder).iterdir() if p.is_file())
    if not os.path.isdir(model):
        arguments["model_name_or_path"] = model
    if run_config.get("dataset_name") and tables:
        files["dataset_name"] = hash_tables(tables)
    return {"arguments": json.loads(json.dumps(arguments)), "files": files, "seed": seed}


def hash_file(path: str) -> str:
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
        with path.open("rb") as file:
            digest.update(_sha256(file))
    return digest.hexdigest()


def hash_tables(tables: dict[str, Table]) -> str:
    """SHA-256 of the rows of all splits: where their copy lies, and how old it is, do not count."""
    digest = hashlib.sha256()
    for split, (rows, _) in sorted(tables.items()):
        digest.update(split.encode())
        for piece in rows.with_format("arrow").iter(ROWS_AT_ONCE):
            digest.update(json.dumps(piece.to_pylist(), default=str).encode())
    return digest.hexdigest()


def _sha256(file: Any) -> bytes:
    digest = hashlib.sha256()
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
    return digest.digest()


def digest_of(manifest: dict[str, Any]) -> str:
    """Shorten a manifest to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:12]


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Raises InputError, naming what differs, if the folder holds models of another manifest."""
    begun = [*folder.glob("*/all_results.json"), *folder.glob("*/checkpoint-*")]
    if not begun:
        return
    if (folder / EARLIER_FILE).is_file():
        raise InputError(
            f"--output_dir {folder} holds a run of an earlier version, which this one predicts "
            "with but does not continue; choose another --output_dir, or delete it"
        )
    if not (folder / FILE).is_file():
        return
    previous = json.loads((folder / FILE).read_text(encoding="utf-8"))
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


def write_manifest(folder: Path, manifest: dict[str, Any], members: Sequence[Member]) -> None:
    """Write manifest.json, with the trained members of earlier commands (other --folds)."""
    named = {member.name: member for member in [*read_members(folder), *members]}
    rows = [{"name": m.name, "fold": m.fold, "seed": m.seed} for m in named.values()]
    write_json(folder / FILE, manifest | {"members": rows})
