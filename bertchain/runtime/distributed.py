"""Several processes of one run: the main process, broadcast, barrier, process group.

Imports torch only where several processes are started.
"""

import os
import sys
from typing import Any


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
