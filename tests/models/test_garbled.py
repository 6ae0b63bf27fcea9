"""Folders of models whose files are garbled: they load, or one line says what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from bertchain.data.contamination import read_fingerprints
from bertchain.data.tokenization import load_tokenizer
from bertchain.errors import InputError, as_input_error
from bertchain.models.folders import check_model_folder
from bertchain.models.loading import load_encoder, read_classifier_config, read_config

CLASSIFIER = ROOT / "tests" / "scripts" / "earlier_version"
WHOLE = [b"", b"null", b"[]", b"{}", b"3", b'"x"', b"\x80\xff\0", b'{"a": ', b"[" * 9999]
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
FILES += ["model.safetensors.index.json", "adapter_config.json"]
FILES += ["corpus_hashes.npy", "trained_on.npy"]
FIELDS = {
    "config.json": {
        "vocab_size": [-1, "a", None, 10**12],
        "hidden_size": [0, "x", 33, [1]],
        "num_hidden_layers": [0, -1, "2", None, 10**9],
        "num_attention_heads": [0, 5, None],
        "model_type": [None, 3, []],
        "max_position_embeddings": [0, "x"],
        "hidden_act": ["zork", 3],
        "dtype": ["zork", 3],
        "pad_token_id": [10**9, "x"],
        "architectures": ["x", [3]],
    },
    "tokenizer.json": {"model": [None, [], {"type": "zork"}], "added_tokens": ["x", [3]]},
    "tokenizer_config.json": {"tokenizer_class": [3, []], "mask_token": [3, []], "pad_token": [3]},
}
OF_CLASSIFIERS = {
    "encoder_config": [None, [], {}, {"model_type": "zork"}],
    "windows": ["x", {"zork": 1}, {"truncation": 3}, {"max_seq_length": -1}],
    "special_tokens": [3, {"zork": 1}],
    "id2label": [[], "x", {"a": 1}, {"1": "x", "2": "y"}],
    "problem_type": [None, 3, "zork"],
    "layers": ["x", [99], [], 3],
    "slots": ["x", 7],
}


def read_all(folder: Path) -> None:
    check_model_folder(folder)
    read_config(folder)
    load_tokenizer(str(folder))
    with as_input_error(str(folder), Exception):  # as all callers do
        load_encoder(folder)
    read_fingerprints(folder)


def one_line_or_none(read, folder: Path) -> str:
    try:
        read(folder)
    except InputError as error:
        said = str(error)
        assert "\n" not in said and str(folder) in said and len(said) < 1000
        return said
    return ""


@pytest.fixture
def model(tiny_bert, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else(name, model):
    before = (model / name).read_bytes() if (model / name).is_file() else b"{}"
    said = []
    for content in (*WHOLE, before[: len(before) // 2]):
        (model / name).write_bytes(content)
        said.append(one_line_or_none(read_all, model))
    assert sum(map(bool, said)) >= 6, said


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_something_else(name, model):
    content, said = json.loads((model / name).read_text()), {}
    for field, values in FIELDS[name].items():
        for value in values:
            (model / name).write_text(json.dumps(content | {field: value}))
            said[f"{field} {value}"] = one_line_or_none(read_all, model)
    assert sum(map(bool, said.values())) >= len(said) / 2, said


def test_a_field_of_a_classifier_that_is_something_else(tmp_path):
    content = json.loads((CLASSIFIER / "config.json").read_text())
    for field, values in OF_CLASSIFIERS.items():
        for value in values:
            (tmp_path / "config.json").write_text(json.dumps(content | {field: value}))
            assert one_line_or_none(read_classifier_config, tmp_path), f"{field} {value}"
