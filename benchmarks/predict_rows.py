"""Memory and time of predicting many short rows with run_finetune.py from a saved model.

    python benchmarks/predict_rows.py --tokenizer "$(python examples/find_minilm.py)"

A two-block BERT of 32 dimensions is trained on 300 rows first: what is measured is what the script
does around the model (reading, tokenizing, batches, tables), not the model. Each size is predicted
by a process of its own, whose peak memory is its VmHWM.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, options.tokenizer)
        print("| rows | peak memory | seconds | milliseconds a row |\n| --- | --- | --- | --- |")
        for rows in options.rows:
            write_rows(folder / "test.csv", rows)
            seconds, peak = predict(folder)
            written = sum(1 for _ in (folder / "out" / "predictions_test.csv").open()) - 1
            assert written == rows, (written, rows)
            print(
                f"| {rows:,} | {peak:.2f} GiB | {seconds:.0f} | {1000 * seconds / rows:.2f} |",
                flush=True,
            )


def make_model(folder: Path, tokenizer: str) -> None:
    tokens = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "start")
    tokens.save_pretrained(folder / "start")
    write_rows(folder / "train.csv", 300, labels=True)
    arguments = {
        **{"model_name_or_path": str(folder / "start"), "train_file": str(folder / "train.csv")},
        **{"output_dir": str(folder / "model"), "num_train_epochs": 1, "disable_tqdm": True},
    }
    (folder / "train.json").write_text(json.dumps(arguments))
    command = [sys.executable, str(ROOT / "run_finetune.py"), str(folder / "train.json")]
    subprocess.run(command, check=True, capture_output=True)


def write_rows(path: Path, rows: int, labels: bool = False) -> None:
    rng = random.Random(0)
    texts = [
        f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} after {rng.randint(2, 900)} days"
        for _ in range(rows)
    ]
    table = {"id": [f"row-{i}" for i in range(rows)], "text": texts}
    if labels:
        table["label"] = [f"label {i % 6}" for i in range(rows)]
    pd.DataFrame(table).to_csv(path, index=False)


def predict(folder: Path) -> tuple[float, float]:
    """Seconds and peak GiB of a process that predicts test.csv."""
    command = [
        *(sys.executable, str(ROOT / "run_finetune.py")),
        *("--model_name_or_path", str(folder / "model"), "--test_file", str(folder / "test.csv")),
        *("--id_column_name", "id", "--output_dir", str(folder / "out")),
        *("--per_device_eval_batch_size", "256", "--disable_tqdm", "true"),
    ]
    started, peak = time.monotonic(), 0
    log = (folder / "log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    while process.poll() is None:
        peak = max(peak, high_water_mark(process.pid))
        time.sleep(0.2)
    if process.returncode != 0:
        raise SystemExit((folder / "log").read_text())
    return time.monotonic() - started, peak / 2**20


def high_water_mark(process: int) -> int:
    """Most memory that the process ever held, in KiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
