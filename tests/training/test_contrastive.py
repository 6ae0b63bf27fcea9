"""The supervised contrastive loss: by hand, its gradient, over processes, in the script."""

import itertools
import json
import math
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import BASICS, ROOT, Preempt, make_rows
from forking import run_command

import run_finetune
from bertchain.arguments.training import LossArguments
from bertchain.data.batching import GroupedByClass
from bertchain.errors import InputError
from bertchain.training.contrastive import contrastive_loss, loss_of_all, overlap

SINGLE = torch.tensor([0, 1, 0, 2, 1, 0, 1])  # a row of class 2 alone
MULTI = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]])


def vectors_of(n: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(0)).to(dtype)


def sets_of(labels):
    return [{int(own)} if own.dim() == 0 else {*own.nonzero().flatten().tolist()} for own in labels]


def pairs_by_hand(vectors, labels, weights=None):
    """The definition as a loop over pairs; a row of weight 2 counts like two rows."""
    weights = [1.0] * len(vectors) if weights is None else weights.tolist()
    sets, terms = sets_of(labels), {True: [], False: []}
    for i, j in itertools.combinations(range(len(vectors)), 2):
        shared = len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j]))
        cosine = F.cosine_similarity(vectors[i], vectors[j], dim=0).item()
        weight = weights[i] * weights[j]
        terms[shared > 0].append((weight, weight * (cosine - shared) ** 2))
    sums = [(sum(w for w, _ in own), sum(t for _, t in own)) for own in terms.values()]
    return sum(t / w for w, t in sums if w) / 2


def by_hand(vectors, labels, temperature, weights=None):
    """The definition as loops over rows, partners and all others."""
    if temperature is None:
        return pairs_by_hand(vectors, labels, weights)
    n = len(vectors)
    weights = [1.0] * n if weights is None else weights.tolist()
    sets = sets_of(labels)

    def cosine(i, j):
        return F.cosine_similarity(vectors[i], vectors[j], dim=0).item() / temperature

    terms, counts = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i and weights[j]]
        shared = {j: len(sets[i] & sets[j]) / max(1, len(sets[i] | sets[j])) for j in others}
        total = sum(shared[j] * weights[j] for j in others)
        if not (total and weights[i]):
            continue
        norm = sum(weights[j] * math.exp(cosine(i, j)) for j in others)
        term = 0.0
        for j in others:
            share = shared[j] * weights[j] / total
            term -= share * math.log(weights[j] * math.exp(cosine(i, j)) / norm) if share else 0
        terms.append(weights[i] * term)
        counts.append(weights[i])
    return sum(terms) / sum(counts) if counts else 0.0


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 1, 0, 1, 2, 1, 0.5])])
@pytest.mark.parametrize("labels", [SINGLE, MULTI, SINGLE[[0, 1, 3]], SINGLE[:1]])
@pytest.mark.parametrize("temperature", [0.1, 1.0, None])
def test_it_is_the_definition(labels, weights, temperature):
    vectors = vectors_of(len(labels)).requires_grad_()
    weights = None if weights is None else weights[: len(labels)]
    found = contrastive_loss(vectors, labels, temperature, weights)
    assert found.item() == pytest.approx(by_hand(vectors, labels, temperature, weights), rel=1e-6)
    found.backward()
    assert vectors.grad.isfinite().all()


def test_a_row_of_a_class_alone_has_no_term_and_only_pushes():
    vectors = vectors_of(3)
    assert contrastive_loss(vectors, torch.tensor([0, 1, 2]), 0.1).item() == 0
    assert contrastive_loss(vectors[:1], torch.tensor([0]), None).item() == 0
    pair = contrastive_loss(vectors, torch.tensor([0, 0, 1]), 0.1)
    assert pair.item() > contrastive_loss(vectors[:2], torch.tensor([0, 0]), 0.1).item() == 0


