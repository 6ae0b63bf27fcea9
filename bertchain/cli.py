"""The command line: YAML, JSON, flags -> dataclasses; --help; one line for a user's mistake.

Imports nothing heavy, so that `--help` answers at once.
"""

import dataclasses
import errno
import functools
import gc
import inspect
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from bertchain.errors import InputError, as_input_error, check_numbers, nearest
from bertchain.help import default_of, print_help
from bertchain.runtime import given, screen
from bertchain.runtime.distributed import (
    PRECISION,
    close_process_group,
    has_anyone_spoken,
    is_first_to_say,
    is_main_process,
    launcher_precision,
    leave,
    rank_and_size,
    was_left_alone,
)
from bertchain.runtime.screen import start_logging as start_logging  # scripts call it here
from bertchain.runtime.strict_yaml import load_yaml

if TYPE_CHECKING:
    from transformers import HfArgumentParser


logger = logging.getLogger("bertchain")

# flags, a dict, a .yaml or .json file of arguments, or None for the command line
Given = Sequence[str] | Mapping[str, Any] | str | os.PathLike | None
FOLLOWED = ("eval_strategy", "save_strategy", "eval_steps", "save_steps", "logging_steps")
SECRETS = ("hub_token",)  # never written to a file
DISK_ERRORS = (  # a full disk, no permission, a file where a folder should be, also without a path
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EIO),
)


# ---------------------------------------------------------------------------- parsing


class Secret(str):
    """Text that is used as it is and becomes None in a pickle, as of the Trainer's arguments.

    The Trainer pickles them into each checkpoint, and into what it uploads to the hub.
    """

    def __reduce_ex__(self, protocol: int) -> tuple[type, tuple]:
        return type(None), ()

    def __deepcopy__(self, memo: dict) -> "Secret":
        return self  # a copy in memory keeps it


def parse(
    dataclass_types: Sequence[type], argv: Given = None, defaults: dict[str, Any] | None = None
) -> tuple[Any, ...]:
    """Parse arguments into dataclasses, and into the plain dict that repeats the run.

    Args:
        argv: flags, or one .yaml or .json file followed by flags that override it, or a dict.
            None: the command line.
        defaults: values that replace the dataclasses' own defaults.

    Returns:
        one object per dataclass, then a dict of every argument that is not None.

    Raises:
        InputError: for an unknown or malformed argument.
    """
    parser = make_parser(dataclass_types)
    parser.set_defaults(**following(defaults or {}, argv))
    names = {f.name for cls in dataclass_types for f in dataclasses.fields(cls)}
    precision = {k: v for k, v in (launcher_precision() or {}).items() if k in names}
    parser.set_defaults(**precision)
    namespace, unknown = parser.parse_known_args(as_flags(argv))
    values = vars(namespace)
    if unknown:
        raise InputError(describe_unknown(unknown[0], values))
    check_text(values)
    for name, said in precision.items():
        if any(precision.values()) and values[name] != said:  # the flag would have no effect
            raise InputError(
                f"--{name} {values[name]}, but the launcher says --mixed_precision "
                f"{os.environ[PRECISION]}; leave one of them out"
            )
    for name in SECRETS:
        if values.get(name):
            values[name] = Secret(values[name])
    with as_input_error():
        objects = [
            cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init})
            for cls in dataclass_types
        ]
    check_numbers(values)
    check_output_dir(values.get("output_dir"))
    run_config = {k: v for k, v in values.items() if v is not None and k not in SECRETS}
    return *objects, run_config


def following(defaults: dict[str, Any], argv: Given) -> dict[str, Any]:
    """Let the defaults of saving follow how it is evaluated, and the other way round.

    Checkpoints are chosen by evaluation, so the two must happen at the same steps: a user who says
    one need not say the other.
    """
    given = {name: value_of(name, argv) for name in FOLLOWED}
    found = dict(defaults)
    if "save_strategy" not in defaults or defaults.get("eval_strategy") == "no":
        return found
    for one, other in (("eval_strategy", "save_strategy"), ("save_strategy", "eval_strategy")):
        if given[one] not in (None, "no", "best") and given[other] is None:
            found[other] = given[one]
    strategy = given["eval_strategy"] or found["eval_strategy"]
    steps = given["eval_steps"] or given["logging_steps"] or found.get("logging_steps")
    if strategy == "steps" and given["save_steps"] is None and steps is not None:
        found["save_steps"] = float(steps)  # --logging_steps is what --eval_steps is by default
    return found


class OneLineErrors:
    """Mix-in of argument parsers: what cannot be parsed is an InputError."""

    def error(self, message: str) -> NoReturn:
        raise InputError(" ".join(message.split()))


def make_parser(dataclass_types: Sequence[type]) -> "HfArgumentParser":
    """Make a HfArgumentParser without abbreviations and --help, whose errors are one line.

    It takes each flag with underscores and with dashes.
    """
    from transformers import HfArgumentParser  # takes longer than a user should wait for a sign

    class Parser(OneLineErrors, HfArgumentParser):
        pass

    return Parser(dataclass_types, allow_abbrev=False, add_help=False)


