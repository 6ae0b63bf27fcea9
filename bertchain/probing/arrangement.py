"""How the labels of one layer lie: distances of hulls and of centroids, with intervals."""

from collections.abc import Sequence

import numpy as np
from joblib import cpu_count
from scipy.spatial.distance import pdist, squareform
from threadpoolctl import threadpool_limits

from bertchain.directprobe import (
    centroid_distances,
    centroids,
    hull_distances,
    spatial_similarity,
)
from bertchain.probing.drift import anisotropy
from bertchain.probing.scoreboard import half_width

ACCURACY = 1e-2  # relative, of distances of hulls
DRAWS = 200  # of rows or labels, for intervals of similarities
AT_ONCE = 20  # draws whose centroids are in memory


class Arrangement:
    """Hulls and centroids of labels among training and new rows of one layer."""

    def __init__(
        self, train: np.ndarray, y: np.ndarray, new: np.ndarray, truth: np.ndarray, seed: int
    ):
        """Args: train, new: rows [n, hidden]; y, truth: their labels [n], numbers from 0 on."""
        self.seed = seed
        self.centroids = centroids(train, y)
        self.distances = centroid_distances(train, y)
        self.mean_distance = float(self.distances[np.triu_indices(len(self.distances), 1)].mean())
        self.spread = float(np.sqrt(((train - self.centroids[y]) ** 2).sum(axis=1).mean()))
        with threadpool_limits(limits=1):
            self.hulls, new_hulls = (
                hull_distances(x, labels, ACCURACY, jobs=cpu_count())
                for x, labels in ((train, y), (new, truth))
            )
        self.similarity = spatial_similarity(self.hulls, new_hulls)
        self.draws = similarity_over_labels(self.hulls, new_hulls, seed)
        self.of_centroids = spatial_similarity(self.distances, centroid_distances(new, truth))
        self.centroid_draws = bootstrap_similarity(train, y, new, truth, seed)

    def of_splits(self) -> dict[str, float]:
        """Similarities of training and new rows."""
        return {
            "train and new, similarity": self.similarity,
            "± 95 %": _half_width(self.draws),
            "train and new, centroids": self.of_centroids,
            "± 95 % of centroids": _half_width(self.centroid_draws),
        }

    def against(self, before: "Arrangement") -> dict[str, float]:
        """What changed since `before`; intervals are paired: the same labels and rows are drawn."""
        row = {
            "similarity with the first": spatial_similarity(before.hulls, self.hulls),
            "± 95 % with the first": _half_width(
                similarity_over_labels(before.hulls, self.hulls, self.seed)
            ),
            "similarity with the first, centroids": spatial_similarity(
                before.distances, self.distances
            ),
        }
        if before.centroids.shape == self.centroids.shape:
            moves = self.centroids - before.centroids
            moved = np.linalg.norm(moves, axis=1).mean()
            row["centroids moved by"] = float(moved) / before.spread if before.spread else np.nan
            row["mean cosine of two moves"] = anisotropy(moves)
        row["train and new, change"] = self.similarity - before.similarity
        row["± 95 % of the change"] = _half_width(self.draws - before.draws)
        row["train and new, change of centroids"] = self.of_centroids - before.of_centroids
        change = self.centroid_draws - before.centroid_draws
        row["± 95 % of the change of centroids"] = _half_width(change)
        return row


def similarity_over_labels(one: np.ndarray, other: np.ndarray, seed: int) -> np.ndarray:
    """Similarity of two matrices of label-pair distances when labels are drawn again.

    Rows are not: the hull of rows that are drawn again lies within that of all, and is nearer none.

    Returns:
        [DRAWS]; the same labels for the same number of labels and seed.
    """
    rng, found = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(one), len(one))
        a, b = np.triu_indices(len(one), 1)
        a, b = drawn[a], drawn[b]
        pairs = a != b  # a label drawn twice has no distance from itself
        x, y = one[a[pairs], b[pairs]], other[a[pairs], b[pairs]]
        known = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        found.append(float(np.corrcoef(x, y)[0, 1]) if known else np.nan)
    return np.array(found)


def bootstrap_similarity(
    train: np.ndarray, y: np.ndarray, new: np.ndarray, truth: np.ndarray, seed: int
) -> np.ndarray:
    """Similarity of train and new distances of centroids when rows of a label are drawn again.

    Returns:
        [DRAWS]; the same rows for the same labels and seed, whatever the features.
    """
    rng, found = np.random.default_rng(seed), []
    for start in range(0, DRAWS, AT_ONCE):
        drawn = [(_draw(y, rng), _draw(truth, rng)) for _ in range(start, start + AT_ONCE)]
        of_train = _drawn_centroids(train, y, [rows for rows, _ in drawn])
        of_new = _drawn_centroids(new, truth, [rows for _, rows in drawn])
        for one, other in zip(of_train, of_new, strict=True):
            found.append(spatial_similarity(*(squareform(pdist(means)) for means in (one, other))))
    return np.array(found)


def _drawn_centroids(x: np.ndarray, labels: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """Means of the labels [draws, labels, d] when rows [n] are drawn: a product for each label."""
    times = np.stack([np.bincount(rows, minlength=len(x)) for rows in drawn]).astype(np.float64)
    owns = [labels == label for label in range(int(labels.max()) + 1)]
    return np.stack([times[:, own] @ x[own] / own.sum() for own in owns], axis=1)


def _draw(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw as many rows of each label as it has, with replacement."""
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    sizes = np.repeat(counts, counts)
    return order[starts + (rng.random(len(labels)) * sizes).astype(int)]


def _half_width(draws: np.ndarray) -> float:
    """Half a 95 % interval of the draws that have a similarity; NaN where none has."""
    known = draws[np.isfinite(draws)]
    return half_width(known) if len(known) else float("nan")
