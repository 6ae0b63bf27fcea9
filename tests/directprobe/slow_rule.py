"""DirectProbe's greedy rule as it is written down: slow, for comparison."""

import itertools

import numpy as np
from scipy.optimize import linprog


def meet_by_lp(p: np.ndarray, q: np.ndarray) -> bool:
    """Whether convex weights of both give a common point, asked of HiGHS in primal form."""
    equal = np.hstack([p.T, -q.T])
    ones = np.zeros((2, len(p) + len(q)))
    ones[0, : len(p)] = ones[1, len(p) :] = 1
    target = np.r_[np.zeros(p.shape[1]), 1, 1]
    done = linprog(
        np.zeros(len(p) + len(q)), A_eq=np.vstack([equal, ones]), b_eq=target, method="highs"
    )
    return done.status == 0


def slow_clusters(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The greedy rule as it is written down, every hull tested at every merge."""
    parts, refused = {i: [i] for i in range(len(x))}, set()
    while True:
        best = None
        for i, j in itertools.combinations(sorted(parts), 2):
            if y[i] == y[j] and (i, j) not in refused:
                d = ((x[parts[i]].mean(0) - x[parts[j]].mean(0)) ** 2).sum()
                if best is None or d < best[0] - 1e-12:
                    best = (d, i, j)
        if best is None:
            break
        _, i, j = best
        union = parts[i] + parts[j]
        if any(y[k] != y[i] and meet_by_lp(x[union], x[part]) for k, part in parts.items()):
            refused.add((i, j))
            continue
        parts[i] = union
        del parts[j]
        renamed = [tuple(sorted(i if k == j else k for k in pair)) for pair in refused]
        refused = set(renamed)
    owner = np.empty(len(x), int)
    for i, members in parts.items():
        owner[members] = i
    return owner
