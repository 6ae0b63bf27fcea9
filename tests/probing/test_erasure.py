"""Erasure of concepts: against official LEACE, what it leaves to probes, and what it finds."""

import numpy as np
import pandas as pd
import pytest

from bertchain.data.concepts import Concept
from bertchain.data.labels import LabelSpec
from bertchain.metrics import SCORES
from bertchain.probing.baselines import majority_baseline
from bertchain.probing.erasure import (
    AFTER,
    Eraser,
    erase,
    erasure_sections,
    erasure_table,
    erasure_warnings,
    measure_erasure,
)
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import ProbeLabels, fit_linear_probe
from bertchain.probing.scoreboard import Scoreboard, ScoreKey


def clouds(n: int, d: int, shares: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points [n, d] about a centre for each class, and their classes [n]."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(shares), size=n, p=shares)
    return rng.normal(size=(n, d)) + rng.normal(size=(len(shares), d))[y], y


def test_official_leace():
    """Figures of concept-erasure 0.2.4, without shrinkage and with svd_tol 1e-9."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 40)
    x = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + rng.normal(size=(3, 5))[y]
    eraser = Eraser(x, np.eye(3)[y])
    expected = [
        [2.50468, 0.24959, 1.21168, -3.24493, -0.05049],
        [-0.36396, 0.57642, 1.72022, -0.02222, 1.37579],
        [-0.36841, 0.76998, 1.04895, -3.73699, 1.43956],
    ]
    np.testing.assert_allclose(eraser(x)[:3], expected, atol=2e-5)
    assert eraser.directions == 2
    turned = rng.normal(size=(5, 5))  # of features in other coordinates the same is left
    np.testing.assert_allclose(Eraser(x @ turned, np.eye(3)[y])(x @ turned), eraser(x) @ turned,
                               atol=1e-4)  # fmt: skip


@pytest.mark.parametrize("shares", [[0.5, 0.3, 0.2], [1 / 3] * 3], ids=["uneven", "even"])
@pytest.mark.parametrize("columns", ["whole", "constant", "doubled"])
def test_a_linear_probe_of_what_was_erased_says_what_the_majority_says(shares, columns):
    """On the training rows exactly: no C finds more than the frequencies."""
    x, y = clouds(300, 12, shares)
    y[:6] = [0, 1, 2] * 2
    x = {"whole": x, "constant": np.c_[x, np.ones(300)], "doubled": np.c_[x, 2 * x]}[columns]
    erased, directions = erase({"train": x, "validation": x}, np.eye(3)[y])
    assert directions == 2
    constant = majority_baseline(y, "single_label", 3, 300)
    for C in (1e-3, 1.0, 1e3):
        both = {"train": y, "validation": y}
        fit = fit_linear_probe(erased, ProbeLabels(both, 3, "single_label"), (C,))
        np.testing.assert_allclose(fit.predictions["train"], constant, atol=2e-5)
    assert np.abs(erased["train"]).max() > 1  # not all is gone


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_concepts_of_other_kinds(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    values = x @ rng.normal(size=(8, 2)) + 0.1 * rng.normal(size=(200, 2))
    y = (values > 0).astype(float) if kind == "multi_label" else values
    labels = ProbeLabels({"train": y[:150], "validation": y[150:]}, 2, kind)
    rows = {"train": x[:150], "validation": x[150:]}
    fits, directions = measure_erasure(rows, labels, labels, 1.0, 0)
    assert directions == 2
    left = fits[AFTER].predictions["train"]
    np.testing.assert_allclose(left, np.tile(y[:150].mean(0), (150, 1)), atol=2e-3)


NAMES = ("a", "b", "c", "d")


def models_of(features: dict[str, np.ndarray], rows: dict[str, slice]) -> list[ProbedModel]:
    """Models of one layer [n, hidden], without an encoder."""
    return [
        ProbedModel(
            name=name,
            path="",
            features={s: x[cut][:, None, None] for s, cut in rows.items()},
            poolings=["mean"],
            layers=[0],
            windows={},
            preprocessor=None,
            description={},
        )
        for name, x in features.items()
    ]


def table_of(features, y, concept) -> tuple[pd.DataFrame, Scoreboard]:
    """Erasure of one concept of four classes from features of models; the task has as many."""
    cuts = {"train": slice(0, 600), "validation": slice(600, 800), "test": slice(800, None)}
    spec = LabelSpec("single_label", NAMES, ("label",))
    board = Scoreboard({s: y[cut] for s, cut in cuts.items()}, spec, seed=0)
    models = models_of(features, cuts)
    for model in models:
        key = ScoreKey(model.name, 0, "mean", "linear")
        fit = fit_linear_probe(model.at(0, 0), board.probe_labels)
        board.add(key, fit.predictions, **fit.setting)
    other = Concept(spec, {s: concept[cut] for s, cut in cuts.items()})
    return erasure_table(models, board, {"other": other}), board


def test_a_task_loses_a_concept_that_it_needs_and_no_other():
    rng = np.random.default_rng(1)
    concept, other = rng.integers(0, 4, (2, 1200))
    y = np.where(rng.random(1200) < 0.8, concept, rng.integers(0, 4, 1200))
    x = rng.normal(size=(1200, 12)) + 2 * rng.normal(size=(4, 12))[concept]
    table, board = table_of({"shared": x}, y, concept)
    shared = table.iloc[0]
    assert shared["test accuracy lost"] > 0.4 and shared["the task needs it"] == "yes"
    assert erasure_warnings(table) == []
    scores, key = board.values("test"), ScoreKey("shared", 0, "mean", "linear")
    lost = scores[key] - scores[key._replace(probe="without other")]
    assert shared["test accuracy lost"] == pytest.approx(lost)
    x = np.c_[x, rng.normal(size=(1200, 4)) + 3 * np.eye(4)[other]]
    apart = table_of({"apart": x}, other, concept)[0].iloc[0]
    assert apart["test accuracy lost"] < 0.1 and apart["the task needs it"] == "no"
    for row in (shared, apart):
        assert row["concept before"] > 0.8 and row["concept found"] == "yes"
        assert row["concept after, training rows"] == row["majority, training rows"]
        assert row["concept left"] == "no" and row["directions"] == 3
        assert abs(row["lost to shuffled labels"]) < 0.1
    (section,) = erasure_sections({"erasure": table})
    assert section.figure is not None and erasure_sections({}) == []


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_no_finding(seed):
    """Labels, concept, or both that have nothing to do with the features."""
    rng = np.random.default_rng(seed)
    concept, chance = rng.integers(0, 4, 1200), rng.integers(0, 4, 1200)
    x = rng.normal(size=(1200, 12))
    knows = x + 2 * rng.normal(size=(4, 12))[concept]
    table, _ = table_of({"noise": x, "knows": knows}, chance, concept)
    assert (table["the task needs it"] == "no").all()
    said = erasure_warnings(table)
    assert len(said) == 2 and "no linear probe of noise surely finds other" in said[0]
    assert "At no layer of knows".lower() in said[1].lower()
    table, _ = table_of({"knows": knows}, concept, chance)  # the task is read, the concept is not
    assert table["the task needs it"].item() == "no"
    assert "shows nothing" in erasure_warnings(table)[0]


def test_what_too_few_rows_leave_is_told():
    """With about as many features as training rows, erasure does not reach new rows."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 1200)
    x = rng.normal(size=(1200, 580)) + 0.5 * rng.normal(size=(4, 580))[y]
    table, _ = table_of({"m": x}, y, y)
    row = table.iloc[0]
    assert row["concept after, training rows"] == row["majority, training rows"]
    assert row["concept left"] == "yes"
    assert "can still be read off new rows of m, layer 0" in erasure_warnings(table)[-1]


def test_scores_of_less_is_better_lose_upwards():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 40))
    values = x[:, :1] * 3 + 0.1 * rng.normal(size=(1200, 1))
    cuts = {"train": slice(0, 600), "validation": slice(600, 800), "test": slice(800, None)}
    spec = LabelSpec("regression", ("v",), ("v",), None, (0.0,), (1.0,))
    labels = {s: values[cut] for s, cut in cuts.items()}
    board = Scoreboard(labels, spec, seed=0)
    (model,) = models_of({"m": x}, cuts)
    key = ScoreKey("m", 0, "mean", "linear")
    fit = fit_linear_probe(model.at(0, 0), board.probe_labels)
    board.add(key, fit.predictions, **fit.setting)
    row = erasure_table([model], board, {"v": Concept(spec, labels)}).iloc[0]
    assert row["test rmse lost"] > 2 and row["the task needs it"] == "yes"
    spread = SCORES["regression"](np.full_like(labels["test"], values[:600].mean()), labels["test"])
    assert row["concept after"] == pytest.approx(spread["rmse"], rel=0.01)
