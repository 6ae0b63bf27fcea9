"""Pictures of a run's page. Tables in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.reporting.calibration import Calibration
from bertchain.reporting.tables import INTERVAL
from bertchain.runtime import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TARGETS = 4  # of regression that are drawn
PANEL = (4.2, 3.4)  # inches


def panels(count: int, height: float = PANEL[1]) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels side by side, with a light grid."""
    figure = figures.new_figure(PANEL[0] * count, height)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def curves_figure(histories: dict[str, pd.DataFrame], metric: str) -> Figure:
    """Draw loss and validation metric by step, a line for each model.

    Args:
        histories: history.csv by model.
        metric: column of the metric, such as eval_accuracy.
    """
    figure, (left, right) = panels(2)
    for number, history in enumerate(histories.values()):
        lines = (
            (left, "train_loss", "training", "C0"),
            (left, "eval_loss", "validation", "C1"),
            (right, metric, None, "tab:green"),
        )
        for axis, column, name, colour in lines:
            if column in history and history[column].notna().any():
                style = {"color": colour, "marker": "o", "ms": 3, "linewidth": 1.2}
                style["alpha"] = 1.0 if len(histories) == 1 else 0.6
                label = name if number == 0 else None
                axis.plot(history["step"], history[column], label=label, **style)
    name = metric.removeprefix("eval_")
    left.set(xlabel="step", ylabel="loss", title="Loss")
    right.set(xlabel="step", ylabel=name, title=f"Validation {name}")
    figures.add_legend(left)
    for axis in (left, right):
        figures.tick_whole_numbers(axis)
    return figure


def tasks_figure(history: pd.DataFrame, metrics: dict[str, str]) -> Figure:
    """Draw the loss, and the scores of several tasks by step; a panel for each kind of score.

    Args:
        history: of all tasks, with columns eval_<task>_<metric>.
        metrics: the score of each task, by its name.
    """
    kinds = [*dict.fromkeys(metrics.values())]
    lines = -(-(1 + len(kinds)) // 2)
    figure = figures.new_figure(PANEL[0] * 2, PANEL[1] * lines)
    left, *axes = figure.subplots(lines, 2, squeeze=False).reshape(-1)
    for axis in axes[len(kinds) :]:
        axis.remove()
    axes = axes[: len(kinds)]
    points = {"marker": "o", "ms": 3, "linewidth": 1.2}

    def draw(axis: Axes, column: str, name: str, colour: str) -> None:
        if column in history and history[column].notna().any():
            axis.plot(history["step"], history[column], color=colour, label=name, **points)

    draw(left, "train_loss", "training, all tasks", "grey")
    left.set(xlabel="step", ylabel="loss", title="Loss (tasks: validation)")
    for number, (task, metric) in enumerate(metrics.items()):
        colour = f"C{number % 10}"
        draw(left, f"eval_{task}_loss", figures.plain(task), colour)
        draw(axes[kinds.index(metric)], f"eval_{task}_{metric}", figures.plain(task), colour)
    for axis, kind in zip(axes, kinds, strict=True):
        axis.set(xlabel="step", ylabel=kind, title=f"Validation {kind}")
    for axis in (left, *axes):
        axis.grid(alpha=0.3)
        figures.tick_whole_numbers(axis)
    figures.add_shared_legend(figure)
    return figure


def reliability_figure(measured: dict[str, Calibration], what: str) -> Figure:
    """Draw the share that was right by confidence, a panel for each entry, and how many answers.

    Args:
        what: the vertical axis says: accuracy, or the share of labels that are there.
    """
    figure, axes = panels(len(measured), 3.8)
    for axis, (name, found) in zip(axes, measured.items(), strict=True):
        bins = found.bins
        share = bins["answers"] / bins["answers"].sum()
        middle, width = (bins["from"] + bins["to"]) / 2, (bins["to"] - bins["from"]) * 0.9
        axis.bar(middle, share, width, color="lightgrey", label="share of answers")
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="calibrated")
        points = {"color": "C0", "marker": "o", "ms": 4, "label": what}
        axis.plot(bins["mean confidence"], bins["share that was right"], **points)
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), ylabel=what)
        axis.set_xlabel("probability that was given")
        axis.set_title(f"{name}: ECE {found.error:.3f}", fontsize="medium")
    figures.add_shared_legend(figure)
    return figure


