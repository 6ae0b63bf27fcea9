"""Layers of an encoder: the layer id of each parameter, and what goes by it.

Layer ids: 0 = embeddings, k = block k of L, HEAD = everything above the blocks. Learning rates,
freezing, gradual unfreezing, dropping and re-initialising blocks go by them.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd
from torch import nn
from transformers import PreTrainedModel

from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier, num_blocks
from bertchain.models.support import ENCODERS

HEAD = 10**6  # the layer id above all blocks

LAYER_IDS = {  # of modules outside the list of blocks, by the name of the attribute
    **dict.fromkeys(("embeddings", "embeddings_project", "embedding_hidden_mapping_in"), 0),
    **dict.fromkeys(("embed_tokens", "wte", "wpe", "rel_embeddings", "relative_attention_bias"), 0),
    **dict.fromkeys(("embed_positions", "position_embeddings", "lang_embeddings"), 0),
    **dict.fromkeys(("layer_norm_emb", "entity_embeddings"), 0),  # XLM, LUKE
    "conv": 1,  # DeBERTa-v2's, added to the output of block 1
    **dict.fromkeys(("final_norm", "norm", "ln_f", "final_layer_norm", "pooler"), HEAD),
    **dict.fromkeys(("ln", "emb_layer_norm_after", "contact_head"), HEAD),  # Megatron-BERT, ESM
    **dict.fromkeys(("head", "layer_mix", "token_attention", "segment_attention"), HEAD),
}


# ---------------------------------------------------------------- structure


def resolve_layers(layers: str | Sequence[int], blocks: int) -> list[int]:
    """Resolve names of layers to numbers: 0 = embeddings output, k = output of block k.

    Args:
        layers: "last", "first4", "last4", "all" (all blocks), or numbers ("1 6", "-1", [1, 6]).

    Raises:
        ValueError: for a name that is not known or a layer the encoder does not have.
    """
    named = {
        "last": [blocks],
        "first4": list(range(1, min(4, blocks) + 1)),
        "last4": list(range(max(1, blocks - 3), blocks + 1)),
        "all": list(range(1, blocks + 1)),
    }
    if isinstance(layers, str) and layers in named:
        return named[layers]
    given = layers.replace(",", " ").split() if isinstance(layers, str) else layers
    try:
        numbers = [int(n) for n in given]
    except ValueError:
        numbers = []
    resolved = [n + blocks + 1 if n < 0 else n for n in numbers]
    known = all(0 <= n <= blocks for n in resolved)
    if not resolved or not known or len(set(resolved)) < len(resolved):
        raise ValueError(
            f"--layers {layers!r} is not one of {', '.join(named)} or different numbers "
            f"from 0 to {blocks} (0 = embeddings, -1 = last)"
        )
    return resolved


def find_blocks(encoder: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Find the encoder's ModuleList of num_hidden_layers blocks, or of ALBERT's shared groups.

    Returns:
        its name and the list; of several of the same length the one with the most parameters.

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


def block_lists(encoder: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Find every list that holds parts of the blocks, by name: XLM has one for each part."""
    main, blocks = find_blocks(encoder)
    around, dot, _ = main.rpartition(".")
    parent = encoder.get_submodule(around)
    return {
        f"{around}{dot}{name}": part
        for name, part in parent.named_children()
        if isinstance(part, nn.ModuleList) and len(part) == len(blocks)
    }


def shares_blocks(encoder: PreTrainedModel) -> bool:
    """Return whether several layers run the same block (ALBERT)."""
    return len(find_blocks(encoder)[1]) < num_blocks(encoder.config)


