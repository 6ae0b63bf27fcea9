"""The pages of several tasks on one encoder: report.html of the run, and one of each task."""

import functools
from pathlib import Path
from typing import Any

import pandas as pd
from multitask import Tasks, parse_tasks

from bertchain import metrics
from bertchain.reporting import page, pictures, sections
from bertchain.reporting.intervals import half_widths
from bertchain.reporting.scored import ON, PREFIXES, Scored, read_scored
from bertchain.reporting.tables import INTERVAL
from bertchain.runtime import html
from bertchain.runtime.files import write_text
from bertchain.runtime.html import Section
from bertchain.training.outcome import read_table

SPLITS = ("train", "validation", "test")


def write_pages(
    folder: Path,
    tasks: Tasks,
    results: dict[str, Any],
    arguments: dict[str, Any],
    seed: int,
) -> None:
    """Write the page of the run, and in the folder of each task its own. The main process does.

    Args:
        folder: of the run, which has written its tables.
        tasks: with the documents as they were encoded.
        results: of the whole run.
        arguments: those that are not defaults.
    """
    with html.spare_the_run(folder / "report.html"):
        scored = {name: read_scored(folder / name, task) for name, task in tasks.items()}
        columns = {n: text.columns for n, (_, text, _) in parse_tasks(arguments["tasks"]).items()}
        for name, task in tasks.items():
            own, rows = results_of(name, results), scored[name]
            texts = functools.partial(page.read_texts, task, rows[0].split, columns=columns[name])
            found = [
                sections.score_section(rows, own, seed),
                *page.warning_sections(task, rows, own),
                *page.scored_sections(folder / name, rows[0], None, seed, texts),
                *page.predicted_sections(folder / name, task, rows, None),
                *page.made_sections(task, arguments),
            ]
            write_text(folder / name / "report.html", html.to_html(name, found))
        found = [
            scores_section(scored, results, seed),
            curves_section(tasks, read_table(folder / "history.csv")),
            page.made_section("", rows_table(tasks), arguments),
        ]
        write_text(folder / "report.html", html.to_html(folder.resolve().name, found))


def results_of(task: str, results: dict[str, Any]) -> dict[str, Any]:
    """Select the results of a task, by the names that those of a single one have."""
    own = {k.replace(f"_{task}_", "_", 1): v for k, v in results.items() if f"_{task}_" in k}
    seen = {k.removeprefix(f"{task}_"): v for k, v in results.items() if k.startswith(f"{task}_")}
    return own | seen


def scores_section(scored: dict[str, list[Scored]], results: dict[str, Any], seed: int) -> Section:
    """The main score of each task with its interval."""
    found = []
    for name, several in scored.items():
        spec = several[0].spec
        metric, _ = metrics.main_metric(spec.problem_type, len(spec.names))
        row = {"task": name, "score": metric}
        for rows in several:
            on = ON[rows.split]
            row[on] = results[f"{PREFIXES[rows.split]}_{name}_{metric}"]
            row[f"{INTERVAL} ({on})"] = half_widths(rows, seed).get(metric, float("nan"))
        found.append(row)
    table = pd.DataFrame(found)
    mean = {"task": "mean", "score": "mean_score", ON["validation"]: results["eval_mean_score"]}
    text = (
        "The mean over the tasks on validation (rmse negative) chooses checkpoints. Half "
        "of each 95 % interval, by bootstrap over the rows, stands beside a score. report.html in "
        "the folder of each task shows the rest."
    )
    limit = "how much another seed would change, or each task alone on its own encoder."
    table = pd.concat([table, pd.DataFrame([mean])], ignore_index=True)
    return Section("scores", "In short", text, table, limit=limit)


def curves_section(tasks: Tasks, history: pd.DataFrame) -> Section:
    """Loss, and the main score of each task by step."""
    chosen = {
        name: metrics.main_metric(task.spec.problem_type, len(task.spec.names))[0]
        for name, task in tasks.items()
    }
    figure = pictures.tasks_figure(history, chosen)
    what = "Loss and main score of each task by step"
    return Section("curves", "Learning curves", "", None, figure, what)


def rows_table(tasks: Tasks) -> pd.DataFrame:
    """What each task is, and its rows by split."""
    found = []
    for name, task in tasks.items():
        row = {"task": name, "labels are": task.spec.problem_type, "labels": len(task.spec.names)}
        found.append(row | {split: len(task.documents.get(split, ())) for split in SPLITS})
    return pd.DataFrame(found)
