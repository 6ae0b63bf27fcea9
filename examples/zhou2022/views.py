"""Pictures of the study. Tables of `readings` in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from readings import SMALLEST, TASKS, last_of

from bertchain.probing.each_label import draw_paths, draw_smallest, furthest, last_layer
from bertchain.runtime.figures import add_legend, add_shared_legend, new_figure, tick_whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PATHS = 6  # labels whose paths are drawn


def gains_figure(layers: pd.DataFrame) -> Figure:
    """Draw the gain of the probe of the last layer with its interval, tasks by encoder."""
    tuned = last_of(layers)
    tuned = tuned[tuned["model"] == "tuned"]
    encoders = list(tuned["encoder"].unique())
    figure = new_figure(7.5, 3.8)
    axis = figure.subplots()
    for i, encoder in enumerate(encoders):
        own = tuned[tuned["encoder"] == encoder]
        places = [list(TASKS.values()).index(task) for task in own["task"]]
        places = np.array(places) + 0.14 * (i - (len(encoders) - 1) / 2)
        style = {"fmt": "o", "ms": 4, "capsize": 3, "label": encoder}
        axis.errorbar(places, own["gain"], own["gain ± 95 %"], **style)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(TASKS)), TASKS.values())
    axis.set(ylabel="gain of test accuracy")
    axis.grid(alpha=0.3, axis="y")
    add_legend(axis)
    return figure


def layers_figure(layers: pd.DataFrame) -> Figure:
    """Draw by layer: accuracy and smallest distance before and after, similarity with before."""
    tasks = list(layers["task"].unique())
    columns = ("accuracy", SMALLEST, "similarity with before")
    figure = new_figure(1 + 2.7 * len(tasks), 8)
    axes = figure.subplots(len(columns), len(tasks), squeeze=False)
    for j, task in enumerate(tasks):
        own = layers[layers["task"] == task]
        for i, (encoder, rows) in enumerate(own.groupby("encoder", sort=False)):
            for model, line in (("base", "--"), ("tuned", "-")):
                which = rows[rows["model"] == model]
                name = f"{encoder}, {'before' if model == 'base' else 'after'}"
                style = {"color": f"C{i}", "linestyle": line, "marker": "o", "ms": 3}
                for k, column in enumerate(columns):
                    axes[k, j].plot(which["layer"], which[column], label=name, **style)
        axes[0, j].set_title(task, fontsize="medium")
        for axis in axes[:, j]:
            tick_whole_numbers(axis)
            axis.grid(alpha=0.3)
        axes[-1, j].set_xlabel("layer")
    for k, column in enumerate(columns):
        axes[k, 0].set_ylabel(column)
    add_shared_legend(figure)
    return figure


def labels_figure(labels: pd.DataFrame) -> Figure:
    """Draw the smallest distance of each label after against before, a panel for each task."""
    last = last_of(labels)
    tasks = list(last["task"].unique())
    figure = new_figure(1 + 2.7 * len(tasks), 3.4)
    for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        most = 0.0
        for encoder, rows in last[last["task"] == task].groupby("encoder", sort=False):
            wide = rows.pivot(index="label", columns="model", values=SMALLEST)
            axis.plot(wide["base"], wide["tuned"], "o", ms=4, alpha=0.6, label=encoder)
            most = max(most, float(np.nanmax(wide.to_numpy(), initial=0)))
        axis.plot([0, most], [0, most], color="grey", linewidth=0.8)
        axis.set_title(task, fontsize="medium")
        axis.set(xlabel="before")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("smallest distance after")
    add_shared_legend(figure)
    return figure


def matrix_figure(cross: pd.DataFrame) -> Figure:
    """Draw accuracy and change of distances of every encoder on every task; colours show gains."""
    encoders = list(cross["encoder"].unique())
    figure = new_figure(10, 0.6 + 3.2 * len(encoders))
    axes = figure.subplots(len(encoders), 2, squeeze=False)
    for line, encoder in zip(axes, encoders, strict=True):
        own = cross[cross["encoder"] == encoder]
        draw_matrix(line[0], own, "accuracy", "gain")
        draw_matrix(line[1], own, "mean change", "mean change")
        line[0].set_title(f"{encoder}: accuracy (colour: gain)", fontsize="medium")
        line[1].set_title(f"{encoder}: change of smallest distances", fontsize="medium")
    return figure


def draw_matrix(axis: Axes, cross: pd.DataFrame, shown: str, coloured: str) -> None:
    """Draw the values of one column as text and of another as colours, blue above 0."""
    order = {"index": cross["fine-tuned on"].unique(), "columns": cross["probed on"].unique()}
    text, colour = (
        cross.pivot(index="fine-tuned on", columns="probed on", values=name).reindex(**order)
        for name in (shown, coloured)
    )
    limit = max(float(colour.abs().max().max()), 1e-9)
    axis.imshow(colour.astype(float), vmin=-limit, vmax=limit, cmap="RdBu", aspect="auto")
    for i in range(len(text)):
        for j in range(text.shape[1]):
            if not pd.isna(text.iloc[i, j]):
                ink = "white" if abs(colour.iloc[i, j]) > 0.7 * limit else "black"
                said = {"ha": "center", "va": "center", "fontsize": 8, "color": ink}
                axis.text(j, i, f"{text.iloc[i, j]:.3f}", **said)
    axis.set_xticks(range(text.shape[1]), text.columns, fontsize=8)
    axis.set_yticks(range(len(text)), text.index, fontsize=8)
    axis.set(xlabel="probed on", ylabel="fine-tuned on")


def epochs_figure(labels: pd.DataFrame) -> Figure:
    """Draw the smallest distance of each label of the last layer by epoch, a panel for each run."""

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        wide = last_layer(rows)
        draw_smallest(axis, wide.set_axis(range(wide.shape[1]), axis=1))
        axis.tick_params(axis="x", rotation=0)
        axis.set(xlabel="epoch")

    return panels(last_of(labels), draw)


def paths_figure(paths: pd.DataFrame) -> Figure:
    """Draw the paths of centroids from epoch to epoch, a panel for each run and layer."""
    keys = ["encoder", "task"]
    labels = {run: furthest(rows, PATHS) for run, rows in paths.groupby(keys, sort=False)}
    runs = paths.assign(
        run=[*paths[keys].itertuples(index=False, name=None)],
        task=paths["task"] + ", layer " + paths["layer"].astype(str),
    )

    def draw(axis: Axes, rows: pd.DataFrame) -> None:
        draw_paths(axis, rows, labels[rows["run"].iloc[0]])

    return panels(runs, draw)


def panels(table: pd.DataFrame, draw: Callable[[Axes, pd.DataFrame], None]) -> Figure:
    """Draw each run in a panel with a legend of its own. Args: draw: takes the panel's rows."""
    groups = list(table.groupby(["encoder", "task"], sort=False))
    across = min(3 if len(groups) % 3 == 0 else 2, len(groups))
    down = -(-len(groups) // across)
    figure = new_figure(0.5 + 4.2 * across, 4.6 * down)
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axis, ((encoder, task), rows) in zip(axes, groups, strict=False):
        draw(axis, rows)
        axis.set_title(f"{encoder}, {task}", fontsize="medium")
        add_legend(axis, fontsize=7)
    for axis in axes[len(groups) :]:
        axis.set_axis_off()
    return figure
