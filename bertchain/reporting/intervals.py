"""Bootstrap intervals of all scores that are functions of sums over rows, all at once.

Accuracy is a sum of hits, F1 and Matthews correlation are functions of how many rows each class
has, is given, and both; so a resampled row is a weight, and a thousand resamplings are one product
of matrices. The area under the ROC curve has no such sums: its influence function stands for them
(DeLong et al. 1988).
"""

from collections.abc import Callable

import numpy as np
from scipy import sparse

from bertchain.metrics import STANDARDISED, mean_log_loss
from bertchain.probing.scoreboard import GROUPS, SAMPLES, half_width
from bertchain.reporting.scored import Scored
from bertchain.scoring.ranking import count_below

AT_ONCE = 100  # samples that are drawn together
MOST_RANKED = 2 * 10**7  # scores that are sorted for an interval

Sums = dict[str, np.ndarray]
Scores = dict[str, np.ndarray]


def half_widths(rows: Scored, seed: int) -> dict[str, float]:
    """Half the width of the 95 % interval of each score over the rows, by name.

    Returns:
        of the scores of `metrics.SCORES` but spearman; of more than MOST_RANKED numbers without
        areas under curves, too.
    """
    parts, scores_of = PARTS[rows.spec.problem_type](rows)
    drawn = scores_of(resampled(parts, len(rows), seed))
    return {name: half_width(values) for name, values in drawn.items()}


def resampled(parts: Sums, rows: int, seed: int) -> Sums:
    """Sum what each row adds over resampled rows: name -> [SAMPLES] or [SAMPLES, k].

    More than GROUPS rows are dealt out to as many groups, and groups are resampled: the variance is
    the same, the time no longer grows with the rows.

    Args:
        parts: what each row adds, by name: [n] or [n, k]. `rows` is added: 1 for each.
    """
    rng = np.random.default_rng(seed)
    groups = min(rows, GROUPS)
    group_of = rng.permutation(rows) % groups
    deal = sparse.csr_matrix((np.ones(rows), (group_of, np.arange(rows))), shape=(groups, rows))
    parts = parts | {"rows": np.ones(rows)}
    own = {name: sparse.csr_matrix(_as_columns(part)) for name, part in parts.items()}
    dealt = sparse.hstack([deal @ part for part in own.values()]).T.tocsr()  # [columns, groups]
    found = []
    for start in range(0, SAMPLES, AT_ONCE):
        samples = range(start, min(start + AT_ONCE, SAMPLES))
        draws = [np.bincount(rng.integers(groups, size=groups), minlength=groups) for _ in samples]
        found.append(np.asarray(dealt @ np.stack(draws, axis=1).astype(float)).T)
    ends = np.cumsum([part.shape[1] for part in own.values()])
    pieces = np.split(np.concatenate(found), ends[:-1], axis=1)
    return {
        name: piece[:, 0] if parts[name].ndim == 1 else piece
        for name, piece in zip(own, pieces, strict=True)
    }


def _as_columns(part: np.ndarray) -> np.ndarray:
    return part[:, None] if part.ndim == 1 else part


