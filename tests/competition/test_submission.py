"""A sample submission of every kind is filled by id, in its own order."""

import numpy as np
import pandas as pd
import pytest

from bertchain.competition.submission import SampleSubmission, write_submission
from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.training.prediction import write_predictions

SINGLE = LabelSpec("single_label", ("cat", "dog", "eel"), ("label",))
BINARY = LabelSpec("single_label", ("0", "1"), ("label",))
MULTI = LabelSpec("multi_label", ("cat", "dog"), ("cat", "dog"))
JOINED = LabelSpec("multi_label", ("cat", "dog"), ("tags",), " ")
NUMBER = LabelSpec("regression", ("score",), ("score",), None, (0.0,), (1.0,))
IDS = ["a", "b", "c"]


def fill(tmp_path, sample, spec, probabilities, decisions=None, name="sample.csv", **options):
    path = tmp_path / name
    pd.DataFrame(sample).to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    read = SampleSubmission.read(str(path), spec, "id", **options)
    read.check_ids(IDS)
    p = np.array(probabilities)
    return read, read.fill(IDS, p, spec.decide(p) if decisions is None else decisions, spec)


P3 = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]


def test_labels_by_id_in_the_samples_order(tmp_path):
    sample = {"kind": ["x"] * 3, "id": ["c", "a", "b"]}
    _, table = fill(tmp_path, sample, SINGLE, P3, name="sample.tsv")
    assert list(table) == ["kind", "id"]  # its columns, in its order
    assert table.to_dict("list") == {"kind": ["eel", "cat", "dog"], "id": ["c", "a", "b"]}


def test_a_column_for_each_class_holds_probabilities(tmp_path):
    sample = {"id": ["b", "a", "c"], "dog": 0, "cat": 0, "eel": 1}
    _, table = fill(tmp_path, sample, SINGLE, P3)
    assert table["dog"].tolist() == [0.8, 0.2, 0.2] and list(table) == ["id", "dog", "cat", "eel"]
    sample = {"id": IDS, "prob_cat": 0.5}
    assert fill(tmp_path, sample, SINGLE, P3)[1]["prob_cat"].tolist() == [0.7, 0.1, 0.2]


def test_one_column_for_two_classes(tmp_path):
    p = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]
    _, table = fill(tmp_path, {"id": IDS, "target": 0.5}, BINARY, p)
    assert table["target"].tolist() == [0.1, 0.6, 0.7]  # a fraction: the probability of "1"
    _, table = fill(tmp_path, {"id": IDS, "target": 0}, BINARY, p)
    assert table["target"].tolist() == ["0", "1", "1"]
    _, table = fill(tmp_path, {"id": IDS, "target": 0}, BINARY, p, values="probabilities")
    assert table["target"].tolist() == [0.1, 0.6, 0.7]


FAKE = LabelSpec("single_label", ("fake", "real"), ("label",))
P2 = [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7]]


@pytest.mark.parametrize(
    "column", ["fake", "is_fake", "prob_fake", "p_fake", "Is_Fake", "FAKE_prob"]
)
def test_a_column_named_after_a_label_gets_that_label(tmp_path, column, caplog):
    caplog.set_level("INFO")
    _, table = fill(tmp_path, {"id": IDS, column: 0.5}, FAKE, P2)
    assert table[column].tolist() == [0.9, 0.4, 0.3]
    assert f"column '{column}' gets the probability of 'fake'" in caplog.text
    _, table = fill(tmp_path, {"id": IDS, column: 0}, FAKE, P2)
    assert table[column].tolist() == [1, 0, 0]
    assert "gets the decision, 1 for 'fake', else 0" in caplog.text


def test_a_column_that_may_stand_for_either_label_is_not_guessed(tmp_path):
    for cell, message in ((0.5, "'fake' or 'real'"), (0, "holds 0, which is none of the labels")):
        with pytest.raises(InputError, match=f"{message}.*--positive_label"):
            fill(tmp_path, {"id": IDS, "target": cell}, FAKE, P2)
    for positive, p, decided in (
        ("fake", [0.9, 0.4, 0.3], [1, 0, 0]),
        ("real", [0.1, 0.6, 0.7], [0, 1, 1]),
    ):
        given = {"positive": positive}
        assert fill(tmp_path, {"id": IDS, "y": 0.5}, FAKE, P2, **given)[1]["y"].tolist() == p
        assert fill(tmp_path, {"id": IDS, "y": 0}, FAKE, P2, **given)[1]["y"].tolist() == decided
    _, table = fill(tmp_path, {"id": IDS, "y": 0}, FAKE, P2, values="labels")
    assert table["y"].tolist() == ["fake", "real", "real"]
    for cell in ("x", "", "real"):  # no number: names
        _, table = fill(tmp_path, {"id": IDS, "y": cell}, FAKE, P2)
        assert table["y"].tolist() == ["fake", "real", "real"]
    for sample, positive, message in (
        ({"id": IDS, "y": 0.5}, "true", "none of the labels fake, real"),
        ({"id": IDS, "fake": 0.5}, "real", "column 'fake' of .* says fake"),
        ({"id": IDS, "fake": 0.5, "real": 0.5}, "real", "one column to fill"),
    ):
        with pytest.raises(InputError, match=message):
            fill(tmp_path, sample, FAKE, P2, positive=positive)


