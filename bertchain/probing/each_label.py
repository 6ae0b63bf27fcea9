"""Each label by itself: how near the others come, how wide it lies, where its centroid moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bertchain.directprobe import Clustering, spread
from bertchain.runtime.figures import layered, new_figure, plain
from bertchain.runtime.html import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST = "smallest distance"  # column: of a label's hull to that of another label
NAMED = 3  # labels that grew most, and least, which have a colour
DRAWN = 10  # labels whose centroids are drawn

Centroids = Mapping[tuple[int, str], np.ndarray]  # (layer, model) -> [labels, hidden]


# ---------------------------------------------------------------- tables


def label_rows(
    at: dict[str, Any], x: np.ndarray, y: np.ndarray, found: Clustering, distances: np.ndarray
) -> pd.DataFrame:
    """Describe each label: the nearest other one, the distances of its rows, its clusters.

    Args:
        at: model and layer.
        x, y: rows [n, hidden] and their labels, numbers from 0 on.
        found: clusters of these rows; its names are class numbers.
        distances: of hulls [labels, labels].
    """
    others = distances + np.diag(np.full(len(distances), np.inf))
    largest, mean = spread(x, y)
    alone = len(distances) < 2
    columns = {
        "label": found.names,
        "rows": np.bincount(y),
        SMALLEST: np.nan if alone else others.min(axis=1),
        "nearest label": "" if alone else found.names[others.argmin(axis=1)],
        "largest distance inside": largest,
        "mean distance inside": mean,
        "clusters": np.unique(found.label_of, return_counts=True)[1],
    }
    return pd.DataFrame(at | columns)


def centroid_paths(
    centroids: Centroids, classes: np.ndarray, origins: Mapping[str, str]
) -> pd.DataFrame:
    """Place the centroids of all models in one plane a layer: the first two principal components
    of all of them together.

    Args:
        classes: numbers of the labels.
        origins: the model that each came from; of the first its own name. Models whose features
            are as many as the first's alone can be compared.

    Returns:
        a row for each model, layer and label: its place, how far it is from the first model's, and
        the share of all variance that the plane shows. None of them for a single model.
    """
    from sklearn.decomposition import PCA

    first, tables = next(iter(origins)), []
    for layer in sorted({layer for layer, _ in centroids}):
        start = centroids.get((layer, first))
        own = {model: x for (k, model), x in centroids.items() if k == layer}
        own = {m: x for m, x in own.items() if start is not None and x.shape == start.shape}
        if len(own) < 2 or min(start.shape) < 2:
            continue
        plane = PCA(2, svd_solver="full").fit(np.concatenate([*own.values()]))
        for model, x in own.items():
            places = plane.transform(x)
            columns = {
                "from": origins[model] if origins[model] in own else first,
                "label": classes,
                "component 1": places[:, 0],
                "component 2": places[:, 1],
                "distance from the first": np.linalg.norm(x - start, axis=1),
                "share of variance": plane.explained_variance_ratio_.sum(),
            }
            tables.append(pd.DataFrame({"model": model, "layer": layer} | columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def last_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Arrange the smallest distances of the last layer of each model as [labels, models]."""
    last = table[table["layer"] == table.groupby("model")["layer"].transform("max")]
    wide = last.pivot(index="label", columns="model", values=SMALLEST)
    return wide[list(last["model"].unique())]


def count_changes(before: pd.Series, after: pd.Series) -> dict[str, int]:
    """Count the labels that both have by whether their smallest distance grew or shrank."""
    change = (after - before).dropna()
    return {
        "labels": len(change),
        "grew": int((change > 0).sum()),
        "shrank": int((change < 0).sum()),
    }


# ---------------------------------------------------------------- the page


def each_label_sections(tables: Mapping[str, pd.DataFrame]) -> list[Section]:
    """Smallest distances of labels, and the paths of centroids, as far as they were measured."""
    sections = []
    if len(tables.get("label_distances", ())):
        sections.append(distances_section(last_layer(tables["label_distances"])))
    if len(tables.get("centroid_paths", ())):
        sections.append(paths_section(tables["centroid_paths"]))
    return sections


