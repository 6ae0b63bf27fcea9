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
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from arguments import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    TextArguments,
    WindowArguments,
    arg,
)
from command_line import (
    InputError,
    as_input_error,
    changed,
    one_of,
    parse,
    print_help,
    refuse_data_parallel,
    run_script,
    start_logging,
    wants_help,
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


@dataclass
class ModelArguments:
    _argument_group_name = "model (a folder of run_finetune.py brings its own; flags win)"

    layers: str | None = arg(
        None, "last, first4, last4, all, or numbers: 0 = embeddings, '9 10 11 12', -1. Else: last."
    )
    layer_pooling: str | None = arg(None, "concat, mean, max or weighted (learned). Else: concat.")
    token_pooling: str | None = arg(
        None,
        "cls, mean, max, attention, last, or pooler (BERT's own). Else: cls; last for a decoder.",
    )
    segment_pooling: str | None = arg(None, "mean, max or attention over windows. Else: mean.")
    head_dropout: float | None = arg(None, "Before the head. Else: 0.1.")

    def __post_init__(self) -> None:
        one_of("layer_pooling", self.layer_pooling, ("concat", "mean", "max", "weighted"))
        poolings = ("cls", "mean", "max", "attention", "last", "pooler")
        one_of("token_pooling", self.token_pooling, poolings)
        one_of("segment_pooling", self.segment_pooling, ("mean", "max", "attention"))
        if self.head_dropout is not None and not 0 <= self.head_dropout < 1:
            raise InputError(f"--head_dropout {self.head_dropout} must be at least 0 and below 1")


@dataclass
class MethodArguments:
    _argument_group_name = "method"

    layer_lr_decay: float = arg(
        0.95, "Block k of L learns at learning_rate * decay^(L-k). 1 = off."
    )
    head_learning_rate: float | None = arg(None, "Of all above the blocks. Else: learning_rate.")
    freeze: str = arg(
        "none", "none, embeddings, encoder, or N: embeddings and the lowest N blocks."
    )
    batch_by_length: bool = arg(True, "Training batches hold rows of similar length.")
    extra_metrics: list[str] = arg(
        [], "More metrics of `evaluate`, by name or path; name:argument=value works."
    )
    keep_checkpoints: bool = arg(False, "Keep checkpoint-* folders after the end.")

    def __post_init__(self) -> None:
        if not 0 < self.layer_lr_decay <= 1:
            raise InputError(
                f"--layer_lr_decay {self.layer_lr_decay} must be above 0 and at most 1"
            )
        if self.freeze not in ("none", "embeddings", "encoder") and not self.freeze.isdigit():
            raise InputError(
                f"--freeze {self.freeze} is not none, embeddings, encoder or a number of blocks"
            )


OWN_ARGUMENTS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    MethodArguments,
)

