"""Encoders: the layers of a forward pass, and what some architectures need for right values.

Padding must change nothing, whatever the architecture: a text alone and in a batch give the same.
This file travels with every saved classifier, like `modeling.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from .pooling import pick

POOLER_CALLED = ("squeezebert",)  # model types that call their pooler even if there is none
GATHERED_EARLY = (  # model types whose last block may run on some tokens alone, see below
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "electra",
    "ernie",
    "roberta",
    "xlm-roberta",
)


def strip_encoder(encoder: PreTrainedModel, keep_pooler: bool = False) -> PreTrainedModel:
    """Remove what is not used, in place: a pooler, which would get no gradient, and the cache.

    And see to it that padding does not change what tokens beside it become.

    Raises:
        ValueError: for an encoder-decoder.
    """
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{encoder.config.model_type} is an encoder-decoder; "
            "give an encoder (BERT, RoBERTa ...) or a decoder"
        )
    if getattr(encoder, "pooler", None) is not None and not keep_pooler:
        encoder.pooler = nn.Identity() if encoder.config.model_type in POOLER_CALLED else None
    if getattr(encoder.config, "use_cache", False):
        encoder.config.use_cache = False
    keep_padding_out(encoder)
    return encoder


def num_blocks(config: PreTrainedConfig) -> int:
    """Number of blocks; layers are numbered from 0 (embeddings) to it."""
    return config.get_text_config().num_hidden_layers


def encoder_inputs(
    encoder: PreTrainedModel, ids: Tensor, mask: Tensor, types: Tensor | None
) -> dict[str, Tensor]:
    """Name the inputs of an encoder, all [windows, length].

    In Longformer the first token of each window attends to all others, and they to it, as in its
    own classifiers: else [CLS] would see but the text beside it.
    """
    inputs = {"input_ids": ids, "attention_mask": mask}
    if types is not None:
        inputs["token_type_ids"] = types
    if encoder.config.model_type == "longformer":
        rows = torch.arange(mask.shape[0], device=mask.device)
        everywhere = torch.zeros_like(mask)
        everywhere[rows, mask.int().argmax(dim=1)] = 1
        inputs["global_attention_mask"] = everywhere
    return inputs


def encode_layers(
    encoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None,
    layers: list[int],
) -> list[Tensor]:
    """Run the encoder on windows and return some layers.

    Args:
        input_ids, attention_mask, token_type_ids: [windows, length].
        layers: numbers, 0 = embeddings output, k = output of block k.

    Returns:
        [windows, length, hidden] for each of the layers.
    """
    inputs = encoder_inputs(encoder, input_ids, attention_mask, token_type_ids)
    if layers == [num_blocks(encoder.config)]:  # keeps no other layer in memory
        return [encoder(**inputs).last_hidden_state]
    outputs = encoder(**inputs, output_hidden_states=True)
    # transformers 5.0 lists ModernBERT's last block before the final norm, later versions after it
    states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    return [states[k] for k in layers]


def is_compiled(block: nn.Module) -> bool:
    """Return whether a block runs compiled: a hook that comes and goes would compile it anew."""
    alone = getattr(block, "_compiled_call_impl", None) is not None
    return alone or torch.compiler.is_compiling()


@contextmanager
def first_tokens_only(encoder: PreTrainedModel, mask: Tensor) -> Iterator[bool]:
    """Make the encoder's last block return the first real token of each window alone.

    After the attention of the last block nothing looks at other tokens, so where only [CLS] is read
    its feed-forward half need not run on them: a tenth of the work of six blocks, at the same
    result.

    Args:
        mask: [windows, length].

    Yields:
        whether the block does so. It does not if it is built otherwise, under activation
        checkpointing (which runs blocks a second time) and under compilation.
    """
    block = last_bert_block(encoder)
    if block is None or is_compiled(block) or block.gradient_checkpointing:
        yield False
        return
    first = mask.int().argmax(dim=1)  # [windows]

    def gather(module: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
        laid = getattr(encoder, "laid", None)  # the windows end to end, see padding_free.py
        if laid is None:
            return pick(outputs[0], first).unsqueeze(1), *outputs[1:]  # [windows, 1, hidden]
        laid.gathered = True
        return outputs[0][0, laid.starts[:-1].long()].unsqueeze(1), *outputs[1:]

    handle = block.attention.register_forward_hook(gather)
    try:
        yield True
    finally:
        handle.remove()


def last_bert_block(base: PreTrainedModel) -> nn.Module | None:
    """Last block of an encoder that after its attention treats each token for itself; else None.

    That is so for blocks built like BERT's: `attention` with its own residual and norm, then
    `intermediate` and `output`.
    """
    blocks = getattr(getattr(base, "encoder", None), "layer", None)
    if base.config.model_type not in GATHERED_EARLY or not isinstance(blocks, nn.ModuleList):
        return None
    if len(blocks) != base.config.num_hidden_layers:
        return None
    last = blocks[-1]
    names = ("attention.output", "intermediate", "output", "gradient_checkpointing")
    like_bert = all(_has_module(last, name) for name in names) and not hasattr(last, "LayerNorm")
    return last if like_bert else None


def _has_module(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


# ---------------------------------------------------------------- padding


def keep_padding_out(model: PreTrainedModel) -> None:
    """Keep padding from changing the tokens beside it, in place; most architectures need nothing.

    ConvBERT's convolutions and MobileBERT's embeddings, which read three tokens at once, look at
    the padding after a text. Here they find zeros there, as at the end of a row without padding.

    Args:
        model: an encoder, or a masked LM around it.
    """
    if model.config.model_type == "mobilebert":
        embeddings = model.get_input_embeddings()
        if embeddings.padding_idx is not None:
            embeddings.weight.data[embeddings.padding_idx] = 0.0
    if model.config.model_type != "convbert":
        return
    for module in model.modules():
        if hasattr(module, "key_conv_attn_layer") and not hasattr(module, "hides_padding"):
            module.hides_padding = True
            module.register_forward_pre_hook(_hide_padded_inputs, with_kwargs=True)
            module.conv_out_layer.register_forward_hook(_hide_padded_outputs)


def _hide_padded_inputs(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Set the states of padding to 0 before the attention and convolution of a ConvBERT block."""
    states, attention, *others = args
    real = None
    if attention is not None:  # [windows, 1, 1 or length, length], 0 or True where a token is
        seen = attention[:, 0, -1] if attention.dtype == torch.bool else attention[:, 0, -1] == 0
        real = seen.unsqueeze(-1)  # [windows, length, 1]
        states = states * real
    module.conv_out_layer.real = real
    return (states, attention, *others), kwargs


def _hide_padded_outputs(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output if module.real is None else output * module.real
