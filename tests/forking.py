"""Run commands in forks of a process that has imported torch and transformers already.

    done = run_command(ROOT / "run_finetune.py", "--train_file", "train.csv", cwd=folder)
    process = start_command(...); process.send_signal(signal.SIGTERM); process.wait()
    done = run_bare(...)            # a fresh interpreter, for what must see one

The first command starts a server for this process of pytest. It imports the packages that the
project's modules import, none of the project's own, runs no computation and has one thread. Each
request makes it fork twice: a monitor, which reports how the command ended, and the command itself,
which takes over the arguments, folder, environment, standard streams and namespaces of the asker,
runs the file as `__main__` and ends as the interpreter does, but that it clears no module: to write
half a gigabyte of shared memory takes longer than many a command. It draws the pictures that the
environment asks for, and syncs no file.

A command is started in a fresh interpreter where a fork could differ: where an environment
variable has another value that the imports have looked up, or that C code reads at start. What all
forks of a server share and fresh interpreters do not is the seed of string hashes.

`stand_in_path()` is a program that stands in for the interpreter in shells and as `sys.executable`
of the forks, so that the commands which they start are forks, too.
"""

import ast
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SUPPORTED = hasattr(os, "pidfd_open") and sys.platform == "linux"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two a worker are slower, and may add up in another order
OF_THE_SERVER = {  # while it imports: pyarrow starts no thread, and nobody initialises CUDA
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
READ_BY_C = ("PYTHON", "OMP_", "GOMP_", "MKL_", "OPENBLAS_", "BLIS_", "LD_", "MALLOC_")
READ_BY_C += ("ARROW_", "TZ", "LANG", "LC_", "GLIBC_", "CUDA_")
AT_FIRST = dict(os.environ)  # before any test changes it
SET_BY_IMPORTS: dict[str, str] = {}
OF_THE_MOMENT = ("_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES", "PYTEST_CURRENT_TEST")
LAUNCHERS = ("accelerate.commands.launch", "torch.distributed.run", "ipykernel_launcher")
INHERITED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)  # where ignored
MODELS = ("bert", "auto")  # what transformers imports when a model is loaded
TABLE = "transformers.conversion_mapping"
PICTURES = "PICTURES"  # in the environment: "all" are drawn, or those with this in their names
BLANK = {"svg": "<svg></svg>", "png": b"\x89PNG\r\n\x1a\n"}


class Request(NamedTuple):
    """A command as its asker wants it run."""

    line: list[str]
    folder: str
    environment: dict[str, str]
    ignored: list[int]  # signals
    umask: int
    python: str  # what sys.executable shall be


# ---------------------------------------------------------------- the server


def serve(address: str) -> Request:
    """Answer requests until standard input ends. Returns in forks only: what to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for pytest
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors leave no zombies
    looked_up = preload()
    if sys.dont_write_bytecode:  # else each fork would compile the project
        sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(address).parent)
    gc.collect()
    gc.freeze()  # or each fork goes through all that was imported when it ends
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    threads = len(os.listdir("/proc/self/task"))
    print(json.dumps({"looked_up": looked_up, "threads": threads}), flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            return monitor(connection)
        connection.close()


def preload() -> list[str]:
    """Import what the project imports.

    Returns:
        the environment variables that were looked up meanwhile, and not set.
    """
    looked_up: set[str] = set()
    before = dict(os.environ)
    copied: list[str] = []  # names still to come where all are asked for, which tells nothing

    class Watched(type(os.environ)):
        def __iter__(self) -> Iterator[str]:
            copied[:] = super().__iter__()
            return iter(copied[:])

        def __getitem__(self, name: str) -> str:
            if copied[:1] == [name]:
                copied.pop(0)
            else:
                looked_up.add(name)
            return super().__getitem__(name)

    plain, os.environ.__class__ = type(os.environ), Watched
    for module, name in sorted(imports_of_the_project()):
        try:
            getattr(importlib.import_module(module), name or "__name__")
        except (ImportError, AttributeError):
            continue  # one that is optional, or a module of the name
    for model in MODELS:
        importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    with contextlib.suppress(ImportError, AttributeError):  # a table that some versions keep
        importlib.import_module(TABLE).get_checkpoint_conversion_mapping("bert")
    os.environ.__class__ = plain
    SET_BY_IMPORTS.update({k: v for k, v in os.environ.items() if before.get(k) != v})
    return sorted(looked_up - {*SET_BY_IMPORTS, *OF_THE_MOMENT})


def imports_of_the_project() -> set[tuple[str, str]]:
    """Find every import of a module that is not our own: (module, name in it or "")."""
    beside = [*ROOT.glob("*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    own = {"bertchain", *(path.stem for path in beside)}
    found: set[tuple[str, str]] = set()
    for path in (*beside, *ROOT.glob("bertchain/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found |= {(str(node.module), alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.split(".")[0] not in own}


def monitor(connection: socket.socket) -> Request:
    """Fork the command and tell its asker the process id, then how it ended.

    Where the asker goes away the command is killed. Returns in the command alone.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size = struct.calcsize("=Q")
    head, streams, _, _ = socket.recv_fds(connection, size, 3)
    (length,) = struct.unpack("=Q", head)
    request = Request(*json.loads(connection.makefile("rb").read(length)))
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = os.fork()
    if pid == 0:
        connection.close()
        take_over(request, streams, asker=struct.unpack("3i", peer)[0])
        return request
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended, connection], [], [])
    if ended not in ready:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    try:
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    finally:
        os._exit(0)


