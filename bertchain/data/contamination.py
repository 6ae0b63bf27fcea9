"""Contamination: whether test documents were in the text a checkpoint was pretrained on.

The hashes of that text are saved beside a checkpoint and travel with it. A score on test documents
that the encoder has seen is transductive: fair where the test text is given beforehand, as in many
competitions, but not a measure of unseen text. So every script that scores test documents looks
them up here.
"""

import hashlib
import logging
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers.utils import cached_file

from bertchain.data.documents import all_text
from bertchain.data.words import plain_words
from bertchain.errors import InputError
from bertchain.runtime.files import atomic_write, check_seal, seal

logger = logging.getLogger(__name__)


HASH_FILE = "corpus_hashes.npy"  # of the text of further pretraining
TRAINED_FILE = "trained_on.npy"  # of the labelled rows that a classifier was trained on
HASH_COLUMN = "hash"
ROWS_AT_ONCE = 10_000  # documents in memory


def normalise(text: str) -> str:
    """Reduce a text to its words in order: two texts are the same if these are equal.

    Case, punctuation and spacing do not count.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(plain_words(folded)) or folded.strip()


def hash_text(text: str) -> int:
    """Hash the normalised text to 64 bits.

    Among 10^6 x 10^6 different documents one chance hit has a probability of 5 in 10^8.
    """
    content = normalise(text).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """Hash each text: uint64 [documents]."""
    return np.fromiter(map(hash_text, texts), dtype=np.uint64)


def write_fingerprint(folder: str | os.PathLike, hashes: np.ndarray, name: str = HASH_FILE) -> None:
    """Save the different hashes of all documents, sorted, in a checkpoint's folder."""
    with atomic_write(Path(folder) / name) as temporary:
        np.save(temporary, np.unique(hashes.astype(np.uint64)), allow_pickle=False)
        seal(temporary)


def read_fingerprint(
    path: str | os.PathLike, name: str = HASH_FILE, **hub: object
) -> np.ndarray | None:
    """Read the hashes beside a checkpoint in a folder or on the hub; None where there are none.

    Args:
        name: HASH_FILE or TRAINED_FILE.
        hub: `revision`, and whatever else `from_pretrained` takes.

    Raises:
        InputError: for a damaged file.
    """
    if os.path.isdir(path):
        local = Path(path) / name
        return _read_hashes(local) if local.is_file() else None
    try:
        found = cached_file(
            str(path),
            name,
            revision=hub.get("revision"),
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):  # no such model: loading it says so
        return None
    return None if found is None else _read_hashes(Path(found))


def _read_hashes(path: Path) -> np.ndarray:
    """Read sorted hashes; raises InputError where the file is not what was written."""
    try:
        hashes = np.load(path, allow_pickle=False)
        whole = check_seal(path) is not False and hashes.ndim == 1  # earlier versions: no seal
        whole = whole and hashes.dtype == np.uint64 and bool((hashes[1:] > hashes[:-1]).all())
    except (ValueError, EOFError):
        whole = False
    if not whole:
        raise InputError(
            f"{path} is damaged, so it is not known which text the model has seen; restore it, or "
            "delete it to go on without that"
        )
    return hashes


def find_seen(documents: Dataset | None, path: str, **hub: object) -> dict[str, object]:
    """Count the test documents that were in the text a checkpoint was further pretrained on.

    Args:
        documents: the test documents; None: there are none.
        path, hub: see `read_fingerprint`.

    Returns:
        for the results: test_documents_in_pretraining and transductive. Empty where the checkpoint
        has no hashes, so that nothing is known.
    """
    hashes = None if documents is None else read_fingerprint(path, **hub)
    if hashes is None:
        return {}
    total = len(documents)
    pieces = [range(i, min(i + ROWS_AT_ONCE, total)) for i in range(0, total, ROWS_AT_ONCE)]
    seen = sum(count_seen(all_text(documents.select(rows)), hashes) for rows in pieces)
    if seen:
        logger.warning(
            "%d of %d test documents were in the text that %s was further pretrained on: their "
            "scores are transductive",
            seen,
            total,
            path,
        )
    return {"test_documents_in_pretraining": seen, "transductive": seen > 0}


def trained_rows(paths: Iterable[str], **hub: object) -> np.ndarray:
    """Read the hashes of the rows that classifiers were trained on; empty where none are known."""
    found = [read_fingerprint(path, TRAINED_FILE, **hub) for path in paths]
    known = [hashes for hashes in found if hashes is not None]
    return np.unique(np.concatenate(known)) if known else np.empty(0, dtype=np.uint64)


def find_trained_on(
    documents: dict[str, Dataset], with_folds: bool, paths: Sequence[str], **hub: object
) -> dict[str, int]:
    """Count the documents to be scored whose words are those of a row that is trained on.

    Args:
        documents: by split. Those of train are trained on in this run; with folds each is also
            scored, by a model that does not train on it.
        paths: the checkpoints to start from, or to predict with, and what they were trained on.

    Returns:
        for the results: validation_, oof_ and test_documents_trained_on, as far as these are there.
        Empty where nothing is trained on, or nothing is known of it.
    """
    before = trained_rows(paths, **hub)
    own = hash_pieces(documents["train"]) if "train" in documents else before[:0]
    every = np.union1d(before, own)
    if not len(every):
        return {}
    known = {name: every for name in ("validation", "test") if name in documents}
    known |= {"oof": before} if with_folds else {}
    results, said = {}, []
    for name, hashes in known.items():
        rows = own if name == "oof" else hash_pieces(documents[name])
        found = results[f"{name}_documents_trained_on"] = int(np.isin(rows, hashes).sum())
        said += [f"{found} of {len(rows)} {name} documents"] if found else []
    if said:
        logger.warning(
            "%s have the words of rows that are trained on, in this run or before by %s: their "
            "scores are too good",
            ", ".join(said),
            paths[0],
        )
    return results


def hash_pieces(documents: Dataset) -> np.ndarray:
    """Hash each document: uint64 [documents]; not all text is in memory at once."""
    total = len(documents)
    starts = range(0, total, ROWS_AT_ONCE)
    pieces = [documents.select(range(i, min(i + ROWS_AT_ONCE, total))) for i in starts]
    hashes = [hash_texts(all_text(piece)) for piece in pieces]
    return np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)


def count_seen(texts: Iterable[str], hashes: np.ndarray) -> int:
    """Count the texts whose hash is among `hashes`."""
    return int(np.isin(hash_texts(texts), hashes).sum())
