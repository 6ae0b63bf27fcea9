"""Predictions of several members -> out-of-fold predictions, averages, scores."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from bertchain.arguments.common import DataArguments, LabelArguments, SpanArguments, TextArguments
from bertchain.arguments.competition import FoldArguments, SubmissionArguments
from bertchain.cli import parse, read_arguments
from bertchain.competition.run_folder import Member, RunFolder
from bertchain.competition.thresholds import KINDS, fit_and_judge, scorer
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.data.splits import fold_columns, in_fold
from bertchain.data.tasks import Task, load_task
from bertchain.data.weights import weights_of
from bertchain.errors import InputError, as_input_error
from bertchain.metrics import is_score, score_function
from bertchain.runtime.distributed import broadcast, is_main_process
from bertchain.runtime.files import write_csv, write_json
from bertchain.scoring.metric_files import FileMetric, of_run
from bertchain.training.prediction import read_predictions, write_predictions

logger = logging.getLogger(__name__)

PARTS = 5  # of the validation rows of a run without folds
ScoreFunction = Callable[..., dict[str, float]]  # see `metrics.score_function`


# ---------------------------------------------------------------- many tables -> one


def out_of_fold(
    folder: Path, members: Sequence[Member], spec: LabelSpec, ids: Sequence[str], folds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Collect out-of-fold predictions, averaged over seeds.

    Args:
        folder: holds each member's folder with its predictions_validation.csv.
        members: those without a fold are trained on all rows, and left out.
        ids, folds: of all n training rows; folds as `Task.folds`.

    Returns:
        row numbers [m], ascending, of the rows whose fold is among the members; probabilities
        [m, labels].

    Raises:
        InputError: where a member's predictions are of other rows than its fold.
    """
    place = {name: row for row, name in enumerate(ids)}
    total = np.zeros((len(ids), len(spec.names)))
    count = np.zeros(len(ids), dtype=int)
    for member in (member for member in members if member.fold is not None):
        own, probabilities = read_predictions(
            folder / member.name / "predictions_validation.csv", spec
        )
        rows = np.array([place.get(name, -1) for name in own])
        if {*rows.tolist()} != {*np.flatnonzero(in_fold(folds, member.fold)).tolist()}:
            raise InputError(
                f"{folder / member.name}: its predictions are of other rows than fold "
                f"{member.fold}; choose another --output_dir"
            )
        total[rows] += probabilities
        count[rows] += 1
    rows = np.flatnonzero(count)
    return rows, total[rows] / count[rows, None]


def averaged(
    folder: Path, members: Sequence[Member], split: str, spec: LabelSpec, ids: Sequence[str]
) -> np.ndarray:
    """Average predictions_<split>.csv over members.

    Args:
        ids: of the n rows of the split, in their order.

    Returns:
        probabilities [n, labels].

    Raises:
        InputError: where a member's predictions are of other rows.
    """
    total = np.zeros((len(ids), len(spec.names)))
    for member in members:
        path = folder / member.name / f"predictions_{split}.csv"
        own, probabilities = read_predictions(path, spec)
        if own != list(ids):
            raise InputError(
                f"{path}: its predictions are of other rows than the {split} set; choose another "
                "--output_dir"
            )
        total += probabilities
    return total / len(members)


