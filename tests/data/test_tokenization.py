"""Preprocessor: what it settles for a checkpoint, and what it makes of documents."""

import logging

import pytest
from datasets import Dataset
from tiny_models import classifier

from bertchain.data.batching import DocumentCollator
from bertchain.data.spans import SpanCollator
from bertchain.data.tokenization import Preprocessor
from bertchain.models.modeling import DocumentClassifierConfig
from bertchain.models.windows import WindowSpec, find_special_tokens


def preprocessor(path: str, num_spans: int = 0, tokenizer: str | None = None, **given):
    return Preprocessor.for_checkpoint(path, given, num_spans, tokenizer)


def test_the_config_tells_how_text_is_prepared(tiny_bert, tokenizers, tmp_path):
    made = preprocessor(tiny_bert, truncation="head_tail", max_seq_length=20)
    assert made.windows == WindowSpec("head_tail", 20)
    assert made.special == find_special_tokens(tokenizers["bert"])
    DocumentClassifierConfig(**made.config_fields).save_pretrained(tmp_path)
    config = DocumentClassifierConfig.from_pretrained(tmp_path)
    assert config.window_spec() == made.windows
    assert config.special_token_ids() == made.special
    assert (config.num_spans, config.pad_token_id) == (0, made.pad_id)


def test_a_trained_classifier_brings_its_windows_and_flags_win(tiny_bert, tmp_path):
    windows = WindowSpec("tail", 24).to_dict()
    classifier("roberta", windows=windows).save_pretrained(tmp_path)
    assert preprocessor(str(tmp_path), tokenizer=tiny_bert).windows == WindowSpec("tail", 24)
    changed = preprocessor(str(tmp_path), tokenizer=tiny_bert, truncation="head")
    assert changed.windows == WindowSpec("head", 24)


def test_encoding_logs_the_split_and_what_is_cut_off(tiny_bert, caplog):
    caplog.set_level(logging.INFO)
    documents = {
        "train": Dataset.from_dict({"id": ["0"], "text": ["cat " * 20], "labels": [1]}),
        "test": Dataset.from_dict({"id": ["0"], "text": ["dog"]}),
    }
    encoded = preprocessor(tiny_bert, max_seq_length=12).encode(documents, "model, ")
    columns = {"id", "labels", "windows", "length", "tokens", "cut"}
    assert set(encoded["train"].column_names) == columns
    assert encoded["train"]["tokens"][:] == [20] and encoded["train"]["cut"][:] == [10]
    assert encoded["test"]["tokens"][:] == [1] and encoded["test"]["cut"][:] == [0]
    assert encoded["train"]["length"][:] == [12] and encoded["test"]["length"][:] == [3]
    said = [record.message for record in caplog.records if "documents are" in record.message]
    assert [line.split(": ")[0] for line in said] == [
        "model, train, head 12",
        "model, test, head 12",
    ]
    assert "50.0 % of 20 tokens are cut" in said[0] and " 0.0 % of 1 tokens" in said[1]


@pytest.mark.parametrize("num_spans", [0, 1, 2])
def test_the_collator_fits_what_is_classified(tiny_bert, num_spans):
    made = preprocessor(tiny_bert, num_spans, max_seq_length=12)
    assert type(made.collator) is (SpanCollator if num_spans else DocumentCollator)
    assert made.collator.pad_id == made.pad_id and made.config_fields["num_spans"] == num_spans
    assert made.windows.truncation == ("hierarchical" if num_spans else "head")  # no word is lost
    rows = {"id": ["0", "1"], "text": ["red cat " * 8, "dog"], "labels": [0, 1]}
    if num_spans:
        words = [text.split() for text in rows.pop("text")]
        spans = [[[[0]] * num_spans, [[15]] * num_spans], [[[0]] * num_spans]]
        rows |= {"words": words, "spans": spans, "labels": [[0, 1], [1]]}
    encoded = made.encode({"train": Dataset.from_dict(rows)})["train"]
    batch = made.collator([*encoded])
    assert batch["input_ids"].shape == (2, 2 if num_spans else 1, 12)
    if num_spans:  # of both windows, the second document padded
        first, second = batch["token_positions"].tolist()
        assert first == [[[1]] * num_spans, [[12 + 6]] * num_spans]
        assert second == [[[1]] * num_spans, [[-1]] * num_spans]
