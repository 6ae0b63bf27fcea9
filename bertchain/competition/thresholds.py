"""Decision thresholds, fitted on out-of-fold predictions and scored on rows they have not seen.

The score of a threshold on the rows it was fitted on is too high; `fit_and_judge` therefore scores
each fold with thresholds fitted on the other folds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from bertchain.data.labels import Thresholds
from bertchain.errors import InputError
from bertchain.metrics import gain
from bertchain.scoring.metric_files import FileMetric

TRIES, ROUNDS = 50, 5  # of a score of the user's own: cuts that are tried for each, and how often

# Kind of thresholds: its problem type, and the score that they maximise.
KINDS = {
    "global": ("multi_label", "f1_micro"),
    "per_label": ("multi_label", "f1_macro"),
    "ordinal": ("regression", "qwk"),
}


def check_kind(kind: str, problem_type: str, labels: np.ndarray | None = None) -> None:
    """Raises InputError where thresholds of a kind do not fit the labels [n, labels]."""
    needed = KINDS[kind][0]
    if problem_type != needed:
        raise InputError(f"--fit_thresholds {kind} goes with {needed} labels, not {problem_type}")
    if kind != "ordinal" or labels is None:
        return
    if labels.shape[1] != 1 or (labels != np.round(labels)).any():
        raise InputError("--fit_thresholds ordinal needs one column of whole numbers as labels")


def plain(kind: str, labels: np.ndarray) -> Thresholds:
    """Thresholds without fitting: 0.5, or the middle between two grades."""
    if kind != "ordinal":
        return Thresholds(kind, (0.5,) * labels.shape[1])
    grades = np.unique(labels)
    return Thresholds(kind, tuple(((grades[1:] + grades[:-1]) / 2).tolist()), tuple(grades))


def fit(
    kind: str, predictions: np.ndarray, labels: np.ndarray, metric: FileMetric | None = None
) -> Thresholds:
    """Fit the thresholds with the highest score on these rows.

    Args:
        predictions, labels: [n, labels]; for `ordinal` [n, 1].
        metric: the score, of decisions; None: that of `KINDS`.
    """
    if metric is not None:
        return fit_for(metric, fit(kind, predictions, labels), predictions, labels)
    if kind == "global":
        cut = best_f1_cut(predictions.reshape(-1), labels.reshape(-1))
        return Thresholds(kind, (cut,) * labels.shape[1])
    if kind == "per_label":
        columns = range(labels.shape[1])
        return Thresholds(
            kind, tuple(best_f1_cut(predictions[:, c], labels[:, c]) for c in columns)
        )
    return _fit_grades(predictions, labels)


def fit_for(
    metric: FileMetric, start: Thresholds, predictions: np.ndarray, labels: np.ndarray
) -> Thresholds:
    """Move thresholds, one after the other, to where a score of the decisions is best.

    Each is tried between quantiles of the numbers that it cuts, and nearest to its place among
    equals, until none moves.

    Args: as for `fit`, and
        start: thresholds to begin with.
    """
    shared = start.kind == "global"
    cuts = list(start.cuts[:1] if shared else start.cuts)
    each = [
        predictions.reshape(-1) if shared or start.grades else predictions[:, c]
        for c in range(len(cuts))
    ]
    tried = [np.unique(np.quantile(p, np.linspace(0, 1, TRIES + 1), method="hazen")) for p in each]

    def made(cuts: list[float]) -> Thresholds:
        return replace(start, cuts=tuple(map(float, cuts * len(start.cuts) if shared else cuts)))

    def gained(cuts: list[float]) -> float:
        return gain(metric, labels, made(cuts).decide(predictions))

    best, moved = gained(cuts), True
    for _ in range(ROUNDS):
        if not moved:
            break
        moved = False
        for i in range(len(cuts)):
            low = cuts[i - 1] if start.grades and i else -np.inf
            high = cuts[i + 1] if start.grades and i + 1 < len(cuts) else np.inf
            inside = tried[i][(tried[i] > low) & (tried[i] < high)]
            for cut in inside[np.argsort(np.abs(inside - cuts[i]))]:
                other = [*cuts[:i], cut, *cuts[i + 1 :]]
                reached = gained(other)
                if reached > best + 1e-12:
                    best, cuts, moved = reached, other, True
    return made(cuts)


def scorer(
    kind: str, metric: FileMetric | None = None
) -> tuple[str, Callable[[np.ndarray, np.ndarray], float]]:
    """Name the score that thresholds maximise; and its function of decisions and labels."""
    if metric is None:
        return KINDS[kind][1], partial(score, kind)
    return metric.name, lambda decisions, labels: metric(labels, decisions)


def score(kind: str, decisions: np.ndarray, labels: np.ndarray) -> float:
    """Score decisions [n, labels]: F1 (micro for `global`, macro for `per_label`) or quadratic
    weighted kappa."""
    from sklearn import metrics as sk

    if kind == "ordinal":
        return float(
            sk.cohen_kappa_score(
                labels[:, 0].astype(int), decisions[:, 0].astype(int), weights="quadratic"
            )
        )
    average = KINDS[kind][1].removeprefix("f1_")
    return float(sk.f1_score(labels.astype(int), decisions, average=average, zero_division=0))


def fit_and_judge(
    kind: str,
    predictions: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray,
    metric: FileMetric | None = None,
) -> tuple[Thresholds, dict[str, float]]:
    """Fit thresholds on all rows, and measure what they gain on rows they were not fitted on.

    Args:
        predictions, labels: [n, labels].
        folds: of each row [n].
        metric: see `fit`.

    Returns:
        the thresholds; and scores by name, such as `oof_f1_macro_plain` (without fitting),
        `oof_f1_macro_nested` (each fold with the thresholds of the others: unbiased) and
        `oof_f1_macro_fitted` (on the rows they were fitted on: too high).
    """
    thresholds = fit(kind, predictions, labels, metric)
    nested = np.empty_like(plain(kind, labels).decide(predictions))
    for fold in np.unique(folds):
        inside = folds == fold
        other = thresholds
        if (~inside).any():
            other = fit(kind, predictions[~inside], labels[~inside], metric)
        nested[inside] = other.decide(predictions[inside])
    name, score_of = scorer(kind, metric)
    return thresholds, {
        f"oof_{name}_plain": score_of(plain(kind, labels).decide(predictions), labels),
        f"oof_{name}_nested": score_of(nested, labels),
        f"oof_{name}_fitted": score_of(thresholds.decide(predictions), labels),
    }


def best_f1_cut(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Find the cut with the highest F1: exact, by trying every number of positive rows.

    Args:
        probabilities, truth: [n]; truth is 0 or 1.

    Returns:
        the middle between the lowest positive and the highest negative row; 0.5 where truth holds
        no 1.
    """
    if not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], np.cumsum(truth[order])
    f1 = 2 * hits / (np.arange(1, len(p) + 1) + truth.sum())
    f1[:-1][p[1:] == p[:-1]] = -1  # equal probabilities cannot be told apart
    last = int(f1.argmax())
    below = p[last + 1] if last + 1 < len(p) else 0.0
    return float((p[last] + below) / 2)


