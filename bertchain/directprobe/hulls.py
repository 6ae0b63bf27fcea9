"""Two convex hulls: do they meet, and how far apart are they? Arrays in, proofs out.

Every answer comes with its proof. Hulls apart: a hyperplane between them. Hulls that meet: convex
weights of either side that give the same point. A distance: a hyperplane that shows a lower bound,
and two points that show an upper one.
"""

import math

import numpy as np

from bertchain.directprobe.hull_solvers import (
    Contact,
    by_least_squares,
    by_linear_program,
    by_newton,
    make_contact,
    widest_margin,
)

FEW_AXES = 40  # up to here least squares with non-negative weights is the fastest test
FIRST = 150  # points of each hull that are looked at first, at least


def do_meet(
    p: np.ndarray, q: np.ndarray, tolerance: float, normal: np.ndarray | None = None
) -> tuple[bool, Contact]:
    """Return whether two convex hulls meet, that is: come nearer than the tolerance.

    Points near the other hull are tried first: if already their hulls meet, all do; if not, the
    points on the wrong side of the hyperplane found are added.

    Args:
        p, q: [p, d], [q, d] float64, centred and scaled alike on all axes
            (see `clustering.whiten`).
        tolerance: in the units of the points.
        normal: [d], a direction that may separate them, for a warm start.

    Returns:
        the answer and its proof: where they meet `miss` <= tolerance, else `gap` > tolerance / 2
        (if bounds differ that much at a distance of about the tolerance, `gap` > 0).

    Raises:
        ArithmeticError: if neither is found: features of very different sizes.
    """
    if normal is None or not normal.any():
        normal = p.mean(axis=0) - q.mean(axis=0)
    known = _separated(p, q, normal, tolerance)
    if known is not None:
        return False, known
    of_p, of_q = _nearest(p, q, normal)
    while True:
        meets, found = _do_few_meet(p[of_p], q[of_q], normal, tolerance)
        if meets:
            return True, _widen(found, of_p, of_q, len(p), len(q))
        normal = found.normal
        known = _separated(p, q, normal, tolerance)
        if known is not None:
            return False, known
        more_p, more_q = _add_beyond(p @ normal, of_p), _add_beyond(-(q @ normal), of_q)
        if len(more_p) == len(of_p) and len(more_q) == len(of_q):
            return False, _widen(found, of_p, of_q, len(p), len(q))  # within rounding
        of_p, of_q = more_p, more_q


def hull_distance(
    p: np.ndarray, q: np.ndarray, accuracy: float = 1e-6, tolerance: float | None = None
) -> Contact:
    """Measure the distance of two convex hulls.

    Args:
        p, q: [p, d], [q, d].
        accuracy: relative difference of the two bounds.
        tolerance: below which hulls count as meeting, in the units of the points. Default: 1e-6 of
            their root mean square distance from their mean.

    Returns:
        bounds `gap` <= distance <= `miss`, as near to each other as asked, rounding permitting.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    centre = (p.mean(axis=0) + q.mean(axis=0)) / 2
    p, q = p - centre, q - centre
    scale = np.sqrt(((p**2).sum() + (q**2).sum()) / (len(p) + len(q)))
    if scale == 0:
        return make_contact(p, q, np.zeros(p.shape[1]), np.ones(len(p)), np.ones(len(q)))
    if tolerance is None:
        tolerance = 1e-6 * scale
    normal = p.mean(axis=0) - q.mean(axis=0)
    of_p, of_q = _nearest(p, q, normal)
    while True:
        found = widest_margin(p[of_p], q[of_q], normal, tolerance, accuracy)
        if found.miss <= tolerance:
            return _widen(found, of_p, of_q, len(p), len(q))
        along_p, along_q = p @ found.normal, q @ found.normal
        whole = found._replace(gap=float(along_p.min() - along_q.max()))
        more_p, more_q = _add_beyond(along_p, of_p), _add_beyond(-along_q, of_q)
        if len(more_p) == len(of_p) and len(more_q) == len(of_q):
            return _widen(whole, of_p, of_q, len(p), len(q))
        of_p, of_q, normal = more_p, more_q, found.normal


def _separated(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float
) -> Contact | None:
    """The proof that a direction separates all points, or None."""
    length = math.sqrt(normal @ normal)
    if not length > 0:
        return None
    unit = normal / length
    along_p, along_q = p @ unit, q @ unit
    i, j = int(along_p.argmin()), int(along_q.argmax())
    gap = float(along_p[i] - along_q[j])
    if gap <= tolerance / 2:
        return None
    weights_p, weights_q = np.zeros(len(p)), np.zeros(len(q))
    weights_p[i] = weights_q[j] = 1.0
    return Contact(unit, gap, weights_p, weights_q, float(np.linalg.norm(p[i] - q[j])))


def _do_few_meet(
    p: np.ndarray, q: np.ndarray, normal: np.ndarray, tolerance: float
) -> tuple[bool, Contact]:
    """The fastest test first, the surest last, which takes minutes where hulls nearly touch."""
    few_axes = p.shape[1] <= FEW_AXES
    ways = (by_least_squares, by_newton) if few_axes else (by_newton, by_least_squares)
    for way in (*ways, by_linear_program):
        found = way(p, q, normal, tolerance)
        if found is not None and found.miss <= tolerance:
            return True, found
        if found is not None and found.gap > tolerance / 2:
            return False, found
    if found is not None and found.gap > 0:  # the linear program: apart, if by little
        return False, found
    raise ArithmeticError(
        f"{len(p)} and {len(q)} points in {p.shape[1]} dimensions: neither a hyperplane nor a "
        "common point was found; are the features of very different sizes?"
    )


# ---------------------------------------------------------------- which points


def _nearest(p: np.ndarray, q: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of either side that are looked at first."""
    few = max(FIRST, 2 * p.shape[1])
    return _nearest_along(p, normal, few), _nearest_along(q, -normal, few)


def _nearest_along(points: np.ndarray, direction: np.ndarray, count: int) -> np.ndarray:
    """The rows that lie lowest, sorted by row."""
    if len(points) <= count:
        return np.arange(len(points))
    return np.sort(np.argpartition(points @ direction, count)[:count])


def _add_beyond(along: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen rows and, of those below all of them, the lowest: as many again as were chosen."""
    below = np.flatnonzero(along < along[chosen].min())
    if len(below) > len(chosen):
        below = below[np.argpartition(along[below], len(chosen))[: len(chosen)]]
    return np.sort(np.concatenate([chosen, below]))


def _widen(found: Contact, of_p: np.ndarray, of_q: np.ndarray, p: int, q: int) -> Contact:
    """Weights of a few points as weights of all."""
    weights_p, weights_q = np.zeros(p), np.zeros(q)
    weights_p[of_p], weights_q[of_q] = found.weights_p, found.weights_q
    return found._replace(weights_p=weights_p, weights_q=weights_q)
