"""What stays in memory of batches of ever other lengths on a CPU."""

import platform

import pytest
from conftest import ROOT
from forking import run_command

GROWTH = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)  # set by the process that tests
{first}
import torch

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap

def in_use_after(lengths):
    for length in lengths:
        states = torch.randn(16, length, 64, requires_grad=True)
        torch.nn.functional.gelu(states).sum().backward()
    del states
    return libc.mallinfo2().h  # bytes

before = in_use_after(range(100, 140))
print(in_use_after(range(140, 300)) - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc what is in use")
def test_shapes_that_have_come_by_are_forgotten():
    def growth(first: str) -> int:
        done = run_command("-c", GROWTH.format(root=str(ROOT), first=first))
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    kept, all_kept = growth("import bertchain"), growth("")
    assert kept < all_kept / 10, (kept, all_kept)
