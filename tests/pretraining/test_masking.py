"""Words in any script, and which tokens are chosen and replaced."""

import re
import sys
import unicodedata

import numpy as np
import pytest

from bertchain.data import words
from bertchain.data.words import jieba_spans, plain_words, word_spans
from bertchain.errors import InputError
from bertchain.pretraining.masking import IGNORE, SPECIAL, Masker, word_numbers

KINDS = ["bert", "roberta", "unigram"]  # WordPiece, byte-level BPE, SentencePiece
VOCABULARY = np.arange(10, 100)


def masker(**changes):
    return Masker(mask_id=4, vocabulary=VOCABULARY, **changes)


def cut(text, spans):
    return [text[a:b] for a, b in spans]


# ---------------------------------------------------------------- words


def test_words_in_several_scripts():
    text = "Don't  stop: naïve हिन्दी, 北京 C++ x_y 🙂"
    assert cut(text, word_spans(text)) == [
        *("Don", "'", "t", "stop", ":", "naïve", "हिन्दी", ",", "北", "京"),
        *("C", "+", "+", "x", "_", "y", "🙂"),
    ]
    assert plain_words(text) == [*["Don", "t", "stop", "naïve", "हिन्दी", "北", "京", "C", "x", "y"]]
    assert word_spans(" \n") == [] and word_spans("") == []


def test_every_character_is_in_a_word_or_separates_them():
    codes = (code for code in range(sys.maxunicode + 1) if not 0xD800 <= code <= 0xDFFF)
    every = "".join(map(chr, codes))
    apart = "".join(c for c in every if unicodedata.category(c)[0] in "PSZC")
    assert "".join(re.findall(f"[{words._separators()}]", every)) == apart


def test_jieba_joins_characters_to_words():
    pytest.importorskip("jieba")
    text = "red北京大学的生活 is good"
    assert cut(text, jieba_spans(text)) == ["red", "北京大学", "的", "生活", "is", "good"]


def test_a_missing_segmenter_is_one_line(monkeypatch):
    import sys

    from bertchain.data import words

    monkeypatch.setitem(sys.modules, "jieba", None)
    words._load_jieba.cache_clear()
    with pytest.raises(InputError, match="pip install jieba"):
        jieba_spans("北京")
    words._load_jieba.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text", ["red zebra, zebras  qq!", "the cat-dog x.y", "red北京大学 cat", "zebra"]
)
def test_pieces_of_a_word_share_its_number(tokenizers, kind, text):
    found = tokenizers[kind](text, add_special_tokens=False, return_offsets_mapping=True)
    numbers = word_numbers(text, found["offset_mapping"], word_spans)
    words = cut(text, word_spans(text))
    assert set(numbers) == set(range(len(words)))  # every word has a token, no number is made up
    assert numbers == sorted(numbers)
    for (start, stop), number in zip(found["offset_mapping"], numbers, strict=True):
        assert text[start:stop].strip() in words[number]


def test_a_text_of_spaces_has_no_words(tokenizers):
    assert word_numbers("", [], word_spans) == []
    found = tokenizers["roberta"]("  ", add_special_tokens=False, return_offsets_mapping=True)
    assert word_numbers("  ", found["offset_mapping"], word_spans) == [0, 0]


# ---------------------------------------------------------------- what is chosen


def word_ids_of(words, rng):
    """Words of 1 to 4 tokens between special tokens."""
    lengths = rng.integers(1, 5, words)
    return np.array([SPECIAL, *np.repeat(np.arange(words), lengths), SPECIAL])


@pytest.mark.parametrize("rate", [0.15, 0.4])
@pytest.mark.parametrize("unit", ["token", "word"])
def test_every_position_is_chosen_at_the_rate(unit, rate):
    rng = np.random.default_rng(0)
    word_ids = word_ids_of(9, rng)
    masks = masker(mask_unit=unit, mlm_probability=rate)
    chosen = np.mean([masks.choose(word_ids, rng) for _ in range(8000)], axis=0)
    assert chosen[0] == chosen[-1] == 0  # special
    assert np.abs(chosen[1:-1] - rate).max() < 0.025  # the first and last words too


def test_a_word_is_chosen_whole_or_not_at_all():
    rng = np.random.default_rng(1)
    for _ in range(200):
        word_ids = word_ids_of(30, rng)
        chosen = masker(mask_unit="word", mlm_probability=0.3).choose(word_ids, rng)
        for word in range(30):
            assert len(set(chosen[word_ids == word])) == 1


def test_the_number_of_targets_hardly_varies_in_short_rows():
    """1.5 of 10 words: always one or two, where coins would leave every fifth row without any."""
    rng = np.random.default_rng(3)
    counts = {masker(mask_unit="word").choose(np.arange(10), rng).sum() for _ in range(300)}
    assert counts == {1, 2}


# ---------------------------------------------------------------- what stands there


@pytest.mark.parametrize(("mask", "random"), [(0.8, 0.1), (1.0, 0.0), (0.0, 0.5)])
def test_chosen_tokens_are_replaced_in_the_given_shares(mask, random):
    rng = np.random.default_rng(5)
    ids = np.full(20_000, 7)  # not in VOCABULARY, so that a random token differs
    shares = {"mask_replace_prob": mask, "random_replace_prob": random}
    masked, labels = masker(mlm_probability=0.4, **shares)(ids, np.arange(len(ids)), rng)
    chosen = labels != IGNORE
    assert chosen.mean() == pytest.approx(0.4, abs=0.001)
    assert (labels[chosen] == 7).all() and (masked[~chosen] == 7).all()
    assert (masked[chosen] == 4).mean() == pytest.approx(mask, abs=0.02)
    assert np.isin(masked[chosen], VOCABULARY).mean() == pytest.approx(random, abs=0.02)
    assert set(masked) <= {4, 7, *VOCABULARY}


def test_nothing_to_choose_is_no_error():
    rng = np.random.default_rng(6)
    for unit in ("token", "word"):
        masked, labels = masker(mask_unit=unit)(np.array([2, 3]), np.array([SPECIAL, SPECIAL]), rng)
        assert masked.tolist() == [2, 3] and (labels == IGNORE).all()
