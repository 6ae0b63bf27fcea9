"""Predictions of a trained model: made in pieces, written and read as tables keyed by id."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
from datasets import Dataset
from transformers import EvalPrediction, Trainer

from bertchain.data.batching import longest_first
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.data.weights import weights_of
from bertchain.errors import InputError, as_input_error
from bertchain.metrics import is_score
from bertchain.runtime.files import atomic_write

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 50_000
BYTES_AT_ONCE = 2**23  # of a table that is read


def predict(
    trainer: Trainer, dataset: Dataset, split: str, spec: LabelSpec, folder: Path
) -> dict[str, float]:
    """Predict a split and write predictions_<split>.csv to `folder`, in row order.

    Labelled spans get one row each, with a column `target` (its number in the document). Rows go
    through the model in pieces, sorted by length: little padding, and memory that does not grow
    with the number of rows but for the logits [n, labels]. Only the main process writes.

    Args:
        split: validation or test.

    Returns:
        metrics with the prefix eval_ or test_: runtime, and scores where there are labels.
    """
    prefix = {"validation": "eval", "test": "test"}[split]
    compute, trainer.compute_metrics = trainer.compute_metrics, None  # all rows at once, below
    of_words = "token_positions" in dataset.column_names
    counts = [len(own) for own in dataset["token_positions"]] if of_words else [1] * len(dataset)
    ends = np.cumsum(counts)  # of the predictions of each row
    lengths = np.asarray(dataset["length"][:])
    logits = np.empty((ends[-1], len(spec.names)), dtype=np.float32)
    started = time.monotonic()
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        rows = start + longest_first(lengths[start : start + ROWS_AT_ONCE])
        found = trainer.predict(dataset.select(rows)).predictions
        if not of_words:
            logits[rows] = found
            continue
        for row, own in zip(rows, found, strict=True):  # [targets and padding, labels]
            logits[ends[row] - counts[row] : ends[row]] = own[: counts[row]]
    seconds = time.monotonic() - started
    trainer.compute_metrics = compute
    metrics = {"runtime": seconds, "samples_per_second": len(dataset) / seconds}
    if "labels" in dataset.column_names:
        labels = dataset["labels"][:]
        labels = np.concatenate(labels) if of_words else np.asarray(labels)
        weights = weights_of(dataset)
        own = {} if weights is None else {"weights": weights}
        metrics |= compute(EvalPrediction(predictions=logits, label_ids=labels), **own)
    if trainer.is_world_process_zero():
        probabilities, path = spec.probabilities(logits), folder / f"predictions_{split}.csv"
        ids, columns = dataset["id"][:], {}
        if of_words:
            ids = [name for name, count in zip(ids, counts, strict=True) for _ in range(count)]
            columns["target"] = np.concatenate([np.arange(count) for count in counts])
        write_predictions(path, spec, ids, probabilities, **columns)
    metrics = {f"{prefix}_{name}": value for name, value in metrics.items()}
    scores = {k: round(v, 4) for k, v in metrics.items() if is_score(k)}
    log = logger.getChild(split).info  # a notebook shows those of validation
    log("%s: %s", split, scores or f"{len(dataset)} rows predicted")
    return metrics


def write_predictions(
    path: str | os.PathLike,
    spec: LabelSpec,
    ids: Sequence[str],
    probabilities: np.ndarray,
    thresholds: Thresholds | None = None,
    **columns: Sequence,
) -> None:
    """Write a prediction table (see `LabelSpec.prediction_table`), in pieces.

    Args:
        ids: of n rows.
        probabilities: [n, labels].
        columns: further columns by name, after the id, each of n values.
    """
    empty = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for start in range(0, len(ids), ROWS_AT_ONCE):
            piece = slice(start, start + ROWS_AT_ONCE)
            more = {name: values[piece] for name, values in columns.items()}
            table = spec.prediction_table(ids[piece], probabilities[piece], thresholds, **more)
            table.to_csv(file, index=False, header=start == 0)
            if spec.problem_type == "multi_label":
                empty += int((table["prediction"] == "").sum())
    if empty:
        logger.warning(
            "%s: %d of %d rows get no label, for no probability reaches its threshold; "
            "--fit_thresholds fits thresholds, --at_least_one_label gives the likeliest label",
            Path(path).name,
            empty,
            len(ids),
        )


def read_predictions(path: str | os.PathLike, spec: LabelSpec) -> tuple[list[str], np.ndarray]:
    """Read what `write_predictions` wrote, to the last digit.

    Returns:
        ids; probabilities or values [n, labels].

    Raises:
        InputError: naming the file, if it is missing or lacks a column of the labels.
    """
    pieces = [*iter_predictions(path, spec)]
    ids = [name for own, _ in pieces for name in own]
    probabilities = np.empty((len(ids), len(spec.names)))
    start = 0
    for place, (own, found) in enumerate(pieces):
        probabilities[start : start + len(own)] = found
        start, pieces[place] = start + len(own), None  # not all is in memory twice
    return ids, probabilities


def iter_predictions(
    path: str | os.PathLike, spec: LabelSpec
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Read what `write_predictions` wrote, piece by piece.

    Yields:
        ids; probabilities or values [rows, labels]. Raises as `read_predictions`.
    """
    names = spec.value_columns
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    with as_input_error(str(path)):
        there = pd.read_csv(path, nrows=0).columns
    missing = [name for name in ("id", *names) if name not in there]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; it holds predictions of other labels")
    types = {"id": pa.string()} | dict.fromkeys(names, pa.float64())
    options = {
        "read_options": pa_csv.ReadOptions(block_size=BYTES_AT_ONCE),
        "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
        "convert_options": pa_csv.ConvertOptions(
            column_types=types, include_columns=["id", *names], strings_can_be_null=False
        ),
    }
    with as_input_error(str(path)), pa_csv.open_csv(path, **options) as reader:
        for batch in reader:
            numbers = [column.to_numpy(zero_copy_only=False) for column in batch.columns[1:]]
            yield batch.column(0).to_pylist(), np.stack(numbers, axis=1)


def read_written_table(
    path: str | os.PathLike, text: Sequence[str] = ("id", "label")
) -> pd.DataFrame:
    """Read a csv that one of the scripts wrote: ids and labels as text, numbers to the last digit.

    Args:
        text: columns that are read as text, where there are such.

    Raises:
        InputError: naming the file, if it is missing or cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    types = dict.fromkeys(text, pa.string())
    with as_input_error(str(path)):
        table = pa_csv.read_csv(
            path,
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
    return table.to_pandas()
