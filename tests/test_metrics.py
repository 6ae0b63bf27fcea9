import numpy as np
import pytest
from sklearn import metrics as sk

from bertchain.metrics import (
    SCORES,
    DocumentMetrics,
    NamedScore,
    gain,
    main_metric,
    scores_of_targets,
)
from bertchain.scoring import ranking
from bertchain.scoring.ranking import FEW, mean_roc_auc, roc_auc


def test_single_label_by_hand():
    p = np.array([[0.8, 0.2], [0.4, 0.6], [0.3, 0.7], [0.9, 0.1]])
    scores = DocumentMetrics("single_label").compute(predictions=p, references=[0, 0, 1, 1])
    assert scores["accuracy"] == 0.5 and scores["f1_macro"] == 0.5 and scores["mcc"] == 0.0
    assert scores["log_loss"] == pytest.approx(-np.log([0.8, 0.4, 0.7, 0.1]).mean())
    assert scores["roc_auc"] == 0.5  # of 4 pairs, (0.7 over 0.2) and (0.7 over 0.6) are in order


def test_a_class_absent_from_the_truth_is_left_out_of_the_area():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    scores = DocumentMetrics("single_label").compute(predictions=p, references=[0, 1])
    assert scores["roc_auc"] == 1.0
    assert np.isnan(mean_roc_auc(p, np.zeros((2, 3), dtype=bool)))


def test_multi_label_by_hand():
    p = np.array([[0.9, 0.2, 0.6], [0.4, 0.7, 0.1]])
    y = [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    scores = DocumentMetrics("multi_label").compute(predictions=p, references=y)
    # predicted: {0, 2} and {1}; hits 2, false 1, missed 1
    assert scores["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["lrap"] == 1.0 and scores["subset_accuracy"] == 0.0
    likelihoods = [0.9, 0.8, 0.4, 0.4, 0.7, 0.9]
    assert scores["log_loss"] == pytest.approx(-np.log(likelihoods).mean())
    assert scores["roc_auc_macro"] == 1.0  # only the second label has both values


def test_regression_by_hand():
    scores = DocumentMetrics("regression").compute(
        predictions=[[1.0], [2.0], [4.0]], references=[[1.0], [3.0], [2.0]]
    )
    assert scores["rmse"] == pytest.approx(np.sqrt(5 / 3)) and scores["mae"] == 1.0
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])
    assert scores["spearman"] == pytest.approx(0.5)
    constant = DocumentMetrics("regression").compute(
        predictions=[[1.0], [1.0]], references=[[1.0], [3.0]]
    )
    assert np.isnan(constant["pearson"])


def test_of_several_targets_none_counts_more_for_its_unit():
    """RMSE standardised: the root of the mean over targets of squared error / variance."""
    targets = np.array([[1.0, 1000.0], [3.0, 5000.0], [2.0, 3000.0]])
    close = [0.1, 2000.0]  # on the small target, but not on the large one
    metric = DocumentMetrics("regression")
    both = [metric.compute(predictions=targets + error, references=targets) for error in (close, 1)]
    assert both[0]["rmse"] == pytest.approx(np.sqrt((0.1**2 + 2000.0**2) / 2))
    variance = targets.var(axis=0)
    for scores, error in zip(both, (np.array(close), 1), strict=True):
        expected = np.sqrt(np.mean(error**2 / variance))
        assert scores["rmse_standardised"] == pytest.approx(expected)
    half = targets.mean(axis=0) + 0.0 * targets
    scores = metric.compute(predictions=half, references=targets)
    assert scores["rmse_standardised"] == pytest.approx(1.0)  # as good as the mean
    own = scores_of_targets(half + close, targets, ["low", "high"])
    assert own["low_rmse"] == pytest.approx(np.sqrt(variance[0] + 0.01))
    assert own["high_rmse_standardised"] == pytest.approx(np.sqrt(1 + 2000.0**2 / variance[1]))
    same = metric.compute(predictions=[[1.0, 2.0], [2.0, 2.0]], references=[[1.0, 3.0]] * 2)
    assert same["rmse_standardised"] == pytest.approx(np.sqrt((0 + 1 + 1 + 1) / 4))
    assert main_metric("regression", 2) == ("rmse_standardised", False)
    assert main_metric("regression", 1)[0] == "rmse" and "rmse_standardised" not in metric.compute(
        predictions=[[1.0]] * 2, references=[[1.0], [2.0]]
    )


@pytest.mark.parametrize("digits", [2, 12])  # with ties and without
def test_a_million_scores_are_ranked_without_a_sort(digits, monkeypatch):
    """Here fewer: from how many on is set."""
    monkeypatch.setattr(ranking, "MANY", 50_000)
    monkeypatch.setattr(ranking, "PIECE", 2**12)
    rng = np.random.default_rng(3)
    scores = (rng.random(50_007) ** 9).round(digits)
    scores[:3] = [0.0, 1.0, 1e-30]
    truth = rng.random(len(scores)) < 0.01 + 0.02 * scores
    truth[:3] = True
    expected = sk.roc_auc_score(truth, scores)
    sizes, sort = [], np.sort
    monkeypatch.setattr(np, "sort", lambda values: sizes.append(len(values)) or sort(values))
    assert roc_auc(scores, truth) == pytest.approx(expected, rel=1e-12)
    assert max(sizes) <= 2**12


def few_and_many(rng, n: int, labels: int) -> np.ndarray:
    """0/1 [n, labels]: columns and rows with none, a few, many and all."""
    truth = rng.random((n, labels)) < np.linspace(0, 1, labels)
    truth[0], truth[1] = False, True
    truth[:, 0], truth[:, -1] = False, True
    assert {*(truth.sum(axis=0) > FEW)} == {True, False} == {*(truth.sum(axis=1) > FEW)}
    return truth


