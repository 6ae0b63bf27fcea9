"""Figures of the reports. Tables and matrices in, matplotlib figures out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_POINTS = 1000  # in a scatter plot


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure. Args: width, height: in inches."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def tick_whole_numbers(axis: Axes) -> None:
    """Tick whole numbers alone along the bottom: there is no step or layer 1.5."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def add_legend(place: Figure | Axes, **options: Any) -> None:
    """Add a legend to a figure or axis; none where nothing has a name."""
    axes = getattr(place, "axes", None)
    drawn = axes if isinstance(axes, list) else [place]
    if any(axis.get_legend_handles_labels()[0] for axis in drawn):
        place.legend(**options)


def layers_figure(
    results: pd.DataFrame, metric: str, split: str, name: str | None = None
) -> Figure:
    """Draw scores of linear probes by layer: a colour per model, a line style per pooling.

    Baselines and own heads are horizontal lines.

    Args:
        results: of `Scoreboard.table`.
        name: of the vertical axis; None: split and metric.
    """
    scores = results[(results["metric"] == metric) & (results["split"] == split)]
    probes = scores[scores["probe"] == "linear"]
    figure = new_figure(8, 4.6)
    axis = figure.subplots()
    colours = {model: f"C{i}" for i, model in enumerate(probes["model"].unique())}
    styles = dict(zip(probes["token_pooling"].unique(), ("-", "--", "-.", ":"), strict=False))
    for (model, pooling), line in probes.groupby(["model", "token_pooling"], sort=False):
        style = {"color": colours[model], "linestyle": styles[pooling], "marker": "o", "ms": 4}
        axis.plot(line["layer"].astype(int), line["value"], label=f"{model}, {pooling}", **style)
    for _, row in scores[scores["probe"] == "own head"].iterrows():
        label, colour = f"{row['model']}, own head", colours[row["model"]]
        axis.axhline(row["value"], color=colour, linestyle=":", label=label)
    for probe, dashes in (("majority", ":"), ("tf-idf", "--")):
        for value in scores[scores["probe"] == probe]["value"]:
            axis.axhline(value, color="grey", linestyle=dashes, label=probe)
    tick_whole_numbers(axis)
    axis.set(
        xlabel="layer (0 = embeddings)",
        ylabel=name or f"{split} {metric}",
        title="Linear probe by layer",
    )
    axis.grid(alpha=0.3)
    add_legend(figure, loc="outside right upper", fontsize=8)
    return figure


def gains_figure(gains: pd.DataFrame) -> Figure:
    """Draw gains on the first model by layer, with intervals; a panel for each pooling."""
    (value,) = (name for name in gains if " against " in name)
    poolings = list(gains["token pooling"].unique())
    figure = new_figure(4.4 * len(poolings), 3.6)
    axes = figure.subplots(1, len(poolings), sharey=True, squeeze=False)[0]
    for axis, pooling in zip(axes, poolings, strict=True):
        rows = gains[gains["token pooling"] == pooling]
        models = list(rows["model"].unique())
        for i, model in enumerate(models):
            own = rows[rows["model"] == model]
            shift = 0.12 * (i - (len(models) - 1) / 2)  # so that bars do not hide each other
            style = {"marker": "o", "ms": 4, "capsize": 3, "color": f"C{i + 1}"}
            axis.errorbar(own["layer"] + shift, own[value], own["± 95 %"], label=model, **style)
        axis.axhline(0, color="grey", linewidth=0.8)
        tick_whole_numbers(axis)
        axis.set(xlabel="layer (0 = embeddings)", title=f"{pooling} pooling")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"gain, {value}")
    add_legend(axes[-1], fontsize=8)
    return figure


def drift_figure(drift: pd.DataFrame) -> Figure | None:
    """Draw CKA with the first model and the change of weights by layer; None for one model."""
    later = drift.dropna(subset=["CKA with the first"]) if "CKA with the first" in drift else []
    if not len(later):
        return None
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    for i, (model, rows) in enumerate(later.groupby("model", sort=False), 1):
        style = {"marker": "o", "ms": 4, "color": f"C{i}", "label": model}
        left.plot(rows["layer"], rows["CKA with the first"], **style)
        right.plot(rows["layer"], rows["weights changed by"], **style)
    left.set(xlabel="layer (0 = embeddings)", ylabel="linear CKA", title="Features, as before = 1")
    right.set(xlabel="layer (0 = embeddings)", ylabel="relative change", title="Weights")
    for axis in (left, right):
        tick_whole_numbers(axis)
        axis.grid(alpha=0.3)
    add_legend(left, fontsize=8)
    return figure


def directprobe_figure(table: pd.DataFrame) -> Figure:
    """Draw clusters, distance of labels and accuracy of the nearest cluster by layer.

    With a single layer they are drawn by model: along a training run.

    Args:
        table: of `label_geometry.directprobe_table`.
    """
    columns = ("clusters", "mean distance of labels", "accuracy of nearest cluster")
    figure = _lines(table, columns)
    figure.axes[0].axhline(table["labels"].iloc[0], color="grey", linewidth=0.8, linestyle=":")
    if table["clusters"].max() > 10 * table["clusters"].min():
        figure.axes[0].set_yscale("log")
    return figure


