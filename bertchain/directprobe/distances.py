"""Distances between many points, by products of matrices in float64: on the GPU if there is one.

By torch where the program has imported it, else by numpy; the same code on either. Of a matrix of
all distances CHUNK rows are in work at a time.
"""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

CHUNK = 1024  # points whose distances to all others are computed at once
MANY = 1_000_000  # distances from which on a GPU is worth asking
SAME = 1e-13  # of the largest squared norm: what rounding leaves between equal points

Array = Any  # of numpy or torch


def squared_distances(x: np.ndarray, device: str | None = None) -> np.ndarray:
    """Between all pairs of points [n, d] -> [n, n]: exactly symmetric, and 0 between equal ones.

    Args:
        device: of torch; None: `best_device`.
    """
    points = _on_device(x, x[0], device or best_device(len(x) ** 2))
    found = np.empty((len(x), len(x)))
    for start, part in _upper_rows(points):
        rows = slice(start, start + len(part))
        found[rows, start:] = _to_numpy(part)
        found[start:, rows] = found[rows, start:].T
    return found


def largest_and_mean(x: np.ndarray, device: str | None = None) -> tuple[float, float]:
    """Largest and mean distance of all pairs of points [n, d]; 0 of a single point."""
    count, largest, total = len(x), 0.0, 0.0
    if count < 2:
        return 0.0, 0.0
    points = _on_device(x, x[0], device or best_device(count**2))
    for _, part in _upper_rows(points):
        distances = part**0.5
        largest = max(largest, float(distances.max()))
        total += float(_library(part).triu(distances, 1).sum())
    return largest, total / (count * (count - 1) / 2)


def nearest_distances(new: np.ndarray, x: np.ndarray, device: str | None = None) -> np.ndarray:
    """Distance of each new point [m, d] to the nearest of the points [n, d] -> [m]."""
    device = device or best_device(len(new) * len(x))
    mine, others = (_on_device(own, x[0], device) for own in (new, x))
    found = []
    for start in range(0, len(new), CHUNK):
        squares = _between(mine[start : start + CHUNK], others)
        found.append(_to_numpy(_library(squares).amin(squares, 1) ** 0.5))
    return np.concatenate(found)


def best_device(count: int) -> str:
    """Choose where to compute so many distances: cpu or cuda."""
    torch = sys.modules.get("torch")
    return "cuda" if count >= MANY and torch is not None and torch.cuda.is_available() else "cpu"


def _library(array: Array) -> Any:
    """The module whose functions take an array: numpy or torch."""
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _on_device(x: np.ndarray, origin: np.ndarray, device: str) -> Array:
    """Points seen from one of them: what all have in common would cost digits."""
    points = np.asarray(x - origin, dtype=np.float64)
    torch = sys.modules.get("torch")
    return points if torch is None else torch.from_numpy(points).to(device)


def _to_numpy(array: Array) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def _upper_rows(points: Array) -> Iterator[tuple[int, Array]]:
    """The upper half of all squared distances, CHUNK rows at a time: from each part's first point
    on [rows, n - start].

    Its first square is mirrored, since products of matrices need not be symmetric to the last bit.
    """
    for start in range(0, len(points), CHUNK):
        part = _between(points[start : start + CHUNK], points[start:])
        upper = _library(part).triu(part[:, : len(part)], 1)
        part[:, : len(part)] = upper + upper.T
        yield start, part


def _between(a: Array, b: Array) -> Array:
    """Squared distances of [a, d] and [b, d] -> [a, b]."""
    of_a, of_b = (a**2).sum(1), (b**2).sum(1)
    found = of_a[:, None] + of_b[None]
    if isinstance(found, np.ndarray):
        found -= 2 * (a @ b.T)
    else:
        found = sys.modules["torch"].addmm(found, a, b.T, alpha=-2)
    found[found < SAME * max(float(of_a.max()), float(of_b.max()))] = 0.0
    return found
