"""Prediction by clusters of DirectProbe: the label of the nearest convex hull."""

import numpy as np

from bertchain.directprobe.clustering import TOLERANCE, Clustering
from bertchain.directprobe.distances import nearest_distances
from bertchain.directprobe.groups import Groups
from bertchain.directprobe.hulls import hull_distance
from bertchain.directprobe.nearest import HullPairs

AT_ONCE = 1000  # new points whose distances to all hulls are bounded at once
EXACT = 1e-8  # relative difference of the bounds of a distance that is as good as known


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
    hulls = _Hulls(x, found)
    nearest = [hulls.nearest(new[start : start + AT_ONCE]) for start in range(0, len(new), AT_ONCE)]
    return found.label_of[np.concatenate([np.zeros(0, dtype=np.int64), *nearest])]


class _Hulls:
    """The clusters' hulls, with their points in the order of the clusters."""

    def __init__(self, x: np.ndarray, found: Clustering):
        groups = Groups(found.clusters)
        self.x, self.starts, self.sizes = x[groups.order], groups.starts, groups.sizes
        self.label_of = np.searchsorted(found.names, found.label_of)
        self.means = groups.means(x)
        offsets = self.x - self.means[groups.number]
        squares = np.add.reduceat((offsets**2).sum(axis=1), self.starts) / self.sizes
        self.spread = squares  # mean squared distance from the mean [clusters]

    def part(self, hull: int) -> np.ndarray:
        """Points of a cluster [size, d]."""
        return self.x[self.starts[hull] : self.starts[hull] + self.sizes[hull]]

    def nearest(self, new: np.ndarray) -> np.ndarray:
        """Find the cluster of the nearest hull, or another one of its label [m]."""
        lower, upper, first = self._first_bounds(new)
        rivals = self._rivals(lower, upper)
        near = lower < upper.min(axis=1)[:, None]
        rows, hulls = np.nonzero(near & rivals.any(axis=1)[:, None])
        if len(rows):
            within = TOLERANCE * self._scales(new)[rows, hulls]
            self._tighten(new, (rows, hulls), first[rows, hulls], (lower, upper), within)
            rivals = self._rivals(lower, upper)
        best = upper.argmin(axis=1)
        for row in np.flatnonzero(rivals.any(axis=1)):
            best[row] = self._nearest_by_solver(new[row], lower[row], upper[row])
        return best

    def _first_bounds(self, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bounds of the distances to hulls [m, clusters], and rows of x that lie towards `new`.

        From below along the direction to the centroid, from above by the nearest point.
        """
        shape = len(new), len(self.sizes)
        lower, upper, first = np.empty(shape), np.empty(shape), np.empty(shape, dtype=np.int64)
        for k in range(shape[1]):
            part = self.part(k)
            offsets = new - self.means[k]
            length = np.sqrt((offsets**2).sum(axis=1))
            along = offsets @ (part - self.means[k]).T  # [m, size]
            first[:, k] = along.argmax(axis=1)
            furthest = np.take_along_axis(along, first[:, k, None], axis=1)[:, 0]
            lower[:, k] = length - furthest / np.where(length > 0, length, 1.0)
            upper[:, k] = np.minimum(length, nearest_distances(new, part))
        # of a single point both are its distance, up to rounding
        return np.clip(lower, 0.0, upper), upper, first + self.starts

    def _scales(self, new: np.ndarray) -> np.ndarray:
        """Root mean square distances to the points of each hull [m, clusters]."""
        squares = (new**2).sum(axis=1)[:, None] + (self.means**2).sum(axis=1)
        return np.sqrt(np.maximum(squares - 2 * (new @ self.means.T), 0) + self.spread)

    def _rivals(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Hulls of other labels that may be nearer than the one that seems nearest [m, clusters]
        bool."""
        best = upper.argmin(axis=1)
        least = np.take_along_axis(upper, best[:, None], axis=1)
        return (lower < least) & (self.label_of != self.label_of[best][:, None])

    def _tighten(
        self,
        new: np.ndarray,
        at: tuple[np.ndarray, np.ndarray],
        first: np.ndarray,
        bounds: tuple[np.ndarray, np.ndarray],
        within: np.ndarray,
    ) -> None:
        """Tighten bounds [m, clusters] of some pairs until no hull has a rival.

        Args:
            at: row of `new` and hull [pairs].
            first: rows of x to begin with [pairs].
            within: distances below which a point lies in the hull [pairs].
        """
        (lower, upper), (rows, hulls) = bounds, at
        pairs = HullPairs(
            np.concatenate([self.x, new]),
            np.concatenate([self.starts, len(self.x) + np.arange(len(new))]),
            np.concatenate([self.sizes, np.ones(len(new), dtype=np.int64)]),
            (hulls, len(self.sizes) + rows),
            (first, len(self.x) + rows),
        )
        while True:
            rivals = self._rivals(lower, upper)
            best = upper.argmin(axis=1)
            wanted = rivals[rows, hulls] | (rivals.any(axis=1)[rows] & (best[rows] == hulls))
            wanted &= (lower < upper)[rows, hulls] & ~pairs.stuck
            which = np.flatnonzero(wanted)
            if not len(which):
                return
            pairs.improve(which)
            chosen = rows[which], hulls[which]
            above = np.minimum(upper[chosen], pairs.upper[which])
            above[above <= within[which]] = 0.0
            upper[chosen] = above
            lower[chosen] = np.minimum(np.maximum(lower[chosen], pairs.lower[which]), above)

    def _nearest_by_solver(self, point: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> int:
        """Find the nearest hull of a point by a solver for each hull whose bounds are wide.

        Args:
            lower, upper: bounds of the distance to each hull [clusters]; they are tightened.
        """
        measured = upper - lower <= EXACT * upper
        while True:
            best = int(upper.argmin())
            rivals = (lower < upper[best]) & (self.label_of != self.label_of[best])
            if not rivals.any():
                return best
            near = rivals | (np.arange(len(upper)) == best)
            open_hulls = np.flatnonzero(near & ~measured)
            if not len(open_hulls):  # as near as can be told
                return int(near.argmax())
            k = int(open_hulls[lower[open_hulls].argmin()])
            lower[k], upper[k] = _distance_bounds(point, self.part(k), EXACT, lower[k])
            measured[k] = True


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
