"""The study: its flags are known to the scripts, and its claims are judged by what came out."""

import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples" / "zhou2022"))

import recipe
import tables
from transformers import TrainingArguments

import run_finetune
import run_probe
from bertchain.cli import make_parser
from bertchain.errors import InputError


def test_every_flag_of_the_study_is_known():
    steps = recipe.read_steps([str(ROOT / "examples" / "zhou2022" / "study.yaml"), "out=o"])
    assert len(steps) == 16 and len({folder for _, folder in steps}) == 16
    known = {
        "run_finetune.py": make_parser((*run_finetune.OWN_ARGUMENTS, TrainingArguments)),
        "run_probe.py": make_parser(run_probe.OWN_ARGUMENTS),
    }
    for (script, *flags), _ in steps:
        _, unknown = known[script].parse_known_args(flags)
        assert not unknown


def write_task(folder, models, better):
    """What run_probe.py leaves, of two layers: accuracy and distances grow by `better`."""
    folder.mkdir(parents=True)
    scores, clusters, lie, pairs = [], [], [], []
    for k, model in enumerate(models):
        for layer in (0, 1, 2):
            gain = better * k * layer / 10
            at = {"model": model, "layer": layer}
            scores.append(
                {**at, "token_pooling": "cls", "probe": "linear", "split": "test"}
                | {"metric": "accuracy", "value": 0.5 + gain}
            )
            clusters.append(
                {**at, "labels": 3, "clusters": 9 - 3 * k, "linear": "no"}
                | {"mean distance of labels": 1 + gain}
            )
            later = {
                "similarity with the first": 1 - 0.1 * layer,
                "centroids moved by": 0.1,
                "train and new, change": -0.2,
                "± 95 % of the change": 0.1,
            }
            for number, two in enumerate((("a", "b"), ("c", "a"), ("b", "c"))):
                far = number + 1 if k == 0 or better > 0 else 3 - number  # as before, or reversed
                ends = dict(zip(("label", "other label"), two, strict=True))
                pairs.append({**at, **ends, "distance of centroids": far})
            before = dict.fromkeys(later, np.nan)
            lie.append({**at, "train and new, similarity": 0.9} | (later if k else before))
    written = {"results": scores, "directprobe": clusters, "geometry": lie, "label_pairs": pairs}
    for name, rows in written.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def test_claims_are_judged_by_the_tables(tmp_path, monkeypatch, capsys):
    write_task(tmp_path / "pos" / "layers", ["base", "tuned"], better=1)
    write_task(tmp_path / "trec" / "layers", ["base", "tuned"], better=-1)
    for task, better in (("pos", 1), ("trec", -1)):
        write_task(tmp_path / task / "cross", ["base", "pos", "trec"], better)
        for name in ("results", "directprobe", "geometry"):
            path = tmp_path / task / "cross" / f"{name}.csv"
            rows = pd.read_csv(path)
            rows[rows["layer"] == 2].to_csv(path, index=False)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
    tables.main()
    study = (tmp_path / "study.md").read_text()
    claims = {
        line.split("|")[1].strip()[:30]: line.split("|")[2].strip()
        for line in study.splitlines()
        if " of " in line and line.startswith("|")
    }
    assert claims["Fine-tuning raises the accurac"] == "1 of 2"
    assert claims["It makes the last layer simple"] == "2 of 2"
    assert claims["Afterwards the labels are line"] == "0 of 2"
    assert claims["It moves labels apart: hulls a"] == "1 of 2"
    assert claims["Upper layers change more than "] == "2 of 2"
    assert claims["Even so the arrangement is kep"] == "2 of 2"
    assert claims["Train and test come apart: sim"] == "2 of 2"
    assert claims["Fine-tuning on another task hu"] == "1 of 2"
    assert "POS +0.200" in study and "TREC-50 -0.200" in study
    assert "| POS and TREC-50 | 3 | 1.0000 | -1.0000 |" in study
    assert (tmp_path / "cross_task.png").stat().st_size > 5000


def test_a_folder_without_a_study_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
    with pytest.raises(InputError, match="run study"):
        tables.main()
