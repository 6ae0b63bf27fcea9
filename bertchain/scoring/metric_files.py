"""A score of the user's own: a function in a Python file, named FILE.py:FUNCTION.

    def score(labels, predictions) -> float: ...
    score.greater_is_better = True

Labels are class numbers [n] (in the order of the columns prob_...), 0/1 [n, labels] or numbers
[n, targets], of a single one [n]; predictions are probabilities [n, classes] or of the shape of the
labels. Where decisions are scored (thresholds), they take the place of the probabilities.
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bertchain.errors import InputError

NAMED = re.compile(r"(.+\.py):([A-Za-z_]\w*)")


@dataclass(frozen=True)
class FileMetric:
    """A function that scores predictions.

    Attributes:
        described: FILE.py:FUNCTION.
        greater_is_better: None: neither the file nor the user says it.
    """

    described: str
    function: Callable[..., Any]
    greater_is_better: bool | None = None

    @property
    def name(self) -> str:
        """The name of the score."""
        return self.described.rpartition(":")[2]

    def __call__(self, labels: np.ndarray, predictions: np.ndarray) -> float:
        """Score predictions. Raises InputError where the function fails or gives no number."""
        given = [_plain(values) for values in (labels, predictions)]
        try:
            value = self.function(*given)
        except Exception as error:  # of any kind: the code is the user's
            raise InputError(f"--metric_file {self.described}: {_describe(error)}") from error
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"--metric_file {self.described} gives a {type(value).__name__}, not a number"
            ) from error


def _plain(values: np.ndarray) -> np.ndarray:
    """A copy, so that nothing is changed; one label or target as a vector [n]."""
    values = np.array(values)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def split_name(described: str) -> tuple[str, str] | None:
    """Split FILE.py:FUNCTION into path and function; None for anything else."""
    found = NAMED.fullmatch(described)
    return None if found is None else (found[1], found[2])


def load(described: str, greater_is_better: bool | None = None) -> FileMetric:
    """Run a file and take the function that it is named with.

    Args:
        greater_is_better: holds where the file does not say it, as an attribute of the function or
            a name of the file.

    Raises:
        InputError: naming the file, where it or the function is not there, or it fails.
    """
    parts, flag = split_name(described), f"--metric_file {described}"
    if parts is None:
        raise InputError(f"{flag}: write FILE.py:FUNCTION, as my_metric.py:score")
    path, name = parts
    if not Path(path).is_file():
        raise InputError(f"{flag}: no such file")
    content = Path(path).read_bytes()
    module = _modules.get(key := (os.path.realpath(path), hashlib.sha256(content).hexdigest()))
    if module is None:
        module = _modules[key] = _run(path, content, flag, f"metric_file_{len(_modules)}")
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{flag}: the file defines no function {name}")
    said = getattr(function, "greater_is_better", getattr(module, "greater_is_better", None))
    said = greater_is_better if said is None else said
    if said not in (True, False, None):
        raise InputError(f"{flag}: greater_is_better is {said!r}, neither True nor False")
    return FileMetric(described, function, said)


def of_run(given: Mapping[str, Any]) -> FileMetric | None:
    """Load --metric_file of arguments by name; None where it is not among them."""
    described = given.get("metric_file")
    return None if described is None else load(described, given.get("greater_is_better"))


_modules: dict[tuple[str, str], ModuleType] = {}  # by path and content: a file is run once


def _run(path: str, content: bytes, flag: str, name: str) -> ModuleType:
    """Run a file as a module, without a trace of it beside it."""
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = os.path.abspath(path)
    try:
        exec(compile(content, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise InputError(f"{flag}: {_describe(error)}") from error
    return module
