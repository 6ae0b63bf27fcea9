"""Masks: which tokens a masked language model has to predict, and what stands in their place.

Works on arrays, for any tokenizer: of each token the number of its word is given, or that it is a
special token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertchain.data.words import Segmenter

SPECIAL = -1  # the word id of special tokens, which are never chosen
IGNORE = -100  # torch's cross entropy leaves such targets out


def word_numbers(text: str, offsets: Sequence[tuple[int, int]], segment: Segmenter) -> list[int]:
    """Find the number of each token's word, by its first character that is not a space.

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
    """Chooses tokens to predict and replaces them.

    Attributes:
        mask_id: id of the mask token.
        vocabulary: ids that a random token is chosen from.
        mlm_probability: the chance of each token to be chosen.
        mask_unit: `token`: each for itself; `word`: all tokens of a word or none.
        mask_replace_prob: share of the chosen that becomes the mask token.
        random_replace_prob: share that becomes a random token; the rest stays (Devlin et al. 2019:
            80, 10, 10 %).
    """

    mask_id: int
    vocabulary: np.ndarray
    mlm_probability: float = 0.15
    mask_unit: str = "token"
    mask_replace_prob: float = 0.8
    random_replace_prob: float = 0.1

    def __call__(
        self, ids: np.ndarray, word_ids: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask one row.

        Args:
            ids: [length].
            word_ids: [length], the number of each token's word, or SPECIAL.

        Returns:
            ids with the chosen tokens replaced, and labels: their ids there, IGNORE elsewhere.
        """
        chosen = np.flatnonzero(self.choose(word_ids, rng))
        labels = np.full(len(ids), IGNORE, dtype=np.int64)
        labels[chosen] = ids[chosen]
        masked = ids.astype(np.int64)
        chance = rng.random(len(chosen))
        masked[chosen[chance < self.mask_replace_prob]] = self.mask_id
        replaced = self.mask_replace_prob + self.random_replace_prob
        other = chosen[(chance >= self.mask_replace_prob) & (chance < replaced)]
        masked[other] = rng.choice(self.vocabulary, len(other))
        return masked, labels

    def choose(self, word_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Choose what to predict: a mask [length], True there."""
        text = word_ids >= 0
        chosen = np.zeros(len(word_ids), dtype=bool)
        if self.mask_unit == "token":
            chosen[text] = _choose_share(int(text.sum()), self.mlm_probability, rng)
        else:
            words, number = np.unique(word_ids[text], return_inverse=True)
            chosen[text] = _choose_share(len(words), self.mlm_probability, rng)[number]
        return chosen


def _choose_share(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose count * share of `count`, rounded up or down by chance, so that the mean is exact.

    Fewer rows go without a target than with one coin per token, which matters for short text.
    """
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: int(count * share + rng.random())]] = True
    return chosen
