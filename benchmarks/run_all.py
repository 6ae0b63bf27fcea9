"""Measure the ratio to each peer in one run, and write benchmarks/RESULTS.md.

    pip install sentence-transformers
    python benchmarks/run_all.py --model MODEL --train_file agnews/train.csv

In each of --turns turns every benchmark measures every way once, each in a process of its own, so
that other load on the machine falls on all alike. The table shows medians over the turns, and the
median, lowest and highest ratio of the pairs of a turn. With a GPU they run there, in bf16.

Peers: the usual masked-LM recipe (itpt_speed.py), a plain Trainer as the official script pads and
at its best (finetune_speed.py), `SentenceTransformer.encode` and scikit-learn one fit at a time
(probe_speed.py), DirectProbe's rule written down with one linear program per check (as in the
tests), and, for start-up, the imports that any script with a Trainer needs.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

from turns import run_worker


class Ratio(NamedTuple):
    """One line of the table: a value of our way against that of a peer's.

    Attributes:
        what: name of the line.
        part: benchmark that measures it.
        ours, peer: two ways of the benchmark.
        key: name of the value; of seconds and memory less is better.
    """

    what: str
    part: str
    ours: str
    peer: str
    key: str


RATIOS = (
    Ratio(
        "further pretraining, a document a row", "itpt", "document", "usual", "tokens_per_second"
    ),
    Ratio("further pretraining, packed rows", "itpt", "packed", "usual", "tokens_per_second"),
    Ratio("its memory, a document a row", "itpt", "document", "usual", "training_mib"),
    Ratio(
        "fine-tuning, against padding to 128", "finetune", "ours", "max", "train_tokens_per_second"
    ),
    Ratio(
        "fine-tuning, against a Trainer at its best",
        "finetune",
        "ours",
        "best",
        "train_tokens_per_second",
    ),
    Ratio(
        "prediction, against a Trainer at its best",
        "finetune",
        "ours",
        "best",
        "predict_tokens_per_second",
    ),
    Ratio(
        "features: all layers x 2 poolings against one vector",
        "probe",
        "features",
        "encode",
        "seconds",
    ),
    Ratio(
        "probes: layers x values of C against scikit-learn", "probe", "probes", "sklearn", "seconds"
    ),
    Ratio(
        "DirectProbe, 100 points in 5 dimensions, against the rule",
        "clusters",
        "ours",
        "plain",
        "seconds",
    ),
    Ratio("start-up: --help against the parser's imports", "start", "help", "parser", "seconds"),
    Ratio(
        "start-up: all imports against those of a Trainer", "start", "imports", "trainer", "seconds"
    ),
)
UNITS = {
    "tokens_per_second": "tokens/s",
    "train_tokens_per_second": "tokens/s",
    "predict_tokens_per_second": "tokens/s",
    "training_mib": "MiB",
    "seconds": "s",
}
SMALLER = ("seconds", "training_mib")  # is better
NOTE = """\
Of speed the ratio is ours over the peer's, of seconds and memory the peer's over ours:
above 1 is better. Values are medians, ratios those of pairs of the same turn.
"""

TRAINER = "import torch, datasets, pandas, sklearn.linear_model, matplotlib\n"
TRAINER += "from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer"
STARTS = {  # arguments of python
    "help": [str(ROOT / "run_finetune.py"), "--help"],
    "parser": ["-c", "from transformers import HfArgumentParser, TrainingArguments"],
    "imports": ["-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run_finetune"],
    "trainer": ["-c", TRAINER],
}


def main() -> None:
    """Measure in turns, and write the table."""
    options = read_arguments()
    if options.worker is not None:
        return print(json.dumps(count_clusters(options.worker)))
    found: dict[tuple[str, str], list[dict]] = {}
    for turn in range(options.turns):
        for (part, way), measure in ways_of(options).items():
            found.setdefault((part, way), []).append(measure())
            measured = {"turn": turn, "part": part, "way": way} | found[part, way][-1]
            print(json.dumps(measured), flush=True)
    write_results(found, options)
    print(Path(options.output_file).read_text(encoding="utf-8"))


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--train_file", help="a labelled table")
    parser.add_argument("--text_column_names", nargs="+", default=["text"])
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max_train_samples", type=int, default=640)
    parser.add_argument("--rows", type=int, default=16, help="a batch")
    parts = sorted({ratio.part for ratio in RATIOS})
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--output_file", default=str(HERE / "RESULTS.md"))
    parser.add_argument("--worker", choices=("ours", "plain"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None and (options.model is None or options.train_file is None):
        parser.error("--model and --train_file are needed")
    return options


# ---------------------------------------------------------------- measurements


def ways_of(options: argparse.Namespace) -> dict[tuple[str, str], Callable[[], dict]]:
    """Collect the measurements that the chosen ratios need, by part and way."""
    chosen = [ratio for ratio in RATIOS if ratio.part in options.parts]
    return {
        (ratio.part, way): measurement(ratio.part, way, options)
        for ratio in chosen
        for way in (ratio.ours, ratio.peer)
    }


def measurement(part: str, way: str, options: argparse.Namespace) -> Callable[[], dict]:
    """Make the function that measures one way of a benchmark."""
    if part == "start":
        return lambda: {"seconds": seconds_of(STARTS[way])}
    if part == "clusters":
        return lambda: run_worker(__file__, way, [])
    line = ["--model", options.model, "--train_file", options.train_file]
    line += ["--text_column_names", *options.text_column_names, "--threads", str(options.threads)]
    samples = options.max_train_samples * (3 if part == "probe" else 1)  # fits are short
    line += ["--max_train_samples", str(samples)]
    if part != "itpt":
        line += ["--label_column_name", options.label_column_name]
    if part != "probe":
        line += ["--rows", str(options.rows), *(["--bf16"] if has_gpu() else [])]
    return lambda: run_worker(str(HERE / f"{part}_speed.py"), way, line)


def has_gpu() -> bool:
    """Return whether CUDA is available."""
    import torch

    return torch.cuda.is_available()


def seconds_of(line: list[str]) -> float:
    """Time a Python process, started outside of this repository."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, *line], capture_output=True, text=True, cwd=elsewhere
        )
    if done.returncode:
        sys.exit(done.stderr)
    return time.perf_counter() - started


