"""Tables -> documents, and the rows held out for validation.

A document is one row: id, text (perhaps a second text), labels. Rows come through `datasets`,
memory-mapped, and never lose their order.
"""

import csv
import gzip
import io
import logging
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    get_dataset_split_names,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError
from pyarrow import parquet

from command_line import InputError, as_input_error
from labels import LabelSpec, require_columns

logger = logging.getLogger(__name__)

DELIMITERS = (",", "\t", ";", "|")
UNREADABLE = (
    DatasetGenerationError,
    ValueError,
    OSError,
    EOFError,
    LookupError,
    csv.Error,
    zlib.error,
)


# ---------------------------------------------------------------- tables


def read_table(
    path: str, delimiter: str | None = None, encoding: str = "utf-8", streaming: bool = False
) -> Dataset | IterableDataset:
    """Read .csv, .tsv, .txt (a document a line), .json, .jsonl or .parquet, each also .gz.

    Columns of .csv and .tsv come as text, so that "NA", "007" and "1e5" stay what they are; what a
    label means is settled later, by its values. Streamed, rows are read as they are asked for.

    Raises:
        InputError: for a missing, empty, undecodable or malformed file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    if file.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    if suffix not in READERS:
        raise InputError(
            f"{path}: {suffix or 'no'} extension; use one of {', '.join(READERS)}, or with .gz"
        )
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"  # reads a byte order mark away, and text without one as before
    try:
        table = READERS[suffix](path, delimiter, encoding, streaming)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: {_reason(error, encoding)}") from error
    if not streaming and len(table) == 0:
        raise InputError(f"{path}: no rows")
    return table


def _reason(error: BaseException, encoding: str) -> str:
    while error.__cause__ is not None:  # datasets wraps what went wrong
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        byte = f"{error.object[error.start]:#04x}"
        return f"not {encoding.removesuffix('-sig')} text (byte {byte}); name another --encoding"
    if type(error) is LookupError:  # not a KeyError
        return f"--encoding {encoding} is not known"
    if "corresponds to no data" in str(error):
        return "no rows"
    return " ".join(str(error).split()) or type(error).__name__


def load_file(kind: str, path: str, **options: Any) -> Dataset | IterableDataset:
    """`load_dataset` of a local file, which by itself tells a counter on the network of each."""
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        return load_dataset(kind, data_files=path, split="train", **options)
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting


def _read_delimited(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    delimiter = delimiter or find_delimiter(path, encoding)
    with open_text(path, encoding) as lines:
        header = next(csv_rows(lines, delimiter=delimiter), [])
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs twice in the header")
    return load_file(
        "csv",
        path,
        sep=delimiter,
        encoding=encoding,
        features=Features({name: Value("string") for name in header}),
        keep_default_na=False,
        quoting=csv.QUOTE_NONE if is_unquoted(path, delimiter, encoding) else csv.QUOTE_MINIMAL,
        skip_blank_lines=len(header) > 1,  # with one column a blank line is an empty document
        streaming=streaming,
    )


def _read_tab_separated(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    return _read_delimited(path, delimiter or "\t", encoding, streaming)


def _read_lines(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    options = {"encoding": encoding, "streaming": streaming}
    return load_file("text", path, **options)


def _read_json(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    options = {"encoding": encoding, "streaming": streaming}
    return load_file("json", path, **options)


def _read_parquet(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    if path.endswith(".gz"):  # the only format that datasets does not unpack
        with gzip.open(path) as packed:
            table = Dataset(parquet.read_table(io.BytesIO(packed.read())))
        return table.to_iterable_dataset() if streaming else table
    return load_file("parquet", path, streaming=streaming)


READERS = {
    ".csv": _read_delimited,
    ".tsv": _read_tab_separated,
    ".txt": _read_lines,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def open_text(path: str, encoding: str) -> io.TextIOBase:
    opener = gzip.open if str(path).endswith(".gz") else open
    return opener(path, "rt", encoding=encoding, newline="")


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """`csv.reader`, for cells of any length: a document may be long."""
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines, delimiter=delimiter)


def find_delimiter(path: str, encoding: str) -> str:
    """The delimiter that gives the header the most columns, if the first rows have as many."""
    with open_text(path, encoding) as lines:
        sample = [line for line, _ in zip(lines, range(200), strict=False)]

    def fit(delimiter: str) -> tuple[bool, int]:
        widths = [len(row) for row in csv_rows(sample, delimiter=delimiter) if row][:20] or [1]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0]

    return max(DELIMITERS, key=fit)  # the first of equals: comma


def is_unquoted(path: str, delimiter: str, encoding: str) -> bool:
    """Whether a tab-separated file uses quotation marks as plain text.

    Many such files hold no quoting at all, and a stray mark would then swallow rows up to the next
    one. That is so when every line has the right number of tabs but reading with quotes gives fewer
    rows. A header with marks around its names says that they are quoting.
    """
    if delimiter != "\t":
        return False
    with open_text(path, encoding) as lines:
        header = next(lines, "")
        if any(name.startswith('"') for name in header.split("\t")):
            return False
        every = chain([header], lines)
        widths = Counter(line.count("\t") for line in every if line.strip("\r\n"))
    if len(widths) != 1:
        return False
    with open_text(path, encoding) as lines:
        rows = sum(1 for row in csv_rows(lines, delimiter="\t") if row)
    unquoted = rows != sum(widths.values())
    if unquoted:
        logger.info("%s: quotation marks are read as plain text", path)
    return unquoted


class Table(NamedTuple):
    rows: Dataset
    source: str  # what an error message calls it: a file, or a data set and split


def read_splits(
    files: dict[str, str | None],
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> dict[str, Table]:
    """Tables by split: train, validation, test, as far as they are there.

    Args:
        files: a path or None for each split.
    """
    if dataset_name is None:
        tables = {
            s: Table(read_table(path, delimiter, encoding), path)
            for s, path in files.items()
            if path
        }
    else:
        splits = {s: read_hub_table(dataset_name, dataset_config_name, s) for s in files}
        tables = {s: Table(t, f"{dataset_name} ({s})") for s, t in splits.items() if t is not None}
    if not tables:
        raise InputError(f"--dataset_name {dataset_name} has no split {', '.join(files)}")
    return tables


def first_rows(table: Dataset, limit: int | None) -> Dataset:
    return table if limit is None else table.select(range(min(limit, len(table))))


def read_hub_table(
    name: str, config_name: str | None, split: str, streaming: bool = False
) -> Dataset | IterableDataset | None:
    """A split of a data set of the hub or a local folder, or None where it has no such split."""
    with as_input_error(f"--dataset_name {name}"):
        try:
            if split not in get_dataset_split_names(name, config_name):
                return None
            return load_dataset(name, config_name, split=split, streaming=streaming)
        except (DatasetGenerationError, ConnectionError) as error:
            raise InputError(f"--dataset_name {name}: {_reason(error, 'utf-8')}") from error


# ---------------------------------------------------------------- documents


def to_documents(
    table: Dataset,
    source: str,
    text_columns: Sequence[str],
    separator: str = " ",
    pair: bool = False,
    id_column: str | None = None,
) -> Dataset:
    """Table -> columns id, text and, for pairs, text_pair. A missing text is empty, and said aloud.

    Raises:
        InputError: for a missing column or an id that occurs twice.
    """
    require_columns(table, text_columns, source, "--text_column_names")
    if id_column is not None:
        require_columns(table, [id_column], source, "--id_column_name")

    def convert(rows: dict[str, list], numbers: list[int]) -> dict[str, list]:
        ids = numbers if id_column is None else rows[id_column]
        for name in text_columns:
            _check_texts(rows[name], numbers, source, name)
        rows_of_texts = zip(*(rows[name] for name in text_columns), strict=True)
        documents = [join_texts(texts, separator, pair) for texts in rows_of_texts]
        columns = {name: [document[name] for document in documents] for name in documents[0]}
        return {"id": [str(i) for i in ids], **columns}

    written = ("text", "text_pair") if pair else ("text",)
    documents = table.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
        features=Features({name: Value("string") for name in ("id", *written)}),
        load_from_cache_file=False,  # a cache does not notice changed code
        desc=f"Reading {Path(source).name}",
    )
    _count_missing(documents, source)
    if id_column is not None:
        twice = [i for i, n in Counter(documents["id"][:]).items() if n > 1]
        if twice:
            raise InputError(
                f"{source}: id {twice[0]!r} occurs more than once in column {id_column!r}"
            )
    return documents


def join_texts(texts: Sequence[Any], separator: str, pair: bool) -> dict[str, str]:
    """The columns of a row -> text, or text and text_pair. A missing value is no text."""
    parts = [_as_text(value) for value in texts]
    if pair:
        return {"text": parts[0], "text_pair": parts[1]}
    return {"text": separator.join(part for part in parts if part)}


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


def _count_missing(documents: Dataset, source: str) -> None:
    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    empty = sum(
        not any(texts)
        for rows in documents.select_columns(names).iter(10_000)  # not all text in memory at once
        for texts in zip(*rows.values(), strict=True)
    )
    if empty:
        logger.warning("%s: %d of %d documents have no text", source, empty, len(documents))


def all_text(documents: Dataset) -> list[str]:
    """The text of each document, both texts of a pair."""
    if "text_pair" not in documents.column_names:
        return documents["text"][:]
    pairs = zip(documents["text"][:], documents["text_pair"][:], strict=True)
    return ["\n".join(pair) for pair in pairs]


def label_documents(
    tables: dict[str, Table], limits: dict[str, int | None], spec: LabelSpec, **columns: Any
) -> dict[str, Dataset]:
    """Tables -> documents with a column labels; a test table without labels stays without.

    Args:
        limits: for each split, how many of its first rows to use, or None.
        columns: the arguments of `to_documents` from `text_columns` on.
    """
    told = [name for name in columns["text_columns"] if name in spec.columns]
    if told:
        raise InputError(f"--text_column_names: {told[0]!r} is the label, which would be read off")
    documents = {}
    for split, (table, source) in tables.items():
        rows = first_rows(table, limits[split])
        documents[split] = to_documents(rows, source, **columns)
        if split != "test" or spec.has_labels(rows):
            labels = spec.encode(rows, source)
            documents[split] = documents[split].add_column("labels", labels)
    return documents


# ---------------------------------------------------------------- validation


def hold_out_validation(
    documents: dict[str, Dataset], share: float, problem_type: str, seed: int
) -> dict[str, Dataset]:
    """Without a validation set a stratified share of training becomes it, never of test."""
    if "train" not in documents or "validation" in documents:
        return documents
    train = documents["train"]
    held_out = hold_out(strata_of(train["labels"][:], problem_type), share, seed)
    if not held_out.any():
        raise InputError(
            f"--validation_split {share} of {len(train)} rows holds out none; "
            "give a --validation_file or a larger share"
        )
    logger.info("Held out of training for validation: %d of %d", held_out.sum(), len(train))
    parts = {"train": np.flatnonzero(~held_out), "validation": np.flatnonzero(held_out)}
    return documents | {split: train.select(rows) for split, rows in parts.items()}


def hold_out(strata: Sequence[Any], share: float, seed: int) -> np.ndarray:
    """Choose rows to hold out, each stratum in proportion to within one row.

    Rows are laid out stratum by stratum, shuffled inside, and every (1 / share)-th is taken. A
    stratum of one row stays in training.

    Returns:
        a mask [n], True for held-out rows.
    """
    rng = np.random.default_rng(seed)
    keys = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]  # [n] numbers
    rows = np.lexsort((rng.random(len(keys)), keys))
    rows = rows[np.bincount(keys)[keys[rows]] > 1]
    steps = np.floor((np.arange(len(rows) + 1) + rng.random()) * share)
    held_out = np.zeros(len(keys), dtype=bool)
    held_out[rows[np.diff(steps) > 0]] = True
    return held_out


def strata_of(labels: Sequence[Any], problem_type: str) -> list[Any]:
    """What to stratify by: the (likeliest) class; a row's rarest label; the tenth of its target."""
    if problem_type == "single_label":
        soft = len(labels) > 0 and isinstance(labels[0], list)
        return np.argmax(labels, axis=1).tolist() if soft else list(labels)
    array = np.asarray(labels, dtype=float)
    if problem_type == "regression":
        return np.searchsorted(
            np.quantile(array[:, 0], np.arange(0.1, 1, 0.1)), array[:, 0]
        ).tolist()
    frequency = array.sum(axis=0)
    return [
        int(np.where(row > 0, frequency, np.inf).argmin()) if row.any() else -1 for row in array
    ]


