"""Probes: how much of a task a simple model reads off frozen features.

Feature matrices in, probabilities out; no files, no tokenizers. A probe is trained until its
gradient vanishes, because a probe that is not measures the optimizer and not the representation.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation C, from strong to weak
MAX_ITERATIONS = 2000
TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss


@dataclass
class Fit:
    """A trained probe at one strength."""

    strength: float
    converged: bool
    predict: Callable[[np.ndarray], np.ndarray]  # [n, features] -> probabilities or values


@dataclass
class ProbeResult:
    """The probe whose strength did best on validation.

    Attributes:
        strength: inverse regularisation C of the chosen fit, on standardised features.
        converged: whether the chosen fit reached the tolerance.
        probabilities: by split, [n, labels] (regression: values).
    """

    strength: float
    converged: bool
    probabilities: dict[str, np.ndarray]


def fit_linear_probe(
    features: dict[str, np.ndarray],
    labels: np.ndarray,
    num_labels: int,
    problem_type: str,
    validation_score: Callable[[np.ndarray], float],
    strengths: Sequence[float] = STRENGTHS,
) -> ProbeResult:
    """Train a linear probe at every strength and keep the one that does best on validation.

    Multinomial logistic regression, one-versus-rest logistic regression, or ridge regression by
    problem type, on features standardised by the training rows. Strengths go from strong to weak,
    each starting from the solution before. Of equal scores the stronger regularisation is kept.

    Args:
        features: [n, features] for train and validation, and any further splits to predict.
        labels: of the training rows: class numbers [n], or 0/1 or targets [n, num_labels].
        num_labels: also counts classes that no training row has.
        validation_score: validation probabilities -> a number, more is better.
    """
    standardise = Standardiser(features["train"])
    path = FITS[problem_type](standardise(features["train"]), labels, num_labels, sorted(strengths))
    validation = standardise(features["validation"])
    scored = [(validation_score(fit.predict(validation)), fit) for fit in path]
    best = max(scored, key=lambda pair: pair[0])[1]  # the first of equals is the strongest
    predictions = {split: best.predict(standardise(x)) for split, x in features.items()}
    return ProbeResult(best.strength, best.converged, predictions)


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
    x: np.ndarray, y: np.ndarray, num_labels: int, strengths: Sequence[float]
) -> list[Fit]:
    """scikit-learn's L-BFGS: sum of log losses + |W|^2 / (2 C), warm-started."""
    model = LogisticRegression(warm_start=True, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    fits = []
    for strength in strengths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # told by Fit.converged
            model.set_params(C=strength).fit(x, y)
        weights, bias = model.coef_.copy(), model.intercept_.copy()
        if len(weights) == 1:  # two classes: one column of log odds
            weights = np.concatenate([np.zeros_like(weights), weights])
            bias = np.concatenate([np.zeros_like(bias), bias])
        predict = SoftmaxPredictor(weights, bias, model.classes_.astype(int), num_labels)
        fits.append(Fit(strength, bool(model.n_iter_.max() < MAX_ITERATIONS), predict))
    return fits


class SoftmaxPredictor:
    def __init__(self, weights: np.ndarray, bias: np.ndarray, seen: np.ndarray, classes: int):
        self.weights, self.bias, self.seen, self.classes = weights, bias, seen, classes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        logits = (x @ self.weights.T + self.bias).astype(np.float64)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.zeros((len(x), self.classes))  # a class training lacks gets none
        probabilities[:, self.seen] = shares / shares.sum(axis=1, keepdims=True)
        return probabilities


def fit_one_versus_rest(
    x: np.ndarray, y: np.ndarray, num_labels: int, strengths: Sequence[float]
) -> list[Fit]:
    """All labels in one L-BFGS solve: the objectives are a plain sum, each scikit-learn's own.

    Objective: sum over labels of (sum of log losses + |w|^2 / (2 C)), divided by the number of
    rows.
    """
    n, d = x.shape
    y = y.astype(np.float32)
    shape = (d + 1, num_labels)  # last row: bias, not regularised
    start = np.zeros(shape)
    fits = []
    for strength in strengths:
        penalty = 1.0 / (strength * n)

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
        fits.append(Fit(strength, converged, SigmoidPredictor(start[:-1], start[-1])))
    return fits


class SigmoidPredictor:
    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        self.weights, self.bias = weights, bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return expit(x @ self.weights + self.bias)


def fit_ridge(
    x: np.ndarray, y: np.ndarray, num_labels: int, strengths: Sequence[float]
) -> list[Fit]:
    """Ridge regression with penalty 1 / C per row, solved in closed form."""
    fits = []
    for strength in strengths:
        model = Ridge(alpha=1.0 / strength, solver="cholesky").fit(x.astype(np.float64), y)
        fits.append(
            Fit(strength, True, lambda rows, m=model: m.predict(rows).reshape(len(rows), -1))
        )
    return fits


FITS = {
    "single_label": fit_multinomial,
    "multi_label": fit_one_versus_rest,
    "regression": fit_ridge,
}


def majority_baseline(labels: np.ndarray, problem_type: str, num_labels: int, n: int) -> np.ndarray:
    """What a model without text says of n rows: label frequencies, or the mean of each target."""
    if problem_type == "single_label":
        constant = np.bincount(labels, minlength=num_labels) / len(labels)
    else:
        constant = np.asarray(labels, dtype=float).mean(axis=0)
    return np.tile(constant, (n, 1))
