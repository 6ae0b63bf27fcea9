"""Each loss against a value computed by hand, and its scale under accumulation and processes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from one_step import one_step

from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.models.modeling import (
    PROBLEM_TYPES,
    DocumentClassifierConfig,
    OrdinalHead,
    document_loss,
)
from bertchain.training.losses import TrainingLoss, resolve_class_weights

pytestmark = pytest.mark.versions

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 0.0], [0.0, 0.0, 3.0]])
LABELS = torch.tensor([0, 2, 2])
MULTI = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0]])


def loss_of(kind: str, **fields) -> TrainingLoss:
    config = DocumentClassifierConfig(problem_type=PROBLEM_TYPES[kind], num_labels=3)
    if kind == "regression":
        config.target_mean, config.target_scale = [1.0, 2.0, 3.0], [2.0, 4.0, 0.5]
    return TrainingLoss(config, **fields)


def mean(loss: TrainingLoss, logits, labels) -> float:
    return (loss.total(logits, labels) / loss.divisor(labels)).item()


def test_with_nothing_switched_on_it_is_the_plain_loss():
    targets = torch.tensor([[1.0, 5.0, 2.0]] * 3)
    for kind, labels in (("single_label", LABELS), ("multi_label", MULTI), ("regression", targets)):
        loss = loss_of(kind)
        assert mean(loss, LOGITS, labels) == pytest.approx(
            document_loss(LOGITS, labels, loss.config).item()
        )


def test_class_weights_are_those_of_torch():
    weights = (1.0, 2.0, 5.0)
    expected = F.cross_entropy(LOGITS, LABELS, weight=torch.tensor(weights))
    assert mean(loss_of("single_label", class_weights=weights), LOGITS, LABELS) == pytest.approx(
        expected.item()
    )
    by_hand = [-(row.log_softmax(0)[c]).item() for row, c in zip(LOGITS, LABELS, strict=True)]
    assert expected.item() == pytest.approx((1 * by_hand[0] + 5 * by_hand[1] + 5 * by_hand[2]) / 11)


def test_label_smoothing_is_that_of_torch():
    expected = F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2)
    loss = loss_of("single_label", label_smoothing=0.2)
    assert mean(loss, LOGITS, LABELS) == pytest.approx(expected.item())


def test_soft_labels_are_those_of_torch():
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    loss = loss_of("single_label")
    assert mean(loss, LOGITS, soft) == pytest.approx(F.cross_entropy(LOGITS, soft).item())
    assert mean(loss, LOGITS, soft) == pytest.approx(
        document_loss(LOGITS, soft, loss.config).item()
    )
    one_hot = F.one_hot(LABELS, 3).float()
    weighted = loss_of("single_label", class_weights=(1.0, 2.0, 5.0))
    assert mean(weighted, LOGITS, one_hot) == pytest.approx(mean(weighted, LOGITS, LABELS))


def test_focal_loss_by_hand():
    p = [LOGITS[i].softmax(0)[c].item() for i, c in enumerate(LABELS)]
    expected = sum(-((1 - q) ** 2) * math.log(q) for q in p) / 3
    assert mean(loss_of("single_label", focal_gamma=2.0), LOGITS, LABELS) == pytest.approx(expected)
    p = torch.where(MULTI == 1, LOGITS.sigmoid(), 1 - LOGITS.sigmoid()).double()
    expected = (-((1 - p) ** 1.5) * p.log()).mean().item()
    assert mean(loss_of("multi_label", focal_gamma=1.5), LOGITS, MULTI) == pytest.approx(
        expected, rel=1e-5
    )


def test_positive_weights_are_those_of_torch():
    weights = (1.0, 3.0, 0.5)
    expected = F.binary_cross_entropy_with_logits(LOGITS, MULTI, pos_weight=torch.tensor(weights))
    loss = loss_of("multi_label", positive_weights=weights)
    assert mean(loss, LOGITS, MULTI) == pytest.approx(expected.item())


def test_huber_is_squared_below_delta_and_linear_above_in_standard_deviations():
    loss = loss_of("regression", huber_delta=1.0)
    labels = torch.tensor([[1.0, 2.0, 3.0]])
    # errors of 0.5, 3 and 0 standard deviations: 0.5^2 and 2 * (3 - 0.5)
    logits = labels + torch.tensor([[0.5 * 2, 3 * 4, 0.0]])
    assert mean(loss, logits, labels) == pytest.approx((0.25 + 5.0 + 0.0) / 3)


def test_dropout_samples_are_averaged_as_losses():
    loss = loss_of("single_label")
    samples = torch.stack([LOGITS, LOGITS * 2, -LOGITS])
    expected = np.mean([loss.total(one, LABELS).item() for one in samples])
    assert loss.total(samples, LABELS).item() == pytest.approx(expected)


def test_divergence_is_the_mean_of_both_kl_divergences():
    other = LOGITS.flip(0)
    both = torch.cat([LOGITS, other])
    p, q = (
        torch.distributions.Categorical(logits=LOGITS),
        torch.distributions.Categorical(logits=other),
    )
    kl = torch.distributions.kl_divergence
    expected = 0.5 * (kl(p, q) + kl(q, p)).sum().item()
    assert loss_of("single_label").divergence(both).item() == pytest.approx(expected, rel=1e-5)
    p, q = torch.distributions.Bernoulli(logits=LOGITS), torch.distributions.Bernoulli(logits=other)
    expected = 0.5 * (kl(p, q) + kl(q, p)).sum().item()
    assert loss_of("multi_label").divergence(both).item() == pytest.approx(expected, rel=1e-5)
    unit = torch.tensor([2.0, 4.0, 0.5])
    p, q = torch.distributions.Normal(LOGITS / unit, 1), torch.distributions.Normal(other / unit, 1)
    expected = 0.5 * (kl(p, q) + kl(q, p)).sum().item()
    assert loss_of("regression").divergence(both).item() == pytest.approx(expected, rel=1e-5)
    twice = torch.stack([both, both])
    assert loss_of("multi_label").divergence(twice) == loss_of("multi_label").divergence(both)


# ---------------------------------------------------------------- weights by name


def spec(kind="single_label"):
    return LabelSpec(kind, ("a", "b", "c=d"), ("label",))


def test_balanced_weights_by_hand():
    assert resolve_class_weights(["balanced"], "class_weights", spec(), [0, 0, 0, 1, 2, 2]) == (
        pytest.approx((6 / 9, 6 / 3, 6 / 6))
    )
    rows = [[1.0, 1.0, 0.0]] * 3 + [[0.0, 1.0, 1.0]]
    weights = resolve_class_weights(["balanced"], "positive_weights", spec("multi_label"), rows)
    assert weights == pytest.approx((1 / 3, 0.0, 3.0))
    soft = [[0.5, 0.25, 0.25]] * 4
    assert resolve_class_weights(["balanced"], "class_weights", spec(), soft) == pytest.approx(
        (4 / 6, 4 / 3, 4 / 3)
    )
    assert resolve_class_weights([], "class_weights", spec(), [0]) is None


def test_given_weights_go_by_name_and_mistakes_are_named():
    given = ["c=d=3", "a=1", "b=0.5"]
    assert resolve_class_weights(given, "class_weights", spec(), []) == (1.0, 0.5, 3.0)
    for bad, message in (
        (["a=1", "b=2"], "--class_weights lacks a weight for c=d"),
        (["e=1"], "--class_weights e=1: write balanced, or name=weight for each label: a=1 b=1"),
        (["a=-1"], "'-1' is not a weight of at least 0"),
        (["a=x"], "'x' is not a weight"),
    ):
        with pytest.raises(InputError, match=message):
            resolve_class_weights(bad, "class_weights", spec(), [])
    with pytest.raises(InputError, match="no training row has the label 'c=d'"):
        resolve_class_weights(["balanced"], "class_weights", spec(), [0, 1])


# ---------------------------------------------------------------- accumulation

CASES = {
    "weights": ("single_label", {"class_weights": (1.0, 4.0, 0.5)}),
    "smoothing": ("single_label", {"label_smoothing": 0.3}),
    "focal": ("single_label", {"focal_gamma": 2.0}),
    "soft": ("soft", {"class_weights": (1.0, 4.0, 0.5)}),
    "positive": ("multi_label", {"positive_weights": (1.0, 4.0, 0.5)}),
    "huber": ("regression", {"huber_delta": 0.5}),
    "rdrop": ("single_label", {"rdrop_alpha": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_loss_is_the_same_for_accumulation_1_and_4(case, tmp_path):
    problem_type, fields = CASES[case]
    whole, loss, _ = one_step(problem_type, tmp_path, 22, 1, rows=22, **fields)
    parts, loss_of_parts, _ = one_step(problem_type, tmp_path, 6, 4, rows=22, **fields)
    plain, _, _ = one_step(problem_type, tmp_path, 22, 1, rows=22)
    assert loss == pytest.approx(loss_of_parts, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)
    changed = not torch.allclose(whole["head.weight"], plain["head.weight"], rtol=1e-3)
    assert changed == (case != "rdrop")  # without dropout both passes are equal


@pytest.mark.parametrize(
    ("kind", "labels", "fields"),
    [
        ("single_label", LABELS, {}),
        ("single_label", LABELS, {"class_weights": (1.0, 2.0, 5.0), "label_smoothing": 0.1}),
        ("single_label", torch.full((3, 3), 1 / 3), {"focal_gamma": 2.0}),
        ("multi_label", MULTI, {"positive_weights": (2.0, 1.0, 3.0)}),
        ("regression", torch.tensor([[1.0, 5.0, 2.0]] * 3), {"huber_delta": 0.5}),
    ],
)
def test_a_row_of_weight_3_is_a_row_three_times(kind, labels, fields):
    loss, weights = loss_of(kind, **fields), torch.tensor([1.0, 3.0, 1.0])
    rows = [0, 1, 1, 1, 2]
    torch.testing.assert_close(
        loss.total(LOGITS, labels, weights), loss.total(LOGITS[rows], labels[rows])
    )
    torch.testing.assert_close(loss.divisor(labels, weights), loss.divisor(labels[rows]))
    other = LOGITS.flip(0)
    torch.testing.assert_close(
        loss.divergence(torch.cat([LOGITS, other]), weights),
        loss.divergence(torch.cat([LOGITS[rows], other[rows]])),
    )
    samples = torch.stack([LOGITS, other])
    each = (loss.total(LOGITS, labels, weights) + loss.total(other, labels, weights)) / 2
    torch.testing.assert_close(loss.total(samples, labels, weights), each)


# ---------------------------------------------------------------- graded and soft targets


def ranked_by_hand(outputs, targets, weights):
    """Pairwise ranking loss of one target: a loop over all pairs, in the outputs' own unit."""
    rows = []
    for i in range(len(outputs)):
        terms = [
            (weights[j], math.log1p(math.exp(-(outputs[i] - outputs[j]) * sign)))
            for j in range(len(outputs))
            if (sign := (targets[i] > targets[j]) - (targets[i] < targets[j]))
        ]
        total = sum(w for w, _ in terms)
        rows.append(weights[i] * sum(w * t for w, t in terms) / total if total else 0.0)
    return sum(rows)


