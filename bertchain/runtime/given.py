"""Arguments as Python gives them: numpy values, tuples, paths, tables in memory, own classes.

A table in memory gets a name, which takes the place of a path until the run has ended. Imports
nothing heavy: who gives a table has imported pandas or datasets.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from bertchain.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (
    "train_file",
    "validation_file",
    "test_file",
    "extra_train_file",
    "sample_submission",
    "corpora",
)
SPLITS = ("DatasetDict", "IterableDatasetDict")
NAMED = ("models", "class_weights", "positive_weights", "corpus_weights")  # name=value ...


# ---------------------------------------------------------------------------- values


def to_plain(name: str, value: Any) -> Any:
    """Turn a value into what YAML could hold: text, numbers, lists and dicts of them, None.

    Raises:
        InputError: naming the argument, for anything else.
    """
    if is_table(value):
        return hold(name, value)
    if isinstance(value, Enum):
        return to_plain(name, value.value)
    if hasattr(value, "tolist"):  # numpy's scalars and arrays, an index or column of pandas
        return to_plain(name, value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if isinstance(value, Mapping) and type(value).__name__ not in SPLITS:
        plain = {str(key): to_plain(name, own) for key, own in value.items()}
        return [f"{key}={own}" for key, own in plain.items()] if name in NAMED else plain
    if isinstance(value, list | tuple | range):
        return [to_plain(name, own) for own in value]
    raise InputError(f"--{name}: {describe(value)}; {what_fits(name, value)}")


def describe(value: Any) -> str:
    """Name the type of a value that fits nowhere."""
    if isinstance(value, type):
        return f"the class {value.__name__} is not taken"
    return f"a value of type {type(value).__name__} is not taken"


def what_fits(name: str, value: Any) -> str:
    """Say what to give in place of a value that is not taken."""
    if type(value).__name__ in SPLITS:
        return "give its splits, as train_file=data['train']"
    if hasattr(value, "save_pretrained"):
        return "save it with save_pretrained and give the folder"
    if name in TABLES:
        return "give a path, a DataFrame or a datasets.Dataset"
    return "give text, a number, a path, or a list of these"


# ---------------------------------------------------------------------------- tables in memory

_held: dict[str, "Dataset"] = {}  # by name; emptied when the run ends


def is_table(value: Any) -> bool:
    """Return whether a value is a DataFrame or a datasets.Dataset."""
    kinds = (("pandas", "DataFrame"), ("datasets", "Dataset"))
    known = [getattr(sys.modules.get(module), kind, None) for module, kind in kinds]
    return isinstance(value, tuple(kind for kind in known if kind is not None))


def hold(argument: str, table: Any) -> str:
    """Keep a table until the run ends. Returns the name that stands for its path.

    Raises:
        InputError: naming the argument, where it takes no table or the table cannot be read.
    """
    if argument not in TABLES:
        hint = "give the path of a file" if argument.endswith("_file") else "give text or numbers"
        if argument == "pseudo_label_file":
            hint = "give the path of predictions_test_by_fold.csv, beside which folds.csv lies"
        raise InputError(f"--{argument}: {describe(table)}; {hint}")
    rows = to_dataset(argument, table)
    name, count = f"<{argument}: {type(table).__name__}, {len(rows)} rows>", 1
    while name in _held:
        count += 1
        name = f"<{argument}: {type(table).__name__} {count}, {len(rows)} rows>"
    _held[name] = rows
    return name


def is_held(path: str) -> bool:
    """Return whether a path is the name of a table in memory, of this run or of an earlier one."""
    return path.startswith("<") and path.endswith(" rows>")


def find(name: str) -> "Dataset":
    """Return a table in memory by its name.

    Raises:
        InputError: where it was given to another run.
    """
    if name not in _held:
        argument = name[1:].partition(":")[0]
        raise InputError(
            f"{name} was a table in memory; give it again: main('run_args.yaml', {argument}=...), "
            f"or a file: --{argument} ..."
        )
    return _held[name]


@contextmanager
def released() -> Iterator[None]:
    """Let go of the tables that were given inside."""
    before = {*_held}
    try:
        yield
    finally:
        for name in _held.keys() - before:
            del _held[name]


def to_dataset(argument: str, table: Any) -> "Dataset":
    """Turn a DataFrame into a Dataset; a Dataset stays what it is, without its format.

    A named index becomes a column. Categories become their values.

    Raises:
        InputError: for a column that occurs twice or holds values of several kinds.
    """
    from datasets import Dataset

    if len(table) == 0:
        raise InputError(f"--{argument}: the {type(table).__name__} has no rows")
    if isinstance(table, Dataset):
        return table.with_format(None)
    named = [name for name in table.index.names if name is not None and name not in table.columns]
    unnamed = [name for name in table.index.names if name not in named]
    table = table.droplevel(unnamed) if named and unnamed else table
    table = table.reset_index(drop=not named)
    columns = [str(name) for name in table.columns]
    twice = [name for name in columns if columns.count(name) > 1]
    if twice:
        raise InputError(f"--{argument}: column {twice[0]!r} occurs twice")
    table.columns = columns
    categories = [name for name in columns if hasattr(table[name], "cat")]
    table = table.astype(dict.fromkeys(categories, object))
    try:
        return Dataset.from_pandas(table, preserve_index=False)
    except (ValueError, TypeError, NotImplementedError) as error:  # of pyarrow
        reason = " ".join(" ".join(map(str, error.args)).split())
        raise InputError(
            f"--{argument}: {reason}; make the values of the column all text, or all numbers"
        ) from error


# ---------------------------------------------------------------------------- own classes


@dataclass(frozen=True)
class Hooks:
    """What only Python can give.

    Attributes:
        trainer_class: takes the place of the script's Trainer.
        callbacks: of the Trainer: instances, which all models of a run share, or classes, of which
            each model gets one.
        models: trained models by their name in the run, where they are to be kept; else None.
    """

    trainer_class: Any = None
    callbacks: list[Any] = field(default_factory=list)
    models: dict[str, Any] | None = field(default=None, compare=False)

    @classmethod
    def take(cls, arguments: dict[str, Any], trainer_class: type) -> "Hooks":
        """Take trainer_class, callbacks and keep_model out of `arguments`.

        Args:
            trainer_class: the script's own.

        Raises:
            InputError: for a class that does not derive from it, and for what is no callback.
        """
        own = arguments.pop("trainer_class", None) or trainer_class
        if not (isinstance(own, type) and issubclass(own, trainer_class)):
            base = f"{trainer_class.__module__}.{trainer_class.__name__}"
            raise InputError(f"trainer_class: derive a class from {base} and give the class itself")
        callbacks = arguments.pop("callbacks", None) or ()
        callbacks = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
        for callback in callbacks:
            if not hasattr(callback, "on_train_begin"):
                raise InputError(
                    f"callbacks: {describe(callback)}; give TrainerCallbacks of transformers"
                )
        keep = arguments.pop("keep_model", False)
        if not isinstance(keep, bool):
            raise InputError(f"keep_model: {keep!r} is neither True nor False")
        return cls(own, [*callbacks], {} if keep else None)

    def keep(self, name: str, trainer: Any) -> None:
        """Keep a trainer's model on the CPU, if that was asked for."""
        if self.models is not None:
            self.models[name] = trainer.accelerator.unwrap_model(trainer.model).cpu().eval()
