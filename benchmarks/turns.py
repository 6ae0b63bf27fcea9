"""Run measurements in turns, each in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def take_turns(script: str, ways: Sequence[str], turns: int) -> list[dict]:
    """Run `script --worker WAY` with this process's arguments, in turns.

    Turns, so that other load on the machine falls on all ways alike; processes, so that each way
    has its own peak of memory and caches.

    Returns:
        a row for each way and turn.
    """
    rows = []
    for turn in range(turns):
        for way in ways:
            rows.append({"way": way, "turn": turn, **run_worker(script, way, sys.argv[1:])})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def run_worker(script: str, way: str, arguments: Sequence[str]) -> dict:
    """Run `script --worker WAY`; returns the JSON of its last line.

    Raises:
        SystemExit: with what the process said, if it failed.
    """
    command = [sys.executable, script, *arguments, "--worker", way]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def watch_steps(trainer: object, length: Callable[[dict], int]) -> tuple[list[int], list[float]]:
    """Record real tokens of each batch and the time at the end of each step while it trains.

    Args:
        length: tokens of a row that are not padding.

    Returns:
        tokens, seconds: empty lists, filled while `trainer` trains.
    """
    import torch
    from transformers import TrainerCallback

    tokens: list[int] = []
    times: list[float] = []
    collate = trainer.data_collator

    def counting(rows: list[dict]) -> dict:
        tokens.append(sum(map(length, rows)))
        return collate(rows)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer.data_collator = counting
    trainer.add_callback(Clock())
    return tokens, times
