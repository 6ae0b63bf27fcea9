"""Label cells of a table: reading them, and what a single value means."""

import ast
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from bertchain.errors import InputError

QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
LIST = re.compile(r"([\[({])(.*)[\])}]", re.DOTALL)  # of Python, also a tuple or a set, or of NumPy
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def label_values(table: Dataset, columns: Sequence[str], delimiter: str | None) -> list[Any]:
    """Read the label of each row: a value, or a list of values.

    It is a list if there are several columns, the column holds lists (or such text as "['a', 'b']",
    which a csv makes of them), or `delimiter` splits it. Blanks around a text do not count.

    Raises:
        InputError: for a column where only some rows are text of a list.
    """
    if len(columns) > 1:
        return [list(row) for row in zip(*(_stripped(table[c][:]) for c in columns), strict=True)]
    values = table[columns[0]][:]
    classes = class_label(table, columns[0])
    if classes is not None:
        lists = [value for value in values if isinstance(value, list)]
        if is_multi_hot(lists, classes.num_classes):
            return list(values)
        return [_class_names(value, classes) for value in values]
    values = parse_lists(_stripped(values))
    if delimiter is None or any(isinstance(value, list) for value in values):
        return values
    return [
        None if v is None else [part.strip() for part in str(v).split(delimiter) if part.strip()]
        for v in values
    ]


def class_label(table: Dataset, column: str) -> ClassLabel | None:
    """Find the ClassLabel of a column, or of the items of its lists; None where it has none."""
    feature = table.features[column]
    feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return feature if isinstance(feature, ClassLabel) else None


def _class_names(value: Any, classes: ClassLabel) -> Any:
    """Name a class number or a list of them; below 0 is missing."""
    if isinstance(value, list):
        return [_class_names(item, classes) for item in value]
    return None if value is None or value < 0 else classes.int2str(value)


def _stripped(values: Sequence[Any]) -> list[Any]:
    def strip(value: Any) -> Any:
        if isinstance(value, list):
            return [strip(item) for item in value]
        return value.strip() if isinstance(value, str) else value

    return [strip(value) for value in values]


def parse_lists(values: list[Any]) -> list[Any]:
    """Parse text of lists, such as "['a', 'b']", "[0, 1]" or NumPy's "[0 1]", where it can be
    nothing else; other values stay as they are.

    Names in brackets, such as [POS], are no lists. [0], [] and [a, b] are if all rows are.
    """
    parsed = [_parse_list(value) for value in values]
    sure = max((certain for _, certain in parsed), default=0)
    every = all(is_missing(v) or p[0] is not None for v, p in zip(values, parsed, strict=True))
    if sure < (1 if every else 2):
        return values
    return [v if items is None else items for v, (items, _) in zip(values, parsed, strict=True)]


def _parse_list(value: Any) -> tuple[list[Any] | None, int]:
    """Parse the text of a list.

    Returns:
        its items, or None; how sure it is one: 2 with quotes or several numbers, 1 where the rows
        beside it decide, else 0.
    """
    match = LIST.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None, 0
    inside = match[2].strip()
    commas = "," in re.sub(QUOTED, "", inside)
    item = rf"(?:{QUOTED}|[^\s\"']\S*)\s*"  # blanks between them, as in NumPy's text
    if commas:
        item = rf"(?:{QUOTED}|[^\s,\"'][^,]*)\s*(?:,\s*|$)"
    if not re.fullmatch(rf"(?:{item})*", inside):
        return None, 0
    tokens = [t.strip().removesuffix(",").rstrip() for t in re.findall(item, inside)]
    items = [_parse_item(token) for token in tokens]
    if any(token[0] in "\"'" for token in tokens):
        return items, 2
    if items and not any(isinstance(item, str) for item in items):
        return items, 2 if len(items) > 1 else 1
    return items, 1 if match[1] == "[" and (commas or not items) else 0


def _parse_item(token: str) -> Any:
    if token in ("None", "null", "nan"):
        return None
    try:
        return ast.literal_eval(token)
    except (ValueError, SyntaxError, RecursionError, MemoryError):  # a word without quotes
        return token


def is_multi_hot(values: Sequence[Any], length: int | None = None) -> bool:
    """Return whether all rows are lists of 0 and 1 of one length, a label for each position.

    Names of labels are no such lists: none occurs twice. Of two, 0 and 1 in this order may be
    either, so that another row must tell.

    Args:
        length: the length (at least 2); None: that of the first row.
    """
    if not values or not all(isinstance(value, list) for value in values):
        return False
    length = len(values[0]) if length is None else length
    if length < 2 or any(len(value) != length for value in values):
        return False
    rows = [[to_zero_or_one(item) for item in value] for value in values]
    return all(None not in row for row in rows) and any(row != [0.0, 1.0] for row in rows)


