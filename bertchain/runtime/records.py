"""Records of a run: versions, Markdown tables, model card, training curves."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import subprocess
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from bertchain.runtime import figures
from bertchain.runtime.files import atomic_write
from bertchain.runtime.strict_yaml import load_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDING = 1e-12  # no measured value is as small
HERE = Path(__file__).resolve().parent
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "evaluate",
    "accelerate",
    "scikit-learn",
    "numpy",
    "pandas",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages behind the numbers, and this repository's commit."""
    packages = {package: installed(package) for package in PACKAGES}
    return {"python": python_version()} | packages | {"commit": git_commit()}


installed = functools.cache(metadata.version)  # a run records them several times


@functools.cache  # what is imported stays that of the first call
def git_commit() -> str:
    """Return this repository's commit, with `-dirty` if tracked files differ; or "unknown"."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def escape_markdown(text: Any) -> str:
    """Write text from data as it is, on one line: it makes no heading, picture, link, HTML, code.

    Everything in Markdown that is not ours goes through here.
    """
    line = re.sub(r"&(?=#?\w+;)", "&amp;", " ".join(str(text).split()))
    line = re.sub(r"([\\`*\[\]|])", r"\\\1", line).replace("<", "&lt;")
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", line)  # inside a word it is only itself
    line = re.sub(r"^(?=[#>+=~-])", r"\\", line)
    return re.sub(r"^(\d+)(?=[.)](?: |$))", r"\1\\", line)  # "1. " begins a list, 5.42 does not


def fenced(text: str, language: str = "") -> str:
    """Format text that keeps its lines; marks in it do not end the block."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.strip()}\n{fence}\n"


