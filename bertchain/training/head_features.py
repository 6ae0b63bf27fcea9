"""What the head of a classifier reads: vectors of documents, or of words inside them."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import Trainer

from bertchain.data.batching import longest_first
from bertchain.models.modeling import DocumentClassifier
from bertchain.runtime.distributed import rank_and_size


@contextmanager
def kept_vectors(model: DocumentClassifier, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Keep the vectors of each forward pass inside, as they are before dropout and head.

    Each is [documents, features], of words [documents, targets, features], in training with several
    `dropout_samples` one more dimension in front; and part of the graph.

    Args:
        wanted: False: keep nothing.
    """
    kept: list[Tensor] = []
    if not wanted:
        yield kept
        return
    handle = model.dropout.register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    try:
        yield kept
    finally:
        handle.remove()


@torch.no_grad()
def head_features(trainer: Trainer, rows: Dataset) -> np.ndarray:
    """Compute what the head reads in evaluation, without dropout, in row order.

    By the trainer's collator, device and precision. Each process computes its share and gets all;
    all must call this.

    Args:
        rows: encoded documents.

    Returns:
        float32 [n, features]; of labelled words [targets, features].
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    training, rank, processes = model.training, *rank_and_size()
    order, size = longest_first(rows["length"][:]), trainer.args.eval_batch_size
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    found = []
    model.eval()
    for batch in batches[rank::processes]:
        inputs = trainer.data_collator([rows[int(row)] for row in batch])
        inputs = {name: v for name, v in inputs.items() if name not in ("labels", "weight")}
        with trainer.compute_loss_context_manager(), kept_vectors(model) as kept:
            model(**trainer._prepare_inputs(inputs))
        found += zip(batch.tolist(), kept[0].float().cpu().numpy(), strict=True)
    model.train(training)
    vectors = dict(gather_object(found))
    if "token_positions" not in rows.column_names:
        return np.stack([vectors[row] for row in range(len(rows))])
    counts = [len(own) for own in rows["token_positions"]]
    return np.concatenate([vectors[row][:count] for row, count in enumerate(counts)])
