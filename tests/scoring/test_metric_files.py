"""Scores of the user's own and of grades: what they get, what they give, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.metrics import gain, score_directions, score_function
from bertchain.scoring import metric_files

SINGLE = LabelSpec("single_label", ("1", "2", "3"), ("label",))
NUMBER = LabelSpec("regression", ("y",), ("y",))

FILE = """
import numpy as np
from dataclasses import dataclass

@dataclass
class Weights:
    wrong: float = 2.0

def cost(labels, predictions):
    labels[:] = labels.copy()  # may be changed: it is a copy
    assert predictions.shape == (len(labels), 3) or predictions.shape == labels.shape
    picked = predictions.argmax(axis=1) if predictions.ndim == 2 else np.rint(predictions)
    return Weights().wrong * np.mean(picked != labels)

cost.greater_is_better = False

def text(labels, predictions):
    return "0.5 or so"

def table(labels, predictions):
    return [0.5, 0.6]

def fails(labels, predictions):
    raise KeyError("no such thing\\nin two lines")

fails.greater_is_better = "yes"
number = 5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_metric.py"
    path.write_text(FILE)
    return str(path)


def test_a_function_of_a_file_scores_beside_the_usual_ones(file):
    p = np.array([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.4, 0.5, 0.1]])
    scores = score_function(SINGLE, [f"{file}:cost"])(p, np.array([0, 2, 2]))
    assert scores["cost"] == pytest.approx(2 / 3) and scores["accuracy"] == pytest.approx(2 / 3)
    metric = metric_files.load(f"{file}:cost")
    assert metric.name == "cost" and metric.greater_is_better is False
    assert gain(metric, np.array([0, 2, 2]), p) == pytest.approx(-2 / 3)
    column = np.array([[1.2], [2.6]])  # one target is a vector
    assert metric(np.array([[1.0], [2.0]]), column) == 1.0
    said = metric_files.load(f"{file}:text", greater_is_better=True)
    assert said.greater_is_better is True
    assert not [*Path(file).parent.glob("__pycache__")]


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("{file}", "write FILE.py:FUNCTION"),
        ("nowhere.py:score", "nowhere.py:score: no such file"),
        ("{file}:score", "defines no function score"),
        ("{file}:number", "defines no function number"),
        ("{file}:fails", "greater_is_better is 'yes'"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_line(named, says, file):
    with pytest.raises(InputError, match=says):
        metric_files.load(named.format(file=file))


def test_what_fails_or_is_no_number_is_said_in_a_line(file, tmp_path):
    labels, p = np.array([0, 1]), np.eye(2)
    with pytest.raises(InputError, match="table gives a list, not a number"):
        metric_files.load(f"{file}:table")(labels, p)
    with pytest.raises(InputError, match="text gives a str, not a number"):
        metric_files.load(f"{file}:text")(labels, p)
    for code, says in (("import nothing_of_it", "ModuleNotFoundError"), ("def (", "SyntaxError")):
        (tmp_path / "bad.py").write_text(code)
        with pytest.raises(InputError, match=rf"--metric_file .*bad\.py:score: {says}"):
            metric_files.load(f"{tmp_path}/bad.py:score")
    (tmp_path / "bad.py").write_text("def score(y, p):\n    return 1 / 0\n")
    with pytest.raises(InputError, match="ZeroDivisionError"):  # the file as it is now
        metric_files.load(f"{tmp_path}/bad.py:score")(labels, p)


def test_kappa_of_grades_is_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    labels, p = rng.integers(0, 3, 40), rng.dirichlet([1, 1, 1], 40)
    expected = cohen_kappa_score(labels, p.argmax(axis=1), weights="quadratic")
    assert score_function(SINGLE, ["qwk"])(p, labels)["qwk"] == pytest.approx(expected)
    grades, values = labels[:, None] + 1.0, labels[:, None] + rng.normal(1, 0.8, (40, 1))
    rounded = np.rint(values[:, 0]).clip(1, 3).astype(int)
    expected = cohen_kappa_score(labels + 1, rounded, weights="quadratic")
    assert score_function(NUMBER, ["qwk"])(values, grades)["qwk"] == pytest.approx(expected)
    same = score_function(NUMBER, ["qwk"])(np.ones((4, 1)), np.ones((4, 1)))
    assert np.isnan(same["qwk"])


def test_kappa_of_what_is_no_grade_is_refused():
    words = LabelSpec("single_label", ("bad", "good"), ("label",))
    with pytest.raises(InputError, match="qwk goes with grades"):
        score_function(words, ["qwk"])
    with pytest.raises(InputError, match="whole numbers"):
        score_function(NUMBER, ["qwk"])(np.ones((2, 1)), np.array([[0.5], [1.0]]))


def test_mean_column_wise_rmse():
    spec = LabelSpec("regression", ("x", "y"), ("x", "y"))
    predicted, truth = np.array([[1.0, 3.0], [3.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 0.0]])
    scores = score_function(spec, [])(predicted, truth)
    assert scores["mcrmse"] == pytest.approx((5**0.5 + 4.5**0.5) / 2)
    assert score_directions("regression", ("x", "y"))["mcrmse"] is False
