"""Calibration against sums by hand, scikit-learn's curve and temperatures that are known."""

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from bertchain.reporting import calibration

RNG = np.random.default_rng(0)


def test_the_error_is_that_of_a_sum_by_hand():
    p = np.array([[0.9, 0.1], [0.92, 0.08], [0.55, 0.45], [0.3, 0.7]])
    found = calibration.measure("single_label", p, np.array([0, 1, 0, 1]))
    # 15 bins: .9 and .92 share the 14th, right once of two; .55 the 9th, .7 the 11th, both right
    by_hand = (abs(0.9 + 0.92 - 1) + abs(0.55 - 1) + abs(0.7 - 1)) / 4
    assert found.error == pytest.approx(by_hand)
    assert found.bins["answers"].tolist() == [1, 1, 2]
    assert found.log_loss == pytest.approx(-np.log([0.9, 0.08, 0.55, 0.7]).mean())


def test_bins_and_loss_are_scikit_learns():
    logits = RNG.normal(size=(2000, 5)) * 2
    p = softmax(logits, axis=1)
    truth = np.array([RNG.choice(5, p=own) for own in softmax(logits / 2, axis=1)])
    found = calibration.measure("single_label", p, truth)
    right = (p.argmax(axis=1) == truth).astype(int)
    shares, means = calibration_curve(right, p.max(axis=1), n_bins=calibration.BINS)
    np.testing.assert_allclose(found.bins["share that was right"], shares)
    np.testing.assert_allclose(found.bins["mean confidence"], means)
    assert found.log_loss == pytest.approx(log_loss(truth, p))
    t = calibration.fit_temperature("single_label", p, truth)
    assert t == pytest.approx(2, rel=0.1)  # labels were drawn from logits / 2
    cooler = calibration.measure("single_label", p, truth, t)
    assert cooler.error < 0.05 < found.error and cooler.log_loss < found.log_loss
    assert cooler.log_loss == pytest.approx(log_loss(truth, softmax(np.log(p) / t, axis=1)))


def test_of_several_labels_each_is_an_answer(monkeypatch):
    logits = RNG.normal(size=(1500, 4)) * 3
    truth = RNG.random((1500, 4)) < expit(logits / 3)
    p = expit(logits)
    t = calibration.fit_temperature("multi_label", p, truth)
    assert t == pytest.approx(3, rel=0.1)
    found = calibration.measure("multi_label", p, truth, t)
    assert found.bins["answers"].sum() == 6000
    expected = calibration.measure("multi_label", expit(logits / t), truth)
    assert found.error == pytest.approx(expected.error) and found.error < 0.03
    monkeypatch.setattr(calibration, "PIECE", 64)
    monkeypatch.setattr(calibration, "MOST_FITTED", 3000)  # of every second row
    pieces = calibration.measure("multi_label", p, truth, t)
    assert pieces.error == pytest.approx(found.error)
    assert calibration.fit_temperature("multi_label", p, truth) == pytest.approx(t, rel=0.1)


def test_probabilities_of_0_and_1_are_measured():
    p, truth = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])
    t = calibration.fit_temperature("single_label", p, truth)
    found = calibration.measure("single_label", p, truth, t)
    assert np.isfinite([t, found.error, found.log_loss]).all()
    t = calibration.fit_temperature("multi_label", p, p > 0)
    assert np.isfinite(calibration.measure("multi_label", p, p > 0, t).log_loss)
