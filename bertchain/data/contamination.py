"""Which documents a checkpoint was pretrained on: hashes that travel with it.

A score on test documents whose text the encoder has seen is transductive: fair where the test text
is given beforehand, as in many competitions, but not a measure of unseen text. So every script that
scores test documents looks for them here.
"""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers.utils import cached_file

from bertchain.data.documents import all_text
from bertchain.data.words import plain_words
from bertchain.runtime.files import atomic_write

logger = logging.getLogger(__name__)


FILE = "corpus_hashes.npy"
BATCH = 10_000  # documents in memory at once


def normalised(text: str) -> str:
    """What makes two texts the same: their words in order; case, punctuation and spacing do not."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain_words(folded)) or folded.strip()


def hash_text(text: str) -> int:
    """64 bits of the normalised text: a chance hit among 10^6 x 10^6 documents is at 5 in 10^8."""
    content = normalised(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """uint64 [documents]."""
    return np.fromiter(map(hash_text, texts), dtype=np.uint64)


def write_fingerprint(folder: str | os.PathLike, hashes: np.ndarray) -> None:
    """Save the sorted hashes of all documents beside a checkpoint."""
    with atomic_write(Path(folder) / FILE) as temporary, temporary.open("wb") as file:
        np.save(file, np.unique(hashes.astype(np.uint64)), allow_pickle=False)


def read_fingerprint(path: str | os.PathLike, **hub: object) -> np.ndarray | None:
    """The hashes that lie beside a checkpoint in a folder or on the hub; None where there are none.

    Args:
        hub: `revision`, and whatever else `from_pretrained` takes.
    """
    if os.path.isdir(path):
        local = Path(path) / FILE
        return np.load(local, allow_pickle=False) if local.is_file() else None
    try:
        found = cached_file(
            str(path),
            FILE,
            revision=hub.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such model: loading it says so
        return None
    return None if found is None else np.load(found, allow_pickle=False)


def find_seen(documents: Dataset | None, path: str, **hub: object) -> dict[str, object]:
    """Say whether test documents were in the text that a checkpoint was further pretrained on.

    Args:
        documents: the test documents; None: there are none.

    Returns:
        for the results: test_documents_in_pretraining and transductive. Empty where the checkpoint
        has no fingerprint, so that nothing is known.
    """
    hashes = None if documents is None else read_fingerprint(path, **hub)
    if hashes is None:
        return {}
    seen = sum(
        count_seen(all_text(documents.select(range(i, min(i + BATCH, len(documents))))), hashes)
        for i in range(0, len(documents), BATCH)
    )
    if seen:
        logger.warning(
            "%d of %d test documents were in the text that %s was further pretrained on: their "
            "scores are transductive",
            seen,
            len(documents),
            path,
        )
    return {"test_documents_in_pretraining": seen, "transductive": seen > 0}


def count_seen(texts: Iterable[str], hashes: np.ndarray) -> int:
    """How many of the texts are among the hashes."""
    return int(np.isin(hash_texts(texts), hashes).sum())
