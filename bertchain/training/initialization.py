"""LoRA in the encoder, through `peft`; the classifier around it stays what it is."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from bertchain.arguments.finetuning import AdapterArguments, ModelArguments, RateArguments
from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError, as_input_error
from bertchain.models.layers import drop_blocks_above, freeze, reinit_top_blocks
from bertchain.models.loading import (
    DECODERS,
    is_document_classifier,
    load_classifier,
    load_encoder,
    require_pooler,
)
from bertchain.models.modeling import (
    PROBLEM_TYPES,
    DocumentClassifier,
    DocumentClassifierConfig,
    num_blocks,
)
from bertchain.models.pooling import resolve_layers

logger = logging.getLogger(__name__)


def add_lora(encoder: PreTrainedModel, options: AdapterArguments) -> Any:
    """Put LoRA matrices into the encoder, in place, and freeze the rest of it.

    Returns:
        the `peft.PeftModel` around the encoder, to merge or save the adapter with.

    Raises:
        InputError: if peft is not installed, or there is no such module.
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


def merge_lora(lora: Any, trainer: Trainer, folder: Path | None) -> None:
    """Add the matrices to the weights they stand beside, so that the encoder is plain again.

    Args:
        folder: where they are written first, as `adapter/`; None: nowhere.
    """
    if folder is not None and trainer.is_world_process_zero():
        lora.save_pretrained(folder / "adapter")
    lora.merge_and_unload()


def load_start(
    path: str, architecture: ModelArguments, dropout: float | None, **hub: Any
) -> tuple[PreTrainedModel, DocumentClassifier | None]:
    """The encoder to start from, its upper blocks dropped as asked; and the trained classifier
    around it, where the folder holds one.

    Args:
        hub: `revision`, `trust_remote_code`.
    """
    before, pooler = None, architecture.token_pooling == "pooler"
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            before, missing = load_classifier(path, dropout)
            encoder = require_pooler(before.encoder, [], pooler)
        else:
            encoder, missing = load_encoder(path, pooler, dropout, **hub)
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

    Raises:
        InputError: for a pooling over windows where there is one window.
    """
    truncation = shape["windows"]["truncation"]
    if architecture.segment_pooling is not None and truncation != "hierarchical":
        raise InputError(f"--segment_pooling needs --truncation hierarchical, not {truncation}")
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


def same_head(before: DocumentClassifierConfig, now: DocumentClassifierConfig) -> bool:
    fields = (
        "problem_type",
        "id2label",
        "layers",
        "layer_pooling",
        "token_pooling",
        "segment_pooling",
        "slots",
    )
    return all(getattr(before, f) == getattr(now, f) for f in fields)
