"""Where labels lie among the features of each model and layer, and how training moves them.

DirectProbe (see `bertchain.directprobe`) and the distances between labels, over models, layers, and
training rows against new ones. Matrices in, tables out; a long clustering is kept on disk, and goes
on where it was cut off.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from bertchain.directprobe import (
    Clustering,
    cluster,
    few_point_pairs,
    hull_distances,
    pairs_apart,
    predict,
    spread,
)
from bertchain.probing.arrangement import ACCURACY, Arrangement
from bertchain.probing.drift import effective_rank
from bertchain.probing.each_label import centroid_paths, label_rows
from bertchain.probing.probed_models import resolve_layers
from bertchain.runtime.files import atomic_write

logger = logging.getLogger(__name__)


KEEP_EVERY = 500  # decisions between two writes
RULE = b"2"  # counts up when other pairs are tried, so that decisions kept before do not fit
CLUSTER_PAIRS = 2000  # pairs of clusters whose distances are averaged, at most

Layers = dict[str, dict[str, np.ndarray]]  # model -> split -> [rows, layers, hidden]


def choose_rows(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Draw at most so many rows, whatever their labels. Returns their numbers, sorted."""
    if len(labels) <= most:
        return np.arange(len(labels))
    return np.sort(np.random.default_rng(seed).permutation(len(labels))[:most])


