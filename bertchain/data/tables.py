"""Tables: files and hub data sets, read through `datasets`.

Rows are memory-mapped and keep their order.
"""

import csv
import glob
import gzip
import io
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    get_dataset_split_names,
    load_dataset,
)
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher, generate_random_fingerprint
from pyarrow import parquet

from bertchain.errors import InputError, as_input_error
from bertchain.runtime import given

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


def read_table(
    path: str, delimiter: str | None = None, encoding: str = "utf-8", streaming: bool = False
) -> Dataset | IterableDataset:
    """Read .csv, .tsv, .txt (a document a line), .json, .jsonl or .parquet, each also .gz.

    The name of a table in memory gives that table, see runtime/given.py.

    Columns of .csv and .tsv come as text, so that "NA", "007" and "1e5" stay what they are; what a
    label means is inferred later, from all values.

    Args:
        delimiter: of .csv and .tsv; None: the one that a first line such as sep=; names, else
            found (.tsv: tab).
        streaming: read rows as they are asked for.

    Raises:
        InputError: for a missing, empty, undecodable or malformed file.
    """
    if given.is_held(path):
        return given.find(path).to_iterable_dataset() if streaming else given.find(path)
    file = Path(path)
    if file.is_dir():
        raise InputError(f"{path} is a folder; name a file, or by --dataset_name a saved data set")
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
    """Call `load_dataset` on a local file, without its request to a download counter.

    The path is escaped: `[`, `*` and `?` would make a pattern of it, which finds other files.
    """
    counting = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    try:
        return load_dataset(kind, data_files=glob.escape(path), split="train", **options)
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counting


def _read_delimited(
    path: str, delimiter: str | None, encoding: str, streaming: bool, usual: str | None = None
) -> Dataset | IterableDataset:
    named = named_delimiter(path, encoding)
    delimiter = delimiter or named or usual or find_delimiter(path, encoding)
    skipped = 0 if named is None else 1  # lines
    with open_text(path, encoding) as lines:
        rows = csv_rows(islice(lines, skipped, None), delimiter=delimiter)
        header, first = next(rows, []), next(rows, [])
    # an index that pandas wrote has no name; pandas reads it so
    header = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs twice in the header")
    unquoted = is_unquoted(path, delimiter, encoding, skipped)  # then all have as many tabs
    if not unquoted and len(first) > len(header):  # pandas would take first cells for an index
        raise InputError(
            f"{path}, row 1: {len(first)} cells, but the header has {len(header)}; name all "
            "columns, put cells with the delimiter in quotation marks, or name another --delimiter"
        )
    return load_file(
        "csv",
        path,
        sep=delimiter,
        encoding=encoding,
        features=Features({name: Value("string") for name in header}),
        keep_default_na=False,
        quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL,
        skiprows=skipped,
        skip_blank_lines=len(header) > 1,  # with one column a blank line is an empty document
        streaming=streaming,
    )


