"""Labelled words, spans and pairs through the scripts: fine-tuning and probing."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TOPICS, make_rows
from transformers import AutoModel

import run_finetune
import run_probe
from bertchain.errors import InputError
from bertchain.models.describe import describe_checkpoint
from bertchain.models.loading import load_classifier

KINDS = ("words", "pairs", "phrases")  # columns of `sentences`


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Sentences whose labels follow from the words, in a column of spans for each kind."""
    folder = tmp_path_factory.mktemp("sentences")
    topic = {word: name for name, words in TOPICS.items() for word in words}
    for split, n, seed in (("train", 80, 0), ("test", 30, 1)):
        with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
            for row in make_rows(n, seed, words=(6, 14)):
                words = row["text"].split()
                tags = [topic.get(word, "other") for word in words]
                spans = {
                    "words": [[[i]] for i in range(len(words))],
                    "pairs": [[[i - 1], [i]] for i in range(1, len(words))],
                    "phrases": [[[i, i + 1]] for i in range(0, len(words) - 1, 3)],
                }
                record = {"id": row["id"], "tokens": words}
                for kind, targets in spans.items():  # the first word gives the label
                    record[kind] = [{"words": own, "label": tags[own[0][0]]} for own in targets]
                for own in record["words"]:
                    own |= {"place": f"{own['words'][0][0] % 2}", "same": own["label"]}
                file.write(json.dumps(record) + "\n")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_probing_words(four_blocks, sentences, tmp_path, kind):
    arguments = {
        "models": [f"base={four_blocks}"],
        "train_file": str(sentences / "train.jsonl.gz"),
        "test_file": str(sentences / "test.jsonl.gz"),
        "id_column_name": "id",
        "spans_column_name": kind,
        "output_dir": str(tmp_path / "o"),
        **({"analyses": ["control", "mdl", "erasure"]} if kind == "words" else {}),
        **({"concept_column_names": ["same"]} if kind == "words" else {}),
    }
    headline = run_probe.main(arguments).headline
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    assert score["base: best frozen layer"] > max(0.85, score["majority class"])
    assert set(headline["layer"][2:]) <= {f"{k} word" for k in range(5)}
    results = pd.read_csv(tmp_path / "o" / "results.csv")
    if kind == "words":
        measured = results.pivot_table(index="layer", columns="metric", values="value")
        scores = results[(results.metric == "accuracy") & (results.split == "test")]
        linear = scores[scores.probe == "linear"].set_index("layer")["value"]
        expected = linear - measured["control_accuracy"].dropna()
        np.testing.assert_allclose(measured["selectivity"].dropna(), expected, atol=1e-12)
        report = (tmp_path / "o" / "report.md").read_text()
        erased = pd.read_csv(tmp_path / "o" / "erasure.csv").set_index(["concept", "layer"])
        for layer in range(5):
            same = erased.loc[("same", layer)]
            assert same["concept before"] == linear[layer] and same["directions"] == 3
            assert same["concept after"] == same["majority"] == score["majority class"]
        assert "## Selectivity" in report and "## Description length" in report
    again = [str(tmp_path / "o" / "run_args.yaml"), "--output_dir", str(tmp_path / "again")]
    again = run_probe.main(again).headline
    pd.testing.assert_frame_equal(again, headline)


def test_flags_of_probing_that_words_do_not_go_with(tiny_bert, sentences, topic_files, tmp_path):
    def error(**arguments):
        fields = {"models": [tiny_bert], "train_file": str(sentences / "train.jsonl.gz")}
        with pytest.raises(InputError) as raised:
            run_probe.main({**fields, "output_dir": str(tmp_path / "x"), **arguments})
        return str(raised.value)

    spans = {"spans_column_name": "words"}
    assert "--token_pooling does not go" in error(**spans, token_pooling=["cls"])
    documents = {"train_file": topic_files["train"]}
    assert "--analyses control needs" in error(analyses=["control"], **documents)
    assert "--tokens_column_name" in error(**spans, tokens_column_name="w")
    assert "--spans_column_name" in error(spans_column_name="w")
    concepts = {"analyses": ["erasure"], "concept_column_names": ["tense"]}
    said = error(**spans, **concepts)
    assert "targets have no field 'tense' (--concept_column_names)" in said
    assert "words, label, place, same" in said


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


