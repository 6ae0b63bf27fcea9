"""Documents of all corpora, without duplicates and test text, some of them held out.

Text of the task itself is within-task, of the same field in-domain, of other fields cross-domain
(Sun et al. 2019, section 5.4).
"""

import logging
from collections.abc import Iterator, Sequence

import numpy as np
from datasets import Dataset, concatenate_datasets
from transformers import TrainingArguments

from bertchain.arguments.common import TextArguments
from bertchain.arguments.pretraining import CorpusArguments, PackingArguments
from bertchain.data.contamination import hash_texts
from bertchain.data.documents import all_text, to_documents
from bertchain.data.splits import hold_out
from bertchain.data.tables import first_rows, with_column
from bertchain.errors import InputError
from bertchain.pretraining.packing import RowMaker, to_rows
from bertchain.pretraining.sources import Source, parse_corpus_weights, resolve_sources
from bertchain.pretraining.streaming import DocumentStream

logger = logging.getLogger(__name__)


class DocumentTable:
    """Documents of all corpora, read before training. `DocumentStream` has the same interface.

    Attributes:
        weights: of each corpus.
        train: documents to train on.
        held_out: documents held out: columns id, text, (text_pair,) corpus, hash.
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
        documents, self._counts = clean(read_corpora(sources), deduplicate, test_hashes)
        self.train, self.held_out = split_corpora(documents, share_held_out, seed)
        self.weights = weights
        names = np.array(self.train["corpus"][:])
        for name, weight in weights.items():
            logger.info("Corpus %s: %d documents, weight %g", name, (names == name).sum(), weight)

    def first_texts(self) -> Iterator[str]:
        """Yield the text of every document to train on."""
        yield from all_text(self.train)

    def rows(
        self, maker: RowMaker, packing: PackingArguments, training: TrainingArguments
    ) -> Dataset:
        """Make the Trainer's rows: one for each window."""
        return to_rows(self.train, maker)

    def counts(self, rows: Dataset, held_out: Dataset) -> dict[str, int]:
        """Count documents that were read, left out and used, and their rows and tokens."""
        of_rows = {
            "rows": len(rows),
            "tokens": int(np.sum(rows["length"][:])),
            "held_out_rows": len(held_out),
        }
        logger.info("Rows: %(rows)d, %(tokens)d tokens; held out: %(held_out_rows)d rows", of_rows)
        of_documents = {"documents": len(self.train), "held_out_documents": len(self.held_out)}
        return self._counts | of_documents | of_rows

    def hashes(self) -> np.ndarray:
        """Hashes of the documents that are trained on, uint64 [documents]."""
        return np.array(self.train["hash"][:], dtype=np.uint64)


def load_documents(
    corpus: CorpusArguments, text: TextArguments, seed: int
) -> DocumentTable | DocumentStream:
    """Load the documents of all corpora, at once or as a stream.

    Raises:
        InputError: naming file, column or argument, for what is missing, cannot be read, or leaves
            no document to train on or to hold out.
    """
    sources, test = resolve_sources(corpus, text)
    names = list(dict.fromkeys(source.corpus for source in sources))
    documents = (DocumentStream if corpus.streaming else DocumentTable)(
        sources,
        parse_corpus_weights(corpus.corpus_weights, names),
        corpus.validation_split,
        hash_texts(all_text(read_corpora(test))) if test else None,
        corpus.deduplicate,
        seed,
    )
    logger.info("Held out: %d documents", len(documents.held_out))
    return documents


def read_corpora(sources: Sequence[Source]) -> Dataset:
    """Read all documents of all tables in order: id, text, (text_pair,) corpus."""
    tables = []
    for source in sources:
        rows = first_rows(source.read(), source.max_samples)
        columns = source.text_column_names
        documents = to_documents(
            rows, source.name, columns, source.text_separator, source.text_pair
        )
        tables.append(with_column(documents, "corpus", [source.corpus] * len(documents)))
        logger.info("%s, %s: %d documents", source.corpus, source.name, len(rows))
    return concatenate_datasets(tables)


def clean(
    documents: Dataset, deduplicate: bool, test_hashes: np.ndarray | None
) -> tuple[Dataset, dict[str, int]]:
    """Leave out empty documents, repeated ones (the first stays), and those of the test set.

    Returns:
        what is left, with a column hash (see data/contamination.py), and the counts of what is not.

    Raises:
        InputError: if nothing is left.
    """
    texts = all_text(documents)
    hashes = hash_texts(texts)
    filled = np.array([bool(text.strip()) for text in texts], dtype=bool)
    in_test = filled & (np.isin(hashes, test_hashes) if test_hashes is not None else False)
    kept = filled & ~in_test
    repeated = np.zeros(len(texts), dtype=bool)
    if deduplicate:
        candidates = np.flatnonzero(kept)
        repeated[candidates] = True
        repeated[candidates[np.unique(hashes[candidates], return_index=True)[1]]] = False
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
    return with_column(documents.select(left), "hash", hashes[left]), counts


def split_corpora(documents: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split cleaned documents into those to train on and those held out.

    Each corpus is held out in proportion; documents of the same text are on the same side.

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
