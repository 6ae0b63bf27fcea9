"""The page of runs that were joined, report.html: what blend.py and stack.py of examples/ write."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertchain.arguments.common import TextArguments
from bertchain.cli import parse, read_arguments
from bertchain.competition.submission import SampleSubmission
from bertchain.data.labels import Thresholds
from bertchain.data.tables import read_table
from bertchain.errors import InputError
from bertchain.metrics import LESS_IS_BETTER, main_metric
from bertchain.probing.scoreboard import paired_difference
from bertchain.reporting.intervals import half_widths
from bertchain.reporting.page import made_section, read_rows, scored_sections, submission_sections
from bertchain.reporting.scored import PREFIXES, Scored
from bertchain.reporting.sections import score_section
from bertchain.reporting.tables import INTERVAL
from bertchain.runtime import html
from bertchain.runtime.files import write_text
from bertchain.runtime.html import Section
from bertchain.runtime.records import without_folders

SEED = 0  # of the bootstrap, as that of paired differences


@dataclass(frozen=True)
class Joined:
    """What several runs make together.

    Attributes:
        kind: "blend" or "stack".
        rows: those that weights or trees were fitted on, each predicted by what was fitted on the
            rows of other folds.
        scores: of each run, named by its folder, of other ways to join them, and last of these
            rows.
        others: predictions [n, labels] of all but the last, by name.
        weights: of runs by name; of a stack {}.
        metric: the runs' own score, which weights maximise; None: there is none.
    """

    kind: str
    rows: Scored
    scores: dict[str, dict[str, float]]
    others: dict[str, np.ndarray]
    weights: dict[str, float] = field(default_factory=dict)
    metric: str | None = None


def write_page(
    folder: Path,
    joined: Joined,
    runs: Sequence[str],
    thresholds: Thresholds | None,
    form: SampleSubmission | None,
    arguments: dict[str, Any],
) -> None:
    """Write report.html, mistakes.csv and doubtful_labels.csv.

    Args:
        runs: the folders of the runs; texts are those of the first.
        thresholds: that were fitted on the rows.
        form: of the submission, if there is one.
        arguments: of the script.
    """
    rows = joined.rows
    with html.spare_the_run(folder / "report.html"):
        own = [*joined.scores.values()][-1]
        prefix = PREFIXES[rows.split]
        results = {f"{prefix}_{name.removeprefix('oof_')}": value for name, value in own.items()}
        texts = functools.partial(texts_of_run, Path(runs[0]), rows.split)
        found = [
            score_section([rows], results, SEED),
            runs_section(joined),
            correlation_section([joined.others[str(Path(run))] for run in runs], runs),
            *scored_sections(folder, rows, thresholds, SEED, texts),
            *submission_sections(form, rows.spec),
            made_section("", runs_table(runs), arguments),
        ]
        write_text(folder / "report.html", html.to_html(folder.resolve().name, found))


def runs_section(joined: Joined) -> Section:
    """The score of each run and of what they make together, with intervals."""
    rows, kind = joined.rows, joined.rows.spec.problem_type
    main = main_metric(kind, len(rows.spec.names))[0]
    second = "rmse" if kind == "regression" else "log_loss"
    metrics = [*dict.fromkeys(filter(None, (joined.metric, main, second)))]
    shown, found = short_names(joined.scores), []
    for name, scores in joined.scores.items():
        other = joined.others.get(name)
        p = rows.probabilities if other is None else other
        widths = half_widths(Scored(rows.split, rows.spec, rows.ids, p, rows.truth), SEED)
        row = {"predictions": shown[name]}
        if joined.weights:
            row["weight"] = joined.weights.get(name, float("nan"))
        for metric in metrics:
            row[metric] = scores[metric]
            if metric in widths:
                row[f"{INTERVAL} ({metric})"] = widths[metric]
        if other is not None:
            own = paired_difference(kind, rows.probabilities, other, rows.truth)
            better = own["difference"] * (-1 if main in LESS_IS_BETTER else 1)
            row |= {f"{joined.kind} is better by": better, f"{INTERVAL} (of that)": own[INTERVAL]}
        found.append(row)
    fitted = "weights" if joined.weights else "trees"
    text = (
        f"The {joined.kind} of each fold has {fitted} that were fitted on the other folds. By how "
        f"much it is better is in {main}, paired by row: what is smaller than the number beside it "
        "may be chance."
    )
    if joined.weights:
        best = f"best {joined.metric}" if joined.metric else "least squared error"
        best = best if joined.metric or kind == "regression" else "least log loss"
        text += f" The weights are those of the test rows: they give all rows here the {best}."
    return Section("runs", f"Each run and the {joined.kind}", text, pd.DataFrame(found))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Name folders by their last part, or as many as tell them apart: paths are private."""
    parts = {name: Path(name).parts for name in names}
    for depth in range(1, max(map(len, parts.values())) + 1):
        short = {name: "/".join(own[-depth:]) for name, own in parts.items()}
        if len({*short.values()}) == len(short):
            break
    return short


def correlation_section(predictions: Sequence[np.ndarray], runs: Sequence[str]) -> Section:
    """How the predictions of the runs correlate: what is alike gains nothing."""
    names = [short_names(runs)[run] for run in runs]
    correlation = np.corrcoef(np.stack([p.reshape(-1) for p in predictions]))
    table = pd.DataFrame(correlation, columns=names)
    table.insert(0, "correlation", names)
    text = "Correlation of the predictions: runs that err alike gain little from each other."
    return Section("correlation", "How alike they are", text, table, fold=True)


def runs_table(runs: Sequence[str]) -> pd.DataFrame:
    """What the runs were, from their arguments."""
    shown = {"model_name_or_path": "started from", "train_file": "train", "test_file": "test"}
    short, found = short_names(runs), []
    for run in runs:
        given = without_folders(read_arguments(str(Path(run) / "run_args.yaml")))
        found.append(
            {"run": short[run]} | {name: given.get(key, "") for key, name in shown.items()}
        )
    return pd.DataFrame(found)


def texts_of_run(folder: Path, split: str, ids: Sequence[str]) -> dict[str, str]:
    """The beginning of the text of some rows; {} where the run's tables cannot be read again."""
    given = read_arguments(str(folder / "run_args.yaml"))
    apart = split == "validation" and given.get("validation_file")
    path = given.get("validation_file" if apart else "train_file")
    names = {one.name for one in fields(TextArguments)}
    if not isinstance(path, str):
        return {}
    try:
        text, _ = parse((TextArguments,), {name: given[name] for name in names & {*given}})
        table = read_table(path, given.get("delimiter"), given.get("encoding", "utf-8"))
        found = read_rows(table, ids, text.columns)
    except (InputError, LookupError, ValueError):  # moved, changed, or given in memory
        return {}
    return found if len(found) == len({*ids}) else {}
