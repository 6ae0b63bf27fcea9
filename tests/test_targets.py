"""Words as targets: where their tokens are, their vectors, and the script on every level."""

import gzip
import json
import unicodedata
from unicodedata import combining

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOPICS, make_rows
from datasets import Dataset

import run_finetune
import run_probe
from arguments import TargetArguments
from batches import settle_windows
from command_line import InputError
from features import TargetStore
from modeling import load_classifier, load_encoder
from probes import control_labels
from targets import (
    cut_targets,
    offsets_of,
    pieces_of_words,
    read_targets,
    settle_target_labels,
    target_labels,
    target_words,
)
from text_data import Table

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


def documents(slots):
    return Dataset.from_dict(
        {"id": [str(i) for i in range(len(WORDS))], "words": WORDS, "slots": slots}
    )


def test_vectors_are_hand_means_across_windows(tiny_bert, tokenizers, tmp_path):
    tokenizer = tokenizers["bert"]
    encoder = load_encoder(tiny_bert)[0].eval()
    slots = [[[[1], [0]], [[2], [1, 3]]], [[[0], [1]]], [[[39], [0]], [[5, 38], [20]]]]
    given = {"truncation": "hierarchical", "max_seq_length": 12}
    windows, special = settle_windows(given, tiny_bert, tokenizer)
    cut = cut_targets(documents(slots), tokenizer, windows, special)
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
            for target in slots[number]:
                means = [
                    states[:, [p for word in slot for p in pieces[word]]].mean(1) for slot in target
                ]
                expected = torch.cat(means, dim=-1)
                np.testing.assert_allclose(features[row, :, 0], expected, atol=1e-5)
                row += 1


def test_what_windows_cut_off_is_an_error_and_not_lost(tiny_bert, tokenizers):
    tokenizer = tokenizers["bert"]
    windows, special = settle_windows({"max_seq_length": 12}, tiny_bert, tokenizer)
    slots = [[[[0]]], [[[0]]], [[[39]], [[2]]]]
    with pytest.raises(InputError, match="--truncation head cuts off 1 targets"):
        cut_targets(documents(slots), tokenizer, windows, special)


def table(**columns):
    return Table(Dataset.from_dict(columns), "x.jsonl")


