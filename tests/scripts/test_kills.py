"""Two cells of benchmarks/kills.py: what a killed run leaves is gone on with, byte for byte."""

import runpy

import pytest
from conftest import ROOT
from forking import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="forks are asked for on Linux alone")


@pytest.mark.parametrize(
    ("cell", "code", "again"),
    [
        (("one", "a save", "KILL"), -9, "--resume_from_checkpoint last"),
        (("folds", "between checkpoints", "TERM"), 143, "the same"),
    ],
)
def test_a_killed_run_ends_as_one_left_alone(cell, code, again, tmp_path):
    kills = runpy.run_path(str(ROOT / "benchmarks" / "kills.py"))
    kills["make_inputs"](tmp_path)
    expected = kills["left_alone"](tmp_path, cell[0])
    assert len(expected) > 2
    assert kills["run_cell"](tmp_path, cell, expected) == (code, again, "equal")
