"""Predictions of members, computed by hand: out-of-fold, averaged over seeds, in row order."""

import json
import os

import numpy as np
import pytest
from datasets import Dataset

from bertchain.arguments.competition import FoldArguments, SubmissionArguments
from bertchain.arguments.finetuning import RunArguments
from bertchain.competition import ensemble, run_folder
from bertchain.data.labels import LabelSpec
from bertchain.data.tasks import Task
from bertchain.errors import InputError
from bertchain.training import prediction
from bertchain.training.prediction import read_predictions, write_predictions

SPEC = LabelSpec("single_label", ("n", "y"), ("label",))
IDS, FOLDS = list("abcd"), np.array([0, 1, 1, 0])


def two_columns(second):
    """Probabilities [n, 2] from those of the second class."""
    return np.stack([1 - np.array(second), second], axis=1)


@pytest.fixture
def run(tmp_path):
    """Two folds of two seeds, trained; the rows of a fold in another order than the table's."""
    options = FoldArguments(num_folds=2, seeds=[1, 2])
    members = run_folder.plan_members(FOLDS, options, 42, "bert")
    run = run_folder.RunFolder(tmp_path, members, {"arguments": {}, "files": {}}, RunArguments())
    with run:
        for k, member in enumerate(members):
            own, folder = np.flatnonzero(member.fold == FOLDS)[::-1], run.folder_of(member)
            folder.mkdir()
            probabilities = two_columns(0.1 * own + 0.2 * (k % 2))
            ids = [IDS[row] for row in own]
            write_predictions(folder / "predictions_validation.csv", SPEC, ids, probabilities)
            test = two_columns([0.1 * k, 0.2 * k])
            write_predictions(folder / "predictions_test.csv", SPEC, ["t", "u"], test)
            scores = {"eval_accuracy": 0.5 + 0.1 * (k % 2), "eval_runtime": 9.0}
            (folder / "all_results.json").write_text(json.dumps(scores))
    return run


@pytest.fixture
def task():
    documents = {
        "train": Dataset.from_dict({"id": IDS, "labels": [0, 0, 1, 1]}),
        "test": Dataset.from_dict({"id": ["t", "u"]}),
    }
    return Task(SPEC, documents, {}, folds=FOLDS)


def test_out_of_fold_predictions_and_averages(run, task):
    results = ensemble.combine(run, task, SubmissionArguments(), [])
    ids, oof = read_predictions(run.folder / "predictions_oof.csv", SPEC)
    assert ids == IDS
    np.testing.assert_allclose(oof[:, 1], [0.1, 0.2, 0.3, 0.4])  # the mean of p and p + 0.2
    assert results["oof_accuracy"] == 0.5 and results["oof_rows"] == results["train_rows"] == 4
    assert results["models"] == 4 and results["eval_accuracy_mean"] == pytest.approx(0.55)
    assert results["eval_accuracy_sd"] == pytest.approx(0.1 / 3**0.5)
    ids, test = read_predictions(run.folder / "predictions_test.csv", SPEC)
    assert ids == ["t", "u"]
    np.testing.assert_allclose(test[:, 1], [0.15, 0.3])
    _, by_fold = read_predictions(run.folder / "predictions_test_by_fold.csv", SPEC)
    np.testing.assert_allclose(by_fold[:, 1], [0.05, 0.1, 0.25, 0.5])


def test_predictions_of_other_rows_are_refused(run, task):
    path = run.folder / "seed-1-fold-0" / "predictions_validation.csv"
    write_predictions(path, SPEC, ["a", "b"], two_columns([0.5, 0.5]))
    with pytest.raises(InputError, match="its predictions are of other rows than fold 0"):
        ensemble.combine(run, task, SubmissionArguments(), [])


def test_predictions_of_other_ids_are_refused(run, task):
    """Rows whose number is right, but not their ids: labels would be compared by position."""
    path = run.folder / "seed-1-fold-0" / "predictions_validation.csv"
    before = path.read_bytes()
    write_predictions(path, SPEC, ["a", "z"], two_columns([0.5, 0.5]))
    with pytest.raises(InputError, match="its predictions are of other rows than fold 0"):
        ensemble.combine(run, task, SubmissionArguments(), [])
    path.write_bytes(before)
    other = task.documents | {"test": Dataset.from_dict({"id": ["u", "t"], "labels": [0, 1]})}
    with pytest.raises(
        InputError, match=r"predictions_test\.csv: its predictions are of other rows"
    ):
        ensemble.combine(run, task.with_documents(other), SubmissionArguments(), [])


def test_only_the_main_process_writes_and_all_reach_every_broadcast(run, task, monkeypatch):
    reached = {"0": 0, "1": 0}

    def count(value):
        reached[os.environ["RANK"]] += 1
        return value

    for module in (ensemble, run_folder):
        monkeypatch.setattr(module, "broadcast", count)
    listed = sorted(os.listdir(run.folder))
    monkeypatch.setenv("RANK", "1")
    assert ensemble.combine(run, task, SubmissionArguments(), []) == {}
    ensemble.write_folds(run.folder, task)
    assert sorted(os.listdir(run.folder)) == listed
    monkeypatch.setenv("RANK", "0")
    ensemble.combine(run, task, SubmissionArguments(), [])
    assert reached["0"] == reached["1"] > 0


def test_tables_that_are_read_in_pieces_are_the_same_to_the_last_digit(tmp_path, monkeypatch):
    path, ids = tmp_path / "p.csv", [f"an id,\nof two lines {i}" for i in range(300)]
    probabilities = two_columns(np.random.default_rng(0).random(300))
    write_predictions(path, SPEC, ids, probabilities)
    monkeypatch.setattr(prediction, "BYTES_AT_ONCE", 1000)
    assert len([*prediction.iter_predictions(path, SPEC)]) > 10
    found, numbers = read_predictions(path, SPEC)
    assert found == ids and (numbers == probabilities).all()
    with pytest.raises(InputError, match="no column 'prob_z'"):
        read_predictions(path, LabelSpec("single_label", ("n", "z"), ("label",)))
