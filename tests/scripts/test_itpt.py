"""run_itpt.py as a whole: every argument, long runs, several processes."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
import yaml
from conftest import PRETRAINING, make_rows, tiny_bert_config
from tiny_models import tiny_encoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import run_finetune
import run_itpt
from bertchain.data import contamination
from bertchain.errors import InputError

pytestmark = pytest.mark.versions

# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def further_pretrained(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("itpt")
    pd.DataFrame(make_rows(200, seed=5)).to_csv(folder / "a.csv", index=False)
    lines = [row["text"] for row in make_rows(100, seed=6)]
    (folder / "b.txt").write_text("\n".join(lines) + "\n\n")
    out = folder / "out"
    arguments = {
        "model_name_or_path": tiny_bert,
        "train_file": [str(folder / "a.csv"), str(folder / "b.txt")],
        "output_dir": str(out),
        "num_train_epochs": 8,
        "head_warmup_steps": 0,  # see test_head_warmup.py
        "learning_rate": 5e-3,
        "validation_split": 0.2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return out, run_itpt.main(arguments), arguments


def texts_of(arguments):
    table, lines = arguments["train_file"]
    return [*pd.read_csv(table)["text"], *Path(lines).read_text().split("\n")[:-2]]


def test_a_run_learns_and_writes_a_plain_checkpoint(further_pretrained, tiny_bert):
    out, results, arguments = further_pretrained
    history = pd.read_csv(out / "history.csv")
    assert history["epoch"][0] == 0 and len(history) == 9  # before the first step, and by epoch
    assert results["eval_perplexity"] < 0.5 * history["eval_perplexity"][0]
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"]))
    assert results["read"] == 301 and results["empty"] == 1
    assert (
        results["documents"] + results["held_out_documents"] == 300 - results["duplicates_removed"]
    )
    assert results["duplicates_removed"] == 301 - 1 - len(set(texts_of(arguments)))
    for load in (AutoModelForMaskedLM, AutoModel):
        _, info = load.from_pretrained(out, output_loading_info=True)
        assert {k.split(".")[0] for k in info["missing_keys"]} <= {"pooler"}
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(tiny_bert))
    names = {f.name for f in out.iterdir()}
    assert {"README.md", "history.png", "run_args.yaml", "all_results.json"} <= names
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f'data-value="{results["eval_perplexity"]!r}"' in page and "<svg" in page
    assert str(out.parent) not in page and "learning_rate: 0.005" in page
    assert not any(name.startswith((".", "checkpoint-")) for name in names)
    saved = json.loads((out / "all_results.json").read_text())
    assert saved["eval_loss"] == results["eval_loss"] and "commit" in saved["versions"]


def test_run_args_repeat_the_run_bit_by_bit(further_pretrained, tmp_path):
    out, _, _ = further_pretrained
    run_itpt.main([str(out / "run_args.yaml"), f"--output_dir={tmp_path / 'again'}"])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_missing_head_is_said_once_in_a_line(further_pretrained, tmp_path, caplog):
    _, results, arguments = further_pretrained
    assert results["untrained_weights"] > 0  # the tiny BERT is an encoder alone
    out, _, _ = further_pretrained
    with caplog.at_level(logging.WARNING, "bertchain"):
        changes = {"model_name_or_path": str(out), "output_dir": str(tmp_path / "x")}
        again = run_itpt.main({**arguments, **changes, "max_steps": 1})
        assert again["untrained_weights"] == 0
        assert "masked-LM head" not in caplog.text
        run_itpt.main({**arguments, "output_dir": str(tmp_path / "y"), "max_steps": 1})
    lines = [r.getMessage() for r in caplog.records if "masked-LM head" in r.getMessage()]
    assert len(lines) == 1 and "cls.predictions.transform.dense.weight" in lines[0]


def test_text_pairs_and_windows(tokenizers, tiny_bert, tmp_path):
    rows = [{"title": "red cat", "text": "the river of the forest " * 20}] * 30
    frame = pd.DataFrame(rows)
    frame["text"] += [f"dog {i}" for i in range(30)]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    results = run_itpt.main(
        {
            "model_name_or_path": tiny_bert,
            "train_file": [str(tmp_path / "rows.csv")],
            "text_column_names": ["title", "text"],
            "text_pair": True,
            "max_seq_length": 32,
            "max_steps": 1,
            "validation_split": 0.1,
            "output_dir": str(tmp_path / "o"),
            "use_cpu": True,
        }
    )
    assert np.isfinite(results["eval_loss"])


def test_bad_arguments_are_one_line(tiny_bert, tokenizers, topic_files, tmp_path):
    def error(**arguments):
        fields = {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "output_dir": str(tmp_path / "x"),
            "use_cpu": True,
        }
        with pytest.raises(InputError) as caught:
            run_itpt.main({**fields, **arguments})
        assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
        return str(caught.value)

    assert "no text: give --train_file" in error(train_file=[])
    assert "--mlm_probability 1.5" in error(mlm_probability=1.5)
    assert "no column 'body'" in error(text_column_names=["body"])
    assert "did you mean mlm_probability" in error(mlm_probabilty=0.2)
    transformers.GPT2Model(tiny_encoder("gpt2").config).save_pretrained(tmp_path / "gpt2")
    tokenizers["gpt2"].save_pretrained(tmp_path / "gpt2")
    assert "has no mask token" in error(model_name_or_path=str(tmp_path / "gpt2"))


# ---------------------------------------------------------------- arguments, one by one


@pytest.fixture
def run(tiny_bert, topic_files, tmp_path):
    """Run the script with few arguments of one's own; to --output_dir tmp_path / name."""

    def start(name="out", **changes):
        arguments = PRETRAINING | {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "max_steps": 2,
            "head_warmup_steps": 0,
            "output_dir": str(tmp_path / name),
        }
        results = run_itpt.main({k: v for k, v in {**arguments, **changes}.items() if v != ""})
        return results, tmp_path / name

    return start