def count_clusters(way: str) -> dict[str, float]:
    """Cluster 100 random points of 3 overlapping labels in 5 dimensions: seconds and clusters.

    Args:
        way: ours, or plain, the rule written down.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    from bertchain.directprobe.clustering import cluster

    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 100)
    x = rng.normal(size=(3, 5))[y] + rng.normal(size=(100, 5))
    cluster(x[:20], y[:20])  # warms up
    with threadpool_limits(limits=1):
        if way == "ours":
            started = time.perf_counter()
            owner = cluster(x, y).clusters
        else:
            sys.path.insert(0, str(ROOT / "tests" / "directprobe"))
            from slow_rule import slow_clusters

            started = time.perf_counter()
            owner = slow_clusters(x, y)
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "clusters": len(set(owner.tolist()))}


# ---------------------------------------------------------------- the table


def write_results(found: dict[tuple[str, str], list[dict]], options: argparse.Namespace) -> None:
    """Write the table. Raises SystemExit where both ways of DirectProbe find other clusters."""
    from bertchain.runtime.files import write_text

    counts = {
        r["clusters"] for (part, _), results in found.items() if part == "clusters" for r in results
    }
    if len(counts) > 1:
        sys.exit(f"the ways do not find the same clusters: {counts}")
    lines = ["# Results", "", *facts(options), ""]
    lines += ["| | ours | peer | ratio | lowest to highest |", "| --- | --- | --- | --- | --- |"]
    lines += [row(ratio, found) for ratio in RATIOS if ratio.part in options.parts]
    lines += ["", NOTE]
    write_text(Path(options.output_file), "\n".join(lines))


def row(ratio: Ratio, found: dict[tuple[str, str], list[dict]]) -> str:
    """Format a line of the table."""
    ours, theirs = (
        [result[ratio.key] for result in found[ratio.part, way]] for way in (ratio.ours, ratio.peer)
    )
    better = [b / a if ratio.key in SMALLER else a / b for a, b in zip(ours, theirs, strict=True)]
    values = [f"{statistics.median(own):,.4g} {UNITS[ratio.key]}" for own in (ours, theirs)]
    between = f"{min(better):.2f} to {max(better):.2f}"
    cells = [ratio.what, *values, f"{statistics.median(better):.2f}", between]
    return f"| {' | '.join(cells)} |"


def facts(options: argparse.Namespace) -> list[str]:
    """List machine, versions and command."""
    from bertchain.runtime.records import versions

    machine = f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads"
    if has_gpu():
        import torch

        machine += f", {torch.cuda.get_device_name()}"
    known = ", ".join(f"{name} {version}" for name, version in versions().items())
    return [
        f"Machine: {machine}; {platform.system()}, Python {platform.python_version()}.",
        f"Versions: {known}.",
        f"Model {Path(options.model).name}, {options.turns} turns. Command:",
        "",
        "```bash",
        command_of(options),
        "```",
    ]


def command_of(options: argparse.Namespace) -> str:
    """Return the command that repeats this; paths without the folders of this machine."""
    model, table = shlex.quote(Path(options.model).name), shlex.quote(Path(options.train_file).name)
    names = ("turns", "threads", "max_train_samples", "rows")
    changed = " ".join(f"--{name} {getattr(options, name)}" for name in names)
    return f"python benchmarks/run_all.py --model {model} --train_file {table} {changed}"


def cpu_name() -> str:
    """Name the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
