"""Scores of rankings: area under the ROC curve, label ranking average precision.

Where there are thousands of labels, a few of which are true, no label and no row is sorted.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

THREADS = 2  # that look scores up; more wait for memory
FEW = 16  # so many comparisons with all cost less than a sort
MANY = 2**20  # so many scores cost more to sort than a table of intervals
MANY_TIMES = 20  # where scores are so many times as many as the true ones, they are not sorted
NUMBERS_AT_ONCE = 2**20  # of columns that are copied together
PIECE = 2**17  # numbers that fit a processor's cache
INTERVAL_BITS = 19  # intervals of scores between one power of 2 and the next: 2^19
INTERVALS = (32 << INTERVAL_BITS) + 1  # from 2^-32 to 1
LEAST = int(np.float32(2.0**-32).view(np.int32))


def mean_roc_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean one-versus-rest area under the ROC curve over classes; for two the usual area.

    Args:
        scores: [n, classes].
        truth: 0/1 [n, classes]. Columns with one value alone are left out; if all are, it is NaN.
    """
    at_once = max(1, NUMBERS_AT_ONCE // max(1, len(truth)))
    areas = []
    for start in range(0, truth.shape[1], at_once):
        own = slice(start, start + at_once)
        pieces = (np.ascontiguousarray(table[:, own]).T for table in (scores, truth))
        columns, masks = map(np.ascontiguousarray, pieces)  # in two steps: faster
        for column, mask in zip(columns, masks.astype(bool, copy=False), strict=True):
            if 0 < np.count_nonzero(mask) < len(mask):
                areas.append(roc_auc(column, mask))
    return float(np.mean(areas)) if areas else float("nan")


def roc_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: the share of pairs in order, where ties count half.

    Each row that is true is compared with all, or found among all in order: a curve costs a sort
    for each class, of which a thousand have a few rows each.

    Args:
        scores: [n].
        truth: bool [n], of both values.
    """
    positives = scores[truth]
    number = len(positives)
    few_of_many = len(scores) > MANY and FEW < number < len(scores) / MANY_TIMES
    if few_of_many and scores.min() >= 0 and scores.max() <= 1:
        pairs = count_pairs(scores, positives)
    else:
        below, up_to = count_below(scores, positives)
        pairs = (below.sum() + up_to.sum()) / 2
    pairs -= number**2 / 2  # those of two that are true
    return float(pairs / (number * (len(scores) - number)))


def count_pairs(scores: np.ndarray, some: np.ndarray) -> float:
    """Count the pairs of a score [n] and one of some [k] that is higher; ties count half.

    Both lie between 0 and 1, and k is far below n. The scores are not sorted: a table of small
    intervals says how many of some are above; only scores in the interval of one are looked up.
    """
    some = np.sort(some)
    counts = np.bincount(intervals(some), minlength=INTERVALS)
    above = len(some) - np.cumsum(counts, out=counts, dtype=counts.dtype)
    above = above.astype(np.int32)
    above[intervals(some)] = -1  # some are in this interval

    def count(start: int) -> float:
        piece = scores[start : start + PIECE]
        found = above.take(intervals(piece), mode="clip")  # none is outside; faster
        near = np.sort(piece[np.flatnonzero(found < 0)])
        below = np.searchsorted(some, near)
        tied = near[some[np.minimum(below, len(some) - 1)] == near]
        up_to = np.searchsorted(some, tied, "right") - np.searchsorted(some, tied)
        of_near = len(some) * len(near) - int(below.sum()) - int(up_to.sum()) / 2
        return int(found.sum()) + len(near) + of_near  # each of near has -1 in found

    with ThreadPoolExecutor(THREADS) as threads:
        return float(sum(threads.map(count, range(0, len(scores), PIECE))))


def intervals(values: np.ndarray) -> np.ndarray:
    """Number of the interval of each value from 0 to 1, by its first bits: int32, in their order.

    Those below 2^-32 share one; above, each power of 2 has as many as the next.
    """
    bits = values.astype(np.float32).view(np.int32)
    bits -= LEAST
    np.maximum(bits, 0, out=bits)
    bits >>= 23 - INTERVAL_BITS
    return bits


def count_below(values: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count for each of some numbers [k] the values [n] below it, and those not above it."""
    if len(some) > FEW:
        ordered = np.sort(values)
        return np.searchsorted(ordered, some, "left"), np.searchsorted(ordered, some, "right")
    return compare(np.less, values, some), compare(np.less_equal, values, some)


def compare(how: np.ufunc, values: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Count for each of some numbers [k] the values [n] that compare so."""
    found = np.empty(len(values), dtype=bool)
    return np.array([np.count_nonzero(how(values, number, out=found)) for number in some])


def ranking_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Label ranking average precision: over the labels of a row, the mean share of its labels among
    all that score as high; 1 for a row with no label or all.

    scikit-learn's ranks all labels of each row.

    Args:
        scores: [n, labels].
        truth: bool [n, labels].
    """
    total = 0.0
    for row, own in zip(scores, truth, strict=True):
        positives = row[own]
        if len(positives) in (0, len(row)):
            total += 1.0
            continue
        below, of_own = (
            compare(np.less, values, positives)
            if len(positives) <= FEW
            else np.searchsorted(np.sort(values), positives)
            for values in (row, positives)
        )
        total += float(np.mean((len(positives) - of_own) / (len(row) - below)))
    return total / len(truth)
