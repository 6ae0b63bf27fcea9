"""Which rows train, which validate and how much each counts, through the script on a tiny model."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import BASICS, make_rows

import run_finetune
from bertchain.data import splits
from bertchain.training.prediction import read_written_table as read

FEW = BASICS | {"num_train_epochs": 2, "logging_steps": 1}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """train.csv with weights, groups and folds of which one is -1; more.csv; test.csv."""
    folder = tmp_path_factory.mktemp("rows")
    train, more = pd.DataFrame(make_rows(72)), pd.DataFrame(make_rows(24, seed=5))
    test = pd.DataFrame(make_rows(18, seed=1))
    train["weight"] = np.arange(72) % 5 / 2
    train["group"] = [f"g{i // 6}" for i in range(72)]
    train["fold"] = np.arange(72) % 4 - 1
    more["id"], test["id"] = "x" + more["id"], "t" + test["id"]
    for name, table in (("train", train), ("more", more), ("test", test)):
        table.to_csv(folder / f"{name}.csv", index=False)
    return {name: str(folder / f"{name}.csv") for name in ("train", "more", "test")}


@pytest.fixture(scope="module")
def run(tiny_bert, tables):
    def call(out, **given):
        files = {"train_file": tables["train"], "test_file": tables["test"]}
        files["model_name_or_path"] = tiny_bert
        return run_finetune.main({**FEW, **files, "output_dir": str(out), **given})

    return call


@pytest.fixture(scope="module")
def folded(run, tables, tmp_path_factory):
    """Three folds of a column, further rows, weights, and a model of all rows."""
    out = tmp_path_factory.mktemp("folded") / "o"
    given = dict(fold_column_name="fold", full_fit=True, keep_checkpoints=True)
    given |= dict(weight_column_name="weight", weigh_metrics=True)
    given |= dict(extra_train_file=tables["more"], extra_train_weight=0.5)
    return out, run(out, **given)


def results_of(folder):
    return json.loads((folder / "all_results.json").read_text())


def test_rows_of_fold_minus_one_train_always_and_are_never_out_of_fold(folded, tables):
    out, results = folded
    train, oof = pd.read_csv(tables["train"]), read(out / "predictions_oof.csv")
    validated = train[train["fold"] >= 0]
    assert oof["id"].tolist() == read(out / "folds.csv")["id"].tolist() == validated["id"].tolist()
    assert oof["fold"].tolist() == validated["fold"].tolist()
    assert results["oof_rows"] == results["train_rows"] == len(validated)
    for fold in range(3):
        own = read(out / f"fold-{fold}" / "predictions_validation.csv")["id"]
        assert own.tolist() == train["id"][train["fold"] == fold].tolist()
        trained = train[(train["fold"] != fold) & (train["weight"] > 0)]
        assert results_of(out / f"fold-{fold}")["train_rows"] == len(trained) + 24


def test_scores_count_rows_by_their_weights(folded, tables):
    out, results = folded
    oof = read(out / "predictions_oof.csv").merge(pd.read_csv(tables["train"])[["id", "weight"]])
    right = oof["label"] == oof["prediction"]
    assert results["oof_accuracy"] == pytest.approx(np.average(right, weights=oof["weight"]))
    p = np.choose(oof["label"].astype("category").cat.codes, oof.filter(like="prob_").T.to_numpy())
    assert results["oof_log_loss"] == pytest.approx(np.average(-np.log(p), weights=oof["weight"]))
    one = oof[oof["fold"] == 1]
    expected = np.average(one["label"] == one["prediction"], weights=one["weight"])
    history = pd.read_csv(out / "fold-1" / "history.csv")
    assert results_of(out / "fold-1")["eval_accuracy"] == pytest.approx(expected)
    assert history["eval_accuracy"].max() == pytest.approx(expected)  # the checkpoint's choice
    # the test table has no such column: all its rows count alike
    test = read(out / "predictions_test.csv").merge(pd.read_csv(tables["test"])[["id", "label"]])
    assert results["test_accuracy"] == pytest.approx((test["label"] == test["prediction"]).mean())


def test_the_model_of_all_rows_stops_at_the_mean_best_epoch(folded, tables):
    out, _ = folded
    own = [results_of(out / f"fold-{k}") for k in range(3)]
    for fold, found in enumerate(own):
        history = pd.read_csv(out / f"fold-{fold}" / "history.csv")
        best = history.loc[history["eval_accuracy"].idxmax(), "epoch"]
        assert found["best_epoch"] == pytest.approx(best)
    kept = max((out / "full").glob("checkpoint-*"))
    state = json.loads((kept / "trainer_state.json").read_text())
    train = pd.read_csv(tables["train"])
    rows = (train["weight"] > 0).sum() + 24
    assert results_of(out / "full")["train_rows"] == rows
    steps = 2 * -(-rows // 16)  # planned: the rates are those of the folds
    assert state["max_steps"] == steps
    mean = np.mean([found["best_epoch"] for found in own])
    assert state["global_step"] == round(np.mean([found["best_share"] for found in own]) * steps)
    assert results_of(out / "full")["best_epoch"] == pytest.approx(mean, abs=0.1)
    assert not (out / "full" / "predictions_validation.csv").exists()


def test_and_counts_like_a_fold_in_the_average(folded, tiny_bert, tables, tmp_path):
    out, results = folded
    names = ["fold-0", "fold-1", "fold-2", "full"]
    each = [read(out / name / "predictions_test.csv").filter(like="prob_") for name in names]
    mean = read(out / "predictions_test.csv").filter(like="prob_")
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-12)
    assert results["models"] == 4
    assert set(read(out / "predictions_test_by_fold.csv")["fold"]) == {0, 1, 2}
    members = pd.read_csv(out / "members.csv")
    assert members["model"].tolist() == names and members["fold"].isna().tolist() == [0, 0, 0, 1]
    predicted = run_finetune.main(
        model_name_or_path=str(out),
        test_file=tables["test"],
        id_column_name="id",
        output_dir=str(tmp_path / "p"),
        use_cpu=True,
        disable_tqdm=True,
    )
    again = predicted.predictions["test"].filter(like="prob_")
    np.testing.assert_allclose(again, mean, atol=1e-6)


def test_weights_of_zero_leave_rows_out_and_others_only_compare(run, tables, tmp_path):
    """Twice the weights are the same training; without the rows of weight 0, too."""
    train = pd.read_csv(tables["train"])
    train["weight"] = np.where(np.arange(72) % 3 == 1, 0.0, 1.0) + (np.arange(72) % 2)
    train["twice"] = 2 * train["weight"]
    given = dict(validation_file=pd.DataFrame(make_rows(12, seed=9)), max_steps=4)
    found = []
    some = train[train["weight"] > 0]
    for rows, column in ((train, "weight"), (train, "twice"), (some, "weight")):
        out = tmp_path / str(len(found))
        run(out, train_file=rows, weight_column_name=column, **given)
        found.append(read(out / "predictions_test.csv").filter(like="prob_").to_numpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    run(tmp_path / "plain", train_file=some, **given)
    plain = read(tmp_path / "plain" / "predictions_test.csv").filter(like="prob_").to_numpy()
    assert np.abs(plain - found[0]).max() > 1e-4


def test_a_group_is_held_out_as_a_whole(run, tables, tmp_path, monkeypatch):
    rows_of, plan = {}, splits.hold_out_validation

    def spy(*args):
        rows_of.update(plan(*args))
        return dict(rows_of)

    monkeypatch.setattr("bertchain.data.tasks.hold_out_validation", spy)
    out = tmp_path / "o"
    run(out, group_column_name="group", validation_split=0.25, max_steps=1)
    groups = pd.read_csv(tables["train"]).set_index("id")["group"]
    train, held_out = (set(groups[rows_of[name]["id"][:]]) for name in ("train", "validation"))
    assert not train & held_out and len(train | held_out) == 12
    assert set(groups[read(out / "predictions_validation.csv")["id"]]) == held_out


def test_repeated_folds_are_averaged(run, tables, tmp_path):
    out = tmp_path / "o"
    results = run(out, num_folds=2, fold_repeats=2, max_steps=1)
    assert results["models"] == 4 and results["oof_rows"] == 72
    folds = read(out / "folds.csv").set_index("id")
    assert set(folds["fold"]) == {0, 1} and set(folds["fold_1"]) == {2, 3}
    files = [out / f"fold-{k}" / "predictions_validation.csv" for k in range(4)]
    each = [read(file).set_index("id") for file in files]
    oof = read(out / "predictions_oof.csv").set_index("id")
    assert oof["fold"].tolist() == folds["fold"].tolist()
    for name in oof.index[:20]:
        own = [each[folds.loc[name, column]].loc[name] for column in ("fold", "fold_1")]
        mean = np.mean([row["prob_moods"] for row in own])
        assert oof.loc[name, "prob_moods"] == pytest.approx(mean, abs=1e-15)
    with pytest.raises(ValueError, match="group are the same each time"):
        given = dict(num_folds=2, fold_repeats=2, fold_strategy="group", group_column_name="group")
        run(tmp_path / "p", **given)