def test_ranking_of_all_pairs_by_hand():
    outputs, targets = [0.3, -1.0, 2.0, 0.0, 0.5], [1.0, 2.0, 3.0, 2.0, 0.0]
    config = DocumentClassifierConfig(problem_type="regression", num_labels=1)
    config.target_mean, config.target_scale = [1.0], [2.0]
    loss = TrainingLoss(config, ranking_weight=1.0)
    logits, labels = torch.tensor(outputs)[:, None] * 2 + 1, torch.tensor(targets)[:, None]
    expected = ranked_by_hand(outputs, targets, [1] * 5)
    assert loss.total(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    weights = [1.0, 0.0, 2.0, 0.5, 1.0]
    expected = ranked_by_hand(outputs, targets, weights)
    found = loss.total(logits, labels, torch.tensor(weights))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    assert loss.divisor(labels, torch.tensor(weights)).item() == 4.5
    plain = TrainingLoss(config).total(logits, labels)
    mixed = TrainingLoss(config, ranking_weight=0.25).total(logits, labels)
    half = 0.25 * loss.total(logits, labels) + 0.75 * plain
    assert mixed.item() == pytest.approx(half.item(), rel=1e-5)
    alone = loss.total(logits[:1], labels[:1])  # without another row there is nothing to rank
    assert alone.item() == 0.0
    two = loss.total(logits.expand(-1, 2), torch.cat([labels, labels.flip(0)], dim=1))
    expected = ranked_by_hand(outputs, targets, [1] * 5)
    expected += ranked_by_hand(outputs, targets[::-1], [1] * 5)
    assert two.item() == pytest.approx(expected, rel=1e-5)


def test_the_ordinal_loss_is_that_of_coral():
    head = OrdinalHead(4, 5)
    torch.nn.init.normal_(head.bias)
    vectors, grades = torch.randn(6, 4), torch.tensor([0, 4, 2, 1, 3, 2])
    above = head.value(vectors) - head.cuts()  # [rows, cuts]
    levels = (grades[:, None] > torch.arange(4)).float()
    expected = F.binary_cross_entropy_with_logits(above, levels, reduction="sum")
    config = DocumentClassifierConfig(num_labels=5, problem_type=PROBLEM_TYPES["single_label"])
    config.ordinal_head = True
    loss = TrainingLoss(config)
    log_p = head(vectors)
    assert loss.total(log_p, grades).item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(6))
    higher = log_p.exp().flip(1).cumsum(1).flip(1)[:, 1:]
    torch.testing.assert_close(higher, above.sigmoid())
    soft = F.one_hot(grades, 5).float() * 0.8 + 0.2 / 5
    levels = soft.flip(1).cumsum(1).flip(1)[:, 1:]
    expected = F.binary_cross_entropy_with_logits(above, levels, reduction="sum")
    assert loss.total(log_p, soft).item() == pytest.approx(expected.item(), rel=1e-5)
    weighted = loss.total(log_p, grades, torch.tensor([2.0, 0, 0, 0, 0, 0]))
    one = loss.total(log_p[:1], grades[:1])
    assert weighted.item() == pytest.approx(2 * one.item(), rel=1e-5)


def test_ordinal_probabilities_stay_finite_far_from_the_cuts():
    head = OrdinalHead(1, 4)
    torch.nn.init.ones_(head.value.weight)
    torch.nn.init.constant_(head.bias, -20.0)  # steps between cuts of 2e-9
    vectors = torch.tensor([[-80.0], [0.0], [80.0]], requires_grad=True)
    log_p = head(vectors)
    log_p.sum().backward()
    assert torch.isfinite(log_p).all() and torch.isfinite(head.bias.grad).all()
    assert (head.cuts().diff() >= 0).all()


def test_soft_labels_of_several_are_those_of_torch():
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.5], [0.3, 0.3, 0.4]])
    expected = F.binary_cross_entropy_with_logits(LOGITS, soft)
    assert mean(loss_of("multi_label"), LOGITS, soft) == pytest.approx(expected.item())
    each = F.binary_cross_entropy_with_logits(LOGITS, soft, reduction="none")
    focal = (each * (soft - LOGITS.sigmoid()).abs() ** 2).mean()
    loss = loss_of("multi_label", focal_gamma=2.0)
    assert mean(loss, LOGITS, soft) == pytest.approx(focal.item(), rel=1e-5)
