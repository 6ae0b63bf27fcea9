"""Labelled words inside documents: tables -> targets -> positions of their tokens in windows.

A target is one span of words, or a pair of spans (head and dependent), with a label. Its vector is
the mean over the tokens of a span; those of a pair stand side by side.
"""

import logging
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bertchain.arguments.common import SpanArguments
from bertchain.data.batching import DocumentCollator
from bertchain.data.documents import to_id
from bertchain.data.labels import LabelSpec
from bertchain.data.tables import (
    Table,
    first_rows,
    require_cells,
    require_columns,
    with_column,
)
from bertchain.errors import InputError
from bertchain.models.modeling import IGNORED
from bertchain.models.windows import SpecialTokens, WindowSpec, cut_windows

logger = logging.getLogger(__name__)

Spans = list[list[int]]  # word numbers of each span


# ---------------------------------------------------------------- tables -> targets


def read_splits(
    tables: dict[str, Table],
    limits: dict[str, int | None],
    options: SpanArguments,
    id_column: str | None,
) -> tuple[dict[str, Dataset], int]:
    """Read documents with targets by split, and how many spans a target has.

    Args:
        limits: how many of the first rows of each split to use; None: all.

    Raises:
        InputError: as `read_targets`; and where targets have different numbers of spans.
    """
    documents = {
        split: read_targets(Table(first_rows(rows, limits[split]), source), options, id_column)
        for split, (rows, source) in tables.items()
    }
    first = next(iter(documents.values()))["spans"][0][0]
    for split, rows in documents.items():
        for name, targets in zip(rows["id"], rows["spans"], strict=True):
            odd = next((spans for spans in targets if len(spans) != len(first)), None)
            if odd is not None:
                raise InputError(
                    f"{tables[split].source}, document {name}: a target has {len(odd)} lists of "
                    f"words, the first one {len(first)}; train one model for each kind"
                )
    return documents, len(first)


def read_targets(table: Table, options: SpanArguments, id_column: str | None) -> Dataset:
    """Read documents and their targets; documents without targets are left out.

    Returns:
        columns id, text, words [words], spans [targets][spans][words] (word numbers from 0) and
        tags [targets] (names of labels).

    Raises:
        InputError: naming the row, for a missing column or a target that does not fit the words.
    """
    for flag in ("spans_column_name", "tokens_column_name"):
        require_columns(table.rows, [getattr(options, flag)], table.source, f"--{flag}")
    if id_column is not None:
        require_columns(table.rows, [id_column], table.source, "--id_column_name")
        require_cells(table.rows[id_column][:], id_column, table.source, "--id_column_name")
    columns: dict[str, list] = {"id": [], "text": [], "words": [], "spans": [], "tags": []}
    without = 0
    for number, row in enumerate(table.rows):
        where = f"{table.source}, row {number + 1}"
        words = row[options.tokens_column_name]
        if not isinstance(words, list):
            raise InputError(f"{where}: {options.tokens_column_name} is not a list of words")
        targets = _targets_of(row, len(words), options.spans_column_name, where)
        if not targets:
            without += 1
            continue
        columns["id"].append(to_id(number if id_column is None else row[id_column]))
        columns["text"].append(" ".join(map(str, words)))
        columns["words"].append([str(word) for word in words])
        columns["spans"].append([spans for spans, _ in targets])
        columns["tags"].append([tag for _, tag in targets])
    total = sum(map(len, columns["tags"]))
    if total == 0:
        raise InputError(f"{table.source}: column {options.spans_column_name!r} holds no label")
    count = len(columns["id"])
    logger.info("%s: %d targets in %d documents", table.source, total, count)
    if without:
        logger.info("%s: left out %d documents without targets", table.source, without)
    return Dataset.from_dict(columns)


def _targets_of(row: dict, words: int, column: str, where: str) -> list[tuple[Spans, str]]:
    """Read the spans and the label of each target; those whose label is null are left out."""
    targets = row[column] or []
    if not isinstance(targets, list) or not all(isinstance(t, dict) for t in targets):
        raise InputError(f"{where}: {column} must be a list of objects with words and label")
    found = []
    for target in targets:
        if not {"words", "label"} <= target.keys():
            there = ", ".join(target)
            raise InputError(f"{where}: a target needs words and label; there are: {there}")
        spans = target["words"]
        if not (isinstance(spans, list) and spans and all(isinstance(s, list) for s in spans)):
            raise InputError(
                f"{where}: words must be a list of lists of word numbers, as [[3, 4]]: {spans}"
            )
        spans = [[_word_number(word, words, where) for word in span] for span in spans]
        if not all(spans):
            raise InputError(f"{where}: a target names no word")
        if target["label"] is not None:
            found.append((spans, str(target["label"])))
    return found


