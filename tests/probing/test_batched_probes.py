"""All linear probes in one solve, against scikit-learn one at a time."""

import numpy as np
import pytest
import torch
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression
from test_probes import planted

from bertchain.probing import batched_probes, solvers
from bertchain.probing.batched_probes import fit_many
from bertchain.probing.probes import ProbeLabels, fit_linear_probe
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


def correlated(classes: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns that share a few factors, as layers of an encoder do; labels from weak directions."""
    rng = np.random.default_rng(classes)
    loadings = rng.normal(size=(6, 40))
    x = 3 * rng.normal(size=(2500, 6)) @ loadings + 0.3 * rng.normal(size=(2500, 40))
    weights = rng.normal(size=(40, classes))
    y = (x @ weights * 0.3 + rng.gumbel(size=(2500, classes))).argmax(axis=1)
    cuts = {"train": slice(0, 400), "validation": slice(400, 1400), "test": slice(1400, 2500)}
    x = x.astype(np.float32)
    return {s: x[c] for s, c in cuts.items()}, {s: y[c] for s, c in cuts.items()}


@pytest.mark.parametrize("classes", [2, 4, 6, 8])
def test_both_solvers_reach_one_optimum_on_correlated_features(classes):
    """At weak regularisation as well: objectives, chosen C and scores are those of the optimum."""
    features, y = correlated(classes)
    standardise = Standardiser(features["train"])
    x = {split: standardise(rows).astype(np.float64) for split, rows in features.items()}
    rows, exact, accuracy = np.arange(400), {}, {}
    for C in C_VALUES:
        model = LogisticRegression(C=C, max_iter=50_000, tol=1e-9).fit(x["train"], y["train"])
        p = model.predict_log_proba(x["train"])[rows, y["train"]]
        exact[C] = -p.sum() + 0.5 / C * (model.coef_**2).sum()
        accuracy[C] = {s: model.score(x[s], y[s]) for s in ("validation", "test")}
    best = max(C_VALUES, key=lambda C: accuracy[C]["validation"])
    labels = ProbeLabels(y, classes, "single_label")
    paths = {
        "cores": FITS["single_label"](x["train"], y["train"], classes, C_VALUES),
        "batched": fit_many([features["train"]], y["train"], classes, "single_label")[0],
    }
    for path in paths.values():
        for fit in path:
            assert fit.converged
            assert class_loss(fit, x["train"], y["train"]) == pytest.approx(exact[fit.C], rel=1e-6)
        chosen = fit_linear_probe(features, labels, path=path)
        assert chosen.setting["C"] == best
        for split in ("validation", "test"):
            score = (chosen.predictions[split].argmax(axis=1) == y[split]).mean()
            assert score == pytest.approx(accuracy[best][split], abs=0.002)


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_converged_means_a_small_gradient_in_both(kind, monkeypatch):
    """Of few steps neither solver says that it converged, whatever stopped it."""
    features, y = correlated(4)
    own = y["train"] if kind == "single_label" else np.eye(4)[y["train"]]
    x = Standardiser(features["train"])(features["train"])
    for module in (solvers, batched_probes):
        monkeypatch.setattr(module, "MAX_ITERATIONS", 12)
    (one,) = FITS[kind](x, own, 4, [10.0])
    ((other,),) = fit_many([features["train"]], own, 4, kind, (10.0,))
    assert not one.converged and not other.converged


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
