"""Members of a run, its manifest, lock, checkpoints and results; folders of earlier versions."""

import json
import os

import numpy as np
import pytest
import yaml
from datasets import Dataset

from bertchain.arguments.competition import FoldArguments
from bertchain.arguments.finetuning import RunArguments
from bertchain.competition.manifests import check_manifest, make_manifest
from bertchain.competition.run_folder import (
    Member,
    RunFolder,
    member_seed,
    plan_members,
    read_members,
    write_manifest,
)
from bertchain.data.labels import LabelSpec
from bertchain.data.tables import Table
from bertchain.data.tasks import Task
from bertchain.errors import InputError
from bertchain.runtime import locks
from bertchain.runtime.checkpoints import mark_whole

FOLDS = np.array([0, 1, 2, 0])
MANIFEST = make_manifest({"model_name_or_path": "bert", "learning_rate": 1e-3}, 42)


def plan(assigned, **options):
    if assigned is not None:
        options["num_folds"] = 3
    return plan_members(assigned, FoldArguments(**options), 42, "bert")


def write_checkpoints(folder, *steps, complete=True):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        if complete:
            mark_whole(folder / f"checkpoint-{step}", {})


def test_which_members_a_run_has():
    members = plan(FOLDS)
    assert [m.name for m in members] == ["fold-0", "fold-1", "fold-2"]
    assert len({m.seed for m in members} | {42}) == 4  # a seed of its own for each
    assert members[1].seed == member_seed(42, 1) and members[1].seed < 2**31
    names = [m.name for m in plan(FOLDS, folds=["2"], seeds=[7, 8])]
    assert names == ["seed-7-fold-2", "seed-8-fold-2"]
    assert plan(None, seeds=[5]) == [Member("seed-5", None, 5, "bert")]
    assert plan(None) == [Member("", None, 42, "bert")]
    with pytest.raises(InputError, match="--folds 9: there are 0, 1, 2"):
        plan(FOLDS, folds=["9"])


def test_rows_of_a_fold():
    rows = Dataset.from_dict({"id": list("abcd"), "labels": [0, 1, 0, 1]})
    spec = LabelSpec("single_label", ("n", "y"), ("label",))
    task = Task(spec, {"train": rows, "test": rows}, {}, folds=FOLDS)
    splits = task.for_fold(0, {"fraction": None, "per_class": None}, seed=0)
    assert splits["train"]["id"][:] == ["b", "c"] and splits["validation"]["id"][:] == ["a", "d"]
    assert splits["test"]["id"][:] == list("abcd")


def test_the_folder_is_locked_and_a_manifest_that_differs_is_refused(tmp_path):
    members = plan(FOLDS)
    with RunFolder(tmp_path, members, MANIFEST, RunArguments()) as run:
        assert run.unfinished() == members and read_members(tmp_path) == []
        run.folder_of(members[0]).mkdir()
        (run.folder_of(members[0]) / "all_results.json").write_text("{}")
    with RunFolder(tmp_path, members, MANIFEST, RunArguments()) as run:
        assert run.unfinished() == members[1:]
        assert [m.checkpoint for m in run.trained()] == [str(tmp_path / "fold-0")]
    other = make_manifest({"model_name_or_path": "bert", "learning_rate": 2e-3}, 42)
    for _ in range(2):  # refused, and not left locked
        with (
            pytest.raises(InputError, match=r"--learning_rate was 0\.001 and is 0\.002"),
            RunFolder(tmp_path, members, other, RunArguments()),
        ):
            pass


