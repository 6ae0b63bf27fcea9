"""Windows: pieces of a document that fit the encoder, cut from its token ids.

A window is a list of ids with the tokenizer's own special tokens around a body. Truncations follow
Sun et al. 2019, section 5.3.1: `head`, `tail`, `head_tail` give exactly one window, `hierarchical`
gives as many as the document needs. (Flags and fields of configs call a window a segment.)

This file travels with every saved classifier, like `modeling.py`, which cuts with it what a
`pipeline` hands over too long. So it imports the standard library alone.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

Span = tuple[int, int]  # start and stop (exclusive) in the document's untruncated ids

IDS_ALONE = {  # for a tokenizer's call: lists that nobody reads would take a third of its time
    "add_special_tokens": False,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}

HEAD_SHARE = 128 / 510  # Sun et al. 2019 keep the first 128 and the last 382 of 510 tokens


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer puts around a text and around a pair of texts.

    Attributes:
        prefix, suffix: before and after a single text.
        pair_prefix, pair_middle, pair_suffix: before, between and after two texts.
        pair_types: token type ids of the first text with the tokens before and after it, and of the
            second with those after it; None where the tokenizer has no types.
        blank: stands for a document without any token where the tokenizer adds none.
    """

    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    pair_prefix: tuple[int, ...] = ()
    pair_middle: tuple[int, ...] = ()
    pair_suffix: tuple[int, ...] = ()
    pair_types: tuple[int, int] | None = None
    blank: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def count(self) -> int:
        """How many special tokens a window of a single text holds."""
        return len(self.prefix) + len(self.suffix)

    @property
    def pair_count(self) -> int:
        """How many special tokens a window of a pair holds."""
        return len(self.pair_prefix) + len(self.pair_middle) + len(self.pair_suffix)


@dataclass(frozen=True)
class WindowSpec:
    """How documents are cut into windows.

    Attributes:
        truncation: a key of `TRUNCATIONS`.
        max_seq_length: tokens of a window, special tokens included.
        head_tokens: for head_tail; None: the proportion 128 of 510.
        segment_overlap: tokens that neighbouring hierarchical windows share.
        max_segments: most hierarchical windows of a document; None: as many as needed.
        segment_choice: which of them `max_segments` keeps, a key of `WINDOW_CHOICES`.
    """

    truncation: str = "head"
    max_seq_length: int = 512
    head_tokens: int | None = None
    segment_overlap: int = 0
    max_segments: int | None = None
    segment_choice: str = "head"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def head_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    """One window with the first `body` tokens."""
    return [[(0, min(length, body))]]


def tail_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    """One window with the last `body` tokens."""
    return [[(max(0, length - body), length)]]


def head_tail_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    """One window with the first and the last tokens, `body` in all."""
    if length <= body:
        return [[(0, length)]]
    head = round(body * HEAD_SHARE) if spec.head_tokens is None else min(spec.head_tokens, body)
    return [[(0, head), (length - (body - head), length)]]


def hierarchical_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    """Windows one after the other, ceil(length / body) of them; with an overlap, `body - overlap`
    tokens apart.

    Raises:
        ValueError: for an overlap as long as the body.
    """
    stride = body - spec.segment_overlap
    if stride < 1:
        raise ValueError(
            f"--segment_overlap {spec.segment_overlap} leaves no step forward: a window of "
            f"--max_seq_length {spec.max_seq_length} holds {body} tokens of text; use less"
        )
    count = 1 if length <= body else 1 + math.ceil((length - body) / stride)
    kept = range(count)
    if spec.max_segments is not None and count > spec.max_segments:
        front = WINDOW_CHOICES[spec.segment_choice](spec.max_segments)
        kept = [*kept[:front], *kept[count - (spec.max_segments - front) :]]
    return [[(i * stride, min(i * stride + body, length))] for i in kept]


WINDOW_CHOICES = {  # of n windows that are kept, how many are the first; the others are the last
    "head": lambda n: n,
    "tail": lambda n: 0,
    "head_tail": lambda n: (n + 1) // 2,
}

TRUNCATIONS = {  # (tokens of the document, tokens of a body, spec) -> spans of each window
    "head": head_spans,
    "tail": tail_spans,
    "head_tail": head_tail_spans,
    "hierarchical": hierarchical_spans,
}


