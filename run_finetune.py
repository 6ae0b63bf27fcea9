"""Fine-tune an encoder on labelled text: classification (one label or several) or regression.

    python run_finetune.py --model_name_or_path bert-base-uncased --train_file train.csv \\
        --test_file test.csv --text_column_names title abstract --output_dir out

What runs follows from the files: a training file trains (and holds out --validation_split of it
unless there is a --validation_file), a test file predicts. With a folder this script wrote as
--model_name_or_path and a test file alone, it only predicts.

Recipe: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583).
"""

import logging
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from arguments import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    TextArguments,
    WindowArguments,
)
from command_line import (
    InputError,
    as_input_error,
    changed,
    exclude,
    is_given,
    parse,
    print_help,
    refuse_data_parallel,
    run_script,
    start_logging,
    wants_help,
)
from method_arguments import (
    AdapterArguments,
    LossArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
    RunArguments,
)

# What is set here and not left to transformers.TrainingArguments. Rates: Sun et al. 2019, section
# 5.2, 5.3.
DEFAULTS = {
    "output_dir": "finetuned",
    "learning_rate": 2e-5,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "logging_steps": 20.0,
    "report_to": "none",
}


OWN_ARGUMENTS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    RateArguments,
    LossArguments,
    RegulariserArguments,
    AdapterArguments,
    RunArguments,
)

if __name__ == "__main__" and wants_help(sys.argv[1:]):
    print_help(__doc__, OWN_ARGUMENTS, DEFAULTS)
    sys.exit()

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from adapters import add_lora, merge_lora
from batches import (
    DocumentCollator,
    GroupedByLength,
    check_vocabulary,
    keep_all_columns,
    load_tokenizer,
    longest_first,
    pad_id,
    refuse_other_order,
    settle_windows,
    to_windows,
)
from fingerprint import find_seen, read_fingerprint, write_fingerprint
from labels import LabelSpec
from layers import (
    drop_blocks_above,
    freeze,
    group_table,
    layer_groups,
    layer_rates,
    reinit_top_blocks,
    unfrozen_from,
)
from losses import TrainingLoss, settle_weights
from metrics import LESS_IS_BETTER, MAIN_METRIC, is_score, metric_function
from modeling import (
    PROBLEM_TYPES,
    DocumentClassifier,
    DocumentClassifierConfig,
    is_document_classifier,
    load_classifier,
    load_encoder,
    num_blocks,
    require_pooler,
)
from outputs import (
    evaluation_history,
    find_checkpoint,
    model_card,
    plot_history,
    remove_checkpoints,
    replacing_files,
    versions,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)
from pooling import resolve_layers
from regularisers import Adversary, WeightAverage
from text_data import Table, choose_subset, hold_out_validation, label_documents, read_splits

