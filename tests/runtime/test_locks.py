"""Two runs in one folder: the second is refused, or waits where both make the same file."""

import os
import subprocess
import sys
import threading

import pandas as pd
import pytest
from conftest import ROOT
from forking import start_command

from bertchain.errors import InputError
from bertchain.probing.feature_files import INDEX
from bertchain.runtime import locks
from bertchain.runtime.locks import NAME, lock, wait_for_lock


@pytest.fixture
def other_run():
    """Holds a lock in a process of its own."""
    started = []

    def hold(path) -> subprocess.Popen:
        code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire()"
        code += "; print(1, flush=True); sys.stdin.read()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes))
        started[-1].stdout.readline()
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.wait()


def test_a_folder_in_use_is_refused_until_the_other_run_ends(other_run, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    other = other_run(tmp_path / NAME)

    with pytest.raises(InputError, match="in use by another run"), lock(tmp_path):
        pass
    other.kill()  # not even an orderly end
    other.wait()
    for _ in range(2):
        with lock(tmp_path):
            assert (tmp_path / NAME).is_file()
    assert os.listdir(tmp_path) == []


def test_the_scripts_say_so(other_run, tiny_bert, topic_files, tmp_path):
    other_run(tmp_path / NAME)
    line = ["--train_file", topic_files["train"], "--output_dir", str(tmp_path)]
    model = ["--model_name_or_path", tiny_bert, "--use_cpu", "true"]
    impatient = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})\n"
    impatient += "from bertchain.runtime import locks\n"
    impatient += "locks.PATIENCE = 0.1; sys.argv = sys.argv[1:]\n"
    impatient += "runpy.run_path(sys.argv[0], run_name='__main__')"
    runs = [
        start_command("-c", impatient, ROOT / script, *more, *line)
        for script, more in (
            ("run_finetune.py", model),
            ("run_itpt.py", model),
            ("run_probe.py", ["--models", tiny_bert]),
        )
    ]
    for run in runs:
        said = run.communicate()[1].strip().splitlines()[-1]
        assert run.returncode == 2
        assert f"--output_dir {tmp_path} is in use by another run" in said
    assert os.listdir(tmp_path) == [NAME]


def test_what_another_run_makes_is_waited_for(tmp_path, monkeypatch):
    path, order = tmp_path / "a.npy", []
    inside, waiting = threading.Event(), threading.Event()
    monkeypatch.setattr(locks.logger, "info", lambda *_: waiting.set())  # it says that it waits

    def make(who: str) -> None:
        with wait_for_lock(path, who):
            if path.is_file():
                order.append(f"{who} reads")
                return
            order.append(f"{who} makes")
            inside.set()
            assert waiting.wait(30)
            path.write_text("x")

    threads = [threading.Thread(target=make, args=(who,)) for who in "ab"]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert order == ["a makes", "b reads"] and os.listdir(tmp_path) == ["a.npy"]


def test_two_probes_share_a_folder_of_features(tiny_bert, topic_files, tmp_path):
    line = [ROOT / "run_probe.py", "--models", f"b={tiny_bert}"]
    line += ["--train_file", topic_files["train"], "--features_dir", str(tmp_path / "features")]
    runs = [start_command(*line, "--output_dir", tmp_path / out) for out in "ab"]
    for run in runs:
        said = run.communicate()[1]
        assert run.returncode == 0, said[-2000:]
    one, other = ((tmp_path / out / "results.csv").read_bytes() for out in "ab")
    assert one == other
    names = {*os.listdir(tmp_path / "features")}
    assert len(names - {INDEX}) == 2 and all(name.endswith(".npy") for name in names - {INDEX})
    index = pd.read_csv(tmp_path / "features" / INDEX)
    assert {f"{name}.npy" for name in index["hash"]} == names - {INDEX} and len(index) == 2