if __name__ == "__main__" and wants_help(sys.argv[1:]):
    print_help(__doc__, OWN_ARGUMENTS, DEFAULTS)
    sys.exit()

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

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
from metrics import LESS_IS_BETTER, MAIN_METRIC, is_score, metric_function
from modeling import (
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
from text_data import Table, hold_out_validation, label_documents, read_splits

logger = logging.getLogger(__name__)


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    data, text, label, window, checkpoint, architecture, method, training, as_run = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS
    )
    start_logging()
    check_arguments(as_run, data, training)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    path, hub = checkpoint.model_name_or_path, checkpoint.hub

    # 2. Tables -> labelled documents
    tables = read_splits(**data.sources, **text.format)
    spec = settle_labels(tables, label, path)
    documents = label_documents(tables, data.limits, spec, **text.columns)
    documents = hold_out_validation(
        documents, label.validation_split, spec.problem_type, training.seed
    )

    seen = find_seen(documents.get("test"), path, **hub)

    # 3. Documents -> windows
    tokenizer = load_tokenizer(checkpoint.tokenizer_name or path, **hub)
    windows, special = settle_windows(window.given, path, tokenizer, **hub)
    splits = {}
    for split, rows in only_wanted(documents, as_run).items():
        splits[split], report = to_windows(rows, tokenizer, windows, special)
        logger.info("%s, %s %d: %s", split, windows.truncation, windows.max_seq_length, report)

    # 4. Model
    shape = {"windows": windows.to_dict(), "special_tokens": special.to_dict()}
    model, new_head = build_model(path, hub, architecture, spec, shape, tokenizer)
    if new_head and "train" in splits:
        start_at_frequencies(model.head, splits["train"]["labels"][:], spec.problem_type)
    with as_input_error():
        freeze(model, method.freeze)

    # 5. Trainer
    trainer = ClassifierTrainer(
        method=method,
        model=model,
        args=settle_training(training, spec, as_run, trains="train" in splits),
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DocumentCollator(pad_id(tokenizer)),
        compute_metrics=metric_function(spec, model.config, method.extra_metrics),
    )

    # 6. Train, and keep the best
    results: dict[str, Any] = dict(seen)
    if "train" in splits:
        results |= trainer.train(resume_from_checkpoint=resume_from).metrics

    # 7. Predict validation and test, rows in their order
    for split in ("validation", "test"):
        if split in splits:
            results |= predict(trainer, splits[split], split, spec)

    # 8. Write the model, curves and results
    if trainer.is_world_process_zero():
        write_run(trainer, results, spec, as_run, trained="train" in splits)
        if "train" in splits and not method.keep_checkpoints:
            remove_checkpoints(training.output_dir)
    trainer.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 1. arguments


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
    refuse_data_parallel(training.n_gpu)
    refuse_other_order(training)


# ---------------------------------------------------------------- 2. labels


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


def build_model(
    path: str,
    hub: dict[str, Any],
    architecture: ModelArguments,
    spec: LabelSpec,
    shape: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[DocumentClassifier, bool]:
    """Encoder and head, and whether the head is new.

    A trained classifier keeps its head where labels, layers and poolings agree.

    Args:
        hub: for `from_pretrained`: revision, trust_remote_code.
        shape: the config's `windows` and `special_tokens`.
    """
    before = None
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            before, missing = load_classifier(path)
            encoder = require_pooler(before.encoder, [], architecture.token_pooling == "pooler")
        else:
            encoder, missing = load_encoder(path, architecture.token_pooling == "pooler", **hub)
    check_vocabulary(tokenizer, encoder, path)
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        **settle_architecture(architecture, encoder, before),
        **shape,
        **spec.config_fields(),
        pad_token_id=tokenizer.pad_token_id,
    )
    model = DocumentClassifier(config, encoder)
    new_head = before is None or not same_head(before.config, config)
    if not new_head:
        model.load_state_dict(before.state_dict())
        logger.info("Head: kept from %s", path)
    else:
        head = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
        missing = [*missing, *head]
    if missing:
        logger.info("Not in the checkpoint, newly initialised: %s", ", ".join(missing))
    return model, new_head


def start_at_frequencies(head: nn.Linear, labels: list, problem_type: str) -> None:
    """A new multi-label head starts at the frequencies of the labels: bias = log odds.

    From a bias of 0 the loss falls fastest by saying no to every label of every text, and with many
    rare labels the encoder is bent to that end until all texts look alike to it.
    """
    if problem_type != "multi_label":
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
    }
    if before is not None:
        settled = {name: getattr(before.config, name) for name in settled}
    flags = {name: getattr(architecture, name) for name in settled}
    settled |= {name: flag for name, flag in flags.items() if flag is not None}
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


