"""Training losses of a document classifier, as sums that the caller divides once.

The sum and its divisor are kept apart, so that accumulated batches and several processes give the
loss of one large batch. The loss in evaluation is the plain one: see `modeling.document_loss`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import TrainingArguments

from bertchain.arguments.training import LossArguments
from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.models.modeling import PROBLEM_TYPES, DocumentClassifierConfig, standardise


@dataclass(frozen=True)
class TrainingLoss:
    """Training loss of a problem type, with class weights, focal loss and so on as switched on.

    Attributes:
        class_weights: one for each class (single_label), or None. The sum is divided by the weights
            of the rows, as in `torch.nn.CrossEntropyLoss`, so that their scale does not matter.
        positive_weights: one for each label (multi_label), or None: weight of a 1 against a 0.
        focal_gamma: factor (1 - p)^gamma on the log-likelihood, p the probability of the truth (Lin
            et al. 2017, eq. 4); 0 = off.
        label_smoothing: share of the truth that is spread over all classes; 0 = off.
        huber_delta: the loss is linear from this error on, in standard deviations of the target;
            None = squared error.
        ranking_weight: share of the pairwise ranking loss (RankNet, Burges et al. 2005) beside the
            error of a regression: over the rows of the batch with another target, the mean of
            log(1 + exp(-difference of the outputs)), where the higher target ought to be higher;
            outputs in standard deviations of the target. 0 = off.
        rdrop_alpha: weight of the divergence of two passes (R-Drop, Liang et al. 2021); 0 = off.
        contrastive_weight: share of the supervised contrastive loss (see `contrastive`), beside
            the one of the head (Gunel et al. 2021, arXiv 2011.01403); 0 = off.
        contrastive_temperature: by which cosines are divided; None: they are compared pair by pair.
    """

    config: DocumentClassifierConfig
    class_weights: tuple[float, ...] | None = None
    positive_weights: tuple[float, ...] | None = None
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    huber_delta: float | None = None
    ranking_weight: float = 0.0
    rdrop_alpha: float = 0.0
    contrastive_weight: float = 0.0
    contrastive_temperature: float | None = 0.1

    def total(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum the loss over documents, in float32.

        Args:
            logits: [documents, labels], or [samples, documents, labels]: averaged over samples.
            labels: as for `document_loss`; for single_label also probabilities [documents, labels].
            weights: of the rows [documents]; None: all 1.
        """
        logits = logits.float()
        if logits.dim() == 3:
            samples = torch.stack([self.total(sample, labels, weights) for sample in logits])
            return samples.mean()
        if self.config.problem_type == "regression":
            each = self._errors(logits, labels)
            if self.ranking_weight:
                ranks = self._ranking(logits, labels, weights)
                each = (1 - self.ranking_weight) * each + self.ranking_weight * ranks
        elif self.config.problem_type == PROBLEM_TYPES["multi_label"]:
            each = self._binary(logits, labels.to(logits.dtype)).sum(dim=-1)
        elif self.config.ordinal_head:
            each = self._ordinal(logits, labels)
        else:
            each = self._categorical(logits, labels)
        return _weighed(each, weights).sum()

    def divisor(self, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Divisor of `total` over these rows: the number of their labels, or the weights' sum."""
        if self.class_weights is not None:
            return _weighed(self._class_weights(labels), weights).sum()
        in_a_row = 1 if self.soft(labels) else labels.numel() // max(1, len(labels))
        if weights is not None:
            return weights.sum() * in_a_row
        return torch.tensor(float(len(labels) * in_a_row), device=labels.device)

    def divergence(self, logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum the symmetric KL divergence of two passes over the same rows.

        Regression has no distribution: half the squared difference in units of the target's scale
        takes its place, the divergence of two unit normals.

        Args:
            logits: [2 * documents, labels], one pass after the other; or [samples, ...]: averaged.
            weights: of the rows [documents]; None: all 1.
        """
        if logits.dim() == 3:
            return torch.stack([self.divergence(sample, weights) for sample in logits]).mean()
        one, two = logits.float().chunk(2)
        if self.config.problem_type == "regression":
            scale = one.new_tensor(self.config.target_scale)
            each = 0.5 * ((one - two) / scale) ** 2
        elif self.config.problem_type == PROBLEM_TYPES["multi_label"]:
            # KL(p||q) + KL(q||p) = (p - q)(logit p - logit q) for each label
            each = 0.5 * (one.sigmoid() - two.sigmoid()) * (one - two)
        else:
            p, q = one.log_softmax(-1), two.log_softmax(-1)
            each = 0.5 * (p.exp() - q.exp()) * (p - q)
        return _weighed(each.sum(dim=-1), weights).sum()

    def soft(self, labels: Tensor) -> bool:
        """Return whether labels are probabilities of the classes (single_label only)."""
        single = self.config.problem_type == PROBLEM_TYPES["single_label"]
        return single and labels.is_floating_point()

    def _errors(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Squared or Huber error of standardised targets [documents]."""
        logits, labels = standardise(logits, labels, self.config)
        if self.huber_delta is None:
            each = F.mse_loss(logits, labels, reduction="none")
        else:  # twice the usual, so that small errors count as in the squared loss
            each = 2 * F.huber_loss(logits, labels, reduction="none", delta=self.huber_delta)
        return each.sum(dim=-1)

    def _ranking(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Mean ranking loss of each row against those of another target [documents]."""
        logits, labels = standardise(logits, labels, self.config)
        above = (labels[:, None] - labels[None]).sign()  # [documents, documents, targets]
        losses = F.softplus(-above * (logits[:, None] - logits[None]))
        partners = above.abs()
        if weights is not None:
            partners = partners * weights[None, :, None]
        return ((losses * partners).sum(1) / partners.sum(1).clamp_min(1e-12)).sum(dim=-1)

    def _ordinal(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum over the cuts between grades of the cross-entropy of being above (CORAL, Cao et al.
        2020), with class weights [documents]. Args: logits: log-probabilities of the grades."""
        log_p = logits.log_softmax(dim=-1)
        below = log_p.logcumsumexp(dim=-1)[:, :-1]  # [documents, cuts]
        above = log_p.flip(-1).logcumsumexp(dim=-1).flip(-1)[:, 1:]
        truth = self._distribution(labels, log_p).flip(-1).cumsum(dim=-1).flip(-1)[:, 1:]
        each = -(truth * above + (1 - truth) * below).sum(dim=-1)
        return each if self.class_weights is None else each * self._class_weights(labels)

    def _categorical(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, with focal factor and class weights [documents]."""
        log_p = logits.log_softmax(dim=-1)
        truth = self._distribution(labels, log_p)  # [documents, classes]
        factor = 1.0 if not self.focal_gamma else (1 - log_p.exp()) ** self.focal_gamma
        each = -(truth * factor * log_p).sum(dim=-1)
        return each if self.class_weights is None else each * self._class_weights(labels)

    def _distribution(self, labels: Tensor, like: Tensor) -> Tensor:
        """The smoothed truth [documents, classes], of the type of `like`."""
        hard = not self.soft(labels)
        truth = F.one_hot(labels, like.shape[-1]).to(like.dtype) if hard else labels.to(like.dtype)
        return truth * (1 - self.label_smoothing) + self.label_smoothing / like.shape[-1]

    def _class_weights(self, labels: Tensor) -> Tensor:
        """The weight of each row [documents]: of its class, or the mean over its probabilities."""
        weights = torch.tensor(self.class_weights, device=labels.device)
        return labels.to(weights.dtype) @ weights if self.soft(labels) else weights[labels]

    def _binary(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Binary cross-entropy, with focal factor and weights of positives [documents, labels]."""
        weights = None
        if self.positive_weights is not None:
            weights = logits.new_tensor(self.positive_weights)
        each = F.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=weights, reduction="none"
        )
        if not self.focal_gamma:
            return each
        wrong = torch.where(labels == 1, -logits, logits).sigmoid()  # 1 - p of the truth
        soft = (labels != 0) & (labels != 1)
        wrong = torch.where(soft, (labels - logits.sigmoid()).abs(), wrong)
        return wrong**self.focal_gamma * each


def _weighed(each: Tensor, weights: Tensor | None) -> Tensor:
    return each if weights is None else each * weights


def build_loss(
    losses: LossArguments,
    training: TrainingArguments,
    spec: LabelSpec,
    config: DocumentClassifierConfig,
    labels: list,
) -> TrainingLoss:
    """Build the training loss from the flags.

    Args:
        training: for its label_smoothing_factor.
        labels: of the training rows, for balanced weights; empty without training.

    Raises:
        InputError: for a flag that does not go with the problem type, and for weights that do not
            fit the labels.
    """
    smoothing = training.label_smoothing_factor
    only_for = {
        "class_weights": (losses.class_weights, ("single_label",)),
        "positive_weights": (losses.positive_weights, ("multi_label",)),
        "focal_gamma": (losses.focal_gamma, ("single_label", "multi_label")),
        "huber_delta": (losses.huber_delta, ("regression",)),
        "ranking_weight": (losses.ranking_weight, ("regression",)),
        "label_smoothing_factor": (smoothing, ("single_label",)),
        "contrastive_weight": (losses.contrastive_weight, ("single_label", "multi_label")),
        "rows_per_class_in_batch": (
            losses.rows_per_class_in_batch,
            ("single_label", "multi_label"),
        ),
    }
    for flag, (value, kinds) in only_for.items():
        if value and spec.problem_type not in kinds:
            raise InputError(f"--{flag} does not go with {spec.problem_type} labels")
    weights = {}
    if labels:
        for flag in ("class_weights", "positive_weights"):
            weights[flag] = resolve_class_weights(getattr(losses, flag), flag, spec, labels)
    return TrainingLoss(
        config=config,
        focal_gamma=losses.focal_gamma,
        label_smoothing=smoothing,
        huber_delta=losses.huber_delta,
        ranking_weight=losses.ranking_weight,
        rdrop_alpha=losses.rdrop_alpha,
        contrastive_weight=losses.contrastive_weight or 0.0,
        contrastive_temperature=losses.temperature,
        **weights,
    )


def resolve_class_weights(
    given: Sequence[str], flag: str, spec: LabelSpec, labels: list
) -> tuple[float, ...] | None:
    """Parse `balanced` or name=weight ... into a weight for each label, in the model's order.

    Balanced class weights are rows / (classes * rows of the class), as in scikit-learn; balanced
    positive weights are (rows without the label) / (rows with it).

    Returns:
        the weights, or None where none are given.

    Raises:
        InputError: naming `flag`, for an unknown name, a missing or unfit weight, or a label that
            occurs in no training row and so has no balanced weight.
    """
    if not given:
        return None
    if list(given) == ["balanced"]:
        return _balanced(flag, spec, labels)
    weights = {}
    for item in given:
        name, _, value = item.rpartition("=")
        if name not in spec.names:
            raise InputError(
                f"--{flag} {item}: write balanced, or name=weight for each label: "
                + " ".join(f"{n}=1" for n in spec.names[:6])
            )
        try:
            weights[name] = float(value)
        except ValueError:
            weights[name] = -1.0
        if not 0 <= weights[name] < float("inf"):
            raise InputError(f"--{flag} {item}: {value!r} is not a weight of at least 0")
    missing = [name for name in spec.names if name not in weights]
    if missing:
        raise InputError(f"--{flag} lacks a weight for {', '.join(missing[:6])}")
    return tuple(weights[name] for name in spec.names)


def _balanced(flag: str, spec: LabelSpec, labels: list) -> tuple[float, ...]:
    rows = np.asarray(labels, dtype=float)
    if rows.ndim == 1:
        rows = np.eye(len(spec.names))[rows.astype(int)]
    counts = rows.sum(axis=0)  # [labels]
    if (counts == 0).any():
        absent = spec.names[int(counts.argmin())]
        raise InputError(f"--{flag} balanced: no training row has the label {absent!r}")
    if spec.problem_type == "multi_label":
        return tuple(((len(rows) - counts) / counts).tolist())
    return tuple((len(rows) / (len(counts) * counts)).tolist())
