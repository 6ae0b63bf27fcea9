"""Label cells of a table: reading them, and what a single value means."""

import math
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from bertchain.errors import InputError


def label_values(table: Dataset, columns: Sequence[str], delimiter: str | None) -> list[Any]:
    """Read the label of each row: a value, or a list of values.

    It is a list if there are several columns, the column holds lists, or `delimiter` splits it.
    """
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
    """Return whether a label is missing, or one of several columns; an empty list is an answer."""
    if isinstance(value, list):
        return bool(value) and any(map(is_missing, value))
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def require_labels(values: list[Any], source: str) -> None:
    """Check that every row has a label of text or numbers.

    Raises:
        InputError: naming `source` and row.
    """
    _refuse_objects(values, source)
    if not values:
        raise InputError(f"{source}: no rows")
    missing = [row for row, value in enumerate(values, 1) if is_missing(value)]
    if missing:
        raise InputError(
            f"{source}, row {missing[0]}: the label is missing "
            f"({len(missing)} of {len(values)} rows); fill it in or drop the row"
        )


def _refuse_objects(values: list[Any], source: str) -> None:
    for row, value in enumerate(values, 1):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict | bytes):
                kind = "bytes" if isinstance(item, bytes) else "an object"
                raise InputError(f"{source}, row {row}: the label is {kind}, not text or a number")


def to_number(value: Any) -> float | None:
    """Parse a value or its text as a finite number; None if it is none."""
    if isinstance(value, bool):
        return float(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def to_numbers(value: Any, source: str, row: int) -> list[float]:
    """Parse a label, or a list of them, as numbers.

    Raises:
        InputError: naming `source`, row and value, for what is not a number.
    """
    numbers = []
    for item in value if isinstance(value, list) else [value]:
        number = to_number(item)
        if number is None:
            raise InputError(f"{source}, row {row}: {item!r} is not a number (regression)")
        numbers.append(number)
    return numbers


def to_distribution(values: list[Any], source: str, row: int) -> list[float]:
    """Parse the soft labels of a row as probabilities; rounding may miss a sum of 1 by 0.01.

    Raises:
        InputError: naming `source` and row, for other numbers.
    """
    numbers = to_numbers(values, source, row)
    total = sum(numbers)
    if min(numbers) < 0 or abs(total - 1) > 0.01:
        raise InputError(
            f"{source}, row {row}: soft labels must be at least 0 and add up to 1, not {total:g}"
        )
    return [number / total for number in numbers]


def to_name(value: Any) -> str:
    """Name a label. 3, 3.0 and "3" have the same name: tables turn integers into either."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.endswith(".0") and value[:-2].lstrip("-").isdigit():
        return value[:-2]
    return str(value)


def is_zero_or_one(value: Any) -> bool:
    """Return whether a value or its text is 0 or 1."""
    return to_number(value) in (0.0, 1.0)


def infer_problem_type(values: list[Any], num_columns: int) -> str:
    """Infer the problem type from the labels of a table; see `LabelSpec.infer`."""
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
    """Order the names of the labels: as a ClassLabel has them, else by number or alphabet."""
    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    names = {to_name(item) for v in values for item in (v if isinstance(v, list) else [v])}
    if all(to_number(n) is not None for n in names):
        return tuple(sorted(names, key=lambda n: (to_number(n), n)))
    return tuple(sorted(names))
