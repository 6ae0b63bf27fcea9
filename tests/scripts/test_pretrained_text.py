"""What fine-tuning and probing take over from further pretraining: the fingerprint, the pooler."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import run_finetune
import run_itpt
import run_probe
from bertchain.data import contamination
from bertchain.data.contamination import TRAINED_FILE, count_seen, hash_texts, read_fingerprint
from bertchain.errors import InputError
from bertchain.models.loading import load_classifier, load_encoder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, tiny_bert, topic_files):
    """A checkpoint that has seen the training text and four documents of the test set."""
    folder = tmp_path_factory.mktemp("pretrained")
    test = pd.read_csv(topic_files["test"])
    train = pd.read_csv(topic_files["train"])
    leaked = test["text"][:4].str.upper() + " !"
    pd.DataFrame({"text": [*train["text"], *leaked]}).to_csv(folder / "text.csv", index=False)
    run_itpt.main(
        {
            "model_name_or_path": tiny_bert,
            "train_file": [str(folder / "text.csv")],
            "validation_split": 0.01,  # one or two documents; see that none of the four is among
            "seed": 3,
            "max_steps": 2,
            "keep_pooler": True,
            "output_dir": str(folder / "itpt"),
            "use_cpu": True,
            "disable_tqdm": True,
        }
    )
    return folder / "itpt"


def finetune(path, files, out, **arguments):
    fields = {
        "model_name_or_path": str(path),
        "train_file": files["train"],
        "test_file": files["test"],
        "id_column_name": "id",
        "max_steps": 2,
        "output_dir": str(out),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return run_finetune.main({**fields, **arguments})


def test_scores_on_text_that_was_pretrained_on_are_transductive(
    pretrained, topic_files, tiny_bert, tmp_path
):
    results = finetune(pretrained, topic_files, tmp_path / "a")
    assert results["transductive"] is True and results["test_documents_in_pretraining"] == 4
    saved = json.loads((tmp_path / "a" / "all_results.json").read_text())
    assert saved["transductive"] is True
    # what the encoder has seen stays with the classifier and with its encoder
    for folder in (tmp_path / "a", tmp_path / "a" / "encoder"):
        assert (read_fingerprint(folder) == read_fingerprint(pretrained)).all()
    rest = pd.read_csv(topic_files["test"])[4:]
    rest.to_csv(tmp_path / "rest.csv", index=False)
    results = finetune(
        pretrained, topic_files | {"test": str(tmp_path / "rest.csv")}, tmp_path / "b"
    )
    assert results["transductive"] is False and results["test_documents_in_pretraining"] == 0
    assert "transductive" not in finetune(tiny_bert, topic_files, tmp_path / "c")


def test_a_probe_says_which_models_have_seen_the_test_text(
    pretrained, topic_files, tiny_bert, tmp_path, caplog
):
    """And which were trained on the rows that are probed."""
    finetune(pretrained, topic_files, tmp_path / "tuned")
    caplog.clear()
    given = {
        "models": [f"base={tiny_bert}", f"itpt={pretrained}", f"tuned={tmp_path / 'tuned'}"],
        "train_file": topic_files["train"],
        "test_file": topic_files["test_labels"],
        "output_dir": str(tmp_path / "probed"),
    }
    run_probe.main(given)
    models = json.loads((tmp_path / "probed" / "all_results.json").read_text())["models"]
    assert [m.get("transductive") for m in models] == [None, True, True]
    assert [m.get("test_documents_in_pretraining") for m in models] == [None, 4, 4]
    report = (tmp_path / "probed" / "report.md").read_text()
    seen = read_fingerprint(tmp_path / "tuned", TRAINED_FILE)
    assert [m.get("test_documents_trained_on") for m in models] == [None, None, 0]
    counts = [models[2][f"{split}_documents_trained_on"] for split in ("train", "validation")]
    assert counts == [135, 0]  # no score is too good for that
    assert "Too good" not in report and "their scores are too good" not in caplog.text
    other = {"train_file": topic_files["test_labels"], "test_file": topic_files["train"]}
    other["output_dir"] = str(tmp_path / "other")
    run_probe.main(given | other | {"models": [f"tuned={tmp_path / 'tuned'}"]})
    tested = count_seen(hash_texts(pd.read_csv(topic_files["train"])["text"]), seen)
    assert f"{tested} of 150 test documents have the words of rows" in caplog.text
    text = f"Too good: what is scored was trained on before, with its labels, by tuned ({tested} te"
    assert text in (tmp_path / "other" / "report.md").read_text()
    assert "Transductive: test text was in the further pretraining of itpt (4 documents)" in report


# ---------------------------------------------------------------- pooler


def test_a_kept_pooler_is_used_trained_and_saved(pretrained, topic_files, tiny_bert, tmp_path):
    source = AutoModel.from_pretrained(tiny_bert).pooler.dense.weight
    out = tmp_path / "tuned"
    finetune(pretrained, topic_files, out, token_pooling="pooler", learning_rate=1e-2)
    groups = pd.read_csv(out / "optimizer_groups.csv").set_index("group")["tensors"]
    assert groups["head"] == 2  # the head's weight and the pooler's
    encoder, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not torch.equal(encoder.pooler.dense.weight, source)
    torch.testing.assert_close(encoder.pooler.dense.weight, source, atol=0.05, rtol=0)  # not anew
    # one window: the logits are the head on tanh(W [CLS] + b)
    model = load_classifier(out)[0].eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer(["red cat", "the dog runs"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.head(encoder.eval()(**inputs).pooler_output)
        torch.testing.assert_close(model(**inputs).logits, expected)
    again = AutoModelForSequenceClassification.from_pretrained(out, trust_remote_code=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, expected)
    # and it goes on from there, or is taken off where another pooling is asked for
    finetune(out, topic_files, tmp_path / "more")
    assert (tmp_path / "more" / "encoder" / "config.json").exists()
    finetune(out, topic_files, tmp_path / "mean", token_pooling="mean")
    assert getattr(load_encoder(tmp_path / "mean")[0], "pooler", None) is None
    assert getattr(load_encoder(out)[0], "pooler", None) is None  # a probe has no use for it


def test_a_pooler_that_is_not_there_is_one_line(
    pretrained, topic_files, tiny_bert, tmp_path, tokenizers
):
    out = tmp_path / "x"
    folder = tmp_path / "no_pooler"
    run_itpt.main(
        {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "max_steps": 1,
            "output_dir": str(folder),
            "use_cpu": True,
            "disable_tqdm": True,
        }
    )
    finetune(folder, topic_files, tmp_path / "tuned")
    for path in (folder, tmp_path / "tuned"):
        with pytest.raises(InputError, match="holds no pooler; use another --token_pooling"):
            finetune(path, topic_files, out, token_pooling="pooler")
    with pytest.raises(InputError, match="pooler reads the last layer"):
        finetune(pretrained, topic_files, out, token_pooling="pooler", layers="last4")
    assert not out.exists()


def test_a_frozen_encoder_freezes_the_pooler(pretrained, topic_files, tmp_path):
    out = tmp_path / "frozen"
    finetune(pretrained, topic_files, out, token_pooling="pooler", freeze="encoder")
    before, after = (AutoModel.from_pretrained(f) for f in (pretrained, out / "encoder"))
    for name, tensor in before.state_dict().items():
        assert np.array_equal(tensor, after.state_dict()[name]), name


HASH_DAMAGES = {
    "zeros": lambda data: data[:128] + bytes(len(data) - 128),
    "a flipped bit": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    "another type": lambda data: data.replace(b"<u8", b"<f8", 1),
    "cut": lambda data: data[:-50],
    "empty": lambda data: b"",
    "no array": lambda data: b"text",
}


@pytest.mark.parametrize("name", [contamination.HASH_FILE, contamination.TRAINED_FILE])
@pytest.mark.parametrize("damage", HASH_DAMAGES)
def test_damaged_hashes_are_named(tmp_path, damage, name):
    hashes = contamination.hash_texts(f"text {i}" for i in range(50))
    contamination.write_fingerprint(tmp_path, hashes, name)
    assert contamination.read_fingerprint(tmp_path, name).tolist() == sorted(hashes.tolist())
    path = tmp_path / name
    path.write_bytes(HASH_DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError, match="is damaged, so it is not known which text"):
        contamination.read_fingerprint(tmp_path, name)


def test_hashes_of_an_earlier_version_have_no_seal(tmp_path):
    hashes = np.unique(contamination.hash_texts(f"text {i}" for i in range(50)))
    np.save(tmp_path / contamination.HASH_FILE, hashes)
    assert (contamination.read_fingerprint(tmp_path) == hashes).all()


def test_hashes_that_cannot_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    """The disk says why; only what was read and is not right is damaged."""
    (tmp_path / TRAINED_FILE).write_bytes(b"")
    with pytest.raises(InputError, match="is damaged"):
        read_fingerprint(tmp_path, TRAINED_FILE)

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", refuse)
    with pytest.raises(PermissionError):
        read_fingerprint(tmp_path, TRAINED_FILE)
