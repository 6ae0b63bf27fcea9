"""Corpora of further pretraining: which tables, how often, without duplicates and test text.

Text of the task itself is within-task, of the same field in-domain, of other fields cross-domain
(Sun et al. 2019, section 5.4). A corpus is a name for one or more tables; each may have its own
columns.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets

from bertchain.cli import read_arguments
from bertchain.data.contamination import hash_texts
from bertchain.data.documents import all_text, to_documents
from bertchain.data.label_values import label_values
from bertchain.data.splits import hold_out
from bertchain.data.tables import first_rows, read_hub_table, read_table
from bertchain.errors import InputError, nearest

logger = logging.getLogger(__name__)


NAMED = re.compile(r"([A-Za-z_]\w*)=(.+)", re.DOTALL)  # name=path
TEST = re.compile(r"(^|[^a-z])test([^a-z]|$)")  # test.csv, my_test_labels.csv; not latest.csv


@dataclass(frozen=True)
class Source:
    """One table of a corpus and how its rows become documents."""

    corpus: str
    file: str | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    split: str = "train"
    text_column_names: tuple[str, ...] = ("text",)
    text_separator: str = " "
    text_pair: bool = False
    label_words: str | None = None  # column
    delimiter: str | None = None
    encoding: str = "utf-8"
    max_samples: int | None = None

    @property
    def name(self) -> str:
        return self.file or f"{self.dataset_name} ({self.split})"

    def read(self, streaming: bool = False) -> Dataset | IterableDataset:
        """The table; streamed, its rows are read as they are needed.

        Raises:
            InputError: where it is not there or not readable.
        """
        if self.file is not None:
            table = read_table(self.file, self.delimiter, self.encoding, streaming)
        else:
            table = read_hub_table(
                self.dataset_name, self.dataset_config_name, self.split, streaming
            )
            if table is None:
                raise InputError(f"data set {self.dataset_name} has no split {self.split}")
        return table


# ---------------------------------------------------------------- what the user named


def parse_sources(
    files: Sequence[str],
    corpora: str | None,
    defaults: dict[str, Any],
    label_words: str | None = None,
) -> list[Source]:
    """All tables of all corpora.

    Args:
        files: `path` or `name=path`; without a name the corpus is `task`.
        corpora: a YAML or JSON file, or such text: name -> a path, or a mapping with the fields of
            `Source` (file or dataset_name, text_column_names, max_samples ...), or a list of these.
        defaults: fields of `Source` where a table names no others.
        label_words: a column, as the field of `Source`.
    """
    defaults = {**defaults, "label_words": label_words}
    sources = []
    for entry in files:
        match = None if Path(entry).is_file() else NAMED.fullmatch(entry)
        name, path = match.groups() if match else ("task", entry)
        sources.append(Source(name, file=path, **defaults))
    if corpora is None:
        return sources
    for name, entries in read_arguments(corpora, "--corpora").items():
        for entry in entries if isinstance(entries, list) else [entries]:
            fields = {"file": entry} if isinstance(entry, str) else entry
            sources.append(_source(str(name), fields, defaults))
    return sources


def _source(corpus: str, fields: Any, defaults: dict[str, Any]) -> Source:
    where = f"--corpora, {corpus}"
    if not isinstance(fields, dict):
        raise InputError(f"{where}: give a path or a mapping such as file: train.csv")
    own = ("corpus", "text_pair")  # pairs or not: the same for all, by a flag
    known = [field.name for field in dataclasses.fields(Source) if field.name not in own]
    for field in fields:
        if field not in known:
            raise InputError(
                f"{where}: {field} is not one of {', '.join(known)}{nearest(field, known)}"
            )
    if bool(fields.get("file")) == bool(fields.get("dataset_name")):
        raise InputError(f"{where}: give either file or dataset_name")
    columns = fields.get("text_column_names")
    if columns is not None:
        fields["text_column_names"] = (columns,) if isinstance(columns, str) else tuple(columns)
    source = Source(corpus, **{**defaults, **fields})
    if source.text_pair and len(source.text_column_names) != 2:
        raise InputError(f"{where}: --text_pair needs two text_column_names")
    return source


def parse_corpus_weights(weights: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """`name=number ...` -> the weight of each corpus; 1 where none is given."""
    settled = dict.fromkeys(names, 1.0)
    for entry in weights:
        name, _, number = entry.partition("=")
        if name not in settled:
            raise InputError(
                f"--corpus_weights {entry}: there is no corpus {name!r}, only {', '.join(settled)}"
            )
        try:
            settled[name] = float(number)
        except ValueError:
            raise InputError(f"--corpus_weights {entry}: write {name}=2 or {name}=0.5") from None
        if not 0 < settled[name] <= 100:
            raise InputError(f"--corpus_weights {entry}: must be above 0 and at most 100")
    return settled


def check_test_text(sources: Sequence[Source], test: Sequence[Source], asked: bool) -> None:
    """Test text is used only when it is asked for, and what is asked for is there.

    Args:
        test: the tables of --test_file.
        asked: --include_test_text.

    Raises:
        InputError: for a test split, or a file whose name says that it is one, that nobody asked
            for; and where there is none to include.
    """
    found = [source for source in sources if seems_test(source)]
    if found and not asked:
        raise InputError(
            f"{found[0].name} seems to hold test text; if it may be used (scores become "
            "transductive), add --include_test_text"
        )
    if asked and not found and not test:
        raise InputError("--include_test_text: there is no test text; give --test_file")


def seems_test(source: Source) -> bool:
    name = source.split if source.file is None else Path(source.file).name
    return TEST.search(name.lower()) is not None


# ---------------------------------------------------------------- documents


def read_corpora(sources: Sequence[Source]) -> Dataset:
    """All documents of all tables in order: id, text, (text_pair,) corpus, (label)."""
    parts = []
    for source in sources:
        rows = first_rows(source.read(), source.max_samples)
        columns = source.text_column_names
        documents = to_documents(
            rows, source.name, columns, source.text_separator, source.text_pair
        )
        documents = documents.add_column("corpus", [source.corpus] * len(documents))
        if source.label_words is not None:
            documents = documents.add_column("label", _labels(rows, source))
        parts.append(documents)
        logger.info("%s, %s: %d documents", source.corpus, source.name, len(rows))
    asked = {source.label_words for source in sources} - {None}
    if asked and not any(any(part["label"][:]) for part in parts if "label" in part.features):
        raise InputError(f"--label_words: no table has a column {min(asked)!r} with labels")
    return concatenate_datasets([_with_label(part, parts) for part in parts])


def _labels(rows: Dataset, source: Source) -> list[str]:
    """Words of the label; a table without the column gives none, nor does one of test text."""
    if source.label_words not in rows.column_names or seems_test(source):
        return [""] * len(rows)
    return [label_text(v) for v in label_values(rows, [source.label_words], None)]


def label_text(value: Any) -> str:
    """The words of a label, or of a list of them: sci.space -> sci space."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(re.sub(r"[\W_]+", " ", str(v)).strip() for v in values if v is not None)


