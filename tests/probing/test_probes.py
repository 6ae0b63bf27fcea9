"""Probes against scikit-learn's objective and planted data."""

import numpy as np
import pytest
from scipy.special import log_expit
from sklearn.linear_model import LogisticRegression

from bertchain.metrics import SCORES
from bertchain.probing import solvers, torch_probes
from bertchain.probing.analyses import online_code_length
from bertchain.probing.baselines import majority_baseline, tfidf_baseline
from bertchain.probing.probes import ProbeLabels, fit_knn_probe, fit_linear_probe
from bertchain.probing.solvers import (
    Standardiser,
    fit_multinomial,
    fit_one_versus_rest,
    fit_ridge,
)
from bertchain.probing.torch_probes import fit_mix_probe, fit_mlp_probe

PROBES = {"linear": fit_linear_probe, "knn": fit_knn_probe, "mlp": fit_mlp_probe}


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
        cold = LogisticRegression(C=fit.C, max_iter=5000, tol=1e-7).fit(x, y)
        best = -np.log(cold.predict_proba(x)[rows, y]).sum()
        best += 0.5 / fit.C * (cold.coef_**2).sum()
        found = -np.log(fit.predict(x)[rows, y]).sum()
        found += 0.5 / fit.C * (fit.predict.weights**2).sum()
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

    def objective(w, b, C, label):
        z = (x @ w + b).astype(float)
        return -(log_expit(z) - (1 - y[:, label]) * z).sum() + 0.5 / C * (w**2).sum()

    for fit in fit_one_versus_rest(x, y, 4, [1e-3, 1e-1, 10.0]):
        assert fit.converged
        for label in range(4):
            exact = LogisticRegression(C=fit.C, max_iter=5000, tol=1e-7).fit(x, y[:, label])
            best = objective(exact.coef_[0], exact.intercept_[0], fit.C, label)
            found = objective(fit.predict.weights[:, label], fit.predict.bias[label], fit.C, label)
            assert found <= best * (1 + 1e-3)


def test_ridge_is_the_closed_form():
    x, _, weights = planted()
    y = x @ weights[:, :2] + 3.0
    for fit in fit_ridge(x, y, 2, [1e-2, 1.0]):
        centred = x - x.mean(axis=0)
        gram = centred.T @ centred + np.eye(20) / fit.C
        w = np.linalg.solve(gram.astype(float), centred.T @ (y - y.mean(axis=0)))
        np.testing.assert_allclose(fit.predict(x), centred @ w + y.mean(axis=0), atol=1e-4)


def test_c_is_chosen_on_validation_and_ties_go_to_the_stronger():
    x, y, _ = planted(n=600)
    features = {"train": x[:200], "validation": x[200:400], "test": x[400:]}

    seen = []

    def accuracy(p):
        seen.append(SCORES["single_label"](p, y[200:400])["accuracy"])
        return seen[-1]

    result = fit_linear_probe(
        features, ProbeLabels({"train": y[:200]}, 4, "single_label", accuracy)
    )
    assert len(seen) == len(solvers.C_VALUES)
    assert result.setting["C"] == sorted(solvers.C_VALUES)[int(np.argmax(seen))]
    assert accuracy(result.predictions["validation"]) == max(seen) > 0.7
    assert set(result.predictions) == {"train", "validation", "test"}
    indifferent = ProbeLabels({"train": y[:200]}, 4, "single_label", lambda p: 0.0)
    tied = fit_linear_probe(features, indifferent)
    assert tied.setting["C"] == min(solvers.C_VALUES)


def test_an_unconverged_probe_says_so(monkeypatch):
    x, y, _ = planted()
    monkeypatch.setattr(solvers, "QUICK_ITERATIONS", 2)
    monkeypatch.setattr(solvers, "MAX_ITERATIONS", 2)
    (fit,) = fit_multinomial(x, y, 4, [10.0])
    assert not fit.converged
    (fit,) = fit_one_versus_rest(x, np.eye(4)[y], 4, [10.0])
    assert not fit.converged


def test_features_with_no_information_score_like_the_majority():
    rng = np.random.default_rng(0)
    features = {s: rng.normal(size=(400, 5)) for s in ("train", "validation")}
    y = rng.choice(3, size=400, p=[0.6, 0.3, 0.1])
    score = lambda p: -SCORES["single_label"](p, y)["log_loss"]  # noqa: E731
    result = fit_linear_probe(features, ProbeLabels({"train": y}, 3, "single_label", score))
    baseline = majority_baseline(y, "single_label", 3, 400)
    assert score(result.predictions["validation"]) == pytest.approx(score(baseline), abs=0.05)


