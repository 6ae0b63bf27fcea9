"""How features differ between two models, layer by layer. Matrices in, numbers out."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bertchain.probing.probes import C_VALUES, Standardiser, fit_multinomial, fit_one_versus_rest


def control_labels(
    types: dict[str, Sequence[str]], labels: np.ndarray, num_labels: int, seed: int
) -> dict[str, np.ndarray]:
    """A control task (Hewitt & Liang 2019): one random label for each type, by split.

    Labels are drawn as often as they occur in training. They can only be learnt by heart, so a
    probe that does well on them says little about the features: selectivity is the accuracy on the
    task minus that on its control.

    Args:
        types: what is remembered of each row, such as its word, by split.
        labels: of the training rows.
    """
    shares = np.bincount(labels, minlength=num_labels) / len(labels)
    names = sorted({name for split in types.values() for name in split})
    drawn = np.random.default_rng(seed).choice(num_labels, size=len(names), p=shares)
    label_of = dict(zip(names, drawn.tolist(), strict=True))
    return {split: np.array([label_of[name] for name in own]) for split, own in types.items()}


PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


def online_code_length(
    features: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    seed: int,
    c_values: Sequence[float] = C_VALUES,
    portions: Sequence[float] = PORTIONS,
    problem_type: str = "single_label",
) -> dict[str, float]:
    """Minimum description length of labels by online coding (Voita & Titov 2020, eq. 3).

    Labels are sent portion by portion: the first at log2(classes) bits each (of several labels: at
    one bit each), every other with the probabilities of a linear probe trained on all before it.
    Features that make the labels easy to tell need few bits, and few rows. The regularisation is
    that which needs the fewest bits, and which one it is, is sent as well: accuracy on other rows
    would often choose one that is sure of nothing, and costs many bits.

    Args:
        features: [n, features] and labels, [n] or 0/1 [n, num_labels], of the training rows, sent
            in a random order.

    Returns:
        bits; uniform_bits, of n labels without any features; compression, their ratio; model_bits,
        those beyond the bits of a probe trained on all rows: what learning took; C.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = np.asarray(features, dtype=np.float32)[order], np.asarray(labels)[order]
    ends = sorted({max(1, round(share * len(y))) for share in portions})
    each = np.log2(num_labels) if problem_type == "single_label" else num_labels
    code = {"single_label": _class_bits, "multi_label": _label_bits}[problem_type]
    ordered = sorted(c_values)
    bits = np.full(len(ordered), ends[0] * each + np.log2(len(ordered)))
    for end, following in itertools.pairwise(ends):
        bits += code(x[:end], y[:end], x[end:following], y[end:following], num_labels, ordered)
    best = int(bits.argmin())
    (whole,) = code(x, y, x, y, num_labels, [ordered[best]])
    uniform = len(y) * each
    values = {"bits": bits[best], "uniform_bits": uniform, "compression": uniform / bits[best]}
    values |= {"model_bits": bits[best] - whole, "C": ordered[best]}
    return {name: float(value) for name, value in values.items()}


def _class_bits(
    x: np.ndarray,
    y: np.ndarray,
    new: np.ndarray,
    truth: np.ndarray,
    classes: int,
    c_values: Sequence[float],
) -> np.ndarray:
    """-log2 of the probabilities of new labels after training on x, y, by C.

    A class not seen so far must cost something finite: each keeps a share of 1 / (rows + classes).
    """
    if len(np.unique(y)) < 2:
        p = np.zeros((len(new), classes))
        p[:, y[0]] = 1.0
        found = [p] * len(c_values)
    else:
        standardise = Standardiser(x)
        fits = fit_multinomial(standardise(x), y, classes, c_values)
        found = [fit.predict(standardise(new)) for fit in fits]
    shares = [(p * len(x) + 1.0) / (len(x) + classes) for p in found]
    return np.array([-np.log2(p[np.arange(len(truth)), truth]).sum() for p in shares])


def _label_bits(
    x: np.ndarray,
    y: np.ndarray,
    new: np.ndarray,
    truth: np.ndarray,
    labels: int,
    c_values: Sequence[float],
) -> np.ndarray:
    """The same for several labels, each yes or no."""
    standardise = Standardiser(x)
    bits = []
    for fit in fit_one_versus_rest(standardise(x), y, labels, c_values):
        p = (fit.predict(standardise(new)).astype(np.float64) * len(x) + 1.0) / (len(x) + 2)
        bits.append(-np.log2(np.where(truth > 0.5, p, 1.0 - p)).sum())
    return np.array(bits)


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
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    layer_ids: Mapping[str, int],
) -> dict[int, float]:
    """||after - before|| / ||before|| over all weights of a layer.

    Args:
        before, after: name -> tensor; names or shapes that only one has are left out.
        layer_ids: name -> layer, 0 = embeddings.

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
