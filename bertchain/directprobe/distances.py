"""Distances between many points, by products of matrices in float64: on the GPU if there is one.

The same code on either; of a matrix of all distances the device only ever holds BLOCK rows.
"""

from collections.abc import Iterator

import numpy as np
import torch

BLOCK = 1024  # points whose distances to all others are computed at once
MANY = 1_000_000  # distances from which on a GPU is worth asking
SAME = 1e-13  # of the largest squared norm: what rounding leaves between equal points


def squared_distances(x: np.ndarray, device: torch.device | str | None = None) -> np.ndarray:
    """Between all pairs of points [n, d] -> [n, n]: exactly symmetric, and 0 between equal ones."""
    points = _on_device(x, x[0], device or best_device(len(x) ** 2))
    found = np.empty((len(x), len(x)))
    for start, block in _blocks(points):
        rows = slice(start, start + len(block))
        found[rows, start:] = block.cpu().numpy()
        found[start:, rows] = found[rows, start:].T
    return found


def largest_and_mean(
    x: np.ndarray, device: torch.device | str | None = None
) -> tuple[float, float]:
    """Of the distances of all pairs of points [n, d]; 0 of a single point."""
    count, largest, total = len(x), 0.0, 0.0
    if count < 2:
        return 0.0, 0.0
    points = _on_device(x, x[0], device or best_device(count**2))
    for _, block in _blocks(points):
        distances = block.sqrt()
        largest = max(largest, float(distances.max()))
        total += float(distances.triu(1).sum())
    return largest, total / (count * (count - 1) / 2)


def nearest_distances(
    new: np.ndarray, x: np.ndarray, device: torch.device | str | None = None
) -> np.ndarray:
    """How far each new point [m, d] is from the nearest of the points [n, d] -> [m]."""
    device = device or best_device(len(new) * len(x))
    mine, others = (_on_device(own, x[0], device) for own in (new, x))
    found = [_between(own, others).amin(dim=1).sqrt() for own in mine.split(BLOCK)]
    return torch.cat(found).cpu().numpy()


def best_device(count: int) -> str:
    """For so many distances."""
    return "cuda" if count >= MANY and torch.cuda.is_available() else "cpu"


def _on_device(x: np.ndarray, origin: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Points seen from one of them: what all have in common would cost digits."""
    return torch.from_numpy(np.asarray(x - origin, dtype=np.float64)).to(device)


def _blocks(points: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """The upper half of all squared distances: from each block's first point on [block, n - start].

    Its first square is mirrored, since products of matrices need not be symmetric to the last bit.
    """
    for start in range(0, len(points), BLOCK):
        block = _between(points[start : start + BLOCK], points[start:])
        square = block[:, : len(block)]
        square.copy_(square.triu(1) + square.triu(1).T)
        yield start, block


def _between(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances of [a, d] and [b, d] -> [a, b]."""
    of_a, of_b = (a**2).sum(dim=1), (b**2).sum(dim=1)
    found = torch.addmm(of_a[:, None] + of_b[None], a, b.T, alpha=-2)
    return found.masked_fill_(found < SAME * max(float(of_a.max()), float(of_b.max())), 0.0)
