"""Arguments as notebooks hold them."""

import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from tiny_models import tiny_encoder
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from bertchain import cli
from bertchain.arguments import finetuning
from bertchain.arguments.probing import GROUPS as PROBING
from bertchain.errors import InputError
from bertchain.runtime import given

FRAME = pd.DataFrame({"id": [7, 8], "text": ["a", "b"], "label": ["x", None]})


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (np.float64(1e-4), ["--x=0.0001"]),
        (np.float32(0.5), ["--x=0.5"]),
        (np.int64(3), ["--x=3"]),
        (np.bool_(True), ["--x=True"]),
        (np.str_("a"), ["--x=a"]),
        (torch.tensor(3), ["--x=3"]),
        (np.array(["a", "b"]), ["--x", "a", "b"]),
        (np.array(2), ["--x=2"]),
        (pd.Index(["a", "b"]), ["--x", "a", "b"]),
        (pd.Series([1, 2]), ["--x", "1", "2"]),
        (("a", "b"), ["--x", "a", "b"]),
        ([np.int64(1), Path("b")], ["--x", "1", "b"]),
        (range(2), ["--x", "0", "1"]),
        (Path("a/b"), ["--x=a/b"]),
        (IntervalStrategy.EPOCH, ["--x=epoch"]),
        ({"a": np.int64(1), "b": (1, 2)}, ['--x={"a": 1, "b": [1, 2]}']),
        (None, []),
        ((), []),
    ],
    ids=str,
)
def test_what_notebooks_hold_becomes_flags(value, flags):
    assert cli.flags_of({"x": value}) == flags


