"""The sparse head against the dense one, packed rows against single ones, one loss for all."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import ROOT, tiny_bert_config
from datasets import Dataset
from forking import run_command
from one_step import step_arguments
from tiny_models import ARCHITECTURES, tiny_encoder
from torch import nn
from transformers import AutoModelForMaskedLM

import run_itpt
from bertchain.arguments.pretraining import PackingArguments, RunArguments
from bertchain.errors import InputError
from bertchain.models.loading import first_position
from bertchain.pretraining.masked_lm import MaskedLMScores, SparseHead, check_packing
from bertchain.pretraining.packing import MaskingCollator, join_windows

pytestmark = pytest.mark.versions

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
    logits, targets = SparseHead(model)(model, batch)
    assert logits.shape == (len(targets), 60)
    sparse = F.cross_entropy(logits, targets)
    sparse.backward()
    assert sparse.item() == pytest.approx(dense.item(), rel=1e-5)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
    assert model(**batch).logits.shape[:2] == (6, 9)  # and dense again


def test_the_last_feed_forward_runs_on_masked_positions_alone():
    """In BERT-like blocks; others, and activation checkpointing, gather after the last block."""
    seen = {}
    for kind in ("bert", "roberta", "electra", "distilbert", "albert"):
        model, batch = masked_lm(kind), batch_of()
        feed_forward = [m for n, m in model.named_modules() if n.endswith(FEED_FORWARD)][-1]
        feed_forward.register_forward_pre_hook(lambda m, i, k=kind: seen.update({k: i[0].shape[1]}))
        SparseHead(model)(model, batch)
    masked = int((batch_of()["labels"] != -100).sum())
    assert seen == {
        "bert": masked,
        "roberta": masked,
        "electra": masked,
        "distilbert": 9,
        "albert": 9,
    }


FEED_FORWARD = ("intermediate", "ffn")


def test_activation_checkpointing_changes_no_gradient():
    plain = gradients_of(masked_lm("bert").train(False), batch_of())
    model = masked_lm("bert")
    for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.0
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, gradients = gradients_of(model, batch_of())
    assert loss == pytest.approx(plain[0], rel=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_sparse_head_on_a_gpu_is_right_and_needs_less_memory():
    config = tiny_bert_config(30_000, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(config).cuda().train()
    ids = torch.randint(5, 30_000, (64, 128), device="cuda")
    labels = torch.where(torch.rand(ids.shape, device="cuda") < 0.15, ids, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    losses, peaks = {}, {}
    for way in ("dense", "sparse"):
        model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            if way == "dense":
                loss = model(**batch).loss
            else:
                loss = F.cross_entropy(*SparseHead(model)(model, batch))
        loss.backward()
        losses[way], peaks[way] = loss.item(), torch.cuda.max_memory_allocated()
    assert losses["sparse"] == pytest.approx(losses["dense"], rel=5e-3)
    assert peaks["sparse"] < 0.5 * peaks["dense"]


def test_a_head_that_does_not_read_the_hidden_state_is_said():
    class Odd(transformers.BertForMaskedLM):
        def forward(self, input_ids, attention_mask=None):
            self.bert(input_ids=input_ids, attention_mask=attention_mask)
            return transformers.modeling_outputs.MaskedLMOutput(logits=torch.zeros(6, 9, 60))

    model = Odd(tiny_bert_config(60))
    with pytest.raises(ValueError, match="does not read the last hidden state"):
        SparseHead(model)(model, batch_of())


# ---------------------------------------------------------------- packed rows

# Others take no mask of who sees whom, or no positions; they are refused by what they compute.
PACKABLE = ["bert", "roberta", "distilbert", "electra", "albert", "mpnet", "xlm-roberta"]
PACKABLE += ["modernbert"]


def windows(seed=0, lengths=(9, 4, 6)):
    rng = np.random.default_rng(seed)
    rows, first = [], 5
    for length in lengths:  # each token occurs in one window only
        ids = rng.permutation(np.arange(first, first + length)).tolist()
        first += length
        row = {
            "input_ids": ids,
            "word_ids": list(range(length)),
            "length": length,
            "corpus": "task",
        }
        rows.append(row)
    return rows


class EveryOther:
    """In place of a Masker: tokens of even id are targets and stand as they are."""

    def __call__(self, ids, word_ids, rng):
        return ids, np.where(ids % 2 == 0, ids, -100)


def packing_collator(model):
    collator = MaskingCollator(SimpleNamespace(pad_token_id=1), EveryOther(), 0)
    collator.first_position = first_position(model.config)
    collator.additive = model.config._attn_implementation == "eager"
    return collator


def packed(rows):
    return join_windows({name: [row[name] for row in rows] for name in rows[0]}) | {"key": 0}


def skip_if_refused(kind, model):
    """transformers 5.0 packs neither ModernBERT nor MPNet, and the script says so; later do."""
    try:
        check_packing(model, windows()[:2], packing_collator(model))
    except InputError:
        assert kind in ("modernbert", "mpnet") and transformers.__version__.startswith("5.0.")
        pytest.skip(f"this version cannot pack {kind}")


def gradients_of(model, batch):
    model.zero_grad()
    logits, targets = SparseHead(model)(model, batch)
    loss = F.cross_entropy(logits, targets)
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_loss_and_gradients_equal_those_of_single_windows(kind, attention):
    model = masked_lm(kind)
    if attention == "eager":
        model.set_attn_implementation("eager")
    collator = packing_collator(model)
    rows = windows()
    skip_if_refused(kind, model)
    alone, expected = gradients_of(model, collator([{**row, "key": 0} for row in rows]))
    together, found = gradients_of(model, collator([packed(rows)]))
    assert together == pytest.approx(alone, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", PACKABLE)
def test_attention_never_crosses_documents(kind):
    """The loss of one document has no gradient in the embeddings of another in the same row."""
    model = masked_lm(kind)
    skip_if_refused(kind, model)
    rows = windows()
    batch = packing_collator(model)([packed(rows)])
    batch["labels"][:, rows[0]["length"] :] = -100  # targets in the first document alone
    embedded = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda m, i, out: (out.retain_grad(), embedded.append(out))[0])
    logits, targets = SparseHead(model)(model, batch)
    F.cross_entropy(logits, targets).backward()
    size = embedded[0].grad[0].abs().sum(dim=-1)  # [length]
    assert (size[: rows[0]["length"]] > 0).all()
    assert (size[rows[0]["length"] :] == 0).all()


@pytest.mark.parametrize("kind", sorted({*MASKED_LMS} - {*PACKABLE}))
def test_models_that_cannot_keep_documents_apart_are_refused(kind):
    model = masked_lm(kind)
    with pytest.raises(InputError, match=r"--packing does not work with .*leave it out"):
        check_packing(model, windows(), packing_collator(model))


def test_a_model_with_local_attention_is_tried_at_the_length_of_the_rows():
    """ModernBERT's local layers would see a whole row; windows that fit the local span do not."""
    config = tiny_encoder("modernbert").config
    config.local_attention = 8
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    skip_if_refused("modernbert", masked_lm("modernbert"))
    check_packing(model, windows(lengths=(3, 2)), packing_collator(model))
    with pytest.raises(InputError, match="does not work with modernbert"):
        check_packing(model, windows(lengths=(30,)), packing_collator(model))


