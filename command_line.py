"""From a command line, a YAML or JSON file, or a dict to dataclasses; and one line for a user's mistake.

Imports nothing heavy, so that `--help` answers at once.
"""

import dataclasses
import difflib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

logger = logging.getLogger(__name__)

SECRETS = ("hub_token",)  # never written to disk


class InputError(ValueError):
    """Something the user can mend. The message names the file, column, row or argument, and the fix."""


@contextmanager
def as_input_error(what: str = "") -> Iterator[None]:
    """Turn the ValueError or OSError of a library or a pure helper into the one line a user gets."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise InputError(f"{what}: {first_line}" if what else first_line) from error


# ---------------------------------------------------------------------------- arguments all scripts share


@dataclass
class TextArguments:
    """Where the text of a row is."""

    _argument_group_name = "text"

    text_column_names: list[str] = field(
        default_factory=lambda: ["text"],
        metadata={"help": "Columns with text, joined in this order, such as: title abstract."},
    )
    text_separator: str = field(
        default=" ", metadata={"help": "Stands between joined columns; \\n and \\t work."}
    )
    text_pair: bool = field(
        default=False,
        metadata={
            "help": "Give two text columns to the tokenizer as a real pair (title [SEP] abstract)."
        },
    )
    id_column_name: str | None = field(
        default=None, metadata={"help": "Column with row ids. Default: row number."}
    )
    delimiter: str | None = field(
        default=None,
        metadata={
            "help": "Of .csv files, \\t works. Default: found in the header (comma, tab, ; or |)."
        },
    )
    encoding: str = field(
        default="utf-8",
        metadata={"help": "Of text files; utf-8 with or without byte order mark; gbk, latin-1 ..."},
    )

    def __post_init__(self) -> None:
        self.text_separator = unescape(self.text_separator)
        self.delimiter = unescape(self.delimiter) if self.delimiter else None
        if self.text_pair and len(self.text_column_names) != 2:
            raise InputError(
                f"--text_pair needs two --text_column_names, got {len(self.text_column_names)}: "
                + " ".join(self.text_column_names)
            )


@dataclass
class LabelArguments:
    """Where the labels are and what they mean."""

    _argument_group_name = "labels"

    label_column_name: list[str] = field(
        default_factory=lambda: ["label"],
        metadata={
            "help": "One column, or several 0/1 columns (multi-label) or number columns (regression)."
        },
    )
    label_delimiter: str | None = field(
        default=None,
        metadata={"help": "Splits a text label into several labels, such as | or a space."},
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "single_label, multi_label or regression. Default: found from the labels."
        },
    )
    validation_split: float = field(
        default=0.1,
        metadata={
            "help": "Share of training held out, stratified, when there is no --validation_file."
        },
    )

    def __post_init__(self) -> None:
        one_of(
            "problem_type",
            self.problem_type,
            ("single_label", "multi_label", "regression"),
            none=True,
        )
        if not 0 < self.validation_split < 1:
            raise InputError(f"--validation_split {self.validation_split} must lie between 0 and 1")


def unescape(text: str) -> str:
    return text.replace("\\t", "\t").replace("\\n", "\n")


def one_of(name: str, value: Any, choices: Sequence[str], none: bool = False) -> None:
    """Check an argument that takes one of a few words."""
    if value in choices or (none and value is None):
        return
    raise InputError(
        f"--{name} {value} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
    )


def nearest(word: str, words: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {found[0]}?)" if found else ""


# ---------------------------------------------------------------------------- parsing


class Parser(HfArgumentParser):
    """HfArgumentParser without abbreviations, whose errors are one line."""

    def __init__(self, dataclass_types: Sequence[type], **kwargs: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        raise InputError(message)


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
    if argv is None:
        argv = sys.argv[1:]
    if isinstance(argv, dict):
        argv = flags_of(argv)
    argv = list(argv)
    if argv and argv[0].endswith((".yaml", ".yml", ".json")):
        argv = flags_of(read_arguments(argv[0])) + argv[1:]
    parser = Parser(dataclass_types)
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
    as_run = {k: v for k, v in values.items() if v is not None and k not in SECRETS}
    return *objects, as_run


def read_arguments(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: cannot be read as YAML or JSON: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold arguments as 'name: value' lines")
    return content


def flags_of(arguments: dict[str, Any]) -> list[str]:
    """Values become flags, so that 1e-4, which YAML and JSON files often hold as text, is read as a number."""
    flags = []
    for name, value in arguments.items():
        if value is None:
            continue
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def describe_unknown(unknown: list[str], parser: Parser) -> str:
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


def wants_help(argv: Sequence[str]) -> bool:
    return any(word in ("-h", "--help") for word in argv)


def print_help(description: str, dataclass_types: Sequence[type], defaults: dict[str, Any]) -> None:
    """The script's own arguments, grouped; those of TrainingArguments are named, not listed."""
    changed = " ".join(f"{k}={v}" for k, v in defaults.items())
    parser = Parser(
        dataclass_types,
        description=description.strip(),
        usage="%(prog)s [arguments.yaml] [--argument value ...]",
        epilog="Every argument of transformers.TrainingArguments works as well (--learning_rate, "
        "--num_train_epochs, --per_device_train_batch_size, --bf16, --seed, --resume_from_checkpoint ...). "
        f"Defaults set here: {changed}.",
    )
    parser.print_help()


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's main; a user's mistake becomes one line and exit code 2."""
    try:
        main()
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
        sys.exit(2)


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def start_logging() -> None:
    """Progress on standard error, from the main process alone."""
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, force=True
    )
    names = (
        "__main__",
        "run_itpt",
        "run_finetune",
        "run_probe",
        "command_line",
        "text_data",
        "labels",
    )
    for name in (*names, "modeling", "outputs", "probes"):
        logging.getLogger(name).setLevel(logging.INFO if is_main_process() else logging.ERROR)