logger = logging.getLogger(__name__)


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    data, text, label, window, checkpoint, architecture, *methods, run, training, as_run = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS | device_precision(argv)
    )
    rates, losses, regularisers, adapter = methods
    start_logging()
    check_arguments(as_run, data, training)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    path, hub = checkpoint.model_name_or_path, checkpoint.hub

    # 2. Tables -> labelled documents
    spec, documents = read_documents(data, text, label, path, training.seed)
    documents = only_wanted(documents, as_run)
    if "train" in documents:
        subset = (run.train_fraction, run.train_per_class, training.seed)
        documents["train"] = choose_subset(documents["train"], spec.problem_type, *subset)
    seen = find_seen(documents.get("test"), path, **hub)

    # 3. Documents -> windows
    tokenizer = load_tokenizer(checkpoint.tokenizer_name or path, **hub)
    windows, special = settle_windows(window.given, path, tokenizer, **hub)
    splits = {}
    for split, rows in documents.items():
        splits[split], report = to_windows(rows, tokenizer, windows, special)
        logger.info("%s, %s %d: %s", split, windows.truncation, windows.max_seq_length, report)

    # 4. Model
    shape = {"windows": windows.to_dict(), "special_tokens": special.to_dict()}
    encoder, before = load_start(checkpoint, architecture, regularisers.encoder_dropout)
    check_vocabulary(tokenizer, encoder, path)
    model, new_head = build_model(encoder, before, architecture, spec, shape, tokenizer)
    lora = None
    if "train" in splits:
        lora = prepare_training(model, new_head, splits["train"]["labels"][:], rates, adapter)

    # 5. Trainer
    trainer = ClassifierTrainer(
        loss=settle_loss(losses, training, spec, model, splits),
        rates=layer_rates(num_blocks(encoder.config), training.learning_rate, **rates.rates),
        unfreeze_every=rates.unfreeze_every,
        regularisers=regularisers,
        batch_by_length=run.batch_by_length,
        model=model,
        args=settle_training(training, spec, as_run, trains="train" in splits),
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DocumentCollator(pad_id(tokenizer)),
        compute_metrics=metric_function(spec, model.config, run.extra_metrics),
        callbacks=early_stopping(run.early_stopping_patience),
    )

    # 6. Train, and keep the best
    results: dict[str, Any] = dict(seen)
    if "train" in splits:
        results |= trainer.train(resume_from_checkpoint=resume_from).metrics
        results["train_rows"] = len(splits["train"])
    if lora is not None:
        merge_lora(lora, trainer, adapter.save_adapter)

    # 7. Predict validation and test, rows in their order
    for split in ("validation", "test"):
        if split in splits:
            results |= predict(trainer, splits[split], split, spec, Path(training.output_dir))

    # 8. Write the model, curves and results
    if trainer.is_world_process_zero():
        write_run(trainer, results, spec, as_run, trained="train" in splits)
        if "train" in splits and not run.keep_checkpoints:
            remove_checkpoints(training.output_dir)
    trainer.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 1. arguments


def device_precision(argv: list[str] | dict[str, Any] | None) -> dict[str, bool]:
    """On a GPU bf16, or fp16 where it has no bf16, unless the user says something of precision."""
    chosen = any(is_given(name, argv) for name in ("bf16", "fp16", "use_cpu"))
    if chosen or not torch.cuda.is_available():
        return {}
    name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {name: True}


NOT_WITH_LORA = ("reinit_layers", "unfreeze_every", "fgm_epsilon", "awp_epsilon")


def check_arguments(
    as_run: dict[str, Any], data: DataArguments, training: TrainingArguments
) -> None:
    """What no single dataclass can check."""
    if data.dataset_name is None:
        needs = {
            "do_train": ("train_file",),
            "do_eval": ("validation_file", "train_file"),
            "do_predict": ("test_file",),
        }
        for flag, names in needs.items():
            if as_run.get(flag) and not any(getattr(data, name) for name in names):
                raise InputError(f"--{flag} needs " + " or ".join(f"--{name}" for name in names))
    frozen_by_lora = {name: as_run.get(name) for name in NOT_WITH_LORA}
    frozen_by_lora["freeze"] = as_run["freeze"] != "none"
    for name, value in frozen_by_lora.items():
        exclude(lora_r=as_run["lora_r"], **{name: value})
    if as_run.get("early_stopping_patience") and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end")
    refuse_data_parallel(training.n_gpu)
    refuse_other_order(training)


# ---------------------------------------------------------------- 2. documents and labels


def read_documents(
    data: DataArguments, text: TextArguments, label: LabelArguments, path: str, seed: int
) -> tuple[LabelSpec, dict[str, Dataset]]:
    """The tables of a task -> what its labels are, and documents by split with their labels."""
    tables = read_splits(**data.sources, **text.format)
    spec = settle_labels(tables, label, path)
    documents = label_documents(tables, data.limits, spec, **text.columns)
    share = label.validation_split
    return spec, hold_out_validation(documents, share, spec.problem_type, seed)


