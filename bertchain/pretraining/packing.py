"""Rows of further pretraining: documents -> windows, perhaps packed -> masked batches.

A row is one window of a document, or several short documents packed into one row without seeing
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
from transformers import PreTrainedTokenizerBase

from bertchain.data.words import Segmenter
from bertchain.errors import InputError
from bertchain.models.windows import (
    IDS_ALONE,
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_windows,
)
from bertchain.pretraining.masking import IGNORE, LABEL, SPECIAL, Masker, word_numbers

# ---------------------------------------------------------------- documents -> rows


@dataclass(frozen=True)
class RowMaker:
    """Cuts documents into rows: input_ids, word_ids, (token_type_ids,) length, corpus.

    word_ids hold the number of each token's word in the document, or what masking.py calls SPECIAL
    and LABEL. A label stands before each window like the first text of a pair.

    segment: how words are found; None: each token for itself.
    """

    tokenizer: PreTrainedTokenizerBase
    windows: WindowSpec
    special: SpecialTokens
    segment: Segmenter | None = None

    def __call__(self, documents: dict[str, list]) -> dict[str, list]:
        """Columns of documents -> columns of rows, in order; for `Dataset.map(batched=True)`."""
        texts = self._tokens(documents["text"])
        second = self._tokens(documents["text_pair"]) if "text_pair" in documents else None
        labels = self._tokens(documents["label"]) if "label" in documents else None
        typed = (second is not None or labels is not None) and self.special.pair_types is not None
        names = [
            "input_ids",
            "word_ids",
            *(["token_type_ids"] if typed else []),
            "length",
            "corpus",
        ]
        rows: dict[str, list] = {name: [] for name in names}
        special = {*self.tokenizer.all_special_ids}
        for i, (ids, word_ids) in enumerate(texts):
            front = (ids, word_ids) if second is not None else None
            body = second[i] if second is not None else (ids, word_ids)
            if labels is not None and labels[i][0]:
                front = (labels[i][0], [LABEL] * len(labels[i][0]))
            cut_ids, types = self._cut(front, body, self.special)
            cut_units, _ = self._cut(self._number(front, body), body, _marked(self.special))
            for n, row in enumerate(cut_ids):
                units_of_row = [
                    SPECIAL if token in special else unit
                    for token, unit in zip(row, cut_units[n], strict=True)
                ]
                rows["input_ids"].append(row)
                rows["word_ids"].append(units_of_row)
                rows["length"].append(len(row))
                rows["corpus"].append(documents["corpus"][i])
                if typed:
                    rows["token_type_ids"].append(types[n] if types else [0] * len(row))
        return rows

    def _tokens(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
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
        self, front: tuple | None, body: tuple, special: SpecialTokens
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        of = 1 if special.blank == SPECIAL else 0  # ids or word_ids
        if front is None:
            return cut_windows(body[of], self.windows, special), None
        return cut_pair_windows(front[of], body[of], self.windows, special)

    def _number(self, front: tuple | None, body: tuple) -> tuple | None:
        """The words of the first text are numbered after those of the second."""
        if front is None or LABEL in front[1][:1]:
            return front
        above = max(body[1], default=-1) + 1
        return front[0], [above + unit for unit in front[1]]


def _marked(special: SpecialTokens) -> SpecialTokens:
    """The same template for word_ids: SPECIAL in place of each special token."""
    names = ("prefix", "suffix", "pair_prefix", "pair_middle", "pair_suffix")
    marks = {name: (SPECIAL,) * len(getattr(special, name)) for name in names}
    return SpecialTokens(**marks, pair_types=special.pair_types, blank=SPECIAL)


def to_rows(documents: Dataset, maker: RowMaker) -> Dataset:
    return documents.map(
        maker,
        batched=True,
        remove_columns=documents.column_names,
        load_from_cache_file=False,  # a cache does not notice changed code
        desc="Windows",
    )


# ---------------------------------------------------------------- packing


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put windows into as few rows of `capacity` tokens as best fit by falling length finds.

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
    """Rows of windows -> rows of several windows of one corpus, and a column parts: their lengths.

    Words keep different numbers.
    """
    corpus, lengths = np.array(rows["corpus"][:]), np.array(rows["length"][:])
    packed: list[list[int]] = []
    for name in dict.fromkeys(corpus.tolist()):
        windows = np.flatnonzero(corpus == name)
        packed += [windows[row].tolist() for row in pack(lengths[windows].tolist(), capacity)]

    return Dataset.from_dict({"windows": packed}).map(
        lambda row: join_windows(rows[row["windows"]]),
        remove_columns=["windows"],
        load_from_cache_file=False,
        desc="Packing",
    )


def join_windows(windows: dict[str, list]) -> dict[str, Any]:
    """Columns of several windows -> one packed row."""
    row: dict[str, Any] = {"input_ids": [*itertools.chain(*windows["input_ids"])]}
    word_ids, above = [], 0
    for part in windows["word_ids"]:
        word_ids += [unit + above if unit >= 0 else unit for unit in part]
        above = max(word_ids, default=-1) + 1 if max(word_ids, default=-1) >= 0 else 0
    row["word_ids"] = word_ids
    if "token_type_ids" in windows:
        row["token_type_ids"] = [*itertools.chain(*windows["token_type_ids"])]
    row |= {"length": len(row["input_ids"]), "corpus": windows["corpus"][0]}
    return row | {"parts": windows["length"]}


# ---------------------------------------------------------------- batches -> tensors


class MaskingCollator:
    """Pads rows; masks those that come without labels, each by (seed, key) alone.

    So a row is masked anew each time it is drawn (dynamic masking), and the same way whatever
    batch, process or worker it is drawn in, and after a resume.

    first_position: the position of a row's first token, which packed rows need; see `positions`.
    additive: packed rows get their attention mask as numbers to be added, not as booleans.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        masker: Masker,
        seed: int,
        first_position: int = 0,
        additive: bool = False,
    ):
        self.pad_id = tokenizer.pad_token_id or 0
        self.masker = masker
        self.seed = seed
        self.first_position = first_position
        self.additive = additive

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
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
        if "parts" in rows[0]:
            tensors |= self.positions([row["parts"] for row in rows], length)
        return tensors

    def masked(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        if "labels" in row:
            return np.asarray(row["input_ids"]), np.asarray(row["labels"])
        rng = np.random.default_rng((self.seed, row["key"]))
        return self.masker(np.asarray(row["input_ids"]), np.asarray(row["word_ids"]), rng)

    def positions(self, parts: list[list[int]], length: int) -> dict[str, Tensor]:
        """Packed rows: positions that start anew with each document, and who sees whom.

        Returns:
            position_ids [rows, length] and attention_mask [rows, 1, length, length]: True where
            both tokens are of one document. Padding sees itself, so that no softmax is empty.
        """
        number = np.zeros((len(parts), length), dtype=np.int64)  # of the document; 0 = padding
        position = np.zeros((len(parts), length), dtype=np.int64)
        for i, lengths in enumerate(parts):
            used = sum(lengths)
            number[i, :used] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            position[i, :used] = np.concatenate([np.arange(n) for n in lengths])
        documents = torch.from_numpy(number)
        sees = (documents[:, :, None] == documents[:, None, :]).unsqueeze(1)
        if self.additive:
            sees = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
        return {
            "attention_mask": sees,
            "position_ids": torch.from_numpy(position) + self.first_position,
        }

    def mask_for_good(self, rows: Dataset) -> Dataset:
        """Rows with fixed masks, longest first: losses compare over steps and checkpoints.

        Raises:
            InputError: if there is nothing to predict in them, so that no loss could be measured.
        """

        def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
            ids, labels = self.masked({**row, "key": HELD_OUT + number})
            return {"input_ids": ids.tolist(), "labels": labels.tolist()}

        masked = rows.map(convert, with_indices=True, load_from_cache_file=False, desc="Masking")
        if all(label == IGNORE for labels in masked["labels"] for label in labels):
            raise InputError(
                "the held-out text is so short that no token of it is masked; give more text or a "
                "larger --validation_split"
            )
        order = np.argsort(-np.array(masked["length"][:]), kind="stable")
        return masked.select(order).remove_columns("word_ids")


HELD_OUT = 2**62  # keys of held-out rows: no drawn row has one
