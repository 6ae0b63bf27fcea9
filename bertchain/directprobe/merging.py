"""How DirectProbe merges: single points to clusters whose hulls meet no other label's.

The rooms of `direct_probe.cluster`: many pairs of groups tested at once, the order of merges, where
the first refusal is, and every merge after it.
"""

import contextlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize

from bertchain.directprobe.distances import squared_distances
from bertchain.directprobe.hulls import do_meet

COARSEST = 5000  # clusters of a state that is tested as a whole
KEPT = 500  # clusters for which all points are kept along one of their hyperplanes
MANY = 5_000_000  # multiplications for which directions are kept while a cluster grows
FRONTS = 50  # clusters of which they are
EVERY = 5  # steps of the joint classifier between two looks at its pairs
PATIENCE = 6  # looks at which it closed no pair
DESCENT = 200  # steps of the joint classifier that separates many pairs at once

# ---------------------------------------------------------------- many pairs at once


class Groups:
    """Points in groups, sorted so that a reduction over each group is one call.

    Attributes:
        names: [groups], sorted.
        order: [n] rows by group.
        starts: [groups] where each begins in the order.
    """

    def __init__(self, owner: np.ndarray):
        self.order = np.argsort(owner, kind="stable")
        self.names, self.starts, self.sizes = np.unique(
            owner[self.order], return_index=True, return_counts=True
        )
        self.number = np.repeat(np.arange(len(self.names)), self.sizes)  # of rows in order

    def rows(self, group: int) -> np.ndarray:
        start = self.starts[group]
        return self.order[start : start + self.sizes[group]]

    def means(self, z: np.ndarray) -> np.ndarray:
        """[groups, d]"""
        return np.add.reduceat(z[self.order], self.starts, axis=0) / self.sizes[:, None]


def pair_gaps(z_sorted: np.ndarray, groups: Groups, directions: np.ndarray) -> np.ndarray:
    """How far group i is from group j along directions_i - directions_j, for all pairs.

    Args:
        z_sorted: [n, d] in the order of the groups.
        directions: [groups, d].

    Returns:
        [groups, groups], symmetric; positive: separated (by this much over the norm).
    """
    count = len(groups.names)
    least = np.empty((count, count))
    block = max(1, 20_000_000 // count)
    ends = np.append(groups.starts, len(z_sorted))
    first = 0
    while first < count:  # whole groups, about a block of rows at once
        last = int(np.searchsorted(ends, ends[first] + block, side="right")) - 1
        last = max(last, first + 1)
        rows = slice(ends[first], ends[last])
        scores = z_sorted[rows] @ directions.T  # [rows, groups]
        own = scores[np.arange(scores.shape[0]), groups.number[rows]]
        np.subtract(own[:, None], scores, out=scores)
        least[first:last] = np.minimum.reduceat(scores, ends[first:last] - ends[first], axis=0)
        first = last
    return least + least.T


def separated(
    z_sorted: np.ndarray, groups: Groups, directions: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs of groups the directions separate by more than the tolerance; and all gaps over
    their norms. [groups, groups] each."""
    square = (directions**2).sum(axis=1)
    norms = square[:, None] + square[None] - 2 * (directions @ directions.T)
    same = norms <= 1e-24 * square.max()  # nothing between them to try
    norms = np.sqrt(np.where(same, 1.0, norms))
    gaps = np.where(same, -np.inf, pair_gaps(z_sorted, groups, directions) / norms)
    return gaps > tolerance / 2, gaps


def separate_jointly(
    z_sorted: np.ndarray,
    groups: Groups,
    start: np.ndarray,
    open_pairs: np.ndarray,
    gaps: np.ndarray,
    tolerance: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs left open by one multinomial classifier of all groups, while it keeps closing some.

    Its weights w_a - w_b are tried as a direction between a and b at every look.
    """
    count, axes = start.shape
    rows = np.arange(len(z_sorted))
    weights_of = 1.0 / (count * groups.sizes[groups.number])  # every group counts the same
    state = {"open": open_pairs, "stale": 0, "gaps": gaps, "step": 0}

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(axes + 1, count)
        scores = z_sorted @ w[:-1] + w[-1]
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1))
        value = float(weights_of @ (log_sum - scores[rows, groups.number]))
        residual = np.exp(scores - log_sum[:, None])
        residual[rows, groups.number] -= 1
        residual *= weights_of[:, None]
        gradient = np.vstack([z_sorted.T @ residual, residual.sum(axis=0)])
        return value, gradient.ravel()

    def look(flat: np.ndarray) -> None:
        state["step"] += 1
        if state["step"] % EVERY:
            return
        directions = flat.reshape(axes + 1, count)[:-1].T
        done, state["gaps"] = separated(z_sorted, groups, directions, tolerance)
        left = state["open"] & ~done
        state["stale"] = state["stale"] + 1 if left.sum() == state["open"].sum() else 0
        state["open"] = left
        if not left.any() or state["stale"] >= PATIENCE:
            raise StopIteration

    flat = np.vstack([start.T, np.zeros(count)]).ravel()
    options = {"maxiter": DESCENT}
    with contextlib.suppress(StopIteration):
        minimize(loss, flat, jac=True, method="L-BFGS-B", callback=look, options=options)
    return state["open"], state["gaps"]


