"""New tokens for words that a text uses often and a tokenizer splits much.

A new token starts at the mean of its pieces, so that the model begins about where it was.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from bertchain.arguments.common import TextArguments
from bertchain.arguments.pretraining import CheckpointArguments
from bertchain.data.words import plain_words
from bertchain.errors import InputError, as_input_error

logger = logging.getLogger(__name__)

LEAST_COUNT = 5  # a rarer word does not train its embedding


def grow(
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: CheckpointArguments,
    text: TextArguments,
    texts: Iterable[str],
) -> dict[int, list[int]]:
    """Add the words of --add_tokens to a tokenizer, in place; see `words_to_add`.

    Returns:
        id of each new token -> ids of the pieces it was before; none where nothing is asked for.
    """
    if checkpoint.add_tokens is None:
        return {}
    words = words_to_add(checkpoint.add_tokens, texts, tokenizer, text.encoding)
    logger.info("New tokens: %d: %s", len(words), " ".join(words[:12]))
    return add_words(tokenizer, words)


def words_to_add(
    asked: str,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    encoding: str = "utf-8",
) -> list[str]:
    """Find the words of --add_tokens.

    Args:
        asked: `auto:500`, or a text file with a word a line.
        texts: in which `auto` counts words.
        encoding: of the file.

    Raises:
        InputError: for something else, a missing file, or where there is nothing to add.
    """
    kind, _, number = asked.partition(":")
    if kind == "auto":
        if not number.isdigit() or int(number) < 1:
            raise InputError(f"--add_tokens {asked}: write auto:500")
        words = frequent_split_words(texts, tokenizer, int(number))
        if not words:
            raise InputError(
                f"--add_tokens {asked}: the tokenizer splits no word that occurs {LEAST_COUNT} "
                "times; leave it out"
            )
        return words
    if not Path(asked).is_file():
        raise InputError(f"--add_tokens {asked}: no such file (or write auto:500)")
    known = tokenizer.get_vocab()
    path = Path(asked)
    with as_input_error(f"--add_tokens {asked}, --encoding {encoding}"):
        content = path.read_bytes().decode(encoding).removeprefix("\ufeff")
    lines = [line.strip() for line in content.splitlines()]
    words = [word for word in dict.fromkeys(lines) if word and word not in known]
    if not words:
        raise InputError(f"--add_tokens {asked}: no word in it is new to the tokenizer")
    return words


def frequent_split_words(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, limit: int
) -> list[str]:
    """Find the words whose tokens would shrink the text most: occurrences x pieces saved.

    Words are taken as the tokenizer normalises them (an uncased one: in lower case). Words with
    digits are left out, for there is no end of numbers; and single characters.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    counts: Counter[str] = Counter()
    for text in texts:
        text = text if normalizer is None else normalizer.normalize_str(text)
        counts.update(word for word in plain_words(text) if len(word) > 1 and word.isalpha())
    frequent = [word for word, n in counts.items() if n >= LEAST_COUNT]
    if not frequent:
        return []
    pieces = tokenizer([f" {w}" for w in frequent], add_special_tokens=False)["input_ids"]
    cost = tokens_of_an_added_word(tokenizer)
    gain = {
        word: counts[word] * (len(ids) - cost)
        for word, ids in zip(frequent, pieces, strict=True)
        if len(ids) > cost
    }
    return sorted(gain, key=lambda word: (-gain[word], word))[:limit]


def tokens_of_an_added_word(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the tokens of an added word in running text: 2 where a space is a token by itself."""
    return (
        1
        + len(tokenizer("a ", add_special_tokens=False)["input_ids"])
        - len(tokenizer("a", add_special_tokens=False)["input_ids"])
    )


def add_words(tokenizer: PreTrainedTokenizerBase, words: list[str]) -> dict[int, list[int]]:
    """Add words to a tokenizer, in place; they match whole words only.

    Returns:
        id of each new token -> ids of the pieces it was before.
    """
    pieces = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    blank = set(tokenizer(" ", add_special_tokens=False)["input_ids"])
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    ids = tokenizer.convert_tokens_to_ids(words)
    return {
        new: [piece for piece in old if piece not in blank] or old
        for new, old in zip(ids, pieces, strict=True)
        if new >= before
    }


@torch.no_grad()
def grow_embeddings(model: PreTrainedModel, size: int, pieces: dict[int, list[int]]) -> None:
    """Resize embeddings and head to `size` tokens; each new one is the mean of its pieces."""
    if size > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(size, mean_resizing=False)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [inputs.weight]
    if isinstance(outputs, nn.Module) and outputs.weight is not inputs.weight:
        tables.append(outputs.weight)
    bias = getattr(outputs, "bias", None)
    tables += [] if bias is None else [bias]
    for table in tables:
        for new, old in pieces.items():
            table[new] = table[old].mean(dim=0)
