"""Tables -> documents -> windows -> batches.

A document is one row: id, text (perhaps a second text), labels. A window is a piece of it that fits the
encoder (`windows.py`). Rows come through `datasets`, memory-mapped, and never lose their order.
"""

import csv
import gzip
import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetGenerationError
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from command_line import InputError, as_input_error
from labels import require_columns
from modeling import pad_documents
from windows import (
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_spans,
    cut_windows,
    first_text_room,
    kept_tokens,
)

logger = logging.getLogger(__name__)

DELIMITERS = (",", "\t", ";", "|")


# ---------------------------------------------------------------------------- tables


def read_table(path: str, delimiter: str | None = None, encoding: str = "utf-8") -> Dataset:
    """Read .csv, .tsv, .txt (a document a line), .json, .jsonl or .parquet, each also .gz.

    Columns of .csv and .tsv come as text, so that "NA", "007" and "1e5" stay what they are; what a label
    means is settled later, by its values.

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
            f"{path}: {suffix or 'no'} extension; use one of {', '.join(READERS)} (or those with .gz)"
        )
    if encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
        encoding = "utf-8-sig"  # reads a byte order mark away, and text without one as before
    try:
        table = READERS[suffix](path, delimiter, encoding)
    except InputError:
        raise
    except (DatasetGenerationError, ValueError, OSError, EOFError, LookupError, csv.Error) as error:
        raise InputError(f"{path}: {_reason(error, encoding)}") from error
    if len(table) == 0:
        raise InputError(f"{path}: no rows")
    return table


def _reason(error: BaseException, encoding: str) -> str:
    while error.__cause__ is not None:  # datasets wraps what went wrong
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return f"not {encoding.removesuffix('-sig')} text (byte {error.object[error.start]:#04x}); name another --encoding"
    if isinstance(error, LookupError):
        return f"--encoding {encoding} is not known"
    return " ".join(str(error).split()) or type(error).__name__


def _read_delimited(path: str, delimiter: str | None, encoding: str) -> Dataset:
    delimiter = delimiter or find_delimiter(path, encoding)
    with open_text(path, encoding) as lines:
        header = next(csv.reader(lines, delimiter=delimiter), [])
    twice = [name for name, n in Counter(header).items() if n > 1]
    if twice:
        raise InputError(f"{path}: column {twice[0]!r} occurs twice in the header")
    return load_dataset(
        "csv",
        data_files=path,
        split="train",
        sep=delimiter,
        encoding=encoding,
        features=Features({name: Value("string") for name in header}),
        keep_default_na=False,
        quoting=csv.QUOTE_NONE if is_unquoted(path, delimiter, encoding) else csv.QUOTE_MINIMAL,
        skip_blank_lines=len(header) > 1,  # with one column a blank line is an empty document
    )


def _read_tab_separated(path: str, delimiter: str | None, encoding: str) -> Dataset:
    return _read_delimited(path, delimiter or "\t", encoding)


def _read_lines(path: str, delimiter: str | None, encoding: str) -> Dataset:
    return load_dataset("text", data_files=path, split="train", encoding=encoding)


def _read_json(path: str, delimiter: str | None, encoding: str) -> Dataset:
    return load_dataset("json", data_files=path, split="train", encoding=encoding)


def _read_parquet(path: str, delimiter: str | None, encoding: str) -> Dataset:
    return load_dataset("parquet", data_files=path, split="train")


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


def find_delimiter(path: str, encoding: str) -> str:
    """The delimiter under which the first rows have the same, largest, number of columns."""
    with open_text(path, encoding) as lines:
        sample = [line for line, _ in zip(lines, range(200), strict=False)]

    def columns(delimiter: str) -> int:
        widths = [len(row) for row in csv.reader(sample, delimiter=delimiter) if row][:20]
        return widths[0] if widths and set(widths) == {widths[0]} else 0

    return max(DELIMITERS, key=columns)  # the first of equals: comma


def is_unquoted(path: str, delimiter: str, encoding: str) -> bool:
    """Whether a tab-separated file uses quotation marks as plain text.

    Many such files hold no quoting at all, and a stray mark would then swallow rows up to the next one.
    That is so when every line has the right number of tabs but reading with quotes gives fewer rows.
    """
    if delimiter != "\t":
        return False
    with open_text(path, encoding) as lines:
        widths = Counter(line.count("\t") for line in lines if line.strip("\r\n"))
    if len(widths) != 1:
        return False
    with open_text(path, encoding) as lines:
        rows = sum(1 for row in csv.reader(lines, delimiter="\t") if row)
    unquoted = rows != sum(widths.values())
    if unquoted:
        logger.info("%s: quotation marks are read as plain text", path)
    return unquoted


def read_hub_table(name: str, config_name: str | None, split: str) -> Dataset | None:
    """A split of a data set of the hub (or of a local folder), or None where it has no such split."""
    with as_input_error(f"--dataset_name {name}"):
        try:
            if split not in get_dataset_split_names(name, config_name):
                return None
            return load_dataset(name, config_name, split=split)
        except (DatasetGenerationError, ConnectionError) as error:
            raise InputError(f"--dataset_name {name}: {_reason(error, 'utf-8')}") from error


# ---------------------------------------------------------------------------- documents


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
        columns = [[_as_text(value) for value in rows[name]] for name in text_columns]
        ids = numbers if id_column is None else rows[id_column]
        documents = {"id": [str(i) for i in ids]}
        if pair:
            return documents | {"text": columns[0], "text_pair": columns[1]}
        joined = [
            separator.join(part for part in parts if part) for parts in zip(*columns, strict=True)
        ]
        return documents | {"text": joined}

    documents = table.map(
        convert,
        batched=True,
        with_indices=True,
        remove_columns=table.column_names,
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


def _as_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    return value if isinstance(value, str) else str(value)


def _count_missing(documents: Dataset, source: str) -> None:
    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    empty = sum(not any(texts) for texts in zip(*(documents[n][:] for n in names), strict=True))
    if empty:
        logger.warning("%s: %d of %d documents have no text", source, empty, len(documents))


def hold_out(strata: Sequence[Any], share: float, seed: int) -> np.ndarray:
    """Choose rows to hold out, each stratum in proportion to within one row.

    Rows are laid out stratum by stratum, shuffled inside, and every (1 / share)-th is taken. A stratum of
    one row stays in training.

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
    """What to stratify by: the class; a row's rarest label; the tenth a (first) target falls into."""
    if problem_type == "single_label":
        return list(labels)
    array = np.asarray(labels, dtype=float)
    if problem_type == "regression":
        return np.searchsorted(
            np.quantile(array[:, 0], np.arange(0.1, 1, 0.1)), array[:, 0]
        ).tolist()
    frequency = array.sum(axis=0)
    return [
        int(np.where(row > 0, frequency, np.inf).argmin()) if row.any() else -1 for row in array
    ]


