"""What a masked language model has to predict: which tokens are chosen and what stands there.

Works on arrays, for any tokenizer: a token knows the number of its word, or that it is special.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bertchain.data.words import Segmenter

SPECIAL = -1  # in place of a word's number: never chosen
LABEL = -2  # a word of the document's label
IGNORE = -100  # torch's cross entropy leaves such targets out
UNITS = ("token", "word", "ngram")


def word_numbers(text: str, offsets: Sequence[tuple[int, int]], segment: Segmenter) -> list[int]:
    """The number of each token's word, by the first character of the token that is not a space.

    Args:
        offsets: (start, stop) of every token in the text, as fast tokenizers give them.
        segment: text -> spans of its words, such as `words.word_spans`.
    """
    starts = np.array([start for start, _ in segment(text)])  # every non-space is in some span
    first = np.array([_first_character(text, *span) for span in offsets], dtype=np.int64)
    if not len(starts) or not len(first):
        return [0] * len(first)
    for i in range(len(first) - 2, -1, -1):  # a token of space alone goes with what follows
        if first[i] < 0:
            first[i] = first[i + 1]
    first = np.where(first < 0, len(text), first)  # nothing follows: with the last word
    return (np.searchsorted(starts, first, side="right") - 1).tolist()


def _first_character(text: str, start: int, stop: int) -> int:
    while start < stop and text[start].isspace():
        start += 1
    return start if start < stop else -1


@dataclass(frozen=True)
class Masker:
    """How tokens are chosen and replaced.

    unit: `token`: each for itself. `word`: all tokens of a word or none. `ngram`: runs of 1 to
    `max_ngram` words, of length n with probability proportional to 1 / n (Lan et al. 2020, ALBERT,
    eq. 1). Each word has the same chance `rate` in all of them.

    Of the chosen tokens the share `mask` becomes the mask token, `random` a random one, the rest
    stays (Devlin et al. 2019: 80, 10, 10 %). All words of a label are chosen together, with the
    chance `label_rate`.
    """

    mask_id: int
    vocabulary: np.ndarray  # ids that a random token is drawn from
    rate: float = 0.15
    unit: str = "token"
    max_ngram: int = 3
    mask: float = 0.8
    random: float = 0.1
    label_rate: float = 0.5

    def __call__(
        self, ids: np.ndarray, word_ids: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask one row.

        Args:
            ids: [length].
            word_ids: [length], the word of each token, or SPECIAL, or LABEL.

        Returns:
            ids with the chosen tokens replaced, and labels: their ids there, IGNORE elsewhere.
        """
        chosen = np.flatnonzero(self.choose(word_ids, rng))
        labels = np.full(len(ids), IGNORE, dtype=np.int64)
        labels[chosen] = ids[chosen]
        masked = ids.astype(np.int64)
        draw = rng.random(len(chosen))
        masked[chosen[draw < self.mask]] = self.mask_id
        other = chosen[(draw >= self.mask) & (draw < self.mask + self.random)]
        masked[other] = rng.choice(self.vocabulary, len(other))
        return masked, labels

    def choose(self, word_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A mask [length], True where to predict."""
        text = word_ids >= 0
        chosen = np.zeros(len(word_ids), dtype=bool)
        if self.unit == "token":
            chosen[text] = _share(int(text.sum()), self.rate, rng)
        else:
            words, number = np.unique(word_ids[text], return_inverse=True)
            if self.unit == "word":
                picked = _share(len(words), self.rate, rng)
            else:
                picked = self._runs(len(words), rng)
            chosen[text] = picked[number]
        label = word_ids == LABEL
        if label.any():
            chosen[label] = rng.random() < self.label_rate
        return chosen

    def _runs(self, words: int, rng: np.random.Generator) -> np.ndarray:
        """Runs may overlap and may begin before the first word: so all words are chosen alike."""
        longest = self.max_ngram
        starts = np.flatnonzero(rng.random(words + longest - 1) < self._start_rate)
        lengths = rng.choice(longest, len(starts), p=self._length_shares) + 1
        picked = np.zeros(words + 2 * longest, dtype=bool)
        for start, length in zip(starts, lengths, strict=True):
            picked[start : start + length] = True
        return picked[longest - 1 : longest - 1 + words]

    @cached_property
    def _length_shares(self) -> np.ndarray:
        shares = 1 / np.arange(1, self.max_ngram + 1)
        return shares / shares.sum()

    @cached_property
    def _start_rate(self) -> float:
        """How often a run begins, so that a word is in one with the chance `rate`.

        A word is in none if no run that begins k words before it is longer than k: product over k
        of 1 - start * P(length > k) = 1 - rate. Solved by bisection.
        """
        longer = self._length_shares[::-1].cumsum()[::-1]  # P(length > k), k = 0, 1, ...
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            covered = 1 - np.prod(1 - middle * longer)
            low, high = (middle, high) if covered < self.rate else (low, middle)
        return low


def _share(count: int, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Choose count * rate of `count`, rounded up or down by chance, so that the mean is exact.

    Fewer rows go without a target than with one coin per token, which matters for short text.
    """
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: int(count * rate + rng.random())]] = True
    return chosen
