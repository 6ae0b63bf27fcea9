"""Metrics by problem type in an `evaluate.Metric` that needs no network.

All but the correlations are written here, since some cost scikit-learn classes x classes, or a sort
for each class, and network probes compute one after each epoch. Their values are those of
scikit-learn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import datasets
import evaluate
import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.utils import assert_all_finite
from transformers import EvalPrediction

from bertchain.data.labels import LabelSpec
from bertchain.data.weights import weights_of
from bertchain.errors import as_input_error
from bertchain.models.modeling import DocumentClassifierConfig, document_loss, without_padding
from bertchain.scoring import ranking, weighted_scores
from bertchain.scoring.extra_metrics import load_extra

evaluate.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # no request for each local metric

STANDARDISED = "rmse_standardised"
MAIN_METRIC = {  # selects checkpoints, settings and layers; see `main_metric`
    "single_label": ("accuracy", True),
    "multi_label": ("lrap", True),
    "regression": ("rmse", False),
}
LESS_IS_BETTER = ("loss", "log_loss", "rmse", "mae", "mcrmse", STANDARDISED)


def main_metric(problem_type: str, labels: int = 1) -> tuple[str, bool]:
    """Name the metric that selects checkpoints, settings and layers; and whether more is better.

    Of several regression targets it is the standardised RMSE: in RMSE over all values the target
    with the largest numbers would choose alone.

    Args:
        labels: number of labels or regression targets.
    """
    if problem_type == "multi_label" and labels == 1:  # there is nothing to rank
        return "roc_auc_macro", True
    several = problem_type == "regression" and labels > 1
    return (STANDARDISED, False) if several else MAIN_METRIC[problem_type]


def single_label_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of one class a row. Args: probabilities [n, classes], labels [n] (class numbers)."""
    return {name: score(probabilities, labels) for name, score in SINGLE_LABEL.items()}


def f1_of_classes(probabilities: np.ndarray, labels: np.ndarray, average: str) -> float:
    """Mean F1 of the classes that are there or predicted, `macro` or `weighted` by their rows.

    Args: as for `single_label_scores`.
    """
    predicted = probabilities.argmax(axis=1)
    classes = max(probabilities.shape[1], labels.max() + 1)
    there, guessed, hits = (
        np.bincount(rows, minlength=classes)
        for rows in (labels, predicted, labels[predicted == labels])
    )
    scores = 2 * hits / np.maximum(there + guessed, 1)
    weights = there + guessed > 0 if average == "macro" else there
    return float(np.average(scores, weights=weights))


