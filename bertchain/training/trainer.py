"""The Trainer of document classifiers: batches, accumulated losses, adversaries, unfreezing."""

import copy
import logging
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import (
    EvalPrediction,
    IntervalStrategy,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bertchain.arguments.training import RegulariserArguments
from bertchain.cli import is_given
from bertchain.data.batching import (
    CountedRows,
    GroupedByClass,
    GroupedByLength,
    ProcessBatchSampler,
    keep_all_columns,
)
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import strata_of
from bertchain.errors import InputError, as_input_error
from bertchain.metrics import SHARES, main_metric, score_directions
from bertchain.models.layers import unfrozen_from
from bertchain.models.modeling import IGNORED, PROBLEM_TYPES, num_blocks
from bertchain.runtime import best
from bertchain.runtime.distributed import launcher_precision
from bertchain.runtime.files import disk_errors
from bertchain.runtime.finite import FiniteTrainer
from bertchain.runtime.resuming import ResumableTrainer
from bertchain.scoring import metric_files
from bertchain.training.losses import TrainingLoss
from bertchain.training.regularisers import Adversary, AveragingTrainer

logger = logging.getLogger(__name__)


class DocumentTrainer(ResumableTrainer, AveragingTrainer):
    """Trainer of document classifiers, with optimizer groups by layer id.

    A subclass builds the optimizer, whose groups have a key `layer_id`, and computes the loss.
    """

    def __init__(
        self,
        *,
        loss: TrainingLoss,
        rates: dict[int, float],
        regularisers: RegulariserArguments,
        unfreeze_every: float | None = None,
        batch_by_length: bool = True,
        rows_of_a_class: int | None = None,
        folder: Path | None = None,
        seen: dict[str, np.ndarray] | None = None,
        **kwargs: Any,
    ):
        """Args:
        rates: learning rate by layer id, see `layers.layer_rates`.
        unfreeze_every: epochs after which one more block is trained; None: all from the start.
        rows_of_a_class: that come into a step together, in place of those of similar length.
        folder: where optimizer_groups.csv goes; None: output_dir.
        seen: what the checkpoint to start from has seen, see `contamination.read_fingerprints`;
            it is read before training, since its folder may be gone or changed in the end.
        kwargs: for the Trainer.
        """
        super().__init__(ema_decay=regularisers.ema_decay, **kwargs)
        self.folder = Path(self.args.output_dir) if folder is None else folder
        self.seen = seen or {}
        self.label_smoother = None  # the Trainer's own does not count accumulated batches
        self.loss, self.rates, self.unfreeze_every = loss, rates, unfreeze_every
        self.batch_by_length, self.rows_of_a_class = batch_by_length, rows_of_a_class
        self.adversary = None
        if regularisers.fgm_epsilon or regularisers.awp_epsilon:
            self.adversary = Adversary(
                self.model, fgm=regularisers.fgm_epsilon, awp=regularisers.awp_epsilon
            )
            if self.train_dataset is not None and not self.adversary.moved:
                raise InputError("--fgm_epsilon and --awp_epsilon need trained weights to move")

    def loss_of(self, batch: dict[str, Any]) -> TrainingLoss:
        """Return the loss of a batch; a trainer of several tasks overrides this."""
        return self.loss

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Get the batches of a step and the divisor of their loss, summed over all processes.

        Of one process it stays a number of the CPU, so that no step waits for a GPU.
        """
        device = torch.device("cpu") if self.args.world_size == 1 else device
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is None:
            return batches, count
        divisor = 0.0
        for batch in batches:
            labels = batch["labels"]
            labels = labels[labels != IGNORED] if "token_positions" in batch else labels
            divisor = divisor + self.loss_of(batch).divisor(labels, batch.get("weight"))
        divisor = torch.as_tensor(divisor, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            divisor = self.accelerator.gather(divisor).sum()
        return batches, divisor

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        """The Trainer's, then a second backward pass against the adversary, then unfreezing."""
        if self.adversary is not None:
            self.adversary.remember()
        loss = super().training_step(model, inputs, *args)
        if self.adversary is not None:
            with self.adversary.attack():
                super().training_step(model, inputs, *args)
        if self.unfreeze_every is not None:
            self.drop_gradients_of_frozen_layers()
        return loss

    def drop_gradients_of_frozen_layers(self) -> None:
        """Drop gradients below the lowest unfrozen layer: the optimizer skips these parameters.

        They still take part in the backward pass, since DistributedDataParallel would wait for
        parameters that are frozen and unfrozen while it trains.
        """
        blocks = num_blocks(self.model.encoder.config)
        lowest = unfrozen_from(self.state.epoch or 0.0, self.unfreeze_every, blocks)
        for group in self.optimizer.param_groups:
            if group["layer_id"] < lowest:
                for parameter in group["params"]:
                    parameter.grad = None

    def get_train_dataloader(self) -> DataLoader:
        """Build a loader of this process's rows; accelerate must not share them out once more."""
        args = self.args
        return DataLoader(
            CountedRows(self.train_dataset),
            batch_sampler=ProcessBatchSampler(
                self.row_order(),
                self._train_batch_size,
                args.process_index,
                args.world_size,
                args.dataloader_drop_last,
                args.gradient_accumulation_steps,
            ),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    def step_content(self) -> dict[str, Any]:
        content = super().step_content() | {"--batch_by_length": self.batch_by_length}
        if self.rows_of_a_class:
            content["--rows_per_class_in_batch"] = self.rows_of_a_class
        return content

    def row_order(self) -> Sampler[int]:
        """Return the sampler of training rows, the same in all processes."""
        if self.rows_of_a_class:
            own = self.model.config.problem_type
            kind = next(k for k, name in PROBLEM_TYPES.items() if name == own)
            classes = strata_of(self.train_dataset["labels"][:], kind)
            return GroupedByClass.for_trainer(self, classes, self.rows_of_a_class)
        return GroupedByLength.for_trainer(self, self.train_dataset, self.batch_by_length)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does, which has the rate of the first group; add the head's."""
        if "learning_rate" in logs and self.optimizer is not None:
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]
            if rates[0] > 0:  # the ratio, since the logged rate is that of the previous step
                logs["learning_rate_head"] = logs["learning_rate"] * rates[-1] / rates[0]
        super().log(logs, *args, **kwargs)


def member_arguments(
    training: TrainingArguments,
    spec: LabelSpec,
    given: dict[str, Any],
    seed: int,
    output_dir: Path,
    splits: Collection[str],
) -> TrainingArguments:
    """Copy the arguments for one member.

    Args:
        given: arguments that are set, by name; without metric_for_best_model the main metric of the
            problem type chooses the checkpoint.
        output_dir: where checkpoints go.
        splits: of its rows: without train it only predicts, without validation nothing is chosen.
    """
    training = copy.copy(training)
    training.seed, training.output_dir = seed, str(output_dir)
    keep_all_columns(training)
    if "train" in splits and "validation" in splits:
        return choose_metric(training, spec, given)
    training.eval_strategy = "no"
    training.load_best_model_at_end = False
    return training


def choose_metric(
    training: TrainingArguments, spec: LabelSpec, given: dict[str, Any]
) -> TrainingArguments:
    """Set which metric chooses the best checkpoint, in place; see `best.choose_metric`.

    Without --metric_for_best_model it is that of --metric_file, else the main metric of the problem
    type.

    Raises:
        InputError: as `best.choose_metric` and `metric_files.load`; where the name of the latter's
            function is that of another score.
    """
    directions = score_directions(spec.problem_type, spec.names)
    name = main_metric(spec.problem_type, len(spec.names))[0]
    metric = metric_files.of_run(given)
    if metric is not None:
        own, name = metric.described, metric.name
        if name in directions:
            raise InputError(f"--metric_file {own}: there is a score {name}; rename the function")
        if metric.greater_is_better is None:
            raise InputError(
                f"--metric_file {own}: say whether more is better: {name}.greater_is_better = True "
                "(or False) in the file, or --greater_is_better"
            )
        directions[name] = metric.greater_is_better
    if training.load_best_model_at_end and given.get("metric_for_best_model") is None:
        training.metric_for_best_model = name
    others = bool(given.get("extra_metrics"))
    directions |= {"qwk": True} | (SHARES if spec.soft else {})
    best.choose_metric(training, given, directions, others)
    return training


def check_scores(trainer: Trainer) -> None:
    """Compute all scores of made-up predictions for the validation rows, once before training.

    Raises:
        InputError: for an extra metric that fails on such rows, and where the metric that chooses
            the checkpoint is unknown or not defined for them.
    """
    rows, chosen = trainer.eval_dataset, trainer.args.metric_for_best_model
    evaluated = isinstance(rows, Dataset) and trainer.args.eval_strategy != "no"  # of one task
    if not evaluated or chosen is None or "labels" not in rows.column_names:
        return
    labels, config = rows["labels"][:], trainer.model.config
    labels = np.concatenate(labels) if config.num_spans else np.asarray(labels)
    logits = np.random.default_rng(0).normal(size=(len(labels), config.num_labels))
    with as_input_error("--extra_metrics"):
        scores = trainer.compute_metrics(EvalPrediction(logits.astype(np.float32), labels))
    name = chosen.removeprefix("eval_")
    if name not in scores:
        raise best.unknown_metric(name, [*scores])
    if math.isnan(scores[name]):
        raise InputError(
            f"--metric_for_best_model {name} is not defined for the {len(rows)} validation rows, "
            "such as where all have one label; choose another metric, or other rows"
        )


def train(
    trainer: FiniteTrainer, resume_from: str | None, stop_in_time: list[TrainerCallback]
) -> dict[str, Any]:
    """Train, and keep the best checkpoint.

    Args:
        resume_from: a checkpoint, or None.
        stop_in_time: the callbacks of a time budget.

    Raises:
        InputError: as `check_scores`, and where training diverges.

    Returns:
        the Trainer's metrics, and whether a time budget has ended the training.
    """
    check_scores(trainer)
    with disk_errors(trainer.args.output_dir):
        results = dict(trainer.train(resume_from_checkpoint=resume_from).metrics)
    trainer.check_weights()
    found = trainer.state.best_metric
    if trainer.args.load_best_model_at_end and (found is None or not math.isfinite(found)):
        name = trainer.args.metric_for_best_model
        logger.warning("No evaluation gave a number for %s: the last weights are kept", name)
    results |= best.find_best(trainer.state, trainer.args.load_best_model_at_end)
    if stop_in_time:
        results["stopped_by_time_budget"] = any(callback.stopped for callback in stop_in_time)
    return results


def raise_epochs(trainer: Trainer, least: int | None) -> None:
    """Raise the number of epochs so that there are at least so many optimizer steps, in place.

    Where each epoch was to be evaluated and saved, there are as many evaluations as before: an
    epoch of a small table may be a single step.
    """
    args = trainer.args
    if least is None:
        return
    of_epoch = math.ceil(len(trainer.get_train_dataloader()) / args.gradient_accumulation_steps)
    wanted = math.ceil(args.num_train_epochs) or 1
    times = math.ceil(math.ceil(least / of_epoch) / wanted)
    if times == 1:
        return
    args.num_train_epochs = times * wanted
    logger.info("Epochs: %d, of %d steps each", args.num_train_epochs, of_epoch)
    for what in ("eval", "save"):
        if getattr(args, f"{what}_strategy") == "epoch":
            setattr(args, f"{what}_strategy", IntervalStrategy.STEPS)
            setattr(args, f"{what}_steps", times * of_epoch)


def device_precision(argv: list[str] | dict[str, Any] | None) -> dict[str, bool]:
    """Choose bf16 on a GPU, or fp16 where it has no bf16.

    {} on a CPU, and where a flag or the launcher's --mixed_precision chooses.
    """
    chosen = any(is_given(name, argv) for name in ("bf16", "fp16", "use_cpu"))
    if chosen or launcher_precision() is not None or not torch.cuda.is_available():
        return {}
    name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {name: True}
