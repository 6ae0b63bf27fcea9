"""Tests of whether two probes differ on the same rows, and their correction for how many there are.

Arrays of row scores in, p values out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class Paired(NamedTuple):
    """Two probes on the same rows.

    Attributes:
        better, worse: rows on which the first is better, and worse, than the other.
        p: two-sided; of no difference.
        test: which one gave p: McNemar or t.
    """

    better: int
    worse: int
    p: float
    test: str


def paired_tests(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Paired]:
    """Test pairs of row scores, each [n], of which more is better.

    Hits, 0 or 1, by McNemar's exact test: of the rows that one alone has right, either should have
    half. Any other scores by the paired t test.
    """
    found = []
    for one, other in pairs:
        difference = one - other
        better, worse = int((difference > 0).sum()), int((difference < 0).sum())
        if is_hits(one) and is_hits(other):
            found.append((better, worse, mcnemar(better, worse), "McNemar"))
        else:
            found.append((better, worse, paired_t(difference), "t"))
    return [Paired(*values) for values in found]


def is_hits(rows: np.ndarray) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def mcnemar(one: int, other: int) -> float:
    """Two-sided p of McNemar's exact test. Args: rows that one alone, the other alone has right."""
    if one == other:
        return 1.0
    return min(1.0, 2 * float(special.bdtr(min(one, other), one + other, 0.5)))


def paired_t(difference: np.ndarray) -> float:
    """Two-sided p of the paired t test. Args: differences of rows [n]."""
    n, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / n**0.5 if n > 1 else float("nan")
    if error == 0 or np.isnan(error):  # the same in each row, or too few rows to tell
        return float(n < 2 or mean == 0)
    return 2 * float(special.stdtr(n - 1, -abs(mean) / error))


def holm(p: Sequence[float]) -> np.ndarray:
    """Correct p values of several tests, so that of chance alone any is below .05 in 5 % of cases.

    Holm (1979), which holds however the tests depend on each other.
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, steps)
    return corrected
