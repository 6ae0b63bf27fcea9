"""How complex a probe must be, and how many rows it needs: scores by width, bits by portion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bertchain.metrics import LESS_IS_BETTER
from bertchain.probing.analyses import CURVE
from bertchain.probing.scoreboard import Scoreboard, ScoreKey
from bertchain.runtime.figures import add_shared_legend, new_figure
from bertchain.runtime.html import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS = r"mlp (\d+)x(\d+)"  # probes of one pair of widths
BITS = f"mdl_{CURVE}"
NAMED = 8  # names side by side for which there is room


def complexity_sections(board: Scoreboard) -> list[Section]:
    """The sections on widths of mlp and on the learning curve of mdl, as far as these ran."""
    sections, results = [], board.table()
    if results["probe"].str.fullmatch(WIDTHS).any():
        table = width_table(board)
        text = (
            "Scores of the network by its two widths, on the layer and pooling where it did best "
            "on validation, beside the linear probe there, of no hidden unit. A score that grows "
            "with the width is the probe's doing as well as the features'."
        )
        title, what = "Complexity of the probe", "Score by the width of the network"
        drawn = table.drop(columns="hidden units")
        figure = curves_figure(drawn, "widths", f"{board.split} {board.metric}")
        sections.append(Section("widths", title, text, table, figure, what, fold=True))
    if results["metric"].str.startswith(BITS).any():
        table = bits_table(results)
        text = (
            "Bits that a label takes after so many training rows, in the layer and pooling of most "
            "compression: a learning curve. Few bits early mean that few rows suffice."
        )
        title, what = "Bits of a label by training rows", "Learning curve of the linear probe"
        figure = curves_figure(table, "training rows", "bits of a label", log=True)
        sections.append(Section("mdl_curve", title, text, table, figure, what, fold=True))
    return sections


def width_table(board: Scoreboard) -> pd.DataFrame:
    """Scores of the reported split by width: a row for each, a column for each model."""
    sign = -1.0 if board.metric in LESS_IS_BETTER else 1.0
    validated, reported = board.values("validation"), board.values(board.split)
    columns: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(key.model for key in reported if key.probe == "mlp"):
        own = [key for key in reported if (key.model, key.probe) == (model, "mlp")]
        best = max(own, key=lambda key: sign * validated[key])
        here = {k.probe: v for k, v in reported.items() if k._replace(probe="mlp") == best}
        column = {"0": here["linear"]} | {
            probe.removeprefix("mlp "): value
            for probe, value in here.items()
            if probe.startswith("mlp ")
        }
        columns[_called(best)] = column
    table = pd.DataFrame(columns).rename_axis("widths").reset_index()
    units = [sum(map(int, widths.split("x"))) for widths in table["widths"]]
    table.insert(1, "hidden units", units)
    return table.sort_values("hidden units", kind="stable", ignore_index=True)


def bits_table(results: pd.DataFrame) -> pd.DataFrame:
    """Bits of a label by the training rows before: a column for each model, of its layer of most
    compression."""
    columns = {}
    compression = results[results["metric"] == "mdl_compression"]
    for _, rows in compression.groupby("model", sort=False):
        best = rows.loc[rows["value"].idxmax()]
        at = results[list(ScoreKey._fields)].eq(best[list(ScoreKey._fields)]).all(axis=1)
        bits = results[at & results["metric"].str.startswith(BITS)]
        after = bits["metric"].str.removeprefix(BITS).astype(int)
        columns[_called(ScoreKey(*best[list(ScoreKey._fields)]))] = dict(
            zip(after, bits["value"], strict=True)
        )
    return pd.DataFrame(columns).sort_index().rename_axis("training rows").reset_index()


def _called(key: ScoreKey) -> str:
    return f"{key.model}, layer {int(key.layer)} {key.token_pooling}"


def curves_figure(table: pd.DataFrame, x: str, name: str, log: bool = False) -> Figure:
    """Draw the columns of a table by another one, x, a line for each.

    Args:
        x: numbers, or names that stand side by side.
        name: of the vertical axis.
        log: whether x grows by factors.
    """
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    for column in table.columns.drop(x):
        axis.plot(table[x], table[column], marker="o", ms=4, label=column)
    if log:
        axis.set_xscale("log")
    if len(table) > NAMED and not pd.api.types.is_numeric_dtype(table[x]):
        axis.tick_params(axis="x", rotation=90)
    axis.set(xlabel=x, ylabel=name)
    axis.grid(alpha=0.3)
    add_shared_legend(figure)
    return figure
