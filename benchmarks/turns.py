"""Measurements that take turns, each in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Sequence


def take_turns(script: str, ways: Sequence[str], turns: int) -> list[dict]:
    """Run `script --worker WAY` with this process's arguments; a row for each way and turn.

    In turns, so that a busy machine is busy for all; in processes, so that peaks of memory and
    caches are those of one way.
    """
    rows = []
    for turn in range(turns):
        for way in ways:
            rows.append({"way": way, "turn": turn, **run_worker(script, way, sys.argv[1:])})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def run_worker(script: str, way: str, arguments: Sequence[str]) -> dict:
    """What `script --worker WAY` prints last, as JSON. Raises SystemExit with its errors."""
    command = [sys.executable, script, *arguments, "--worker", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])
