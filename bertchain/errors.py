"""The error for what a user can mend, and checks of arguments that raise it."""

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LONGEST = 400  # characters that are passed on of what a library says


class InputError(ValueError):
    """A mistake that the user can mend; it names file, column, row or argument, and the fix."""

    def _render_traceback_(self) -> list[str]:
        """Lines that IPython shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


@contextmanager
def as_input_error(what: str = "", *more: type[Exception]) -> Iterator[None]:
    """Turn what a library or a helper raises about its input into one line for the user.

    Args:
        what: stands before the first line of the error: the argument or file that is wrong.
        more: further types; Exception where files of others are read, for what libraries raise of
            garbled ones is of any type.
    """
    usual = (ValueError, OSError, ImportError)
    try:
        yield
    except InputError:
        raise
    except (*usual, *more) as error:
        first_line = str(error).strip().split("\n")[0]
        if len(first_line) > LONGEST:  # transformers lists all architectures that it knows
            first_line = f"{first_line[:LONGEST]} ..."
        if not isinstance(error, usual):
            first_line = f"cannot be read ({type(error).__name__}: {first_line})"
        if "trust_remote_code" in str(error):  # of transformers
            first_line += "; if you trust its code, add --trust_remote_code true"
        raise InputError(f"{what}: {first_line}" if what else first_line) from error


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """Check an argument that takes one of a few words; None passes."""
    if value is not None and value not in choices:
        near = nearest(str(value), choices)
        raise InputError(f"--{name} {value} is not one of {', '.join(choices)}{near}")


def at_least(name: str, value: float | None, least: float) -> None:
    """Check an argument with a lower bound; None passes."""
    if value is not None and not value >= least:  # NaN is not either
        raise InputError(f"--{name} {value} is too small; use at least {least}")


def exclude(**given: Any) -> None:
    """Check arguments of which at most one may be given, that is not None, 0 or empty."""
    named = [f"--{name}" for name, value in given.items() if value]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other")


def share(name: str, value: float) -> None:
    """Check an argument that lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise InputError(f"--{name} {value} must lie between 0 and 1")


LEAST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
}
SEEDS = ("seed", "data_seed", "seeds")  # numpy takes 32 bits


def check_numbers(values: dict[str, Any]) -> None:
    """Check numbers of which no use can be made: NaN, infinity, a seed below 0.

    Raises:
        InputError: naming the argument.
    """
    for name, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            endless = name == "max_grad_norm" and number == math.inf  # clips nothing
            if not (math.isfinite(number) or endless):
                raise InputError(f"--{name} {number} is not a finite number")
            at_least(name, number, LEAST.get(name, -math.inf))
            if name in SEEDS and not 0 <= number < 2**32:
                raise InputError(f"--{name} {number} must be at least 0 and below 2^32")


def nearest(word: str, words: Sequence[str]) -> str:
    """Say which of some words comes near a mistyped one; empty if none does."""
    found = difflib.get_close_matches(word, words, n=1)
    return f" (did you mean {found[0]}?)" if found else ""
