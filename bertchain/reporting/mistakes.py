"""Rows to look at: the most confident mistakes, and rows whose label is probably wrong.

The second by confident learning (Northcutt et al. 2021): a class is confidently another's where its
probability reaches the mean that it has in rows of its own label.
"""

import numpy as np
import pandas as pd

from bertchain.metrics import standardised_squares
from bertchain.reporting.scored import Scored

SHOWN = 30  # rows of each table on the page


def find_mistakes(rows: Scored, most: int = SHOWN) -> pd.DataFrame:
    """List the most confident mistakes.

    Returns:
        columns row (its number), id, with labelled spans target, fold where there are folds, and
        one label: label, prediction, prob_label, prob_prediction;
        several: label (its name), given (yes or no), prob_yes: a row for each label that is wrong;
        regression: label, prediction, error, of several targets the target.
    """
    return FINDERS[rows.spec.problem_type](rows, most)


def _of_one_label(rows: Scored, most: int) -> pd.DataFrame:
    sure = rows.probabilities[np.arange(len(rows)), rows.classes]
    wrong = np.flatnonzero(rows.classes != rows.truth)
    chosen = wrong[np.argsort(-sure[wrong], kind="stable")[:most]]
    return _with_answers(rows, chosen, rows.classes[chosen])


def _with_answers(rows: Scored, chosen: np.ndarray, other: np.ndarray) -> pd.DataFrame:
    """The label of rows and another class, with the probability of each."""
    names, own = np.array(rows.spec.names, dtype=object), rows.truth[chosen]
    return _named(
        rows,
        chosen,
        label=names[own],
        prediction=names[other],
        prob_label=rows.probabilities[chosen, own],
        prob_prediction=rows.probabilities[chosen, other],
    )


def _of_several_labels(rows: Scored, most: int) -> pd.DataFrame:
    missed = np.abs(rows.probabilities - rows.truth)
    wrong = np.flatnonzero((rows.decisions() != (rows.truth >= 1)).reshape(-1))
    chosen = wrong[np.argsort(-missed.reshape(-1)[wrong], kind="stable")[:most]]
    return _with_labels(rows, *np.divmod(chosen, len(rows.spec.names)))


def _with_labels(rows: Scored, chosen: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """A label of each row, whether it is given, and its probability."""
    names = np.array(rows.spec.names, dtype=object)
    return _named(
        rows,
        chosen,
        label=names[labels],
        given=np.where(rows.truth[chosen, labels] >= 1, "yes", "no"),
        prob_yes=rows.probabilities[chosen, labels],
    )


def _of_numbers(rows: Scored, most: int) -> pd.DataFrame:
    several = len(rows.spec.names) > 1
    missed = np.abs(rows.probabilities - rows.truth)
    ordered = standardised_squares(rows.probabilities, rows.truth) if several else missed
    chosen = np.argsort(-ordered.reshape(-1), kind="stable")[:most]
    at, target = np.divmod(chosen, len(rows.spec.names))
    names = np.array(rows.spec.names, dtype=object)
    return _named(
        rows,
        at,
        **({"target": names[target]} if several else {}),
        label=rows.truth[at, target],
        prediction=rows.probabilities[at, target],
        error=(rows.probabilities - rows.truth)[at, target],
    )


def _named(rows: Scored, chosen: np.ndarray, **columns: np.ndarray) -> pd.DataFrame:
    """A table of chosen rows: their number and id, the fold, columns."""
    front = {"row": chosen, "id": [rows.ids[row] for row in chosen]}
    if rows.targets is not None:
        front["target"] = rows.targets[chosen]
    if rows.folds is not None:
        front["fold"] = rows.folds[chosen]
    return pd.DataFrame(front | columns)


FINDERS = {
    "single_label": _of_one_label,
    "multi_label": _of_several_labels,
    "regression": _of_numbers,
}


# ---------------------------------------------------------------- labels that are probably wrong


def confident_classes(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The class that each row confidently is: -1 where it is none, the likelier of several.

    Args:
        probabilities: [n, classes].
        truth: class numbers [n], as they are given.

    Returns:
        class numbers [n].
    """
    size = probabilities.shape[1]
    counts = np.bincount(truth, minlength=size)
    own = probabilities[np.arange(len(truth)), truth]
    means = np.bincount(truth, own, size) / np.maximum(counts, 1)
    means[counts == 0] = np.inf  # a class without a row has no rows like it
    found = np.full(len(truth), -1)
    best = np.zeros(len(truth))
    for k in range(size):  # no second table of all numbers
        column = probabilities[:, k]
        better = (column >= means[k] - 1e-12) & (column > best)
        found[better], best[better] = k, column[better]
    return found


def find_doubtful(rows: Scored) -> pd.DataFrame:
    """List the rows that are confidently another class than their label, the surest first.

    Returns:
        columns as `find_mistakes`; with several labels each label is a question of yes or no. Rows
        whose likeliest class is their label are left out.
    """
    if rows.spec.problem_type == "single_label":
        other = confident_classes(rows.probabilities, rows.truth)
        chosen = np.flatnonzero((other >= 0) & (other != rows.truth) & (rows.classes != rows.truth))
        own = rows.probabilities[chosen, rows.truth[chosen]]
        lead = rows.probabilities[chosen, other[chosen]] - own
        chosen = chosen[np.argsort(-lead, kind="stable")]
        return _with_answers(rows, chosen, other[chosen])
    places, labels = [], []
    for k in range(len(rows.spec.names)):
        p, given = rows.probabilities[:, k], (rows.truth[:, k] >= 1).astype(int)
        other = confident_classes(np.stack([1 - p, p], axis=1), given)
        wrong = (other >= 0) & (other != given) & ((p >= 0.5) != given)
        places.append(np.flatnonzero(wrong))
        labels.append(np.full(len(places[-1]), k))
    at, label = np.concatenate(places), np.concatenate(labels)
    missed = np.abs(rows.probabilities[at, label] - rows.truth[at, label])
    ordered = np.argsort(-missed, kind="stable")
    return _with_labels(rows, at[ordered], label[ordered])


def count_pairs(doubtful: pd.DataFrame, most: int = 10) -> pd.DataFrame:
    """Count which labels stand for which others, the most frequent first."""
    by = ["label", "prediction"] if "prediction" in doubtful else ["label", "given"]
    counts = doubtful.groupby(by, sort=False).size().sort_values(ascending=False, kind="stable")
    names = {"label": "label", "prediction": "probably", "given": "given, probably wrongly"}
    return counts.head(most).rename("rows").reset_index().rename(columns=names)