def test_codes_of_classes_keep_their_spelling(tmp_path):
    codes = LabelSpec("single_label", ("1", "2", "3"), ("label",))
    _, table = fill(tmp_path, {"id": IDS, "y": ["2.0"] * 3}, codes, P3)
    assert table["y"].tolist() == ["1.0", "2.0", "3.0"]  # as the sample
    labels = ["1.0", "3.0", "2.0"]
    _, table = fill(tmp_path, {"id": IDS, "y": ""}, codes, P3, labels=labels)
    assert table["y"].tolist() == ["1.0", "2.0", "3.0"]  # as the label file
    _, table = fill(tmp_path, {"id": IDS, "y": "2"}, codes, P3, labels=labels)
    assert table["y"].tolist() == ["1", "2", "3"]  # the sample counts
    _, table = fill(tmp_path, {"id": IDS, "dog": ["0.0"] * 3}, MULTI, P2)
    assert [str(cell) for cell in table["dog"]] == ["0.0", "1.0", "1.0"]


def test_several_labels(tmp_path):
    p = [[0.9, 0.6], [0.2, 0.7], [0.1, 0.2]]
    _, table = fill(tmp_path, {"id": IDS, "dog": 0, "cat": 0}, MULTI, p)
    assert table[["dog", "cat"]].to_numpy().tolist() == [[1, 1], [1, 0], [0, 0]]
    _, table = fill(tmp_path, {"id": IDS, "dog": 0.5, "cat": 0.5}, MULTI, p)
    assert table["dog"].tolist() == [0.6, 0.7, 0.2]
    _, table = fill(tmp_path, {"id": IDS, "tags": "cat"}, JOINED, p)
    assert table["tags"].tolist() == ["cat dog", "dog", ""]


def test_numbers_and_grades(tmp_path):
    values = [[1.25], [2.5], [0.0]]
    _, table = fill(tmp_path, {"id": IDS, "rating": 0}, NUMBER, values)
    assert table["rating"].tolist() == [1.25, 2.5, 0.0]
    grades = np.array([[1.0], [3.0], [0.0]])
    _, table = fill(tmp_path, {"id": IDS, "rating": 0}, NUMBER, values, grades)
    assert table["rating"].tolist() == [1, 3, 0] and table["rating"].dtype == int


def test_the_main_process_writes_it_from_the_predictions(tmp_path, monkeypatch):
    form, expected = fill(tmp_path, {"id": IDS[::-1], "label": ""}, SINGLE, P3)
    write_predictions(tmp_path / "predictions_test.csv", SINGLE, IDS, np.array(P3))
    monkeypatch.setenv("RANK", "1")
    write_submission(form, tmp_path, SINGLE, None)
    assert not (tmp_path / "submission.csv").exists()
    monkeypatch.setenv("RANK", "0")
    write_submission(form, tmp_path, SINGLE, None)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "submission.csv"), expected)


def test_what_does_not_fit_is_named(tmp_path):
    def error(sample, spec=SINGLE, ids=IDS):
        path = tmp_path / "bad.csv"
        pd.DataFrame(sample).to_csv(path, index=False)
        with pytest.raises(InputError) as raised:
            SampleSubmission.read(str(path), spec, "id").check_ids(ids)
        return str(raised.value)

    assert "'cow' is none of the labels" in error({"id": IDS, "cat": 0.1, "cow": 0.1})
    assert "(did you mean cat?)" in error({"id": IDS, "dog": 0.1, "catt": 0.1})
    assert "id 'a' occurs more than once" in error({"id": ["a", "a"], "label": "cat"})
    assert "1 ids: d: each has no prediction" in error({"id": [*IDS, "d"], "label": "cat"})
    message = error({"id": ["a"], "label": "cat"})
    assert "2 ids: b, c: each of the test file is not in it" in message
    assert "no column to fill" in error({"id": IDS})
    assert "'p' is none of the labels" in error({"id": IDS, "p": 0.5})  # of three classes: which?


def test_a_sample_in_another_encoding_and_with_ids_that_are_floats(tmp_path):
    path = tmp_path / "样本[1].csv"
    path.write_bytes("编号,类别\na,好\nb,\nc,\n".encode("gbk"))
    read = SampleSubmission.read(str(path), SINGLE, "编号", encoding="gbk")
    assert read.sample.columns.tolist() == ["编号", "类别"] and read.outputs == {}
    pd.DataFrame({"id": [2.0, 1.0], "label": "cat"}).to_parquet(tmp_path / "sample.parquet")
    read = SampleSubmission.read(str(tmp_path / "sample.parquet"), SINGLE, "id")
    read.check_ids(["1", "2"])
    p = np.array(P3[:2])
    assert read.fill(["1", "2"], p, SINGLE.decide(p), SINGLE)["label"].tolist() == ["dog", "cat"]


def test_a_sample_without_an_id_is_refused(tmp_path):
    pd.DataFrame({"id": ["a", None], "label": "cat"}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match=r"a\.csv, row 2, column 'id'"):
        SampleSubmission.read(str(tmp_path / "a.csv"), SINGLE, "id")
