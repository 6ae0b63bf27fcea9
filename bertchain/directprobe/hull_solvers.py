"""Ways to decide whether two convex hulls of a few points meet: each finds a proof.

All take points p [p, d] and q [q, d], a direction [d] to start from, from q to p, and a tolerance
in the units of the points. None: no proof was found, another way has to do.
"""

import math
import warnings
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.optimize import linprog, nnls

NOTHING = 1e-20  # a squared residual that points nowhere, the target being 1
STEPS = 60  # Newton steps for one penalty
PENALTIES = (1e-8, 1e-11, 1e-13)
WIDE, NARROW = 0.1, 1e-12  # first and last penalty, times the mean squared norm of a point
MARGIN_STEPS = 300  # on the way from one to the other, at most
NEARLY_FULL = 0.8  # a step after which the penalty falls, unless it is below LOW already
SLOW, FAST, LOW = 0.4, 0.01, 1e-6  # how far it falls: after such a step; at a minimum


class Contact(NamedTuple):
    """What is known of two hulls, of points P [p, d] and Q [q, d].

    Attributes:
        normal: [d], of length 1, from Q to P.
        gap: min(P normal) - max(Q normal): no points of the hulls are nearer. Negative where the
            normal does not separate them.
        weights_p, weights_q: [p], [q], non-negative, each of sum 1.
        miss: |P^T weights_p - Q^T weights_q|: two points of the hulls that are this near.
    """

    normal: np.ndarray
    gap: float
    weights_p: np.ndarray
    weights_q: np.ndarray
    miss: float


def make_contact(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, weights_p: np.ndarray, weights_q: np.ndarray
) -> Contact:
    """Make out what a direction [d] and non-negative weights [p], [q] of any sum show."""
    length = math.sqrt(normal @ normal)
    unit = normal / length if length > 0 else normal
    gap = float((p @ unit).min() - (q @ unit).max()) if length > 0 else -np.inf
    sum_p, sum_q = weights_p.sum(), weights_q.sum()
    if not (sum_p > 0 and sum_q > 0):
        return Contact(unit, gap, np.full(len(p), 1 / len(p)), np.full(len(q), 1 / len(q)), np.inf)
    a, b = weights_p / sum_p, weights_q / sum_q
    apart = a @ p - b @ q
    return Contact(unit, gap, a, b, math.sqrt(apart @ apart))


def by_least_squares(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float
) -> Contact | None:
    """Find non-negative weights with sum(a) = sum(b) and P^T a = Q^T b, as a least squares problem.

    With rows (x, 1) of P and -(x, 1) of Q the smallest residual is 0 exactly if the hulls meet (a
    theorem of Gordan); else it is itself a direction that separates them.
    """
    count, axes = p.shape
    matrix = np.ones((axes + 2, count + len(q)))
    matrix[:axes, :count] = p.T
    np.negative(q.T, out=matrix[:axes, count:])
    matrix[axes, count:] = -1.0
    target = np.zeros(axes + 2)
    target[-1] = 1.0
    try:
        weights, _ = nnls(matrix, target)
    except RuntimeError:  # too many steps: another way will do
        return None
    residual = target - matrix @ weights
    if residual @ residual < NOTHING:
        residual[:] = 0.0
    return make_contact(p, q, -residual[:-2], weights[:count], weights[count:])


def by_newton(p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float) -> Contact | None:
    """Train a squared-hinge support vector machine, with less penalty until one proof is there."""
    found = None
    solver = _Hinge(p, q, normal)
    for penalty in PENALTIES:
        found = solver.solve(penalty, tolerance)
        if found.gap > tolerance / 2 or found.miss <= tolerance:
            return found
    return found


def widest_margin(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float, accuracy: float
) -> Contact:
    """Widen the margin with less and less penalty until both bounds of the distance agree.

    A penalty is not solved to its end: it falls after each step of nearly full length, so that few
    points cross the margin at a time, and far at a minimum. Low ones, where rounding counts, are.
    """
    solver, penalty, best = _Hinge(p, q, normal), WIDE, None
    for _ in range(MARGIN_STEPS):
        aim = solver.aim(penalty)
        if best is None or solver.opening(aim.along) > 0 or aim.is_minimal():
            found = solver.contact_of(aim)
            best = found if best is None else _sharper(best, found)
            if best.miss <= tolerance or best.miss - best.gap <= accuracy * best.miss < math.inf:
                break
        length = solver.move(aim, penalty)
        ended = aim.settled or length == 0
        if ended and penalty == NARROW:
            break
        if ended or (length > NEARLY_FULL and penalty > LOW):
            penalty = max(NARROW, penalty * (FAST if ended else SLOW))
    return best


