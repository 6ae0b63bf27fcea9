"""Whether one score is surely better than another: over rows, random starts and many tests."""

import pandas as pd
from scipy.stats import norm

from bertchain.probing.scoreboard import BEST, RANDOM, Scoreboard, ScoreKey


def gain(board: Scoreboard, one: ScoreKey, other: ScoreKey) -> tuple[float, float]:
    """By how much one score is better than another, and half the interval of that."""
    row = board.compare([(one, other)]).iloc[0]
    return row["gain"], row["± 95 %"]


def is_sure(difference: float, half: float, tests: int) -> bool:
    """Return whether a gain holds at 95 % when it is one of so many tests (Bonferroni).

    Args: half: of its 95 % interval, as of a normal law.
    """
    return difference > half * norm.isf(0.025 / tests) / norm.isf(0.025)


def finding_warnings(board: Scoreboard, headline: pd.DataFrame) -> list[str]:
    """Sentences on models whose best layer is not surely better than what knows nothing: the
    majority, and an encoder with random weights where there is one.

    Args:
        headline: of `scoreboard.headline_table`.
    """
    best = {
        what.removesuffix(BEST): key
        for what, key in zip(headline["what"], headline["key"], strict=True)
        if what.endswith(BEST)
    }
    random = {model: key for model, key in best.items() if model.endswith(RANDOM)}
    nothing = {"the majority class": ScoreKey("", None, "", "majority"), **random}
    nothing = {what: key for what, key in nothing.items() if key in board.each}
    tried = 1  # the best layer was chosen on other rows than those reported
    if board.split == "validation":
        models = {key.model for key in board.each if key.probe == "linear"}
        tried = sum(key.probe == "linear" for key in board.each) // max(1, len(models))
    found = []
    tests = tried * len(best) * len(nothing)
    for model in [name for name in best if name not in random]:
        compared = board.compare([(best[model], other) for other in nothing.values()])
        gains = zip(nothing, compared["gain"], compared["± 95 %"], strict=True)
        found += [
            f"No finding: linear probes of {model} are not surely above {what}."
            for what, gain, half in gains
            if not is_sure(gain, half, tests)
        ]
    return found
