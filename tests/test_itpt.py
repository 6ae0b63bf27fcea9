"""The sparse head against the dense one, masks, the held-out loss, and the script as a whole."""

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ROOT, make_rows, tiny_bert_config
from datasets import Dataset
from test_modeling import ARCHITECTURES, tiny_encoder
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, TrainingArguments

import run_itpt
from command_line import InputError
from run_itpt import MaskedLMTrainer, MaskingCollator, SparseHead, masked_lm_scores, split_corpus

MASKED_LMS = [kind for kind in ARCHITECTURES if kind not in ("gpt2", "qwen2")]


def masked_lm(kind):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_encoder(kind).config)
    return model.eval()  # no dropout, so that two passes agree


def batch_of(seed=0, rows=6):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:2, 6:] = 0
    labels = torch.where(torch.rand(rows, 9, generator=generator) < 0.3, ids, -100)
    labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("kind", MASKED_LMS)
def test_sparse_loss_and_gradients_equal_the_dense_ones(kind):
    batch, model = batch_of(), masked_lm(kind)
    dense = model(**batch).loss
    dense.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    head = SparseHead(model)
    head.positions = batch["labels"] != -100
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs).logits
    assert logits.shape[:2] == (1, int(head.positions.sum()))
    sparse = F.cross_entropy(logits[0], batch["labels"][head.positions])
    sparse.backward()
    assert sparse.item() == pytest.approx(dense.item(), rel=1e-5)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    head.positions = None
    assert model(**inputs).logits.shape[:2] == (6, 9)  # and dense again


# ---------------------------------------------------------------- one loss for every way to batch


def masked_rows(n=24):
    """Rows that carry their labels, so that the collator only pads; the number of masks differs."""
    rows = []
    for i in range(n):
        batch = batch_of(seed=i, rows=1)
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        keep = 4 + i % 6
        labels[0] = ids[0]
        rows.append({"input_ids": ids[:keep], "labels": labels[:keep], "length": keep})
    return Dataset.from_list(rows)


def one_step(tokenizer, out, batch, accumulation, rows=24):
    model = transformers.BertForMaskedLM(tiny_bert_config(60))
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    for layer in model.bert.encoder.layer:  # attention reads its dropout from the module
        layer.attention.self.dropout.p = 0.0
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    args = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=5,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,
        save_strategy="no",
        # not evaluate() before train(): it would leave the model unwrapped, and processes
        # unsynchronised
        eval_on_start=True,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = MaskedLMTrainer(
        batch_by_length=False,
        model=model,
        args=args,
        train_dataset=masked_rows(rows),
        eval_dataset=masked_rows(rows),
        data_collator=MaskingCollator(tokenizer, 0.15),
        compute_metrics=masked_lm_scores,
    )
    trainer.train()
    gradients = {n: before[n] - p.detach() for n, p in trainer.model.named_parameters()}
    start, logged = trainer.state.log_history[:2]
    return gradients, logged["loss"], start


@pytest.mark.parametrize(("rows", "batch"), [(24, 6), (22, 6)])
def test_loss_and_gradients_are_the_same_for_accumulation_1_and_4(
    tokenizers, tmp_path, rows, batch
):
    whole, loss, start = one_step(tokenizers["bert"], tmp_path, rows, 1, rows)
    parts, loss_of_parts, _ = one_step(tokenizers["bert"], tmp_path, batch, 4, rows)
    assert loss == pytest.approx(loss_of_parts, rel=1e-5)
    assert start["eval_loss"] == pytest.approx(loss, rel=1e-5)  # a mean over tokens, not batches
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)


TWO_PROCESSES = """
import os, sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from conftest import bert_tokenizer
from test_itpt import one_step
gradients, loss, start = one_step(bert_tokenizer(), sys.argv[1], 12, 1)
if os.environ["RANK"] == "0":
    torch.save((gradients, loss, start["eval_loss"]), sys.argv[1] + "/two.pt")
torch.distributed.destroy_process_group()
"""


