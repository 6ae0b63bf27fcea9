"""Read the tables that run_probe.py left for each step of the study.

A row of `layers` is a layer of an encoder before (model base) or after (tuned) it was fine-tuned on
a task; of `labels` a label in it; of `cross` an encoder that was fine-tuned on one task and probed
on another, with `cross_labels`; of `epochs` a checkpoint, with `epoch_labels` and `paths`; of
`erased` a layer before or after, and what the task loses there with another concept.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import sweep

from bertchain.probing.each_label import SMALLEST

TASKS = {"pos": "POS", "dep": "DEP", "role": "PS-role", "function": "PS-fxn", "trec": "TREC-50"}
STEPS = {  # study -> tasks
    "layers": tuple(TASKS),
    "cross": tuple(TASKS),
    "epochs": ("pos", "role", "trec"),
    "erasure": ("pos", "trec"),
}
LEFT = {"erasure": "erasure.csv"}  # what a step that is done has left; others label_distances.csv
RELATED = (("PS-role", "PS-fxn"), ("PS-fxn", "PS-role"))  # fine-tuned on, probed on
OPPOSING = (("POS", "PS-fxn"), ("POS", "PS-role"))  # prepositions together, or apart
INSIDE = "mean distance inside"
SCORES = (  # of a linear probe: column, split as results.csv has it, metric
    ("accuracy", "test", "accuracy"),
    ("selectivity", "train", "selectivity"),
    ("compression", "train", "mdl_compression"),
)


class Study(NamedTuple):
    """All that was read, of all encoders; the tables of what is not done are empty.

    Attributes:
        encoders: name, parameters and settings of each.
        missing: steps that are not done, in words.
    """

    encoders: pd.DataFrame
    layers: pd.DataFrame
    labels: pd.DataFrame
    cross: pd.DataFrame
    cross_labels: pd.DataFrame
    between: pd.DataFrame
    epochs: pd.DataFrame
    epoch_labels: pd.DataFrame
    paths: pd.DataFrame
    erased: pd.DataFrame
    missing: list[str]


def read_study(folders: Sequence[Path]) -> Study:
    """Read what is done. Args: folders: of an encoder each, whose name it has."""
    names = [folder.resolve().name for folder in folders]
    done = {
        (name, step): [task for task in tasks if is_done(folder / task / step)]
        for name, folder in zip(names, folders, strict=True)
        for step, tasks in STEPS.items()
    }

    def each(step: str, read: Callable[[Path, str], pd.DataFrame]) -> pd.DataFrame:
        tables = [
            read(folder / task / step, TASKS[task]).assign(encoder=name)
            for name, folder in zip(names, folders, strict=True)
            for task in done[name, step]
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    missing = [
        f"{name}, {step}: {', '.join(TASKS[task] for task in STEPS[step] if task not in own)}"
        for (name, step), own in done.items()
        if len(own) < len(STEPS[step])
    ]
    pairs = [
        between_tasks(folder, done[name, "layers"]).assign(encoder=name)
        for name, folder in zip(names, folders, strict=True)
    ]
    found = [
        read_encoder(folder).assign(encoder=name)
        for name, folder in zip(names, folders, strict=True)
    ]
    return Study(
        encoders=pd.concat(found, ignore_index=True),
        layers=each("layers", by_layer),
        labels=each("layers", by_label),
        cross=each("cross", cross_task),
        cross_labels=each("cross", by_label),
        between=pd.concat(pairs, ignore_index=True),
        epochs=each("epochs", by_epoch),
        epoch_labels=each("epochs", by_label),
        paths=each("epochs", centroid_paths),
        erased=each("erasure", erasures),
        missing=missing,
    )


def is_done(folder: Path) -> bool:
    return (folder / LEFT.get(folder.name, "label_distances.csv")).is_file()


def read_table(path: Path) -> pd.DataFrame:
    """Read a table in which a label may be called NA."""
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def read_encoder(folder: Path) -> pd.DataFrame:
    """Read the size of an encoder and how it was probed, of the first step that is done."""
    for path in sorted(folder.glob("*/*/all_results.json")):
        about = json.loads(path.read_text(encoding="utf-8"))
        if "models" in about:
            size, versions = about["models"][0], about["versions"]
            said = ", ".join(f"{name} {version}" for name, version in versions.items())
            sizes = {"parameters": size["parameters"], "blocks": size["blocks"]}
            return pd.DataFrame([sizes | {"hidden": size["hidden"], "versions": said}])
    return pd.DataFrame([{"parameters": float("nan"), "blocks": float("nan"), "versions": ""}])


# ---------------------------------------------------------------- scores


def study_probe(results: pd.DataFrame) -> str:
    """Choose the probe that the study reports: the network of the paper, where it was trained."""
    return "mlp" if (results["probe"] == "mlp").any() else "linear"


def accuracies(folder: Path) -> pd.DataFrame:
    """Read test accuracies by model and layer: of the study's probe, of linear ones, and the gain
    of the study's over the first model's, with the interval of this (95 %, rows and starts)."""
    results = read_table(folder / "results.csv")
    probe = study_probe(results)
    scores = results[(results["split"] == "test") & (results["metric"] == "accuracy")]
    scores = scores.assign(layer=scores["layer"].astype(float))
    scores = scores[scores["layer"].notna()].astype({"layer": int})
    wide = scores.pivot(index=["model", "layer"], columns="probe", values="value")
    table = pd.DataFrame({"accuracy": wide[probe], "linear accuracy": wide["linear"]})
    table["probe"] = probe
    if (folder / "gains.csv").is_file():
        gains = read_table(folder / "gains.csv")
        gains = gains[gains["probe"] == probe].set_index(["model", "layer"])
        (value,) = (name for name in gains if " against " in name)
        table["gain"], table["gain ± 95 %"] = gains[value], gains["± 95 %"]
    return table


# ---------------------------------------------------------------- before and after


def by_layer(folder: Path, task: str) -> pd.DataFrame:
    """Collect scores, clusters, distances and similarities, a row for each model and layer."""
    at = ["model", "layer"]
    clusters, geometry = (
        read_table(folder / f"{name}.csv").set_index(at) for name in ("directprobe", "geometry")
    )
    labels = read_table(folder / "label_distances.csv")
    table = (
        accuracies(folder)
        .reindex(clusters.index)
        .assign(
            **{
                "labels": clusters["labels"],
                "clusters": clusters["clusters"],
                "shuffled apart": clusters.get("linear, shuffled labels"),
                "distance of labels": clusters["mean distance of labels"],
                SMALLEST: labels.groupby(at)[SMALLEST].mean(),
                INSIDE: mean_inside(labels),
                "similarity with before": geometry.get("similarity with the first"),
                "similarity ± 95 %": geometry.get("± 95 % with the first"),
                "centroids moved by": geometry.get("centroids moved by"),
                "moves alike": geometry.get("mean cosine of two moves"),
                "train and test": geometry["train and new, similarity"],
                "train and test ± 95 %": geometry["± 95 %"],
                "change": geometry.get("train and new, change"),
                "change ± 95 %": geometry.get("± 95 % of the change"),
            }
        )
    )
    return table.reset_index().assign(task=task)


def mean_inside(labels: pd.DataFrame) -> pd.Series:
    """Average the mean distance inside the labels of at least two rows, by model and layer."""
    return labels[labels["rows"] > 1].groupby(["model", "layer"])[INSIDE].mean()


def by_label(folder: Path, task: str) -> pd.DataFrame:
    return read_table(folder / "label_distances.csv").assign(task=task)


def last_of(table: pd.DataFrame) -> pd.DataFrame:
    """Select the last layer of each encoder and task."""
    if not len(table):
        return table
    keys = ["encoder", "task"]
    return table[table["layer"] == table.groupby(keys)["layer"].transform("max")]


def changes(labels: pd.DataFrame, before: str, after: str) -> pd.DataFrame:
    """Compare each label of one encoder, task and layer in two models; [labels].

    Returns:
        `change`: of the smallest distance to another label, in mean distances inside labels before;
        `of ratio`: of the smallest distance over the mean distance inside this label, NaN for
        labels of one row.
    """
    wide = labels.pivot(index="label", columns="model", values=[SMALLEST, INSIDE, "rows"])
    inside = wide[INSIDE].where(wide["rows"] > 1)
    ratio = wide[SMALLEST] / inside.where(inside > 0)
    return pd.DataFrame(
        {
            "change": (wide[SMALLEST][after] - wide[SMALLEST][before]) / inside[before].mean(),
            "of ratio": ratio[after] - ratio[before],
        }
    ).astype(float)


def count_changes(labels: pd.DataFrame, before: str, after: str) -> dict[str, float]:
    """Count the labels whose smallest distance grew or shrank; the mean change, with its interval
    over labels (Student's t)."""
    change = changes(labels, before, after)["change"].dropna()
    return {
        "labels": len(change),
        "grew": int((change > 0).sum()),
        "shrank": int((change < 0).sum()),
        "mean change": float(change.mean()),
        "mean change ± 95 %": sweep.half_interval(change),
    }


# ---------------------------------------------------------------- other tasks


def kind_of(tuned: str, probed: str) -> str:
    """Name how close two tasks are."""
    if tuned in ("nothing", probed):
        return "before" if tuned == "nothing" else "the same"
    return "related" if (tuned, probed) in RELATED else "other"


def cross_task(folder: Path, task: str) -> pd.DataFrame:
    """Collect what each encoder that was probed on a task gives, a row for each."""
    clusters = read_table(folder / "directprobe.csv").set_index("model")
    labels = read_table(folder / "label_distances.csv")
    table = accuracies(folder).droplevel("layer").loc[clusters.index]
    table["clusters"] = clusters["clusters"]
    models = [*table.index]
    counts = {m: count_changes(labels, models[0], m) for m in models[1:]}
    table = table.join(pd.DataFrame(counts).T).reset_index()
    tuned = [TASKS.get(model, "nothing") for model in table["model"]]
    kinds = [kind_of(one, task) for one in tuned]
    return table.assign(**{"fine-tuned on": tuned, "probed on": task, "kind": kinds})


def between_tasks(folder: Path, tasks: Sequence[str]) -> pd.DataFrame:
    """Correlate the distances of hulls of labels that two tasks share (Pearson, over label pairs).

    Before: both in the encoder as it was; after: each in the encoder fine-tuned on its own task.
    """
    found = {}
    for task in tasks:
        pairs = read_table(folder / task / "layers" / "label_pairs.csv")
        last = pairs[pairs["layer"] == pairs["layer"].max()]
        ends = [
            tuple(sorted(ends)) for ends in zip(last["label"], last["other label"], strict=True)
        ]
        found[task] = last.assign(pair=ends).pivot(
            index="pair", columns="model", values="distance of hulls"
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


# ---------------------------------------------------------------- along a run


def by_epoch(folder: Path, task: str) -> pd.DataFrame:
    """Collect the figures of each layer along one run, a row for each checkpoint."""
    table = by_layer(folder, task)
    order = {model: k for k, model in enumerate(table["model"].unique())}
    return table.assign(epoch=table["model"].map(order)).rename(columns={"model": "checkpoint"})


def centroid_paths(folder: Path, task: str) -> pd.DataFrame:
    path = folder / "centroid_paths.csv"
    return read_table(path).assign(task=task) if path.is_file() else pd.DataFrame()


# ---------------------------------------------------------------- erased concepts


def erasures(folder: Path, task: str) -> pd.DataFrame:
    """Read what a task loses with a concept, beside its scores: a row for each model and layer.

    compression: of the labels that the probe was trained on (Voita & Titov 2020). selectivity: of
    words alone, accuracy less that on random labels of each word (Hewitt & Liang 2019).
    """
    table = read_table(folder / "erasure.csv").drop(columns="token pooling")
    results = read_table(folder / "results.csv")
    linear = results[(results["probe"] == "linear") & results["layer"].notna()]
    places = pd.MultiIndex.from_frame(table[["model", "layer"]].astype({"layer": float}))
    table.insert(0, "task", task)
    for place, (name, split, metric) in enumerate(SCORES, 3):
        own = linear[(linear["metric"] == metric) & (linear["split"] == split)]
        own = own.astype({"layer": float}).set_index(["model", "layer"])["value"]
        table.insert(place, name, own.reindex(places).to_numpy())
    return table