def geometry_figure(table: pd.DataFrame, split: str) -> Figure:
    """Draw similarities of arrangements by layer: of training and new rows, with the first model.

    Args:
        table: of `label_geometry.label_geometry_table`.
        split: of the new rows.
    """
    columns = ["train and new, similarity"]
    if "similarity with the first" in table:
        columns.append("similarity with the first")
    figure = _lines(table, (*columns, "effective rank"), {"train and new, similarity": "± 95 %"})
    figure.axes[0].set_title(f"train and {split}, similarity", fontsize="small")
    return figure


def _lines(
    table: pd.DataFrame, columns: Sequence[str], intervals: dict[str, str] | None = None
) -> Figure:
    """Draw a panel for each column: by layer, a line for each model; of one layer, by model.

    Args:
        intervals: column -> column of half the width of its interval.
    """
    figure = new_figure(4.2 * len(columns), 3.6)
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    one_layer = table["layer"].nunique() == 1 and table["model"].nunique() > 1
    groups = [("", table)] if one_layer else list(table.groupby("model", sort=False))
    for axis, column in zip(axes, columns, strict=True):
        for i, (model, rows) in enumerate(groups):
            x = np.arange(len(rows)) if one_layer else rows["layer"]
            error = rows[intervals[column]] if intervals and column in intervals else None
            style = {"marker": "o", "ms": 4, "capsize": 3, "color": f"C{i}", "label": model}
            axis.errorbar(x, rows[column], error, **style)
        if one_layer:
            axis.set_xticks(x, rows["model"], rotation=60, ha="right", fontsize=7)
        else:
            tick_whole_numbers(axis)
            axis.set_xlabel("layer (0 = embeddings)")
        axis.set_title(column, fontsize="small")
        axis.grid(alpha=0.3)
    if not one_layer:
        add_legend(axes[-1], fontsize=7)
    return figure


def pca_figure(
    features: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str], title: str
) -> Figure:
    """Draw the first two principal components, a panel for each entry of `features` [n, hidden].

    At most `MOST_POINTS` rows are drawn (the components are of all); beyond ten classes the ten
    most frequent are coloured and the others grey.

    Args:
        labels: class numbers [n].
        names: of the classes.
    """
    from sklearn.decomposition import PCA

    frequent = np.argsort(-np.bincount(labels, minlength=len(names)), kind="stable")[:10]
    drawn = np.linspace(0, len(labels) - 1, min(MOST_POINTS, len(labels))).astype(int)
    columns = min(4, len(features))
    lines = -(-len(features) // columns)
    figure = new_figure(2.9 * columns, 2.9 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axis, (name, x) in zip(axes, features.items(), strict=False):
        points = PCA(2, random_state=0).fit_transform(np.asarray(x, dtype=np.float32))[drawn]
        rest = ~np.isin(labels[drawn], frequent)
        axis.scatter(*points[rest].T, s=5, color="lightgrey")
        for i, label in enumerate(frequent):
            own = points[labels[drawn] == label]
            axis.scatter(*own.T, s=5, color=f"C{i}", label=names[label])
        axis.set(title=name, xticks=[], yticks=[], xlabel="component 1", ylabel="component 2")
        axis.title.set_fontsize("small")
    for axis in axes[len(features) :]:
        axis.set_axis_off()
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=5, fontsize=7, markerscale=2)
    figure.suptitle(title, fontsize="medium")
    return figure


def confusion_figure(
    predicted: dict[str, np.ndarray], truth: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw shares of each true class by predicted class, a panel for each entry of `predicted`.

    Args:
        predicted: title -> class numbers [n].
        truth: class numbers [n].
        names: of the classes.
    """
    size = len(names)
    figure = new_figure(4.2 * len(predicted), 4.2)
    axes = figure.subplots(1, len(predicted), squeeze=False)[0]
    for axis, (name, classes) in zip(axes, predicted.items(), strict=True):
        table = np.bincount(truth * size + classes, minlength=size * size).reshape(size, size)
        shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        small = 9 if size <= 12 else 6
        ticks = range(size) if size <= 30 else []
        axis.set_xticks(ticks, names if ticks else [], rotation=90, fontsize=small)
        axis.set_yticks(ticks, names if ticks else [], fontsize=small)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(name, fontsize="small")
        if size <= 8:
            for i, j in np.ndindex(size, size):
                colour = "white" if shares[i, j] > 0.5 else "black"
                text = {"ha": "center", "va": "center", "color": colour, "fontsize": 7}
                axis.text(j, i, f"{shares[i, j]:.2f}", **text)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def as_svg(figure: Figure) -> str:
    """Return the <svg> element alone, to stand inside a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """Return the content of a .png file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()
