"""Groups of points, and hyperplanes that separate many pairs of them at once."""

import contextlib

import numpy as np
from scipy.optimize import minimize

from bertchain.directprobe.hulls import do_meet

SCORES = 20_000_000  # rows x groups in memory at once
DESCENT = 200  # steps of the joint classifier that separates many pairs at once
EVERY = 5  # steps of the joint classifier between two looks at its pairs
PATIENCE = 6  # looks at which it closed no pair


class Groups:
    """Points in groups, sorted so that a reduction over each group is one call.

    Attributes:
        names: of the groups, sorted [groups].
        order: rows by group [n].
        starts, sizes: where each group begins in the order, and its points [groups].
        number: group of each row in the order [n].
    """

    def __init__(self, owner: np.ndarray):
        """Args: owner: name of each point's group [n]."""
        self.order = np.argsort(owner, kind="stable")
        self.names, self.starts, self.sizes = np.unique(
            owner[self.order], return_index=True, return_counts=True
        )
        self.number = np.repeat(np.arange(len(self.names)), self.sizes)

    def rows(self, group: int) -> np.ndarray:
        """Rows of a group, by its place in `names`."""
        start = self.starts[group]
        return self.order[start : start + self.sizes[group]]

    def means(self, z: np.ndarray) -> np.ndarray:
        """Means of points [n, d] -> [groups, d]."""
        return np.add.reduceat(z[self.order], self.starts, axis=0) / self.sizes[:, None]


def pair_gaps(z_sorted: np.ndarray, groups: Groups, directions: np.ndarray) -> np.ndarray:
    """Gap between group i and group j along directions_i - directions_j, for all pairs.

    Args:
        z_sorted: [n, d] in the order of the groups.
        directions: [groups, d].

    Returns:
        [groups, groups], symmetric; positive: separated (by this much over the norm).
    """
    count = len(groups.names)
    least = np.empty((count, count))
    most = max(1, SCORES // count)
    ends = np.append(groups.starts, len(z_sorted))
    first = 0
    while first < count:  # whole groups, about so many rows at once
        last = int(np.searchsorted(ends, ends[first] + most, side="right")) - 1
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
    """Find the pairs of groups that directions separate.

    Args: see `pair_gaps`; tolerance: half of it is the least gap, in the units of the points.

    Returns:
        [groups, groups] bool; and all gaps, in the units of the points [groups, groups].
    """
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
    """Separate pairs by one multinomial classifier of all groups, while it keeps closing some.

    Every few steps its weights w_a - w_b are tried as a direction between groups a and b.

    Args:
        z_sorted: [n, d] in the order of the groups.
        start: directions to start from [groups, d].
        open_pairs: [groups, groups] bool, to be separated.
        gaps: of all pairs along the directions to start from.

    Returns:
        the pairs that are left open, and the gaps of the last look [groups, groups].
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
    """Find the labels whose hulls meet.

    Most pairs are separated by their centroids or by one joint classifier; the rest is tested.

    Args:
        z: points [n, d], whitened.
        y: number of each point's label [n].
        count: of labels.
        tolerance: hulls that come nearer meet.

    Returns:
        [labels, labels] bool.
    """
    groups = Groups(y)
    meets = np.zeros((count, count), dtype=bool)
    for a, b in np.argwhere(_left_open(z, groups, count, tolerance)):
        meets[a, b] = meets[b, a] = do_meet(z[groups.rows(a)], z[groups.rows(b)], tolerance)[0]
    return meets


def count_apart(z: np.ndarray, y: np.ndarray, count: int, tolerance: float) -> tuple[int, int]:
    """Count the pairs of labels whose hulls are proven not to meet, up to the first that do.

    Pairs of many points are tested first: of labels that mean nothing they meet, and the rest need
    not be looked at. Args: see `find_conflicts`.

    Returns:
        these pairs, and all pairs: as many where no hulls meet.
    """
    groups = Groups(y)
    pairs = np.argwhere(_left_open(z, groups, count, tolerance))
    every = count * (count - 1) // 2
    apart = every - len(pairs)
    for a, b in pairs[np.argsort(-groups.sizes[pairs].prod(axis=1), kind="stable")]:
        if do_meet(z[groups.rows(a)], z[groups.rows(b)], tolerance)[0]:
            break
        apart += 1
    return apart, every


def _left_open(z: np.ndarray, groups: Groups, count: int, tolerance: float) -> np.ndarray:
    """The pairs that neither centroids nor a joint classifier separate, in the upper half."""
    z_sorted = z[groups.order]
    open_pairs = ~np.eye(count, dtype=bool)
    directions = groups.means(z)
    done, gaps = separated(z_sorted, groups, directions, tolerance)
    open_pairs &= ~done
    if open_pairs.sum() > 2 * count:
        open_pairs, _ = separate_jointly(z_sorted, groups, directions, open_pairs, gaps, tolerance)
    return np.triu(open_pairs)
