"""Rows of further pretraining: documents -> windows, perhaps packed -> masked batches.

A row is one window of a document, or several short windows packed into one row without seeing
each other. No window holds special tokens but its own at both ends.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertchain.arguments.pretraining import MaskArguments, PackingArguments
from bertchain.data.tables import fingerprint
from bertchain.data.tokenization import resolve_windows
from bertchain.data.words import SEGMENTERS, Segmenter
from bertchain.errors import InputError
from bertchain.models.loading import first_position
from bertchain.models.windows import (
    IDS_ALONE,
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_windows,
)
from bertchain.pretraining.masking import IGNORE, SPECIAL, Masker, word_numbers

# ---------------------------------------------------------------- documents -> rows


@dataclass(frozen=True)
class RowMaker:
    """Cuts documents into rows: input_ids, word_ids, (token_type_ids,) length, corpus.

    word_ids hold the number of each token's word in the document, or `masking.SPECIAL`.

    Attributes:
        windows: how documents are cut.
        special: the special tokens of a window.
        segment: how words are found; None: each token for itself.
    """

    tokenizer: PreTrainedTokenizerBase
    windows: WindowSpec
    special: SpecialTokens
    segment: Segmenter | None = None

    @classmethod
    def for_checkpoint(
        cls,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        packing: PackingArguments,
        mask: MaskArguments,
        hub_kwargs: dict[str, Any],
    ) -> "RowMaker":
        """Cut windows without overlap, as long as the model takes; find words if masks need them.

        Args:
            path: whose config tells how many positions there are.
            hub_kwargs: for `from_pretrained`: revision, trust_remote_code.
        """
        given: dict[str, Any] = {"truncation": "hierarchical"}
        if packing.max_seq_length is not None:
            given["max_seq_length"] = packing.max_seq_length
        windows, special = resolve_windows(given, path, tokenizer, **hub_kwargs)
        segment = None if mask.mask_unit == "token" else SEGMENTERS[mask.word_segmenter]
        return cls(tokenizer, windows, special, segment)

    def __call__(self, documents: dict[str, list]) -> dict[str, list]:
        """Columns of documents -> columns of rows, in order; for `Dataset.map(batched=True)`."""
        first = self._tokenize(documents["text"])
        pairs = "text_pair" in documents
        second = self._tokenize(documents["text_pair"]) if pairs else [None] * len(first)
        typed = pairs and self.special.pair_types is not None
        names = ["input_ids", "word_ids", "token_type_ids", "length", "corpus"]
        rows: dict[str, list] = {n: [] for n in names if typed or n != "token_type_ids"}
        specials = {*self.tokenizer.all_special_ids}
        for one, two, corpus in zip(first, second, documents["corpus"], strict=True):
            windows, types = self._cut(one[0], two and two[0], self.special)
            words, _ = self._cut(*_distinct(one[1], two and two[1]), _marked(self.special))
            for ids, word_ids in zip(windows, words, strict=True):
                rows["input_ids"].append(ids)
                rows["word_ids"].append(
                    [
                        SPECIAL if token in specials else word
                        for token, word in zip(ids, word_ids, strict=True)
                    ]
                )
                rows["length"].append(len(ids))
                rows["corpus"].append(corpus)
            if typed:
                rows["token_type_ids"] += types
        return rows

    def _tokenize(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """Ids of each text and the number of each token's word."""
        words = self.segment is not None
        found = self.tokenizer(texts, return_offsets_mapping=words, **IDS_ALONE)
        ids = found["input_ids"]
        if not words:
            return [(row, list(range(len(row)))) for row in ids]
        offsets = found["offset_mapping"]
        return [
            (row, word_numbers(text, spans, self.segment))
            for text, row, spans in zip(texts, ids, offsets, strict=True)
        ]

    def _cut(
        self, first: list[int], second: list[int] | None, special: SpecialTokens
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        """Windows of ids or of word ids, and token types of a pair."""
        if second is None:
            return cut_windows(first, self.windows, special), None
        return cut_pair_windows(first, second, self.windows, special)


def _distinct(first: list[int], second: list[int] | None) -> tuple[list[int], list[int] | None]:
    """Number the words of the first text of a pair after those of the second."""
    if second is None:
        return first, None
    above = max(second, default=-1) + 1
    return [above + word for word in first], second


def _marked(special: SpecialTokens) -> SpecialTokens:
    """The same template for word_ids: SPECIAL in place of each special token."""
    names = ("prefix", "suffix", "pair_prefix", "pair_middle", "pair_suffix")
    marks = {name: (SPECIAL,) * len(getattr(special, name)) for name in names}
    return SpecialTokens(**marks, pair_types=special.pair_types, blank=SPECIAL)


def to_rows(documents: Dataset, maker: RowMaker) -> Dataset:
    """Cut documents into rows, one for each window."""
    return documents.map(
        maker,
        batched=True,
        remove_columns=documents.column_names,
        new_fingerprint=fingerprint(documents, maker),
        load_from_cache_file=False,  # a cache does not notice changed code
        desc="Windows",
    )


# ---------------------------------------------------------------- packing


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack windows into rows of `capacity` tokens: best fit, by falling length.

    Returns:
        window numbers by row.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the capacity that is left
    some = 0  # bit r is set where open_rows[r] holds any
    for window in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[window]
        fits = some >> length << length
        if fits:
            left = (fits & -fits).bit_length() - 1  # the least capacity that suffices
            row = open_rows[left].pop()
            some &= ~(1 << left) if not open_rows[left] else -1
        else:
            row, left = len(rows), capacity
            rows.append([])
        rows[row].append(window)
        open_rows[left - length].append(row)
        some |= 1 << (left - length)
    return rows


def pack_rows(rows: Dataset, capacity: int) -> Dataset:
    """Pack rows of one window into rows of several windows of one corpus.

    Args:
        capacity: tokens of a row.

    Returns:
        rows with a column window_lengths; words keep different numbers.
    """
    corpus, lengths = np.array(rows["corpus"][:]), np.array(rows["length"][:])
    packed: list[list[int]] = []
    for name in dict.fromkeys(corpus.tolist()):
        windows = np.flatnonzero(corpus == name)
        packed += [windows[row].tolist() for row in pack(lengths[windows].tolist(), capacity)]

    plan = Dataset.from_dict({"windows": packed})
    return plan.map(
        lambda row: join_windows(rows[row["windows"]]),
        remove_columns=["windows"],
        new_fingerprint=fingerprint(plan, "packed", rows._fingerprint),
        load_from_cache_file=False,
        desc="Packing",
    )


def join_windows(windows: dict[str, list]) -> dict[str, Any]:
    """Join the columns of several windows to one packed row."""
    row: dict[str, Any] = {"input_ids": [*itertools.chain(*windows["input_ids"])]}
    row["word_ids"], above = [], 0
    for word_ids in windows["word_ids"]:
        row["word_ids"] += [word + above if word >= 0 else word for word in word_ids]
        above = max(row["word_ids"], default=SPECIAL) + 1  # 0 where there is no word yet
    if "token_type_ids" in windows:
        row["token_type_ids"] = [*itertools.chain(*windows["token_type_ids"])]
    row |= {"length": len(row["input_ids"]), "corpus": windows["corpus"][0]}
    return row | {"window_lengths": windows["length"]}


# ---------------------------------------------------------------- batches -> tensors


class MaskingCollator:
    """Pads rows; masks those that come without labels, each by (seed, key) alone.

    So a row is masked anew each time it is used (dynamic masking), and the same way whatever
    batch, process or worker it is in, and after a resume.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        masker: Masker,
        seed: int,
        first_position: int = 0,
        additive: bool = False,
    ):
        """Args:
        first_position: the position id of a row's first token, which packed rows need.
        additive: packed rows get their attention mask as numbers to be added, not as booleans.
        """
        self.pad_id = tokenizer.pad_token_id or 0
        self.masker = masker
        self.seed = seed
        self.first_position = first_position
        self.additive = additive

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        mask: MaskArguments,
        seed: int,
    ) -> "MaskingCollator":
        """Build the collator of a model, with masks as asked for."""
        masker = Masker(
            mask_id=tokenizer.mask_token_id,
            vocabulary=np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids),
            mlm_probability=mask.mlm_probability,
            mask_unit=mask.mask_unit,
            mask_replace_prob=mask.mask_replace_prob,
            random_replace_prob=mask.random_replace_prob,
        )
        additive = model.config._attn_implementation == "eager"
        return cls(tokenizer, masker, seed, first_position(model.config), additive)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Rows -> tensors [rows, length]; the attention mask of packed rows: see `positions`."""
        length = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), length)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        labels = np.full(shape, IGNORE, dtype=np.int64)
        types = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for i, row in enumerate(rows):
            here = slice(0, len(row["input_ids"]))
            ids[i, here], labels[i, here] = self.masked(row)
            types[i, here] = row.get("token_type_ids", 0)
            mask[i, here] = 1
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if "token_type_ids" in rows[0]:
            batch["token_type_ids"] = types
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if "window_lengths" in rows[0]:
            tensors |= self.positions([row["window_lengths"] for row in rows], length)
        return tensors

    def masked(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of a row, masked now unless it has labels: [length] each."""
        if "labels" in row:
            return np.asarray(row["input_ids"]), np.asarray(row["labels"])
        rng = np.random.default_rng((self.seed, row["key"]))
        return self.masker(np.asarray(row["input_ids"]), np.asarray(row["word_ids"]), rng)

    def positions(self, window_lengths: list[list[int]], length: int) -> dict[str, Tensor]:
        """Give packed rows positions that start anew with each window, and who sees whom.

        Returns:
            position_ids [rows, length] and attention_mask [rows, 1, length, length]: True where
            both tokens are of one window. Padding sees itself, so that no softmax is empty.
        """
        shape = (len(window_lengths), length)
        number = np.zeros(shape, dtype=np.int64)  # of the window; 0 = padding
        position = np.zeros(shape, dtype=np.int64)
        for i, lengths in enumerate(window_lengths):
            used = sum(lengths)
            number[i, :used] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            position[i, :used] = np.concatenate([np.arange(n) for n in lengths])
        windows = torch.from_numpy(number)
        sees = (windows[:, :, None] == windows[:, None, :]).unsqueeze(1)
        if self.additive:
            sees = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        return {
            "attention_mask": sees,
            "position_ids": torch.from_numpy(position) + self.first_position,
        }

    def mask_for_good(self, rows: Dataset) -> Dataset:
        """Mask rows once, so that losses compare over steps and checkpoints; longest first.

        Raises:
            InputError: if there is nothing to predict in them, so that no loss could be measured.
        """

        def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
            ids, labels = self.masked({**row, "key": HELD_OUT + number})
            return {"input_ids": ids.tolist(), "labels": labels.tolist()}

        masked = rows.map(
            convert,
            with_indices=True,
            load_from_cache_file=False,
            new_fingerprint=fingerprint(rows, convert),
            desc="Masking",
        )
        if all(label == IGNORE for labels in masked["labels"] for label in labels):
            raise InputError(
                "the held-out text is so short that no token of it is masked; give more text or a "
                "larger --validation_split"
            )
        order = np.argsort(-np.array(masked["length"][:]), kind="stable")
        return masked.select(order).remove_columns("word_ids")


HELD_OUT = 2**62  # added to the numbers of held-out rows: no training row has such a key
