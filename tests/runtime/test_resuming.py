"""A run that was cut off goes on as if it had not been, however its steps are shared out now."""

import importlib
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import transformers
from conftest import ROOT, Preempt
from forking import run_command
from packaging.version import Version
from transformers import TrainerState, TrainingArguments

import run_finetune
from bertchain.errors import InputError
from bertchain.runtime.checkpoints import checkpoints_in, read_mark
from bertchain.runtime.resuming import EarlyStopping

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def arguments(tiny_bert, topic_files):
    return {
        "model_name_or_path": tiny_bert,
        "train_file": topic_files["train"],
        "test_file": topic_files["test"],
        "id_column_name": "id",
        "token_pooling": "mean",
        "learning_rate": 3e-3,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 16,
        "head_dropout": 0,
        "encoder_dropout": 0,
        "logging_steps": 4,
        "disable_tqdm": True,
        "use_cpu": True,
    }


@pytest.fixture(scope="module")
def runs(arguments, tmp_path_factory):
    """Folders of a whole run, and of one that got SIGTERM."""
    folder = tmp_path_factory.mktemp("runs")
    run_finetune.main(arguments | {"output_dir": str(folder / "whole")})
    with pytest.raises(SystemExit):
        run_finetune.main(arguments, output_dir=str(folder / "cut"), callbacks=Preempt)
    assert [path.name for path in checkpoints_in(folder / "cut")] == ["checkpoint-6"]
    return folder


@pytest.fixture
def cut(runs, tmp_path):
    return shutil.copytree(runs / "cut", tmp_path / "cut")


def probabilities(folder):
    return pd.read_csv(folder / "predictions_test.csv").filter(like="prob_").to_numpy()


def test_the_history_and_the_mean_loss_are_those_of_a_run_left_alone(arguments, runs, cut):
    resumed = arguments | {"output_dir": str(cut), "resume_from_checkpoint": "last"}
    results = run_finetune.main(resumed)
    for name in ("history.csv", "predictions_test.csv", "model.safetensors"):
        assert (cut / name).read_bytes() == (runs / "whole" / name).read_bytes()
    whole = pd.read_json(runs / "whole" / "all_results.json", typ="series")
    assert results["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-6)


class Kill(transformers.TrainerCallback):
    """Ends the process, as it were, after the last checkpoint and before anything else."""

    def on_save(self, args, state, control, **kwargs):
        self.last = control.should_training_stop or state.global_step >= state.max_steps

    def on_train_end(self, args, state, control, **kwargs):
        assert self.last
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "ends",
    [
        {
            "max_steps": 13,
            "eval_strategy": "steps",
            "eval_steps": 13,
            "save_strategy": "steps",
            "save_steps": 13,
        },
        {"max_steps": 13},  # epochs are evaluated and saved, and the last step is inside of one
        {"max_steps": 18},  # at the end of an epoch
        {
            "num_train_epochs": 9,
            "early_stopping_patience": 1,
            "learning_rate": 0.0,
            "save_total_limit": 3,
        },
        {"max_steps": 13, "load_best_model_at_end": False},
    ],
    ids=["steps", "inside an epoch", "end of an epoch", "stopped early", "last weights"],
)
def test_killed_after_its_last_checkpoint_a_run_makes_no_step_more(arguments, ends, tmp_path):
    folders = [tmp_path / "whole", tmp_path / "cut"]
    whole = run_finetune.main(arguments | ends, output_dir=str(folders[0]))
    cut = arguments | ends | {"output_dir": str(folders[1])}
    with pytest.raises(KeyboardInterrupt):
        run_finetune.main(cut, callbacks=Kill)
    resumed = run_finetune.main(cut, resume_from_checkpoint="last")
    for name in ("history.csv", "predictions_test.csv", "model.safetensors"):
        assert folders[1].joinpath(name).read_bytes() == folders[0].joinpath(name).read_bytes()
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-6)


def test_another_way_to_share_out_a_step_goes_on_with_the_same_steps(arguments, runs, cut):
    shares = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "use_cpu": True}
    resumed = {"output_dir": str(cut), "resume_from_checkpoint": "last"}
    run_finetune.main(arguments | shares | resumed)
    np.testing.assert_allclose(probabilities(cut), probabilities(runs / "whole"), atol=2e-4)
    histories = [pd.read_csv(folder / "history.csv") for folder in (cut, runs / "whole")]
    pd.testing.assert_frame_equal(*histories, atol=1e-4)


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.1"),
    reason="transformers 5.0 cannot load an optimizer in several processes on CPUs",
)
def test_two_processes_go_on_where_one_was_cut_off(arguments, runs, cut):
    flags = arguments | {"per_device_train_batch_size": 8, "output_dir": str(cut)}
    line = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    port = str(32000 + os.getpid() % 500)
    line += ["--resume_from_checkpoint", "last"]
    done = run_command(*launch, port, ROOT / "run_finetune.py", *line)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(probabilities(cut), probabilities(runs / "whole"), atol=2e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_device_train_batch_size": 8}, "number of rows of a step .* was 16 and is 8"),
        ({"gradient_accumulation_steps": 2}, "number of rows of a step .* was 16 and is 32"),
        ({"max_train_samples": 100}, "number of training rows was 135 and is 90"),
        ({"seed": 7}, "seed of their order was 42 and is 7"),
        ({"batch_by_length": False}, "--batch_by_length was True and is False"),
    ],
)
def test_other_steps_are_refused_before_anything_is_trained(arguments, cut, changes, message):
    before = sorted(os.listdir(cut))
    resumed = {"output_dir": str(cut), "resume_from_checkpoint": "last"}
    with pytest.raises(InputError, match=message):
        run_finetune.main(arguments | changes | resumed)
    assert sorted(os.listdir(cut)) == before


def test_a_checkpoint_without_a_mark_has_to_hold_what_a_resume_needs(arguments, cut, tmp_path):
    (checkpoint,) = checkpoints_in(cut)
    assert read_mark(checkpoint)["step"]["number of training rows"] == 135
    (checkpoint / "whole").unlink()
    (checkpoint / "optimizer.pt").unlink()
    named = {"output_dir": str(tmp_path / "x"), "resume_from_checkpoint": str(checkpoint)}
    with pytest.raises(InputError, match=r"checkpoint-6 lacks optimizer\.pt"):
        run_finetune.main(arguments | named)


def test_damages_are_refused_or_lose_nothing(tiny_bert, topic_files, monkeypatch, capsys):
    """A short form of the benchmark, which tries all."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    damages = importlib.import_module("damages")
    line = ["--model", tiny_bert, "--train_file", topic_files["train"]]
    line += ["--test_file", topic_files["test"], "--files", "optimizer.pt", "--kinds"]
    table = damages.main([*line, "a flipped bit", "missing"])
    assert table["alone"].tolist() == ["same predictions", *["refused in one line"] * 2]
    assert set(table["an older one beside it"]) == {"same predictions"}
    assert "| optimizer.pt | missing | refused in one line | same predictions |" in (
        capsys.readouterr().out
    )


def test_early_stopping_counts_on(tmp_path):
    args = TrainingArguments(
        output_dir=str(tmp_path),
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
    )
    one, other = EarlyStopping(3), EarlyStopping(3)
    state = TrainerState(best_metric=1.0, stateful_callbacks=[one])
    one.early_stopping_patience_counter = 2
    state.stateful_callbacks["EarlyStopping"] = one.state()
    state.save_to_json(str(tmp_path / "state.json"))
    state = TrainerState.load_from_json(str(tmp_path / "state.json"))
    other.on_train_begin(args, state, None)
    assert other.early_stopping_patience_counter == 2
