"""The classifier before training: encoder, head, LoRA matrices."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from bertchain.arguments.finetuning import Arguments
from bertchain.arguments.training import AdapterArguments, ModelArguments
from bertchain.data.labels import LabelSpec
from bertchain.data.tokenization import Preprocessor, check_vocabulary
from bertchain.errors import InputError, as_input_error
from bertchain.models.layers import drop_blocks_above, freeze, reinit_top_blocks, resolve_layers
from bertchain.models.loading import (
    is_document_classifier,
    load_classifier,
    load_encoder,
    read_config,
    require_pooler,
)
from bertchain.models.modeling import (
    PROBLEM_TYPES,
    DocumentClassifier,
    DocumentClassifierConfig,
    num_blocks,
)
from bertchain.models.support import DECODERS
from bertchain.models.weights import some
from bertchain.runtime.files import atomic_files

logger = logging.getLogger(__name__)

HEAD_FIELDS = (  # of a config: what the weights of a head are for
    "problem_type",
    "id2label",
    "layers",
    "layer_pooling",
    "token_pooling",
    "segment_pooling",
    "num_spans",
    "ordinal_head",
)
SMALL = 512  # below this hidden size the default learning rate is low


def add_lora(encoder: PreTrainedModel, options: AdapterArguments) -> Any:
    """Put LoRA matrices into the encoder, in place, and freeze its weights.

    Returns:
        the `peft.PeftModel` around the encoder; `merge_lora` takes it.

    Raises:
        InputError: if peft is not installed, or the encoder has no such module.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("--lora_r needs the package peft: pip install peft") from error
    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=2 * options.lora_r if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=options.lora_target_modules or "all-linear",
    )
    with as_input_error("--lora_target_modules"):
        return get_peft_model(encoder, config)


def merge_lora(lora: Any, trainer: Trainer, folder: Path, options: AdapterArguments) -> None:
    """Merge LoRA matrices into the weights, in place, so that the encoder is plain again.

    Args:
        lora: what `add_lora` returned, or None.
        folder: where --save_adapter first writes the matrices, as `adapter/`.
    """
    if lora is None:
        return
    if options.save_adapter and trainer.is_world_process_zero():
        with atomic_files(folder / "adapter") as temporary:  # False: the start is not read again
            lora.save_pretrained(temporary, save_embedding_layers=False)
    lora.merge_and_unload()


def load_checkpoint(
    path: str, architecture: ModelArguments, dropout: float | None, **hub_kwargs: Any
) -> tuple[PreTrainedModel, DocumentClassifier | None]:
    """Load an encoder, without the blocks above --drop_layers_above.

    Args:
        dropout: inside the encoder; None: the checkpoint's.
        hub_kwargs: `revision`, `trust_remote_code`.

    Returns:
        the encoder; the trained classifier around it, or None where the folder holds none.
    """
    previous, pooler = None, architecture.token_pooling == "pooler"
    with as_input_error(f"--model_name_or_path {path}", Exception):
        if is_document_classifier(path):
            previous, missing = load_classifier(path, dropout)
            encoder = require_pooler(previous.encoder, [], pooler)
        else:
            encoder, missing = load_encoder(path, pooler, dropout, **hub_kwargs)
    if missing:
        logger.warning("Not in %s, random: %s", path, some(missing))
    if architecture.drop_layers_above is not None:
        drop_blocks_above(encoder, architecture.drop_layers_above)
    return encoder, previous


