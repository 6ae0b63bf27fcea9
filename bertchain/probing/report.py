"""What run_probe.py's report says: tables, and sections with their pictures."""

from typing import Any

import numpy as np
import pandas as pd

from bertchain.metrics import LESS_IS_BETTER, MAIN_METRIC
from bertchain.probing.label_geometry import divergence_warnings
from bertchain.probing.scoreboard import Place, Scoreboard
from bertchain.runtime.figures import (
    confusion_figure,
    directprobe_figure,
    drift_figure,
    gains_figure,
    geometry_figure,
    layers_figure,
    pca_figure,
)
from bertchain.runtime.html import Section

# ---------------------------------------------------------------- tables


def headline_table(board: Scoreboard, models: list[str], probes: list[str]) -> pd.DataFrame:
    """What needs no encoder; for each model the best frozen layer, the last layer, its own head.

    The best layer and every pooling are chosen on validation. Intervals are of the reported split.
    """
    metric, more_is_better = MAIN_METRIC[board.spec.problem_type]
    results = board.table()
    scores = results[results["metric"] == metric]
    wide = scores.pivot_table(
        index=["model", "layer", "token_pooling", "probe"],
        columns="split",
        values="value",
        dropna=False,
        sort=False,
    ).reset_index()
    wide = wide.dropna(subset=["validation"])
    if "test" not in wide:
        wide["test"] = np.nan

    def best(rows: pd.DataFrame) -> pd.Series:
        return rows.loc[
            rows["validation"].idxmax() if more_is_better else rows["validation"].idxmin()
        ]

    found = [("majority class", best(wide[wide["probe"] == "majority"]))]
    if (wide["probe"] == "tf-idf").any():
        found.append(("words counted (TF-IDF), linear", best(wide[wide["probe"] == "tf-idf"])))
    for model in models:
        own = wide[wide["model"] == model]
        linear = own[own["probe"] == "linear"]
        found.append((f"{model}: best frozen layer", best(linear)))
        found.append(
            (f"{model}: last layer", best(linear[linear["layer"] == linear["layer"].max()]))
        )
        for probe in probes:
            if probe != "linear":
                which = "learned mix of layers" if probe == "mix" else f"best frozen layer, {probe}"
                name = f"{model}: {which}"
                found.append((name, best(own[own["probe"] == probe])))
        head = own[own["probe"] == "own head"]
        if len(head):
            found.append((f"{model}: as fine-tuned, own head", head.iloc[0]))
    return pd.DataFrame(
        {
            "what": what,
            "layer": "" if pd.isna(row["layer"]) else f"{int(row['layer'])} {row['token_pooling']}",
            f"validation {metric}": row["validation"],
            f"test {metric}": row["test"],
            "± 95 %": board.interval(place_of(row)),
            "place": place_of(row),
        }
        for what, row in found
    )


def place_of(row: pd.Series) -> Place:
    layer = None if pd.isna(row["layer"]) else int(row["layer"])
    return Place(row["model"], layer, row["token_pooling"], row["probe"])


