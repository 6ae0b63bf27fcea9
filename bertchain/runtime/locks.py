"""One run at a time in a folder: what two wrote there at once would be neither's.

A lock ends with its process, however that ends.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bertchain.errors import InputError
from bertchain.runtime.distributed import is_main_process

logger = logging.getLogger(__name__)


NAME = ".in_use.lock"
PATIENCE = 10  # seconds: workers of a run that was killed may outlive it for a while
_held: list[tuple[FileLock, bool]] = []  # locks, and whether their folder is new


def claim(folder: str | Path) -> None:
    """Let no other run into this folder until a function under `frees_claims` ends.

    Raises:
        InputError: where another run has it.
    """
    if not is_main_process():
        return
    new = not Path(folder).exists()
    Path(folder).mkdir(parents=True, exist_ok=True)
    lock = FileLock(Path(folder) / NAME)
    try:
        _acquire(lock, PATIENCE)
    except Timeout as error:
        raise InputError(
            f"--output_dir {folder} is in use by another run; wait for it, or name another folder"
        ) from error
    _held.append((lock, new))


def frees_claims(main: Callable) -> Callable:
    """Give back at its end what was claimed in it."""

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        finally:
            while _held:
                lock, new = _held.pop()
                _give_back(lock)
                if new:
                    with suppress(OSError):  # unless something was written
                        Path(lock.lock_file).parent.rmdir()

    return wrapped


@contextmanager
def one_at_a_time(path: Path, what: str) -> Iterator[None]:
    """Enter this block when no other run is in its own for the same file."""
    if not is_main_process():
        yield
        return
    lock = FileLock(path.with_suffix(".lock"))
    try:
        _acquire(lock, 0)
    except Timeout:
        logger.info("%s: another run is at it; waiting", what)
        lock.acquire()
    try:
        yield
    finally:
        _give_back(lock)


def _acquire(lock: FileLock, timeout: float) -> None:
    """Raises Timeout. Some network file systems have no locks, which is said."""
    try:
        lock.acquire(timeout=timeout)
    except NotImplementedError:
        folder = Path(lock.lock_file).parent
        logger.warning("%s: no locks there; let no other run write into it", folder)


def _give_back(lock: FileLock) -> None:
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
