"""The members of a run, the manifest by which it goes on, and folders of earlier versions."""

import json

import numpy as np
import pytest

from bertchain.arguments.finetuning import FoldArguments, RunArguments
from bertchain.competition.run_folder import (
    Member,
    RunFolder,
    make_manifest,
    member_seed,
    plan_members,
    read_members,
)
from bertchain.data.labels import LabelSpec
from bertchain.data.tasks import Task
from bertchain.errors import InputError


def plan(assigned, **options):
    if assigned is not None:
        options["num_folds"] = 3
    return plan_members(assigned, FoldArguments(**options), 42, "bert")


def test_which_members_a_run_has():
    folds = np.array([0, 1, 2, 0])
    members = plan(folds)
    assert [m.name for m in members] == ["fold-0", "fold-1", "fold-2"]
    assert len({m.seed for m in members} | {42}) == 4  # a seed of its own for each
    assert members[1].seed == member_seed(42, 1) and members[1].seed < 2**31
    names = [m.name for m in plan(folds, folds=["2"], seeds=[7, 8])]
    assert names == ["seed-7-fold-2", "seed-8-fold-2"]
    assert plan(None, seeds=[5]) == [Member("seed-5", None, 5, "bert")]
    assert plan(None) == [Member("", None, 42, "bert")]
    with pytest.raises(InputError, match="--folds 9: there are 0, 1, 2"):
        plan(folds, folds=["9"])


def test_rows_of_a_fold():
    from datasets import Dataset

    rows = Dataset.from_dict({"id": list("abcd"), "labels": [0, 1, 0, 1]})
    spec, folds = LabelSpec("single_label", ("n", "y"), ("label",)), np.array([0, 1, 2, 0])
    task = Task(spec, {"train": rows, "test": rows}, {}, folds=folds)
    splits = task.for_fold(0, {"fraction": None, "per_class": None}, seed=0)
    assert splits["train"]["id"][:] == ["b", "c"] and splits["validation"]["id"][:] == ["a", "d"]
    assert splits["test"]["id"][:] == list("abcd")


def test_the_folder_is_locked_and_a_manifest_that_differs_is_refused(tmp_path):
    members = plan(np.array([0, 1, 2]))
    manifest = make_manifest({"model_name_or_path": "bert", "learning_rate": 1e-3}, 42)
    with RunFolder(tmp_path, members, manifest, RunArguments()) as run:
        assert run.unfinished() == members and read_members(tmp_path) == []
        run.folder_of(members[0]).mkdir()
        (run.folder_of(members[0]) / "all_results.json").write_text("{}")
    with RunFolder(tmp_path, members, manifest, RunArguments()) as run:
        assert run.unfinished() == members[1:]
        assert [m.checkpoint for m in run.trained()] == [str(tmp_path / "fold-0")]
    other = make_manifest({"model_name_or_path": "bert", "learning_rate": 2e-3}, 42)
    for _ in range(2):  # refused, and not left locked
        with (
            pytest.raises(InputError, match=r"--learning_rate was 0\.001 and is 0\.002"),
            RunFolder(tmp_path, members, other, RunArguments()),
        ):
            pass


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
        RunFolder(tmp_path, plan(np.array([0, 1, 2])), manifest, RunArguments()),
    ):
        pass
    assert not (tmp_path / "manifest.json").exists()
