"""What the user names: the tables of each corpus, its weight, and test text.

A corpus is a name for one or more tables; each may have columns of its own.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from bertchain.arguments.common import TextArguments
from bertchain.arguments.pretraining import CorpusArguments
from bertchain.cli import read_arguments
from bertchain.data.tables import read_hub_table, read_table
from bertchain.errors import InputError, nearest

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
    delimiter: str | None = None
    encoding: str = "utf-8"
    max_samples: int | None = None

    @property
    def name(self) -> str:
        return self.file or f"{self.dataset_name} ({self.split})"

    def read(self, streaming: bool = False) -> Dataset | IterableDataset:
        """Read the table; streamed, its rows are read as they are needed.

        Raises:
            InputError: where it is not there or not readable.
        """
        if self.file is not None:
            return read_table(self.file, self.delimiter, self.encoding, streaming)
        table = read_hub_table(self.dataset_name, self.dataset_config_name, self.split, streaming)
        if table is None:
            raise InputError(f"data set {self.dataset_name} has no split {self.split}")
        return table

    @property
    def seems_test(self) -> bool:
        """Whether the name of the file or split says that it holds test text."""
        name = self.split if self.file is None else Path(self.file).name
        return TEST.search(name.lower()) is not None


def resolve_sources(
    corpus: CorpusArguments, text: TextArguments
) -> tuple[list[Source], list[Source]]:
    """List all tables of all corpora, and the tables whose documents are left out of them.

    Raises:
        InputError: for a corpus that is described wrong, and for test text: see `check_test_text`.
    """
    defaults = {
        "text_column_names": tuple(text.text_column_names),
        "text_separator": text.text_separator,
        "text_pair": text.text_pair,
        "max_samples": corpus.max_train_samples,
        **text.format,
    }
    sources = parse_sources(corpus.train_file, corpus.corpora, defaults)
    if corpus.dataset_name is not None:
        names = {
            "dataset_name": corpus.dataset_name,
            "dataset_config_name": corpus.dataset_config_name,
        }
        sources.append(Source("task", **names, **defaults))
    test = parse_sources(corpus.test_file, None, {**defaults, "max_samples": None})
    check_test_text(sources, test, corpus.include_test_text)
    return ([*sources, *test], []) if corpus.include_test_text else (sources, test)


def parse_sources(
    files: Sequence[str], corpora: str | None, defaults: dict[str, Any]
) -> list[Source]:
    """Parse the tables of all corpora.

    Args:
        files: `path` or `name=path`; without a name the corpus is `task`.
        corpora: a YAML or JSON file, or such text: name -> a path, or a mapping with the fields of
            `Source` (file or dataset_name, text_column_names, max_samples ...), or a list of these.
        defaults: fields of `Source` where a table names no others.

    Raises:
        InputError: for unknown fields, and tables that are neither file nor data set.
    """
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
            sources.append(_parse_source(str(name), fields, defaults))
    return sources


def _parse_source(corpus: str, fields: Any, defaults: dict[str, Any]) -> Source:
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
    """Parse `name=number ...` to the weight of each corpus; 1 where none is given.

    Raises:
        InputError: for an unknown corpus, and what is no number above 0 and at most 100.
    """
    parsed = dict.fromkeys(names, 1.0)
    for entry in weights:
        name, _, number = entry.partition("=")
        if name not in parsed:
            raise InputError(
                f"--corpus_weights {entry}: there is no corpus {name!r}, only {', '.join(parsed)}"
            )
        try:
            parsed[name] = float(number)
        except ValueError:
            raise InputError(f"--corpus_weights {entry}: write {name}=2 or {name}=0.5") from None
        if not 0 < parsed[name] <= 100:
            raise InputError(f"--corpus_weights {entry}: must be above 0 and at most 100")
    return parsed


def check_test_text(sources: Sequence[Source], test: Sequence[Source], asked: bool) -> None:
    """Check that test text is used only where it is asked for, and is there if it is.

    Args:
        test: the tables of --test_file.
        asked: --include_test_text.

    Raises:
        InputError: for a test split, or a file whose name says that it is one, that nobody asked
            for; and where there is none to include.
    """
    found = [source for source in sources if source.seems_test]
    if found and not asked:
        raise InputError(
            f"{found[0].name} seems to hold test text; if it may be used (scores become "
            "transductive), add --include_test_text"
        )
    if asked and not found and not test:
        raise InputError("--include_test_text: there is no test text; give --test_file")
