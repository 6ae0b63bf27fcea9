"""Judge the claims of Zhou & Srikumar 2022 by the folders that study.yaml fills.

    python examples/zhou2022/tables.py study/bert-tiny
    python examples/zhou2022/tables.py study/bert-tiny study/minilm    # encoders side by side

Works on what is done: steps that are not are named. Writes report.html, one page that needs nothing
else, study.md with its pictures, claims.csv and a table for each part, into the first folder. Each
folder holds one encoder, and names it. Distances and similarities are those of hulls.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import judging
import pandas as pd
import verdicts
import views
from readings import SMALLEST, Study, count_changes, last_of, read_study

from bertchain.cli import run_script
from bertchain.errors import InputError
from bertchain.runtime.files import write_csv
from bertchain.runtime.html import Section, write_report_files
from bertchain.runtime.records import markdown_table

COUNTS = ("labels", "clusters", "grew", "shrank")


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        raise InputError("give the folder that study.yaml filled: tables.py study")
    if len({folder.resolve().name for folder in folders}) < len(folders):
        raise InputError("the folders name the encoders: give folders of different names")
    study = read_study(folders)
    if not any(map(len, (study.layers, study.cross, study.epochs, study.erased))):
        said = ", ".join(map(str, folders))
        raise InputError(f"{said}: holds no TASK/STEP/label_distances.csv; run study.yaml first")
    judged = verdicts.all_claims(study)
    told = pd.DataFrame([claim.row for claim in judged])
    tables = tables_of(study)
    for name, table in {"claims": told, **tables}.items():
        write_csv(folders[0] / f"{name}.csv", table)
    sections = [claims_section(judged, told), *missing_sections(study)]
    sections += [*own_sections(study, tables), *other_sections(study, tables), how_section(study)]
    write_report_files(folders[0], "How fine-tuning changes an encoder", sections)
    (folders[0] / "report.md").replace(folders[0] / "study.md")
    print(markdown_table(told[["verdict", "claim", "ours"]]))
    print(f"Wrote {folders[0] / 'report.html'}")


# ---------------------------------------------------------------- tables


def tables_of(study: Study) -> dict[str, pd.DataFrame]:
    """Make the tables that are written, by file name."""
    found = {}
    if len(study.layers):
        found["before_and_after"] = before_and_after(study)
        found["label_counts"] = label_counts(study.labels)
        found["by_layer"] = lead(study.layers)
    if len(study.cross):
        found["cross_task"] = lead(study.cross, "fine-tuned on", "probed on", "kind")
        found["by_kind"] = by_kind(study.cross)
    if len(study.between):
        found["shared_labels"] = lead(study.between)
    if len(study.epochs):
        found["by_epoch"] = lead(study.epochs, "task", "layer", "epoch")
    if len(study.erased):
        found["erasure"] = lead(study.erased)
    return found


def lead(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Put the encoder and these columns first; leave out what is empty everywhere."""
    table = table.dropna(axis=1, how="all")
    table = table.astype({name: "Int64" for name in COUNTS if name in table})  # not all are known
    first = ["encoder", *(names or [n for n in ("task", "model", "layer") if n in table])]
    return table[[*first, *(name for name in table if name not in first)]]


def before_and_after(study: Study) -> pd.DataFrame:
    """Tabulate the last layers by task and size of the encoder, before and after."""
    wide = last_of(study.layers).pivot(index=["encoder", "task"], columns="model")
    size = study.encoders.set_index("encoder")["parameters"]
    names = ("accuracy", "linear accuracy", "clusters", SMALLEST, "train and test")
    columns = {"labels": wide["labels", "base"]}
    for name in names:
        columns |= {f"{name}, before": wide[name, "base"], f"{name}, after": wide[name, "tuned"]}
        if name == "accuracy":
            columns |= {n: wide[n, "tuned"] for n in ("gain", "gain ± 95 %")}
    columns |= {n: wide[n, "tuned"] for n in ("change", "change ± 95 %", "similarity with before")}
    table = pd.DataFrame(columns).reset_index()
    table.insert(0, "task", table.pop("task"))
    table.insert(2, "parameters", table["encoder"].map(size))
    order = pd.CategoricalDtype(list(study.layers["task"].unique()), ordered=True)
    return table.astype({"task": order}).sort_values(["task", "parameters"])


def label_counts(labels: pd.DataFrame) -> pd.DataFrame:
    """Count the labels whose smallest distance grew or shrank, by encoder, task and layer."""
    rows = []
    for (encoder, task, layer), own in labels.groupby(["encoder", "task", "layer"], sort=False):
        at = {"encoder": encoder, "task": task, "layer": layer}
        rows.append(at | count_changes(own, "base", "tuned"))
    return pd.DataFrame(rows)


def by_kind(cross: pd.DataFrame) -> pd.DataFrame:
    """Sum up encoders fine-tuned on the same, a related and another task than is probed."""
    tuned = cross[cross["kind"] != "before"]
    groups = tuned.groupby(["encoder", "kind"], sort=False)
    table = groups[["grew", "shrank"]].sum().astype(int)
    table.insert(0, "pairs of tasks", groups.size())
    table["mean change of distances"] = groups["mean change"].mean()
    table["mean gain"] = groups["gain"].mean()
    table["gains above 0"] = groups["gain"].agg(lambda gain: int((gain > 0).sum()))
    return table.reset_index()


# ---------------------------------------------------------------- the page


