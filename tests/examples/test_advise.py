"""Advice: what follows from the counts of a table, and from what was measured."""

import math
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, make_rows
from forking import run_command
from test_examples import load_example
from transformers import AutoTokenizer, TrainingArguments

import run_finetune
from bertchain import cli
from bertchain.arguments import finetuning

MEASURED = cli.read_arguments(str(ROOT / "examples" / "measured.yaml"))


@pytest.fixture(scope="module")
def advise():
    return load_example("advise")


@pytest.fixture(scope="module")
def look(advise):
    lengths = np.arange(1, 101)  # 95 % have up to 96 tokens
    return advise.Look(4000, "single_label", 4, 1000.0, lengths, 512, 384, False)


RATES = [
    {"hidden_size": 128, "rate": "1e-3", "what": "small", "where": "a"},
    {"hidden_size": 768, "rate": "2e-5", "what": "large", "where": "b", "token_pooling": "cls"},
]


def test_the_rate_is_that_of_the_nearest_size_and_says_so(advise, look):
    found = advise.advise_rate(look._replace(hidden_size=128), RATES, 1)
    assert found == ({"learning_rate": "0.001"}, "small (a)")
    found = advise.advise_rate(look._replace(hidden_size=1024), RATES, 0.5)
    assert found.flags == {"learning_rate": "1e-05", "token_pooling": "cls"}
    assert "hidden size of 1024 was not measured, 768 was; 0.5 of the rate" in found.why


FEW = {
    "where": "here",
    "sets": [
        {"what": "W", "labels": 3, "rows_a_class": {4: {"a": 0.5, "b": 0.4}, 64: {"b": 0.9}}},
        {"what": "X", "labels": 48, "rows_a_class": {8: {"a": 0.2, "b": 0.3}}},
        {"what": "Y", "labels": 9, "several": True, "rows_a_class": {8: {"c": 0.3}}},
    ],
    "flags": {"a": {"head_init": "probe"}, "b": {"min_steps": 7}, "c": {"min_steps": 9}},
}


@pytest.mark.parametrize(
    ("rows_a_class", "flags"),
    [(1, {"head_init": "probe"}), (15, {"head_init": "probe"}), (17, {"min_steps": 7})],
)
def test_few_rows_take_the_best_way_of_the_nearest_number(advise, look, rows_a_class, flags):
    found = advise.advise_way(look._replace(rows_a_class=rows_a_class), FEW)
    assert found.flags == flags and found.why.startswith("W, 3 labels, ")
    assert found.why.endswith("(here)")


@pytest.mark.parametrize(
    ("classes", "kind", "flags"),
    [
        (2, "single_label", {"head_init": "probe"}),
        (11, "single_label", {"head_init": "probe"}),  # 11 / 3 < 48 / 11
        (13, "single_label", {"min_steps": 7}),
        (13, "multi_label", {"min_steps": 9}),
        (900, "multi_label", {"min_steps": 9}),
    ],
)
def test_few_rows_take_the_set_that_is_most_alike(advise, look, classes, kind, flags):
    few = look._replace(classes=classes, problem_type=kind, rows_a_class=5)
    assert advise.advise_way(few, FEW).flags == flags


def test_many_rows_need_steps_alone(advise, look):
    assert advise.advise_way(look, FEW).flags == {}  # 1,000 steps
    numbers = look._replace(rows=384, problem_type="regression", classes=1, rows_a_class=math.inf)
    assert advise.advise_way(numbers, FEW).flags == {"min_steps": 100}  # 4 x 24 = 96 steps
    assert advise.advise_way(numbers._replace(rows=385), FEW).flags == {}


def test_the_window_holds_most_documents_or_they_are_read_as_measured(advise, look):
    found = advise.advise_window(look, MEASURED["long_text"])
    assert found.flags == {"max_seq_length": 96} and found.why.startswith("holds 96%")
    for limit, share, truncation in ((64, 36, "head_tail"), (32, 68, "hierarchical")):
        found = advise.advise_window(look._replace(limit=limit), MEASURED["long_text"])
        assert found.flags["max_seq_length"] == limit
        assert found.flags["truncation"] == truncation
        assert found.why.startswith(f"{share}% of the documents are longer")


