"""What probes predicted of each row, and with which weights: files beside the scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertchain.arguments.probing import RunArguments
from bertchain.data.tasks import Task
from bertchain.probing.feature_files import write_index
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.scoreboard import Scoreboard, ScoreKey
from bertchain.runtime.files import atomic_write, write_csv

ROWS_AT_ONCE = 50_000


def write_rows(
    folder: Path,
    board: Scoreboard,
    task: Task,
    models: Sequence[ProbedModel],
    options: RunArguments,
) -> list[str]:
    """Write what belongs to single rows. Returns the splits of which predictions are written.

    rows.csv says which row of a table each row of the features is; an index of the features stands
    beside these; predictions_<split>.csv and probe_weights.npz are of the probes that the
    scoreboard keeps.
    """
    write_csv(
        folder / "rows.csv",
        pd.concat([pd.DataFrame(task.row_names(split)) for split in task.documents]),
    )
    for model in models:
        write_index(model.name, model.features, model.poolings)
    if options.save_weights:
        write_weights(folder / "probe_weights.npz", board)
    if options.save_predictions == "none":
        return []
    splits = [split for split in ("validation", "test") if split in task.documents]
    for split in splits:
        write_predictions(folder / f"predictions_{split}.csv", board, task, split)
    return splits


def write_predictions(path: Path, board: Scoreboard, task: Task, split: str) -> None:
    """Write predictions of a split, all rows for one probe after the other, in pieces.

    Columns are those of results.csv that name the probe, the row's id, of labelled words the number
    of the target, its label where it has one, and prediction, prob_<label> ... as run_finetune.py
    writes them.
    """
    names = task.row_names(split)
    del names["split"], names["row"]
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        header = True
        for key, kept in board.kept.items():
            values = kept.predictions.get(split, ())
            for start in range(0, len(values), ROWS_AT_ONCE):
                piece = slice(start, start + ROWS_AT_ONCE)
                of_rows = {name: column[piece] for name, column in names.items()}
                table = board.spec.prediction_table(
                    of_rows.pop("id"), values[piece], None, **key._asdict(), **of_rows
                )
                table.to_csv(file, index=False, header=header)
                header = False


def write_weights(path: Path, board: Scoreboard) -> None:
    """Write weights and biases by `weights_name`, for `numpy.load`."""
    arrays: dict[str, Any] = {
        weights_name(key, name): np.asarray(values)
        for key, kept in board.kept.items()
        for name, values in kept.weights.items()
    }
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def weights_name(key: ScoreKey, name: str) -> str:
    """Name weights by model, layer (of one alone), pooling and probe: base/4/mean/linear/weight."""
    layer = [] if key.layer is None else [str(key.layer)]
    return "/".join([key.model, *layer, key.token_pooling, key.probe, name])