def without_folders(value: Any) -> Any:
    """Name files and folders by their last part, in whatever holds them: paths are private.

    Text of YAML or JSON, as --tasks takes it, is parsed and written anew.
    """
    if isinstance(value, dict):
        return {name: without_folders(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(own) for own in value]
    if not isinstance(value, str):
        return value
    if value.startswith("{"):
        try:
            return json.dumps(without_folders(load_yaml(value)), ensure_ascii=False)
        except (ValueError, TypeError, yaml.YAMLError):
            return value
    name, equals, path = value.rpartition("=")  # name=path
    path = os.path.expanduser(path)
    if os.path.isabs(path) or path.startswith(".") or (os.sep in path and os.path.exists(path)):
        return f"{name}{equals}{Path(path).name or path}"
    return value


def decimals(value: float, digits: int) -> str:
    """Format a number with so many decimals; one that would come out as 0 keeps its size.

    But for what rounding leaves of a 0.
    """
    if abs(value) < ROUNDING:
        return f"{0:.{digits}f}"
    text = f"{value:.{digits}f}"
    return text if float(text) else f"{value:.1e}"


def number_or_gap(value: Any, digits: int) -> str | None:
    """Format a float by `decimals`, NaN and NA as nothing; None for what is none of them."""
    if value is pd.NA:
        return ""
    if not isinstance(value, float):
        return None
    return "" if math.isnan(value) else decimals(value, digits)


def markdown_table(table: pd.DataFrame, digits: int = 4) -> str:
    """Format a table as GitHub Markdown; text from data cannot break out of its cell.

    Args:
        digits: decimals of floats; NaN and NA become an empty cell.
    """

    def cell(value: Any) -> str:
        number = number_or_gap(value, digits)
        return escape_markdown(value) if number is None else number

    header = "| " + " | ".join(map(cell, table.columns)) + " |"
    rule = "|" + " --- |" * len(table.columns)
    rows = ["| " + " | ".join(map(cell, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join([header, rule, *rows]) + "\n"


def latex_table(table: pd.DataFrame, digits: int = 4) -> str:
    """Format a table for LaTeX with booktabs; text from data is escaped, on one line.

    Args: as `markdown_table`.
    """

    def cell(value: Any) -> Any:
        number = number_or_gap(value, digits)
        return " ".join(str(value).split()) if number is None else number

    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes]
    columns = "".join("r" if number else "l" for number in numeric)
    named = table.rename(columns=cell).astype(object).map(cell)
    text = named.to_latex(index=False, escape=True, column_format=columns)
    # the end of a row would take these as its arguments
    text = re.sub(r"^([\[*])", r"{\1}", text, flags=re.MULTILINE)
    return text.replace("±", r"$\pm$")


def model_card(
    title: str,
    base_model: str,
    pipeline_tag: str,
    summary: str,
    usage: str,
    metrics: dict[str, float],
    arguments: dict[str, Any],
) -> str:
    """Format the README.md of a model folder: how to load it, its scores, how it was made.

    Args:
        base_model: named in the card's header if it is a hub name, not a path.
        title, summary: plain text; the summary is one sentence on what the model is.
        usage: Python code that loads it.
        metrics: floats become the table of results.
        arguments: shown as YAML, files and folders by their last part.
    """
    front = {
        "library_name": "transformers",
        "pipeline_tag": pipeline_tag,
        "tags": ["generated-by-script"],
    }
    is_path = os.path.isabs(base_model) or base_model.startswith(".") or base_model.count("/") > 1
    if not is_path and not os.path.isdir(base_model):
        front["base_model"] = base_model
    scores = pd.DataFrame(
        [(k, v) for k, v in metrics.items() if isinstance(v, float)], columns=["metric", "value"]
    )
    shown = yaml.safe_dump(without_folders(arguments), allow_unicode=True)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n"
        f"# {escape_markdown(title)}\n\n{escape_markdown(summary)}\n\n"
        f"## Load it\n\n{fenced(usage, 'python')}\n"
        f"## Results\n\n{markdown_table(scores)}\n"
        f"## Arguments\n\n{fenced(shown, 'yaml')}\n"
        f"## Versions\n\n{fenced(yaml.safe_dump(versions()), 'yaml')}"
    )


def evaluation_history(log_history: list[dict[str, Any]]) -> pd.DataFrame:
    """The Trainer's log -> a table with one row per evaluation.

    `train_loss` is the mean of the losses logged since the previous evaluation, weighted by the
    steps each covers; learning rates are those last logged. The order of columns is that of their
    names: a log that was saved and read has lost its own.
    """
    rows, losses, rates, last_step = [], [], {}, 0
    for entry in log_history:
        if "loss" in entry:
            losses.append((entry["loss"], entry["step"] - last_step))
            last_step = entry["step"]
            rates = {k: entry[k] for k in sorted(entry) if k.startswith("learning_rate")}
        scores = [k for k in sorted(entry) if k.startswith("eval_") and not _is_timing(k)]
        evaluation = {k: entry[k] for k in scores}
        if evaluation and not (rows and rows[-1]["step"] == entry["step"]):
            steps = sum(n for _, n in losses)
            train_loss = sum(loss * n for loss, n in losses) / steps if steps else float("nan")
            place = {"epoch": entry.get("epoch"), "step": entry["step"]}
            rows.append(place | {"train_loss": train_loss} | rates | evaluation)
            losses = []
    return pd.DataFrame(rows)


def _is_timing(key: str) -> bool:
    return key.endswith(("_runtime", "_per_second", "_preparation_time"))


def plot_history(path: str | os.PathLike, history: pd.DataFrame, metric: str) -> None:
    """Write the picture of `history_figure`."""
    figure = history_figure(history, metric)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


def history_figure(history: pd.DataFrame, metric: str) -> Figure:
    """Draw the loss curves, beside them the metric that chooses the best checkpoint.

    What was never measured is left out: a training loss, where fewer steps than --logging_steps
    were taken, or all evaluations. Where a column `phase` tells of a head that was trained first,
    its steps are those before 0.
    """
    figure = figures.new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    steps, xlabel = history.get("step"), "step"  # none without evaluations
    if "phase" in history:
        of_head = history["phase"] == "head"
        steps = steps - steps[of_head].max() * of_head
        xlabel = "step (below 0: the head alone)"
    curves = {"train_loss": (left, "training", "C0"), "eval_loss": (left, "validation", "C1")}
    curves |= {metric: (right, None, "tab:green")}
    for column, (axis, label, colour) in curves.items():
        if column in history and history[column].notna().any():
            axis.plot(steps, history[column], marker="o", color=colour, label=label)
    name = metric.removeprefix("eval_")
    left.set(xlabel=xlabel, ylabel="loss", title="Loss")
    right.set(xlabel=xlabel, ylabel=name, title=f"Validation {name}")
    figures.add_legend(left)
    for axis in (left, right):
        figures.tick_whole_numbers(axis)
        axis.grid(alpha=0.3)
        if "phase" in history:
            axis.axvline(0, color="grey", linestyle="--", linewidth=1)
    return figure