# ---------------------------------------------------------------- fewer rows


def choose_subset(
    train: Dataset,
    problem_type: str,
    fraction: float | None,
    per_class: int | None,
    seed: int,
) -> Dataset:
    """A stratified share of the training rows, or so many of each class, in their order.

    Subsets of one seed are nested: a larger one holds all rows of a smaller one.

    Raises:
        InputError: if `per_class` has no meaning for the labels, or a class has fewer rows.
    """
    if fraction is None and per_class is None:
        return train
    if per_class is not None and problem_type != "single_label":
        raise InputError(f"--train_per_class needs one class a row, not {problem_type} labels")
    strata = strata_of(train["labels"][:], problem_type)
    if per_class is not None:
        few = [name for name, n in Counter(strata).items() if n < per_class]
        if few:
            raise InputError(
                f"--train_per_class {per_class}: a class has {Counter(strata)[few[0]]} training "
                "rows only"
            )
    rng = np.random.default_rng(seed)
    keys = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]  # [n] numbers
    rows = np.lexsort((rng.random(len(keys)), keys))  # class by class, shuffled inside
    counts = np.bincount(keys)
    place = np.empty(len(keys), dtype=int)  # of each row among those of its class, from 0
    place[rows] = np.concatenate([np.arange(n) for n in counts])
    wanted = place < per_class if per_class else (place + 0.5) / counts[keys] <= fraction
    chosen = np.flatnonzero(wanted)
    if len(chosen) == 0:
        raise InputError(f"--train_fraction {fraction} of {len(train)} rows leaves none")
    logger.info("Training on %d of %d rows", len(chosen), len(train))
    return train.select(chosen)
