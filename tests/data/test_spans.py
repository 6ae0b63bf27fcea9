"""Words as targets: where their tokens are, and their vectors."""

import unicodedata
from unicodedata import combining

import numpy as np
import pytest
import torch
from datasets import Dataset

from bertchain.arguments.common import TargetArguments
from bertchain.data.spans import (
    cut_targets,
    infer_span_labels,
    offsets_of,
    pieces_of_words,
    read_targets,
    target_labels,
    target_words,
)
from bertchain.data.tables import Table
from bertchain.data.tokenization import resolve_windows
from bertchain.errors import InputError
from bertchain.models.loading import load_encoder
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


def test_vectors_are_hand_means_across_windows(tiny_bert, tokenizers, tmp_path):
    tokenizer = tokenizers["bert"]
    encoder = load_encoder(tiny_bert)[0].eval()
    spans = [[[[1], [0]], [[2], [1, 3]]], [[[0], [1]]], [[[39], [0]], [[5, 38], [20]]]]
    given = {"truncation": "hierarchical", "max_seq_length": 12}
    windows, special = resolve_windows(given, tiny_bert, tokenizer)
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


def test_what_windows_cut_off_is_an_error_and_not_lost(tiny_bert, tokenizers):
    tokenizer = tokenizers["bert"]
    windows, special = resolve_windows({"max_seq_length": 12}, tiny_bert, tokenizer)
    spans = [[[[0]]], [[[0]]], [[[39]], [[2]]]]
    with pytest.raises(InputError, match="--truncation head cuts off 1 targets"):
        cut_targets(documents(spans), tokenizer, windows, special)


def table(**columns):
    return Table(Dataset.from_dict(columns), "x.jsonl")


def test_tokens_pairs_and_spans_by_hand():
    words = [["a", "b", "c"], ["d"]]
    options = TargetArguments(task_level="token", skip_labels=["X"])
    read = read_targets(table(tokens=words, tags=[["N", "X", "V"], ["X"]]), options, None)
    assert read["spans"][:] == [[[[0]], [[2]]]] and read["tags"][:] == [["N", "V"]]
    assert read["id"][:] == ["0"]  # the second has no target
    options = TargetArguments(task_level="pair")
    heads, relations = [[1, -1, 1], [-1]], [["subj", "root", "obj"], ["root"]]
    read = read_targets(table(tokens=words, heads=heads, deprels=relations), options, None)
    assert read["spans"][:] == [[[[1], [0]], [[1], [2]]]] and read["tags"][:] == [["subj", "obj"]]
    assert target_words(read) == ["b a", "b c"]
    options = TargetArguments(task_level="span", target_label_field="role", longest_target=1)
    spans = [[{"span": [1], "role": "P"}, {"span": [0, 2], "role": "Q"}], []]
    read = read_targets(table(tokens=words, targets=spans), options, None)
    assert read["spans"][:] == [[[[1]]]] and read["tags"][:] == [["P"]]


@pytest.mark.parametrize(
    ("level", "columns", "message"),
    [
        ("token", {"tokens": [["a"]]}, "no column 'tags'"),
        ("token", {"tokens": [["a"]], "tags": [["N", "V"]]}, "row 1: tags must have one entry"),
        ("token", {"tokens": ["a"], "tags": [["N"]]}, "row 1: tokens is not a list"),
        ("pair", {"tokens": [["a"]], "heads": [[5]], "deprels": [["x"]]}, r"names word \[5\] of 1"),
        ("pair", {"tokens": [["a"]], "heads": [[-1]], "deprels": [["x"]]}, "no pair with a label"),
        ("span", {"tokens": [["a"]], "targets": [[{"span": [0]}]]}, "--target_label_field"),
    ],
)
def test_bad_targets_name_the_row(level, columns, message):
    with pytest.raises(InputError, match=message):
        read_targets(table(**columns), TargetArguments(task_level=level), None)


def test_labels_that_training_lacks_are_said_and_kept(caplog):
    rows = {
        "train": Dataset.from_dict({"tags": [["N", "V"], ["N"]]}),
        "test": Dataset.from_dict({"tags": [["N", "Z"]]}),
    }
    spec = infer_span_labels(rows, "tags")
    assert spec.names == ("N", "V", "Z") and "1 labels do not occur in training: Z" in caplog.text
    assert target_labels(rows["test"], spec).tolist() == [0, 2]


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


# ---------------------------------------------------------------- the script
