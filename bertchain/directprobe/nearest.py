"""Distances of many pairs of convex hulls at once: an active set for each pair, side by side."""

import numpy as np
from scipy.sparse import csr_array

FIRST = 4  # points of either hull that are added at once, at least
SHARE = 0.25  # of those in use: so many more are added at once
RIDGE = 1e-12  # of the mean square of the points in use, which may depend on each other
LEVEL = 1e-10  # of the largest norm: points that lie this much nearer are worth adding
PATIENCE = 3  # rounds in which a distance did not fall
PRODUCTS = 6000  # points up to which products of all are kept
ROOM = 10_000_000  # numbers in work at a time
SIGNS = (1.0, -1.0)  # of the one side and the other


class HullPairs:
    """Bounds of the distances of pairs of hulls, which `improve` tightens.

    Of each hull a few points are in use, so that the nearest points of their affine hulls, by a
    small linear system, are those of the hulls. Points that lie further towards the other hull
    along the vector between these are added; those whose weight would fall below 0 are left out
    (Wolfe 1976). That vector bounds the distance from below, whatever is in use, its length from
    above.

    Attributes:
        lower, upper: bounds of distances [pairs].
        stuck: pairs whose bounds do not get tighter this way [pairs] bool.
    """

    def __init__(
        self,
        z: np.ndarray,
        starts: np.ndarray,
        sizes: np.ndarray,
        pairs: tuple[np.ndarray, np.ndarray],
        first: tuple[np.ndarray, np.ndarray],
    ):
        """
        Args:
            z: points [n, d], hull by hull.
            starts, sizes: where each hull's points begin in z, and how many there are [hulls].
            pairs: numbers of hulls, of either side [pairs].
            first: rows of z, of either side, to begin with [pairs].
        """
        self.z = z - z.mean(axis=0)
        self.starts, self.sizes, self.sides = starts, sizes, pairs
        self.largest = float(np.sqrt((self.z**2).sum(axis=1).max()))
        self.rows = np.stack(first, axis=1)  # in use [pairs, most]
        self.signs = np.tile([1.0, -1.0], (len(self.rows), 1))  # 1: of one side; 0: none
        self.weights = np.ones_like(self.signs)
        self.lower, self.upper = np.zeros(len(self.rows)), np.full(len(self.rows), np.inf)
        self.idle = np.zeros(len(self.rows), dtype=np.int64)  # rounds in vain
        self.products = self._products() if len(z) <= PRODUCTS else None

    @property
    def stuck(self) -> np.ndarray:
        return self.idle >= PATIENCE

    def improve(self, which: np.ndarray) -> None:
        """Tighten the bounds of some pairs [chosen], by their numbers."""
        for few in _parts(which, self.z.shape[1]):
            self._look(few)

    def _look(self, which: np.ndarray) -> None:
        """Bound distances along the vector between the points known, and add what lies nearer."""
        ends = [self._point(which, sign) for sign in SIGNS]
        normals = ends[0] - ends[1]
        length = np.sqrt((normals**2).sum(axis=1))
        self.idle[which] += ~(length < self.upper[which] * (1 - 1e-12))
        self.upper[which] = np.minimum(self.upper[which], length)
        normals /= np.where(length > 0, length, 1.0)[:, None]
        most = int(FIRST + SHARE * (self.signs[which] != 0).sum(axis=1).max())
        gap, rows, signs = np.zeros(len(which)), [], []
        for side, end, sign in zip(self.sides, ends, SIGNS, strict=True):
            towards = sign * normals
            level = (end * towards).sum(axis=1) - LEVEL * self.largest
            lowest, nearer = self._lowest(side[which], towards, level, most)
            gap += lowest
            rows.append(nearer)
            signs.append(np.where(nearer >= 0, sign, 0.0))
        self.lower[which] = np.maximum(self.lower[which], gap)
        signs = np.concatenate(signs, axis=1)
        more = signs.any(axis=1) & (length > 0)
        self.idle[which[~more]] = PATIENCE
        which = which[more]
        if len(which):
            self._add(which, np.concatenate(rows, axis=1)[more], signs[more])
            width = int((self.signs[which] != 0).sum(axis=1).max())
            each = width * (width if self.products is not None else max(width, self.z.shape[1]))
            for few in _parts(which, each):
                self._settle(few)

    def _point(self, which: np.ndarray, sign: float) -> np.ndarray:
        """The points known of one side's hulls [chosen, d]."""
        used = self.signs[which] == sign
        starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
        entries = self.weights[which][used], self.rows[which][used], starts
        return csr_array(entries, shape=(len(which), len(self.z))) @ self.z

    def _lowest(
        self, hulls: np.ndarray, towards: np.ndarray, level: np.ndarray, most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """How far down each hull reaches along a direction [chosen, d], and the lowest rows.

        Returns:
            that [chosen], and rows below the level, -1 for none [chosen, most].
        """
        lowest = np.einsum("nd,nd->n", self.z[self.starts[hulls]], towards)
        rows = np.full((len(hulls), most), -1)
        for hull in np.unique(hulls[self.sizes[hulls] > 1]):
            own, start, size = np.flatnonzero(hulls == hull), self.starts[hull], self.sizes[hull]
            along = towards[own] @ self.z[start : start + size].T
            few = min(most, size)
            at = np.argpartition(along, few - 1, axis=1)[:, :few]
            values = np.take_along_axis(along, at, axis=1)
            lowest[own] = values.min(axis=1)
            rows[own, :few] = np.where(values < level[own, None], start + at, -1)
        return lowest, rows

    def _add(self, which: np.ndarray, rows: np.ndarray, signs: np.ndarray) -> None:
        """Take rows into use [chosen, more] where their sign is not 0."""
        rows = np.concatenate([self.rows[which], np.maximum(rows, 0)], axis=1)
        signs = np.concatenate([self.signs[which], signs], axis=1)
        weights = np.zeros(rows.shape)
        weights[:, : self.weights.shape[1]] = self.weights[which]
        order = np.argsort(signs == 0, axis=1, kind="stable")[:, : (signs != 0).sum(axis=1).max()]
        grown = max(0, order.shape[1] - self.rows.shape[1])
        for name, values in (("rows", rows), ("signs", signs), ("weights", weights)):
            kept = np.pad(getattr(self, name), ((0, 0), (0, grown)))
            kept[which] = 0
            kept[which, : order.shape[1]] = np.take_along_axis(values, order, axis=1)
            setattr(self, name, kept)

    def _settle(self, which: np.ndarray) -> None:
        """Go to the nearest points of what is in use; leave out what no point needs."""
        while len(which):
            width = int((self.signs[which] != 0).any(axis=0).nonzero()[0].max()) + 1
            signs, old = self.signs[which, :width], self.weights[which, :width]
            new = self._of_affine_hulls(self.rows[which, :width], signs)
            if not np.isfinite(new).all():  # too close to call: what was known holds
                wrong = ~np.isfinite(new).all(axis=1)
                self.idle[which[wrong]], new[wrong] = PATIENCE, old[wrong]
            falls = (new < 0) & (signs != 0)
            step = np.where(falls, old / np.where(falls, old - new, 1.0), np.inf)
            length = np.minimum(1.0, step.min(axis=1))[:, None]
            gone = falls & (step <= length)
            self.weights[which, :width] = np.where(gone, 0.0, old + length * (new - old))
            self.signs[which, :width] = np.where(gone, 0.0, signs)
            which = which[length[:, 0] < 1]

    def _of_affine_hulls(self, rows: np.ndarray, signs: np.ndarray) -> np.ndarray:
        """Weights of the nearest points of the affine hulls of either side [chosen, width]."""
        if self.products is not None:
            gram = self.products[rows[:, :, None], rows[:, None]]
        else:
            points = self.z[rows]
            gram = points @ points.transpose(0, 2, 1)
        gram *= signs[:, :, None] * signs[:, None]
        width, used = rows.shape[1], signs != 0
        size = np.einsum("nii->n", gram) / used.sum(axis=1) + 1e-300
        sides = np.stack([signs > 0, signs < 0], axis=2).astype(float)  # [chosen, width, 2]
        gram += size[:, None, None] * (sides @ sides.transpose(0, 2, 1))
        diagonal = np.arange(width)
        gram[:, diagonal, diagonal] += np.where(used, RIDGE * size[:, None], 1.0)
        try:
            found = np.linalg.solve(gram, sides)
            sums = sides.transpose(0, 2, 1) @ found
            return (found @ np.linalg.solve(sums, np.ones((len(rows), 2, 1))))[:, :, 0]
        except np.linalg.LinAlgError:
            return np.full(rows.shape, np.nan)

    def _products(self) -> np.ndarray:
        """Products of all points of the hulls that make a pair; 0 elsewhere.

        Places that no point fills are read there, and their sign is 0: they must not be NaN.
        """
        z, found = self.z, np.zeros((len(self.z),) * 2)
        rows = [slice(a, a + n) for a, n in zip(self.starts, self.sizes, strict=True)]
        single = self.starts[self.sizes == 1]
        found[single, single] = (z[single] ** 2).sum(axis=1)
        in_pairs = np.unique(np.concatenate(self.sides))
        for hull in in_pairs[self.sizes[in_pairs] > 1]:
            found[rows[hull], rows[hull]] = z[rows[hull]] @ z[rows[hull]].T
        for hull in np.unique(self.sides[0]):
            others = np.unique(self.sides[1][self.sides[0] == hull])
            at = np.concatenate([np.arange(rows[k].start, rows[k].stop) for k in others])
            across = z[rows[hull]] @ z[at].T
            found[rows[hull], at] = across
            found[at, rows[hull]] = across.T
        return found


def _parts(which: np.ndarray, each: int) -> list[np.ndarray]:
    """Pairs in parts, as many numbers in work at a time as there is room for."""
    at_once = max(1, ROOM // max(1, int(each)))
    return [which[start : start + at_once] for start in range(0, len(which), at_once)]