def _features_of(
    layers: Layers, wanted: Sequence[int], rows: dict[str, np.ndarray]
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """Each model and layer, and its chosen rows by split [rows, hidden] in float64."""
    for model, splits in layers.items():
        for layer in resolve_layers(wanted, splits["train"].shape[1]):
            x = {s: np.asarray(splits[s][own, layer], dtype=np.float64) for s, own in rows.items()}
            yield {"model": model, "layer": layer}, x


# ---------------------------------------------------------------- clusters


def cluster_and_keep(points: np.ndarray, labels: np.ndarray, folder: Path) -> Clustering:
    """Cluster as `directprobe.cluster`, its decisions kept on disk.

    A run that was cut off goes on; of one that ended, no hulls are tested again.

    Args:
        folder: for decisions, in a file named by a hash of points and labels.
    """
    digest = hashlib.sha256(RULE)
    digest.update(np.ascontiguousarray(points).tobytes())
    digest.update(np.ascontiguousarray(labels).tobytes())
    path = folder / f"{digest.hexdigest()[:16]}.npy"
    known = np.load(path, allow_pickle=False) if path.is_file() else np.zeros(0, dtype=bool)
    decisions: list[bool] = []

    def keep(merged: bool) -> None:
        decisions.append(merged)
        if len(decisions) > len(known) and len(decisions) % KEEP_EVERY == 0:
            _write(path, decisions)

    found = cluster(points, labels, known, keep)
    if len(found.decisions) > len(known):
        _write(path, found.decisions)
    return found


def _write(path: Path, decisions: Sequence[bool]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, np.array(decisions, dtype=bool))


def directprobe_table(
    layers: Layers,
    labels: dict[str, np.ndarray],
    wanted: Sequence[int],
    split: str,
    most: int,
    seed: int,
    folder: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Cluster the training rows of each model and layer, and measure the labels' distances.

    Args:
        labels: by split, classes [rows].
        wanted: layers, from the last on where negative; none: all.
        split: whose rows are predicted by the nearest cluster.
        most: training rows that are clustered; a fifth of that is predicted.
        folder: for decisions.

    Returns:
        a row for each model and layer; one for each pair of labels in them (see `pair_rows`); and
        one for each label (see `each_label.label_rows`).
    """
    rows = choose_rows(labels["train"], most, seed)
    new = choose_rows(labels[split], most // 5, seed)
    y, truth = labels["train"][rows], labels[split][new]
    table, of_pairs, of_labels = [], [], []
    numbers = np.unique(y, return_inverse=True)[1].reshape(-1)
    for at, x in _features_of(layers, wanted, {"train": rows, split: new}):
        with threadpool_limits(limits=1):  # the same numbers on any machine; faster, too
            row, distances, found = _probe(x["train"], y, x[split], truth, folder)
            of_labels.append(label_rows(at, x["train"], numbers, found, distances))
        table.append(at | row)
        of_pairs.append(pair_rows(at, found.names, distances, "distance of hulls"))
        model, layer, count = at["model"], at["layer"], row["clusters"]
        logger.info("DirectProbe, %s, layer %d: %d clusters", model, layer, count)
    return pd.DataFrame(table), pd.concat(of_pairs), pd.concat(of_labels)


def pair_rows(
    at: dict[str, Any], names: np.ndarray, distances: np.ndarray, what: str
) -> pd.DataFrame:
    """A row for each pair of labels: their class numbers, and how far apart they are.

    Args:
        at: model and layer.
        names: class numbers [labels].
        distances: [labels, labels].
        what: the distances' column.
    """
    one, other = np.triu_indices(len(names), 1)
    columns = {"label": names[one], "other label": names[other], what: distances[one, other]}
    return pd.DataFrame(at | columns)


def join_pairs(tables: dict[str, pd.DataFrame], names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Join all tables of `pair_rows`, whose names end in _pairs, as label_pairs; name labels.

    Args:
        tables: of analyses, by name.
        names: of the labels, which take the place of class numbers.
    """
    keys = ["model", "layer", "label", "other label"]
    of_pairs = [table for name, table in tables.items() if name.endswith("_pairs")]
    others = {name: table for name, table in tables.items() if not name.endswith("_pairs")}
    for name in set(others) & {"label_distances", "centroid_paths"}:
        others[name] = _name_labels(others[name], names)
    if not of_pairs:
        return others
    joined = of_pairs[0]
    for table in of_pairs[1:]:
        joined = joined.merge(table, on=keys, how="outer", sort=False)
    return others | {"label_pairs": _name_labels(joined, names)}


def _name_labels(table: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Put names in place of class numbers."""
    columns = [name for name in ("label", "other label", "nearest label") if name in table]
    return table.assign(**{c: [k if k == "" else names[k] for k in table[c]] for c in columns})


def _probe(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, truth: np.ndarray, folder: Path
) -> tuple[dict[str, Any], np.ndarray, Clustering]:
    """One layer's row of the table, the distances of hulls [labels, labels], and the clusters."""
    found = cluster_and_keep(x, y, folder)
    numbers = np.searchsorted(found.names, y)
    distances = hull_distances(x, numbers, ACCURACY, skip=found.conflicts)
    pairs = distances[np.triu_indices(len(distances), 1)]
    largest, mean = spread(x, found.clusters)
    of_labels = float(pairs.mean()) if len(pairs) else float("nan")
    row = {
        "rows": len(x),
        "labels": len(found.names),
        "clusters": len(found.label_of),
        "linear": "yes" if found.linear else "no",
        **_shuffled(x, y, found.linear, folder),
        "label pairs that meet": int(found.conflicts.sum()) // 2,
        "mean distance of labels": of_labels,
        "mean distance of clusters": of_labels if found.linear else _between_clusters(x, found),
        "largest distance within a cluster": float(largest.max()),
        "mean distance within clusters": float(mean.mean()),
        "accuracy of nearest cluster": float((predict(new, x, found) == truth).mean()),
        "rows with another label's twin": found.mixed_points,
        "warnings": "; ".join(found.warnings),
    }
    return row, distances, found


def _shuffled(x: np.ndarray, y: np.ndarray, linear: bool, folder: Path) -> dict[str, Any]:
    """What the same points give for labels that mean nothing.

    Beside every `linear: yes`, since a rare label is easily separated from many points, too; and
    where pairs of labels have few points.
    """
    few, pairs = few_point_pairs(y, x.shape[1])
    if not few and not linear:
        return {}
    shuffled = np.random.default_rng(0).permutation(y)
    apart, _ = pairs_apart(x, shuffled)
    row = {
        "linear, shuffled labels": "yes" if apart == pairs else "no",
        "label pairs apart, shuffled labels": f"{'at least ' * (apart < pairs)}{apart} of {pairs}",
        "label pairs of few rows": f"{few} of {pairs}",
    }
    if len(x) < 2 * x.shape[1]:
        row["clusters of shuffled labels"] = len(cluster_and_keep(x, shuffled, folder).label_of)
    return row


def _between_clusters(x: np.ndarray, found: Clustering) -> float:
    """Mean distance between hulls of clusters of different labels: of all pairs, or of a sample."""
    one, other = np.triu_indices(len(found.label_of), 1)
    differ = np.flatnonzero(found.label_of[one] != found.label_of[other])
    if len(differ) > CLUSTER_PAIRS:
        differ = np.random.default_rng(0).choice(differ, CLUSTER_PAIRS, replace=False)
    skip = np.ones((len(found.label_of),) * 2, dtype=bool)
    skip[one[differ], other[differ]] = False
    return float(hull_distances(x, found.clusters, ACCURACY, skip=skip)[~skip].mean())


def directprobe_warnings(table: pd.DataFrame) -> list[str]:
    """One sentence for each model with layers that separate shuffled labels as well as real ones.

    Args:
        table: of `directprobe_table`.
    """
    if "linear, shuffled labels" not in table:
        return []
    empty = table[(table["linear"] == "yes") & (table["linear, shuffled labels"] == "yes")]
    return [
        f"{model}: in layers {', '.join(str(layer) for layer in rows['layer'])} no hulls of labels "
        "meet, but those of shuffled labels do not either: their separation says nothing about the "
        "features (fewer rows than twice the dimensions: "
        f"{rows['label pairs of few rows'].iloc[0]} pairs of labels)."
        for model, rows in empty.groupby("model", sort=False)
    ]


# ---------------------------------------------------------------- distances between labels


def label_geometry_table(
    layers: Layers,
    labels: dict[str, np.ndarray],
    wanted: Sequence[int],
    split: str,
    most: int,
    seed: int,
    origins: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure how the labels lie, and how they moved since the first model.

    Similarities are Pearson correlations of label-pair distances: of a model with the first, and of
    training rows with new ones. Distances are those of convex hulls (Zhou & Srikumar 2021; 0 where
    they meet), with bootstrap intervals over labels; beside them, named so, those of centroids,
    with intervals over rows. Only labels with at least two of the rows drawn from either split take
    part.

    Args: see `directprobe_table`; at most `most` rows of either split are used.
        origins: the model that each came from; None: the first.

    Returns:
        a row for each model and layer; one for each pair of labels in them (see `pair_rows`); and
        one for each label with its place (see `each_label.centroid_paths`).
    """
    rows = {s: choose_rows(labels[s], most, seed) for s in ("train", split)}
    shared = np.intersect1d(*(_frequent(labels[s][own]) for s, own in rows.items()))
    rows = {s: own[np.isin(labels[s][own], shared)] for s, own in rows.items()}
    y = {s: np.searchsorted(shared, labels[s][own]) for s, own in rows.items()}
    first, table, of_pairs, before, centroids = next(iter(layers)), [], [], {}, {}
    for at, x in _features_of(layers, wanted, rows):
        now = Arrangement(x["train"], y["train"], x[split], y[split], seed)
        row = at | {"effective rank": effective_rank(x["train"])}
        row |= {"spread of a label": now.spread, "distance of centroids": now.mean_distance}
        row |= now.of_splits()
        if at["model"] == first:
            before[at["layer"]] = now
        elif at["layer"] in before:
            row |= now.against(before[at["layer"]])
        table.append(row)
        of_pairs.append(pair_rows(at, shared, now.distances, "distance of centroids"))
        centroids[at["layer"], at["model"]] = now.centroids
    paths = centroid_paths(centroids, shared, origins or dict.fromkeys(layers, first))
    return pd.DataFrame(table), pd.concat(of_pairs), paths


def _frequent(labels: np.ndarray) -> np.ndarray:
    names, counts = np.unique(labels, return_counts=True)
    return names[counts >= 2]


def divergence_warnings(table: pd.DataFrame, split: str) -> list[str]:
    """One sentence for each model that pulled the labels of training and new rows apart.

    That is: in its last layer the similarity of their arrangements is below the first model's, of
    hulls, and of centroids by more than the interval over rows (hulls have none).

    Args:
        table: of `label_geometry_table`.
    """
    found = []
    if "train and new, change" not in table:
        return found
    for model, rows in table.dropna(subset=["train and new, change"]).groupby("model", sort=False):
        last = rows.loc[rows["layer"].idxmax()]
        change, of_centroids = last["train and new, change"], "train and new, change of centroids"
        half = last["± 95 % of the change of centroids"]
        if change < 0 and last[of_centroids] < -half:
            found.append(
                f"{model}: training pulled the labels of training and {split} rows apart "
                f"(similarity of their arrangement in the last layer {change:+.3f}; of centroids "
                f"{last[of_centroids]:+.3f} ± {half:.3f}): what training rows look like says less "
                "about new ones than before."
            )
    return found
