"""Task: what stays in it, who is validated by whom, and where its labels come from."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from tiny_models import classifier

from bertchain.arguments.common import DataArguments, LabelArguments, SpanArguments, TextArguments
from bertchain.arguments.competition import FoldArguments
from bertchain.data.tasks import Task, load_task
from bertchain.errors import InputError

ALL = {"fraction": None, "per_class": None}


def write_table(path: Path, n: int, **columns: list) -> str:
    rows = {"text": [f"text {i} of {path.stem}" for i in range(n)], **columns}
    pd.DataFrame(rows).to_csv(path, index=False)
    return str(path)


def load(data: DataArguments, span: SpanArguments | None = None, **options) -> Task:
    span = SpanArguments() if span is None else span
    return load_task(data, TextArguments(), LabelArguments(), span, seed=1, **options)


@pytest.fixture
def task(tmp_path) -> Task:
    labels = [f"c{i % 3}" for i in range(30)]
    return load(
        DataArguments(
            train_file=write_table(tmp_path / "train.csv", 30, label=labels),
            validation_file=write_table(tmp_path / "validation.csv", 6, label=labels[:6]),
            test_file=write_table(tmp_path / "test.csv", 4),
        )
    )


def ids(rows: Dataset) -> set[str]:
    return set(rows["id"])


def test_only_keeps_the_splits_that_are_there(task):
    kept = task.only(["test", "validation", "more"])
    assert list(kept.documents) == ["validation", "test"] and not kept.has_training_rows
    assert task.has_training_rows and kept.spec == task.spec
    assert task.labelled_splits == ["train", "validation"]  # the test file has no labels
    assert kept.texts("test")[3] == "text 3 of test"


def test_folds_take_the_place_of_a_validation_set(task):
    folded = task.with_folds(FoldArguments(num_folds=3), seed=1)
    assert list(folded.documents) == ["train", "test"] and task.folds is None
    assert np.bincount(folded.folds).tolist() == [10, 10, 10]
    assert folded.with_validation(0.5, seed=1) is folded
    assert task.with_folds(FoldArguments(), seed=1) is task
    predicts = task.only(["test"])
    assert predicts.with_folds(FoldArguments(num_folds=3), seed=1) is predicts


def test_a_share_is_held_out_where_no_file_validates(task):
    assert list(task.with_validation(0.2, seed=1).documents["validation"]["id"]) == [*"012345"]
    held_out = task.only(["train", "test"]).with_validation(0.2, seed=1).documents
    assert len(held_out["train"]) == 24 and len(held_out["validation"]) == 6
    assert sorted(held_out["validation"]["labels"]) == [0, 0, 1, 1, 2, 2]
    assert not ids(held_out["train"]) & ids(held_out["validation"])


def test_the_rows_of_a_fold(task):
    folded = task.with_folds(FoldArguments(num_folds=3), seed=1)
    validated = set()
    for fold in range(3):
        rows = folded.for_fold(fold, ALL, seed=1)
        assert (
            list(rows["validation"]["id"])
            == np.flatnonzero(folded.folds == fold).astype(str).tolist()
        )
        assert ids(rows["train"]) | ids(rows["validation"]) == ids(task.documents["train"])
        assert rows["test"] is task.documents["test"]
        validated |= ids(rows["validation"])
    assert validated == ids(task.documents["train"])
    few = folded.for_fold(0, ALL | {"per_class": 2}, seed=1)
    assert sorted(few["train"]["labels"]) == [0, 0, 1, 1, 2, 2] and len(few["validation"]) == 10
    assert ids(few["train"]) <= ids(folded.for_fold(0, ALL, seed=1)["train"])
    assert task.for_fold(None, ALL, seed=1) == task.documents
    predicts = task.only(["test"])
    assert predicts.for_fold(None, ALL | {"fraction": 0.1}, seed=1) == predicts.documents


def test_labels_of_words_are_those_of_all_targets(tmp_path):
    spans = [
        [{"words": [[0]], "label": "N"}, {"words": [[1]], "label": "V"}],
        [{"words": [[1, 2]], "label": "N"}],
    ]
    rows = [{"tokens": ["a", "b", "c"], "spans": own} for own in spans]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows]))
    files = {"train_file": str(path), "validation_file": str(path)}
    task = load(DataArguments(**files), SpanArguments(spans_column_name="spans"))
    assert (task.num_spans, task.spec.names) == (1, ("N", "V"))
    assert task.labels_of(task.documents["train"]) == [0, 1, 0, 0, 1, 0]
    assert task.hard_labels("validation").tolist() == [0, 1, 0, 0, 1, 0]
    assert task.texts("train")[:3] == ["a", "b", "b c"]
    plain = Task(task.spec, {}, {})
    assert plain.labels_of(Dataset.from_dict({"labels": [1, 0]})) == [1, 0]


def test_hard_labels_are_the_likeliest(tmp_path):
    soft = {"a": [0.2, 0.9, 0.5], "b": [0.8, 0.1, 0.5]}
    data = DataArguments(train_file=write_table(tmp_path / "train.csv", 3, **soft))
    label = LabelArguments(label_column_name=["a", "b"], problem_type="single_label")
    task = load_task(data, TextArguments(), label, SpanArguments(), seed=1)
    assert task.labels_of(task.documents["train"]) == [[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]]
    assert task.hard_labels("train").tolist() == [1, 0, 0]


def test_a_test_table_alone_has_the_labels_of_the_classifier(tmp_path, tiny_bert):
    names = {0: "x", 1: "y", 2: "z"}
    folder = str(tmp_path / "classifier")
    classifier("bert", id2label=names).save_pretrained(folder)
    data = DataArguments(test_file=write_table(tmp_path / "test.csv", 2, label=["z", "x"]))
    task = load(data, checkpoint=folder)
    assert task.spec.names == ("x", "y", "z") and not task.has_training_rows
    assert task.labels_of(task.documents["test"]) == [2, 0]
    for other in (tiny_bert, None):
        with pytest.raises(InputError, match="give --train_file"):
            load(data, checkpoint=other)
