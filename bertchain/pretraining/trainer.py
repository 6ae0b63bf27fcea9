"""The Trainer of masked language models: batches, evaluation, and what it writes."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from bertchain.arguments.pretraining import GROUPS, Arguments, PackingArguments, RunArguments
from bertchain.cli import changed
from bertchain.data.contamination import HASH_FILE, read_fingerprints, write_fingerprint
from bertchain.errors import InputError
from bertchain.pretraining import page
from bertchain.pretraining.blending import blend, blended, encoder_weights
from bertchain.pretraining.corpora import DocumentTable
from bertchain.pretraining.masked_lm import SparseHead, masked_places
from bertchain.pretraining.sampling import RepeatedDataset, StreamedBatches, WeightedBatchSampler
from bertchain.pretraining.streaming import DocumentStream
from bertchain.runtime.checkpoints import remove_checkpoints
from bertchain.runtime.files import atomic_files, write_csv, write_json, write_text, write_yaml
from bertchain.runtime.outputs import HEAD_WARMUP
from bertchain.runtime.records import evaluation_history, model_card, plot_history, versions
from bertchain.runtime.resuming import ROWS, ResumableTrainer

logger = logging.getLogger(__name__)


class PretrainingTrainer(ResumableTrainer):
    """Trainer of masked language models, with the sparse head.

    A subclass gives the loss.
    """

    def __init__(
        self,
        *,
        packing: PackingArguments,
        run: RunArguments,
        weights: dict[str, float],
        hashes: Callable[[], dict[str, np.ndarray]] | None = None,
        pooler: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ):
        """Args:
        weights: of each corpus.
        hashes: gives those of all documents seen, see `all_seen`; called by all processes.
        pooler: weights to save along.
        kwargs: for the Trainer.
        """
        super().__init__(patience=run.early_stopping_patience, **kwargs)
        if run.save_at_steps:
            self.add_callback(KeepSteps(run.save_at_steps, self))
        self.model_accepts_loss_kwargs = True  # counts masked tokens over steps and processes
        self.packing = packing
        self.weights = weights
        self.hashes = hashes
        self.pooler = pooler or {}
        self.sparse_head = SparseHead(self.model)
        self.share = run.blend_with_start
        if self.share and self.is_fsdp_enabled:
            raise InputError("--blend_with_start does not go with FSDP, which splits the weights")
        self.start = encoder_weights(self.model) if self.share else {}

    def step_content(self) -> dict[str, Any]:
        args, packing, data = self.args, self.packing, self.train_dataset
        content = {"--batch_by_length": packing.batch_by_length, "seed of their order": args.seed}
        if args.data_seed is not None:
            content["seed of their order"] = args.data_seed
        frozen = sum(not parameter.requires_grad for parameter in self.model.parameters())
        if frozen:  # of a head warm-up, say
            content["number of frozen parameters"] = frozen
        batches = args.gradient_accumulation_steps * args.world_size
        if isinstance(data, StreamedBatches):  # each process reads other documents
            content["number of processes"] = args.world_size
            content["--per_device_train_batch_size"] = args.per_device_train_batch_size
        else:
            content |= {"number of training rows": len(data), "weights of corpora": self.weights}
        if packing.tokens_per_batch is None:
            return content | {ROWS: args.per_device_train_batch_size * batches}
        name = "number of batches of a step (--gradient_accumulation_steps x processes)"
        return content | {name: batches, "--tokens_per_batch": packing.tokens_per_batch}

    def get_train_dataloader(self) -> DataLoader:
        """Load the batches of this process, which accelerate would share out once more."""
        args, data = self.args, self.train_dataset
        options = {"collate_fn": self.data_collator, "pin_memory": args.dataloader_pin_memory}
        if isinstance(data, StreamedBatches):
            return DataLoader(data, batch_size=None, **options)
        batches = WeightedBatchSampler(
            data["length"][:],
            [self.weights[name] for name in data["corpus"][:]],
            self._train_batch_size,
            self.packing.tokens_per_batch,
            self.packing.batch_by_length,
            args.seed if args.data_seed is None else args.data_seed,
            lambda: int(self.state.epoch or 0),
            args.process_index,
            args.world_size,
            args.gradient_accumulation_steps,
        )
        return DataLoader(
            RepeatedDataset(data),
            batch_sampler=batches,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            **options,
        )

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Get the batches of a step, and their masked tokens; those of one process stay a number
        of the CPU, so that no step waits for a GPU."""
        counted_on = torch.device("cpu") if self.args.world_size == 1 else device
        return super().get_batch_samples(epoch_iterator, num_batches, counted_on)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch; what to predict is found before, since later a GPU would be waited for."""
        if "labels" in inputs and not inputs["labels"].is_cuda:
            inputs = {**inputs, "masked_places": masked_places(inputs["labels"])}
        return super()._prepare_inputs(inputs)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate a batch.

        Returns:
            the mean loss, then for `MaskedLMScores` of each row [summed loss, hits], a tensor
            [rows, 2], and the number of masked tokens [rows].
        """
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
        """Write a plain masked-LM checkpoint, its tokenizer and the hashes of all it has seen.

        Where that is asked for, the encoder is blended with the start. Called by all processes.

        Raises:
            InputError: for weights that are not finite.
        """
        self.check_weights()
        model, hashes = self.accelerator.unwrap_model(self.model), self.hashes()
        with blended(model, self.start, self.share):
            weights = self.accelerator.get_state_dict(self.model)
            if self.is_world_process_zero():
                with atomic_files(folder) as temporary:
                    model.save_pretrained(temporary, state_dict={**weights, **self.pooler})
                    self.processing_class.save_pretrained(temporary)
                    for name, own in hashes.items():
                        write_fingerprint(temporary, own, name)
        self.accelerator.wait_for_everyone()

    def measure(self) -> dict[str, float]:
        """Evaluate on the held-out documents when training has ended.

        Where that is asked for, the encoder is then blended with the start for good, and evaluated
        again; the scores before are called unblended.
        """
        scores = self.evaluate()
        if not self.start:
            return scores
        blend(self.accelerator.unwrap_model(self.model), self.start, self.share)
        self.start = {}
        return {f"unblended_{name}": scores[name] for name in SCORES} | self.evaluate()


