"""Thresholds against brute force, and their nested estimate against planted noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score

from bertchain.competition.thresholds import (
    best_f1_cut,
    check_kind,
    fit,
    fit_and_judge,
    plain,
    score,
)
from bertchain.data.labels import Thresholds
from bertchain.errors import InputError
from bertchain.scoring.metric_files import FileMetric


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.9]), st.booleans()), min_size=1))
def test_the_f1_cut_is_the_best_there_is(rows):
    p, truth = np.array([r[0] for r in rows]), np.array([int(r[1]) for r in rows])
    cut = best_f1_cut(p, truth)
    if not truth.any():
        assert cut == 0.5
        return
    reached = f1_score(truth, p >= cut)
    for other in (0.05, 0.15, 0.25, 0.4, 0.7, 0.95):
        assert reached >= f1_score(truth, p >= other, zero_division=0) - 1e-12


def test_a_cut_computed_by_hand():
    # taking 3 of (1, 0, 1, 0) by falling probability: 2 hits of 2, 3 taken: F1 = 4/5; 1: 2/3
    assert best_f1_cut(np.array([0.9, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0])) == pytest.approx(0.3)


def test_global_and_per_label():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 3)) < [0.5, 0.1, 0.02]).astype(int)
    p = np.clip(0.3 * labels + 0.3 * rng.random((400, 3)), 0, 1)  # all far below 0.5 when right
    for kind in ("global", "per_label"):
        fitted, gains = fit_and_judge(kind, p, labels, np.arange(400) % 5)
        name = "oof_f1_micro" if kind == "global" else "oof_f1_macro"
        assert gains[f"{name}_nested"] > gains[f"{name}_plain"] + 0.2
        assert gains[f"{name}_fitted"] == score(kind, fitted.decide(p), labels)
        assert gains[f"{name}_plain"] == score(kind, (p >= 0.5).astype(int), labels)
        assert Thresholds.from_dict(fitted.to_dict()) == fitted
    assert len(set(fit("global", p, labels).cuts)) == 1


def test_the_nested_estimate_is_not_inflated():
    """Labels without any relation to the predictions: what fitting seems to gain is noise."""
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 12)) < 0.15).astype(int)
    p = rng.random((60, 12))
    _, gains = fit_and_judge("per_label", p, labels, np.arange(60) % 5)
    assert gains["oof_f1_macro_fitted"] > gains["oof_f1_macro_nested"] + 0.05


def test_ordinal_cuts_beat_rounding_and_agree_with_sklearn():
    rng = np.random.default_rng(2)
    grades = rng.integers(1, 6, 500).astype(float)[:, None]
    values = 2.5 + 0.2 * grades + 0.1 * rng.standard_normal((500, 1))  # shrunk to the middle
    fitted, gains = fit_and_judge("ordinal", values, grades, np.arange(500) % 5)
    assert gains["oof_qwk_nested"] > gains["oof_qwk_plain"] + 0.2
    expected = cohen_kappa_score(
        grades[:, 0].astype(int), fitted.decide(values)[:, 0].astype(int), weights="quadratic"
    )
    assert gains["oof_qwk_fitted"] == pytest.approx(expected)
    assert list(fitted.cuts) == sorted(fitted.cuts) and fitted.grades == (1, 2, 3, 4, 5)
    assert plain("ordinal", grades).decide(np.array([[0.2], [1.5], [1.49], [9.0]])).tolist() == [
        [1], [2], [1], [5],
    ]  # fmt: skip


def test_thresholds_that_mean_nothing():
    with pytest.raises(InputError, match="per_label goes with multi_label"):
        check_kind("per_label", "single_label")
    with pytest.raises(InputError, match="whole numbers"):
        check_kind("ordinal", "regression", np.array([[0.5]]))
    check_kind("ordinal", "regression", np.array([[3.0]]))


def fbeta(labels, decisions):
    """Macro F2 of decisions, by its definition."""
    hits, wrong = (labels * decisions).sum(axis=0), (decisions * (1 - labels)).sum(axis=0)
    missed = (labels * (1 - decisions)).sum(axis=0)
    return float(np.mean(5 * hits / (5 * hits + 4 * missed + wrong)))


@pytest.mark.parametrize("kind", ["global", "per_label"])
def test_thresholds_maximise_a_score_of_ones_own(kind):
    rng = np.random.default_rng(1)
    labels = (rng.random((60, 3)) < 0.4).astype(float)
    p = np.clip(0.25 * labels + 0.5 * rng.random((60, 3)), 0, 1)
    own = FileMetric("my.py:fbeta", fbeta, True)
    found, usual = fit(kind, p, labels, own), fit(kind, p, labels)
    reached = own(labels, found.decide(p))
    assert reached >= own(labels, usual.decide(p))
    if kind == "global":
        each = [own(labels, (p >= cut).astype(int)) for cut in np.linspace(0, 1, 400)]
        assert len(set(found.cuts)) == 1
    else:
        each = []
        for c in range(3):
            column = [fbeta(labels[:, [c]], p[:, [c]] >= cut) for cut in np.linspace(0, 1, 400)]
            each.append(max(column))
        each = [np.mean(each)]
    assert reached >= max(each) - 0.02  # of 50 places for each cut
    fewer = FileMetric("my.py:loss", lambda labels, decided: -fbeta(labels, decided), False)
    assert fit(kind, p, labels, fewer).cuts == found.cuts


def test_cuts_between_grades_for_a_score_of_ones_own():
    rng = np.random.default_rng(3)
    grades = rng.integers(0, 4, (80, 1)).astype(float)
    values = grades * 0.5 + 0.4 + rng.normal(0, 0.05, (80, 1))
    own = FileMetric("my.py:hits", lambda labels, decided: np.mean(labels == decided), True)
    found, scores = fit_and_judge("ordinal", values, grades, np.arange(80) % 4, own)
    assert scores["oof_hits_fitted"] == 1.0 and scores["oof_hits_nested"] > 0.95
    assert scores["oof_hits_plain"] < 0.7 and [*found.cuts] == sorted(found.cuts)