def _sharper(one: Contact, other: Contact) -> Contact:
    """The better bound of either side."""
    low, high = max(one, other, key=lambda c: c.gap), min(one, other, key=lambda c: c.miss)
    return high._replace(normal=low.normal, gap=low.gap)


class _Aim(NamedTuple):
    """Where a Newton step of `_Hinge` leads if no point crosses the margin."""

    inside: np.ndarray  # [n] bool: the points inside the margin now
    w: np.ndarray
    b: float
    along: np.ndarray  # [n], x w
    slack: np.ndarray  # [n], there; not cut off at 0
    settled: bool  # the same points are inside there: it is the minimum

    def is_minimal(self) -> bool:
        """Return whether it is the minimum of the points inside: none of them got out."""
        return bool((self.slack[self.inside] >= 0).all())


class _Hinge:
    """min over w, b of penalty / 2 |w|^2 + 1/2 sum max(0, 1 - s (x w + b))^2, s = 1 on P, -1 on Q.

    A finite Newton method: for given points inside the margin the minimum is a ridge regression of
    s on x (Keerthi & DeCoste 2005). What is left to each point at the minimum are, up to their
    sum, its weights in the nearest point of its hull.
    """

    def __init__(self, p: np.ndarray, q: np.ndarray, normal: np.ndarray):
        self.p, self.q = p, q
        self.x = np.concatenate([p, q])
        self.s = np.concatenate([np.ones(len(p)), -np.ones(len(q))])
        self.size = float((self.x**2).sum(axis=1).mean()) or 1.0
        self.w, self.b = self._start(normal)
        self.along = self.x @ self.w
        self.moments = _Moments(self.x, self.s)

    def _start(self, normal: np.ndarray) -> tuple[np.ndarray, float]:
        """Scaled so that the mean distance along it is 2, zero half-way."""
        along_p, along_q = self.p @ normal, self.q @ normal
        width = along_p.mean() - along_q.mean()
        if not width > 0:
            return np.zeros(self.x.shape[1]), 0.0
        return normal * (2 / width), -(along_p.mean() + along_q.mean()) / width

    def solve(self, penalty: float, tolerance: float) -> Contact:
        """The minimum from where the last one was, or what proves an answer on the way to it."""
        self.moments = _Moments(self.x, self.s)  # without the rounding of earlier updates
        for _ in range(STEPS):
            if self.opening(self.along) > tolerance * math.sqrt(self.w @ self.w) > 0:
                break
            aim = self.aim(penalty)
            if aim.is_minimal():
                found = self.contact_of(aim)
                if found.miss <= tolerance:
                    return found
            if self.move(aim, penalty) == 0 or aim.settled:
                break
        return self._contact(self.w, self._slack())

    def opening(self, along: np.ndarray) -> float:
        """The gap between P and Q by x w [n], times the length of w."""
        count = len(self.p)
        return along[:count].min() - along[count:].max()

    def contact_of(self, aim: _Aim) -> Contact:
        """What the end of a step shows."""
        return self._contact(aim.w, np.where(aim.inside, aim.slack, 0.0))

    def _contact(self, w: np.ndarray, slack: np.ndarray) -> Contact:
        """What a direction and what is left to the points [n] show."""
        left, count = np.maximum(0.0, slack), len(self.p)
        return make_contact(self.p, self.q, w, left[:count], left[count:])

    def _slack(self) -> np.ndarray:
        """How far inside the margin each point lies."""
        return 1 - self.s * (self.along + self.b)

    def aim(self, penalty: float) -> _Aim:
        """Solve the ridge regression of the points inside the margin."""
        slack = self._slack()
        if not (slack > 0).any():  # wider than the margin: draw it in until half of it is
            shrink = 0.5 / float(1 - slack.min())
            self.w, self.b, self.along = self.w * shrink, self.b * shrink, self.along * shrink
            slack = self._slack()
        inside = slack > 0
        w, b = self.moments.ridge(inside, penalty * self.size)
        along = self.along + self.x @ (w - self.w)
        slack = 1 - self.s * (along + b)
        return _Aim(inside, w, b, along, slack, np.array_equal(slack > 0, inside))

    def move(self, aim: _Aim, penalty: float) -> float:
        """Go as far as the sum falls: the share of the way, 0 if that is within rounding."""
        if aim.settled:
            self.w, self.b, self.along = aim.w, aim.b, aim.along
            return 1.0
        slack, step = self._slack(), aim.w - self.w
        t = self._line(slack, slack - aim.slack, self.w @ step, step @ step, penalty * self.size)
        moved = t * (aim.along - self.along)
        self.w, self.b, self.along = (
            self.w + t * step,
            self.b + t * (aim.b - self.b),
            self.along + moved,
        )
        return t if np.abs(moved).max() > 1e-14 * (1 + np.abs(self.along).max()) else 0.0

    @staticmethod
    def _line(
        slack: np.ndarray, falls: np.ndarray, linear: float, square: float, ridge: float
    ) -> float:
        """Where on the step, 0 to 1, the sum is smallest: its slope grows, so halve."""

        def slope(t: float) -> float:
            left = slack - t * falls
            return ridge * (linear + t * square) - float(np.maximum(left, 0) @ falls)

        if slope(1.0) <= 0:
            return 1.0
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if slope(middle) <= 0:
                low = middle
            else:
                high = middle
        return high


