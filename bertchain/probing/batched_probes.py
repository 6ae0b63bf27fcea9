"""Linear probes of many layers, poolings and values of C as one solve, for a GPU.

A single fit keeps a GPU idle; all of them side by side are a few large matrix products. The
objectives are those of `solvers`, and so are what converged means, float64, and the stages along
principal axes; but these fits all start from zero.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertchain.probing.solvers import (
    C_VALUES,
    LEAST_CURVATURE,
    LEAST_GRADIENT,
    MAX_ITERATIONS,
    STAGES,
    Fit,
    SigmoidPredictor,
    SoftmaxPredictor,
    Standardiser,
    ValuePredictor,
    class_targets,
)

HISTORY = 10  # pairs of steps and changes of the gradient that L-BFGS remembers
SUFFICIENT = 1e-4  # share of the promised decrease that a step has to keep (Armijo)
ROUNDING = 1e-14  # of a loss: less than that float64 does not tell apart
MEMORY = 4 * 2**30  # bytes of features and logits in one solve


class Solution(NamedTuple):
    """Linear functions of problems x c_values."""

    weights: Tensor  # [problems, c_values, features, outputs]
    bias: Tensor  # [problems, c_values, outputs]
    converged: Tensor  # [problems, c_values]


def fit_many(
    features: Sequence[np.ndarray],
    labels: np.ndarray,
    num_labels: int,
    problem_type: str,
    c_values: Sequence[float] = C_VALUES,
    device: torch.device | str = "cpu",
) -> list[list[Fit]]:
    """Fit all feature matrices at every C, as `solvers.FITS` does one by one.

    Args:
        features: of the training rows, each [n, features] (not standardised: it is done here).
        labels: class numbers [n], or 0/1 or values [n, num_labels].

    Returns:
        for each matrix its fits on standardised features, from strong to weak regularisation.

    Raises:
        ValueError: where training rows hold one class alone.
    """
    rows, width = features[0].shape
    targets, wrap = _targets(labels, num_labels, problem_type)
    outputs = targets.shape[1]
    each = (
        8 * rows * (2 * width + 4 * outputs * len(c_values))
    )  # logits, errors and room to form them
    at_once = max(1, int(MEMORY // each))
    ordered, paths = sorted(c_values), []
    for first in range(0, len(features), at_once):
        few = features[first : first + at_once]
        x = torch.stack([torch.from_numpy(Standardiser(own)(own)) for own in few])
        found = SOLVERS[problem_type](x.to(device).double(), targets.to(device), ordered)
        for weights, bias, converged in zip(*(t.cpu() for t in found), strict=True):
            whole = zip(ordered, weights.numpy(), bias.numpy(), converged.tolist(), strict=True)
            paths.append([Fit(c, ok, wrap(w, b)) for c, w, b, ok in whole])
    return paths


def _targets(
    labels: np.ndarray, num_labels: int, problem_type: str
) -> tuple[Tensor, Callable[[np.ndarray, np.ndarray], Callable]]:
    """Targets [n, outputs], and a function that makes a predictor of weights [d, outputs] and a
    bias."""
    labels = np.asarray(labels)
    if problem_type == "regression":
        values = torch.from_numpy(labels.reshape(len(labels), -1).astype(np.float64))
        return values, ValuePredictor
    if problem_type == "multi_label":
        return torch.from_numpy(labels.astype(np.float64)), SigmoidPredictor
    seen, one_hot = class_targets(labels)

    def wrap(weights: np.ndarray, bias: np.ndarray) -> SoftmaxPredictor:
        return SoftmaxPredictor.of_outputs(weights, bias, seen, num_labels)

    return torch.from_numpy(one_hot), wrap


# ---------------------------------------------------------------- solvers


def solve_logistic(x: Tensor, targets: Tensor, c_values: Sequence[float]) -> Solution:
    """Logistic regression of each output for itself.

    Args:
        x: standardised features [problems, n, d].
        targets: 0/1 [n, outputs].
    """
    return _minimise(x, targets, c_values, _binary_losses)


def solve_classes(x: Tensor, targets: Tensor, c_values: Sequence[float]) -> Solution:
    """Multinomial logistic regression; one output alone holds log odds. Args: as above."""
    if targets.shape[1] == 1:
        return solve_logistic(x, targets, c_values)
    return _minimise(x, targets, c_values, _class_losses)


def solve_ridge(x: Tensor, targets: Tensor, c_values: Sequence[float]) -> Solution:
    """Ridge regression in closed form: one eigendecomposition serves every C. Args: as above."""
    middle_x, middle_y = x.mean(1, keepdim=True), targets.mean(0)
    centred, y = x - middle_x, targets - middle_y
    values, vectors = torch.linalg.eigh(centred.mT @ centred)  # [p, d], [p, d, d]
    along = vectors.mT @ (centred.mT @ y)  # [p, d, outputs]
    penalty = 1.0 / torch.tensor(c_values, dtype=torch.float64, device=x.device)
    shrunk = along[:, None] / (values[:, None] + penalty[:, None])[..., None]  # [p, c, d, outputs]
    weights = vectors[:, None] @ shrunk
    bias = middle_y - (middle_x[:, None] @ weights)[:, :, 0]
    return Solution(weights, bias, torch.ones(weights.shape[:2], dtype=torch.bool))


SOLVERS = {
    "single_label": solve_classes,
    "multi_label": solve_logistic,
    "regression": solve_ridge,
}


def _class_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits [p, n, c, outputs] the losses of rows [p, n, c], and the errors passed back."""
    logs = F.log_softmax(logits, dim=-1)
    losses = -torch.einsum("pnco,no->pnc", logs, targets)
    return losses, logs.exp_().sub_(targets[:, None])


