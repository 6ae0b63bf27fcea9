"""Pictures of the studies. Errors [seeds, points] and claims in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import claims
import judging
import pandas as pd
import sweep

from bertchain.runtime.figures import add_legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def claims_figure(judged: list[claims.Claim]) -> Figure:
    """Draw each difference behind each claim with its interval; left of 0 it is as claimed."""
    drawn = [
        judging.Drawn(
            claim.text["claim"],
            claim.verdict,
            [values.mean() for values in claim.differences.values()],
            claim.halves,
        )
        for claim in judged
    ]
    what = "difference of test errors, points, with its interval; below 0 as claimed"
    return judging.claims_figure(drawn, what, linear=2)


def points_figure(by_set: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the error of each point with its interval, a panel for each set."""
    most = max(table.shape[1] for table in by_set.values())
    figure = new_figure(max(5.5, 3.6 * len(by_set)), 1.1 + 0.3 * most)
    axes = figure.subplots(1, len(by_set), squeeze=False)[0]
    for axis, (where, table) in zip(axes, by_set.items(), strict=True):
        places = [*range(table.shape[1])][::-1]
        halves = [0 if len(table) < 2 else sweep.half_interval(table[point]) for point in table]
        axis.errorbar(table.mean(), places, xerr=halves, fmt="o", ms=4, capsize=3)
        axis.set_yticks(places, list(table), fontsize=8)
        axis.set(xlabel="test error, %", title=claims.SETS.get(where, where))
        axis.grid(alpha=0.3)
    return figure


def lines_figure(lines: Mapping[str, pd.Series], xlabel: str, log: bool = False) -> Figure:
    """Draw a line for each name: mean errors with intervals by a number.

    Args:
        lines: name -> a table of errors [seeds, numbers].
        log: whether the numbers lie on a logarithmic scale.
    """
    figure = new_figure(6.5, 3.8)
    axis = figure.subplots()
    for name, table in lines.items():
        halves = [0 if len(table) < 2 else sweep.half_interval(table[x]) for x in table]
        axis.errorbar(list(table), table.mean(), halves, marker="o", ms=4, capsize=3, label=name)
    if log:
        axis.set_xscale("log")
    axis.set(xlabel=xlabel, ylabel="test error, %")
    axis.grid(alpha=0.3)
    add_legend(axis)
    return figure


def changes_figure(by_set: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw changes of error [seeds, points] with intervals, a group for each point.

    Sets stand side by side in each group.
    """
    figure = new_figure(7.5, 3.8)
    axis = figure.subplots()
    points = list(next(iter(by_set.values())))
    for i, (where, table) in enumerate(by_set.items()):
        places = [place + 0.14 * (i - (len(by_set) - 1) / 2) for place in range(len(points))]
        halves = [0 if len(table) < 2 else sweep.half_interval(table[x]) for x in points]
        name = claims.SETS.get(where, where)
        axis.errorbar(places, table[points].mean(), halves, fmt="o", ms=4, capsize=3, label=name)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(points)), points)
    axis.set(xlabel="labelled rows", ylabel="change of test error, points")
    axis.grid(alpha=0.3, axis="y")
    add_legend(axis)
    return figure


def curves_figure(curves: Mapping[str, pd.Series], errors: pd.DataFrame) -> Figure:
    """Draw validation errors by epoch, a line for each rate, and test errors by rate.

    Args:
        curves: name -> mean error on validation by epoch.
        errors: on the test set [seeds, points].
    """
    figure = new_figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        left.plot(curve.index, curve, marker="o", ms=3, label=name)
    left.set(xlabel="epoch", ylabel="validation error, %")
    rates = errors.rename(columns=lambda point: float(point.split()[-1])).sort_index(axis=1)
    halves = [0 if len(rates) < 2 else sweep.half_interval(rates[rate]) for rate in rates]
    right.errorbar(list(rates), rates.mean(), halves, marker="o", ms=4, capsize=3)
    right.set(xlabel="learning rate", ylabel="test error, %", xscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    add_legend(left)
    return figure


def matrix_figure(by_set: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the error by text of pretraining (rows) and task; colours show the change from none."""
    means = pd.DataFrame({claims.SETS[where]: table.mean() for where, table in by_set.items()})
    change = means - means.loc["none"]
    figure = new_figure(2.2 + 1.2 * means.shape[1], 1.2 + 0.4 * len(means))
    axis, limit = figure.subplots(), max(float(change.abs().to_numpy().max()), 1e-9)
    image = axis.imshow(change, vmin=-limit, vmax=limit, cmap="RdBu_r", aspect="auto")
    for i in range(len(means)):
        for j in range(means.shape[1]):
            ink = "white" if abs(change.iloc[i, j]) > 0.7 * limit else "black"
            axis.text(
                j, i, f"{means.iloc[i, j]:.2f}", ha="center", va="center", fontsize=8, color=ink
            )
    axis.set_xticks(range(means.shape[1]), means.columns, fontsize=8)
    axis.set_yticks(range(len(means)), means.index, fontsize=8)
    axis.set(xlabel="fine-tuned on", ylabel="pretrained further on")
    figure.colorbar(image, ax=axis, label="change of error")
    return figure
