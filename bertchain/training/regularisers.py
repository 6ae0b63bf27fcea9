"""Regularisers that hold state or change weights: adversarial training and averaged weights.

Each works on any classifier of `models.modeling` and is switched on by one flag.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback

from bertchain.models.layers import HEAD, layer_id_of
from bertchain.models.modeling import DocumentClassifier

# ---------------------------------------------------------------- adversarial training


class Adversary:
    """Adversarial training: move parameters to where the loss grows, for a second backward pass.

    FGM (Miyato et al. 2017) moves the word embeddings by epsilon * g / ||g||; AWP (Wu et al. 2020)
    moves each weight matrix of the encoder by epsilon * ||w|| * g / ||g||. The gradients g are
    those of the current batch alone, also while gradients accumulate.

    Args:
        fgm: epsilon of FGM; 0 = off.
        awp: epsilon of AWP; 0 = off.
    """

    def __init__(self, model: DocumentClassifier, fgm: float = 0.0, awp: float = 0.0):
        word = model.encoder.get_input_embeddings().weight
        self.moved: list[tuple[nn.Parameter, float, bool]] = []  # parameter, epsilon, times ||w||
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter is word:
                if fgm:
                    self.moved.append((parameter, fgm, False))
            elif awp and parameter.dim() > 1 and 0 < layer_id_of(name, model) < HEAD:
                self.moved.append((parameter, awp, True))
        self.accumulated: list[Tensor | None] = []  # gradients of earlier batches

    def remember(self) -> None:
        """Store the gradients of earlier batches; call it before the backward pass."""
        self.accumulated = [None if p.grad is None else p.grad.clone() for p, _, _ in self.moved]

    @contextmanager
    def attack(self) -> Iterator[None]:
        """Move the parameters while inside; call it after the backward pass. Restores every bit."""
        clean = [p.detach().clone() for p, _, _ in self.moved]
        with torch.no_grad():
            for (p, epsilon, relative), earlier in zip(self.moved, self.accumulated, strict=True):
                if p.grad is None:
                    continue
                gradient = p.grad if earlier is None else p.grad - earlier
                norm = gradient.norm()
                if norm == 0 or not torch.isfinite(norm):
                    continue
                size = epsilon * p.norm() if relative else epsilon
                p.add_(gradient * (size / norm))
        try:
            yield
        finally:
            with torch.no_grad():
                for (p, _, _), value in zip(self.moved, clean, strict=True):
                    p.copy_(value)


# ---------------------------------------------------------------- averaged weights

AVERAGE_FILE = "averaged.safetensors"


class WeightAverage:
    """Exponential moving average of the weights: average = decay * average + (1 - decay) * weight.

    In the first steps the decay is at most (1 + step) / (10 + step), so that the average of a short
    run is not held back by its start; buffers are copied. The arithmetic is that of
    `torch.optim.swa_utils`.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.steps = 0
        self.averaged = AveragedModel(model, multi_avg_fn=self._average)
        self.averaged.requires_grad_(False)

    def _average(self, averages: list[Tensor], weights: list[Tensor], count: Tensor) -> None:
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        get_ema_multi_avg_fn(decay)(averages, weights, count)

    def update(self, model: nn.Module) -> None:
        """Take the weights after an optimizer step into the average."""
        self.averaged.update_parameters(model)
        self.steps += 1

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights while inside; restores its own bit by bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def copy_to(self, model: nn.Module) -> None:
        """Overwrite the model's weights with their average."""
        model.load_state_dict(self.averaged.module.state_dict())

    def save(self, folder: str | os.PathLike) -> None:
        """Write the average and its number of steps into a checkpoint."""
        tensors = {k: v.clone().contiguous() for k, v in self.averaged.module.state_dict().items()}
        save_file(tensors, Path(folder) / AVERAGE_FILE, metadata={"steps": str(self.steps)})

    def load(self, folder: str | os.PathLike) -> None:
        """Read what `save` wrote into a checkpoint."""
        with safe_open(Path(folder) / AVERAGE_FILE, "pt") as file:
            self.steps = int(file.metadata()["steps"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.averaged.module.load_state_dict(tensors)
        self.averaged.n_averaged.fill_(self.steps)


class AveragingTrainer(Trainer):
    """Trainer that evaluates, predicts and saves with averaged weights.

    Args:
        ema_decay: of the average; 0 = off.
        kwargs: for the Trainer.
    """

    def __init__(self, ema_decay: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.average = WeightAverage(self.model, ema_decay) if ema_decay else None
        if self.average is not None:
            self.add_callback(UpdateAverage(self.average))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train as the Trainer does; at the end the model gets the averaged weights."""
        if self.average is not None and resume_from_checkpoint is not None:
            self.average.load(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.average is not None:
            self.average.copy_to(self.model)
            self.average = None
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict as the Trainer does, with the averaged weights."""
        if self.average is None:
            return super().evaluation_loop(*args, **kwargs)
        with self.average.applied(self.model):
            return super().evaluation_loop(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(*args, **kwargs)
        if self.average is not None and self.args.should_save:
            self.average.save(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(self.state.best_model_checkpoint)


class UpdateAverage(TrainerCallback):
    """Update the average after each optimizer step."""

    def __init__(self, average: WeightAverage):
        self.average = average

    def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.average.update(model)