def settle_labels(tables: dict[str, Table], label: LabelArguments, path: str) -> LabelSpec:
    """From the training labels; without training, from the classifier that is loaded."""
    columns, delimiter = label.label_column_name, label.label_delimiter
    if "train" in tables:
        spec = LabelSpec.infer(*tables["train"], columns, label.problem_type, delimiter)
    elif is_document_classifier(path):
        config = DocumentClassifierConfig.from_pretrained(path)
        spec = LabelSpec.from_config(config, columns, delimiter)
    else:
        raise InputError(
            f"--model_name_or_path {path} was not written by run_finetune.py, so it cannot "
            "predict; give --train_file"
        )
    names = ", ".join(spec.names[:12]) + (" ..." if len(spec.names) > 12 else "")
    logger.info("Labels: %s, %d: %s", spec.problem_type, len(spec.names), names)
    return spec


def only_wanted(documents: dict[str, Dataset], as_run: dict[str, Any]) -> dict[str, Dataset]:
    """All there are files for; with any of --do_train, --do_eval, --do_predict, what they name."""
    flags = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}
    asked = {split for split, flag in flags.items() if as_run.get(flag)}
    if not asked:
        return documents
    if "train" in asked:
        asked.add("validation")  # chooses the best checkpoint
    return {split: rows for split, rows in documents.items() if split in asked}


# ---------------------------------------------------------------- 4. model


def load_start(
    checkpoint: EncoderArguments, architecture: ModelArguments, dropout: float | None
) -> tuple[PreTrainedModel, DocumentClassifier | None]:
    """The encoder to start from, its upper blocks dropped as asked; and the trained classifier
    around it, where the folder holds one."""
    path, pooler = checkpoint.model_name_or_path, architecture.token_pooling == "pooler"
    before = None
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            before, missing = load_classifier(path, dropout)
            encoder = require_pooler(before.encoder, [], pooler)
        else:
            encoder, missing = load_encoder(path, pooler, dropout, **checkpoint.hub)
    if missing:
        logger.info("Not in the checkpoint, newly initialised: %s", ", ".join(missing))
    if architecture.drop_layers_above is not None:
        drop_blocks_above(encoder, architecture.drop_layers_above)
    return encoder, before


def build_model(
    encoder: PreTrainedModel,
    before: DocumentClassifier | None,
    architecture: ModelArguments,
    spec: LabelSpec,
    shape: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[DocumentClassifier, bool]:
    """Encoder and head, and whether the head is new.

    A trained classifier keeps its head where labels, layers and poolings agree.

    Args:
        shape: the config's `windows` and `special_tokens`.
    """
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        **settle_architecture(architecture, encoder, before),
        **shape,
        **spec.config_fields(),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = DocumentClassifier(config, encoder)
    head = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    new_head = before is None or not same_head(before.config, config)
    if new_head:
        logger.info("New, from random weights: %s", ", ".join(head))
    else:
        model.load_state_dict({name: before.state_dict()[name] for name in head}, strict=False)
        logger.info("Head: kept")
    return model, new_head


def prepare_training(
    model: DocumentClassifier,
    new_head: bool,
    labels: list,
    rates: RateArguments,
    adapter: AdapterArguments,
) -> Any:
    """Where the head starts, which blocks start anew, what is frozen; LoRA, or None."""
    if new_head:
        start_at_frequencies(model.head, labels, model.config.problem_type)
    with as_input_error():
        reinit_top_blocks(model.encoder, rates.reinit_layers)
        lora = add_lora(model.encoder, adapter) if adapter.lora_r else None
        freeze(model, rates.freeze)
    return lora


def start_at_frequencies(head: nn.Linear, labels: list, problem_type: str) -> None:
    """A new multi-label head starts at the frequencies of the labels: bias = log odds.

    From a bias of 0 the loss falls fastest by saying no to every label of every text, and with many
    rare labels the encoder is bent to that end until all texts look alike to it.
    """
    if problem_type != PROBLEM_TYPES["multi_label"]:
        return
    counts = torch.tensor(labels).sum(dim=0)
    frequencies = (counts + 0.5) / (len(labels) + 1)  # never 0 or 1
    head.bias.data.copy_(torch.logit(frequencies))


def settle_architecture(
    architecture: ModelArguments, encoder: PreTrainedModel, before: DocumentClassifier | None
) -> dict[str, Any]:
    """Flags, else those of the trained classifier, else the defaults."""
    settled = {
        "layers": "last",
        "layer_pooling": "concat",
        "token_pooling": "last" if encoder.config.model_type in DECODERS else "cls",
        "segment_pooling": "mean",
        "head_dropout": 0.1,
        "dropout_samples": 1,
        "segments_per_forward": None,
    }
    if before is not None:
        settled = {name: getattr(before.config, name) for name in settled}
    settled |= {name: flag for name, flag in architecture.fields.items() if flag is not None}
    with as_input_error():
        settled["layers"] = resolve_layers(settled["layers"], num_blocks(encoder.config))
    if settled["token_pooling"] == "pooler" and settled["layers"] != [num_blocks(encoder.config)]:
        raise InputError("--token_pooling pooler reads the last layer; leave --layers out")
    return settled


DECODERS = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*MODEL_FOR_MASKED_LM_MAPPING_NAMES}


