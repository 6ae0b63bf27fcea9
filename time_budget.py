"""Training that ends in time: to choose the best weights, predict, and write the submission."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from processes import agreed

AT_THE_END = 10.0  # seconds, for what is written after the last prediction
MARGIN = 1.3  # times the prediction time that was estimated


@dataclass
class TimeBudget:
    """Seconds from the script's start; None: as long as it takes."""

    seconds: float | None
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def left(self) -> float:
        return self.seconds - (self.clock() - self.started)

    def callbacks(
        self, parts_left: int, train: int, validation: int, test: int
    ) -> list[TrainerCallback]:
        """What keeps one of the models that are still to be trained within its share.

        Args:
            parts_left: models to train, this one included: each gets an equal share.
            train, validation, test: tokens of each split.
        """
        if self.seconds is None:
            return []
        share = (self.left() - AT_THE_END) / parts_left
        return [StopInTime(self.clock() + share, train, validation, test, self.clock)]


class StopInTime(TrainerCallback):
    """Ends training when what is left of the time is needed to evaluate and predict.

    Time for a token comes from the slowest evaluation so far, and is at least half of that in
    training (a forward pass is a third of a training step).
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
        if not agreed(self.clock() + needed >= self.deadline):
            return control
        self.stopped = control.should_training_stop = True
        if args.eval_strategy == "steps":  # by epoch it is evaluated on leaving anyway
            control.should_evaluate = True
            control.should_save = args.load_best_model_at_end
        return control