def by_fold(
    folder: Path, members: Sequence[Member], split: str, spec: LabelSpec, ids: Sequence[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield for each fold its number and probabilities [n, labels], averaged over seeds."""
    for fold in sorted({member.fold for member in members if member.fold is not None}):
        own = [member for member in members if member.fold == fold]
        yield fold, averaged(folder, own, split, spec, ids)


# ---------------------------------------------------------------- runs without folds


def read_rows(folder: Path) -> Task:
    """Read the rows again that a run without folds was trained on, validated on and predicts.

    Args:
        folder: its run_args.yaml names the tables.

    Raises:
        InputError: where they cannot be read.
    """
    groups = (DataArguments, TextArguments, LabelArguments, SpanArguments, FoldArguments)
    names = {field.name for group in groups for field in fields(group)}
    run = read_arguments(str(folder / "run_args.yaml"))
    *sources, folds, _ = parse(groups, {name: run[name] for name in names & {*run}})
    seed = run.get("seed", 42)
    share = run.get("validation_split", 0.0)
    task = load_task(*sources, seed=seed, checkpoint=str(folder))
    own = folds if "validation" not in task.documents else None
    return task.with_validation(share, seed, own)


def validated(task: Task, ids: Sequence[str], folder: Path) -> Dataset:
    """Select the rows of some ids that a run without folds validated on, in the order of the ids.

    Args:
        task: what its tables hold now; without a validation split its training rows are meant.
        folder: of the run, for messages.

    Raises:
        InputError: where an id is no longer there.
    """
    rows = task.documents.get("validation", task.documents.get("train"))
    place = {name: row for row, name in enumerate(rows["id"][:])}
    lost = [name for name in ids if name not in place]
    if lost:
        raise InputError(f"{folder}: its table has no validation row {lost[0]!r}; has it changed?")
    return rows.select([place[name] for name in ids])


def read_validation(folder: Path, spec: LabelSpec) -> pd.DataFrame:
    """Read the validation rows of a run without folds: id, label, and one of `PARTS` as the fold.

    Raises:
        InputError: where its table no longer holds the rows that it predicted.
    """
    ids, _ = read_predictions(folder / "predictions_validation.csv", spec)
    labels = np.asarray(validated(read_rows(folder), ids, folder)["labels"][:])
    parts = np.random.default_rng(0).permutation(len(ids)) % PARTS
    return pd.DataFrame({"id": ids, "fold": parts, **spec.label_columns(labels)})


# ---------------------------------------------------------------- what a run writes


def combine(
    run: RunFolder,
    task: Task,
    options: SubmissionArguments,
    extra_metrics: list[str],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write out-of-fold predictions, averages over the trained members, and members.csv.

    All processes must call this; only the main process reads and writes.

    Args:
        task: with folds the training rows are predicted out-of-fold; without folds predictions of
            the validation rows are averaged, as those of the test rows always are.
        given: arguments by name, of which --metric_file is what thresholds maximise.

    Returns:
        scores, in all processes: oof_... over all rows, eval_..._mean and _sd over members,
        test_... of the average.
    """
    members = run.trained()
    results = {}
    if is_main_process():
        metric = of_run(given or {})
        results = write_combined(run.folder, members, task, options, extra_metrics, metric)
    return broadcast(results)


def write_combined(
    folder: Path,
    members: Sequence[Member],
    task: Task,
    options: SubmissionArguments,
    extra_metrics: list[str],
    metric: FileMetric | None = None,
) -> dict[str, Any]:
    """Write the tables of a run; see `combine`. The main process calls this."""
    spec, results = task.spec, {"models": len(members)}
    thresholds = read_thresholds(Path(members[0].checkpoint).parent)  # of a run that predicts
    if task.has_training_rows:
        results |= write_members(folder, members)
        thresholds = None
    scores_of = score_function(spec, extra_metrics)
    if task.folds is not None:
        thresholds, scores = write_out_of_fold(
            folder, members, task, options.fit_thresholds, scores_of, metric
        )
        results |= scores
    write_thresholds(folder, thresholds)
    averages = ["test"] if task.folds is not None else ["validation", "test"]
    for split in averages:
        if split in task.documents:
            rows = task.documents[split]
            results |= write_average(folder, members, split, rows, spec, thresholds, scores_of)
            if thresholds is not None and "labels" in rows.column_names:
                results |= score_decisions(folder, split, rows, spec, thresholds, metric)
    if task.folds is not None and "test" in task.documents:
        write_by_fold(folder, members, spec, task.documents["test"]["id"][:])
    return results


def write_out_of_fold(
    folder: Path,
    members: Sequence[Member],
    task: Task,
    fit_thresholds: str | None,
    scores_of: ScoreFunction,
    metric: FileMetric | None = None,
) -> tuple[Thresholds | None, dict[str, float]]:
    """Write predictions_oof.csv.

    Args:
        fit_thresholds: one of `thresholds.KINDS`, fitted on these rows once all folds are trained;
            None: none.
        metric: what thresholds maximise; None: what is usual for their kind.

    Returns:
        the thresholds, or None; scores with the prefix oof_, and the number of their rows.
    """
    spec, train, thresholds = task.spec, task.documents["train"], None
    ids = train["id"][:]
    rows, probabilities = out_of_fold(folder, members, spec, ids, task.folds)
    truth, first = np.asarray(train["labels"][:])[rows], fold_columns(task.folds)["fold"][rows]
    results = {"oof_rows": len(rows), "train_rows": len(train)}
    results |= prefixed("oof", scores_of(probabilities, truth, weights_of(train.select(rows))))
    if fit_thresholds and len(rows) == len(train):
        targets = spec.label_matrix(spec.hard_labels(truth))
        thresholds, gains = fit_and_judge(fit_thresholds, probabilities, targets, first, metric)
        results |= gains
    elif fit_thresholds:
        logger.warning("--fit_thresholds waits until all folds are trained")
    columns = {"fold": first, **spec.label_columns(truth)}
    path, own_ids = folder / "predictions_oof.csv", [ids[row] for row in rows]
    write_predictions(path, spec, own_ids, probabilities, thresholds, **columns)
    return thresholds, results


def write_average(
    folder: Path,
    members: Sequence[Member],
    split: str,
    rows: Dataset,
    spec: LabelSpec,
    thresholds: Thresholds | None,
    scores_of: ScoreFunction,
) -> dict[str, float]:
    """Write predictions_<split>.csv, the mean over members. Returns scores, {} without labels."""
    ids = rows["id"][:]
    probabilities = averaged(folder, members, split, spec, ids)
    write_predictions(folder / f"predictions_{split}.csv", spec, ids, probabilities, thresholds)
    if "labels" not in rows.column_names:
        return {}
    prefix = {"validation": "eval", "test": "test"}[split]
    labels = np.asarray(rows["labels"][:])
    return prefixed(prefix, scores_of(probabilities, labels, weights_of(rows)))


def score_decisions(
    folder: Path,
    split: str,
    rows: Dataset,
    spec: LabelSpec,
    thresholds: Thresholds,
    metric: FileMetric | None,
) -> dict[str, float]:
    """Score what thresholds decide of predictions_<split>.csv, whose rows have labels."""
    prefix = {"validation": "eval", "test": "test"}[split]
    _, probabilities = read_predictions(folder / f"predictions_{split}.csv", spec)
    name, score_of = scorer(thresholds.kind, metric)
    labels = spec.label_matrix(spec.hard_labels(np.asarray(rows["labels"][:])))
    return {f"{prefix}_{name}_fitted": score_of(thresholds.decide(probabilities), labels)}


def write_folds(folder: Path, task: Task) -> None:
    """Write folds.csv, the fold of each training row: pseudo-labels are checked against it."""
    if task.folds is not None and is_main_process():
        table = {"id": task.documents["train"]["id"][:]} | fold_columns(task.folds)
        write_csv(folder / "folds.csv", pd.DataFrame(table))


def prefixed(prefix: str, scores: dict[str, float]) -> dict[str, float]:
    """Name scores <prefix>_<name>."""
    return {f"{prefix}_{name}": value for name, value in scores.items()}


def write_members(folder: Path, members: Sequence[Member]) -> dict[str, Any]:
    """Write members.csv, one row per member.

    Returns:
        mean and standard deviation over members of each validation score; underfitting, of the
        members that say so.
    """
    rows, underfit = [], {}
    for member in members:
        content = (folder / member.name / "all_results.json").read_text(encoding="utf-8")
        results = json.loads(content)
        scores = {k: v for k, v in results.items() if is_score(k)}
        if "underfitting" in results:
            underfit[member.name] = results["underfitting"]
        rows.append({"model": member.name, "fold": member.fold, "seed": member.seed, **scores})
    table = pd.DataFrame(rows).astype({"fold": "Int64"})  # none for all rows, beside numbers
    write_csv(folder / "members.csv", table)
    spread: dict[str, Any] = {}
    if underfit:
        name, said = next(iter(underfit.items()))
        spread["underfitting"] = f"{len(underfit)} of {len(members)} models; {name}: {said}"
    for name in (name for name in table if name.startswith("eval_")):
        values = table[name].astype(float)
        spread[f"{name}_mean"] = float(values.mean())
        spread[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return spread


def write_by_fold(
    folder: Path, members: Sequence[Member], spec: LabelSpec, ids: Sequence[str]
) -> None:
    """Write predictions_test_by_fold.csv, which --pseudo_label_file of another run takes."""
    tables = [
        spec.prediction_table(ids, probabilities, fold=[fold] * len(ids))
        for fold, probabilities in by_fold(folder, members, "test", spec, ids)
    ]
    write_csv(folder / "predictions_test_by_fold.csv", pd.concat(tables))


def read_thresholds(folder: str | os.PathLike) -> Thresholds | None:
    """Read thresholds.json of a run; None where it has none."""
    file = Path(folder) / "thresholds.json"
    if not file.is_file():
        return None
    with as_input_error(str(file), Exception):
        found = Thresholds.from_dict(json.loads(file.read_text(encoding="utf-8")))
        if found.kind not in KINDS:
            raise ValueError(f"kind {found.kind!r} is not one of {', '.join(KINDS)}")
    return found


def thresholds_of(run: RunFolder) -> Thresholds | None:
    """Read the thresholds that a run decides by; None: it has none."""
    return read_thresholds(run.folder) if run.has_several else None


def write_thresholds(folder: Path, thresholds: Thresholds | None) -> None:
    """Write thresholds.json; with None delete that of an earlier command."""
    if thresholds is None:
        (folder / "thresholds.json").unlink(missing_ok=True)
    else:
        write_json(folder / "thresholds.json", thresholds.to_dict())
