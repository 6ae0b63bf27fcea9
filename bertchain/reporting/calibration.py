"""Calibration: whether of the answers given with probability p a share p is right.

Reliability diagrams and expected calibration error as in Guo et al. 2017, temperature scaling too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, logsumexp

BINS = 15  # of equal width
MOST_FITTED = 10**7  # numbers that a temperature is fitted on; of more rows as many as have them
RANGE = (0.05, 20.0)  # of temperatures
LEAST = 1e-12  # a probability of 0 has no logarithm
PIECE = 2**20  # numbers that are changed at once


@dataclass(frozen=True)
class Calibration:
    """How sure the answers were and how often they were right.

    Attributes:
        bins: by confidence: `from`, `to`, number of answers, their mean confidence, the share that
            was right; bins without an answer are left out.
        error: expected calibration error, the mean distance of the two, by answers.
        log_loss: mean over rows, and over labels where a row has several.
    """

    bins: pd.DataFrame
    error: float
    log_loss: float


def measure(
    problem_type: str, probabilities: np.ndarray, truth: np.ndarray, temperature: float = 1.0
) -> Calibration:
    """Measure calibration: of the likeliest class, or of each label of several.

    Args:
        probabilities: [n, labels].
        truth: class numbers [n], or 0/1 [n, labels].
        temperature: that the logits are divided by.
    """
    counts, confidence, right = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    loss = 0.0
    for p, own in _pieces(probabilities, truth):
        p = scaled(problem_type, p, temperature)
        if problem_type == "single_label":
            sure, hits = p.max(axis=1), p.argmax(axis=1) == own
            likely = p[np.arange(len(own)), own]
        else:
            sure, hits = p.reshape(-1), own.reshape(-1) >= 1
            likely = np.where(hits, sure, 1 - sure)
        place = np.minimum((sure * BINS).astype(int), BINS - 1)
        counts += np.bincount(place, minlength=BINS)
        confidence += np.bincount(place, sure, BINS)
        right += np.bincount(place, hits, BINS)
        loss -= np.log(np.maximum(likely, LEAST)).sum()
    edges = np.arange(BINS + 1) / BINS
    there = np.maximum(counts, 1)
    table = pd.DataFrame(
        {
            "from": edges[:-1],
            "to": edges[1:],
            "answers": counts.astype(int),
            "mean confidence": confidence / there,
            "share that was right": right / there,
        }
    )
    error = float(np.abs(confidence - right).sum() / counts.sum())
    return Calibration(table[counts > 0], error, float(loss / counts.sum()))


def scaled(problem_type: str, p: np.ndarray, temperature: float) -> np.ndarray:
    """Divide the logits behind probabilities [n, labels] by a temperature."""
    if temperature == 1.0:
        return p
    if problem_type == "multi_label":
        return expit(logit(p.clip(LEAST, 1 - 1e-15)) / temperature)
    scores = np.log(np.maximum(p, LEAST)) / temperature
    return np.exp(scores - logsumexp(scores, axis=1, keepdims=True))


def fit_temperature(problem_type: str, probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Fit the temperature with the least log loss; of very many rows on evenly spaced ones.

    Args: as for `measure`.
    """
    step = -(-probabilities.size // MOST_FITTED)
    p, own = probabilities[::step], truth[::step]
    if problem_type == "multi_label":
        signed = np.where(own >= 1, 1.0, -1.0) * logit(p.clip(LEAST, 1 - 1e-15))

        def loss(log_t: float) -> float:
            return float(np.logaddexp(0, -signed / np.exp(log_t)).mean())
    else:
        scores = np.log(np.maximum(p, LEAST))
        likely = scores[np.arange(len(own)), own]

        def loss(log_t: float) -> float:
            t = np.exp(log_t)
            return float((logsumexp(scores / t, axis=1) - likely / t).mean())

    found = minimize_scalar(loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def _pieces(
    probabilities: np.ndarray, truth: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    at_once = max(1, PIECE // probabilities.shape[1])
    for start in range(0, len(truth), at_once):
        piece = slice(start, start + at_once)
        yield probabilities[piece], truth[piece]
