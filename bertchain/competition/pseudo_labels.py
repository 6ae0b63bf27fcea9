"""Rows without labels, labelled by earlier models, as more training rows: fold by fold.

What a model predicts for unlabelled text carries what it has learnt of its training rows. A row
that a new model is validated on must therefore not have been among them: the model of fold k gets
labels that the earlier model of fold k made, which has not seen fold k either.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from bertchain.arguments.finetuning import FoldArguments
from bertchain.data.labels import LabelSpec
from bertchain.data.tasks import Task
from bertchain.errors import InputError
from bertchain.training.prediction import read_table_of


def read_pseudo_labels(options: FoldArguments, task: Task) -> dict[int, dict[str, Dataset]]:
    """Read a file like predictions_test_by_fold.csv: id, fold, and the columns of the labels.

    Returns:
        for each fold {"pseudo": rows of the test split with labels and weight}; {} without a file.

    Raises:
        InputError: naming the file, for a missing column, fold or id, or other folds than this
            run's.
    """
    path, spec = options.pseudo_label_file, task.spec
    if path is None:
        return {}
    table = read_table_of(path)
    for name in ("id", "fold", *spec.value_columns):
        if name not in table:
            raise InputError(
                f"{path}: no column {name!r} (--pseudo_label_file); give the "
                "predictions_test_by_fold.csv of a run with folds"
            )
    _check_folds(path, task.documents["train"]["id"][:], task.folds)
    test = task.documents["test"]
    place = {name: row for row, name in enumerate(test["id"][:])}
    found = {}
    for fold in np.unique(task.folds).tolist():
        own = table[table["fold"] == fold]
        if own.empty:
            raise InputError(f"{path}: no rows of fold {fold}")
        stray = [name for name in own["id"] if name not in place]
        if stray:
            raise InputError(f"--pseudo_label_file: id {stray[0]!r} is not in --test_file")
        rows = test.select([place[name] for name in own["id"]])
        labels = own[spec.value_columns].to_numpy(float)
        found[fold] = {"pseudo": _relabelled(rows, labels, options.pseudo_label_weight)}
    return found


def _check_folds(path: str, ids: Sequence[str], folds: np.ndarray) -> None:
    """Raises InputError unless the run that a file is of had the same rows in the same folds."""
    assignment = Path(path).parent / "folds.csv"
    if not assignment.is_file():
        raise InputError(
            f"{path}: there is no folds.csv beside it, so its models may have seen all"
        )
    before = read_table_of(assignment)
    if before["id"].tolist() != list(ids) or (before["fold"].to_numpy() != folds).any():
        raise InputError(
            f"{assignment}: not the folds of this run, so that its labels come from models that "
            "saw rows which are validated now; use the same --seed, --num_folds and rows"
        )


def join(rows: dict[str, Dataset], spec: LabelSpec) -> Dataset:
    """The training rows, then those with pseudo-labels, if there are any.

    With them, labels are probabilities and a column weight is 1.0 or --pseudo_label_weight.
    """
    train = rows["train"]
    if "pseudo" not in rows:
        return train
    labelled = _relabelled(train, spec.label_matrix(train["labels"][:]).astype(float), 1.0)
    return concatenate_datasets([labelled, rows["pseudo"].select_columns(labelled.column_names)])


def count(rows: dict[str, Dataset]) -> dict[str, int]:
    """For the results: how many rows with pseudo-labels were trained on, if any."""
    return {"pseudo_labelled_rows": len(rows["pseudo"])} if "pseudo" in rows else {}


def _relabelled(rows: Dataset, labels: np.ndarray, weight: float) -> Dataset:
    kept = [name for name in rows.column_names if name not in ("labels", "weight")]
    rows = rows.select_columns(kept).add_column("labels", labels.tolist())
    return rows.add_column("weight", [weight] * len(rows))
