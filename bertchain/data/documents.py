"""Documents: the rows of a table as id, text (for pairs two texts) and labels."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from bertchain.data.label_values import to_name
from bertchain.data.labels import LabelSpec
from bertchain.data.tables import (
    Table,
    fingerprint,
    first_rows,
    require_cells,
    require_columns,
    with_column,
)
from bertchain.errors import InputError

logger = logging.getLogger(__name__)


def to_documents(
    table: Dataset,
    source: str,
    text_columns: Sequence[str],
    separator: str = " ",
    pair: bool = False,
    id_column: str | None = None,
) -> Dataset:
    """Turn a table into columns id, text and, for pairs, text_pair.

    A missing text becomes an empty one; their number is logged. Ids that are whole floats (7.0, as
    pandas holds integers of a column with gaps) are written as integers.

    Args:
        source: what error messages call the table.
        text_columns: joined by `separator` in this order; two for a `pair`.
        id_column: None: the row number, from 0, is the id.

    Raises:
        InputError: for a missing column, a value that is no text, an id that is missing or occurs
            twice, or a missing second text of a pair.
    """
    require_columns(table, text_columns, source, "--text_column_names")
    if id_column is not None:
        require_columns(table, [id_column], source, "--id_column_name")

    def convert(rows: dict[str, list], numbers: list[int]) -> dict[str, list]:
        ids = numbers
        if id_column is not None:
            ids = rows[id_column]
            require_cells(ids, id_column, source, "--id_column_name", numbers[0] + 1)
        if pair:
            second = text_columns[1]
            require_cells(rows[second], second, source, "--text_pair", numbers[0] + 1)
        for name in text_columns:
            _check_texts(rows[name], numbers, source, name)
        rows_of_texts = zip(*(rows[name] for name in text_columns), strict=True)
        documents = [join_texts(texts, separator, pair) for texts in rows_of_texts]
        columns = {name: [document[name] for document in documents] for name in documents[0]}
        return {"id": [to_id(i) for i in ids], **columns}

    written = ("text", "text_pair") if pair else ("text",)
    documents = table.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=Features({name: Value("string") for name in ("id", *written)}),
        load_from_cache_file=False,  # a cache does not notice changed code
        new_fingerprint=fingerprint(table, convert),
        desc=f"Reading {Path(source).name}",
    )
    _warn_of_empty(documents, source)
    if id_column is not None:
        twice = [i for i, n in Counter(documents["id"][:]).items() if n > 1]
        if twice:
            raise InputError(
                f"{source}: id {twice[0]!r} occurs more than once in column {id_column!r}"
            )
    return documents


def to_id(value: Any) -> str:
    """Write an id as text. 7 and 7.0 are the same: pandas turns integers into either."""
    return to_name(value) if isinstance(value, float) else str(value)


def join_texts(texts: Sequence[Any], separator: str, pair: bool) -> dict[str, str]:
    """Join the texts of a row to a text, or to text and text_pair. A missing value is no text."""
    strings = [_as_text(value) for value in texts]
    if pair:
        return {"text": strings[0], "text_pair": strings[1]}
    return {"text": separator.join(string for string in strings if string)}


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def _check_texts(values: Sequence[Any], numbers: Sequence[int], source: str, name: str) -> None:
    for number, value in zip(numbers, values, strict=True):
        if isinstance(value, dict | list):
            kind = "an object" if isinstance(value, dict) else "a list"
            wrong = f"{kind}, not text; name columns of text"
        elif isinstance(value, bytes):
            wrong = "bytes, not text; store the column as strings"
        elif isinstance(value, str) and "\0" in value:
            wrong = "a NUL character; is the file UTF-16? Save it as UTF-8"
        else:
            continue
        raise InputError(f"{source}, row {number + 1}, column {name!r}: {wrong}")


def _warn_of_empty(documents: Dataset, source: str) -> None:
    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    empty = sum(
        not any(texts)
        for rows in documents.select_columns(names).iter(10_000)  # not all text in memory at once
        for texts in zip(*rows.values(), strict=True)
    )
    if empty:
        logger.warning("%s: %d of %d documents have no text", source, empty, len(documents))


def all_text(documents: Dataset) -> list[str]:
    """The text of each document [documents]; the two texts of a pair, joined by a line break."""
    if "text_pair" not in documents.column_names:
        return documents["text"][:]
    pairs = zip(documents["text"][:], documents["text_pair"][:], strict=True)
    return ["\n".join(pair) for pair in pairs]


def label_documents(
    tables: dict[str, Table], limits: dict[str, int | None], spec: LabelSpec, **columns: Any
) -> dict[str, Dataset]:
    """Turn tables into documents with a column labels; a test table without labels gets none.

    Args:
        limits: for each split, how many of its first rows to use, or None.
        columns: the arguments of `to_documents` from `text_columns` on.

    Raises:
        InputError: for a text column that is the label; as `to_documents` and `LabelSpec.encode`.
    """
    leaked = [name for name in columns["text_columns"] if name in spec.columns]
    if leaked:
        name = leaked[0]
        raise InputError(f"--text_column_names: {name!r} is the label, which would be read off")
    documents = {}
    for split, (table, source) in tables.items():
        rows = first_rows(table, limits.get(split))
        documents[split] = to_documents(rows, source, **columns)
        if split != "test" or spec.has_labels(rows):
            labels = spec.encode(rows, source)
            documents[split] = with_column(documents[split], "labels", labels)
    return documents
