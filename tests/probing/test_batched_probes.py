"""All linear probes in one solve, against scikit-learn one at a time."""

import numpy as np
import pytest
import torch
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression
from test_probes import planted

from bertchain.probing import batched_probes
from bertchain.probing.batched_probes import fit_many
from bertchain.probing.solvers import C_VALUES, FITS, Standardiser

SEEDS = (0, 1, 2)  # of feature matrices; the labels are those of the first


def matrices(classes=4):
    """Of different scales, none standardised."""
    return [planted(classes=classes, seed=seed)[0] * (seed + 1) + seed for seed in SEEDS]


def targets(kind, classes=4):
    x, y, weights = planted(classes=classes)
    several = (x @ weights > 0.5).astype(float)
    return {"single_label": y, "multi_label": several, "regression": x @ weights}[kind]


def class_loss(fit, x, y):
    p = fit.predict(x)[np.arange(len(y)), y]
    return -np.log(p).sum() + 0.5 / fit.C * (fit.predict.weights**2).sum()


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_reach_scikit_learns_objective(classes):
    y = targets("single_label", classes)
    paths = fit_many(matrices(classes), y, classes, "single_label")
    assert len(paths) == 3
    for x, path in zip(matrices(classes), paths, strict=True):
        x = Standardiser(x)(x)
        assert [fit.C for fit in path] == sorted(C_VALUES)
        for fit in path:
            cold = LogisticRegression(C=fit.C, max_iter=5000, tol=1e-8).fit(x, y)
            best = -np.log(cold.predict_proba(x)[np.arange(len(y)), y]).sum()
            best += 0.5 / fit.C * (cold.coef_**2).sum()
            found = class_loss(fit, x, y)
            if classes == 2:  # weights of the predictor: zeros, and those of the log odds
                assert fit.predict.weights[0].tolist() == [0.0] * x.shape[1]
            assert fit.converged and found == pytest.approx(best, rel=1e-3)


def test_several_labels_reach_scikit_learns_objective():
    y = targets("multi_label")
    paths = fit_many(matrices(), y, 4, "multi_label", (1e-3, 1.0))
    for x, path in zip(matrices(), paths, strict=True):
        x = Standardiser(x)(x)
        for fit in path:
            for label in range(4):
                exact = LogisticRegression(C=fit.C, max_iter=5000, tol=1e-8)
                exact.fit(x, y[:, label])
                best, found = (
                    -(log_expit(z) - (1 - y[:, label]) * z).sum() + 0.5 / fit.C * w @ w
                    for z, w in (
                        (x @ exact.coef_[0] + exact.intercept_[0], exact.coef_[0]),
                        (
                            x @ fit.predict.weights[:, label] + fit.predict.bias[label],
                            fit.predict.weights[:, label],
                        ),
                    )
                )
                assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_predictions_are_those_of_the_fits_one_by_one(kind):
    y = targets(kind)
    for x, path in zip(matrices(), fit_many(matrices(), y, 4, kind), strict=True):
        x = Standardiser(x)(x)
        for fit, alone in zip(path, FITS[kind](x, y, 4, sorted(C_VALUES)), strict=True):
            assert fit.converged == alone.converged == True  # noqa: E712
            np.testing.assert_allclose(fit.predict(x), alone.predict(x), atol=5e-3)


def test_a_class_that_training_lacks_gets_no_probability():
    y = np.where(targets("single_label") == 1, 2, targets("single_label"))
    for path in fit_many(matrices(), y, 5, "single_label"):
        p = path[-1].predict(np.ones((7, 20), dtype=np.float32))
        assert p.shape == (7, 5) and (p[:, [1, 4]] == 0).all()
        np.testing.assert_allclose(p.sum(axis=1), 1)
    with pytest.raises(ValueError, match="one class alone, 3"):
        fit_many(matrices(), np.full(300, 3), 5, "single_label")


def test_little_memory_means_fewer_at_once_and_the_same_numbers(monkeypatch):
    y, sizes = targets("single_label"), []
    together = fit_many(matrices(), y, 4, "single_label")
    plain = batched_probes.SOLVERS["single_label"]

    def watched(x, *others):
        sizes.append(len(x))
        return plain(x, *others)

    monkeypatch.setitem(batched_probes.SOLVERS, "single_label", watched)
    monkeypatch.setattr(batched_probes, "MEMORY", 1)
    for path, own in zip(fit_many(matrices(), y, 4, "single_label"), together, strict=True):
        for a, b in zip(path, own, strict=True):
            np.testing.assert_allclose(a.predict.weights, b.predict.weights, atol=2e-3)
    assert sizes == [1, 1, 1]


def test_an_unconverged_probe_says_so(monkeypatch):
    y = targets("single_label")
    monkeypatch.setattr(batched_probes, "MAX_ITERATIONS", 5)
    for path in fit_many(matrices(), y, 4, "single_label", (10.0,)):
        assert not path[0].converged


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_finds_what_the_cpu_finds():
    y = targets("single_label")
    found, expected = (
        fit_many(matrices(), y, 4, "single_label", device=device) for device in ("cuda", "cpu")
    )
    for x, path, own in zip(matrices(), found, expected, strict=True):
        x = Standardiser(x)(x)
        for a, b in zip(path, own, strict=True):
            assert class_loss(a, x, y) == pytest.approx(class_loss(b, x, y), rel=1e-3)
