"""Fine-tune an encoder on labelled text: classification (one label or several) or regression.

    python run_finetune.py --model_name_or_path bert-base-uncased --train_file train.csv \\
        --test_file test.csv --text_column_names title abstract --output_dir out

What runs follows from the files: a training file trains (and holds out --validation_split of it unless
there is a --validation_file), a test file predicts. With a folder this script wrote as
--model_name_or_path and a test file alone, it only predicts.

Recipe: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583).
"""

import logging
import os
import sys
from dataclasses import dataclass, field

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, also under runpy or exec

from command_line import (
    InputError,
    LabelArguments,
    TextArguments,
    as_input_error,
    one_of,
    parse,
    print_help,
    run_script,
    start_logging,
    wants_help,
)

# What is set here and not left to transformers.TrainingArguments. Rates: Sun et al. 2019, section 5.2, 5.3.
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
class DataArguments:
    _argument_group_name = "data"

    train_file: str | None = field(
        default=None, metadata={"help": ".csv .tsv .txt .json .jsonl .parquet, each also .gz."}
    )
    validation_file: str | None = field(
        default=None,
        metadata={"help": "Chooses the best checkpoint. Default: held out of training."},
    )
    test_file: str | None = field(
        default=None,
        metadata={"help": "Is predicted, and scored if it has labels; chooses nothing."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Data set of the hub (splits train, validation, test) in place of files."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use the first N training rows."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use the first N validation rows."}
    )
    max_predict_samples: int | None = field(
        default=None, metadata={"help": "Use the first N test rows."}
    )


@dataclass
class WindowArguments:
    _argument_group_name = "windows (a folder of run_finetune.py brings its own; flags win)"

    truncation: str | None = field(
        default=None, metadata={"help": "head, tail, head_tail or hierarchical. Else: head."}
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens a window, special tokens included. Else: what the model takes, at most 512."
        },
    )
    head_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens head_tail keeps of the head. Else: 128 of 510, in proportion."},
    )
    segment_overlap: int | None = field(
        default=None,
        metadata={"help": "Tokens two neighbouring hierarchical windows share. Else: 0."},
    )
    max_segments: int | None = field(
        default=None, metadata={"help": "Most hierarchical windows a document. Else: all."}
    )

    def __post_init__(self) -> None:
        one_of(
            "truncation", self.truncation, ("head", "tail", "head_tail", "hierarchical"), none=True
        )
        for name, least in (
            ("head_tokens", 1),
            ("segment_overlap", 0),
            ("max_segments", 1),
            ("max_seq_length", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name} {value} is too small; use at least {least}")


@dataclass
class ModelArguments:
    _argument_group_name = "model"

    model_name_or_path: str = field(
        metadata={
            "help": "Hub name, transformers folder, or folder of run_itpt.py or run_finetune.py."
        }
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Default: that of the model."}
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of a hub model."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that a hub model brings along."}
    )
    layers: str | None = field(
        default=None,
        metadata={
            "help": "last, first4, last4, all, or numbers: 0 = embeddings, '9 10 11 12', -1. Else: last."
        },
    )
    layer_pooling: str | None = field(
        default=None, metadata={"help": "concat, mean, max or weighted (learned). Else: concat."}
    )
    token_pooling: str | None = field(
        default=None,
        metadata={"help": "cls, mean, max, attention or last. Else: cls; last for a decoder."},
    )
    segment_pooling: str | None = field(
        default=None, metadata={"help": "mean, max or attention, over windows. Else: mean."}
    )
    head_dropout: float | None = field(
        default=None, metadata={"help": "Before the head. Else: 0.1."}
    )

    def __post_init__(self) -> None:
        one_of(
            "layer_pooling", self.layer_pooling, ("concat", "mean", "max", "weighted"), none=True
        )
        one_of(
            "token_pooling",
            self.token_pooling,
            ("cls", "mean", "max", "attention", "last"),
            none=True,
        )
        one_of("segment_pooling", self.segment_pooling, ("mean", "max", "attention"), none=True)
        if self.head_dropout is not None and not 0 <= self.head_dropout < 1:
            raise InputError(f"--head_dropout {self.head_dropout} must be at least 0 and below 1")


