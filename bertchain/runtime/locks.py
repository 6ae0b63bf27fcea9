"""File locks, so that two runs never write to one folder. A lock ends with its process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bertchain.errors import InputError
from bertchain.runtime.distributed import is_main_process

logger = logging.getLogger(__name__)

NAME = ".in_use.lock"
PATIENCE = 10  # seconds to wait: workers of a run that was killed may hold the lock for a while


@contextmanager
def lock(folder: str | Path, flag: str = "output_dir") -> Iterator[None]:
    """Lock an output folder so that two runs never write to it at once.

    Makes the folder, and removes it if it is new and still empty at the end. Only the main process
    locks.

    Args:
        flag: the argument that names the folder, for the error.

    Raises:
        InputError: where another run holds the lock.
    """
    if not is_main_process():
        yield
        return
    folder = Path(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    file = FileLock(folder / NAME)
    try:
        _acquire(file, PATIENCE)
    except Timeout as error:
        raise InputError(
            f"--{flag} {folder} is in use by another run; wait for it, or name another folder"
        ) from error
    try:
        yield
    finally:
        _release(file)
        if new:
            with suppress(OSError):  # unless something was written
                folder.rmdir()


@contextmanager
def wait_for_lock(path: Path, what: str) -> Iterator[None]:
    """Lock a file that several runs may make; wait while another run holds the lock.

    Only the main process locks.

    Args:
        what: the file's name in the log.
    """
    if not is_main_process():
        yield
        return
    file = FileLock(path.with_suffix(".lock"))
    try:
        _acquire(file, 0)
    except Timeout:
        logger.info("%s: another run is at it; waiting", what)
        file.acquire()
    try:
        yield
    finally:
        _release(file)


def _acquire(file: FileLock, timeout: float) -> None:
    """Raises Timeout. A file system without locks (some network ones) is logged as a warning."""
    try:
        file.acquire(timeout=timeout)
    except NotImplementedError:
        folder = Path(file.lock_file).parent
        logger.warning("%s: no locks there; let no other run write into it", folder)


def _release(file: FileLock) -> None:
    Path(file.lock_file).unlink(missing_ok=True)
    file.release()
