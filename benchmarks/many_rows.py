"""Measure memory and time of the scripts on many short rows, and on one very long document.

    python benchmarks/many_rows.py --tokenizer "$(python examples/find_encoder.py minilm)"

The model is a BERT of two blocks and 32 dimensions, so that most of the time is what the scripts do
around it (reading, tokenizing, folds, batches, tables). Each measurement is a process of its own;
its peak memory is VmHWM, mapped files included:

    predict   run_finetune.py predicts all rows from a saved model, without labels
    score     the same with labels, and scores them
    folds     run_finetune.py assigns all rows to 2 folds, trains 4 steps a fold, predicts all rows
    features  run_probe.py computes mean features of all layers of all rows
    itpt      run_itpt.py reads and tokenizes all rows, and trains 4 steps

and predict and features of one document of 100,000 words, in windows, among 9 short ones. --roots
compares checkouts of the scripts, in turns:

    git worktree add ../previous COMMIT
    python benchmarks/many_rows.py --tokenizer MODEL --rows 100000 --roots ../previous . --turns 3
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

ROOT = Path(__file__).resolve().parent.parent
NOUNS = [
    "market",
    "team",
    "match",
    "film",
    "game",
    "bank",
    "song",
    "model",
    "city",
    "river",
    "court",
    "law",
    "school",
    "road",
    "sea",
]
VERBS = [
    "opens",
    "wins",
    "loses",
    "plays",
    "sings",
    "falls",
    "rises",
    "moves",
    "breaks",
    "holds",
    "meets",
    "calls",
    "ends",
]
LONG_DOCUMENT = 100_000  # words


def main() -> None:
    """Measure all ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", default=[*WAYS, "long"], choices=[*WAYS, "long"])
    parser.add_argument(
        "--roots", type=Path, nargs="+", default=[ROOT], help="where the scripts are"
    )
    parser.add_argument("--turns", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, options.tokenizer)
        print("| what | rows | peak memory | seconds | milliseconds a row |")
        print("| --- | --- | --- | --- | --- |")
        for rows in options.rows:
            write_rows(folder / "rows.csv", rows)
            leave_labels_out(folder)
            for way in (way for way in options.ways if way in WAYS):
                for root in options.roots * options.turns:
                    print(measure(way, rows, folder, root), flush=True)
        if "long" in options.ways:
            write_long_document(folder / "rows.csv")
            leave_labels_out(folder)
            for way in ("predict", "features"):
                print(measure(way, 10, folder, options.roots[0], long=True), flush=True)


# ---------------------------------------------------------------- models and tables


def make_models(folder: Path, tokenizer: str) -> None:
    """Write start, an encoder; model and long, classifiers of head windows and of all windows."""
    tokens = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "start")
    tokens.save_pretrained(folder / "start")
    write_rows(folder / "train.csv", 300)
    for name, truncation in (("model", "head"), ("long", "hierarchical")):
        line = finetune(folder, "train.csv", name, num_train_epochs=1, truncation=truncation)
        subprocess.run([sys.executable, ROOT / line[0], *line[1:]], check=True, capture_output=True)


def write_rows(path: Path, rows: int) -> None:
    """Write a table of short sentences: id, text, label."""
    rng = random.Random(0)
    texts = [
        f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} after {rng.randint(2, 900)} days"
        for _ in range(rows)
    ]
    labels = [f"label {i % 6}" for i in range(rows)]
    ids = [f"row-{i}" for i in range(rows)]
    pd.DataFrame({"id": ids, "text": texts, "label": labels}).to_csv(path, index=False)


def leave_labels_out(folder: Path) -> None:
    """Write unlabelled.csv, rows.csv without its labels."""
    table = pd.read_csv(folder / "rows.csv").drop(columns="label")
    table.to_csv(folder / "unlabelled.csv", index=False)


def write_long_document(path: Path) -> None:
    """Write ten rows, one of them very long."""
    rng = random.Random(0)
    write_rows(path, 10)
    table = pd.read_csv(path)
    table.loc[3, "text"] = " ".join(rng.choice(NOUNS) for _ in range(LONG_DOCUMENT))
    table.to_csv(path, index=False)


# ---------------------------------------------------------------- ways


def flags(**arguments: object) -> list[str]:
    """Arguments -> flags."""
    return [f"--{name}={value}" for name, value in arguments.items()]


