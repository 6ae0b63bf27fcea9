"""Scores of rows with weights: a row of weight 2 counts like two rows.

The names, and where all weights are 1 the values, are those of `metrics.SCORES`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from sklearn import metrics as sk
from sklearn.utils import assert_all_finite
from torch import Tensor

from bertchain.data.labels import LabelSpec
from bertchain.models.modeling import DocumentClassifierConfig, standardise


def single_label(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Scores of one class a row; see `metrics.single_label_scores`."""
    predicted, own = probabilities.argmax(axis=1), {"sample_weight": weights}
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    true = probabilities[np.arange(len(labels)), labels]
    smallest = np.finfo(np.float64).eps
    f1 = {"zero_division": 0, **own}
    return {
        "accuracy": sk.accuracy_score(labels, predicted, **own),
        "f1_macro": sk.f1_score(labels, predicted, average="macro", **f1),
        "f1_weighted": sk.f1_score(labels, predicted, average="weighted", **f1),
        "mcc": sk.matthews_corrcoef(labels, predicted, **own),
        "log_loss": np.average(-np.log(true.clip(smallest, 1 - smallest)), weights=weights),
        "roc_auc": mean_roc_auc(probabilities, one_hot, weights),
    }


def multi_label(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Scores of several labels a row; see `metrics.multi_label_scores`."""
    truth, predicted, own = labels >= 1, probabilities >= 0.5, {"sample_weight": weights}
    hits = ((truth & predicted) * weights[:, None]).sum(axis=0)
    marks = ((truth * 1.0 + predicted) * weights[:, None]).sum(axis=0)
    f1 = 2 * hits / np.where(marks > 0, marks, 1)
    each = np.repeat(weights, truth.shape[1])
    p = probabilities.clip(1e-7, 1 - 1e-7)
    return {
        "f1_micro": 2 * hits.sum() / (marks.sum() or 1),
        "f1_macro": f1.mean(),
        "roc_auc_micro": mean_roc_auc(probabilities.reshape(-1, 1), truth.reshape(-1, 1), each),
        "roc_auc_macro": mean_roc_auc(probabilities, truth, weights),
        "lrap": sk.label_ranking_average_precision_score(truth, probabilities, **own),
        "subset_accuracy": np.average((truth == predicted).all(axis=1), weights=weights),
        "log_loss": np.average(-np.log(np.where(truth, p, 1 - p)).mean(axis=1), weights=weights),
    }


def regression(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Scores of numbers; see `metrics.regression_scores`."""
    errors, pairs = predictions - targets, list(zip(predictions.T, targets.T, strict=True))
    several = {}
    if targets.shape[1] > 1:
        squares = standardised_squares(predictions, targets, weights)
        several = {"rmse_standardised": np.average(squares.mean(axis=1), weights=weights) ** 0.5}
        of_each = np.average(errors**2, axis=0, weights=weights) ** 0.5
        several["mcrmse"] = of_each.mean()
    ranks = [(weighted_ranks(p, weights), weighted_ranks(t, weights)) for p, t in pairs]
    return several | {
        "rmse": np.average((errors**2).mean(axis=1), weights=weights) ** 0.5,
        "mae": np.average(np.abs(errors).mean(axis=1), weights=weights),
        "pearson": np.mean([correlation(p, t, weights) for p, t in pairs]),
        "spearman": np.mean([correlation(p, t, weights) for p, t in ranks]),
    }


WEIGHTED = {"single_label": single_label, "multi_label": multi_label, "regression": regression}


def of_targets(
    predictions: np.ndarray, targets: np.ndarray, names: Sequence[str], weights: np.ndarray
) -> dict[str, float]:
    """RMSE of each of several targets; see `metrics.scores_of_targets`."""
    if len(names) < 2:
        return {}
    plain = np.average((predictions - targets) ** 2, axis=0, weights=weights) ** 0.5
    squares = standardised_squares(predictions, targets, weights)
    standardised = np.average(squares, axis=0, weights=weights) ** 0.5
    scores = dict(zip((f"{name}_rmse" for name in names), plain, strict=True))
    others = (f"{name}_rmse_standardised" for name in names)
    return scores | dict(zip(others, standardised, strict=True))


def standardised_squares(
    predictions: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Squared errors in variances of their target; see `metrics.standardised_squares`."""
    mean = np.average(targets, axis=0, weights=weights)
    variance = np.average((targets - mean) ** 2, axis=0, weights=weights)
    return (predictions - targets) ** 2 / np.where(variance > 0, variance, 1.0)


def mean_roc_auc(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Mean ROC-AUC over the columns that hold both a 0 and a 1; NaN without any."""
    columns = [c for c in range(truth.shape[1]) if 0 < truth[:, c].sum() < len(truth)]
    found = [
        sk.roc_auc_score(truth[:, c], probabilities[:, c], sample_weight=weights) for c in columns
    ]
    return float(np.mean(found)) if found else float("nan")


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean rank of each value [n], as if it stood there as often as its weight says."""
    place = rankdata(values, method="dense") - 1
    mass = np.bincount(place, weights=weights)
    return (np.cumsum(mass) - (mass - 1) / 2)[place]


def correlation(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> float:
    """Pearson's correlation; NaN for a constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    table = np.cov(a, b, aweights=weights, ddof=0)
    return float(table[0, 1] / (table[0, 0] * table[1, 1]) ** 0.5)


def mean_loss(
    logits: Tensor, labels: Tensor, config: DocumentClassifierConfig, weights: np.ndarray
) -> float:
    """Weighted mean of the loss of each document; see `modeling.document_loss`."""
    logits = logits.float()
    if config.problem_type == "regression":
        logits, labels = standardise(logits, labels, config)
        each = F.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape), reduction="none")
    elif config.problem_type.startswith("single"):
        labels = labels.to(logits.dtype) if labels.is_floating_point() else labels
        each = F.cross_entropy(logits, labels, reduction="none")
    else:
        each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    each = each.reshape(len(each), -1).mean(dim=1).double()
    own = torch.as_tensor(weights, dtype=torch.float64)
    return float((each * own).sum() / own.sum())


def of_rows(
    spec: LabelSpec, probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray
) -> dict[str, float]:
    """Scores in which rows count by their weights; those of weight 0 not at all."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    assert_all_finite(probabilities)
    rows = weights > 0
    p, truth, weights = probabilities[rows], truth[rows], weights[rows]
    scores = WEIGHTED[spec.problem_type](p, truth, weights)
    if spec.problem_type == "regression":
        scores |= of_targets(p, truth, spec.names, weights)
    return {name: float(value) for name, value in scores.items()}
