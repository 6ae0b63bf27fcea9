"""What run_probe.py writes: tables, and a page of sections with their pictures."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertchain.metrics import LESS_IS_BETTER
from bertchain.probing.by_class import class_sections
from bertchain.probing.certainty import finding_warnings
from bertchain.probing.comparisons import change_sections, comparison_sections
from bertchain.probing.complexity import complexity_sections
from bertchain.probing.each_label import each_label_sections
from bertchain.probing.erasure import erasure_sections, erasure_warnings
from bertchain.probing.feature_files import INDEX
from bertchain.probing.features import find_device
from bertchain.probing.label_geometry import directprobe_warnings, divergence_warnings
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.scoreboard import RANDOM, Scoreboard, layer_table
from bertchain.runtime.figures import (
    confusion_figure,
    directprobe_figure,
    frequent_classes,
    geometry_figure,
    layers_figure,
    pca_figure,
)
from bertchain.runtime.files import write_csv, write_json, write_text, write_yaml
from bertchain.runtime.html import Section, write_report_files
from bertchain.runtime.records import latex_table, versions


def write_report(
    folder: Path,
    board: Scoreboard,
    headline: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    models: list[ProbedModel],
    descriptions: list[dict[str, Any]],
    run_config: dict[str, Any],
) -> None:
    """Write tables as csv, those of the page for LaTeX too; report.html, report.md with its
    pictures, arguments and results.

    Args:
        headline: of `scoreboard.headline_table`.
        tables: of the analyses, by file name.
        descriptions: of each model, of `probed_models.describe`.
        run_config: arguments that repeat the run.
    """
    for name, table in tables.items():
        write_csv(folder / f"{name}.csv", table)
    write_csv(folder / "results.csv", board.table())
    write_csv(folder / "headline.csv", headline.drop(columns="key"))
    sections = list_sections(board, headline, tables, models, descriptions)
    write_report_files(folder, "What the layers know", sections)
    for section in sections:
        if section.table is not None:
            write_text(folder / "latex" / f"{section.name}.tex", latex_table(section.table))
    write_yaml(folder / "run_args.yaml", run_config)
    plain = headline.drop(columns="key").to_dict("records")
    summary = {"headline": plain, "models": descriptions}
    how = {"seed": board.seed, "device": find_device().type, "versions": versions()}
    write_json(folder / "all_results.json", summary | how)


def list_sections(
    board: Scoreboard,
    headline: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    models: list[ProbedModel],
    descriptions: list[dict[str, Any]],
) -> list[Section]:
    """List the sections of the report in reading order. Args: as `write_report`."""
    found = [
        headline_section(board, headline),
        *warning_sections(board, headline, descriptions, tables),
        layers_section(board),
        *comparison_sections(tables),
        *measured_sections(board),
        *complexity_sections(board),
        *change_sections(tables),
        *label_sections(board, tables),
        *each_label_sections(tables),
        *erasure_sections(tables),
        *class_sections(board, headline, tables),
        *confusion_sections(board, headline),
        *pca_sections(board, models),
        *probed_sections(models, descriptions),
    ]
    return [replace(section, limit=LIMITS.get(section.name, "")) for section in found]


def headline_section(board: Scoreboard, headline: pd.DataFrame) -> Section:
    less = "less" if board.metric in LESS_IS_BETTER else "more"
    text = (
        f"Task: {board.spec.problem_type}, {len(board.spec.names)} labels. Metric: {board.metric} "
        f"({less} is better). Encoders are frozen: only probes are trained. Layer, pooling and "
        "C of a probe are chosen on validation. Intervals: bootstrap over the "
        f"{board.split} rows, and where there are several random starts over these."
    )
    return Section("headline", "In short", text, headline.drop(columns="key"))


def warning_sections(
    board: Scoreboard,
    headline: pd.DataFrame,
    descriptions: list[dict[str, Any]],
    tables: dict[str, pd.DataFrame],
) -> list[Section]:
    """Probes that did not converge, documents seen before, labels that training pulled apart."""
    results, found = board.table(), []
    unconverged = results[(results["metric"] == "converged") & (results["value"] == 0)]
    if len(unconverged):
        rows = unconverged.itertuples()
        names = [
            f"{row.model} {row.probe if pd.isna(row.layer) else f'layer {row.layer:.0f}'} "
            f"{row.token_pooling}"
            for row in rows
        ]
        found.append("Not converged, not to be trusted: " + "; ".join(names) + ".")
    lacking = [
        one["model"]
        for one in descriptions
        if one.get("weights not in the checkpoint", "none") != "none"
    ]
    if lacking:
        found.append(f"Weights not in the checkpoint, so random: {', '.join(lacking)}.")
    seen = [
        f"{one['model']} ({one['test_documents_in_pretraining']} documents)"
        for one in descriptions
        if one.get("transductive")
    ]
    if seen:
        text = "Transductive: test text was in the further pretraining of " + ", ".join(seen) + "."
        found.append(text)
    trained = [f"{one['model']} ({counts})" for one in descriptions if (counts := _trained_on(one))]
    if trained:
        text = "Too good: what is scored was trained on before, with its labels, by "
        found.append(text + "; ".join(trained) + ".")
    found += finding_warnings(board, headline)
    if "directprobe" in tables:
        found += directprobe_warnings(tables["directprobe"])
    if "geometry" in tables:
        found += divergence_warnings(tables["geometry"], board.split)
    if "erasure" in tables:
        found += erasure_warnings(tables["erasure"])
    if not found:
        return [Section("warnings", "Warnings", "None. Every probe converged.")]
    return [Section("warnings", "Warnings", "\n\n".join(found), warning=True)]


def _trained_on(description: dict[str, Any]) -> str:
    """Say how many documents of which scored splits a model was trained on; empty where none."""
    counts = {s: description.get(f"{s}_documents_trained_on") for s in ("validation", "test")}
    return ", ".join(f"{n} {split} documents" for split, n in counts.items() if n)


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


LIMITS = {
    "headline": "whether a model uses what a probe reads off its features. Of layers and settings "
    "that were tried, the best on validation is a little too good there.",
    "layers": "whether what a probe reads is used by the model, nor how hard it is to find: "
    "features with more dimensions allow more to any linear probe.",
    "selectivity": "that features are well ordered: a probe too weak for the control is also "
    "selective.",
    "mdl_compression": "accuracy on other rows: the code is of training labels, in one random "
    "order, with linear probes alone. A model that was fine-tuned on these rows has learnt their "
    "labels.",
    "widths": "that a wide network is the right probe: what it finds it may have learned itself.",
    "mdl_curve": "how accurate the probe is after so many rows, and other orders than those sent.",
    "comparisons": "whether another seed would give the same: the rows are drawn again, the "
    "training is not. A large p says that these rows cannot tell, not that there is no difference.",
    "gains": "why it changed, nor whether another seed would give the same: intervals and p are "
    "over rows, not over runs.",
    "drift": "whether what moved matters to the task: CKA hardly sees directions of little "
    "variance.",
    "directprobe": "how labels lie among other rows, nor that one linear classifier would do. Few "
    "rows in many dimensions are separable whatever their labels mean.",
    "geometry": "which arrangement is better: that labels lie alike says nothing about accuracy. "
    "Of few labels a correlation of distances is uncertain.",
    "label_distances": "whether rows of two labels are mixed where hulls are apart, nor how far "
    "they are for what fills the space: where all distances grow alike, this one does, too.",
    "centroid_paths": "what lies across the plane: paths that cross here may be far apart.",
    "erasure": "what the model itself would do: features are changed after the forward pass, and "
    "what is not linear in the concept stays.",
    "classes": "intervals: scores of rare classes are of few rows.",
    "confusion": "how sure the probe was, nor intervals: shares of rare classes are of few rows.",
    "pca": "what lies in other directions: classes that overlap here may be apart there.",
}

MEASURED = {
    "selectivity": (
        "Selectivity",
        "Accuracy of the linear probe minus that of a probe for a control task, which gives every "
        "word a random label (Hewitt & Liang 2019). A probe that can learn the control by heart "
        "says little about the features.",
        "accuracy beyond that of the control",
        {"no more than the control": 0.0},
    ),
    "mdl_compression": (
        "Description length",
        "How many times fewer bits it takes to send the training labels to someone who has the "
        "features than to someone who has not, learning as they come (Voita & Titov 2020). At 1 "
        "the features save nothing; at 2, half of the bits.",
        "compression: bits without features / bits with them",
        {"features save nothing": 1.0},
    ),
}


def measured_sections(board: Scoreboard) -> list[Section]:
    """Measures of linear probes beside their scores, by layer."""
    results, sections = board.table(), []
    for metric, (title, text, axis, lines) in MEASURED.items():
        if metric not in set(results["metric"]):
            continue
        table = layer_table(results, metric, "train")
        what = f"{title} by layer"
        figure = layers_figure(results, metric, "train", axis, lines, what)
        sections.append(Section(metric, title, text, table, figure, what, fold=True))
    return sections


def label_sections(board: Scoreboard, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """Clusters of DirectProbe and the arrangement of labels, as far as they were measured."""
    sections = []
    if "directprobe" in tables:
        text = (
            "Training rows in clusters of one label each whose convex hulls do not meet those of "
            "other labels (Zhou & Srikumar 2021). As many clusters as labels (dotted), called "
            "linear: no hulls of labels meet, so that a hyperplane separates each pair; one "
            "linear classifier of all labels need not. Where pairs of labels have fewer rows than "
            "twice the dimensions, or a label has few, that is to be expected of any labels: what "
            "shuffled labels give stands beside, and where they are linear too it says nothing "
            "about the features. "
            "Distances are between hulls, 0 where they meet: of labels, and of clusters of "
            f"different labels. For accuracy, {board.split} rows get the label of the nearest "
            "cluster. Each pair of labels stands in label_pairs.csv."
        )
        sections.append(
            Section(
                "directprobe",
                "Clusters of labels",
                text,
                tables["directprobe"],
                directprobe_figure(tables["directprobe"]),
                "Clusters, distance of labels and accuracy of the nearest cluster by layer",
                fold=True,
            )
        )
    if "geometry" in tables:
        text = (
            "Similarity is the correlation of label-pair distances between hulls (Zhou & Srikumar "
            "2021; 0 where they meet): 1 = the labels lie in the same arrangement. Of training "
            f"rows and {board.split} rows, with a bootstrap interval over labels; and with the "
            "first model. Columns of centroids say the same of distances between centroids, with "
            "intervals over rows. Centroids move by so many times the spread that a label had "
            "before; the mean cosine of two moves is 1 where all labels move alike. Effective "
            "rank: how many directions the rows use."
        )
        sections.append(
            Section(
                "geometry",
                "How the labels lie",
                text,
                tables["geometry"],
                geometry_figure(tables["geometry"], board.split),
                "Similarity of arrangements by layer",
                fold=True,
            )
        )
    return sections


def confusion_sections(board: Scoreboard, headline: pd.DataFrame) -> list[Section]:
    """Confusion of the first and the last row of the headline that predicts; one label a row."""
    if board.spec.problem_type != "single_label":
        return []
    chosen = [
        (what, key)
        for what, key in zip(headline["what"], headline["key"], strict=True)
        if key in board.predicted
        and not key.model.endswith(RANDOM)
        and (what.endswith("best frozen layer") or "own head" in what)
    ]
    shown = dict(chosen[:1] + chosen[-1:])
    predicted = {what: board.predicted[key] for what, key in shown.items()}
    figure = confusion_figure(predicted, board.labels[board.split], board.spec.names)
    text = f"Shares of each true class on {board.split}, by the class that was predicted."
    table = confusions_table(predicted, board.labels[board.split], board.spec.names)
    if len(table):
        text += " The numbers: the confusions of most rows."
    what = "Confusion matrices of " + " and ".join(predicted)
    table = table if len(table) else None
    return [Section("confusion", "Confusion", text, table, figure, what, fold=True)]


def confusions_table(
    predicted: dict[str, np.ndarray], truth: np.ndarray, names: Sequence[str], most: int = 20
) -> pd.DataFrame:
    """The pairs of a true and another predicted class that most rows have, for each entry.

    Args: see `figures.confusion_figure`.
    """
    size, counts, rows = len(names), np.bincount(truth, minlength=len(names)), []
    for what, classes in predicted.items():
        pairs, of_pair = np.unique((truth * size + classes)[truth != classes], return_counts=True)
        for at in np.argsort(-of_pair, kind="stable")[:most]:
            true, other = divmod(int(pairs[at]), size)
            row = {"probe": what, "true": names[true], "predicted": names[other]}
            share = float(of_pair[at] / counts[true])
            rows.append(row | {"rows": int(of_pair[at]), "share of the true class": share})
    return pd.DataFrame(rows)


def pca_sections(board: Scoreboard, models: list[ProbedModel]) -> list[Section]:
    """Principal components of the first and last layer of each model; one label a row."""
    if board.spec.problem_type != "single_label":
        return []
    panels = {}
    for model in models:
        x = model.features[board.split]
        for layer in (0, x.shape[1] - 1):
            panels[f"{model.name}, layer {layer}"] = x[:, layer, model.compared_pooling]
    pooling = models[0].poolings[models[0].compared_pooling]
    title = f"{board.split} rows, {pooling} pooling"
    figure = pca_figure(panels, board.labels[board.split], board.spec.names, title)
    text = "The two directions in which the rows differ most; each panel has its own."
    coloured = frequent_classes(board.labels[board.split], len(board.spec.names))
    grey = [name for k, name in enumerate(board.spec.names) if k not in coloured]
    if grey:
        text += " Grey, the less frequent classes: " + ", ".join(grey) + "."
    what = "Scatter plots of two principal components"
    return [Section("pca", "Principal components", text, figure=figure, figure_text=what)]


def probed_sections(
    models: Sequence[ProbedModel], descriptions: list[dict[str, Any]]
) -> list[Section]:
    table = pd.DataFrame(descriptions).drop(columns="holds")
    plain = "\n\n".join(one["holds"] for one in descriptions)
    folder = Path(next(iter(models[0].features.values())).filename).parent
    text = (
        f"Features are in {folder}; {INDEX} there says in which file those of a model and split "
        "are: numpy.load(hash + '.npy', mmap_mode='r')[row, layer, pooling], with layers from 0 "
        "on, all of them, and poolings in the order of the index. rows.csv beside this page says "
        "which id and label a row has."
    )
    return [Section("probed", "What was probed", text, table, plain=plain)]