def same_head(before: DocumentClassifierConfig, now: DocumentClassifierConfig) -> bool:
    fields = (
        "problem_type",
        "id2label",
        "layers",
        "layer_pooling",
        "token_pooling",
        "segment_pooling",
    )
    return all(getattr(before, f) == getattr(now, f) for f in fields)


# ---------------------------------------------------------------- 5. trainer


class ClassifierTrainer(Trainer):
    """Trainer with layer-wise rates, batches by length, sums of losses, and the regularisers."""

    def __init__(
        self,
        loss: TrainingLoss,
        rates: dict[int, float],
        unfreeze_every: float | None,
        regularisers: RegulariserArguments,
        batch_by_length: bool,
        **kwargs: Any,
    ):
        """Args: rates: of each room, see `layers.layer_rates`. Others: as for the Trainer."""
        super().__init__(**kwargs)
        self.label_smoother = None  # the Trainer's own knows nothing of accumulated batches
        self.loss, self.rates, self.unfreeze_every = loss, rates, unfreeze_every
        self.batch_by_length = batch_by_length
        self.adversary, self.average = None, None
        if regularisers.fgm_epsilon or regularisers.awp_epsilon:
            epsilons = regularisers.fgm_epsilon, regularisers.awp_epsilon
            self.adversary = Adversary(self.model, *epsilons)
            if self.train_dataset is not None and not self.adversary.moved:
                raise InputError("--fgm_epsilon and --awp_epsilon need trained weights to move")
        if regularisers.ema_decay:
            self.average = WeightAverage(self.model, regularisers.ema_decay)
            self.add_callback(UpdateAverage(self.average))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the groups, print and save their table. (FSDP passes the model it has wrapped.)"""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = {
            n for n in self.get_decay_parameter_names(model) if not n.startswith("layer_mix.")
        }
        groups = layer_groups(model, self.rates, self.args.weight_decay, decayed)
        if not groups:
            raise InputError("nothing is left to train")
        table = group_table(groups)
        if self.is_world_process_zero():
            logger.info("Optimizer groups:\n%s", table.to_string(index=False))
            write_csv(Path(self.args.output_dir) / "optimizer_groups.csv", table)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """What the summed loss of the accumulated batch over all processes is divided by."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is None:
            return batches, count
        divisor = sum(self.loss_of(batch).divisor(batch["labels"]) for batch in batches)
        divisor = torch.as_tensor(divisor, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            divisor = self.accelerator.gather(divisor).sum()
        return batches, divisor

    def loss_of(self, batch: dict[str, Any]) -> TrainingLoss:
        return self.loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training the loss with all that is switched on; in evaluation the plain one."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        loss, labels = self.loss_of(inputs), inputs["labels"]
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        if loss.rdrop_alpha:  # two passes as one batch
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        logits = model(**inputs).logits
        if loss.rdrop_alpha:
            total = sum(loss.total(half, labels) for half in logits.chunk(2, dim=-2)) / 2
            total = total + loss.rdrop_alpha * loss.divergence(logits)
        else:
            total = loss.total(logits, labels)
        if num_items_in_batch is None:
            return total / loss.divisor(labels)
        if self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes  # gradients are averaged over processes
        return total / num_items_in_batch

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        """The Trainer's, then a second backward pass against the adversary, then unfreezing."""
        if self.adversary is not None:
            self.adversary.remember()
        loss = super().training_step(model, inputs, *args)
        if self.adversary is not None:
            with self.adversary.attack():
                super().training_step(model, inputs, *args)
        if self.unfreeze_every is not None:
            self.drop_gradients_of_frozen_rooms()
        return loss

    def drop_gradients_of_frozen_rooms(self) -> None:
        """The optimizer skips what has no gradient. (Processes would wait for parameters that are
        frozen and unfrozen on the way, so all of them keep taking part in the backward pass.)"""
        blocks = num_blocks(self.model.encoder.config)
        lowest = unfrozen_from(self.state.epoch or 0.0, self.unfreeze_every, blocks)
        for group in self.optimizer.param_groups:
            if group["room"] < lowest:
                for parameter in group["params"]:
                    parameter.grad = None

    def _get_train_sampler(
        self, train_dataset: Dataset | None = None
    ) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.batch_by_length:
            return super()._get_train_sampler(dataset)
        return GroupedByLength.of(self, dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer logs the rate of the first group; add that of the last, the head."""
        if "learning_rate" in logs and self.optimizer is not None:
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]
            if rates[0] > 0:  # logged is the rate of the step before, which the ratio keeps to
                logs["learning_rate_head"] = logs["learning_rate"] * rates[-1] / rates[0]
        super().log(logs, *args, **kwargs)

    # -- averaged weights: trained beside the model, used wherever it is judged or kept

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


def early_stopping(patience: int | None) -> list[TrainerCallback]:
    return [] if patience is None else [EarlyStoppingCallback(patience)]


def settle_loss(
    losses: LossArguments,
    training: TrainingArguments,
    spec: LabelSpec,
    model: DocumentClassifier,
    splits: dict[str, Dataset],
) -> TrainingLoss:
    """The flags as a loss; refuses those that mean nothing for the problem type."""
    smoothing = training.label_smoothing_factor
    only_for = {
        "class_weights": (losses.class_weights, ("single_label",)),
        "positive_weights": (losses.positive_weights, ("multi_label",)),
        "focal_gamma": (losses.focal_gamma, ("single_label", "multi_label")),
        "huber_delta": (losses.huber_delta, ("regression",)),
        "label_smoothing_factor": (smoothing, ("single_label",)),
    }
    for flag, (value, kinds) in only_for.items():
        if value and spec.problem_type not in kinds:
            raise InputError(f"--{flag} does not go with {spec.problem_type} labels")
    labels = splits["train"]["labels"][:] if "train" in splits else []
    weights = {}
    if labels:
        for flag in ("class_weights", "positive_weights"):
            weights[flag] = settle_weights(getattr(losses, flag), flag, spec, labels)
    return TrainingLoss(
        config=model.config,
        focal_gamma=losses.focal_gamma,
        label_smoothing=smoothing,
        huber_delta=losses.huber_delta,
        rdrop_alpha=losses.rdrop_alpha,
        **weights,
    )


def settle_training(
    training: TrainingArguments, spec: LabelSpec, as_run: dict[str, Any], trains: bool
) -> TrainingArguments:
    """Settings that follow from the task, unless the user gave them."""
    keep_all_columns(training)
    if not trains:
        training.eval_strategy = "no"
        training.load_best_model_at_end = False
        return training
    if training.load_best_model_at_end and "metric_for_best_model" not in as_run:
        training.metric_for_best_model = MAIN_METRIC[spec.problem_type][0]
    if training.load_best_model_at_end and "greater_is_better" not in as_run:
        name = training.metric_for_best_model.removeprefix("eval_")
        training.greater_is_better = name not in LESS_IS_BETTER
    return training


# ---------------------------------------------------------------- 7. predict


def predict(
    trainer: Trainer, dataset: Dataset, split: str, spec: LabelSpec, folder: Path
) -> dict[str, float]:
    """Predict a split, longest documents first for speed, and write it in row order to `folder`.

    Returns:
        metrics with the prefix eval_ or test_.
    """
    prefix = {"validation": "eval", "test": "test"}[split]
    order = longest_first(dataset["length"][:])
    output = trainer.predict(dataset.select(order), metric_key_prefix=prefix)
    logits = np.empty_like(output.predictions)
    logits[order] = output.predictions
    if trainer.is_world_process_zero():
        table = spec.prediction_table(dataset["id"][:], spec.probabilities(logits))
        write_csv(folder / f"predictions_{split}.csv", table)
    metrics = {k: v for k, v in output.metrics.items() if not k.endswith("_preparation_time")}
    scores = {k: round(v, 4) for k, v in metrics.items() if is_score(k)}
    logger.info("%s: %s", split, scores or f"{len(dataset)} rows predicted")
    return metrics


# ---------------------------------------------------------------- 8. write


def write_run(
    trainer: Trainer,
    results: dict[str, Any],
    spec: LabelSpec,
    as_run: dict[str, Any],
    trained: bool,
) -> None:
    """Everything a run leaves behind beside its predictions."""
    folder = Path(trainer.args.output_dir)
    if trained:
        model = trainer.accelerator.unwrap_model(trainer.model)
        write_model(model, trainer.processing_class, folder, results, spec, as_run)
        history = evaluation_history(trainer.state.log_history)
        write_csv(folder / "history.csv", history)
        metric = trainer.args.metric_for_best_model or MAIN_METRIC[spec.problem_type][0]
        plot_history(folder / "history.png", history, f"eval_{metric.removeprefix('eval_')}")
    write_yaml(folder / "run_args.yaml", as_run)
    write_json(
        folder / "all_results.json", results | {"seed": trainer.args.seed, "versions": versions()}
    )
    logger.info("Wrote %s", folder)


def write_model(
    model: DocumentClassifier,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    results: dict[str, Any],
    spec: LabelSpec,
    as_run: dict[str, Any],
) -> None:
    """The classifier with its code, and the encoder alone as a plain `AutoModel` checkpoint."""
    hashes = read_fingerprint(as_run["model_name_or_path"], revision=as_run["model_revision"])
    with replacing_files(folder) as temporary:
        for part, where in ((model, temporary), (model.encoder, temporary / "encoder")):
            part.save_pretrained(where)
            tokenizer.save_pretrained(where)
            if hashes is not None:  # what the encoder has seen stays with it
                write_fingerprint(where, hashes)
    scores = {k: v for k, v in results.items() if is_score(k)}
    card = model_card(
        title=folder.name,
        base_model=as_run["model_name_or_path"],
        pipeline_tag="text-classification",
        summary=f"{spec.problem_type} document classifier, {len(spec.names)} labels: "
        + ", ".join(spec.names[:20])
        + (" ..." if len(spec.names) > 20 else ""),
        usage=USAGE,
        metrics=scores,
        arguments=changed(as_run, (*OWN_ARGUMENTS, TrainingArguments)),
    )
    write_text(folder / "README.md", card)


USAGE = """
from transformers import pipeline

classify = pipeline("text-classification", model="PATH OF THIS FOLDER", trust_remote_code=True)
classify("Some text")

# the encoder alone, without the head
from transformers import AutoModel
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER/encoder", add_pooling_layer=False)
"""


if __name__ == "__main__":
    run_script(main)
