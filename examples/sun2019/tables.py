"""Judge the claims of Sun et al. 2019 by the tables that study.yaml fills.

    python examples/sun2019/tables.py sun2019
    python examples/sun2019/tables.py sun2019 sun2019-base    # and the claims on a larger encoder

Works on what is done: studies that are not are named. Writes report.html, one page that needs
nothing else, report.md with its pictures, claims.csv, and a table for each study, such as
long_text.csv. Errors are those of the test set in %, 100 minus accuracy or, for several labels a
document, minus label-ranking average precision. Intervals are over seeds: for others, the same
test rows and the same further pretraining.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import claims
import judging
import pandas as pd
import paper
import pictures
import sweep
from matplotlib.figure import Figure

from bertchain.cli import run_script
from bertchain.errors import InputError
from bertchain.runtime.files import write_csv
from bertchain.runtime.html import Section, write_report_files
from bertchain.runtime.records import markdown_table

ITPT = ", ITPT"  # ends the name of a point that is further pretrained
STUDIES = {  # title, and the sets that study.yaml runs
    "long_text": ("Long text", ("imdb", "20news")),
    "layers": ("Layers", ("single", "joined")),
    "rates": ("Learning rates and forgetting", ("imdb",)),
    "decay": ("Layer-wise decay of the rate", ("imdb",)),
    "steps": ("Steps of further pretraining", ("imdb",)),
    "domains": ("Which text to pretrain on", tuple(claims.SETS)),
    "features": ("Frozen features", tuple(claims.SETS)),
    "multitask": ("Several tasks at once, then each", ("imdb", "agnews", "20news")),
    "few_rows": ("Few labelled rows", ("imdb",)),
    "label_counts": ("Further pretraining by number of labelled rows", tuple(claims.SETS)),
}


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise InputError("give the folder that study.yaml filled: tables.py sun2019")
    folder, *others = (Path(name) for name in sys.argv[1:])
    runs = read_runs(folder)
    larger = errors_of(read_runs(others[0])) if others else {}
    errors = errors_of(runs)
    judged = claims.all_claims(errors, larger)
    verdicts = pd.DataFrame([claim.row for claim in judged])
    tables = {study: table_of(study, errors) for study in STUDIES if of_study(study, errors)}
    for study, table in tables.items():
        write_csv(folder / f"{study}.csv", table)
    write_csv(folder / "claims.csv", verdicts)
    sections = [claims_section(judged, verdicts), *missing_sections(errors)]
    sections += [study_section(study, table, runs) for study, table in tables.items()]
    sections += [kinds_section(errors)] if of_study("domains", errors) else []
    if larger:
        sections.append(larger_section(errors, larger))
    sections += [*paper_sections(), how_section(folder)]
    write_report_files(folder, "Sun et al. 2019, again", sections)
    print(markdown_table(verdicts[["verdict", "claim", "paper", "ours"]]))
    print(f"Wrote {folder / 'report.html'}")


# ---------------------------------------------------------------- reading


def read_runs(folder: Path) -> dict[tuple[str, str], pd.DataFrame]:
    """Read the table of each study and set that is done: a row for each run, with its error in %.

    Raises:
        InputError: if there is none.
    """
    found = {}
    for study, (_, sets) in STUDIES.items():
        for where in sets:
            path = folder / study / where / "sweep.csv"
            if not path.is_file():
                continue
            table = pd.read_csv(path, dtype={"point": str})
            about = json.loads((path.parent / "all_results.json").read_text(encoding="utf-8"))
            found[study, where] = table.assign(error=100 - 100 * table[about["sweep"]["metric"]])
    if not found:
        raise InputError(f"{folder}: holds no STUDY/SET/sweep.csv; run study.yaml first")
    return found


def errors_of(runs: Mapping[tuple[str, str], pd.DataFrame]) -> dict[tuple[str, str], pd.DataFrame]:
    """Arrange the errors of each study and set as [seeds, points], points in their order."""
    return {
        key: table.pivot(index="seed", columns="point", values="error")[table["point"].unique()]
        for key, table in runs.items()
    }


def of_study(study: str, errors: claims.Errors) -> dict[str, pd.DataFrame]:
    """Select the errors of a study by set."""
    return {where: table for (name, where), table in errors.items() if name == study}


def table_of(study: str, errors: claims.Errors) -> pd.DataFrame:
    """Make the table of a study: errors, differences, the paper's errors.

    Differences are to the first point of the set, or of "X, ITPT" to X.
    """
    rows = []
    for where, table in of_study(study, errors).items():
        points = list(table)
        known = paper.errors_of(study, where, points)
        for point, theirs in zip(points, known, strict=True):
            without = point.removesuffix(ITPT)
            change = table[point] - table[points[0] if without == point else without]
            rows.append(
                {
                    "set": claims.SETS.get(where, where),
                    "point": point,
                    "error": table[point].mean(),
                    "± 95 %": sweep.half_interval(table[point]),
                    "difference": change.mean(),
                    "its ± 95 %": sweep.half_interval(change),
                    "paper": theirs,
                    "seeds": len(table),
                }
            )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- the page


def claims_section(judged: list[claims.Claim], verdicts: pd.DataFrame) -> Section:
    text = (
        f"{judging.count_verdicts(verdicts['verdict'])}\n\nBehind each are one or several "
        "differences of test errors, in points, which are below 0 if it holds; after ± is half "
        "the interval over seeds (Student's t, level 1 - .05 / number of differences). Confirmed: "
        "all intervals lie below 0. Not confirmed: one lies above 0. Otherwise it cannot be told. "
        "The paper's figures are "
        "those of one run of BERT-base each."
    )
    return Section(
        "claims",
        "All claims at a glance",
        text,
        verdicts,
        pictures.claims_figure(judged),
        "Differences behind each claim with intervals, coloured by verdict",
    )


def missing_sections(errors: claims.Errors) -> list[Section]:
    """Name what is not done."""
    missing = []
    for study, (_, sets) in STUDIES.items():
        lacking = [where for where in sets if (study, where) not in errors]
        if lacking:
            missing.append(
                study if len(lacking) == len(sets) else f"{study} ({', '.join(lacking)})"
            )
    if not missing:
        return []
    text = "Not run yet: " + ", ".join(missing) + "."
    return [Section("missing", "Missing", text, warning=True)]


def study_section(
    study: str, table: pd.DataFrame, runs: Mapping[tuple[str, str], pd.DataFrame]
) -> Section:
    """Show a study: its picture, and its table with the paper's figures where it has such rows."""
    figure = figure_of(study, of_study(study, errors_of(runs)), runs)
    text = "Differences are to the first point of the set, or of 'X, ITPT' to X, paired by seed."
    if study == "rates":
        text += " Curves are means over seeds."
    title = STUDIES[study][0]
    return Section(
        study, title, text, table, figure, f"{title}: test errors with intervals", fold=True
    )


