"""Atomic writes (text, JSON, YAML, CSV, folders), errors of the disk that name a path, hashes."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from safetensors import SafetensorError

from bertchain.runtime.outputs import WRITING

TORCH_WRITER = "PytorchStreamWriter|unexpected pos|file write failed|iostream error"
SPARE = 2**20  # bytes; a disk with less left counts as full


@contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Raise errors of the disk in this block as an OSError that names `path`.

    safetensors and torch raise types of their own, and a full disk often comes without a path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    except (RuntimeError, SafetensorError) as error:
        number = _failed_write(error, path)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _failed_write(error: Exception, path: str | os.PathLike) -> int | None:
    """The errno behind an error of safetensors or torch's writer; None for any other error."""
    known = re.search(r"\(os error (\d+)\)", str(error))
    if known:
        return int(known[1])
    if not re.search(TORCH_WRITER, str(error)):
        return None
    return errno.ENOSPC if shutil.disk_usage(Path(path)).free < SPARE else errno.EIO


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends well.

    A crash leaves the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f"{WRITING}{path.name}-", suffix=path.suffix, dir=path.parent
    )
    os.close(handle)
    temporary = Path(name)
    try:
        with disk_errors(path):
            yield temporary
            sync(temporary)
        open_to_all(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder; move each of its files into `folder` when the block ends well."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder))
    try:
        with disk_errors(folder):
            yield temporary
            for source in temporary.rglob("*"):
                sync(source)
        for source in sorted(temporary.rglob("*")):
            target = folder / source.relative_to(temporary)
            if source.is_dir():
                target.mkdir(exist_ok=True)
            else:
                open_to_all(source)
                os.replace(source, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def open_to_all(path: Path) -> None:
    """Give a file the mode that the umask says: mkstemp and safetensors make files private."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def sync(path: Path) -> None:
    """Wait until a file is on the disk itself, so that it is whole after a power cut, too."""
    if path.is_file():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


SEAL = b"sha256:"  # before the hash at the end of a sealed file


def seal(path: Path) -> None:
    """Append the hash of a file's content to it. Readers of .npy files take no notice of it."""
    digest = bytes.fromhex(hash_file(path))
    with disk_errors(path), path.open("ab") as file:
        file.write(SEAL + digest)


def check_seal(path: Path) -> bool | None:
    """Return whether a file is as it was sealed; None: it has no seal."""
    left = path.stat().st_size - len(SEAL) - hashlib.sha256().digest_size
    if left < 0:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(left)
        end = file.read()
        if not end.startswith(SEAL):
            return None
        file.seek(0)
        while left:
            piece = file.read(min(left, 1 << 20))
            digest.update(piece)
            left -= len(piece)
    return end == SEAL + digest.digest()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file in UTF-8, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write valid JSON, atomically: a metric that is not defined (NaN) becomes null."""
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_yaml(path: str | os.PathLike, content: Any) -> None:
    """Write YAML with sorted keys, atomically."""
    write_text(path, yaml.safe_dump(content, sort_keys=True, allow_unicode=True))


def write_csv(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write a table without its index, atomically."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False)
