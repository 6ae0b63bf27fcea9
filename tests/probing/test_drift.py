"""Measures of change against values computed by hand, and their invariances."""

import numpy as np
import pytest
import torch

from bertchain.probing import drift
from bertchain.probing.drift import anisotropy, linear_cka, mean_cosine, weight_changes

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 8))


def test_cka_does_not_see_rotation_scale_and_shift():
    rotation = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
    assert linear_cka(X, 3 * X @ rotation + 5) == pytest.approx(1)
    assert linear_cka(X, RNG.standard_normal((200, 8))) < 0.2
    assert np.isnan(linear_cka(X, np.ones((200, 3))))


def test_cka_is_the_ratio_of_kernels(monkeypatch):
    """The definition: <K, L> / (|K| |L|) of centred Gram matrices [n, n]."""
    y = np.concatenate([X[:, :3], RNG.standard_normal((200, 2))], axis=1)
    k, m = (a @ a.T for a in (X - X.mean(0), y - y.mean(0)))
    expected = (k * m).sum() / (np.linalg.norm(k) * np.linalg.norm(m))
    assert linear_cka(X, y) == pytest.approx(expected)
    monkeypatch.setattr(drift, "CHUNK", 7)
    assert linear_cka(X.astype(np.float32), y) == pytest.approx(expected, rel=1e-5)


def test_cosines_by_hand():
    x, y = (
        np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]),
        np.array([[1.0, 1.0], [0.0, 5.0], [1.0, 0.0]]),
    )
    assert mean_cosine(x, y) == pytest.approx((0.5**0.5 + 1 + 0) / 3)
    pairs = [(a, b) for i, a in enumerate(X) for j, b in enumerate(X) if i != j]
    cosines = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs]
    assert anisotropy(X) == pytest.approx(np.mean(cosines))
    assert anisotropy(np.ones((5, 3))) == pytest.approx(1)


def test_weight_changes_by_hand():
    before = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0]), "c": torch.zeros(2)}
    after = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([2.0]), "c": torch.zeros(3)}
    assert weight_changes(before, after, {"a": 1, "b": 1, "c": 2}) == {1: (10 / 26) ** 0.5}
    assert weight_changes(before, before, {"a": 0, "b": 3}) == {0: 0, 3: 0}