def length_figure(table: pd.DataFrame) -> Figure:
    """Draw the score by length and by share cut off. Args: of `tables.length_table`."""
    score = table.columns[-2]
    figure, axes = panels(table["by"].nunique())
    for axis, (by, rows) in zip(axes, table.groupby("by", sort=False), strict=True):
        style = {"marker": "o", "ms": 4, "capsize": 3, "color": "C0"}
        axis.errorbar(rows["mean"], rows[score], rows[INTERVAL], **style)
        if by == "tokens":
            axis.set(xlabel="tokens of a document", ylabel=score)
            if rows["mean"].max() > 20 * max(rows["mean"].min(), 1):
                axis.set_xscale("log")
        else:
            axis.set(xlabel="share of a document that is cut off", ylabel=score)
    return figure


def thresholds_figure(curves: pd.DataFrame, thresholds: Thresholds | None = None) -> Figure:
    """Draw F1 by threshold: of all labels, beside it of the most frequent ones.

    Args:
        curves: of `tables.threshold_curves`.
        thresholds: fitted ones; a single one for all labels is marked.
    """
    figure, (left, right) = panels(2, 3.9)
    for name in ("micro", "macro"):
        left.plot(curves["threshold"], curves[name], label=f"F1 {name}")
    cuts = set(thresholds.cuts) if thresholds else {0.5}
    if len(cuts) == 1:
        (cut,) = cuts
        style = {"color": "grey", "linestyle": "--", "linewidth": 1}
        left.axvline(cut, label=f"used: {cut:.3g}", **style)
    left.set_title("All labels", fontsize="medium")
    of_labels = [name for name in curves if name.startswith("label ")]
    for number, name in enumerate(of_labels, 2):  # other colours than those of all labels
        style = {"color": f"C{number}", "linewidth": 1.2}
        right.plot(curves["threshold"], curves[name], label=figures.plain(name[6:]), **style)
    right.set_title("The most frequent labels", fontsize="medium")
    for axis in (left, right):
        axis.set(xlabel="threshold", ylabel="F1", xlim=(0, 1), ylim=(0, 1))
    figures.add_shared_legend(figure)
    return figure


def two_class_figure(name: str, curves: pd.DataFrame) -> Figure:
    """Draw precision, recall, F1 and accuracy by the threshold of a class.

    Args:
        curves: of `tables.two_class_curves`.
    """
    figure, (axis,) = panels(1, 3.9)
    for column in curves.columns[1:]:
        axis.plot(curves["threshold"], curves[column], label=column)
    axis.axvline(0.5, color="grey", linestyle="--", linewidth=1, label="used: 0.5")
    axis.set(xlabel=f"threshold of {figures.plain(name)}", xlim=(0, 1), ylim=(0, 1.02))
    figures.add_shared_legend(figure)
    return figure


def grades_figure(curves: pd.DataFrame, thresholds: Thresholds) -> Figure:
    """Draw weighted kappa by each threshold between grades. Args: of `tables.grade_curves`."""
    figure, (axis,) = panels(1, 3.9)
    for number, (between, rows) in enumerate(curves.groupby("between", sort=False)):
        axis.plot(rows["threshold"], rows["kappa"], color=f"C{number % 10}", label=between)
    for cut in thresholds.cuts:
        axis.axvline(cut, color="grey", linestyle=":", linewidth=1)
    axis.set(xlabel="threshold (dotted: fitted)", ylabel="quadratic weighted kappa")
    figures.add_shared_legend(figure)
    return figure


def numbers_figure(values: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw predicted against true values, and residuals beside them; a line for each target.

    At most `figures.MOST_POINTS` evenly spaced rows are drawn.

    Args:
        values, truth: both [n, targets].
    """
    count = min(len(names), MOST_TARGETS)
    figure = figures.new_figure(PANEL[0] * 2, PANEL[1] * count)
    axes = figure.subplots(count, 2, squeeze=False)
    drawn = np.linspace(0, len(truth) - 1, min(figures.MOST_POINTS, len(truth))).astype(int)
    for k in range(count):
        x, y = truth[drawn, k], values[drawn, k]
        left, right = axes[k]
        style = {"s": 8, "color": "C0", "alpha": 0.5, "linewidths": 0}
        left.scatter(x, y, **style)
        ends = [float(x.min()), float(x.max())]
        left.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
        left.set(xlabel="true", ylabel="predicted")
        left.set_title(figures.plain(names[k]), fontsize="medium")
        right.scatter(y, y - x, **style)
        right.axhline(0, color="grey", linestyle="--", linewidth=1)
        right.set(xlabel="predicted", ylabel="predicted - true")
        for axis in (left, right):
            axis.grid(alpha=0.3)
    return figure


def confusion_picture(spec: LabelSpec, given: np.ndarray, truth: np.ndarray, title: str) -> Figure:
    """Draw shares of each true class by the class that was given. Args: class numbers [n]."""
    names = [figures.plain(name) for name in spec.names]
    return figures.confusion_figure({title: given}, truth, names)