def body_length(spec: WindowSpec, special_count: int) -> int:
    """Tokens of text that a window holds.

    Raises:
        ValueError: if the special tokens leave no room.
    """
    body = spec.max_seq_length - special_count
    if body < 1:
        raise ValueError(
            f"--max_seq_length {spec.max_seq_length} leaves no room for text beside "
            f"{special_count} special tokens; use at least {special_count + 1}"
        )
    return body


def window_spans(length: int, spec: WindowSpec, special_count: int) -> list[list[Span]]:
    """Spans of a document of `length` tokens that each window holds.

    Raises:
        ValueError: if there is no room for text, or no step forward.
    """
    return TRUNCATIONS[spec.truncation](length, body_length(spec, special_count), spec)


def kept_tokens(windows: list[list[Span]]) -> int:
    """Count the different tokens of a document that its windows hold, overlaps once."""
    kept, reached = 0, 0
    for start, stop in sorted(span for spans in windows for span in spans):
        kept += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return kept


def cut_windows(ids: list[int], spec: WindowSpec, special: SpecialTokens) -> list[list[int]]:
    """Cut a text into windows.

    Args:
        ids: the untruncated token ids, without special tokens.

    Returns:
        a list of ids for each window, special tokens included; there is at least one window, and
        none is empty.
    """
    windows = []
    for spans in window_spans(len(ids), spec, special.count):
        text = [i for start, stop in spans for i in ids[start:stop]]
        windows.append([*special.prefix, *text, *special.suffix] or [special.blank])
    return windows


def cut_pair_windows(
    first: list[int], second: list[int], spec: WindowSpec, special: SpecialTokens
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Cut a pair of texts into windows: each holds the first text and a piece of the second.

    Of the first text at most half a window is kept, from its start, so that a long title never
    crowds out the body.

    Returns:
        windows and their token type ids (None where the tokenizer has none).
    """
    first = first[: first_text_room(spec, special)]
    windows, types = [], []
    for spans in window_spans(len(second), spec, special.pair_count + len(first)):
        text = [i for start, stop in spans for i in second[start:stop]]
        front = [*special.pair_prefix, *first, *special.pair_middle]
        back = [*text, *special.pair_suffix]
        windows.append(front + back or [special.blank])
        if special.pair_types is not None:
            types.append([special.pair_types[0]] * len(front) + [special.pair_types[1]] * len(back))
    return windows, types if special.pair_types is not None else None


def first_text_room(spec: WindowSpec, special: SpecialTokens) -> int:
    """Most tokens of the first text of a pair that a window keeps."""
    return max(1, body_length(spec, special.pair_count + 1) // 2)


def find_special_tokens(tokenizer: Any) -> SpecialTokens:
    """Find the ids that a tokenizer adds around a text and around a pair.

    Fast tokenizers keep them in a template that cannot be applied to ids, so a short text is
    encoded with and without it, and the difference is taken.

    Raises:
        ValueError: if the plain ids are not found inside the full encoding.
    """
    probe = next((t for t in ("a", "1", ".", "的") if _plain_ids(tokenizer, t)), None)
    if probe is None:
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} gives no ids for plain text")
    text = _plain_ids(tokenizer, probe)
    single = list(tokenizer(probe)["input_ids"])
    start = _find(single, text)
    blanks = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, 0)
    pair = tokenizer(probe, probe)
    ids = list(pair["input_ids"])
    one = _find(ids, text)
    two = one + len(text) + _find(ids[one + len(text) :], text)
    types = pair.get("token_type_ids")
    pair_types = (types[one], types[two]) if types is not None and any(types) else None
    return SpecialTokens(
        prefix=tuple(single[:start]),
        suffix=tuple(single[start + len(text) :]),
        pair_prefix=tuple(ids[:one]),
        pair_middle=tuple(ids[one + len(text) : two]),
        pair_suffix=tuple(ids[two + len(text) :]),
        pair_types=pair_types,
        blank=next(i for i in blanks if i is not None),
    )


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, **IDS_ALONE)["input_ids"])


def _find(ids: list[int], part: list[int]) -> int:
    for start in range(len(ids) - len(part) + 1):
        if ids[start : start + len(part)] == part:
            return start
    raise ValueError(
        f"the tokenizer changes a text when it adds special tokens: {part} is not in {ids}"
    )