def layer_table(results: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """A row per layer, a column per model and pooling."""
    chosen = results[
        (results["probe"] == "linear") & (results["metric"] == metric) & (results["split"] == split)
    ]
    table = chosen.pivot_table(
        index="layer", columns=["model", "token_pooling"], values="value", sort=False
    )
    table.columns = [" ".join(column) for column in table.columns]
    table.index = table.index.astype(int)
    return table.reset_index()


# ---------------------------------------------------------------- sections


def list_sections(
    board: Scoreboard,
    headline: pd.DataFrame,
    changes: dict[str, pd.DataFrame],
    facts: list[dict[str, Any]],
    features: dict[str, np.ndarray],
) -> list[Section]:
    """The report, in the order in which it is read.

    Args:
        headline: of `headline_table`, with its column place.
        changes: tables gains and drift, as far as they were made.
        facts: of each model, what was probed.
        features: by model, [rows, layers, poolings, hidden] of the reported split.
    """
    return [
        headline_section(board, headline),
        *warning_sections(board, facts, changes),
        layers_section(board),
        *measured_sections(board),
        *change_sections(changes),
        *label_sections(board, changes),
        *confusion_sections(board, headline),
        *pca_sections(board, features),
        *probed_sections(facts),
    ]


def headline_section(board: Scoreboard, headline: pd.DataFrame) -> Section:
    less = "less" if board.metric in LESS_IS_BETTER else "more"
    text = (
        f"Task: {board.spec.problem_type}, {len(board.spec.names)} labels. Metric: {board.metric} "
        f"({less} is better). Encoders are frozen: only probes are trained. Layer, pooling and "
        "C of a probe are chosen on validation. Intervals: bootstrap over the "
        f"{board.split} rows."
    )
    return Section("headline", "In short", text, headline.drop(columns="place"))


def warning_sections(
    board: Scoreboard, facts: list[dict[str, Any]], changes: dict[str, pd.DataFrame]
) -> list[Section]:
    """What must be known before a number is believed."""
    results, found = board.table(), []
    unconverged = results[(results["metric"] == "converged") & (results["value"] == 0)]
    if len(unconverged):
        rows = unconverged.itertuples()
        names = [f"{row.model} layer {row.layer:.0f} {row.token_pooling}" for row in rows]
        found.append("Not converged, not to be trusted: " + "; ".join(names) + ".")
    seen = [
        f"{fact['model']} ({fact['test_documents_in_pretraining']} documents)"
        for fact in facts
        if fact.get("transductive")
    ]
    if seen:
        text = "Transductive: test text was in the further pretraining of " + ", ".join(seen) + "."
        found.append(text)
    if "geometry" in changes:
        found += divergence_warnings(changes["geometry"], board.split)
    if not found:
        return [Section("warnings", "Warnings", "None. Every probe converged.")]
    return [Section("warnings", "Warnings", "\n\n".join(found), warning=True)]


def layers_section(board: Scoreboard) -> Section:
    split, metric, results = board.split, board.metric, board.table()
    return Section(
        "layers",
        "Score by layer",
        table=layer_table(results, metric, split),
        figure=layers_figure(results, metric, split),
        figure_text=f"{split} {metric} of linear probes by layer",
        fold=True,
    )


MEASURED = {
    "selectivity": (
        "Selectivity",
        "Accuracy of the linear probe minus that of a probe for a control task, which gives every "
        "word a random label (Hewitt & Liang 2019). A probe that can learn the control by heart "
        "says little about the features.",
    ),
    "mdl_compression": (
        "Description length",
        "How many times fewer bits it takes to send the training labels to someone who has the "
        "features than to someone who has not, learning as they come (Voita & Titov 2020).",
    ),
}


def measured_sections(board: Scoreboard) -> list[Section]:
    """What was measured of the linear probes beside their scores, by layer."""
    results, sections = board.table(), []
    for metric, (title, text) in MEASURED.items():
        if metric not in set(results["metric"]):
            continue
        table = layer_table(results, metric, "train")
        figure = layers_figure(results, metric, "train", name=title.lower())
        what = f"{title} by layer"
        sections.append(Section(metric, title, text, table, figure, what, fold=True))
    return sections


def change_sections(changes: dict[str, pd.DataFrame]) -> list[Section]:
    sections = []
    if "gains" in changes:
        text = (
            "Linear probes on the same layer and pooling; positive is better. Intervals are paired "
            "by row: the same resampled rows for both models."
        )
        sections.append(
            Section(
                "gains",
                "What changed in what the layers know",
                text,
                changes["gains"],
                gains_figure(changes["gains"]),
                "Gain by layer, with intervals",
                fold=True,
            )
        )
    if "drift" in changes:
        text = (
            "Features are compared with those of the first model on the same rows: linear CKA (1 = "
            "the same up to rotation and scale), cosine of a row before and after; weights by the "
            "norm of their change. The mean cosine of two rows says how narrow the cone is that "
            "all rows lie in."
        )
        table = changes["drift"]
        what = "CKA and change of weights by layer"
        figure = drift_figure(table)
        sections.append(
            Section("drift", "How far the layers moved", text, table, figure, what, fold=True)
        )
    return sections


def label_sections(board: Scoreboard, changes: dict[str, pd.DataFrame]) -> list[Section]:
    """DirectProbe's clusters and the arrangement of labels, as far as they were measured."""
    sections = []
    if "directprobe" in changes:
        text = (
            "Training rows in clusters of one label each whose convex hulls do not meet those of "
            "other labels (Zhou & Srikumar 2021). As many clusters as labels (dotted): linear, a "
            "linear classifier could tell all training rows apart. Distances are between hulls, 0 "
            f"where they meet. For accuracy, {board.split} rows get the label of the nearest "
            "cluster. With few rows in many dimensions even shuffled labels look linear: their "
            "clusters then stand beside. Each pair of labels stands in label_pairs.csv."
        )
        sections.append(
            Section(
                "directprobe",
                "Clusters of labels",
                text,
                changes["directprobe"],
                directprobe_figure(changes["directprobe"]),
                "Clusters, distance of labels and accuracy of the nearest cluster by layer",
                fold=True,
            )
        )
    if "geometry" in changes:
        text = (
            "Similarity is the correlation of label-pair distances between centroids: 1 = the "
            f"labels lie in the same arrangement. Of training rows and {board.split} rows, with a "
            "bootstrap interval over rows; and with the first model. Centroids move by so many "
            "times the spread that a label had before. Effective rank: how many directions the "
            "rows use."
        )
        sections.append(
            Section(
                "geometry",
                "How the labels lie",
                text,
                changes["geometry"],
                geometry_figure(changes["geometry"], board.split),
                "Similarity of arrangements by layer",
                fold=True,
            )
        )
    return sections


def confusion_sections(board: Scoreboard, headline: pd.DataFrame) -> list[Section]:
    """Of the first and the last model's best row in the headline, of one label a row."""
    if board.spec.problem_type != "single_label":
        return []
    chosen = [
        (what, place)
        for what, place in zip(headline["what"], headline["place"], strict=True)
        if place in board.predicted and (what.endswith("best frozen layer") or "own head" in what)
    ]
    shown = dict(chosen[:1] + chosen[-1:])
    predicted = {what: board.predicted[place] for what, place in shown.items()}
    figure = confusion_figure(predicted, board.labels[board.split], board.spec.names)
    text = f"Shares of each true class on {board.split}, by the class that was predicted."
    what = "Confusion matrices of " + " and ".join(predicted)
    return [Section("confusion", "Confusion", text, figure=figure, figure_text=what)]


def pca_sections(board: Scoreboard, features: dict[str, np.ndarray]) -> list[Section]:
    """First and last layer of each model, of one label a row."""
    if board.spec.problem_type != "single_label":
        return []
    poolings = list(dict.fromkeys(p.token_pooling for p in board.each if p.layer is not None))
    pooling = poolings.index("mean") if "mean" in poolings else 0
    panels = {}
    for name, x in features.items():
        for layer in (0, x.shape[1] - 1):
            panels[f"{name}, layer {layer}"] = x[:, layer, pooling]
    title = f"{board.split} rows, {poolings[pooling]} pooling"
    figure = pca_figure(panels, board.labels[board.split], board.spec.names, title)
    text = "The two directions in which the rows differ most; each panel has its own."
    what = "Scatter plots of two principal components"
    return [Section("pca", "Principal components", text, figure=figure, figure_text=what)]


def probed_sections(facts: list[dict[str, Any]]) -> list[Section]:
    table = pd.DataFrame(facts).drop(columns="holds")
    plain = "\n\n".join(fact["holds"] for fact in facts)
    return [Section("probed", "What was probed", "", table, plain=plain)]
