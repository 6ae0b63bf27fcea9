"""A forked command is what a fresh interpreter would be; and which tests need a fresh one."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from forking import (
    ONE_THREAD,
    PICTURES,
    SUPPORTED,
    TESTS,
    run_bare,
    run_command,
    server,
    stand_in_path,
    start_bare,
    start_command,
)
from forking import ROOT as PROJECT

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="forks are asked for on Linux alone")

# Who starts a fresh interpreter, and why it must be one.
BARE = {
    "forking.py": "the fresh interpreter itself",
    "test_locks.py": "a process that holds a lock and imports next to nothing",
    "test_clustering.py": "clusters must import arrays alone",
    "test_cli.py": "--help must import nothing heavy",
    "test_examples.py": "prints what is installed",
    "test_forking.py": "compares forks with it",
    "test_launchers.py": "every launcher as its users start it",
    "test_soak.py": "stands in for a script, and imports nothing",
    "test_offline.py": "the guard, and libraries that are not told to stay offline, from the start",
}

ITSELF = """
import json, os, random, signal, sys
imported = {name.split(".")[0] for name in sys.modules}  # by a fork before it began
import numpy, torch
json.dump({
    "name": __name__, "argv": sys.argv, "path": sys.path, "folder": os.getcwd(),
    "flags": str(sys.flags), "umask": os.umask(0o22), 
    "environment": {k: v for k, v in os.environ.items() if k[:4] not in ("KMP_", "TORC")},
    "threads": torch.get_num_threads(), "tasks": len(os.listdir("/proc/self/task")),
    "signals": [str(signal.getsignal(n)) for n in (2, 13, 15, 17)],
    "ours": sorted(imported & {"forking", "conftest", "modeling", "run_finetune"}),
    "files": len(os.listdir("/proc/self/fd")), "input": sys.stdin.read(),
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
}, sys.stdout)
print(json.dumps([random.random(), numpy.random.rand(), torch.initial_seed()]), file=sys.stderr)
"""


def test_a_fork_is_what_a_fresh_interpreter_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SOMETHING_OF_THE_USER", "1")
    (tmp_path / "itself.py").write_text(ITSELF)
    for line in (["itself.py", "--a", 1], ["-c", ITSELF, "b"], ["-m", "itself"]):
        fresh, fork, other = (run(*line, cwd=tmp_path) for run in (run_bare, *[run_command] * 2))
        assert fresh.returncode == fork.returncode == 0, fresh.stderr + fork.stderr
        assert json.loads(fork.stdout) == json.loads(fresh.stdout)
        draws = [json.loads(done.stderr) for done in (fresh, fork, other)]
        assert len({draw for own in draws for draw in own}) == 9  # nobody repeats another


def test_the_server_has_one_thread_and_none_of_our_modules():
    assert server().threads == 1
    # an environment may lie inside the checkout: what is installed is none of ours
    code = f"""
