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


def relative_gradient(fit, x, truth):
    """Largest entry of the gradient of a fit, of that at zero weights; truth: [n, outputs].

    Of several labels, each a problem for itself: of the worst.
    """
    weights, errors = fit.predict.weights, fit.predict(x) - truth
    first = (0.5 if isinstance(fit.predict, solvers.SigmoidPredictor) else truth.mean()) - truth
    if isinstance(fit.predict, solvers.SoftmaxPredictor):
        weights = weights.T
    if truth.shape[1] == 2 and not weights[:, 0].any():  # log odds
        weights, errors, first = weights[:, 1:], errors[:, 1:], first[:, 1:]
    penalty = np.vstack([weights / (fit.C * len(x)), np.zeros((1, weights.shape[1]))])
    x = np.c_[x.astype(np.float64), np.ones(len(x))]
    left, at_zero = np.abs(x.T @ errors / len(x) + penalty), np.abs(x.T @ first / len(x))
    if isinstance(fit.predict, solvers.SigmoidPredictor):
        return (left.max(axis=0) / at_zero.max(axis=0)).max()
    return left.max() / at_zero.max()


@pytest.mark.parametrize("kind", ["two", "single_label", "multi_label"])
def test_converged_means_the_same_small_gradient_in_both(kind):
    """At every C, weak ones as well, on features whose scales differ by much."""
    classes = 2 if kind == "two" else 6
    features, y = correlated(classes)
    one_hot = np.eye(classes)[y["train"]]
    own, of = (one_hot, kind) if kind == "multi_label" else (y["train"], "single_label")
    x = Standardiser(features["train"])(features["train"])
    paths = [FITS[of](x, own, classes, C_VALUES)]
    paths += fit_many([features["train"]], own, classes, of)
    for path in paths:
        for fit in path:
            assert fit.converged and relative_gradient(fit, x, one_hot) <= 1.01e-5


@pytest.mark.parametrize("classes", [2, 6])
def test_both_solvers_score_as_the_exact_solution(classes):
    features, y = correlated(classes)
    standardise = Standardiser(features["train"])
    x = {split: standardise(rows).astype(np.float64) for split, rows in features.items()}
    accuracy = {}
    for C in C_VALUES:
        model = LogisticRegression(C=C, max_iter=50_000, tol=1e-9).fit(x["train"], y["train"])
        accuracy[C] = {s: model.score(x[s], y[s]) for s in ("validation", "test")}
    best = max(C_VALUES, key=lambda C: accuracy[C]["validation"])
    labels = ProbeLabels(y, classes, "single_label")
    for path in (
        FITS["single_label"](x["train"], y["train"], classes, C_VALUES),
        fit_many([features["train"]], y["train"], classes, "single_label")[0],
    ):
        for fit in path:
            score = (fit.predict(x["test"]).argmax(axis=1) == y["test"]).mean()
            assert score == pytest.approx(accuracy[fit.C]["test"], abs=0.002)
        assert fit_linear_probe(features, labels, path=path).setting["C"] == best


def test_a_solver_that_gives_up_early_has_not_converged(monkeypatch):
    """Fewer iterations than the maximum prove nothing: the gradient is what counts."""

    class GivesUp(LogisticRegression):
        def fit(self, x, y):
            self.tol = 0.1
            return super().fit(x, y)

    monkeypatch.setattr(solvers, "LogisticRegression", GivesUp)
    features, y = correlated(4)
    x = Standardiser(features["train"])(features["train"])
    assert not any(f.converged for f in FITS["single_label"](x, y["train"], 4, [1.0, 10.0]))


def test_a_label_that_no_training_row_has_converges():
    features, y = correlated(4)
    own = np.c_[np.eye(4)[y["train"]], np.zeros(400), np.ones(400)]
    x = Standardiser(features["train"])(features["train"])
    for path in (
        FITS["multi_label"](x, own, 6, C_VALUES),
        *fit_many([features["train"]], own, 6, "multi_label"),
    ):
        for fit in path:
            p = fit.predict(x)
            assert fit.converged and p[:, 4].max() < 1e-3 and p[:, 5].min() > 1 - 1e-3


def test_features_that_say_nothing_converge_at_once(monkeypatch):
    """The first token of every text: all columns are constant."""
    needed, fit = [], LogisticRegression.fit

    def counted(self, x, y):
        fit(self, x, y)
        needed.extend(self.n_iter_)
        return self

    monkeypatch.setattr(LogisticRegression, "fit", counted)
    y = np.arange(30) % 3
    x = np.zeros((30, 4), dtype=np.float32)
    for own, kind in ((y, "single_label"), (np.eye(3)[y], "multi_label")):
        for path in (FITS[kind](x, own, 3, C_VALUES), *fit_many([x + 7], own, 3, kind)):
            assert all(fit.converged for fit in path)
            np.testing.assert_allclose(path[-1].predict(x), 1 / 3, atol=1e-4)
    FITS["single_label"](x[:-1], y[:-1], 3, C_VALUES)  # not quite balanced
    assert len(needed) >= 5 * len(C_VALUES) and max(needed) < 20, needed


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
