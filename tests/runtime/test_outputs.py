"""What may lie in an output folder when a run begins, and where inputs may lie."""

import os

import pytest

from bertchain.errors import InputError
from bertchain.runtime.checkpoints import checkpoints_in, find_checkpoint, mark_whole
from bertchain.runtime.files import atomic_files, atomic_write
from bertchain.runtime.outputs import (
    RESULTS,
    UNFINISHED,
    WRITING,
    check_apart,
    check_unused,
    claim,
)


def fill(folder, *names):
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ((), None),
        (
            ("notes.txt", "predictions_test.csv", "run-1/all_results.json"),
            None,
        ),
        (("history.csv", "checkpoint-4/"), None),
        (("model.safetensors", RESULTS, UNFINISHED), None),
        ((RESULTS,), "a run that has ended"),
        ((RESULTS, "features/a.npy"), "--features_dir .*features reads its features again"),
        (("config.json", "model-00001-of-2.safetensors"), "holds a model"),
        (("pytorch_model.bin", "checkpoint-4/a"), "holds a model"),
        (("manifest.json", UNFINISHED), "a run with folds or seeds"),
        (("plan.json",), "a run with folds or seeds"),
    ],
)
def test_what_may_lie_in_the_folder_of_a_new_run(names, says, tmp_path):
    fill(tmp_path, *names)
    if says is None:
        check_unused(tmp_path)
        return
    with pytest.raises(InputError, match=f"--output_dir .*{says}.*choose another|{says}"):
        check_unused(tmp_path)
    with pytest.raises(InputError, match=says), claim(tmp_path):
        pass
    assert not (tmp_path / UNFINISHED).exists() or UNFINISHED in names
    with pytest.raises(InputError, match=says):
        check_unused(tmp_path, str(tmp_path.parent / "other" / "checkpoint-4"))
    for asked in ("last", "True", str(tmp_path / "checkpoint-4")):
        check_unused(tmp_path, asked)


def test_a_folder_is_marked_until_its_run_ends_well(tmp_path):
    out = tmp_path / "out"
    with claim(out):
        assert (out / UNFINISHED).is_file()
    assert not out.exists()
    with pytest.raises(InputError), claim(out):
        raise InputError("refused before anything was written")
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt), claim(out):
        fill(out, "model.safetensors", RESULTS)
        raise KeyboardInterrupt
    assert (out / UNFINISHED).is_file()
    with pytest.raises(InputError), claim(out):
        raise InputError("refused, but the mark is of an earlier run")
    with claim(out):
        pass
    assert sorted(os.listdir(out)) == [RESULTS, "model.safetensors"]
    with pytest.raises(InputError, match="has ended"), claim(out):
        pass


def test_what_killed_runs_left_half_written_is_cleared_away(tmp_path):
    stays = [".writings", "checkpoint-3/model.safetensors", f"x/{WRITING}a"]
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "a.csv") as temporary:
        assert temporary.name.startswith(WRITING) and temporary.suffix == ".csv"
        raise KeyboardInterrupt
    halves = [f"{WRITING}b.csv", f"{WRITING}c/config.json", "checkpoint-4/config.json"]
    halves += [f"encoder/{WRITING}a", f"step-5/{WRITING}a/b"]
    fill(tmp_path, *stays, *halves)
    with claim(tmp_path):
        assert sorted(p.name for p in checkpoints_in(tmp_path)) == ["checkpoint-3"]
    found = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()]
    assert sorted(found) == sorted(stays)


def test_a_folder_of_a_user_is_no_checkpoint(tmp_path):
    fill(tmp_path, "checkpoint-3/a", "checkpoint-notes/a", "checkpoint-3.txt")
    assert [p.name for p in checkpoints_in(tmp_path)] == ["checkpoint-3"]
    check_unused(tmp_path)


def test_a_run_begins_anew_where_no_checkpoint_is_whole(tmp_path):
    fill(tmp_path, "checkpoint-4/config.json", "checkpoint-notes/x")
    assert find_checkpoint(tmp_path, None) is None
    with pytest.raises(InputError, match="leave it out, and the run begins anew"):
        find_checkpoint(tmp_path, "last")
    fill(tmp_path, "checkpoint-8/model.safetensors")  # of these scripts, or of others?
    with pytest.raises(InputError, match="checkpoint-8 is not of these scripts"):
        find_checkpoint(tmp_path, None)
    fill(tmp_path, UNFINISHED)
    assert find_checkpoint(tmp_path, None) is None
    fill(tmp_path, "checkpoint-6/model.safetensors")
    mark_whole(tmp_path / "checkpoint-6", {})
    with pytest.raises(InputError, match=r"checkpoint-6 .*--resume_from_checkpoint last"):
        find_checkpoint(tmp_path, None)
    assert find_checkpoint(tmp_path, "last") == str(tmp_path / "checkpoint-6")


@pytest.mark.parametrize(
    ("output", "given", "how"),
    [
        ("out", "in", None),
        ("in/../out", "in", None),
        ("model/probed", "model/encoder", None),
        ("model", "model2", None),
        ("in", "in", "is"),
        ("out/../in", "in/", "is"),
        ("link", "in", "is"),
        (".", "train.csv", "holds"),
        ("in", "in/encoder", "holds"),
        ("in/probed", "in", "lies in"),
        ("link/probed", "in", "lies in"),
    ],
)
def test_outputs_lie_beside_inputs(output, given, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, "in/encoder/config.json")
    os.symlink("in", "link")
    if how is None:
        check_apart(output, models=["/other", given], train_file=None)
        return
    with pytest.raises(InputError, match=f"--output_dir {output} {how} --models {given}; choose"):
        check_apart(output, train_file=None, models=["/other", given])


def test_files_get_the_mode_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_files(tmp_path) as temporary:
            fill(temporary, "encoder/model.safetensors")
            (temporary / "encoder" / "model.safetensors").chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert (tmp_path / "encoder" / "model.safetensors").stat().st_mode & 0o777 == 0o640
