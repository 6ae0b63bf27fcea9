"""Words inside documents that carry labels: tokens, spans, pairs. Tables in, word places out.

A target is one or two slots (a pair has two: head and dependent), a slot is some words, a word is
some tokens of the windows. Its vector is the mean over the tokens of a slot, slots side by side.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from bertchain.arguments.common import TargetArguments
from bertchain.data.batching import DocumentCollator
from bertchain.data.labels import LabelSpec, require_columns
from bertchain.data.tables import Table, first_rows
from bertchain.errors import InputError
from bertchain.models.modeling import IGNORED, DocumentClassifierConfig
from bertchain.models.windows import SpecialTokens, WindowSpec, cut_windows

logger = logging.getLogger(__name__)


Slots = list[list[int]]  # word numbers of each slot


# ---------------------------------------------------------------- tables -> targets


def read_targets(table: Table, options: TargetArguments, id_column: str | None) -> Dataset:
    """A row a document with targets: id, text, words, slots [targets][slots][words] and tags
    [targets]. Documents without any are left out.

    Raises:
        InputError: naming the row, for a missing column, or lists that do not fit the words.
    """
    needed = {
        "token": ("tags_column_name",),
        "pair": ("heads_column_name", "relations_column_name"),
        "span": ("targets_column_name",),
    }[options.task_level]
    for flag in ("tokens_column_name", *needed):
        require_columns(table.rows, [getattr(options, flag)], table.source, f"--{flag}")
    if id_column is not None:
        require_columns(table.rows, [id_column], table.source, "--id_column_name")
    read, counts = READERS[options.task_level], Counter()
    columns: dict[str, list] = {"id": [], "text": [], "words": [], "slots": [], "tags": []}
    for number, row in enumerate(table.rows):
        where = f"{table.source}, row {number + 1}"
        words = row[options.tokens_column_name]
        if not isinstance(words, list):
            raise InputError(f"{where}: {options.tokens_column_name} is not a list of words")
        targets = read(row, len(words), options, where)
        wanted = [t for t in targets if _is_wanted(t, options)]
        counts["out"] += len(targets) - len(wanted)
        if not wanted:
            counts["without"] += 1
            continue
        columns["text"].append(" ".join(map(str, words)))
        columns["id"].append(str(number if id_column is None else row[id_column]))
        columns["words"].append([str(word) for word in words])
        columns["slots"].append([slots for slots, _ in wanted])
        columns["tags"].append([str(tag) for _, tag in wanted])
    total = sum(map(len, columns["tags"]))
    if total == 0:
        raise InputError(f"{table.source}: no {options.task_level} with a label")
    logger.info(
        "%s: %d targets in %d documents; left out %d targets, and %d documents without any",
        *(table.source, total, len(columns["id"]), counts["out"], counts["without"]),
    )
    return Dataset.from_dict(columns)


def _is_wanted(target: tuple[Slots, Any], options: TargetArguments) -> bool:
    slots, tag = target
    longest = options.longest_target
    return str(tag) not in options.skip_labels and (longest is None or len(slots[0]) <= longest)


def _read_tokens(row: dict, words: int, options: TargetArguments, where: str) -> list:
    tags = _list_of(row, options.tags_column_name, words, where)
    return [([[i]], tag) for i, tag in enumerate(tags) if tag is not None]


def _read_pairs(row: dict, words: int, options: TargetArguments, where: str) -> list:
    heads = _list_of(row, options.heads_column_name, words, where)
    relations = _list_of(row, options.relations_column_name, words, where)
    heads = [None if head is None else _word_number(head, where) for head in heads]
    pairs = [
        ([[head], [i]], relation)
        for i, (head, relation) in enumerate(zip(heads, relations, strict=True))
        if head is not None and head >= 0  # the root has none
    ]
    for slots, _ in pairs:
        _check_words(slots, words, where)
    return pairs


def _read_spans(row: dict, words: int, options: TargetArguments, where: str) -> list:
    spans = []
    for target in _targets_of(row, options.targets_column_name, where):
        if "span" not in target or options.target_label_field not in target:
            there = ", ".join(target)
            raise InputError(
                f"{where}: a target needs span and {options.target_label_field} "
                f"(--target_label_field); there are: {there}"
            )
        words_of = target["span"] if isinstance(target["span"], list) else []
        slots = [[_word_number(i, where) for i in words_of]]
        tag = target[options.target_label_field]
        _check_words(slots, words, where)
        if tag is not None:
            spans.append((slots, tag))
    return spans


def _targets_of(row: dict, column: str, where: str) -> list[dict]:
    targets = row[column] or []
    if not isinstance(targets, list) or not all(isinstance(t, dict) for t in targets):
        raise InputError(f"{where}: {column} must be a list of objects, each with a span")
    return targets


def _word_number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {value!r} is not the number of a word") from error


def _list_of(row: dict, column: str, words: int, where: str) -> list:
    values = row[column]
    if not isinstance(values, list) or len(values) != words:
        got = len(values) if isinstance(values, list) else "no list"
        raise InputError(f"{where}: {column} must have one entry for each of {words} words: {got}")
    return values


def _check_words(slots: Slots, words: int, where: str) -> None:
    wrong = [i for slot in slots for i in slot if not 0 <= i < words]
    if wrong or not all(slots):
        raise InputError(f"{where}: a target names word {wrong or 'none'} of {words}")


READERS: dict[str, Callable[[dict, int, TargetArguments, str], list]] = {
    "token": _read_tokens,
    "span": _read_spans,
    "pair": _read_pairs,
}


def settle_target_labels(documents: dict[str, Dataset], column: str) -> LabelSpec:
    """All labels of all splits, in alphabetical order: one that training lacks counts as wrong."""
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
        raise InputError(f"--task_level: there is one label only ({names[0]!r})")
    return LabelSpec("single_label", names, (column,))


def with_labels(documents: Dataset, spec: LabelSpec) -> Dataset:
    """Documents with a column labels: the class numbers of their targets.

    Raises:
        InputError: for a label that the spec lacks.
    """
    place = {name: i for i, name in enumerate(spec.names)}
    labels = []
    for name, tags in zip(documents["id"], documents["tags"], strict=True):
        stray = [tag for tag in tags if tag not in place]
        if stray:
            raise InputError(f"document {name}: label {stray[0]!r} is not one of the classifier's")
        labels.append([place[tag] for tag in tags])
    return documents.add_column("labels", labels)


def target_labels(documents: Dataset, spec: LabelSpec) -> np.ndarray:
    """Class numbers of all targets [targets], document by document."""
    place = {name: i for i, name in enumerate(spec.names)}
    return np.array([place[tag] for tags in documents["tags"] for tag in tags])


def target_words(documents: Dataset) -> list[str]:
    """The words of each target, as text: what a baseline may count."""
    texts = []
    for words, targets in zip(documents["words"], documents["slots"], strict=True):
        for slots in targets:
            texts.append(" ".join(words[i] for slot in slots for i in slot))
    return texts


def read_target_splits(
    tables: dict[str, Table],
    limits: dict[str, int | None],
    options: TargetArguments,
    id_column: str | None,
    share: float,
    seed: int,
) -> dict[str, Dataset]:
    """Documents with targets by split; without a validation table, a share of the training ones."""
    documents = {
        split: read_targets(
            Table(first_rows(table.rows, limits[split]), table.source), options, id_column
        )
        for split, table in tables.items()
    }
    if "validation" in documents or "train" not in documents:
        return documents
    train = documents["train"]
    order = np.random.default_rng(seed).permutation(len(train))
    held_out = np.sort(order[: max(1, round(share * len(train)))])
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    if len(kept) == 0:
        raise InputError(f"--validation_split {share} of {len(train)} documents leaves none")
    return documents | {"train": train.select(kept), "validation": train.select(held_out)}


# ---------------------------------------------------------------- targets -> places in windows


def cut_targets(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    windows: WindowSpec,
    special: SpecialTokens,
) -> Dataset:
    """Documents -> windows, and where the tokens of each slot of each target stand in them.

    Returns:
        columns id, windows, length, and places [targets][slots][tokens]: the number of the window
        times max_seq_length, plus the position in it.

    Raises:
        InputError: if the windows leave out words of a target.
    """
    columns: dict[str, list] = {"id": [], "windows": [], "length": [], "places": []}
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
        for slots in row["slots"]:
            tokens = [[piece for word in slot for piece in pieces[word]] for slot in slots]
            without += any(not slot for slot in tokens)
            lost += any(piece not in place for slot in tokens for piece in slot)
            targets.append([[place[p] for p in slot if p in place] for slot in tokens])
        columns["id"].append(row["id"])
        columns["windows"].append(cut)
        columns["length"].append(sum(map(len, cut)))
        columns["places"].append(targets)
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
    """Token ids of the words joined by spaces; and for each word the numbers of its tokens.

    A token belongs to the words whose characters it covers, whatever the tokenizer does with
    spaces.
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


