"""Clusters while they grow: which merges are allowed, proven by hyperplanes that are kept."""

import math
from typing import NamedTuple

import numpy as np

from bertchain.directprobe.hulls import FEW_AXES, do_meet

KEPT = 500  # clusters for which all points are kept along one of their hyperplanes
MANY = 5_000_000  # multiplications for which directions are kept while a cluster grows
FRONTS = 50  # clusters of which they are
CROWD = 8  # rivals of which one is asked before the others are ruled out


class _Front(NamedTuple):
    """Directions from a large cluster away from each of its rivals, and how far they part them.

    While the cluster grows the directions stay: only points that are new to it are measured.

    Attributes:
        names, sizes: of the rivals when they were measured [rivals].
        directions: of length 1 [rivals, d].
        lowest: of the cluster's points along each direction [rivals].
        highest: of the rival's [rivals].
    """

    names: np.ndarray
    sizes: np.ndarray
    directions: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def only(self, kept: np.ndarray) -> "_Front":
        """Some of the rivals [rivals] bool."""
        return _Front(
            self.names[kept],
            self.sizes[kept],
            self.directions[kept],
            self.lowest[kept],
            self.highest[kept],
        )

    def grown(self, points: np.ndarray) -> "_Front":
        """Measure points [n, d] that are new to the cluster."""
        lowest = (self.directions @ points.T).min(axis=1)
        return self._replace(lowest=np.minimum(self.lowest, lowest))

    def joined(self, other: "_Front") -> "_Front":
        """Add what was measured anew, in place of what was known of the same rivals."""
        old = self.only(~np.isin(self.names, other.names))
        return _Front(
            np.concatenate([old.names, other.names]),
            np.concatenate([old.sizes, other.sizes]),
            np.concatenate([old.directions, other.directions]),
            np.concatenate([old.lowest, other.lowest]),
            np.concatenate([old.highest, other.highest]),
        )

    def parted(self, enough: float) -> tuple[np.ndarray, np.ndarray]:
        """Names and sizes of the rivals that lie apart."""
        apart = self.lowest - self.highest > enough
        return self.names[apart], self.sizes[apart]