def claims_section(judged: list[verdicts.Claim], told: pd.DataFrame) -> Section:
    text = (
        f"{judging.count_verdicts(told['verdict'])}\n\nBehind each are one or several values that "
        "are above 0 if it holds; after ± is half the interval (level 1 - .05 / number of values). "
        "Confirmed: all intervals lie above 0. Not confirmed: one lies below 0. Otherwise it "
        "cannot be told. What is counted, such as clusters, has no interval: it holds for these "
        "rows. One fine-tuning of each task: intervals do not allow for other seeds of it."
    )
    drawn = [
        judging.Drawn(c.text["claim"], c.verdict, [value.value for value in c.values], c.halves)
        for c in judged
    ]
    figure = judging.claims_figure(drawn, "above 0 as claimed; units differ between claims", 0.5)
    what = "Values behind each claim with intervals, coloured by verdict"
    return Section("claims", "All claims at a glance", text, told, figure, what)


def missing_sections(study: Study) -> list[Section]:
    """Name what is not done."""
    text = "Not run yet: " + "; ".join(study.missing) + "."
    return [Section("missing", "Missing", text, warning=True)] if study.missing else []


def own_sections(study: Study, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """Show each encoder before and after, on the task that it was fine-tuned on."""
    if not len(study.layers):
        return []
    probe = {"mlp": "network with two hidden layers", "linear": "linear probe"}
    used = " and ".join(probe[name] for name in study.layers["probe"].dropna().unique())
    return [
        Section(
            "before_and_after",
            "By task and size of the encoder",
            f"The last layer. Accuracy on test rows, of the {used}; gains with intervals over rows "
            "and starts of the probe. Train and test: similarity of their arrangements; its change "
            "with intervals over labels. In the picture the gains.",
            tables["before_and_after"],
            views.gains_figure(study.layers),
            "Gain of accuracy by task and encoder",
        ),
        Section(
            "label_counts",
            "Labels that moved away, and labels that came nearer",
            "By the smallest distance of each label's hull to another one's. Mean change in mean "
            "distances inside labels before, with its interval over labels. In the picture a dot "
            "a label, the last layer: above the line it moved away.",
            tables["label_counts"],
            views.labels_figure(study.labels),
            "Smallest distance of each label before and after",
            fold=True,
        ),
        Section(
            "by_layer",
            "By layer",
            "Smallest distance: mean over labels. Similarity with before: correlation of the "
            "distances of all pairs of labels. Centroids moved by spreads of a label before; moves "
            "alike: mean cosine of two labels' moves.",
            tables["by_layer"],
            views.layers_figure(study.layers),
            "Accuracy, smallest distance and similarity by layer and task",
            fold=True,
        ),
    ]


def other_sections(study: Study, tables: dict[str, pd.DataFrame]) -> list[Section]:
    """Show encoders on tasks of others, and what happens from epoch to epoch."""
    sections = []
    if len(study.cross):
        text = (
            "The last layer. Grew, shrank: labels by their smallest distance, against the encoder "
            "as it was; mean change in mean distances inside labels before."
        )
        figure = views.matrix_figure(study.cross)
        title, what = "Every encoder on every task", "Accuracy and change of distances"
        table = tables["cross_task"]
        sections.append(Section("cross_task", title, text, table, figure, what, fold=True))
        title = "Related and other tasks"
        text = "Related: PS-role and PS-fxn. Sums of labels over pairs of tasks, means of the rest."
        sections.append(Section("by_kind", title, text, tables["by_kind"]))
    if len(study.between):
        title, text = "Labels that two tasks share", "Correlation of the distances of their pairs."
        sections.append(Section("shared_labels", title, text, tables["shared_labels"]))
    if len(study.epochs):
        text = (
            "Smallest distance of each label, the last layer; coloured are those that grew most "
            "and least."
        )
        figure, what = views.epochs_figure(study.epoch_labels), "Smallest distances by epoch"
        table = tables["by_epoch"]
        title = "From epoch to epoch"
        sections.append(Section("by_epoch", title, text, table, figure, what, fold=True))
    if len(study.paths):
        text = (
            "Centroids of the labels that move furthest, from epoch to epoch, in one plane a run "
            "and layer; scales differ."
        )
        figure = views.paths_figure(study.paths)
        title, what = "Where centroids move", "Paths of centroids"
        sections.append(Section("paths", title, text, None, figure, what))
    if len(study.erased):
        text = (
            "LEACE takes all that a linear probe can say of a concept (POS: the relation of the "
            "word; TREC-50: its six coarse classes); what the task loses with it, it had read from "
            "the same directions. Compression is that of training labels, which fine-tuning has "
            "seen; selectivity is for words."
        )
        title, shown = "What a task loses with another concept", erasure_summary(study.erased)
        sections.append(Section("erasure", title, text, shown))
    return sections


def erasure_summary(erased: pd.DataFrame) -> pd.DataFrame:
    """The columns that tell most; all of them are in erasure.csv."""
    (lost,) = (name for name in erased if name.startswith("test ") and name.endswith(" lost"))
    names = ["task", "model", "layer", "accuracy", "selectivity", "compression", "concept before"]
    names += [lost, "± 95 %", "lost to shuffled labels", "the task needs it"]
    return erased[["encoder", *names]]


def how_section(study: Study) -> Section:
    """Say what was probed."""
    table = study.encoders.drop(columns="versions")
    lines = [f"{row.encoder}: {row.versions}" for row in study.encoders.itertuples()]
    table = table[["encoder", *(name for name in table if name != "encoder")]]
    return Section("how", "What was probed", "", table, plain="\n\n".join(lines))


if __name__ == "__main__":
    run_script(main, __doc__)