def test_tokens_pairs_and_spans_by_hand():
    words = [["a", "b", "c"], ["d"]]
    options = TargetArguments(task_level="token", skip_labels=["X"])
    read = read_targets(table(tokens=words, tags=[["N", "X", "V"], ["X"]]), options, None)
    assert read["slots"][:] == [[[[0]], [[2]]]] and read["tags"][:] == [["N", "V"]]
    assert read["id"][:] == ["0"]  # the second has no target
    options = TargetArguments(task_level="pair")
    heads, relations = [[1, -1, 1], [-1]], [["subj", "root", "obj"], ["root"]]
    read = read_targets(table(tokens=words, heads=heads, deprels=relations), options, None)
    assert read["slots"][:] == [[[[1], [0]], [[1], [2]]]] and read["tags"][:] == [["subj", "obj"]]
    assert target_words(read) == ["b a", "b c"]
    options = TargetArguments(task_level="span", target_label_field="role", longest_target=1)
    spans = [[{"span": [1], "role": "P"}, {"span": [0, 2], "role": "Q"}], []]
    read = read_targets(table(tokens=words, targets=spans), options, None)
    assert read["slots"][:] == [[[[1]]]] and read["tags"][:] == [["P"]]


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
    spec = settle_target_labels(rows, "tags")
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


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences with tags, heads and targets that follow from the words."""
    folder = tmp_path_factory.mktemp("sentences")
    topic = {word: name for name, words in TOPICS.items() for word in words}
    for split, n, seed in (("train", 80, 0), ("test", 30, 1)):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            for row in make_rows(n, seed, words=(6, 14)):
                words = row["text"].split()
                tags = [topic.get(word, "other") for word in words]
                heads = [i - 1 for i in range(len(words))]
                relations = ["root", *tags[:-1]]  # what the head is
                targets = [
                    {"span": [i, i + 1], "kind": tags[i]} for i in range(0, len(words) - 1, 3)
                ]
                record = {"id": row["id"], "tokens": words, "tags": tags, "heads": heads}
                record |= {"deprels": relations, "targets": targets}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.mark.parametrize("level", ["token", "pair", "span"])
def test_the_script_on_every_level(tiny_bert, sentences, tmp_path, level):
    arguments = {
        "models": [f"base={tiny_bert}"],
        "train_file": str(sentences / "train.jsonl.gz"),
        "test_file": str(sentences / "test.jsonl.gz"),
        "id_column_name": "id",
        "task_level": level,
        "output_dir": str(tmp_path / "o"),
        **({"target_label_field": "kind"} if level == "span" else {}),
        **({"analyses": ["control", "mdl"]} if level == "token" else {}),
    }
    headline = run_probe.main(arguments)
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    assert score["base: best frozen layer"] > max(0.85, score["majority class"])
    assert set(headline["layer"][2:]) <= {f"{k} word" for k in range(5)}
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    if level == "token":
        measured = results.pivot_table(index="layer", columns="metric", values="value")
        scores = results[(results.metric == "accuracy") & (results.split == "test")]
        linear = scores[scores.probe == "linear"].set_index("layer")["value"]
        expected = linear - measured["control_accuracy"].dropna()
        np.testing.assert_allclose(measured["selectivity"].dropna(), expected, atol=1e-12)
        report = (tmp_path / "o" / "report.md").read_text()
        assert "## Selectivity" in report and "## Description length" in report
    again = run_probe.main([str(tmp_path / "o" / "run_args.yaml")])
    pd.testing.assert_frame_equal(again, headline)


def test_flags_of_other_levels_are_refused(tiny_bert, sentences, topic_files, tmp_path):
    def error(**arguments):
        fields = {"models": [tiny_bert], "train_file": str(sentences / "train.jsonl.gz")}
        with pytest.raises(InputError) as raised:
            run_probe.main({**fields, "output_dir": str(tmp_path / "x"), **arguments})
        return str(raised.value)

    assert "--token_pooling does not go" in error(task_level="token", token_pooling=["cls"])
    documents = {"train_file": topic_files["train"]}
    assert "--analyses control needs" in error(analyses=["control"], **documents)
    assert "--task_level word is not one of" in error(task_level="word")
    assert "--longest_target needs" in error(longest_target=1)
    assert "--skip_labels needs" in error(skip_labels=["x"])
    assert "--relations_column_name" in error(task_level="pair", relations_column_name="r")
    assert "--tokens_column_name" in error(task_level="token", tokens_column_name="w")
    assert "--tags_column_name" in error(task_level="token", tags_column_name="w")
    assert "--heads_column_name" in error(task_level="pair", heads_column_name="w")
    assert "--targets_column_name" in error(task_level="span", targets_column_name="w")


# ---------------------------------------------------------------- fine-tuning on words


BASICS = {
    "per_device_train_batch_size": 8,
    "learning_rate": 3e-3,
    "num_train_epochs": 8,
    "id_column_name": "id",
    "disable_tqdm": True,
    "use_cpu": True,
}


def finetune(tiny_bert, sentences, out, **arguments):
    fields = {
        **{"model_name_or_path": tiny_bert, "train_file": str(sentences / "train.jsonl.gz")},
        **{"test_file": str(sentences / "test.jsonl.gz"), "output_dir": str(out)},
    }
    return run_finetune.main({**BASICS, **fields, **arguments})


@pytest.mark.parametrize("level", ["token", "pair", "span"])
def test_fine_tuning_on_words(tiny_bert, sentences, tmp_path, level):
    target = {"task_level": level} | ({"target_label_field": "kind"} if level == "span" else {})
    out = tmp_path / "o"
    results = finetune(tiny_bert, sentences, out, max_seq_length=10, layers="last4", **target)
    assert results["test_accuracy"] > 0.9
    table = pd.read_csv(out / "predictions_test.csv")
    rows = pd.read_json(sentences / "test.jsonl.gz", lines=True)
    truth = {
        "token": [tag for tags in rows["tags"] for tag in tags],
        "pair": [tag for tags in rows["deprels"] for tag in tags[1:]],
        "span": [target["kind"] for own in rows["targets"] for target in own],
    }[level]
    assert list(table.columns[:3]) == ["id", "target", "prediction"] and len(table) == len(truth)
    assert results["test_accuracy"] == pytest.approx((table["prediction"] == truth).mean())
    assert list(table["id"].drop_duplicates()) == list(rows["id"])
    assert (table.groupby("id")["target"].max() + 1 == table.groupby("id").size()).all()
    again = {
        **{"model_name_or_path": str(out), "test_file": str(sentences / "test.jsonl.gz")},
        **{"id_column_name": "id", "output_dir": str(tmp_path / "p"), "use_cpu": True},
    }
    run_finetune.main(again | target)
    second = pd.read_csv(tmp_path / "p" / "predictions_test.csv")
    pd.testing.assert_frame_equal(second, table, atol=1e-5)
    with pytest.raises(
        InputError, match=r"head was trained for other labels|is not one of the classifier"
    ):
        run_finetune.main(again | {"task_level": "token" if level == "pair" else "pair"})
    headline = run_probe.main(
        {
            **{"models": [f"base={tiny_bert}", f"tuned={out}"], "id_column_name": "id"},
            **{"train_file": str(sentences / "train.jsonl.gz"), "max_seq_length": 10},
            **{"test_file": str(sentences / "test.jsonl.gz"), "output_dir": str(tmp_path / "q")},
            **target,
        }
    )
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    own = score["tuned: as fine-tuned, own head"]
    assert own == pytest.approx(results["test_accuracy"])


def test_the_loss_of_words_is_that_of_one_large_batch(tiny_bert, sentences, tmp_path):
    """Sentences differ in length, so that a mean of batch means would differ."""
    plain = {
        **{"task_level": "token", "max_steps": 1, "optim": "sgd", "learning_rate": 1.0},
        **{"head_dropout": 0.0, "encoder_dropout": 0.0, "max_grad_norm": 0.0, "warmup_steps": 0},
        **{"layer_lr_decay": 1.0, "eval_strategy": "no", "save_strategy": "no"},
        **{"load_best_model_at_end": False, "max_train_samples": 30, "weight_decay": 0.0},
    }
    states = []
    for batch, accumulation in ((12, 1), (4, 3)):
        out = tmp_path / str(batch)
        options = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
        }
        finetune(tiny_bert, sentences, out, **plain, **options)
        states.append(load_classifier(out)[0].state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-5, rtol=1e-4)


def test_flags_that_words_do_not_go_with(tiny_bert, sentences, tmp_path):
    for name, value in (
        ("num_folds", 3), ("seeds", [1, 2]), ("train_fraction", 0.5), ("rdrop_alpha", 1.0),
        ("token_pooling", "mean"), ("segments_per_forward", 2), ("sample_submission", "x.csv"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"--{name} does not go with --task_level token"):
            finetune(tiny_bert, sentences, tmp_path / "x", task_level="token", **{name: value})
