"""Arrays of features on disk: while they are made, with marks of the batches that are done; and
an index of those that are there."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertchain.runtime.files import atomic_write, write_csv
from bertchain.runtime.locks import wait_for_lock


def mark_of(features: np.ndarray) -> np.uint64:
    """Hash a batch of features to the mark that it is done, which is never 0."""
    digest = hashlib.blake2b(np.ascontiguousarray(features).tobytes(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little") | 1)


def is_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> bool:
    """Return whether a file holds an array of this type and shape, which is not cut off."""
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return found.dtype == dtype and found.shape == shape


def allocate(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Make an array of zeros on disk. Its space is reserved at once: on a full disk a write into
    the memory map would kill the process."""
    with atomic_write(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()
        if hasattr(os, "posix_fallocate"):
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)


INDEX = "index.csv"


def write_index(model: str, features: Mapping[str, np.memmap], poolings: Sequence[str]) -> None:
    """Write or complete index.csv beside feature files: whose features each of them holds.

    Runs may share a folder; rows of files that are gone are left out.

    Args:
        features: by split, [rows, layers, poolings, hidden], memory-mapped.
    """
    rows = []
    for split, x in features.items():
        shape = {"rows": x.shape[0], "layers": x.shape[1], "poolings": " ".join(poolings)}
        more = shape | {"hidden": x.shape[3], "dtype": str(x.dtype), "hash": Path(x.filename).stem}
        rows.append({"model": model, "split": split} | more)
    folder = Path(x.filename).parent
    path, table = folder / INDEX, pd.DataFrame(rows)
    with wait_for_lock(path, str(path)):
        table = pd.concat([*_read_index(path, list(table)), table])
        table = table.drop_duplicates(["model", "split", "hash"], keep="last")
        there = [(folder / f"{name}.npy").is_file() for name in table["hash"]]
        write_csv(path, table[there])


def _read_index(path: Path, columns: list[str]) -> list[pd.DataFrame]:
    """Read an index; none where it is missing or damaged: what it says is known otherwise."""
    try:
        return [pd.read_csv(path, dtype={"model": str}, keep_default_na=False)[columns]]
    except (OSError, ValueError, KeyError):
        return []
