"""The greedy rule of DirectProbe: in which order clusters are merged, and where refusals begin."""

from collections.abc import Callable, Sequence

import numpy as np

from bertchain.directprobe.distances import squared_distances
from bertchain.directprobe.groups import Groups, separate_jointly, separated
from bertchain.directprobe.growing import Growing
from bertchain.directprobe.hulls import do_meet

COARSEST = 5000  # clusters of a state that is tested as a whole


class _Tree:
    """Clusters of one label, merged two by two: the two with the nearest centroids first.

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
        """Find the nearest pair: squared distance (inf: no pair), smaller and larger number."""
        while True:
            i = int(self.least.argmin())
            if not self.stale[i]:
                j = int(self.nearest[i])
                return float(self.least[i]), min(i, j), max(i, j)
            self._look_again(i)

    def merge(self, i: int, j: int) -> None:
        """Merge cluster j into i."""
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
        """Never offer this pair again, nor what grows from it."""
        self.d[i, j] = self.d[j, i] = np.inf
        self._look_again(i)
        self._look_again(j)

    def _look_again(self, i: int) -> None:
        nearest = int(self.d[i].argmin())
        self.nearest[i], self.least[i], self.stale[i] = nearest, self.d[i, nearest], False


class Problem:
    """Points of labels that are in conflict, to be merged into clusters."""

    def __init__(
        self,
        x: np.ndarray,
        z: np.ndarray,
        y: np.ndarray,
        conflicts: np.ndarray,
        tolerance: float,
        mixed: np.ndarray,
    ):
        """
        Args:
            x, z: points [n, d] as given, and whitened.
            y: number of each point's label [n].
            conflicts: labels whose hulls meet [labels, labels].
            tolerance: hulls that come nearer meet.
            mixed: points that another label has at the same place [n] bool: each of their merges
                would be refused, so none is tried.
        """
        self.x, self.z, self.y, self.conflicts, self.tolerance = x, z, y, conflicts, tolerance
        rows = (np.flatnonzero((y == label) & ~mixed) for label in np.unique(y))
        self.rows = [own for own in rows if len(own)]  # of each label, what may be merged

    def solve(
        self,
        decisions: Sequence[bool],
        tried: list[bool],
        on_decision: Callable[[bool], None] | None,
    ) -> np.ndarray:
        """Merge until every pair of clusters of one label was refused.

        Args:
            decisions: of an interrupted run: these pairs are not tested again.
            tried: filled with all decisions.
            on_decision: called after every try.

        Returns:
            first point of each point's cluster [n].
        """
        if not len(decisions):
            decisions = np.ones(self._first_refusal(), dtype=bool)
        trees = [_Tree(self.x[rows]) for rows in self.rows]
        state = Growing(self.z, self.y, self.conflicts, self.tolerance)
        nearest = [tree.next_pair() for tree in trees]
        while True:
            label, i, j = self._first_of(nearest)
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
            nearest[label] = trees[label].next_pair()
            tried.append(merges)
            if on_decision is not None:
                on_decision(merges)

    @staticmethod
    def _first_of(nearest: list[tuple[float, int, int]]) -> tuple[int, int, int]:
        """Find the label with the nearest pair, and the pair; -1: no pair is left.

        Args:
            nearest: squared distance and pair of each label.
        """
        if not nearest:
            return -1, 0, 0
        label = min(range(len(nearest)), key=lambda k: nearest[k][0])
        distance, i, j = nearest[label]
        return (label, i, j) if distance < np.inf else (-1, 0, 0)

    def _all_merges(self) -> np.ndarray:
        """List every merge in order, if none were refused: rows kept and merged in
        [n - labels, 2]."""
        trees = [_Tree(self.x[rows]) for rows in self.rows]
        nearest = [tree.next_pair() for tree in trees]
        merges = []
        while True:
            label, i, j = self._first_of(nearest)
            if label < 0:
                return np.array(merges, dtype=np.int64).reshape(-1, 2)
            merges.append((self.rows[label][i], self.rows[label][j]))
            trees[label].merge(i, j)
            nearest[label] = trees[label].next_pair()

    def _first_refusal(self) -> int:
        """Count the merges before the first refusal, by bisection.

        States of more than COARSEST clusters are not looked at; a smaller number is safe.
        """
        merges = self._all_merges()
        points, final = len(self.y), len(self.y) - len(merges)
        bad, meets_later, owner_later = len(merges), None, None
        good, more = 0, len(self.rows)  # clusters more than at the end
        while good < bad - 1:
            if final + more <= min(COARSEST, points - 1):
                middle = min(points - final - more, bad - 1)
                more *= 2
            elif good == 0:
                return 0
            else:
                middle = (good + bad) // 2
            owner = self._owner_after(merges[:middle])
            meets, apart, groups = self._state_meets(owner, owner_later, meets_later)
            if meets:
                bad, owner_later, meets_later = middle, owner, (apart, groups)
            else:
                good, more = middle, points
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
        """Return whether any two clusters of different labels meet.

        Args:
            owner: first point of each point's cluster [n].
            owner_later: the same after more merges.
            later: pairs [clusters, clusters] known to be apart then, so that their parts are apart
                now; and the clusters.

        Returns:
            that, the pairs known to be apart, and the clusters.
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
        many = left.sum() > 4 * len(groups.names) and len(groups.names) <= 400
        # where hulls meet, mostly those do that lie worst along the line between their centroids
        if self._any_meets(groups, left, gaps, at_most=1 if many else None):
            return True, ~left, groups
        if many:
            left, gaps = separate_jointly(z_sorted, groups, means, left, gaps, self.tolerance)
        return self._any_meets(groups, left, gaps), ~left, groups

    def _any_meets(
        self, groups: Groups, left: np.ndarray, gaps: np.ndarray, at_most: int | None = None
    ) -> bool:
        """Test pairs of clusters, those with the smallest gap first, until one meets.

        Args:
            left: pairs to test [clusters, clusters]; those found apart are taken out.
            at_most: so many of them.
        """
        pairs = np.argwhere(np.triu(left))
        worst_first = gaps[pairs[:, 0], pairs[:, 1]].argsort(kind="stable")
        for a, b in pairs[worst_first[:at_most]]:
            if do_meet(self.z[groups.rows(a)], self.z[groups.rows(b)], self.tolerance)[0]:
                return True
            left[a, b] = left[b, a] = False
        return False
