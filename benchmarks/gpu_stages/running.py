"""Run measurements, each in a process of its own, and keep what they find."""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

START = "forkserver"
HEAVY = ["torch", "transformers", "datasets", "sklearn.linear_model", "run_finetune", "run_itpt"]


class Item(NamedTuple):
    """One measurement.

    Attributes:
        name: unique in its stage; what stands before its last "/" is its table.
        run: a function of a module, or a partial of one, that returns figures by name.
        beside: may run while others that may do so run, too: nothing in it is timed.
    """

    name: str
    run: Callable[[], dict]
    beside: bool = False


def run_stage(items: Iterable[Item], path: Path, options: argparse.Namespace) -> int:
    """Run what is not done yet, those that may run beside others first; returns how many failed."""
    end = time.monotonic() + 60 * options.minutes
    path.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(path.read_text()) if path.is_file() else {}
    left = [item for item in items if options.only in item.name]
    left = [item for item in left if "failed" in found.get(item.name, {"failed": ""})]

    def run(item: Item) -> None:
        seconds = end - time.monotonic()
        if seconds <= 0:
            return print(f"{path.stem} {item.name}: no time left", flush=True)
        found[item.name] = run_item(item, seconds, path.with_suffix(".log"))
        path.write_text(json.dumps(dict(found), indent=1) + "\n")
        print(f"{path.stem} {item.name}: {json.dumps(found[item.name])[:400]}", flush=True)

    if options.together:
        left = [item._replace(beside=True) for item in left]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, [item for item in left if item.beside]))
    for item in left:
        if not item.beside:
            run(item)
    return sum("failed" in found.get(item.name, {}) for item in left)


def run_item(item: Item, seconds: float, log: Path) -> dict:
    """Run a measurement in a process that has imported what is heavy, but not started CUDA."""
    context = multiprocessing.get_context(START)
    context.set_forkserver_preload(HEAVY)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(item.run, sender, str(log)))
    start = time.monotonic()
    process.start()
    sender.close()
    result = {"failed": f"not done within {seconds:.0f} s"}
    try:
        if receiver.poll(seconds):
            result = receiver.recv()
    except EOFError:
        result = {"failed": f"the process died, see {log.name}"}
    if "not done" in result.get("failed", ""):
        process.kill()
    process.join()
    return result | {"all_seconds": round(time.monotonic() - start, 1)}


def _work(run: Callable[[], dict], sender: Connection, log: str) -> None:
    """Run a measurement, and send its figures or its error."""
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            sender.send({**facts(), **run()})
        except BaseException as error:
            traceback.print_exc(file=file)
            file.flush()
            sender.send({"failed": f"{type(error).__name__}: {error}"[-300:]})


def facts() -> dict[str, str]:
    """Name the card and the versions."""
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"card": card, "torch": torch.__version__, "transformers": transformers.__version__}
