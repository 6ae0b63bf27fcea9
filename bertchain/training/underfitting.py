"""Did training get anywhere? Said at its end, where it did not: a low score alone says nothing.

Two measures of training rows, both without dropout and with the training loss: the loss itself,
against the least that the same answer for all rows gives; and how steeply it still falls, against
the start. The second is the gradient of the head's weights, divided by that at weights of zero: 0
where the head has converged, whatever the schedule of the learning rate.
"""

import logging
import math
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from bertchain.models.modeling import DocumentClassifier, without_padding
from bertchain.training.head_features import head_features
from bertchain.training.initialization import SMALL
from bertchain.training.trainer import DocumentTrainer

logger = logging.getLogger(__name__)

SAMPLE = 512  # training rows that are looked at
NO_BETTER = 0.95  # of the least loss without features: above, nothing was learnt
STEEP = 0.5  # of the slope at the start: above, training had just begun
FEW_STEPS = 200  # below, a small table needs more epochs (Mosbach et al. 2021, arXiv 2006.04884)


def find_underfitting(trainer: DocumentTrainer, rows: Dataset) -> dict[str, Any]:
    """Measure and say whether a trained classifier underfits its training rows.

    All processes must call this. A head that is not linear is not judged, nor
    a model that is sharded.

    Args:
        rows: encoded training documents with labels.

    Returns:
        for the results: train_loss_evaluated, train_loss_without_features, train_slope_left, and
        underfitting, a sentence, where it does.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if type(model.head) is not nn.Linear or sharded:
        return {}
    if len(rows) > SAMPLE:
        rows = rows.select(np.random.default_rng(0).permutation(len(rows))[:SAMPLE])
    features = torch.from_numpy(head_features(trainer, rows)).double()
    labels = trainer.data_collator([rows[i] for i in range(len(rows))])["labels"]
    if "token_positions" in rows.column_names:
        labels = without_padding(labels.unsqueeze(-1), labels)[1]
    found = measure(model, trainer.loss, features, labels)
    message = describe(trainer, found)
    if message is not None:
        logger.warning("Underfitting: %s", message)
        found["underfitting"] = message
    return found


def measure(
    model: DocumentClassifier, loss: Any, features: Tensor, labels: Tensor
) -> dict[str, float]:
    """Measure loss and slope; see the top of the file.

    Args:
        loss: a `TrainingLoss`.
        features: what the head reads [n, features].
        labels: [n], or [n, labels].
    """
    config = model.config
    scale, mean = torch.ones(1), torch.zeros(1)
    if config.problem_type == "regression":
        scale, mean = torch.tensor(config.target_scale), torch.tensor(config.target_mean)
    divisor = loss.divisor(labels)

    def loss_of(outputs: Tensor) -> Tensor:  # of the head [n, labels]
        return loss.total(outputs * scale + mean, labels) / divisor

    def slope_at(outputs: Tensor) -> float:
        outputs = outputs.detach().requires_grad_()
        (errors,) = torch.autograd.grad(loss_of(outputs), outputs)
        return (errors.double().T @ (features - features.mean(dim=0))).norm().item()

    weight, bias = (p.detach().cpu().double() for p in (model.head.weight, model.head.bias))
    outputs = (features @ weight.T + bias).float()
    constant = best_constant(loss_of, outputs)
    start = slope_at(constant)
    return {
        "train_loss_evaluated": loss_of(outputs).item(),
        "train_loss_without_features": loss_of(constant).item(),
        "train_slope_left": slope_at(outputs) / start if start else 0.0,
    }


def best_constant(loss_of: Any, like: Tensor) -> Tensor:
    """Find the same outputs for all rows [n, labels] with the least loss: class frequencies."""
    row = torch.zeros(like.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([row], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(row.expand(like.shape))
        value.backward()
        return value

    optimizer.step(closure)
    return row.detach().expand(like.shape)


def describe(trainer: DocumentTrainer, found: dict[str, float]) -> str | None:
    """Say what the measures mean and what to try; None where training got somewhere."""
    loss, least = found["train_loss_evaluated"], found["train_loss_without_features"]
    steps, rate = trainer.state.global_step, trainer.args.learning_rate
    what = f"after {steps} steps the loss on training rows is {loss:.3g}; "
    what += f"without the text, by the frequencies alone, it is {least:.3g}"
    nothing = not loss <= NO_BETTER * least
    if not nothing and found["train_slope_left"] <= STEEP:
        return None
    if not nothing:
        what += f", and it still falls {found['train_slope_left']:.0%} as steeply as at the start"
    hidden = trainer.model.config.get_text_config().hidden_size
    low, high = (1e-4, 5e-4) if hidden < SMALL else (2e-5, 5e-5)
    tries = ["--head_init probe"]
    if steps < FEW_STEPS:
        tries.append(f"--min_steps {FEW_STEPS}")
    if not any(p.requires_grad for p in trainer.model.encoder.parameters()):
        tries.append("--head_learning_rate 1e-2, for the encoder is frozen")
    elif rate < low or (nothing and rate > high):
        where = "" if rate < low else "a lower rate, "
        tries.append(f"{where}--learning_rate {low:g} to {high:g} for a hidden size of {hidden}")
    elif steps >= FEW_STEPS:
        tries.append(f"more epochs than {math.ceil(trainer.state.epoch or 0)}")
    return f"{what}. Try {'; '.join(tries)}"
