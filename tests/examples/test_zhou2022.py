"""The study: its flags are known to the scripts, its tables are converted, its claims judged."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.stats import norm, t

sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "examples" / "zhou2022"))

import judging
import readings
import recipe
import to_spans
import verdicts
from datasets import Dataset
from test_examples import load_example
from transformers import TrainingArguments

from bertchain.arguments import finetuning, probing
from bertchain.arguments.common import SpanArguments
from bertchain.cli import make_parser
from bertchain.data.spans import read_targets
from bertchain.data.tables import Table, read_table
from bertchain.errors import InputError

STUDY = str(ROOT / "examples" / "zhou2022" / "study.yaml")
CONVERTER = "examples/zhou2022/to_spans.py"


@pytest.fixture(scope="module")
def tables():
    return load_example("zhou2022/tables")


def test_every_flag_of_the_study_is_known():
    steps = recipe.read_steps([STUDY, "out=o"])
    assert len(steps) == 24 and len({folder for _, folder in steps}) == 24
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


@pytest.mark.parametrize(
    ("only", "count"), [("layers", 14), ("cross", 14), ("epochs", 8), ("erasure", 5)]
)
def test_each_study_alone_has_the_steps_that_it_needs(only, count):
    steps = recipe.read_steps([STUDY, "out=o", f"only={only}"])
    made = set()
    for (_, *words), folder in steps:
        read = {Path(word.split("=")[-1]) for word in words} - {folder}
        needed = {path for path in read if path.parts[:1] == ("o",) and path.name != "features"}
        assert needed <= made | {m / f"{s}.jsonl" for m in made for s in ("train", "dev", "test")}
        made.add(folder)
    assert len(steps) == count
    probed = [words for (script, *words), _ in steps if script == "run_probe.py"]
    assert len(probed) == len(readings.STEPS[only])
    assert all(("mlp" in words) == (only in ("layers", "cross")) for words in probed)


@pytest.mark.parametrize(
    ("given", "of_dep", "of_pos"),
    [
        (("rows=9", "points=7"), (9, 7), (9, 7)),
        (("rows=9", "points=7", "dep_rows=5", "dep_points=3"), (5, 3), (9, 7)),
    ],
)
def test_dep_takes_as_many_rows_as_the_rest_or_its_own(given, of_dep, of_pos):
    expected = {"dep": of_dep, "pos": of_pos}
    seen = set()
    for (_, *words), folder in recipe.read_steps([STUDY, "out=o", *given]):
        task, step = folder.parts[-2:]
        if task in expected and step in ("layers", "cross"):
            rows, points = expected[task]
            assert {f"--max_train_samples={rows}", f"--directprobe_points={points}"} <= set(words)
            seen.add((task, step))
    assert len(seen) == 4


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
    beside = {"rel": [["s", "t", "u"], ["v"]], "n": [[1, 2, 3], [4]]}
    converted(
        "token",
        "--skip_labels",
        "X",
        "--concept_column_names",
        "rel",
        "n",
        tags=tags,
        **words,
        **beside,
    )
    first = json.loads((tmp_path / "spans" / "token.jsonl").read_text().splitlines()[0])
    assert first["spans"] == [
        {"words": [[0]], "label": "N", "rel": "s", "n": 1},
        {"words": [[2]], "label": "V", "rel": "u", "n": 3},
    ]
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
        (("token", "a.jsonl", "b.jsonl", "--concept_column_names", "rel"), "rel"),
        (("pair", "a.jsonl", "b.jsonl", "--concept_column_names", "tags"), "needs the level token"),
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

CELLS = ("a", "b", "c", "d")  # labels
KINDS = {  # how near two tasks are: gain of accuracy, and of distances, if all is as claimed
    "the same": (0.1, 2.0),
    "related": (0.05, 1.0),
    "opposing": (-0.05, -1.0),
    "other": (-0.02, -0.1),
}


def kind(tuned: str, probed: str) -> str:
    pair = (readings.TASKS[tuned], readings.TASKS[probed])
    return "opposing" if pair in readings.OPPOSING else readings.kind_of(*pair)


class Made:
    """What run_probe.py leaves of a step: a row for each model and layer, four labels."""

    def __init__(self):
        self.tables = {name: [] for name in FILES}

    def add(self, model: str, layer: int, accuracy: float, smallest: float, **more: float) -> None:
        at, first = {"model": model, "layer": layer}, not self.tables["directprobe"]
        clusters = more.pop("clusters", 4)
        for probe, less in (("mlp", 0), ("linear", 0.01)):
            score = {**at, "token_pooling": "cls", "probe": probe, "split": "test"}
            score |= {"metric": "accuracy", "value": accuracy - less}
            self.tables["results"].append(score)
        if "gain" in more:
            gain = {**at, "probe": "mlp", "test accuracy against base": more.pop("gain")}
            self.tables["gains"].append(gain | {"± 95 %": 0.01})
        self.tables["directprobe"].append(
            {**at, "labels": 4, "clusters": clusters, "mean distance of labels": 1.0}
            | {"linear, shuffled labels": "no"}
        )
        for k, label in enumerate(CELLS):
            wide = {"largest distance inside": 3.0, "mean distance inside": 2.0 + 0.02 * k}
            far = {"smallest distance": smallest * (1 + 0.01 * k), "nearest label": CELLS[k - 1]}
            self.tables["label_distances"].append({**at, "label": label, "rows": 9, **far, **wide})
            for other in CELLS[:k]:
                ends = {"label": other, "other label": label, "distance of hulls": k}
                self.tables["label_pairs"].append({**at, **ends})
            place = {"component 1": k + layer, "component 2": len(self.tables["geometry"])}
            moved = {"distance from the first": 0.1 * k, "share of variance": 0.9, "from": "start"}
            self.tables["centroid_paths"].append({**at, "label": label, **place, **moved})
        near = {"train and new, similarity": 0.8, "± 95 %": 0.1}
        later = {
            "similarity with the first": more.get("similar"),
            "± 95 % with the first": 0.02,
            "centroids moved by": more.get("moved"),
            "mean cosine of two moves": more.get("alike"),
            "train and new, change": more.get("change"),
            "± 95 % of the change": 0.05,
        }
        self.tables["geometry"].append({**at, **near, **(dict.fromkeys(later) if first else later)})

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, rows in self.tables.items():
            if rows:
                pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
        size = {"parameters": 100, "blocks": 2, "hidden": 8}
        about = {"models": [size], "versions": {"torch": "2"}}
        (folder / "all_results.json").write_text(json.dumps(about))


FILES = (
    "results",
    "gains",
    "directprobe",
    "geometry",
    "label_distances",
    "label_pairs",
    "centroid_paths",
)


def write_erasure(folder: Path, selectivity: float | None) -> None:
    """A layer before and after, and what else run_probe.py has of them."""
    folder.mkdir(parents=True)
    erased, results = [], []
    for k, model in enumerate(("base", "tuned")):
        row = {"model": model, "layer": 1, "token pooling": "cls", "concept": "c"}
        row |= {"concept before": 0.7 + 0.1 * k, "test accuracy lost": 0.2 - 0.1 * k}
        row |= {"± 95 %": 0.01, "lost to shuffled labels": 0.0}
        erased.append(row | {"the task needs it": "yes" if k == 0 else "no"})
        scores = {("test", "accuracy"): 0.8 + 0.1 * k, ("train", "accuracy"): 1.0}
        scores |= {("train", "mdl_compression"): 2.0 + k, ("train", "selectivity"): selectivity}
        for (split, metric), value in scores.items():
            if value is not None:
                at = {"model": model, "layer": 1.0, "token_pooling": "cls", "probe": "linear"}
                results.append(at | {"split": split, "metric": metric, "value": value})
    results.append({"probe": "majority", "split": "test", "metric": "accuracy", "value": 0.1})
    pd.DataFrame(erased).to_csv(folder / "erasure.csv", index=False)
    pd.DataFrame(results).to_csv(folder / "results.csv", index=False)


def write_study(folder: Path, holds: bool) -> Path:
    """All steps, as the paper claims, or the other way around."""
    sign = 1 if holds else -1
    for number, task in enumerate(readings.TASKS):
        made, curved = Made(), holds or number < 2
        for layer in range(3):
            made.add("base", layer, 0.5, 1.0, clusters=9 if curved else 4)
        for layer in range(3):
            upper = layer == 2
            made.add(
                "tuned",
                layer,
                0.5 + sign * 0.1 * upper,
                1.0 + sign * 0.5 * layer / 2,
                gain=sign * 0.1 * upper,
                clusters=4 if holds else 12,
                change=-sign * 0.2,
                similar=(0.7 if upper else 0.95) if holds else (0.3 if upper else 0.1),
                moved=0.1 + sign * 0.01 * number + sign * upper,
                alike=0.5 - sign * 0.3 * upper + 0.01 * number,
            )
        made.write(folder / task / "layers")
        made = Made()
        made.add("base", 2, 0.5, 1.0)
        for place, tuned in enumerate(readings.TASKS):
            gain, far = KINDS[kind(tuned, task)]
            if not holds:
                near = kind(tuned, task) in ("related", "opposing")
                gain, far = (-gain, -far) if near else (gain, -far)
            gain, far = gain - 0.001 * place, far - sign * 0.01 * place
            made.add(tuned, 2, 0.5 + gain, 3.0 + far, gain=gain)
        made.tables["label_distances"][:4] = [
            {**row, "smallest distance": 3.0 + 0.01 * k}
            for k, row in enumerate(made.tables["label_distances"][:4])
        ]
        made.write(folder / task / "cross")
        if task in readings.STEPS["erasure"]:
            write_erasure(folder / task / "erasure", 0.1 if task == "pos" else None)
        if task in readings.STEPS["epochs"]:
            made = Made()
            for step, name in enumerate(("start", "step 9", "step 18", "step 27")):
                for layer in (1, 2):
                    made.add(name, layer, 0.5, 5.0 + sign * step, similar=0.9)
            made.write(folder / task / "epochs")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Studies in which everything holds, and in which nothing does."""
    folder = tmp_path_factory.mktemp("studies")
    return write_study(folder / "for", True), write_study(folder / "against", False)


