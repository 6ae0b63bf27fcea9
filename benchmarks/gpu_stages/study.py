"""The study of Sun et al. 2019 (examples/sun2019), as far as the time goes."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from gpu_stages import texts
from gpu_stages.running import Item


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the one measurement; it goes on where it was cut off."""
    if options.data:
        yield Item("Sun et al. 2019/claims", partial(repeat, options))


def repeat(options: argparse.Namespace) -> dict:
    """Run what is left of the study until the minutes are over, then judge what is there."""
    import pandas as pd

    out = options.output_dir / "sun2019"
    encoder = options.study_model or options.model
    given = [f"data={options.data}", f"encoder={encoder}", f"out={out}"]
    given += [
        f"parallel={options.parallel}",
        *([f"only={options.studies}"] if options.studies else []),
    ]
    given += options.tiny * ["seeds=2", "rows=60", "test_rows=40", "steps=4", "step1=1", "step2=2"]
    folder = texts.ROOT / "examples"
    command = [sys.executable, str(folder / "recipe.py"), str(folder / "sun2019" / "study.yaml")]
    seconds = 60 * options.minutes - 40
    start = time.monotonic()
    process = subprocess.Popen([*command, *given], start_new_session=True)
    try:
        done = process.wait(max(20, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the runs that it has started, too
        done = None
    tables = [sys.executable, str(folder / "sun2019" / "tables.py"), str(out)]
    subprocess.run(tables, check=True)
    claims = pd.read_csv(out / "claims.csv")
    counts = claims["verdict"].value_counts().to_dict()
    ended = {None: "cut off", 0: "ended"}.get(done, f"failed with exit code {done}")
    return {"study": ended, "minutes": (time.monotonic() - start) / 60} | counts