def test_the_content_of_every_file_that_is_read_is_in_the_manifest(tmp_path):
    names = ("train_file", "validation_file", "test_file", "pseudo_label_file")
    for name in names:
        (tmp_path / name).write_text("text,label\na,b\n")
    given = {"model_name_or_path": "bert"} | {name: str(tmp_path / name) for name in names}
    before = make_manifest(given, 42)
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "all_results.json").write_text("{}")
    write_manifest(tmp_path, before, [])
    check_manifest(tmp_path, make_manifest(given, 42))
    for name in names:
        (tmp_path / name).write_text("text,label\nb,a\n")
        with pytest.raises(InputError, match=f"--{name} holds something else now"):
            check_manifest(tmp_path, make_manifest(given, 42))
        (tmp_path / name).write_text("text,label\na,b\n")


def test_rows_of_a_named_data_set_are_in_the_manifest(tmp_path):
    def manifest(*labels):
        rows = Dataset.from_dict({"text": ["a", "b"], "label": list(labels)})
        given = {"model_name_or_path": "bert", "dataset_name": "some/set"}
        return make_manifest(given, 42, {"train": Table(rows, "some/set (train)")})

    assert manifest(0, 1) == manifest(0, 1) != manifest(1, 0)


def test_checkpoints_go_to_a_scratch_folder_named_by_the_manifest(tmp_path):
    member, out, scratch = plan(FOLDS)[1], tmp_path / "out", tmp_path / "scratch"

    def scratch_of(checkpoint_dir=str(scratch), **changes):
        manifest = make_manifest({"model_name_or_path": "bert"} | changes, 42)
        options = RunArguments(checkpoint_dir=checkpoint_dir)
        return RunFolder(out, plan(FOLDS), manifest, options).scratch_of(member)

    first = scratch_of(learning_rate=1e-3)
    assert first.parent.parent == scratch and first.parent.name.startswith("out-")
    assert first.name == "fold-1"
    assert scratch_of(learning_rate=1e-3, disable_tqdm=True, seeds=[7]) == first  # the same models
    assert scratch_of(learning_rate=2e-3) != first
    assert scratch_of(checkpoint_dir=None) == out / "fold-1"
    predicts = RunFolder(out, plan(FOLDS), None, RunArguments(checkpoint_dir=str(scratch)))
    assert predicts.scratch_of(member) == out / "fold-1"


def test_two_runs_do_not_share_a_folder_of_checkpoints(tmp_path, monkeypatch):
    """Output folders of one name in two places, with the same manifest."""
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    options = RunArguments(checkpoint_dir=str(tmp_path / "scratch"))
    one, other = (RunFolder(tmp_path / p / "out", plan(FOLDS), MANIFEST, options) for p in "ab")
    assert one.scratch == other.scratch
    with one:
        with pytest.raises(InputError, match=r"--checkpoint_dir .*out-.* is in use"), other:
            pass
        assert not (tmp_path / "b" / "out" / ".in_use.lock").exists()
    with other:
        pass


def test_the_rows_of_a_step_are_in_the_manifest_and_not_how_they_are_shared_out(
    tmp_path, monkeypatch
):
    def manifest(batch, accumulation, processes, **more):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        shares = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        return make_manifest({"model_name_or_path": "bert"} | shares | more, 42)

    before = manifest(8, 1, 1)
    assert before == manifest(4, 1, 2) == manifest(2, 2, 2) == manifest(4, 2, 1, use_cpu=True)
    (tmp_path / "fold-0").mkdir()
    (tmp_path / "fold-0" / "all_results.json").write_text("{}")
    write_manifest(tmp_path, before, [])
    check_manifest(tmp_path, manifest(2, 2, 2))
    with pytest.raises(InputError, match=r"number of rows of a step .* was 8 and is 16"):
        check_manifest(tmp_path, manifest(8, 1, 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"fold": 1', '"fold": 2'),
        lambda text: text.replace('"digest"', '"digesu"'),
        lambda text: "[]",
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, damage):
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "all_results.json").write_text("{}")
    write_manifest(tmp_path, MANIFEST, plan(FOLDS))
    assert [member.name for member in read_members(tmp_path)] == ["fold-1"]
    path = tmp_path / "manifest.json"
    path.write_text(damage(path.read_text()))
    for read in (read_members, lambda folder: check_manifest(folder, MANIFEST)):
        with pytest.raises(InputError, match=r"it is not as run_finetune\.py wrote it"):
            read(tmp_path)