def layer_id_of(
    name: str, model: DocumentClassifier, lists: dict[str, nn.ModuleList] | None = None
) -> int:
    """Layer id of a parameter of the classifier, by its name.

    A block that several layers share has the id of the highest of them.

    Args:
        lists: of `block_lists`, where many parameters are asked for; None: they are looked up.

    Raises:
        InputError: for a parameter of an unknown module: none gets a rate by accident.
    """
    parts = name.split(".")
    if parts[0] == "tasks":  # heads of a multi-task model
        return HEAD
    if parts[0] == "encoder":
        lists = block_lists(model.encoder) if lists is None else lists
        for prefix, blocks in lists.items():
            inside = f"encoder.{prefix}."
            if name.startswith(inside):
                index = int(name.removeprefix(inside).split(".")[0])
                return (index + 1) * num_blocks(model.encoder.config) // len(blocks)
        parts = parts[1:]
    deberta = model.encoder.config.model_type.startswith("deberta")
    for part in parts:
        if part in LAYER_IDS:
            return LAYER_IDS[part]
        if part == "LayerNorm":  # DeBERTa's, of relative positions; else after the blocks
            return 0 if deberta else HEAD
    raise InputError(
        f"{model.encoder.config.model_type} is not supported: its parameter {name} is in no known "
        f"place (LAYER_IDS in bertchain/models/layers.py); use {ENCODERS}"
    )


def layer_ids_of(encoder: PreTrainedModel) -> dict[str, int]:
    """Layer id of each parameter of an encoder alone, by its name."""
    around, lists = SimpleNamespace(encoder=encoder), block_lists(encoder)
    return {
        name: layer_id_of(f"encoder.{name}", around, lists)
        for name, _ in encoder.named_parameters()
    }


def drop_blocks_above(encoder: PreTrainedModel, top: int) -> PreTrainedModel:
    """Remove the blocks above `top`, in place, so that they cost nothing.

    What comes after the blocks (a final norm) stays, and acts on the output of block `top`.

    Raises:
        InputError: if the encoder has no block `top`.
    """
    config = encoder.config.get_text_config()
    blocks = num_blocks(encoder.config)
    if not 1 <= top <= blocks:
        raise InputError(f"--drop_layers_above {top}: {config.model_type} has {blocks} blocks")
    if not shares_blocks(encoder):
        for parts in block_lists(encoder).values():
            del parts[top:]
    if hasattr(encoder, "n_layers"):  # XLM counts by itself
        encoder.n_layers = top
    for name, value in config.to_dict().items():  # a kind of attention for each layer, say
        if isinstance(value, list) and len(value) == blocks:
            setattr(config, name, value[:top])
    config.num_hidden_layers = top
    return encoder


def reinit_top_blocks(encoder: PreTrainedModel, count: int) -> None:
    """Give the top blocks new random weights, in place (Zhang et al. 2021, arXiv 2006.05987).

    So too the pooler, if there is one: it was trained on the output of these blocks.

    Raises:
        InputError: for more blocks than there are, or shared ones.
    """
    blocks = num_blocks(encoder.config)
    if count == 0:
        return
    if shares_blocks(encoder) or count > blocks:
        reason = "shares its blocks" if shares_blocks(encoder) else f"has {blocks} blocks"
        raise InputError(f"--reinit_layers {count}: {encoder.config.model_type} {reason}")
    new = [part for parts in block_lists(encoder).values() for part in parts[blocks - count :]]
    if getattr(encoder, "pooler", None) is not None:
        new.append(encoder.pooler)
    for block in new:
        for part in (*block.modules(), *block.parameters()):
            part._is_hf_initialized = False  # else it would stay as it was loaded
    for module in (m for block in new for m in block.modules()):
        encoder._init_weights(module)  # some initialise their children's weights


# ---------------------------------------------------------------- freezing


