"""Checkpoints of a run that may be killed at any time, and callbacks that end training in time."""

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
from bertchain.runtime.distributed import barrier, broadcast, close_process_group, rank_and_size
from bertchain.runtime.files import write_text

logger = logging.getLogger(__name__)

ASK_EVERY = 10  # steps after which the main process tells the others that it has got SIGTERM
WHOLE = "whole"  # the last file that is written into a checkpoint: it is complete


class MarkComplete(TrainerCallback):
    """Mark a checkpoint as complete when all of it is on disk; one without the mark was cut off."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        barrier()  # each process writes its part
        if state.is_world_process_zero:
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE, "")


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
    return sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[-1]))


def complete_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """List the checkpoints that were written to their end, by step."""
    return [path for path in checkpoints_in(folder) if (path / WHOLE).is_file()]


def find_checkpoint(folder: str | os.PathLike, asked: str | None) -> str | None:
    """Find the checkpoint to resume training from; None: training starts at step 0.

    Args:
        asked: --resume_from_checkpoint: a path; `last` (or true), the newest complete checkpoint in
            `folder`; or None.

    Raises:
        InputError: if there is no such checkpoint; and, with None, if an earlier run has left
            checkpoints, which a new run would mix with its own.
    """
    left, complete = checkpoints_in(folder), complete_checkpoints(folder)
    if asked is None and left:
        raise InputError(
            f"{left[-1]} is left from a run that did not end: go on with --resume_from_checkpoint "
            "last, or choose another --output_dir, or delete it"
        )
    if asked is None:
        return None
    if asked.lower() in ("last", "true"):
        for path in left:
            if path not in complete:
                logger.warning("%s was not written to its end and is left out", path)
        if not complete:
            raise InputError(f"--resume_from_checkpoint {asked}: no whole checkpoint-* in {folder}")
        return str(complete[-1])
    if not os.path.isdir(asked):
        raise InputError(f"--resume_from_checkpoint {asked}: no such folder (or say: last)")
    return asked


def latest_checkpoint(folder: str | os.PathLike) -> str | None:
    """Find the newest complete checkpoint, or None. Deletes incomplete ones."""
    complete = complete_checkpoints(folder)
    for path in checkpoints_in(folder):
        if path not in complete:
            logger.warning("%s was not written to its end: deleted", path)
            shutil.rmtree(path)
    return str(complete[-1]) if complete else None


def remove_checkpoints(folder: str | os.PathLike) -> None:
    """Delete all checkpoints of a run that has ended: its best weights are in the output folder."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
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