# ---------------------------------------------------------------------------- windows


@dataclass(frozen=True)
class CutReport:
    """How much of the text the windows leave out."""

    documents: int
    longer: int  # documents that do not fit one window
    tokens: int
    kept: int
    windows: int

    def __str__(self) -> str:
        share = 100 * (1 - self.kept / max(1, self.tokens))
        return (
            f"{self.longer} of {self.documents} documents are longer than one window; "
            f"{share:.1f} % of {self.tokens} tokens are cut; {self.windows} windows"
        )


def to_windows(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, spec: WindowSpec, special: SpecialTokens
) -> tuple[Dataset, CutReport]:
    """Documents -> their windows.

    Returns:
        the documents with columns windows (lists of ids), window_types (pairs only, where the tokenizer
        has token types) and length (tokens in all windows), text removed; and what was cut.
    """
    pair = "text_pair" in documents.column_names
    counts = Counter()

    def convert(rows: dict[str, list]) -> dict[str, list]:
        ids = [
            tokenizer(rows[name], add_special_tokens=False, verbose=False)["input_ids"]
            for name in (("text", "text_pair") if pair else ("text",))
        ]
        columns: dict[str, list] = {"windows": [], "length": []}
        for texts in zip(*ids, strict=True):
            windows, types = _cut(texts, spec, special)
            columns["windows"].append(windows)
            if types is not None:
                columns.setdefault("window_types", []).append(types)
            columns["length"].append(sum(map(len, windows)))
            counts.update(_count(texts, windows, spec, special))
        return columns

    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    cut = documents.map(
        convert,
        batched=True,
        remove_columns=names,
        load_from_cache_file=False,  # would skip the counts, and not notice changed code
        desc="Tokenizing",
    )
    return cut, CutReport(**counts)


def _cut(
    texts: Sequence[list[int]], spec: WindowSpec, special: SpecialTokens
) -> tuple[list[list[int]], list[list[int]] | None]:
    if len(texts) == 2:
        return cut_pair_windows(texts[0], texts[1], spec, special)
    return cut_windows(texts[0], spec, special), None


def _count(
    texts: Sequence[list[int]], windows: list[list[int]], spec: WindowSpec, special: SpecialTokens
) -> dict[str, int]:
    tokens = sum(map(len, texts))
    if len(texts) == 1:
        kept = kept_tokens(cut_spans(tokens, spec, special.count))
    else:
        first = min(len(texts[0]), first_text_room(spec, special))
        kept = first + kept_tokens(cut_spans(len(texts[1]), spec, special.pair_count + first))
    room = spec.max_seq_length - (special.count if len(texts) == 1 else special.pair_count)
    return {
        "documents": 1,
        "longer": int(tokens > room),
        "tokens": tokens,
        "kept": kept,
        "windows": len(windows),
    }


# ---------------------------------------------------------------------------- batches


@dataclass
class DocumentCollator:
    """Documents -> tensors [documents, segments, length], padded to the longest in the batch."""

    pad_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad_documents([row["windows"] for row in rows], self.pad_id)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "window_types" in rows[0]:
            batch["token_type_ids"] = pad_documents([row["window_types"] for row in rows], 0)[0]
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        return batch


class GroupedByLength(Sampler[int]):
    """A new random order every epoch whose batches hold rows of similar length.

    Rows are shuffled, cut into chunks of `batches_per_chunk` batches, sorted by length inside a chunk,
    and the batches of a chunk are shuffled; the longest batch comes first, so that memory runs out at
    once or never. The order depends on seed and epoch alone: the same in every process, and the same
    after a resume. (transformers' own sampler draws from the global generator, which processes do not
    share, and under its strategy evaluation is permuted too.)
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        batches_per_chunk: int = 50,
    ):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.chunk = batch_size * batches_per_chunk

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch()))
        rows = rng.permutation(len(self.lengths))
        batches = []
        for start in range(0, len(rows), self.chunk):
            chunk = rows[start : start + self.chunk]
            chunk = chunk[np.argsort(-self.lengths[chunk], kind="stable")]
            batches += [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # at most one, the last
        longest = max(range(len(full)), key=lambda i: self.lengths[full[i]].sum()) if full else None
        order = [i for i in rng.permutation(len(full)) if i != longest]
        order = order if longest is None else [longest, *order]
        for batch in [full[i] for i in order] + rest:
            yield from batch.tolist()


def longest_first(lengths: Sequence[int]) -> np.ndarray:
    """Row numbers by falling length, ties in row order: the order in which prediction pads least."""
    return np.argsort(-np.asarray(lengths), kind="stable")
