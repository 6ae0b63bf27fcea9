"""Linear solvers on standardised features, each until its gradient vanishes.

Matrices in, fitted predictors out. Each fit takes values of C from strong to weak regularisation
and starts from the solution before. A fit has converged when the largest entry of its gradient is
at most TOLERANCE times that at zero weights, in float64, whatever stopped the solver. float32 is
tried first, in half the time.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, Ridge

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation, from strong to weak
MAX_ITERATIONS = 2000
QUICK_ITERATIONS = 100  # in float32: where these do not do, its rounding is what is left
TOLERANCE = 1e-5  # largest entry of the gradient, of that at zero weights
CERTAIN = 30.0  # log odds of a label that all training rows have
ROUNDING = 1e-12  # of a gradient: features that say nothing have none, but for this


@dataclass
class Fit:
    """A linear probe trained at one C."""

    C: float
    converged: bool
    predict: Callable[[np.ndarray], np.ndarray]  # [n, features] -> probabilities or values


class Standardiser:
    """Zero mean and unit variance by the training rows; a constant feature becomes zero.

    Args:
        features: of the training rows [n, features].
        least: a feature is also constant whose deviation is below this share of the median one.
    """

    def __init__(self, features: np.ndarray, least: float = 0.0):
        features = np.asarray(features, dtype=np.float32)
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.scale = features.std(axis=0, dtype=np.float64).astype(np.float32)
        flat = self.scale < 1e-6 * np.abs(self.mean) + 1e-12
        self.scale[flat | (self.scale < least * np.median(self.scale))] = np.inf

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (np.asarray(features, dtype=np.float32) - self.mean) / self.scale


def fit_multinomial(
    x: np.ndarray, y: np.ndarray, num_labels: int, c_values: Sequence[float]
) -> list[Fit]:
    """Multinomial logistic regression by scikit-learn.

    Objective: sum of log losses + |W|^2 / (2 C).

    Args:
        x: standardised features [n, d].
        y: class numbers [n].
        num_labels: also counts classes that no row has.
        c_values: from strong to weak.
    """
    path = _logistic_path(*_two_precisions(x), y, c_values)
    return [
        Fit(C, converged, SoftmaxPredictor.of(model, num_labels))
        for C, (converged, model) in zip(c_values, path, strict=True)
    ]


def _two_precisions(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.astype(np.float32, copy=False), x.astype(np.float64, copy=False)


def _logistic_path(
    quick: np.ndarray, exact: np.ndarray, y: np.ndarray, c_values: Sequence[float]
) -> Iterator[tuple[bool, LogisticRegression]]:
    """Fit scikit-learn's logistic regression at each C, from the solution before.

    By Newton-CG: its L-BFGS stops in float32 when the loss no longer falls, long before the
    gradient is small, and takes twice the time in float64.

    Args:
        quick, exact: the same features [n, d] in float32 and float64.
        y: class numbers [n].

    Yields:
        whether it has converged, and the model, which is fitted again for the next C.
    """
    seen = np.unique(y)
    targets = (y[:, None] == seen).astype(np.float64)[:, 1 if len(seen) == 2 else 0 :]
    shares = np.full(targets.shape, 1 / len(seen))
    limit = max(TOLERANCE * _largest(_gradient(exact, shares - targets)), ROUNDING)
    model = LogisticRegression(solver="newton-cg", warm_start=True)
    model.set_params(tol=0.8 * limit)  # rounding of float32 takes some
    tries = [(exact, MAX_ITERATIONS)]
    if limit > ROUNDING:  # float32 never comes nearer
        tries.insert(0, (quick, QUICK_ITERATIONS))
    for C in c_values:
        for rows, most in tries:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # told by Fit.converged
                model.set_params(C=C, max_iter=most).fit(rows, y)
            shares = model.predict_proba(exact)[:, -targets.shape[1] :]
            left = _gradient(exact, shares - targets)
            left[:-1] += model.coef_.T / (C * len(y))
            converged = _largest(left) <= limit
            if converged:
                break
        yield converged, model


def _gradient(x: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Gradient of the mean loss without penalty [d + 1, outputs]; last row: of the bias."""
    return np.concatenate([x.T @ errors, errors.sum(axis=0)[None]]) / len(x)


def _largest(gradient: np.ndarray) -> float:
    return float(np.abs(gradient).max())