@pytest.mark.parametrize("temperature", [0.5, None])
@pytest.mark.parametrize("labels", [SINGLE, MULTI])
def test_the_gradient_is_that_of_finite_differences(labels, temperature):
    vectors = vectors_of(len(labels)).requires_grad_()
    weights = torch.tensor([1.0, 1, 0, 1, 2, 1, 0.5])
    assert torch.autograd.gradcheck(
        lambda v: contrastive_loss(v, labels, temperature, weights), vectors
    )


def test_overlap_is_jaccard_and_of_one_label_same_or_other():
    assert overlap(MULTI)[0].tolist() == pytest.approx([1, 1 / 3, 0, 1 / 3, 1 / 2, 2 / 3, 0])
    same = SINGLE[:, None] == SINGLE
    torch.testing.assert_close(overlap(F.one_hot(SINGLE)), same.float())
    soft = overlap(torch.tensor([[0.7, 0.3], [0.2, 0.8]]))
    assert soft[0, 1].item() == pytest.approx((0.2 + 0.3) / (0.7 + 0.8))


def test_half_precision_is_not_used_for_cosines():
    vectors = vectors_of(7, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(vectors, SINGLE, 0.1)
    assert found.item() == pytest.approx(contrastive_loss(vectors, SINGLE, 0.1).item(), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, None])
@pytest.mark.parametrize("labels", [SINGLE, MULTI])
def test_processes_together_have_the_gradient_of_one(labels, temperature):
    """Each has its own rows in the graph; 4 rows in one process, 3 in the other."""
    whole = vectors_of(7, torch.float32).requires_grad_()
    expected = contrastive_loss(whole, labels, temperature)
    expected.backward()
    rows = [slice(0, 7, 2), slice(1, 7, 2)]  # as rows are dealt out
    given = [(whole.detach()[own], labels[own], torch.ones(len(labels[own]))) for own in rows]

    def pad(tensor):
        missing = tensor.new_zeros(4 - len(tensor), *tensor.shape[1:])
        return torch.cat([tensor, missing])

    found = torch.zeros_like(whole)
    for process, (vectors, own, weights) in enumerate(given):
        vectors.requires_grad_()
        gathered = iter(
            torch.cat([pad(part) for part in parts]) for parts in zip(*given, strict=True)
        )
        accelerator = SimpleNamespace(
            num_processes=2,
            process_index=process,
            pad_across_processes=pad,
            gather=lambda tensor, gathered=gathered: next(gathered).detach(),
        )
        value = loss_of_all(vectors, own, temperature, weights, accelerator)
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
        value.backward()
        found[rows[process]] += vectors.grad / 2  # DistributedDataParallel takes the mean
    torch.testing.assert_close(found, whole.grad)


# ---------------------------------------------------------------- batches


def test_each_row_comes_once_and_rows_of_a_class_together():
    classes = np.repeat([0, 1, 2, 3], [16, 8, 9, 1])
    order = GroupedByClass(classes, 4, 0, lambda: 0)
    rows = [*order]
    assert sorted(rows) == [*range(34)] and len(order) == 34
    groups = classes[rows[:32]].reshape(8, 4)
    assert (groups == groups[:, :1]).all()
    assert sorted(classes[rows[32:]].tolist()) == [2, 3]  # left over
    assert {*groups[:4, 0]} == {*groups[4:, 0]} == {0, 1, 2}  # spread over the epoch


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return [*GroupedByClass(["a", "b", "b"] * 20, 4, seed, lambda: epoch)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) and order(1, 2) != order(2, 2)


def test_rows_per_class_divide_a_step():
    def size(rows, **fields):
        return LossArguments(**fields).rows_of_a_class(rows)

    assert size(16) is None
    found = [size(rows, contrastive_weight=0.5) for rows in (48, 9, 6, 4, 8)]
    assert found == [4, 3, 3, 2, 4]
    assert size(48, rows_per_class_in_batch=8) == 8
    for fields in ({"contrastive_weight": 1}, {"rows_per_class_in_batch": 5}):
        with pytest.raises(InputError, match=r"a step of 7 rows .* is not two or more groups"):
            size(7, **fields)


