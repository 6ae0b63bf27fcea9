"""The trainer of masked language models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

from bertchain.arguments.pretraining import BlockArguments
from bertchain.data.contamination import write_fingerprint
from bertchain.errors import InputError
from bertchain.pretraining.masked_lm import SparseHead
from bertchain.pretraining.sampling import RepeatedDataset, StreamedBatches, WeightedBatchSampler
from bertchain.runtime.checkpoints import MarkComplete, SaveAndExitOnSigterm
from bertchain.runtime.files import atomic_files


class MaskedLMTrainer(Trainer):
    """Trainer whose loss is a mean over the masked tokens of the whole accumulated batch.

    Most masked-LM heads take no notice of `num_items_in_batch`; left to the Trainer their loss
    would be multiplied by accumulation steps and processes.

    Args:
        weights: of each corpus.
        pooler: weights to save along.
        hashes: gives the fingerprint of the documents; called by all processes.
    """

    def __init__(
        self,
        block: BlockArguments,
        weights: dict[str, float],
        pooler: dict[str, Tensor] | None = None,
        hashes: Callable[[], np.ndarray] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.add_callback(MarkComplete())
        self.add_callback(SaveAndExitOnSigterm())  # after the mark
        self.model_accepts_loss_kwargs = True  # counts masked tokens over steps and processes
        self.block = block
        self.weights = weights
        self.pooler = pooler or {}
        self.hashes = hashes
        self.sparse_head = SparseHead(self.model)

    def get_train_dataloader(self) -> DataLoader:
        """Batches are dealt out to the processes here, and not once more by accelerate."""
        args, data = self.args, self.train_dataset
        options = {"collate_fn": self.data_collator, "pin_memory": args.dataloader_pin_memory}
        if isinstance(data, StreamedBatches):
            return DataLoader(data, batch_size=None, **options)
        batches = WeightedBatchSampler(
            data["length"][:],
            [self.weights[name] for name in data["corpus"][:]],
            self._train_batch_size,
            self.block.tokens_per_batch,
            self.block.batch_by_length,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(self.state.epoch or 0),
            args.process_index,
            args.world_size,
        )
        return DataLoader(
            RepeatedDataset(data),
            batch_sampler=batches,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            **options,
        )

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        logits, targets = self.sparse_head(model, inputs)
        total = F.cross_entropy(logits, targets, reduction="sum")
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        loss = total / max(int(count), 1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per row [summed loss, hits] and the masked tokens; `MaskedLMScores` adds up."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, targets = self.sparse_head(model, inputs)
        losses = F.cross_entropy(logits, targets, reduction="none")  # [masked]
        hits = (logits.argmax(dim=-1) == targets).float()
        masked = inputs["labels"] != -100
        row = masked.nonzero()[:, 0]  # [masked]
        sums = losses.new_zeros(len(masked), 2).index_add_(
            0, row, torch.stack([losses, hits], dim=1)
        )
        return losses.mean(), sums, masked.sum(dim=1)

    def save_plain(self, folder: Path) -> None:
        """A plain masked-LM checkpoint, its tokenizer and fingerprint. Called by all processes."""
        weights = self.accelerator.get_state_dict(self.model)
        hashes = self.hashes()
        if self.is_world_process_zero():
            model = self.accelerator.unwrap_model(self.model)
            with atomic_files(folder) as temporary:
                model.save_pretrained(temporary, state_dict={**weights, **self.pooler})
                self.processing_class.save_pretrained(temporary)
                write_fingerprint(temporary, hashes)
        self.accelerator.wait_for_everyone()


class KeepSteps(TrainerCallback):
    """Keep the model of some steps in folders step-N, each a checkpoint to start from."""

    def __init__(self, steps: Sequence[int], trainer: MaskedLMTrainer):
        self.steps = steps
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if max(self.steps) > state.max_steps:
            raise InputError(
                f"--save_at_steps {max(self.steps)}: the run ends after {state.max_steps} steps"
            )
        if state.global_step == 0:
            self.on_step_end(args, state, control)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self.steps:
            self.trainer.save_plain(Path(args.output_dir) / f"step-{state.global_step}")
