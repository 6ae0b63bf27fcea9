"""Prediction by the nearest hull, against distances by another solver."""

import numpy as np
import pytest
from scipy.optimize import nnls

from bertchain.directprobe import cluster, nearest, predict, prediction


def distance(point: np.ndarray, part: np.ndarray) -> float:
    """Distance of a point to a hull: convex weights by least squares, their sum held at 1."""
    offsets = part - point
    size = max(1.0, np.abs(offsets).max())
    held = np.vstack([offsets.T, np.full(len(part), 1e3 * size)])
    weights, _ = nnls(held, np.r_[np.zeros(part.shape[1]), 1e3 * size])
    return float(np.linalg.norm(weights @ offsets / weights.sum()))


def check(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> None:
    """No hull of another label is nearer than the nearest of the label that was predicted."""
    found = cluster(x, y)
    predicted = predict(new, x, found)
    parts = [np.asarray(x, float)[found.members(k)] for k in range(len(found.label_of))]
    scale = np.ptp(x, axis=0).max() + 1e-9
    for point, label in zip(new, predicted, strict=True):
        all_of = np.array([distance(np.asarray(point, float), part) for part in parts])
        own = all_of[found.label_of == label].min()
        assert own <= all_of.min() * (1 + 1e-6) + 1e-5 * scale


def points(kind: str, rng: np.random.Generator) -> np.ndarray:
    n, d = int(rng.integers(8, 60)), int(rng.integers(1, 9))
    x = rng.normal(size=(n, d))
    if kind == "twice the same":
        return np.repeat(x, 2, axis=0)
    if kind == "on a line":
        return x[:, :1] * np.ones(d) + 3.0
    if kind == "on a lattice":
        return np.round(2 * x)
    if kind == "in few directions":
        return x[:, :2] @ rng.normal(size=(min(d, 2), 12)) if d > 1 else x
    if kind == "far from zero":
        return 1e-2 * x + 1e3
    return x


KINDS = ("any", "twice the same", "on a line", "on a lattice", "in few directions", "far from zero")


@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_hull_whatever_the_points(kind):
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x = points(kind, rng)
        y = rng.integers(0, int(rng.integers(1, 5)), len(x))
        if seed % 2:
            y = np.where(x @ rng.normal(size=x.shape[1]) > np.median(x), y, 9)
        middle, size = x.mean(axis=0), x.std() + 1e-3
        new = [x[:3], middle + 2 * size * rng.normal(size=(6, x.shape[1])), middle[None]]
        new += [middle + 1e3 * size * rng.normal(size=(2, x.shape[1]))]
        check(x, y, np.concatenate(new))


@pytest.mark.parametrize("products", [0, 6000], ids=["each product when needed", "all products"])
def test_many_dimensions_need_no_other_solver(products, monkeypatch):
    """Bounds that a few points give decide every row, a few rounds for all of them together."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 300)
    x = rng.normal(size=(300, 60)) @ rng.normal(size=(60, 60)) + 2 * rng.normal(size=(4, 60))[y]
    new = rng.normal(size=(60, 60)) @ rng.normal(size=(60, 60))
    monkeypatch.setattr(nearest, "PRODUCTS", products)
    monkeypatch.setattr(prediction, "AT_ONCE", 50)
    rounds = []
    improve = nearest.HullPairs.improve
    monkeypatch.setattr(
        nearest.HullPairs, "improve", lambda own, which: rounds.append(improve(own, which))
    )
    monkeypatch.setattr(prediction, "hull_distance", None)  # never called
    check(x, y, new)
    assert 0 < len(rounds) < 60


def test_what_memory_held_before_is_not_read(monkeypatch):
    """Pairs of unlike width are padded; numbers left over in memory may be NaN."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(300, 20)), np.repeat([0, 1, 2], [200, 60, 40])
    new = 2 * rng.normal(size=(40, 20))
    found = cluster(x, y)
    expected, empty = predict(new, x, found), np.empty
    finite, settle = [], nearest.HullPairs._of_affine_hulls
    monkeypatch.setattr(
        nearest.HullPairs,
        "_of_affine_hulls",
        lambda *a: finite.append(np.isfinite(weights := settle(*a)).all()) or weights,
    )
    monkeypatch.setattr(
        np,
        "empty",
        lambda *a, **k: (
            np.full_like(made, np.nan) if (made := empty(*a, **k)).dtype == float else made
        ),
    )
    assert (predict(new, x, found) == expected).all()
    assert finite and all(finite)


def test_bounds_that_stay_wide_go_to_the_other_solver(monkeypatch):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(200, 5)), rng.integers(0, 3, 200)
    monkeypatch.setattr(nearest, "PATIENCE", 0)  # all pairs are stuck at once
    check(x, y, 1.5 * rng.normal(size=(40, 5)))


def test_equally_near_hulls_go_to_the_first():
    x = np.array([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]])
    for y in (["a", "a", "b", "b"], ["b", "b", "a", "a"]):
        found = cluster(x, y)
        assert (
            predict(np.array([[1.0, 0.5], [1.0, 0.3], [1.0, 7.0]]), x, found).tolist() == ["a"] * 3
        )


def test_one_cluster_one_point_and_nothing_to_predict():
    x = np.array([[1.0, 2.0]])
    found = cluster(x, ["a"])
    assert predict(np.array([[9.0, 9.0], [1.0, 2.0]]), x, found).tolist() == ["a", "a"]
    assert predict(np.zeros((0, 2)), x, found).tolist() == []
    pair = np.array([[1.0, 2.0], [1.0, 2.0]])  # two labels at one place
    assert len(predict(pair + 0.5, pair, cluster(pair, ["a", "b"]))) == 2


def test_bounds_hold_for_two_hulls_of_many_points():
    """Both sides grow: the distance is that of the nearest points of either hull."""
    rng = np.random.default_rng(5)
    one, other = rng.normal(size=(80, 6)), rng.normal(size=(70, 6)) + 4.0
    pairs = nearest.HullPairs(
        np.concatenate([one, other]),
        np.array([0, 80]),
        np.array([80, 70]),
        (np.array([0]), np.array([1])),
        (np.array([0]), np.array([80])),
    )
    while not pairs.stuck[0] and not pairs.upper[0] - pairs.lower[0] < 1e-9:
        pairs.improve(np.array([0]))
    differences = (one[:, None] - other[None]).reshape(-1, 6)
    expected = distance(np.zeros(6), differences)
    assert pairs.lower[0] == pytest.approx(expected, rel=1e-6)
    assert pairs.upper[0] == pytest.approx(expected, rel=1e-6)
