"""Run a grid of arguments from one YAML file: a process for each run, a table, and a figure.

    python examples/sweep.py sweep.yaml

    script: run_finetune.py            # the default, or another script, such as run_probe.py
    output_dir: sweep
    fixed:                             # arguments of every run
      model_name_or_path: bert-base-uncased
      train_file: train.csv
      test_file: test_labels.csv
    grid:                              # every combination is a point
      layer_lr_decay: [1.0, 0.95, 0.9]
    points:                            # or named points in place of a grid
      - {name: head, truncation: head}
      - {name: head + tail, truncation: head_tail}
    seeds: [1, 2, 3]                   # runs of every point; 5 stands for 1 to 5
    metric: test_accuracy              # default: the main score of the test set
    parallel: 1                        # runs at a time, each with its share of the cores
    keep_models: false                 # true: do not delete weights
    runs_dir: all_runs                 # default: output_dir/runs; sweeps that name one share runs

Values of a grid and seeds can be a text with commas, as "2e-5,5e-5", as a recipe fills them in.
"{seed}" in an argument becomes the seed of the run, so that a sweep can load the models of another
one with keep_models: model_name_or_path: multitask/runs/both-seed-{seed}/trec. Where sweeps share
runs, one that has the same script and arguments as another is run once; what counts as done there
is the run, whichever sweep asked for it.

Finished runs are skipped, so the same command resumes an interrupted sweep. It writes sweep.csv (a
row for each run), sweep.md (means; differences to the first point, paired by seed, with 95 %
intervals by Student's t) and sweep.png. Results and predictions of the runs are kept.
"""

import contextlib
import hashlib
import itertools
import json
import os
import runpy
import select
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bertchain.cli import flags_of, read_arguments, run_script
from bertchain.errors import InputError, nearest
from bertchain.metrics import MAIN_METRIC, STANDARDISED
from bertchain.runtime.files import atomic_write, write_csv, write_json, write_text
from bertchain.runtime.records import markdown_table, versions

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = {
    "script": "run_finetune.py",
    "output_dir": "sweep",
    "fixed": {},
    "grid": None,
    "points": None,
    "seeds": [42],
    "metric": None,
    "parallel": 1,
    "keep_models": False,
    "runs_dir": None,
}
SERVE = "--serve"
OWN = threading.local()  # the process of this thread whose forks are runs, and its script


class Job(NamedTuple):
    """One run of a sweep: a point, the arguments that make it, and a seed."""

    point: str
    flags: dict[str, Any]
    seed: int


def main() -> None:
    """Run what is not done yet, and write the table, the summary and the figure."""
    sweep = read_sweep(sys.argv[1:])
    folder = Path(sweep["output_dir"])
    points = list_points(sweep)
    jobs = [Job(name, flags, seed) for seed in sweep["seeds"] for name, flags in points.items()]
    folders = [folder_of(job, sweep) for job in jobs]
    with ThreadPoolExecutor(sweep["parallel"]) as pool:  # of two jobs that share a run, one runs
        own = dict(zip(folders, jobs, strict=True))
        ran = dict(zip(own, pool.map(lambda job: run(job, sweep), own.values()), strict=True))
    done = [ran[folder] for folder in folders]
    failed = [path for path in done if isinstance(path, Path)]
    if failed:
        raise InputError(
            f"{len(failed)} of {len(jobs)} runs failed; the first says why: {failed[0]}"
        )
    metric = sweep["metric"] or main_metric(done[0])
    rows = [row_of(job, results, metric) for job, results in zip(jobs, done, strict=True)]
    table = pd.DataFrame(rows).assign(run=[str(path) for path in folders])
    write_csv(folder / "sweep.csv", table)
    summary = summarise(table, metric)
    write_text(folder / "sweep.md", markdown_table(summary))
    content = {"sweep": sweep | {"metric": metric}, "versions": versions()}
    write_json(folder / "all_results.json", content)
    plot(folder / "sweep.png", summary, metric, sweep)
    print(markdown_table(summary))


# ---------------------------------------------------------------- what to run