def log_loss_of_classes(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean log loss; probabilities are clipped as scikit-learn does. Args: as above."""
    own = probabilities[np.arange(len(labels)), labels]  # of the true class
    smallest = np.finfo(np.float64).eps
    return float(-np.log(own.clip(smallest, 1 - smallest)).mean())


def roc_auc_of_classes(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the ROC AUC, each against the others. Args: as above."""
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    return ranking.mean_roc_auc(probabilities, one_hot)


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Matthews correlation of class numbers [n]; 0 where it is not defined.

    scikit-learn's builds the table of classes x classes.
    """
    n, hits = len(labels), int((predicted == labels).sum())
    guessed = np.bincount(predicted, minlength=labels.max() + 1)
    there = np.bincount(labels, minlength=predicted.max() + 1)
    guesses, truths = n**2 - int(guessed @ guessed), n**2 - int(there @ there)
    if not guesses or not truths:
        return 0.0
    return (hits * n - int(guessed @ there)) / (float(guesses) * float(truths)) ** 0.5


def multi_label_scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores of several labels a row; F1 and accuracy at threshold 0.5.

    Args:
        probabilities, labels: both [n, labels], labels 0/1.
    """
    truth = labels >= 1
    return {name: score(probabilities, truth) for name, score in MULTI_LABEL.items()}


def f1_of_labels(probabilities: np.ndarray, truth: np.ndarray, average: str) -> float:
    """F1 at threshold 0.5, `micro` or `macro`. Args: as above, truth as bool."""
    predicted = probabilities >= 0.5
    hits = (truth & predicted).sum(axis=0)
    marks = truth.sum(axis=0) + predicted.sum(axis=0)
    if average == "micro":
        return float(2 * hits.sum() / max(marks.sum(), 1))
    return float(np.mean(2 * hits / np.maximum(marks, 1)))


def subset_accuracy(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Share of rows all of whose labels are right, at threshold 0.5. Args: as above."""
    return float((truth == (probabilities >= 0.5)).all(axis=1).mean())


def mean_log_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean log loss of 0/1 labels, both [n, labels], truth as bool; piece by piece."""
    total, at_once = 0.0, max(1, ranking.PIECE // truth.shape[1])
    for start in range(0, len(truth), at_once):
        p = probabilities[start : start + at_once].clip(1e-7, 1 - 1e-7)
        total -= np.log(np.where(truth[start : start + at_once], p, 1 - p)).sum()
    return float(total / truth.size)


def regression_scores(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Scores of numbers: RMSE and MAE over all values, the mean correlation over targets.

    With several targets also RMSE of standardised values, see `standardised_squares`, and the mean
    of the RMSE of each (MCRMSE).

    Args:
        predictions, targets: both [n, targets].

    Raises:
        ValueError: if a prediction is not finite.
    """
    assert_all_finite(predictions)
    several = SEVERAL_TARGETS if targets.shape[1] > 1 else {}
    return {name: score(predictions, targets) for name, score in (several | REGRESSION).items()}


def mean_correlation(function: Any, predictions: np.ndarray, targets: np.ndarray) -> float:
    """Mean over targets of `pearsonr` or `spearmanr`; NaN where one of them is constant."""
    pairs = zip(predictions.T, targets.T, strict=True)
    return float(np.mean([_correlation(function, p, t) for p, t in pairs]))


def standardised_squares(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Squared errors, each divided by the variance of its target in these rows: [n, targets].

    The root of the mean of a column is RMSE / standard deviation: 1 is what the mean would give. A
    target that is the same in all rows is left as it is.
    """
    variance = targets.var(axis=0)
    return (predictions - targets) ** 2 / np.where(variance > 0, variance, 1.0)


def scores_of_targets(
    predictions: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """RMSE of each of several targets, in its unit and standardised; {} of one target.

    Args: as for `regression_scores`.
    """
    if len(names) < 2:
        return {}
    plain = ((predictions - targets) ** 2).mean(axis=0) ** 0.5
    standardised = standardised_squares(predictions, targets).mean(axis=0) ** 0.5
    scores = {f"{name}_rmse": float(value) for name, value in zip(names, plain, strict=True)}
    pairs = zip(names, standardised, strict=True)
    return scores | {f"{name}_{STANDARDISED}": float(value) for name, value in pairs}


SHARES = {"rmse": False, "spearman": True}  # scores of soft multi_label; whether more is better


def scores_of_shares(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None
) -> dict[str, float]:
    """RMSE and mean rank correlation of probabilities and labels from 0 to 1, both [n, labels]."""
    if weights is None:
        scores = regression_scores(probabilities, labels)
    else:
        scores = weighted_scores.regression(probabilities, labels, weights)
    return {name: float(scores[name]) for name in SHARES}


def _correlation(function: Any, a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # not defined for a constant
        return float("nan")
    return float(function(a, b).statistic)


# Each score by itself, of predictions and labels as `single_label_scores` and the like take them;
# those of several labels get them as bool.
SINGLE_LABEL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda p, y: float((p.argmax(axis=1) == y).mean()),
    "f1_macro": lambda p, y: f1_of_classes(p, y, "macro"),
    "f1_weighted": lambda p, y: f1_of_classes(p, y, "weighted"),
    "mcc": lambda p, y: matthews(p.argmax(axis=1), y),
    "log_loss": log_loss_of_classes,
    "roc_auc": roc_auc_of_classes,
}
MULTI_LABEL: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "f1_micro": lambda p, y: f1_of_labels(p, y, "micro"),
    "f1_macro": lambda p, y: f1_of_labels(p, y, "macro"),
    "roc_auc_micro": lambda p, y: ranking.mean_roc_auc(p.reshape(-1, 1), y.reshape(-1, 1)),
    "roc_auc_macro": lambda p, y: ranking.mean_roc_auc(p, y),
    "lrap": lambda p, y: ranking.ranking_precision(p, y),
    "subset_accuracy": subset_accuracy,
    "log_loss": mean_log_loss,
}
SEVERAL_TARGETS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    STANDARDISED: lambda p, y: float(standardised_squares(p, y).mean() ** 0.5),
    "mcrmse": lambda p, y: float((((p - y) ** 2).mean(axis=0) ** 0.5).mean()),
}
REGRESSION: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "rmse": lambda p, y: float(((p - y) ** 2).mean(dtype=float) ** 0.5),
    "mae": lambda p, y: float(np.abs(p - y).mean(dtype=float)),
    "pearson": lambda p, y: mean_correlation(pearsonr, p, y),
    "spearman": lambda p, y: mean_correlation(spearmanr, p, y),
}
SCORES = {
    "single_label": single_label_scores,
    "multi_label": multi_label_scores,
    "regression": regression_scores,
}


@dataclass(frozen=True)
class NamedScore:
    """One score without the time that the others take.

    Args:
        problem_type, name: as in `SCORES`.
    """

    problem_type: str
    name: str

    @property
    def greater_is_better(self) -> bool:
        return self.name not in LESS_IS_BETTER

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """Score predictions. Args: as for `SCORES`."""
        if self.problem_type == "multi_label":
            labels = labels >= 1
        return float(_ALONE[self.problem_type][self.name](predictions, labels))


class Score(Protocol):
    """What scores predictions: a `NamedScore`, or a `metric_files.FileMetric`."""

    @property
    def name(self) -> str: ...

    @property
    def greater_is_better(self) -> bool | None: ...

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> float: ...


def gain(score: Score, labels: np.ndarray, predictions: np.ndarray) -> float:
    """The score, negative where less of it is better; NaN counts as the worst."""
    value = score(labels, predictions) * (1 if score.greater_is_better else -1)
    return -np.inf if np.isnan(value) else value


_ALONE = {
    "single_label": SINGLE_LABEL,
    "multi_label": MULTI_LABEL,
    "regression": SEVERAL_TARGETS | REGRESSION,
}
_TWO_ROWS = {  # predictions and labels that any score can be computed of
    "single_label": (np.eye(2), np.arange(2)),
    "multi_label": (np.eye(2), np.eye(2)),
    "regression": (np.arange(2.0)[:, None], np.arange(2.0)[:, None]),
}


def score_directions(problem_type: str, targets: Sequence[str] = ()) -> dict[str, bool]:
    """Name the scores that an evaluation gives, and whether more of each is better.

    Args:
        targets: names of the regression targets, which have scores of their own.
    """
    given = _TWO_ROWS[problem_type]
    if problem_type == "regression" and len(targets) > 1:
        given = [np.repeat(values, len(targets), axis=1) for values in given]
        of_targets = dict.fromkeys(scores_of_targets(*given, targets), False)
    else:
        of_targets = {}
    names = ["loss", *SCORES[problem_type](*given)]
    return {name: name not in LESS_IS_BETTER for name in names} | of_targets


_VECTOR = datasets.Sequence(datasets.Value("float64"))
_REFERENCES = {
    "single_label": datasets.Value("int64"),
    "multi_label": _VECTOR,
    "regression": _VECTOR,
}


class DocumentMetrics(evaluate.Metric):
    """All scores of a problem type: `DocumentMetrics("multi_label").compute(...)`.

    `predictions` are probabilities (regression: values), a list for each row; `references` are
    class numbers or lists.
    """

    def __init__(self, problem_type: str):
        # in memory: no file that several processes would write
        super().__init__(config_name=problem_type, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(
            {"predictions": _VECTOR, "references": _REFERENCES[self.config_name]}
        )
        return evaluate.MetricInfo(
            description="Scores of document classification by problem type.",
            citation="",
            inputs_description="probabilities or values, and the truth",
            features=features,
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **other: Any) -> Any:
        """Score arrays as they are: `evaluate` would write all numbers to a table first."""
        if predictions is None:  # they were added before
            return super().compute(**other)
        return self._compute(predictions, references)

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        probabilities = np.asarray(predictions, dtype=np.float64)
        assert_all_finite(probabilities)
        scores = SCORES[self.config_name](probabilities, np.asarray(references))
        return {name: float(value) for name, value in scores.items()}


def score_function(spec: LabelSpec, extra_metrics: list[str]) -> Callable[..., dict[str, float]]:
    """Build the function of probabilities [n, labels] and encoded labels that gives all scores.

    A third argument, weights of rows [n], makes rows count by them (but in extra metrics).

    Raises:
        InputError: for an extra metric that cannot be loaded.
    """
    metric = DocumentMetrics(spec.problem_type)
    extra = []
    for description in extra_metrics:
        with as_input_error(f"--extra_metrics {description}"):
            extra.append(load_extra(description, spec))

    def compute(
        probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> dict[str, float]:
        truth = spec.hard_labels(np.asarray(labels))
        if weights is not None and len(weights):
            scores = weighted_scores.of_rows(spec, probabilities, truth, weights)
        else:
            scores = metric.compute(predictions=probabilities, references=truth)
            if spec.problem_type == "regression":
                scores |= scores_of_targets(probabilities, truth, spec.names)
        if spec.soft and (truth != labels).any():
            scores |= scores_of_shares(probabilities, np.asarray(labels), weights)
        for function in extra:
            scores |= function(probabilities, truth)
        return scores

    return compute


def metric_function(
    spec: LabelSpec,
    config: DocumentClassifierConfig,
    extra_metrics: list[str],
    rows: datasets.Dataset | None = None,
) -> Callable[..., dict[str, float]]:
    """Build the Trainer's `compute_metrics`: all scores, and the exact mean loss.

    The Trainer's own evaluation loss is a mean of batch means, which a short last batch distorts.

    Args:
        rows: that the Trainer evaluates, whose weights count (see data/weights.py). For other rows
            theirs are given beside the prediction.
    """
    scores_of = score_function(spec, extra_metrics)
    own = None if rows is None else weights_of(rows)

    def compute(prediction: EvalPrediction, weights: np.ndarray | None = own) -> dict[str, float]:
        logits = torch.as_tensor(prediction.predictions)
        labels = torch.as_tensor(prediction.label_ids)
        if logits.dim() == 3:  # of words [documents, targets, labels]
            logits, labels = without_padding(logits, labels)
        if weights is None:
            loss = document_loss(logits, labels, config).item()
        else:
            loss = weighted_scores.mean_loss(logits, labels, config, weights)
        probabilities = spec.probabilities(logits.numpy())
        return {"loss": loss, **scores_of(probabilities, labels.numpy(), weights)}

    return compute


def is_score(name: str) -> bool:
    """Return whether a metric measures the model, and not the time it took."""
    return name.startswith(("eval_", "test_")) and not name.endswith(("_runtime", "_per_second"))
