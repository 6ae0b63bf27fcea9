"""Clusters while they grow: which merges are allowed, proven by hyperplanes that are kept."""

from typing import NamedTuple

import numpy as np

from bertchain.directprobe.groups import Groups
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
        self.means = z.copy()
        self.radius = np.zeros(len(z))  # at most so far from the mean
        self.planes: dict[tuple[int, int], np.ndarray] = {}
        self.along: dict[int, np.ndarray] = {}  # [n] all points along one plane of a cluster
        self.fronts: dict[int, _Front] = {}
        self.grown: _Front | None = None  # of the pair that was looked at last
        self.groups: Groups | None = None
        self.rival_labels = conflicts[:, y]  # [labels, n]

    def merge(self, a: int, b: int) -> None:
        """Merge cluster b into a."""
        mean, self.radius[a] = self._sphere(a, b)
        self.means[a] = mean
        rows = np.concatenate([self.members[a], self.members.pop(b)])
        self.members[a] = rows
        self.owner[rows] = a
        self.along.pop(b, None)
        self.fronts.pop(a, None)
        self.fronts.pop(b, None)
        if self.grown is not None and len(self.fronts) < FRONTS:
            self.fronts[a] = self.grown
        self.grown, self.groups = None, None

    def _sphere(self, a: int, b: int) -> tuple[np.ndarray, float]:
        """Mean of both clusters [d], and a radius around it that holds them."""
        sizes = np.array([len(self.members[a]), len(self.members[b])], dtype=np.float64)
        means = self.means[[a, b]]
        mean = sizes @ means / sizes.sum()
        return mean, float((np.linalg.norm(means - mean, axis=1) + self.radius[[a, b]]).max())

    def may_merge(self, a: int, b: int) -> bool:
        """Return whether the hull of both clusters meets no cluster of another label.

        Rivals are ruled out by the cheapest proof first; the rest is tested.
        """
        self.grown = None
        if self.groups is None:
            self.groups = Groups(self.owner)
        rivals = np.flatnonzero(self.rival_labels[self.y[a], self.groups.names])
        mean, radius = self._sphere(a, b)
        rivals = self._beyond_spheres(rivals, mean, radius)
        if self._meets_nearest(rivals, mean, a, b):
            return False
        rivals = self._beyond_known(rivals, a, b)
        rivals = self._beyond_front(rivals, a, b)
        if not len(rivals):
            return True
        points = self.z[np.concatenate([self.members[a], self.members[b]])]
        rivals, gaps = self._beyond_centroids(rivals, points, mean)
        found: dict[int, np.ndarray] = {}
        unknown = []
        # the one that most probably meets first: of most refusals no other is looked at
        for rival in self.groups.names[rivals[np.argsort(gaps, kind="stable")]].tolist():
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
            largest = max(unknown, key=lambda rival: len(self.members[rival]))
            self.along[a] = self.z @ found[largest]
        return True

    def _meets_nearest(self, rivals: np.ndarray, mean: np.ndarray, a: int, b: int) -> bool:
        """Ask of many rivals the one nearest to the mean: it refuses most pairs by itself."""
        if len(rivals) < CROWD or self.z.shape[1] > FEW_AXES:
            return False
        names = self.groups.names[rivals]
        nearest = int(names[((self.means[names] - mean) ** 2).sum(axis=1).argmin()])
        points = self.z[np.concatenate([self.members[a], self.members[b]])]
        start = mean - self.means[nearest]
        return do_meet(points, self.z[self.members[nearest]], self.tolerance, start)[0]

    def _beyond_known(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Leave out rivals beyond a plane along which all points were measured before."""
        for part in (a, b):
            along = self.along.get(part)
            if along is not None and len(rivals):
                lowest = min(along[self.members[a]].min(), along[self.members[b]].min())
                highest = np.maximum.reduceat(along[self.groups.order], self.groups.starts)
                rivals = rivals[lowest - highest[rivals] <= self.enough]
        return rivals

    def _beyond_spheres(self, rivals: np.ndarray, mean: np.ndarray, radius: float) -> np.ndarray:
        """Leave out rivals whose spheres do not meet that of both clusters."""
        names = self.groups.names[rivals]
        distance = np.sqrt(((self.means[names] - mean) ** 2).sum(axis=1))
        return rivals[distance <= radius + self.radius[names] + self.tolerance]

    def _beyond_front(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Leave out rivals that the directions known of the larger cluster part."""
        large, small = (a, b) if len(self.members[a]) >= len(self.members[b]) else (b, a)
        front = self.fronts.get(large)
        if front is None or not len(rivals):
            return rivals
        self.grown = front.grown(self.z[self.members[small]])
        names, sizes = self.grown.parted(self.enough)
        same_size = np.zeros(len(self.z), dtype=np.int64)
        same_size[names] = sizes  # a rival that has grown has to be measured anew
        return rivals[same_size[self.groups.names[rivals]] != self.groups.sizes[rivals]]

    def _beyond_centroids(
        self, rivals: np.ndarray, points: np.ndarray, mean: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Leave out rivals that the direction between the centroids separates; gaps of the rest."""
        names, sizes = self.groups.names[rivals], self.groups.sizes[rivals]
        offsets = mean - self.means[names]  # [rivals, d]
        length = np.sqrt((offsets**2).sum(axis=1))
        same = length <= self.enough
        offsets /= np.where(same, 1.0, length)[:, None]
        lowest = (points @ offsets.T).min(axis=0)
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        at = np.repeat(self.groups.starts[rivals] - starts, sizes) + np.arange(sizes.sum())
        rows = self.groups.order[at]  # of all rivals, one after the other
        along = np.einsum("nd,nd->n", self.z[rows], np.repeat(offsets, sizes, axis=0))
        highest = np.maximum.reduceat(along, starts)
        gaps = np.where(same, -np.inf, lowest - highest)
        left = gaps <= self.enough
        if self.grown is not None or points.size * len(rivals) > MANY:
            front = _Front(names, sizes, offsets, lowest, highest).only(~left)
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