def figure_of(study: str, by_set: Mapping[str, pd.DataFrame], runs: Mapping) -> Figure:
    """Draw the picture of a study."""
    if study == "domains":
        return pictures.matrix_figure(by_set)
    if study == "label_counts":
        return pictures.changes_figure({w: changes_of_itpt(t) for w, t in by_set.items()})
    if study not in ("rates", "decay", "steps", "few_rows"):
        return pictures.points_figure(by_set)
    (errors,) = by_set.values()
    if study == "rates":
        return pictures.curves_figure(read_curves(runs["rates", "imdb"]), errors)
    if study == "steps":
        return pictures.lines_figure(
            {"": errors.rename(columns=float)}, "steps of further pretraining"
        )
    lines: dict[str, pd.DataFrame] = {}
    for point in errors:
        if study == "decay":
            rate, decay = (part.split()[-1] for part in point.split(","))
            name, x = f"rate {rate}", float(decay)
        else:
            share, _, kind = point.partition(", ")
            name, x = kind or "without", float(share.rstrip(" %"))
        lines.setdefault(name, pd.DataFrame(index=errors.index))[x] = errors[point]
    label = "decay from block to block" if study == "decay" else "labelled rows, %"
    return pictures.lines_figure(lines, label, log=study == "few_rows")


