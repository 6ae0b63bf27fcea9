import numpy as np
import pytest

from bertchain.metrics import DocumentMetrics, mean_roc_auc


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
