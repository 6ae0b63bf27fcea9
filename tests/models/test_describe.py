"""What is said of a checkpoint, against what is in it."""

import pytest
import torch
from conftest import ROOT, tiny_bert_config
from tiny_models import classifier
from transformers import (
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import run_probe
from bertchain.cli import value_of
from bertchain.errors import InputError
from bertchain.models.describe import describe_checkpoint

pytestmark = pytest.mark.versions


def lines_of(model, folder, capsys=None):
    model.save_pretrained(folder)
    return describe_checkpoint(str(folder)).splitlines()


def one(lines, start):
    (found,) = [line for line in lines if line.startswith(start)]
    return found


def test_a_masked_lm_lacks_a_pooler_and_a_classifier(tmp_path):
    lines = lines_of(BertForMaskedLM(tiny_bert_config(50)), tmp_path)
    assert "saved as BertForMaskedLM (bert), 4 blocks of 32, vocabulary 50" in lines[0]
    assert one(lines, "heads in it") == "heads in it: masked-LM head: predicts masked tokens"
    assert "not in the checkpoint" in one(lines, "pooler")
    assert "random: pooler.dense; left out: cls.predictions" in one(lines, "AutoModel ->")
    assert "all weights found" in one(lines, "AutoModelForMaskedLM -> BertForMaskedLM")
    line = one(lines, "AutoModelForSequenceClassification")
    assert "random: bert.pooler, classifier" in line
    assert not any("CausalLM" in line for line in lines) and len(lines) <= 10


def test_both_heads_of_pretraining_and_a_trained_pooler(tmp_path):
    model = BertForPreTraining(tiny_bert_config(50))
    with torch.no_grad():
        model.bert.pooler.dense.bias += 0.1
    lines = lines_of(model, tmp_path)
    heads = one(lines, "heads in it")
    assert "masked-LM head" in heads and "next-sentence head" in heads
    assert "and trained" in one(lines, "pooler")
    assert "all weights found" in one(lines, "AutoModelForPreTraining")


def test_an_encoder_alone_and_a_classifier(tmp_path):
    model = BertModel(tiny_bert_config(50))
    lines = lines_of(model, tmp_path / "a")
    assert "none, it is an encoder alone" in one(lines, "heads in it")
    assert "never trained" in one(lines, "pooler")  # its bias is as it was initialised
    total = sum(p.numel() for p in model.parameters())
    assert f"parameters: {total:,} (1,600 of them word embeddings)" in one(lines, "parameters")
    lines = lines_of(BertForSequenceClassification(tiny_bert_config(50)), tmp_path / "b")
    assert "classification head" in one(lines, "heads in it")
    assert "all weights found" in one(lines, "AutoModelForSequenceClassification")
    assert "left out: classifier" in one(lines, "AutoModel ->")


def test_a_decoder(tmp_path):
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    lines = lines_of(GPT2LMHeadModel(config), tmp_path)
    assert "this architecture has none" in one(lines, "pooler")
    assert "all weights found" in one(lines, "AutoModelForCausalLM -> GPT2LMHeadModel")


def test_a_folder_of_run_finetune(tmp_path):
    lines = lines_of(classifier("bert"), tmp_path)
    assert "a classifier of run_finetune.py around BertModel, 4 blocks" in lines[0]
    assert "single_label_classification, 3" in one(lines, "labels")
    assert "trust_remote_code=True: all weights found" in one(lines, "AutoModelForSequence")


def test_the_flag_needs_no_data(tiny_bert, capsys, tmp_path):
    assert (
        value_of("describe", ["--describe", "x"]) == value_of("describe", ["--describe=x"]) == "x"
    )
    run_probe.main(["--describe", tiny_bert])
    assert "saved as BertModel (bert), 2 blocks" in capsys.readouterr().out
    with pytest.raises(InputError, match="nowhere"):
        run_probe.main(["--describe", str(tmp_path / "nowhere")])
    assert (ROOT / "bertchain" / "models" / "describe.py").is_file()
