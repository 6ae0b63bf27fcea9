"""Which metric chooses the best checkpoint, and whether more or less of it is better."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainingArguments

from bertchain.errors import InputError, nearest


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
