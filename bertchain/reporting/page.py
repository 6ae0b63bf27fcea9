"""The page of a run of run_finetune.py, report.html: from what the run wrote into its folder.

It is one file that requests nothing. It shows the beginning of some texts, so it is as private as
the data.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from datasets import Dataset
from transformers import TrainingArguments

from bertchain.arguments.finetuning import GROUPS, Arguments
from bertchain.cli import changed
from bertchain.competition import ensemble
from bertchain.competition.run_folder import RunFolder, read_members
from bertchain.competition.submission import SampleSubmission
from bertchain.data.documents import join_texts, to_id
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.data.tasks import Task
from bertchain.metrics import main_metric
from bertchain.reporting import mistakes, pictures, sections
from bertchain.reporting.scored import Scored, count_shared_texts, label_array, read_scored
from bertchain.runtime import html
from bertchain.runtime.distributed import is_main_process
from bertchain.runtime.files import write_csv, write_text
from bertchain.runtime.html import Section
from bertchain.runtime.records import versions, without_folders
from bertchain.scoring import metric_files
from bertchain.training.outcome import read_table
from bertchain.training.prediction import iter_predictions

logger = logging.getLogger(__name__)

LETTERS = 300  # of a text that are shown


def write_page(
    run: RunFolder,
    task: Task,
    form: SampleSubmission | None,
    results: dict[str, Any],
    args: Arguments,
) -> None:
    """Write report.html, mistakes.csv and doubtful_labels.csv; the main process does.

    Args:
        task: with the documents as they were encoded.
        form: of the submission, if there is one.
        results: of the whole run.
    """
    if not is_main_process():
        return
    with html.spare_the_run(run.folder / "report.html"):
        thresholds = ensemble.thresholds_of(run)
        scored, seed = read_scored(run.folder, task), args.training.seed
        found = [sections.score_section(scored, results, seed)] if scored else []
        found += warning_sections(task, scored, results) + curve_sections(run, task.spec, args)
        if scored:
            columns = args.text.columns
            texts = functools.partial(read_texts, task, scored[0].split, columns=columns)
            found += scored_sections(run.folder, scored[0], thresholds, seed, texts)
        found += predicted_sections(run.folder, task, scored, thresholds)
        found += submission_sections(form, task.spec)
        arguments = changed(args.run_config, (*GROUPS, TrainingArguments))
        found += rate_sections(run) + made_sections(task, arguments)
        write_text(run.folder / "report.html", html.to_html(run.folder.resolve().name, found))


def scored_sections(
    folder: Path,
    rows: Scored,
    thresholds: Thresholds | None,
    seed: int,
    texts_of: Callable[[Sequence[str]], dict[str, str]],
) -> list[Section]:
    """Sections about the most telling of the scored rows; writes the tables of mistakes.

    Args:
        folder: of the run.
        texts_of: the beginning of the text of some rows, by id, as far as it is known.
    """
    wrong, doubtful = mistakes.find_mistakes(rows), None
    write_csv(folder / "mistakes.csv", wrong.drop(columns="row"))
    if rows.spec.problem_type != "regression" and rows.split != "test":
        doubtful = mistakes.find_doubtful(rows)
        write_csv(folder / "doubtful_labels.csv", doubtful.drop(columns="row"))
    shown = [*wrong["id"], *(doubtful["id"][: mistakes.SHOWN] if doubtful is not None else ())]
    texts = texts_of(shown)
    members = folder / "members.csv"
    return [
        *sections.fold_sections(rows, read_table(members) if members.is_file() else None, seed),
        *sections.class_sections(rows, thresholds),
        *sections.number_sections(rows),
        *sections.calibration_sections(rows),
        *sections.length_sections(rows, seed),
        *sections.threshold_sections(rows, thresholds),
        *sections.mistake_sections(rows, wrong, texts),
        *sections.doubtful_sections(rows, doubtful, texts),
    ]


def read_texts(
    task: Task, split: str, ids: Sequence[str], columns: dict[str, Any]
) -> dict[str, str]:
    """The beginning of the text of some rows, by id; {} for labelled spans.

    Args:
        columns: of `TextArguments`.
    """
    if task.num_spans or not ids:
        return {}
    known = split in task.tables and split != "oof"  # validation rows may be held out of train
    return read_rows(task.tables[split if known else "train"].rows, ids, columns)


def read_rows(table: Dataset, ids: Sequence[str], columns: dict[str, Any]) -> dict[str, str]:
    """The beginning of the text of the rows of a table that have these ids."""
    wanted = dict.fromkeys(ids)
    if columns["id_column"] is None:
        places = {name: int(name) for name in wanted}
    else:
        named = enumerate(table[columns["id_column"]][:])
        places = {to_id(i): row for row, i in named if to_id(i) in wanted}
    rows = table.select_columns(columns["text_columns"]).select([*places.values()])
    found = {}
    for name, row in zip(places, rows, strict=True):
        texts = [row[column] for column in columns["text_columns"]]
        text = "\n".join(join_texts(texts, columns["separator"], columns["pair"]).values())
        found[name] = f"{text[:LETTERS]} ..." if text[LETTERS:] else text
    return found


# ---------------------------------------------------------------- what the run did


def warning_sections(
    task: Task, scored: Sequence[Scored], results: dict[str, Any]
) -> list[Section]:
    """What makes scores better or worse than they look."""
    found, name = [], "documents_trained_on"
    if results.get("transductive"):
        number = results["test_documents_in_pretraining"]
        found.append(f"Transductive: {number:,} test documents were in the text of pretraining.")
    trained = {split: results.get(f"{split}_{name}") for split in ("oof", "validation", "test")}
    said = [f"{number:,} {split} documents" for split, number in trained.items() if number]
    if said:
        words = "Too good: the words of what is scored were trained on, with a label, of "
        found.append(f"{words}{', '.join(said)}.")
    shared = count_shared_texts(task)
    if shared:
        words = "training rows have the same words as a row of another fold: out-of-fold scores "
        found.append(f"{shared:,} {words}are too good (--group_column_name).")
    if "underfitting" in results:
        found.append(f"Underfitting: {results['underfitting']}.")
    if "labels_without_training_rows" in results:
        number = results["labels_without_training_rows"]
        found.append(f"{number:,} labels have no training row and are never learnt.")
    folded = 0 if task.folds is None else len(task.folds)
    if scored and scored[0].split == "oof" and len(scored[0]) < folded:
        number = folded - len(scored[0])
        found.append(f"{number:,} training rows have no prediction: not all folds are trained.")
    if scored and scored[0].spec.problem_type == "single_label":
        counts = np.bincount(scored[0].truth, minlength=len(task.spec.names))
        if (counts == 0).any():
            number = (counts == 0).sum()
            found.append(f"{number:,} labels have no row among those that are scored.")
    if not found:
        return [Section("warnings", "Warnings", "None.")]
    return [Section("warnings", "Warnings", "\n\n".join(found), warning=True)]


def curve_sections(run: RunFolder, spec: LabelSpec, args: Arguments) -> list[Section]:
    """Loss and metric by step, of all models that were trained."""
    members = [*read_members(run.folder), *run.members]
    paths = {m.name or "the model": run.folder_of(m) / "history.csv" for m in members}
    histories = {name: read_table(path) for name, path in paths.items() if path.is_file()}
    histories = {name: own for name, own in histories.items() if "step" in own}
    if not histories:
        return []
    own = metric_files.split_name(args.run_config.get("metric_file") or "")
    chosen = own[1] if own else main_metric(spec.problem_type, len(spec.names))[0]
    metric = (args.run_config.get("metric_for_best_model") or chosen).removeprefix("eval_")
    figure = pictures.curves_figure(histories, f"eval_{metric}")
    text = "" if len(histories) == 1 else f"A line for each of {len(histories)} models."
    what = f"Loss and validation {metric} by step"
    return [Section("curves", "Learning curves", text, figure=figure, figure_text=what)]


def predicted_sections(
    folder: Path, task: Task, scored: Sequence[Scored], thresholds: Thresholds | None
) -> list[Section]:
    """How often each label is predicted for the test file, beside its share in training."""
    path, spec = folder / "predictions_test.csv", task.spec
    if "test" not in task.predicted_splits or not path.is_file():
        return []
    known = [(own.ids, own.probabilities) for own in scored if own.split == "test"]
    rows, total, decided, values = 0, 0.0, 0, []
    for _, probabilities in known or iter_predictions(path, spec):
        rows += len(probabilities)
        if spec.problem_type == "regression":
            values.append(probabilities)
            continue
        total = total + probabilities.sum(axis=0)
        decided = decided + spec.decide(probabilities, thresholds).sum(axis=0)
    if spec.problem_type == "regression":
        found = np.concatenate(values)
        ends = np.quantile(found, [0, 0.25, 0.5, 0.75, 1], axis=0)
        names = ("lowest", "a quarter below", "half below", "three quarters below", "highest")
        table = {"target": spec.names, "mean": found.mean(axis=0)}
        table |= dict(zip(names, ends, strict=True))
    else:
        table = {"label": spec.names, "rows given it": decided, "share": decided / rows}
        table["mean probability"] = total / rows
        if task.has_training_rows:
            truth = spec.hard_labels(label_array(task, task.documents["train"]))
            counts = np.bincount(truth, minlength=len(decided)) if truth.ndim == 1 else truth.sum(0)
            table["share of the training rows"] = counts / len(truth)
    text = f"{rows:,} rows of the test file (predictions_test.csv)."
    fold = len(spec.names) > 30
    title = "Predictions of the test file"
    return [Section("predicted", title, text, pd.DataFrame(table), fold=fold)]


def submission_sections(form: SampleSubmission | None, spec: LabelSpec) -> list[Section]:
    """What the columns of the submission hold."""
    if form is None:
        return []
    columns = [name for name in form.sample.columns if name != form.id_column]
    holds = [form.meaning_of(name, spec) for name in columns]
    table = pd.DataFrame({"column": columns, "holds": holds})
    text = f"submission.csv: {len(form.sample):,} rows, by {form.id_column}, as in the sample."
    return [Section("submission", "The submission", text, table)]


def rate_sections(run: RunFolder) -> list[Section]:
    """The learning rate of each group of parameters, of the first model."""
    paths = [run.folder_of(member) / "optimizer_groups.csv" for member in run.members]
    path = next(filter(Path.is_file, paths), None)
    if path is None:
        return []
    text = "Parameters by group, with rate and decay."
    return [Section("rates", "Learning rates", text, read_table(path), fold=True)]


def made_sections(task: Task, arguments: dict[str, Any]) -> list[Section]:
    """What was run, and on what. Args: arguments: those that are not defaults."""
    found = []
    for split, rows in task.documents.items():
        row = {"split": split, "documents": len(rows)}
        if "tokens" in rows.column_names:
            tokens, cut = (np.asarray(rows[name][:]) for name in ("tokens", "cut"))
            row |= {"tokens, half below": float(np.median(tokens)), "most tokens": tokens.max()}
            row |= {"documents cut": int((cut > 0).sum())}
            row |= {"share of tokens cut": float(cut.sum() / max(tokens.sum(), 1))}
        found.append(row)
    spec = task.spec
    names = ", ".join(spec.names[:12]) + (" ..." if len(spec.names) > 12 else "")
    text = f"{spec.problem_type}, {len(spec.names)} labels: {names}."
    if task.folds is not None:
        text += f" {len(np.unique(task.folds))} folds."
    return [made_section(text, pd.DataFrame(found), arguments)]


def made_section(text: str, table: pd.DataFrame, arguments: dict[str, Any]) -> Section:
    """A table of what was run on, the arguments, and the versions."""
    made = {"arguments": without_folders(arguments), "versions": versions()}
    plain = yaml.safe_dump(made, allow_unicode=True, sort_keys=True)
    return Section("run", "What was run, and on what", text, table, plain=plain)
