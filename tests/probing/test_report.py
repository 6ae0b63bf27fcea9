"""The probing report: what its sections say, and what they say they do not show."""

import re

import numpy as np
import pandas as pd

from bertchain.data.labels import LabelSpec
from bertchain.probing import report
from bertchain.probing.scoreboard import Scoreboard, ScoreKey

NAMES = ["a", "b", "c"]


def board() -> Scoreboard:
    truth = np.tile([0, 1, 2], 10)
    spec = LabelSpec("single_label", NAMES, ["label"])
    found = Scoreboard({"validation": truth, "test": truth}, spec, seed=0)
    for layer in range(3):
        key = ScoreKey("m", layer, "cls", "linear")
        guess = np.where(np.arange(30) < 10 * layer, truth, 0)
        found.add(key, dict.fromkeys(("validation", "test"), np.eye(3)[guess]))
        found.add_facts(key, mdl_compression=1.0 + layer, selectivity=0.1 * layer)
    return found


def test_measures_have_axes_of_their_own():
    sections = {section.name: section for section in report.measured_sections(board())}
    axes = {name: section.figure.axes[0] for name, section in sections.items()}
    bits, control = axes["mdl_compression"], axes["selectivity"]
    assert bits.get_ylabel() == "compression: bits without features / bits with them"
    assert control.get_ylabel() == "accuracy beyond that of the control"
    low, high = bits.get_ylim()
    assert low < 1 and 3 < high < 4  # from what saves nothing on
    assert bits.get_title(loc="left") == "Description length by layer"


def test_every_analysis_says_what_it_does_not_show(monkeypatch):
    with open(report.__file__, encoding="utf-8") as file:
        names = set(re.findall(r'Section\(\s*"(\w+)"', file.read()))
    assert names - {"warnings", "probed"} <= set(report.LIMITS)
    assert set(report.MEASURED) <= set(report.LIMITS)
    headline = pd.DataFrame({"what": ["m: best frozen layer"], "layer": "2 cls"})
    headline["key"] = [ScoreKey("m", 2, "cls", "linear")]
    for name in ("pca_sections", "probed_sections"):
        monkeypatch.setattr(report, name, lambda *_: [])
    sections = {s.name: s for s in report.list_sections(board(), headline, {}, [], [])}
    assert {*sections} == {"headline", "warnings", "layers", "confusion", *report.MEASURED}
    for name, section in sections.items():
        assert section.limit == report.LIMITS.get(name, "")


def test_confusions_are_counted_by_pair():
    truth = np.array([0, 0, 0, 1, 1, 2])
    guess = np.array([1, 1, 0, 1, 0, 2])
    table = report.confusions_table({"probe": guess}, truth, NAMES)
    assert table[["true", "predicted", "rows"]].to_numpy().tolist() == [
        ["a", "b", 2],
        ["b", "a", 1],
    ]
    np.testing.assert_allclose(table["share of the true class"], [2 / 3, 1 / 2])
    assert len(report.confusions_table({"probe": truth}, truth, NAMES)) == 0
