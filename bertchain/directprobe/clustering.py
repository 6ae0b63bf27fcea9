"""Clusters of DirectProbe (Zhou & Srikumar 2021), and their distances.

    found = cluster(features, labels)
    found.linear           # True: the hulls of labels are disjoint, pair by pair
    found.clusters         # [n] which cluster each point is in
    found.label_of         # [clusters] the label of each cluster

Clusters of one label each, as few as a greedy rule finds, whose convex hulls do not meet those of
other labels. Whether two hulls meet is proven either way (see `hulls`).

Greedy rule: from single points on, the two clusters of the same label with the nearest centroids
are merged, unless the hull of both would meet a cluster of another label; a refused pair, and all
that grows from it, is never tried again. The outcome is exactly that rule's; what is done besides
only saves tests:
- Whether hulls meet does not change under one linear map of all points, so they are whitened once.
- Labels whose hulls meet no other label's are one cluster each and leave the problem.
- Without refusals the order of merges is known beforehand, and once hulls meet they keep on
  meeting: the first refusal is found by bisection.
- A hyperplane between two clusters is kept for what grows from them.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial.distance import pdist, squareform

from bertchain.directprobe.distances import largest_and_mean
from bertchain.directprobe.groups import Groups, count_apart, find_conflicts
from bertchain.directprobe.hulls import hull_distance
from bertchain.directprobe.merging import Problem

RIDGE = 1e-8  # of the largest variance: axes with less than 1e-4 of its spread are not blown up
TOLERANCE = 1e-6  # of the spread of all points: hulls that come nearer meet


@dataclass(frozen=True)
class Clustering:
    """What `cluster` found.

    Attributes:
        clusters: [n] cluster of each point; clusters are numbered by label, then by first point.
        label_of: [clusters] their labels, as given.
        names: the labels that occur, sorted.
        conflicts: [labels, labels] bool: labels whose hulls meet, in the order of names.
        decisions: [tries] bool: pairs that were merged, in the order tried; to go on from.
        mixed_points: points that another label has at exactly the same place.
        warnings: in plain words, what makes the outcome say little.
    """

    clusters: np.ndarray
    label_of: np.ndarray
    names: np.ndarray
    conflicts: np.ndarray
    decisions: np.ndarray
    mixed_points: int
    warnings: list[str] = field(default_factory=list)

    @property
    def linear(self) -> bool:
        """Whether every label is one cluster, that is: no two labels' hulls meet.

        Proven is a hyperplane between each two labels, of these points. That does not mean that one
        linear classifier of all labels is right everywhere, nor anything of other points: where
        pairs have few points, labels that mean nothing look the same (see `warnings`).
        """
        return len(self.label_of) == len(self.names)

    def members(self, number: int) -> np.ndarray:
        """Rows of a cluster."""
        return np.flatnonzero(self.clusters == number)


def cluster(
    points: np.ndarray,
    labels: Sequence | np.ndarray,
    decisions: Sequence[bool] = (),
    on_decision: Callable[[bool], None] | None = None,
) -> Clustering:
    """Cluster points so that convex hulls of clusters of different labels do not meet.

    Args:
        points: [n, d], finite. Scale and position do not matter; different scales per axis may.
        labels: [n], of any type that sorts.
        decisions: of an interrupted run on the same points: these are not tested again.
        on_decision: called after every try, for instance to keep decisions or to stop by raising.

    Raises:
        ValueError: shapes that do not fit, no points, or a value that is not finite.
    """
    x, names, y = check_points(points, labels)
    z, tolerance = whiten(x)
    mixed = find_mixed(x, y)
    warned = _warnings(x, y, names, int(mixed.sum()))
    conflicts = find_conflicts(z, y, len(names), tolerance)
    owner = np.array([np.flatnonzero(y == label)[0] for label in range(len(names))])[y]
    tried: list[bool] = []
    rows = np.flatnonzero(conflicts.any(axis=1)[y])
    if len(rows):
        problem = Problem(x[rows], z[rows], y[rows], conflicts, tolerance, mixed[rows])
        owner[rows] = rows[problem.solve(decisions, tried, on_decision)]
    order = np.unique(owner)
    order = order[np.lexsort((order, y[order]))]
    number = np.empty(len(x), dtype=np.int64)
    number[order] = np.arange(len(order))
    return Clustering(
        number[owner],
        names[y[order]],
        names,
        conflicts,
        np.array(tried, bool),
        int(mixed.sum()),
        warned,
    )


# ---------------------------------------------------------------- points


def check_points(
    points: np.ndarray, labels: Sequence | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check shapes and values.

    Returns:
        points [n, d] in float64, the labels that occur, and the number of each point's label [n].

    Raises:
        ValueError: shapes that do not fit, no points, or a value that is not finite.
    """
    x = np.asarray(points, dtype=np.float64)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] == 0:
        raise ValueError(f"points must be [n, d] with at least one point, not {x.shape}")
    if len(labels) != len(x):
        raise ValueError(f"{len(x)} points but {len(labels)} labels")
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(f"point {bad[0]} has a value that is not finite ({len(bad)} such points)")
    names, y = np.unique(np.asarray(labels), return_inverse=True)
    return x, names, y.reshape(-1)


