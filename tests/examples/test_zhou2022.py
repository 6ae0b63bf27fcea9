"""The study: its flags are known to the scripts, its tables are converted, its claims judged."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples" / "zhou2022"))

import recipe
import tables
import to_spans
from datasets import Dataset
from transformers import TrainingArguments

from bertchain.arguments import finetuning, probing
from bertchain.arguments.common import SpanArguments
from bertchain.cli import make_parser
from bertchain.data.spans import read_targets
from bertchain.data.tables import Table, read_table
from bertchain.errors import InputError

STUDY = str(ROOT / "examples" / "zhou2022" / "study.yaml")
CONVERTER = "examples/zhou2022/to_spans.py"


def test_every_flag_of_the_study_is_known():
    steps = recipe.read_steps([STUDY, "out=o"])
    assert len(steps) == 20 and len({folder for _, folder in steps}) == 20
    known = {
        "run_finetune.py": make_parser((*finetuning.GROUPS, TrainingArguments)),
        "run_probe.py": make_parser(probing.GROUPS),
    }
    for (script, *flags), _ in steps:
        if script == CONVERTER:
            to_spans.read_arguments(flags)
            continue
        _, unknown = known[script].parse_known_args(flags)
        assert not unknown


# ---------------------------------------------------------------- tables of labelled spans


def convert(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["to_spans.py", *map(str, words)])
    to_spans.main()


def read(path):
    """What the scripts read of a converted table."""
    return read_targets(Table(read_table(str(path)), str(path)), SpanArguments("spans"), None)


def write_rows(path, *rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_tokens_pairs_and_spans_by_hand(tmp_path, monkeypatch):
    def converted(level, *flags, **columns):
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        source = write_rows(tmp_path / f"{level}.jsonl", *rows)
        target = tmp_path / "spans" / f"{level}.jsonl"
        convert(monkeypatch, level, source, target, *flags)
        written = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        assert [{k: v for k, v in row.items() if k != "spans"} for row in written] == rows
        return read(target)

    words = {"id": ["x", "ü"], "tokens": [["a", "b", "c"], ["d"]]}
    tags = [["N", "X", "V"], ["X"]]
    found = converted("token", "--skip_labels", "X", tags=tags, **words)
    assert found["spans"][:] == [[[[0]], [[2]]]] and found["tags"][:] == [["N", "V"]]
    assert found["id"][:] == ["0"]  # the second has no target
    heads, relations = [["1", "-1", "1"], [None]], [["subj", "root", "obj"], ["root"]]
    found = converted("pair", heads=heads, deprels=relations, **words)
    assert found["spans"][:] == [[[[1], [0]], [[1], [2]]]]
    assert found["tags"][:] == [["subj", "obj"]]
    spans = [[{"span": [1], "role": 7}, {"span": [0, 2], "role": 8}, {"span": [2], "role": None}]]
    flags = ("--target_label_field", "role", "--longest_target", "1")
    found = converted("span", *flags, targets=[*spans, []], **words)
    assert found["spans"][:] == [[[[1]]]] and found["tags"][:] == [["7"]]


def test_a_folder_is_converted_file_by_file(tmp_path, monkeypatch):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    write_rows(source / "train.jsonl.gz", {"w": ["a", "b"], "tags": ["N", None]})
    Dataset.from_dict({"w": [["c"]], "tags": [["V"]]}).to_parquet(source / "dev.parquet")
    (source / "README.md").write_text("what this is")
    convert(monkeypatch, "token", source, target, "--tokens_column_name", "w")
    assert sorted(path.name for path in target.iterdir()) == ["dev.jsonl", "train.jsonl"]
    rows = [json.loads((target / f"{name}.jsonl").read_text()) for name in ("train", "dev")]
    assert [row["spans"] for row in rows] == [
        [{"words": [[0]], "label": "N"}],
        [{"words": [[0]], "label": "V"}],
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sentence", "a.jsonl", "b.jsonl"), "'sentence'"),
        (("token", "a.jsonl"), "target"),
        (("token", "no.jsonl", "b.jsonl"), "no.jsonl: no such file"),
        (("token", "a.csv", "b.jsonl"), "a.csv: is none of .jsonl"),
        (("token", "a.jsonl", "b.csv"), "b.csv: what is written must be called .jsonl"),
        (("token", "empty", "b"), "empty: holds no tables"),
        (("token", "a.jsonl", "b.jsonl", "--longest_target", "1"), "--longest_target needs"),
        (("span", "a.jsonl", "b.jsonl", "--longest_target", "0"), "--longest_target 0 is too"),
        (("token", "a.jsonl", "b.jsonl", "--tag", "x"), "--tag"),
        (("token", "done.jsonl", "b.jsonl"), "done.jsonl: has a column 'spans'"),
    ],
)
def test_what_cannot_be_converted_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("tokens,tags\na,N\n")
    write_rows(tmp_path / "a.jsonl", {"tokens": ["a"], "tags": ["N"]})
    write_rows(tmp_path / "done.jsonl", {"tokens": ["a"], "tags": ["N"], "spans": []})
    monkeypatch.setattr(sys, "argv", ["to_spans.py", *words])
    with pytest.raises(SystemExit) as left:
        to_spans.run_script(to_spans.main)
    last = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert left.value.code == 2 and len(last) == 1 and message in last[0]
    assert not list(tmp_path.glob("b*"))


@pytest.mark.parametrize(
    ("level", "columns", "message"),
    [
        ("token", {"tokens": [["a"]]}, "no column 'tags' .--tags_column_name"),
        ("token", {"tags": [["a"]]}, "no column 'tokens' .--tokens_column_name"),
        ("token", {"tokens": [["a"]], "tags": [["N", "V"]]}, "row 1: tags must have one entry"),
        ("token", {"tokens": [["a"]], "tags": ["N"]}, "one entry for each of 1 words: no list"),
        ("token", {"tokens": ["a"], "tags": [["N"]]}, "row 1: tokens is not a list"),
        ("pair", {"tokens": [["a"]], "deprels": [["x"]]}, "no column 'heads' .--heads_column_name"),
        ("pair", {"tokens": [["a"]], "heads": [[0]]}, "'deprels' .--relations_column_name"),
        ("pair", {"tokens": [["a"]], "heads": [[5]], "deprels": [["x"]]}, r"names word \[5\] of 1"),
        ("pair", {"tokens": [["a"]], "heads": [["x"]], "deprels": [["x"]]}, "row 1: 'x' is not"),
        ("span", {"tokens": [["a"]]}, "no column 'targets' .--targets_column_name"),
        ("span", {"tokens": [["a"]], "targets": [[{"span": [0]}]]}, "--target_label_field"),
        ("span", {"tokens": [["a"]], "targets": [[1, 2]]}, "row 1: targets must be a list"),
        ("span", {"tokens": [["a"]], "targets": [[{"span": [], "label": "N"}]]}, "word none of 1"),
        ("span", {"tokens": [["a"]], "targets": [[{"span": [1], "label": "N"}]]}, r"word \[1\]"),
    ],
)
def test_bad_targets_name_the_row(level, columns, message):
    options = to_spans.read_arguments([level, "x.jsonl", "y.jsonl"])
    with pytest.raises(InputError, match=message) as raised:
        to_spans.convert(Dataset.from_dict(columns), "x.jsonl", options)
    assert "x.jsonl" in str(raised.value)


def test_the_study_converts_its_tables_first(tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    sentence = {"tokens": ["go", "to", "it"], "tags": ["V", "P", "N"]}
    sentence |= {"heads": [-1, 2, 0], "deprels": ["root", "case", "obl"]}
    targets = [
        {"span": [1], "role": "p.Goal", "function": "p.Place"},
        {"span": [0, 1], "role": "p.Time", "function": "p.Time"},  # of two words: left out
        {"span": [2], "role": "??", "function": "??"},
    ]
    for name, row in (("ud_partut", sentence), ("streusle", sentence | {"targets": targets})):
        (data / name).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            write_rows(data / name / f"{split}.jsonl.gz", row)
    for (script, *words), folder in recipe.read_steps([STUDY, f"data={data}", f"out={out}"]):
        if script == CONVERTER:
            convert(monkeypatch, *words)
            assert len(list(folder.iterdir())) == 3
        elif "--spans_column_name=spans" in words:  # later steps read what was written
            paths = [Path(word.split("=")[-1]) for word in words if word.endswith(".jsonl")]
            assert len(paths) == 3 and all(path.is_file() for path in paths)
            assert {path.parent for path in paths} == {folder.parent / "spans"}
    expected = {
        "pos": ([[[0]], [[1]], [[2]]], ["V", "P", "N"]),
        "dep": ([[[2], [1]], [[0], [2]]], ["case", "obl"]),
        "role": ([[[1]]], ["p.Goal"]),
        "function": ([[[1]]], ["p.Place"]),
    }
    for task, (spans, tags) in expected.items():
        found = read(out / task / "spans" / "test.jsonl")
        assert found["spans"][:] == [spans] and found["tags"][:] == [tags]


# ---------------------------------------------------------------- claims


def write_task(folder, models, better, shuffled=None):
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
                | {"mean distance of labels": 1 + gain, "mean distance of clusters": 2.0}
                | ({"linear, shuffled labels": shuffled} if shuffled else {})
            )
            later = {
                "similarity with the first": 1 - 0.1 * layer,
                "similarity with the first, centroids": -0.5 + 0.1 * layer,  # another verdict
                "centroids moved by": 0.1,
                "train and new, change": -0.2,
                "± 95 % of the change": 0.1,
            }
            for number, two in enumerate((("a", "b"), ("c", "a"), ("b", "c"))):
                far = number + 1 if k == 0 or better > 0 else 3 - number  # as before, or reversed
                ends = dict(zip(("label", "other label"), two, strict=True))
                pairs.append({**at, **ends, "distance of hulls": far, "distance of centroids": 1})
            before = dict.fromkeys(later, np.nan)
            lie.append({**at, "train and new, similarity": 0.9} | (later if k else before))
    written = {"results": scores, "directprobe": clusters, "geometry": lie, "label_pairs": pairs}
    for name, rows in written.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)


def test_claims_are_judged_by_the_tables(tmp_path, monkeypatch, capsys, pictures):
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
    assert claims["Afterwards the hulls of labels"] == "0 of 2"
    assert claims["It moves labels apart: hulls a"] == "1 of 2"
    assert claims["Upper layers change more than "] == "2 of 2"
    assert claims["Even so the arrangement is kep"] == "2 of 2"
    assert claims["Train and test come apart: sim"] == "2 of 2"
    assert claims["Fine-tuning on another task hu"] == "1 of 2"
    assert "POS +0.200" in study and "TREC-50 -0.200" in study
    assert "| POS and TREC-50 | 3 | 1.0000 | -1.0000 |" in study
    assert (tmp_path / "cross_task.png").stat().st_size > 5000


def test_clusters_that_shuffled_labels_have_as_well_are_not_judged(tmp_path):
    for task, shuffled in (("pos", "yes"), ("trec", "no")):
        write_task(tmp_path / task / "layers", ["base", "tuned"], 1, shuffled)
    layers = pd.concat(tables.by_layer(tmp_path / t / "layers", t) for t in ("pos", "trec"))
    held = {row["claim"][:20]: row["holds for"] for row in tables.claims_of_layers(layers)}
    assert held["It makes the last la"] == "1 of 1"
    assert held["Afterwards the hulls"] == "0 of 1"
    assert held["It moves labels apar"] == "2 of 2"


def test_a_folder_without_a_study_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
    with pytest.raises(InputError, match="run study"):
        tables.main()
