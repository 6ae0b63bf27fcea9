"""Labelled spans of words: what is read, where their tokens are, and their vectors."""

import json
import unicodedata
from unicodedata import combining

import numpy as np
import pytest
import torch
from datasets import Dataset

from bertchain.arguments.common import SpanArguments
from bertchain.data.spans import (
    SpanCollator,
    cut_targets,
    hold_out_documents,
    infer_span_labels,
    offsets_of,
    pieces_of_words,
    read_splits,
    read_targets,
    target_texts,
    with_labels,
)
from bertchain.data.tables import Table
from bertchain.data.tokenization import resolve_windows
from bertchain.errors import InputError
from bertchain.models.loading import load_encoder
from bertchain.models.modeling import DocumentClassifierConfig
from bertchain.probing.analyses import control_labels
from bertchain.probing.features import TargetStore

pytestmark = pytest.mark.versions

WORDS = [["the", "catdog", "runs", "."], ["zebra", "x"], ["old", "house"] * 20]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "unigram"])
def test_every_token_belongs_to_its_word(tokenizers, kind):
    """Pieces of a word, joined, are the word, whatever the tokenizer does with spaces."""
    tokenizer = tokenizers[kind]
    for words in (*WORDS, ["don't", "(x)", "naïve"]):
        ids, pieces = pieces_of_words(words, tokenizer)
        assert ids == tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        assert all(pieces) and [p for own in pieces for p in own] == sorted(
            p for own in pieces for p in own
        )
        for word, own in zip(words, pieces, strict=True):
            text = tokenizer.decode([ids[p] for p in own]).replace(" ", "")
            if "[UNK]" not in text and "<unk>" not in text:
                assert plain(text) == plain(word)


