"""Rows without labels, labelled by earlier models, as more training rows: fold by fold.

What a model predicts for unlabelled text carries what it has learnt of its training rows. A row
that a new model is validated on must therefore not have been among them: the model of fold k gets
labels that the earlier model of fold k made, which has not seen fold k either.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset, concatenate_datasets

from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.training.prediction import read_table_of


class PseudoLabels(NamedTuple):
    ids: list[str]
    labels: np.ndarray  # [n, labels]: probabilities, of regression values


def read_pseudo_labels(
    path: str, spec: LabelSpec, ids: Sequence[str], folds: np.ndarray
) -> dict[int, PseudoLabels]:
    """A file as predictions_test_by_fold.csv: id, fold, and the columns of the labels.

    Args:
        ids, folds: of this run's training rows, which must be the same in the run the file is of.

    Raises:
        InputError: naming the file, for a missing column or fold, or other folds than this run's.
    """
    table = read_table_of(path)
    for name in ("id", "fold", *spec.value_columns):
        if name not in table:
            raise InputError(
                f"{path}: no column {name!r} (--pseudo_label_file); give the "
                "predictions_test_by_fold.csv of a run with folds"
            )
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
    found = {}
    for fold in np.unique(folds).tolist():
        rows = table[table["fold"] == fold]
        if rows.empty:
            raise InputError(f"{path}: no rows of fold {fold}")
        found[fold] = PseudoLabels(rows["id"].tolist(), rows[spec.value_columns].to_numpy(float))
    return found


def add_pseudo_labels(
    train: Dataset, unlabelled: Dataset, pseudo: PseudoLabels, weight: float, spec: LabelSpec
) -> Dataset:
    """The training rows, then those with pseudo-labels; a column weight is 1.0 or `weight`.

    Args:
        unlabelled: rows with windows, found by their ids.

    Raises:
        InputError: naming an id that `unlabelled` lacks.
    """
    place = {name: row for row, name in enumerate(unlabelled["id"][:])}
    stray = [name for name in pseudo.ids if name not in place]
    if stray:
        raise InputError(f"--pseudo_label_file: id {stray[0]!r} is not in --test_file")
    labels = spec.truth(train["labels"][:]).astype(float)
    real = relabelled(train, labels, 1.0)
    more = relabelled(
        unlabelled.select([place[name] for name in pseudo.ids]), pseudo.labels, weight
    )
    return concatenate_datasets([real, more.select_columns(real.column_names)])


def relabelled(rows: Dataset, labels: np.ndarray, weight: float) -> Dataset:
    kept = [name for name in rows.column_names if name not in ("labels", "weight")]
    rows = rows.select_columns(kept).add_column("labels", labels.tolist())
    return rows.add_column("weight", [weight] * len(rows))
