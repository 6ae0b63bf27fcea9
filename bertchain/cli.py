"""Flags, a YAML or JSON file, or a dict -> dataclasses; and one line for a user's mistake.

Imports nothing heavy, so that `--help` answers at once.
"""

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from bertchain.errors import InputError, as_input_error, nearest
from bertchain.runtime.distributed import close_process_group, is_main_process

if TYPE_CHECKING:
    from transformers import HfArgumentParser


SECRETS = ("hub_token",)  # never written to disk
DISK_ERRORS = (  # a full disk, no permission, a file where a folder should be
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EIO),
)


# ---------------------------------------------------------------------------- parsing


def make_parser(dataclass_types: Sequence[type], **kwargs: Any) -> "HfArgumentParser":
    """Make a HfArgumentParser without abbreviations, whose errors are one line."""
    from transformers import HfArgumentParser  # takes longer than a user should wait for a sign

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(" ".join(message.split()))

    return Parser(dataclass_types, allow_abbrev=False, **kwargs)


def parse(
    dataclass_types: Sequence[type],
    argv: Sequence[str] | dict[str, Any] | None = None,
    defaults: dict[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Arguments -> dataclasses, and the plain dict that repeats the run.

    Args:
        argv: flags, or one .yaml or .json file followed by flags that override it, or a dict.
            None: the command line.
        defaults: values that replace the dataclasses' own defaults.

    Returns:
        one object per dataclass, then a dict of every argument that is not None.

    Raises:
        InputError: for an unknown or malformed argument.
    """
    argv = as_flags(argv)
    parser = make_parser(dataclass_types)
    parser.set_defaults(**(defaults or {}))
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise InputError(describe_unknown(unknown, parser))
    values = vars(namespace)
    with as_input_error():
        objects = [
            cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init})
            for cls in dataclass_types
        ]
    check_output_dir(values.get("output_dir"))
    run_config = {k: v for k, v in values.items() if v is not None and k not in SECRETS}
    return *objects, run_config


def as_flags(argv: Sequence[str] | dict[str, Any] | None) -> list[str]:
    """What `parse` takes -> plain flags, a file replaced by what it says."""
    if argv is None:
        argv = sys.argv[1:]
    if isinstance(argv, dict):
        argv = flags_of(argv)
    argv = list(argv)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = flags_of(read_arguments(argv[0])) + argv[1:]
    return argv


def is_given(name: str, argv: Sequence[str] | dict[str, Any] | None) -> bool:
    """Whether the user set an argument, to whatever value."""
    words = [word.split("=")[0].replace("-", "_") for word in as_flags(argv)]
    return f"__{name}" in words


def value_of(name: str, argv: Sequence[str] | dict[str, Any] | None) -> str | None:
    """The value of an argument before all others are parsed; None if it is not given."""
    words = as_flags(argv)
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == f"--{name}":
            return following
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


def read_arguments(path: str, name: str = "") -> dict[str, Any]:
    """A YAML or JSON file with `name: value` lines; or such text itself, if it begins with {.

    Args:
        name: the argument that an error message names, in place of the file.
    """
    what = f"{name} {path}".strip()
    try:
        text = path if path.startswith("{") else Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)  # JSON is YAML
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not text, no such date
        raise InputError(
            f"{what}: cannot be read as YAML or JSON: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{what}: must hold arguments as 'name: value' lines")
    return content


def flags_of(arguments: dict[str, Any]) -> list[str]:
    """Values become flags, so that 1e-4, which YAML reads as text, is read as a number."""
    flags = []
    for name, value in arguments.items():
        if value is None or value == []:
            continue
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def describe_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> str:
    word = unknown[0]
    if not word.startswith("--"):
        return f"{word!r} belongs to no argument; a flag starts with --"
    name = word[2:].split("=")[0]
    known = [
        o.removeprefix("--")
        for action in parser._actions
        for o in action.option_strings
        if "-" not in o[2:]
    ]
    return f"unknown argument --{name}{nearest(name, known)}"


def changed(run_config: dict[str, Any], dataclass_types: Sequence[type]) -> dict[str, Any]:
    """The arguments of a run whose values differ from the dataclasses' own defaults."""
    defaults = {}
    for f in (f for cls in dataclass_types for f in dataclasses.fields(cls)):
        factory = f.default_factory
        defaults[f.name] = f.default if factory is dataclasses.MISSING else factory()
    return {k: v for k, v in run_config.items() if v != defaults.get(k)}


def start_script(
    description: str, dataclass_types: Sequence[type], defaults: dict[str, Any] | None = None
) -> None:
    """Answer --help and exit, or say what the next seconds go to: heavy imports come after this.

    Args: as for `print_help`.
    """
    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print_help(description, dataclass_types, defaults)
        sys.exit()
    if is_main_process():
        now = time.strftime("%H:%M:%S")
        print(now, "Loading torch, transformers and datasets", file=sys.stderr, flush=True)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the description."""


def print_help(
    description: str, dataclass_types: Sequence[type], defaults: dict[str, Any] | None = None
) -> None:
    """The script's own arguments, grouped; those of TrainingArguments are named, not listed.

    Args:
        defaults: what the script sets in TrainingArguments; None if it takes no such arguments.
    """
    epilog = None
    if defaults is not None:
        epilog = (
            "Every argument of transformers.TrainingArguments works as well (--num_train_epochs, "
            "--learning_rate, --bf16, --seed, --resume_from_checkpoint ...). Defaults set here: "
            + " ".join(f"{k}={v}" for k, v in defaults.items())
        )
        epilog = textwrap.fill(epilog, 78, break_on_hyphens=False)
    parser = make_parser(
        dataclass_types,
        description=description.strip(),
        usage="%(prog)s [arguments.yaml] [--argument value ...]",
        epilog=epilog,
        formatter_class=HelpFormatter,
    )
    parser.print_help()


def refuse_data_parallel(num_gpus: int) -> None:
    """One process with several GPUs means DataParallel, which scales losses wrong."""
    if num_gpus > 1:
        script = Path(sys.argv[0]).name
        raise InputError(
            f"{num_gpus} GPUs but one process; type: accelerate launch --num_processes {num_gpus} "
            f"{script} ..., or CUDA_VISIBLE_DEVICES=0 python {script} ..."
        )


def refuse_fp16(fp16: bool, on_cpu: bool) -> None:
    """On a CPU it would be left out without a word."""
    if fp16 and on_cpu:
        raise InputError("--fp16 needs a GPU; leave it out, or use --bf16")


def check_output_dir(folder: str | None) -> None:
    """Raises InputError early for a place where nothing can be written."""
    if folder is None:
        return
    there = next(
        path
        for path in (Path(folder).absolute(), *Path(folder).absolute().parents)
        if path.exists()
    )
    if not there.is_dir():
        raise InputError(f"--output_dir {folder}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {folder}: {there} cannot be written to")


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main; a user's mistake becomes one line and exit code 2."""
    try:
        main()
        close_process_group()
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
        os._exit(130)  # threads that are at work would abort an orderly end
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        fail(f"{error.filename or 'a file'}: {error.strerror}")


def fail(message: str) -> NoReturn:
    """One line, after whatever a progress bar still has to say."""
    bars = sys.modules.get("tqdm.std")
    for bar in list(getattr(bars and bars.tqdm, "_instances", ())):
        bar.close()
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    sys.exit(2)


def start_logging() -> None:
    """Progress on standard error, from the main process alone."""
    style = {"format": "%(asctime)s %(message)s", "datefmt": "%H:%M:%S"}
    logging.basicConfig(level=logging.WARNING, **style)
    level = logging.INFO if is_main_process() else logging.ERROR
    logging.getLogger("bertchain").setLevel(level)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it raises is said by us
