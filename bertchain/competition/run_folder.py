"""The output folder of a run: its members, its manifest, its lock, and where checkpoints go."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from bertchain.arguments.competition import FoldArguments
from bertchain.arguments.finetuning import RunArguments
from bertchain.competition import manifests
from bertchain.competition.manifests import EARLIER_FILE, FILE
from bertchain.errors import InputError
from bertchain.models.loading import load_classifier
from bertchain.runtime import best, given, locks, outputs
from bertchain.runtime.checkpoints import find_checkpoint, latest_checkpoint, remove_checkpoints
from bertchain.runtime.distributed import barrier, broadcast, is_main_process
from bertchain.runtime.files import write_json, write_yaml
from bertchain.runtime.records import versions

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- members


@dataclass(frozen=True)
class Member:
    """One model of a run.

    Attributes:
        name: of its folder, such as fold-0 or seed-1-fold-0, full or seed-1-full; "" where a run
            trains one model, in the output folder itself.
        fold: number of the fold that validates it; None without folds, and where it is trained on
            all rows.
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
    """List the models of a run, fold by fold, each with all --seeds; last those of --full_fit.

    These need the results of all folds, and wait until there are no --folds.

    Args:
        folds: of each training row, or None.
        seed: holds where no --seeds are given.

    Raises:
        InputError: where --folds names one that does not exist.
    """
    wanted, seeds = options.wanted, options.seeds
    numbers = [None] if folds is None else np.unique(folds).tolist()
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        there = ", ".join(map(str, numbers))
        raise InputError(f"--folds {unknown[0]}: there are {there}")
    members = []
    if options.full_fit and wanted:
        logger.warning("--full_fit waits until all folds are trained")
    elif options.full_fit and folds is not None:
        numbers.append(None)
    for fold in numbers:
        if wanted and fold not in wanted:
            continue
        for own in seeds or [seed]:
            names = [f"seed-{own}"] if seeds else []
            if folds is not None:
                names.append("full" if fold is None else f"fold-{fold}")
            members.append(Member("-".join(names), fold, member_seed(own, fold), checkpoint))
    return members


def member_seed(seed: int, fold: int | None) -> int:
    """Derive a seed for a fold, the same in every run; without folds the seed itself."""
    if fold is None:
        return seed
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0] >> 1)  # below 2^31


def read_members(folder: str | os.PathLike) -> list[Member]:
    """Read the members of a run whose training has ended; [] for any other folder.

    Raises:
        InputError: as `manifests.read_members`.
    """
    folder = Path(folder)
    for name, key in ((FILE, "members"), (EARLIER_FILE, "parts")):
        if (folder / name).is_file():
            rows = manifests.read_members(folder / name, key)
            members = [Member(**row, checkpoint=str(folder / row["name"])) for row in rows]
            return [m for m in members if (folder / m.name / outputs.RESULTS).is_file()]
    return []


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
        asked: str | None = None,
    ):
        """Args:
        manifest: see `make_manifest`; None where nothing is trained.
        options: where checkpoints go, and whether they are kept.
        asked: --resume_from_checkpoint.
        """
        self.folder, self.members, self.manifest = Path(folder), list(members), manifest
        self.keep_checkpoints = options.keep_checkpoints
        self.asked = asked
        self.scratch = self.folder
        if manifest is not None and options.checkpoint_dir is not None:
            name = f"{self.folder.name}-{manifests.digest_of(manifest)}"
            self.scratch = Path(options.checkpoint_dir) / name
        self._stack = ExitStack()

    @property
    def has_several(self) -> bool:
        """Whether its members have folders of their own."""
        return bool(self.members[0].name)

    def __enter__(self) -> "RunFolder":
        """Lock the folder, and check and write the manifest.

        Raises:
            InputError: where another run holds the lock, or its results lie in the folder.
        """
        several = self.manifest is not None and self.has_several
        check = partial(manifests.check_manifest, manifest=self.manifest) if several else None
        with self._stack as stack:  # releases the locks if the manifest cannot be written
            stack.enter_context(outputs.claim(self.folder, self.asked, check))
            if self.scratch != self.folder:  # of the same name and manifest in two places
                stack.enter_context(locks.lock(self.scratch, "checkpoint_dir"))
            if several:
                if is_main_process():
                    for member in self.members:
                        outputs.remove_leftovers(self.folder_of(member))
                    write_manifest(self.folder, self.manifest, self.members)
                barrier()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

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
        done = broadcast(self._done(self.members))
        if done:
            logger.info("done before: %s", ", ".join(member.name for member in done))
        if is_main_process() and not self.keep_checkpoints:  # a kill may have left some
            for member in done:
                remove_checkpoints(self.scratch_of(member))
        return [member for member in self.members if member not in done]

    def _done(self, members: Sequence[Member]) -> list[Member]:
        """Those that are trained; [] in other processes than the main one, which tells them."""
        return [m for m in members if is_main_process() and manifests.is_done(self.folder / m.name)]

    def trained(self) -> list[Member]:
        """List the members whose training has ended, in this run or an earlier one.

        All processes must call this.
        """
        if self.manifest is None:
            return self.members
        return broadcast(self._done(read_members(self.folder)))

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

    def stops(self, member: Member) -> list[TrainerCallback]:
        """Make the callback that ends the training of a model on all rows where, in the mean over
        folds, the best checkpoint was; [] for other models. All processes must call this.

        Raises:
            InputError: where the models of folds do not say it.
        """
        if self.manifest is None or member.fold is not None or not member.name.endswith("full"):
            return []
        shares = []
        if is_main_process():
            folds = [m for m in read_members(self.folder) if m.fold is not None]
            files = [self.folder_of(m) / outputs.RESULTS for m in folds]
            results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            shares = [result.get(best.SHARE) for result in results]
        shares = broadcast(shares)
        if None in shares:
            raise InputError(
                f"--full_fit: models in {self.folder} are of an earlier version, which did not "
                "write how long they were trained; choose another --output_dir"
            )
        share = float(np.mean(shares))
        logger.info(
            "%s: trained for %.1f %% of all steps, the mean of the folds", member.name, 100 * share
        )
        return [best.StopAtShare(share)]

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
                hooks.models[member.name], _ = load_classifier(path)
        return {member.name: hooks.models[member.name] for member in self.members}

    def remove_checkpoints(self, member: Member) -> None:
        """Delete a member's checkpoints, unless --keep_checkpoints; all processes call this."""
        if not self.keep_checkpoints and is_main_process():
            remove_checkpoints(self.scratch_of(member))
        barrier()


def write_manifest(folder: Path, manifest: dict[str, Any], members: Sequence[Member]) -> None:
    """Write manifest.json, with the trained members of earlier commands (other --folds)."""
    named = {member.name: member for member in [*read_members(folder), *members]}
    rows = [{"name": m.name, "fold": m.fold, "seed": m.seed} for m in named.values()]
    content = manifest | {"members": rows}
    write_json(folder / FILE, content | {"digest": manifests.digest_of(content)})
