"""Paired tests against scipy and worked examples; what chance gives is no finding."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bertchain.data.labels import LabelSpec
from bertchain.probing import by_class, significance
from bertchain.probing.comparisons import (
    HOLM,
    change_sections,
    gains,
    headline_comparisons,
    layer_comparisons,
)
from bertchain.probing.feature_files import write_index
from bertchain.probing.scoreboard import Scoreboard, ScoreKey, bootstrap, half_width

LAYERS, ROWS = 13, 200


def board_of(hits, labels=("a", "b"), keep_all=False):
    """A board of two classes. Args: hits: by key [rows]."""
    truth = np.arange(ROWS) % 2
    spec = LabelSpec("single_label", labels, ("label",))
    board = Scoreboard({"validation": truth, "test": truth}, spec, seed=0, keep_all=keep_all)
    for key, own in hits.items():
        p = np.eye(2)[np.where(own, truth, 1 - truth)]
        board.add(key, {"validation": p, "test": p})
    return board


def study(seed, rate_of):
    """Hits of two models by layer and pooling. Args: rate_of: model, layer -> share of hits."""
    rng = np.random.default_rng(seed)
    return {
        ScoreKey(model, layer, pooling, "linear"): rng.random(ROWS) < rate_of(model, layer)
        for model in ("one", "two")
        for layer in range(LAYERS)
        for pooling in ("cls", "mean")
    }


def test_p_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for better, worse in ((9, 1), (1, 9), (5, 5), (0, 0), (30, 12), (0, 6)):
        rows = better + worse
        expected = stats.binomtest(better, rows).pvalue if rows else 1.0
        assert significance.mcnemar(better, worse) == pytest.approx(expected)
        one = np.repeat([1.0, 0.0, 1.0, 0.0], [better, worse, 20, 10])
        other = np.repeat([0.0, 1.0, 1.0, 0.0], [better, worse, 20, 10])
        (found,) = significance.paired_tests([(one, other)])
        assert found == (better, worse, pytest.approx(expected), "McNemar")
    one, other = rng.normal(size=(2, 40))
    (found,) = significance.paired_tests([(one, other)])
    assert found.p == pytest.approx(stats.ttest_rel(one, other).pvalue) and found.test == "t"
    assert found.better + found.worse == 40
    same, more = significance.paired_tests([(one, one), (np.full(9, 0.5), np.zeros(9))])
    assert same == (0, 0, 1.0, "t") and more.p == 0.0
    assert significance.paired_t(np.array([0.3])) == 1.0  # one row tells nothing


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(
        significance.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]
    )
    np.testing.assert_allclose(significance.holm([0.5, 0.9]), [1.0, 1.0])
    assert len(significance.holm([])) == 0


def test_what_chance_gives_is_no_finding():
    """Of 26 layers and poolings that do not differ some do by p alone, and hardly ever by Holm."""
    alone, corrected = [], 0
    for seed in range(100):
        hits = study(seed, lambda model, layer: 0.7)
        pairs = [
            (own.astype(float), hits[key._replace(model="one")].astype(float))
            for key, own in hits.items()
            if key.model == "two"
        ]
        p = [found.p for found in significance.paired_tests(pairs)]
        alone += [seed] if min(p) < 0.05 else []
        corrected += significance.holm(p).min() < 0.05
    assert len(alone) > 40 and corrected <= 9  # 5 expected at most; 10 or more in 3 % of cases
    board = board_of(study(alone[0], lambda model, layer: 0.7))
    table = gains(board, ["one", "two"])
    assert (table["p"] < 0.05).any() and (table[HOLM] >= 0.05).all()
    (section,) = change_sections({"gains": table})
    assert "two, linear: 0 better, 0 worse of 26." in section.text
    points = [line for axis in section.figure.axes for line in axis.lines
              if line.get_markerfacecolor() == "white"]  # fmt: skip
    assert sum(len(line.get_xdata()) for line in points) == 26  # each is hollow
    right = {"one": 9, "two": 99}
    heads = {ScoreKey(m, None, "", "own head"): np.arange(ROWS) < n for m, n in right.items()}
    (section,) = change_sections({"gains": gains(board_of(heads), ["one", "two"])})
    assert section.figure is None and "two, own head: 1 better" in section.text


def test_what_differs_is_found():
    board = board_of(study(1, lambda model, layer: 0.9 if (model, layer) == ("two", 6) else 0.6))
    table = gains(board, ["one", "two"])
    sure = table[table[HOLM] < 0.05]
    assert list(sure["layer"]) == [6, 6] and (sure["test accuracy against one"] > 0.2).all()
    (section,) = change_sections({"gains": table})
    assert "two, linear: 2 better, 0 worse of 26." in section.text


def test_any_two_models_and_layers_are_compared_under_one_probe_and_pooling():
    hits = study(1, lambda model, layer: 0.5 + 0.03 * layer)
    table = layer_comparisons(board_of(hits))
    assert len(table) == 2 * (26 * 25 // 2)
    at = ["model", "layer", "other_model", "other_layer", "token_pooling"]
    rows = table.set_index(at)
    row = rows.loc["one", 2, "two", 11, "mean"]
    one, other = (hits[ScoreKey(m, k, "mean", "linear")] for m, k in (("one", 2), ("two", 11)))
    assert row["test accuracy, difference"] == pytest.approx(one.mean() - other.mean())
    assert row["rows better"] == (one & ~other).sum() and row["rows worse"] == (other & ~one).sum()
    expected = stats.binomtest(int((one & ~other).sum()), int((one ^ other).sum())).pvalue
    assert row["p"] == pytest.approx(expected) and row["test"] == "McNemar"
    drawn = [bootstrap(own.astype(float), lambda r: r.mean(axis=1), 0) for own in (one, other)]
    assert row["± 95 %"] == pytest.approx(half_width(drawn[0] - drawn[1]))
    for _, own in table.groupby("token_pooling"):
        np.testing.assert_allclose(own[HOLM], significance.holm(own["p"]))


def test_rows_of_the_headline_are_compared_once_each():
    keys = [
        ScoreKey("", None, "", "majority"),
        *(ScoreKey("m", k, "cls", "linear") for k in (1, 2)),
    ]
    rng = np.random.default_rng(0)
    board = board_of({key: rng.random(ROWS) < 0.6 for key in keys})
    what = ["majority class", "m: best frozen layer", "m: last layer", "m: again"]
    headline = pd.DataFrame({"what": what, "key": [*keys, keys[2]]})
    (table,) = headline_comparisons(board, headline).values()
    assert list(zip(table["what"], table["against"], strict=True)) == [
        *itertools.combinations(what[:3], 2)
    ]
    np.testing.assert_allclose(table[HOLM], significance.holm(table["p"]))


def test_rows_resampled_side_by_side_are_those_of_each_alone():
    rows = np.random.default_rng(0).random((3, 45))
    for statistic in (lambda r: r.mean(axis=1), lambda r: np.sqrt(r.mean(axis=1))):
        together = bootstrap(rows, statistic, 7)
        alone = np.stack([bootstrap(own, statistic, 7) for own in rows])
        drawn = np.random.default_rng(7).integers(45, size=(1000, 45))
        plain = np.stack([statistic(own[drawn]) for own in rows])
        np.testing.assert_allclose(together, alone)
        np.testing.assert_allclose(together, plain)


def test_predictions_are_kept_of_what_is_best_on_validation():
    truth = np.arange(8) % 2
    spec = LabelSpec("single_label", ("a", "b"), ("label",))
    right = {("cls", 0): 5, ("cls", 1): 8, ("cls", 2): 4, ("mean", 0): 8, ("mean", 2): 6}
    for keep_all in (False, True):
        board = Scoreboard({"validation": truth, "test": truth}, spec, 0, keep_all)
        for (pooling, layer), hits in right.items():
            p = np.eye(2)[np.where(np.arange(8) < hits, truth, 1 - truth)]
            by_split = dict.fromkeys(("train", "validation", "test"), p)
            board.add(ScoreKey("m", layer, pooling, "linear"), by_split, weights={"bias": p[0]})
        kept = {(key.token_pooling, key.layer) for key in board.kept}
        assert kept == (set(right) if keep_all else {("cls", 1), ("mean", 2)})
        assert all({*own.predictions} == {"validation", "test"} for own in board.kept.values())
    targets = np.arange(4.0)[:, None]
    numbers = LabelSpec("regression", ("y",), ("y",), None, (0.0,), (1.0,))
    board = Scoreboard({"validation": targets}, numbers, 0)
    for layer, error in ((0, 0.1), (1, 2.0), (2, 1.0)):
        board.add(ScoreKey("m", layer, "cls", "linear"), {"validation": targets + error})
    assert {key.layer for key in board.kept} == {0, 2}  # less is better


def test_less_is_better_turns_the_sign_of_comparisons():
    targets = np.random.default_rng(0).normal(size=(50, 1))
    spec = LabelSpec("regression", ("y",), ("y",), None, (0.0,), (1.0,))
    board = Scoreboard({"test": targets}, spec, seed=0)
    errors = np.random.default_rng(1).normal(size=(2, 50, 1)) * [[[0.1]], [[1.0]]]
    for layer, error in enumerate(errors):
        board.add(ScoreKey("m", layer, "cls", "linear"), {"test": targets + error})
    (row,) = layer_comparisons(board).to_dict("records")
    expected = (errors[1] ** 2).mean() ** 0.5 - (errors[0] ** 2).mean() ** 0.5
    assert row["test rmse, difference"] == pytest.approx(expected) and expected > 0
    squares = (errors[:, :, 0]) ** 2
    assert row["p"] == pytest.approx(stats.ttest_rel(*squares).pvalue) and row["p"] < 1e-4
    assert row["rows better"] == (squares[0] < squares[1]).sum()


def test_a_class_that_nothing_predicts_scores_0():
    names = ("a", "b", "c")
    board = Scoreboard(
        {"test": np.array([0, 0, 1, 1])}, LabelSpec("single_label", names, ("x",)), 0
    )
    p = np.eye(3)[[0, 0, 0, 2]]
    table = by_class.scores_by_class(p, board.labels["test"], board).set_index("class")
    assert table.loc["b"].tolist() == [2, 0, 0, 0, 0, 0]
    assert table.loc["c"].tolist() == [0, 1, 0, 0, 0, 0]
    assert table.loc["a", ["precision", "recall"]].tolist() == [2 / 3, 1]


def test_the_index_of_features_goes_on_from_run_to_run(tmp_path):
    def stored(name, rows):
        np.save(tmp_path / f"{name}.npy", np.zeros((rows, 3, 2, 4), np.float16))
        return np.load(tmp_path / f"{name}.npy", mmap_mode="r")

    write_index("m", {"train": stored("x", 5), "test": stored("y", 2)}, ["cls", "mean"])
    write_index("m", {"train": stored("x", 5), "test": stored("z", 1)}, ["cls", "mean"])
    (tmp_path / "y.npy").unlink()
    write_index("NA", {"train": stored("x", 5)}, ["cls", "mean"])
    index = pd.read_csv(tmp_path / "index.csv", keep_default_na=False)
    assert index.drop(columns=["layers", "hidden", "dtype"]).to_numpy().tolist() == [
        ["m", "train", 5, "cls mean", "x"],
        ["m", "test", 1, "cls mean", "z"],
        ["NA", "train", 5, "cls mean", "x"],
    ]
    assert set(index["dtype"]) == {"float16"} and set(index["layers"]) == {3}
    for damage in (b"", b"\xff\xfe", b"a,b\n1,2\n"):
        (tmp_path / "index.csv").write_bytes(damage)
        write_index("m", {"train": stored("x", 5)}, ["cls", "mean"])
        assert len(pd.read_csv(tmp_path / "index.csv")) == 1
