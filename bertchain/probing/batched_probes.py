"""Linear probes of many layers, poolings and values of C as one solve, for a GPU.

A single fit keeps a GPU idle; all of them side by side are a few large matrix products. The
objectives are those of `solvers`, and so is what converged means; but these fits start from zero.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bertchain.probing.solvers import (
    C_VALUES,
    MAX_ITERATIONS,
    ROUNDING,
    TOLERANCE,
    Fit,
    SigmoidPredictor,
    SoftmaxPredictor,
    Standardiser,
    ValuePredictor,
)

STAGES = ((torch.float32, 1e-4), (torch.float64, TOLERANCE))  # how far to go in which precision
HISTORY = 10  # pairs of steps and changes of the gradient that L-BFGS remembers
SUFFICIENT = 1e-4  # share of the promised decrease that a step has to keep (Armijo)
UNSEEN = 8  # times the precision, of a loss or a gradient: less than that is rounding
MEMORY = 4 * 2**30  # bytes of features and logits in one solve on a CPU
SHARE = 0.5  # of the free memory of a GPU, in their place


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
    least: float = 0.0,
) -> list[list[Fit]]:
    """Fit all feature matrices at every C, as `solvers.FITS` does one by one.

    Args:
        features: of the training rows, each [n, features] (not standardised: it is done here).
        labels: class numbers [n], or 0/1 or values [n, num_labels].
        least: see `solvers.Standardiser`.

    Returns:
        for each matrix its fits on standardised features, from strong to weak regularisation.

    Raises:
        ValueError: where training rows hold one class alone.
    """
    rows, width = features[0].shape
    targets, wrap = _targets(labels, num_labels, problem_type)
    outputs = targets.shape[1]
    room = 4 * outputs * len(c_values)  # logits, errors and room to form them
    each = rows * (4 * width + 8 * (width + room))
    at_once = max(1, int(memory_for(device) // each))
    ordered, paths = sorted(c_values), []
    for first in range(0, len(features), at_once):
        few = features[first : first + at_once]
        x = torch.stack([standardised(own, device, least) for own in few])
        found = SOLVERS[problem_type](x, targets.to(device), ordered)
        for weights, bias, converged in zip(*(t.cpu() for t in found), strict=True):
            whole = zip(ordered, weights.numpy(), bias.numpy(), converged.tolist(), strict=True)
            paths.append([Fit(c, ok, wrap(w, b)) for c, w, b, ok in whole])
    return paths


def memory_for(device: torch.device | str) -> float:
    """Bytes that the features and logits of one solve may take on a device."""
    if torch.device(device).type != "cuda":
        return MEMORY
    return SHARE * torch.cuda.mem_get_info(device)[0]


def standardised(features: np.ndarray, device: torch.device | str, least: float) -> Tensor:
    """What `solvers.Standardiser` does with training rows [n, features], on a device."""
    if torch.device(device).type == "cpu":
        return torch.from_numpy(Standardiser(features, least)(features))
    x = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).to(device)
    wide = x.double()
    mean, scale = wide.mean(0).float(), wide.std(0, correction=0).float()
    flat = (scale < 1e-6 * mean.abs() + 1e-12) | (scale < least * scale.quantile(0.5))
    scale[flat] = torch.inf
    return (x - mean) / scale


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
    seen, classes = np.unique(labels, return_inverse=True)
    if len(seen) < 2:
        raise ValueError(f"training rows hold one class alone, {seen[0]}")
    one_hot = np.eye(len(seen))[classes]
    if len(seen) == 2:  # as in scikit-learn: one column of log odds, with its own penalty
        one_hot = one_hot[:, 1:]

    def wrap(weights: np.ndarray, bias: np.ndarray) -> SoftmaxPredictor:
        if weights.shape[1] == 1:
            weights, bias = np.pad(weights, ((0, 0), (1, 0))), np.pad(bias, (1, 0))
        return SoftmaxPredictor(weights.T, bias, seen.astype(int), num_labels)

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
    x = x.double()
    middle_x, middle_y = x.mean(1, keepdim=True), targets.double().mean(0)
    centred, y = x - middle_x, targets.double() - middle_y
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
    """Mean loss + |w|^2 / (2 C n), and its gradient [p, c, (d + 1) * outputs]."""

    def __init__(self, x: Tensor, targets: Tensor, c_values: Tensor, losses: Callable):
        self.x, self.targets, self.losses = x, targets, losses
        self.c_values = c_values
        self.penalty = 1.0 / (c_values * x.shape[1])  # [c]

    def of(self, keep: Tensor) -> "_Objective":
        return _Objective(self.x, self.targets, self.c_values[keep], self.losses)

    def __call__(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        problems, c_values, _ = flat.shape
        rows, width = self.x.shape[1:]
        outputs = self.targets.shape[1]
        own = flat.view(problems, c_values, width + 1, outputs)
        weights, bias = own[:, :, :width], own[:, :, width]
        side_by_side = weights.permute(0, 2, 1, 3).reshape(problems, width, c_values * outputs)
        logits = (self.x @ side_by_side).view(problems, rows, c_values, outputs)
        losses, errors = self.losses(logits + bias[:, None], self.targets)
        value = losses.double().mean(1)
        value += 0.5 * self.penalty * weights.double().square().sum((2, 3))
        errors = errors.reshape(problems, rows, c_values * outputs) / rows
        back = (self.x.mT @ errors).view(problems, width, c_values, outputs).permute(0, 2, 1, 3)
        gradient = torch.empty_like(own)
        gradient[:, :, :width] = back + self.penalty[:, None, None].to(self.x.dtype) * weights
        gradient[:, :, width] = errors.sum(1).view(problems, c_values, outputs)
        return value, gradient.view_as(flat)

    def largest(self, gradient: Tensor) -> Tensor:
        """Largest entries of a gradient: [p, c, outputs] where each output is a problem for
        itself, else [p, c, 1]."""
        own = gradient.abs().unflatten(-1, (-1, self.targets.shape[1])).amax(2)
        return own if self.losses is _binary_losses else own.amax(-1, keepdim=True)


def _minimise(x: Tensor, targets: Tensor, c_values: Sequence[float], losses: Callable) -> Solution:
    """Minimise each problem at each C by its own L-BFGS, from zero: roughly first, then precisely.

    Roughly in float32, which many GPUs compute much faster.
    """
    problems, _, width = x.shape
    outputs, count = targets.shape[1], len(c_values)
    point = torch.zeros(problems, count, (width + 1) * outputs, device=x.device)
    every = torch.tensor(c_values, dtype=torch.float64, device=x.device)
    first = None
    for dtype, share in STAGES:
        objective = _Objective(x.to(dtype), targets.to(dtype), every, losses)
        if first is None:
            first = objective.largest(objective(point)[1])
        least = max(ROUNDING, UNSEEN * torch.finfo(dtype).eps)
        limit = (share * first.double()).clamp_min(least)
        point, converged = _descend(objective, point.to(dtype), limit)
    own = point.view(problems, count, width + 1, outputs)
    return Solution(own[:, :, :width], own[:, :, width], converged)


def _descend(objective: _Objective, point: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
    """Go down until the largest entry of each gradient is within its limit.

    A C is left out as soon as all problems have converged at it: strong regularisation does within
    a few iterations, and the products get smaller.

    Args:
        point: where to start [p, c, parameters].
        limit: see `_Objective.largest`.

    Returns:
        the solutions, and which have converged [p, c].
    """
    solved, converged = point.clone(), torch.zeros_like(limit[..., 0], dtype=torch.bool)
    live = torch.arange(point.shape[1], device=point.device)  # numbers of C still at work
    value, gradient = objective(point)
    memory = _Memory()
    for _ in range(MAX_ITERATIONS):
        done = (objective.largest(gradient) <= limit[:, live]).all(-1)  # [p, live]
        solved[:, live], converged[:, live] = point, done
        keep = ~done.all(0)
        if not keep.any():
            break
        if not keep.all():
            live, memory = live[keep], memory.of(keep)
            point, value, gradient, done = (t[:, keep] for t in (point, value, gradient, done))
            objective = objective.of(keep)
        direction = memory.direction(gradient).masked_fill_(done[..., None], 0.0)
        after, new_value, new_gradient = _search(objective, point, value, gradient, direction)
        memory.add(after - point, new_gradient - gradient)
        point, value, gradient = after, new_value, new_gradient
    return solved, converged


def _search(
    objective: _Objective, point: Tensor, value: Tensor, gradient: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A step for each problem: whole, else halved until the loss falls as far as it should."""
    slope = (gradient * direction).sum(-1).double()  # [p, live], not above 0
    step, unseen = torch.ones_like(slope), UNSEEN * torch.finfo(point.dtype).eps
    for _ in range(30):
        after = point + step[..., None].to(point.dtype) * direction
        new_value, new_gradient = objective(after)
        room = SUFFICIENT * step * slope + unseen * value.abs()
        short = ~(new_value <= value + room)  # a NaN is too far as well
        if not short.any():
            break
        step = torch.where(short, step / 2, step)
    return after, new_value, new_gradient


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