@dataclass
class MethodArguments:
    _argument_group_name = "method"

    layer_lr_decay: float = field(
        default=0.95,
        metadata={"help": "Block k of L learns at learning_rate * decay^(L-k). 1 = off."},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Of all above the blocks. Default: learning_rate."}
    )
    freeze: str = field(
        default="none",
        metadata={"help": "none, embeddings, encoder, or N: embeddings and the lowest N blocks."},
    )
    batch_by_length: bool = field(
        default=True, metadata={"help": "Training batches hold rows of similar length."}
    )
    extra_metrics: list[str] = field(
        default_factory=list,
        metadata={
            "help": "More metrics of `evaluate`, by name or path; name:argument=value works."
        },
    )
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep checkpoint-* folders after the end."}
    )

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
    ModelArguments,
    MethodArguments,
)

if __name__ == "__main__" and wants_help(sys.argv[1:]):
    print_help(__doc__, OWN_ARGUMENTS, DEFAULTS)
    sys.exit()

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EvalPrediction,
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
from transformers.trainer_utils import get_last_checkpoint

from labels import LabelSpec
from metrics import MAIN_METRIC, DocumentMetrics, ExtraMetric
from modeling import (
    DocumentClassifier,
    DocumentClassifierConfig,
    document_loss,
    is_document_classifier,
    load_classifier,
    load_encoder,
    max_positions,
    num_blocks,
    resolve_layers,
)
from outputs import (
    evaluation_history,
    model_card,
    plot_history,
    replacing_files,
    versions,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)
from text_data import (
    DocumentCollator,
    GroupedByLength,
    hold_out,
    longest_first,
    read_hub_table,
    read_table,
    strata_of,
    to_documents,
    to_windows,
)
from windows import SpecialTokens, WindowSpec, cut_spans, find_special_tokens

logger = logging.getLogger(__name__)


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    data, text, label, window, model_args, method, training, as_run = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS
    )
    start_logging()
    check_arguments(data, training)
    resume_from = find_checkpoint(training)
    set_seed(training.seed)

    # 2. Tables -> labelled documents
    tables = read_tables(data, text)
    spec = settle_labels(tables, data, label, model_args)
    documents = {s: label_documents(t, s, data, text, spec) for s, t in tables.items()}
    documents = hold_out_validation(documents, label.validation_split, spec, training.seed)
    documents = only_wanted(documents, as_run)

    # 3. Documents -> windows
    tokenizer = load_tokenizer(model_args)
    special = find_special_tokens(tokenizer)
    windows = settle_windows(window, model_args, tokenizer, special)
    splits = {s: cut(d, s, tokenizer, windows, special) for s, d in documents.items()}

    # 4. Model
    model = build_model(model_args, spec, windows, special, tokenizer)
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
    results: dict[str, Any] = {}
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


# ---------------------------------------------------------------------------- 1. arguments


def check_arguments(data: DataArguments, training: TrainingArguments) -> None:
    files = (data.train_file, data.validation_file, data.test_file)
    if data.dataset_name is None and not any(files):
        raise InputError("nothing to do: give --train_file, --test_file or --dataset_name")
    if data.dataset_name is not None and any(files):
        raise InputError(
            "--dataset_name and --train_file/--validation_file/--test_file exclude each other"
        )
    if training.do_train and data.dataset_name is None and data.train_file is None:
        raise InputError("--do_train needs --train_file")
    if (
        training.do_eval
        and data.dataset_name is None
        and not (data.validation_file or data.train_file)
    ):
        raise InputError("--do_eval needs --validation_file or --train_file")
    if training.do_predict and data.dataset_name is None and data.test_file is None:
        raise InputError("--do_predict needs --test_file")
    if training.n_gpu > 1:
        raise InputError(
            f"{training.n_gpu} GPUs but one process; type: accelerate launch --num_processes {training.n_gpu} "
            "run_finetune.py ..., or CUDA_VISIBLE_DEVICES=0 python run_finetune.py ..."
        )
    if getattr(training, "train_sampling_strategy", "random") != "random" or getattr(
        training, "group_by_length", False
    ):
        raise InputError(
            "batches are ordered by --batch_by_length here; leave the Trainer's own strategy at random"
        )


