"""Supervised contrastive losses of document vectors: softmax over the others, or pair by pair.

Rows with the same label are drawn together, others apart. With few labels each row then gives as
many terms as it has partners, where cross-entropy gives one.
"""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from bertchain.training.losses import TrainingLoss

NEVER = -1e9  # log of the share of a row that does not count; finite, so that no gradient is NaN


def overlap(labels: Tensor) -> Tensor:
    """Overlap of the labels of each pair of rows [n, n]: those of both / those of either (Jaccard).

    1 for two rows of one class, 0 for rows of two; of rows without a label 0. Probabilities count
    by the sum of the lesser / the sum of the greater.

    Args:
        labels: 0 to 1 [n, labels].
    """
    labels = labels.float()
    sums = labels.sum(dim=1)
    sums = sums[:, None] + sums
    apart = torch.cdist(labels, labels, p=1)
    return (sums - apart) / (sums + apart).clamp_min(1e-12)


def contrastive_loss(
    vectors: Tensor, labels: Tensor, temperature: float | None, weights: Tensor | None = None
) -> Tensor:
    """Compare the rows of a batch by the cosines of their vectors.

    Args:
        vectors: [n, features].
        labels: class numbers [n], or 0 to 1 [n, labels].
        temperature: of `softmax_loss`; None: `cosine_loss`.
        weights: of the rows [n]: a row of weight w counts like w rows; None: all 1.
    """
    with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 is too coarse for cosines
        precise = torch.promote_types(vectors.dtype, torch.float32)
        units = F.normalize(vectors.to(precise), dim=-1)
        if labels.dim() == 1:
            labels = F.one_hot(labels)
        counts = units.new_ones(len(units)) if weights is None else weights.to(precise)
        cosines, shared = units @ units.T, overlap(labels).to(precise)
        if temperature is None:
            return cosine_loss(cosines, shared, counts)
        return softmax_loss(cosines / temperature, shared, counts)


def softmax_loss(logits: Tensor, shared: Tensor, counts: Tensor) -> Tensor:
    """Mean over rows that have a partner of -sum_p w_p log softmax(cosine / temperature)_p.

    The softmax is over all other rows; w are the overlaps of the row's labels with those of the
    others, divided by their sum. Where labels overlap wholly or not at all, that is eq. 2 of Khosla
    et al. 2020, arXiv 2004.11362. A row without a partner has no term; without any the loss is 0.

    Args:
        logits, shared: cosines / temperature, overlaps [n, n].
        counts: weights of the rows [n].
    """
    itself = torch.eye(len(counts), dtype=torch.bool, device=counts.device)
    logits = logits + counts.clamp_min(1e-30).log()
    logits = logits.masked_fill(itself | (counts == 0), NEVER)
    partners = (shared * counts).masked_fill(itself, 0.0)
    total = partners.sum(dim=1)
    shares = partners / total.clamp_min(1e-12)[:, None]
    terms = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
    counts = counts * (total > 1e-6)
    return (counts * terms).sum() / counts.sum().clamp_min(1e-12)


def cosine_loss(cosines: Tensor, shared: Tensor, counts: Tensor) -> Tensor:
    """Mean of (cosine - overlap)^2 over pairs that share a label, and over those that share none;
    of the two their mean.

    On pairs that are drawn it is the loss of SetFit (Tunstall et al. 2022, arXiv 2209.11055); here
    all pairs of a batch count. Where a batch has one kind of pairs alone, the other is 0.

    Args: see `softmax_loss`.
    """
    pairs = (counts[:, None] * counts).tril(-1)
    errors, total = (cosines - shared).square(), cosines.new_zeros(())
    for kind in (shared > 0, shared <= 0):
        weights = pairs * kind
        total = total + (weights * errors).sum() / weights.sum().clamp_min(1e-12)
    return total / 2


def loss_of_all(
    vectors: Tensor,
    labels: Tensor,
    temperature: float | None,
    weights: Tensor | None,
    accelerator: Accelerator,
) -> Tensor:
    """Contrastive loss of the rows of all processes, the same in each.

    Each process has its own rows in the graph, and the others' as constants: the sum of the
    gradients over processes is that of the whole loss. Since DistributedDataParallel takes their
    mean, they are multiplied by the number of processes. All processes must call this.

    Args: see `contrastive_loss`; of this process's rows.
    """
    processes = accelerator.num_processes
    if processes == 1:
        return contrastive_loss(vectors, labels, temperature, weights)
    weights = torch.ones(len(vectors), device=vectors.device) if weights is None else weights
    own = [accelerator.pad_across_processes(t) for t in (vectors.float(), labels, weights)]
    every = [accelerator.gather(t.detach()) for t in own]  # padded rows weigh 0
    parts = list(every[0].chunk(processes))
    parts[accelerator.process_index] = own[0]
    value = contrastive_loss(torch.cat(parts), every[1], temperature, every[2])
    return value + (processes - 1) * (value - value.detach())


def mixed(
    loss: TrainingLoss,
    mean: Tensor,
    vectors: list[Tensor],
    labels: Tensor,
    weights: Tensor | None,
    accelerator: Accelerator,
) -> Tensor:
    """Mix the loss of the head with the contrastive one, by the share that the latter has.

    A head that has no share is still in the graph, with gradients of 0: DistributedDataParallel
    waits for all parameters.

    Args:
        mean: loss of the head.
        vectors: one tensor, see `head_features.kept_vectors`; not read where the share is 0.
    """
    share = loss.contrastive_weight
    if not share:
        return mean
    own = vectors[0][0] if vectors[0].dim() == 3 else vectors[0]  # of several dropout samples
    other = loss_of_all(own, labels, loss.contrastive_temperature, weights, accelerator)
    return (1 - share) * mean + share * other
