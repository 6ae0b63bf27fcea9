"""Intervals of all scores at once: the scores of all rows, and the spread of a plain bootstrap."""

import numpy as np
import pytest

from bertchain.data.labels import LabelSpec
from bertchain.metrics import SCORES, scores_of_targets
from bertchain.probing.scoreboard import half_width
from bertchain.reporting import intervals
from bertchain.reporting.scored import Scored

RNG = np.random.default_rng(0)
ROWS = 300


def made_up(kind):
    """Rows of a problem type: spec, probabilities or values, truth."""
    names = ("a", "b", "c", "d")
    if kind == "single_label":
        truth = RNG.choice(4, ROWS, p=[0.5, 0.3, 0.15, 0.05])
        p = RNG.dirichlet(np.ones(4), ROWS) + 0.6 * np.eye(4)[truth] * RNG.random((ROWS, 1))
        return LabelSpec(kind, names, ("label",)), p / p.sum(axis=1, keepdims=True), truth
    if kind == "multi_label":
        truth = (RNG.random((ROWS, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(float)
        return LabelSpec(kind, names, names), (RNG.random((ROWS, 4)) + truth / 2) / 1.5, truth
    truth = RNG.normal(size=(ROWS, 2)) * [1, 30] + [5, 1000]
    return (
        LabelSpec(kind, ("x", "y"), ("x", "y")),
        truth + RNG.normal(size=(ROWS, 2)) * [1, 9],
        truth,
    )


def rows_of(spec, p, truth):
    return Scored("oof", spec, [str(i) for i in range(len(truth))], p, truth)


def scores_of(spec, p, truth):
    more = scores_of_targets(p, truth, spec.names) if spec.problem_type == "regression" else {}
    return SCORES[spec.problem_type](p, truth) | more


@pytest.mark.parametrize("kind", intervals.PARTS)
def test_sums_of_all_rows_give_the_scores_themselves(kind):
    spec, p, truth = made_up(kind)
    parts, from_sums = intervals.PARTS[kind](rows_of(spec, p, truth))
    once = {name: np.asarray(part.sum(axis=0)).reshape(1, -1) for name, part in parts.items()}
    once = {name: s[:, 0] if parts[name].ndim == 1 else s for name, s in once.items()}
    found = from_sums(once | {"rows": np.array([float(ROWS)])})
    expected = scores_of(spec, p, truth)
    assert set(expected) - set(found) <= {"spearman"}
    for name, value in found.items():
        assert value[0] == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("kind", intervals.PARTS)
def test_half_widths_are_those_of_rows_drawn_one_by_one(kind):
    spec, p, truth = made_up(kind)
    found = intervals.half_widths(rows_of(spec, p, truth), seed=1)
    drawn = [RNG.integers(ROWS, size=ROWS) for _ in range(400)]
    plain = [scores_of(spec, p[rows], truth[rows]) for rows in drawn]
    for name, width in found.items():
        expected = half_width(np.array([scores[name] for scores in plain]))
        assert width == pytest.approx(expected, rel=0.2), name


def test_more_rows_than_groups_are_dealt_out(monkeypatch):
    spec, p, truth = made_up("single_label")
    plain = intervals.half_widths(rows_of(spec, p, truth), seed=1)
    monkeypatch.setattr(intervals, "GROUPS", 120)
    monkeypatch.setattr(intervals, "MOST_RANKED", 100)
    dealt = intervals.half_widths(rows_of(spec, p, truth), seed=1)
    assert set(plain) - set(dealt) == {"roc_auc"}  # too many to sort
    for name, width in dealt.items():
        assert width == pytest.approx(plain[name], rel=0.3), name


def test_one_row_and_one_class_have_no_width():
    spec = LabelSpec("single_label", ("a", "b"), ("label",))
    one = rows_of(spec, np.array([[0.9, 0.1]]), np.array([0]))
    found = intervals.half_widths(one, seed=0)
    assert found["accuracy"] == 0 and np.isnan(found["roc_auc"])
