"""Several processes of one run: who speaks, what they agree on, how they part.

Imports torch only where several are started.
"""

import os
import sys
from typing import Any


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def rank_and_size() -> tuple[int, int]:
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def start_processes() -> None:
    """Let the processes of a launcher know each other, where no Trainer does."""
    if rank_and_size()[1] == 1:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def _distributed() -> Any:
    """`torch.distributed` where processes have been started, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None


def broadcast(value: Any) -> Any:
    """The main process's value, in all processes."""
    distributed = _distributed()
    if distributed is None:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def barrier() -> None:
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()


def leave_processes() -> None:
    """Take leave of the other processes in order: left to the interpreter's end, it may abort."""
    distributed = _distributed()
    if distributed is not None:
        distributed.barrier()
        distributed.destroy_process_group()
