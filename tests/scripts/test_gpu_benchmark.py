"""benchmarks/gpu.py: what is kept, gone on with, and said; the stages at toy size."""

import argparse
import functools
import json
import math
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, TOPICS
from forking import run_command

sys.path.insert(0, str(ROOT / "benchmarks"))

from gpu_stages import distances, documents, probes, report, running, speed
from gpu_stages.running import Item


def options(folder, **changes):
    given = {"minutes": 1.0, "only": "", "together": False, "output_dir": folder}
    return argparse.Namespace(**given | changes)


def value(number):
    return {"seconds": number}


def fails():
    raise ValueError("what went wrong")


@pytest.fixture
def forked(monkeypatch):
    """Each measurement in a fork of this process, which has imported all."""
    monkeypatch.setattr(running, "START", "fork")


def test_results_are_kept_and_what_failed_is_tried_again(tmp_path, forked):
    path = tmp_path / "stage.json"
    items = [Item("a/ours", functools.partial(value, 1.0)), Item("a/bad", fails, beside=True)]
    assert running.run_stage(items, path, options(tmp_path)) == 1
    found = json.loads(path.read_text())
    assert found["a/ours"]["seconds"] == 1.0 and found["a/ours"]["torch"]
    assert found["a/bad"]["failed"] == "ValueError: what went wrong"
    assert "what went wrong" in (tmp_path / "stage.log").read_text()

    items = [Item("a/ours", fails), Item("a/bad", functools.partial(value, 2.0))]
    assert running.run_stage(items, path, options(tmp_path)) == 0, "what is done is not repeated"
    assert json.loads(path.read_text())["a/bad"]["seconds"] == 2.0


def test_a_measurement_ends_with_the_minutes_of_its_stage(tmp_path, forked, capsys):
    items = [Item("slow", functools.partial(time.sleep, 60)), Item("next", fails)]
    assert running.run_stage(items, tmp_path / "s.json", options(tmp_path, minutes=0.05)) == 1
    assert "not done within" in json.loads((tmp_path / "s.json").read_text())["slow"]["failed"]
    assert "next: no time left" in capsys.readouterr().out


def test_the_report_has_a_table_for_each_group_with_the_ratio_to_the_peer(tmp_path):
    card = {"card": "C", "torch": "1", "transformers": "2"}
    found = {
        "itpt/usual": card | {"tokens_per_second": 100.0},
        "itpt/document": card | {"tokens_per_second": 250.0},
        "probes/scikit-learn": card | {"seconds": 9.0, "seconds of a fit": 3.0},
        "probes/one solve": card | {"seconds": 8.0, "seconds of a fit": 0.5},
    }
    (tmp_path / "speed.json").write_text(json.dumps(found))
    report.write_report(tmp_path, ["tests", "speed"])
    lines = (tmp_path / "report.md").read_text().splitlines()
    assert "C; torch 1, transformers 2." in lines and "## tests" not in lines
    assert "| document | 250 | 2.50 x |" in lines
    assert "| one solve | 8 | 0.5 | 6.00 x |" in lines


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (probes, ("scikit-learn", "one solve")),
        (distances, ("cpu", "cuda")),
        (documents, ("tiny-shape",)),
        (speed, ("document", "ours", "features", "itpt")),
    ],
)
def test_stages_run_at_toy_size(stage, names, tiny_bert, topic_files, tmp_path):
    (tmp_path / "data").mkdir()  # as make_docstring_data.py makes it
    for name in ("train", "unlabelled", "test_labels"):
        rows = pd.DataFrame({"title": TOPICS["animals"], "abstract": "the cat runs of the river"})
        rows.to_csv(tmp_path / "data" / f"{name}.csv", index=False)
    given = options(tmp_path, tiny=True, model=tiny_bert)
    items = [item for item in stage.items(given) if "compiled" not in item.name]
    chosen = {item.name.rpartition("/")[2]: item for item in items}
    found = {name: chosen[name].run() for name in names}
    for name, figures in found.items():
        numbers = [v for v in figures.values() if isinstance(v, float) and not math.isnan(v)]
        assert numbers and min(numbers) > 0, name
    if stage is probes:
        key = "objective at C=0.1"
        objectives = [figures[key] for figures in found.values()]
        assert objectives[0] == pytest.approx(objectives[1], rel=1e-3)


@pytest.mark.slow
def test_all_stages_run_at_toy_size(tiny_bert, tmp_path):
    done = run_command(
        *[str(ROOT / "benchmarks" / "gpu.py"), "tests", "speed", "probes", "distances", "long"],
        *["--tiny", "--model", tiny_bert, "--output_dir", str(tmp_path / "gpu")],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu" / "tests.json").read_text())
    one, two = (found[f"processes of one step/{n}"] for n in (1, 2))
    assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
    assert found["chain/CPU"]["perplexity"] == pytest.approx(
        found["chain/bf16"]["perplexity"], rel=0.02
    )
