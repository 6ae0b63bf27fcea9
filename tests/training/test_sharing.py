"""Steps are the same however their rows are shared out: processes x batch x accumulation x rows."""

import functools
import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset

from bertchain.data.batching import (
    CountedRows,
    DocumentCollator,
    GroupedByLength,
    ProcessBatchSampler,
)
from bertchain.data.spans import SpanCollator
from bertchain.errors import InputError
from bertchain.models.modeling import (
    IGNORED,
    PROBLEM_TYPES,
    DocumentClassifierConfig,
    without_padding,
)
from bertchain.training.losses import TrainingLoss

pytestmark = pytest.mark.versions
LOSSES = {  # name -> problem type, fields of the loss
    "single_label": ("single_label", {}),
    "class weights": ("single_label", {"class_weights": (1.0, 2.0, 5.0), "focal_gamma": 1.0}),
    "soft": ("single_label", {}),
    "multi_label": ("multi_label", {"positive_weights": (1.0, 2.0, 5.0)}),
    "regression": ("regression", {}),
    "spans": ("single_label", {"class_weights": (1.0, 2.0, 5.0)}),
}


@functools.cache
def make_documents(kind: str, n: int) -> list[dict]:
    """Documents of one window, whose only token is the number of the row."""
    rng = np.random.default_rng(0)
    labels = {
        "soft": rng.dirichlet([1.0] * 3, n).tolist(),
        "multi_label": rng.integers(0, 2, (n, 3)).astype(float).tolist(),
        "regression": rng.normal(size=(n, 3)).tolist(),
        "spans": [rng.integers(0, 3, 1 + i % 3).tolist() for i in range(n)],
    }.get(kind, rng.integers(0, 3, n).tolist())
    columns = {"windows": [[[i]] for i in range(n)], "labels": labels}
    if kind == "spans":
        columns["token_positions"] = [[[[0]] for _ in own] for own in labels]
    return Dataset.from_dict(columns).to_list()


def gradients_of_steps(
    kind: str, rows: int, batch: int, processes: int, accumulation: int
) -> list[torch.Tensor]:
    """Gradients [rows, targets, labels] of the logits in each step of an epoch, as the Trainer
    adds them up over batches and processes."""
    problem_type, fields = LOSSES[kind]
    config = DocumentClassifierConfig(problem_type=PROBLEM_TYPES[problem_type], num_labels=3)
    if problem_type == "regression":
        config.target_mean, config.target_scale = [0.0] * 3, [1.0] * 3
    loss = TrainingLoss(config, **fields)
    documents = CountedRows(make_documents(kind, rows))
    collate = SpanCollator(0, 8) if kind == "spans" else DocumentCollator(0)
    logits = torch.randn(rows, 3, 3, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    order = GroupedByLength(np.arange(rows) % 5, batch * processes * accumulation, 0, lambda: 1)
    of_process = [
        [
            collate(documents.__getitems__(numbers))
            for numbers in ProcessBatchSampler(order, batch, process, processes)
        ]
        for process in range(processes)
    ]
    assert len({*map(len, of_process)}) == 1
    assert all(len(b["input_ids"]) <= batch for own in of_process for b in own)
    found = []
    for start in range(0, len(of_process[0]), accumulation):
        total = divisor = 0.0
        for each in itertools.chain(*(own[start : start + accumulation] for own in of_process)):
            out, labels = logits[each["input_ids"][:, 0, 0]], each["labels"]
            if kind == "spans":
                out, labels = without_padding(out[:, : labels.shape[1]], labels)
            else:
                out = out[:, 0]
            total = total + loss.total(out, labels, each.get("weight"))
            divisor = divisor + loss.divisor(labels, each.get("weight"))
        found.append(torch.autograd.grad(total / divisor, logits)[0])
    return found


@pytest.mark.parametrize("kind", LOSSES)
def test_a_step_is_the_same_however_its_rows_are_shared_out(kind):
    shapes = itertools.product((1, 2, 3), (1, 2), (1, 3))
    for processes, batch, accumulation in shapes:
        step = processes * batch * accumulation
        for rows in {1, 5, step + 1, 2 * step - 1}:
            shared = gradients_of_steps(kind, rows, batch, processes, accumulation)
            whole = gradients_of_steps(kind, rows, step, 1, 1)
            assert len(shared) == len(whole)
            for one, other in zip(shared, whole, strict=True):
                torch.testing.assert_close(one, other)


def test_a_row_that_counts_nothing_has_no_weight_or_only_ignored_targets():
    plain, spans = make_documents("single_label", 3), make_documents("spans", 3)
    assert CountedRows(plain).__getitems__([~2]) == [{**plain[2], "weight": 0.0}]
    assert CountedRows(plain).__getitems__([1, 0]) == [plain[1], plain[0]]
    assert CountedRows(spans).__getitems__([~1])[0]["labels"] == [IGNORED] * 2


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_drop_last_leaves_out_an_incomplete_step(batch, accumulation, processes):
    sampler = ProcessBatchSampler([*range(21)], batch, 0, processes, True, accumulation)
    assert len(sampler) == len([*sampler]) == 2 * accumulation
    with pytest.raises(InputError, match="7 training rows are fewer than the 8 of a step"):
        ProcessBatchSampler([*range(7)], batch, 0, processes, True, accumulation)