def find_checkpoint(training: TrainingArguments) -> str | None:
    """--resume_from_checkpoint: a path, or `last` (or true) for the newest in output_dir."""
    last = get_last_checkpoint(training.output_dir) if os.path.isdir(training.output_dir) else None
    asked = training.resume_from_checkpoint
    if asked is None:
        if last is not None:
            raise InputError(
                f"{last} is left from a run that did not end: go on with --resume_from_checkpoint last, "
                "or choose another --output_dir, or delete it"
            )
        return None
    if asked.lower() in ("last", "true"):
        if last is None:
            raise InputError(
                f"--resume_from_checkpoint {asked}: no checkpoint-* in {training.output_dir}"
            )
        return last
    if not os.path.isdir(asked):
        raise InputError(f"--resume_from_checkpoint {asked}: no such folder (or say: last)")
    return asked


# ---------------------------------------------------------------------------- 2. tables and labels


def read_tables(data: DataArguments, text: TextArguments) -> dict[str, Dataset]:
    """Tables by split; each knows where it came from through `source_of`."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    if data.dataset_name is not None:
        tables = {s: read_hub_table(data.dataset_name, data.dataset_config_name, s) for s in files}
        tables = {s: table for s, table in tables.items() if table is not None}
        if not tables:
            raise InputError(
                f"--dataset_name {data.dataset_name} has no split named train, validation or test"
            )
    else:
        tables = {
            s: read_table(path, text.delimiter, text.encoding) for s, path in files.items() if path
        }
    limits = {
        "train": data.max_train_samples,
        "validation": data.max_eval_samples,
        "test": data.max_predict_samples,
    }
    return {s: first_rows(table, limits[s]) for s, table in tables.items()}


def first_rows(table: Dataset, limit: int | None) -> Dataset:
    return table if limit is None else table.select(range(min(limit, len(table))))


def source_of(data: DataArguments, split: str) -> str:
    """What an error message calls a split: its file, or the data set and split."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    return files[split] or f"{data.dataset_name or data.train_file} ({split})"


def settle_labels(
    tables: dict[str, Dataset],
    data: DataArguments,
    label: LabelArguments,
    model_args: ModelArguments,
) -> LabelSpec:
    """From the training labels; without training, from the classifier that is loaded."""
    if "train" in tables:
        spec = LabelSpec.infer(
            tables["train"],
            label.label_column_name,
            source_of(data, "train"),
            label.problem_type,
            label.label_delimiter,
        )
    elif is_document_classifier(model_args.model_name_or_path):
        config = DocumentClassifierConfig.from_pretrained(model_args.model_name_or_path)
        spec = LabelSpec.from_config(config, label.label_column_name, label.label_delimiter)
    else:
        raise InputError(
            f"--model_name_or_path {model_args.model_name_or_path} was not written by run_finetune.py, "
            "so it cannot predict; give --train_file"
        )
    logger.info(
        "Labels: %s, %d: %s", spec.problem_type, len(spec.names), ", ".join(spec.names[:12])
    )
    return spec


