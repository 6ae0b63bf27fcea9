"""Scores beside the usual ones: of `evaluate`, of grades, of a file of the user's own."""

from collections.abc import Callable

import evaluate
import numpy as np
from sklearn import metrics as sk

from bertchain.data.label_values import to_number
from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.scoring import metric_files


class ExtraMetric:
    """Metric of `evaluate`, by hub name or path: `name` or `name:argument=value,...`.

    Called with probabilities and labels, it gets decisions: the likeliest class, 0/1 at threshold
    0.5, or values.
    """

    def __init__(self, description: str, problem_type: str):
        self.name, _, arguments = description.partition(":")
        self.arguments = dict(pair.partition("=")[::2] for pair in arguments.split(",") if pair)
        self.problem_type = problem_type
        config = "multilabel" if problem_type == "multi_label" else None
        self.metric = evaluate.load(self.name, config_name=config, keep_in_memory=True)

    def __call__(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        predictions = {
            "single_label": lambda p: p.argmax(axis=1),
            "multi_label": lambda p: (p >= 0.5).astype(int),
            "regression": lambda p: p[:, 0] if p.shape[1] == 1 else p,
        }[self.problem_type](probabilities)
        if self.problem_type == "regression" and labels.shape[1] == 1:
            labels = labels[:, 0]
        return self.metric.compute(predictions=predictions, references=labels, **self.arguments)


class Kappa:
    """Quadratic weighted kappa (Cohen 1968) of grades, as `cohen_kappa_score` of scikit-learn.

    Of one label a row, grades are the classes in their order, which are numbers; values of a
    regression are rounded to the grades that there are.
    """

    def __init__(self, spec: LabelSpec):
        """Raises InputError for labels that are no grades."""
        numbers = [to_number(name) for name in spec.names]
        graded = spec.problem_type == "single_label" and None not in numbers
        if spec.problem_type == "regression" and len(spec.names) == 1:
            graded = True
        elif graded:
            graded = numbers == sorted(numbers)
        if not graded:
            raise InputError(
                "qwk goes with grades: one label a row whose names are numbers, or one column of "
                "whole numbers"
            )
        self.regression = spec.problem_type == "regression"

    def __call__(self, probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if not self.regression:
            return {"qwk": self.kappa(labels, probabilities.argmax(axis=1))}
        truth = labels[:, 0]
        if (truth != np.rint(truth)).any():
            raise InputError("qwk needs whole numbers as labels")
        rounded = np.rint(probabilities[:, 0]).clip(truth.min(), truth.max())
        return {"qwk": self.kappa(truth.astype(int), rounded.astype(int))}

    @staticmethod
    def kappa(labels: np.ndarray, predicted: np.ndarray) -> float:
        """Kappa of grades [n]; NaN where all rows have the same."""
        grades = np.arange(
            min(labels.min(), predicted.min()), max(labels.max(), predicted.max()) + 1
        )
        if len(grades) < 2:
            return float("nan")
        return float(sk.cohen_kappa_score(labels, predicted, labels=grades, weights="quadratic"))


def load_extra(description: str, spec: LabelSpec) -> Callable[..., dict[str, float]]:
    """Load a score beside the usual ones; called with probabilities and labels it gives its values.

    Args:
        description: qwk, FILE.py:FUNCTION, or what `ExtraMetric` takes.

    Raises:
        InputError: for one that is not there, or does not go with the labels.
    """
    if description == "qwk":
        return Kappa(spec)
    if metric_files.split_name(description) is None:
        return ExtraMetric(description, spec.problem_type)
    own = metric_files.load(description)
    return lambda probabilities, labels: {own.name: own(labels, probabilities)}
