"""Whether one score is surely better than another: over rows, random starts and many tests."""

import math

from scipy.stats import norm

from bertchain.metrics import LESS_IS_BETTER
from bertchain.probing.scoreboard import Scoreboard, ScoreKey, bootstrap, half_width


def gain(board: Scoreboard, one: ScoreKey, other: ScoreKey) -> tuple[float, float]:
    """Measure by how much one score is better than another, whatever the metric.

    Returns:
        the difference, and half its 95 % interval: over rows, paired, and over the random starts
        of either.
    """
    a, b = board.each[one], board.each[other]
    values = [bootstrap(rows, board.statistic, board.seed) for rows in (a, b)]
    over_rows = half_width(values[0] - values[1])
    sign = -1.0 if board.metric in LESS_IS_BETTER else 1.0
    difference = sign * float(board.statistic(a[None])[0] - board.statistic(b[None])[0])
    return difference, math.hypot(over_rows, *(board.starts.get(key, 0.0) for key in (one, other)))


def is_sure(difference: float, half: float, tests: int) -> bool:
    """Return whether a gain holds at 95 % when it is one of so many tests (Bonferroni).

    Args: half: of its 95 % interval, as of a normal law.
    """
    return difference > half * norm.isf(0.025 / tests) / norm.isf(0.025)
