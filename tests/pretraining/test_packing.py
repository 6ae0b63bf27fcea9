"""Documents -> rows -> masked batches; packing."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from bertchain.data.words import word_spans
from bertchain.errors import InputError
from bertchain.models.windows import WindowSpec, find_special_tokens
from bertchain.pretraining.masking import IGNORE, SPECIAL, Masker
from bertchain.pretraining.packing import (
    MaskingCollator,
    RowMaker,
    join_windows,
    pack,
    pack_rows,
    to_rows,
)

pytestmark = pytest.mark.versions

KINDS = ["bert", "roberta", "unigram"]


def maker(tokenizer, length=16, segment=None):
    windows = WindowSpec("hierarchical", length)
    return RowMaker(tokenizer, windows, find_special_tokens(tokenizer), segment)


def documents(texts, **columns):
    return Dataset.from_dict({"text": texts, "corpus": ["task"] * len(texts), **columns})


def masker(tokenizer, **changes):
    vocabulary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    return Masker(mask_id=tokenizer.mask_token_id, vocabulary=vocabulary, **changes)


def collator(tokenizer, seed=0, **changes):
    return MaskingCollator(tokenizer, masker(tokenizer, **changes), seed)


TEXTS = ["red zebra runs in the forest " * 5, "cat", "", "a dog, a quick bird. " * 3]


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segment", [None, word_spans])
def test_windows_rejoin_to_the_text_and_hold_specials_at_their_ends_only(tokenizers, kind, segment):
    tokenizer = tokenizers[kind]
    rows = to_rows(documents(TEXTS), maker(tokenizer, segment=segment))
    assert max(rows["length"][:]) == 16
    bodies, special = [], {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    for row in rows:
        ids, word_ids = row["input_ids"], row["word_ids"]
        assert len(ids) == len(word_ids) == row["length"]
        assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
        assert not special & {*ids[1:-1]}
        assert [w == SPECIAL for w in word_ids] == [i in tokenizer.all_special_ids for i in ids]
        bodies += ids[1:-1]
    whole = [i for t in TEXTS for i in tokenizer(t, add_special_tokens=False)["input_ids"]]
    assert bodies == whole  # overlap 0: every token once, in order


def test_words_keep_their_pieces_together_in_rows(tokenizers):
    rows = to_rows(documents(["zebra red zebra"]), maker(tokenizers["bert"], segment=word_spans))
    z = [1] * 5  # z ##e ##b ##r ##a
    assert rows[0]["word_ids"] == [SPECIAL, *[0] * 5, 1, *[2] * 5, SPECIAL]
    assert len(z) == 5
    alone = to_rows(documents(["zebra red zebra"]), maker(tokenizers["bert"]))
    assert alone[0]["word_ids"] == [SPECIAL, *range(11), SPECIAL]


def test_the_first_text_of_a_pair_stands_in_every_window(tokenizers):
    pairs = documents(["red cat"], text_pair=["the dog runs " * 10])
    rows = to_rows(pairs, maker(tokenizers["bert"], segment=word_spans))
    title = tokenizers["bert"]("red cat", add_special_tokens=False)["input_ids"]
    assert len(rows) > 1
    for row in rows:
        assert row["input_ids"][1:3] == title
        assert row["token_type_ids"] == [0] * 4 + [1] * (row["length"] - 4)
        words = [w for w in row["word_ids"] if w >= 0]
        assert len(set(words)) == len(words)  # each word of both texts has a number of its own


# ---------------------------------------------------------------- packing


def test_packing_loses_nothing_and_fills_rows():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, 500).tolist()
    rows = pack(lengths, 64)
    assert sorted(w for row in rows for w in row) == list(range(500))
    assert max(sum(lengths[w] for w in row) for row in rows) <= 64
    assert len(rows) <= 1.06 * np.ceil(sum(lengths) / 64)
    assert pack([3, 3, 2, 2, 2], 6) == [[0, 1], [2, 3, 4]]  # the best that is possible
    assert pack([6, 6], 6) == [[0], [1]]


def test_packed_rows_hold_windows_of_one_corpus(tokenizers):
    texts = documents(["red cat", "dog", "a bird", "fish"])
    texts = texts.remove_columns("corpus").add_column("corpus", ["a", "b", "a", "b"])
    rows = to_rows(texts, maker(tokenizers["bert"], segment=word_spans))
    packed = pack_rows(rows, 64)
    assert [row["corpus"] for row in packed] == ["a", "b"]
    assert packed[0]["window_lengths"] == [4, 4] and packed[1]["window_lengths"] == [3, 3]
    assert packed[0]["word_ids"] == [-1, 0, 1, -1, -1, 2, 3, -1]  # words keep different numbers
    assert packed[0]["input_ids"] == rows[0]["input_ids"] + rows[2]["input_ids"]


def test_positions_begin_anew_and_nobody_sees_another_document(tokenizers):
    batch = collator(tokenizers["bert"]).positions([[2, 3], [4]], 6)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]
    sees = batch["attention_mask"]
    assert sees.shape == (2, 1, 6, 6) and sees.dtype == torch.bool
    same = [[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 1, 1]]
    for r in range(2):
        for i in range(6):
            assert sees[r, 0, i].tolist() == [same[r][i] == n for n in same[r]]


# ---------------------------------------------------------------- batches


def test_batches_are_padded_and_padding_is_no_target(tokenizers):
    tokenizer = tokenizers["bert"]
    rows = [{**row, "key": i} for i, row in enumerate(to_rows(documents(TEXTS), maker(tokenizer)))]
    batch = collator(tokenizer, mlm_probability=0.4)(rows)
    lengths = [row["length"] for row in rows]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for i, row in enumerate(rows):
        labels = batch["labels"][i]
        assert (labels[row["length"] :] == IGNORE).all()
        assert (batch["input_ids"][i, row["length"] :] == tokenizer.pad_token_id).all()
        for token, label, word in zip(
            batch["input_ids"][i], labels, [*row["word_ids"], *[SPECIAL] * 16], strict=False
        ):
            assert label == IGNORE or word >= 0
            assert label != IGNORE or word == SPECIAL or token in row["input_ids"]


def test_masks_depend_on_seed_and_key_alone(tokenizers):
    row = to_rows(
        documents(["red cat runs in the forest of the city"] * 1), maker(tokenizers["bert"])
    )
    row = {**row[0]}
    collate = collator(tokenizers["bert"], mlm_probability=0.4)

    def labels(key, collate=collate, beside=()):
        return collate([{**row, "key": key}, *beside])["labels"][0].tolist()

    torch.manual_seed(0)
    first = labels(5)
    torch.manual_seed(1)
    np.random.default_rng(7)
    assert labels(5) == first
    assert labels(5, beside=[{**row, "key": 9}]) == first  # whatever batch it is in
    assert labels(5, collator(tokenizers["bert"], seed=1, mlm_probability=0.4)) != first
    assert len({tuple(labels(key)) for key in range(20)}) > 15  # dynamic: anew for each key


def test_held_out_masks_are_made_once(tokenizers):
    rows = to_rows(documents(TEXTS), maker(tokenizers["bert"]))
    once = collator(tokenizers["bert"]).mask_for_good(rows)
    torch.manual_seed(3)
    again = collator(tokenizers["bert"]).mask_for_good(rows)
    assert once.to_list() == again.to_list() and "word_ids" not in once.column_names
    assert once["length"][:] == sorted(rows["length"][:], reverse=True)
    assert collator(tokenizers["bert"], seed=1).mask_for_good(rows).to_list() != once.to_list()
    batch = [once[i] for i in range(3)]
    collated = collator(tokenizers["bert"])(batch)
    assert collated["labels"][0].tolist() == once[0]["labels"]  # not masked once more
    with pytest.raises(InputError, match="no token of it is masked"):
        collator(tokenizers["bert"]).mask_for_good(
            to_rows(documents(["", "%"]), maker(tokenizers["bert"]))  # [UNK] is never masked
        )
    packed = join_windows({k: [r[k] for r in rows] for k in rows.column_names})
    assert len(packed["input_ids"]) == sum(rows["length"][:])
