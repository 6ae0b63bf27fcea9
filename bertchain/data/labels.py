"""Labels: the problem type and the label map, settled once and carried in the model's config."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from datasets import ClassLabel, Dataset

from bertchain.errors import InputError
from bertchain.models.modeling import PROBLEM_TYPES, DocumentClassifierConfig


@dataclass(frozen=True)
class Thresholds:
    """Where a number becomes a decision.

    Attributes:
        kind: of `KINDS`.
        cuts: one a label (all equal for `global`); for `ordinal` one between each two grades.
        grades: of `ordinal`, ascending; empty otherwise.
    """

    kind: str
    cuts: tuple[float, ...]
    grades: tuple[float, ...] = ()

    def decide(self, predictions: np.ndarray) -> np.ndarray:
        """Probabilities [n, labels] -> 0/1 [n, labels]; values [n, 1] -> grades [n, 1].

        What equals a cut is above it.
        """
        if self.kind == "ordinal":
            places = np.searchsorted(np.asarray(self.cuts), predictions[:, 0], side="right")
            return np.asarray(self.grades)[places][:, None]
        return (predictions >= np.asarray(self.cuts)).astype(int)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "cuts": list(self.cuts), "grades": list(self.grades)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Thresholds":
        return cls(fields["kind"], tuple(fields["cuts"]), tuple(fields["grades"]))


@dataclass(frozen=True)
class LabelSpec:
    """What the labels are.

    Attributes:
        problem_type: single_label, multi_label or regression.
        names: the classes in the order of the model's outputs, or the regression targets.
        columns: the columns of a table that hold the labels.
        delimiter: splits a text label into several, or None.
        target_mean, target_scale: of each regression target in training; empty otherwise.
    """

    problem_type: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    delimiter: str | None = None
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()

    # -- where it comes from

    @classmethod
    def infer(
        cls,
        table: Dataset,
        source: str,
        columns: Sequence[str],
        problem_type: str | None = None,
        delimiter: str | None = None,
    ) -> "LabelSpec":
        """Settle the problem type and the label map from the training table.

        Several columns are multi_label if all values are 0 or 1, else regression; as single_label
        they hold probabilities (soft labels). In one column, lists or a delimiter mean multi_label,
        numbers with a fraction mean regression; all else is single_label.

        Raises:
            InputError: naming `source`, row and value, for missing or unfit labels.
        """
        require_columns(table, columns, source, "--label_column_name")
        values = label_values(table, columns, delimiter)
        require_labels(values, source)
        kind = problem_type or guess_problem_type(values, len(columns))
        if kind == "regression":
            targets = [to_numbers(v, source, row) for row, v in enumerate(values, 1)]
            return cls(kind, tuple(columns), tuple(columns)).fitted_to(targets)
        names = tuple(columns) if len(columns) > 1 else label_names(table, columns[0], values)
        if len(names) < 2:
            held = f"one label only ({names[0]!r})" if names else "no label"
            raise InputError(
                f"{source}: column {columns[0]!r} holds {held}; a classifier needs two"
            )
        if kind == "single_label" and len(columns) == 1 and isinstance(values[0], list):
            raise InputError(
                f"--problem_type single_label needs one label a row, not {' '.join(columns)}"
            )
        return cls(kind, names, tuple(columns), delimiter)

    @classmethod
    def from_config(
        cls, config: DocumentClassifierConfig, columns: Sequence[str], delimiter: str | None = None
    ) -> "LabelSpec":
        """The label map that a trained classifier carries."""
        kind = {v: k for k, v in PROBLEM_TYPES.items()}[config.problem_type]
        names = tuple(config.id2label[i] for i in range(config.num_labels))
        if kind == "single_label" and len(columns) > 1 and set(columns) != set(names):
            raise InputError(
                f"--label_column_name {' '.join(columns)}: the classifier's labels are "
                + " ".join(names)
            )
        if kind == "single_label" and len(columns) > 1:
            columns = names
        regression = kind == "regression"
        return cls(
            kind,
            names,
            tuple(columns),
            delimiter,
            tuple(config.target_mean) if regression else (),
            tuple(config.target_scale) if regression else (),
        )

    def fitted_to(self, labels: Sequence[Any]) -> "LabelSpec":
        """With the mean and scale of regression targets taken from these rows alone.

        Raises:
            InputError: for values whose squares are beyond what a number can hold.
        """
        if self.problem_type != "regression":
            return self
        targets = np.asarray(labels, dtype=float)
        with np.errstate(over="ignore"):
            scale = targets.std(axis=0)
        if not np.isfinite(scale).all():
            raise InputError(
                f"--label_column_name {' '.join(self.columns)}: values as large as "
                f"{np.abs(targets).max():.0e} cannot be standardised; divide them first"
            )
        scale[scale == 0] = 1.0
        return replace(
            self,
            target_mean=tuple(targets.mean(axis=0).tolist()),
            target_scale=tuple(scale.tolist()),
        )

    def config_fields(self) -> dict[str, Any]:
        """Fields of `DocumentClassifierConfig` that carry this spec."""
        fields = {
            "problem_type": PROBLEM_TYPES[self.problem_type],
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: i for i, name in enumerate(self.names)},
        }
        if self.problem_type == "regression":
            fields |= {"target_mean": self.target_mean, "target_scale": self.target_scale}
        return fields

    # -- table -> numbers

    def has_labels(self, table: Dataset) -> bool:
        """Whether a table (a test file, say) has the label columns, and not all empty."""
        if not set(self.columns) <= set(table.column_names):
            return False
        return any(not is_missing(v) for v in label_values(table, self.columns, self.delimiter))

    def encode(self, table: Dataset, source: str) -> list[int] | list[list[float]]:
        """Labels of each row: a class number, or a list of 0.0/1.0, probabilities or targets.

        Raises:
            InputError: naming `source`, row (from 1) and value, for a label that training lacks.
        """
        values = label_values(table, self.columns, self.delimiter)
        require_labels(values, source)
        rows = enumerate(values, 1)
        if self.problem_type == "regression":
            return [to_numbers(v, source, row) for row, v in rows]
        if self.problem_type == "multi_label" and len(self.columns) > 1:
            return [self._zeros_and_ones(v, source, row) for row, v in rows]
        if self.problem_type == "single_label" and len(self.columns) > 1:
            return [to_distribution(v, source, row) for row, v in rows]
        index = {name: i for i, name in enumerate(self.names)}
        if self.problem_type == "single_label":
            return [self._class_number(v, index, source, row) for row, v in rows]
        return [self._multi_hot(v, index, source, row) for row, v in rows]

    def _class_number(self, value: Any, index: dict[str, int], source: str, row: int) -> int:
        name = to_name(value)
        if name in index:
            return index[name]
        shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        raise InputError(
            f"{source}, row {row}: label {name!r} does not occur in training "
            f"({len(self.names)} labels: {shown})"
        )

    def _multi_hot(self, value: Any, index: dict[str, int], source: str, row: int) -> list[float]:
        hot = [0.0] * len(self.names)
        for item in value if isinstance(value, list) else [value]:
            hot[self._class_number(item, index, source, row)] = 1.0
        return hot

    def _zeros_and_ones(self, values: list[Any], source: str, row: int) -> list[float]:
        for column, value in zip(self.columns, values, strict=True):
            if not is_zero_or_one(value):
                raise InputError(
                    f"{source}, row {row}, column {column!r}: {value!r} is neither 0 nor 1; "
                    "say --problem_type regression if these are numbers to predict"
                )
        return [float(v) for v in values]

    def hard(self, labels: np.ndarray) -> np.ndarray:
        """Soft labels [n, classes] -> the likeliest class [n]; all else as it is."""
        soft = self.problem_type == "single_label" and labels.ndim == 2
        return labels.argmax(axis=1) if soft else labels

    # -- numbers -> table

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits [n, labels] -> probabilities; regression values stay as they are."""
        logits = logits.astype(np.float64)
        if self.problem_type == "regression":
            return logits
        if self.problem_type == "multi_label":
            return np.exp(-np.logaddexp(0, -logits))  # a sigmoid that does not overflow
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    @property
    def value_columns(self) -> list[str]:
        """The columns of a prediction table that hold the model's numbers."""
        if self.problem_type != "regression":
            return [f"prob_{name}" for name in self.names]
        if len(self.names) == 1:
            return ["prediction"]
        return [f"prediction_{name}" for name in self.names]

    def decide(self, probabilities: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
        """Probabilities [n, labels] -> decisions [n, labels]: 0/1; of regression values or grades.

        Without thresholds several labels are decided at 0.5.
        """
        if thresholds is not None:
            return thresholds.decide(probabilities)
        if self.problem_type == "regression":
            return probabilities
        if self.problem_type == "multi_label":
            return (probabilities >= 0.5).astype(int)
        return np.eye(len(self.names), dtype=int)[probabilities.argmax(axis=1)]

    def joined(self, decisions: np.ndarray) -> list[str] | list[float]:
        """Decisions [n, labels] -> the label of each row, several joined (delimiter, else "|")."""
        if self.problem_type == "regression":
            return decisions[:, 0].tolist()
        joint = self.delimiter or "|"
        return [
            joint.join(name for name, yes in zip(self.names, row, strict=True) if yes)
            for row in decisions
        ]

    def truth(self, labels: Sequence[Any]) -> np.ndarray:
        """Encoded labels -> [n, labels]: one-hot, 0/1, probabilities or targets."""
        array = np.asarray(labels)
        return np.eye(len(self.names), dtype=int)[array] if array.ndim == 1 else array

    def label_columns(self, labels: Sequence[Any]) -> dict[str, list]:
        """Encoded labels -> column label, or label_<target> of several targets."""
        truth = self.truth(labels)
        if self.problem_type == "regression" and len(self.names) > 1:
            return {f"label_{n}": c.tolist() for n, c in zip(self.names, truth.T, strict=True)}
        if self.problem_type == "single_label":
            truth = self.decide(truth)  # soft labels: the likeliest
        return {"label": self.joined(truth)}

    def prediction_table(
        self,
        ids: Sequence[str],
        probabilities: np.ndarray,
        thresholds: Thresholds | None = None,
        **columns: Any,
    ) -> pd.DataFrame:
        """id, prediction, prob_<label> ...; several targets: id, prediction_<target> ...

        Args:
            columns: more of them, after the id.
        """
        table: dict[str, Any] = {"id": ids, **columns}
        decisions = self.decide(probabilities, thresholds)
        if self.problem_type != "regression":
            table["prediction"] = self.joined(decisions)
        table |= dict(zip(self.value_columns, probabilities.T, strict=True))
        if self.problem_type == "regression" and thresholds is not None:
            table["grade"] = self.joined(decisions)
        return pd.DataFrame(table)


# ---------------------------------------------------------------- values


def require_columns(
    table: Dataset | dict[str, Any], columns: Iterable[str], source: str, argument: str
) -> None:
    names = getattr(table, "column_names", table)  # a streamed row is a dict
    for column in columns:
        if column not in names:
            there = ", ".join(names)
            raise InputError(f"{source}: no column {column!r} ({argument}); there are: {there}")


def label_values(table: Dataset, columns: Sequence[str], delimiter: str | None) -> list[Any]:
    """One value a row: a scalar, a list (a list column, a delimited text, or several columns)."""
    if len(columns) > 1:
        return [list(row) for row in zip(*(table[c][:] for c in columns), strict=True)]
    values = table[columns[0]][:]
    feature = table.features[columns[0]]
    if isinstance(feature, ClassLabel):
        return [None if v is None or v < 0 else feature.int2str(v) for v in values]
    if delimiter is None:
        return list(values)
    return [
        None if v is None else [part.strip() for part in str(v).split(delimiter) if part.strip()]
        for v in values
    ]


def is_missing(value: Any) -> bool:
    if isinstance(
        value, list
    ):  # an empty list is "no label", which is an answer; several columns need all
        return bool(value) and any(map(is_missing, value))
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def require_labels(values: list[Any], source: str) -> None:
    refuse_objects(values, source)
    if not values:
        raise InputError(f"{source}: no rows")
    missing = [row for row, value in enumerate(values, 1) if is_missing(value)]
    if missing:
        raise InputError(
            f"{source}, row {missing[0]}: the label is missing "
            f"({len(missing)} of {len(values)} rows); fill it in or drop the row"
        )


def refuse_objects(values: list[Any], source: str) -> None:
    for row, value in enumerate(values, 1):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | bytes):
                kind = "bytes" if isinstance(item, bytes) else "an object"
                raise InputError(f"{source}, row {row}: the label is {kind}, not text or a number")


