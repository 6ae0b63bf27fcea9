"""Scores with weights: those of a table in which each row stands as often as its weight says."""

import numpy as np
import pytest
import torch

from bertchain.data.labels import LabelSpec
from bertchain.metrics import metric_function, score_directions, score_function
from bertchain.models.modeling import PROBLEM_TYPES, DocumentClassifierConfig

SPECS = {
    "single_label": LabelSpec("single_label", ("a", "b", "c"), ("label",)),
    "multi_label": LabelSpec("multi_label", ("a", "b", "c"), ("a", "b", "c")),
    "regression": LabelSpec("regression", ("x", "y"), ("x", "y")),
}


def made_up(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [n, labels] with ties, labels, and weights of 0 to 3."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(80, len(SPECS[kind].names))).round(1)
    labels = {
        "single_label": rng.integers(0, 3, 80),
        "multi_label": rng.integers(0, 2, (80, 3)).astype(float),
        "regression": rng.integers(0, 6, (80, 2)).astype(float),
    }[kind]
    return logits, labels, rng.integers(0, 4, 80).astype(float)


@pytest.mark.parametrize("kind", SPECS)
def test_a_row_counts_as_often_as_its_weight_says(kind):
    spec, (logits, labels, weights) = SPECS[kind], made_up(kind)
    scores_of, repeated = score_function(spec, []), np.repeat(np.arange(80), weights.astype(int))
    p = spec.probabilities(logits)
    weighed, plain = scores_of(p, labels, weights), scores_of(p[repeated], labels[repeated])
    assert weighed == pytest.approx(plain) and {*weighed} == {*plain}
    assert weighed == pytest.approx(scores_of(p, labels, weights * 0.37))
    assert weighed != pytest.approx(scores_of(p, labels))
    assert scores_of(p, labels, np.ones(80)) == pytest.approx(scores_of(p, labels))
    assert {*weighed} == {*score_directions(kind, spec.names)} - {"loss"}


@pytest.mark.parametrize("kind", SPECS)
def test_so_does_the_loss(kind):
    spec, (logits, labels, weights) = SPECS[kind], made_up(kind)
    scale = {"target_mean": (0.0, 1.0), "target_scale": (2.0, 0.5)} if kind == "regression" else {}
    config = DocumentClassifierConfig(problem_type=PROBLEM_TYPES[kind], num_labels=3, **scale)
    compute = metric_function(spec, config, [])
    from transformers import EvalPrediction

    repeated = np.repeat(np.arange(80), weights.astype(int))
    weighed = compute(EvalPrediction(logits, labels), weights)["loss"]
    plain = compute(EvalPrediction(logits[repeated], labels[repeated]))["loss"]
    assert weighed == pytest.approx(plain, rel=1e-5)
    assert torch.isfinite(torch.tensor(weighed))
