"""Who is validated by which model: invariants of every strategy, over random labels."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bertchain.data.labels import LabelSpec
from bertchain.data.splits import (
    assign_folds,
    default_strategy,
    folds_of_column,
    report_folds,
    texts_in_several_folds,
)
from bertchain.errors import InputError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=80), st.integers(2, 5), st.integers(0, 9))
def test_stratified_folds_keep_the_share_of_each_class_within_one_row(labels, k, seed):
    if max(np.bincount(labels)) < k:
        return
    folds = assign_folds("stratified", k, labels, "single_label", seed=seed)
    assert set(folds.tolist()) == set(range(k))  # each row in exactly one fold, no fold empty
    for label in set(labels):
        counts = np.bincount(folds[np.array(labels) == label], minlength=k)
        assert counts.max() - counts.min() <= 1
    assert (folds == assign_folds("stratified", k, labels, "single_label", seed=seed)).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 14), min_size=30, max_size=80), st.integers(0, 9))
def test_no_group_is_in_two_folds(groups, seed):
    if len(set(groups)) < 6:
        return
    labels = [g % 2 for g in groups]
    for strategy in ("group", "stratified_group"):
        try:
            folds = assign_folds(strategy, 3, labels, "single_label", groups, seed)
        except InputError as error:  # a group too large: refused, not empty
            assert "would hold no row" in str(error)
            continue
        for group in set(groups):
            assert len(set(folds[np.array(groups) == group])) == 1


def test_multilabel_folds_keep_the_shares_of_every_label():
    rng = np.random.default_rng(0)
    labels = (rng.random((300, 6)) < [0.6, 0.3, 0.1, 0.05, 0.03, 0.2]).astype(float)
    folds = assign_folds("multilabel", 5, labels.tolist(), "multi_label", seed=3)
    counts = np.array([labels[folds == k].sum(axis=0) for k in range(5)])
    assert (counts.max(axis=0) - counts.min(axis=0) <= 2).all()
    assert np.ptp(np.bincount(folds)) <= 2


def test_random_and_regression_folds():
    folds = assign_folds("random", 4, [[0.5]] * 10, "regression", seed=1)
    assert sorted(np.bincount(folds)) == [2, 2, 3, 3]
    targets = [[float(i)] for i in range(100)]
    folds = assign_folds("stratified", 5, targets, "regression", seed=1)
    means = [
        np.mean([t[0] for t, f in zip(targets, folds, strict=True) if f == k]) for k in range(5)
    ]
    assert np.ptp(means) < 5  # each fold holds two of each tenth
    assert not (folds == assign_folds("stratified", 5, targets, "regression", seed=2)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stratified", 5, [0, 1, 0], "single_label"), "3 training rows only"),
        (("group", 2, [0, 1, 0], "single_label"), "needs --group_column_name"),
        (("random", 2, [0, 1, 0], "single_label", [1, 2, 3]), "does not go with --fold_strategy"),
        (("multilabel", 2, [0, 1, 0], "single_label"), "does not go with single_label"),
        (("group", 3, [0, 1, 0], "single_label", [1, 1, 2]), "there are 2 groups only"),
        (("stratified", 3, [0, 1, 0, 1], "single_label"), "--fold_strategy random"),
    ],
)
def test_folds_that_cannot_be(arguments, message):
    with pytest.raises(InputError, match=message):
        assign_folds(*arguments)


def test_a_column_of_folds():
    assert folds_of_column(["0", "1", 1.0, 0], "x.csv", "fold").tolist() == [0, 1, 1, 0]
    assert folds_of_column(["0", "1", "-1", -1.0], "x.csv", "fold").tolist() == [0, 1, -1, -1]
    for bad in ("a", "-2", "0.5", None):
        with pytest.raises(
            InputError, match=r"x\.csv, row 2, column 'fold': .* is not a fold number"
        ):
            folds_of_column(["0", bad], "x.csv", "fold")
    with pytest.raises(InputError, match="names one fold only"):
        folds_of_column(["2", "2"], "x.csv", "fold")


def test_defaults_and_warnings(caplog):
    assert default_strategy("single_label", False) == "stratified"
    assert default_strategy("regression", False) == "stratified"
    assert default_strategy("single_label", True) == "stratified_group"
    assert default_strategy("multi_label", False) == "multilabel"
    assert default_strategy("multi_label", True) == "group"
    hashes = np.array([7, 8, 7, 9], dtype=np.uint64)
    assert texts_in_several_folds(hashes, np.array([0, 0, 1, 1])) == 2
    assert texts_in_several_folds(hashes, np.array([0, 1, 0, 1])) == 0
    train = Dataset.from_dict(
        {"text": ["Same words.", "same WORDS", "b", "c"], "labels": [0, 0, 0, 1]}
    )
    spec = LabelSpec("single_label", ("yes", "no"), ("label",))
    report_folds(train, spec, np.array([0, 1, 0, 1]))
    assert "2 of 4 training rows have the same words" in caplog.text
    assert "label 'no' has 1 rows" in caplog.text and "'yes'" not in caplog.text
