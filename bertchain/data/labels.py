"""Labels: the problem type and the label map, inferred once and carried in the model's config."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import expit

from bertchain.data.label_values import (
    all_numbers,
    are_shares,
    infer_problem_type,
    is_multi_hot,
    is_unlabelled,
    label_names,
    label_values,
    refuse_odd_lists,
    refuse_thousands,
    require_labels,
    to_distribution,
    to_name,
    to_number,
    to_numbers,
    to_target,
    to_zero_or_one,
)
from bertchain.data.tables import require_columns
from bertchain.errors import InputError
from bertchain.models.modeling import PROBLEM_TYPES, DocumentClassifierConfig


@dataclass(frozen=True)
class Thresholds:
    """Thresholds that turn probabilities or values into decisions.

    Attributes:
        kind: a key of `competition.thresholds.KINDS`.
        cuts: the threshold of each label (all equal for `global`); for `ordinal` those between
            neighbouring grades.
        grades: the values of `ordinal`, ascending; empty otherwise.
    """

    kind: str
    cuts: tuple[float, ...]
    grades: tuple[float, ...] = ()

    def decide(self, predictions: np.ndarray) -> np.ndarray:
        """Turn probabilities [n, labels] into 0/1 [n, labels], or values [n, 1] into grades [n, 1].

        A number that equals a threshold counts as above it.
        """
        if self.kind == "ordinal":
            places = np.searchsorted(np.asarray(self.cuts), predictions[:, 0], side="right")
            return np.asarray(self.grades)[places][:, None]
        return (predictions >= np.asarray(self.cuts)).astype(int)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "cuts": list(self.cuts), "grades": list(self.grades)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Thresholds":
        """Read what `to_dict` gave. Raises KeyError, TypeError or ValueError for anything else."""
        cuts, grades = tuple(fields["cuts"]), tuple(fields["grades"])
        if not all(isinstance(number, int | float) for number in cuts + grades):
            raise ValueError("its cuts and grades are no numbers")
        return cls(fields["kind"], cuts, grades)


@dataclass(frozen=True)
class LabelSpec:
    """Problem type and label map: how table cells become numbers, and the numbers a table again.

    Attributes:
        problem_type: single_label, multi_label or regression.
        names: the classes in the order of the model's outputs, or the regression targets.
        columns: the columns of a table that hold the labels.
        delimiter: splits a text label into several, or None.
        target_mean, target_scale: mean and standard deviation of each regression target in
            training; empty otherwise.
        at_least_one: whether a row of multi_label without a label above its threshold gets the
            likeliest.
        soft: whether labels of multi_label are numbers from 0 to 1, a column for each.
        multi_hot: whether the label of a row is a list with a 0 or 1 for each name; None: the table
            tells.
    """

    problem_type: str
    names: tuple[str, ...]
    columns: tuple[str, ...]
    delimiter: str | None = None
    target_mean: tuple[float, ...] = ()
    target_scale: tuple[float, ...] = ()
    at_least_one: bool = False
    multi_hot: bool | None = field(default=None, compare=False)
    soft: bool = field(default=False, compare=False)

    # -- built from a table or a config

    @classmethod
    def infer(
        cls,
        table: Dataset,
        source: str,
        columns: Sequence[str],
        problem_type: str | None = None,
        delimiter: str | None = None,
    ) -> "LabelSpec":
        """Infer the problem type and the label map from the training table.

        Several columns are multi_label if all values are 0 or 1, else regression; as single_label
        they hold probabilities (soft labels), as multi_label a number from 0 to 1 for each label,
        which may be a single one. In one column, lists or a delimiter mean multi_label,
        numbers with a fraction mean regression; all else is single_label. Lists of 0 and 1 of one
        length have a label for each position, other lists hold names.

        Raises:
            InputError: naming `source`, row and value, for missing or unfit labels.
        """
        require_columns(table, columns, source, "--label_column_name")
        values = label_values(table, columns, delimiter)
        require_labels(values, source)
        kind = problem_type or infer_problem_type(values, len(columns))
        lists = len(columns) == 1 and any(isinstance(v, list) for v in values)
        if lists:
            refuse_odd_lists(values, source)
        if kind != "multi_label" and lists:
            raise InputError(
                f"--problem_type {kind} needs one label a row; {source}, column {columns[0]!r} "
                "holds lists"
            )
        if kind == "regression" or (problem_type is None and all_numbers(values)):
            refuse_thousands(values, source)
        if kind == "regression":
            targets = [to_numbers(v, source, row) for row, v in enumerate(values, 1)]
            return cls(kind, tuple(columns), tuple(columns)).fitted_to(targets)
        soft = problem_type == "multi_label" and not lists and are_shares(values, len(columns))
        own = len(columns) > 1 or soft
        names = tuple(columns) if own else label_names(table, columns[0], values)
        if len(names) < 2 and not soft:
            held = f"one label only ({names[0]!r})" if names else "no label"
            raise InputError(
                f"{source}: column {columns[0]!r} holds {held}; a classifier needs two"
            )
        hot = is_multi_hot(values) if lists else None
        return cls(kind, names, tuple(columns), delimiter, multi_hot=hot, soft=soft)

    @classmethod
    def from_config(
        cls, config: DocumentClassifierConfig, columns: Sequence[str], delimiter: str | None = None
    ) -> "LabelSpec":
        """Read the label map that a trained classifier carries.

        Raises:
            InputError: for several label columns whose names are not the classifier's labels.
        """
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
        soft = kind == "multi_label" and tuple(columns) == names  # may be: no table tells
        return cls(
            kind,
            names,
            tuple(columns),
            delimiter,
            tuple(config.target_mean) if regression else (),
            tuple(config.target_scale) if regression else (),
            soft=soft,
        )

    def fitted_to(self, labels: Sequence[Any]) -> "LabelSpec":
        """Take mean and scale of regression targets from encoded labels; else return itself.

        Raises:
            InputError: for values too large to be squared.
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
        """Return whether a table (a test file, say) has the label columns, not all empty or -1."""
        if not set(self.columns) <= set(table.column_names):
            return False
        values = label_values(table, self.columns, self.delimiter)
        return not is_unlabelled(values, self.names)

    def encode(self, table: Dataset, source: str) -> list[int] | list[list[float]]:
        """Turn the label of each row into a class number or a list of numbers.

        Lists hold 0.0/1.0 or, soft, numbers between (multi_label), probabilities (soft labels of
        single_label) or targets (regression).

        Raises:
            InputError: naming `source`, row (from 1) and value, for a label that training lacks.
        """
        require_columns(table, self.columns, source, "--label_column_name")
        values = label_values(table, self.columns, self.delimiter)
        require_labels(values, source)
        rows = enumerate(values, 1)
        if self.problem_type == "regression":
            return [to_numbers(v, source, row) for row, v in rows]
        if self.soft:
            return [self._shares(v, source, row) for row, v in rows]
        if self.problem_type == "multi_label" and len(self.columns) > 1:
            return [self._zeros_and_ones(v, source, row) for row, v in rows]
        if self.problem_type == "single_label" and len(self.columns) > 1:
            return [to_distribution(v, source, row) for row, v in rows]
        index = {name: i for i, name in enumerate(self.names)}
        if self.problem_type == "single_label":
            return [self._class_number(v, index, source, row) for row, v in rows]
        by_place = self.multi_hot
        if by_place is None:
            by_place = is_multi_hot(values, len(self.names))
        refuse_odd_lists(values, source, len(self.names) if by_place else None)
        if by_place:
            return [[to_zero_or_one(item) for item in value] for value in values]
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
        numbers = [to_zero_or_one(value) for value in values]
        for column, value, number in zip(self.columns, values, numbers, strict=True):
            if number is None:
                raise InputError(
                    f"{source}, row {row}, column {column!r}: {value!r} is neither 0 nor 1; "
                    "say --problem_type regression if these are numbers to predict"
                )
        return numbers

    def _shares(self, values: Any, source: str, row: int) -> list[float]:
        values = values if isinstance(values, list) else [values]
        numbers = [to_zero_or_one(value) for value in values]  # also of True and False
        numbers = [to_target(v) if n is None else n for v, n in zip(values, numbers, strict=True)]
        for column, value, number in zip(self.columns, values, numbers, strict=True):
            if number is None or not 0 <= number <= 1:
                raise InputError(
                    f"{source}, row {row}, column {column!r}: {value!r} is not a number from 0 to "
                    "1; say --problem_type regression if these are numbers to predict"
                )
        return numbers

    def hard_labels(self, labels: np.ndarray) -> np.ndarray:
        """Replace soft labels [n, classes] by the likeliest class [n], those of multi_label by 0 or
        1; leave others as they are."""
        if self.soft:
            return (labels >= 0.5).astype(float)
        soft = self.problem_type == "single_label" and labels.ndim == 2
        return labels.argmax(axis=1) if soft else labels

    def require_grades(self, what: str) -> None:
        """Raises InputError, naming what needs it, unless the classes are numbers that rise."""
        numbers = [to_number(name) for name in self.names]
        if self.problem_type != "single_label" or None in numbers or numbers != sorted(numbers):
            raise InputError(
                f"{what} needs grades: one label a row, whose names are numbers; here are "
                f"{self.problem_type} labels: {', '.join(self.names[:6])}"
            )

    # -- numbers -> table

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Turn logits [n, labels] into probabilities; regression values stay as they are."""
        logits = logits.astype(np.float64)  # a copy, changed in place: there may be 10^8
        if self.problem_type == "regression":
            return logits
        if self.problem_type == "multi_label":
            return expit(logits, out=logits)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        return np.divide(logits, logits.sum(axis=1, keepdims=True), out=logits)

    @property
    def value_columns(self) -> list[str]:
        """The columns of a prediction table that hold the model's numbers."""
        if self.problem_type != "regression":
            return [f"prob_{name}" for name in self.names]
        if len(self.names) == 1:
            return ["prediction"]
        return [f"prediction_{name}" for name in self.names]

    def decide(self, probabilities: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
        """Turn probabilities [n, labels] into decisions [n, labels]: 0/1, or values or grades.

        Without thresholds multi_label decides at 0.5 and single_label for the likeliest class.
        """
        if self.problem_type == "regression" and thresholds is None:
            return probabilities
        if self.problem_type == "single_label":
            return np.eye(len(self.names), dtype=int)[probabilities.argmax(axis=1)]
        halves = Thresholds("global", (0.5,) * len(self.names))
        decisions = (thresholds or halves).decide(probabilities)
        if self.at_least_one:
            empty = np.flatnonzero(~decisions.any(axis=1))
            decisions[empty, probabilities[empty].argmax(axis=1)] = 1
        return decisions

    def decode(self, decisions: np.ndarray) -> list[str] | list[float]:
        """Turn decisions [n, labels] into the label of each row, as it stands in a table.

        Several labels are joined by the delimiter, else by "|".
        """
        if self.problem_type == "regression":
            return decisions[:, 0].tolist()
        delimiter = self.delimiter or "|"
        return [delimiter.join(self.names[k] for k in np.flatnonzero(row)) for row in decisions]

    def label_matrix(self, labels: Sequence[Any]) -> np.ndarray:
        """Encoded labels as a matrix [n, labels]: one-hot, 0/1, probabilities or targets."""
        array = np.asarray(labels)
        return np.eye(len(self.names), dtype=int)[array] if array.ndim == 1 else array

    def label_columns(self, labels: Sequence[Any]) -> dict[str, list]:
        """Encoded labels as columns of a table: label, or label_<target> of several targets."""
        if np.ndim(labels) == 1:
            return {"label": [self.names[k] for k in labels]}
        matrix = self.label_matrix(labels)
        if self.problem_type == "regression" and len(self.names) > 1:
            return {f"label_{n}": c.tolist() for n, c in zip(self.names, matrix.T, strict=True)}
        if self.problem_type == "single_label":
            matrix = self.decide(matrix)  # soft labels: the likeliest
        elif self.soft:
            matrix = self.hard_labels(matrix)
        return {"label": self.decode(matrix)}

    def prediction_table(
        self,
        ids: Sequence[str],
        probabilities: np.ndarray,
        thresholds: Thresholds | None = None,
        **columns: Any,
    ) -> pd.DataFrame:
        """Build a table id, prediction, prob_<label> ...

        Regression: id, prediction (of several targets prediction_<target> ...) and, with
        thresholds, grade.

        Args:
            probabilities: [n, labels]; for regression values.
            columns: more columns, after the id.
        """
        table: dict[str, Any] = {"id": ids, **columns}
        decisions = self.decide(probabilities, thresholds)
        if self.problem_type != "regression":
            table["prediction"] = self.decode(decisions)
        table |= dict(zip(self.value_columns, probabilities.T, strict=True))
        if self.problem_type == "regression" and thresholds is not None:
            table["grade"] = self.decode(decisions)
        return pd.DataFrame(table)
