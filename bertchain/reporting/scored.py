"""Rows that were predicted by a model that had not seen them, with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset

from bertchain.data.contamination import hashes_of
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.data.splits import fold_columns, texts_in_several_folds
from bertchain.data.tasks import Task
from bertchain.probing.scoreboard import row_scores
from bertchain.training.prediction import read_predictions

ON = {"oof": "out of the folds", "validation": "on validation", "test": "on test"}
PREFIXES = {"oof": "oof", "validation": "eval", "test": "test"}  # of their scores in the results


@dataclass(frozen=True)
class Scored:
    """Predictions and labels of n rows.

    Attributes:
        split: oof (training rows, each by a model that did not train on it), validation or test.
        ids: of the rows; with labelled spans that of their document.
        probabilities: [n, labels]; of regression values.
        truth: encoded labels, [n] class numbers or [n, labels].
        folds: of each row [n], or None.
        targets: with labelled spans the number of each in its document [n], else None.
        tokens, cut: how many each document has, and how many no window holds, both [n]; None with
            labelled spans.
    """

    split: str
    spec: LabelSpec
    ids: Sequence[str]
    probabilities: np.ndarray
    truth: np.ndarray
    folds: np.ndarray | None = None
    tokens: np.ndarray | None = None
    cut: np.ndarray | None = None
    targets: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.truth)

    @cached_property
    def classes(self) -> np.ndarray:
        """The likeliest class of each row [n], for one label a row."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def each(self) -> np.ndarray:
        """What the main score is the mean of [n], see `scoreboard.row_scores`."""
        return row_scores(self.spec.problem_type, self.probabilities, self.truth)

    def decisions(self, thresholds: Thresholds | None = None) -> np.ndarray:
        """0/1 [n, labels], for several labels a row: thresholds alone count, as in all scores."""
        cuts = (thresholds.cuts if thresholds else 0.5) * np.ones(len(self.spec.names))
        return self.probabilities >= cuts


def read_scored(folder: Path, task: Task) -> list[Scored]:
    """Read the predictions of all rows that have labels, the most telling first.

    Args:
        folder: of a run, which has written its tables.
    """
    found = []
    for split in ("oof", "validation", "test"):
        documents = task.documents.get("train" if split == "oof" else split)
        path = folder / f"predictions_{split}.csv"
        if split not in task.predicted_splits or "labels" not in documents.column_names:
            continue
        ids, probabilities = read_predictions(path, task.spec)
        truth = task.spec.hard_labels(label_array(task, documents))
        rows, more = slice(None), {}
        if split == "oof":  # of some folds there may be none yet
            place = {name: row for row, name in enumerate(documents["id"][:])}
            rows = np.array([place[name] for name in ids])
            more["folds"] = fold_columns(task.folds)["fold"][rows]
        if task.num_spans:
            counts = [len(own) for own in documents["labels"][:]]
            more["targets"] = np.concatenate([np.arange(count) for count in counts])
        for name in ("tokens", "cut"):
            if name in documents.column_names:
                more[name] = np.asarray(documents[name][:])[rows]
        found.append(Scored(split, task.spec, ids, probabilities, truth[rows], **more))
    return found


def label_array(task: Task, documents: Dataset) -> np.ndarray:
    """Encoded labels, [n] or [n, labels]; no lists of numbers, of which there may be 10^8."""
    if task.num_spans:
        return np.asarray(task.labels_of(documents))
    column = documents.select_columns("labels").with_format("arrow")[:]["labels"].combine_chunks()
    if column.type.num_fields == 0:  # no lists
        return column.to_numpy(zero_copy_only=False)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(documents), -1)


def count_shared_texts(task: Task) -> int:
    """Count the training rows whose words are also in another fold."""
    if task.folds is None:
        return 0
    folds = fold_columns(task.folds)["fold"]  # of several repeats the first
    return texts_in_several_folds(hashes_of(task.documents["train"]), folds)