def label_documents(
    table: Dataset, split: str, data: DataArguments, text: TextArguments, spec: LabelSpec
) -> Dataset:
    """Table -> id, text, labels (where there are any). Ids are settled here, before rows are held out."""
    source = source_of(data, split)
    documents = to_documents(
        table,
        source,
        text.text_column_names,
        text.text_separator,
        text.text_pair,
        text.id_column_name,
    )
    if split == "test" and not spec.has_labels(table):
        return documents
    return documents.add_column("labels", spec.encode(table, source))


def hold_out_validation(
    documents: dict[str, Dataset], share: float, spec: LabelSpec, seed: int
) -> dict[str, Dataset]:
    """Without a validation set, a stratified share of training becomes it. Test is never touched."""
    if "train" not in documents or "validation" in documents:
        return documents
    train = documents["train"]
    held_out = hold_out(strata_of(train["labels"][:], spec.problem_type), share, seed)
    if not held_out.any() or held_out.all():
        raise InputError(
            f"--validation_split {share} of {len(train)} rows leaves one side empty; "
            "give a --validation_file or another share"
        )
    logger.info("Held out of training for validation: %d of %d rows", held_out.sum(), len(train))
    parts = {"train": np.flatnonzero(~held_out), "validation": np.flatnonzero(held_out)}
    return documents | {split: train.select(rows) for split, rows in parts.items()}


def only_wanted(documents: dict[str, Dataset], as_run: dict[str, Any]) -> dict[str, Dataset]:
    """All that files were given for; with any of --do_train, --do_eval, --do_predict, just what they name."""
    flags = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}
    asked = {split for split, flag in flags.items() if as_run.get(flag)}
    if not asked:
        return documents
    if "train" in asked:
        asked.add("validation")  # chooses the best checkpoint
    return {split: d for split, d in documents.items() if split in asked}


# ---------------------------------------------------------------------------- 3. windows


def load_tokenizer(model_args: ModelArguments) -> PreTrainedTokenizerBase:
    name = model_args.tokenizer_name or model_args.model_name_or_path
    with as_input_error(f"tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model_args.model_revision, trust_remote_code=model_args.trust_remote_code
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # decoders; padding is masked, so any id does
    return tokenizer


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def settle_windows(
    window: WindowArguments,
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    special: SpecialTokens,
) -> WindowSpec:
    """Flags, else what a trained classifier says, else head windows of what the model takes, at most 512."""
    path = model_args.model_name_or_path
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            config = DocumentClassifierConfig.from_pretrained(path)
            known = dict(config.windows)
            config = config.encoder_config
        else:
            config = AutoConfig.from_pretrained(
                path,
                revision=model_args.model_revision,
                trust_remote_code=model_args.trust_remote_code,
            )
            known = {}
    limit = max_positions(config)
    known.setdefault("max_seq_length", int(min(512, limit, tokenizer.model_max_length)))
    flags = ("truncation", "max_seq_length", "head_tokens", "segment_overlap", "max_segments")
    spec = WindowSpec(
        **known | {f: getattr(window, f) for f in flags if getattr(window, f) is not None}
    )
    if spec.max_seq_length > limit:
        raise InputError(
            f"--max_seq_length {spec.max_seq_length} is beyond the {limit} positions of {path}"
        )
    unfit = [
        f
        for f, t in WINDOW_FLAGS.items()
        if getattr(window, f) is not None and spec.truncation != t
    ]
    if unfit:
        needed = WINDOW_FLAGS[unfit[0]]
        raise InputError(f"--{unfit[0]} needs --truncation {needed}, not {spec.truncation}")
    with as_input_error():
        cut_spans(
            spec.max_seq_length + 1, spec, special.pair_count
        )  # complains of windows with no room
    return spec


WINDOW_FLAGS = {
    "head_tokens": "head_tail",
    "segment_overlap": "hierarchical",
    "max_segments": "hierarchical",
}


def cut(
    documents: Dataset,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    windows: WindowSpec,
    special: SpecialTokens,
) -> Dataset:
    """Documents -> windows, and a line that says what the windows leave out."""
    dataset, report = to_windows(documents, tokenizer, windows, special)
    logger.info("%s: %s (%s, %d)", split, report, windows.truncation, windows.max_seq_length)
    return dataset


# ---------------------------------------------------------------------------- 4. model


def build_model(
    model_args: ModelArguments,
    spec: LabelSpec,
    windows: WindowSpec,
    special: SpecialTokens,
    tokenizer: PreTrainedTokenizerBase,
) -> DocumentClassifier:
    """Encoder and head. A trained classifier keeps its head where labels, layers and poolings agree."""
    path = model_args.model_name_or_path
    before = None
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            before, missing = load_classifier(path)
            encoder = before.encoder
        else:
            encoder, missing = load_encoder(
                path,
                revision=model_args.model_revision,
                trust_remote_code=model_args.trust_remote_code,
            )
    if len(tokenizer) > encoder.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, {path} only "
            f"{encoder.get_input_embeddings().num_embeddings}; give the --tokenizer_name that fits"
        )
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        **architecture(model_args, encoder, before),
        windows=windows.to_dict(),
        special_tokens=special.to_dict(),
        pad_token_id=tokenizer.pad_token_id,
        **spec.config_fields(),
    )
    model = DocumentClassifier(config, encoder)
    if before is not None and same_head(before.config, config):
        model.load_state_dict(before.state_dict())
        logger.info("Head: kept from %s", path)
    else:
        missing = [
            *missing,
            *(n for n, _ in model.named_parameters() if not n.startswith("encoder.")),
        ]
    if missing:
        logger.info("Weights not in the checkpoint, newly initialised: %s", ", ".join(missing))
    return model