def plain(text):
    """What a normaliser may do: small letters, no accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not combining(c))


def documents(spans):
    return Dataset.from_dict(
        {"id": [str(i) for i in range(len(WORDS))], "words": WORDS, "spans": spans}
    )


def test_vectors_are_hand_means_across_windows(four_blocks, tokenizers, tmp_path):
    tokenizer = tokenizers["bert"]
    encoder = load_encoder(four_blocks)[0].eval()
    spans = [[[[1], [0]], [[2], [1, 3]]], [[[0], [1]]], [[[39], [0]], [[5, 38], [20]]]]
    given = {"truncation": "hierarchical", "max_seq_length": 12}
    windows, special = resolve_windows(given, four_blocks, tokenizer)
    cut = cut_targets(documents(spans), tokenizer, windows, special)
    assert len(cut[2]["windows"]) == 4 and list(offsets_of(cut)) == [0, 2, 3, 5]
    for budget in (1, 8192):
        store = TargetStore(12, 2, tmp_path / str(budget), encoder, 0)
        features = store.of(cut, ["word"], budget, "x")
        assert features.shape == (5, 5, 1, 64)
        row = 0
        for number, words in enumerate(WORDS):
            _, pieces = pieces_of_words(words, tokenizer)
            states = []  # of each token of the text, by layer: its window has 10 of them
            for window in cut[number]["windows"]:
                with torch.no_grad():
                    found = encoder(torch.tensor([window]), output_hidden_states=True)
                states.append(torch.stack(found.hidden_states)[:, 0, 1:-1])
            states = torch.cat(states, dim=1)  # [layers, tokens, hidden]
            for target in spans[number]:
                means = [
                    states[:, [p for word in span for p in pieces[word]]].mean(1) for span in target
                ]
                expected = torch.cat(means, dim=-1)
                np.testing.assert_allclose(features[row, :, 0], expected, atol=1e-5)
                row += 1


def test_a_batch_pads_targets_spans_and_labels():
    rows = [
        {"windows": [[2, 5, 3], [2, 6, 7, 3]], "token_positions": [[[1, 9]], [[10]]]},
        {"windows": [[2, 8, 3]], "token_positions": [[[]]]},  # a word without any token
    ]
    batch = SpanCollator(pad_id=0, max_seq_length=8)(
        [row | {"labels": labels} for row, labels in zip(rows, [[1, 0], [2]], strict=True)]
    )
    assert batch["input_ids"].shape == (2, 2, 4)  # so position 9, of window 1, is 5 of both
    assert batch["token_positions"].tolist() == [[[[1, 5]], [[6, -1]]], [[[-1, -1]], [[-1, -1]]]]
    assert batch["labels"].tolist() == [[1, 0], [2, -100]]
    assert "labels" not in SpanCollator(pad_id=0, max_seq_length=8)(rows)


def test_what_windows_cut_off_is_an_error_and_not_lost(tiny_bert, tokenizers):
    tokenizer = tokenizers["bert"]
    windows, special = resolve_windows({"max_seq_length": 12}, tiny_bert, tokenizer)
    spans = [[[[0]]], [[[0]]], [[[39]], [[2]]]]
    with pytest.raises(InputError, match="--truncation head cuts off 1 targets"):
        cut_targets(documents(spans), tokenizer, windows, special)


def table(**columns):
    return Table(Dataset.from_dict(columns), "x.jsonl")


OPTIONS = SpanArguments("spans")


def labelled(*targets):
    """A column of spans with one row: (words, label) of each."""
    return [[{"words": words, "label": label} for words, label in targets]]


def test_spans_and_pairs_by_hand():
    words = [["a", "b", "c"], ["d"]]
    spans = [*labelled(([[0]], "N"), ([[1]], None), ([[0, 2]], "V")), []]
    read = read_targets(table(tokens=words, spans=spans), OPTIONS, None)
    assert read["spans"][:] == [[[[0]], [[0, 2]]]]  # what has no label is left out
    assert read["tags"][:] == [["N", "V"]] and read["words"][:] == words[:1]
    assert read["id"][:] == ["0"] and read["text"][:] == ["a b c"]  # the second has no target
    pairs = [[], *labelled(([[0], [0]], 7))]
    columns = {"w": words, "links": pairs, "key": ["x", "y"]}
    read = read_targets(table(**columns), SpanArguments("links", "w"), "key")
    assert read["spans"][:] == [[[[0], [0]]]] and read["tags"][:] == [["7"]]
    assert read["id"][:] == ["y"] and target_texts(read) == ["d d"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tokens": [["a"]]}, "no column 'spans' .--spans_column_name"),
        ({"spans": labelled(([[0]], "N"))}, "no column 'tokens' .--tokens_column_name"),
        ({"tokens": ["a"], "spans": labelled(([[0]], "N"))}, "row 1: tokens is not a list"),
        ({"tokens": [["a"]], "spans": ["x"]}, "row 1: spans must be a list of objects"),
        ({"tokens": [["a"]], "spans": [[1]]}, "row 1: spans must be a list of objects"),
        ({"tokens": [["a"]], "spans": [{"words": [[0]], "label": "N"}]}, "must be a list of obj"),
        ({"tokens": [["a"]], "spans": [[{"words": [[0]]}]]}, "row 1: .* there are: words"),
        ({"tokens": [["a"]], "spans": [[{"label": "N"}]]}, "row 1: .* there are: label"),
        ({"tokens": [["a"]], "spans": labelled(([0], "N"))}, r"list of lists .* \[0\]"),
        ({"tokens": [["a"]], "spans": labelled((0, "N"))}, "list of lists of word numbers"),
        ({"tokens": [["a"]], "spans": labelled(([], "N"))}, "list of lists of word numbers"),
        ({"tokens": [["a"]], "spans": labelled(([[]], "N"))}, "row 1: a target names no word"),
        ({"tokens": [["a"]], "spans": labelled(([[5]], "N"))}, "names word 5; there are 0 to 0"),
        ({"tokens": [["a"]], "spans": labelled(([[-1]], "N"))}, "names word -1"),
        ({"tokens": [["a"]], "spans": labelled(([["x"]], "N"))}, "'x' is not the number of a word"),
        ({"tokens": [["a"]], "spans": labelled(([[np.inf]], "N"))}, "inf is not the number"),
        ({"tokens": [["a"]], "spans": labelled(([[0]], None))}, "'spans' holds no label"),
        ({"tokens": [["a"]], "spans": [[]]}, "'spans' holds no label"),
    ],
)
def test_bad_targets_name_the_row(columns, message):
    with pytest.raises(InputError, match=message) as raised:
        read_targets(table(**columns), OPTIONS, None)
    assert "x.jsonl" in str(raised.value)


def test_spans_and_pairs_are_not_mixed():
    words = [["a", "b"]] * 2
    spans, pairs = labelled(([[0]], "N"), ([[1]], "V")), labelled(([[0], [1]], "N"))
    limits = {"train": None, "test": 1}

    def read(train, test):
        tables = {
            "train": table(tokens=words, spans=train),
            "test": table(tokens=words, spans=test),
        }
        return read_splits(tables, limits, OPTIONS, None)

    documents, num_spans = read(pairs * 2, pairs * 2)
    assert num_spans == 2 and [len(rows) for rows in documents.values()] == [2, 1]
    assert read(spans * 2, spans + pairs)[1] == 1  # the test row beyond the limit is not read
    for train, test, name in ((spans + pairs, spans * 2, "1"), (spans * 2, pairs + spans, "0")):
        with pytest.raises(InputError, match=rf"x.jsonl, document {name}: a target has 2 lists"):
            read(train, test)


def test_a_share_of_the_training_documents_is_held_out():
    train = Dataset.from_dict({"id": [str(i) for i in range(20)]})
    found = hold_out_documents({"train": train, "test": train}, 0.2, seed=3)
    held_out, kept = found["validation"]["id"][:], found["train"]["id"][:]
    assert len(held_out) == 4 and sorted(held_out + kept, key=int) == train["id"][:]
    assert held_out == hold_out_documents({"train": train}, 0.2, seed=3)["validation"]["id"][:]
    given = {"train": train, "validation": train}
    assert hold_out_documents(given, 0.2, seed=3) is given
    with pytest.raises(InputError, match="leaves none"):
        hold_out_documents({"train": train.select([0])}, 0.2, seed=3)


def test_labels_that_training_lacks_are_said_and_kept(caplog):
    rows = {
        "train": Dataset.from_dict({"tags": [["N", "V"], ["N"]]}),
        "test": Dataset.from_dict({"tags": [["N", "Z"]]}),
    }
    spec = infer_span_labels(rows, "tags")
    assert spec.names == ("N", "V", "Z") and "1 labels do not occur in training: Z" in caplog.text
    rows = {name: part.add_column("id", ["r"] * len(part)) for name, part in rows.items()}
    assert with_labels(rows["test"], spec)["labels"][:] == [[0, 2]]
    trained = infer_span_labels({"train": rows["train"]}, "tags")
    with pytest.raises(InputError, match="document r: label 'Z' is not one of the classifier's"):
        with_labels(rows["test"], trained)
    with pytest.raises(InputError, match="one label only"):
        infer_span_labels({"train": Dataset.from_dict({"tags": [["N"]]})}, "tags")


def test_control_labels_belong_to_types():
    types = {"train": ["a", "b", "a", "c"] * 50, "test": ["c", "a", "new"]}
    labels = np.array([0, 1, 1, 0] * 50)
    control = control_labels(types, labels, 3, seed=1)
    assert len({*zip(types["train"], control["train"].tolist(), strict=True)}) == 3
    by_type = dict(zip(types["train"], control["train"].tolist(), strict=True))
    assert control["test"].tolist()[:2] == [by_type["c"], by_type["a"]]
    assert set(control["train"].tolist()) <= {0, 1}  # label 2 has no share
    again = control_labels(types, labels, 3, seed=1)
    assert (control["test"] == again["test"]).all()


def test_a_config_of_earlier_versions_is_read(tmp_path):
    DocumentClassifierConfig(num_spans=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["slots"] = config.pop("num_spans")
    (tmp_path / "config.json").write_text(json.dumps(config))
    read = DocumentClassifierConfig.from_pretrained(tmp_path)
    assert read.num_spans == 2 and "slots" not in read.to_dict()
