"""Show what study.py and run_setfit.py measured.

    python examples/few_labels/tables.py few_labels

Writes few_labels.csv, a row for each set, number of rows a class and way: mean over draws with its
95 % interval by Student's t, difference to SetFit by draw, gain of further pretraining by draw,
seconds of training; and report.html, one page with curves, and report.md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import pandas as pd
import sweep
from matplotlib.figure import Figure
from study import ITPT

from bertchain.cli import read_arguments, run_script
from bertchain.errors import InputError
from bertchain.runtime.figures import add_shared_legend, new_figure
from bertchain.runtime.files import write_csv
from bertchain.runtime.html import Section, write_report_files
from bertchain.runtime.records import markdown_table

SETFIT = "SetFit"
SETS = read_arguments(str(Path(__file__).resolve().parent / "sets.yaml"))
PLACES = ("set", "rows a class")
PANELS = 3  # side by side


def main() -> None:
    if len(sys.argv) != 2:
        raise InputError("give the folder that study.py filled: tables.py few_labels")
    folder = Path(sys.argv[1])
    runs = read_runs(folder)
    table = summarise(runs)
    write_csv(folder / "few_labels.csv", table)
    best = table.loc[table.groupby(list(PLACES), sort=False)["score"].idxmax()]
    text = (
        "Mean over draws of the score of the test rows (accuracy, or label-ranking average "
        "precision where a row has several labels), with intervals over draws: for other draws, "
        "the same test rows. Every draw is used by all ways."
    )
    sections = [
        Section("curves", "Score by labelled rows", text, figure=curves(table), figure_text=text),
        Section("best", "The best way at each number of rows", table=best),
        Section("mean", "The mean over sets", table=over_sets(table)),
        Section("all", "All figures", table=table, fold=True),
    ]
    write_report_files(folder, "Few labels", sections)
    print(markdown_table(table))
    print(f"Wrote {folder / 'report.html'}")


def read_runs(folder: Path) -> pd.DataFrame:
    """Read a row for each run: set, rows a class, way, seed, score, seconds.

    Raises:
        InputError: if there is none.
    """
    tables = []
    for name, about in SETS.items():
        counts = [path.parent for path in (folder / name).glob("*/sweep.csv")]
        for place in sorted(counts, key=lambda path: (not path.name.isdigit(), path.name.zfill(9))):
            ways = pd.read_csv(place / "sweep.csv")
            found = [ways]
            if (place / "setfit.csv").is_file():
                found.append(pd.read_csv(place / "setfit.csv").assign(point=SETFIT))
            found = [t[["point", "seed", about["metric"], "train_runtime"]] for t in found]
            runs = pd.concat(found).set_axis(["way", "seed", "score", "seconds"], axis=1)
            tables.append(runs.assign(**{"set": name, "rows a class": place.name}))
    if not tables:
        raise InputError(f"{folder}: holds no SET/COUNT/sweep.csv; run study.py first")
    return pd.concat(tables, ignore_index=True)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Make a row for each set, number of rows and way."""
    rows = []
    for (name, count), own in runs.groupby(list(PLACES), sort=False):
        scores = own.pivot(index="seed", columns="way", values="score")
        for way in own["way"].unique():
            row = {"set": name, "rows a class": count, "way": way}
            row |= {
                "score": scores[way].mean(),
                "± 95 %": sweep.half_interval(scores[way].dropna()),
            }
            if SETFIT in scores and way != SETFIT:
                change = (scores[way] - scores[SETFIT]).dropna()
                row |= {"against SetFit": change.mean(), "its ± 95 %": sweep.half_interval(change)}
            without = way.removesuffix(ITPT)
            if without != way and without in scores:
                gain = (scores[way] - scores[without]).dropna()
                row |= {"by ITPT": gain.mean(), "the gain's ± 95 %": sweep.half_interval(gain)}
            seconds = own.loc[own["way"] == way, "seconds"].median()
            rows.append(row | {"draws": int(scores[way].count()), "seconds": round(seconds, 1)})
    return pd.DataFrame(rows)


def over_sets(table: pd.DataFrame) -> pd.DataFrame:
    """Each way's mean over the sets that all ways were run on, best first, by rows of a class."""
    rows = []
    for count, own in table.groupby("rows a class", sort=False):
        wide = own.pivot(index="way", columns="set", values="score").dropna(axis=1)
        means = wide.mean(axis=1).sort_values(ascending=False)
        at = {"rows a class": count, "sets": ", ".join(wide)}
        rows += [at | {"way": way, "mean score": mean} for way, mean in means.items()]
    return pd.DataFrame(rows)


def curves(table: pd.DataFrame) -> Figure:
    """Draw a panel for each set: a line for each way over the rows of a class, side by side."""
    names, ways = list(table["set"].unique()), list(table["way"].unique())
    columns = min(PANELS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(max(6.5, 3.6 * columns), 3.2 * rows + 1)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, name in zip(panels, names, strict=False):
        own = table[table["set"] == name]
        counts = list(own["rows a class"].unique())
        for way, line in own.groupby("way", sort=False):
            aside = 0.7 * ((ways.index(way) + 0.5) / len(ways) - 0.5)  # no interval hides another
            places = [counts.index(count) + aside for count in line["rows a class"]]
            axis.errorbar(
                places, line["score"], line["± 95 %"].fillna(0), ms=3.5, capsize=2, label=way,
                **look_of(way, ways),
            )  # fmt: skip
        axis.set_xticks(range(len(counts)), counts)
        axis.set(title=name, xlabel="rows a class", xlim=(-0.6, len(counts) - 0.4))
        axis.grid(alpha=0.3)
    for axis in panels[::columns]:
        axis.set(ylabel="score on test rows")
    for axis in panels[len(names) :]:
        axis.set_axis_off()
    add_shared_legend(figure)
    return figure


def look_of(way: str, ways: list[str]) -> dict[str, str]:
    """Return colour and marks of a way: after ITPT its colour is the same, its points are empty."""
    alone = list(dict.fromkeys(name.removesuffix(ITPT) for name in ways))
    look = {"color": f"C{alone.index(way.removesuffix(ITPT))}", "fmt": "o-"}
    if way == SETFIT:
        return look | {"fmt": "o--"}
    return look | {"fmt": "s:", "mfc": "white"} if way.endswith(ITPT) else look


if __name__ == "__main__":
    run_script(main, __doc__)