def to_number(value: Any) -> float | None:
    """The number that a value or its text stands for, or None."""
    if isinstance(value, bool):
        return float(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def to_numbers(value: Any, source: str, row: int) -> list[float]:
    numbers = []
    for item in value if isinstance(value, list) else [value]:
        number = to_number(item)
        if number is None:
            raise InputError(f"{source}, row {row}: {item!r} is not a number (regression)")
        numbers.append(number)
    return numbers


def to_distribution(values: list[Any], source: str, row: int) -> list[float]:
    """Soft labels of a row; they may miss a sum of 1 by rounding."""
    numbers = to_numbers(values, source, row)
    total = sum(numbers)
    if min(numbers) < 0 or abs(total - 1) > 0.01:
        raise InputError(
            f"{source}, row {row}: soft labels must be at least 0 and add up to 1, not {total:g}"
        )
    return [number / total for number in numbers]


def to_name(value: Any) -> str:
    """The label's name. 3, 3.0 and "3" are the same label: tables turn integers into either."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.endswith(".0") and value[:-2].lstrip("-").isdigit():
        return value[:-2]
    return str(value)


def is_zero_or_one(value: Any) -> bool:
    return to_number(value) in (0.0, 1.0)


def guess_problem_type(values: list[Any], num_columns: int) -> str:
    if num_columns > 1:
        zero_one = all(is_zero_or_one(v) for row in values for v in row)
        return "multi_label" if zero_one else "regression"
    if any(isinstance(v, list) for v in values):
        return "multi_label"
    numbers = [to_number(v) for v in values]
    if any(n is None for n in numbers):
        return "single_label"
    return "single_label" if all(n.is_integer() for n in numbers) else "regression"


def label_names(table: Dataset, column: str, values: list[Any]) -> tuple[str, ...]:
    """Names in the order of a ClassLabel feature, else numbers by value, else alphabetical."""
    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    names = {to_name(item) for v in values for item in (v if isinstance(v, list) else [v])}
    if all(to_number(n) is not None for n in names):
        return tuple(sorted(names, key=lambda n: (to_number(n), n)))
    return tuple(sorted(names))
