"""The scripts called from Python, as notebooks do: what they take, give back and leave behind."""

import gc
import json
import logging
import re
import weakref
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import BASICS, ROOT, make_rows
from datasets import Dataset, are_progress_bars_disabled
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

import run_finetune
import run_itpt
import run_probe
from bertchain.errors import InputError
from bertchain.runtime import screen

TRAIN, TEST = pd.DataFrame(make_rows(90)), pd.DataFrame(make_rows(30, seed=1))
QUICK = BASICS | {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no"}
QUICK |= {"load_best_model_at_end": False}


@pytest.fixture
def common(tiny_bert, tmp_path) -> dict:
    return QUICK | {"model_name_or_path": tiny_bert, "output_dir": tmp_path / "o"}


def test_tables_in_memory_train_as_their_file_does(common, tmp_path):
    TRAIN.to_csv(tmp_path / "train.csv", index=False)
    TEST.to_csv(tmp_path / "test.csv", index=False)
    tables = {
        "files": {
            n: tmp_path / f"{n.removesuffix('_file')}.csv" for n in ("train_file", "test_file")
        },
        "frames": {"train_file": TRAIN, "test_file": TEST.set_index("id")},
        "datasets": {
            "train_file": Dataset.from_pandas(TRAIN),
            "test_file": Dataset.from_pandas(TEST),
        },
    }
    scores = {}
    for name, given in tables.items():
        result = run_finetune.main(**common | given | {"output_dir": tmp_path / name})
        scores[name] = {k: v for k, v in result.items() if k.endswith(("loss", "accuracy"))}
        predicted = result.predictions["test"]
        assert predicted["id"].tolist() == TEST["id"].tolist()
    assert scores["files"] == scores["frames"] == scores["datasets"]
    assert scores["files"]["test_accuracy"] > 0


def test_all_three_scripts_take_tables_and_mappings(tiny_bert, tmp_path):
    """A chain in memory: corpora of several kinds, mappings of models, rows of a data set."""
    other = Dataset.from_dict({"body": ["the old river sings", "a new city sleeps"] * 9})
    pretrained = run_itpt.main(
        model_name_or_path=Path(tiny_bert),
        train_file=[TRAIN, TEST],
        corpora={"domain": {"file": other, "text_column_names": ("body",)}},
        corpus_weights={"domain": np.float64(2)},
        test_file=TEST[:5],
        num_train_epochs=np.int64(1),
        disable_tqdm=np.bool_(True),
        use_cpu=True,
        output_dir=tmp_path / "itpt",
    )
    assert pretrained["test_documents_removed"] == 5 and pretrained["read"] == 90 + 30 + 18
    assert pretrained["eval_perplexity"] > 1 and list(pretrained.tables) == ["history"]
    streamed = run_itpt.main(
        pretrained.output_dir / "run_args.yaml",
        **{"train_file": TRAIN, "corpora": None, "corpus_weights": None, "test_file": None},
        **{"streaming": True, "max_steps": 2, "output_dir": tmp_path / "stream"},
    )
    assert streamed["eval_loss"] > 0
    probed = run_probe.main(
        models={"base": tiny_bert, "itpt": pretrained.output_dir},
        train_file=TRAIN,
        validation_file=Dataset.from_pandas(TRAIN).select(range(30)),
        test_file=TEST,
        id_column_name="id",
        analyses=np.array(["change"]),
        disable_tqdm=True,
        output_dir=tmp_path / "probed",
    )
    assert probed["base: best frozen layer"] == probed.headline["test accuracy"][2]
    assert {"results", "gains", "drift"} <= {*probed.tables}
    assert len(probed.tables["gains"]) and "probed" in repr(probed)


def test_a_run_is_known_by_the_content_of_its_tables(common):
    given = common | {"train_file": TRAIN, "test_file": TEST, "num_folds": 2}
    given |= {"folds": (0,), "sample_submission": TEST[["id"]].assign(label="x")}
    first = run_finetune.main(**given)
    again = run_finetune.main(**given | {"train_file": TRAIN.copy(), "folds": range(2)})
    assert again["models"] == 2 and again["oof_rows"] == len(TRAIN) and first["oof_rows"] < 90
    assert [*again.predictions] == ["oof", "test"]
    assert set(again.predictions["oof"]["fold"]) == {0, 1}
    assert len(again.tables["submission"]) == len(TEST)
    other = TRAIN.assign(text=TRAIN["text"].where(TRAIN.index != 7, "cat"))
    with pytest.raises(InputError, match="--train_file holds something else now"):
        run_finetune.main(**given | {"train_file": other})
    arguments = given["output_dir"] / "run_args.yaml"
    assert yaml.safe_load(arguments.read_text())["train_file"] == "<train_file: DataFrame, 90 rows>"
    with pytest.raises(InputError, match=r"--train_file|give it again: main\('run_args.yaml'"):
        run_finetune.main(arguments)
    tables = {name: given[name] for name in ("train_file", "test_file", "sample_submission")}
    assert run_finetune.main(arguments, **tables) == again


def test_what_comes_back(common):
    result = run_finetune.main(**common, train_file=TRAIN, test_file=TEST, keep_model=True)
    saved = json.loads((common["output_dir"] / "all_results.json").read_text())
    assert result.metrics == dict(result) and result.metrics.items() <= saved.items()
    assert result.output_dir == common["output_dir"]
    assert [*result.predictions] == ["validation", "test"]
    assert result.predictions["validation"]["prediction"].isin(TRAIN["label"]).all()
    assert {"history", "optimizer_groups", "predictions_test"} <= {*result.tables}
    assert result.tables["history"].empty and len(result.tables["optimizer_groups"])
    assert not result.model.training and result.model.device.type == "cpu"
    assert result.model.config.id2label[0] == "animals"
    assert "\n" not in repr(result) and "'test_accuracy': " in repr(result)
    assert {*result.model.state_dict()} == {
        *type(result.model).from_pretrained(result.output_dir).state_dict()
    }


def test_predicted_labels_are_text_where_labels_are(common):
    digits = TRAIN.assign(label=TRAIN["label"].map({"animals": 1, "moods": 2, "places": 3}))
    given = common | {"train_file": digits, "num_folds": 2, "keep_model": True}
    result = run_finetune.main(**given)
    oof = result.predictions["oof"]
    assert set(oof["prediction"]) <= set(oof["label"]) == {"1", "2", "3"}
    assert [*result.model] == ["fold-0", "fold-1"]
    again = run_finetune.main(**given)  # trained before
    weights = [member.head.weight for member in (*result.model.values(), *again.model.values())]
    assert (weights[0] == weights[2]).all() and (weights[1] == weights[3]).all()
    numbers = common | {"train_file": digits, "problem_type": "regression"}
    numbers["output_dir"] = common["output_dir"] / "numbers"
    values = run_finetune.main(**numbers).predictions["validation"]["prediction"]
    assert values.dtype.kind == "f"


class Watch(TrainerCallback):
    """Knows whether the models of the trainers are still in memory."""

    def __init__(self):
        self.models, self.steps = [], 0

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.models.append(weakref.ref(model))

    def on_step_end(self, args, state, control, **kwargs):
        self.steps += 1
        if self.steps == self.stop_at:
            raise self.error

    stop_at, error = 0, None

    @property
    def alive(self) -> int:
        return sum(model() is not None for model in self.models)


@pytest.mark.parametrize("script", [run_finetune, run_itpt], ids=lambda s: s.__name__)
def test_nothing_is_left_in_memory(script, common, tmp_path):
    watch, left_out = Watch(), ("token_pooling", "id_column_name")
    given = {name: v for name, v in common.items() if name not in left_out}
    given |= {"train_file": TRAIN, "callbacks": [watch], "max_steps": 3}
    kept = script.main(**given, keep_model=True)
    before = len(watch.models)  # run_itpt.py has trained a copy, whose encoder is frozen, first
    assert before == 1 + (script is run_itpt) and watch.alive == 1 and kept.model is not None
    del kept
    gc.collect()
    assert not watch.alive
    given |= {"head_warmup_steps": 0} if script is run_itpt else {}
    for number, error in enumerate((None, InputError("stop"), KeyboardInterrupt()), 1):
        given["output_dir"] = tmp_path / str(number)
        if error is None:
            assert script.main(given).model is None
        else:
            watch.stop_at, watch.error = watch.steps + 2, error
            with pytest.raises(type(error)) as caught:  # whose traceback holds frames
                script.main(given)
            assert caught.value is error
        assert len(watch.models) == before + number and not watch.alive


class Seen(TrainerCallback):
    made = 0

    def __init__(self):
        Seen.made += 1


def test_a_trainer_and_callbacks_of_ones_own(common):
    class Mine(run_finetune.ClassifierTrainer):
        losses = 0

        def compute_loss(self, *args, **kwargs):
            Mine.losses += 1
            return super().compute_loss(*args, **kwargs)

    watch = Watch()
    given = common | {"train_file": TRAIN, "num_folds": 2, "callbacks": [watch, Seen]}
    run_finetune.main(given | {"trainer_class": Mine})
    assert Mine.losses > 2 and Seen.made == 2 and len(watch.models) == 2
    with pytest.raises(InputError, match=r"derive a class from run_finetune\.ClassifierTrainer"):
        run_finetune.main(**common, train_file=TRAIN, trainer_class=dict)
    with pytest.raises(InputError, match="trainer_class"):
        run_probe.main(models=["a"], train_file=TRAIN, trainer_class=Mine)


def test_a_mistake_is_one_line_in_a_notebook(common):
    with pytest.raises(InputError) as caught:
        run_finetune.main(**common, train_file=TRAIN.drop(columns="label"))
    (line,) = caught.value._render_traceback_()
    assert line.startswith("InputError: <train_file: DataFrame, 90 rows>: no column 'label'")
    with pytest.raises(InputError, match=r"unknown argument --train_fil .*train_file"):
        run_finetune.main(**common, train_fil=TRAIN.to_dict("list"))


# ---------------------------------------------------------------- what is shown


@pytest.fixture
def with_bars():
    """Other tests may have hidden them."""
    before = are_progress_bars_disabled()
    datasets.enable_progress_bars()
    yield
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()


@pytest.mark.usefixtures("with_bars")
def test_one_switch_silences_all_bars(common, tmp_path, capfd):
    def shown(main, **given) -> str:
        capfd.readouterr()
        main(**given)
        assert not screen.bars_are_hidden() and not are_progress_bars_disabled()
        assert transformers_logging.is_progress_bar_enabled()
        return capfd.readouterr().err

    probing = {"models": {"a": common["model_name_or_path"]}, "train_file": TRAIN}
    probing |= {"probe_layers": [1], "output_dir": tmp_path / "probed"}
    tuning = common | {"train_file": TRAIN, "max_steps": 1, "output_dir": tmp_path / "tuned"}
    for main, given in ((run_finetune.main, tuning), (run_probe.main, probing)):
        bars = re.compile(r"it/s|s/it|examples/s|\d%")
        assert bars.search(shown(main, **given | {"disable_tqdm": False}))
        again = {"disable_tqdm": True, "output_dir": f"{given['output_dir']}_again"}
        assert not bars.search(shown(main, **given | again))


@pytest.mark.usefixtures("with_bars")
def test_bars_come_from_one_process(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with screen.bars_as_before():
        screen.start_logging()
        assert screen.bars_are_hidden() and are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


@pytest.fixture
def in_a_cell(monkeypatch):
    """What a command of a notebook's cell sees."""
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    yield
    monkeypatch.delenv("JPY_PARENT_PID")
    screen.start_logging()


@pytest.mark.usefixtures("in_a_cell")
def test_a_notebook_gets_a_few_lines(common, caplog, capfd):
    class Mine(run_finetune.ClassifierTrainer):
        def train(self, *args, **kwargs):
            printers = [c for c in self.callback_handler.callbacks if type(c) is PrinterCallback]
            assert not printers
            return super().train(*args, **kwargs)

    given = {"train_file": TRAIN, "test_file": TEST, "num_folds": 2, "trainer_class": Mine}
    run_finetune.main(**common, **given)
    lines = [record.getMessage() for record in caplog.records if "bertchain" in record.name]
    assert lines[0].startswith("Labels: ") and lines[-1].startswith("Wrote ") and len(lines) <= 7
    assert sum(line.startswith("validation: ") for line in lines) == 2
    assert not capfd.readouterr().out
    screen.start_logging()
    caplog.clear()
    logger = logging.getLogger("bertchain.training.prediction.validation")
    for _ in range(20):
        logger.info("a line")
    logger.warning("a warning")
    assert len(caplog.records) == screen.MOST_LINES + 1


# ---------------------------------------------------------------- what the documentation shows


def test_the_examples_of_the_documentation_run(tiny_bert, tmp_path, monkeypatch):
    """All of docs/extending.md, in the order in which a reader would type it."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 4 and "bert-base-uncased" in blocks[0]
    prices = {"animals": -1.0, "moods": 0.0, "places": 1.0}
    for name, rows in (("train", TRAIN), ("test", TEST)):
        words = rows.assign(price=rows["label"].map(prices), text="the " + rows["text"].str[:0])
        words.to_csv(tmp_path / f"{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    quick = {n: v for n, v in QUICK.items() if n in run_finetune.DEFAULTS} | {"use_cpu": True}
    quick |= {"num_train_epochs": 4, "freeze": "encoder", "head_learning_rate": 0.1}
    monkeypatch.setattr(run_finetune, "DEFAULTS", run_finetune.DEFAULTS | quick)
    names: dict = {}
    for block in blocks:
        exec(block.replace("bert-base-uncased", tiny_bert), names)
    assert names["result"].output_dir == Path("out")
    of = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/all_results.json")}
    assert of["poly"]["train_loss"] > of["out"]["train_loss"] != of["sgd"]["train_loss"]
    assert of["out"]["test_accuracy"] < 0.5 < of["number"]["test_accuracy"]  # no word tells