@pytest.mark.parametrize(
    ("rows", "held_out", "flags"),
    [
        (1995, False, {}),  # 200 rows of a tenth
        (1990, False, {"num_folds": 5}),
        (199, False, {"validation_split": 0}),
        (199, True, {}),
    ],
)
def test_validation_by_what_a_tenth_can_tell(advise, look, rows, held_out, flags):
    found = advise.advise_validation(look._replace(rows=rows, held_out=held_out))
    assert found.flags == flags
    if rows == 1990:  # 1.96 * sqrt(1/4 / 199)
        assert "± 7 points" in found.why


def test_what_is_printed_is_a_command_that_the_script_takes(tiny_bert, tmp_path):
    """Six rows of each of three classes, one of them longer than the encoder's window."""
    rows = pd.DataFrame(make_rows(18))
    rows.loc[0, "text"] = "word " * 900
    rows.rename(columns={"text": "a b"}).to_csv(tmp_path / "train set.csv", index=False)
    line = ["--train_file", "train set.csv", "--text_column_names", "a b"]
    line += ["--model_name_or_path", tiny_bert]
    ended = run_command(ROOT / "examples" / "advise.py", *line, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "18 training rows, 6 a class (median); single_label." in ended.stdout
    shown = ended.stdout[ended.stdout.index("python run") : ended.stdout.index("\n\n- ")]
    words = shlex.split(shown.replace("\\\n", " "))
    assert words[:2] == ["python", "run_finetune.py"]
    argv = words[2:]
    defaults = run_finetune.DEFAULTS | finetuning.defaults_for(argv)
    parsed = cli.parse((*finetuning.GROUPS, TrainingArguments), argv, defaults)
    args = finetuning.Arguments(*parsed)
    finetuning.check_combinations(args)
    assert args.text.text_column_names == ["a b"] and args.label.validation_split == 0
    assert args.data.train_file == "train set.csv"


@pytest.mark.parametrize(("flags", "marks"), [("text", 2), ("text more --text_pair true", 3)])
def test_lengths_count_the_marks_of_one_text_or_two(tiny_bert, tmp_path, flags, marks):
    rows = pd.DataFrame(make_rows(6)).assign(text="the film", more="a film")
    rows.to_csv(tmp_path / "t.csv", index=False)
    line = ["--train_file", tmp_path / "t.csv", "--model_name_or_path", tiny_bert]
    line += ["--text_column_names", *flags.split()]
    ended = run_command(ROOT / "examples" / "advise.py", *line, cwd=tmp_path)
    tokens = AutoTokenizer.from_pretrained(tiny_bert).tokenize(
        "the film" + " a film" * (marks == 3)
    )
    assert f"median {len(tokens) + marks}," in ended.stdout, ended.stderr


def test_words_and_missing_tables_are_refused(tiny_bert, tmp_path):
    line = ["--model_name_or_path", tiny_bert, "--test_file", "t.csv"]
    ended = run_command(ROOT / "examples" / "advise.py", *line, cwd=tmp_path)
    assert ended.returncode == 2 and "give --train_file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_measured_figure_stands_in_the_docs_it_names():
    """So that nobody changes one of the two alone."""
    few = MEASURED["few_labels"]
    text = (ROOT / few["where"].split(",")[0]).read_text(encoding="utf-8")
    for ways in [ways for about in few["sets"] for ways in about["rows_a_class"].values()]:
        assert set(ways) <= set(few["flags"])
        for score in ways.values():
            assert f"{score:.3f}".removeprefix("0") in text, score
    for about in [*MEASURED["rates"], *MEASURED["long_text"]]:
        path = ROOT / about["where"].split(",")[0]
        if path.is_file():  # else it is the paper
            text = path.read_text(encoding="utf-8")
            for number in re.findall(r"\d*\.\d+", about["what"]):
                assert re.search(rf"(?<!\d){re.escape(number)}(?!\d)", text), number


def test_the_flags_of_every_way_are_flags_of_the_script():
    known = {f for group in finetuning.GROUPS for f in group.__dataclass_fields__}
    known |= {"rate_factor", "per_device_train_batch_size"}
    ways = MEASURED["few_labels"]["flags"].values()
    for flags in [*ways, *(row["flags"] for row in MEASURED["long_text"])]:
        assert set(flags) <= known, flags