def find_conflicts(z: np.ndarray, y: np.ndarray, count: int, tolerance: float) -> np.ndarray:
    """Which labels' hulls meet [labels, labels].

    Most pairs are separated by their centroids or by one joint classifier; the rest is tested.
    """
    groups = Groups(y)
    z_sorted = z[groups.order]
    open_pairs = ~np.eye(count, dtype=bool)
    directions = groups.means(z)
    done, gaps = separated(z_sorted, groups, directions, tolerance)
    open_pairs &= ~done
    if open_pairs.sum() > 2 * count:
        open_pairs, _ = separate_jointly(z_sorted, groups, directions, open_pairs, gaps, tolerance)
    meets = np.zeros((count, count), dtype=bool)
    for a, b in np.argwhere(np.triu(open_pairs)):
        rows_a, rows_b = groups.rows(a), groups.rows(b)
        meets[a, b] = meets[b, a] = do_meet(z[rows_a], z[rows_b], tolerance)[0]
    return meets


# ---------------------------------------------------------------- merging


class _Tree:
    """Clusters of one label, merged two by two: always the two with the nearest centroids.

    Distances are kept as squares in one matrix and updated by the centroid formula (Lance &
    Williams 1967); inf marks pairs that must not be merged, and what grows from them. Of equal
    distances the pair with the smallest numbers comes first. The nearest neighbour of a cluster is
    looked for again only when its turn comes: until then its last distance is a lower bound
    (Muellner 2011).
    """

    def __init__(self, x: np.ndarray):
        d = squared_distances(x)
        np.fill_diagonal(d, np.inf)
        self.d = d
        self.size = np.ones(len(x))
        self.nearest = d.argmin(axis=1)
        self.least = d[np.arange(len(x)), self.nearest]
        self.stale = np.zeros(len(x), dtype=bool)

    def next_pair(self) -> tuple[float, int, int]:
        """Squared distance and the two clusters, the smaller number first; inf: none is left."""
        while True:
            i = int(self.least.argmin())
            if not self.stale[i]:
                j = int(self.nearest[i])
                return float(self.least[i]), min(i, j), max(i, j)
            self._look_again(i)

    def merge(self, i: int, j: int) -> None:
        """j becomes part of i."""
        d, a, b = self.d, self.size[i], self.size[j]
        row = (a * d[i] + b * d[j]) / (a + b) - a * b * d[i, j] / (a + b) ** 2
        np.maximum(row, 0, out=row)
        row[i] = row[j] = np.inf
        d[j] = d[:, j] = np.inf
        d[i] = d[:, i] = row
        self.size[i] = a + b
        lost = (self.nearest == i) | (self.nearest == j)
        nearer = row < self.least
        self.stale = (self.stale | lost) & ~nearer
        nearer |= (row == self.least) & ~self.stale & (i < self.nearest)
        self.nearest[nearer], self.least[nearer] = i, row[nearer]
        self.least[j], self.stale[j] = np.inf, False
        self._look_again(i)

    def refuse(self, i: int, j: int) -> None:
        self.d[i, j] = self.d[j, i] = np.inf
        self._look_again(i)
        self._look_again(j)

    def _look_again(self, i: int) -> None:
        nearest = int(self.d[i].argmin())
        self.nearest[i], self.least[i], self.stale[i] = nearest, self.d[i, nearest], False