def test_one_of_several_members_resumes_from_its_latest_checkpoint(tmp_path):
    members = plan(FOLDS)
    run = RunFolder(tmp_path, members, MANIFEST, RunArguments())
    own = run.scratch_of(members[0])
    write_checkpoints(own, 9, 10)
    write_checkpoints(own, 12, complete=False)
    assert run.resume_from(members[0], None) == str(own / "checkpoint-10")
    assert sorted(os.listdir(own)) == ["checkpoint-10", "checkpoint-9"]
    assert run.resume_from(members[1], None) is None


def test_a_single_member_resumes_as_asked(tmp_path):
    (member,) = plan(None)
    run = RunFolder(tmp_path, [member], MANIFEST, RunArguments())
    assert not run.has_several and run.resume_from(member, None) is None
    write_checkpoints(tmp_path, 3)
    assert run.resume_from(member, "last") == str(tmp_path / "checkpoint-3")
    with pytest.raises(InputError, match="checkpoint-3 is left from a run that did not end"):
        run.resume_from(member, None)


def test_checkpoints_of_trained_members_are_removed_unless_they_are_kept(tmp_path):
    members = plan(FOLDS)
    for keep in (True, False):
        with RunFolder(tmp_path, members, MANIFEST, RunArguments(keep_checkpoints=keep)) as run:
            for member in members[:2]:
                if keep:
                    write_checkpoints(run.scratch_of(member), 3)
            (run.folder_of(members[0]) / "all_results.json").write_text("{}")
            assert run.unfinished() == members[1:]  # a kill may have left the first one's
            run.remove_checkpoints(members[1])
            left = [path.parent.name for path in sorted(tmp_path.glob("*/checkpoint-3"))]
            assert left == (["fold-0", "fold-1"] if keep else [])


def test_results_are_written_with_arguments_seed_and_versions(tmp_path):
    with RunFolder(tmp_path / "out", plan(None), None, RunArguments()) as run:
        run.write_results({"test_accuracy": 0.5}, {"learning_rate": 1e-3}, 42)
    written = json.loads((run.folder / "all_results.json").read_text())
    assert written["test_accuracy"] == 0.5 and written["seed"] == 42
    assert "torch" in written["versions"]
    assert yaml.safe_load((run.folder / "run_args.yaml").read_text()) == {"learning_rate": 1e-3}
    assert sorted(os.listdir(run.folder)) == ["all_results.json", "run_args.yaml"]  # no lock


def test_only_the_main_process_locks_and_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with RunFolder(tmp_path / "out", plan(FOLDS), MANIFEST, RunArguments()) as run:
        assert run.unfinished() == run.members
        run.write_results({}, {}, 42)
    assert os.listdir(tmp_path) == []


def test_a_run_of_an_earlier_version_predicts_and_is_not_continued(tmp_path):
    """Its manifest was plan.json, with parts in place of members."""
    parts = [{"name": f"fold-{k}", "fold": k, "seed": k} for k in range(3)]
    plan_file = {"arguments": {}, "files": {}, "seed": 42, "parts": parts}
    (tmp_path / "plan.json").write_text(json.dumps(plan_file))
    (tmp_path / "fold-1").mkdir()
    (tmp_path / "fold-1" / "all_results.json").write_text("{}")
    assert read_members(tmp_path) == [Member("fold-1", 1, 1, str(tmp_path / "fold-1"))]
    manifest = make_manifest({"model_name_or_path": "bert"}, 42)
    with (
        pytest.raises(InputError, match="holds a run of an earlier version"),
        RunFolder(tmp_path, plan(FOLDS), manifest, RunArguments()),
    ):
        pass
    assert not (tmp_path / "manifest.json").exists()