@pytest.mark.versions
@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_on_words(tiny_bert, sentences, tmp_path, kind):
    target, out = {"spans_column_name": kind}, tmp_path / "o"
    results = finetune(tiny_bert, sentences, out, max_seq_length=10, layers="last4", **target)
    assert results["test_accuracy"] > 0.9
    table = pd.read_csv(out / "predictions_test.csv")
    rows = pd.read_json(sentences / "test.jsonl.gz", lines=True)
    truth = [target["label"] for own in rows[kind] for target in own]
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
        other = {"spans_column_name": "words" if kind == "pairs" else "pairs"}
        run_finetune.main(again | other | {"output_dir": str(tmp_path / "r")})
    headline = run_probe.main(
        {
            **{"models": [f"base={tiny_bert}", f"tuned={out}"], "id_column_name": "id"},
            **{"train_file": str(sentences / "train.jsonl.gz"), "max_seq_length": 10},
            **{"test_file": str(sentences / "test.jsonl.gz"), "output_dir": str(tmp_path / "q")},
            **target,
        }
    ).headline
    score = dict(zip(headline["what"], headline["test accuracy"], strict=True))
    own = score["tuned: as fine-tuned, own head"]
    assert own == pytest.approx(results["test_accuracy"])
    probed = pd.read_csv(tmp_path / "q" / "predictions_test.csv")
    probed = probed[probed["probe"] == "own head"].reset_index(drop=True)
    assert list(probed["label"]) == truth
    pd.testing.assert_frame_equal(probed[list(table)], table, atol=1e-5)


def test_edge_probing(tiny_bert, sentences, tmp_path):
    """A frozen encoder, a mix of its layers, and attention over the tokens of each span."""
    probe = {"freeze": "encoder", "layers": "all", "layer_pooling": "weighted"}
    probe |= {"token_pooling": "attention", "spans_column_name": "phrases", "learning_rate": 3e-2}
    probe |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    out = tmp_path / "o"
    results = finetune(tiny_bert, sentences, out, **probe)
    table = pd.read_csv(out / "predictions_test.csv")
    rows = pd.read_json(sentences / "test.jsonl.gz", lines=True)
    truth = pd.Series([target["label"] for own in rows["phrases"] for target in own])
    assert results["test_accuracy"] > truth.value_counts(normalize=True).max() + 0.1
    model, missing = load_classifier(out)
    frozen, trained = AutoModel.from_pretrained(tiny_bert).state_dict(), model.encoder.state_dict()
    assert not missing and all(torch.equal(frozen[name], trained[name]) for name in trained)
    ids = torch.tensor([[[2, 8, 9, 10, 3]], [[2, 11, 12, 3, 0]]])
    places = torch.tensor([[[[1, 2, -1]], [[3, -1, -1]]], [[[1, 2, 3]], [[-1, -1, -1]]]])
    model.eval()
    with torch.no_grad():
        vectors = model.pool_words(ids, (ids > 0).long(), None, places)
        states = [
            model.encoder(row[:, row[0] > 0], output_hidden_states=True).hidden_states[1:]
            for row in ids
        ]
        for document, target in ((0, 0), (0, 1), (1, 0)):
            tokens = model.layer_mix(list(states[document]))[0]
            items = tokens[[p for p in places[document, target, 0].tolist() if p >= 0]]
            mask = torch.ones(1, len(items), dtype=torch.bool)
            expected = model.token_attention(items[None], mask)[0]
            torch.testing.assert_close(vectors[document, target], expected, atol=1e-5, rtol=1e-4)
    assert vectors[1, 1].abs().max() == 0  # a word without any token
    assert "attention over their tokens" in describe_checkpoint(str(out))
    assert list(table["prediction"].isin(truth.unique()).unique()) == [True]


@pytest.mark.versions
def test_a_resumed_run_on_words_equals_an_uninterrupted_one(tiny_bert, sentences, tmp_path):
    options = {"spans_column_name": "pairs", "num_train_epochs": 2}
    whole, half = tmp_path / "whole", tmp_path / "half"
    finetune(tiny_bert, sentences, whole, **options, keep_checkpoints=True, save_total_limit=2)
    first = min(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    half.mkdir()
    first.rename(half / first.name)
    finetune(tiny_bert, sentences, half, **options, resume_from_checkpoint="last")
    tables = [(folder / "predictions_test.csv").read_bytes() for folder in (whole, half)]
    assert tables[0] == tables[1]


def test_the_loss_of_words_is_that_of_one_large_batch(tiny_bert, sentences, tmp_path):
    """Sentences differ in length, so that a mean of batch means would differ."""
    plain = {
        **{"spans_column_name": "words", "max_steps": 1, "optim": "sgd", "learning_rate": 1.0},
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
        with pytest.raises(InputError, match=f"--{name} does not go with --spans_column_name"):
            finetune(
                tiny_bert, sentences, tmp_path / "x", **{"spans_column_name": "words", name: value}
            )