def test_scores_are_means_over_tokens_for_all_and_for_each_corpus():
    predictions = np.array([[2.0, 1.0], [6.0, 0.0], [0.0, 0.0]])
    prediction = transformers.EvalPrediction(predictions, np.array([1, 3, 0]))
    scores = MaskedLMScores(["task"] * 3)(prediction)
    assert scores["loss"] == 2.0 and scores["masked_accuracy"] == 0.25
    assert scores["perplexity"] == pytest.approx(np.exp(2.0)) and len(scores) == 4
    scores = MaskedLMScores(["task", "other", "task"])(prediction)
    assert scores["loss"] == scores["loss_task"] == scores["loss_other"] == 2.0
    assert scores["masked_accuracy_task"] == 1.0 and scores["masked_tokens_other"] == 3


# ---------------------------------------------------------------- one loss for every way to batch


def masked_rows(n=24):
    """Rows that carry their labels, so that the collator only pads; the number of masks differs."""
    rows = []
    for i in range(n):
        batch = batch_of(seed=i, rows=1)
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        keep = 4 + i % 6
        labels[0] = ids[0]
        row = {"input_ids": ids[:keep], "labels": labels[:keep], "length": keep, "corpus": "task"}
        rows.append(row)
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
    args = step_arguments(
        out,
        batch,
        accumulation,
        per_device_eval_batch_size=5,
        # not evaluate() before train(): it would leave the model unwrapped, and processes
        # unsynchronised
        eval_on_start=True,
    )
    trainer = run_itpt.MaskedLMTrainer(
        packing=PackingArguments(batch_by_length=False),
        run=RunArguments(),
        weights={"task": 1.0},
        model=model,
        args=args,
        train_dataset=masked_rows(rows),
        eval_dataset=masked_rows(rows),
        data_collator=MaskingCollator(tokenizer, None, 0),  # the rows are masked
        compute_metrics=MaskedLMScores(["task"] * rows),
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
    split, loss_of_split, _ = one_step(tokenizers["bert"], tmp_path, batch, 4, rows)
    assert loss == pytest.approx(loss_of_split, rel=1e-5)
    assert start["eval_loss"] == pytest.approx(loss, rel=1e-5)  # a mean over tokens, not batches
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", MASKED_LMS)
def test_a_batch_without_anything_to_predict_trains_nothing(kind):
    """A process whose share of a step is empty computes one, for the others wait for it."""
    model, batch = masked_lm(kind), batch_of()
    batch["labels"] = torch.full_like(batch["labels"], -100)
    logits, targets = SparseHead(model)(model, batch)
    F.cross_entropy(logits, targets, reduction="sum").backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


PATHS = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "pretraining")]
TWO_PROCESSES = """
import os, torch
from conftest import bert_tokenizer
from test_masked_lm import one_step
gradients, loss, start = one_step(bert_tokenizer(), sys.argv[1], 12, 1)
if os.environ["RANK"] == "0":
    torch.save((gradients, loss, start["eval_loss"]), sys.argv[1] + "/two.pt")
torch.distributed.barrier()  # rank 0 may still be writing
torch.distributed.destroy_process_group()
"""