def test_loss_and_gradients_are_the_same_for_1_and_2_processes(tokenizers, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(root=str(ROOT), tests=str(ROOT / "tests")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(30000 + os.getpid() % 500), str(script), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    two, loss_of_two, evaluated = torch.load(tmp_path / "two.pt", weights_only=True)
    one, loss, start = one_step(tokenizers["bert"], tmp_path, 24, 1)
    assert loss == pytest.approx(loss_of_two, rel=1e-5)
    assert start["eval_loss"] == pytest.approx(evaluated, rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_masks_have_the_rate_and_leave_specials_and_padding_alone(tokenizers, kind):
    tokenizer = tokenizers[kind]
    collator = MaskingCollator(tokenizer, 0.3)
    texts = ["red cat runs in the forest " * 8, "dog"] * 200
    rows = [{"input_ids": tokenizer(t)["input_ids"], "length": 1} for t in texts]
    torch.manual_seed(0)
    batch = collator(rows)
    original = tokenizer.pad([{"input_ids": r["input_ids"]} for r in rows], return_tensors="pt")
    special = torch.isin(original["input_ids"], torch.tensor(tokenizer.all_special_ids))
    chosen = batch["labels"] != -100
    assert not (chosen & special).any()
    assert chosen.sum().item() / (~special).sum().item() == pytest.approx(0.3, abs=0.01)
    assert (batch["labels"][chosen] == original["input_ids"][chosen]).all()
    assert (batch["input_ids"][~chosen] == original["input_ids"][~chosen]).all()
    replaced = batch["input_ids"][chosen] == tokenizer.mask_token_id
    assert replaced.float().mean().item() == pytest.approx(0.8, abs=0.02)
    unchanged = batch["input_ids"][chosen] == original["input_ids"][chosen]
    assert unchanged.float().mean().item() == pytest.approx(0.1, abs=0.03)
    again = collator(rows)
    assert not torch.equal(again["labels"], batch["labels"])  # dynamic


def test_held_out_masks_depend_on_the_seed_alone(tokenizers):
    collator = MaskingCollator(tokenizers["bert"], 0.15)
    rows = Dataset.from_list([{"input_ids": list(range(2, 60)), "length": 58}] * 4)
    first = collator.mask_for_good(rows, seed=1).to_list()
    torch.manual_seed(99)
    assert collator.mask_for_good(rows, seed=1).to_list() == first
    assert collator.mask_for_good(rows, seed=2).to_list() != first
    assert first[0]["labels"] != first[1]["labels"]


def test_scores_are_means_over_tokens():
    predictions = np.array([[2.0, 1.0], [6.0, 0.0], [0.0, 0.0]])
    scores = masked_lm_scores(
        transformers.EvalPrediction(predictions=predictions, label_ids=np.array([1, 3, 0]))
    )
    assert scores["loss"] == 2.0 and scores["masked_accuracy"] == 0.25
    assert scores["perplexity"] == pytest.approx(np.exp(2.0))


def test_the_same_text_is_never_on_both_sides():
    texts = [f"text {i % 20}" for i in range(100)]
    train, held_out = split_corpus(Dataset.from_dict({"text": texts}), 0.2, seed=0)
    assert len(train) + len(held_out) == 100
    assert set(train["text"][:]).isdisjoint(held_out["text"][:])
    assert len(set(held_out["text"][:])) == 4
    with pytest.raises(InputError, match=r"--validation_split 0\.2 of 2 different documents"):
        split_corpus(Dataset.from_dict({"text": ["a", "b"]}), 0.2, seed=0)


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
        "learning_rate": 5e-3,
        "validation_split": 0.2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return out, run_itpt.main(arguments), arguments


def test_a_run_learns_and_writes_a_plain_checkpoint(further_pretrained, tiny_bert):
    out, results, _ = further_pretrained
    history = pd.read_csv(out / "history.csv")
    assert history["epoch"][0] == 0 and len(history) == 9  # before the first step, and by epoch
    assert results["eval_perplexity"] < 0.5 * history["eval_perplexity"][0]
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"]))
    assert results["documents"] == 300  # the empty line is none
    for load in (AutoModelForMaskedLM, AutoModel):
        _, info = load.from_pretrained(out, output_loading_info=True)
        assert {k.split(".")[0] for k in info["missing_keys"]} <= {"pooler"}
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(tiny_bert))
    names = {f.name for f in out.iterdir()}
    assert {"README.md", "history.png", "run_args.yaml", "all_results.json"} <= names
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
    assert results["untrained_head_weights"] > 0  # the tiny BERT is an encoder alone
    out, _, _ = further_pretrained
    with caplog.at_level(logging.WARNING, "run_itpt"):
        changes = {"model_name_or_path": str(out), "output_dir": str(tmp_path / "x")}
        again = run_itpt.main({**arguments, **changes, "max_steps": 1})
        assert again["untrained_head_weights"] == 0
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

    assert "either --train_file" in error(dataset_name="imdb")
    assert "--mlm_probability 1.5" in error(mlm_probability=1.5)
    assert "no column 'body'" in error(text_column_names=["body"])
    assert "did you mean mlm_probability" in error(mlm_probabilty=0.2)
    transformers.GPT2Model(tiny_encoder("gpt2").config).save_pretrained(tmp_path / "gpt2")
    tokenizers["gpt2"].save_pretrained(tmp_path / "gpt2")
    assert "has no mask token" in error(model_name_or_path=str(tmp_path / "gpt2"))
