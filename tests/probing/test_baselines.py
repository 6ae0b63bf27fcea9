"""Baselines beside probes, what noise may not become, and the range of probes."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import short_networks
from datasets import Dataset

import run_probe
from bertchain.data.labels import LabelSpec
from bertchain.models.loading import load_encoder, new_encoder
from bertchain.probing.analyses import CURVE, online_code_length
from bertchain.probing.baselines import add_majority, static_features
from bertchain.probing.certainty import finding_warnings, is_sure
from bertchain.probing.complexity import bits_table, complexity_sections, width_table
from bertchain.probing.layer_probes import add_random
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import FITS, fit_linear_probe, fit_over_splits
from bertchain.probing.scoreboard import Scoreboard, ScoreKey, headline_table

CUTS = {"train": slice(0, 300), "validation": slice(300, 400), "test": slice(400, 800)}


def board_of(y: np.ndarray, cuts: dict[str, slice] = CUTS) -> Scoreboard:
    names = tuple("abcd"[: y.max() + 1])
    labels = {split: y[cut] for split, cut in cuts.items()}
    board = Scoreboard(labels, LabelSpec("single_label", names, ("label",)), seed=0)
    add_majority(board)
    return board


def model_of(name: str, x: np.ndarray, cuts: dict[str, slice] = CUTS) -> ProbedModel:
    """A model with features [n, layers, hidden] and no encoder."""
    return ProbedModel(
        name=name,
        path="",
        features={split: x[cut][:, :, None] for split, cut in cuts.items()},
        poolings=["mean"],
        layers=list(range(x.shape[1])),
        windows={},
        preprocessor=None,
        description={},
    )


def test_random_weights_are_those_of_a_seed(tiny_bert):
    before = torch.random.get_rng_state()
    one, same, other = (new_encoder(tiny_bert, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    trained = load_encoder(tiny_bert)[0].state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    assert one.keys() == trained.keys() and torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name]) and not torch.equal(one[name], trained[name])


def test_static_features_by_hand():
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    documents = Dataset.from_dict({"windows": [[[0, 1], [2]], [[1, 0], [2]], [[5]]]})
    found = static_features(documents, table, 8)
    np.testing.assert_allclose(found, [[2.5, 3.5], [2.5, 3.5], [10, 11]])  # order does not count
    spans = {"windows": [[[0, 1, 2], [3, 4]]], "token_positions": [[[[1], [8, 9]], [[2], []]]]}
    found = static_features(Dataset.from_dict(spans), table, 8)
    np.testing.assert_allclose(found, [[2, 3, 7, 8], [4, 5, 0, 0]])


def test_several_random_encoders_are_one_baseline_with_their_spread():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 800)
    centres = rng.normal(size=(3, 5))
    models = [
        model_of("m, random weights", rng.normal(size=(800, 2, 5)) + scale * centres[y][:, None])
        for scale in (0.2, 0.6, 1.0)
    ]
    board = board_of(y)
    add_random(board, models, "cores")
    key = ScoreKey("m, random weights", 1, "mean", "linear")
    each = [
        (fit_linear_probe(m.at(1, 0), board.probe_labels).predictions["test"].argmax(1) == y[400:])
        for m in models
    ]
    scores = [hits.mean() for hits in each]
    assert board.values("test")[key] == pytest.approx(np.mean(scores))
    half = 4.303 * np.std(scores, ddof=1) / 3**0.5  # Student's t with 2 degrees of freedom
    assert board.starts[key] == pytest.approx(half, rel=1e-3)
    assert board.interval(key) > half
    add_random(board, [], "cores")


@pytest.fixture
def fitted_once(monkeypatch):
    """Probes of the same training rows are fitted once."""
    fit, paths = FITS["single_label"], {}

    def look_up(x, y, *options):
        key = (x.tobytes(), y.tobytes(), str(options))
        if key not in paths:
            paths[key] = fit(x, y, *options)
        return paths[key]

    monkeypatch.setitem(FITS, "single_label", look_up)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_finding(seed, fitted_once):
    """Neither features nor labels of chance, nor more than random weights give: on test rows, and
    on validation rows where there are no others."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 800)
    centres = 1.2 * rng.normal(size=(3, 8))
    random = [rng.normal(size=(800, 6, 8)) + 0.5 * centres[y][:, None] for _ in range(6)]
    features = {
        "noise": rng.normal(size=(800, 6, 8)),
        "as random": rng.normal(size=(800, 6, 8)) + 0.5 * centres[y][:, None],
        "knows": rng.normal(size=(800, 6, 8)) + 3 * centres[y][:, None],
    }
    for split in ("test", "validation"):
        cuts = {s: cut for s, cut in CUTS.items() if s in ("train", "validation", split)}
        said = findings_of(y, random, features, cuts)
        for name in ("noise", "as random"):
            above = f"No finding: linear probes of {name} are not surely above m, random weights."
            assert above in said
        assert "No finding: linear probes of noise are not surely above the majority class." in said
        assert not any("of knows" in sentence or "of m," in sentence for sentence in said)


def findings_of(y, random, features, cuts) -> list[str]:
    """What is said of probes of features beside those of random weights."""
    board = board_of(y, cuts)
    add_random(board, [model_of("m, random weights", x, cuts) for x in random], "cores")
    for name, x in features.items():
        model = model_of(name, x, cuts)
        for layer in model.layers:
            fit = fit_linear_probe(model.at(layer, 0), board.probe_labels)
            board.add(ScoreKey(name, layer, "mean", "linear"), fit.predictions)
    headline = headline_table(board, ["m, random weights", *features], ["linear"])
    return finding_warnings(board, headline)