def test_loss_and_gradients_are_the_same_for_1_and_2_processes(tokenizers, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(f"import sys; sys.path[:0] = {PATHS}\n" + TWO_PROCESSES)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(30000 + os.getpid() % 500), str(script), str(tmp_path)]
    done = run_command(*launch)
    assert done.returncode == 0, done.stderr[-3000:]
    two, loss_of_two, evaluated = torch.load(tmp_path / "two.pt", weights_only=True)
    one, loss, start = one_step(tokenizers["bert"], tmp_path, 24, 1)
    assert loss == pytest.approx(loss_of_two, rel=1e-5)
    assert start["eval_loss"] == pytest.approx(evaluated, rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


FULLY_SHARDED = """
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from test_masked_lm import batch_of, gradients_of, masked_lm

mesh = init_device_mesh("cpu", (2,))
loss, gradients = gradients_of(masked_lm("bert"), batch_of())
model = masked_lm("bert")
for block in model.bert.encoder.layer:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
sharded_loss, sharded = gradients_of(model, batch_of())  # the same batch in both: the same mean
assert abs(loss - sharded_loss) < 1e-5
for name, gradient in gradients.items():
    torch.testing.assert_close(sharded[name].full_tensor(), gradient, atol=1e-6, rtol=1e-4)
torch.distributed.barrier()  # rank 0 may still be writing
torch.distributed.destroy_process_group()
print("equal")
"""


def test_the_sparse_head_works_on_a_sharded_model(tmp_path):
    """FSDP 2, two processes: parameters are gathered block by block around the hook."""
    script = tmp_path / "sharded.py"
    script.write_text(f"import sys; sys.path[:0] = {PATHS}\n" + FULLY_SHARDED)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(30500 + os.getpid() % 500), str(script)]
    done = run_command(*launch)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("equal") == 2
