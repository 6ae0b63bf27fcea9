"""The layers of an encoder: where each parameter stands, and what it learns.

Rooms: 0 = embeddings, k = block k of L, HEAD = everything above the blocks. Rates, freezing,
gradual unfreezing, dropping and re-initialising all go by them.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd
from torch import nn
from transformers import PreTrainedModel

from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier, num_blocks

HEAD = 10**6  # the layer_id above all blocks

# Modules of encoders that stand outside the list of blocks, by the name of the attribute.
LAYER_IDS = {
    **dict.fromkeys(("embeddings", "embeddings_project", "embedding_hidden_mapping_in"), 0),
    **dict.fromkeys(("embed_tokens", "wte", "wpe", "rel_embeddings", "relative_attention_bias"), 0),
    "LayerNorm": 0,  # DeBERTa: of the relative position embeddings
    "conv": 1,  # DeBERTa-v2: joins the output of block 1
    **dict.fromkeys(("final_norm", "norm", "ln_f", "final_layer_norm", "pooler"), HEAD),
    **dict.fromkeys(("head", "layer_mix", "token_attention", "segment_attention"), HEAD),
}


# ---------------------------------------------------------------- structure


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


def shares_blocks(encoder: PreTrainedModel) -> bool:
    """Whether several layers run the same block (ALBERT)."""
    return len(find_blocks(encoder)[1]) < num_blocks(encoder.config)


def layer_id_of(name: str, model: DocumentClassifier) -> int:
    """Where a parameter stands: 0 = embeddings, k = block k, HEAD = above the blocks.

    A block that several layers share counts as the highest of them.

    Raises:
        ValueError: for a parameter that is in no known place; nothing gets a rate by accident.
    """
    parts = name.split(".")
    if parts[0] == "tasks":  # heads of a multi-task model
        return HEAD
    if parts[0] == "encoder":
        prefix, blocks = find_blocks(model.encoder)
        inside = f"encoder.{prefix}."
        if name.startswith(inside):
            index = int(name.removeprefix(inside).split(".")[0])
            return (index + 1) * num_blocks(model.encoder.config) // len(blocks)
        parts = parts[1:]
    for part in parts:
        if part in LAYER_IDS:
            return LAYER_IDS[part]
    raise ValueError(
        f"parameter {name} is in no known place; add its module to LAYER_IDS in layers.py"
    )


def layer_ids_of(encoder: PreTrainedModel) -> dict[str, int]:
    """Where each parameter of an encoder stands, by its name."""
    around = SimpleNamespace(encoder=encoder)
    return {name: layer_id_of(f"encoder.{name}", around) for name, _ in encoder.named_parameters()}


def drop_blocks_above(encoder: PreTrainedModel, top: int) -> PreTrainedModel:
    """Take off the blocks above `top`, in place, so that they cost nothing.

    What stands after the blocks (a final norm) stays, and acts on block `top`.

    Raises:
        InputError: if the encoder has fewer blocks.
    """
    config = encoder.config.get_text_config()
    blocks = num_blocks(encoder.config)
    if not 1 <= top <= blocks:
        raise InputError(f"--drop_layers_above {top}: {config.model_type} has {blocks} blocks")
    if not shares_blocks(encoder):
        del find_blocks(encoder)[1][top:]
    for name, value in config.to_dict().items():  # a kind of attention for each layer, say
        if isinstance(value, list) and len(value) == blocks:
            setattr(config, name, value[:top])
    config.num_hidden_layers = top
    return encoder


def reinit_top_blocks(encoder: PreTrainedModel, count: int) -> None:
    """Give the top blocks new random weights (Zhang et al. 2021, arXiv 2006.05987).

    The pooler, if there is one, is made new as well: it was trained on what these blocks gave.

    Raises:
        InputError: for more blocks than there are, or shared ones.
    """
    blocks = num_blocks(encoder.config)
    if shares_blocks(encoder) or count > blocks:
        reason = "shares its blocks" if shares_blocks(encoder) else f"has {blocks} blocks"
        raise InputError(f"--reinit_layers {count}: {encoder.config.model_type} {reason}")
    new = [*find_blocks(encoder)[1][blocks - count :]]
    if count and getattr(encoder, "pooler", None) is not None:
        new.append(encoder.pooler)
    for block in new:
        for part in (*block.modules(), *block.parameters()):
            part._is_hf_initialized = False  # else it would be left as it was loaded
    for module in (m for block in new for m in block.modules()):
        encoder._init_weights(module)  # some initialise their children's weights


# ---------------------------------------------------------------- what is trained


def freeze(model: DocumentClassifier, what: str) -> None:
    """Freeze embeddings, the encoder, or embeddings and N blocks; and blocks that nothing reads.

    A block above the highest layer in use gets no gradient: frozen, it is left out of the optimizer
    and does not stall processes that wait for its gradient.
    """
    blocks, top = num_blocks(model.encoder.config), max(model.config.layers)
    layer_ids = {name: layer_id_of(name, model) for name, _ in model.named_parameters()}
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
    """The lowest layer_id that learns under gradual unfreezing (Howard & Ruder 2018, section 3.3).

    At first the head alone, and every `epochs_a_block` one block more from the top; embeddings
    last.
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
    """The learning rate of each layer_id (Sun et al. 2019, eq. 1: eta^(k-1) = xi * eta^k).

    Block k of L learns at learning_rate * decay^(L - k), embeddings at learning_rate * decay^L, all
    above the blocks at learning_rate.

    Args:
        head, embedding: take the place of what the formula gives.
        explicit: the rates of blocks 1 to L in place of the formula; embeddings then learn like
            block 1.

    Raises:
        InputError: for another number of rates than blocks.
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
    """Optimizer groups by layer_id.

    Args:
        rates: of each layer_id, see `layer_rates`.
        decayed: names of the parameters that get `weight_decay`; the others get none.

    Returns:
        groups from the embeddings to the head, each with name, layer_id, params, lr and
        weight_decay. Every trainable parameter is in exactly one.

    Raises:
        ValueError: for a parameter in no known place.
    """
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer_id, decays = (
            layer_id_of(name, model),
            name in decayed,
        )  # every name is checked, frozen or not
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