class Growing:
    """Clusters while they are merged, and hyperplanes between them.

    Attributes:
        owner: the first point of each point's cluster, which names the cluster [n].
    """

    def __init__(self, z: np.ndarray, y: np.ndarray, conflicts: np.ndarray, tolerance: float):
        """Args: as `merging.Problem`; at first each point is a cluster."""
        self.z, self.y, self.enough = z, y, tolerance / 2  # a gap of this much
        self.tolerance = tolerance
        self.owner = np.arange(len(z))
        self.members = {i: np.array([i]) for i in range(len(z))}
        self.sizes = np.ones(len(z), dtype=np.int64)
        self.means = z.copy()
        self.radius = np.zeros(len(z))  # at most so far from the mean
        self.planes: dict[tuple[int, int], np.ndarray] = {}
        self.along: dict[int, np.ndarray] = {}  # [n] all points along one plane of a cluster
        self.fronts: dict[int, _Front] = {}
        self.grown: _Front | None = None  # of the pair that was looked at last
        self.rival_labels = conflicts[:, y]  # [labels, n]
        self.rivals: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def merge(self, a: int, b: int) -> None:
        """Merge cluster b into a."""
        self.means[a], self.radius[a] = self._sphere(a, b)
        rows = np.concatenate([self.members[a], self.members.pop(b)])
        self.members[a], self.sizes[a], self.sizes[b] = rows, len(rows), 0
        if self.z.shape[1] <= FEW_AXES:  # in many, spheres meet anyway
            self.radius[a] = np.sqrt(((self.z[rows] - self.means[a]) ** 2).sum(axis=1).max())
        self.owner[rows] = a
        self.along.pop(b, None)
        self.fronts.pop(a, None)
        self.fronts.pop(b, None)
        if self.grown is not None and len(self.fronts) < FRONTS:
            self.fronts[a] = self.grown
        self.grown, self.rivals = None, {}

    def may_merge(self, a: int, b: int) -> bool:
        """Return whether the hull of both clusters meets no cluster of another label.

        Rivals are ruled out by the cheapest proof first; the rest is tested.
        """
        self.grown = None
        mean, radius = self._sphere(a, b)
        names, means, reach = self._rivals_of(int(self.y[a]))
        offsets = means - mean
        distance = np.sqrt(np.einsum("nd,nd->n", offsets, offsets))
        rivals = names[distance <= radius + reach]
        if len(rivals) >= CROWD and self._meets_nearest(int(names[distance.argmin()]), mean, a, b):
            return False
        rivals = self._beyond_known(rivals, a, b)
        rivals = self._beyond_front(rivals, a, b)
        if not len(rivals):
            return True
        points = self._points(a, b)
        rivals, gaps = self._beyond_centroids(rivals, points, mean)
        found: dict[int, np.ndarray] = {}
        unknown = []
        # the one that most probably meets first: of most refusals no other is looked at
        for rival in rivals[np.argsort(gaps, kind="stable")].tolist():
            plane = self._known_plane(points, rival, a, b)
            if plane is None:
                unknown.append(rival)
                start = self.planes.get((a, rival), mean - self.means[rival])
                meets, contact = do_meet(points, self.z[self.members[rival]], self.tolerance, start)
                if meets:
                    self.grown = None
                    return False
                plane = contact.normal
            found[rival] = plane
        for rival, plane in found.items():
            self.planes[a, rival] = plane
            self.planes[rival, a] = -plane
        if unknown and len(self.along) < KEPT:
            largest = max(unknown, key=lambda rival: self.sizes[rival])
            self.along[a] = self.z @ found[largest]
        return True

    def _sphere(self, a: int, b: int) -> tuple[np.ndarray, float]:
        """Mean of both clusters [d], and a radius around it that holds them."""
        offset = self.means[b] - self.means[a]
        share = self.sizes[b] / (self.sizes[a] + self.sizes[b])
        length = math.sqrt(offset @ offset)
        radius = max(share * length + self.radius[a], (1 - share) * length + self.radius[b])
        return self.means[a] + share * offset, radius

    def _points(self, a: int, b: int) -> np.ndarray:
        """Points of both clusters [n, d]."""
        return self.z[np.concatenate([self.members[a], self.members[b]])]

    def _rivals_of(self, label: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Names of the clusters that rival a label, their means, and how far they reach."""
        if label not in self.rivals:  # since the last merge
            names = np.flatnonzero(self.rival_labels[label] & (self.sizes > 0))
            self.rivals[label] = names, self.means[names], self.radius[names] + self.tolerance
        return self.rivals[label]

    def _meets_nearest(self, rival: int, mean: np.ndarray, a: int, b: int) -> bool:
        """Ask of many rivals the one nearest to the mean: it refuses most pairs by itself."""
        if self.z.shape[1] > FEW_AXES:
            return False
        others, start = self.z[self.members[rival]], mean - self.means[rival]
        meets, contact = do_meet(self._points(a, b), others, self.tolerance, start)
        if not meets:
            self.planes[a, rival] = contact.normal
        return meets

    def _rows_of(self, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of clusters, one after the other, and where each begins [clusters]."""
        rows = np.concatenate([self.members[name] for name in names.tolist()])
        return rows, np.cumsum(self.sizes[names]) - self.sizes[names]

    def _beyond_known(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Leave out rivals beyond a plane along which all points were measured before."""
        for part in (a, b):
            along = self.along.get(part)
            if along is not None and len(rivals):
                lowest = min(along[self.members[a]].min(), along[self.members[b]].min())
                rows, starts = self._rows_of(rivals)
                highest = np.maximum.reduceat(along[rows], starts)
                rivals = rivals[lowest - highest <= self.enough]
        return rivals

    def _beyond_front(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Leave out rivals that the directions known of the larger cluster part."""
        large, small = (a, b) if self.sizes[a] >= self.sizes[b] else (b, a)
        front = self.fronts.get(large)
        if front is None or not len(rivals):
            return rivals
        self.grown = front.grown(self.z[self.members[small]])
        names, sizes = self.grown.parted(self.enough)
        same_size = np.zeros(len(self.z), dtype=np.int64)
        same_size[names] = sizes  # a rival that has grown has to be measured anew
        return rivals[same_size[rivals] != self.sizes[rivals]]

    def _beyond_centroids(
        self, rivals: np.ndarray, points: np.ndarray, mean: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leave out rivals that the direction between the centroids separates; gaps of the rest."""
        offsets = mean - self.means[rivals]  # [rivals, d]
        length = np.sqrt((offsets**2).sum(axis=1))
        same = length <= self.enough
        offsets /= np.where(same, 1.0, length)[:, None]
        lowest = (points @ offsets.T).min(axis=0)
        rows, starts = self._rows_of(rivals)
        sizes = self.sizes[rivals]
        along = np.einsum("nd,nd->n", self.z[rows], np.repeat(offsets, sizes, axis=0))
        highest = np.maximum.reduceat(along, starts)
        gaps = np.where(same, -np.inf, lowest - highest)
        left = gaps <= self.enough
        if self.grown is not None or points.size * len(rivals) > MANY:
            front = _Front(rivals, sizes, offsets, lowest, highest).only(~left)
            self.grown = front if self.grown is None else self.grown.joined(front)
        return rivals[left], gaps[left]

    def _known_plane(self, points: np.ndarray, rival: int, a: int, b: int) -> np.ndarray | None:
        """Find a hyperplane between the rival and either cluster that separates both from it."""
        for part in (a, b):
            plane = self.planes.get((part, rival))
            if plane is None:
                continue
            highest = (self.z[self.members[rival]] @ plane).max()
            if (points @ plane).min() - highest > self.enough:
                return plane
        return None
