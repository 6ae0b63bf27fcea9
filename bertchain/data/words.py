"""Words of a text in any script, by their characters; no tokenizer is needed.

A word is a run of letters, digits and marks. Punctuation and symbols stand alone, and so does each
character of Chinese and Japanese, which write no spaces, unless a segmenter joins them. (Thai, Lao
and Khmer write none either: there a run up to the next space counts as one word.)
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import chain

from bertchain.errors import InputError

# Ideographs with their extensions, and kana: each character is a word of its own.
SINGLE = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u3005"
)
# Above plane 3 are tags, selectors of variants (plane 14) and what has no character yet.
HIGH, SELECTORS, LAST = 0x40000, range(0xE0000, 0xE1000), 0x10FFFF
Segmenter = Callable[[str], list[tuple[int, int]]]  # text -> spans (start, stop) of its words


@cache
def _separators() -> str:
    """Punctuation, symbols, spaces and control characters, as ranges of a character class."""
    ranges: list[list[int]] = []
    for code in chain(range(HIGH), SELECTORS):
        if unicodedata.category(chr(code))[0] not in "PSZC" or 0xD800 <= code <= 0xDFFF:
            continue
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    ranges += [[HIGH, SELECTORS.start - 1], [SELECTORS.stop, LAST]]
    return "".join(f"\\U{a:08x}-\\U{b:08x}" for a, b in ranges)


@cache
def _word_pattern() -> re.Pattern:
    return re.compile(f"[{SINGLE}]|[^{_separators()}{SINGLE}]+|\\S")


@cache
def _letters_pattern() -> re.Pattern:
    return re.compile(f"[{SINGLE}]|[^{_separators()}{SINGLE}]+")


def word_spans(text: str) -> list[tuple[int, int]]:
    """Find every word, punctuation mark and symbol: (start, stop); white space is in none."""
    return [match.span() for match in _word_pattern().finditer(text)]


def plain_words(text: str) -> list[str]:
    """Split a text into its words, without punctuation and symbols."""
    return _letters_pattern().findall(text)


def jieba_spans(text: str) -> list[tuple[int, int]]:
    """Find words like `word_spans`, with ideographs joined to words by the segmenter jieba.

    Raises:
        InputError: if the package is not installed.
    """
    jieba = _load_jieba()
    spans, done = [], 0
    for run in re.finditer(f"[{SINGLE}]+", text):
        spans += [(done + a, done + b) for a, b in word_spans(text[done : run.start()])]
        spans += [(run.start() + a, run.start() + b) for _, a, b in jieba.tokenize(run.group())]
        done = run.end()
    return spans + [(done + a, done + b) for a, b in word_spans(text[done:])]


@cache
def _load_jieba() -> object:
    try:
        import jieba
    except ImportError as error:
        raise InputError(
            "--word_segmenter jieba needs the package jieba; type: pip install jieba"
        ) from error
    jieba.setLogLevel(60)  # it announces its dictionary on standard error
    return jieba


SEGMENTERS: dict[str, Segmenter] = {"characters": word_spans, "jieba": jieba_spans}