import sys
files = {{n: str(vars(m).get("__file__")) for n, m in sys.modules.items()}}
print([n for n, f in files.items() if {str(ROOT)!r} in f and sys.prefix not in f])
"""
    assert run_command("-c", code).stdout == run_bare("-c", code).stdout


def test_imports_are_done_when_a_fork_begins():
    code = "import sys; print('transformers.models.bert.modeling_bert' in sys.modules)"
    assert run_command("-c", code).stdout == "True\n"
    assert run_bare("-c", code).stdout == "False\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import atexit; atexit.register(print, 'bye'); print('hi')", (0, "hi\nbye\n")),
        ("import threading; threading.Timer(0.2, print, ['late']).start()", (0, "late\n")),
        ("import tempfile; a = tempfile.TemporaryDirectory(); print('x', end='')", (0, "x")),
        ("raise SystemExit(3)", (3, "")),
        ("raise SystemExit(-1)", (255, "")),
        ("raise SystemExit(True)", (1, "")),
        ("raise SystemExit('a message')", (1, "")),
        ("1 / 0", (1, "")),
        ("import os; os._exit(9)", (9, "")),
        ("import os; os.kill(os.getpid(), 11)", (-11, "")),
    ],
)
def test_commands_end_as_they_do(code, expected):
    for run in (run_bare, run_command):
        done = run("-c", code)
        assert (done.returncode, done.stdout) == expected
    assert ("ZeroDivisionError" in done.stderr) == ("/" in code)


@pytest.mark.parametrize(("asked", "drawn"), [("", False), ("b.png", False), ("a.png", True)])
def test_a_fork_draws_what_is_asked_for(asked, drawn, tmp_path):
    code = "import pathlib\nfrom matplotlib.figure import Figure\n"
    code += "Figure().savefig(pathlib.Path('a.png'), dpi=130)"
    run_command("-c", code, cwd=tmp_path, env={PICTURES: asked})
    content = (tmp_path / "a.png").read_bytes()
    assert content[:4] == b"\x89PNG" and (len(content) > 1000) == drawn


def test_signals_reach_a_fork(tmp_path, interrupts_arrive):
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'on')!r}).touch(); time.sleep(60)"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        codes = []
        for start in (start_command, start_bare):
            process = start("-c", code)
            wait_for((tmp_path / "on").exists)
            (tmp_path / "on").unlink()
            process.send_signal(number)
            process.communicate(timeout=30)
            codes.append(process.returncode)
        assert codes == [-number, -number]
    process = start_command("-c", code)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    process.kill()
    assert process.wait() == process.poll() == -9


def wait_for(reached) -> None:
    for _ in range(3000):
        if reached():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")


def test_another_environment_of_the_imports_means_a_fresh_interpreter():
    code = "import huggingface_hub.constants as c; print(c.HF_HUB_OFFLINE, hash('a'))"
    other = "0" if os.environ["HF_HUB_OFFLINE"] == "1" else "1"
    with pytest.warns(match="HF_HUB_OFFLINE, PYTHONHASHSEED"):
        done = run_command("-c", code, env={"HF_HUB_OFFLINE": other, "PYTHONHASHSEED": "7"})
    again = run_bare("-c", code, env={"HF_HUB_OFFLINE": other, "PYTHONHASHSEED": "7"})
    assert done.stdout == again.stdout and done.stdout.startswith(str(other == "1"))
    assert server().differences(server().environment | {"RANK": "1", "WORLD_SIZE": "2"}) == []


def test_the_stand_in_for_shells(tmp_path):
    """A command it starts is a fork; it passes signals and exit codes on, and takes it along."""
    (tmp_path / "a.py").write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "print('torch' in sys.modules, sys.argv, flush=True)\n"
        "time.sleep(60) if sys.argv[1] == 'wait' else sys.exit(int(sys.argv[1]))\n"
    )
    shell = ["sh", "-c", f"echo x | {stand_in_path()} -u a.py 5; echo code $?"]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "True ['a.py', '5']\ncode 5\n"
    other = [stand_in_path(), "-c", "import sys; print(sys.executable)"]
    assert subprocess.run(other, capture_output=True, text=True).stdout.strip() == sys.executable
    for number in (signal.SIGTERM, signal.SIGKILL):
        (tmp_path / "pid").unlink()
        process = subprocess.Popen([stand_in_path(), "a.py", "wait"], cwd=tmp_path, env=environment)
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        pid = int((tmp_path / "pid").read_text())
        process.send_signal(number)
        assert process.wait() == -number
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists())


# ---------------------------------------------------------------- the scripts themselves


TIMES = re.compile(r"^\d\d:\d\d:\d\d|(?<=runtime.: |_second.: )['\d.]+|in [\d.]+ s$", re.M)


def without_times(text: str) -> str:
    lines = re.split(r"[\n\r]", TIMES.sub("", text))
    bar = re.compile(r"it/s|s/it|examples/s|^(\s|\x1b\[A)*$")
    return "\n".join(line for line in lines if not bar.search(line))


def test_the_same_command_writes_the_same_bytes_both_ways(tiny_bert, topic_files, tmp_path):
    line = ["--model_name_or_path", tiny_bert, "--train_file", topic_files["train"], "--use_cpu"]
    line += ["--test_file", topic_files["test"], "--id_column_name", "id", "--num_folds", "2"]
    line += ["--num_train_epochs", "1", "--output_dir", "out"]
    processes, drawn = [], {PICTURES: "all"}
    for name, start in (("fork", start_command), ("fresh", start_bare)):
        (tmp_path / name).mkdir()
        processes.append(start(ROOT / "run_finetune.py", *line, cwd=tmp_path / name, env=drawn))
    said = [without_times("".join(process.communicate())).split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert said[0] == said[1]
    files = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in written(tmp_path / name)}
        for name in ("fork", "fresh")
    ]
    assert files[0].keys() == files[1].keys() and len(files[0]) > 20
    for name in files[0]:
        fork, fresh = (tree[name] for tree in files)
        if name.suffix in (".json", ".md"):
            fork, fresh = (without_times(one.decode()) for one in (fork, fresh))
        assert fork == fresh, name


def written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_who_starts_a_fresh_interpreter():
    starts = re.compile(r"sys\.executable|run_bare|start_bare")
    files = {path.name for path in TESTS.rglob("*.py") if starts.search(path.read_text())}
    assert files == {*BARE} and PROJECT == ROOT
