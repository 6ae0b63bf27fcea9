"""Tabulate the study of Zhou & Srikumar 2022 from the folders that study.yaml fills.

    python examples/zhou2022/tables.py study

Writes study.md, cross_task.png and epochs.png into the folder. Each claim of the paper comes with
the rule by which it is judged and the figures behind it. Similarities are those of the paper: of
distances between hulls.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bertchain.cli import run_script
from bertchain.errors import InputError
from bertchain.runtime.figures import as_png
from bertchain.runtime.files import atomic_write, write_text
from bertchain.runtime.records import markdown_table

TASKS = {"pos": "POS", "dep": "DEP", "role": "PS-role", "function": "PS-fxn", "trec": "TREC-50"}


def main() -> None:
    if len(sys.argv) != 2:
        raise InputError("give the folder that study.yaml filled: tables.py study")
    folder = Path(sys.argv[1])
    tasks = [task for task in TASKS if (folder / task / "layers" / "results.csv").is_file()]
    if not tasks:
        raise InputError(f"{folder}: holds no TASK/layers/results.csv; run study.yaml first")
    layers = pd.concat([by_layer(folder / task / "layers", task) for task in tasks])
    cross = pd.concat([cross_task(folder / task / "cross", task) for task in tasks])
    between = between_tasks(folder, tasks)
    epochs = training_run(folder / "trec" / "epochs")
    parts = ["# How fine-tuning changes the encoder\n", "## Claims\n"]
    parts += [markdown_table(claims(layers, cross)), "## Before and after, last layer\n"]
    parts += [markdown_table(before_and_after(layers)), "## By layer\n", markdown_table(layers)]
    if len(cross):
        parts += ["## Every encoder on every task, last layer\n", "![matrix](cross_task.png)\n"]
        parts.append(markdown_table(cross))
        write_figure(folder / "cross_task.png", matrix_figure(cross))
    if len(between):
        parts += ["## Labels that two tasks share, last layer\n", markdown_table(between)]
    if len(epochs):
        parts += ["## Along one training run (TREC-50, last layer)\n", "![epochs](epochs.png)\n"]
        parts.append(markdown_table(epochs))
        write_figure(folder / "epochs.png", epochs_figure(epochs))
    write_text(folder / "study.md", "\n".join(parts))
    print((folder / "study.md").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- reading


def probe_accuracy(folder: Path) -> pd.Series:
    """Read the test accuracy of linear probes by model and layer."""
    results = pd.read_csv(folder / "results.csv", keep_default_na=False)
    rows = results[
        (results["probe"] == "linear")
        & (results["split"] == "test")
        & (results["metric"] == "accuracy")
    ]
    return rows.assign(layer=rows["layer"].astype(float).astype(int)).set_index(["model", "layer"])[
        "value"
    ]


def by_layer(folder: Path, task: str) -> pd.DataFrame:
    """Collect accuracy, clusters, distances and similarities, a row for each model and layer."""
    clusters = pd.read_csv(folder / "directprobe.csv").set_index(["model", "layer"])
    geometry = pd.read_csv(folder / "geometry.csv").set_index(["model", "layer"])
    table = pd.DataFrame(
        {
            "accuracy of probe": probe_accuracy(folder),
            "labels": clusters["labels"],
            "clusters": clusters["clusters"],
            "linear": clusters["linear"],
            "shuffled": clusters.get("linear, shuffled labels"),
            "distance of labels": clusters["mean distance of labels"],
            "distance of clusters": clusters["mean distance of clusters"],
            "similarity with before": geometry["similarity with the first"],
            "of centroids": geometry["similarity with the first, centroids"],
            "centroids moved by": geometry["centroids moved by"],
            "train and test": geometry["train and new, similarity"],
            "change": geometry["train and new, change"],
            "± 95 %": geometry["± 95 % of the change"],
        }
    ).reset_index()
    table.insert(0, "task", TASKS[task])
    return table


def cross_task(folder: Path, task: str) -> pd.DataFrame:
    """Collect accuracy and clusters on a task, a row for each encoder that was probed on it."""
    if not (folder / "directprobe.csv").is_file():
        return pd.DataFrame()
    clusters = pd.read_csv(folder / "directprobe.csv").set_index("model")
    accuracy = probe_accuracy(folder).droplevel("layer")
    return pd.DataFrame(
        {
            "fine-tuned on": [TASKS.get(model, "nothing") for model in clusters.index],
            "probed on": TASKS[task],
            "accuracy of probe": accuracy.loc[clusters.index].to_numpy(),
            "labels": clusters["labels"].to_numpy(),
            "clusters": clusters["clusters"].to_numpy(),
        }
    )


def between_tasks(folder: Path, tasks: list[str]) -> pd.DataFrame:
    """Correlate the distances of hulls of labels that two tasks share (Pearson, over label pairs).

    Before: both in the encoder as it was; after: each in the encoder fine-tuned on its own task.
    """
    found = {}
    for task in tasks:
        pairs = pd.read_csv(folder / task / "layers" / "label_pairs.csv", keep_default_na=False)
        last = pairs[pairs["layer"] == pairs["layer"].max()]
        distance = pd.to_numeric(last["distance of hulls"], errors="coerce")
        ends = [
            tuple(sorted(ends)) for ends in zip(last["label"], last["other label"], strict=True)
        ]
        found[task] = last.assign(pair=ends, distance=distance).pivot(
            index="pair", columns="model", values="distance"
        )
    rows = []
    for one, other in itertools.combinations(tasks, 2):
        sides = found[one].add_suffix(" one"), found[other].add_suffix(" other")
        both = pd.concat(sides, axis=1, join="inner").dropna()
        if len(both) < 3:
            continue
        row = {"tasks": f"{TASKS[one]} and {TASKS[other]}", "label pairs": len(both)}
        for when, model in (("before", "base"), ("after", "tuned")):
            row[when] = both[f"{model} one"].corr(both[f"{model} other"])
        rows.append(row)
    return pd.DataFrame(rows)


def training_run(folder: Path) -> pd.DataFrame:
    """Collect the figures of the last layer along one run, a row for each checkpoint."""
    if not (folder / "directprobe.csv").is_file():
        return pd.DataFrame()
    clusters = pd.read_csv(folder / "directprobe.csv").set_index("model")
    geometry = pd.read_csv(folder / "geometry.csv").set_index("model")
    accuracy = probe_accuracy(folder).droplevel("layer")
    return pd.DataFrame(
        {
            "checkpoint": clusters.index,
            "accuracy of probe": accuracy.loc[clusters.index].to_numpy(),
            "clusters": clusters["clusters"].to_numpy(),
            "distance of labels": clusters["mean distance of labels"].to_numpy(),
            "similarity with start": geometry["similarity with the first"].to_numpy(),
            "train and test": geometry["train and new, similarity"].to_numpy(),
        }
    )


# ---------------------------------------------------------------- what they say


def ends(layers: pd.DataFrame) -> pd.DataFrame:
    """Put the last layers before and after fine-tuning side by side, a row for each task."""
    last = layers[layers["layer"] == layers.groupby("task")["layer"].transform("max")]
    wide = last.pivot(index="task", columns="model").reindex(layers["task"].unique())
    wide.columns = [f"{name}, {'before' if model == 'base' else 'after'}" for name, model in wide]
    return wide


def before_and_after(layers: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the last layers, a row for each task."""
    wide = ends(layers)
    names = ("accuracy of probe", "clusters", "distance of labels", "train and test")
    shown = [f"{name}, {when}" for name in names for when in ("before", "after")]
    table = wide[["labels, before", *shown, "change, after", "± 95 %, after"]]
    columns = {"labels, before": "labels", "change, after": "change", "± 95 %, after": "± 95 %"}
    return table.rename(columns=columns).reset_index()