def _binary_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    truth = targets[:, None].expand_as(logits)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
    return losses, logits.sigmoid().sub_(truth)


# ---------------------------------------------------------------- L-BFGS, side by side


class _Objective:
    """Mean loss + |w|^2 / (2 C n) of points [p, c, (d + 1) * outputs]: solutions over `scales`."""

    def __init__(self, x: Tensor, targets: Tensor, c_values: Tensor, losses: Callable):
        self.x, self.targets, self.losses = x, targets, losses
        self.penalty = 1.0 / (c_values * x.shape[1])  # [c]
        shape = len(x), len(c_values), x.shape[2] + 1, targets.shape[1]
        self.scales = torch.ones(shape, dtype=x.dtype, device=x.device)

    def of(self, keep: Tensor) -> "_Objective":
        """The same for some values of C, [c] bool."""
        few = copy.copy(self)
        few.penalty, few.scales = self.penalty[keep], self.scales[:, keep]
        return few

    def _errors(self, own: Tensor) -> tuple[Tensor, Tensor]:
        """Losses of rows [p, n, c] and errors [p, n, c, outputs] of solutions."""
        problems, c_values, width, outputs = own.shape
        side_by_side = own[:, :, :-1].permute(0, 2, 1, 3).reshape(problems, width - 1, -1)
        logits = (self.x @ side_by_side).view(problems, -1, c_values, outputs)
        return self.losses(logits + own[:, None, :, -1], self.targets)

    def rescale(self, solution: Tensor, variances: Tensor) -> None:
        """Scale by 1 / sqrt(curvature) at a solution [p, c, d + 1, outputs], as `solvers` does.

        Args:
            variances: along each axis [p, d].
        """
        p = self._errors(solution)[1] + self.targets[:, None]
        curvature = (p * (1 - p)).mean(1).clamp_min(LEAST_CURVATURE)[:, :, None]  # [p, c, 1, o]
        along = variances[:, None, :, None] * curvature + self.penalty[:, None, None]
        self.scales = torch.cat([along, curvature], 2).rsqrt()

    def __call__(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [p, c], gradients of points, and norms of the gradients of solutions [p, c]."""
        own = flat.view(self.scales.shape) * self.scales
        problems, c_values, _, outputs = own.shape
        weights, rows = own[:, :, :-1], self.x.shape[1]
        losses, errors = self._errors(own)
        value = losses.mean(1) + 0.5 * self.penalty * weights.square().sum((2, 3))
        errors = errors.reshape(problems, rows, c_values * outputs) / rows
        back = self.x.mT @ errors
        gradient = torch.empty_like(own)
        gradient[:, :, :-1] = back.view(problems, -1, c_values, outputs).permute(0, 2, 1, 3)
        gradient[:, :, :-1] += self.penalty[:, None, None] * weights
        gradient[:, :, -1] = errors.sum(1).view(problems, c_values, outputs)
        norm = gradient.flatten(2).norm(dim=-1)
        return value, (gradient * self.scales).view_as(flat), norm


def _minimise(x: Tensor, targets: Tensor, c_values: Sequence[float], losses: Callable) -> Solution:
    """Minimise each problem at each C from zero, in the stages of `solvers`."""
    _, rows, width = x.shape
    values, axes = torch.linalg.eigh(x.mT @ x / rows)  # [p, d], [p, d, d]
    every = torch.tensor(c_values, dtype=torch.float64, device=x.device)
    objective = _Objective(x @ axes, targets, every, losses)
    solution = torch.zeros_like(objective.scales)
    size = objective(solution.flatten(2))[2].clamp_min(LEAST_GRADIENT)  # [p, c]
    left = MAX_ITERATIONS
    for share in STAGES:
        objective.rescale(solution, values.clamp_min(0.0))
        solution, converged, used = _descend(objective, solution, share * size, left)
        left -= used
    return Solution(axes[:, None] @ solution[:, :, :width], solution[:, :, width], converged)


def _descend(
    objective: _Objective, solution: Tensor, limit: Tensor, iterations: int
) -> tuple[Tensor, Tensor, int]:
    """Minimise each problem at each C by its own L-BFGS, until its gradient is within the limit.

    A C is left out as soon as all problems have reached it there: strong regularisation does within
    a few iterations, and the products get smaller.

    Args:
        solution: to start from [p, c, d + 1, outputs].
        limit: of the gradient's norm [p, c].

    Returns:
        solutions; which reached the limit [p, c]; the iterations that were used.
    """
    point, memory = (solution / objective.scales).flatten(2), _Memory()
    solved, reached = point.clone(), torch.zeros_like(limit, dtype=torch.bool)
    scales, live = objective.scales, torch.arange(limit.shape[1], device=limit.device)
    value, gradient, norm = objective(point)
    for used in range(iterations + 1):
        done = norm <= limit[:, live]  # [p, live]
        solved[:, live], reached[:, live] = point, done
        keep = ~done.all(0)
        if not keep.any() or used == iterations:
            break
        if not keep.all():
            live, memory, objective = live[keep], memory.of(keep), objective.of(keep)
            point, value, gradient, done = (t[:, keep] for t in (point, value, gradient, done))
        direction = memory.direction(gradient).masked_fill_(done[..., None], 0.0)
        after, new_value, new_gradient, norm = _search(objective, point, value, gradient, direction)
        memory.add(after - point, new_gradient - gradient)
        point, value, gradient = after, new_value, new_gradient
    return solved.view_as(scales) * scales, reached, used


def _search(
    objective: _Objective, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A step for each problem: whole, else halved until the loss falls as far as it should."""
    slope = (gradient * direction).sum(-1)  # [p, live], not above 0
    step = torch.ones_like(slope)
    for _ in range(30):
        after = point + step[..., None] * direction
        new_value, new_gradient, norm = objective(after)
        room = SUFFICIENT * step * slope + ROUNDING * value.abs()
        short = ~(new_value <= value + room)  # a NaN is too far as well
        if not short.any():
            break
        step = torch.where(short, step / 2, step)
    return after, new_value, new_gradient, norm


class _Memory:
    """The last steps and what they did to the gradient, each [p, live, parameters]."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor, Tensor]] | None = None):
        self.pairs = pairs or []  # step, change, 1 / (step . change), or 0: nothing learned

    def of(self, keep: Tensor) -> "_Memory":
        return _Memory([tuple(t[:, keep] for t in pair) for pair in self.pairs])

    def add(self, step: Tensor, change: Tensor) -> None:
        curvature = (step * change).sum(-1, keepdim=True)
        size = step.norm(dim=-1, keepdim=True) * change.norm(dim=-1, keepdim=True)
        known = curvature > 1e-8 * size
        inverse = torch.where(known, 1.0 / curvature, torch.zeros_like(curvature))
        self.pairs = [*self.pairs[-HISTORY + 1 :], (step, change, inverse)]

    def direction(self, gradient: Tensor) -> Tensor:
        """Downhill, by the two loops of L-BFGS (Nocedal 1980)."""
        if not self.pairs:
            return -gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1.0)
        q, shares = gradient.clone(), []
        for step, change, inverse in reversed(self.pairs):
            share = inverse * (step * q).sum(-1, keepdim=True)
            q -= share * change
            shares.append(share)
        q *= self._scale()
        for (step, change, inverse), share in zip(self.pairs, reversed(shares), strict=True):
            q += step * (share - inverse * (change * q).sum(-1, keepdim=True))
        return -q

    def _scale(self) -> Tensor:
        """Of the newest pair that taught anything: step . change / |change|^2."""
        scale = torch.ones_like(self.pairs[0][2])
        for _, change, inverse in self.pairs:
            size = change.square().sum(-1, keepdim=True)
            scale = torch.where(inverse > 0, 1.0 / (inverse * size).clamp_min(1e-30), scale)
        return scale
