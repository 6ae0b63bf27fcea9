"""Export to ONNX: the predictions of run_finetune.py, in fp32 and in int8."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, make_rows
from transformers import AutoModel, AutoTokenizer

import run_finetune
from bertchain.competition import ensemble
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier, DocumentClassifierConfig, strip_encoder
from bertchain.models.windows import WindowSpec, find_special_tokens
from bertchain.training.prediction import read_predictions

sys.path.insert(0, str(ROOT / "examples"))
import export_onnx

SINGLE = LabelSpec("single_label", ("animals", "moods", "places"), ("label",))
SEVERAL = LabelSpec("multi_label", ("animals", "moods", "places"), ("animals", "moods", "places"))
PAIR = ["title", "text"]
NUMBER = LabelSpec("regression", ("y",), ("y",), None, (3.0,), (2.0,))


@pytest.fixture
def onnx():
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")


@pytest.fixture
def rows(tmp_path):
    table = pd.DataFrame(make_rows(40, seed=3, words=(3, 40)))
    table["title"] = table["text"].str.split().str[:2].str.join(" ")
    table["y"] = np.arange(40) % 5
    for name in SEVERAL.names:
        table[name] = (table["label"] == name).astype(int)
    table.to_csv(tmp_path / "test.csv", index=False)
    return str(tmp_path / "test.csv")


def write_classifier(folder, four_blocks, spec, seed=0, **config):
    """A classifier of random weights whose probabilities are far apart."""
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(four_blocks)
    encoder = strip_encoder(AutoModel.from_pretrained(four_blocks))
    fields = {"layers": [4], "token_pooling": "mean", "encoder_config": encoder.config}
    fields |= {"windows": WindowSpec("hierarchical", 12).to_dict(), **spec.config_fields()}
    fields["special_tokens"] = find_special_tokens(tokenizer).to_dict()
    model = DocumentClassifier(DocumentClassifierConfig(**fields | config), encoder)
    model.head.weight.data.mul_(40)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def exported(model, rows, folder, **more):
    """Predictions that the export writes, and its table by precision."""
    given = {"model_name_or_path": model, "test_file": rows, "id_column_name": "id"}
    results = export_onnx.main({**given, "output_dir": str(folder), **more})
    table = pd.DataFrame(results["rows"]).set_index("precision")
    return folder / "predictions_test.csv", table


def predicted(model, rows, folder, **more):
    given = {"model_name_or_path": model, "test_file": rows, "id_column_name": "id"}
    run_finetune.main({**given, "output_dir": str(folder), "use_cpu": True, **more})
    return folder / "predictions_test.csv"


@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize(
    ("spec", "config", "flags"),
    [
        (SINGLE, {"segments_per_forward": 3}, {}),
        (SINGLE, {"token_pooling": "cls", "segment_pooling": "attention"}, {}),
        (
            SINGLE,
            {"token_pooling": "bilstm"},
            {"text_column_names": PAIR, "text_pair": True},
        ),
        (NUMBER, {"layers": [1, 3], "layer_pooling": "weighted"}, {"label_column_name": "y"}),
    ],
    ids=["chunks", "cls", "pair", "number"],
)
def test_predictions_are_those_of_pytorch(spec, config, flags, rows, four_blocks, tmp_path):
    """In fp32 to rounding, in int8 within what its table says; of documents of several windows."""
    model = write_classifier(tmp_path / "model", four_blocks, spec, **config)
    whole, table = exported(model, rows, tmp_path / "whole", precision="fp32", **flags)
    ids, found = read_predictions(whole, spec)
    wanted_ids, wanted = read_predictions(predicted(model, rows, tmp_path / "p", **flags), spec)
    assert ids == wanted_ids and np.ptp(wanted) > 0.3
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert table.loc["fp32", "largest difference"] < 1e-5
    again, _ = exported(str(tmp_path / "whole"), rows, tmp_path / "int8", **flags)
    off = np.abs(read_predictions(again, spec)[1] - wanted).max()
    scale = spec.target_scale[0] if spec is NUMBER else 1.0
    assert 0 < off < 0.1 * scale
    assert table.loc["int8", "largest difference"] == pytest.approx(off / scale, abs=1e-6)
    assert (table["rows a second"] > 0).all()


@pytest.mark.usefixtures("onnx")
def test_members_are_averaged_and_decided_by_the_thresholds_of_their_run(
    rows, four_blocks, tmp_path
):
    run = tmp_path / "run"
    members = [{"name": f"fold-{k}", "fold": k, "seed": 1} for k in range(2)]
    for seed, member in enumerate(members):
        folder = run / member["name"]
        write_classifier(folder, four_blocks, SEVERAL, seed)
        (folder / "all_results.json").write_text("{}")
    (run / "manifest.json").write_text(json.dumps({"members": members}))
    ensemble.write_thresholds(run, Thresholds("per_label", (0.2, 0.5, 0.8)))
    flags = {"label_column_name": list(SEVERAL.names)}
    sample = pd.DataFrame({"id": [f"r{i}" for i in range(40)][::-1], "moods": 0, "animals": 0})
    sample.assign(places=0).to_csv(tmp_path / "sample.csv", index=False)
    flags["sample_submission"] = str(tmp_path / "sample.csv")
    wanted = predicted(str(run), rows, tmp_path / "p", **flags)
    found, table = exported(str(run), rows, tmp_path / "o", precision="fp32", **flags)
    pd.testing.assert_frame_equal(pd.read_csv(found), pd.read_csv(wanted), atol=1e-5)
    submissions = [pd.read_csv(path.parent / "submission.csv") for path in (found, wanted)]
    pd.testing.assert_frame_equal(*submissions)
    scored = json.loads((tmp_path / "p" / "all_results.json").read_text())
    assert table.loc["pytorch", "lrap"] == pytest.approx(scored["test_lrap"], abs=1e-6)
    assert table.loc["fp32", "difference"] == pytest.approx(0, abs=1e-6)
    report = (tmp_path / "o" / "report.md").read_text()
    assert "rows a second" in report and "± 95 %" in report
    flags = {"precision": "fp32", **flags}
    later, _ = exported(str(tmp_path / "o"), rows, tmp_path / "later", **flags)
    assert later.read_text() == found.read_text()


def refused(message, **given):
    with pytest.raises(InputError, match=message):
        export_onnx.main(given)


def test_what_cannot_be_exported_is_refused(rows, four_blocks, tmp_path, monkeypatch):
    model = write_classifier(tmp_path / "model", four_blocks, SINGLE)
    out = str(tmp_path / "o")
    given = {"model_name_or_path": model, "test_file": rows, "output_dir": out}
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: None)
    refused("pip install onnxruntime", **given)
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: True)
    refused("no output folder of run_finetune.py", **given | {"model_name_or_path": four_blocks})
    refused("--output_dir .* is --model_name_or_path", **given | {"output_dir": model})
    refused("give --test_file", **given | {"train_file": rows})
    refused("--precision int4 is not one of fp32, int8", **given, precision="int4")
    words = write_classifier(tmp_path / "words", four_blocks, SINGLE, num_spans=1)
    refused("classifies words", **given | {"model_name_or_path": words})
    assert not [path for path in (tmp_path / "o").rglob("*") if path.is_file()]


@pytest.mark.usefixtures("onnx")
def test_a_graph_that_gives_other_logits_is_not_written(rows, four_blocks, tmp_path, monkeypatch):
    model = write_classifier(tmp_path / "model", four_blocks, SINGLE)
    monkeypatch.setattr(export_onnx, "TOLERANCE", -1.0)
    given = {"model_name_or_path": model, "test_file": rows, "output_dir": str(tmp_path / "o")}
    refused("as ONNX its logits are off by", **given)
    assert not [*(tmp_path / "o").rglob("*.onnx")]
