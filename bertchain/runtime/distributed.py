"""Several processes of one run: main process, broadcast, barrier, process group, how they fail.

Imports torch only where several processes are started.
"""

import hashlib
import json
import os
import re
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PRECISION = "ACCELERATE_MIXED_PRECISION"  # no, bf16, fp16 or fp8, as `accelerate launch` sets it


def launcher_precision() -> dict[str, bool] | None:
    """Read the launcher's --mixed_precision as values of --bf16 and --fp16; None: it says none."""
    said = os.environ.get(PRECISION)
    return None if said is None else {name: said == name for name in ("bf16", "fp16")}


def is_main_process() -> bool:
    """Return whether this process writes and logs: that of rank 0, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def rank_and_size() -> tuple[int, int]:
    """Read the rank of this process and the number of processes, as a launcher sets them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start_processes() -> None:
    """Start the process group of a launcher's processes, in a script without a Trainer."""
    if rank_and_size()[1] == 1:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _distributed() -> Any:
    """`torch.distributed` where a process group has been started, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None


def broadcast(value: Any) -> Any:
    """Send the main process's value to all processes, which must all call this; returns it."""
    distributed = _distributed()
    if distributed is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    """Wait until all processes have come here."""
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()


def close_process_group() -> None:
    """Wait for all processes, then close the group: an open one may abort as Python exits."""
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()
        distributed.destroy_process_group()


# ---------------------------------------------------------------- one process, or all, met an error

# What gloo and NCCL say when another process has ended
OTHERS_ENDED = r"Connection (closed|reset) by peer|Broken pipe|remote process exit"


def is_first_to_say(message: str) -> bool:
    """Return whether no other process of this machine has said the same.

    The processes of torchrun and accelerate share a folder of the launcher's, where each notes what
    it says; under any other launcher each process speaks for itself.
    """
    folder = _launcher_folder()
    if folder is None:
        return True
    note = folder / f"said-{hashlib.sha256(message.encode()).hexdigest()[:16]}"
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        pass
    return True


def was_left_alone(error: BaseException) -> bool:
    """Return whether an error says no more than that another process has ended."""
    return rank_and_size()[1] > 1 and re.search(OTHERS_ENDED, str(error)) is not None


def has_anyone_spoken() -> bool:
    """Return whether a process of this machine has said why it ends."""
    folder = _launcher_folder()
    return folder is not None and any(folder.glob("said-*"))


def leave(code: int, message: str) -> None:
    """End a process of several at once; the launcher gets the message for its report.

    An orderly end could wait for the others, or abort with the process group that is open. The
    others learn of it where the group is used next, so it is started first: they would wait for
    this process. Does nothing where there is one process.
    """
    if rank_and_size()[1] == 1:
        return
    with suppress(Exception):
        start_processes()
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        details = {"py_callstack": message, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(report).write_text(
                json.dumps({"message": {"message": message, "extraInfo": details}}),
                encoding="utf-8",
            )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _launcher_folder() -> Path | None:
    """The folder in which the launcher keeps one for each process of this machine."""
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return Path(report).parent.parent if report else None
