"""Documents of corpora without end, for text that is larger than disk or memory."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset

from bertchain.data.contamination import hash_text
from bertchain.data.documents import join_texts
from bertchain.data.tables import require_columns
from bertchain.errors import InputError
from bertchain.pretraining.corpora import Source, label_text, seems_test


class DocumentStream:
    """Documents of all corpora without end, for text that is larger than disk or memory.

    Corpora are drawn in proportion to their weights, and begin anew when they end. A document
    belongs to the process hash % processes: so each process drops its own duplicates without asking
    the others. Held-out documents are known by their hash, too.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: dict[str, float],
        share_held_out: float,
        test_hashes: np.ndarray | None,
        deduplicate: bool,
        seed: int,
    ):
        self.sources = sources
        self.weights = weights
        self.held_out_below = int(share_held_out * 2**32)
        self.test = set() if test_hashes is None else set(test_hashes.tolist())
        self.deduplicate = deduplicate
        self.seed = seed

    def held_out(self, count: int) -> Dataset:
        """The first `count` documents of the streams whose hashes are in the held-out share."""
        found: dict[int, dict[str, str]] = {}
        per_corpus = Counter()
        quota = -(-count // len(self.weights))
        for corpus in self.weights:
            for number, document in self._documents(corpus):
                if per_corpus[corpus] == quota:
                    break
                if self._is_held_out(number) and number not in found:
                    found[number] = document
                    per_corpus[corpus] += 1
        if not found:
            raise InputError("--validation_split holds out no document; use a larger share")
        return Dataset.from_list(list(found.values()))

    def documents(self, process: int, processes: int) -> Iterator[tuple[int, dict[str, str]]]:
        """(hash, document) for one process, without end; within a pass no text comes twice.

        Raises:
            InputError: if a corpus gives no document in a whole pass.
        """
        rng = np.random.default_rng((self.seed, 1))
        names = list(self.weights)
        share = np.array(list(self.weights.values()))
        share = share / share.sum()
        streams = {name: self._mine(name, process, processes) for name in names}
        while True:
            yield next(streams[names[rng.choice(len(names), p=share)]])

    def _mine(self, corpus: str, process: int, processes: int) -> Iterator[tuple[int, dict]]:
        while True:  # pass after pass
            seen: set[int] = set()
            count = 0
            for number, document in self._documents(corpus):
                if number % processes != process or self._is_held_out(number):
                    continue
                if self.deduplicate and number in seen:
                    continue
                seen.add(number)
                count += 1
                yield number, document
            if not count:
                raise InputError(f"corpus {corpus}: a whole pass gives no document to train on")

    def _is_held_out(self, number: int) -> bool:
        return (number >> 32) < self.held_out_below

    def _documents(self, corpus: str) -> Iterator[tuple[int, dict[str, str]]]:
        for source in self.sources:
            if source.corpus != corpus:
                continue
            for document in stream_documents(source):
                number = hash_text("\n".join(document[k] for k in TEXTS if k in document))
                if number not in self.test:
                    yield number, document


TEXTS = ("text", "text_pair")


def stream_documents(source: Source) -> Iterator[dict[str, str]]:
    """The documents of a table one by one, empty ones left out."""
    table: Iterable[dict[str, Any]] = source.read(streaming=True)
    feature = (table.features or {}).get(source.label_words)
    for number, row in enumerate(table):
        if source.max_samples is not None and number >= source.max_samples:
            return
        if number == 0:
            require_columns(row, source.text_column_names, source.name, "--text_column_names")
        texts = [row[name] for name in source.text_column_names]
        document = join_texts(texts, source.text_separator, source.text_pair)
        if not any(text.strip() for text in document.values()):
            continue
        document["corpus"] = source.corpus
        if source.label_words is not None:
            value = None if seems_test(source) else row.get(source.label_words)
            if isinstance(feature, ClassLabel) and value is not None:
                value = feature.int2str(value) if value >= 0 else None
            document["label"] = label_text(value)
        yield document
