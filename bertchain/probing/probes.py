"""Probes: how much of a task a simple model reads off frozen features.

Feature matrices in, probabilities out; no files, no tokenizers. A linear probe is trained until its
gradient vanishes, because a probe that is not measures the optimizer and not the representation.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularisation C, from strong to weak
MAX_ITERATIONS = 2000
TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss


@dataclass
class Fit:
    """A trained probe at one C."""

    C: float
    converged: bool
    predict: Callable[[np.ndarray], np.ndarray]  # [n, features] -> probabilities or values


@dataclass
class ProbeResult:
    """The probe whose setting did best on validation.

    Attributes:
        setting: what was chosen, such as C: inverse regularisation C on standardised
            features.
        converged: whether the chosen fit reached its tolerance.
        probabilities: by split, [n, labels] (regression: values).
        repeats: the same for the same setting from other random starts; empty where a fit has none.
    """

    setting: dict[str, float]
    converged: bool
    probabilities: dict[str, np.ndarray]
    repeats: list[dict[str, np.ndarray]] = field(default_factory=list)


Score = Callable[[np.ndarray], float]  # validation probabilities -> a number, more is better


def fit_linear_probe(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    num_labels: int,
    problem_type: str,
    validation_score: Score,
    c_values: Sequence[float] = C_VALUES,
    path: list[Fit] | None = None,
) -> ProbeResult:
    """Train a linear probe at every C and keep the one that does best on validation.

    Multinomial logistic regression, one-versus-rest logistic regression, or ridge regression by
    problem type, on features standardised by the training rows. Strengths go from strong to weak,
    each starting from the solution before. Of equal scores the stronger regularisation is kept.

    Args:
        features: [n, features] for train and validation, and any further splits to predict.
        labels: by split, as far as known; training: class numbers [n], or 0/1 or targets
            [n, num_labels].
        num_labels: also counts classes that no training row has.
        path: fits that were trained already (see batched_probes.py), from strong to weak.
    """
    standardise = Standardiser(features["train"])
    if path is None:
        fit = FITS[problem_type]
        path = fit(standardise(features["train"]), labels["train"], num_labels, sorted(c_values))
    validation = standardise(features["validation"])
    scored = [(validation_score(fit.predict(validation)), fit) for fit in path]
    best = max(scored, key=lambda pair: pair[0])[1]  # the first of equals is the strongest
    predictions = {split: best.predict(standardise(x)) for split, x in features.items()}
    return ProbeResult({"C": best.C}, best.converged, predictions)


NEIGHBOURS = (1, 3, 5, 9, 17, 33)


def fit_knn_probe(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    num_labels: int,
    problem_type: str,
    validation_score: Score,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> ProbeResult:
    """The mean label of the k nearest training rows by cosine, k chosen on validation.

    Nothing is trained, so that what it finds lies in the features as they are. Features are not
    standardised. Args: see `fit_linear_probe`. Training rows are not their own neighbours.
    """
    train = np.asarray(features["train"], dtype=np.float32)
    wanted = [k for k in neighbours if k < len(train)]
    index = NearestNeighbors(n_neighbors=max(wanted), metric="cosine").fit(train)
    truth = np.asarray(labels["train"], dtype=float)
    if problem_type == "single_label":
        truth = np.eye(num_labels)[np.asarray(labels["train"])]
    means = {}
    for split, x in features.items():
        rows = None if split == "train" else np.asarray(x, dtype=np.float32)
        nearest = index.kneighbors(rows, return_distance=False)  # [n, most]
        sums = np.cumsum(truth[nearest], axis=1)
        means[split] = {k: sums[:, k - 1] / k for k in wanted}
    best = max(wanted, key=lambda k: validation_score(means["validation"][k]))
    return ProbeResult({"neighbours": best}, True, {s: by_k[best] for s, by_k in means.items()})


def fit_mlp_probe(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    num_labels: int,
    problem_type: str,
    validation_score: Score,
    widths: Sequence[int] = (32, 128),
    repeats: int = 3,
    seed: int = 0,
) -> ProbeResult:
    """A network with two hidden ReLU layers (Zhou & Srikumar 2022): widths chosen on validation.

    All pairs of widths are tried once, the best one from `repeats` random starts. Adam, stopped
    when the validation loss has not fallen for 10 epochs; the best epoch is kept. Regression
    targets are standardised. Args: see `fit_linear_probe`.
    """
    standardise = Standardiser(features["train"])
    x = {split: torch.from_numpy(standardise(values)) for split, values in features.items()}

    def train(pair: tuple[int, int], start: int) -> dict[str, np.ndarray]:
        return train_mlp(x, labels, num_labels, problem_type, pair, seed + start)

    tried = {pair: train(pair, 0) for pair in itertools.product(widths, widths)}
    best = max(tried, key=lambda pair: validation_score(tried[pair]["validation"]))
    others = [train(best, start) for start in range(1, repeats)]
    setting = {"width_1": best[0], "width_2": best[1]}
    return ProbeResult(setting, True, tried[best], [tried[best], *others])


def train_mlp(
    x: dict[str, Tensor],
    labels: dict[str, np.ndarray],
    num_labels: int,
    problem_type: str,
    widths: tuple[int, int],
    seed: int,
    patience: int = 10,
    most_epochs: int = 500,
    batch: int = 128,
) -> dict[str, np.ndarray]:
    """One network; its probabilities (regression: values) by split."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (x["train"].shape[1], *widths, num_labels)
    first, second, third = (_linear(a, b, generator) for a, b in itertools.pairwise(sizes))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    kind = torch.long if problem_type == "single_label" else torch.float32
    y = {s: torch.as_tensor(np.asarray(labels[s]), dtype=kind) for s in ("train", "validation")}
    center, scale = 0.0, 1.0
    if problem_type == "regression":
        center, scale = y["train"].mean(0), y["train"].std(0, unbiased=False).clamp_min(1e-12)
        y = {split: (values - center) / scale for split, values in y.items()}
    loss = LOSSES[problem_type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, kept, worse = float("inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(most_epochs):
        for rows in torch.randperm(len(x["train"]), generator=generator).split(batch):
            optimizer.zero_grad()
            loss(model(x["train"][rows]), y["train"][rows]).backward()
            optimizer.step()
        with torch.no_grad():
            now = loss(model(x["validation"]), y["validation"]).item()
        worse = 0 if now < best else worse + 1
        if now < best:
            best, kept = now, copy.deepcopy(model.state_dict())
        if worse == patience:
            break
    model.load_state_dict(kept)
    with torch.no_grad():
        outputs = {split: model(values).double() for split, values in x.items()}
    if problem_type == "regression":
        outputs = {split: z * scale + center for split, z in outputs.items()}
    return {split: _probabilities(z, problem_type) for split, z in outputs.items()}


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """PyTorch's own start, from a generator of ours: probes run side by side in threads."""
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


LOSSES = {
    "single_label": F.cross_entropy,
    "multi_label": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}

MIX_C_VALUES = (1e-3, 1e-2, 1e-1, 1.0)


def fit_mix_probe(
    features: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    num_labels: int,
    problem_type: str,
    validation_score: Score,
    c_values: Sequence[float] = MIX_C_VALUES,
) -> ProbeResult:
    """A linear probe on a learned mix of all layers (the scalar mix of Peters et al. 2018).

    Layers are standardised, weighed by a softmax, added up; weights and probe are trained together
    by L-BFGS until the gradient vanishes, each C from the solution before.

    Args:
        features: [n, layers, features]. Others: see `fit_linear_probe`.

    Returns:
        setting holds C, and weight_<layer> of each layer.
    """
    scalers = [Standardiser(features["train"][:, k]) for k in range(features["train"].shape[1])]
    x = {
        split: torch.from_numpy(np.stack([s(rows[:, k]) for k, s in enumerate(scalers)], axis=1))
        for split, rows in features.items()
    }
    layers, hidden = x["train"].shape[1:]
    single = problem_type == "single_label"
    y = torch.as_tensor(np.asarray(labels["train"]), dtype=torch.long if single else torch.float32)
    center, scale = 0.0, 1.0
    if problem_type == "regression":
        center, scale = y.mean(0), y.std(0, unbiased=False).clamp_min(1e-12)
        y = (y - center) / scale
    mix = torch.zeros(layers, requires_grad=True)
    weight = torch.zeros(num_labels, hidden, requires_grad=True)
    bias = torch.zeros(num_labels, requires_grad=True)
    parameters = [mix, weight, bias]

    def output(rows: Tensor) -> Tensor:
        return torch.einsum("nlh,l->nh", rows, mix.softmax(0)) @ weight.T + bias

    best: tuple[float, ProbeResult] | None = None
    for C in sorted(c_values):
        penalty = 1 / (2 * C * len(y))
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=MAX_ITERATIONS, tolerance_grad=TOLERANCE, tolerance_change=1e-12,
            history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure(penalty: float = penalty, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = LOSSES[problem_type](output(x["train"]), y) * (1 if single else num_labels)
            loss = loss + penalty * (weight**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        closure()
        converged = max(p.grad.abs().max().item() for p in parameters) <= 10 * TOLERANCE
        with torch.no_grad():
            found = {s: _probabilities(output(rows), problem_type) for s, rows in x.items()}
        if problem_type == "regression":
            found = {s: v * scale.numpy() + center.numpy() for s, v in found.items()}
        shares = mix.detach().softmax(0).tolist()
        setting = {"C": C} | {f"weight_{k}": w for k, w in enumerate(shares)}
        reached = validation_score(found["validation"])
        if best is None or reached > best[0]:
            best = reached, ProbeResult(setting, converged, found)
    return best[1]


def _probabilities(logits: Tensor, problem_type: str) -> np.ndarray:
    logits = logits.double()
    turn = {"single_label": lambda z: z.softmax(-1), "multi_label": torch.sigmoid}
    return turn.get(problem_type, lambda z: z)(logits).numpy()


PROBES = {
    "linear": fit_linear_probe,
    "knn": fit_knn_probe,
    "mlp": fit_mlp_probe,
    "mix": fit_mix_probe,
}


# ---------------------------------------------------------------- linear fits


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
    """scikit-learn's L-BFGS: sum of log losses + |W|^2 / (2 C), warm-started."""
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
    def __init__(self, weights: np.ndarray, bias: np.ndarray, seen: np.ndarray, classes: int):
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
    """All labels in one L-BFGS solve: the objectives are a plain sum, each scikit-learn's own.

    Objective: sum over labels of (sum of log losses + |w|^2 / (2 C)), divided by the number of
    rows.
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


class SigmoidPredictor:
    def __init__(self, weights: np.ndarray, bias: np.ndarray):
        self.weights, self.bias = weights, bias

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return expit(x @ self.weights + self.bias)


def fit_ridge(
    x: np.ndarray, y: np.ndarray, num_labels: int, c_values: Sequence[float]
) -> list[Fit]:
    """Ridge regression with penalty 1 / C per row, solved in closed form."""
    fits = []
    for C in c_values:
        model = Ridge(alpha=1.0 / C, solver="cholesky").fit(x.astype(np.float64), y)
        fits.append(Fit(C, True, lambda rows, m=model: m.predict(rows).reshape(len(rows), -1)))
    return fits


FITS = {
    "single_label": fit_multinomial,
    "multi_label": fit_one_versus_rest,
    "regression": fit_ridge,
}
