"""Documents of all corpora as a stream without end: text larger than disk or memory."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainingArguments

from bertchain.arguments.pretraining import PackingArguments
from bertchain.data.contamination import hash_text
from bertchain.data.documents import join_texts
from bertchain.data.tables import require_cells, require_columns
from bertchain.errors import InputError
from bertchain.pretraining.packing import RowMaker
from bertchain.pretraining.sampling import StreamedBatches
from bertchain.pretraining.sources import Source

HELD_OUT_DOCUMENTS = 1000
FIRST_DOCUMENTS = 10_000  # --add_tokens counts words in these


class DocumentStream:
    """Documents of all corpora without end. `corpora.DocumentTable` has the same interface.

    Corpora take turns at random, in proportion to their weights, and begin anew when they end. A
    document belongs to the process hash % processes: so each process drops its own duplicates
    without asking the others. Held-out documents are known by their hash, too.

    Attributes:
        weights: of each corpus.
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

    @cached_property
    def held_out(self) -> Dataset:
        """Documents held out, from the beginning of each corpus: columns text, ..., corpus."""
        return self.first_held_out(HELD_OUT_DOCUMENTS)

    def first_held_out(self, count: int) -> Dataset:
        """Find the first `count` documents whose hashes are in the held-out share.

        Raises:
            InputError: if there is none.
        """
        found: dict[int, dict[str, str]] = {}
        per_corpus = Counter()
        quota = -(-count // len(self.weights))
        for corpus in self.weights:
            for digest, document in self._documents(corpus):
                if per_corpus[corpus] == quota:
                    break
                if self._is_held_out(digest) and digest not in found:
                    found[digest] = document
                    per_corpus[corpus] += 1
        if not found:
            raise InputError("--validation_split holds out no document; use a larger share")
        return Dataset.from_list(list(found.values()))

    def first_texts(self) -> Iterator[str]:
        """Yield the text of the first documents to train on."""
        for _, document in islice(self.documents(0, 1), FIRST_DOCUMENTS):
            yield "\n".join((document["text"], document.get("text_pair", "")))

    def rows(
        self, maker: RowMaker, packing: PackingArguments, training: TrainingArguments
    ) -> StreamedBatches:
        """Make the Trainer's rows, in batches: they are cut while documents are read."""
        self._batches = StreamedBatches(
            lambda: self.documents(training.process_index, training.world_size),
            maker,
            training.per_device_train_batch_size,
            packing.tokens_per_batch,
            packing.batch_by_length,
            training.seed,
        )
        return self._batches

    def counts(self, rows: StreamedBatches, held_out: Dataset) -> dict[str, int]:
        """Count documents; of a stream only those held out are known before training."""
        return {"held_out_documents": len(self.held_out)}

    def hashes(self) -> np.ndarray:
        """Hashes of the documents that were read so far, by any process: uint64 [documents].

        Called by all processes.
        """
        return np.array(gather_object([*self._batches.hashes]), dtype=np.uint64)

    def documents(self, process: int, processes: int) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield (hash, document) for one process, without end; in a pass no text comes twice.

        Raises:
            InputError: if a corpus gives no document in a whole pass.
        """
        rng = np.random.default_rng((self.seed, 1))
        names = list(self.weights)
        odds = np.array(list(self.weights.values()))
        odds = odds / odds.sum()
        streams = {name: self._passes(name, process, processes) for name in names}
        while True:
            yield next(streams[names[rng.choice(len(names), p=odds)]])

    def _passes(self, corpus: str, process: int, processes: int) -> Iterator[tuple[int, dict]]:
        while True:
            seen: set[int] = set()
            count = 0
            for digest, document in self._documents(corpus):
                if digest % processes != process or self._is_held_out(digest):
                    continue
                if self.deduplicate and digest in seen:
                    continue
                seen.add(digest)
                count += 1
                yield digest, document
            if not count:
                raise InputError(f"corpus {corpus}: a whole pass gives no document to train on")

    def _is_held_out(self, digest: int) -> bool:
        return (digest >> 32) < self.held_out_below

    def _documents(self, corpus: str) -> Iterator[tuple[int, dict[str, str]]]:
        for source in self.sources:
            if source.corpus != corpus:
                continue
            for document in stream_documents(source):
                digest = hash_text("\n".join(document[k] for k in TEXTS if k in document))
                if digest not in self.test:
                    yield digest, document


TEXTS = ("text", "text_pair")


def stream_documents(source: Source) -> Iterator[dict[str, str]]:
    """Yield the documents of a table one by one, empty ones left out: text, (text_pair,) corpus.

    Raises:
        InputError: for a missing column, or a missing second text of a pair.
    """
    table: Iterable[dict[str, Any]] = source.read(streaming=True)
    for number, row in enumerate(table):
        if source.max_samples is not None and number >= source.max_samples:
            return
        if number == 0:
            require_columns(row, source.text_column_names, source.name, "--text_column_names")
        texts = [row[name] for name in source.text_column_names]
        if source.text_pair:
            second = source.text_column_names[1]
            require_cells(texts[1:], second, source.name, "--text_pair", number + 1)
        document = join_texts(texts, source.text_separator, source.text_pair)
        if any(text.strip() for text in document.values()):
            yield document | {"corpus": source.corpus}
