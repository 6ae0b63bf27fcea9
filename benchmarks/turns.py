"""Run measurements in turns, each in a process of its own."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

COUNTED = "tokens that count"  # in a batch, until it is trained on


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


def watch_steps(
    trainer: object, length: Callable[[dict], int], warm: int = 2
) -> tuple[list, list[float]]:
    """Record real tokens of each batch and the time at the end of each step while it trains.

    A GPU is waited for after the steps that warm up and after the last one alone: a wait at each
    step would be part of what is measured.

    Args:
        length: tokens of a row that are not padding; a function of a module, for workers.
        warm: steps that warm up.

    Returns:
        tokens, seconds: empty lists, filled while `trainer` trains.
    """
    import torch
    from transformers import TrainerCallback

    tokens: list[torch.Tensor] = []
    times: list[float] = []
    train = trainer.training_step

    def counting(model: object, inputs: dict, *args: object, **kwargs: object) -> object:
        tokens.append(inputs.pop(COUNTED))  # read at the end: reading would wait for the GPU
        return train(model, inputs, *args, **kwargs)

    class Clock(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            if torch.cuda.is_available() and state.global_step in (warm, state.max_steps):
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    trainer.data_collator = Counting(trainer.data_collator, length)
    trainer.training_step = counting
    trainer.add_callback(Clock())
    return tokens, times


class Counting(NamedTuple):
    """A collator that counts, wherever it runs."""

    collate: Callable[[list[dict]], dict]
    length: Callable[[dict], int]

    def __call__(self, rows: list[dict]) -> dict:
        import torch

        return {**self.collate(rows), COUNTED: torch.tensor(sum(map(self.length, rows)))}


def ids_of(row: dict) -> int:
    """Tokens of a row of ids."""
    return len(row["input_ids"])


def length_of(row: dict) -> int:
    """Tokens of a row that knows them."""
    return row["length"]


def rates(tokens: list[int], times: list[float], warm: int) -> tuple[float, float]:
    """Tokens per second of all steps that are timed, and of their second half alone.

    The first half holds what is done once for each new shape of a batch.

    Args:
        tokens, times: see `watch_steps`.
        warm: steps that warm up.
    """
    middle = (warm + len(times)) // 2
    found = (
        int(sum(tokens[first : len(times)])) / (times[-1] - times[first - 1])
        for first in (warm, middle)
    )
    return next(found), next(found)
