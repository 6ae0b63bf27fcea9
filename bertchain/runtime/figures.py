"""Figures of the reports. Tables and matrices in, matplotlib figures out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MOST_POINTS = 1000  # in a scatter plot
MOST_LETTERS = 40  # of a name that is drawn
BELOW = 34  # points from an axis to its legend: ticks and the axis's name
MOST_NAMED = 30  # classes of a confusion matrix that have names and numbers


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure. Args: width, height: in inches."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    return Figure(figsize=(width, height), layout="constrained")


def plain(text: str) -> str:
    """Write a name from data for a figure, as it is: dollar signs begin no formula."""
    return (f"{text[:MOST_LETTERS]}..." if text[MOST_LETTERS:] else text).replace("$", r"\$")


def tick_whole_numbers(axis: Axes) -> None:
    """Tick whole numbers alone along the bottom: there is no step or layer 1.5."""
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def add_legend(axis: Axes, fontsize: float = 8, **options: Any) -> None:
    """Add a legend below an axis, where it hides no line; none where nothing has a name."""
    if not axis.get_legend_handles_labels()[0]:
        return
    below = {"loc": "upper left", "bbox_to_anchor": (0, 0), "borderaxespad": BELOW / fontsize}
    axis.legend(**below, fontsize=fontsize, **{"ncols": 2, "frameon": False} | options)


def add_shared_legend(figure: Figure) -> None:
    """Name the lines of all axes below them, each once: no line is hidden, nothing cut off."""
    named = {}
    for axis in figure.axes:
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    if named:
        options = {"loc": "outside lower left", "ncols": min(2, len(named)), "fontsize": 8}
        figure.legend(named.values(), named, **options)


def layered(number: int, count: int) -> dict[str, Any]:
    """Style of a line of several that may lie on each other: those below are wider and paler."""
    wider = (count - 1 - number) * min(1.8, 3.6 / max(1, count - 1))
    return {"linewidth": 1.4 + wider, "alpha": 0.55 + 0.45 * (number + 1) / count}


def zoom(axis: Axes, values: Sequence[float], lines: dict[str, float]) -> None:
    """Set the vertical axis to where values differ; draw lines that lie there, name the others.

    Args:
        lines: heights of horizontal lines by name.
    """
    known = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    if not len(known):
        return
    room = max(float(np.ptp(known)), 0.02 * float(np.abs(known).max()), 1e-9)
    low, high = known.min() - 0.15 * room, known.max() + 0.15 * room
    below, above = [], []
    for i, (name, value) in enumerate(lines.items()):
        if low - room <= value <= high + room:
            style = {"color": "grey", "linestyle": (":", "--", "-.")[i % 3], "linewidth": 1}
            axis.axhline(value, label=f"{name} ({value:.3g})", **style)
            low, high = min(low, value - 0.1 * room), max(high, value + 0.1 * room)
        else:
            (below if value < low else above).append(f"{name} {value:.3g}")
    for names, height, side in ((below, 0.02, "below"), (above, 0.98, "above")):
        if names:
            text = f"{side} what is shown: {', '.join(names)}"
            place = {"va": "bottom" if side == "below" else "top", "fontsize": 7}
            axis.text(0.01, height, text, transform=axis.transAxes, color="dimgrey", **place)
    axis.set_ylim(low, high)


def layers_figure(
    results: pd.DataFrame,
    metric: str,
    split: str,
    name: str | None = None,
    lines: dict[str, float] | None = None,
    title: str = "Linear probe by layer",
) -> Figure:
    """Draw scores of linear probes by layer: a colour per model, a line style per pooling.

    Baselines and own heads are horizontal lines, or are named where they lie far from all scores.

    Args:
        results: of `Scoreboard.table`.
        name: of the vertical axis; None: split and metric.
        lines: heights of further horizontal lines by name.
    """
    scores = results[(results["metric"] == metric) & (results["split"] == split)]
    probes = scores[scores["probe"] == "linear"]
    figure = new_figure(8, 4.6)
    axis = figure.subplots()
    colours = {model: f"C{i}" for i, model in enumerate(probes["model"].unique())}
    styles = dict(zip(probes["token_pooling"].unique(), ("-", "--", "-.", ":"), strict=False))
    groups = list(probes.groupby(["model", "token_pooling"], sort=False))
    for i, ((model, pooling), line) in enumerate(groups):
        style = {"color": colours[model], "linestyle": styles[pooling], "marker": "o", "ms": 4}
        style |= layered(i, len(groups)) | {"label": f"{model}, {pooling}"}
        axis.plot(line["layer"].astype(int), line["value"], **style)
    heads = scores[scores["probe"] == "own head"]
    for model, value in zip(heads["model"], heads["value"], strict=True):
        axis.axhline(value, color=colours[model], linestyle=":", label=f"{model}, own head")
    baselines = scores[scores["probe"].isin(("majority", "tf-idf"))]
    heights = dict(zip(baselines["probe"], baselines["value"], strict=True)) | (lines or {})
    zoom(axis, [*probes["value"], *heads["value"]], heights)
    tick_whole_numbers(axis)
    axis.set(
        xlabel="layer (0 = embeddings)",
        ylabel=name or f"{split} {metric}",
    )
    axis.set_title(title, loc="left")
    axis.grid(alpha=0.3)
    add_shared_legend(figure)
    return figure


def gains_figure(gains: pd.DataFrame, p: str | None = None) -> Figure:
    """Draw gains on the first model by layer, with intervals; a panel for each pooling.

    Args:
        p: column of p values; points where it is .05 or more are hollow.
    """
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
            style |= layered(i, len(models))
            x = own["layer"].astype(int) + shift
            axis.errorbar(x, own[value], own["± 95 %"], label=model, **style)
            if p is not None:
                weak = own[p] >= 0.05
                hollow = {"linestyle": "", "marker": "o", "ms": 4, "mfc": "white", "zorder": 5}
                axis.plot(x[weak], own[value][weak], color=style["color"], **hollow)
        axis.axhline(0, color="grey", linewidth=0.8, label="no gain")
        tick_whole_numbers(axis)
        axis.set(xlabel="layer (0 = embeddings)", title=f"{pooling} pooling")
        axis.grid(alpha=0.3)
    axes[0].set(ylabel=f"gain, {value}")
    add_shared_legend(figure)
    return figure


def drift_figure(drift: pd.DataFrame) -> Figure | None:
    """Draw CKA with the first model and the change of weights by layer; None for one model."""
    later = drift.dropna(subset=["CKA with the first"]) if "CKA with the first" in drift else []
    if not len(later):
        return None
    figure = new_figure(8.4, 3.4)
    left, right = figure.subplots(1, 2)
    groups = list(later.groupby("model", sort=False))
    for i, (model, rows) in enumerate(groups):
        style = {"marker": "o", "ms": 4, "color": f"C{i + 1}", "label": model}
        style |= layered(i, len(groups))
        left.plot(rows["layer"], rows["CKA with the first"], **style)
        right.plot(rows["layer"], rows["weights changed by"], **style)
    left.set(xlabel="layer (0 = embeddings)", ylabel="linear CKA", title="Features, as before = 1")
    right.set(xlabel="layer (0 = embeddings)", ylabel="relative change", title="Weights")
    for axis in (left, right):
        tick_whole_numbers(axis)
        axis.grid(alpha=0.3)
    add_shared_legend(figure)
    return figure


def directprobe_figure(table: pd.DataFrame) -> Figure:
    """Draw clusters, distance of labels and accuracy of the nearest cluster by layer.

    With a single layer they are drawn by model: along a training run.

    Args:
        table: of `label_geometry.directprobe_table`.
    """
    columns = ("clusters", "mean distance of labels", "accuracy of nearest cluster")
    figure = _lines(table, columns)
    labels, axis = int(table["labels"].iloc[0]), figure.axes[0]
    axis.axhline(labels, color="grey", linewidth=1, linestyle=":")
    text = {"fontsize": 7, "color": "dimgrey", "va": "bottom"}
    place = axis.get_yaxis_transform()  # across the axis, at a height
    axis.text(0.01, labels, f"{labels} labels: one cluster each", transform=place, **text)
    if table["clusters"].max() > 10 * table["clusters"].min():
        axis.set_yscale("log")
    else:
        axis.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
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


def erasure_figure(table: pd.DataFrame) -> Figure:
    """Draw what the task lost beyond what it lost to shuffled labels, and the concept's scores.

    Args:
        table: of `erasure.erasure_table`.
    """
    lost = "lost beyond that"
    names = table["model"] + ", " + table["concept"]
    columns = (lost, "concept before", "concept after")
    figure = _lines(table.assign(model=names), columns, {lost: "± 95 % of that"})
    figure.axes[0].axhline(0, color="grey", linewidth=0.8)
    figure.axes[0].set_title("task: lost beyond what shuffled labels cost", fontsize="small")
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
            if error is not None:  # so that bars do not hide each other
                x = x + 0.1 * (i - (len(groups) - 1) / 2)
            style = {"marker": "o", "ms": 4, "capsize": 3, "color": f"C{i}", "label": model}
            style |= layered(i, len(groups))
            axis.errorbar(x, rows[column], error, **style)
        if one_layer:
            axis.set_xticks(x, rows["model"], rotation=60, ha="right", fontsize=7)
        else:
            tick_whole_numbers(axis)
            axis.set_xlabel("layer (0 = embeddings)")
        axis.set_title(column, fontsize="small")
        axis.grid(alpha=0.3)
    if not one_layer:
        add_shared_legend(figure)
    return figure


def frequent_classes(labels: np.ndarray, count: int) -> np.ndarray:
    """The ten most frequent of `count` classes, which have a colour in scatter plots."""
    return np.argsort(-np.bincount(labels, minlength=count), kind="stable")[:10]


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

    frequent = frequent_classes(labels, len(names))
    drawn = np.linspace(0, len(labels) - 1, min(MOST_POINTS, len(labels))).astype(int)
    columns = min(4, len(features))
    lines = -(-len(features) // columns)
    figure = new_figure(2.9 * columns, 2.9 * lines + 0.5)
    axes = figure.subplots(lines, columns, squeeze=False).reshape(-1)
    for axis, (name, x) in zip(axes, features.items(), strict=False):
        points = PCA(2, random_state=0).fit_transform(np.asarray(x, dtype=np.float32))[drawn]
        rest = ~np.isin(labels[drawn], frequent)
        if len(names) > len(frequent):
            others = f"{len(names) - len(frequent)} other classes"
            axis.scatter(*points[rest].T, s=5, color="lightgrey", label=others)
        for i, label in enumerate(frequent):
            own = points[labels[drawn] == label]
            axis.scatter(*own.T, s=5, color=f"C{i}", label=names[label])
        axis.set(title=name, xticks=[], yticks=[], xlabel="component 1", ylabel="component 2")
        axis.title.set_fontsize("small")
    for axis in axes[len(features) :]:
        axis.set_axis_off()
    handles, texts = axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower left", ncols=3, fontsize=7, markerscale=2)
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
    side = max(3.6, 0.3 * size + 1.5) if size <= MOST_NAMED else 5.0
    across = len(predicted) if size <= 8 else 1  # side by side, or one below the other
    down = -(-len(predicted) // across)
    figure = new_figure(side * across + 0.6, side * down)
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axis, (name, classes) in zip(axes, predicted.items(), strict=True):
        table = np.bincount(truth * size + classes, minlength=size * size).reshape(size, size)
        shares = table / np.maximum(1, table.sum(axis=1, keepdims=True))
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        small = 9 if size <= 12 else 8
        ticks = range(size) if size <= MOST_NAMED else []
        axis.set_xticks(ticks, names if ticks else [], rotation=90, fontsize=small)
        axis.set_yticks(ticks, names if ticks else [], fontsize=small)
        axis.set(xlabel="predicted", ylabel="true")
        axis.set_title(name, fontsize="small")
        for i, j in np.argwhere(table) if ticks else ():
            colour = "white" if shares[i, j] > 0.5 else "black"
            text = {"ha": "center", "va": "center", "color": colour, "fontsize": 7}
            axis.text(j, i, f"{shares[i, j]:.2f}".replace("0.", "."), **text)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    return figure


def as_svg(figure: Figure) -> str:
    """Return the <svg> element alone, to stand inside a page."""
    import matplotlib

    text = io.StringIO()
    # letters stay letters, which the browser has in every script; the same picture, the same bytes
    settings = {"svg.fonttype": "none", "svg.hashsalt": "bertchain"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def as_png(figure: Figure) -> bytes:
    """Return the content of a .png file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()
