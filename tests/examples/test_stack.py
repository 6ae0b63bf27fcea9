"""Stacking: trees over out-of-fold predictions, columns of a table, statistics of its text."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from sklearn.ensemble import HistGradientBoostingClassifier
from test_competition_examples import NUMBER, SINGLE, written_run

sys.path.insert(0, str(ROOT / "examples"))
import blend
import stack

from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError

ROWS = 200


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setitem(stack.TREES, "max_iter", 40)


@pytest.fixture
def tables(tmp_path):
    """Labels of which the predictions know little, and the column `venue` all but every tenth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, ROWS)
    truth[:2] = 0, 1
    noisy = np.where(rng.random(ROWS) < 0.1, 1 - truth, truth)
    table = pd.DataFrame({"id": [f"r{i}" for i in range(ROWS)]})
    table["text"] = [f"A text, no. {i}" for i in range(ROWS)]
    table["venue"] = np.where(noisy == 1, "ACL", "ICML")
    table["year"] = [2000 + i % 7 for i in range(ROWS)]
    table["label"] = np.array(["a", "b"])[truth]
    table.to_csv(tmp_path / "train.csv", index=False)
    test = table[:20].drop(columns="label").assign(id=[f"t{i}" for i in range(20)])
    test.loc[0, "venue"] = "NeurIPS"  # not seen in training
    test.to_csv(tmp_path / "test.csv", index=False)
    return table, test, truth


def written(tmp_path, spec, labels, oof, cuts=None):
    """Two runs of two folds, and the arguments that name the tables."""
    given = {"train_file": str(tmp_path / "train.csv"), "test_file": str(tmp_path / "test.csv")}
    given |= {"id_column_name": "id", "text_column_names": ["text"], "label_delimiter": None}
    for name, share in (("a", 1.0), ("b", 0.98)):
        written_run(tmp_path / name, spec, labels, oof * share, oof[:20] * share, cuts)
        (tmp_path / name / "run_args.yaml").write_text(yaml.safe_dump(given))


def run(tmp_path, monkeypatch, *more):
    line = ["stack.py", str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir"]
    monkeypatch.setattr(sys, "argv", [*line, str(tmp_path / "o"), *more])
    stack.main()
    return json.loads((tmp_path / "o" / "all_results.json").read_text())


def test_each_fold_is_predicted_by_trees_of_the_other(tables, tmp_path, monkeypatch):
    """The same as a loop by hand; the column that knows more than the text pays."""
    table, test, truth = tables
    oof = np.stack([0.5 + 0.02 * truth, 0.5 - 0.02 * truth], axis=1)[:, ::-1]
    oof[::3] = 0.5
    written(tmp_path, SINGLE, truth, oof)
    results = run(tmp_path, monkeypatch, "--columns", "venue", "year")
    found = pd.read_csv(tmp_path / "o" / "predictions_oof.csv")
    rows = pd.DataFrame(np.hstack([oof, oof * 0.98]))
    rows["characters"], rows["words"] = table["text"].str.len(), 4
    rows["capitals"], rows["digits"] = 1 / rows["characters"], 0.0
    rows["digits"] = table["text"].str.count(r"\d") / rows["characters"]
    rows["punctuation"] = 2 / rows["characters"]
    rows["venue"] = pd.Categorical(table["venue"])
    rows["year"] = table["year"].astype(float)
    rows.columns = [str(name) for name in rows]
    expected = np.empty(ROWS)
    for inside in (slice(0, 100), slice(100, 200)):
        outside = np.setdiff1d(np.arange(ROWS), np.arange(ROWS)[inside])
        trees = HistGradientBoostingClassifier(
            **stack.TREES, random_state=1, categorical_features="from_dtype"
        ).fit(rows.iloc[outside], truth[outside])
        expected[inside] = trees.predict_proba(rows.iloc[np.arange(ROWS)[inside]])[:, 1]
    np.testing.assert_allclose(found["prob_b"], expected, atol=1e-12)
    scores = results["scores"]
    assert scores[stack.STACK]["accuracy"] > 0.85
    assert scores[stack.STACK]["roc_auc"] > scores[blend.BLEND]["roc_auc"]
    report = (tmp_path / "o" / "report.md").read_text()
    assert stack.STACK in report and "± 95 %" in report
    predicted = pd.read_csv(tmp_path / "o" / "predictions_test.csv").set_index("id")["prediction"]
    known = test["venue"].isin(["ACL", "ICML"]).to_numpy()
    by_venue = np.where(test["venue"] == "ACL", "b", "a")
    assert (predicted[test["id"]].to_numpy() == by_venue)[known].mean() > 0.7


def test_several_labels_have_trees_each_and_thresholds(tables, tmp_path, monkeypatch):
    """A label that no row has gets 0 of everyone."""
    _, _, truth = tables
    spec = LabelSpec("multi_label", ("x", "y", "z"), ("tags",))
    labels = np.stack([truth, 1 - truth, 0 * truth], axis=1)
    oof = 0.1 + 0.3 * labels
    written(tmp_path, spec, labels, oof, Thresholds("global", (0.3,)))
    results = run(tmp_path, monkeypatch)
    found = pd.read_csv(tmp_path / "o" / "predictions_oof.csv")
    assert (found["prob_z"] == 0).all() and (found["prob_x"] > 0.5).eq(truth == 1).all()
    assert results["scores"][stack.STACK]["oof_f1_micro_nested"] == 1.0


def test_targets_that_are_numbers(tables, tmp_path, monkeypatch):
    _, _, truth = tables
    values = truth[:, None] * 3.0
    written(tmp_path, NUMBER, values, values + 1.0)
    results = run(tmp_path, monkeypatch)
    assert results["scores"][stack.STACK]["rmse"] < 0.5 < results["scores"][blend.BLEND]["rmse"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "train.csv").write_text("id,text\nr0,x\n"), "no column 'venue'"),
        (lambda folder: (folder / "test.csv").write_text("id,text,venue\nq,x,y\n"), "the id 't0'"),
        (lambda folder: (folder / "a" / "run_args.yaml").write_text("seed: 1"), "--train_file"),
    ],
)
def test_tables_that_are_not_those_of_the_runs(change, message, tables, tmp_path, monkeypatch):
    _, _, truth = tables
    written(tmp_path, SINGLE, truth, np.eye(2)[truth])
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        run(tmp_path, monkeypatch, "--columns", "venue")
    assert not (tmp_path / "o").exists()
