"""Tables of a run's page: scores, folds, classes, confusions, lengths, thresholds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.metrics import precision_recall_fscore_support

from bertchain.competition import thresholds as fitted
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.metrics import main_metric
from bertchain.probing.report import confusions_table
from bertchain.probing.scoreboard import bootstrap, half_width
from bertchain.reporting.intervals import half_widths
from bertchain.reporting.scored import ON, PREFIXES, Scored

INTERVAL = "± 95 %"
NUMBERED = 30  # classes whose confusions are counted one by one
CONFUSIONS = 30  # that are listed where classes are more
LENGTHS = 6  # groups of documents by length
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a text that is cut off: groups up to each
STEPS = 100  # of a threshold from 0 to 1
DRAWN = 8  # labels whose curves are drawn, the most frequent ones
CUTS = 41  # places of a threshold between two grades


def scores_table(scored: Sequence[Scored], results: dict[str, Any], seed: int) -> pd.DataFrame:
    """The scores of all rows, as in all_results.json, with intervals; the main one first."""
    spec, columns = scored[0].spec, {}
    for rows in scored:
        prefix = f"{PREFIXES[rows.split]}_"
        own = {
            name.removeprefix(prefix): value
            for name, value in results.items()
            if name.startswith(prefix) and isinstance(value, float)
        }
        widths = half_widths(rows, seed)
        columns[ON[rows.split]] = own
        columns[f"{INTERVAL} ({ON[rows.split]})"] = {n: widths[n] for n in own if n in widths}
    no_scores = ("_mean", "_sd", "_per_second")
    first = main_metric(spec.problem_type, len(spec.names))[0]
    names = dict.fromkeys([first, *(name for own in columns.values() for name in own)])
    named = [n for n in names if not n.endswith(no_scores) and n != "runtime"]
    table = {name: [own.get(n, float("nan")) for n in named] for name, own in columns.items()}
    return pd.DataFrame({"score": named} | table)


def fold_table(rows: Scored, seed: int) -> pd.DataFrame:
    """The main score of the rows of each fold, by models that did not train on them."""
    name = main_metric(rows.spec.problem_type, len(rows.spec.names))[0]
    found = []
    for fold in np.unique(rows.folds):
        inside = rows.folds == fold
        value, width = mean_score(rows.spec, rows.each[inside], seed)
        found.append({"fold": int(fold), "rows": int(inside.sum()), name: value, INTERVAL: width})
    return pd.DataFrame(found)


def mean_score(spec: LabelSpec, each: np.ndarray, seed: int) -> tuple[float, float]:
    """The main score from what it is the mean of [n], and half its interval."""

    def statistic(values: np.ndarray) -> np.ndarray:
        means = values.mean(axis=1)
        return np.sqrt(means) if spec.problem_type == "regression" else means

    return float(statistic(each[None])[0]), half_width(bootstrap(each, statistic, seed))


def class_table(rows: Scored, thresholds: Thresholds | None = None) -> pd.DataFrame:
    """Precision, recall and F1 of each class, its rows and those that were given it."""
    spec = rows.spec
    if spec.problem_type == "single_label":
        truth, given, more = rows.truth, rows.classes, {"labels": range(len(spec.names))}
        counts = np.bincount(given, minlength=len(spec.names))
    else:
        truth, given, more = rows.truth >= 1, rows.decisions(thresholds), {}
        counts = given.sum(axis=0)
        if len(spec.names) == 1:  # of a single soft label
            truth, given, more = truth[:, 0].astype(int), given[:, 0].astype(int), {"labels": [1]}
        else:
            truth, given = sparse.csr_matrix(truth), sparse.csr_matrix(given)
    found = precision_recall_fscore_support(truth, given, zero_division=0, **more)
    names = ("precision", "recall", "F1", "rows with it")
    table = {"label": spec.names} | dict(zip(names, found, strict=True)) | {"rows given it": counts}
    if thresholds is not None:
        table["threshold"] = thresholds.cuts
    return pd.DataFrame(table)


def confusion_counts(rows: Scored) -> pd.DataFrame:
    """Rows by true class and class that was given; where classes are many, the most frequent
    confusions."""
    names, size = rows.spec.names, len(rows.spec.names)
    if size > NUMBERED:
        table = confusions_table({"": rows.classes}, rows.truth, names, CONFUSIONS)
        return table.drop(columns="probe") if len(table) else table
    counts = np.bincount(rows.truth * size + rows.classes, minlength=size * size)
    table = pd.DataFrame(counts.reshape(size, size), columns=[f"given {name}" for name in names])
    table.insert(0, "true", names)
    return table


def confused_labels(rows: Scored, most: int = CONFUSIONS) -> pd.DataFrame:
    """Count which label was missed where which other was wrongly given, for several labels a row.

    The most frequent come first.
    """
    true, given = rows.truth >= 1, rows.decisions()
    missed = sparse.csr_matrix(true & ~given, dtype=np.int64)
    pairs = (missed.T @ sparse.csr_matrix(given & ~true, dtype=np.int64)).tocoo()
    chosen = np.argsort(-pairs.data, kind="stable")[:most]
    names = np.array(rows.spec.names, dtype=object)
    table = {"missed": names[pairs.row[chosen]], "given instead": names[pairs.col[chosen]]}
    return pd.DataFrame(table | {"rows": pairs.data[chosen]})


def length_table(rows: Scored, seed: int) -> pd.DataFrame:
    """The main score of groups of documents: by their number of tokens, by the share cut off.

    Returns:
        columns by (tokens or cut off), group, rows, mean (of what it goes by), the score, and half
        its interval.
    """
    spec = rows.spec
    name = main_metric(spec.problem_type, len(spec.names))[0]
    edges = np.unique(np.quantile(rows.tokens, np.linspace(0, 1, LENGTHS + 1)).round().astype(int))
    share = rows.cut / np.maximum(rows.tokens, 1)
    groups = {"tokens": np.searchsorted(edges[1:-1], rows.tokens, side="left")}
    if rows.cut.any():
        groups["cut off"] = np.searchsorted(SHARES, share, side="left")
    found = []
    for by, place in groups.items():
        values = rows.tokens if by == "tokens" else share
        for k in np.unique(place):
            inside = place == k
            own = values[inside]
            if by == "tokens":
                group = f"{own.min()} to {own.max()}"
            else:
                group = "nothing" if k == 0 else f"up to {SHARES[k]:.0%}".replace("%", " %")
            value, width = mean_score(spec, rows.each[inside], seed)
            row = {"by": by, "group": group, "rows": int(inside.sum()), "mean": float(own.mean())}
            found.append(row | {name: value, INTERVAL: width})
    return pd.DataFrame(found)


# ---------------------------------------------------------------- thresholds


def threshold_curves(rows: Scored) -> pd.DataFrame:
    """F1 by threshold: of all labels, and of the most frequent ones.

    Returns:
        columns threshold, micro, macro, and the label's names (at most DRAWN).
    """
    names, size = rows.spec.names, len(rows.spec.names)
    found = np.zeros((2, size, STEPS + 1))  # all rows, and those that have the label
    for k in range(size):
        place = np.floor(rows.probabilities[:, k] * STEPS + 1e-9).astype(int)
        found[0, k] = np.bincount(place, minlength=STEPS + 1)
        found[1, k] = np.bincount(place[rows.truth[:, k] >= 1], minlength=STEPS + 1)
    given, hits = found[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]  # at least so high
    there = hits[:, :1]
    f1 = 2 * hits / np.maximum(given + there, 1)
    micro = 2 * hits.sum(axis=0) / np.maximum((given + there).sum(axis=0), 1)
    table = {"threshold": np.arange(STEPS + 1) / STEPS, "micro": micro, "macro": f1.mean(axis=0)}
    frequent = np.argsort(-there[:, 0], kind="stable")[:DRAWN]
    return pd.DataFrame(table | {f"label {names[k]}": f1[k] for k in frequent})


def two_class_curves(rows: Scored) -> tuple[str, pd.DataFrame]:
    """Precision, recall and F1 of the rarer of two classes, and accuracy, by its threshold.

    Returns:
        the class; columns threshold, precision, recall, F1, accuracy.
    """
    counts = np.bincount(rows.truth, minlength=2)
    k = int(counts[1] <= counts[0])
    place = np.floor(rows.probabilities[:, k] * STEPS + 1e-9).astype(int)
    given, hits = (
        np.bincount(own, minlength=STEPS + 1)[::-1].cumsum()[::-1]
        for own in (place, place[rows.truth == k])
    )
    table = {
        "threshold": np.arange(STEPS + 1) / STEPS,
        "precision": np.where(given > 0, hits / np.maximum(given, 1), np.nan),
        "recall": hits / max(counts[k], 1),
        "F1": 2 * hits / np.maximum(given + counts[k], 1),
        "accuracy": (hits + len(rows) - given - (counts[k] - hits)) / len(rows),
    }
    return rows.spec.names[k], pd.DataFrame(table)


def grade_curves(rows: Scored, thresholds: Thresholds) -> pd.DataFrame:
    """Weighted kappa as one threshold between two grades moves and the others stay.

    Returns:
        columns between (the two grades), threshold, kappa.
    """
    cuts, grades, found = np.array(thresholds.cuts), thresholds.grades, []
    for i in range(len(cuts)):
        low = cuts[i - 1] if i else rows.probabilities.min()
        high = cuts[i + 1] if i + 1 < len(cuts) else rows.probabilities.max()
        for cut in np.linspace(low, high, CUTS) if low < high else ():
            moved = (*cuts[:i].tolist(), float(cut), *cuts[i + 1 :].tolist())
            decided = Thresholds("ordinal", moved, grades).decide(rows.probabilities)
            kappa = fitted.score("ordinal", decided, rows.truth)
            between = f"{grades[i]:g} and {grades[i + 1]:g}"
            found.append({"between": between, "threshold": float(cut), "kappa": kappa})
    return pd.DataFrame(found)
