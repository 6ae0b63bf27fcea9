"""Which architectures work in all three scripts, and why the others do not.

The scripts ask `check_supported` before they tokenize; tests/models/test_architectures.py walks
through every masked LM that transformers maps, and writes the table of docs/architectures.md.
"""

import inspect
from typing import Any

from transformers import AutoModel, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from bertchain.errors import InputError

DECODERS = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} - {*MODEL_FOR_MASKED_LM_MAPPING_NAMES}
ENCODERS = "an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT"
LONG = "Longformer, BigBird or ModernBERT"

REFUSED = {  # model type -> why, and what to use
    "fnet": ("it has no attention mask, so padding changes what a text gives", ENCODERS),
    "yoso": ("its attention reads padding, so padding changes what a text gives", LONG),
    "mra": ("its attention gives zeros unless a CUDA kernel was compiled", LONG),
    "nystromformer": ("it takes texts of one fixed length alone", LONG),
    "reformer": ("it takes texts of one fixed length alone", LONG),
    "funnel": ("its blocks shorten the text, so layers have no common tokens", ENCODERS),
    "perceiver": ("its blocks hold latents, not the tokens of the text", ENCODERS),
    "roc_bert": ("it reads shape and sound of each character too", "bert-base-chinese"),
    "layoutlm": ("it reads where words stand on a page too", ENCODERS),
    "tapas": ("it reads tables", ENCODERS),
    "modernvbert": ("it reads images too", "ModernBERT"),
    "ultravbert": ("it reads images too", ENCODERS),
    "neomme": ("it reads images too", ENCODERS),
    "xlnet": ("it is pretrained by permutation, not by masks", ENCODERS),
}


def reason_against(config: PreTrainedConfig) -> tuple[str, str] | None:
    """Find why an architecture is not supported, and what to use; None where it is."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder", f"{ENCODERS}, or a decoder"
    if config.model_type == "xmod" and config.default_language is None:
        return "its config.json sets no default_language", "one of its languages there"
    return REFUSED.get(config.model_type)


def check_supported(config: PreTrainedConfig, path: Any) -> None:
    """Check that all three scripts work with an architecture.

    Args:
        config: of the encoder.
        path: where it came from, for the message.

    Raises:
        InputError: if they do not.
    """
    found = reason_against(config)
    if found is not None:
        reason, instead = found
        raise InputError(
            f"--model_name_or_path {path}: {config.model_type} is not supported: {reason}; "
            f"use {instead}"
        )


def settle(config: PreTrainedConfig) -> PreTrainedConfig:
    """Set what gives right values, in place; most architectures need nothing.

    BigBird's sparse attention starts at some length of the longest text of a batch, so the same
    text would give other values beside a longer one: here its attention is full.
    """
    if config.model_type == "big_bird":
        config.attention_type = "original_full"
    return config


def count_token_types(config: PreTrainedConfig) -> float:
    """Count the token types that an encoder takes: 0 if none, inf for code that is not known."""
    classes = AutoModel._model_mapping
    if type(config) not in classes:
        return float("inf")
    found = classes[type(config)]
    found = found[0] if isinstance(found, tuple) else found
    if "token_type_ids" not in inspect.signature(found.forward).parameters:
        return 0
    return getattr(config.get_text_config(), "type_vocab_size", 0)  # GPT-2's would be tokens
