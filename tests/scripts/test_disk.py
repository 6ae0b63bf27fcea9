"""Disks that fill up or cannot be written to, and what vanishes: one line, nothing old is lost.

A small disk is a tmpfs in a mount namespace of its own, which ends with the process.
"""

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from forking import ONE_THREAD, run_command, stand_in_path, start_command

COMMON = ["--use_cpu", "true", "--num_train_epochs", "2", "--save_strategy", "epoch"]
SPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def in_namespace(commands: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*SPACE, commands], env=os.environ | ONE_THREAD, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """Where small disks are mounted; without the right to mount the test is skipped."""
    folder = tmp_path_factory.mktemp("disk")
    if shutil.which("unshare") is None or in_namespace(f"mount -t tmpfs tmpfs {folder}").returncode:
        pytest.skip("no file systems can be mounted here")
    return folder


def lines_of(model: str, files: dict[str, str], out: Path) -> dict[str, list[str]]:
    trains = ["--model_name_or_path", model, "--train_file", files["train"], *COMMON]
    probe = ["run_probe.py", "--models", f"b={model}", "--train_file", files["train"]]
    lines = {
        "finetune": ["run_finetune.py", *trains, "--num_folds", "2"],
        "itpt": ["run_itpt.py", *trains, "--eval_strategy", "epoch"],
        "probe": [*probe, "--analyses", "directprobe"],
    }
    return {name: [*line, "--output_dir", str(out)] for name, line in lines.items()}


def shell(line: list[str]) -> str:
    return shlex.join([stand_in_path(), str(ROOT / line[0]), *line[1:]])


@pytest.mark.parametrize(
    ("script", "size", "old"),
    [
        ("finetune", 600, "predictions_oof.csv"),
        ("itpt", 600, "history.csv"),
        ("probe", 100, "results.csv"),
    ],
)
def test_a_disk_that_fills_up(script, size, old, disk, tiny_bert, topic_files):
    """After so many KiB."""
    line = shell(lines_of(tiny_bert, topic_files, disk / "out")[script])
    done = in_namespace(
        f"mount -t tmpfs -o size={size}k tmpfs {disk} && mkdir {disk}/out && "
        f"echo before > {disk}/out/{old} && {line}; echo code $?; cat {disk}/out/{old}"
    )
    assert done.stdout.split("code ")[1] == "2\nbefore\n", done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert str(disk) in last and last.endswith("No space left on device")
    assert "Traceback" not in done.stderr


def test_the_same_command_goes_on_when_there_is_room(disk, tiny_bert, topic_files):
    line = shell(lines_of(tiny_bert, topic_files, disk / "out")["finetune"])
    done = in_namespace(
        f"mount -t tmpfs -o size=800k tmpfs {disk} && ({line}; echo first $?; "
        f"mount -o remount,size=20m {disk} && {line}; echo second $?; ls {disk}/out)"
    )
    assert "first 2" in done.stdout and "second 0" in done.stdout, done.stderr[-2000:]
    assert "predictions_oof.csv" in done.stdout


def test_a_disk_that_cannot_be_written_to(disk, tiny_bert, topic_files):
    line = shell(lines_of(tiny_bert, topic_files, disk / "out")["finetune"])
    done = in_namespace(
        f"mount -t tmpfs tmpfs {disk} && mount -o remount,ro {disk} && {line}; echo code $?"
    )
    assert done.stdout.endswith("code 2\n"), done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert str(disk) in last and "Traceback" not in done.stderr


def test_a_model_that_vanishes_between_folds(tiny_bert, topic_files, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(tiny_bert, model)
    line = lines_of(str(model), topic_files, out)["finetune"]
    process = start_command(ROOT / line[0], *line[1:])
    while process.poll() is None and not [*out.glob("fold-0/checkpoint-*")]:
        time.sleep(0.02)
    shutil.rmtree(model)
    said = process.communicate()[1]
    assert process.returncode == 2 and "Traceback" not in said, said[-2000:]
    assert str(model) in said.strip().splitlines()[-1]
    first = (out / "fold-0" / "model.safetensors").read_bytes()
    shutil.copytree(tiny_bert, model)
    again = run_command(ROOT / line[0], *line[1:])
    assert again.returncode == 0, again.stderr[-2000:]
    assert (out / "fold-0" / "model.safetensors").read_bytes() == first
    assert (out / "predictions_oof.csv").is_file()
