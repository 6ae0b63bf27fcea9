"""What training starts from: an encoder or an earlier classifier, its head kept or new."""

import logging
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from adapters import add_lora
from command_line import InputError, as_input_error
from labels import LabelSpec
from layers import drop_blocks_above, freeze, reinit_top_blocks
from method_arguments import AdapterArguments, ModelArguments, RateArguments
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
from pooling import resolve_layers

logger = logging.getLogger(__name__)


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


DECODERS = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*MODEL_FOR_MASKED_LM_MAPPING_NAMES}


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
