"""The output folder: what may lie in it when a run begins, and where inputs may lie.

- It is new, or holds nothing that a run would write over, or what an earlier run of these scripts
  left unfinished. A run that has ended, members of a run with folds or seeds, and models from
  elsewhere are never written over: a run is refused there, unless it goes on with what lies there.
- It lies beside the inputs: it is none of them, holds none, and lies in none. So nothing that is
  read is written over, and who deletes a folder of results deletes no input with it.

Imports nothing heavy.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bertchain.errors import InputError
from bertchain.runtime import locks
from bertchain.runtime.distributed import is_main_process

RESULTS = "all_results.json"  # the last file that a script writes
UNFINISHED = ".unfinished"  # there while a run is at work, and left where it did not end
MANIFESTS = ("manifest.json", "plan.json")  # of a run with members; the second of earlier versions
HEAD_WARMUP = "head_warmup"  # folder in it of what run_itpt.py trains first
WRITING = ".writing-"  # begins the temporary name of whatever is being written
CHOOSE = "choose another --output_dir, or delete it"


@contextmanager
def claim(
    folder: str | os.PathLike,
    asked: str | None = None,
    check: Callable[[Path], None] | None = None,
) -> Iterator[None]:
    """Lock an output folder for a run, and clear away what killed runs left half written.

    Args:
        asked: --resume_from_checkpoint.
        check: looks at what lies there in place of `check_unused`.

    Raises:
        InputError: as `locks.lock` and the check.
    """
    with locks.lock(folder):
        if check is None:
            check_unused(folder, asked)
        else:
            check(Path(folder))
        with _marked(Path(folder)):
            yield


@contextmanager
def _marked(folder: Path) -> Iterator[None]:
    """Keep the mark of an unfinished run in a folder until the block ends well."""
    if not is_main_process():
        yield
        return
    mark = folder / UNFINISHED
    was_there, before = mark.exists(), _entries(folder)
    remove_leftovers(folder)
    mark.touch()
    try:
        yield
    except BaseException:
        if not was_there and _entries(folder) <= before:
            mark.unlink(missing_ok=True)  # refused: nothing has been written
        raise
    mark.unlink(missing_ok=True)


def _entries(folder: Path) -> set[str]:
    return {*os.listdir(folder)} - {UNFINISHED, locks.NAME}


def check_unused(folder: str | os.PathLike, asked: str | None = None) -> None:
    """Check that an output folder holds nothing that a new run would write over.

    Args:
        asked: --resume_from_checkpoint: a run may go on from a checkpoint in the folder itself.

    Raises:
        InputError: naming what lies there.
    """
    folder = Path(folder)
    if asked is not None and asked.lower() in ("last", "true"):
        return
    if asked is not None and os.path.realpath(asked) == os.path.realpath(folder / Path(asked).name):
        return
    members = next((name for name in MANIFESTS if (folder / name).is_file()), None)
    if members is not None:
        raise InputError(
            f"--output_dir {folder} holds a run with folds or seeds ({members}), with which only "
            f"the same command goes on; {CHOOSE}"
        )
    if (folder / UNFINISHED).is_file():
        return
    if has_ended(folder):
        reuse = f" (--features_dir {folder / 'features'} reads its features again)"
        raise InputError(
            f"--output_dir {folder} holds a run that has ended ({RESULTS}); {CHOOSE}"
            + (reuse if (folder / "features").is_dir() else "")
        )
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if weights:
        raise InputError(f"--output_dir {folder} holds a model ({weights[0].name}); {CHOOSE}")


def has_ended(folder: str | os.PathLike) -> bool:
    """Return whether a run wrote its results into a folder, and none is at work there."""
    folder = Path(folder)
    return (folder / RESULTS).is_file() and not (folder / UNFINISHED).is_file()


def check_apart(folder: str | os.PathLike, **inputs: str | Sequence[str] | None) -> None:
    """Check that an output folder lies beside all inputs.

    Args:
        inputs: paths, or names on the hub, by argument.

    Raises:
        InputError: naming the input that it is, holds or lies in.
    """
    own = Path(os.path.realpath(folder))
    for name, given in inputs.items():
        for path in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(path, str | os.PathLike):
                continue
            other = Path(os.path.realpath(path))
            if own == other:
                how = "is"
            elif own in other.parents:
                how = "holds"
            elif other in own.parents and not name.endswith("_file"):  # nothing lies in a file
                how = "lies in"
            else:
                continue
            raise InputError(
                f"--output_dir {folder} {how} --{name} {path}; choose a folder beside it, so that "
                "nothing that is read can be written over or deleted with the results"
            )


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Delete what killed runs left half written: temporary files, and checkpoints cut off.

    The main process calls this, for a folder that it has locked.
    """
    from bertchain.runtime.checkpoints import checkpoints_in, is_cut_off  # imports transformers

    own = ("", "encoder/", "adapter/", "decisions/", "latex/", "step-*/", f"{HEAD_WARMUP}/end/")
    halves = [path for place in own for path in Path(folder).glob(f"{place}{WRITING}*")]
    saved = [*checkpoints_in(folder), *checkpoints_in(Path(folder) / HEAD_WARMUP)]
    for path in [*halves, *filter(is_cut_off, saved)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