def read_sweep(argv: list[str]) -> dict[str, Any]:
    """Read and check the YAML file; `DEFAULTS` stand for what it leaves out."""
    if len(argv) != 1:
        raise InputError("give one YAML file; its form is described at the top of sweep.py")
    sweep = read_arguments(argv[0])
    keys = list(DEFAULTS)
    for key in sweep:
        if key not in keys:
            known = ", ".join(keys) + nearest(key, keys)
            raise InputError(f"{argv[0]}: {key} is not one of {known}")
    if bool(sweep.get("grid")) == bool(sweep.get("points")):
        raise InputError(f"{argv[0]}: give either grid or points")
    sweep = DEFAULTS | sweep
    if not (ROOT / sweep["script"]).is_file():
        raise InputError(f"{argv[0]}: script {sweep['script']} is not in {ROOT}")
    if sweep["grid"]:
        sweep["grid"] = {name: listed(values) for name, values in sweep["grid"].items()}
    try:
        seeds = [int(seed) for seed in listed(sweep["seeds"])]
        several = isinstance(sweep["seeds"], list) or len(seeds) > 1
        sweep["seeds"] = seeds if several else [*range(1, seeds[0] + 1)]
        sweep["parallel"] = int(sweep["parallel"])
    except ValueError as error:
        raise InputError(f"{argv[0]}: seeds and parallel are whole numbers: {error}") from error
    if not sweep["seeds"] or sweep["parallel"] < 1:
        raise InputError(f"{argv[0]}: give at least one seed, and parallel: 1 or more")
    return sweep


def listed(values: Any) -> list[Any]:
    """Return a list as it is, a text with commas split at them, and else the one value."""
    if isinstance(values, str):
        return [value.strip() for value in values.split(",")]
    return values if isinstance(values, list) else [values]


