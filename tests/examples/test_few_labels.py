"""The study of few labels: its draws, its runs, its tables."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from conftest import ROOT, make_rows
from forking import run_command
from test_examples import load_example

from bertchain.arguments import finetuning
from bertchain.cli import read_arguments
from bertchain.errors import InputError

FOLDER = ROOT / "examples" / "few_labels"
WAYS = {"frozen probe": {"head_refit": "probe", "learning_rate": 0, "max_steps": 1}}
WAYS["fine-tuned"] = {"learning_rate": 3e-3, "min_steps": 4}


@pytest.fixture(scope="module")
def study():
    return load_example("few_labels/study")


@pytest.fixture(scope="module")
def tables():
    return load_example("few_labels/tables")


@pytest.mark.parametrize("count", ["1", "5"])
def test_a_draw_has_so_many_rows_of_each_class(study, count):
    train = pd.DataFrame(make_rows(31))
    chosen = study.draw(train, "label", count, seed=3)
    assert (chosen["label"].value_counts() == int(count)).all() and chosen["id"].is_unique
    pd.testing.assert_frame_equal(study.draw(train, "label", count, seed=3), chosen)
    assert set(study.draw(train, "label", count, seed=4)["id"]) != set(chosen["id"])
    assert len(study.draw(train, "label", "400", seed=3)) == len(train)  # all there are
    assert study.draw(train, "label", study.ALL, seed=3) is train


def test_of_several_labels_each_has_so_many_rows_or_all(study):
    names = [["a"], ["a", "b"], ["b", "c"], [], ["a", "c"], ["d"]] * 10
    train = pd.DataFrame({"id": range(60), "labels": names})
    train.loc[6:59, "labels"] = train.loc[6:59, "labels"].map(lambda n: [x for x in n if x != "d"])
    chosen = study.draw(train, "labels", "4", seed=0)
    counts = chosen["labels"].explode().value_counts()
    assert counts["d"] == 1 and (counts[["a", "b", "c"]] >= 4).all() and len(chosen) <= 13
    assert chosen["id"].is_unique


def test_the_settings_are_flags_of_the_script():
    """A misspelt flag would be seen hours later."""
    known = {
        field.name for group in finetuning.GROUPS for field in group.__dataclass_fields__.values()
    }
    known |= {"learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size"}
    for name, flags in read_arguments(str(FOLDER / "settings.yaml")).items():
        assert set(flags) <= known, name
    for name, about in read_arguments(str(FOLDER / "sets.yaml")).items():
        assert set(about) == {"train", "test", "text", "label", "window", "metric"}, name


def test_the_rates_of_all_settings_that_name_one_are_scaled(study):
    flags = {"learning_rate": "3e-4", "min_steps": 100}
    assert study.scaled(flags, 1) is flags
    assert study.scaled(flags, 3) == {"learning_rate": pytest.approx(9e-4), "min_steps": 100}
    assert study.scaled({"min_steps": 4}, 3) == {"min_steps": 4}


@pytest.fixture(scope="module")
def done(study, tiny_bert, tmp_path_factory):
    """A small study with two ways, after further pretraining as well."""
    folder = tmp_path_factory.mktemp("few")
    about = {"train": "one/train.csv", "test": "one/test.csv", "text": ["text"], "label": "label"}
    about |= {"window": 16, "metric": "test_accuracy"}
    (folder / "sets.yaml").write_text(yaml.safe_dump({"agnews": about}))
    (folder / "settings.yaml").write_text(yaml.safe_dump(WAYS, sort_keys=False))
    (folder / "one").mkdir()
    for seed, split in enumerate(("train", "test")):
        pd.DataFrame(make_rows(60, seed)).to_csv(folder / "one" / f"{split}.csv", index=False)
    line = ["study.py", "--data", str(folder), "--encoder", tiny_bert, "--output_dir"]
    line += [str(folder / "out"), "--counts", "10", "--seeds", "2", "--test_rows", "40"]
    ran = []

    def run(command, **_):
        ran.append(command[1].name)
        ended = run_command(*command[1:], cwd=folder)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return SimpleNamespace(returncode=ended.returncode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "HERE", folder)
        patch.setattr(study.subprocess, "run", run)
        patch.setattr(sys, "argv", [*line, "--itpt", "2", "--rate_factor", "2"])
        study.main()
    assert ran == ["run_itpt.py", "sweep.py"]
    return folder / "out"


def test_every_way_sees_the_same_draws_and_test_rows(done):
    runs = pd.read_csv(done / "agnews" / "10" / "sweep.csv")
    ways = [*WAYS, *(f"{way}, after ITPT" for way in WAYS)]
    assert list(runs["point"].unique()) == ways and len(runs) == 2 * len(ways)
    for _, run in runs.iterrows():
        results = json.loads(Path(run["run"], "all_results.json").read_text(encoding="utf-8"))
        assert results["train_rows"] == 30
        rate = read_arguments(str(Path(run["run"], "run_args.yaml")))["learning_rate"]
        assert float(rate) == 2 * WAYS[run["point"].split(",")[0]]["learning_rate"]
        predicted = pd.read_csv(Path(run["run"], "predictions_test.csv"))
        assert len(predicted) == 40


def test_tables_from_runs_and_setfit_by_hand(tables, done, monkeypatch, capsys):
    setfit = pd.DataFrame(
        {"seed": [0, 1], "test_accuracy": [0.5, 0.7], "train_runtime": [3.0, 5.0]}
    )
    setfit.to_csv(done / "agnews" / "10" / "setfit.csv", index=False)
    monkeypatch.setattr(sys, "argv", ["tables.py", str(done)])
    tables.main()
    table = pd.read_csv(done / "few_labels.csv").set_index(["rows a class", "way"])
    runs = pd.read_csv(done / "agnews" / "10" / "sweep.csv")
    own = runs[runs["point"] == "fine-tuned"].sort_values("seed")["test_accuracy"].to_numpy()
    row = table.loc[(10, "fine-tuned")]
    assert row["score"] == pytest.approx(own.mean())
    change = own - [0.5, 0.7]
    assert row["against SetFit"] == pytest.approx(change.mean())
    half = 12.7062 * change.std(ddof=1) / 2**0.5
    assert row["its ± 95 %"] == pytest.approx(half, rel=1e-4, abs=1e-9)
    assert table.loc[(10, "SetFit"), "score"] == pytest.approx(0.6)
    after = runs[runs["point"] == "fine-tuned, after ITPT"].sort_values("seed")
    gain = (after["test_accuracy"].to_numpy() - own).mean()
    assert table.loc[(10, "fine-tuned, after ITPT"), "by ITPT"] == pytest.approx(gain)
    page = (done / "report.html").read_text(encoding="utf-8")
    assert (
        "<svg" in page
        and "half contrastive" not in page
        and "| agnews |" in capsys.readouterr().out
    )


def test_no_two_ways_look_alike(tables):
    ways = [*"abcdefgh", "SetFit", *(f"{way}{tables.ITPT}" for way in "abcdefgh")]
    looks = [tuple(tables.look_of(way, ways).values()) for way in ways]
    assert len(set(looks)) == len(ways)
    assert looks[0][0] == looks[9][0] == "C0" and looks[8] == ("C8", "o--")


def test_the_mean_over_sets_is_of_those_that_every_way_was_run_on(tables):
    rows = [("A", "8", "x", 0.2), ("A", "8", "y", 0.4), ("B", "8", "x", 0.8), ("B", "8", "y", 0.4)]
    rows += [("C", "8", "x", 1.0), ("A", "32", "y", 0.7)]
    table = pd.DataFrame(rows, columns=["set", "rows a class", "way", "score"])
    found = tables.over_sets(table).set_index(["rows a class", "way"])
    assert list(found.index) == [("8", "x"), ("8", "y"), ("32", "y")]
    assert found["mean score"].tolist() == pytest.approx([0.5, 0.4, 0.7])
    assert found["sets"].tolist() == ["A, B", "A, B", "A"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sets", "trec7"], "--sets trec7 is not one of trec6"),
        (["--counts", "0"], "--counts 0 is neither"),
        (["--sets", "trec6"], "lacks trec/train.csv"),
    ],
)
def test_mistakes_are_one_line(study, tmp_path, monkeypatch, more, message):
    line = ["study.py", "--data", str(tmp_path), "--encoder", "E", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*line, *more])
    with pytest.raises(InputError, match=message):
        study.main()


def test_nothing_to_show_is_one_line(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tables.py", str(tmp_path)])
    with pytest.raises(InputError, match=r"holds no SET/COUNT/sweep\.csv"):
        tables.main()
