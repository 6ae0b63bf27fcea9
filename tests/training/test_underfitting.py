"""Underfitting is said where training got nowhere, and never where it converged."""

import json
import logging

import numpy as np
import pytest
import torch
from conftest import BASICS
from tiny_models import classifier

import run_finetune
from bertchain.models.modeling import PROBLEM_TYPES
from bertchain.probing.solvers import FITS, Standardiser
from bertchain.training.losses import TrainingLoss
from bertchain.training.underfitting import NO_BETTER, STEEP, measure


def a_task(kind: str, n: int = 60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 32)) + 3  # features have a mean, which says nothing
    scores = (x - 3)[:, :3] + rng.normal(size=(n, 3))
    y = {
        "single_label": scores.argmax(axis=1),
        "multi_label": (scores > 1).astype(float),
        "regression": 10 * scores,
    }[kind]
    return x, y


def measured(kind, x, y, weights=None, bias=None, **loss):
    scale = {"target_mean": y.mean(0).tolist(), "target_scale": y.std(0).tolist()}
    fields = scale if kind == "regression" else {}
    model = classifier("bert", problem_type=PROBLEM_TYPES[kind], **fields)
    if weights is not None:
        model.head.weight.data.copy_(torch.tensor(weights))
        model.head.bias.data.copy_(torch.tensor(bias))
    return measure(model, TrainingLoss(model.config, **loss), torch.tensor(x), torch.tensor(y))


def test_the_least_loss_without_features_is_that_of_the_frequencies():
    x, y = a_task("single_label")
    shares = np.bincount(y) / len(y)
    found = measured("single_label", x, y)["train_loss_without_features"]
    assert found == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-4)
    balanced = tuple((len(y) / (3 * np.bincount(y))).tolist())
    found = measured("single_label", x, y, class_weights=balanced)
    assert found["train_loss_without_features"] == pytest.approx(np.log(3), rel=1e-4)
    x, y = a_task("multi_label")
    p = y.mean(axis=0)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    found = measured("multi_label", x, y)["train_loss_without_features"]
    assert found == pytest.approx(entropy, rel=1e-4)
    found = measured("regression", *a_task("regression"))["train_loss_without_features"]
    assert found == pytest.approx(1, rel=1e-4)  # in standard deviations


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_a_head_of_zeros_is_as_steep_as_the_start_and_a_probe_is_level(kind):
    x, y = a_task(kind)
    zeros = measured(kind, x, y, np.zeros((3, 32)), np.zeros(3))
    assert zeros["train_slope_left"] > 0.9 > STEEP
    assert zeros["train_loss_evaluated"] > NO_BETTER * zeros["train_loss_without_features"]
    standardise = Standardiser(x)
    (fit,) = FITS[kind](standardise(x), y, 3, [10.0])
    weights = fit.predict.weights
    weights = (weights if kind == "single_label" else weights.T) / standardise.scale
    bias = fit.predict.bias - weights @ standardise.mean
    if kind == "regression":
        weights, bias = weights / y.std(0)[:, None], (bias - y.mean(0)) / y.std(0)
    level = measured(kind, x, y, weights, bias)
    assert level["train_slope_left"] < 0.1 < STEEP
    assert level["train_loss_evaluated"] < 0.8 * level["train_loss_without_features"]


@pytest.fixture
def tune(tiny_bert, topic_files, tmp_path, caplog):
    def run(**changes):
        given = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]} | BASICS
        with caplog.at_level(logging.WARNING, "bertchain"):
            result = run_finetune.main(**given | changes, output_dir=str(tmp_path / "out"))
        written = json.loads((tmp_path / "out" / "all_results.json").read_text())
        assert written.get("underfitting") == result.get("underfitting")
        said = [r.getMessage() for r in caplog.records if "Underfitting" in r.getMessage()]
        return result, said

    return run


def test_a_run_that_got_nowhere_says_so_in_log_results_and_page(tune):
    result, (said,) = tune(learning_rate=2e-5, num_train_epochs=1)
    message = result["underfitting"]
    assert said == f"Underfitting: {message}" and "after 9 steps" in message
    for way_out in ("--head_init probe", "--min_steps 200", "--learning_rate 0.0001 to 0.0005"):
        assert way_out in message
    assert message.split(";")[0] in (result.output_dir / "README.md").read_text()


def test_a_frozen_encoder_under_a_low_rate_says_so_too(tune):
    result, _ = tune(freeze="encoder", learning_rate=1e-4)
    assert "the encoder is frozen" in result["underfitting"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_train_epochs": 8, "label_smoothing_factor": 0.1},
        {"head_init": "probe", "freeze": "encoder", "learning_rate": 1e-5},
    ],
)
def test_a_run_that_has_converged_does_not(tune, changes):
    result, said = tune(**changes)
    assert "underfitting" not in result and not said
    assert result["train_slope_left"] < STEEP


def test_members_that_underfit_are_named(tune):
    result, said = tune(learning_rate=2e-5, num_train_epochs=1, num_folds=2)
    assert result["underfitting"].startswith("2 of 2 models; fold-0: after 5 steps")
    assert len(said) == 2


def test_a_small_table_gets_more_epochs_and_as_many_evaluations(tune):
    result, _ = tune(min_steps=40, num_train_epochs=2)  # of 9 steps each
    assert result["epoch"] == 6
    assert result.tables["history"]["step"].tolist() == [27, 54]