def whiten(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Whiten points [n, d].

    Returns:
        centred points with about equal spread in all directions [n, r], r <= d: directions in which
        nothing differs are left out; and the distance below which hulls count as meeting.
    """
    centred = x - x.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(x))
    largest = max(float(values[-1]), 0.0)
    kept = values > 1e-14 * largest
    if largest == 0 or not kept.any():
        return np.zeros((len(x), 1)), TOLERANCE
    z = centred @ (axes[:, kept] / np.sqrt(values[kept] + RIDGE * largest))
    return z, TOLERANCE * float(np.sqrt((z**2).sum(axis=1).mean()))


def find_mixed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mark points [n] bool that another label has at exactly the same place."""
    _, place = np.unique(x, axis=0, return_inverse=True)
    place = place.reshape(-1)
    pairs = np.unique(np.stack([place, y], axis=1), axis=0)
    labels_at = np.bincount(pairs[:, 0], minlength=place.max() + 1)
    return labels_at[place] > 1


def few_point_pairs(labels: Sequence | np.ndarray, dimensions: int) -> tuple[int, int]:
    """Count pairs of labels that have fewer points than twice the dimensions.

    So few points a hyperplane separates more often than not, whatever their labels (Cover 1965).

    Returns:
        these pairs, and all pairs.
    """
    sizes = np.unique(np.asarray(labels), return_counts=True)[1]
    one, other = np.triu_indices(len(sizes), 1)
    return int((sizes[one] + sizes[other] < 2 * dimensions).sum()), len(one)


def pairs_apart(points: np.ndarray, labels: Sequence | np.ndarray) -> tuple[int, int]:
    """Count the pairs of labels whose hulls are proven not to meet, up to the first that do.

    What `Clustering.linear` says, in less time where hulls meet. Raises: see `cluster`.

    Returns:
        these pairs, and all pairs: as many where no hulls meet.
    """
    x, names, y = check_points(points, labels)
    z, tolerance = whiten(x)
    return count_apart(z, y, len(names), tolerance)


def _warnings(x: np.ndarray, y: np.ndarray, names: np.ndarray, twins: int) -> list[str]:
    found = []
    if len(names) == 1:
        found.append("there is one label: there is nothing to tell apart")
    few, pairs = few_point_pairs(y, x.shape[1])
    if few:
        found.append(
            f"{len(x)} points in {x.shape[1]} dimensions: {few} of {pairs} pairs of labels have "
            "fewer than twice the dimensions, so that even shuffled labels would look separated"
        )
    if twins:
        found.append(
            f"{twins} points have the place of a point with another label: no hulls keep them apart"
        )
    return found


# ---------------------------------------------------------------- distances


def spread(points: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Largest and mean distance of two points of a cluster [clusters]; 0 for single points."""
    within = [largest_and_mean(points[clusters == k]) for k in range(int(clusters.max()) + 1)]
    largest, mean = np.array(within).T
    return largest, mean


def centroids(points: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Means of clusters numbered from 0 on, none of them empty [clusters, d]."""
    return Groups(clusters).means(np.asarray(points, dtype=np.float64))


def centroid_distances(points: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Between the means of clusters [clusters, clusters]."""
    return squareform(pdist(centroids(points, clusters)))


def hull_distances(
    points: np.ndarray,
    clusters: np.ndarray,
    accuracy: float = 1e-3,
    jobs: int = 1,
    skip: np.ndarray | None = None,
) -> np.ndarray:
    """Distances between the convex hulls of clusters, or of labels [clusters, clusters].

    0 where hulls meet.

    Args:
        points: [n, d].
        clusters: [n] numbers from 0 on.
        accuracy: relative difference of the bounds that a distance is known by.
        jobs: threads that work on pairs side by side.
        skip: [clusters, clusters] bool: pairs known to meet, which are 0.
    """
    x = np.asarray(points, dtype=np.float64)
    count = int(clusters.max()) + 1
    parts = [x[clusters == k] for k in range(count)]
    pairs = itertools.combinations(range(count), 2)
    pairs = [(a, b) for a, b in pairs if skip is None or not skip[a, b]]
    with ThreadPoolExecutor(jobs) as threads:
        ps, qs = [parts[a] for a, _ in pairs], [parts[b] for _, b in pairs]
        found = list(threads.map(hull_distance, ps, qs, itertools.repeat(accuracy)))
    distances = np.zeros((count, count))
    for (a, b), contact in zip(pairs, found, strict=True):
        distances[a, b] = distances[b, a] = contact.miss if contact.gap > 0 else 0.0
    return distances


def spatial_similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two representations' label-pair distances (Zhou & Srikumar 2021).

    Args:
        one, other: [labels, labels] distances of the same labels in the same order.

    Returns:
        -1 to 1; NaN with fewer than 3 labels, or if all distances of one are equal.
    """
    a, b = squareform(one, checks=False), squareform(other, checks=False)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