class KeepSteps(TrainerCallback):
    """Keeps the model of some steps in folders step-N, each a checkpoint to start from."""

    def __init__(self, steps: Sequence[int], trainer: PretrainingTrainer):
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


def all_seen(
    documents: DocumentTable | DocumentStream, path: str, hub_kwargs: dict[str, Any]
) -> Callable[[], dict[str, np.ndarray]]:
    """Gather the hashes of all documents a checkpoint has seen, in this run and in those before.

    Args:
        path: the checkpoint that the run starts from.

    Returns:
        a function of the hashes by file name, because a stream knows its documents only when they
        were read. Rows that a classifier was trained on before stay known.
    """
    before = read_fingerprints(path, **hub_kwargs)

    def gather() -> dict[str, np.ndarray]:
        now = [documents.hashes()]
        now += [before[HASH_FILE]] if HASH_FILE in before else []
        return before | {HASH_FILE: np.concatenate(now)}

    return gather


# ---------------------------------------------------------------- the output folder


def write_run(
    trainer: PretrainingTrainer,
    results: dict[str, Any],
    args: Arguments,
    head_log: list[dict[str, Any]],
) -> None:
    """Write the checkpoint, its card, curves, arguments and results. Called by all processes.

    Args:
        head_log: the log of a head warm-up, whose steps come before those of the run.
    """
    folder, run_config = Path(trainer.args.output_dir), args.run_config
    trainer.save_plain(folder)
    if trainer.is_world_process_zero():
        history = evaluation_history(trainer.state.log_history)
        if head_log:
            phases = {"head": evaluation_history(head_log), "all": history}
            history = pd.concat([t.assign(phase=name) for name, t in phases.items()])
        write_csv(folder / "history.csv", history)
        plot_history(folder / "history.png", history, "eval_masked_accuracy")
        page.write_page(folder, history, results, run_config)
        write_text(folder / "README.md", _card(folder.name, results, run_config))
        write_yaml(folder / "run_args.yaml", run_config)
        seed = {"seed": trainer.args.seed}
        write_json(folder / "all_results.json", results | seed | {"versions": versions()})
        logger.info("Wrote %s: perplexity %.2f", folder, results["eval_perplexity"])
        if not args.run.keep_checkpoints:
            remove_checkpoints(folder)
            shutil.rmtree(folder / HEAD_WARMUP, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    args.hooks.keep("", trainer)


def _card(title: str, results: dict[str, Any], run_config: dict[str, Any]) -> str:
    from_scratch = "model_name_or_path" not in run_config
    how = "trained from scratch" if from_scratch else "further pretrained"
    return model_card(
        title=title,
        base_model=run_config["config_name" if from_scratch else "model_name_or_path"],
        pipeline_tag="fill-mask",
        summary=f"Masked language model, {how} on the text of a task.",
        usage=USAGE,
        metrics={k: v for k, v in results.items() if k in SCORES},
        arguments=changed(run_config, (*GROUPS, TrainingArguments)),
    )


SCORES = ("eval_loss", "eval_perplexity", "eval_masked_accuracy")

USAGE = """
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = AutoModelForMaskedLM.from_pretrained("PATH OF THIS FOLDER")

# the encoder alone, without the head
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER", add_pooling_layer=False)
"""
