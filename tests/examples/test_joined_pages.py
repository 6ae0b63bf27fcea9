"""The pages of blends and stacks: what runs, weights and trees reach, and the rows to look at."""

import html
import re
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from test_competition_examples import written_run

sys.path.insert(0, str(ROOT / "examples"))
import blend
import stack

from bertchain.data.labels import LabelSpec
from bertchain.probing.scoreboard import paired_difference
from bertchain.reporting import mistakes
from bertchain.reporting.intervals import half_widths
from bertchain.reporting.joined_page import short_names
from bertchain.reporting.scored import Scored
from bertchain.training.outcome import read_table
from bertchain.training.prediction import read_written_table

EVIL = "<script>alert(1)</script> & 'quotes'"
SPEC = LabelSpec("single_label", ("<b>a</b>", "b"), ("label",))


@pytest.fixture
def runs(tmp_path):
    """Two runs whose folders have the same last part; a table with text that breaks a page."""
    rng, rows = np.random.default_rng(0), 60
    truth = rng.integers(0, 2, rows)
    table = pd.DataFrame({"id": [f"r{i}" for i in range(rows)]})
    table["body"] = [f"{EVIL} no. {i}" for i in range(rows)]
    table["label"] = np.array(SPEC.names)[truth]
    table.to_csv(tmp_path / "train.csv", index=False)
    test = table[:9].drop(columns="label").assign(id=[f"t{i}" for i in range(9)])
    test.to_csv(tmp_path / "test.csv", index=False)
    arguments = {"train_file": str(tmp_path / "train.csv"), "id_column_name": "id"}
    arguments |= {"test_file": str(tmp_path / "test.csv"), "text_column_names": ["body"]}
    for name, noise in (("x/run", 0.35), ("y/run", 0.5)):
        p = np.clip(truth + rng.normal(0, noise, rows), 0.02, 0.98)
        p = np.stack([1 - p, p], axis=1)
        written_run(tmp_path / name, SPEC, truth, p, p[:9])
        (tmp_path / name / "run_args.yaml").write_text(yaml.safe_dump(arguments))
    return [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]


def join(script, runs, tmp_path, monkeypatch):
    """Join runs; returns the page and the out-of-fold table."""
    monkeypatch.setattr(sys, "argv", ["x", *runs, "--output_dir", str(tmp_path / "o")])
    script.main()
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1 and "<b>" not in page and "default-src 'none'" in page
    assert str(tmp_path) not in page  # no path of the machine
    return page, read_written_table(tmp_path / "o" / "predictions_oof.csv")


def numbers_of(page, name):
    """The numbers in the row of a name, in the table of the runs."""
    section = re.search(r'<section id="runs">.*?</section>', page, re.DOTALL)[0]
    row = re.search(rf"<tr><td>{re.escape(name)}</td>.*?</tr>", section)[0]
    return [float(value or "nan") for value in re.findall(r'data-value="(.*?)"', row)]


@pytest.mark.parametrize("script", [blend, stack])
def test_a_page_shows_what_each_run_reaches_beside_both(script, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(stack.TREES, "max_iter", 5)
    page, oof = join(script, runs, tmp_path, monkeypatch)
    truth = oof["label"].map(SPEC.names.index).to_numpy()
    joined = oof[SPEC.value_columns].to_numpy(dtype=float)
    for run, name in zip(runs, ("x/run", "y/run"), strict=True):
        p = read_written_table(f"{run}/predictions_oof.csv")[SPEC.value_columns].to_numpy(float)
        weight, *numbers = numbers_of(page, name)
        if script is stack:
            numbers = [weight, *numbers]
        accuracy = (p.argmax(axis=1) == truth).mean()
        width = half_widths(Scored("oof", SPEC, oof["id"], p, truth), 0)["accuracy"]
        assert numbers[:2] == pytest.approx([accuracy, width])
        gained = paired_difference("single_label", joined, p, truth)
        assert numbers[4:] == pytest.approx([gained["difference"], gained["± 95 %"]])
    if script is blend:
        weights = [numbers_of(page, name)[0] for name in ("x/run", "y/run")]
        assert sum(weights) == pytest.approx(1) and weights[0] > weights[1]
    last = {blend: blend.BLEND, stack: stack.STACK}[script]
    assert (joined.argmax(axis=1) == truth).mean() in numbers_of(page, last)
    wrong = read_table(tmp_path / "o" / "mistakes.csv")
    expected = oof["id"][joined.argmax(axis=1) != truth]
    assert {*wrong["id"]} <= {*expected} and len(wrong) == min(len(expected), mistakes.SHOWN) > 0
    assert all(f"{html.escape(EVIL)} no. {name[1:]}<" in page for name in wrong["id"])
    for section in ("confusion", "classes", "calibration", "doubtful", "run"):
        assert f'<section id="{section}">' in page


def test_a_page_is_made_where_the_table_is_gone_or_has_changed(runs, tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("id,body\nr0,other\n")
    page, _ = join(blend, runs, tmp_path, monkeypatch)
    assert '<section id="mistakes">' in page and "other" not in page.split("mistakes")[-1][:200]
    (tmp_path / "train.csv").unlink()
    page, _ = join(blend, runs, tmp_path, monkeypatch)
    assert '<section id="mistakes">' in page and "no. " not in page


def test_names_of_folders_tell_them_apart():
    assert short_names(["a/b/c", "a/d", "mean of all"]) == {
        "a/b/c": "c", "a/d": "d", "mean of all": "mean of all",
    }  # fmt: skip
    assert [*short_names(["/a/b/c", "/d/b/c"]).values()] == ["a/b/c", "d/b/c"]
