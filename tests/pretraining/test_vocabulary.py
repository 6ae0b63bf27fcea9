"""New tokens: which words, where their embeddings begin, and that they survive a save."""

import pytest
import torch
import transformers
from conftest import tiny_bert_config
from tiny_models import tiny_encoder
from transformers import AutoModelForMaskedLM, AutoTokenizer

from bertchain.errors import InputError
from bertchain.pretraining.vocabulary import (
    add_words,
    frequent_split_words,
    grow_embeddings,
    words_to_add,
)

KINDS = ["bert", "roberta", "unigram"]


def fresh(tokenizer, folder):
    """A copy, so that the shared tokenizer keeps its vocabulary."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_the_words_that_save_most_tokens_come_first(tokenizers):
    tokenizer = tokenizers["bert"]
    texts = ["Zebra zebra, graphene 12345 red red", "zebra graphene graphene graphene ox"] * 3
    # zebra 9 x 4 pieces saved, graphene 12 x 7, ox 3 times only, red is a token, 12345 a number
    assert frequent_split_words(texts, tokenizer, 10) == ["graphene", "zebra"]
    assert frequent_split_words(texts, tokenizer, 1) == ["graphene"]
    # where a space is a token of its own an added word takes two, so that two pieces save nothing
    assert frequent_split_words(["x"] * 20 + ["o x"] * 20, tokenizers["roberta"], 10) == []
    assert frequent_split_words(["ox"] * 20, tokenizers["roberta"], 10) == ["ox"]
    assert frequent_split_words(["ox"] * 20, tokenizer, 10) == ["ox"]


@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_round_trip(tokenizers, tmp_path, kind):
    tokenizer = fresh(tokenizers[kind], tmp_path / "a")
    text = "the graphene cat and graphenes of zebra graphene"
    pieces = add_words(tokenizer, ["graphene", "zebra"])
    assert len(pieces) == 2 and min(pieces) == len(tokenizers[kind])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    new = {w: tokenizer.convert_tokens_to_ids(w) for w in ("graphene", "zebra")}
    assert ids.count(new["graphene"]) == 2 and ids.count(new["zebra"]) == 1  # whole words only
    assert tokenizer.decode(ids) == text
    tokenizer.save_pretrained(tmp_path / "b")
    again = AutoTokenizer.from_pretrained(tmp_path / "b")
    assert len(again) == len(tokenizer)
    assert again(text, add_special_tokens=False)["input_ids"] == ids and again.decode(ids) == text
    for old in pieces.values():
        assert old and max(old) < len(tokenizers[kind])
    assert [tokenizer.decode(old) for old in pieces.values()] == ["graphene", "zebra"]


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "distilbert", "electra", "albert", "modernbert"]
)
def test_new_embeddings_begin_at_the_mean_of_their_pieces(kind, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_encoder(kind).config).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    size = model.config.vocab_size
    output = model.get_output_embeddings()
    if output.bias is not None:
        torch.nn.init.normal_(output.bias)
    before = model(ids).logits
    grow_embeddings(model, size + 2, {size: [5, 7], size + 1: [9]})
    table = model.get_input_embeddings().weight
    assert table.shape[0] == model.config.vocab_size == size + 2
    torch.testing.assert_close(table[size], (table[5] + table[7]) / 2)
    torch.testing.assert_close(table[size + 1], table[9])
    after = model(ids).logits
    torch.testing.assert_close(after[..., :size], before)  # the rest is as it was
    torch.testing.assert_close(after[..., size], (before[..., 5] + before[..., 7]) / 2)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(again.eval()(ids).logits, after)
    if model.config.tie_word_embeddings:
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


def test_an_untied_head_grows_too():
    config = tiny_bert_config(60, tie_word_embeddings=False)
    model = transformers.BertForMaskedLM(config)
    grow_embeddings(model, 61, {60: [5, 7]})
    output = model.get_output_embeddings()
    assert output.weight is not model.get_input_embeddings().weight
    torch.testing.assert_close(output.weight[60], (output.weight[5] + output.weight[7]) / 2)


def test_a_file_of_words(tokenizers, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("zebra\n\nred\nzebra\n graphene \n", encoding="utf-8")
    assert words_to_add(str(path), [], tokenizers["bert"]) == ["zebra", "graphene"]  # red is known
    path.write_bytes("词汇\n".encode("gbk"))
    assert words_to_add(str(path), [], tokenizers["bert"], "gbk") == ["词汇"]
    with pytest.raises(InputError, match=r"--add_tokens .*--encoding utf-8: .* can't decode"):
        words_to_add(str(path), [], tokenizers["bert"])
    path.write_text("red\n")
    for asked, message in (
        (str(path), "no word in it is new"),
        ("auto:x", "write auto:500"),
        ("auto:0", "write auto:500"),
        ("nowhere.txt", "no such file"),
        ("auto:5", "splits no word that occurs 5 times"),
    ):
        with pytest.raises(InputError, match=message):
            words_to_add(asked, ["red cat"] * 9, tokenizers["bert"])
