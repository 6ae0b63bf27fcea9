"""Which checkpoints a run may go on from."""

import pytest

from checkpoints import WHOLE, checkpoints_in, find_checkpoint, go_on_from
from command_line import InputError


def make(folder, *steps, whole=True):
    for step in steps:
        (folder / f"checkpoint-{step}").mkdir()
        if whole:
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


def test_a_half_written_checkpoint_is_left_out(tmp_path, caplog):
    make(tmp_path, 5)
    make(tmp_path, 7, whole=False)
    assert find_checkpoint(tmp_path, "last").endswith("checkpoint-5")
    assert "checkpoint-7 was not written to its end" in caplog.text
    assert go_on_from(tmp_path).endswith("checkpoint-5")
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-5"]
    assert go_on_from(tmp_path / "none") is None
