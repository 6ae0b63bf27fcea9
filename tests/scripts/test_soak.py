"""benchmarks/soak.py tells a script that ends as if left alone from one that does not."""

import argparse
import runpy
import subprocess
import sys
import time

import pytest
from conftest import ROOT

# Counts its starts, lasts until killed once, and ends with an output that may tell
SCRIPT = """
import pathlib, sys, time
out = pathlib.Path({out!r})
out.mkdir(exist_ok=True)
starts = out / "starts"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
if {ended}:
    (out / "history.csv").write_text("same")
if out.name == "out" and len(starts.read_text()) == 1:
    time.sleep(60)
again = len(starts.read_text()) > 1
if again and "last" not in sys.argv and {refuses}:
    print("say --resume_from_checkpoint last")
    sys.exit(2)
if again and {ended}:
    print("{words}")
    sys.exit(2)
(out / "history.csv").write_text("{tells}" if again else "same")
if again and {leaves}:
    (out / ".writing-x").touch()
"""
CASES = {
    "as left alone": ({}, ""),
    "only with the flag": ({"refuses": True}, ""),
    "after its last write": ({"ended": True}, ""),
    "the same of a resume": ({"ended": True, "words": "no checkpoint; its run has ended"}, ""),
    "other output": ({"tells": "other"}, "differ: history.csv"),
    "half-written": ({"leaves": True}, "left: .writing-x"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_round(case, tmp_path, monkeypatch):
    changes, expected = CASES[case]
    soak = runpy.run_path(str(ROOT / "benchmarks" / "soak.py"))["Soak"]

    def start(self, out: str, *more: str) -> subprocess.Popen:
        values = {
            "out": str(self.folder / out),
            "refuses": False,
            "ended": False,
            "words": "holds a run that has ended",
            "tells": "same",
            "leaves": False,
        }
        script = SCRIPT.format(**values | changes)
        with open(self.folder / "said", "w") as said:
            return subprocess.Popen([sys.executable, "-c", script, *more], stdout=said)

    monkeypatch.setattr(soak, "start", start)
    options = argparse.Namespace(seed=1, kill_after=(0.5, 0.6), minutes=0.02, steps=1)
    run = soak("run_itpt", tmp_path / "run_itpt", options)
    run.finish(run.start("alone"))
    run.expected = run.contents("alone")
    assert run.expected == {"history.csv": b"same"}
    assert run.killed_round("out", time.monotonic() + 1.2) == expected
    assert sum(run.kills.values()) == 1


def test_a_script_that_fails_alone_leaves_the_others_their_rows(tmp_path, monkeypatch, capsys):
    soak = runpy.run_path(str(ROOT / "benchmarks" / "soak.py"))["Soak"]

    def start(self, out: str, *more: str) -> subprocess.Popen:
        (self.folder / "said").write_text("a traceback")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])

    monkeypatch.setattr(soak, "start", start)
    options = argparse.Namespace(seed=1, minutes=1)
    row = soak("run_itpt", tmp_path / "run_itpt", options).run()
    assert row["rounds"] == 1 and row["as the run left alone"] == 0
    assert "run_itpt, left alone: a traceback" in capsys.readouterr().out