def refuse_odd_lists(values: list[Any], source: str, length: int | None = None) -> None:
    """Refuse lists that are neither names of labels nor a 0 or 1 for each label.

    Args:
        length: of the lists of training, where they are a 0 or 1 for each label.

    Raises:
        InputError: naming `source` and row, for lists of 0 and 1 of another length than the others,
            and for numbers with a fraction.
    """
    rows = [(row, value) for row, value in enumerate(values, 1) if isinstance(value, list)]
    for row, value in rows:
        fraction = next((n for n in value if isinstance(n, float) and n % 1), None)
        if fraction is not None:
            raise InputError(
                f"{source}, row {row}: the label is a list with {fraction:g}; give each number a "
                "column of its own (--label_column_name with several columns)"
            )
    zero_one = all(is_zero_or_one(item) for _, value in rows for item in value)
    repeated = any(len({*map(to_zero_or_one, value)}) < len(value) for _, value in rows)
    if not (zero_one and repeated) and length is None:
        return
    usual = length or Counter(len(value) for _, value in rows).most_common(1)[0][0]
    for row, value in rows:
        if len(value) != usual or not all(map(is_zero_or_one, value)):
            raise InputError(
                f"{source}, row {row}: the label is a list of {len(value)}, not a 0 or 1 for each "
                f"of {usual} labels as in other rows"
            )


def is_missing(value: Any) -> bool:
    """Return whether a label is missing, or one of several columns; an empty list is an answer."""
    if isinstance(value, list):
        return bool(value) and any(map(is_missing, value))
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def is_unlabelled(values: Sequence[Any], names: Sequence[str]) -> bool:
    """Return whether no row of a test table has a label: all are missing, an empty list, or -1.

    Args:
        names: the classes; -1 may be one of them.
    """
    items = [item for v in values for item in (v if isinstance(v, list) else [v])]
    hidden = "-1" not in names and all(to_number(item) == -1 for item in items)
    return hidden or all(map(is_missing, items))


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


def to_target(value: Any) -> float | None:
    """Parse a number of regression: also "3,5", as spreadsheets of many countries write it."""
    if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value):
        value = value.replace(",", ".")
    return to_number(value)


def refuse_thousands(values: list[Any], source: str) -> None:
    """Refuse numbers such as 1,234 where no other tells whether that is 1.234 or 1234.

    Raises:
        InputError: naming `source` and row.
    """
    first = None
    for row, value in enumerate(values, 1):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str) and DECIMAL_COMMA.fullmatch(item):
                if not THOUSANDS.fullmatch(item):
                    return
                first = first or (row, item)
    if first is not None:
        raise InputError(
            f"{source}, row {first[0]}: {first[1]!r} may be {first[1].replace(',', '.')} or "
            f"{first[1].replace(',', '')}; write the numbers with a decimal point"
        )


def to_numbers(value: Any, source: str, row: int) -> list[float]:
    """Parse a label, or a list of them, as numbers.

    Raises:
        InputError: naming `source`, row and value, for what is not a number.
    """
    numbers = []
    for item in value if isinstance(value, list) else [value]:
        number = to_target(item)
        if number is None:
            raise InputError(f"{source}, row {row}: {item!r} is not a number (regression)")
        numbers.append(number)
    return numbers


def to_distribution(values: list[Any], source: str, row: int) -> list[float]:
    """Parse the soft labels of a row as probabilities; rounding may miss a sum of 1 by 0.01.

    Raises:
        InputError: naming `source` and row, for other numbers.
    """
    numbers = [to_zero_or_one(value) for value in values]  # one-hot, also of True and False
    if None in numbers:
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


def are_shares(values: Sequence[Any], num_columns: int) -> bool:
    """Return whether labels are shares: numbers, of which one is a fraction.

    Those of a single column have to be from 0 to 1, for they may be names as well.
    """
    items = [to_target(item) for v in values for item in (v if isinstance(v, list) else [v])]
    if None in items or not any(n % 1 for n in items):
        return False
    return num_columns > 1 or all(0 <= n <= 1 for n in items)


def to_zero_or_one(value: Any) -> float | None:
    """Parse 0, 1, False or True, or the text of one, as 0.0 or 1.0; None if it is none."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return float(value.lower() == "true")
    number = to_number(value)
    return number if number in (0.0, 1.0) else None


def is_zero_or_one(value: Any) -> bool:
    """Return whether a value or its text is 0 or 1, False or True."""
    return to_zero_or_one(value) is not None


def all_numbers(values: Sequence[Any]) -> bool:
    """Return whether each value, or each of a list, is a number or its text."""
    items = (item for v in values for item in (v if isinstance(v, list) else [v]))
    return all(to_target(item) is not None for item in items)


def infer_problem_type(values: list[Any], num_columns: int) -> str:
    """Infer the problem type from the labels of a table; see `LabelSpec.infer`."""
    if num_columns > 1:
        zero_one = all(is_zero_or_one(v) for row in values for v in row)
        return "multi_label" if zero_one else "regression"
    if any(isinstance(v, list) for v in values):
        return "multi_label"
    if not all_numbers(values):
        return "single_label"
    return "single_label" if all(to_target(v).is_integer() for v in values) else "regression"


def label_names(table: Dataset, column: str, values: list[Any]) -> tuple[str, ...]:
    """Order the names of the labels: as a ClassLabel has them, else by number or alphabet.

    Lists of a 0 or 1 for each label have the numbers of the positions for names.
    """
    classes = class_label(table, column)
    if classes is not None:
        return tuple(classes.names)
    if is_multi_hot(values):
        return tuple(map(str, range(len(values[0]))))
    names = {to_name(item) for v in values for item in (v if isinstance(v, list) else [v])}
    if all(to_number(n) is not None for n in names):
        return tuple(sorted(names, key=lambda n: (to_number(n), n)))
    return tuple(sorted(names))