def take_over(request: Request, streams: list[int], asker: int) -> None:
    """Give this process what a new one would have from its asker."""
    join_namespaces(asker)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    for number in INHERITED:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        usual = signal.SIG_IGN if number == signal.SIGPIPE else usual  # Python's own choice
        signal.signal(number, signal.SIG_IGN if number in request.ignored else usual)
    sys.executable = request.python
    os.umask(request.umask)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(SET_BY_IMPORTS | request.environment)
    sys.modules["numpy"].random.seed()  # `random` is seeded anew by itself
    sys.modules["torch"].seed()
    spare_disk_and_drawing()


def spare_disk_and_drawing() -> None:
    """Sync no file, as what tests write need not outlast a power cut; draw only what is asked for:
    pictures take a third of a short run."""
    figure = importlib.import_module("matplotlib.figure").Figure
    draw = figure.savefig

    def savefig(self, target, *, format: str = "png", **options) -> None:
        asked = os.environ.get(PICTURES, "")
        if asked == "all" or (asked and asked in str(target)):
            draw(self, target, format=format, **options)
        elif isinstance(target, os.PathLike):
            target.write_bytes(BLANK[format])
        else:
            target.write(BLANK[format])

    figure.savefig, os.fsync = savefig, lambda number: None


def join_namespaces(asker: int) -> None:
    """Enter the user and mount namespaces of a process that was started by `unshare`."""
    for kind in ("user", "mnt"):
        theirs = f"/proc/{asker}/ns/{kind}"
        if os.readlink(theirs) == os.readlink(f"/proc/self/ns/{kind}"):
            continue
        with open(theirs, "rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")


def run_as_main(line: list[str]) -> None:
    """Run `[-u] script.py ...`, `-m module ...` or `-c code ...` as the interpreter does."""
    import runpy

    if line[0] == "-u":
        sys.stdout.reconfigure(write_through=True)
        line = line[1:]
    first, *others = line
    if first == "-m":
        sys.argv, sys.path[0] = others, os.getcwd()
        return runpy.run_module(others[0], run_name="__main__", alter_sys=True)
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *others[1:]], ""
        sys.modules["__main__"] = sys.modules["__mp_main__"] = types.ModuleType("__main__")
        return exec(compile(others[0], "<string>", "exec"), vars(sys.modules["__main__"]))
    sys.argv, sys.path[0] = line, str(Path(first).resolve().parent)
    return runpy.run_path(first, run_name="__main__")


def run_to_its_end(line: list[str]) -> None:
    """Run a command; where it ends well or by sys.exit, wait for threads, call what it has
    registered, flush, and leave. All else is for the interpreter."""
    code = None
    try:
        run_as_main(line)
    except SystemExit as ended:
        code = ended.code
        if not isinstance(code, int | None):
            raise
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit((code or 0) & 0xFF)


# ---------------------------------------------------------------- asking it