def claims(layers: pd.DataFrame, cross: pd.DataFrame) -> pd.DataFrame:
    """Judge the claims of the paper: for how many tasks or encoders each holds."""
    return pd.DataFrame(
        claims_of_layers(layers) + (claims_of_transfer(cross) if len(cross) else [])
    )


def claims_of_layers(layers: pd.DataFrame) -> list[dict[str, str]]:
    """Judge what is claimed of an encoder before and after, on the task it was fine-tuned on."""
    wide = ends(layers)

    def grew(name: str) -> pd.Series:
        return wide[f"{name}, after"] - wide[f"{name}, before"]

    return [
        judge(
            "Fine-tuning raises the accuracy of probes of the last layer, as a rule",
            grew("accuracy of probe"),
            lambda change: change > 0,
            "{:+.3f}",
        ),
        judge(
            "It makes the last layer simpler: no more clusters than before (judged likewise)",
            grew("clusters")[wide["shuffled, after"] != "yes"],
            lambda change: change <= 0,
            "{:+.0f}",
        ),
        judge(
            "Afterwards the hulls of labels are disjoint: a cluster a label (judged only where "
            "those of shuffled labels meet)",
            (wide["clusters, after"] - wide["labels, before"])[wide["shuffled, after"] != "yes"],
            lambda more: more == 0,
            "{:.0f} more",
        ),
        judge(
            "It moves labels apart: hulls are further from each other, against the spread before",
            grew("distance of labels"),
            lambda change: change > 0,
            "{:+.2f}",
        ),
        judge(
            "Upper layers change more than lower ones: similarity with before is lower in the last "
            "layer than in the first block",
            pd.Series({task: lower_minus_upper(rows) for task, rows in layers.groupby("task")}),
            lambda fall: fall > 0,
            "falls by {:.3f}",
        ),
        judge(
            "Even so the arrangement is kept: similarity above .5 in the last layer",
            wide["similarity with before, after"],
            lambda similarity: similarity > 0.5,
            "{:.3f}",
        ),
        judge(
            "Train and test come apart: similarity of their arrangements falls beyond its interval "
            "over labels",
            wide["change, after"] + wide["± 95 %, after"],
            lambda upper: upper < 0,
            "at most {:+.3f}",
        ),
    ]