def _with_label(part: Dataset, parts: list[Dataset]) -> Dataset:
    if any("label" in other.column_names for other in parts) and "label" not in part.column_names:
        return part.add_column("label", [""] * len(part))
    return part


def clean(
    documents: Dataset, deduplicate: bool, test_hashes: np.ndarray | None
) -> tuple[Dataset, dict[str, int]]:
    """Leave out empty documents, repeated ones (the first stays), and those of the test set.

    Returns:
        what is left, with a column hash (see fingerprint.py), and the counts of what is not.

    Raises:
        InputError: if nothing is left.
    """
    texts = all_text(documents)
    hashes = hash_texts(texts)
    filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
    in_test = filled & (np.isin(hashes, test_hashes) if test_hashes is not None else False)
    kept = filled & ~in_test
    if deduplicate:
        first = np.zeros(len(texts), dtype=bool)
        candidates = np.flatnonzero(kept)
        first[candidates[np.unique(hashes[candidates], return_index=True)[1]]] = True
        repeated = kept & ~first
    else:
        repeated = np.zeros(len(texts), dtype=bool)
    counts = {
        "read": len(texts),
        "empty": int((~filled).sum()),
        "duplicates_removed": int(repeated.sum()),
        "test_documents_removed": int(in_test.sum()),
    }
    left = np.flatnonzero(kept & ~repeated)
    if not len(left):
        raise InputError(f"no text is left of {len(texts)} documents ({counts})")
    logger.info("Left out: %s", ", ".join(f"{k} {n}" for k, n in counts.items() if k != "read"))
    return documents.select(left).add_column("hash", hashes[left]), counts


def split_corpora(documents: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Cleaned documents for training and held out, in proportion from each corpus; a text is on one
    side only.

    Raises:
        InputError: if a side is left empty.
    """
    _, first, group = np.unique(np.array(documents["hash"][:], dtype=np.uint64), True, True)
    corpora = np.array(documents["corpus"][:])
    held_out = hold_out(corpora[first], share, seed)
    if not held_out.any() or held_out.all():
        raise InputError(
            f"--validation_split {share} of {len(first)} different documents leaves one side "
            "empty; use another share or more text"
        )
    held_out = held_out[group]
    return documents.select(np.flatnonzero(~held_out)), documents.select(np.flatnonzero(held_out))