def finetune(folder: Path, train: str, out: str, **arguments: object) -> list[str]:
    """Command of a run of run_finetune.py."""
    files = {"model_name_or_path": folder / "start", "train_file": folder / train}
    common = {"id_column_name": "id", "disable_tqdm": True, "output_dir": folder / out}
    return ["run_finetune.py", *flags(**files, **common, **arguments)]


def predict(folder: Path, long: bool, table: str = "unlabelled.csv") -> tuple[list[str], str]:
    """Command that predicts a table, and the file to count rows in."""
    model = folder / ("long" if long else "model")
    arguments = {"model_name_or_path": model, "test_file": folder / table}
    arguments |= {"id_column_name": "id", "per_device_eval_batch_size": 256, "disable_tqdm": True}
    arguments |= {"output_dir": folder / "out"}
    shutil.rmtree(folder / "out", ignore_errors=True)
    return ["run_finetune.py", *flags(**arguments)], "out/predictions_test.csv"


def score(folder: Path, long: bool) -> tuple[list[str], str]:
    """Command that predicts and scores labelled rows, and the file to count rows in."""
    return predict(folder, long, "rows.csv")


def folds(folder: Path, long: bool) -> tuple[list[str], str]:
    """Command that trains two folds for four steps, and the file to count rows in."""
    shutil.rmtree(folder / "folds", ignore_errors=True)  # other rows are refused there
    steps = {"num_folds": 2, "max_steps": 4, "per_device_eval_batch_size": 256}
    steps |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    return finetune(folder, "rows.csv", "folds", **steps), "folds/predictions_oof.csv"


def features(folder: Path, long: bool) -> tuple[list[str], str]:
    """Command that computes features, and their folder; the probe has 270 rows and one layer."""
    arguments = {"models": f"base={folder / 'start'}", "train_file": folder / "train.csv"}
    arguments |= {"test_file": folder / "rows.csv", "id_column_name": "id", "probe_layers": -1}
    out = folder / ("probed_long" if long else "probed")
    shutil.rmtree(out, ignore_errors=True)  # stored features would be read again
    arguments |= {"token_pooling": "mean", "output_dir": out}
    arguments |= {"truncation": "hierarchical"} if long else {}
    return ["run_probe.py", *flags(**arguments)], f"{out.name}/features"


def itpt(folder: Path, long: bool) -> tuple[list[str], str]:
    """Command that pretrains for four steps, and the file to count rows in."""
    arguments = {"model_name_or_path": folder / "start", "train_file": folder / "rows.csv"}
    arguments |= {"max_steps": 4, "save_strategy": "no", "load_best_model_at_end": False}
    arguments |= {"deduplicate": False, "validation_split": 0.002, "disable_tqdm": True}
    arguments |= {"output_dir": folder / "itpt"}
    shutil.rmtree(folder / "itpt", ignore_errors=True)
    return ["run_itpt.py", *flags(**arguments)], "itpt/all_results.json"


WAYS = {"predict": predict, "score": score, "folds": folds, "features": features, "itpt": itpt}


def measure(way: str, rows: int, folder: Path, root: Path, long: bool = False) -> str:
    """Measure one way; returns its row of the table.

    Raises:
        SystemExit: if the process failed, with what it said, or if rows are missing.
    """
    line, written = WAYS[way](folder, long)
    started, peak = time.monotonic(), 0
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, root.resolve() / line[0], *line[1:]], stdout=log, stderr=log
        )
        while process.poll() is None:
            peak = max(peak, high_water_mark(process.pid))
            time.sleep(0.2)
    seconds = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit((folder / "log").read_text()[-3000:])
    found = count_rows(folder / written, way)
    if found != rows:
        raise SystemExit(f"{way}: {rows} rows went in, {found} came out")
    what = f"{way}, a document of {LONG_DOCUMENT:,} words" if long else way
    what += "" if root.resolve() == ROOT else f" ({root})"
    memory = f"{peak / 2**20:.2f} GiB"
    return f"| {what} | {rows:,} | {memory} | {seconds:.1f} | {1000 * seconds / rows:.2f} |"


def count_rows(path: Path, way: str) -> int:
    """Count the rows that came out."""
    if way == "itpt":
        results = json.loads(path.read_text())
        return results["documents"] + results["held_out_documents"]
    if way == "features":  # a file for each split: 270 rows of training, 30 of validation
        sizes = (len(np.load(file, mmap_mode="r")) for file in path.glob("*.npy"))
        return next((size for size in sizes if size not in (270, 30)), 0)
    with path.open() as lines:
        return sum(1 for _ in lines) - 1


def high_water_mark(process: int) -> int:
    """Read the peak memory of a process, in KiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