def verdicts_of(folder: Path) -> dict[str, str]:
    names = [*verdicts.read_arguments(str(ROOT / "examples" / "zhou2022" / "claims.yaml"))]
    judged = verdicts.all_claims(readings.read_study([folder]))
    return {name: claim.verdict for name, claim in zip(names, judged, strict=True)}


def test_every_claim_can_be_confirmed_and_refuted(made):
    holds, fails = map(verdicts_of, made)
    assert len(holds) == 19
    assert holds == dict.fromkeys(holds, judging.CONFIRMED) | {"exception": judging.REFUTED}
    assert fails == dict.fromkeys(fails, judging.REFUTED) | {"exception": judging.CONFIRMED}


TEXT = dict.fromkeys(("claim", "holds if", "paper", "where"), "")


def claim(*values: tuple[float, float], **more) -> verdicts.Claim:
    return verdicts.claim([verdicts.Value("", *pair) for pair in values], **more)


def test_verdicts_and_their_intervals_by_hand():
    assert claim((0.2, 0.1)).verdict == judging.CONFIRMED
    assert claim((-0.2, 0.1)).verdict == judging.REFUTED
    assert claim((0.05, 0.1)).verdict == claim((0.2, np.nan)).verdict == judging.OPEN
    assert claim((0.5, 0.0)).verdict == judging.CONFIRMED  # counted
    assert claim().verdict == claim((np.nan, 0.1)).verdict == judging.MISSING
    assert claim(note="nothing to tell").verdict == judging.OPEN
    said = [claim((0.25, half))._replace(text=TEXT).row["ours"] for half in (0.1, np.nan, 0.0)]
    assert said == [": +0.250 ± 0.100", ": +0.250 (no interval)", ": +0.250"]
    assert claim((0.2, 0.1), (0.2, 0.1)).halves == pytest.approx(
        [0.1 * 2.2414 / 1.96] * 2, rel=1e-3
    )
    assert claim((0.11, 0.1)).verdict == judging.CONFIRMED
    assert claim((0.11, 0.1), (0.2, 0.1)).verdict == judging.OPEN
    assert claim((0.11, 0.1), among=5).halves == pytest.approx(
        [0.1 * norm.ppf(0.995) / 1.96], rel=1e-3
    )
    assert claim((0.2, 0.1), (-0.2, 0.1)).verdict == judging.REFUTED


