"""Regularisers that hold state or touch weights: adversarial training and averaged weights.

Each works on any classifier of modeling.py and is switched on by one flag of run_finetune.py.
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
    """Moves parameters in the direction in which the loss grows, for a second backward pass.

    FGM (Miyato et al. 2017) moves the word embeddings by epsilon * g / ||g||; AWP (Wu et al. 2020)
    moves each weight matrix of the encoder by epsilon * ||w|| * g / ||g||. The gradients g are
    those of the current batch alone, also while gradients accumulate.
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
        self.before: list[Tensor | None] = []

    def remember(self) -> None:
        """Call before the backward pass: what earlier batches have accumulated."""
        self.before = [None if p.grad is None else p.grad.clone() for p, _, _ in self.moved]

    @contextmanager
    def attack(self) -> Iterator[None]:
        """Call after it: inside, the parameters are moved; afterwards exactly as before."""
        clean = [p.detach().clone() for p, _, _ in self.moved]
        with torch.no_grad():
            for (p, epsilon, relative), before in zip(self.moved, self.before, strict=True):
                if p.grad is None:
                    continue
                gradient = p.grad if before is None else p.grad - before
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

    Over the first steps the decay is at most (1 + step) / (10 + step), so that a short run does not
    average its beginning; buffers are copied. The arithmetic is `torch.optim.swa_utils`'.
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
        """After an optimizer step."""
        self.averaged.update_parameters(model)
        self.steps += 1

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model has the averaged weights; afterwards its own, bit by bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.averaged.module.state_dict())

    def save(self, folder: str | os.PathLike) -> None:
        tensors = {k: v.clone().contiguous() for k, v in self.averaged.module.state_dict().items()}
        save_file(tensors, Path(folder) / AVERAGE_FILE, metadata={"steps": str(self.steps)})

    def load(self, folder: str | os.PathLike) -> None:
        """What `save` wrote into a checkpoint."""
        with safe_open(Path(folder) / AVERAGE_FILE, "pt") as file:
            self.steps = int(file.metadata()["steps"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.averaged.module.load_state_dict(tensors)
        self.averaged.n_averaged.fill_(self.steps)


class AveragingTrainer(Trainer):
    """Trains averaged weights beside the model, and uses them wherever it is judged or kept.

    Args:
        ema_decay: 0 = off; the rest are the Trainer's.
    """

    def __init__(self, ema_decay: float = 0.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.average = WeightAverage(self.model, ema_decay) if ema_decay else None
        if self.average is not None:
            self.add_callback(UpdateAverage(self.average))

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        if self.average is not None and resume_from_checkpoint is not None:
            self.average.load(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.average is not None:
            self.average.copy_to(self.model)
            self.average = None
        return output

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
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
    def __init__(self, average: WeightAverage):
        self.average = average

    def on_step_end(self, *args: Any, model: nn.Module, **kwargs: Any) -> None:
        self.average.update(model)
