"""Judge the claims of a paper by values with intervals: what the studies beside have in common.

A claim has one or several values that are above 0 if it holds, each with an interval. Confirmed:
all intervals lie above 0. Not confirmed: one of them lies below 0. Otherwise it cannot be told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from bertchain.runtime.figures import add_legend, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONFIRMED, REFUTED, OPEN, MISSING = "confirmed", "not confirmed", "cannot be told", "not run"
WIDE = 5  # times the linear part of a scale
FEW = 4  # values of a claim that are drawn with room between them
COLOURS = {CONFIRMED: "C2", REFUTED: "C3", OPEN: "C7"}


class Drawn(NamedTuple):
    """A claim as it is drawn: values, each with half the width of its interval."""

    claim: str
    verdict: str
    values: Sequence[float]
    halves: Sequence[float]


def decide(values: Sequence[float], halves: Sequence[float]) -> str:
    """Judge a claim by values that are above 0 if it holds; none: it was not run.

    Args:
        halves: half the width of the interval of each; NaN where there is none.
    """
    if not len(values):
        return MISSING
    pairs = list(zip(values, halves, strict=True))
    if any(value + half < 0 for value, half in pairs):
        return REFUTED
    return CONFIRMED if all(value - half > 0 for value, half in pairs) else OPEN


def count_verdicts(verdicts: pd.Series) -> str:
    """Say how many claims there are, and how many of each verdict."""
    counts = verdicts.value_counts()
    said = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in (*COLOURS, MISSING))
    return f"{len(verdicts)} claims: {said}."


def claims_figure(claims: Sequence[Drawn], xlabel: str, linear: float) -> Figure | None:
    """Draw each value behind each claim with its interval, coloured by verdict; None without any.

    Args:
        linear: up to which value on either side of 0 the scale is linear; beyond it is logarithmic
            where values with their intervals reach WIDE times as far.
    """
    drawn = [claim for claim in claims if len(claim.values)]
    if not drawn:
        return None
    steps = [1 if len(claim.values) <= FEW else 0.5 for claim in drawn]
    lines = sum(step * len(claim.values) for step, claim in zip(steps, drawn, strict=True))
    figure = new_figure(10, 1.2 + 0.26 * lines + 0.1 * len(drawn))
    axis, names, places, place = figure.subplots(), [], [], 0.0
    for claim, step in zip(drawn, steps, strict=True):
        colour = COLOURS[claim.verdict]
        for i, (value, half) in enumerate(zip(claim.values, claim.halves, strict=True)):
            error = None if pd.isna(half) else half
            axis.errorbar(value, place, xerr=error, fmt="o", ms=4, capsize=2, color=colour)
            if i == 0:
                names.append(claim.claim)
                places.append(place)
            place -= step
        place -= 0.4
    for verdict, colour in COLOURS.items():
        axis.plot([], [], "o", color=colour, label=verdict)
    axis.axvline(0, color="grey", linewidth=0.8)
    if max(map(_reach, drawn)) > WIDE * linear:
        _scale_by_logarithm(axis, linear)
    axis.set_yticks(places, names, fontsize=8)
    axis.set(xlabel=xlabel, ylim=(place, 1))
    axis.grid(alpha=0.3, axis="x")
    add_legend(axis, ncols=3)
    return figure


def _reach(claim: Drawn) -> float:
    """How far from 0 the values of a claim lie with their intervals."""
    return float((np.abs(claim.values) + np.nan_to_num(claim.halves)).max())


def _scale_by_logarithm(axis: Axes, linear: float) -> None:
    """On both sides of 0, with numbers written out at 1, 2 and 5 of each power of ten."""
    axis.set_xscale("symlog", linthresh=linear)
    axis.xaxis.get_major_locator().set_params(subs=(1, 2, 5), numticks=21)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