def test_changes_of_labels_by_hand():
    """Mean distances inside 2 and 4 before (a single row has none): the unit is 3."""
    rows = pd.DataFrame(
        {
            "model": ["x"] * 3 + ["y"] * 3,
            "label": ["a", "b", "one"] * 2,
            "rows": [5, 5, 1] * 2,
            "smallest distance": [1.0, 2.0, 4.0, 4.0, 1.4, 4.0],
            "mean distance inside": [2.0, 4.0, 0.0, 4.0, 2.0, 0.0],
        }
    )
    found = readings.changes(rows, "x", "y")
    assert found["change"].tolist() == pytest.approx([1, -0.2, 0])
    assert found["of ratio"].tolist() == pytest.approx(
        [4 / 4 - 1 / 2, 1.4 / 2 - 2 / 4, np.nan], nan_ok=True
    )
    counts = readings.count_changes(rows, "x", "y")
    assert (counts["labels"], counts["grew"], counts["shrank"]) == (3, 1, 1)
    assert counts["mean change"] == pytest.approx(0.8 / 3)
    half = t.ppf(0.975, 2) * np.std([1, -0.2, 0], ddof=1) / 3**0.5
    assert counts["mean change ± 95 %"] == pytest.approx(half)


def test_values_behind_claims_by_hand(made):
    study = readings.read_study([made[0]])
    by_claim = {c.text["claim"]: c for c in verdicts.all_claims(study)}
    (own,) = [v for v in by_claim["Fine-tuning improves performance"].values if "POS" in v.name]
    assert own == ("for, POS", pytest.approx(0.1), 0.01)
    apart = by_claim["It pushes each label away from the others"].values[0]
    # .5, .505, .51, .515 of distances, in units of the mean of 2, 2.02, 2.04, 2.06
    assert apart.value == pytest.approx(0.5075 / 2.03)
    half = t.ppf(0.975, 3) * np.std([0.5, 0.505, 0.51, 0.515], ddof=1) / 2 / 2.03
    assert apart.half == pytest.approx(half)
    falls = by_claim["Upper layers change more than lower ones"].values[0]
    assert (falls.value, falls.half) == pytest.approx((0.25, 0.02 * 2**0.5))
    fewer = by_claim["Fine-tuning makes the space simpler"].values
    assert [value.value for value in fewer] == pytest.approx([5 / 9] * 5)
    trend = by_claim["Distances grow in the course of training"].values
    assert [value.value for value in trend] == pytest.approx([1] * 3)  # checkpoints in their order
    nearer = by_claim["A related task serves better than an opposing one"].values
    assert nearer[0].name == "for, PS-role less POS -> PS-fxn"
    assert nearer[0].value == pytest.approx(0.048 + 0.05)


