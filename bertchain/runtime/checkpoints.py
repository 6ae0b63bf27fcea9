"""Checkpoints of a run that may be killed at any time, and callbacks that end training in time."""

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bertchain.errors import InputError
from bertchain.runtime.distributed import broadcast, close_process_group, rank_and_size
from bertchain.runtime.files import hash_file, sync, write_json
from bertchain.runtime.outputs import CHOOSE, UNFINISHED, has_ended

logger = logging.getLogger(__name__)

ASK_EVERY = 10  # steps after which the main process tells the others that it has got SIGTERM
OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
WHOLE = "whole"  # the last file written into a checkpoint, which lists the others: it is complete


def mark_whole(checkpoint: Path, record: dict[str, Any]) -> None:
    """Mark a checkpoint as complete: record, and the size and hash of each file that is on disk."""
    files = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != WHOLE:
            sync(path)
            name = path.relative_to(checkpoint).as_posix()
            files[name] = {"size": path.stat().st_size, "sha256": hash_file(path)}
    write_json(checkpoint / WHOLE, record | {"files": files})


def read_mark(checkpoint: str | os.PathLike) -> dict[str, Any] | None:
    """Read the mark of a checkpoint; None where there is none, or it is no longer one."""
    try:
        mark = json.loads((Path(checkpoint) / WHOLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and isinstance(mark.get("files"), dict) else None


def find_damage(checkpoint: str | os.PathLike) -> str | None:
    """Say why nothing can go on from a checkpoint; None: each file is as it was written.

    Its best checkpoint, whose weights the run would end with, is part of it.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / WHOLE).is_file():
        return "was not written to its end"
    damage = _damaged_file(checkpoint, lambda name: True)
    if damage is not None:
        return damage
    state = checkpoint / "trainer_state.json"
    known = json.loads(state.read_text(encoding="utf-8")) if state.is_file() else {}
    best = known.get("best_model_checkpoint")
    if best is None or Path(best).name == checkpoint.name:
        return None
    best = Path(best) if Path(best).is_dir() else checkpoint.parent / Path(best).name  # moved
    damage = _damaged_file(best, lambda name: name.endswith((".safetensors", ".bin")))
    return None if damage is None else f"needs the best one so far, {best}, which {damage}"


def _damaged_file(checkpoint: Path, counts: Callable[[str], bool]) -> str | None:
    """Say what is wrong with the files of a checkpoint, of those that count; None: nothing."""
    mark = read_mark(checkpoint)
    if not checkpoint.is_dir():
        return "is gone"
    if mark is None:
        return f"has no list of its files ({WHOLE}), or a damaged one"
    for name, written in mark["files"].items():
        path = checkpoint / name
        if not counts(name):
            continue
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != written["size"] or hash_file(path) != written["sha256"]:
            return f"has a damaged {name}"
    return None


class SaveAndExitOnSigterm(TrainerCallback):
    """On SIGTERM end the step, save a checkpoint and exit with code 143.

    A machine that is about to be taken away sends SIGTERM; the run can be resumed elsewhere. Who
    trains calls `restore_handler` in the end, also after an error or an interrupt.
    """

    def __init__(self) -> None:
        self.asked = False
        self.previous: Any = None  # the signal's handler outside of training

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows none
            self.previous = signal.signal(signal.SIGTERM, self._ask)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if rank_and_size()[1] > 1 and state.global_step % ASK_EVERY:
            return
        self.asked = broadcast(self.asked)
        control.should_save = control.should_save or self.asked

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.asked = broadcast(self.asked)  # or one process would wait for the others alone
        if not self.asked:
            return
        self.asked = False  # it is answered here
        self.restore_handler()
        logger.warning(
            "SIGTERM: left after step %d, whose checkpoint is written; go on with the same command "
            "(without folds and seeds: and --resume_from_checkpoint last)",
            state.global_step,
        )
        close_process_group()
        sys.exit(128 + signal.SIGTERM)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.restore_handler()

    def restore_handler(self) -> None:
        """Give the signal back the handler that it had before training, if it has ours.

        One that came after the last step, or before an error, goes to that handler.
        """
        if self.previous is None:
            return
        signal.signal(signal.SIGTERM, self.previous)
        self.previous = None
        if self.asked:
            signal.raise_signal(signal.SIGTERM)


def checkpoints_in(folder: str | os.PathLike) -> list[Path]:
    """List the checkpoint-<step> folders, complete or not, by step."""
    named = [p for p in Path(folder).glob("checkpoint-*") if p.name.split("-", 1)[1].isdigit()]
    return sorted(named, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[-1])


def complete_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """List the checkpoints that were written to their end, by step."""
    return [path for path in checkpoints_in(folder) if (path / WHOLE).is_file()]


def is_cut_off(checkpoint: Path) -> bool:
    """Return whether a run of these scripts was killed while it wrote a checkpoint.

    Where none of them is known to have been at work, weights may be of other programs.
    """
    if (checkpoint / WHOLE).is_file() or not checkpoint.is_dir():
        return False
    folders = (checkpoint.parent, checkpoint.parent.parent)  # the second of a head warm-up
    ours = any((folder / UNFINISHED).is_file() for folder in folders)
    return ours or not any(path.suffix in OF_WEIGHTS for path in checkpoint.iterdir())


def newest_fit(folder: str | os.PathLike) -> tuple[Path | None, dict[Path, str]]:
    """Find the newest checkpoint that a run can go on from, and what is wrong with newer ones."""
    damages = {}
    for path in reversed(checkpoints_in(folder)):
        damage = find_damage(path)
        if damage is None:
            return path, damages
        damages[path] = damage
    return None, damages


def find_checkpoint(folder: str | os.PathLike, asked: str | None) -> str | None:
    """Find the checkpoint to resume training from; None: training starts at step 0.

    Args:
        asked: --resume_from_checkpoint: a path; `last` (or true), the newest in `folder` that is
            complete and undamaged; or None.

    Raises:
        InputError: if there is no such checkpoint, or it is damaged; and, with None, if an earlier
            run has left checkpoints, which a new run would mix with its own. Those that were cut
            off while they were written do not count: from them nothing can go on.
    """
    left, complete = checkpoints_in(folder), complete_checkpoints(folder)
    if asked is None:
        check_none_left([path for path in left if not is_cut_off(path)], complete)
        return None
    if asked.lower() in ("last", "true"):
        found, damages = newest_fit(folder)
        for path, damage in damages.items():
            logger.warning("%s %s: it is left out", path, damage)
        if found is None:
            why = "".join(f"; {path.name} {damage}" for path, damage in damages.items())
            what_to_do = "delete them" if complete else "leave it out"
            what_to_do += ", and the run begins anew"
            if has_ended(folder):
                what_to_do = f"its run has ended; {CHOOSE}"
            raise InputError(
                f"--resume_from_checkpoint {asked}: no whole checkpoint-* in {folder}{why}; "
                f"{what_to_do}"
            )
        return str(found)
    if not os.path.isdir(asked):
        raise InputError(f"--resume_from_checkpoint {asked}: no such folder (or say: last)")
    damage = find_damage(asked) if (Path(asked) / WHOLE).is_file() else None  # or of another tool
    if damage is not None:
        raise InputError(
            f"--resume_from_checkpoint {asked} {damage}; say last, for the newest whole one"
        )
    return asked


def check_none_left(left: list[Path], complete: list[Path]) -> None:
    """Raises InputError where checkpoints are left that a new run would mix with its own."""
    if complete:
        raise InputError(
            f"{complete[-1]} is left from a run that did not end: go on with "
            "--resume_from_checkpoint last, or choose another --output_dir, or delete it"
        )
    if left:
        raise InputError(
            f"{left[-1]} is not of these scripts, or of an earlier version; choose another "
            "--output_dir, or delete it"
        )


def latest_checkpoint(folder: str | os.PathLike) -> str | None:
    """Find the newest complete checkpoint, or None. Deletes newer ones, which are not."""
    found, damages = newest_fit(folder)
    for path, damage in damages.items():
        logger.warning("%s %s: deleted", path, damage)
        shutil.rmtree(path)
    return None if found is None else str(found)


def rotate(current: Path, best: str | None, limit: int | None) -> None:
    """Delete checkpoints beside the one just written; `limit` stay, it and the best among them.

    transformers would delete the older ones before the new one is marked, and a kill in between
    would leave none.
    """
    if limit is None or limit < 1:
        return
    step = _step_of(current)
    kept = {current} | ({current.parent / Path(best).name} if best else set())
    others = [path for path in checkpoints_in(current.parent) if path not in kept]
    others.sort(key=lambda path: (_step_of(path) < step, _step_of(path)))  # later: left over
    for path in others[: len(others) - max(0, limit - len(kept))]:
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoints(folder: str | os.PathLike) -> None:
    """Delete all checkpoints of a run that has ended: its best weights are in the output folder."""
    for checkpoint in checkpoints_in(folder):
        shutil.rmtree(checkpoint)


# ---------------------------------------------------------------- time budget

AT_THE_END = 10.0  # seconds kept free for what is written after the last prediction
MARGIN = 1.3  # factor on the estimated time of evaluation and prediction


@dataclass
class TimeBudget:
    """Time limit of a script, shared by the models that it trains.

    Attributes:
        seconds: from the script's start; None: no limit.
        clock: seconds now; `time.monotonic` but in tests.
    """

    seconds: float | None
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def left(self) -> float:
        """Seconds until the limit."""
        return self.seconds - (self.clock() - self.started)

    def callbacks(self, members_left: int, splits: dict[str, Any]) -> list[TrainerCallback]:
        """Make the callback that keeps the training of one model within its share of the time.

        Args:
            members_left: models still to train, this one included: each gets an equal share.
            splits: rows by split, with a column `length` (tokens of a row).

        Returns:
            a list of one StopInTime; [] without a limit.
        """
        if self.seconds is None:
            return []
        names = ("train", "validation", "test")
        tokens = {name: sum(splits[name]["length"][:]) if name in splits else 0 for name in names}
        share = (self.left() - AT_THE_END) / members_left
        return [StopInTime(self.clock() + share, **tokens, clock=self.clock)]


class StopInTime(TrainerCallback):
    """End training when the time left is needed for the last evaluation and the predictions.

    The estimated time of a token in prediction is that of the slowest evaluation so far, and at
    least half of its time in training (a forward pass is about a third of a training step).

    Args:
        deadline: on `clock`, in seconds.
        train, validation, test: tokens of each split.
    """

    def __init__(
        self,
        deadline: float,
        train: int,
        validation: int,
        test: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.deadline, self.clock = deadline, clock
        self.train, self.validation = train, validation
        self.at_the_end = 2 * validation + test  # tokens: the last evaluation, then the predictions
        self.started = self.first_epoch = 0.0
        self.evaluating = self.slowest = 0.0
        self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.started, self.first_epoch = self.clock(), state.epoch or 0.0

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        runtime = (metrics or {}).get("eval_runtime", 0.0)
        self.evaluating += runtime
        self.slowest = max(self.slowest, runtime / max(1, self.validation))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        epochs = max(1e-9, (state.epoch or 0.0) - self.first_epoch)
        training = self.clock() - self.started - self.evaluating
        a_step = training / max(1.0, epochs / max(1e-9, state.epoch) * state.global_step)
        a_token = max(0.5 * training / (epochs * self.train), self.slowest)
        needed = a_step + MARGIN * a_token * self.at_the_end
        if not broadcast(self.clock() + needed >= self.deadline):
            return control
        self.stopped = control.should_training_stop = True
        if args.eval_strategy == "steps":  # by epoch it is evaluated on leaving anyway
            control.should_evaluate = True
            control.should_save = args.load_best_model_at_end
        return control
