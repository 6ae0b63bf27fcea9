"""Measure time and memory of the page of a run, report.html, with many rows and many classes.

    python benchmarks/page.py

The tables of a run with folds are made up and written; then the page is made from them, in a
process of its own. Its peak memory is VmHWM, beside that before the page.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from datasets import Dataset

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CASES = ((10_000, 20), (100_000, 20), (10_000, 500), (100_000, 500))
FOLDS = 5


def make_task(kind: str, rows: int, classes: int) -> tuple[Any, np.ndarray]:
    """Make up labelled rows in folds. Returns the task and their probabilities [rows, classes]."""
    from bertchain.data.labels import LabelSpec
    from bertchain.data.tables import Table
    from bertchain.data.tasks import Task

    rng = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(classes))
    spec = LabelSpec(kind, names, ("label",))
    labels = rng.integers(classes, size=rows)
    scores = rng.normal(size=(rows, classes)).astype(np.float32)
    scores[np.arange(rows), labels] += 3 * rng.random(rows)
    if kind == "multi_label":
        truth = rng.random((rows, classes), dtype=np.float32) < 2 / classes
        truth[np.arange(rows), labels] = True
        scores += 3 * truth - 4
        labels = truth.astype(np.float32)
    lengths = rng.integers(5, 900, rows)
    ids = pa.array([f"r{i}" for i in range(rows)])
    columns = {"id": ids, "text": pa.array(["some words of a text " * 20] * rows)}
    table = Dataset(pa.table(columns))
    if labels.ndim == 2:
        flat = pa.array(labels.reshape(-1))
        labels = pa.ListArray.from_arrays(np.arange(0, len(flat) + 1, classes, np.int32), flat)
    columns = {"id": ids, "labels": labels, "hash": np.arange(rows), "tokens": lengths}
    documents = Dataset(pa.table(columns | {"cut": np.maximum(lengths - 510, 0)}))
    tables, folds = {"train": Table(table, "train.csv")}, np.arange(rows) % FOLDS
    return Task(spec, {"train": documents}, tables, folds=folds), spec.probabilities(scores)


def write_run(folder: Path, kind: str, rows: int, classes: int) -> Any:
    """Write the table that a run with folds has written before its page. Returns the task."""
    task, probabilities = make_task(kind, rows, classes)
    spec, ids = task.spec, task.documents["train"].data.column("id")
    answers = pa.array(["an answer"] * rows)  # of which the page takes no notice
    columns = {"id": ids, "fold": task.folds, "label": answers, "prediction": answers}
    columns |= dict(zip(spec.value_columns, probabilities.T, strict=True))
    pa_csv.write_csv(pa.table(columns), folder / "predictions_oof.csv")
    return task


def memory() -> tuple[float, float]:
    """Memory now and at its highest, in GiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = (re.search(rf"{name}:\s+(\d+)", status) for name in ("VmRSS", "VmHWM"))
    now, highest = (int(match[1]) / 2**20 for match in found)
    return now, highest


def measure(kind: str, rows: int, classes: int) -> None:
    """Make one page, and print a line of the table."""
    from transformers import TrainingArguments

    from bertchain import cli
    from bertchain.arguments import finetuning
    from bertchain.competition.run_folder import Member, RunFolder
    from bertchain.reporting import page

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = ["--train_file", "train.csv", "--model_name_or_path", "model", "--num_folds", "5"]
        given += ["--id_column_name", "id", "--output_dir", name, "--report_to", "none"]
        args = finetuning.Arguments(*cli.parse((*finetuning.GROUPS, TrainingArguments), given, {}))
        task = write_run(folder, kind, rows, classes)
        members = [Member(f"fold-{k}", k, k, "model") for k in range(FOLDS)]
        run = RunFolder(folder, members, None, args.run)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM counts from here
        before, _ = memory()
        started, computed = time.monotonic(), time.process_time()
        page.write_page(run, task, None, {"oof_accuracy": 0.5, "oof_lrap": 0.5}, args)
        seconds, computed = time.monotonic() - started, time.process_time() - computed
        peak = memory()[1]
        size = (folder / "report.html").stat().st_size / 2**20
        shown = f"{before:.2f} GiB | {peak:.2f} GiB | {seconds:.1f} | {computed:.1f} |"
        shown += f" {size:.2f} MiB |"
        print(f"| {kind} | {rows:,} | {classes} | {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs=3, metavar=("KIND", "ROWS", "CLASSES"), help="only this")
    case = parser.parse_args().case
    if case:
        measure(case[0], int(case[1]), int(case[2]))
        return
    print("| labels | rows | classes | memory before | at most | seconds | of CPU | report.html |")
    print(f"|{' --- |' * 8}", flush=True)
    for kind in ("single_label", "multi_label"):
        for rows, classes in CASES:
            line = [sys.executable, __file__, "--case", kind, str(rows), str(classes)]
            subprocess.run(line, check=True)


if __name__ == "__main__":
    main()