def _read_tab_separated(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    return _read_delimited(path, delimiter, encoding, streaming, usual="\t")


def _read_encoded(
    kind: str, path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    return load_file(kind, path, encoding=encoding, streaming=streaming)


def _read_parquet(
    path: str, delimiter: str | None, encoding: str, streaming: bool
) -> Dataset | IterableDataset:
    if path.endswith(".gz"):  # the only format that datasets does not unpack
        with gzip.open(path) as packed:
            table = Dataset(parquet.read_table(io.BytesIO(packed.read())))
        return table.to_iterable_dataset() if streaming else table
    return load_file("parquet", path, streaming=streaming)


READERS = {  # (path, delimiter, encoding, streaming) -> table
    ".csv": _read_delimited,
    ".tsv": _read_tab_separated,
    ".txt": partial(_read_encoded, "text"),
    ".json": partial(_read_encoded, "json"),
    ".jsonl": partial(_read_encoded, "json"),
    ".parquet": _read_parquet,
}


def open_text(path: str, encoding: str) -> io.TextIOBase:
    """Open a text file, also .gz; line ends stay as they are, for `csv`."""
    opener = gzip.open if str(path).endswith(".gz") else open
    return opener(path, "rt", encoding=encoding, newline="")


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Parse rows with `csv.reader`, whose cells may be of any length: a document may be long."""
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines, delimiter=delimiter)


def named_delimiter(path: str, encoding: str) -> str | None:
    """Read the delimiter that a first line names, as in sep=; of Excel; None without one."""
    with open_text(path, encoding) as lines:
        found = re.fullmatch(r'"?sep=(.)"?\s*', next(lines, ""), re.IGNORECASE)
    return found and found[1]


def find_delimiter(path: str, encoding: str) -> str:
    """Find the delimiter that gives the header the most columns, if the first rows have as many."""
    with open_text(path, encoding) as lines:
        sample = [line for line, _ in zip(lines, range(200), strict=False)]

    def fit(delimiter: str) -> tuple[bool, int]:
        widths = [len(row) for row in csv_rows(sample, delimiter=delimiter) if row][:20] or [1]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0]

    return max(DELIMITERS, key=fit)  # the first of equals: comma


def is_unquoted(path: str, delimiter: str, encoding: str, skipped: int = 0) -> bool:
    """Return whether quotation marks in a tab-separated file are plain text.

    Many such files are not quoted at all, and a stray mark would swallow all rows up to the next
    one. A file counts as unquoted if every line has the same number of tabs but parsing with quotes
    gives fewer rows. A header whose names are in marks says that the file is quoted.

    Args:
        skipped: number of lines above the header.
    """
    if delimiter != "\t":
        return False
    with open_text(path, encoding) as lines:
        header = next(islice(lines, skipped, None), "")
        if any(name.startswith('"') for name in header.split("\t")):
            return False
        every = chain([header], lines)
        widths = Counter(line.count("\t") for line in every if line.strip("\r\n"))
    if len(widths) != 1:
        return False
    with open_text(path, encoding) as lines:
        rows = sum(1 for row in csv_rows(islice(lines, skipped, None), delimiter="\t") if row)
    unquoted = rows != sum(widths.values())
    if unquoted:
        logger.info("%s: quotation marks are read as plain text", path)
    return unquoted


class Table(NamedTuple):
    """Rows, and where they are from: a file, or a data set and split (for error messages)."""

    rows: Dataset
    source: str


def require_columns(
    table: Dataset | dict[str, Any], columns: Iterable[str], source: str, argument: str
) -> None:
    """Check that a table, or a streamed row, has these columns.

    Raises:
        InputError: naming `source`, column and `argument`, and the columns that are there.
    """
    names = getattr(table, "column_names", table)
    for column in columns:
        if column in names:
            continue
        blank = [name for name in names if name.strip() == column]
        if blank:
            raise InputError(
                f"{source}: no column {column!r} ({argument}), but {blank[0]!r}: take the blanks "
                "off the header, or name the column with them"
            )
        there = ", ".join(names)
        raise InputError(f"{source}: no column {column!r} ({argument}); there are: {there}")


def require_cells(
    cells: Iterable[Any], column: str, source: str, argument: str, first_row: int = 1
) -> None:
    """Check that no cell of a column is missing: empty text, null or NaN.

    Args:
        first_row: number of the row of the first cell.

    Raises:
        InputError: naming `source`, row, column and `argument`.
    """
    for row, cell in enumerate(cells, first_row):
        if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # NaN
            raise InputError(
                f"{source}, row {row}, column {column!r} ({argument}): the cell is empty; fill it "
                "in or drop the row"
            )


def read_splits(
    files: dict[str, str | None],
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> dict[str, Table]:
    """Read the tables of the splits that are there.

    Args:
        files: for each split (train, validation, test) a path or None; with a `dataset_name` only
            its keys count.
        dataset_name, dataset_config_name: a data set of the hub or a local folder.

    Raises:
        InputError: if no split is there; as `read_table` and `read_hub_table`.
    """
    if dataset_name is None:
        there = {split: path for split, path in files.items() if path}
        tables = {s: Table(read_table(p, delimiter, encoding), p) for s, p in there.items()}
    else:
        splits = {s: read_hub_table(dataset_name, dataset_config_name, s) for s in files}
        tables = {s: Table(t, f"{dataset_name} ({s})") for s, t in splits.items() if t is not None}
    if not tables:
        raise InputError(f"--dataset_name {dataset_name} has no split {', '.join(files)}")
    return tables


def fingerprint(rows: Dataset, *made_by: Any) -> str:
    """Name what is made of rows by a function or with some values, for `new_fingerprint=`.

    Left to itself `datasets` computes the same, but takes an interrupt that comes meanwhile for a
    function that cannot be hashed, and goes on.
    """
    try:
        return Hasher.hash((rows._fingerprint, *made_by))
    except Exception:  # a tokenizer of a user's own may be of any kind
        return generate_random_fingerprint()


def with_column(rows: Dataset, name: str, column: Any) -> Dataset:
    """Add a column to rows."""
    return rows.add_column(name, column, new_fingerprint=fingerprint(rows, name, column))


def first_rows(table: Dataset, limit: int | None) -> Dataset:
    """The first `limit` rows of a table; None: all."""
    return table if limit is None else table.select(range(min(limit, len(table))))


def read_hub_table(
    name: str, config_name: str | None, split: str, streaming: bool = False
) -> Dataset | IterableDataset | None:
    """Read a split of a data set of the hub or a local folder; None where it has no such split.

    Raises:
        InputError: for a data set that is not there or cannot be read.
    """
    if Path(name).is_dir() and glob.has_magic(str(Path(name).resolve())):
        raise InputError(
            f"--dataset_name {name}: datasets takes [ ] * ? in a folder's name for a pattern; "
            "rename the folder, or give its files (--train_file ...)"
        )
    with as_input_error(f"--dataset_name {name}"):
        try:
            if split not in get_dataset_split_names(name, config_name):
                return None
            return load_dataset(name, config_name, split=split, streaming=streaming)
        except (DatasetGenerationError, ConnectionError) as error:
            raise InputError(f"--dataset_name {name}: {_reason(error, 'utf-8')}") from error
