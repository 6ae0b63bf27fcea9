"""Linear solvers on standardised features, each until its gradient vanishes.

Matrices in, fitted predictors out. Each fit takes values of C from strong to weak regularisation
and starts from the solution before.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation, from strong to weak
MAX_ITERATIONS = 2000
TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss


@dataclass
class Fit:
    """A linear probe trained at one C."""

    C: float
    converged: bool
    predict: Callable[[np.ndarray], np.ndarray]  # [n, features] -> probabilities or values


class Standardiser:
    """Zero mean and unit variance by the training rows; a constant feature becomes zero."""

    def __init__(self, features: np.ndarray):
        features = np.asarray(features, dtype=np.float32)
        self.mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.scale = features.std(axis=0, dtype=np.float64).astype(np.float32)
        self.scale[self.scale < 1e-6 * np.abs(self.mean) + 1e-12] = np.inf

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (np.asarray(features, dtype=np.float32) - self.mean) / self.scale


def fit_multinomial(
    x: np.ndarray, y: np.ndarray, num_labels: int, c_values: Sequence[float]
) -> list[Fit]:
    """Multinomial logistic regression by scikit-learn's L-BFGS, warm-started.

    Objective: sum of log losses + |W|^2 / (2 C).

    Args:
        x: standardised features [n, d].
        y: class numbers [n].
        num_labels: also counts classes that no row has.
        c_values: from strong to weak.
    """
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    fits = []
    for C in c_values:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by Fit.converged
            model.set_params(C=C).fit(x, y)
        predict = SoftmaxPredictor.of(model, num_labels)
        fits.append(Fit(C, bool(model.n_iter_.max() < MAX_ITERATIONS), predict))
    return fits


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
    """Logistic regression of each label, all in one L-BFGS solve: their objectives add up.

    Objective: sum over labels of (sum of log losses + |w|^2 / (2 C)), divided by the number of
    rows; each label's is scikit-learn's own.

    Args:
        y: 0/1 [n, num_labels]. Others: see `fit_multinomial`.
    """
    n, d = x.shape
    y = y.astype(np.float32)
    shape = (d + 1, num_labels)  # last row: bias, not regularised
    start = np.zeros(shape)
    fits = []
    for C in c_values:
        penalty = 1.0 / (C * n)

        def objective(flat: np.ndarray, penalty: float = penalty) -> tuple[float, np.ndarray]:
            solution = flat.reshape(shape).astype(np.float32)
            weights, bias = solution[:-1], solution[-1]
            z = x @ weights + bias  # [n, labels]
            loss = -(log_expit(z) - (1 - y) * z).sum(dtype=np.float64) / n
            error = (expit(z) - y) / n
            gradient = np.concatenate([x.T @ error + penalty * weights, error.sum(axis=0)[None]])
            loss += 0.5 * penalty * float((weights.astype(np.float64) ** 2).sum())
            return loss, gradient.astype(np.float64).reshape(-1)

        options = {"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0}
        solved = minimize(
            objective, start.reshape(-1), jac=True, method="L-BFGS-B", options=options
        )
        start = solved.x.reshape(shape)
        converged = bool(np.abs(solved.jac).max() <= TOLERANCE)
        fits.append(Fit(C, converged, SigmoidPredictor(start[:-1], start[-1])))
    return fits


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
        fits.append(Fit(C, True, lambda rows, m=model: m.predict(rows).reshape(len(rows), -1)))
    return fits


FITS = {  # by problem type
    "single_label": fit_multinomial,
    "multi_label": fit_one_versus_rest,
    "regression": fit_ridge,
}