def f1_of(hits: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """F1 from counts of hits and of marks (given and true together); 0 where there are none."""
    return 2 * hits / np.maximum(marks, 1)


# ---------------------------------------------------------------- what rows add, by problem type


def single_label_parts(rows: Scored) -> tuple[Sums, Callable[[Sums], Scores]]:
    """What each row adds to the scores of one class a row; the scores from sums of it."""
    probabilities, truth, size = rows.probabilities, rows.truth, len(rows.spec.names)
    own = probabilities[np.arange(len(rows)), truth]
    smallest = np.finfo(np.float64).eps
    parts = {
        "hit": rows.each,
        "log": -np.log(own.clip(smallest, 1 - smallest)),
        "true": _one_hot(truth, np.ones(len(rows)), size),
        "given": _one_hot(rows.classes, np.ones(len(rows)), size),
        "hits": _one_hot(truth, rows.each, size),
    }
    if probabilities.size <= MOST_RANKED:
        one_hot = truth[:, None] == np.arange(size)
        parts["area"], area = influence_of_areas(probabilities, one_hot)

    def scores(sums: Sums) -> Scores:
        n, there, guessed = sums["rows"], sums["true"], sums["given"]
        f1, known = f1_of(sums["hits"], there + guessed), (there + guessed) > 0
        chance = (there * guessed).sum(axis=1)
        spread = (n**2 - (guessed**2).sum(axis=1)) * (n**2 - (there**2).sum(axis=1))
        found = {
            "accuracy": sums["hit"] / n,
            "f1_macro": f1.sum(axis=1) / np.maximum(known.sum(axis=1), 1),
            "f1_weighted": (f1 * there).sum(axis=1) / n,
            "mcc": (sums["hit"] * n - chance) / np.sqrt(np.maximum(spread, 1)),
            "log_loss": sums["log"] / n,
        }
        if "area" in sums:
            found["roc_auc"] = area + sums["area"]
        return found

    return parts, scores


def multi_label_parts(rows: Scored) -> tuple[Sums, Callable[[Sums], Scores]]:
    """What each row adds to the scores of several labels a row; the scores from sums of it."""
    probabilities, true, given = rows.probabilities, rows.truth >= 1, rows.decisions()
    parts = {
        "hits": sparse.csr_matrix(true & given, dtype=float),
        "marks": sparse.csr_matrix(true, dtype=float) + sparse.csr_matrix(given, dtype=float),
        "lrap": rows.each,
        "same": (true == given).all(axis=1).astype(float),
        "log": np.array(
            [mean_log_loss(p[None], t[None]) for p, t in zip(probabilities, true, strict=True)]
        ),
    }
    areas = {}
    if probabilities.size <= MOST_RANKED:
        parts["macro"], areas["roc_auc_macro"] = influence_of_areas(probabilities, true)
        every, areas["roc_auc_micro"] = influence_of_areas(
            probabilities.reshape(-1, 1), true.reshape(-1, 1)
        )
        parts["micro"] = every.reshape(true.shape).sum(axis=1)

    def scores(sums: Sums) -> Scores:
        n, hits, marks = sums["rows"], sums["hits"], sums["marks"]
        found = {
            "f1_micro": f1_of(hits.sum(axis=1), marks.sum(axis=1)),
            "f1_macro": f1_of(hits, marks).mean(axis=1),
            "lrap": sums["lrap"] / n,
            "subset_accuracy": sums["same"] / n,
            "log_loss": sums["log"] / n,
        }
        return found | {name: area + sums[name[8:]] for name, area in areas.items()}

    return parts, scores


def regression_parts(rows: Scored) -> tuple[Sums, Callable[[Sums], Scores]]:
    """What each row adds to the scores of numbers; the scores from sums of it."""
    values, truth, names = rows.probabilities, rows.truth, rows.spec.names
    x, y = values - truth.mean(axis=0), truth - truth.mean(axis=0)  # so that squares stay small
    parts = {
        "square": (values - truth) ** 2,
        "error": np.abs(values - truth).mean(axis=1),
        **{"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y},
    }

    def scores(sums: Sums) -> Scores:
        n = sums["rows"][:, None]
        means = {name: sums[name] / n for name in ("square", "x", "y", "xx", "yy", "xy")}
        variance = means["yy"] - means["y"] ** 2
        shared = means["xy"] - means["x"] * means["y"]
        both = np.sqrt(np.maximum((means["xx"] - means["x"] ** 2) * variance, 1e-300))
        found = {
            "rmse": np.sqrt(means["square"].mean(axis=1)),
            "mae": sums["error"] / n[:, 0],
            "pearson": (shared / both).mean(axis=1),
        }
        if len(names) > 1:
            relative = means["square"] / np.where(variance > 0, variance, 1.0)
            found[STANDARDISED] = np.sqrt(relative.mean(axis=1))
            found["mcrmse"] = np.sqrt(means["square"]).mean(axis=1)
            for k, name in enumerate(names):
                found[f"{name}_rmse"] = np.sqrt(means["square"][:, k])
                found[f"{name}_{STANDARDISED}"] = np.sqrt(relative[:, k])
        return found

    return parts, scores


PARTS = {
    "single_label": single_label_parts,
    "multi_label": multi_label_parts,
    "regression": regression_parts,
}


def _one_hot(classes: np.ndarray, values: np.ndarray, size: int) -> sparse.csr_matrix:
    """A table [n, size] with a value of each row at its class."""
    shape = (len(classes), size)
    return sparse.csr_matrix((values, (np.arange(len(classes)), classes)), shape=shape)


def influence_of_areas(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, float]:
    """How much each row moves the mean area under the ROC curve, where it counts once more.

    Args:
        scores: [n, classes].
        truth: bool [n, classes]. Columns with one value alone are left out.

    Returns:
        [n], whose sum is 0; and the area itself, NaN where no column is left.
    """
    found, areas = np.zeros(len(truth)), []
    for column, mask in zip(scores.T, truth.T, strict=True):
        if not 0 < np.count_nonzero(mask) < len(mask):
            continue
        positive, negative = column[mask], column[~mask]
        below = _mean_of(count_below(negative, positive)) / len(negative)
        above = 1 - _mean_of(count_below(positive, negative)) / len(positive)
        areas.append(below.mean())
        found[mask] += (below - areas[-1]) / len(positive)
        found[~mask] += (above - areas[-1]) / len(negative)
    if not areas:
        return found, float("nan")
    return found / len(areas), float(np.mean(areas))


def _mean_of(counts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    return (counts[0] + counts[1]) / 2
