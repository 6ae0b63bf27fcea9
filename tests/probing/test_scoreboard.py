"""Intervals and differences against known distributions; row scores against scikit-learn."""

import numpy as np
import pytest

from bertchain.data.labels import LabelSpec
from bertchain.metrics import SCORES
from bertchain.probing import scoreboard
from bertchain.probing.comparisons import gains
from bertchain.probing.drift import drift_table
from bertchain.probing.scoreboard import (
    Scoreboard,
    ScoreKey,
    bootstrap,
    half_width,
    row_scores,
)

RNG = np.random.default_rng(0)


def test_row_scores_average_to_the_main_metric():
    p = RNG.dirichlet(np.ones(4), 50)
    y = RNG.integers(0, 4, 50)
    expected = SCORES["single_label"](p, y)["accuracy"]
    assert row_scores("single_label", p, y).mean() == pytest.approx(expected)
    multi = (RNG.random((50, 4)) < 0.4).astype(float)
    multi[:2] = [[0] * 4, [1] * 4]
    p = np.round(RNG.random((50, 4)), 1)  # with ties
    expected = SCORES["multi_label"](p, multi)["lrap"]
    assert row_scores("multi_label", p, multi).mean() == pytest.approx(expected)
    values, targets = RNG.normal(size=(50, 2)), RNG.normal(size=(50, 2))
    targets[:, 1] *= 100
    expected = SCORES["regression"](values, targets)["rmse_standardised"]
    assert row_scores("regression", values, targets).mean() ** 0.5 == pytest.approx(expected)
    values, targets = values[:, :1], targets[:, :1]
    expected = SCORES["regression"](values, targets)["rmse"]
    assert row_scores("regression", values, targets).mean() ** 0.5 == pytest.approx(expected)


@pytest.mark.parametrize("groups", [10_000, 300, 399])
def test_the_interval_of_a_mean_is_that_of_the_normal_law(monkeypatch, groups):
    """Of rows, or of groups of one or two of them."""
    monkeypatch.setattr(scoreboard, "GROUPS", groups)
    rows = (RNG.random(400) < 0.3).astype(float)
    expected = 1.96 * rows.std() / 20
    half = half_width(bootstrap(rows, lambda r: r.mean(axis=1), 1))
    assert half == pytest.approx(expected, rel=0.15)
    first = bootstrap(rows, lambda r: r.mean(axis=1), 1)
    assert (first == bootstrap(rows, lambda r: r.mean(axis=1), 1)).all() and len(first) == 1000


def test_differences_are_paired_by_row():
    """One model is right where the other is, and on 8 of 200 rows more: its gain is certain."""
    labels = {"train": np.zeros(4, dtype=int), "test": RNG.integers(0, 2, 200)}
    board = Scoreboard(labels, LabelSpec("single_label", ("a", "b"), ("label",)), seed=0)
    assert board.split == "test" and board.metric == "accuracy"
    right = RNG.random(200) < 0.7
    better = right.copy()
    better[np.flatnonzero(~right)[:8]] = True
    for name, hits in (("one", right), ("two", better)):
        chosen = np.where(hits, labels["test"], 1 - labels["test"])
        board.add(ScoreKey(name, 1, "cls", "linear"), {"test": np.eye(2)[chosen]}, C=0.1)
    (row,) = gains(board, ["one", "two"]).to_dict("records")
    gain = row["test accuracy against one"]
    assert gain == pytest.approx(0.04) and 0 < row["± 95 %"] < 0.035
    assert board.interval(ScoreKey("one", 1, "cls", "linear")) > 0.05  # unpaired it would drown
    assert np.isnan(board.interval(ScoreKey("three", 1, "cls", "linear")))
    table = board.table()
    assert table[table["metric"] == "C"]["value"].tolist() == [0.1, 0.1]


def test_repeats_are_averaged_and_their_spread_is_kept():
    labels = {"test": np.array([0, 1, 0, 1])}
    board = Scoreboard(labels, LabelSpec("single_label", ("a", "b"), ("label",)), seed=0)
    runs = [{"test": np.eye(2)[[0, 1, 0, 1]]}, {"test": np.eye(2)[[0, 1, 1, 0]]}]
    board.add(ScoreKey("m", 0, "cls", "mlp"), runs[0], runs)
    table = board.table().set_index("metric")["value"]
    assert table["accuracy"] == 0.75 and table["accuracy_sd"] == pytest.approx(0.5**0.5 / 2)
    assert board.each[ScoreKey("m", 0, "cls", "mlp")].tolist() == [1, 1, 0.5, 0.5]


def test_less_is_better_turns_the_sign():
    labels = {"test": np.array([[0.0], [2.0]])}
    spec = LabelSpec("regression", ("y",), ("y",), None, (0.0,), (1.0,))
    board = Scoreboard(labels, spec, seed=0)
    for name, error in (("one", 2.0), ("two", 1.0)):
        board.add(ScoreKey(name, 0, "cls", "linear"), {"test": labels["test"] + error})
    (row,) = gains(board, ["one", "two"]).to_dict("records")
    assert row["test rmse against one"] == pytest.approx(1.0)


def test_a_model_does_not_drift_from_itself():
    x = RNG.normal(size=(30, 3, 1, 4)).astype(np.float32)
    y = x.copy()
    y[:, 2] = RNG.normal(size=(30, 1, 4))
    table = drift_table({"a": x, "b": y}, 0, {"b": {0: 0.0, 1: 0.0, 2: 0.5}})
    own = table[table["model"] == "b"]
    assert own["CKA with the first"].tolist()[:2] == pytest.approx([1, 1])
    assert own["CKA with the first"].tolist()[2] < 0.5
    assert own["cosine before and after"].tolist()[:2] == pytest.approx([1, 1])
    assert own["weights changed by"].tolist() == [0.0, 0.0, 0.5]
    assert len(table) == 6 and scoreboard.SAMPLES == 1000
