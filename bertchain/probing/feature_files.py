"""Arrays of features on disk while they are made, and marks of the batches that are done."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from bertchain.runtime.files import atomic_write


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
