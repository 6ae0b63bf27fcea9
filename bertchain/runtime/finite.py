"""A Trainer that stops at the first loss, gradient or weight that is not a finite number."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DynamoBackend
from torch import Tensor, nn
from transformers import EvalPrediction, PrinterCallback, Trainer

from bertchain.errors import InputError
from bertchain.models.compiling import compile_blocks
from bertchain.models.padding_free import remove_padding
from bertchain.models.weights import not_finite
from bertchain.runtime import screen
from bertchain.runtime.checkpoints import complete_checkpoints
from bertchain.runtime.devices import suit_many_shapes
from bertchain.runtime.files import open_to_all

MOST_SKIPPED = 25  # steps in a row: fp16 halves its scale of 65,536 at each, so none is left
FAR_APART = 50  # steps on a GPU after which it is asked at the latest


class FiniteTrainer(Trainer):
    """Trainer that raises InputError where training has diverged, and writes no such weights.

    What fp16 does with gradients beyond its range, to skip the step and to go on with a smaller
    scale, is left alone, unless it skips all steps.

    A GPU is not waited for at each step: whether all was finite is asked when something is logged,
    saved or evaluated, and before the weights are used.

    Attributes:
        rate_flag: the argument that the learning rate comes from.
    """

    rate_flag = "learning_rate"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        suit_many_shapes(self.args.device)
        remove_padding(self.model.base_model, self.args.device)
        if self.args.torch_compile:  # not by accelerate, once for every length of a batch
            self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
            backend, mode = self.args.torch_compile_backend, self.args.torch_compile_mode
            compile_blocks(self.model, backend, mode)
        if not self.args.fp16:  # where a loss that is not finite ends the run
            self.args.logging_nan_inf_filter = False  # it asks the GPU at each step
        if screen.in_notebook():  # a line for each step and evaluation
            self.remove_callback(PrinterCallback)
        self.bad_loss: Tensor | bool = False  # of a batch of this step; stays on its device
        self.bad_steps: list[tuple[int, Tensor | bool, Tensor | bool]] = []  # not asked yet
        self.checked_step = self.skipped = 0
        self.scale: float | None = None  # of fp16, before the step
        if self.compute_metrics is not None:
            self.compute_metrics = self._checked(self.compute_metrics)

    def _prepare_input(self, data: Any) -> Any:
        """Move a batch as the Trainer does, without waiting for what the GPU still works on."""
        is_tensor = isinstance(data, Tensor) and not self.is_deepspeed_enabled
        if is_tensor and self.args.device.type == "cuda":
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on a batch as the Trainer does, and remember whether its loss is finite."""
        if self.accelerator.scaler is not None and self.scale is None:
            self.scale = self.accelerator.scaler.get_scale()
        loss = super().training_step(*args, **kwargs)
        self.bad_loss = self.bad_loss | ~torch.isfinite(loss.detach())
        return loss

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kw: Any):
        """The Trainer's, which is called after each step; nothing bad is logged or saved."""
        self._check_step(grad_norm)
        return super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kw)

    def _check_step(self, grad_norm: Tensor | float | None) -> None:
        step = self.state.global_step
        if step == self.checked_step:  # the call at the end of an epoch
            return self._ask() if self.bad_steps else None
        self.checked_step = step
        norm = torch.as_tensor(0.0 if grad_norm is None else grad_norm).detach()
        self.bad_steps.append((step, self.bad_loss, ~torch.isfinite(norm)))
        self.bad_loss = False
        control = self.control
        shown = control.should_log or control.should_save or control.should_evaluate
        last = control.should_training_stop or control.should_epoch_stop
        scaled = self.accelerator.scaler is not None  # fp16 has asked the GPU already
        on_cpu = self.args.device.type == "cpu"
        if on_cpu or scaled or shown or last or len(self.bad_steps) >= FAR_APART:
            self._ask()

    def _ask(self) -> None:
        """Raises InputError where one of the steps since the last call was not finite."""
        steps, self.bad_steps = self.bad_steps, []
        for step, bad_loss, bad_norm in steps:
            if not (bad_loss or bad_norm):
                self.skipped = 0
                continue
            if self._was_skipped():
                self.skipped += 1
                if self.skipped < MOST_SKIPPED:
                    continue
            raise self.diverged("the loss is" if bad_loss else "the gradients are", step)
        self.scale = None

    def _was_skipped(self) -> bool:
        """Return whether fp16 skipped the step that is asked for.

        It has lowered its scale then. (accelerate does not see that a fused optimizer skips.)
        """
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() < self.scale

    def _save_checkpoint(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(model, *args, **kwargs)
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            for weights in folder.glob("*.safetensors"):
                open_to_all(weights)

    def check_weights(self) -> None:
        """Check the weights before they are written; raises InputError."""
        if not_finite(self.model):
            raise self.diverged("weights are")

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate or predict as the Trainer does; raises InputError for outputs not finite."""
        output = super().evaluation_loop(*args, **kwargs)
        self._check_outputs(output.predictions)
        for name, value in (output.metrics or {}).items():
            if name.endswith("_loss") and not math.isfinite(value):
                raise self.diverged(f"{name} is")
        return output

    def _checked(self, compute: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
        """Check predictions before metrics are computed of them, which would fail on NaN."""

        def checked(prediction: EvalPrediction, **options: Any) -> dict[str, float]:
            self._check_outputs(prediction.predictions)
            return compute(prediction, **options)

        return checked

    def _check_outputs(self, predictions: Any) -> None:
        arrays = predictions if isinstance(predictions, tuple) else (predictions,)
        if not all(a is None or np.isfinite(a).all() for a in arrays):
            raise self.diverged("the model's outputs on the evaluated rows are")

    def diverged(self, what: str, step: int | None = None) -> InputError:
        """Make the error that names learning rate and step, and the checkpoint to go back to.

        Args:
            step: None: the last one.
        """
        step, rate = self.state.global_step if step is None else step, self.args.learning_rate
        if step == 0:
            return InputError(
                f"{what} not finite (NaN or infinity) before the first step: the model itself "
                "overflows; leave out --fp16, or take another checkpoint"
            )
        written = complete_checkpoints(self.args.output_dir)
        kept = f"the last checkpoint is kept: {written[-1]}" if written else "no checkpoint is left"
        return InputError(
            f"--{self.rate_flag} {rate:g}: training diverged, {what} not finite (NaN or infinity) "
            f"at step {step}; use a smaller rate ({kept})"
        )