class Problem:
    """The labels that are in conflict, and how their points are merged."""

    def __init__(
        self, x: np.ndarray, z: np.ndarray, y: np.ndarray, conflicts: np.ndarray, tolerance: float
    ):
        self.x, self.z, self.y, self.conflicts, self.tolerance = x, z, y, conflicts, tolerance
        self.labels = np.unique(y)
        self.rows = [np.flatnonzero(y == label) for label in self.labels]

    def solve(
        self,
        decisions: Sequence[bool],
        tried: list[bool],
        on_decision: Callable[[bool], None] | None,
    ) -> np.ndarray:
        """First point of each point's cluster [n]."""
        if not len(decisions):
            decisions = np.ones(self._first_refusal(), dtype=bool)
        trees = [_Tree(self.x[rows]) for rows in self.rows]
        state = _State(self.z, self.y, self.conflicts, self.tolerance)
        while True:
            label, i, j = self._next(trees)
            if label < 0:
                return state.owner
            a, b = int(self.rows[label][i]), int(self.rows[label][j])
            known = len(tried) < len(decisions)
            merges = bool(decisions[len(tried)]) if known else state.may_merge(a, b)
            if merges:
                trees[label].merge(i, j)
                state.merge(a, b)
            else:
                trees[label].refuse(i, j)
            tried.append(merges)
            if on_decision is not None:
                on_decision(merges)

    @staticmethod
    def _next(trees: list[_Tree]) -> tuple[int, int, int]:
        """The label with the nearest pair, and the pair; -1: no pair is left."""
        best, found = np.inf, (-1, 0, 0)
        for label, tree in enumerate(trees):
            distance, i, j = tree.next_pair()
            if distance < best:
                best, found = distance, (label, i, j)
        return found

    def _all_merges(self) -> np.ndarray:
        """Every merge in order, if none were refused: [n - labels, 2] rows, kept and merged in."""
        trees = [_Tree(self.x[rows]) for rows in self.rows]
        merges = []
        while True:
            label, i, j = self._next(trees)
            if label < 0:
                return np.array(merges, dtype=np.int64).reshape(-1, 2)
            merges.append((self.rows[label][i], self.rows[label][j]))
            trees[label].merge(i, j)

    def _first_refusal(self) -> int:
        """How many merges are made before the first is refused, as far as states of at most
        COARSEST clusters show it; a smaller number is safe."""
        merges = self._all_merges()
        points, final = len(self.y), len(self.labels)
        bad, meets_later, owner_later = len(merges), None, None
        good, clusters = 0, 2 * final
        while good < bad - 1:
            if clusters <= min(COARSEST, points - 1):
                middle = min(points - clusters, bad - 1)
                clusters *= 2
            elif good == 0:
                return 0
            else:
                middle = (good + bad) // 2
            owner = self._owner_after(merges[:middle])
            meets, apart, groups = self._state_meets(owner, owner_later, meets_later)
            if meets:
                bad, owner_later, meets_later = middle, owner, (apart, groups)
            else:
                good, clusters = middle, points
        return good

    def _owner_after(self, merges: np.ndarray) -> np.ndarray:
        parent = np.arange(len(self.y))
        for kept, gone in merges:
            parent[gone] = kept
        for row in range(len(parent)):  # the kept number is always the smaller one
            parent[row] = parent[parent[row]]
        return parent

    def _state_meets(
        self,
        owner: np.ndarray,
        owner_later: np.ndarray | None,
        later: tuple[np.ndarray, Groups] | None,
    ) -> tuple[bool, np.ndarray, Groups]:
        """Whether any two clusters of different labels meet; the pairs known to be apart.

        Args:
            later: pairs known to be apart after more merges: so are their parts.
        """
        groups = Groups(owner)
        label = self.y[groups.names]
        rivals = self.conflicts[label[:, None], label[None]]
        rivals &= (groups.sizes[:, None] > 1) | (groups.sizes[None] > 1)
        if later is not None:
            apart, of = later
            whole = np.searchsorted(of.names, owner_later[groups.names])
            rivals &= ~apart[whole[:, None], whole[None]]
        z_sorted = self.z[groups.order]
        means = groups.means(self.z)
        done, gaps = separated(z_sorted, groups, means, self.tolerance)
        left = rivals & ~done
        if left.sum() > 4 * len(groups.names) and len(groups.names) <= 400:
            left, gaps = separate_jointly(z_sorted, groups, means, left, gaps, self.tolerance)
        pairs = np.argwhere(np.triu(left))
        worst_first = gaps[pairs[:, 0], pairs[:, 1]].argsort(kind="stable")
        for a, b in pairs[worst_first]:
            p, q = self.z[groups.rows(a)], self.z[groups.rows(b)]
            if do_meet(p, q, self.tolerance)[0]:
                return True, ~left, groups
            left[a, b] = left[b, a] = False
        return False, ~left, groups