class _Moments:
    """Ridge regression of s on chosen rows of x with a free constant, in the smaller of its forms.

    From one choice to the next few rows change: the products of the chosen rows, or the sums over
    them, are kept up to date.
    """

    def __init__(self, x: np.ndarray, s: np.ndarray):
        self.x, self.s = x, s
        self.chosen: np.ndarray | None = None
        self.rows, self.products = np.zeros(0, dtype=int), np.zeros((0, 0))

    def ridge(self, chosen: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
        """w [d] and the constant, for rows chosen [n] bool."""
        rows, axes = int(chosen.sum()), self.x.shape[1]
        if rows <= axes:
            return self._by_products(chosen, ridge)
        self._update(chosen)
        mean, level = self.sum / rows, self.level / rows
        gram = self.square - np.outer(self.sum, mean)
        gram.flat[:: axes + 1] += ridge
        w = _solve(gram, self.product - level * self.sum)
        return w, float(level - mean @ w)

    def _by_products(self, chosen: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
        """w = x^T a, where (x x^T + ridge) a + constant = s and a sums to 0."""
        self._update_products(chosen)
        gram = self.products.copy()
        gram.flat[:: len(gram) + 1] += ridge
        of_s, of_1 = _solve(gram, np.stack([self.s[self.rows], np.ones(len(gram))], axis=1)).T
        constant = float(of_s.sum() / of_1.sum())
        return (of_s - constant * of_1) @ self.x[self.rows], constant

    def _update_products(self, chosen: np.ndarray) -> None:
        """The products of all pairs of chosen rows, in the order of self.rows."""
        stay, added = np.flatnonzero(chosen[self.rows]), chosen.copy()
        added[self.rows] = False
        self.rows = np.concatenate([self.rows[stay], np.flatnonzero(added)])
        old = len(stay)
        products = np.empty((len(self.rows), len(self.rows)))
        products[:old, :old] = self.products.take(stay, axis=0).take(stay, axis=1)
        products[old:] = self.x[self.rows[old:]] @ self.x[self.rows].T
        products[:old, old:] = products[old:, :old].T
        self.products = products

    def _update(self, chosen: np.ndarray) -> None:
        """Sums of x, s, x x^T and x s over the chosen rows."""
        old = self.chosen
        self.chosen = chosen
        if old is None or 2 * int((old != chosen).sum()) > int(chosen.sum()):
            x, s = self.x[chosen], self.s[chosen]
            self.square, self.product = x.T @ x, s @ x
            self.sum, self.level = x.sum(axis=0), s.sum()
            return
        changed = np.flatnonzero(old != chosen)
        sign = np.where(chosen[changed], 1.0, -1.0)
        x, s = self.x[changed], self.s[changed]
        signed = x * sign[:, None]
        self.square += signed.T @ x
        self.product += s @ signed
        self.sum += signed.sum(axis=0)
        self.level += float(sign @ s)


def _solve(gram: np.ndarray, target: np.ndarray) -> np.ndarray:
    try:
        return cho_solve(cho_factor(gram, check_finite=False), target, check_finite=False)
    except LinAlgError:  # not positive to rounding
        return np.linalg.lstsq(gram, target, rcond=None)[0]


def by_linear_program(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float
) -> Contact | None:
    """Find the widest gap with |normal_j| <= 1 by HiGHS; its dual weights give a common point."""
    axes = p.shape[1]
    above = np.hstack([-p, np.ones((len(p), 1)), np.zeros((len(p), 1))])  # p w >= upper
    below = np.hstack([q, np.zeros((len(q), 1)), -np.ones((len(q), 1))])  # q w <= lower
    cost = np.zeros(axes + 2)
    cost[axes:] = (-1.0, 1.0)  # lower - upper
    bounds = [(-1, 1)] * axes + [(None, None)] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = linprog(
            cost,
            A_ub=np.vstack([above, below]),
            b_ub=np.zeros(len(p) + len(q)),
            bounds=bounds,
            method="highs",
        )
    if done.x is None:
        return None
    weights = np.maximum(0.0, -done.ineqlin.marginals)
    return make_contact(p, q, done.x[:axes], weights[: len(p)], weights[len(p) :])