def claims_of_transfer(cross: pd.DataFrame) -> list[dict[str, str]]:
    """Judge what is claimed of encoders on tasks that they were not fine-tuned on."""
    gain = cross.set_index(["fine-tuned on", "probed on"])["accuracy of probe"]
    other = pd.Series(
        {
            f"{tuned} -> {probed}": value - gain["nothing", probed]
            for (tuned, probed), value in gain.items()
            if tuned not in ("nothing", probed)
        }
    )
    related = other[[k for k in ("PS-role -> PS-fxn", "PS-fxn -> PS-role") if k in other]]
    return [
        judge(
            "Fine-tuning on a related task helps (PS-role and PS-fxn)",
            related,
            lambda change: change > 0,
            "{:+.3f}",
        ),
        judge(
            "Fine-tuning on another task hurts",
            other.drop(related.index),
            lambda change: change < 0,
            "{:+.3f}",
        ),
    ]


def lower_minus_upper(rows: pd.DataFrame) -> float:
    """Subtract the similarity with before of the last layer from that of the first block."""
    after = rows[rows["model"] != "base"].set_index("layer")["similarity with before"]
    return float(after[1] - after[after.index.max()])


def judge(
    claim: str, values: pd.Series, holds: Callable[[float], bool], shown: str
) -> dict[str, str]:
    """Make a row of the table of claims: for how many values it holds, and the values.

    Args:
        shown: a format of a value, such as "{:+.3f}".
    """
    values = values.dropna()
    held = sum(bool(holds(value)) for value in values)
    figures = "; ".join(f"{name} {shown.format(value)}" for name, value in values.items())
    return {"claim": claim, "holds for": f"{held} of {len(values)}", "figures": figures}


# ---------------------------------------------------------------- pictures


def matrix_figure(cross: pd.DataFrame) -> Figure:
    """Draw accuracy and clusters of every encoder on every task; colours show the change."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("accuracy of probe", "clusters"), strict=True):
        table = cross.pivot(index="fine-tuned on", columns="probed on", values=name)
        table = table.reindex(cross["fine-tuned on"].unique())[cross["probed on"].unique()]
        centred = table - table.loc["nothing"]  # colours say what fine-tuning changed
        limit = max(float(centred.abs().to_numpy().max()), 1e-9)
        colours = "RdBu" if name == "accuracy of probe" else "RdBu_r"
        axis.imshow(centred, vmin=-limit, vmax=limit, cmap=colours)
        for i in range(len(table)):
            for j in range(len(table.columns)):
                value = table.iloc[i, j]
                text = f"{value:.3f}" if name == "accuracy of probe" else f"{value:.0f}"
                ink = "white" if abs(centred.iloc[i, j]) > 0.7 * limit else "black"
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
        axis.set_xticks(range(len(table.columns)), table.columns, fontsize=8)
        axis.set_yticks(range(len(table)), table.index, fontsize=8)
        axis.set(xlabel="probed on", ylabel="fine-tuned on", title=name)
    return figure


def epochs_figure(epochs: pd.DataFrame) -> Figure:
    """Draw the figures of the last layer by epoch, an axis for each."""
    names = [name for name in epochs if name != "checkpoint"]
    figure = Figure(figsize=(2.9 * len(names), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        axis.plot(range(len(epochs)), epochs[name], marker="o", ms=4)
        axis.set(xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(name, fontsize="small")
        axis.grid(alpha=0.3)
    return figure


def write_figure(path: Path, figure: Figure) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(as_png(figure))


if __name__ == "__main__":
    run_script(main, __doc__)
