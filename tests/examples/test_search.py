"""Search over folds: what is tried, given up, gone on with, and written."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import BASICS, ROOT

sys.path.insert(0, str(ROOT / "examples"))
import search

from bertchain.errors import InputError


def write(folder, topic_files, **changes):
    """search.yaml of a search with two folds."""
    run = {"train_file": topic_files["train"], "model_name_or_path": "model", "num_folds": 2}
    run |= {"test_file": topic_files["test"], **BASICS}
    content = {"run": run, "output_dir": str(folder / "o"), "trials": 4}
    content["space"] = {
        "learning_rate": {"low": "1e-4", "high": 1e-2, "log": True},
        "token_pooling": ["mean", "cls"],
    }
    content |= changes
    (folder / "search.yaml").write_text(yaml.safe_dump(content))
    return content


def go(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["search.py", str(folder / "search.yaml")])
    search.main()
    return json.loads((folder / "o" / "all_results.json").read_text())


@pytest.fixture
def faked(monkeypatch, topic_files, tmp_path):
    """A script whose score of 100 is lost by distance from a rate of 1e-3; returns its calls."""
    pytest.importorskip("optuna")
    calls = []

    def main(run):
        calls.append(run)
        off = abs(np.log10(float(run["learning_rate"])) + 3)
        return SimpleNamespace(metrics={"oof_accuracy": 100 - off - 0.1 * run["folds"][0]})

    monkeypatch.setattr(search.run_finetune, "main", main)
    (tmp_path / "model").mkdir()
    monkeypatch.setattr(search.manifests, "make_manifest", made_up)
    return calls


def made_up(run_config, seed):
    return {"arguments": {"num_folds": run_config["num_folds"]}, "files": {}, "seed": seed}


def test_trials_are_real_runs_over_folds(tiny_bert, topic_files, tmp_path, monkeypatch):
    """The value of a trial is the score of its out-of-fold rows; the best one can be run."""
    pytest.importorskip("optuna")
    given = write(tmp_path, topic_files, trials=2)
    given["run"] |= {"model_name_or_path": tiny_bert, "num_train_epochs": 1}
    given["run"]["max_train_samples"] = 60
    given["space"] = {"learning_rate": [1e-9, 1e-2]}
    given["seed"] = 1
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(given))
    found = go(tmp_path, monkeypatch)
    trials = pd.read_csv(tmp_path / "o" / "trials.csv")
    assert (
        len(trials) == 2 and (trials["state"] == "complete").all() and (trials["folds"] == 2).all()
    )
    for _, trial in trials.iterrows():
        folder = tmp_path / "o" / "trials" / trial["run"]
        oof = pd.read_csv(folder / "predictions_oof.csv")
        assert len(oof) == 60
        assert trial["oof_accuracy"] == pytest.approx((oof["label"] == oof["prediction"]).mean())
        assert not [*folder.rglob("*.safetensors")] and not [*folder.rglob("predictions_test.csv")]
    best = yaml.safe_load((tmp_path / "o" / "best.yaml").read_text())
    row = trials.loc[trials["oof_accuracy"].idxmax()]
    assert best == given["run"] | {"learning_rate": row["learning_rate"]}
    assert found["value"] == row["oof_accuracy"] and found["metric"] == "oof_accuracy"


def test_it_finds_what_matters_gives_up_early_and_goes_on(
    faked, topic_files, tmp_path, monkeypatch, pictures
):
    monkeypatch.setitem(search.PRUNER, "n_startup_trials", 2)
    write(tmp_path, topic_files, trials=12)
    found = go(tmp_path, monkeypatch)
    trials = pd.read_csv(tmp_path / "o" / "trials.csv")
    assert len(trials) == 12 == found["trials"]
    pruned = trials["state"] == "pruned"
    assert pruned.any() and (trials.loc[pruned, "folds"] == 1).all()
    assert (trials.loc[~pruned, "folds"] == 2).all()
    assert len(faked) == trials["folds"].sum()
    assert 1e-4 <= found["arguments"]["learning_rate"] <= 1e-2
    assert found["value"] == pytest.approx(trials["oof_accuracy"].max())
    assert found["importance"]["learning_rate"] > found["importance"]["token_pooling"]
    text = (tmp_path / "o" / "search.md").read_text()
    assert f"{pruned.sum()} of 12 trials were given up" in text
    for name in ("history.png", "importance.png"):
        assert (tmp_path / "o" / name).stat().st_size > 5000
    tried = len(faked)
    write(tmp_path, topic_files, trials=14)
    assert go(tmp_path, monkeypatch)["trials"] == 14
    assert len({run["output_dir"] for run in faked[tried:]}) == 2  # no earlier trial again
    assert len({run["output_dir"] for run in faked}) == 14


def test_a_trial_that_was_cut_off_is_tried_again(faked, topic_files, tmp_path, monkeypatch):
    """With the same values, and so in the same folder, where its folds go on."""
    write(tmp_path, topic_files, trials=3)
    whole = search.run_finetune.main

    def cut_off(run):
        if len(faked) == 3:  # in the second fold of the second trial
            raise KeyboardInterrupt
        return whole(run)

    monkeypatch.setattr(search.run_finetune, "main", cut_off)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, monkeypatch)
    monkeypatch.setattr(search.run_finetune, "main", whole)
    assert go(tmp_path, monkeypatch)["trials"] == 3
    folders = [run["output_dir"] for run in faked]
    assert folders[2] == folders[3] == folders[4] and len({*folders}) == 3


def test_a_search_whose_first_trial_is_refused_says_why(faked, topic_files, tmp_path, monkeypatch):
    def refuse(run):
        faked.append(run)
        raise InputError("--learning_rate is no good")

    monkeypatch.setattr(search.run_finetune, "main", refuse)
    write(tmp_path, topic_files)
    with pytest.raises(InputError, match="no trial has a score: --learning_rate is no good"):
        go(tmp_path, monkeypatch)
    assert len(faked) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spaces": 1}, "spaces is not one of run"),
        ({"space": {"learning_rat": [1, 2]}}, "learning_rat is not an argument.*learning_rate"),
        ({"space": {"num_folds": [2, 3]}}, "num_folds is not an argument to search"),
        ({"space": {"learning_rate": [1e-3]}}, "learning_rate: give two plain values"),
        ({"space": {"learning_rate": {"low": 1}}}, "learning_rate: give a list of values, or low"),
        ({"space": {"learning_rate": {"low": 2, "high": 1}}}, "low is below high"),
        ({"trials": "many"}, "trials many is no whole number"),
        ({"run": {"train_file": "x.csv"}}, "model_name_or_path"),
    ],
)
def test_a_file_that_is_not_as_it_should_be(
    changes, message, faked, topic_files, tmp_path, monkeypatch
):
    write(tmp_path, topic_files, **changes)
    with pytest.raises(InputError, match=message):
        go(tmp_path, monkeypatch)
    assert not faked and not (tmp_path / "o").exists()


def test_another_search_in_the_same_folder_is_refused(faked, topic_files, tmp_path, monkeypatch):
    given = write(tmp_path, topic_files, trials=1)
    go(tmp_path, monkeypatch)
    given["run"]["num_folds"] = 3
    write(tmp_path, topic_files, **given)
    with pytest.raises(InputError, match="holds a search with another num_folds"):
        go(tmp_path, monkeypatch)
    del given["run"]["num_folds"]
    write(tmp_path, topic_files, **given)
    with pytest.raises(InputError, match="a search needs folds"):
        go(tmp_path, monkeypatch)


def test_without_optuna_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(search.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install optuna"):
        go(tmp_path, monkeypatch)
