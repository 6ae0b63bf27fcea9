"""Probes that torch trains by their gradient: a small network, and a learned mix of layers."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertchain.probing.probes import ProbeLabels, ProbeResult, Score
from bertchain.probing.solvers import MAX_ITERATIONS, Standardiser

EPOCHS = 500  # of an MLP, at most
PATIENCE = 10  # epochs without a better validation score or loss
BATCH = 128  # rows
MIX_C_VALUES = (1e-3, 1e-2, 1e-1, 1.0)
MIX_TOLERANCE = 1e-4  # largest entry of the gradient of the mean loss, in float32

LOSSES = {
    "single_label": F.cross_entropy,
    "multi_label": F.binary_cross_entropy_with_logits,
    "regression": F.mse_loss,
}


class _Targets:
    """Labels as tensors by split, their loss, and the way from outputs to predictions.

    Values are standardised by the training rows.
    """

    def __init__(self, labels: ProbeLabels):
        self.kind, self.num_labels = labels.problem_type, labels.num_labels
        self.loss = LOSSES[self.kind]
        dtype = torch.long if self.kind == "single_label" else torch.float32
        splits = [split for split in ("train", "validation") if split in labels.by_split]
        self.y = {s: torch.as_tensor(np.asarray(labels.by_split[s]), dtype=dtype) for s in splits}
        self.center, self.scale = torch.zeros(1), torch.ones(1)
        if self.kind == "regression":
            train = self.y["train"]
            self.center = train.mean(0)
            self.scale = train.std(0, unbiased=False).clamp_min(1e-12)
            self.y = {s: (values - self.center) / self.scale for s, values in self.y.items()}

    def predictions(self, outputs: Tensor) -> np.ndarray:
        """Outputs [n, num_labels] -> probabilities, or values as they were."""
        outputs = outputs.double()
        if self.kind == "single_label":
            return outputs.softmax(-1).numpy()
        if self.kind == "multi_label":
            return outputs.sigmoid().numpy()
        return (outputs * self.scale + self.center).numpy()

    def unscaled(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [num_labels, d] and bias of outputs -> those of logits, or values as they were.

        In float64.
        """
        scale, center = self.scale.double(), self.center.double()
        return weight.double() * scale[:, None], bias.double() * scale + center


# ---------------------------------------------------------------- network


def fit_mlp_probe(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    widths: Sequence[int] = (32, 128),
    repeats: int = 3,
    seed: int = 0,
) -> ProbeResult:
    """Train a network with two hidden ReLU layers (Zhou & Srikumar 2022), widths by validation.

    All pairs of widths are tried once, the best one from `repeats` random starts. The epoch with
    the best validation score is kept, among equals that with the least loss. (By the loss alone
    sure features lose: it rises while more rows come out right.) Adam stops when neither has got
    better for PATIENCE epochs. Values of regression are standardised. Args: see
    `probes.fit_linear_probe`.
    """
    standardise = Standardiser(features["train"])
    x = {split: torch.from_numpy(standardise(values)) for split, values in features.items()}
    targets = _Targets(labels)

    def train(pair: tuple[int, int], start: int) -> tuple[dict[str, np.ndarray], nn.Sequential]:
        model = _train_mlp(x, targets, pair, seed + start, labels.validation_score)
        with torch.no_grad():
            return {split: targets.predictions(model(values)) for split, values in x.items()}, model

    tried = {pair: train(pair, 0) for pair in itertools.product(widths, widths)}
    best = max(tried, key=lambda pair: labels.validation_score(tried[pair][0]["validation"]))
    predictions, model = tried[best]
    others = [train(best, start)[0] for start in range(1, repeats)]
    setting = {"width_1": best[0], "width_2": best[1]}
    weights = _mlp_weights(model, targets, standardise)
    widths_tried = {f"mlp {one}x{two}": found for (one, two), (found, _) in tried.items()}
    repeated = [predictions, *others]
    return ProbeResult(setting, True, predictions, repeated, weights=weights, tried=widths_tried)


def _mlp_weights(
    model: nn.Sequential, targets: _Targets, standardise: Standardiser
) -> dict[str, np.ndarray]:
    """weight_1 [width, features], bias_1 ... weight_3, bias_3, on features as they were."""
    first, _, second, _, third = model
    scale, mean = (torch.from_numpy(v).double() for v in (standardise.scale, standardise.mean))
    with torch.no_grad():
        weight = first.weight.double() / scale
        layers = [(weight, first.bias.double() - weight @ mean)]
        layers += [(second.weight, second.bias), targets.unscaled(third.weight, third.bias)]
        named = [(f"weight_{k}", f"bias_{k}") for k in (1, 2, 3)]
        pairs = zip(itertools.chain(*named), itertools.chain(*layers), strict=True)
        return {name: values.double().numpy() for name, values in pairs}


