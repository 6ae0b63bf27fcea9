"""Weights of rows, and further training rows."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets

from bertchain.arguments.competition import RowArguments
from bertchain.data.label_values import to_number
from bertchain.data.tables import Table, first_rows, read_table, require_columns, with_column
from bertchain.errors import InputError

EXTRA = "extra"  # the split of rows that are trained on in every fold, and validated in none
LOSS, SCORE = "weight", "score_weight"  # columns: in the training loss, in the scores


def read_extra(options: RowArguments, form: dict[str, str | None]) -> dict[str, Table]:
    """Read --extra_train_file as a split of its own; {} without. Args: form: see `read_table`."""
    path = options.extra_train_file
    return {} if path is None else {EXTRA: Table(read_table(path, **form), path)}


def with_weights(
    documents: dict[str, Dataset], tables: dict[str, Table], options: RowArguments
) -> dict[str, Dataset]:
    """Add the weights of rows: those in the loss to training rows, those in scores to all.

    A test table, and that of further rows, may lack the column.

    Args:
        documents: by split, the first rows of the tables.

    Raises:
        InputError: naming file, row and value, for what is no weight, and where all are 0.
    """
    if not options.weighs:
        return documents
    column, flag, found = options.weight_column_name, "--weight_column_name", {}
    for split, rows in documents.items():
        table, trained = tables[split], split in ("train", EXTRA)
        if split == "train" or (split == "validation" and options.weigh_metrics):
            require_columns(table.rows, [column] if column else [], table.source, flag)
        weights = np.ones(len(rows))
        if column in table.rows.column_names and (trained or options.weigh_metrics):
            weights = parse_weights(first_rows(table.rows, len(rows))[column], column, table.source)
        if trained:
            times = options.extra_train_weight if split == EXTRA else 1.0
            rows = with_column(rows, LOSS, (weights * times).tolist())
        if options.weigh_metrics and split != EXTRA:
            rows = with_column(rows, SCORE, weights.tolist())
        found[split] = rows
    return found


def parse_weights(cells: Sequence, column: str, source: str) -> np.ndarray:
    """Parse a column of weights, float [n].

    Raises:
        InputError: as `with_weights`.
    """
    numbers = [to_number(cell) for cell in cells]
    for row, (cell, number) in enumerate(zip(cells, numbers, strict=True), 1):
        if number is None or number < 0:
            raise InputError(
                f"{source}, row {row}, column {column!r} (--weight_column_name): {cell!r} is not a "
                "weight of at least 0; drop the row or give it 0"
            )
    if not any(numbers):
        raise InputError(f"{source}: column {column!r} (--weight_column_name) holds zeros alone")
    return np.array(numbers, dtype=float)


def join_rows(train: Dataset, extra: Dataset | None) -> Dataset:
    """Join training rows and further ones; rows of weight 0 are left out, and weights of scores."""
    parts = [train] if extra is None else [train, extra]
    joined = concatenate_datasets([without(rows, SCORE) for rows in parts])
    if LOSS not in joined.column_names:
        return joined
    weights = np.array(joined[LOSS][:])
    return joined if weights.all() else joined.select(np.flatnonzero(weights))


def without(rows: Dataset, column: str) -> Dataset:
    """Leave out a column, where it is there."""
    return rows.remove_columns(column) if column in rows.column_names else rows


def weights_of(rows: Dataset) -> np.ndarray | None:
    """The weights of rows in scores [n]; None: all count alike."""
    return np.array(rows[SCORE][:]) if SCORE in rows.column_names else None
