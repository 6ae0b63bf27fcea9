"""Contamination: whether documents were in the text a checkpoint was pretrained or trained on.

The hashes of that text are saved beside a checkpoint and travel with it. A score on test documents
that the encoder has seen is transductive: fair where the test text is given beforehand, as in many
competitions, but not a measure of unseen text. One on rows whose labels it was trained on is too
good. So every script that scores documents looks them up here.
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
from bertchain.data.tables import with_column
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
        path: of a checkpoint-* folder, those of its run count.
        name: HASH_FILE or TRAINED_FILE.
        hub: `revision`, and whatever else `from_pretrained` takes.

    Raises:
        InputError: for a damaged file.
    """
    if os.path.isdir(path):
        folder = Path(path).resolve()
        folder = folder.parent if folder.name.startswith("checkpoint-") else folder
        local = next((f / name for f in (Path(path), folder) if (f / name).is_file()), None)
        return None if local is None else _read_hashes(local)
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


def read_fingerprints(path: str | os.PathLike, **hub: object) -> dict[str, np.ndarray]:
    """Read all hashes beside a checkpoint, by file name, so far as there are any."""
    found = {name: read_fingerprint(path, name, **hub) for name in (HASH_FILE, TRAINED_FILE)}
    return {name: hashes for name, hashes in found.items() if hashes is not None}


def _read_hashes(path: Path) -> np.ndarray:
    """Read sorted hashes.

    Raises:
        InputError: where the file is not what was written.
        OSError: where it cannot be read.
    """
    try:
        hashes = np.load(path, allow_pickle=False)
        whole = check_seal(path) is not False and hashes.ndim == 1  # earlier versions: no seal
        whole = whole and hashes.dtype == np.uint64 and bool((hashes[1:] > hashes[:-1]).all())
    except Exception as error:  # np.load and zipfile raise of many types
        if isinstance(error, OSError) and error.errno is not None:
            raise
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
    total, seen = len(documents), count_seen(hashes_of(documents), hashes)
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
    documents: dict[str, Dataset],
    with_folds: bool,
    paths: Sequence[str],
    others: Sequence[Dataset] = (),
    **hub: object,
) -> dict[str, int]:
    """Count the documents to be scored whose words are those of a row that is trained on.

    Args:
        documents: by split. Those of train are trained on in this run; with folds each is also
            scored, by a model that does not train on it.
        paths: the checkpoints to start from, or to predict with, and what they were trained on.
        others: more rows that are trained on in this run: pseudo-labelled, or of other tasks. Of
            test documents without labels, which get no score, they do not count.

    Returns:
        for the results: validation_, oof_ and test_documents_trained_on, as far as these are there.
        Empty where nothing is trained on, or nothing is known of it.
    """
    before = trained_rows(paths, **hub)
    own = hashes_of(documents["train"]) if "train" in documents else before[:0]
    more = np.unique(np.concatenate([before, *map(hashes_of, others)]))
    if not len(more) and not len(own):
        return {}
    known = {}
    for name in ("validation", "test"):
        if name in documents:
            scored = "labels" in documents[name].column_names
            known[name] = np.union1d(more if scored else before, own)
    rows = {name: hashes_of(documents[name]) for name in known}
    if with_folds:
        known["oof"], rows["oof"] = more, own
    return _count_overlaps(rows, known, f"in this run or before by {paths[0]}")


def find_probed(documents: dict[str, Dataset], path: str, **hub: object) -> dict[str, int]:
    """Count the documents of each split that the checkpoint to be probed was trained on.

    Returns:
        for the results: <split>_documents_trained_on; empty where nothing is known of it.
    """
    before = trained_rows([path], **hub)
    if not len(before):
        return {}
    rows = {name: hashes_of(own) for name, own in documents.items()}
    return _count_overlaps(rows, dict.fromkeys(rows, before), f"before by {path}")


def _count_overlaps(
    rows: dict[str, np.ndarray], known: dict[str, np.ndarray], by: str
) -> dict[str, int]:
    """Count the rows whose hash is known, by split, and warn of them in one line."""
    found = {name: count_seen(rows[name], hashes) for name, hashes in known.items()}
    scored = [name for name in found if found[name] and name != "train"]
    said = [f"{found[name]} of {len(rows[name])} {name} documents" for name in scored]
    if scored:
        logger.warning(
            "%s have the words of rows that are trained on, %s: their scores are too good",
            ", ".join(said),
            by,
        )
    return {f"{name}_documents_trained_on": number for name, number in found.items()}


def with_hashes(documents: Dataset) -> Dataset:
    """Add a column with the hash of each document, so that its text is hashed once in a run."""
    return with_column(documents, HASH_COLUMN, hashes_of(documents))


def hashes_of(documents: Dataset) -> np.ndarray:
    """The hash of each document, uint64 [documents]: its column, else of its text."""
    if HASH_COLUMN in documents.column_names:
        return np.array(documents[HASH_COLUMN][:], dtype=np.uint64)
    total = len(documents)  # not all text is in memory at once
    starts = range(0, total, ROWS_AT_ONCE)
    pieces = [documents.select(range(i, min(i + ROWS_AT_ONCE, total))) for i in starts]
    hashes = [hash_texts(all_text(piece)) for piece in pieces]
    return np.concatenate(hashes) if hashes else np.empty(0, dtype=np.uint64)


def count_seen(rows: np.ndarray, hashes: np.ndarray) -> int:
    """Count the rows, given by their hashes, that are among others."""
    return int(np.isin(rows, hashes).sum())
