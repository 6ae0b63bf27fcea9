"""Distillation: the predictions of an ensemble as labels of one model.

Training rows get the teacher's out-of-fold probabilities, mixed with their own label; test rows
its test probabilities. No probability is of a model that has seen the row; but models of other rows
have seen its label, so that scores of the student's held-out rows are a little too good.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset

from bertchain.arguments.competition import FoldArguments
from bertchain.competition.pseudo_labels import relabelled
from bertchain.data.contamination import HASH_COLUMN, hashes_of
from bertchain.data.tasks import Task
from bertchain.data.weights import EXTRA
from bertchain.errors import InputError
from bertchain.training.prediction import read_predictions


def read_teacher(options: FoldArguments, task: Task) -> dict[str, Dataset]:
    """Read predictions_oof.csv and, where there is a test split, predictions_test.csv of --teacher.

    Returns:
        for `pseudo_labels.join`: "teacher", id and labels of the training rows; "pseudo", the test
        rows with labels and weight; {} without a teacher.

    Raises:
        InputError: naming file and id, for predictions of other rows or labels.
    """
    if options.teacher is None:
        return {}
    folder, weight = Path(options.teacher), options.teacher_weight
    train, others = task.documents["train"]["id"][:], set()
    for split in ("validation", EXTRA):  # held out of the table, or of fold -1
        others |= {*task.documents[split]["id"]} if split in task.documents else set()
    labels = _read(folder / "predictions_oof.csv", task, train, others, "--train_file")
    mixed = weight * labels + (1 - weight) * task.spec.label_matrix(
        np.asarray(task.documents["train"]["labels"][:])
    )
    hashes = hashes_of(task.documents["train"])
    table = {"id": train, "labels": mixed.tolist(), HASH_COLUMN: hashes}
    found = {"teacher": Dataset.from_dict(table)}
    if "test" in task.documents:
        test = task.documents["test"]
        labels = _read(folder / "predictions_test.csv", task, test["id"][:], set(), "--test_file")
        found["pseudo"] = relabelled(test, labels, weight)
    return found


def _read(path: Path, task: Task, ids: Sequence[str], others: set[str], flag: str) -> np.ndarray:
    """Read a table of predictions in the order of some ids [n, labels]; it may have others, too."""
    own, values = read_predictions(path, task.spec)
    place = {name: row for row, name in enumerate(own)}
    missing = [name for name in ids if name not in place]
    stray = sorted({*own} - {*ids} - others)
    if missing or stray:
        what = f"lacks the id {missing[0]!r} of" if missing else f"has the id {stray[0]!r}, not in"
        raise InputError(f"{path} (--teacher) {what} {flag}; give a teacher of the same rows")
    return values[[place[name] for name in ids]]