def _fit_grades(predictions: np.ndarray, labels: np.ndarray, candidates: int = 200) -> Thresholds:
    """Coordinate ascent: move each cut in turn to where kappa is highest, until none moves."""
    start = plain("ordinal", labels)
    values, grades = predictions[:, 0], np.asarray(start.grades)
    truth = np.searchsorted(grades, labels[:, 0])
    between = np.unique(np.quantile(values, np.linspace(0, 1, candidates + 1), method="hazen"))
    cuts = np.asarray(start.cuts)
    kappa = _kappa_of(values, truth, len(grades))
    best = kappa(cuts)
    moved = len(cuts) > 0
    while moved:
        moved = False
        for i in range(len(cuts)):
            low = cuts[i - 1] if i else -np.inf
            high = cuts[i + 1] if i + 1 < len(cuts) else np.inf
            for cut in between[(between > low) & (between < high)]:
                tried = np.concatenate([cuts[:i], [cut], cuts[i + 1 :]])
                reached = kappa(tried)
                if reached > best + 1e-12:
                    best, cuts, moved = reached, tried, True
    return Thresholds("ordinal", tuple(cuts.tolist()), start.grades)


def _kappa_of(values: np.ndarray, truth: np.ndarray, grades: int) -> Callable[[np.ndarray], float]:
    """Build the function cuts -> quadratic weighted kappa (Cohen 1968); grades count from 0."""
    order = np.argsort(values)
    values, truth = values[order], truth[order]
    each = np.arange(grades)
    weights = (each[:, None] - each) ** 2
    counts = np.bincount(truth, minlength=grades)
    below = np.zeros((grades, len(truth) + 1), dtype=int)  # rows of a grade among the first k
    for grade in each:
        below[grade, 1:] = np.cumsum(truth == grade)

    def kappa(cuts: np.ndarray) -> float:
        ends = np.concatenate([[0], np.searchsorted(values, cuts, side="left"), [len(values)]])
        table = np.diff(below[:, ends], axis=1)  # [true, decided]
        chance = np.outer(counts, table.sum(axis=0)) / len(values)
        expected = (weights * chance).sum()
        return 1.0 - (weights * table).sum() / expected if expected else 0.0

    return kappa
