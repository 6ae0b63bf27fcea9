"""Concepts: labels of other tasks on the rows of a task, from columns of the same tables."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset

from bertchain.data.documents import to_id
from bertchain.data.label_values import is_missing, label_values, to_name
from bertchain.data.labels import LabelSpec
from bertchain.data.tables import Table, first_rows, require_columns
from bertchain.errors import InputError

FLAG = "--concept_column_names"


@dataclass(frozen=True)
class Concept:
    """A label that rows have beside that of the task.

    Attributes:
        labels: encoded, by split, [n] or [n, labels], in the order of the task's own; a test split
            may have none.
    """

    spec: LabelSpec
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Cells:
    """A concept's value for each labelled thing of a table: its rows, or their targets.

    Attributes:
        ends: how many there are before each row, and at the end all of them [rows + 1].
        rows: number of the row of each id.
    """

    values: Dataset
    source: str
    ends: np.ndarray
    rows: dict[str, int]


def read_concepts(
    columns: Sequence[str],
    tables: dict[str, Table],
    documents: dict[str, Dataset],
    limits: dict[str, int | None],
    *,
    spans_column: str | None,
    id_column: str | None,
) -> dict[str, Concept]:
    """Read concepts from columns of the tables of a task; of labelled spans from fields of targets.

    Args:
        documents: of the task, by split, as they were read from the tables; with validation rows.
        limits: how many of the first rows of each table were read; None: all.

    Raises:
        InputError: naming file, column and row, for what is missing or cannot be encoded.
    """
    concepts = {}
    for column in columns:
        cells = {
            split: _read_cells(
                Table(first_rows(rows, limits[split]), source), column, spans_column, id_column
            )
            for split, (rows, source) in tables.items()
            if split != "test" or _is_there(rows, column, spans_column)
        }
        concepts[column] = _encode(column, cells, documents)
    return concepts


def _is_there(rows: Dataset, column: str, spans_column: str | None) -> bool:
    return column in rows.column_names or spans_column is not None


def _read_cells(
    table: Table, column: str, spans_column: str | None, id_column: str | None
) -> _Cells:
    rows, source = table
    ids = range(len(rows)) if id_column is None else rows[id_column][:]
    places = {to_id(value): number for number, value in enumerate(ids)}
    if len(places) < len(rows):
        raise InputError(f"{source}: an id occurs twice in column {id_column!r}; {FLAG} needs them")
    if spans_column is None:
        require_columns(rows, [column], source, FLAG)
        ends = np.arange(len(rows) + 1)
        return _Cells(rows.select_columns([column]), f"{source}, column {column!r}", ends, places)
    targets = [
        [target for target in own or [] if target["label"] is not None]
        for own in rows[spans_column][:]
    ]
    flat = [target for own in targets for target in own]
    if not any(column in target for target in flat):
        there = ", ".join(flat[0])
        raise InputError(f"{source}: targets have no field {column!r} ({FLAG}); there are: {there}")
    values = Dataset.from_dict({column: [target.get(column) for target in flat]})
    ends = np.cumsum([0, *map(len, targets)])
    return _Cells(values, f"{source}, field {column!r} of targets", ends, places)


def _encode(column: str, cells: dict[str, _Cells], documents: dict[str, Dataset]) -> Concept:
    """Infer the labels from the training table and encode all splits. A label that training lacks
    has a class too, so that its rows count as wrong."""
    spec = LabelSpec.infer(cells["train"].values, cells["train"].source, [column])
    if "test" in cells and not spec.has_labels(cells["test"].values):
        cells = {split: own for split, own in cells.items() if split != "test"}
    if spec.problem_type == "single_label":
        each = [label_values(own.values, [column], None) for own in cells.values()]
        names = {to_name(value) for values in each for value in values if not is_missing(value)}
        spec = replace(spec, names=(*spec.names, *sorted(names - {*spec.names})))
    encoded = {
        split: spec.hard_labels(np.array(spec.encode(own.values, own.source)))
        for split, own in cells.items()
    }
    labels = {}
    for split, rows in documents.items():
        held_out = split == "validation" and split not in cells
        table = "train" if held_out else split
        if table in cells and "labels" in rows.column_names:
            numbers = [cells[table].rows[name] for name in rows["id"][:]]
            ends = cells[table].ends
            taken = [np.arange(*ends[[number, number + 1]]) for number in numbers]
            labels[split] = encoded[table][np.concatenate(taken)]
    if len(np.unique(labels["train"], axis=0)) < 2:
        raise InputError(f"{cells['train'].source}: all training rows have the same label")
    return Concept(spec, labels)