def test_majority_baselines():
    np.testing.assert_allclose(
        majority_baseline(np.array([0, 0, 2]), "single_label", 4, 2), [[2 / 3, 0, 1 / 3, 0]] * 2
    )
    labels = np.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(majority_baseline(labels, "multi_label", 2, 1), [[1.0, 0.5]])
    np.testing.assert_allclose(majority_baseline(labels, "regression", 2, 1), [[1.0, 0.5]])


# ---------------------------------------------------------------- other probes, and bits


def task(kind, n=300, seed=0):
    """Features, and labels by split, that a linear function tells apart."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    values = x @ rng.normal(size=(6, 3))
    y = {"single_label": values.argmax(1), "multi_label": (values > 0).astype(float)}.get(
        kind, values
    )
    cuts = {"train": slice(0, 200), "validation": slice(200, 250), "test": slice(250, n)}
    return {s: x[c] for s, c in cuts.items()}, {s: y[c] for s, c in cuts.items()}


MAIN = {"single_label": "accuracy", "multi_label": "f1_micro", "regression": "pearson"}


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("probe", ["knn", "mlp"])
def test_other_probes_learn_every_kind_of_label(kind, probe):
    x, y = task(kind)
    options = {"widths": (16,), "repeats": 2, "seed": 3} if probe == "mlp" else {}
    result = PROBES[probe](x, ProbeLabels(y, 3, kind), **options)
    assert SCORES[kind](result.predictions["test"], y["test"])[MAIN[kind]] > 0.7
    assert result.predictions["test"].shape == (50, 3)
    again = PROBES[probe](x, ProbeLabels(y, 3, kind), **options)
    np.testing.assert_array_equal(again.predictions["test"], result.predictions["test"])
    if probe == "mlp":
        assert len(result.repeats) == 2 and result.setting == {"width_1": 16, "width_2": 16}
        one, two = (run["test"] for run in result.repeats)
        assert not np.array_equal(one, two)  # another start


@pytest.mark.parametrize(("gain", "epoch"), [(1, -1), (-1, 0)])
def test_of_a_network_the_epoch_with_the_best_score_is_kept(gain, epoch, monkeypatch):
    """Whatever the loss does, which falls in all of these."""
    monkeypatch.setattr(torch_probes, "EPOCHS", 12)
    x, y = task("single_label")
    seen = []
    score = lambda p: seen.append(p) or gain * len(seen)  # noqa: E731
    fit_mlp_probe(x, ProbeLabels(y, 3, "single_label", score), widths=(16,), repeats=1)
    *epochs, kept = seen
    assert len(epochs) == 12
    np.testing.assert_allclose(kept, epochs[epoch])
    assert not np.allclose(epochs[0], epochs[-1])


def test_neighbours_by_hand():
    """By cosine, (2, 2) and (1, 1.1) are next to each other, and a row is not its own neighbour."""
    x = np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3]], dtype=np.float32)
    y = np.array([0, 0, 1, 1])
    features = {"train": x, "validation": np.array([[5.0, 0.2], [0.0, 9.0]], dtype=np.float32)}
    result = fit_knn_probe(
        features, ProbeLabels({"train": y}, 2, "single_label", lambda p: 0.0), (1, 3, 99)
    )
    assert result.setting == {"neighbours": 1}
    assert result.predictions["validation"].tolist() == [[1, 0], [0, 1]]
    assert result.predictions["train"].tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    three = fit_knn_probe(
        features, ProbeLabels({"train": y}, 2, "single_label", lambda p: -p.max()), (1, 3)
    )
    np.testing.assert_allclose(three.predictions["validation"], [[2 / 3, 1 / 3], [1 / 3, 2 / 3]])


def test_an_mlp_solves_what_no_line_separates():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(600, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    features = {"train": x[:400], "validation": x[400:500], "test": x[500:]}
    labels = {"train": y[:400], "validation": y[400:500]}
    accuracy = lambda p: float((p.argmax(1) == y[400:500]).mean())  # noqa: E731
    found = {
        name: PROBES[name](features, ProbeLabels(labels, 2, "single_label", accuracy), **options)
        for name, options in (("linear", {}), ("mlp", {"widths": (32,), "repeats": 1}))
    }
    right = {n: (r.predictions["test"].argmax(1) == y[500:]).mean() for n, r in found.items()}
    assert right["linear"] < 0.65 and right["mlp"] > 0.9


def test_code_length_by_hand_and_on_planted_features():
    """Constant features leave the frequencies: Laplace's rule of succession, in portions."""
    y = np.tile([0, 1], 64)
    flat = online_code_length(np.ones((128, 3)), y, 2, 0, (1.0,))
    assert flat["uniform_bits"] == 128
    assert 0.85 < flat["compression"] <= 1.02
    rng = np.random.default_rng(0)
    random = online_code_length(rng.normal(size=(128, 3)), y, 2, 0, (1.0,))
    planted = online_code_length(np.stack([y, -y], axis=1) + 0.01, y, 2, 0, (1.0,))
    assert planted["compression"] > 2 > 1.1 > random["compression"]
    assert planted["bits"] < random["bits"]
    assert 0 <= planted["model_bits"] <= planted["bits"]
    one = online_code_length(np.ones((4, 1)), np.zeros(4, dtype=int), 2, 0, (1.0,), (0.25, 1.0))
    # the first at 1 bit, then 3 with probability (1 + 1) / (1 + 2) each
    assert one["bits"] == pytest.approx(1 - 3 * np.log2(2 / 3))


