import numpy as np
import pandas as pd
import pytest

from bertchain.runtime import figures
from bertchain.runtime.records import plot_history

pytestmark = pytest.mark.usefixtures("pictures")


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that are made from now on."""
    made, new_figure = [], figures.new_figure

    def note(width: float, height: float):
        made.append(new_figure(width, height))
        return made[-1]

    monkeypatch.setattr(figures, "new_figure", note)
    return made


def ticks_of(axis) -> list[float]:
    low, high = axis.get_xlim()
    return [tick for tick in axis.get_xticks() if low <= tick <= high]


@pytest.mark.parametrize("steps", [[1], [3], [1, 2], [0, 1, 2], [5, 10, 15], [250, 500], [7000]])
def test_steps_are_whole_numbers(steps, drawn, tmp_path):
    history = pd.DataFrame({"step": steps, "eval_loss": 1.0, "eval_accuracy": 0.5})
    plot_history(tmp_path / "h.png", history, "eval_accuracy")
    for axis in drawn[0].axes:
        ticks = ticks_of(axis)
        assert ticks and all(tick == int(tick) for tick in ticks)
        assert len(axis.lines) == 1


def test_what_was_not_measured_is_not_in_the_legend(drawn, tmp_path):
    nothing = pd.DataFrame({"step": [2], "train_loss": [np.nan]})
    plot_history(tmp_path / "h.png", nothing, "eval_accuracy")
    assert all(axis.get_legend() is None and not axis.lines for axis in drawn[0].axes)
    plot_history(tmp_path / "h.png", nothing.assign(eval_loss=1.0), "eval_accuracy")
    (text,) = drawn[1].axes[0].get_legend().get_texts()
    assert text.get_text() == "validation"


def test_a_report_of_one_layer_has_no_half_layers(drawn):
    columns = ["model", "layer", "token_pooling", "probe", "split", "metric", "value"]
    rows = [["a", 4, "mean", "linear", "test", "accuracy", 0.5]]
    figure = figures.layers_figure(pd.DataFrame(rows, columns=columns), "accuracy", "test")
    assert ticks_of(figure.axes[0]) == [4] and len(figure.legends) == 1
    empty = figures.layers_figure(pd.DataFrame(rows, columns=columns), "accuracy", "validation")
    assert not empty.legends


COLUMNS = ["model", "layer", "token_pooling", "probe", "split", "metric", "value"]


def scores(probe: str, values: list[float], model: str = "a") -> pd.DataFrame:
    layers = range(len(values)) if probe == "linear" else [None] * len(values)
    rows = [
        [model, layer, "mean", probe, "test", "accuracy", value]
        for layer, value in zip(layers, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def legend_of(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_axis_starts_where_scores_differ_and_far_baselines_are_named():
    results = pd.concat(
        [scores("linear", [0.7, 0.75, 0.8]), scores("majority", [0.2]), scores("tf-idf", [0.69])]
    )
    axis = (figure := figures.layers_figure(results, "accuracy", "test")).axes[0]
    low, high = axis.get_ylim()
    assert 0.6 < low < 0.69 and 0.8 < high < 0.9
    assert [text.get_text() for text in axis.texts] == ["below what is shown: majority 0.2"]
    assert legend_of(figure) == ["a, mean", "tf-idf (0.69)"]


def test_an_axis_says_what_it_shows():
    results = scores("linear", [1.5, 2.0])
    options = {"name": "compression", "lines": {"features save nothing": 1.0}}
    figure = figures.layers_figure(results, "accuracy", "test", **options)
    assert figure.axes[0].get_ylabel() == "compression" and figure.axes[0].get_ylim()[0] < 1
    assert legend_of(figure) == ["a, mean", "features save nothing (1)"]


def test_no_line_hides_another():
    results = pd.concat([scores("linear", [0.5, 0.6], model) for model in "abc"])
    lines = figures.layers_figure(results, "accuracy", "test").axes[0].lines
    widths = [line.get_linewidth() for line in lines]
    assert widths == sorted(set(widths), reverse=True) and len(widths) == 3
    table = pd.DataFrame({"model": list("aabb"), "layer": [0, 1] * 2, "labels": 3,
                          "clusters": [3, 4] * 2, "mean distance of labels": 1.0,
                          "accuracy of nearest cluster": 0.5})  # fmt: skip
    figure = figures.directprobe_figure(table)
    assert legend_of(figure) == ["a", "b"]  # for all panels, below them
    assert "3 labels: one cluster each" in [text.get_text() for text in figure.axes[0].texts]


def test_every_class_of_a_scatter_plot_has_a_name():
    labels = np.arange(120) % 12
    names = [f"class {k}" for k in range(12)]
    x = np.random.default_rng(0).normal(size=(120, 4))
    figure = figures.pca_figure({"a": x, "b": x}, labels, names, "rows")
    assert sorted(legend_of(figure)) == sorted([*names[:10], "2 other classes"])
    few = figures.pca_figure({"a": x}, labels % 3, names[:3], "rows")
    assert legend_of(few) == names[:3]


@pytest.mark.parametrize("classes", [3, 12, 30])
def test_cells_of_a_confusion_matrix_have_numbers(classes):
    truth = np.arange(90) % classes
    predicted = np.where(np.arange(90) < 45, truth, 0)
    names = [f"class {k}" for k in range(classes)]
    figure = figures.confusion_figure({"a": predicted, "b": truth}, truth, names)
    for axis, guess in zip(figure.axes, (predicted, truth), strict=False):
        cells = {tuple(text.get_position()): text.get_text() for text in axis.texts}
        assert set(cells) == set(zip(guess.tolist(), truth.tolist(), strict=True))
        assert cells[0, 0] == "1.00"
        assert [text.get_text() for text in axis.get_yticklabels()] == names
