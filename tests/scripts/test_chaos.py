"""Each script killed at random moments: what it writes in the end is that of a run left alone.

python -m pytest -m slow -n 0 tests/scripts/test_chaos.py                   # 2 moments a signal
CHAOS_MOMENTS=20 python -m pytest -m slow -n 0 -s tests/scripts/test_chaos.py   # prints the table
"""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from forking import Command, start_command

pytestmark = pytest.mark.slow
MOMENTS = int(os.environ.get("CHAOS_MOMENTS", "2"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TRAINING = ["--use_cpu", "true", "--save_strategy", "steps", "--save_steps", "4"]


def finetune(model: str, files: dict[str, str], out: Path) -> list[str]:
    line = ["run_finetune.py", "--model_name_or_path", model, "--train_file", files["train"]]
    line += ["--test_file", files["test"], "--id_column_name", "id", "--num_folds", "2"]
    line += ["--learning_rate", "3e-3", "--num_train_epochs", "4", "--eval_strategy", "steps"]
    return [*line, "--eval_steps", "4", *TRAINING, "--output_dir", str(out)]


def itpt(model: str, files: dict[str, str], out: Path) -> list[str]:
    line = ["run_itpt.py", "--model_name_or_path", model, "--train_file", files["train"]]
    line += ["--num_train_epochs", "12", "--tokens_per_batch", "256", "--eval_strategy", "steps"]
    return [*line, "--eval_steps", "4", *TRAINING, "--output_dir", str(out)]


def probe(model: str, files: dict[str, str], out: Path) -> list[str]:
    line = ["run_probe.py", "--models", f"base={model}", "--train_file", files["train"]]
    line += ["--test_file", files["test_labels"], "--id_column_name", "id", "--probes", "linear"]
    line += ["mlp", "--mlp_widths", "8", "--analyses", "change", "directprobe", "geometry"]
    return [*line, "--output_dir", str(out)]


SCRIPTS = {
    "finetune": (finetune, ("predictions_oof.csv", "predictions_test.csv", "folds.csv")),
    "itpt": (itpt, ("model.safetensors", "config.json")),
    "probe": (probe, ("results.csv", "directprobe.csv", "geometry.csv", "drift.csv")),
}


def start(arguments: list[str]) -> Command | subprocess.Popen:
    return start_command(ROOT / arguments[0], *arguments[1:])


def run_and_signal(line: list[str], which: signal.Signals, seconds: float) -> int:
    """The exit code of a process that gets a signal after so long; 0: it had ended before."""
    process = start(line)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(which)
        process.communicate()
    return process.returncode


def contents(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    found = {name: (folder / name).read_bytes() for name in names}
    return found | {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("model.safetensors"))
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_random_moments(script, tiny_bert, topic_files, tmp_path, interrupts_arrive):
    arguments, names = SCRIPTS[script]
    began = time.monotonic()
    process = start(arguments(tiny_bert, topic_files, tmp_path / "whole"))
    said = process.communicate()[1]
    assert process.returncode == 0, said[-2000:]
    seconds = time.monotonic() - began
    whole = contents(tmp_path / "whole", names)
    rng, table = random.Random(0), []
    for which in SIGNALS:
        for moment in range(MOMENTS):
            out = tmp_path / f"{which.name}-{moment}"
            line = arguments(tiny_bert, topic_files, out)
            share, code = rng.uniform(0.2, 0.98), 0
            while code == 0:  # it ended before its time: once more, a little earlier
                shutil.rmtree(out, ignore_errors=True)
                code = run_and_signal(line, which, share * seconds)
                share *= 0.9
            if script == "itpt" and code and [*out.rglob("whole")]:
                line += ["--resume_from_checkpoint", "last"]
            again = start(line)
            said = again.communicate()[1]
            assert again.returncode == 0, f"{table}\n{which.name} at {share}: {said[-3000:]}"
            equal = contents(out, names) == whole
            table.append(f"| {script} | {which.name} | {share / 0.9:.2f} | {code} | {equal} |")
            print(table[-1], flush=True)
    assert all(row.endswith("| True |") for row in table), "\n".join(table)