def build_model(
    encoder: PreTrainedModel,
    previous: DocumentClassifier | None,
    architecture: ModelArguments,
    spec: LabelSpec,
    preprocessor: Preprocessor,
) -> tuple[DocumentClassifier, bool]:
    """Put a head on an encoder; a trained head is kept where labels, layers and poolings agree.

    Args:
        previous: the trained classifier around the encoder, or None.

    Returns:
        the classifier; whether its head is new.

    Raises:
        InputError: for --segment_pooling where a document is one window, and for layers that the
            encoder does not have.
    """
    truncation = preprocessor.windows.truncation
    if architecture.segment_pooling is not None and truncation != "hierarchical":
        raise InputError(f"--segment_pooling needs --truncation hierarchical, not {truncation}")
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        **resolve_architecture(architecture, encoder, previous),
        **preprocessor.config_fields,
        **spec.config_fields(),
    )
    model = DocumentClassifier(config, encoder)
    head = [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    new_head = previous is None or not same_head(previous.config, config)
    if new_head:
        logger.info("New, from random weights: %s", ", ".join(head))
    else:
        model.load_state_dict({name: previous.state_dict()[name] for name in head}, strict=False)
        logger.info("Head: kept")
    return model, new_head


def build_classifier(
    path: str, spec: LabelSpec, preprocessor: Preprocessor, args: Arguments, labels: list | None
) -> tuple[DocumentClassifier, Any]:
    """Load a checkpoint, put a head on it and prepare it for training.

    The bias of a new multi-label head is set to the label frequencies; then blocks are
    reinitialised, frozen, or given LoRA matrices, as the arguments say.

    Args:
        path: a hub name or folder.
        labels: of the training rows, encoded; None: the classifier is not trained.

    Returns:
        the classifier; what `add_lora` returned, or None.

    Raises:
        InputError: where the head would be new and is not to be trained.
    """
    dropout = args.regularisers.encoder_dropout
    encoder, previous = load_checkpoint(path, args.model, dropout, **args.checkpoint.hub_kwargs)
    check_vocabulary(preprocessor.tokenizer, encoder, path)
    model, new_head = build_model(encoder, previous, args.model, spec, preprocessor)
    if labels is None and new_head:
        raise InputError(
            f"--model_name_or_path {path}: its head was trained for other labels, layers, pooling "
            "or spans than these flags say; leave them out, or give --train_file"
        )
    if labels is None:
        return model, None
    if new_head:
        start_at_frequencies(model.head, labels, model.config.problem_type)
    with as_input_error():
        reinit_top_blocks(model.encoder, args.rates.reinit_layers)
        lora = add_lora(model.encoder, args.adapter) if args.adapter.lora_r else None
        freeze(model, args.rates.freeze)
    return model, lora


def suggest_rate(path: str, args: Arguments) -> None:
    """Log that the default learning rate is low for a small encoder.

    Measured with a hidden size of 384: docs/finetuning.md, "Learning rate".

    Args:
        path: the checkpoint, whose config tells the hidden size.
    """
    config = read_config(path, **args.checkpoint.hub_kwargs)
    hidden_size = config.get_text_config().hidden_size
    if hidden_size >= SMALL:
        return
    chosen = args.model.token_pooling or args.span.spans_column_name  # spans are not pooled
    logger.info(
        "Hidden size %d: the default --learning_rate %g is for encoders of BERT-base size; small "
        "ones learn more at 1e-4 to 5e-4, e.g. --learning_rate 3e-4%s",
        hidden_size,
        args.training.learning_rate,
        "" if chosen else " --token_pooling mean",
    )


def start_at_frequencies(head: nn.Linear, labels: list, problem_type: str) -> None:
    """Set the bias of a new multi-label head to the log odds of each label's frequency.

    From a bias of 0 the loss falls fastest by predicting no label for any text, and with many rare
    labels the encoder collapses: its features become the same for all texts.

    Args:
        labels: of the training rows [n, labels], 0 or 1.
        problem_type: as in the model's config; another than multi-label leaves the head as it is.
    """
    if problem_type != PROBLEM_TYPES["multi_label"]:
        return
    counts = torch.tensor(labels).sum(dim=0)
    frequencies = (counts + 0.5) / (len(labels) + 1)  # never 0 or 1
    head.bias.data.copy_(torch.logit(frequencies))


def resolve_architecture(
    architecture: ModelArguments, encoder: PreTrainedModel, previous: DocumentClassifier | None
) -> dict[str, Any]:
    """Resolve layers, poolings and dropout: flags, else the trained classifier's, else defaults.

    Raises:
        InputError: for layers that the encoder does not have, and for the pooler of other layers.
    """
    resolved = {
        "layers": "last",
        "layer_pooling": "concat",
        "token_pooling": "last" if encoder.config.model_type in DECODERS else "cls",
        "segment_pooling": "mean",
        "head_dropout": 0.1,
        "dropout_samples": 1,
        "ordinal_head": False,
        "segments_per_forward": None,
    }
    if previous is not None:
        resolved = {name: getattr(previous.config, name) for name in resolved}
    resolved |= {name: flag for name, flag in architecture.fields.items() if flag is not None}
    blocks = num_blocks(encoder.config)
    with as_input_error():
        resolved["layers"] = resolve_layers(resolved["layers"], blocks)
    if resolved["token_pooling"] == "pooler" and resolved["layers"] != [blocks]:
        raise InputError("--token_pooling pooler reads the last layer; leave --layers out")
    return resolved


def same_head(previous: DocumentClassifierConfig, now: DocumentClassifierConfig) -> bool:
    """Return whether a head of one config means the same under the other."""
    return all(getattr(previous, f) == getattr(now, f) for f in HEAD_FIELDS)
