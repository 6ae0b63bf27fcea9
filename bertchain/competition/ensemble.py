"""Predictions of several models -> one table: in row order, out of the folds, averaged."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from bertchain.competition.run_folder import Part
from bertchain.competition.thresholds import KINDS, fit_and_judge, score
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError
from bertchain.metrics import is_score
from bertchain.runtime.files import write_csv, write_json
from bertchain.training.prediction import read_predictions, write_predictions

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- many tables -> one


def out_of_folds(
    folder: Path, parts: Sequence[Part], spec: LabelSpec, ids: Sequence[str], folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each row as predicted by the models that did not train on it, averaged over seeds.

    Args:
        parts: models whose predictions_validation.csv are in their folders.
        ids, folds: of all training rows.

    Returns:
        row numbers [m], ascending, of the rows whose fold is among the parts; probabilities
        [m, labels].
    """
    place = {name: row for row, name in enumerate(ids)}
    total = np.zeros((len(ids), len(spec.names)))
    count = np.zeros(len(ids), dtype=int)
    for part in parts:
        own, probabilities = read_predictions(
            folder / part.name / "predictions_validation.csv", spec
        )
        rows = np.array([place[name] for name in own])
        if (folds[rows] != part.fold).any() or len(rows) != (folds == part.fold).sum():
            raise InputError(
                f"{folder / part.name}: its predictions are of other rows than fold {part.fold}; "
                "choose another --output_dir"
            )
        total[rows] += probabilities
        count[rows] += 1
    rows = np.flatnonzero(count)
    return rows, total[rows] / count[rows, None]


def averaged(
    folder: Path, parts: Sequence[Part], split: str, spec: LabelSpec
) -> tuple[list[str], np.ndarray]:
    """The mean over models of their predictions_<split>.csv: ids, probabilities [n, labels]."""
    total, ids = None, []
    for part in parts:
        path = folder / part.name / f"predictions_{split}.csv"
        own, probabilities = read_predictions(path, spec)
        if total is None:
            total, ids = np.zeros_like(probabilities), own
        if own != ids:
            raise InputError(f"{path}: its rows differ from those of the other models")
        total += probabilities
    return ids, total / len(parts)


def by_fold(
    folder: Path, parts: Sequence[Part], split: str, spec: LabelSpec
) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """For each fold its number, ids and probabilities, averaged over seeds."""
    for fold in sorted({part.fold for part in parts}):
        yield fold, *averaged(folder, [p for p in parts if p.fold == fold], split, spec)


# ---------------------------------------------------------------- what a run of several leaves


def combine(
    folder: Path,
    parts: Sequence[Part],
    spec: LabelSpec,
    rows: dict[str, Dataset],
    folds: np.ndarray | None,
    scores_of: Callable[[np.ndarray, Sequence], dict[str, float]],
    fit_thresholds: str | None = None,
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Write predictions out of the folds and averages over models, and parts.csv.

    Args:
        rows: documents by split. With folds train is predicted out of them; without, validation
            is averaged, as test is in any case.
        fit_thresholds: of `thresholds.KINDS`, on the rows out of the folds.
        thresholds: those of an earlier run, to predict with.

    Returns:
        scores: oof_... over all rows, eval_..._mean and _sd over models, test_... of the average.
    """
    results: dict[str, Any] = {"models": len(parts)}
    if "train" in rows:
        results |= write_parts(folder, parts)
    if folds is not None:
        train = rows["train"]
        ids = train["id"][:]
        own, probabilities = out_of_folds(folder, parts, spec, ids, folds)
        truth = np.asarray(train["labels"][:])[own]
        results |= {"oof_rows": len(own), "train_rows": len(train)}
        results |= prefixed("oof", scores_of(probabilities, truth))
        if fit_thresholds and len(own) == len(train):
            fitted = fit_and_judge(fit_thresholds, probabilities, spec.truth(truth), folds[own])
            thresholds, gains = fitted
            results |= gains
        elif fit_thresholds:
            logger.warning("--fit_thresholds waits until all folds are trained")
        columns = {"fold": folds[own], **spec.label_columns(truth)}
        path = folder / "predictions_oof.csv"
        own_ids = [ids[row] for row in own]
        write_predictions(path, spec, own_ids, probabilities, thresholds, **columns)
    write_thresholds(folder, thresholds)
    for split, prefix in (("validation", "eval"), ("test", "test")):
        if split not in rows or (split == "validation" and folds is not None):
            continue
        ids, probabilities = averaged(folder, parts, split, spec)
        write_predictions(folder / f"predictions_{split}.csv", spec, ids, probabilities, thresholds)
        if "labels" in rows[split].column_names:
            labels = np.asarray(rows[split]["labels"][:])
            results |= prefixed(prefix, scores_of(probabilities, labels))
            if thresholds is not None:
                name = f"{prefix}_{KINDS[thresholds.kind][1]}_fitted"
                decisions = thresholds.decide(probabilities)
                results[name] = score(thresholds.kind, decisions, spec.truth(labels))
    if folds is not None and "test" in rows:
        write_by_fold(folder, parts, spec)
    return results


def prefixed(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def write_parts(folder: Path, parts: Sequence[Part]) -> dict[str, float]:
    """parts.csv, a model a row; the mean and standard deviation of their validation scores."""
    rows = []
    for part in parts:
        content = (folder / part.name / "all_results.json").read_text(encoding="utf-8")
        scores = {k: v for k, v in json.loads(content).items() if is_score(k)}
        rows.append({"model": part.name, "fold": part.fold, "seed": part.seed, **scores})
    table = pd.DataFrame(rows)
    write_csv(folder / "parts.csv", table)
    spread = {}
    for name in (name for name in table if name.startswith("eval_")):
        values = table[name].astype(float)
        spread[f"{name}_mean"] = float(values.mean())
        spread[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return spread


def write_by_fold(folder: Path, parts: Sequence[Part], spec: LabelSpec) -> None:
    """predictions_test_by_fold.csv: what --pseudo_label_file of another run takes."""
    tables = [
        spec.prediction_table(ids, probabilities, fold=[fold] * len(ids))
        for fold, ids, probabilities in by_fold(folder, parts, "test", spec)
    ]
    write_csv(folder / "predictions_test_by_fold.csv", pd.concat(tables))


def read_thresholds(folder: str | os.PathLike) -> Thresholds | None:
    file = Path(folder) / "thresholds.json"
    if not file.is_file():
        return None
    return Thresholds.from_dict(json.loads(file.read_text(encoding="utf-8")))


def write_thresholds(folder: Path, thresholds: Thresholds | None) -> None:
    """thresholds.json; one of an earlier command does not stay."""
    if thresholds is None:
        (folder / "thresholds.json").unlink(missing_ok=True)
    else:
        write_json(folder / "thresholds.json", thresholds.to_dict())