class _Front:
    """Directions from a large cluster away from each of its rivals, and how far they part them.

    While the cluster grows the directions stay: only points that are new to it are measured.

    Attributes:
        names, sizes: of the rivals when they were measured [rivals].
        directions: of length 1 [rivals, d].
        lowest: of the cluster's points along each direction; highest: of the rival's.
    """

    def __init__(self, *columns: np.ndarray):
        self.names, self.sizes, self.directions, self.lowest, self.highest = columns

    def grown(self, points: np.ndarray) -> "_Front":
        lowest = (self.directions @ points.T).min(axis=1)
        lowest = np.minimum(self.lowest, lowest)
        return _Front(self.names, self.sizes, self.directions, lowest, self.highest)

    def joined(self, other: "_Front") -> "_Front":
        """With what was measured anew, in place of what was known of the same rivals."""
        kept = ~np.isin(self.names, other.names)
        return _Front(
            *(
                np.concatenate([old[kept], new])
                for old, new in zip(self._all(), other._all(), strict=True)
            )
        )

    def parted(self, enough: float) -> tuple[np.ndarray, np.ndarray]:
        """Names and sizes of the rivals that lie apart."""
        apart = self.lowest - self.highest > enough
        return self.names[apart], self.sizes[apart]

    def _all(self) -> tuple[np.ndarray, ...]:
        return self.names, self.sizes, self.directions, self.lowest, self.highest


class _State:
    """Clusters while they are merged, and hyperplanes between them.

    Attributes:
        owner: [n] the first point of each point's cluster, which names the cluster.
    """

    def __init__(self, z: np.ndarray, y: np.ndarray, conflicts: np.ndarray, tolerance: float):
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
        """Mean of both clusters, and a radius that holds them."""
        sizes = np.array([len(self.members[a]), len(self.members[b])], dtype=np.float64)
        means = self.means[[a, b]]
        mean = sizes @ means / sizes.sum()
        return mean, float((np.linalg.norm(means - mean, axis=1) + self.radius[[a, b]]).max())

    def may_merge(self, a: int, b: int) -> bool:
        """Whether the hull of both would meet no cluster of another label."""
        self.grown = None
        if self.groups is None:
            self.groups = Groups(self.owner)
        rivals = np.flatnonzero(self.rival_labels[self.y[a], self.groups.names])
        rivals = self._beyond_known(rivals, a, b)
        mean, radius = self._sphere(a, b)
        rivals = self._beyond_spheres(rivals, mean, radius)
        rivals = self._beyond_front(rivals, a, b)
        if not len(rivals):
            return True
        points = self.z[np.concatenate([self.members[a], self.members[b]])]
        rivals, gaps = self._beyond_centroids(rivals, points, mean)
        found: dict[int, np.ndarray] = {}
        unknown = []
        for rival in self.groups.names[rivals[np.argsort(gaps, kind="stable")]].tolist():
            plane = self._known_plane(points, rival, a, b)
            if plane is None:
                unknown.append(rival)
            else:
                found[rival] = plane
        for rival in unknown:  # the one that most probably meets first
            start = self.planes.get((a, rival), mean - self.means[rival])
            meets, contact = do_meet(points, self.z[self.members[rival]], self.tolerance, start)
            if meets:
                self.grown = None
                return False
            found[rival] = contact.normal
        for rival, plane in found.items():
            self.planes[a, rival] = plane
            self.planes[rival, a] = -plane
        if unknown and len(self.along) < KEPT:
            largest = max(unknown, key=lambda rival: len(self.members[rival]))
            self.along[a] = self.z @ found[largest]
        return True

    def _beyond_known(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Rivals that are left after the planes by which all points were measured before."""
        for part in (a, b):
            along = self.along.get(part)
            if along is not None and len(rivals):
                lowest = min(along[self.members[a]].min(), along[self.members[b]].min())
                highest = np.maximum.reduceat(along[self.groups.order], self.groups.starts)
                rivals = rivals[lowest - highest[rivals] <= self.enough]
        return rivals

    def _beyond_spheres(self, rivals: np.ndarray, mean: np.ndarray, radius: float) -> np.ndarray:
        names = self.groups.names[rivals]
        distance = np.sqrt(((self.means[names] - mean) ** 2).sum(axis=1))
        return rivals[distance <= radius + self.radius[names] + self.tolerance]

    def _beyond_front(self, rivals: np.ndarray, a: int, b: int) -> np.ndarray:
        """Rivals that are left after the directions known of the larger part."""
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
        """Rivals that the direction between the centroids does not separate, and their gaps."""
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
            measured = (names, sizes, offsets, lowest, highest)
            front = _Front(*(column[~left] for column in measured))
            self.grown = front if self.grown is None else self.grown.joined(front)
        return rivals[left], gaps[left]

    def _known_plane(self, points: np.ndarray, rival: int, a: int, b: int) -> np.ndarray | None:
        """A hyperplane between the rival and either part that also separates the whole."""
        for part in (a, b):
            plane = self.planes.get((part, rival))
            if plane is None:
                continue
            highest = (self.z[self.members[rival]] @ plane).max()
            if (points @ plane).min() - highest > self.enough:
                return plane
        return None
