"""Layers, tokens and segments -> one vector.

Named poolings are plain functions on tensors; those with parameters are modules. This file travels
with every saved classifier, like `modeling.py` and `windows.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def resolve_layers(layers: str | Sequence[int], num_blocks: int) -> list[int]:
    """Layer names -> numbers as in `hidden_states`: 0 = embeddings output, k = output of block k.

    Args:
        layers: "last", "first4", "last4", "all" (all blocks), or numbers ("1 6", "-1", [1, 6]).

    Raises:
        ValueError: for a name that is not known or a layer the encoder does not have.
    """
    named = {
        "last": [num_blocks],
        "first4": list(range(1, min(4, num_blocks) + 1)),
        "last4": list(range(max(1, num_blocks - 3), num_blocks + 1)),
        "all": list(range(1, num_blocks + 1)),
    }
    if isinstance(layers, str) and layers in named:
        return named[layers]
    try:
        numbers = [
            int(n)
            for n in (layers.replace(",", " ").split() if isinstance(layers, str) else layers)
        ]
    except ValueError:
        numbers = []
    resolved = [n + num_blocks + 1 if n < 0 else n for n in numbers]
    if (
        not resolved
        or not all(0 <= n <= num_blocks for n in resolved)
        or len(set(resolved)) < len(resolved)
    ):
        raise ValueError(
            f"--layers {layers!r} is not one of {', '.join(named)} or different numbers "
            f"from 0 to {num_blocks} (0 = embeddings, -1 = last)"
        )
    return resolved


class LayerMix(nn.Module):
    """Learned mix of layers: gamma * sum_k softmax(w)_k h_k (Peters et al. 2018, ELMo, eq. 1)."""

    def __init__(self, num_layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(num_layers))
        self.gamma = nn.Parameter(torch.ones(1))

    def forward(self, layers: list[Tensor]) -> Tensor:
        shares = self.weights.softmax(dim=0)
        return self.gamma * sum(share * layer for share, layer in zip(shares, layers, strict=True))


LAYER_POOLINGS = {  # list of [real, length, hidden] -> [real, length, features]
    "concat": lambda layers: torch.cat(layers, dim=-1),
    "mean": lambda layers: torch.stack(layers).mean(dim=0),
    "max": lambda layers: torch.stack(layers).amax(dim=0),
    "weighted": None,  # has parameters: LayerMix
}


class AttentionPooling(nn.Module):
    """Softmax attention of one learned query over items: score_i = v . tanh(W h_i + b)."""

    def __init__(self, features: int):
        super().__init__()
        self.project = nn.Linear(features, features)
        self.score = nn.Linear(features, 1, bias=False)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.project(items))).squeeze(-1)  # [n, items]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        shares = (
            scores.softmax(dim=-1) * mask
        )  # an all-absent row gives zeros, not a mean of padding
        return torch.einsum("ni,nif->nf", shares.to(items.dtype), items)


class BiLSTMPooling(nn.Module):
    """A bidirectional LSTM over the items, then attention over its states: what features of a
    frozen encoder are usually given to (Sun et al. 2019, BERT-Feat).

    Attributes:
        features: of the pooled vector: both directions together, even.
    """

    def __init__(self, features: int):
        super().__init__()
        self.features = 2 * (features // 2)
        self.lstm = nn.LSTM(features, features // 2, batch_first=True, bidirectional=True)
        self.attention = AttentionPooling(self.features)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        start = mask.int().argmax(dim=1, keepdim=True)  # padding on the left comes after, too
        places = torch.arange(mask.shape[1], device=mask.device)[None] + start
        places = places % mask.shape[1]  # [n, items]
        items = items.gather(1, places.unsqueeze(-1).expand_as(items))
        mask = mask.gather(1, places)
        packed = nn.utils.rnn.pack_padded_sequence(
            items, mask.sum(dim=1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1]
        )
        return self.attention(states, mask)


def first_item(items: Tensor, mask: Tensor) -> Tensor:
    """The first real item of each row; with padding on the left that is not column 0."""
    return items[torch.arange(len(items), device=items.device), mask.int().argmax(dim=1)]


def last_item(items: Tensor, mask: Tensor) -> Tensor:
    position = torch.arange(mask.shape[1], device=mask.device)
    return items[torch.arange(len(items), device=items.device), (position * mask).argmax(dim=1)]


def mean_items(items: Tensor, mask: Tensor) -> Tensor:
    """Mean over real items. Sums in float32: a half-precision sum over 512 tokens loses digits."""
    weights = mask.to(torch.float32)
    total = torch.einsum("ni,nif->nf", weights, items.to(torch.float32))
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1)).to(items.dtype)


def max_items(items: Tensor, mask: Tensor) -> Tensor:
    return items.masked_fill(~mask.unsqueeze(-1), torch.finfo(items.dtype).min).amax(dim=1)


TOKEN_POOLINGS = {  # ([real, length, features], mask [real, length]) -> [real, features]
    "cls": first_item,
    "mean": mean_items,
    "max": max_items,
    "last": last_item,
    "attention": None,  # has parameters: AttentionPooling
    "bilstm": None,  # has parameters: BiLSTMPooling
}
SEGMENT_POOLINGS = {  # ([documents, segments, features], mask) -> [documents, features]
    "mean": mean_items,
    "max": max_items,
    "attention": None,
}