def freeze(model: DocumentClassifier, what: str) -> None:
    """Freeze the lower layers, and blocks above the highest layer that is read.

    Those blocks get no gradient: frozen, they are left out of the optimizer, and other processes do
    not wait for their gradients.

    Args:
        what: "none", "embeddings", "encoder", or a number N: embeddings and the lowest N blocks.

    Raises:
        InputError: for more blocks than there are, or shared ones.
    """
    blocks, top = num_blocks(model.encoder.config), max(model.config.layers)
    lists = block_lists(model.encoder)
    layer_ids = {name: layer_id_of(name, model, lists) for name, _ in model.named_parameters()}
    shared = shares_blocks(model.encoder)
    lowest = {"none": -1, "embeddings": 0, "encoder": blocks}.get(what)
    if lowest is None:
        lowest = int(what)
        if shared or lowest > blocks:
            reason = "shares its blocks" if shared else f"has {blocks} blocks"
            raise InputError(f"--freeze {what}: {model.encoder.config.model_type} {reason}")
    for name, parameter in model.named_parameters():
        layer_id = layer_ids[name]
        above = name.startswith("encoder.") and layer_id == HEAD  # a final norm
        frozen = layer_id <= lowest or (above and (what == "encoder" or top < blocks))
        unused = not shared and top < layer_id < HEAD
        parameter.requires_grad_(parameter.requires_grad and not (frozen or unused))


def unfrozen_from(epoch: float, epochs_a_block: float, blocks: int) -> int:
    """Lowest layer id that learns under gradual unfreezing (Howard & Ruder 2018, section 3.3).

    First the head alone learns, then every `epochs_a_block` epochs one block more from the top, and
    last the embeddings.
    """
    return max(0, blocks + 1 - int(epoch / epochs_a_block + 1e-9))


# ---------------------------------------------------------------- rates


def layer_rates(
    blocks: int,
    learning_rate: float,
    decay: float = 1.0,
    head: float | None = None,
    embedding: float | None = None,
    explicit: Sequence[float] = (),
) -> dict[int, float]:
    """Learning rate of each layer id (Sun et al. 2019, eq. 1: eta^(k-1) = xi * eta^k).

    Block k of L learns at learning_rate * decay^(L - k), embeddings at learning_rate * decay^L, all
    above the blocks at learning_rate.

    Args:
        blocks: L.
        head, embedding: rates in place of the formula's.
        explicit: rates of blocks 1 to L in place of the formula's; embeddings then learn like
            block 1.

    Raises:
        InputError: if there are not as many explicit rates as blocks.
    """
    if explicit and len(explicit) != blocks:
        raise InputError(
            f"--layer_learning_rates needs one rate for each of {blocks} blocks, lowest first; got "
            f"{len(explicit)}"
        )
    rates = {
        layer_id: learning_rate * decay ** (blocks - layer_id) for layer_id in range(blocks + 1)
    }
    if explicit:
        rates = {0: explicit[0], **dict(enumerate(explicit, 1))}
    rates[HEAD] = learning_rate if head is None else head
    if embedding is not None:
        rates[0] = embedding
    return rates


def layer_groups(
    model: DocumentClassifier, rates: dict[int, float], weight_decay: float, decayed: set[str]
) -> list[dict[str, Any]]:
    """Build optimizer groups by layer id.

    Args:
        rates: of each layer id, see `layer_rates`.
        decayed: names of the parameters that get `weight_decay`; the others get none.

    Returns:
        groups from the embeddings to the head, each with name, layer_id, params, lr and
        weight_decay. Every trainable parameter is in exactly one.

    Raises:
        ValueError: for a parameter of an unknown module, frozen or not.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    lists = block_lists(model.encoder)
    for name, parameter in model.named_parameters():
        layer_id = layer_id_of(name, model, lists)  # also checks the names of frozen ones
        decays = name in decayed
        if not parameter.requires_grad:
            continue
        if (layer_id, decays) not in groups:
            place = {0: "embeddings", HEAD: "head"}.get(layer_id, f"block {layer_id}")
            groups[layer_id, decays] = {
                "name": place if decays else f"{place}, no decay",
                "layer_id": layer_id,
                "params": [],
                "lr": rates[layer_id],
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[layer_id, decays]["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def group_table(groups: list[dict[str, Any]]) -> pd.DataFrame:
    """Table of the optimizer groups: what is trained, at which rate."""
    rows = [
        {
            "group": group["name"],
            "tensors": len(group["params"]),
            "parameters": sum(p.numel() for p in group["params"]),
            "learning_rate": group["lr"],
            "weight_decay": group["weight_decay"],
        }
        for group in groups
    ]
    return pd.DataFrame(rows)
