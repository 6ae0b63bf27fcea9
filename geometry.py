"""How features differ between two models, layer by layer. Matrices in, numbers out."""

from collections.abc import Mapping

import numpy as np
import torch

BLOCK = 4096  # rows in float64 at once


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, eq. 1 with linear kernels).

    1 for features that agree up to rotation, one scale and shift; 0 for unrelated ones.

    Args:
        x, y: [n, features] of the same rows, not necessarily with as many features.

    Returns:
        ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred columns; NaN where one is constant.
    """
    mean_x, mean_y = _mean(x), _mean(y)
    cross = np.zeros((y.shape[1], x.shape[1]))
    own_x, own_y = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1],) * 2)
    for start in range(0, len(x), BLOCK):
        a = x[start : start + BLOCK].astype(np.float64) - mean_x
        b = y[start : start + BLOCK].astype(np.float64) - mean_y
        cross += b.T @ a
        own_x += a.T @ a
        own_y += b.T @ b
    scale = np.linalg.norm(own_x) * np.linalg.norm(own_y)
    return float((cross**2).sum() / scale) if scale > 0 else float("nan")


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=0, dtype=np.float64)


def mean_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over rows of the cosine of a row before, and the same row after.

    Args:
        x, y: [n, features] of the same rows and features. A row of zeros counts as 0.
    """
    total = 0.0
    for start in range(0, len(x), BLOCK):
        a = x[start : start + BLOCK].astype(np.float64)
        b = y[start : start + BLOCK].astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        total += ((a * b).sum(axis=1) / np.where(norms > 0, norms, 1)).sum()
    return float(total / len(x))


def anisotropy(x: np.ndarray) -> float:
    """Mean cosine of two different rows (Ethayarajh 2019): exact, from the sum of unit vectors."""
    total, ones, rows = np.zeros(x.shape[1]), 0.0, len(x)
    if rows < 2:
        return float("nan")
    for start in range(0, rows, BLOCK):
        a = x[start : start + BLOCK].astype(np.float64)
        norms = np.linalg.norm(a, axis=1, keepdims=True)
        unit = a / np.where(norms > 0, norms, 1)
        total += unit.sum(axis=0)
        ones += float((unit**2).sum())
    return float((total @ total - ones) / (rows * (rows - 1)))


def effective_rank(x: np.ndarray) -> float:
    """How many directions the features use: exp of the entropy of their singular values over their
    sum, of centred columns (Roy & Vetterli 2007). 1 where nothing differs.

    Args:
        x: [n, features].
    """
    centred = x - _mean(x)
    values = np.sqrt(np.maximum(0.0, np.linalg.eigvalsh(centred.T @ centred)))
    values = values[values > 1e-7 * values.max()] if values.max() > 0 else np.ones(1)
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def weight_changes(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], rooms: Mapping[str, int]
) -> dict[int, float]:
    """||after - before|| / ||before|| over all weights of a layer.

    Args:
        before, after: name -> tensor; names or shapes that only one has are left out.
        rooms: name -> layer, 0 = embeddings.

    Returns:
        layer -> relative change.
    """
    moved: dict[int, float] = {}
    size: dict[int, float] = {}
    for name, old in before.items():
        new = after.get(name)
        if name not in rooms or new is None or new.shape != old.shape:
            continue
        old, new = old.double(), new.double()
        layer = rooms[name]
        moved[layer] = moved.get(layer, 0.0) + float(((new - old) ** 2).sum())
        size[layer] = size.get(layer, 0.0) + float((old**2).sum())
    return {
        layer: (moved[layer] / size[layer]) ** 0.5 for layer in sorted(moved) if size[layer] > 0
    }
