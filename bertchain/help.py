"""Print --help and --help_all: each flag once, with the default that is really used.

Imports nothing heavy, but for --help_all transformers.
"""

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints


class Flag(NamedTuple):
    """A flag as help lists it.

    Attributes:
        value: what it takes: TEXT, INT, FLOAT, BOOL, or such with ... for several.
        text: says what the value is.
        default: what is used where the flag is not given; None, False, or empty: nothing is.
    """

    name: str
    value: str
    text: str
    default: Any = None


# Those of transformers.TrainingArguments that most runs set: --help does not import it. A script's
# own defaults replace these.
TRAINING_FLAGS = (
    Flag("output_dir", "TEXT", "Folder for all that the run writes."),
    Flag(
        "learning_rate",
        "FLOAT",
        "Peak learning rate. The default is for encoders of BERT-base size; fine-tuning small ones "
        "(hidden size below 512) takes 1e-4 to 5e-4.",
        5e-5,
    ),
    Flag("num_train_epochs", "FLOAT", "Passes over the training rows.", 3.0),
    Flag("per_device_train_batch_size", "INT", "Training rows in a batch, for each GPU.", 8),
    Flag("gradient_accumulation_steps", "INT", "Batches whose gradients make one step.", 1),
    Flag(
        "bf16",
        "BOOL",
        "Whether to compute in bfloat16. run_finetune.py does so on a GPU that has it (else in "
        "fp16); false turns that off.",
    ),
    Flag("seed", "INT", "Seed of splits, new weights, order of rows and dropout.", 42),
    Flag("resume_from_checkpoint", "TEXT", "Folder checkpoint-N to go on from; last: the newest."),
)
TRAINING_GROUP = "training (transformers.TrainingArguments)"
VALUES = {bool: "BOOL", int: "INT", float: "FLOAT"}
NOTE = (
    "A YAML or JSON file holds the same names, as seed: 7, and flags after it override it. What is "
    "on by default is turned off by false, as --name false."
)


def print_help(
    description: str,
    dataclass_types: Sequence[type],
    defaults: dict[str, Any] | None = None,
    everything: bool = False,
) -> None:
    """Print a script's flags, grouped, each once, with the defaults that are really used.

    Args:
        defaults: what the script sets in TrainingArguments; None if it takes no such arguments.
        everything: list all flags, those of TrainingArguments too (which imports transformers);
            False: those that most runs need.
    """
    groups = [*_own_groups(dataclass_types, defaults or {}, everything)]
    notes = [NOTE, "--help_all lists every flag."]
    if defaults is not None:
        groups.append((TRAINING_GROUP, _training_flags(defaults, everything)))
        notes[1] = "--help_all lists every flag, also all of transformers.TrainingArguments."
    parser = argparse.ArgumentParser(
        description=description.strip(),
        usage="%(prog)s [arguments.yaml] [--flag value ...]",
        epilog="\n".join(textwrap.fill(note, 78) for note in notes[: 1 if everything else 2]),
        formatter_class=HelpFormatter,
        add_help=False,
    )
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(f"--{flag.name}", metavar=flag.value, help=_with_default(flag))
    parser.print_help()


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description, and put help texts beside long flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _own_groups(
    dataclass_types: Sequence[type], defaults: dict[str, Any], everything: bool
) -> Iterator[tuple[str, list[Flag]]]:
    """Yield the groups of flags that help lists: all where a script marks none as common."""
    fields = [f for cls in dataclass_types for f in dataclasses.fields(cls)]
    everything = everything or not any(map(_is_common, fields))
    for cls in dataclass_types:
        shown = [f for f in dataclasses.fields(cls) if everything or _is_common(f)]
        if shown:
            hints = get_type_hints(cls)
            yield cls._argument_group_name, [_flag_of(f, hints[f.name], defaults) for f in shown]


def _is_common(field: dataclasses.Field) -> bool:
    """Return whether most runs need a flag: `arguments.common.arg` marks it, or it is required."""
    required = field.default is field.default_factory is dataclasses.MISSING
    return required or getattr(field.metadata.get("help"), "common", False)


def _training_flags(defaults: dict[str, Any], everything: bool) -> list[Flag]:
    """List the flags of TrainingArguments with a script's defaults: all, or TRAINING_FLAGS."""
    known = {
        flag.name: flag._replace(default=defaults.get(flag.name, flag.default))
        for flag in TRAINING_FLAGS
    }
    if not everything:
        return [*known.values()]
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    fields = [f for f in dataclasses.fields(TrainingArguments) if f.init]
    return [known.get(f.name) or _flag_of(f, hints[f.name], defaults) for f in fields]


def _flag_of(field: dataclasses.Field, hint: Any, defaults: dict[str, Any]) -> Flag:
    text = field.metadata.get("help", "")
    default = defaults.get(field.name, default_of(field))
    if default is None or default == []:
        default = getattr(text, "shown", None)
    return Flag(field.name, _value_of_type(hint), text, default)


def _value_of_type(hint: Any) -> str:
    """Name the first type that a hint allows: TEXT, INT, FLOAT or BOOL; with ... for a list."""
    if get_origin(hint) is list:
        return f"{_value_of_type(get_args(hint)[0])} ..."
    allowed = [kind for kind in get_args(hint) if kind is not NoneType]
    return _value_of_type(allowed[0]) if allowed else VALUES.get(hint, "TEXT")


def _with_default(flag: Flag) -> str:
    """Join the text of a flag and its default, which is left out where the flag is off."""
    text, value = " ".join(flag.text.split()), getattr(flag.default, "value", flag.default)
    if value is None or value is False or value == [] or value == "":
        return text
    if isinstance(value, list):
        value = " ".join(map(str, value))
    elif value is True:
        value = "true"
    elif isinstance(value, float):
        value = f"{value:g}".replace("e-0", "e-")
    elif str(value).isspace():
        value = repr(value)
    return f"{text} (default: {str(value).replace('%', '%%')})"


def default_of(field: dataclasses.Field) -> Any:
    """Return a field's default; None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
