"""Which checkpoints a run may resume from."""

import os
import signal

import pytest
from transformers import TrainerCallback, TrainerState

import run_finetune
import run_itpt
from bertchain.errors import InputError
from bertchain.runtime import checkpoints
from bertchain.runtime.checkpoints import WHOLE, checkpoints_in, find_checkpoint, latest_checkpoint

pytestmark = pytest.mark.versions


def make(folder, *steps, complete=True):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        if complete:
            (folder / f"checkpoint-{step}" / WHOLE).touch()


def test_finding_checkpoints(tmp_path):
    assert find_checkpoint(tmp_path / "none", None) is None
    with pytest.raises(InputError, match="no whole checkpoint-"):
        find_checkpoint(tmp_path, "last")
    make(tmp_path, 9, 10)
    assert find_checkpoint(tmp_path, "True").endswith("checkpoint-10")  # 10 after 9
    assert find_checkpoint("", str(tmp_path)) == str(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_checkpoint("", str(tmp_path / "x"))
    with pytest.raises(InputError, match="checkpoint-10 is left from a run that did not end"):
        find_checkpoint(tmp_path, None)


def test_an_incomplete_checkpoint_is_left_out(tmp_path, caplog):
    make(tmp_path, 5)
    make(tmp_path, 7, complete=False)
    assert find_checkpoint(tmp_path, "last").endswith("checkpoint-5")
    assert "checkpoint-7 was not written to its end" in caplog.text
    assert latest_checkpoint(tmp_path).endswith("checkpoint-5")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5"]
    assert latest_checkpoint(tmp_path / "none") is None


def test_no_process_exits_on_sigterm_before_the_main_process_does(monkeypatch):
    monkeypatch.setattr(checkpoints, "broadcast", lambda value: False)  # from the main process
    callback = checkpoints.SaveAndExitOnSigterm()
    callback.asked = True
    callback.on_save(None, TrainerState(), None)
    assert not callback.asked


@pytest.mark.parametrize("script", [run_finetune, run_itpt])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_broken_off_gives_the_signal_back(
    script, error, tiny_bert, topic_files, tmp_path, monkeypatch
):
    """The stop button of a notebook; its kernel must still end on SIGTERM."""

    class Stop(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            assert signal.getsignal(signal.SIGTERM) != before
            raise error("stop")

    name = "ClassifierTrainer" if script is run_finetune else "MaskedLMTrainer"
    own = getattr(script, name)

    class Stopped(own):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.add_callback(Stop())

    monkeypatch.setattr(script, name, Stopped)
    before = signal.getsignal(signal.SIGTERM)
    arguments = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]}
    arguments |= {"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True}
    with pytest.raises(error, match="stop"):
        script.main(arguments)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_after_the_last_step_goes_to_who_had_it_before():
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        callback = checkpoints.SaveAndExitOnSigterm()
        callback.on_train_begin(None, TrainerState(), None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert callback.asked and not got
        callback.on_train_end(None, TrainerState(), None)
        assert got == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


class Preempt(TrainerCallback):
    """The machine is taken away in a given step."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_leaves_a_checkpoint_from_which_the_run_ends_alike(
    tiny_bert, topic_files, tmp_path, monkeypatch, caplog
):
    arguments = {
        "model_name_or_path": tiny_bert,
        "train_file": topic_files["train"],
        "test_file": topic_files["test"],
        "id_column_name": "id",
        "learning_rate": 3e-3,
        "num_train_epochs": 3,
        "ema_decay": 0.9,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    run_finetune.main(arguments | {"output_dir": str(tmp_path / "whole")})
    before = signal.getsignal(signal.SIGTERM)
    own = run_finetune.trainer.early_stopping
    monkeypatch.setattr(run_finetune.trainer, "early_stopping", lambda p: [*own(p), Preempt(13)])
    with pytest.raises(SystemExit) as left:
        run_finetune.main(arguments | {"output_dir": str(tmp_path / "cut")})
    assert left.value.code == 143 and "left after step 14" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in checkpoints_in(tmp_path / "cut")][-1] == "checkpoint-14"
    assert not (tmp_path / "cut" / "all_results.json").exists()
    monkeypatch.setattr(run_finetune.trainer, "early_stopping", own)
    again = {"output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "last"}
    run_finetune.main(arguments | again)
    for name in ("predictions_test.csv", "predictions_validation.csv", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert signal.getsignal(signal.SIGTERM) == before