class TargetCollator(DocumentCollator):
    """Documents with targets -> tensors; padded `places` are -1, padded labels -100."""

    def __init__(self, pad_id: int, max_seq_length: int):
        super().__init__(pad_id)
        self.max_seq_length = max_seq_length

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = super().__call__([{"windows": row["windows"]} for row in rows])
        length = batch["input_ids"].shape[2]
        slots = len(rows[0]["places"][0])
        targets = max(len(row["places"]) for row in rows)
        tokens = max(len(slot) for row in rows for target in row["places"] for slot in target)
        places = torch.full((len(rows), targets, slots, max(1, tokens)), -1)
        for d, row in enumerate(rows):
            for t, target in enumerate(row["places"]):
                for s, slot in enumerate(target):
                    found = [divmod(place, self.max_seq_length) for place in slot]
                    at = [window * length + position for window, position in found]
                    places[d, t, s, : len(at)] = torch.tensor(at, dtype=torch.long)
        batch["places"] = places
        if "labels" in rows[0]:
            batch["labels"] = torch.full((len(rows), targets), IGNORED)
            for d, row in enumerate(rows):
                batch["labels"][d, : len(row["labels"])] = torch.tensor(row["labels"])
        return batch


def collator_for(config: DocumentClassifierConfig, padding_id: int) -> DocumentCollator:
    if config.slots:
        return TargetCollator(padding_id, config.window_spec().max_seq_length)
    return DocumentCollator(padding_id)


def offsets_of(documents: Dataset) -> np.ndarray:
    """Where the targets of each document begin, and their number at the end [documents + 1]."""
    return np.cumsum([0, *(len(targets) for targets in documents["places"])])