def test_the_code_takes_the_c_of_fewest_bits_and_sends_which():
    """On planted features weak regularisation needs few bits, on noise a strong one."""
    y = np.tile([0, 1], 64)
    rng = np.random.default_rng(0)
    planted = y[:, None] + 0.1 * rng.normal(size=(128, 3))
    for x, strongest in ((planted, False), (rng.normal(size=(128, 3)), True)):
        alone = {c: online_code_length(x, y, 2, 0, (c,))["bits"] for c in (1e-4, 1.0)}
        both = online_code_length(x, y, 2, 0, (1.0, 1e-4))
        assert both["bits"] == pytest.approx(min(alone.values()) + 1, rel=0.01)  # 1 bit says which
        assert (both["C"] == 1e-4) == strongest == (alone[1e-4] < alone[1.0])


def test_code_length_of_several_labels_by_hand_and_on_planted_features():
    y = np.stack([np.tile([0.0, 1.0], 64), np.zeros(128)], axis=1)
    code = lambda x, **more: online_code_length(  # noqa: E731
        x, y, 2, 0, (1.0,), problem_type="multi_label", **more
    )
    assert code(np.ones((128, 3)))["uniform_bits"] == 256
    informed, blind = code(y[:, :1] + 0.01), code(np.ones((128, 3)))
    assert informed["bits"] < blind["bits"] < 256
    assert 0 <= informed["model_bits"] <= informed["bits"]
    # labels never seen: 2 bits for the first row, then 3 rows at p = (1 + 1) / (1 + 2) each
    never = online_code_length(
        np.ones((4, 1)), np.zeros((4, 2)), 2, 0, (1.0,), (0.25, 1.0), problem_type="multi_label"
    )
    assert never["bits"] == pytest.approx(2 - 6 * np.log2(2 / 3), rel=1e-3)


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_words_counted(kind):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 60)
    texts = [f"a {'good' if c else 'bad'} film {rng.integers(9)}" for c in classes]
    y = {
        "single_label": classes,
        "multi_label": np.eye(2)[classes],
        "regression": classes[:, None] * 2.5,
    }
    y = y[kind]
    splits = {"train": texts[:40], "validation": texts[40:50], "test": texts[50:]}
    sharpest = lambda p: float(p.max() - p.min())  # noqa: E731
    result = tfidf_baseline(splits, ProbeLabels({"train": y[:40]}, 2, kind, sharpest))
    assert result.setting == {"C": 100.0}
    p = result.predictions["test"]
    decided = p[:, 0] > 1.25 if kind == "regression" else p.argmax(1) == 1
    assert (decided == (classes[50:] == 1)).all()
    labels = ProbeLabels({"train": y[:2]}, 2, kind)
    assert tfidf_baseline({"train": ["", "!"], "validation": [""]}, labels) is None


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_the_mix_finds_the_layer_that_knows(kind):
    x, y = task(kind)
    rng = np.random.default_rng(5)
    noise = lambda rows: rng.normal(size=rows.shape).astype(np.float32)  # noqa: E731
    stacked = {s: np.stack([noise(rows), rows, noise(rows)], axis=1) for s, rows in x.items()}
    score = lambda p: SCORES[kind](p, y["validation"])[MAIN[kind]]  # noqa: E731
    result = fit_mix_probe(stacked, ProbeLabels(y, 3, kind, score))
    weights = [result.setting[f"weight_{k}"] for k in range(3)]
    assert sum(weights) == pytest.approx(1) and weights[1] > 0.8 and result.converged
    assert SCORES[kind](result.predictions["test"], y["test"])[MAIN[kind]] > 0.85


def test_with_one_layer_the_mix_is_the_linear_probe():
    x, y, _ = planted(classes=4)
    features = {"train": x, "validation": x[:50]}
    labels = ProbeLabels({"train": y}, 4, "single_label", lambda p: 0.0)
    (linear,) = fit_multinomial(Standardiser(x)(x), y, 4, [0.1])
    stacked = {split: rows[:, None] for split, rows in features.items()}
    mixed = fit_mix_probe(stacked, labels, (0.1,))
    expected = linear.predict(Standardiser(x)(x))
    np.testing.assert_allclose(mixed.predictions["train"], expected, atol=2e-3)
