"""One run, one folder: predicting with a run, running again, and what killed runs leave."""

import importlib
import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import BASICS, ROOT, make_rows

import run_finetune
import run_itpt
import run_probe
from bertchain.data.contamination import (
    HASH_FILE,
    TRAINED_FILE,
    read_fingerprints,
    write_fingerprint,
)
from bertchain.errors import InputError

FAST = BASICS | {"num_train_epochs": 1, "save_strategy": "no", "load_best_model_at_end": False}


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def other_rows(tmp_path):
    rows = pd.DataFrame(make_rows(19, seed=2)).drop(columns="label")
    rows.assign(id="other" + rows["id"]).to_csv(tmp_path / "other.csv", index=False)
    return str(tmp_path / "other.csv")


@pytest.fixture
def trained(tiny_bert, topic_files, tmp_path):
    """Arguments of a run, which has ended."""
    files = {"train_file": topic_files["train"], "test_file": topic_files["test"]}
    arguments = {"model_name_or_path": tiny_bert, **files, **FAST}
    arguments |= {"output_dir": str(tmp_path / "finetuned"), "num_folds": 2}
    run_finetune.main(arguments)
    return arguments


def test_predictions_of_new_rows_get_a_folder_of_their_own(
    trained, other_rows, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "finetuned"
    before = contents(folder)
    new = {"model_name_or_path": "finetuned", "test_file": other_rows, "id_column_name": "id"}
    new |= {"use_cpu": True, "disable_tqdm": True}
    run_finetune.main(new)
    assert contents(folder) == before
    assert len(pd.read_csv("predicted/predictions_test.csv")) == 19
    for where, how in (("finetuned", "is"), ("finetuned/new", "lies in"), (".", "holds")):
        with pytest.raises(InputError, match=f"--output_dir {where} {how} --"):
            run_finetune.main(new | {"output_dir": where})
    with pytest.raises(InputError, match="--output_dir predicted holds a run that has ended"):
        run_finetune.main(new)
    run_finetune.main(trained)
    assert "done before: fold-0, fold-1" in caplog.text
    after = contents(folder)
    assert after.keys() == before.keys()
    assert after["predictions_test.csv"] == before["predictions_test.csv"]


def test_a_member_whose_predictions_are_others_is_trained_again(trained, tmp_path, caplog):
    folder = tmp_path / "finetuned"
    before = contents(folder)
    (folder / "fold-1" / "predictions_test.csv").write_bytes(b"id,prediction\nx,moods\n")
    run_finetune.main(trained)
    assert "done before: fold-0\n" in caplog.text
    assert "predictions_test.csv is not as its training wrote it" in caplog.text
    names = ("fold-1/predictions_test.csv", "predictions_test.csv", "fold-1/model.safetensors")
    after = contents(folder)
    assert all(after[name] == before[name] for name in names)


def test_a_manifest_of_a_stranger_names_no_other_places(tiny_bert, other_rows, tmp_path):
    stranger, victim, new = (tmp_path / name for name in ("stranger", "victim", "new"))
    for folder in (stranger, victim):
        folder.mkdir()
        (folder / "all_results.json").write_text("{}")
    given = {"model_name_or_path": str(stranger), "test_file": other_rows, "use_cpu": True}
    for name in ("../victim", str(victim), "fold-0/../../victim", "", ".", "fold-1/", 3):
        content = {"members": [{"name": name, "fold": 0, "seed": 1}]}
        (stranger / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=r"manifest\.json has a member of the name"):
            run_finetune.main(given | {"output_dir": str(new)})
    assert os.listdir(victim) == ["all_results.json"] and not new.exists()


def once_more(script, arguments, folder):
    """Run again in the same folder: refused, and nothing in it changes."""
    script.main(arguments)
    before = contents(folder)
    for changes in ({}, {"seed": 7}):
        with pytest.raises(InputError, match="holds a run that has ended"):
            script.main(arguments | changes)
    assert contents(folder) == before


def test_a_second_run_does_not_write_over_the_first(tiny_bert, topic_files, tmp_path):
    common = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"], **FAST}
    out = tmp_path / "finetuned"
    once_more(run_finetune, common | {"output_dir": str(out)}, out)
    with pytest.raises(InputError, match="holds a run that has ended"):
        run_finetune.main(common | {"output_dir": str(out), "num_folds": 2})
    assert not (out / "manifest.json").exists()
    out = tmp_path / "itpt"
    del common["token_pooling"]
    once_more(run_itpt, common | {"output_dir": str(out)}, out)
    out = tmp_path / "probed"
    arguments = {"models": [f"b={tiny_bert}"], "train_file": topic_files["train"]}
    once_more(run_probe, arguments | {"output_dir": str(out), "analyses": "none"}, out)
    out, files = tmp_path / "multitask", {"train_file": topic_files["train"]}
    sys.path.insert(0, str(ROOT / "examples" / "multitask"))
    run_multitask = importlib.import_module("run_multitask")
    tasks = {"tasks": json.dumps({"a": files, "b": files}), "output_dir": str(out)}
    del common["train_file"], common["id_column_name"]
    once_more(run_multitask, common | tasks, out)


def test_a_run_that_was_killed_before_a_whole_checkpoint_begins_anew(
    tiny_bert, topic_files, tmp_path
):
    common = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"], **BASICS}
    common |= {"num_train_epochs": 1}
    own = {run_finetune: {"token_pooling": "mean"}, run_itpt: {}}
    del common["token_pooling"]
    for script, more in own.items():
        out = tmp_path / script.__name__
        (out / "checkpoint-4").mkdir(parents=True)
        (out / "checkpoint-4" / "model.safetensors").write_bytes(b"cut")
        (out / ".writing-x.csv").write_bytes(b"cut")
        (out / ".unfinished").touch()
        with pytest.raises(InputError, match="the run begins anew"):
            script.main(common | more | {"output_dir": str(out), "resume_from_checkpoint": "last"})
        script.main(common | more | {"output_dir": str(out)})
        left = {p.name for p in out.iterdir()}
        assert "all_results.json" in left
        assert not {"checkpoint-4", ".writing-x.csv", ".unfinished"} & left


def test_what_lies_in_the_start_folder_is_read_before_training(
    tiny_bert, topic_files, tmp_path, monkeypatch
):
    pytest.importorskip("peft")
    start, out, train = tmp_path / "start", tmp_path / "o", run_finetune.trainer.train
    shutil.copytree(tiny_bert, start)
    for name, number in ((HASH_FILE, 7), (TRAINED_FILE, 8)):
        write_fingerprint(start, np.array([number]), name)

    def delete_and_train(*args):
        shutil.rmtree(start)
        return train(*args)

    monkeypatch.setattr(run_finetune.trainer, "train", delete_and_train)
    given = {"model_name_or_path": str(start), "train_file": topic_files["train"]}
    given |= {"output_dir": str(out), "lora_r": 2, "save_adapter": True}
    run_finetune.main(FAST | given)
    for folder in (out, out / "encoder"):
        seen = read_fingerprints(folder)
        assert seen[HASH_FILE].tolist() == [7] and 8 in seen[TRAINED_FILE]
        assert len(seen[TRAINED_FILE]) > 100
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_weights_can_be_read_by_those_whom_the_umask_lets(tiny_bert, topic_files, tmp_path):
    common = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"], **BASICS}
    common |= {"num_train_epochs": 1, "keep_checkpoints": True, "save_strategy": "epoch"}
    before = os.umask(0o022)
    try:
        run_finetune.main(common | {"output_dir": str(tmp_path / "finetuned")})
        del common["token_pooling"]
        run_itpt.main(common | {"output_dir": str(tmp_path / "itpt"), "save_at_steps": [1]})
    finally:
        os.umask(before)
    found = sorted(tmp_path.rglob("*.safetensors"))
    assert len(found) >= 6
    assert [p for p in found if p.stat().st_mode & 0o777 != 0o644] == []
