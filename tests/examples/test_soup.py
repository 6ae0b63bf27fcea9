"""Soups: the average of weights, and what is let into it."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import BASICS, ROOT
from safetensors.numpy import load_file, save_file

import run_finetune
from bertchain.data.contamination import read_fingerprints
from bertchain.errors import InputError

sys.path.insert(0, str(ROOT / "examples"))
import soup


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert, topic_files):
    """Three runs of one head: two rates, and one whose weights are worth nothing."""
    folder = tmp_path_factory.mktemp("runs")
    given = {**BASICS, "model_name_or_path": tiny_bert, "num_train_epochs": 2}
    given |= {"train_file": topic_files["train"], "test_file": topic_files["test"]}
    for name, rate in (("a", 3e-3), ("b", 4e-3), ("spoilt", 1e-6)):
        run_finetune.main({**given, "learning_rate": rate, "output_dir": str(folder / name)})
    weights = load_file(folder / "spoilt" / "model.safetensors")
    spoilt = {name: -30 * value for name, value in weights.items()}
    save_file(spoilt, folder / "spoilt" / "model.safetensors", {"format": "pt"})
    return folder


def go(runs, tmp_path, monkeypatch, *names):
    paths = [str(runs / name) for name in names]
    monkeypatch.setattr(sys, "argv", ["soup.py", *paths, "--output_dir", str(tmp_path / "o")])
    soup.main()
    return json.loads((tmp_path / "o" / "all_results.json").read_text())


def test_the_soup_is_the_mean_of_the_weights_that_do_no_harm(runs, tmp_path, monkeypatch):
    found = go(runs, tmp_path, monkeypatch, "spoilt", "a", "b")
    scores = {name: own["accuracy"] for name, own in found["scores"].items()}
    a, b = str(runs / "a"), str(runs / "b")
    assert str(runs / "spoilt") not in found["soup_of"]
    assert scores[soup.SOUP] >= max(scores[a], scores[b]) > scores[soup.ALL]
    own = json.loads((runs / "a" / "all_results.json").read_text())
    assert scores[a] == pytest.approx(own["eval_accuracy"])
    weights = load_file(tmp_path / "o" / "model.safetensors")
    parts = [load_file(f"{path}/model.safetensors") for path in found["soup_of"]]
    for name, value in weights.items():
        mean = np.mean([part[name].astype(np.float64) for part in parts], axis=0)
        np.testing.assert_allclose(value, mean, atol=1e-6)
    report = (tmp_path / "o" / "report.md").read_text()
    assert soup.MEAN in report and "in the soup" in report


def test_it_predicts_as_any_classifier_and_knows_what_it_was_trained_on(
    runs, topic_files, tmp_path, monkeypatch
):
    found = go(runs, tmp_path, monkeypatch, "a", "b")
    given = {"model_name_or_path": str(tmp_path / "o"), "test_file": topic_files["test"]}
    given |= {"id_column_name": "id", "use_cpu": True, "output_dir": str(tmp_path / "p")}
    run_finetune.main({**given, "disable_tqdm": True})
    tables = [pd.read_csv(tmp_path / name / "predictions_test.csv") for name in ("o", "p")]
    pd.testing.assert_frame_equal(*tables, atol=1e-6)
    own = pd.read_csv(tmp_path / "o" / "predictions_validation.csv")
    truth = pd.read_csv(topic_files["train"]).set_index("id")["label"][own["id"]]
    assert found["eval_accuracy"] == pytest.approx((own["prediction"] == truth.to_numpy()).mean())
    seen, each = (read_fingerprints(path) for path in (tmp_path / "o", runs / "a"))
    np.testing.assert_array_equal(seen["trained_on.npy"], each["trained_on.npy"])


def test_checkpoints_of_one_run(runs, tmp_path, monkeypatch):
    arguments = (runs / "a" / "run_args.yaml").read_text()
    (tmp_path / "args.yaml").write_text(arguments)
    kept = {"keep_checkpoints": True, "save_total_limit": 9, "output_dir": str(tmp_path / "kept")}
    run_finetune.main(str(tmp_path / "args.yaml"), **kept)
    saved = sorted(map(str, (tmp_path / "kept").glob("checkpoint-*")))
    assert len(saved) == 2
    found = go(runs, tmp_path, monkeypatch, *saved)
    assert {*found["soup_of"]} <= {*saved} == {*found["scores"]} - {soup.MEAN, soup.ALL, soup.SOUP}


def test_what_cannot_be_averaged_is_refused(runs, tiny_bert, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="give two runs or more"):
        go(runs, tmp_path, monkeypatch, "a")
    with pytest.raises(InputError, match="not an output folder of run_finetune"):
        go(runs, tmp_path, monkeypatch, "a", tiny_bert)
    arguments = (runs / "a" / "run_args.yaml").read_text()
    given = {"output_dir": str(tmp_path / "cls"), "token_pooling": "cls", "num_train_epochs": 1}
    (tmp_path / "args.yaml").write_text(arguments)
    run_finetune.main(str(tmp_path / "args.yaml"), **given)
    with pytest.raises(InputError, match=r"cls: its token_pooling is not that of the first"):
        go(runs, tmp_path, monkeypatch, "a", str(tmp_path / "cls"))
    assert not (tmp_path / "o").exists()
