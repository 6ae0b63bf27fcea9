import numpy as np
import pandas as pd
import pytest

from bertchain.runtime import figures
from bertchain.runtime.records import plot_history


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