def distances_section(wide: pd.DataFrame) -> Section:
    """Show the smallest distance of each label. Args: wide: [labels, models]."""
    text = (
        "Of each label's hull to the nearest one of another label, in the last layer that was "
        "probed; 0 where they meet. label_distances.csv has all layers, which label is nearest, "
        "how far the label's rows are from each other (largest, mean), and its clusters."
    )
    first, *later = wide.columns
    for model in later:
        found = count_changes(wide[first], wide[model])
        text += (
            f"\n\n{model}: it grew for {found['grew']} of {found['labels']} labels since {first}, "
            f"and shrank for {found['shrank']}."
        )
    return Section(
        "label_distances",
        "Each label and its nearest other",
        text,
        wide.rename_axis(columns=None).reset_index(),
        smallest_figure(wide) if later else None,
        "Smallest distance of each label by model",
        fold=True,
    )


def paths_section(paths: pd.DataFrame) -> Section:
    title, what = "Where centroids move", "Paths of centroids in two layers"
    text = (
        "Centroids of the labels that move furthest, among the training rows, from the model that "
        "each came from (dot: the first) to it (arrow). Those of a layer lie in one plane, the "
        "first two principal components of them all; scales differ between layers. "
        "centroid_paths.csv has all layers and labels."
    )
    return Section("centroid_paths", title, text, None, paths_figure(paths), what)


def smallest_figure(wide: pd.DataFrame) -> Figure:
    """Draw the smallest distance of each label along the models; those that grew most and least
    since the first have a colour. Args: wide: [labels, models]."""
    figure = new_figure(max(6.5, 2.5 + 0.55 * wide.shape[1]), 4.2)
    draw_smallest(figure.subplots(), wide)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8)
    return figure


def draw_smallest(axis: Axes, wide: pd.DataFrame) -> None:
    growth = (wide.iloc[:, -1] - wide.iloc[:, 0]).dropna().sort_values(kind="stable")
    ends = [*growth.index[: -NAMED - 1 : -1], *growth.index[:NAMED]]
    coloured = list(dict.fromkeys(ends))
    places = range(wide.shape[1])
    for label in wide.index.difference(coloured):
        axis.plot(places, wide.loc[label], color="lightgrey", linewidth=0.8)
    for i, label in enumerate(coloured):
        style = {"color": f"C{i}", "marker": "o", "ms": 3, **layered(i, len(coloured))}
        axis.plot(places, wide.loc[label], label=plain(str(label)), **style)
    axis.plot(places, wide.mean(), color="black", linestyle="--", label="mean of all labels")
    names = [plain(str(name)) for name in wide.columns]
    axis.set_xticks(places, names, rotation=60, ha="right", fontsize=7)
    axis.set(ylabel=SMALLEST)
    axis.grid(alpha=0.3)


def paths_figure(paths: pd.DataFrame) -> Figure:
    """Draw the paths of centroids in the first and the last layer. Args: see `centroid_paths`."""
    layers = sorted({paths["layer"].min(), paths["layer"].max()})
    figure = new_figure(4.6 * len(layers) + 0.6, 4.8)
    labels = furthest(paths, DRAWN)
    for axis, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers, strict=True):
        draw_paths(axis, paths[paths["layer"] == layer], labels)
        axis.set_title(f"layer {layer}", fontsize="small")
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower left", ncols=3, fontsize=8)
    return figure


def furthest(paths: pd.DataFrame, count: int) -> list:
    """List the labels whose centroids move furthest in the last layer."""
    last = paths[paths["layer"] == paths["layer"].max()]
    far = last.groupby("label", sort=False)["distance from the first"].max()
    return list(far.sort_values(ascending=False, kind="stable").index[:count])


def draw_paths(axis: Axes, paths: pd.DataFrame, labels: Sequence[str]) -> None:
    """Draw the paths of labels in one layer."""
    columns = ["component 1", "component 2"]
    models = list(paths["model"].unique())
    for i, label in enumerate(labels):
        places = paths[paths["label"] == label].set_index("model")
        start = {"ms": 5, "color": f"C{i}", "label": plain(str(label))}
        axis.plot(*places.loc[models[0], columns], "o", **start)
        axis.plot(*places[columns].to_numpy().T, linestyle="")  # arrows widen no axis
        for k, (model, row) in enumerate(places.iterrows()):
            if model == models[0]:
                continue
            style = {"color": f"C{i}", "arrowstyle": "->", **layered(k, len(models))}
            begin = places.loc[row["from"], columns]
            axis.annotate("", tuple(row[columns]), tuple(begin), arrowprops=style)
    axis.set(xlabel=f"component 1 ({paths['share of variance'].iloc[0]:.0%} of variance in both)")
    axis.set(ylabel="component 2")
    axis.margins(0.08)
    axis.grid(alpha=0.3)