class SoftmaxPredictor:
    """Probabilities [n, classes] of features [n, d]."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray, seen: np.ndarray, classes: int):
        """Args: weights [seen, d]; bias and numbers of the classes seen in training [seen]."""
        self.weights, self.bias, self.seen, self.classes = weights, bias, seen, classes

    @classmethod
    def of(cls, model: LogisticRegression, num_labels: int) -> "SoftmaxPredictor":
        """What a fitted model predicts now; it may be fitted again afterwards."""
        weights, bias = model.coef_.copy(), model.intercept_.copy()
        if len(weights) == 1:  # two classes: one column of log odds
            weights = np.concatenate([np.zeros_like(weights), weights])
            bias = np.concatenate([np.zeros_like(bias), bias])
        return cls(weights, bias, model.classes_.astype(int), num_labels)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        logits = (x @ self.weights.T + self.bias).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.zeros((len(logits), self.classes))  # a class training lacks gets none
        probabilities[:, self.seen] = shares / shares.sum(axis=1, keepdims=True)
        return probabilities


def fit_one_versus_rest(
    x: np.ndarray, y: np.ndarray, num_labels: int, c_values: Sequence[float]
) -> list[Fit]:
    """Logistic regression of each label for itself, with scikit-learn's objective.

    Args:
        y: 0/1 [n, num_labels]. Others: see `fit_multinomial`.
    """
    quick, exact = _two_precisions(x)
    weights = np.zeros((len(c_values), x.shape[1], num_labels), dtype=np.float32)
    bias = np.zeros((len(c_values), num_labels))
    converged = np.ones((len(c_values), num_labels), dtype=bool)
    for label in range(num_labels):
        own = y[:, label].astype(int)
        if own.min() == own.max():
            bias[:, label] = CERTAIN if own[0] else -CERTAIN
            continue
        for k, (ok, model) in enumerate(_logistic_path(quick, exact, own, c_values)):
            weights[k, :, label], bias[k, label] = model.coef_[0], model.intercept_[0]
            converged[k, label] = ok
    return [
        Fit(C, bool(converged[k].all()), SigmoidPredictor(weights[k], bias[k]))
        for k, C in enumerate(c_values)
    ]


class ValuePredictor:
    """Values [n, outputs] of features [n, d]."""

    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        """Args: weights [d, outputs]; bias [outputs]."""
        self.weights, self.bias = weights, bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.weights + self.bias


class SigmoidPredictor(ValuePredictor):
    """Probabilities [n, labels] of features [n, d], each label for itself."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return expit(super().__call__(x))


def fit_ridge(
    x: np.ndarray, y: np.ndarray, num_labels: int, c_values: Sequence[float]
) -> list[Fit]:
    """Ridge regression in closed form: sum of squared errors + |W|^2 / C.

    Args:
        y: values [n, num_labels]. Others: see `fit_multinomial`.
    """
    fits = []
    for C in c_values:
        model = Ridge(alpha=1.0 / C, solver="cholesky").fit(x.astype(np.float64), y)
        weights = model.coef_.reshape(-1, x.shape[1]).T  # of one target [d] in some versions
        fits.append(Fit(C, True, ValuePredictor(weights, np.atleast_1d(model.intercept_))))
    return fits


FITS = {  # by problem type
    "single_label": fit_multinomial,
    "multi_label": fit_one_versus_rest,
    "regression": fit_ridge,
}


def linear_map(
    fit: Fit, standardise: Standardiser, num_labels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Express a fit on standardised features as weights [labels, d] and bias [labels] of others.

    A class that no training row has gets the mean of the others less `CERTAIN`: never predicted.
    """
    probe = fit.predict
    weights, bias = np.asarray(probe.weights, np.float64), np.asarray(probe.bias, np.float64)
    if isinstance(probe, SoftmaxPredictor):
        unseen = weights.mean(axis=0), bias.mean() - CERTAIN
        weights_of_all = np.tile(unseen[0], (num_labels, 1))
        bias_of_all = np.full(num_labels, unseen[1])
        weights_of_all[probe.seen], bias_of_all[probe.seen] = weights, bias
        weights, bias = weights_of_all, bias_of_all
    else:
        weights = weights.T
    weights = weights / standardise.scale
    return weights, bias - weights @ standardise.mean.astype(np.float64)