def describe_unknown(word: str, names: Sequence[str]) -> str:
    """Say in one line that a word is no argument, and which of these names comes near it."""
    if not word.startswith("--"):
        return f"{word!r} belongs to no argument; a flag starts with --"
    name = word[2:].split("=")[0]
    return f"unknown argument --{name}{nearest(name, [*names])}"


def as_flags(argv: Given, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Turn whatever `parse` takes into plain flags; a file is replaced by what it holds.

    Args:
        arguments: override `argv`, of which None then means that there is none, not the command
            line; a value of None takes a file's away.

    Raises:
        InputError: naming the argument, for a value that no flag can stand for.
    """
    arguments = arguments or {}
    if argv is None:
        argv = [] if arguments or screen.in_kernel() else sys.argv[1:]
    if isinstance(argv, Mapping):
        return flags_of({**argv, **arguments})
    words = [argv] if isinstance(argv, str | os.PathLike) else argv
    words = [str(given.to_plain("argv", word)) for word in words]
    if words and not words[0].startswith("-") and words[0].endswith((".yaml", ".yml", ".json")):
        read = read_arguments(words[0])
        words = flags_of({k: v for k, v in read.items() if k not in arguments}) + words[1:]
    return words + flags_of(arguments)


def take(
    argv: Given, arguments: Mapping[str, Any], trainer_class: type
) -> tuple[list[str], given.Hooks]:
    """Take what was given to a main: flags (see `as_flags`), and what only Python can give.

    Args:
        arguments: keyword arguments; those of a dict may as well be in `argv`.
        trainer_class: the script's own.

    Raises:
        InputError: as `as_flags` and `given.Hooks.take`.
    """
    if isinstance(argv, Mapping):
        argv, arguments = {}, {**argv, **arguments}
    arguments = dict(arguments)
    hooks = given.Hooks.take(arguments, trainer_class)
    return as_flags(argv, arguments), hooks


def flags_of(arguments: Mapping[str, Any]) -> list[str]:
    """Turn values into flags, so that 1e-4, which YAML reads as text, is read as a number.

    Raises:
        InputError: as `given.to_plain`, and for lists of lists.
    """
    flags = []
    for name, value in arguments.items():
        value = given.to_plain(name, value)
        if value is None or value == []:
            continue
        if isinstance(value, list):
            if any(item is None or isinstance(item, list | dict) for item in value):
                raise InputError(f"--{name}: a list of text or numbers is needed, not {value}")
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def read_arguments(path: str, name: str = "") -> dict[str, Any]:
    """Read a YAML or JSON file with `name: value` lines; or such text itself, if it begins with {.

    Args:
        name: the argument that an error message names, in place of the file.

    Raises:
        InputError: for a file that cannot be read or holds something else.
    """
    shown = path if len(path) < 200 else f"{path[:60]} ..."  # text, not a path
    what = f"{name} {shown}".strip()
    try:
        text = path if path.startswith("{") else Path(path).read_text(encoding="utf-8")
        content = load_yaml(text)  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not text, no such date
        raise InputError(
            f"{what}: cannot be read as YAML or JSON: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{what}: must hold arguments as 'name: value' lines")
    return content


def is_given(name: str, argv: Given) -> bool:
    """Return whether the user set an argument, to whatever value."""
    given = _first_values(argv)
    return name in given or f"no_{name}" in given


def value_of(name: str, argv: Given) -> str | None:
    """Return the (first) value of an argument before any is parsed; None if it is not given."""
    return _first_values(argv).get(name)


def is_true(name: str, argv: Given) -> bool:
    """Return whether a boolean argument is given, and not as false, before any is parsed."""
    value = value_of(name, argv)
    return value is not None and value.lower() not in ("false", "f", "no", "n", "0")


def _first_values(argv: Given) -> dict[str, str]:
    """The first word of each flag's value, by the flag's name; of a repeated flag that of the last.

    A flag without a value has the next flag's name for one.
    """
    words = as_flags(argv)
    found = {}
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--"):
            name, joined, value = word[2:].partition("=")
            found[name.replace("-", "_")] = value if joined else following
    return found


def changed(run_config: dict[str, Any], dataclass_types: Sequence[type]) -> dict[str, Any]:
    """Return the arguments of a run whose values differ from the dataclasses' own defaults."""
    defaults = {f.name: default_of(f) for cls in dataclass_types for f in dataclasses.fields(cls)}
    return {k: v for k, v in run_config.items() if v != defaults.get(k)}


def check_text(values: dict[str, Any]) -> None:
    """Check that all arguments can be written down, as the scripts do when they end.

    Raises:
        InputError: for bytes that are not UTF-8, which file names may hold, and for NUL.
    """
    for name, value in values.items():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and re.search("[\0\ud800-\udfff]", text):
                raise InputError(f"--{name} {text!a} is not UTF-8; rename it")


def check_output_dir(folder: str | None) -> None:
    """Check early that files can be written in a folder, which need not exist yet; None passes.

    Raises:
        InputError: if they cannot.
    """
    if folder is None:
        return
    if not folder:
        raise InputError("--output_dir is empty: name a folder")
    place = Path(folder).absolute()
    with as_input_error("--output_dir"), suppress(FileNotFoundError, NotADirectoryError):
        place.stat()  # a name that is too long, links that lead to each other
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {folder}: {there} cannot be written to")


# ---------------------------------------------------------------------------- running


def start_script(
    description: str, dataclass_types: Sequence[type], defaults: dict[str, Any] | None = None
) -> None:
    """Answer --help and --help_all and exit; else say what the next seconds go to.

    Heavy imports come after this.

    Args: as for `help.print_help`.
    """
    asked = {word.replace("_", "-") for word in sys.argv[1:]}
    if asked & {"-h", "--help", "--help-all"}:
        print_help(description, dataclass_types, defaults, everything="--help-all" in asked)
        sys.exit()
    if is_main_process():
        now = time.strftime("%H:%M:%S")
        print(now, "Loading torch, transformers and datasets", file=sys.stderr, flush=True)


def refuse_data_parallel(num_gpus: int) -> None:
    """Refuse one process with several GPUs: it means DataParallel, which scales losses wrong."""
    if num_gpus > 1:
        script = Path(sys.argv[0]).name
        raise InputError(
            f"{num_gpus} GPUs but one process; type: accelerate launch --num_processes {num_gpus} "
            f"{script} ..., or CUDA_VISIBLE_DEVICES=0 python {script} ..."
        )


def check_processes(world_size: int) -> None:
    """Log how many processes share the work.

    Raises:
        InputError: where a launcher has started several which know nothing of each other.
    """
    started = rank_and_size()[1]
    if started > 1 and world_size == 1:
        raise InputError(
            f"{started} processes were started, but each would train a copy of its own: without a "
            "GPU for each, give --use_cpu true"
        )
    logger.info("Processes: %d", world_size)


def refuse_fp16(fp16: bool, on_cpu: bool) -> None:
    """Refuse fp16 on a CPU, where it would be left out without a word."""
    if fp16 and on_cpu:
        raise InputError("--fp16 needs a GPU; leave it out, or use --bf16")


def callable_again(main: Callable[..., Any]) -> Callable[..., Any]:
    """Make a main one that Python can call over and over: it leaves nothing in memory behind.

    Tables that were given are let go, also those that a traceback holds; progress bars are shown
    as before; errors of the disk become one line.
    """

    @functools.wraps(main)
    def called(*argv: Any, **arguments: Any) -> Any:
        try:
            with given.released(), screen.bars_as_before():
                return main(*argv, **arguments)
        except OSError as error:
            if not is_of_a_file(error):
                raise
            traceback.clear_frames(error.__traceback__)
            raise InputError(describe_disk_error(error)) from error
        except (InputError, KeyboardInterrupt) as error:
            while error is not None:  # nobody looks into the frames of these
                traceback.clear_frames(error.__traceback__)
                error = error.__cause__ or error.__context__
            raise
        finally:
            gc.collect()
            torch = sys.modules.get("torch")
            if torch is not None and torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    return called


def is_of_a_file(error: OSError) -> bool:
    """Return whether an error is of a file or the disk, which the user can mend."""
    return error.errno is not None and (error.filename is not None or error.errno in DISK_ERRORS)


def describe_disk_error(error: OSError) -> str:
    """Say in one line what the disk would not do."""
    return f"{error.filename or 'a file'}: {error.strerror}"


def run_script(main: Callable[[], Any], description: str | None = None) -> None:
    """Run a script's main. A user's mistake becomes one line and exit code 2.

    Args:
        description: answers --help, of a script that has no parser which does.
    """
    if description and {"-h", "--help"} & {*sys.argv[1:]}:
        return print(description.strip())
    try:
        inspect.unwrap(main)()  # the process ends: nothing has to be let go
        close_process_group()
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        line = f"{Path(sys.argv[0]).name}: interrupted"
        if is_first_to_say(line):
            print(line, file=sys.stderr, flush=True)
        os._exit(130)  # threads that are at work would abort an orderly end
    except OSError as error:
        if not is_of_a_file(error):
            raise
        fail(describe_disk_error(error))
    except RuntimeError as error:
        if not was_left_alone(error):
            raise
        fail("another process of this run has ended; see what it said", quiet=has_anyone_spoken())


def fail(message: str, quiet: bool = False) -> NoReturn:
    """Print one line, after closing progress bars, and exit with code 2.

    Of several processes that fail alike one speaks.
    """
    bars = sys.modules.get("tqdm.std")
    for bar in list(getattr(bars and bars.tqdm, "_instances", ())):
        bar.close()
    line = f"{Path(sys.argv[0]).name}: error: {message}"
    if not quiet and is_first_to_say(line):
        print(line, file=sys.stderr, flush=True)
    leave(2, line)
    sys.exit(2)
