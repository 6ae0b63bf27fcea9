"""Rows that stay together: of a group, or with nearly the same text; and held-out groups."""

import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from bertchain.arguments.competition import FoldArguments
from bertchain.data.contamination import normalise
from bertchain.data.documents import all_text
from bertchain.data.tables import Table, require_cells, require_columns
from bertchain.errors import InputError, as_input_error

logger = logging.getLogger(__name__)

PIECE = 3  # words that are compared at once
DRAWS = 50  # of groups to hold out, of which the most even one is taken


def find_groups(train: Dataset, table: Table, options: FoldArguments) -> np.ndarray | None:
    """Number the group of each training row: by a column, by near-duplicate texts, or by both.

    Args:
        train: documents with their text, the first rows of the table.

    Returns:
        int [n]; None where no rows stay together.

    Raises:
        InputError: for a missing column or cell, and where a package is missing.
    """
    pairs, column = np.empty((0, 2), dtype=int), options.group_column_name
    if options.near_duplicates is not None:
        pairs = near_duplicates(all_text(train), options.near_duplicates)
        rows = np.unique(pairs)
        if len(rows):
            ids = [train[int(row)]["id"] for row in pairs[0]]
            logger.warning(
                "%d of %d training rows have nearly the text of another, such as %s and %s: such "
                "rows stay together",
                len(rows),
                len(train),
                *ids,
            )
        else:
            logger.info("No two training rows have nearly the same text")
    if column is None:
        return join(np.arange(len(train)), pairs) if options.near_duplicates is not None else None
    require_columns(table.rows, [column], table.source, "--group_column_name")
    values = table.rows[column][: len(train)]
    require_cells(values, column, table.source, "--group_column_name")
    return join(np.unique([str(value) for value in values], return_inverse=True)[1], pairs)


def join(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Join the groups of each pair of rows. Args: groups int [n], pairs [m, 2]. Returns int [n]."""
    number = int(groups.max(initial=-1)) + 1
    ends = groups[pairs]
    graph = coo_matrix((np.ones(len(pairs)), (ends[:, 0], ends[:, 1])), shape=(number, number))
    return connected_components(graph, directed=False)[1][groups]


def near_duplicates(texts: Sequence[str], similarity: float) -> np.ndarray:
    """Find pairs of texts that share at least so many of the pieces that either has (Jaccard).

    A piece is a run of three words; a shorter text is one piece. MinHash finds the candidates, of
    which each is then compared as a whole: no pair is wrong, a few near the limit may be missing.
    Of texts with the same pieces each is paired with the first.

    Returns:
        row numbers [pairs, 2].

    Raises:
        InputError: if datasketch is not installed.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise InputError(
            "--near_duplicates needs the package datasketch: pip install datasketch"
        ) from error
    blank = MinHash(num_perm=128, hashfunc=int, seed=1)  # the same in every process
    index = MinHashLSH(threshold=similarity, num_perm=128, weights=(0.1, 0.9))
    first, pieces, pairs = {}, {}, []
    for row, text in enumerate(texts):
        own = pieces_of(text)
        if not len(own):
            continue
        same = first.setdefault(own.tobytes(), row)
        if same != row:
            pairs.append((same, row))
            continue
        sketch = blank.copy()
        sketch.update_batch(own.tolist())
        near = [other for other in index.query(sketch) if jaccard(pieces[other], own) >= similarity]
        pairs += [(other, row) for other in sorted(near)]
        index.insert(row, sketch, check_duplication=False)
        pieces[row] = own
    return np.array(pairs, dtype=int).reshape(-1, 2)


def pieces_of(text: str) -> np.ndarray:
    """Hash the different runs of three words of a text, sorted: uint32 [pieces]."""
    words = normalise(text).split()
    ends = range(PIECE, max(PIECE, len(words)) + 1)
    runs = [" ".join(words[end - PIECE : end]) for end in ends] if words else []
    return np.unique(np.array([zlib.crc32(run.encode()) for run in runs], dtype=np.uint32))


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    """Share of the elements of either of two sets, arrays of different numbers, that both have."""
    both = len(np.intersect1d(one, two, assume_unique=True))
    return both / (len(one) + len(two) - both)


def hold_out_groups(
    strata: Sequence[Any], groups: np.ndarray, share: float, seed: int
) -> np.ndarray:
    """Choose whole groups to hold out: of many draws the one nearest to the share of each stratum.

    Returns:
        a mask [n], True for held-out rows.

    Raises:
        InputError: where the groups are too few.
    """
    from sklearn.model_selection import GroupShuffleSplit

    keys = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]
    counts = np.bincount(keys)

    def distance(rows: np.ndarray) -> float:
        return np.abs(np.bincount(keys[rows], minlength=len(counts)) - share * counts).sum()

    number = len(np.unique(groups))
    if number < 2:
        raise InputError(
            f"--validation_split {share}: all rows are of one group, and a group is held out whole "
            "or not at all; give a --validation_file, or --validation_split 0 without groups"
        )
    splitter = GroupShuffleSplit(n_splits=DRAWS, test_size=share, random_state=seed)
    with as_input_error(f"--validation_split {share} of {number} groups"):
        draws = [rows for _, rows in splitter.split(keys, groups=groups)]
    held_out = np.zeros(len(keys), dtype=bool)
    held_out[min(draws, key=distance)] = True
    return held_out
