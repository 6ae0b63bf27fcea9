"""Poolings of layers, tokens and windows to one vector.

Poolings without parameters are plain functions on tensors, by name; the others are modules. This
file travels with every saved classifier, like `modeling.py` and `windows.py`.
"""

import torch
from torch import Tensor, nn


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
    "weighted": None,  # with parameters: LayerMix
}


class AttentionPooling(nn.Module):
    """Attention of one learned query over items, softmax of v . tanh(W h_i + b).

    Items are tokens or windows [n, items, features]; the result is [n, features].
    """

    def __init__(self, features: int):
        super().__init__()
        self.project = nn.Linear(features, features)
        self.score = nn.Linear(features, 1, bias=False)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.project(items))).squeeze(-1)  # [n, items]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        shares = scores.softmax(dim=-1) * mask  # a row without items gives 0, no mean of padding
        return torch.einsum("ni,nif->nf", shares.to(items.dtype), items)


class BiLSTMPooling(nn.Module):
    """Attention over the states of a bidirectional LSTM over the items.

    It usually follows a frozen encoder (BERT-Feat in Sun et al. 2019).

    Attributes:
        features: length of the pooled vector, both directions together: an even number.
    """

    def __init__(self, features: int):
        super().__init__()
        self.features = 2 * (features // 2)
        self.lstm = nn.LSTM(features, features // 2, batch_first=True, bidirectional=True)
        self.attention = AttentionPooling(self.features)

    def forward(self, items: Tensor, mask: Tensor) -> Tensor:
        start = mask.int().argmax(
            dim=1, keepdim=True
        )  # turned, so that padding on the left stands after
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


def pick(items: Tensor, places: Tensor) -> Tensor:
    """Pick one item of each row: [n, items, features] and places [n] -> [n, features].

    Unlike indexing, its backward pass need not sort places to find those that occur twice.
    """
    rows = torch.arange(items.shape[0], device=items.device) * items.shape[1]
    return items.flatten(0, 1).index_select(0, rows + places)


def first_item(items: Tensor, mask: Tensor) -> Tensor:
    """First real item of each row; with padding on the left that is not column 0."""
    return pick(items, mask.int().argmax(dim=1))


def last_item(items: Tensor, mask: Tensor) -> Tensor:
    """Last real item of each row."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return pick(items, (position * mask).argmax(dim=1))


def mean_items(items: Tensor, mask: Tensor) -> Tensor:
    """Mean over real items, summed in float32: in half precision 512 tokens would lose digits."""
    weights = mask.to(torch.float32)
    total = torch.einsum("ni,nif->nf", weights, items.to(torch.float32))
    return (total / weights.sum(dim=1, keepdim=True).clamp(min=1)).to(items.dtype)


def max_items(items: Tensor, mask: Tensor) -> Tensor:
    """Maximum of each feature over real items."""
    return items.masked_fill(~mask.unsqueeze(-1), torch.finfo(items.dtype).min).amax(dim=1)


TOKEN_POOLINGS = {  # ([real, length, features], mask [real, length]) -> [real, features]
    "cls": first_item,
    "mean": mean_items,
    "max": max_items,
    "last": last_item,
    "attention": None,  # with parameters: AttentionPooling
    "bilstm": None,  # with parameters: BiLSTMPooling
}
WINDOW_POOLINGS = {  # ([documents, windows, features], mask) -> [documents, features]
    "mean": mean_items,
    "max": max_items,
    "attention": None,
}
