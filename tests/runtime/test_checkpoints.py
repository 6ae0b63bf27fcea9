"""Which checkpoints a run may resume from."""

import json
import os
import shutil
import signal

import pytest
from transformers import TrainerCallback, TrainerState

import run_finetune
import run_itpt
from bertchain.errors import InputError
from bertchain.runtime import checkpoints
from bertchain.runtime.checkpoints import (
    WHOLE,
    checkpoints_in,
    find_checkpoint,
    find_damage,
    latest_checkpoint,
    mark_whole,
    rotate,
)

pytestmark = pytest.mark.versions


def make(folder, *steps, complete=True):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        if complete:
            mark_whole(folder / f"checkpoint-{step}", {})


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


def write(checkpoint, best=None, **files):
    checkpoint.mkdir(exist_ok=True)
    state = {"best_model_checkpoint": best and str(checkpoint.parent / best)}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (checkpoint / name).write_bytes(files.get(name, name.encode() * 100))
    mark_whole(checkpoint, {})


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit": flip,
    "an empty file": lambda path: path.write_bytes(b""),
    "a cut file": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a longer file": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "a missing file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    write(tmp_path / "checkpoint-5")
    names = [path.name for path in (tmp_path / "checkpoint-5").iterdir() if path.name != WHOLE]
    for name in names:
        caplog.clear()
        write(tmp_path / "checkpoint-10")
        assert find_checkpoint(tmp_path, "last").endswith("checkpoint-10") and not caplog.text
        DAMAGES[damage](tmp_path / "checkpoint-10" / name)
        assert find_checkpoint(tmp_path, "last").endswith("checkpoint-5")
        assert f"checkpoint-10 {'lacks' if 'missing' in damage else 'has a damaged'} {name}" in (
            caplog.text
        )
        with pytest.raises(InputError, match=f"checkpoint-10 (lacks|has a damaged) {name}"):
            find_checkpoint(tmp_path, str(tmp_path / "checkpoint-10"))
    assert latest_checkpoint(tmp_path).endswith("checkpoint-5")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5"]
    DAMAGES[damage](tmp_path / "checkpoint-5" / "optimizer.pt")
    with pytest.raises(InputError, match=r"no whole checkpoint-.*; checkpoint-5 .* optimizer\.pt"):
        find_checkpoint(tmp_path, "last")


def test_a_checkpoint_is_marked_when_its_files_are_on_the_disk(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(checkpoints, "sync", lambda path: order.append(path.name))
    monkeypatch.setattr(checkpoints, "write_json", lambda path, _: order.append(path.name))
    for name in ("model.safetensors", "optimizer.pt"):
        (tmp_path / name).touch()
    mark_whole(tmp_path, {})
    assert order == ["model.safetensors", "optimizer.pt", WHOLE]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"files": 1}'])
def test_a_damaged_mark_marks_nothing(tmp_path, content):
    write(tmp_path / "checkpoint-5")
    write(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-10" / WHOLE).write_text(content)
    assert find_checkpoint(tmp_path, "last").endswith("checkpoint-5")


def test_a_run_cannot_go_on_without_its_best_weights(tmp_path, caplog):
    """The last checkpoint is whole; the best one, which the run would end with, is not."""
    write(tmp_path / "checkpoint-5")
    write(tmp_path / "checkpoint-10")
    write(tmp_path / "checkpoint-15", best="checkpoint-10")
    flip(tmp_path / "checkpoint-10" / "optimizer.pt")  # is not needed any more
    assert find_damage(tmp_path / "checkpoint-15") is None
    flip(tmp_path / "checkpoint-10" / "model.safetensors")
    assert find_checkpoint(tmp_path, "last").endswith("checkpoint-5")
    assert "checkpoint-10, which has a damaged model.safetensors: it is left out" in caplog.text
    shutil.rmtree(tmp_path / "checkpoint-10")
    assert find_damage(tmp_path / "checkpoint-15").endswith("checkpoint-10, which is gone")


def test_a_moved_folder_brings_its_best_checkpoint_along(tmp_path):
    (tmp_path / "old").mkdir()
    write(tmp_path / "old" / "checkpoint-5")
    write(tmp_path / "old" / "checkpoint-10", best="checkpoint-5")
    (tmp_path / "old").rename(tmp_path / "new")
    assert find_checkpoint(tmp_path / "new", "last").endswith("checkpoint-10")


def test_the_checkpoints_that_stay_are_the_one_just_written_and_the_best(tmp_path):
    def left(limit, *steps, current, best):
        folder = tmp_path / "x"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder, *steps)
        rotate(folder / f"checkpoint-{current}", best and f"elsewhere/checkpoint-{best}", limit)
        return [int(path.name.split("-")[1]) for path in checkpoints_in(folder)]

    assert left(None, 1, 2, 3, current=3, best=1) == [1, 2, 3]
    assert left(1, 1, 2, 3, current=3, best=1) == [1, 3]
    assert left(1, 1, 2, 3, current=3, best=3) == [3]
    assert left(2, 1, 2, 3, current=3, best=1) == [1, 3]
    assert left(2, 1, 2, 3, current=3, best=None) == [2, 3]
    assert left(2, 1, 2, 3, 9, current=3, best=None) == [2, 3]  # 9 was too damaged to go on from


def test_what_is_only_named_like_a_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "checkpoint-best").mkdir()
    assert checkpoints_in(tmp_path) == [] and find_checkpoint(tmp_path, None) is None


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
    with pytest.raises(SystemExit) as left:
        run_finetune.main(arguments, output_dir=str(tmp_path / "cut"), callbacks=Preempt(13))
    assert left.value.code == 143 and "left after step 14" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in checkpoints_in(tmp_path / "cut")][-1] == "checkpoint-14"
    assert not (tmp_path / "cut" / "all_results.json").exists()
    again = {"output_dir": str(tmp_path / "cut"), "resume_from_checkpoint": "last"}
    run_finetune.main(arguments | again)
    names = ("predictions_test.csv", "predictions_validation.csv", "model.safetensors")
    for name in (*names, "history.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert signal.getsignal(signal.SIGTERM) == before