def test_claims_without_values_are_not_drawn():
    assert judging.claims_figure([judging.Drawn("c", "not run", [], [])], "x", 1.0) is None


@pytest.mark.parametrize(("far", "scale"), [(4.0, "linear"), (30.0, "symlog")])
def test_claims_are_drawn_by_a_logarithm_where_they_lie_far_apart(far, scale):
    drawn = [judging.Drawn("c", "confirmed", [far, 0.2], [float("nan"), 0.1])]
    axis = judging.claims_figure(drawn, "x", 1.0).axes[0]
    assert axis.get_xscale() == scale
    if scale == "symlog":
        axis.figure.draw_without_rendering()
        assert {"1", "2", "5", "10", "20"} <= {t.get_text() for t in axis.get_xticklabels()}


def test_erasure_stands_beside_the_scores_of_its_layer(tables, made):
    study = readings.read_study([made[0]])
    found = tables.erasure_summary(study.erased).set_index(["task", "model"])
    assert found.loc[("TREC-50", "base"), "test accuracy lost"] == 0.2
    tuned = found.loc[("POS", "tuned")]
    assert (tuned["accuracy"], tuned["compression"], tuned["selectivity"]) == (0.9, 3.0, 0.1)
    assert found["selectivity"].isna().tolist() == [False, False, True, True]