class Server:
    """A running server: its address, and which variables a fork must agree on."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="forks-")
        self.address = str(Path(self.folder.name) / "socket")
        self.environment = AT_FIRST | ONE_THREAD
        self.process = subprocess.Popen(
            [sys.executable, __file__, self.address],
            env=self.environment | OF_THE_SERVER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.stop)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the server of forks did not start; what it said is above")
        said = json.loads(line)
        self.looked_up, self.threads = said["looked_up"], said["threads"]
        self.python = self.write_stand_in()

    def write_stand_in(self) -> str:
        """A program that takes the interpreter's place, and is it where a fork would not do."""
        path = Path(self.folder.name) / "python"
        agreed = relevant(self.environment, self.looked_up)
        fixed = json.dumps([self.address, sys.executable, self.looked_up, agreed])
        code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import forking\n"
        path.write_text(f"#!{sys.executable} -IS\n{code}forking.stand_in({fixed!r})\n")
        path.chmod(0o755)
        return str(path)

    def differences(self, environment: dict[str, str]) -> list[str]:
        """Names of the variables because of which a fork would not do."""
        mine, theirs = (relevant(e, self.looked_up) for e in (self.environment, environment))
        return sorted(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def relevant(environment: Mapping[str, str], looked_up: list[str]) -> dict[str, str]:
    """What imports depend on."""
    names = {*looked_up}
    return {k: v for k, v in environment.items() if k in names or k.startswith(READ_BY_C)}


@functools.cache
def server() -> Server:
    return Server()


class Command:
    """A forked command, with what tests use of subprocess.Popen."""

    def __init__(self, address: str, request: Request, streams: list[int]):
        self.returncode: int | None = None
        self.captured: tuple[IO[str], ...] = ()
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        content = json.dumps(request).encode()
        socket.send_fds(self.connection, [struct.pack("=Q", len(content))], streams)
        self.connection.sendall(content)
        self.answers = self._answers()
        self.pid = next(self.answers)

    def _answers(self) -> Iterator[int]:
        """The process id, then the exit code."""
        rest = b""
        while True:
            while b"\n" not in rest:
                received = self.connection.recv(64)
                if not received:
                    raise RuntimeError("the server of forks has ended")
                rest += received
            line, rest = rest.split(b"\n", 1)
            yield int(line)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            self.returncode = next(self.answers)
            self.connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        """Standard output and error, once the command has ended."""
        self.wait(timeout)
        for file in self.captured:
            file.seek(0)
        return tuple(file.read() for file in self.captured)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_command(
    *line: object,
    cwd: str | Path | None = None,
    env: dict[str, str] | None = None,
) -> Command | subprocess.Popen:
    """Start `script.py ...` (or -m, -c). What it prints is kept for `communicate`.

    Args:
        env: changes to the environment. OMP_NUM_THREADS is 1 unless it says otherwise.
    """
    words = [*map(str, line)]
    environment = os.environ | ONE_THREAD | (env or {})
    if not SUPPORTED:
        return start_bare(*words, cwd=cwd, env=env)
    if differences := server().differences(environment):
        warnings.warn(f"a fresh interpreter because of {', '.join(differences)}", stacklevel=2)
        return start_bare(*words, cwd=cwd, env=env)
    request = ask(words, str(cwd or os.getcwd()), environment, server().python)
    files = (_new_file(), _new_file())
    with open(os.devnull, "rb") as nothing:
        streams = [file.fileno() for file in (nothing, *files)]
        command = Command(server().address, request, streams)
    command.captured = files
    return command


def _new_file() -> IO[str]:
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def ask(words: list[str], folder: str, environment: dict[str, str], python: str) -> Request:
    ignored = [n for n in INHERITED[:-1] if signal.getsignal(n) == signal.SIG_IGN]
    umask = os.umask(0)
    os.umask(umask)
    return Request(words, folder, environment, ignored, umask, python)


def stand_in_path() -> str:
    """What is called in the interpreter's place by a shell, or by a program that is told one."""
    return server().python if SUPPORTED else sys.executable


def run_command(
    *line: object, cwd: str | Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run `script.py ...` (or -m, -c) to its end; see `start_command`."""
    return _finish(start_command(*line, cwd=cwd, env=env), line)


def run_bare(
    *line: object, cwd: str | Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """The same in a fresh interpreter."""
    return _finish(start_bare(*line, cwd=cwd, env=env), line)


def start_bare(
    *line: object, cwd: str | Path | None = None, env: dict[str, str] | None = None
) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *map(str, line)],
        cwd=cwd,
        env=os.environ | ONE_THREAD | (env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: Command | subprocess.Popen, line: tuple) -> subprocess.CompletedProcess:
    said, errors = process.communicate()
    return subprocess.CompletedProcess(line, process.returncode, said, errors)


# ---------------------------------------------------------------- in the interpreter's place


def stand_in(fixed: str) -> None:
    """Run this process's command as a fork, or become the interpreter itself.

    Args:
        fixed: JSON of the server's address, the interpreter, the variables that its imports looked
            up, and the values to agree on.
    """
    address, python, looked_up, agreed = json.loads(fixed)
    words = sys.argv[1:]
    what = words[1:] if words[:1] == ["-u"] else words
    is_script = bool(what) and what[0].endswith(".py")
    is_launcher = what[:1] == ["-m"] and what[1:2] in ([name] for name in LAUNCHERS)
    listed = {*map(int, os.listdir("/proc/self/fd"))} - {0, 1, 2}
    inherits = any(os.path.exists(f"/proc/self/fd/{number}") for number in listed)
    if not (is_script or is_launcher) or inherits or relevant(os.environ, looked_up) != agreed:
        os.execv(python, [python, *words])
    request = ask(words, os.getcwd(), dict(os.environ), sys.argv[0])
    command = Command(address, request, [0, 1, 2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda n, _: command.send_signal(n))
    code = command.wait()
    if code < 0:  # it was killed: end in the same way
        signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
        time.sleep(60)
    sys.exit(code)


if __name__ == "__main__":
    sys.path[0] = ""  # the folder of this file
    run_to_its_end(serve(sys.argv[1]).line)
