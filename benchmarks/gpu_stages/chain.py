"""The chain of the scripts in each precision, two processes on a card, and the GPU's tests."""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gpu_stages import texts
from gpu_stages.running import Item

ROOT = texts.ROOT
FLAGS = {  # how training is told; run_probe.py computes in float32 unless asked
    "CPU": [],  # which sees no card
    "float32": ["--bf16", "false"],
    "bf16": ["--bf16", "true"],
    "fp16": ["--fp16", "true"],
}


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the measurements, none of which is timed."""
    yield Item("tests that need a GPU/pytest", gpu_tests, beside=True)
    for precision in ("CPU", "bf16") if options.tiny else FLAGS:
        yield Item(f"chain/{precision}", partial(chain, options, precision), beside=True)
    for processes in (1, 2):
        run = partial(processes_of, options, processes)
        yield Item(f"processes of one step/{processes}", run, beside=True)


def gpu_tests() -> dict:
    """Run the tests that need a GPU; returns how many passed, or were skipped."""
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider"]
    command += map(str, files)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    last = done.stdout.strip().splitlines()[-1]
    if done.returncode not in (0, 5):
        raise RuntimeError(last)
    return {"pytest says": last.strip("= ")}


def _run(script: str, *flags: str, no_gpu: bool = False) -> None:
    command = [sys.executable, str(ROOT / script), *flags, "--disable_tqdm", "true"]
    seen = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if no_gpu else {})
    done = subprocess.run(command, capture_output=True, text=True, env=seen)
    print(" ".join(command), done.stdout, done.stderr, sep="\n")
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise RuntimeError(f"{script}: {lines[-1]}")


def chain(options: argparse.Namespace, precision: str) -> dict:
    """Pretrain further, fine-tune and probe in a precision; returns the scores."""
    data = texts.docstrings(options.output_dir)
    out = options.output_dir / "chains" / precision
    text = ["--text_column_names", "title", "abstract", "--max_seq_length", "64"]
    how, run = FLAGS[precision], partial(_run, no_gpu=precision == "CPU")
    how = [*how, "--use_cpu", "true"] if options.tiny else how
    shutil.rmtree(out, ignore_errors=True)
    train = ["--train_file", str(data / "train.csv"), *text, *how]
    few = ["--max_train_samples", "64"] if options.tiny else []
    steps = "4" if options.tiny else "60"
    run(
        "run_itpt.py",
        *[*train, *few, "--model_name_or_path", options.model, "--max_steps", steps],
        *["--test_file", str(data / "test.csv"), "--learning_rate", "1e-4"],
        *["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"],
        *["--output_dir", str(out / "itpt")],
    )
    labelled = [*train, *few, "--id_column_name", "id", "--validation_split", "0.15"]
    run(
        "run_finetune.py",
        *[*labelled, "--model_name_or_path", str(out / "itpt"), "--learning_rate", "3e-4"],
        *["--test_file", str(data / "test_labels.csv"), "--token_pooling", "mean"],
        *[
            "--num_train_epochs",
            "1" if options.tiny else "5",
            "--output_dir",
            str(out / "finetuned"),
        ],
    )
    own = ["--half_precision", "true"] if precision in ("bf16", "fp16") else []
    run(
        "run_probe.py",
        *["--train_file", str(data / "train.csv"), *text, *few, "--validation_split", "0.15"],
        *["--id_column_name", "id", "--test_file", str(data / "test_labels.csv"), *own],
        *["--models", f"itpt={out / 'itpt'}", "--output_dir", str(out / "probed")],
    )
    pretrained, tuned, probed = (
        json.loads((out / name / "all_results.json").read_text())
        for name in ("itpt", "finetuned", "probed")
    )
    frozen = [row for row in probed["headline"] if "frozen" in row["what"]][-1]
    return {
        "perplexity": pretrained["eval_perplexity"],
        "masked accuracy": pretrained["eval_masked_accuracy"],
        "fine-tuned, test accuracy": tuned["test_accuracy"],
        "frozen probe, test accuracy": frozen["test accuracy"],
    }


def processes_of(options: argparse.Namespace, processes: int) -> dict:
    """Fine-tune in one or two processes on a card (gloo), with the same rows in each step."""
    import numpy as np
    import pandas as pd

    data = texts.docstrings(options.output_dir)
    out = options.output_dir / "processes" / str(processes)
    shutil.rmtree(out, ignore_errors=True)
    model = _without_dropout(options.model, out.parent / f"model-{processes}")
    command = [
        *[sys.executable, str(ROOT / "run_finetune.py"), "--model_name_or_path", str(model)],
        *["--train_file", str(data / "train.csv"), "--test_file", str(data / "test_labels.csv")],
        *["--id_column_name", "id", "--text_column_names", "title", "abstract"],
        *[
            "--max_seq_length",
            "32",
            "--max_train_samples",
            "64",
            "--max_steps",
            "6",
            "--logging_steps",
            "1",
        ],
        *["--per_device_train_batch_size", str(16 // processes), "--token_pooling", "mean"],
        *["--head_dropout", "0", "--validation_split", "0", "--output_dir", str(out)],
        *[
            "--disable_tqdm",
            "true",
            *(["--use_cpu", "true"] if options.tiny else ["--bf16", "false"]),
        ],
        *(["--ddp_backend", "gloo"] if processes > 1 else []),
    ]
    _run_ranks(command, processes)
    found = pd.read_csv(out / "predictions_test.csv")
    values = found.select_dtypes("number").to_numpy()
    results = json.loads((out / "all_results.json").read_text())
    return {
        "train_loss": results["train_loss"],
        "test accuracy": results["test_accuracy"],
        "mean square of probabilities": float(np.square(values).mean()),
    }


def _run_ranks(command: list[str], processes: int) -> None:
    """Start the processes of a run as if each were alone on its machine: they share the card."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
    running = []
    for rank in range(processes):
        own = shared | {"RANK": str(rank), "WORLD_SIZE": str(processes)}
        own = own if processes > 1 else dict(os.environ)
        running.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
    for process in running:
        said = process.communicate()[1]
        print(said)
        if process.returncode:
            raise RuntimeError(said.strip().splitlines()[-1])


def _without_dropout(model: str, folder: Path) -> Path:
    """Copy a checkpoint, without the dropout that differs between processes."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in Path(model).iterdir():
        if path.is_file() and path.name != "config.json":
            shutil.copy(path, folder)
    config = json.loads((Path(model) / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
