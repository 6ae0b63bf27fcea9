"""How far features and weights of one model lie from another's, layer by layer.

Matrices in, numbers out; those of a whole run as one table.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from bertchain.models.layers import layer_ids_of
from bertchain.models.loading import load_encoder
from bertchain.models.modeling import num_blocks

CHUNK = 4096  # rows in float64 at once


# ---------------------------------------------------------------- features


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment (CKA) of Kornblith et al. 2019, eq. 1 with linear kernels.

    1 for features that agree up to rotation, one scale and shift; 0 for unrelated ones.

    Args:
        x, y: [n, features] of the same rows, not necessarily with as many features.

    Returns:
        ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred columns; NaN where one is constant.
    """
    mean_x, mean_y = _mean(x), _mean(y)
    cross = np.zeros((y.shape[1], x.shape[1]))
    own_x, own_y = np.zeros((x.shape[1],) * 2), np.zeros((y.shape[1],) * 2)
    for start in range(0, len(x), CHUNK):
        a = x[start : start + CHUNK].astype(np.float64) - mean_x
        b = y[start : start + CHUNK].astype(np.float64) - mean_y
        cross += b.T @ a
        own_x += a.T @ a
        own_y += b.T @ b
    scale = np.linalg.norm(own_x) * np.linalg.norm(own_y)
    return float((cross**2).sum() / scale) if scale > 0 else float("nan")


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=0, dtype=np.float64)


def mean_cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Mean cosine of a row in one model with the same row in another.

    Args:
        x, y: [n, features] of the same rows and features. A row of zeros counts as 0.
    """
    total = 0.0
    for start in range(0, len(x), CHUNK):
        a = x[start : start + CHUNK].astype(np.float64)
        b = y[start : start + CHUNK].astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        total += ((a * b).sum(axis=1) / np.where(norms > 0, norms, 1)).sum()
    return float(total / len(x))


def anisotropy(x: np.ndarray) -> float:
    """Mean cosine of two different rows (Ethayarajh 2019), exactly: from the sum of unit vectors.

    Args:
        x: [n, features].

    Returns:
        how narrow the cone is that all rows lie in, 1 = one direction; NaN of a single row.
    """
    total, ones, rows = np.zeros(x.shape[1]), 0.0, len(x)
    if rows < 2:
        return float("nan")
    for start in range(0, rows, CHUNK):
        a = x[start : start + CHUNK].astype(np.float64)
        norms = np.linalg.norm(a, axis=1, keepdims=True)
        unit = a / np.where(norms > 0, norms, 1)
        total += unit.sum(axis=0)
        ones += float((unit**2).sum())
    return float((total @ total - ones) / (rows * (rows - 1)))


def effective_rank(x: np.ndarray) -> float:
    """Number of directions the features use (Roy & Vetterli 2007).

    exp of the entropy of the singular values of centred columns, over their sum.

    Args:
        x: [n, features].

    Returns:
        1 to the number of features; 1 where nothing differs.
    """
    centred = x - _mean(x)
    values = np.sqrt(np.maximum(0.0, np.linalg.eigvalsh(centred.T @ centred)))
    values = values[values > 1e-7 * values.max()] if values.max() > 0 else np.ones(1)
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


# ---------------------------------------------------------------- weights


def weight_changes(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    layer_ids: Mapping[str, int],
) -> dict[int, float]:
    """Relative change of all weights of each layer: ||after - before|| / ||before||.

    Args:
        before, after: name -> tensor; names or shapes that only one has are left out.
        layer_ids: name -> layer id, 0 = embeddings.

    Returns:
        layer -> relative change.
    """
    moved: dict[int, float] = {}
    size: dict[int, float] = {}
    for name, old in before.items():
        new = after.get(name)
        if name not in layer_ids or new is None or new.shape != old.shape:
            continue
        old, new = old.double(), new.double()
        layer = layer_ids[name]
        moved[layer] = moved.get(layer, 0.0) + float(((new - old) ** 2).sum())
        size[layer] = size.get(layer, 0.0) + float((old**2).sum())
    return {
        layer: (moved[layer] / size[layer]) ** 0.5 for layer in sorted(moved) if size[layer] > 0
    }


def weight_changes_since(
    first: str, later: Mapping[str, str], **hub_kwargs: bool
) -> dict[str, dict[int, float]]:
    """Relative change of the weights of encoders, by layer, against a first one.

    Args:
        first: path of its checkpoint.
        later: name -> path of the others.
        hub_kwargs: for `from_pretrained`.

    Returns:
        name -> layer -> relative change.
    """
    if not later:
        return {}
    start, _ = load_encoder(first, **hub_kwargs)
    changed = {}
    for name, path in later.items():
        encoder, _ = load_encoder(path, **hub_kwargs)
        blocks = num_blocks(encoder.config)
        ids = {k: layer for k, layer in layer_ids_of(encoder).items() if layer <= blocks}
        changed[name] = weight_changes(start.state_dict(), encoder.state_dict(), ids)
    return changed


# ---------------------------------------------------------------- table


def drift_table(
    features: dict[str, np.ndarray],
    pooling: int,
    changed: Mapping[str, Mapping[int, float]],
) -> pd.DataFrame:
    """How far each layer of the later models is from the first model's.

    Args:
        features: by model, [rows, layers, poolings, hidden] of the same rows; the first comes
            first.
        pooling: number of the pooling that is compared.
        changed: by model, layer -> relative change of its weights.

    Returns:
        a row for each model and layer.
    """
    rows = []
    start, first = next(iter(features.items()))
    for model, own in features.items():
        for layer in range(own.shape[1]):
            x = own[:, layer, pooling]
            row = {"model": model, "layer": layer, "mean cosine of two rows": anisotropy(x)}
            if model != start and layer < first.shape[1]:
                before = first[:, layer, pooling]
                row["CKA with the first"] = linear_cka(before, x)
                if before.shape == x.shape:
                    row["cosine before and after"] = mean_cosine(before, x)
                row["weights changed by"] = changed.get(model, {}).get(layer, float("nan"))
            rows.append(row)
    return pd.DataFrame(rows)
