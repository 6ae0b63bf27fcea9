"""Probes against scikit-learn's objective and planted data."""

import numpy as np
import pytest
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

import probes
from metrics import SCORES
from probes import (
    Standardiser,
    fit_linear_probe,
    fit_multinomial,
    fit_one_versus_rest,
    fit_ridge,
    majority_baseline,
)


def planted(n=300, d=20, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32)
    weights = rng.normal(size=(d, classes))
    return x, (x @ weights + rng.gumbel(size=(n, classes))).argmax(axis=1), weights


def test_the_standardiser_uses_training_rows_and_drops_constants():
    x = np.array([[1.0, 5.0], [3.0, 5.0]])
    standardise = Standardiser(x)
    np.testing.assert_allclose(standardise(x), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(standardise(np.array([[5.0, 9.0]])), [[3, 0]])


@pytest.mark.parametrize("classes", [2, 4])
def test_multinomial_reaches_scikit_learns_cold_objective(classes):
    x, y, _ = planted(classes=classes)
    rows = np.arange(len(y))
    for fit in fit_multinomial(x, y, classes, [1e-3, 1e-1, 10.0]):
        cold = LogisticRegression(C=fit.strength, max_iter=5000, tol=1e-7).fit(x, y)
        best = -np.log(cold.predict_proba(x)[rows, y]).sum()
        best += 0.5 / fit.strength * (cold.coef_**2).sum()
        found = -np.log(fit.predict(x)[rows, y]).sum()
        found += 0.5 / fit.strength * (fit.predict.weights**2).sum()
        assert fit.converged and found == pytest.approx(best, rel=1e-3)


def test_a_class_that_training_lacks_gets_no_probability():
    x, y, _ = planted(classes=3)
    y = np.where(y == 1, 2, y)
    (fit,) = fit_multinomial(x, y, 4, [1.0])
    assert fit.predict(x).shape == (300, 4)
    np.testing.assert_allclose(fit.predict(x)[:, [1, 3]], 0)
    np.testing.assert_allclose(fit.predict(x).sum(axis=1), 1)


def test_one_versus_rest_reaches_scikit_learns_objective_for_every_label():
    x, _, weights = planted()
    rng = np.random.default_rng(1)
    y = (x @ weights + rng.logistic(size=(300, 4)) > 0.5).astype(float)

    def objective(w, b, strength, label):
        z = (x @ w + b).astype(float)
        return -(log_expit(z) - (1 - y[:, label]) * z).sum() + 0.5 / strength * (w**2).sum()

    for fit in fit_one_versus_rest(x, y, 4, [1e-3, 1e-1, 10.0]):
        assert fit.converged
        for label in range(4):
            exact = LogisticRegression(C=fit.strength, max_iter=5000, tol=1e-7).fit(x, y[:, label])
            best = objective(exact.coef_[0], exact.intercept_[0], fit.strength, label)
            found = objective(
                fit.predict.weights[:, label], fit.predict.bias[label], fit.strength, label
            )
            assert found <= best * (1 + 1e-3)


def test_ridge_is_the_closed_form():
    x, _, weights = planted()
    y = x @ weights[:, :2] + 3.0
    for fit in fit_ridge(x, y, 2, [1e-2, 1.0]):
        centred = x - x.mean(axis=0)
        gram = centred.T @ centred + np.eye(20) / fit.strength
        w = np.linalg.solve(gram.astype(float), centred.T @ (y - y.mean(axis=0)))
        np.testing.assert_allclose(fit.predict(x), centred @ w + y.mean(axis=0), atol=1e-4)


def test_strength_is_chosen_on_validation_and_ties_go_to_the_stronger():
    x, y, _ = planted(n=600)
    features = {"train": x[:200], "validation": x[200:400], "test": x[400:]}

    seen = []

    def accuracy(p):
        seen.append(SCORES["single_label"](p, y[200:400])["accuracy"])
        return seen[-1]

    result = fit_linear_probe(features, y[:200], 4, "single_label", accuracy)
    assert len(seen) == len(probes.STRENGTHS)
    assert result.strength == sorted(probes.STRENGTHS)[int(np.argmax(seen))]
    assert accuracy(result.probabilities["validation"]) == max(seen) > 0.7
    assert set(result.probabilities) == {"train", "validation", "test"}
    tied = fit_linear_probe(features, y[:200], 4, "single_label", lambda p: 0.0)
    assert tied.strength == min(probes.STRENGTHS)


def test_an_unconverged_probe_says_so(monkeypatch):
    x, y, _ = planted()
    monkeypatch.setattr(probes, "MAX_ITERATIONS", 2)
    (fit,) = fit_multinomial(x, y, 4, [10.0])
    assert not fit.converged
    (fit,) = fit_one_versus_rest(x, np.eye(4)[y], 4, [10.0])
    assert not fit.converged


def test_features_with_no_information_score_like_the_majority():
    rng = np.random.default_rng(0)
    features = {s: rng.normal(size=(400, 5)) for s in ("train", "validation")}
    y = rng.choice(3, size=400, p=[0.6, 0.3, 0.1])
    score = lambda p: -SCORES["single_label"](p, y)["log_loss"]  # noqa: E731
    result = fit_linear_probe(features, y, 3, "single_label", score)
    baseline = majority_baseline(y, "single_label", 3, 400)
    assert score(result.probabilities["validation"]) == pytest.approx(score(baseline), abs=0.05)


def test_majority_baselines():
    np.testing.assert_allclose(
        majority_baseline(np.array([0, 0, 2]), "single_label", 4, 2), [[2 / 3, 0, 1 / 3, 0]] * 2
    )
    labels = np.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(majority_baseline(labels, "multi_label", 2, 1), [[1.0, 0.5]])
    np.testing.assert_allclose(majority_baseline(labels, "regression", 2, 1), [[1.0, 0.5]])