def _train_mlp(
    x: dict[str, Tensor], targets: _Targets, widths: tuple[int, int], seed: int, score: Score
) -> nn.Sequential:
    """Train one network. Args: score: of predictions of the validation rows."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (x["train"].shape[1], *widths, targets.num_labels)
    first, second, third = (_linear(a, b, generator) for a, b in itertools.pairwise(sizes))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
    loss, y = targets.loss, targets.y
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    best, least, waited = (-float("inf"), 0.0), float("inf"), 0
    kept = _copy(model)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x["train"]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss(model(x["train"][rows]), y["train"][rows]).backward()
            optimizer.step()
        with torch.no_grad():
            outputs = model(x["validation"])
            reached = loss(outputs, y["validation"]).item()
        now = score(targets.predictions(outputs)), -reached
        waited = 0 if now > best or reached < least else waited + 1
        least = min(least, reached)
        if now > best:
            best, kept = now, _copy(model)
        if waited == PATIENCE:
            break
    model.load_state_dict(kept)
    return model


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in model.state_dict().items()}


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """PyTorch's own start, from a generator of ours: probes run side by side in threads."""
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)
    return layer


# ---------------------------------------------------------------- mix of layers


def fit_mix_probe(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    c_values: Sequence[float] = MIX_C_VALUES,
) -> ProbeResult:
    """Train a linear probe on a learned mix of all layers (scalar mix of Peters et al. 2018).

    Layers are standardised, weighed by a softmax, added up; weights and probe are trained together
    by L-BFGS until the gradient vanishes, each C from the solution before.

    Args:
        features: [n, layers, features]. Others: see `probes.fit_linear_probe`.

    Returns:
        the setting holds C, and weight_<layer> of each layer; the weights are of all layers,
        [num_labels, layers, features].
    """
    scalers = [Standardiser(features["train"][:, k]) for k in range(features["train"].shape[1])]
    x = {
        split: torch.from_numpy(np.stack([s(rows[:, k]) for k, s in enumerate(scalers)]))
        for split, rows in features.items()
    }  # [layers, n, features]
    targets = _Targets(labels)
    mix = _Mix(layers=len(scalers), hidden=x["train"].shape[2], targets=targets)
    best: tuple[float, ProbeResult] | None = None
    for C in sorted(c_values):
        converged = mix.train(x["train"], C)
        with torch.no_grad():
            found = {split: targets.predictions(mix(rows)) for split, rows in x.items()}
        reached = labels.validation_score(found["validation"])
        if best is None or reached > best[0]:
            weights = mix.weights(scalers)
            result = ProbeResult({"C": C} | mix.shares(), converged, found, weights=weights)
            best = reached, result
    return best[1]


class _Mix:
    """A linear function of the weighted sum of layers; starts from zero."""

    def __init__(self, layers: int, hidden: int, targets: _Targets):
        self.targets = targets
        self.mix = torch.zeros(layers, requires_grad=True)
        self.weight = torch.zeros(targets.num_labels, hidden, requires_grad=True)
        self.bias = torch.zeros(targets.num_labels, requires_grad=True)

    def __call__(self, x: Tensor) -> Tensor:
        """[layers, n, hidden] -> [n, labels]"""
        mixed = (self.mix.softmax(0) @ x.flatten(1)).view(x.shape[1:])
        return mixed @ self.weight.T + self.bias

    def train(self, x: Tensor, C: float) -> bool:
        """Minimise mean loss + |weight|^2 / (2 C n). Returns whether the gradient vanished."""
        targets, parameters = self.targets, [self.mix, self.weight, self.bias]
        y, penalty = targets.y["train"], 1 / (2 * C * x.shape[1])
        several = 1 if targets.kind == "single_label" else targets.num_labels  # mean -> sum
        optimizer = torch.optim.LBFGS(
            parameters, max_iter=MAX_ITERATIONS, tolerance_grad=MIX_TOLERANCE,
            tolerance_change=1e-12, history_size=20, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = targets.loss(self(x), y) * several + penalty * (self.weight**2).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        closure()
        return max(p.grad.abs().max().item() for p in parameters) <= 10 * MIX_TOLERANCE

    def shares(self) -> dict[str, float]:
        """weight_<layer> of each layer; they add up to 1."""
        weights = self.mix.detach().softmax(0).tolist()
        return {f"weight_{k}": weight for k, weight in enumerate(weights)}

    def weights(self, scalers: Sequence[Standardiser]) -> dict[str, np.ndarray]:
        """weight [labels, layers, hidden] and bias [labels] on layers as they were.

        Args:
            scalers: of each layer.
        """
        with torch.no_grad():
            weight, bias = self.targets.unscaled(self.weight, self.bias)
            scale = torch.from_numpy(np.stack([s.scale for s in scalers])).double()
            mean = torch.from_numpy(np.stack([s.mean for s in scalers])).double()
            of_layers = weight[:, None] * self.mix.double().softmax(0)[:, None] / scale
            bias = bias - torch.einsum("olh,lh->o", of_layers, mean)
        return {"weight": of_layers.numpy(), "bias": bias.numpy()}
