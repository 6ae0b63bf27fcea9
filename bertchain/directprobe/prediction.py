"""Prediction by clusters of DirectProbe: the label of the nearest convex hull."""

import numpy as np
from scipy.spatial.distance import cdist

from bertchain.directprobe.clustering import TOLERANCE, Clustering, centroids
from bertchain.directprobe.distances import nearest_distances
from bertchain.directprobe.hulls import hull_distance

ACCURACIES = (1e-2, 1e-4, 1e-8)  # relative, of distances to hulls whose order is still open


def predict(new: np.ndarray, points: np.ndarray, found: Clustering) -> np.ndarray:
    """Predict the label of the nearest hull, whatever the number of clusters.

    Bounds of the distances decide where they can: a hull is left out only if it is proven to be
    further than another. Of equal distances the cluster with the smallest number counts.

    Args:
        new: [m, d].
        points: [n, d] that were clustered.

    Returns:
        [m] labels, as given to `cluster`.
    """
    new, x = np.asarray(new, dtype=np.float64), np.asarray(points, dtype=np.float64)
    parts = [x[found.members(k)] for k in range(len(found.label_of))]
    means = centroids(x, found.clusters)
    upper = cdist(new, means)
    lower = np.empty(upper.shape)
    for k, part in enumerate(parts):
        lower[:, k] = _hull_beyond(new, part, means[k])
        upper[:, k] = np.minimum(upper[:, k], nearest_distances(new, part))
    lower = np.minimum(lower, upper)  # of a single point both are its distance, up to rounding
    label_of = np.searchsorted(found.names, found.label_of)
    nearest = [
        _nearest_hull(point, parts, label_of, *bounds)
        for point, *bounds in zip(new, lower, upper, strict=True)
    ]
    return found.label_of[np.array(nearest, dtype=np.int64)]


def _hull_beyond(new: np.ndarray, part: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Lower bounds of distances to a hull [m]: along the direction to its centroid."""
    offsets = new - mean
    length = np.sqrt((offsets**2).sum(axis=1))
    furthest = ((part - mean) @ offsets.T).max(axis=0)  # [m]
    return np.maximum(0.0, length - furthest / np.where(length > 0, length, 1.0))


def _nearest_hull(
    point: np.ndarray,
    parts: list[np.ndarray],
    label_of: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> int:
    """Find the cluster of the nearest hull, or another one of its label.

    Of the hulls that may be nearest, the most promising is measured, ever more precisely, until no
    hull of another label can be nearer.

    Args:
        lower, upper: bounds of the distance to each hull [clusters]; they are tightened.
    """
    measured = np.zeros(len(parts), dtype=int)  # how often, each time more precisely
    while True:
        best = int(upper.argmin())
        rivals = (lower < upper[best]) & (label_of != label_of[best])
        if not rivals.any():
            return best
        open_hulls = np.flatnonzero((rivals | (np.arange(len(parts)) == best)) & (lower < upper))
        open_hulls = open_hulls[measured[open_hulls] < len(ACCURACIES)]
        if not len(open_hulls):  # as near as can be told
            return best
        least = measured[open_hulls].min()
        open_hulls = open_hulls[measured[open_hulls] == least]
        k = int(open_hulls[lower[open_hulls].argmin()])
        lower[k], upper[k] = _distance_bounds(point, parts[k], ACCURACIES[least], lower[k])
        measured[k] += 1


def _distance_bounds(
    point: np.ndarray, part: np.ndarray, accuracy: float, known: float
) -> tuple[float, float]:
    """Bounds of the distance of a point to a hull; both 0 where it lies in it.

    Args:
        known: a lower bound.
    """
    offsets = part - point
    scale = float(np.sqrt((offsets**2).sum(axis=1).mean()))
    contact = hull_distance(point[None], part, accuracy)
    if contact.miss <= TOLERANCE * scale:
        return 0.0, 0.0
    return min(max(known, contact.gap), contact.miss), contact.miss
