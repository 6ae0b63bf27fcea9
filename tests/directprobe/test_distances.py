"""Distances by products of matrices: against distances point by point, and by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist, squareform

from bertchain.directprobe import distances
from bertchain.directprobe.distances import (
    best_device,
    largest_and_mean,
    nearest_distances,
    squared_distances,
)


@pytest.fixture(params=[7, 1024], ids=["chunks", "one chunk"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(distances, "CHUNK", request.param)


@pytest.fixture
def points() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(40, 5)) + 100.0


def test_distances_are_those_point_by_point(chunk, points):
    found = squared_distances(points)
    np.testing.assert_allclose(found, squareform(pdist(points)) ** 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)
    apart = pdist(points)
    assert largest_and_mean(points) == pytest.approx((apart.max(), apart.mean()), rel=1e-9)
    new = np.random.default_rng(1).normal(size=(20, 5)) + 100.0
    found = nearest_distances(new, points)
    np.testing.assert_allclose(found, cdist(new, points).min(axis=1), rtol=1e-9)


def test_whole_numbers_stay_whole_so_that_ties_are_ties(chunk):
    grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2) + 1e6
    np.testing.assert_array_equal(
        squared_distances(grid), ((grid[:, None] - grid[None]) ** 2).sum(axis=2)
    )


def test_equal_points_have_no_distance(chunk):
    rng = np.random.default_rng(2)
    x = np.repeat(rng.normal(size=(6, 300)) * 1e3, 3, axis=0)
    found = squared_distances(x)
    same = np.repeat(np.arange(6), 3)
    np.testing.assert_array_equal(found == 0, same[:, None] == same[None])
    np.testing.assert_array_equal(nearest_distances(x[::3], x), np.zeros(6))


def test_one_point_and_float32():
    x = np.array([[3.0, 4.0]], dtype=np.float32)
    assert squared_distances(x).tolist() == [[0.0]]
    assert largest_and_mean(x) == (0.0, 0.0)
    assert nearest_distances(np.zeros((1, 2)), x).tolist() == [5.0]


def test_a_gpu_is_asked_where_there_is_one_and_much_to_do(monkeypatch):
    assert best_device(10**9) == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device(999_999) == "cpu" and best_device(1_000_000) == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_what_the_cpu_finds(chunk, points):
    one, other = (squared_distances(points, device) for device in ("cuda", "cpu"))
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    one, other = (nearest_distances(points[:9] + 1, points, d) for d in ("cuda", "cpu"))
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert largest_and_mean(points, "cuda") == pytest.approx(largest_and_mean(points, "cpu"))