def list_points(sweep: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """List the points: name -> the arguments that make it."""
    if sweep["points"]:
        points = [dict(point) for point in sweep["points"]]
        named = {str(point.pop("name", "")): point for point in points}
        if len(named) < len(points) or "" in named:
            raise InputError("points: each needs a name of its own")
        return named
    names = list(sweep["grid"])
    combinations = itertools.product(*sweep["grid"].values())
    points = [dict(zip(names, values, strict=True)) for values in combinations]
    return {", ".join(f"{k} {v}" for k, v in point.items()): point for point in points}


# ---------------------------------------------------------------- runs


def arguments_of(job: Job, sweep: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a job's run, but for its folder."""
    return with_seed(sweep["fixed"] | job.flags, job.seed) | {"seed": job.seed}


def folder_of(job: Job, sweep: dict[str, Any]) -> Path:
    """Name the folder of a job's run: by point and seed; of shared runs by their arguments."""
    if sweep["runs_dir"]:
        asked = json.dumps([sweep["script"], arguments_of(job, sweep)], sort_keys=True)
        return Path(sweep["runs_dir"]) / hashlib.sha256(asked.encode()).hexdigest()[:16]
    slug = "".join(c if c.isalnum() or c in ".-" else "_" for c in job.point)
    return Path(sweep["output_dir"]) / "runs" / f"{slug}-seed-{job.seed}"


def run(job: Job, sweep: dict[str, Any]) -> dict[str, Any] | Path:
    """Run a job unless it is done. Returns its results, or the path of its log if it failed."""
    folder = folder_of(job, sweep)
    arguments = arguments_of(job, sweep) | {"output_dir": str(folder)}
    command = [sys.executable, str(ROOT / sweep["script"]), *flags_of(arguments)]
    done = folder / "done.json"
    if done.is_file() and json.loads(done.read_text())["arguments"] == command[2:]:
        return json.loads((folder / "all_results.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = max(1, (os.cpu_count() or 1) // sweep["parallel"])
    log = folder.with_suffix(folder.suffix + ".log")
    if start(command, log, {"OMP_NUM_THREADS": str(threads), **os.environ}) != 0:
        return log
    for weights in [] if sweep["keep_models"] else folder.rglob("*.safetensors"):
        weights.unlink()
    write_json(done, {"arguments": command[2:]})
    print(f"{job.point}, seed {job.seed}: done", flush=True)
    return json.loads((folder / "all_results.json").read_text())


def start(command: list[str], log: Path, environment: dict[str, str]) -> int:
    """Run a command to its end, what it says in a log. Returns its exit code.

    It is a fork of a process that this thread keeps and that has imported what the script needs:
    that takes longer than many a run. Where there is no fork it is a process of its own.
    """
    python, script, *flags = command
    if hasattr(os, "fork"):
        if getattr(OWN, "script", None) != script:
            line = [python, str(Path(__file__).resolve()), SERVE, script]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            quiet = {  # before a fork: no thread, and a GPU is counted without opening it
                "JE_ARROW_MALLOC_CONF": "background_thread:false",
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            }
            OWN.server = subprocess.Popen(line, env=quiet | environment, **pipes)
            OWN.script = script
        with contextlib.suppress(BrokenPipeError):  # where it could not import the script
            print(json.dumps([str(log), flags]), file=OWN.server.stdin, flush=True)
            answer = OWN.server.stdout.readline()
            if answer:
                return int(answer)
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.run(command, stdout=file, stderr=file, env=environment).returncode


def serve(script: str) -> None:
    """Import what a script needs, and run it in a fork for each line of standard input."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever the imports say
    runpy.run_path(script, run_name="imported")
    for line in iter(sys.stdin.readline, ""):
        log, flags = json.loads(line)
        pid = os.fork()
        if pid == 0:
            with open(log, "w", encoding="utf-8") as file, open(os.devnull) as nothing:
                for number, stream in enumerate((nothing, file, file)):
                    os.dup2(stream.fileno(), number)
            sys.argv = [script, *flags]
            runpy.run_path(script, run_name="__main__")
            sys.exit(0)
        code = wait_for(pid)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
            os.write(answers, f"{code}\n".encode())


def wait_for(pid: int) -> int:
    """Wait for a run and return its exit code; where the sweep has been killed, so is the run."""
    with contextlib.suppress(AttributeError, OSError):  # where the system cannot tell
        ended = os.pidfd_open(pid)
        if ended not in select.select([ended, sys.stdin], [], [])[0]:  # no line comes before then
            os.kill(pid, signal.SIGTERM)
        os.close(ended)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def with_seed(arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    """Replace {seed} in values that are text."""
    return {
        name: value.replace("{seed}", str(seed)) if isinstance(value, str) else value
        for name, value in arguments.items()
    }


def main_metric(results: dict[str, Any]) -> str:
    """Find the main score of the test set, else of the validation set."""
    scores = [STANDARDISED, *(metric for metric, _ in MAIN_METRIC.values())]
    names = [f"{prefix}_{metric}" for prefix in ("test", "eval") for metric in scores]
    found = next((name for name in names if name in results), None)
    if found is None:
        raise InputError("name a metric; there are: " + ", ".join(results))
    return found


def row_of(job: Job, results: dict[str, Any], metric: str) -> dict[str, Any]:
    """Make a run's row of sweep.csv: point, arguments, scores, seed."""
    if metric not in results:
        raise InputError(f"metric {metric} is not in the results; there are: {', '.join(results)}")
    scores = {k: v for k, v in results.items() if isinstance(v, int | float)}
    row = {"point": job.point} | job.flags | scores
    return row | {"seed": job.seed, metric: results[metric]}


# ---------------------------------------------------------------- summary


def summarise(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Summarise each point: mean and standard deviation over seeds, difference to the first point.

    Differences are paired by seed; times are relative to the first point.
    """
    scores = table.pivot(index="seed", columns="point", values=metric)
    order = list(dict.fromkeys(table["point"]))
    rows = []
    for point in order:
        difference = scores[point] - scores[order[0]]
        rows.append(
            {
                "point": point,
                metric: scores[point].mean(),
                "sd": scores[point].std(),
                "difference": difference.mean(),
                "± 95 %": half_interval(difference),
            }
        )
    summary = pd.DataFrame(rows)
    if "train_runtime" in table:
        seconds = table.groupby("point")["train_runtime"].min()  # others may have been disturbed
        summary["time"] = [seconds[p] / seconds[order[0]] for p in order]
    return summary


def half_interval(values: pd.Series, level: float = 0.95) -> float:
    """Half the width of the confidence interval of a mean, by Student's t; NaN for one value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))


def plot(path: Path, summary: pd.DataFrame, metric: str, sweep: dict[str, Any]) -> None:
    """Plot a line over the values of a single numeric grid; else a row for each point."""
    from matplotlib.figure import Figure

    spread = summary["sd"].fillna(0)
    grid = sweep["grid"] or {}
    values = next(iter(grid.values())) if len(grid) == 1 else []
    numeric = [pd.to_numeric(v, errors="coerce") for v in values]
    figure = Figure(
        figsize=(6.5, 3.8 if numeric else 1 + 0.32 * len(summary)), layout="constrained"
    )
    axis = figure.subplots()
    if numeric and not any(pd.isna(v) for v in numeric):
        axis.errorbar(numeric, summary[metric], spread, marker="o", capsize=3)
        axis.set(xlabel=next(iter(grid)), ylabel=metric)
        if min(numeric) > 0 and max(numeric) / min(numeric) >= 10:
            axis.set_xscale("log")
    else:
        places = range(len(summary))[::-1]
        axis.errorbar(summary[metric], places, xerr=spread, fmt="o", capsize=3)
        axis.set_yticks(list(places), summary["point"])
        axis.set(xlabel=metric)
    axis.set_title(f"Mean and standard deviation of {len(sweep['seeds'])} seeds", fontsize="medium")
    axis.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


if __name__ == "__main__":
    run_script(main, __doc__) if sys.argv[1:2] != [SERVE] else serve(sys.argv[2])
