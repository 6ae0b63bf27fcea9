"""With local files no connection is even tried, although nothing says that the hub is off."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

GUARD = ROOT / "tests" / "guard"


@pytest.fixture
def run(tmp_path):
    attempts = tmp_path / "attempts"
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_OFFLINE")}
    environment |= {"PYTHONPATH": str(GUARD), "NETWORK_ATTEMPTS": str(attempts)}
    environment |= {"OMP_NUM_THREADS": "1"}

    def run(*line: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, *line], env=environment, capture_output=True, text=True
        )
        return done.returncode, done.stderr, attempts.read_text() if attempts.exists() else ""

    return run


def test_the_guard_sees_an_attempt(run):
    code, said, attempts = run("-c", "import socket; socket.create_connection(('hub.invalid', 80))")
    assert code != 0 and "the network is blocked" in said and "hub.invalid" in attempts


def test_the_chain_tries_no_connection(run, tiny_bert, topic_files, tmp_path):
    itpt, tuned = str(tmp_path / "itpt"), str(tmp_path / "tuned")
    data = {"train_file": topic_files["train"]}
    training = data | {"num_train_epochs": 1, "use_cpu": True}
    few = {"max_train_samples": 48, "output_dir": str(tmp_path / "probed")}
    chain = {
        "run_itpt": {"model_name_or_path": tiny_bert, "output_dir": itpt} | training,
        "run_finetune": {"model_name_or_path": itpt, "output_dir": tuned} | training,
        "run_probe": {"models": [itpt, tuned]} | data | few,
    }
    steps = "".join(f"import {name}; {name}.main({given!r})\n" for name, given in chain.items())
    steps += f"run_probe.main(['--describe', {tuned!r}])"
    code, said, attempts = run("-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{steps}")
    assert code == 0, said[-2000:]
    assert attempts == "" and (tmp_path / "probed" / "results.csv").is_file()


def test_a_name_of_the_hub_without_network_is_one_line(run, topic_files, tmp_path):
    line = [str(ROOT / "run_finetune.py"), "--model_name_or_path", "google/nothing-like-this"]
    line += ["--train_file", topic_files["train"], "--output_dir", str(tmp_path / "o")]
    without_waiting = (  # between one try and the next
        f"import runpy, sys, time; time.sleep = lambda seconds: None; sys.argv = {line}; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    code, said, attempts = run("-c", without_waiting)
    assert code == 2 and "Traceback" not in said and attempts
    assert "google/nothing-like-this" in said.splitlines()[-1]
    assert not (tmp_path / "o").exists()
