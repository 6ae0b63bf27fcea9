"""Token ids of a document -> windows that fit the encoder.

Pure functions on lists of ids, with no imports beyond the standard library, because this file
travels with every saved classifier: `modeling.py` uses it to cut text that a `pipeline` hands over
too long.

A window is a list of ids with the tokenizer's own special tokens around a body. Truncations follow
Sun et al. 2019, section 5.3.1: `head`, `tail`, `head_tail` give exactly one window, `hierarchical`
gives as many as the document needs.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

Span = tuple[int, int]  # start and stop (exclusive) in the document's untruncated ids

IDS_ALONE = {  # of a tokenizer's call: lists that nobody reads take a third of its time
    "add_special_tokens": False,
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}

HEAD_SHARE = 128 / 510  # Sun et al. 2019 keep the first 128 and the last 382 of 510 tokens


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts around one text (`prefix`, `suffix`) and around a pair of texts.

    `pair_types` are the token type ids of the first text with what stands before it, and of the
    second text with what stands after it, or None where the tokenizer makes no such difference.
    `blank` is the id that stands for a document with no tokens at all where the tokenizer adds
    nothing.
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
        return len(self.prefix) + len(self.suffix)

    @property
    def pair_count(self) -> int:
        return len(self.pair_prefix) + len(self.pair_middle) + len(self.pair_suffix)


@dataclass(frozen=True)
class WindowSpec:
    """How documents are cut. Lengths count tokens; `max_seq_length` includes the special tokens."""

    truncation: str = "head"
    max_seq_length: int = 512
    head_tokens: int | None = None  # for head_tail; None: the proportion 128 of 510
    segment_overlap: int = 0  # for hierarchical
    max_segments: int | None = None  # for hierarchical; None: as many as needed
    segment_choice: str = "head"  # which windows max_segments keeps: head, tail or head_tail

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def head_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    return [[(0, min(length, body))]]


def tail_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    return [[(max(0, length - body), length)]]


def head_tail_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    if length <= body:
        return [[(0, length)]]
    head = round(body * HEAD_SHARE) if spec.head_tokens is None else min(spec.head_tokens, body)
    return [[(0, head), (length - (body - head), length)]]


def hierarchical_spans(length: int, body: int, spec: WindowSpec) -> list[list[Span]]:
    """k = ceil(length / body) windows; with an overlap o, each starts body - o later."""
    stride = body - spec.segment_overlap
    if stride < 1:
        raise ValueError(
            f"--segment_overlap {spec.segment_overlap} leaves no step forward: a window of "
            f"--max_seq_length {spec.max_seq_length} holds {body} tokens of text; use less"
        )
    count = 1 if length <= body else 1 + math.ceil((length - body) / stride)
    kept = range(count)
    if spec.max_segments is not None and count > spec.max_segments:
        front = SEGMENT_CHOICES[spec.segment_choice](spec.max_segments)
        kept = [*kept[:front], *kept[count - (spec.max_segments - front) :]]
    return [[(i * stride, min(i * stride + body, length))] for i in kept]


SEGMENT_CHOICES = {  # of n windows that are kept, how many are the first ones; the others are last
    "head": lambda n: n,
    "tail": lambda n: 0,
    "head_tail": lambda n: (n + 1) // 2,
}


TRUNCATIONS = {
    "head": head_spans,
    "tail": tail_spans,
    "head_tail": head_tail_spans,
    "hierarchical": hierarchical_spans,
}


def body_length(spec: WindowSpec, special_count: int) -> int:
    """How many tokens of text a window holds.

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


def cut_spans(length: int, spec: WindowSpec, special_count: int) -> list[list[Span]]:
    """The spans of each window of a document of `length` tokens."""
    return TRUNCATIONS[spec.truncation](length, body_length(spec, special_count), spec)


def kept_tokens(windows: list[list[Span]]) -> int:
    """How many different tokens of the document the windows hold, overlaps counted once."""
    kept, reached = 0, 0
    for start, stop in sorted(span for spans in windows for span in spans):
        kept += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return kept


def cut_windows(ids: list[int], spec: WindowSpec, special: SpecialTokens) -> list[list[int]]:
    """Cut one text.

    Args:
        ids: the untruncated token ids, without special tokens.

    Returns:
        one list of ids a window, special tokens included; never an empty list, never an empty
        window.
    """
    windows = []
    for spans in cut_spans(len(ids), spec, special.count):
        text = [i for start, stop in spans for i in ids[start:stop]]
        windows.append([*special.prefix, *text, *special.suffix] or [special.blank])
    return windows


def cut_pair_windows(
    first: list[int], second: list[int], spec: WindowSpec, special: SpecialTokens
) -> tuple[list[list[int]], list[list[int]] | None]:
    """Cut a pair of texts: the first stands in every window, the second is cut.

    The first text keeps its head, at most half of what a window holds, so that a long title never
    crowds out the body.

    Returns:
        windows and their token type ids (None where the tokenizer has none).
    """
    first = first[: first_text_room(spec, special)]
    windows, types = [], []
    for spans in cut_spans(len(second), spec, special.pair_count + len(first)):
        text = [i for start, stop in spans for i in second[start:stop]]
        front = [*special.pair_prefix, *first, *special.pair_middle]
        back = [*text, *special.pair_suffix]
        windows.append(front + back or [special.blank])
        if special.pair_types is not None:
            types.append([special.pair_types[0]] * len(front) + [special.pair_types[1]] * len(back))
    return windows, types if special.pair_types is not None else None


def first_text_room(spec: WindowSpec, special: SpecialTokens) -> int:
    """How many tokens of the first text of a pair a window keeps at most."""
    return max(1, body_length(spec, special.pair_count + 1) // 2)


def find_special_tokens(tokenizer: Any) -> SpecialTokens:
    """Learn from a tokenizer what it adds around a text and around a pair.

    Fast tokenizers keep this in a template that cannot be applied to ids, so a short text is
    encoded with and without it and the difference is taken.

    Raises:
        ValueError: if the plain ids are not found inside the full encoding.
    """
    probe = next((t for t in ("a", "1", ".", "的") if _plain_ids(tokenizer, t)), None)
    if probe is None:
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} gives no ids for plain text")
    text = _plain_ids(tokenizer, probe)
    single = list(tokenizer(probe)["input_ids"])
    start = _find(single, text)
    blank = next(
        (
            i
            for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
            if i is not None
        ),
        0,
    )
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
        blank=blank,
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