def _word_number(value: Any, words: int, where: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: {value!r} is not the number of a word") from error
    if not 0 <= number < words:
        raise InputError(f"{where}: a target names word {number}; there are 0 to {words - 1}")
    return number


def infer_span_labels(documents: dict[str, Dataset], column: str) -> LabelSpec:
    """Collect the labels of all splits, in alphabetical order.

    A label that does not occur in training has a class too, so that its rows count as wrong.

    Raises:
        InputError: if there is one label only.
    """
    by_split = {
        split: {tag for tags in rows["tags"] for tag in tags} for split, rows in documents.items()
    }
    names = tuple(sorted(set.union(*by_split.values())))
    unseen = set(names) - by_split["train"]
    if unseen:
        logger.warning(
            "%d labels do not occur in training: %s", len(unseen), ", ".join(sorted(unseen))
        )
    if len(names) < 2:
        raise InputError(f"--spans_column_name: there is one label only ({names[0]!r})")
    return LabelSpec("single_label", names, (column,))


def with_labels(documents: Dataset, spec: LabelSpec) -> Dataset:
    """Add a column labels [targets]: the class numbers of the tags.

    Raises:
        InputError: for a label that the spec does not have.
    """
    place = {name: i for i, name in enumerate(spec.names)}
    labels = []
    for name, tags in zip(documents["id"], documents["tags"], strict=True):
        stray = [tag for tag in tags if tag not in place]
        if stray:
            raise InputError(f"document {name}: label {stray[0]!r} is not one of the classifier's")
        labels.append([place[tag] for tag in tags])
    return with_column(documents, "labels", labels)


def target_texts(documents: Dataset) -> list[str]:
    """Join the words of each target [targets], for baselines that need no encoder."""
    texts = []
    for words, targets in zip(documents["words"], documents["spans"], strict=True):
        for spans in targets:
            texts.append(" ".join(words[i] for span in spans for i in span))
    return texts


def hold_out_documents(
    documents: dict[str, Dataset], share: float, seed: int
) -> dict[str, Dataset]:
    """Without a validation set hold out a random share of the training documents, unless it is 0.

    Raises:
        InputError: if no training document is left.
    """
    if "validation" in documents or "train" not in documents or share == 0:
        return documents
    train = documents["train"]
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = np.sort(order[: max(1, round(share * len(train)))])
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    if len(kept) == 0:
        raise InputError(f"--validation_split {share} of {len(train)} documents leaves none")
    return documents | {"train": train.select(kept), "validation": train.select(held_out)}


# ---------------------------------------------------------------- targets -> positions in windows


def cut_targets(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    windows: WindowSpec,
    special: SpecialTokens,
) -> Dataset:
    """Cut documents into windows and find the tokens of each target in them.

    Returns:
        columns id, windows, length (tokens in all windows), labels where there are any, and
        token_positions [targets][spans][tokens]: number of the window * max_seq_length + position
        in the window.

    Raises:
        InputError: if the windows leave out words of a target.
    """
    columns: dict[str, list] = {"id": [], "windows": [], "length": [], "token_positions": []}
    if "labels" in documents.column_names:
        columns["labels"] = documents["labels"][:]
    without = lost = 0
    for row in documents:
        ids, pieces = pieces_of_words(row["words"], tokenizer)
        marked = cut_windows([-1 - i for i in range(len(ids))], windows, special)
        place: dict[int, int] = {}  # token of the text -> where it stands first
        cut = []
        for number, window in enumerate(marked):
            cut.append([ids[-1 - value] if value < 0 else value for value in window])
            for position, value in enumerate(window):
                if value < 0:
                    place.setdefault(-1 - value, number * windows.max_seq_length + position)
        targets = []
        for spans in row["spans"]:
            tokens = [[piece for word in span for piece in pieces[word]] for span in spans]
            without += any(not span for span in tokens)
            lost += any(piece not in place for span in tokens for piece in span)
            targets.append([[place[p] for p in span if p in place] for span in tokens])
        columns["id"].append(row["id"])
        columns["windows"].append(cut)
        columns["length"].append(sum(map(len, cut)))
        columns["token_positions"].append(targets)
    if lost:
        raise InputError(
            f"--truncation {windows.truncation} cuts off {lost} targets; use hierarchical"
        )
    if without:
        logger.warning("%d targets hold a word without any token: their vectors are 0", without)
    return Dataset.from_dict(columns)


def pieces_of_words(
    words: list[str], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[int], list[list[int]]]:
    """Tokenize words joined by spaces.

    A token belongs to each word of which it covers a character, whatever the tokenizer does with
    spaces.

    Returns:
        token ids, without special tokens; and for each word the numbers of its tokens.
    """
    text = " ".join(words)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    word_at = np.full(len(text), -1)
    start = 0
    for number, word in enumerate(words):
        word_at[start : start + len(word)] = number
        start += len(word) + 1
    pieces: list[list[int]] = [[] for _ in words]
    for token, (first, last) in enumerate(encoded["offset_mapping"]):
        for word in sorted({int(w) for w in word_at[first:last] if w >= 0}):
            pieces[word].append(token)
    return list(encoded["input_ids"]), pieces


class SpanCollator(DocumentCollator):
    """Collate documents with targets into tensors.

    token_positions [documents, targets, spans, tokens], in the flat windows of a document, are
    padded with -1, labels [documents, targets] with -100.
    """

    def __init__(self, pad_id: int, max_seq_length: int):
        super().__init__(pad_id)
        self.max_seq_length = max_seq_length

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__([{"windows": row["windows"]} for row in rows])
        length = batch["input_ids"].shape[2]
        spans = len(rows[0]["token_positions"][0])
        targets = max(len(row["token_positions"]) for row in rows)
        tokens = max(
            len(span) for row in rows for target in row["token_positions"] for span in target
        )
        positions = torch.full((len(rows), targets, spans, max(1, tokens)), -1)
        for d, row in enumerate(rows):
            for t, target in enumerate(row["token_positions"]):
                for s, span in enumerate(target):
                    found = [divmod(place, self.max_seq_length) for place in span]
                    at = [window * length + position for window, position in found]
                    positions[d, t, s, : len(at)] = torch.tensor(at, dtype=torch.long)
        batch["token_positions"] = positions
        if "labels" in rows[0]:
            batch["labels"] = torch.full((len(rows), targets), IGNORED)
            for d, row in enumerate(rows):
                batch["labels"][d, : len(row["labels"])] = torch.tensor(row["labels"])
        return batch


def offsets_of(documents: Dataset) -> np.ndarray:
    """Count the targets before each document, and at the end all of them [documents + 1]."""
    return np.cumsum([0, *(len(targets) for targets in documents["token_positions"])])