@pytest.mark.parametrize(
    "value",
    [{"a"}, b"a", object(), date(2020, 1, 1), (n for n in "a"), max, int, [["a"]], [None],
     np.ones((2, 2)), np.datetime64("2020-01-01"), [date(2020, 1, 1)], {"a": {1}}, FRAME],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_anything_else_is_refused_by_name(value):
    with pytest.raises(InputError, match=r"--learning_rate: ") as error:
        cli.flags_of({"learning_rate": value})
    assert "\n" not in str(error.value)


def test_a_refusal_says_what_to_give():
    splits = DatasetDict(train=Dataset.from_pandas(FRAME))
    for name, value, hint in (
        ("dataset_name", splits, r"train_file=data\['train'\]"),
        ("train_file", splits, r"train_file=data\['train'\]"),
        ("model_name_or_path", tiny_encoder("bert"), "save_pretrained and give the folder"),
        ("train_file", FRAME.iloc[:0], "--train_file: the DataFrame has no rows"),
        ("train_file", pd.concat([FRAME, FRAME], axis=1), "column 'id' occurs twice"),
        ("train_file", FRAME.assign(label=[1, "x"]), "column label .* all text, or all numbers"),
        ("pseudo_label_file", FRAME, "folds.csv"),
        ("text_column_names", FRAME, "--text_column_names: a value of type DataFrame is not"),
    ):
        with pytest.raises(InputError, match=hint):
            cli.flags_of({name: value})


def test_names_and_values_may_be_a_mapping():
    flags = cli.flags_of({"models": {"base": Path("a"), "new": "b"}, "class_weights": {"x": 2.0}})
    assert flags == ["--models", "base=a", "new=b", "--class_weights", "x=2.0"]
    *_, run_config = cli.parse(PROBING, {"models": {"a": "b"}, "train_file": "t.csv"})
    assert run_config["models"] == ["a=b"]


def rows_of(table) -> list[dict]:
    with given.released():
        return given.find(given.hold("train_file", table)).to_list()


def test_tables_keep_what_they_hold():
    plain = FRAME.to_dict("records")
    plain[1]["label"] = None
    assert rows_of(FRAME) == rows_of(Dataset.from_pandas(FRAME)) == plain
    assert rows_of(FRAME[::-1]) == plain[::-1]  # an index without a name is no column
    assert rows_of(FRAME.set_index("id")) == plain
    assert rows_of(FRAME.set_index("id", drop=False)) == plain
    assert rows_of(FRAME.set_index(["id", "text"])) == plain
    assert rows_of(FRAME.astype({"label": "category"})) == plain
    assert rows_of(FRAME.astype({"label": "string"})) == plain
    assert rows_of(Dataset.from_pandas(FRAME).with_format("numpy")) == plain
    assert rows_of(FRAME.rename(columns={"id": 0}))[0] == {"0": 7, "text": "a", "label": "x"}
    assert list(FRAME.columns) == ["id", "text", "label"]  # the user's own stays as it was
    numbers = pd.DataFrame({"n": pd.Categorical([1, None])})
    assert rows_of(numbers) == [{"n": 1}, {"n": None}]


def test_tables_are_let_go_when_the_run_ends():
    with given.released():
        outer = given.hold("train_file", FRAME)
        with given.released():
            inner = given.hold("train_file", FRAME)
            assert inner != outer and given.is_held(inner)
        assert given.find(outer) is not None
        with pytest.raises(InputError, match=r"give it again: main\('run_args.yaml', train_file"):
            given.find(inner)
    assert not given._held


def test_keywords_override_a_file_and_a_dict(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    file.write_text('{"x": 1, "y": 2, "z": 3}')
    assert cli.as_flags(file, {"x": 5, "y": None}) == ["--z=3", "--x=5"]
    assert cli.as_flags([str(file), "--x", "4"], {"z": 6}) == [
        "--x=1",
        "--y=2",
        "--x",
        "4",
        "--z=6",
    ]
    assert cli.as_flags({"x": 1, "y": 2}, {"x": 5}) == ["--x=5", "--y=2"]
    monkeypatch.setattr("sys.argv", ["script.py", "--x", "7"])
    assert cli.as_flags(None) == ["--x", "7"] and cli.as_flags(None, {"y": 1}) == ["--y=1"]
    assert cli.as_flags({"train_file": "x.json"}) == cli.as_flags(["--train_file=x.json"])


class Own:
    pass


class Derived(Own):
    pass


def test_own_classes_come_by_keyword_or_in_a_dict():
    arguments = {"trainer_class": Derived, "callbacks": TrainerCallback, "seed": 1}
    for argv, keywords in ((None, arguments), (arguments, {})):
        flags, hooks = cli.take(argv, keywords, Own)
        assert flags == ["--seed=1"] and hooks.callbacks == [TrainerCallback]
        assert hooks.trainer_class is Derived and hooks.models is None
    assert cli.take({}, {"keep_model": True}, Own)[1] == given.Hooks(Own, [], {})
    for wrong, message in (
        ({"trainer_class": int}, "derive a class from .*Own"),
        ({"trainer_class": Derived()}, "give the class itself"),
        ({"callbacks": [1]}, "callbacks: a value of type int is not taken"),
        ({"keep_model": "yes"}, "keep_model: 'yes' is neither"),
    ):
        with pytest.raises(InputError, match=message):
            cli.take(None, wrong, Own)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"data_seed": -1}, {"seed": 2**32}, {"seeds": [1, -1]},
     {"learning_rate": math.nan}, {"learning_rate": math.inf},
     {"learning_rate": -1e-5}, {"weight_decay": math.nan}, {"weight_decay": -0.1},
     {"num_train_epochs": math.inf}, {"focal_gamma": math.nan},
     {"layer_learning_rates": [1e-5, math.nan]}, {"per_device_train_batch_size": 0},
     {"gradient_accumulation_steps": 0}, {"max_grad_norm": math.nan}],
    ids=str,
)  # fmt: skip
def test_numbers_of_which_no_use_can_be_made(wrong, tmp_path):
    arguments = {"train_file": "t.csv", "model_name_or_path": str(tmp_path), "use_cpu": True}
    arguments |= {"output_dir": str(tmp_path / "o"), **wrong}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=f"--{next(iter(wrong))} ") as error:
        cli.parse((*finetuning.GROUPS, TrainingArguments), arguments)
    assert "\n" not in str(error.value)