@pytest.mark.parametrize("digits", [1, 12])  # with ties and without
def test_scores_of_labels_are_those_of_scikit_learn(digits):
    rng = np.random.default_rng(0)
    truth, p = few_and_many(rng, 60, 40), rng.random((60, 40)).round(digits)
    scores = DocumentMetrics("multi_label").compute(predictions=p, references=truth.astype(float))
    both = [c for c in range(40) if 0 < truth[:, c].sum() < 60]
    areas = [sk.roc_auc_score(truth[:, c], p[:, c]) for c in both]
    predicted = p >= 0.5
    expected = {
        "f1_micro": sk.f1_score(truth, predicted, average="micro"),
        "f1_macro": sk.f1_score(truth, predicted, average="macro", zero_division=0),
        "roc_auc_micro": sk.roc_auc_score(truth.ravel(), p.ravel()),
        "roc_auc_macro": np.mean(areas),
        "lrap": sk.label_ranking_average_precision_score(truth, p),
        "subset_accuracy": sk.accuracy_score(truth, predicted),
        "log_loss": sk.log_loss(truth.ravel(), p.ravel().clip(1e-7, 1 - 1e-7)),
    }
    assert scores == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 30])
@pytest.mark.parametrize("digits", [1, 12])
def test_scores_of_classes_are_those_of_scikit_learn(classes, digits):
    rng = np.random.default_rng(1)
    raw = rng.random((90, classes)).round(digits) + 0.01
    p, y = raw / raw.sum(axis=1, keepdims=True), rng.integers(0, max(classes - 1, 2), 90)
    p[0] = np.eye(classes)[y[0] - 1]  # sure, and wrong
    scores = DocumentMetrics("single_label").compute(predictions=p, references=y)
    areas = [sk.roc_auc_score(y == c, p[:, c]) for c in np.unique(y)]
    expected = {
        "accuracy": sk.accuracy_score(y, p.argmax(1)),
        "f1_macro": sk.f1_score(y, p.argmax(1), average="macro", zero_division=0),
        "f1_weighted": sk.f1_score(y, p.argmax(1), average="weighted", zero_division=0),
        "mcc": sk.matthews_corrcoef(y, p.argmax(1)),
        "log_loss": sk.log_loss(y, p, labels=range(classes)),
        "roc_auc": np.mean(areas),
    }
    assert scores == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("targets", [1, 3])
def test_scores_of_numbers_are_those_of_scikit_learn(targets):
    p, y = np.random.default_rng(3).normal(size=(2, 40, targets))
    scores = SCORES["regression"](p, y)
    expected = sk.root_mean_squared_error(y.reshape(-1), p.reshape(-1))
    assert scores["rmse"] == pytest.approx(expected, rel=1e-12)
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-12)
    p[1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        SCORES["regression"](p, y)


def test_a_correlation_of_one_class_is_zero():
    scores = DocumentMetrics("single_label").compute(
        predictions=[[0.9, 0.1], [0.8, 0.2]], references=[0, 1]
    )
    assert scores["mcc"] == 0.0


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_many_classes_cost_no_sort_and_no_table_for_each(problem_type, monkeypatch):
    """2,000 x 2,000: every number is looked at a few times, and no class is sorted."""
    rng = np.random.default_rng(2)
    p, y = rng.random((2000, 2000)), rng.permutation(2000)
    if problem_type == "single_label":
        p /= p.sum(axis=1, keepdims=True)
    truth = y[:, None] == np.arange(2000)
    sorts, sort = [], np.sort

    def counted(values, *rest, **options):
        sorts.append(np.size(values))
        return sort(values, *rest, **options)

    monkeypatch.setattr(np, "sort", counted)
    metric = DocumentMetrics(problem_type)
    monkeypatch.setattr(metric, "add_batch", None)  # no table of all numbers
    references = y if problem_type == "single_label" else truth
    scores = metric.compute(predictions=p, references=references)
    own = p[truth][np.argsort(y)]  # one true row a class
    area = np.mean((p < own).sum(axis=0) / 1999)
    name = "roc_auc" if problem_type == "single_label" else "roc_auc_macro"
    assert scores[name] == pytest.approx(area, rel=1e-12)
    assert len([size for size in sorts if size >= 2000]) <= 1  # roc_auc_micro: all at once


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        DocumentMetrics("single_label").compute(predictions=[[np.nan, 1.0]], references=[0])


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label", "regression"])
def test_each_score_by_itself_is_that_among_all(problem_type):
    rng = np.random.default_rng(0)
    p = rng.uniform(size=(30, 4))
    labels = {
        "single_label": rng.integers(0, 4, 30),
        "multi_label": rng.integers(0, 2, (30, 4)),
        "regression": rng.normal(size=(30, 4)),
    }[problem_type]
    p = p / p.sum(axis=1, keepdims=True) if problem_type == "single_label" else p
    for name, value in SCORES[problem_type](p, labels).items():
        score = NamedScore(problem_type, name)
        assert score(labels, p) == value
        assert gain(score, labels, p) == (value if score.greater_is_better else -value)


def test_a_score_that_is_not_defined_is_the_worst():
    score, targets = NamedScore("regression", "pearson"), np.arange(3.0)[:, None]
    assert gain(score, targets, targets) == pytest.approx(1)
    assert gain(score, targets, np.ones((3, 1))) == -np.inf
