"""Pseudo-labels: unlabelled rows as further training rows, labelled by an earlier run, by fold.

Predictions carry what their model learnt of its training rows, so validation rows of a new model
must not have been among them: the model of fold k gets the labels that the earlier model of fold k
predicted, which has not seen fold k either.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from bertchain.arguments.competition import FoldArguments
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import fold_columns
from bertchain.data.tables import with_column
from bertchain.data.tasks import Task
from bertchain.data.weights import LOSS, SCORE
from bertchain.errors import InputError
from bertchain.training.prediction import read_written_table


def read_pseudo_labels(options: FoldArguments, task: Task) -> dict[int | None, dict[str, Dataset]]:
    """Read --pseudo_label_file: columns id, fold, and those of the labels' probabilities.

    Returns:
        for each fold {"pseudo": rows of the test split with labels and weight}, and for None, which
        stands for all rows, with the mean over folds; {} without a file.

    Raises:
        InputError: naming the file, for a missing column, fold or id, or folds that are not this
            run's.
    """
    path, spec = options.pseudo_label_file, task.spec
    if path is None:
        return {}
    table = read_written_table(path)
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
    mean = table.groupby("id", sort=False)[spec.value_columns].mean().reset_index()
    for fold in [*np.unique(task.folds).tolist(), None]:
        own = mean if fold is None else table[table["fold"] == fold]
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
    """Raises InputError unless the run that wrote the file had the same rows in the same folds."""
    assignment = Path(path).parent / "folds.csv"
    if not assignment.is_file():
        raise InputError(
            f"{path}: there is no folds.csv beside it, so its models may have seen all"
        )
    previous, columns = read_written_table(assignment), fold_columns(folds)
    same = previous["id"].tolist() == list(ids) and {*previous} == {"id", *columns}
    if not same or any((previous[name].to_numpy() != c).any() for name, c in columns.items()):
        raise InputError(
            f"{assignment}: not the folds of this run, so that its labels come from models that "
            "saw rows which are validated now; use the same --seed, --num_folds and rows"
        )


def join(rows: dict[str, Dataset], spec: LabelSpec) -> Dataset:
    """Join the training rows and those with pseudo-labels, if there are any.

    With pseudo-labels, labels are probabilities, and a column weight is 1.0, or what the rows have,
    or --pseudo_label_weight.
    """
    train = rows["train"]
    if "pseudo" not in rows:
        return train
    own = train[LOSS][:] if LOSS in train.column_names else 1.0
    labelled = _relabelled(train, spec.label_matrix(train["labels"][:]).astype(float), own)
    return concatenate_datasets([labelled, rows["pseudo"].select_columns(labelled.column_names)])


def count(rows: dict[str, Dataset]) -> dict[str, int]:
    """Count the training rows with pseudo-labels, for the results; {} without any."""
    return {"pseudo_labelled_rows": len(rows["pseudo"])} if "pseudo" in rows else {}


def _relabelled(rows: Dataset, labels: np.ndarray, weight: float | list[float]) -> Dataset:
    """Rows with labels [n, labels] and a column weight in place of their own."""
    kept = [name for name in rows.column_names if name not in ("labels", LOSS, SCORE)]
    rows = with_column(rows.select_columns(kept), "labels", labels.tolist())
    return with_column(rows, LOSS, weight if isinstance(weight, list) else [weight] * len(rows))