def architecture(
    model_args: ModelArguments, encoder: PreTrainedModel, before: DocumentClassifier | None
) -> dict[str, Any]:
    """Flags, else those of the trained classifier, else the defaults."""
    is_decoder = encoder.config.model_type in DECODERS
    fallback = {
        "layers": "last",
        "layer_pooling": "concat",
        "token_pooling": "last" if is_decoder else "cls",
        "segment_pooling": "mean",
        "head_dropout": 0.1,
    }
    if before is not None:
        fallback = {name: getattr(before.config, name) for name in fallback}
    flags = {name: getattr(model_args, name) for name in fallback}
    settled = {name: fallback[name] if flags[name] is None else flags[name] for name in fallback}
    with as_input_error():
        settled["layers"] = resolve_layers(settled["layers"], num_blocks(encoder.config))
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
    """Freeze embeddings, the encoder, or embeddings and the lowest N blocks; and blocks that nothing reads.

    A block above the highest layer in use gets no gradient: frozen, it is left out of the optimizer and
    does not stall processes that wait for its gradient.
    """
    blocks, top = num_blocks(model.encoder.config), max(model.config.layers)
    rooms = {name: room_of(name, model) for name, _ in model.named_parameters()}
    shared = len({room for room in rooms.values() if isinstance(room, int)} - {0}) < blocks
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


# ---------------------------------------------------------------------------- optimizer groups

HEAD = 10**6  # the room above all blocks; 0 = embeddings, k = block k

# Modules of encoders that stand outside the list of blocks, by the name of the attribute.
ROOMS = {
    **dict.fromkeys(("embeddings", "embeddings_project", "embedding_hidden_mapping_in"), 0),
    **dict.fromkeys(("embed_tokens", "wte", "wpe", "rel_embeddings", "relative_attention_bias"), 0),
    "LayerNorm": 0,  # DeBERTa: of the relative position embeddings
    "conv": 1,  # DeBERTa-v2: joins the output of block 1
    **dict.fromkeys(("final_norm", "norm", "ln_f", "final_layer_norm"), HEAD),
    **dict.fromkeys(("head", "layer_mix", "token_attention", "segment_attention"), HEAD),
}