def freeze(model: DocumentClassifier, what: str) -> None:
    """Freeze embeddings, the encoder, or embeddings and N blocks; and blocks that nothing reads.

    A block above the highest layer in use gets no gradient: frozen, it is left out of the optimizer
    and does not stall processes that wait for its gradient.
    """
    blocks, top = num_blocks(model.encoder.config), max(model.config.layers)
    rooms = {name: room_of(name, model) for name, _ in model.named_parameters()}
    shared = len({room for room in rooms.values() if 0 < room < HEAD}) < blocks
    lowest = {"none": -1, "embeddings": 0, "encoder": blocks}.get(what)
    if lowest is None:
        lowest = int(what)
        if shared or lowest > blocks:
            reason = "shares its blocks" if shared else f"has {blocks} blocks"
            raise InputError(f"--freeze {what}: {model.encoder.config.model_type} {reason}")
    for name, parameter in model.named_parameters():
        room = rooms[name]
        above = name.startswith("encoder.") and room == HEAD  # a final norm
        frozen = room <= lowest or (above and (what == "encoder" or top < blocks))
        unused = not shared and top < room < HEAD
        parameter.requires_grad_(not (frozen or unused))


# ---------------------------------------------------------------- optimizer groups

HEAD = 10**6  # the room above all blocks; 0 = embeddings, k = block k

# Modules of encoders that stand outside the list of blocks, by the name of the attribute.
ROOMS = {
    **dict.fromkeys(("embeddings", "embeddings_project", "embedding_hidden_mapping_in"), 0),
    **dict.fromkeys(("embed_tokens", "wte", "wpe", "rel_embeddings", "relative_attention_bias"), 0),
    "LayerNorm": 0,  # DeBERTa: of the relative position embeddings
    "conv": 1,  # DeBERTa-v2: joins the output of block 1
    **dict.fromkeys(("final_norm", "norm", "ln_f", "final_layer_norm", "pooler"), HEAD),
    **dict.fromkeys(("head", "layer_mix", "token_attention", "segment_attention"), HEAD),
}


