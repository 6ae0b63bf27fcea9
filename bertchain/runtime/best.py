"""Which metric chooses the best checkpoint, whether more or less is better, and where it was."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bertchain.errors import InputError, nearest

SHARE = "best_share"  # of a model's planned steps, after which its kept weights were


def find_best(state: TrainerState, kept: bool) -> dict[str, float]:
    """Say after how many epochs, and which share of the planned steps, the kept weights were.

    Args:
        kept: whether the best checkpoint is kept; else it is the last.
    """
    if not state.global_step:
        return {}
    step = (kept and state.best_global_step) or state.global_step
    epoch = (state.epoch or 0.0) * step / state.global_step
    return {"best_epoch": epoch, SHARE: step / state.max_steps}


class StopAtShare(TrainerCallback):
    """End training after a share of its steps, rates of learning as if it went on."""

    def __init__(self, share: float):
        self.share = share

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= max(1, round(self.share * state.max_steps)):
            control.should_training_stop = True
        return control


def choose_metric(
    training: TrainingArguments,
    given: Mapping[str, Any],
    directions: Mapping[str, bool],
    others: bool = False,
) -> None:
    """Check --metric_for_best_model and set --greater_is_better to what the metric says, in place.

    Args:
        given: arguments that are set, by name.
        directions: names of the scores there are, and whether more is better.
        others: whether there are scores beside them, whose names only their computation tells.

    Raises:
        InputError: for a metric that no evaluation gives, and where --greater_is_better is needed.
    """
    if training.metric_for_best_model is None:
        return
    name = training.metric_for_best_model.removeprefix("eval_")
    if name not in directions and not others:
        raise unknown_metric(name, [*directions])
    if given.get("greater_is_better") is not None:
        return
    if name not in directions and not name.endswith("loss"):
        raise InputError(
            f"--metric_for_best_model {name}: it is not known whether more of it is better or "
            "less; add --greater_is_better true or false"
        )
    training.greater_is_better = directions.get(name, False)


def unknown_metric(name: str, names: list[str]) -> InputError:
    """Make the error for a metric that no evaluation gives."""
    return InputError(
        f"--metric_for_best_model {name} is not one of {', '.join(names)}{nearest(name, names)}"
    )