# ---------------------------------------------------------------- through the script


@pytest.fixture
def tune(tiny_bert, topic_files, tmp_path):
    def run(name, **changes):
        given = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]} | BASICS
        given |= {"test_file": topic_files["test_labels"], "num_train_epochs": 2}
        return run_finetune.main(**given | changes, output_dir=str(tmp_path / name))

    return run


@pytest.mark.versions
def test_alone_it_ends_with_a_probe_and_is_cut_off_without_a_trace(tune, tmp_path):
    whole = tune("whole", contrastive_weight=1)
    assert whole["test_accuracy"] > 0.9 and whole["head_probe_C"] > 0
    assert whole.tables["history"].empty  # an untrained head is not evaluated
    with pytest.raises(SystemExit):
        tune("cut", contrastive_weight=1, callbacks=Preempt)
    shutil.copytree(tmp_path / "cut", tmp_path / "other")
    cut = tune("cut", contrastive_weight=1, resume_from_checkpoint="last")
    for name in ("predictions_test.csv", "model.safetensors"):
        assert (cut.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes()
    other = {"contrastive_weight": 1, "rows_per_class_in_batch": 8}
    with pytest.raises(InputError, match="--rows_per_class_in_batch was 4 and is 8"):
        tune("other", **other, resume_from_checkpoint="last")


def test_pairs_alone_separate_the_classes(tune):
    found = tune("pairs", contrastive_weight=1, contrastive_loss="cosine")
    other = tune("softmax", contrastive_weight=1)
    assert found["test_accuracy"] > 0.9 and found["train_loss"] < 0.5 < other["train_loss"]


def test_it_goes_with_several_labels_folds_and_other_switches(tune):
    rows = pd.DataFrame(make_rows(90))
    rows["label"] += ["|red" if "red" in text else "" for text in rows["text"]]
    flags = {"label_delimiter": "|", "num_folds": 2, "contrastive_weight": 0.5, "test_file": None}
    flags |= {"dropout_samples": 2, "fgm_epsilon": 0.1, "ema_decay": 0.5, "head_refit": "probe"}
    found = tune("multi", train_file=rows, fit_thresholds="global", **flags)
    assert found["oof_f1_macro"] > 0.5


def test_compiled_blocks_train_as_others_do(tune):
    flags = {"contrastive_weight": 0.5, "head_dropout": 0, "encoder_dropout": 0, "max_steps": 3}
    plain = tune("plain", **flags)
    compiled = tune("compiled", **flags, torch_compile=True, torch_compile_backend="aot_eager")
    assert compiled["train_loss"] == pytest.approx(plain["train_loss"], rel=1e-4)


@pytest.mark.versions
def test_two_processes_train_as_one(tune, tiny_bert, topic_files, tmp_path):
    flags = BASICS | {"contrastive_weight": 0.5, "head_dropout": 0, "encoder_dropout": 0}
    flags |= {"num_train_epochs": 1, "contrastive_temperature": 0.5, "rows_per_class_in_batch": 4}
    one = tune("one", **flags)
    flags |= {"per_device_train_batch_size": 8, "output_dir": str(tmp_path / "two")}
    flags |= {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]}
    flags |= {"test_file": topic_files["test_labels"]}
    line = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    port = str(32500 + os.getpid() % 500)
    done = run_command(*launch, port, ROOT / "run_finetune.py", *line)
    assert done.returncode == 0, done.stderr[-3000:]
    columns = [
        pd.read_csv(folder / "predictions_test.csv").filter(like="prob_")
        for folder in (one.output_dir, tmp_path / "two")
    ]
    np.testing.assert_allclose(*columns, atol=2e-4)
    losses = [
        pd.read_csv(f / "history.csv")["train_loss"] for f in (one.output_dir, tmp_path / "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    results = json.loads((tmp_path / "two" / "all_results.json").read_text())
    assert results["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
