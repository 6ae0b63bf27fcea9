"""Linear solvers on standardised features, each until its gradient vanishes.

Matrices in, fitted predictors out. Each fit takes values of C from strong to weak regularisation
and starts from the solution before.

Converged means one thing, here and in `batched_probes`: the Euclidean norm of the gradient is at
most CONVERGED times what it is where all weights and biases are zero. "Fewer iterations than the
maximum" is not that, and a loose tolerance measures where the optimizer stopped: with weak
regularisation accuracies would differ by hundredths. All is computed in float64, along the
principal axes of the features, scaled by the curvature there: correlated features would else take
thousands of steps.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, log_softmax
from sklearn.linear_model import LogisticRegression, Ridge

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation, from strong to weak
MAX_ITERATIONS = 2000
CONVERGED = 1e-6  # norm of the gradient, relative to that at zero
LEAST_GRADIENT = 1e-6  # at zero: features that say nothing have none to compare with
STAGES = (1e-2, 1e-4, CONVERGED)  # at each the curvature is measured again
LEAST_CURVATURE = 1e-5  # of a class that is certain everywhere

# scores [n, outputs] and targets -> the sum of losses, and errors [n, outputs]
Losses = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


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
    """Multinomial logistic regression by L-BFGS, warm-started.

    Objective: sum of log losses + |W|^2 / (2 C), as scikit-learn's; of two classes also as there:
    one column of log odds.

    Args:
        x: standardised features [n, d].
        y: class numbers [n].
        num_labels: also counts classes that no row has.
        c_values: from strong to weak.

    Raises:
        ValueError: where rows hold one class alone.
    """
    seen, targets = class_targets(y)
    losses = _binary_losses if targets.shape[1] == 1 else _class_losses
    return [
        Fit(C, converged, SoftmaxPredictor.of_outputs(weights, bias, seen, num_labels))
        for C, weights, bias, converged in _solve(x, targets, c_values, losses)
    ]


def class_targets(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make 0/1 targets of class numbers [n].

    Returns:
        the classes that occur; and [n, classes], or of two classes [n, 1]: the second's.

    Raises:
        ValueError: where there is one class alone.
    """
    seen, classes = np.unique(y, return_inverse=True)
    if len(seen) < 2:
        raise ValueError(f"training rows hold one class alone, {seen[0]}")
    one_hot = np.eye(len(seen))[classes.reshape(-1)]
    return seen.astype(int), one_hot[:, 1:] if len(seen) == 2 else one_hot


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

    @classmethod
    def of_outputs(
        cls, weights: np.ndarray, bias: np.ndarray, seen: np.ndarray, num_labels: int
    ) -> "SoftmaxPredictor":
        """Of weights [d, outputs]; one output alone holds log odds of the second class seen."""
        if weights.shape[1] == 1:
            weights, bias = np.pad(weights, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        return cls(weights.T, bias, seen, num_labels)

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
    solved = _solve(x, np.asarray(y, dtype=np.float64), c_values, _binary_losses)
    return [Fit(C, ok, SigmoidPredictor(weights, bias)) for C, weights, bias, ok in solved]


# ---------------------------------------------------------------- L-BFGS along principal axes


def _class_losses(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    logs = log_softmax(scores, axis=1)
    return -float((logs * targets).sum()), np.exp(logs) - targets


def _binary_losses(scores: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    loss = -float((log_expit(scores) - (1 - targets) * scores).sum())
    return loss, expit(scores) - targets


class _Objective:
    """Mean loss + |w|^2 / (2 C n) of a solution [axes + 1, outputs], its last row the bias."""

    def __init__(self, x: np.ndarray, targets: np.ndarray, C: float, losses: Losses):
        self.x, self.targets, self.losses = x, targets, losses
        self.penalty = 1.0 / (C * len(x))

    def errors(self, solution: np.ndarray) -> tuple[float, np.ndarray]:
        return self.losses(self.x @ solution[:-1] + solution[-1], self.targets)

    def __call__(self, solution: np.ndarray) -> tuple[float, np.ndarray]:
        loss, errors = self.errors(solution)
        back = np.concatenate([self.x.T @ errors, errors.sum(axis=0)[None]]) / len(self.x)
        back[:-1] += self.penalty * solution[:-1]
        return loss / len(self.x) + 0.5 * self.penalty * float((solution[:-1] ** 2).sum()), back

    def scales(self, solution: np.ndarray, variances: np.ndarray) -> np.ndarray:
        """Scale by 1 / sqrt(curvature) of each axis and output here [axes + 1, outputs]."""
        p = self.errors(solution)[1] + self.targets
        curvature = np.maximum((p * (1 - p)).mean(axis=0), LEAST_CURVATURE)  # [outputs]
        along = variances[:, None] * curvature + self.penalty
        return 1.0 / np.sqrt(np.concatenate([along, curvature[None]]))


def _principal_axes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions [d, axes] in which rows [n, d] vary, and their mean squares along each [axes]."""
    if len(x) < x.shape[1]:
        _, sizes, axes = np.linalg.svd(x, full_matrices=False)
        return axes.T, sizes**2 / len(x)
    values, axes = np.linalg.eigh(x.T @ x / len(x))
    return axes, np.maximum(values, 0.0)


def _solve(
    x: np.ndarray, targets: np.ndarray, c_values: Sequence[float], losses: Losses
) -> list[tuple[float, np.ndarray, np.ndarray, bool]]:
    """Minimise the objective at each C, each from the solution before.

    Returns:
        C, weights [d, outputs], bias [outputs] and whether it converged, for each C.
    """
    x = np.asarray(x, dtype=np.float64)
    axes, variances = _principal_axes(x)
    rotated = x @ axes
    solution = np.zeros((len(variances) + 1, targets.shape[1]))
    _, at_zero = _Objective(rotated, targets, 1.0, losses)(solution)
    size, found = max(float(np.linalg.norm(at_zero)), LEAST_GRADIENT), []
    for C in c_values:
        objective = _Objective(rotated, targets, C, losses)
        solution, converged = _descend(objective, solution, variances, size)
        found.append((C, axes @ solution[:-1], solution[-1], converged))
    return found


def _descend(
    objective: _Objective, solution: np.ndarray, variances: np.ndarray, size: float
) -> tuple[np.ndarray, bool]:
    """Minimise in stages.

    Args:
        solution: to start from [axes + 1, outputs].
        size: of the gradient at zero.

    Returns:
        the solution, and whether it converged.
    """
    tries = [0]
    for share in STAGES:
        scales, reached = objective.scales(solution, variances), []

        def scaled(
            flat: np.ndarray,
            scales: np.ndarray = scales,
            limit: float = share * size,
            reached: list = reached,
        ) -> tuple[float, np.ndarray]:
            tries[0] += 1
            point = flat.reshape(scales.shape) * scales
            value, gradient = objective(point)
            if np.linalg.norm(gradient) <= limit:
                reached.append(point)
                raise StopIteration  # this point will do, whatever step was being tried
            return value, (gradient * scales).reshape(-1)

        left = max(MAX_ITERATIONS - tries[0], 1)
        options = {"maxiter": left, "maxfun": 2 * left, "gtol": 0.0, "ftol": 0.0, "maxcor": 20}
        with contextlib.suppress(StopIteration):
            start = (solution / scales).reshape(-1)
            solved = minimize(scaled, start, jac=True, method="L-BFGS-B", options=options)
        if not reached:
            return solved.x.reshape(scales.shape) * scales, False
        solution = reached[0]
    return solution, True


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
