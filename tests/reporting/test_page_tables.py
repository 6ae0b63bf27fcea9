"""Tables of the page, recomputed by hand or by scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.probing.scoreboard import row_scores
from bertchain.reporting import tables
from bertchain.reporting.scored import Scored

RNG = np.random.default_rng(0)


def one_label(size=4, rows=200):
    truth = RNG.integers(size, size=rows)
    p = RNG.dirichlet(np.ones(size), rows) + 0.5 * np.eye(size)[truth] * RNG.random((rows, 1))
    spec = LabelSpec("single_label", tuple(f"class {k}" for k in range(size)), ("label",))
    tokens = RNG.integers(5, 500, rows)
    cut = np.maximum(tokens - 100, 0)
    ids, folds = [str(i) for i in range(rows)], RNG.integers(3, size=rows)
    return Scored("oof", spec, ids, p / p.sum(axis=1, keepdims=True), truth, folds, tokens, cut)


def several_labels(rows=200):
    truth = (RNG.random((rows, 3)) < [0.6, 0.3, 0.1]).astype(float)
    p = (RNG.random((rows, 3)) + truth / 2) / 1.5
    spec = LabelSpec("multi_label", ("a", "b", "c"), ("label",))
    return Scored("validation", spec, [str(i) for i in range(rows)], p, truth)


def test_scores_are_those_of_the_results_with_the_main_one_first():
    rows = one_label()
    results = {"oof_f1_macro": 0.5, "oof_accuracy": 0.6, "oof_rows": 200, "eval_accuracy_sd": 0.1}
    results |= {"test_runtime": 3.0, "test_accuracy": 0.7, "train_loss": 0.1}
    found = tables.scores_table([rows, Scored(**{**vars(rows), "split": "test"})], results, 0)
    assert found["score"].tolist()[:2] == ["accuracy", "f1_macro"]
    assert not {"rows", "runtime", "loss"} & {*found["score"]}
    accuracy = found.set_index("score").loc["accuracy"]
    assert accuracy["out of the folds"] == 0.6 and accuracy["on test"] == 0.7
    assert 0.04 < accuracy["± 95 % (out of the folds)"] < 0.09


def test_folds_have_the_mean_of_their_rows():
    rows = one_label()
    found = tables.fold_table(rows, 0)
    hits = pd.Series(rows.classes == rows.truth).groupby(rows.folds).agg(["mean", "size"])
    assert found["accuracy"].tolist() == pytest.approx(hits["mean"].tolist())
    assert found["rows"].tolist() == hits["size"].tolist() and (found["± 95 %"] > 0).all()


def test_confusions_are_counted_and_of_many_classes_the_largest():
    rows = one_label()
    found = tables.confusion_counts(rows)
    expected = sk.confusion_matrix(rows.truth, rows.classes)
    assert (found.drop(columns="true").to_numpy() == expected).all()
    assert found["true"].tolist() == [*rows.spec.names]
    many = one_label(size=tables.NUMBERED + 1, rows=2000)
    found = tables.confusion_counts(many)
    expected = sk.confusion_matrix(many.truth, many.classes, labels=range(31))
    np.fill_diagonal(expected, 0)
    assert len(found) == tables.CONFUSIONS
    assert found["rows"].tolist() == np.sort(expected.reshape(-1))[::-1][:30].tolist()


def test_classes_are_scored_as_by_scikit_learn():
    rows = one_label()
    found = tables.class_table(rows)
    assert found["F1"].tolist() == sk.f1_score(rows.truth, rows.classes, average=None).tolist()
    assert found["rows with it"].tolist() == np.bincount(rows.truth).tolist()
    several = several_labels()
    cuts = Thresholds("per_label", (0.3, 0.4, 0.6))
    found, given = tables.class_table(several, cuts), several.probabilities >= cuts.cuts
    assert found["recall"].tolist() == sk.recall_score(several.truth, given, average=None).tolist()
    assert found["rows given it"].tolist() == given.sum(axis=0).tolist()
    assert found["threshold"].tolist() == [0.3, 0.4, 0.6]


def test_labels_that_stand_for_others_are_counted():
    truth = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]])
    p = np.array([[0.1, 0.9, 0], [0.1, 0.9, 0], [0, 0.9, 0.8], [0.9, 0.9, 0]])
    spec = LabelSpec("multi_label", ("a", "b", "c"), ("label",))
    found = tables.confused_labels(Scored("test", spec, list("abcd"), p, truth))
    expected = {"missed": ["a"], "given instead": ["b"], "rows": [2]}
    assert found.to_dict("list") == expected


def test_groups_by_length_hold_all_rows_and_their_scores():
    rows = one_label()
    found = tables.length_table(rows, 0)
    for by, own in found.groupby("by"):
        assert own["rows"].sum() == len(rows), by
        mean = (own["accuracy"] * own["rows"]).sum() / len(rows)
        assert mean == pytest.approx((rows.classes == rows.truth).mean())
    of_tokens = found[found["by"] == "tokens"]
    assert len(of_tokens) == tables.LENGTHS and of_tokens["mean"].is_monotonic_increasing
    first, last = (int(n) for n in of_tokens["group"].iloc[0].split(" to "))
    inside = (rows.tokens >= first) & (rows.tokens <= last)
    assert of_tokens["rows"].iloc[0] == inside.sum()
    uncut = found[found["group"] == "nothing"].iloc[0]
    hits = row_scores("single_label", rows.probabilities, rows.truth)
    assert uncut["accuracy"] == pytest.approx(hits[rows.cut == 0].mean())
    whole = Scored(**{**vars(one_label()), "cut": np.zeros(200), "tokens": np.full(200, 7)})
    assert tables.length_table(whole, 0)["group"].tolist() == ["7 to 7"]


def test_curves_of_f1_are_those_of_scikit_learn():
    rows = several_labels()
    curves = tables.threshold_curves(rows).set_index("threshold")
    for cut in (0.0, 0.25, 0.5, 0.9):
        given = rows.probabilities >= cut
        for average in ("micro", "macro"):
            expected = sk.f1_score(rows.truth, given, average=average, zero_division=0)
            assert curves.loc[cut, average] == pytest.approx(expected)
        expected = sk.f1_score(rows.truth[:, 1], given[:, 1])
        assert curves.loc[cut, "label b"] == pytest.approx(expected)
    two = one_label(size=2)
    name, curves = tables.two_class_curves(two)
    rare = int(np.bincount(two.truth).argmin())
    assert name == two.spec.names[rare]
    at = curves.set_index("threshold").loc[0.3]
    given, truth = two.probabilities[:, rare] >= 0.3, two.truth == rare
    assert at["precision"] == pytest.approx(sk.precision_score(truth, given))
    assert at["recall"] == pytest.approx(sk.recall_score(truth, given))
    assert at["F1"] == pytest.approx(sk.f1_score(truth, given))
    assert at["accuracy"] == pytest.approx((given == truth).mean())


def test_kappa_of_a_moved_threshold():
    truth = RNG.integers(1, 4, 100)[:, None].astype(float)
    spec = LabelSpec("regression", ("grade",), ("grade",))
    rows = Scored("oof", spec, [*map(str, range(100))], truth + RNG.normal(size=(100, 1)), truth)
    cuts = Thresholds("ordinal", (1.4, 2.6), (1.0, 2.0, 3.0))
    found = tables.grade_curves(rows, cuts)
    assert found["between"].unique().tolist() == ["1 and 2", "2 and 3"]
    row = found[found["between"] == "2 and 3"].iloc[7]
    decided = 1 + (rows.probabilities[:, 0] >= 1.4) + (rows.probabilities[:, 0] >= row["threshold"])
    expected = sk.cohen_kappa_score(truth[:, 0].astype(int), decided, weights="quadratic")
    assert row["kappa"] == pytest.approx(expected)