def test_clusters_of_shuffled_labels_and_of_linear_encoders_say_nothing(tmp_path):
    folder = tmp_path / "linear"
    made = Made()
    for model, gain in (("base", 0), ("tuned", 0.1)):
        for layer in range(3):
            made.add(model, layer, 0.5 + gain, 1 + gain, gain=gain)
    made.tables["directprobe"] = [
        {**row, "linear, shuffled labels": "yes"} for row in made.tables["directprobe"]
    ]
    made.write(folder / "pos" / "layers")
    found = verdicts_of(folder)
    assert found["fewer_clusters"] == found["one_cluster"] == judging.OPEN
    assert found["curved_before"] == judging.REFUTED and found["improves"] == judging.CONFIRMED
    assert found["related_helps"] == found["every_epoch"] == judging.MISSING


def test_the_page_compares_encoders_and_names_what_is_missing(
    tables, made, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "small"
    made_again = write_study(out, True)
    for name in ("label_distances", "results"):
        (made_again / "dep" / "cross" / f"{name}.csv").unlink()
    larger = json.loads((made[1] / "dep" / "layers" / "all_results.json").read_text())
    larger["models"][0]["parameters"] = 500
    for path in made[1].glob("*/*/all_results.json"):
        path.write_text(json.dumps(larger))
    monkeypatch.setattr(sys, "argv", ["tables.py", str(out), str(made[1])])
    tables.main()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Not run yet: small, cross: DEP." in page and "All claims at a glance" in page
    assert page.count("<svg") == 7 and "src=" not in page and 'href="http' not in page
    assert (out / "study.md").read_text().count("](") == 7 and not (out / "report.md").exists()
    told = pd.read_csv(out / "claims.csv").set_index("claim")
    assert told.loc["There are exceptions, where it hurts", "verdict"] == judging.CONFIRMED
    assert told.loc["There are exceptions, where it hurts", "ours"].startswith("against: POS +0.1")
    assert "| claim |" in capsys.readouterr().out
    sizes = pd.read_csv(out / "before_and_after.csv")
    assert sizes["parameters"].tolist() == [100, 500] * 5 and sizes["task"].iloc[1] == "POS"
    assert sizes["accuracy, after"].tolist() == pytest.approx([0.6, 0.4] * 5)
    counts = pd.read_csv(out / "label_counts.csv")
    own = counts[(counts["layer"] == 2) & (counts["task"] == "POS")].set_index("encoder")
    assert own.loc["small", "grew"] == own.loc["against", "shrank"] == 4
    kinds = pd.read_csv(out / "by_kind.csv").set_index(["encoder", "kind"])
    assert kinds.loc[("small", "related"), "pairs of tasks"] == 2
    assert (
        kinds.loc[("small", "related"), "grew"] == kinds.loc[("against", "related"), "shrank"] == 8
    )
    assert kinds.loc[("small", "the same"), "pairs of tasks"] == 4  # one step is missing
    shared = pd.read_csv(out / "shared_labels.csv")
    assert len(shared) == 20 and shared["before"].tolist() == pytest.approx([1] * 20)


def test_what_cannot_be_told_is_one_line(tables, made, tmp_path, monkeypatch):
    for words, message in (
        ([], "give the folder"),
        ([tmp_path], "run study.yaml first"),
        ([made[0], tmp_path / "for"], "different names"),
    ):
        monkeypatch.setattr(sys, "argv", ["tables.py", *map(str, words)])
        with pytest.raises(InputError, match=message):
            tables.main()