def changes_of_itpt(errors: pd.DataFrame) -> pd.DataFrame:
    """Subtract the errors of X from those of "X, ITPT"; [seeds, points X]."""
    return pd.DataFrame({x: errors[f"{x}{ITPT}"] - errors[x] for x in errors if ITPT not in x})


def read_curves(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """Read the mean validation error by epoch of each point, where the runs still lie there."""
    curves = {}
    for point, own in runs.groupby("point", sort=False):
        files = [Path(run) / "history.csv" for run in own["run"]]
        histories = [pd.read_csv(path) for path in files if path.is_file()]
        if histories:
            both = pd.concat(histories)
            curves[point] = 100 - 100 * both.groupby("epoch")["eval_accuracy"].mean()
    return curves


def kinds_section(errors: claims.Errors) -> Section:
    """Show features, fine-tuning and the kinds of further pretraining as the paper's table 6."""
    kinds = {
        "BERT-Feat": ("features", dict.fromkeys(claims.SETS, "features")),
        "BERT-FiT": ("domains", dict.fromkeys(claims.SETS, "none")),
        "BERT-ITPT-FiT": ("domains", claims.WITHIN),
        "BERT-IDPT-FiT": ("domains", claims.WITHIN | claims.BROADER),
        "BERT-CDPT-FiT": ("domains", claims.EVERYTHING),
    }
    table = pd.DataFrame(
        {
            kind: {
                name: errors[study, where][points[where]].mean()
                for where, name in claims.SETS.items()
                if (study, where) in errors
            }
            for kind, (study, points) in kinds.items()
        }
    ).T
    gain = 100 * (1 - table.div(table.loc["BERT-Feat"])).mean(axis=1)
    table["average gain on BERT-Feat, %"] = gain.where(table.index != "BERT-Feat")
    text = "Mean test errors, as in the paper's table 6; intervals stand with the studies."
    table = table.rename_axis("model").reset_index()
    return Section("kinds", "Features, fine-tuning, further pretraining", text, table)


def larger_section(errors: claims.Errors, larger: claims.Errors) -> Section:
    """Show both encoders on IMDb, without and with all steps of further pretraining."""
    rows = []
    for name, found in (("this encoder", errors), ("the larger one", larger)):
        table = found.get(("steps", "imdb"))
        for column, what in ((0, "without"), (-1, "with ITPT")) if table is not None else ():
            own = table.iloc[:, column]
            row = {"encoder": name, "what": what, "error": own.mean()}
            rows.append(row | {"± 95 %": sweep.half_interval(own)})
    return Section("larger", "A larger encoder", "IMDb.", pd.DataFrame(rows))


def paper_sections() -> list[Section]:
    """Show the tables of the paper."""
    text = "From the paper, arXiv 1905.05583v3: test errors in %. Not all of its sets are ours."
    return [
        Section(f"paper-{i}", f"The paper's {title[0].lower()}{title[1:]}", text, table, fold=True)
        for i, (title, table) in enumerate(paper.TABLES.items(), 2)
    ]


def how_section(folder: Path) -> Section:
    """Say how it was run: the arguments of a run of each study, and versions."""
    lines = []
    for study, (_, sets) in STUDIES.items():
        for where in sets:
            path = folder / study / where / "all_results.json"
            if path.is_file():
                about = json.loads(path.read_text(encoding="utf-8"))
                fixed = {k: v for k, v in about["sweep"]["fixed"].items() if k != "tasks"}
                lines.append(
                    f"{study}, {where}: " + ", ".join(f"{k} {v}" for k, v in fixed.items())
                )
                versions = about["versions"]
    lines.append("versions: " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    text = (
        "One further pretraining of each text, so that intervals hold for these; a run for each "
        "point and seed, the same rows in all."
    )
    return Section("how", "How it was run", text, plain="\n\n".join(lines))


if __name__ == "__main__":
    run_script(main, __doc__)
