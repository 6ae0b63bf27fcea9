"""Mistakes by hand; labels that were spoilt on purpose are found."""

import numpy as np
import pandas as pd
import pytest

from bertchain.data.labels import LabelSpec
from bertchain.reporting import mistakes
from bertchain.reporting.scored import Scored

RNG = np.random.default_rng(0)


def scored(kind, names, p, truth, **more):
    ids = [f"r{i}" for i in range(len(truth))]
    return Scored("oof", LabelSpec(kind, names, ("label",)), ids, p, truth, **more)


def test_the_surest_mistakes_come_first():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    rows = scored("single_label", ("no", "yes"), p, np.array([1, 1, 0, 1]), folds=np.arange(4) % 2)
    found = mistakes.find_mistakes(rows)
    assert found.to_dict("list") == {
        "row": [0, 2, 1], "id": ["r0", "r2", "r1"], "fold": [0, 0, 1],
        "label": ["yes", "no", "yes"], "prediction": ["no", "yes", "no"],
        "prob_label": [0.1, 0.2, 0.4], "prob_prediction": [0.9, 0.8, 0.6],
    }  # fmt: skip
    assert len(mistakes.find_mistakes(rows, most=1)) == 1


def test_each_wrong_label_of_several_is_a_mistake():
    p, truth = np.array([[0.9, 0.2], [0.4, 0.6]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    found = mistakes.find_mistakes(scored("multi_label", ("a", "b"), p, truth))
    assert found.drop(columns="row").to_dict("list") == {
        "id": ["r0", "r1"], "label": ["a", "a"], "given": ["no", "yes"], "prob_yes": [0.9, 0.4],
    }  # fmt: skip


def test_of_numbers_the_largest_errors_come_first_in_their_own_unit():
    values, truth = np.array([[1.0], [5.0], [2.0]]), np.array([[1.5], [3.0], [2.0]])
    found = mistakes.find_mistakes(scored("regression", ("x",), values, truth), most=2)
    assert found["id"].tolist() == ["r1", "r0"] and found["error"].tolist() == [2.0, -0.5]
    truth = np.array([[0.0, 0.0], [1.0, 1000.0], [2.0, 2000.0]])
    values = truth + np.array([[0.9, 0.0], [0.0, 100.0], [0.0, 0.0]])  # .9 of 0 to 2 is more
    found = mistakes.find_mistakes(scored("regression", ("x", "y"), values, truth), most=2)
    assert found["target"].tolist() == ["x", "y"] and found["id"].tolist() == ["r0", "r1"]


def test_a_class_is_confident_from_the_mean_of_its_own_rows_on():
    """Means of the given label: a .8, b .6, c none."""
    p = np.array([[0.9, 0.1, 0], [0.7, 0.3, 0], [0.5, 0.5, 0], [0.3, 0.7, 0], [0.2, 0.2, 0.6]])
    truth = np.array([0, 0, 1, 1, 1])
    p[4] = [0.4, 0.6, 0]
    found = mistakes.confident_classes(p, truth)
    assert found.tolist() == [0, -1, -1, 1, 1]


@pytest.mark.parametrize("classes", [2, 7])
def test_spoilt_labels_are_found_with_the_label_that_they_had(classes):
    true = RNG.integers(classes, size=1000)
    p = RNG.dirichlet(np.ones(classes), 1000) * 0.5
    p[np.arange(1000), true] += 0.5
    spoilt = RNG.choice(1000, 80, replace=False)
    given = true.copy()
    given[spoilt] = (true[spoilt] + 1) % classes
    names = tuple(f"class {k}" for k in range(classes))
    found = mistakes.find_doubtful(scored("single_label", names, p, given))
    assert {*found["row"]} <= {*spoilt.tolist()} and len(found) > 0.4 * len(spoilt)
    assert found["prediction"].tolist() == [names[true[row]] for row in found["row"]]
    lead = found["prob_prediction"] - found["prob_label"]
    assert (lead.diff().dropna() <= 0).all()
    pairs = mistakes.count_pairs(found)
    assert pairs["rows"].sum() <= len(found) and list(pairs) == ["label", "probably", "rows"]


def test_of_several_labels_each_is_doubted_by_itself():
    truth = (RNG.random((500, 3)) < 0.3).astype(float)
    p = np.where(truth >= 1, 0.9, 0.1) + RNG.normal(size=truth.shape) * 0.02
    spoilt = RNG.choice(500, 20, replace=False)
    truth[spoilt, 1] = 1 - truth[spoilt, 1]
    found = mistakes.find_doubtful(scored("multi_label", ("a", "b", "c"), p, truth))
    assert {*found["row"]} <= {*spoilt.tolist()} and len(found) > 5
    assert {*found["label"]} == {"b"}
    assert isinstance(mistakes.count_pairs(found), pd.DataFrame)


def test_nothing_is_doubted_where_all_is_right():
    p = np.eye(3)[[0, 1, 2]]
    found = mistakes.find_doubtful(scored("single_label", ("a", "b", "c"), p, np.arange(3)))
    assert not len(found) and not len(mistakes.count_pairs(found))
    rows = scored("multi_label", ("a", "b", "c"), p, p)
    assert not len(mistakes.find_doubtful(rows)) and not len(mistakes.find_mistakes(rows))