def weights_of(folder):
    return (folder / "model.safetensors").read_bytes()


def test_corpora_weights_and_scores_of_each(run, topic_files, tmp_path):
    (tmp_path / "b.txt").write_text("\n".join(f"slow dog {i}" for i in range(40)))
    corpora = {"other": {"file": str(tmp_path / "b.txt"), "max_samples": 30}}
    results, _ = run(
        corpora=json.dumps(corpora),
        corpus_weights=["other=0.5", "task=2"],
        max_steps=-1,
        num_train_epochs=1,
        per_device_train_batch_size=6,
    )
    assert results["read"] == 90 and results["documents"] == 72
    task, other = results["documents"] - 24, 24
    _, out = run("again", corpora=json.dumps(corpora), max_steps=1)
    assert "other" in (out / "run_args.yaml").read_text()
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert history["step"].iloc[-1] == -(-(2 * task + other // 2) // 6)
    total = results["eval_masked_tokens_task"] + results["eval_masked_tokens_other"]
    assert total == results["eval_masked_tokens"]
    mean = sum(
        results[f"eval_loss_{c}"] * results[f"eval_masked_tokens_{c}"]
        for c in corpora | {"task": 0}
    )
    assert mean / total == pytest.approx(results["eval_loss"])


def test_corpora_from_the_yaml_of_all_arguments_and_sets_by_name(
    run, tiny_bert, topic_files, tmp_path
):
    sets = tmp_path / "sets"
    sets.mkdir()
    pd.DataFrame({"body": [f"slow dog {i} " * 9 for i in range(30)]}).to_csv(
        sets / "train.csv", index=False
    )
    arguments = {
        "model_name_or_path": tiny_bert,
        "train_file": ["task=" + topic_files["train"]],
        "corpora": {"other": [{"dataset_name": str(sets), "text_column_names": ["body"]}]},
        "max_steps": 1,
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(arguments))
    results = run_itpt.main([str(tmp_path / "run.yaml")])
    assert results["read"] == 180
    again = [str(tmp_path / "out" / "run_args.yaml"), "--output_dir", str(tmp_path / "again")]
    again = run_itpt.main([*again, "--max_train_samples", "20"])
    assert again["read"] == 40
    by_name, _ = run("n", train_file=[], dataset_name=str(sets), text_column_names=["body"])
    named = {"dataset_config_name": "default", "streaming": True}
    streamed, _ = run(
        "s", train_file=[], dataset_name=str(sets), text_column_names=["body"], **named
    )
    assert by_name["read"] == 30 and streamed["held_out_documents"] > 0
    with pytest.raises(InputError, match="has no split unsupervised"):
        wrong = {"x": {"dataset_name": str(sets), "split": "unsupervised"}}
        run("w", corpora=json.dumps(wrong))


def test_test_text_is_left_out_or_asked_for(run, topic_files, tmp_path):
    train = pd.read_csv(topic_files["train"])
    unseen = [f"a sad fish {i}" for i in range(61)]  # the others are beyond --max_train_samples
    test = pd.DataFrame({"text": [*unseen, train["text"][3].upper(), train["text"][9] + "."]})
    test.to_csv(tmp_path / "test.csv", index=False)
    path = str(tmp_path / "test.csv")
    results, out = run(test_file=[path])
    assert results["test_documents_removed"] >= 2 and results["transductive"] is False
    assert seen_in(out, test["text"]) == 0
    results, out = run("with", test_file=[path], include_test_text=True, validation_split=0.02)
    assert results["read"] == 60 + 63 and results["transductive"] is True
    assert seen_in(out, test["text"]) >= 60
    with pytest.raises(InputError, match=r"test\.csv seems to hold test text"):
        run("no", train_file=[path])
    results, _ = run("yes", train_file=[path, topic_files["train"]], include_test_text=True)
    assert results["transductive"] is True


def seen_in(folder, texts):
    known = contamination.read_fingerprint(folder)
    return contamination.count_seen(contamination.hash_texts(texts), known)


def test_the_fingerprint_of_earlier_pretraining_stays(run, tmp_path):
    (tmp_path / "b.txt").write_text("\n".join(f"slow dog {i}" for i in range(40)))
    _, first = run("first")
    _, second = run("second", model_name_or_path=str(first), train_file=[str(tmp_path / "b.txt")])
    hashes = [set(contamination.read_fingerprint(f).tolist()) for f in (first, second)]
    assert hashes[0] < hashes[1] and len(hashes[1]) == len(hashes[0]) + 32


def test_what_a_classifier_was_trained_on_stays_known(run, tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "tuned")
    rows = contamination.hash_texts(["one", "two"])
    contamination.write_fingerprint(tmp_path / "tuned", rows, contamination.TRAINED_FILE)
    kept = {"max_steps": 2, "save_at_steps": [1], "keep_checkpoints": True}
    _, out = run("go_on", model_name_or_path=str(tmp_path / "tuned"), **kept)
    for folder in (out, out / "step-1", out / "checkpoint-2"):
        assert contamination.trained_rows([str(folder)]).tolist() == sorted(rows.tolist())


def test_deduplication_can_be_switched_off(run, topic_files):
    twice = {"train_file": [topic_files["train"], topic_files["train"]]}
    results, _ = run(**twice)
    again, _ = run("all", deduplicate=False, **twice)
    assert results["duplicates_removed"] >= 60 and again["duplicates_removed"] == 0
    assert again["documents"] == pytest.approx(2 * results["documents"], abs=10)


@pytest.mark.parametrize("unit", ["token", "word"])
@pytest.mark.parametrize("packing", [False, True])
def test_masks_and_packing_train(run, unit, packing):
    results, _ = run(
        mask_unit=unit,
        packing=packing,
        max_steps=30,
        mlm_probability=0.4,
        mask_replace_prob=1.0,
        random_replace_prob=0.0,
    )
    assert results["rows"] == 48 - results["duplicates_removed"] or packing
    if packing:  # 60 texts of about 8 words and two specials into rows of 128
        assert results["rows"] == -(-results["tokens"] // 128) <= 5
    assert results["train_loss"] < 4.0
    assert results["eval_loss"] < 3.5  # log of the vocabulary: 4.7


def test_packing_an_architecture_that_cannot_is_one_line(run, tokenizers, tmp_path):
    model = AutoModelForMaskedLM.from_config(tiny_encoder("deberta-v2").config)
    model.resize_token_embeddings(len(tokenizers["bert"]))
    model.save_pretrained(tmp_path / "deberta")
    tokenizers["bert"].save_pretrained(tmp_path / "deberta")
    with pytest.raises(InputError, match="--packing does not work with deberta-v2"):
        run(model_name_or_path=str(tmp_path / "deberta"), packing=True, max_seq_length=30)


def test_batches_by_tokens(run):
    options = {"max_steps": -1, "num_train_epochs": 1, "batch_by_length": False}
    by_rows, out = run(per_device_train_batch_size=8, **options)
    by_tokens, other = run("tokens", tokens_per_batch=64, **options)
    steps = [pd.read_csv(folder / "history.csv")["step"].iloc[-1] for folder in (out, other)]
    assert steps[0] == -(-by_rows["rows"] // 8)
    assert by_tokens["tokens"] / 64 < steps[1] < 2 * by_tokens["tokens"] / 64


def test_chinese_words(run, tokenizers, tiny_bert, tmp_path):
    pytest.importorskip("jieba")
    lines = "\n".join(f"北京大学的研究生生活{i}" for i in range(90))
    (tmp_path / "zh.txt").write_text(lines, encoding="utf-8")
    tokenizers["unigram"].save_pretrained(tmp_path / "tokenizer")
    tiny_bert_config(0).save_pretrained(tmp_path / "config")
    scores = {}
    for segmenter in ("characters", "jieba"):
        results, _ = run(
            segmenter,
            model_name_or_path="",
            config_name=str(tmp_path / "config"),
            tokenizer_name=str(tmp_path / "tokenizer"),
            train_file=[str(tmp_path / "zh.txt")],
            mask_unit="word",
            word_segmenter=segmenter,
            max_train_samples="",
        )
        scores[segmenter] = results["eval_masked_tokens"]
    assert len(set(scores.values())) == 2  # other words, other masks


def test_new_tokens_are_trained_and_taken_by_fine_tuning(run, topic_files, tmp_path, caplog):
    rows = pd.read_csv(topic_files["train"])
    rows["text"] += [" zebra" if i % 2 else " quux graphene" for i in range(len(rows))]
    rows.to_csv(tmp_path / "train.csv", index=False)
    results, out = run(
        add_tokens="auto:2", train_file=[str(tmp_path / "train.csv")], max_train_samples=""
    )
    assert results["new_tokens"] == 2
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.tokenize("a graphene zebra") == ["a", "graphene", "zebra"]
    config = AutoModelForMaskedLM.from_pretrained(out).config
    assert config.vocab_size == len(tokenizer)
    with caplog.at_level(logging.WARNING):
        finetuned = run_finetune.main(
            {
                "model_name_or_path": str(out),
                "train_file": str(tmp_path / "train.csv"),
                "max_steps": 2,
                "output_dir": str(tmp_path / "finetuned"),
                "use_cpu": True,
                "disable_tqdm": True,
            }
        )
    assert np.isfinite(finetuned["eval_loss"])
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert not [line for line in said if "token" in line]
    (tmp_path / "words.txt").write_text("quux\n")
    results, out = run("file", add_tokens=str(tmp_path / "words.txt"))
    assert results["new_tokens"] == 1 and "quux" in AutoTokenizer.from_pretrained(out).get_vocab()


def test_a_pooler_is_kept_when_asked_for(run, tiny_bert, tmp_path):
    _, without = run("without")
    _, out = run(keep_pooler=True)
    source = AutoModel.from_pretrained(tiny_bert).pooler.dense.weight
    kept, info = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and torch.equal(kept.pooler.dense.weight, source)
    _, info = AutoModelForMaskedLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    _, info = AutoModel.from_pretrained(without, output_loading_info=True)
    assert {"pooler.dense.weight", "pooler.dense.bias"} == info["missing_keys"]
    with pytest.raises(InputError, match="holds no pooler"):
        run("again", keep_pooler=True, model_name_or_path=str(without))


def test_training_from_scratch_is_allowed_and_said(run, tiny_bert, tmp_path, caplog):
    tiny_bert_config(999).save_pretrained(tmp_path / "config")
    start = {"model_name_or_path": "", "tokenizer_name": tiny_bert}
    with caplog.at_level(logging.WARNING, "bertchain"):
        results, out = run(config_name=str(tmp_path / "config"), **start)
    assert "all 0 million weights are random" in caplog.text
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(out))
    assert results["untrained_weights"] == len(list(model.parameters()))
    with pytest.raises(InputError, match="--config_name needs --tokenizer_name"):
        run("x", config_name=str(tmp_path / "config"), model_name_or_path="")
    with pytest.raises(InputError, match="give either --model_name_or_path or"):
        run("y", config_name=str(tmp_path / "config"))


def test_steps_that_were_asked_for_are_kept(run, tiny_bert):
    _, out = run(max_steps=6, save_at_steps=[0, 2, 4], learning_rate=1e-3)
    assert {f.name for f in out.glob("step-*")} == {"step-0", "step-2", "step-4"}
    before = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False).state_dict()
    kept = AutoModel.from_pretrained(out / "step-0", add_pooling_layer=False).state_dict()
    assert all(torch.equal(kept[name], before[name]) for name in before)
    kept = [weights_of(folder) for folder in (out / "step-2", out / "step-4", out)]
    assert len(set(kept)) == 3
    for folder in (out / "step-2", out / "step-4"):
        AutoTokenizer.from_pretrained(folder)
        _, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert contamination.read_fingerprint(folder) is not None
    with pytest.raises(InputError, match="--save_at_steps 7: the run ends after 6 steps"):
        run("late", max_steps=6, save_at_steps=[2, 7])


def test_training_stops_when_the_held_out_loss_does_not_fall(run):
    fast = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    results, out = run(max_steps=40, early_stopping_patience=2, learning_rate=3.0, **fast)
    history = pd.read_csv(out / "history.csv")
    assert len(history) < 40
    assert results["eval_loss"] == pytest.approx(history["eval_loss"].min())  # the best is kept
    with pytest.raises(InputError, match="--early_stopping_patience needs"):
        run("x", early_stopping_patience=2, load_best_model_at_end=False)


def test_the_best_checkpoint_of_a_model_with_old_names_is_loaded_whole(run, tiny_bert, tmp_path):
    """bert-base-uncased calls its norms gamma and beta. transformers saves what it renamed under
    the old names, and the Trainer then loads its own checkpoints without them, silently."""
    old = tmp_path / "old"
    shutil.copytree(tiny_bert, old)
    weights = safetensors.torch.load_file(old / "model.safetensors")
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for name in [n for n in weights if n.endswith(tuple(names))]:
        stem, ending = name.rsplit("LayerNorm.", 1)
        weights[stem + names[f"LayerNorm.{ending}"]] = weights.pop(name)
    safetensors.torch.save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    fast = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    results, out = run(model_name_or_path=str(old), max_steps=4, learning_rate=3.0, **fast)
    history = pd.read_csv(out / "history.csv")
    assert history["eval_loss"].iloc[-1] > history["eval_loss"][1:].min() + 0.1  # the last is worse
    assert results["eval_loss"] == pytest.approx(history["eval_loss"][1:].min())
    saved = safetensors.torch.load_file(out / "model.safetensors")
    assert not [name for name in saved if name.endswith(("gamma", "beta"))]


def test_two_evaluations_give_the_same_loss(run):
    """Before the first step, and the same model in another run: the mask is fixed by the seed."""
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        _, out = run(name, seed=seed, max_steps=1)
        losses.append(pd.read_csv(out / "history.csv")["eval_loss"][0])
    assert losses[0] == losses[1] != losses[2]


# ---------------------------------------------------------------- long runs


class InterruptedRunError(Exception):
    pass


@pytest.mark.parametrize(
    "options",
    [
        {"tokens_per_batch": 48, "mask_unit": "word", "corpus_weights": ["task=1.5"]},
        {"streaming": True, "per_device_train_batch_size": 4},
    ],
    ids=["epochs", "stream"],
)
def test_an_interrupted_run_goes_on_bit_by_bit(run, monkeypatch, options):
    saves = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}
    options = {**options, **saves, "max_steps": 15, "gradient_accumulation_steps": 2}
    _, whole = run("whole", **options)
    step = run_itpt.MaskedLMTrainer.training_step
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 17:
            raise InterruptedRunError
        return step(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(InterruptedRunError):
        patch.setattr(run_itpt.MaskedLMTrainer, "training_step", interrupted)
        run("resumed", **options)
    with pytest.raises(InputError, match="go on with --resume_from_checkpoint last"):
        run("resumed", **options)
    _, resumed = run("resumed", resume_from_checkpoint="last", **options)
    assert weights_of(resumed) == weights_of(whole)
    assert (resumed / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()


def test_a_stream_trains_and_knows_what_it_has_seen(run, topic_files):
    results, out = run(streaming=True, max_steps=30, per_device_train_batch_size=8)
    history = pd.read_csv(out / "history.csv")
    assert results["eval_loss"] < history["eval_loss"][0] - 0.5
    texts = pd.read_csv(topic_files["train"])["text"][:60]
    seen = seen_in(out, texts)
    assert 30 <= seen < 60 and results["held_out_documents"] > 0
    for changes, message in (
        ({"max_steps": -1}, "--streaming needs --max_steps"),
        ({"packing": True}, "--streaming does not go with --packing"),
        ({"dataloader_num_workers": 1}, "--dataloader_num_workers 0"),
    ):
        with pytest.raises(InputError, match=message):
            run("x", streaming=True, **changes)
    results, _ = run("grown", streaming=True, add_tokens="auto:3", train_file=[zebras(out)])
    assert results["new_tokens"] == 1


def zebras(folder):
    path = folder / "zebras.txt"
    path.write_text("\n".join(f"the zebra {i}" for i in range(50)))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"dataloader_num_workers": 2},
        {"torch_compile": True, "torch_compile_backend": "aot_eager"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_to_run_long(run, options):
    """Workers change nothing; activation checkpointing, bfloat16 and compiling hardly."""
    plain, out = run(max_steps=4)
    results, other = run("other", max_steps=4, **options)
    if "dataloader_num_workers" in options:
        assert weights_of(other) == weights_of(out)
    else:  # other kernels round otherwise, and checkpointing draws dropout for more positions
        assert results["eval_loss"] == pytest.approx(plain["eval_loss"], rel=0.02)