def find_blocks(encoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The encoder's blocks: its ModuleList of num_hidden_layers, or ALBERT's shared groups.

    Raises:
        ValueError: if there is none.
    """
    config = encoder.config.get_text_config()
    lists = [(name, m) for name, m in encoder.named_modules() if isinstance(m, nn.ModuleList)]
    for length in (getattr(config, "num_hidden_groups", None), config.num_hidden_layers):
        found = [(name, m) for name, m in lists if len(m) == length]
        if found:
            return max(found, key=lambda pair: sum(p.numel() for p in pair[1].parameters()))
    raise ValueError(f"{type(encoder).__name__} has no list of {config.num_hidden_layers} blocks")


def room_of(name: str, model: DocumentClassifier) -> int:
    """Where a parameter stands: 0 = embeddings, k = block k, HEAD = above the blocks.

    A block that several layers share counts as the highest of them.

    Raises:
        ValueError: for a parameter that is in no known place; nothing gets a rate by accident.
    """
    parts = name.split(".")
    if parts[0] == "encoder":
        prefix, blocks = find_blocks(model.encoder)
        inside = f"encoder.{prefix}."
        if name.startswith(inside):
            index = int(name.removeprefix(inside).split(".")[0])
            return (index + 1) * num_blocks(model.encoder.config) // len(blocks)
        parts = parts[1:]
    for part in parts:
        if part in ROOMS:
            return ROOMS[part]
    raise ValueError(
        f"parameter {name} is in no optimizer group; add its module to ROOMS in run_finetune.py"
    )


def layer_groups(
    model: DocumentClassifier,
    learning_rate: float,
    layer_decay: float,
    head_learning_rate: float | None,
    weight_decay: float,
    decayed: set[str],
) -> list[dict[str, Any]]:
    """Optimizer groups with layer-wise rates (Sun et al. 2019, eq. 1: eta^(k-1) = xi * eta^k).

    Block k of L learns at learning_rate * layer_decay^(L - k), embeddings at learning_rate *
    layer_decay^L, everything above the blocks at head_learning_rate (None: learning_rate).

    Args:
        decayed: names of the parameters that get `weight_decay`; the others get none.

    Returns:
        groups from the lowest room to the head, each with name, params, lr, weight_decay. Every
        trainable parameter is in exactly one.

    Raises:
        ValueError: for a parameter in no known place.
    """
    blocks = num_blocks(model.encoder.config)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        room, decays = room_of(name, model), name in decayed  # every name is checked, frozen or not
        if not parameter.requires_grad:
            continue
        rate = learning_rate * layer_decay ** (blocks - room) if room < HEAD else head_learning_rate
        if (room, decays) not in groups:
            place = {0: "embeddings", HEAD: "head"}.get(room, f"block {room}")
            groups[room, decays] = {
                "name": place if decays else f"{place}, no decay",
                "params": [],
                "lr": learning_rate if rate is None else rate,
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[room, decays]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def group_table(groups: list[dict[str, Any]]) -> pd.DataFrame:
    """What is trained at which rate: one row per group."""
    rows = [
        (
            g["name"],
            len(g["params"]),
            sum(p.numel() for p in g["params"]),
            g["lr"],
            g["weight_decay"],
        )
        for g in groups
    ]
    return pd.DataFrame(
        rows, columns=["group", "tensors", "parameters", "learning_rate", "weight_decay"]
    )


# ---------------------------------------------------------------- 5. trainer


class ClassifierTrainer(Trainer):
    """Trainer with layer-wise rates, batches by length, and counted labels."""

    def __init__(self, method: MethodArguments, **kwargs: Any):
        super().__init__(**kwargs)
        self.method = method

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the groups, print and save their table. (FSDP passes the model it has wrapped.)"""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = {
            n for n in self.get_decay_parameter_names(model) if not n.startswith("layer_mix.")
        }
        args, method = self.args, self.method
        groups = layer_groups(
            model,
            args.learning_rate,
            method.layer_lr_decay,
            method.head_learning_rate,
            args.weight_decay,
            decayed,
        )
        if not groups:
            raise InputError("nothing is left to train")
        table = group_table(groups)
        if self.is_world_process_zero():
            logger.info("Optimizer groups:\n%s", table.to_string(index=False))
            write_csv(Path(args.output_dir) / "optimizer_groups.csv", table)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Count label values over the accumulated batch and all processes.

        The Trainer leaves out values of -100, which as a regression target is a value like any
        other.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.model.config.problem_type != "regression" or count is None:
            return batches, count
        count = torch.tensor(sum(batch["labels"].numel() for batch in batches), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _get_train_sampler(
        self, train_dataset: Dataset | None = None
    ) -> torch.utils.data.Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.method.batch_by_length:
            return super()._get_train_sampler(dataset)
        return GroupedByLength.of(self, dataset)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer logs the rate of the first group; add that of the last, the head."""
        if "learning_rate" in logs and self.optimizer is not None:
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]
            logs["learning_rate_head"] = logs["learning_rate"] * rates[-1] / rates[0]
        super().log(logs, *args, **kwargs)


def settle_training(
    training: TrainingArguments, spec: LabelSpec, as_run: dict[str, Any], trains: bool
) -> TrainingArguments:
    """Settings that follow from the task, unless the user gave them."""
    keep_all_columns(training)
    if not trains:
        training.eval_strategy = "no"
        training.load_best_model_at_end = False
        return training
    if training.label_smoothing_factor and spec.problem_type != "single_label":
        raise InputError(f"--label_smoothing_factor does not go with {spec.problem_type} labels")
    if training.load_best_model_at_end and "metric_for_best_model" not in as_run:
        training.metric_for_best_model = MAIN_METRIC[spec.problem_type][0]
    if training.load_best_model_at_end and "greater_is_better" not in as_run:
        name = training.metric_for_best_model.removeprefix("eval_")
        training.greater_is_better = name not in LESS_IS_BETTER
    return training


# ---------------------------------------------------------------- 7. predict


def predict(trainer: Trainer, dataset: Dataset, split: str, spec: LabelSpec) -> dict[str, float]:
    """Predict a split, longest documents first for speed, and write it in row order.

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
        write_csv(Path(trainer.args.output_dir) / f"predictions_{split}.csv", table)
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
        write_model(trainer, folder, results, spec, as_run)
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
    trainer: Trainer, folder: Path, results: dict[str, Any], spec: LabelSpec, as_run: dict[str, Any]
) -> None:
    """The classifier with its code, and the encoder alone as a plain `AutoModel` checkpoint."""
    model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
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