def find_blocks(encoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The encoder's blocks by structure: the ModuleList of num_hidden_layers, or ALBERT's shared groups.

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
        groups from the lowest room to the head, each with name, params, lr, weight_decay. Every trainable
        parameter is in exactly one.

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


# ---------------------------------------------------------------------------- 5. trainer


class ClassifierTrainer(Trainer):
    """Trainer with layer-wise rates, batches by length, evaluation in a fixed order, and counted labels."""

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

        The Trainer leaves out values of -100, which as a regression target is a value like any other.
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
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return GroupedByLength(
            dataset["length"][:],
            self.args.train_batch_size,
            seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

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
    training.remove_unused_columns = False  # the collator reads windows and length
    training.dataloader_pin_memory = training.dataloader_pin_memory and torch.cuda.is_available()
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


LESS_IS_BETTER = ("loss", "log_loss", "rmse", "mae")


def metric_function(
    spec: LabelSpec, config: DocumentClassifierConfig, extra_metrics: list[str]
) -> Callable[[EvalPrediction], dict[str, float]]:
    """All scores of a set of predictions, and their exact mean loss.

    The Trainer's own evaluation loss is a mean of batch means, which a short last batch distorts.
    """
    metric = DocumentMetrics(spec.problem_type)
    extra = []
    for description in extra_metrics:
        with as_input_error(f"--extra_metrics {description}"):
            extra.append(ExtraMetric(description, spec.problem_type))

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        logits, labels = (
            torch.as_tensor(prediction.predictions),
            torch.as_tensor(prediction.label_ids),
        )
        scores = {"loss": document_loss(logits, labels, config).item()}
        probabilities = spec.probabilities(prediction.predictions)
        scores |= metric.compute(predictions=probabilities, references=prediction.label_ids)
        for function in extra:
            scores |= function(probabilities, prediction.label_ids)
        return scores

    return compute


# ---------------------------------------------------------------------------- 7. predict


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
        table = prediction_table(dataset["id"][:], spec.probabilities(logits), spec)
        write_csv(Path(trainer.args.output_dir) / f"predictions_{split}.csv", table)
    metrics = {k: v for k, v in output.metrics.items() if not k.endswith("_preparation_time")}
    shown = {
        k: round(v, 4) for k, v in metrics.items() if not k.endswith(("runtime", "per_second"))
    }
    if f"{prefix}_loss" in metrics:
        logger.info("%s: %s", split, shown)
    return metrics


def prediction_table(ids: list[str], probabilities: np.ndarray, spec: LabelSpec) -> pd.DataFrame:
    """id, prediction, prob_<label> ...; for several regression targets id, prediction_<target> ..."""
    table = pd.DataFrame({"id": ids})
    if spec.problem_type == "regression" and len(spec.names) > 1:
        columns = {f"prediction_{name}": probabilities[:, i] for i, name in enumerate(spec.names)}
        return table.assign(**columns)
    table["prediction"] = spec.predictions(probabilities)
    if spec.problem_type == "regression":
        return table
    columns = {f"prob_{name}": probabilities[:, i] for i, name in enumerate(spec.names)}
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


# ---------------------------------------------------------------------------- 8. write


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
    with replacing_files(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        model.encoder.save_pretrained(temporary / "encoder")
        tokenizer.save_pretrained(temporary / "encoder")
    scores = {k: v for k, v in results.items() if k.startswith(("eval_", "test_"))}
    card = model_card(
        title=folder.name,
        base_model=as_run["model_name_or_path"],
        pipeline_tag="text-classification",
        summary=f"{spec.problem_type} document classifier, {len(spec.names)} labels: "
        + ", ".join(spec.names[:20])
        + (" ..." if len(spec.names) > 20 else ""),
        usage=USAGE,
        metrics=scores,
        arguments=as_run,
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


def remove_checkpoints(folder: str) -> None:
    """The best weights are in the folder itself now; checkpoints only serve a run that did not end."""
    for checkpoint in Path(folder).glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    run_script(main)