def test_many_tests_need_more_to_be_sure():
    assert is_sure(1.01, 1.0, 1) and not is_sure(0.99, 1.0, 1)
    assert not is_sure(1.3, 1.0, 10) and is_sure(1.44, 1.0, 10)  # 2.81 / 1.96


def test_other_validation_splits_are_in_the_interval():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 800)
    x = model_of("m", rng.normal(size=(800, 1, 20)) + rng.normal(size=(3, 20))[y][:, None]).at(0, 0)
    board = board_of(y)
    labels, key = board.probe_labels, ScoreKey("m", 0, "mean", "linear")
    fit = fit_over_splits(x, labels, share=0.25, seeds=(1, 2))
    assert [sorted(run) for run in fit.repeats] == [
        ["test", "train", "validation"],
        ["test"],
        ["test"],
    ]
    assert not np.array_equal(fit.repeats[1]["test"], fit.repeats[2]["test"])
    board.add(key, fit.predictions, fit.repeats)
    scores = [(run["test"].argmax(1) == y[400:]).mean() for run in fit.repeats]
    assert board.values("test")[key] == pytest.approx(np.mean(scores)) and board.starts[key] > 0
    alone = fit_linear_probe(x, labels).predictions
    np.testing.assert_allclose(fit.predictions["test"], alone["test"])
    assert fit_over_splits(x, labels, share=0.25, seeds=()).repeats == []


def test_the_code_is_the_sum_of_its_learning_curve():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    found = online_code_length(rng.normal(size=(200, 4)) + y[:, None], y, 2, 0)
    curve = {int(k.removeprefix(CURVE)): v for k, v in found.items() if k.startswith(CURVE)}
    ends = [*curve, 200]
    sent = sum(curve[a] * (b - a) for a, b in itertools.pairwise(ends))
    assert found["bits"] == pytest.approx(sent + ends[0] + np.log2(6))
    assert curve[100] < curve[ends[1]]


def test_baselines_and_the_range_of_probes_in_a_run(tiny_bert, topic_files, tmp_path, pictures):
    """The tiny model has random weights itself: what it knows is no finding."""
    frame = pd.read_csv(topic_files["train"])
    frame["label"] = np.random.default_rng(1).permutation(frame["label"])
    frame.to_csv(tmp_path / "chance.csv", index=False)
    arguments = {
        "models": [f"base={tiny_bert}"],
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "token_pooling": ["cls"],
        "probe_layers": [0, 2],
        "probes": ["linear", "mlp"],
        "mlp_widths": [8, 16],
        "mlp_repeats": 2,
        "baselines": ["random_encoder", "static"],
        "probe_seeds": 2,
        "analyses": ["mdl"],
        "output_dir": str(tmp_path / "o"),
    }
    with short_networks():
        headline = run_probe.main(arguments).headline
    names = [
        "base, random weights: best frozen layer",
        "base: word embeddings, no context or position",
    ]
    assert set(names) <= set(headline["what"])
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    assert score[names[1]] > 0.9  # single words tell the topics
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    spread = results[results["metric"] == "accuracy_sd"].query("split == 'test'")
    assert set(spread["probe"]) == {"linear", "mlp"} and set(spread["model"]) == {
        "base",
        names[0][:20],
    }
    assert set(results["probe"]) >= {f"mlp {a}x{b}" for a in (8, 16) for b in (8, 16)}
    assert (results["metric"] == "mdl_compression_sd").sum() == 2
    report = (tmp_path / "o" / "report.md").read_text()
    assert "linear probes of base are not surely above base, random weights" in report
    assert "Complexity of the probe" in report and "Bits of a label by training rows" in report
    table = bits_table(results)
    assert len(table.columns) == 2 and table["training rows"].is_monotonic_increasing
    plain = {"probes": ["linear"], "analyses": ["none"], "baselines": [], "probe_seeds": 1}
    plain |= {"train_file": str(tmp_path / "chance.csv"), "output_dir": str(tmp_path / "p")}
    run_probe.main(arguments | plain)
    report = (tmp_path / "p" / "report.md").read_text()
    assert "No finding: linear probes of base are not surely above the majority class." in report
    assert "Complexity of the probe" not in report


def test_widths_are_those_of_the_best_place_on_validation():
    board = board_of(np.tile([0, 1, 2], 300)[:800])
    assert complexity_sections(SimpleNamespace(table=board.table)) == []
    right = {split: np.eye(3)[y] for split, y in board.labels.items()}
    wrong = {split: np.eye(3)[(y + 1) % 3] for split, y in board.labels.items()}
    for layer, found in ((0, wrong), (1, right)):
        key = ScoreKey("m", layer, "cls", "mlp")
        board.add(key, found)
        board.add(key._replace(probe="linear"), wrong)
        board.add_scores(key._replace(probe="mlp 8x16"), found)
        board.add_scores(key._replace(probe="mlp 4x4"), wrong)
    table = width_table(board)
    assert table["widths"].tolist() == ["0", "4x4", "8x16"]
    assert table["hidden units"].tolist() == [0, 8, 24]
    assert table["m, layer 1 cls"].tolist() == [0, 0, 1]
    (section,) = complexity_sections(board)
    assert section.name == "widths" and section.figure.axes[0].get_ylabel() == "test accuracy"
