import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from bertchain.data.label_values import require_labels
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifierConfig


def infer(columns: dict, names=("label",), **options) -> LabelSpec:
    return LabelSpec.infer(Dataset.from_dict(columns), "train.csv", list(names), **options)


def test_integers_sort_as_numbers_whether_text_or_not():
    for values in (["10", "2", "1"], [10, 2, 1], [10.0, 2.0, 1.0]):
        spec = infer({"label": values})
        assert spec.problem_type == "single_label"
        assert spec.names == ("1", "2", "10")
        assert spec.encode(Dataset.from_dict({"label": values}), "x") == [2, 1, 0]


def test_words_sort_alphabetically():
    assert infer({"label": ["b", "a", "b"]}).names == ("a", "b")


def test_class_label_features_keep_their_names_and_order():
    features = Features({"label": ClassLabel(names=["zebra", "ant"]), "text": Value("string")})
    table = Dataset.from_dict({"label": [1, 0], "text": ["", ""]}, features=features)
    spec = LabelSpec.infer(table, "hub", ["label"])
    assert spec.names == ("zebra", "ant")
    assert spec.encode(table, "hub") == [1, 0]


def test_list_columns_and_delimiters_are_multi_label():
    table = {"label": [["a", "b"], [], ["b"]]}
    spec = infer(table)
    assert (spec.problem_type, spec.names) == ("multi_label", ("a", "b"))
    assert spec.encode(Dataset.from_dict(table), "x") == [[1, 1], [0, 0], [0, 1]]
    spec = infer({"label": ["a|b", "b"]}, delimiter="|")
    assert (spec.problem_type, spec.names) == ("multi_label", ("a", "b"))
    assert spec.decode(spec.decide(np.array([[0.9, 0.6], [0.1, 0.2]]))) == ["a|b", ""]


def test_several_columns():
    spec = infer({"x": ["1", "0"], "y": ["0", "0"]}, names=("x", "y"))
    assert (spec.problem_type, spec.names) == ("multi_label", ("x", "y"))
    spec = infer({"x": ["1.5", "0"], "y": ["0", "3"]}, names=("x", "y"))
    assert spec.problem_type == "regression"
    np.testing.assert_allclose(spec.target_mean, [0.75, 1.5])
    np.testing.assert_allclose(spec.target_scale, [0.75, 1.5])


def test_fractions_are_regression_and_the_flag_decides_for_integers():
    assert infer({"label": [1.5, 2.0]}).problem_type == "regression"
    assert infer({"label": [1, 2]}, problem_type="regression").names == ("label",)


def test_a_label_that_training_lacks_names_file_row_and_value():
    spec = infer({"label": ["a", "b"]})
    with pytest.raises(InputError, match=r"test\.csv, row 2: label 'c' .*a, b"):
        spec.encode(Dataset.from_dict({"label": ["a", "c"]}), "test.csv")


@pytest.mark.parametrize("missing", [None, ""])
def test_a_missing_label_names_the_row(missing):
    with pytest.raises(InputError, match=r"train\.csv, row 2: the label is missing \(1 of 3"):
        infer({"label": ["a", missing, "b"]})


def test_other_mistakes_are_named():
    with pytest.raises(InputError, match=r"no column 'label'.*there are: klass"):
        infer({"klass": ["a"]})
    with pytest.raises(InputError, match="one label only"):
        infer({"label": ["a", "a"]})
    with pytest.raises(InputError, match=r"row 1: 'a' is not a number"):
        infer({"label": ["a", "2"]}, problem_type="regression")
    with pytest.raises(InputError, match=r"row 1, column 'x': '2' is neither 0 nor 1"):
        spec = infer({"x": ["2", "0"], "y": ["0", "0"]}, ("x", "y"), problem_type="multi_label")
        spec.encode(Dataset.from_dict({"x": ["2", "0"], "y": ["0", "0"]}), "train.csv")


def test_test_tables_without_labels():
    spec = infer({"label": ["a", "b"]})
    assert not spec.has_labels(Dataset.from_dict({"text": ["x"]}))
    assert not spec.has_labels(Dataset.from_dict({"label": ["", ""]}))
    assert spec.has_labels(Dataset.from_dict({"label": ["a", ""]}))


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label", "regression"])
def test_the_spec_comes_back_from_the_config(problem_type, tmp_path):
    values = {"single_label": ["a", "b"], "multi_label": [["a"], ["b"]], "regression": [1.5, 9.0]}
    spec = infer({"label": values[problem_type]})
    DocumentClassifierConfig(**spec.config_fields()).save_pretrained(tmp_path)
    config = DocumentClassifierConfig.from_pretrained(tmp_path)
    back = LabelSpec.from_config(config, spec.columns)
    if problem_type == "regression":
        assert (back.target_mean, back.target_scale) == (spec.target_mean, spec.target_scale)
        assert back.problem_type == "regression"
    else:
        assert back == spec


def test_probabilities_do_not_overflow():
    logits = np.array([[1000.0, 0.0], [-1000.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(infer({"label": ["a", "b"]}).probabilities(logits), [[1, 0], [0, 1]])
    multi = infer({"label": [["a"], ["b"]]})
    np.testing.assert_allclose(multi.probabilities(logits), [[1, 0.5], [0, 0.5]])


def test_prediction_tables():
    ids, p = ["x", "y"], np.array([[0.9, 0.1], [0.2, 0.8]])
    table = infer({"label": ["a", "b"]}).prediction_table(ids, p)
    assert list(table.columns) == ["id", "prediction", "prob_a", "prob_b"]
    assert list(table["prediction"]) == ["a", "b"]
    table = infer({"x": [0.5, 1.5], "y": [0.1, 0.2]}, ("x", "y")).prediction_table(ids, p)
    assert list(table.columns) == ["id", "prediction_x", "prediction_y"]


def test_labels_that_are_objects_or_bytes_are_refused():
    for values, said in (
        (["a", 1.5, {"c": 1}], "x.jsonl, row 3: the label is an object"),
        ([["a"], ["b", {"c": 1}]], "x.jsonl, row 2: the label is an object"),
        ([b"a", b"b"], "x.jsonl, row 1: the label is bytes"),
    ):
        with pytest.raises(InputError, match=said):
            require_labels(values, "x.jsonl")


def test_values_too_large_to_standardise_are_refused():
    with pytest.raises(InputError, match="y: values as large as"):
        infer({"y": [1e200, -1e200, 0.5]}, ("y",))


# ---------------------------------------------------------------- lists


MULTI_HOT = [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]]


def as_numpy_text(row):
    return str(np.array(row))


@pytest.mark.parametrize(
    "write",
    [list, lambda row: [*map(float, row)], lambda row: [*map(bool, row)], str, as_numpy_text],
    ids=["integers", "floats", "booleans", "text", "numpy's text"],
)
def test_lists_of_0_and_1_have_a_label_for_each_position(write):
    table = Dataset.from_dict({"label": [write(row) for row in MULTI_HOT]})
    spec = LabelSpec.infer(table, "train.csv", ["label"])
    assert (spec.problem_type, spec.names) == ("multi_label", ("0", "1", "2"))
    assert spec.encode(table, "train.csv") == MULTI_HOT
    back = LabelSpec.from_config(DocumentClassifierConfig(**spec.config_fields()), ["label"])
    assert back.encode(table, "test.csv") == MULTI_HOT
    assert spec.encode(Dataset.from_dict({"label": [[0, 1, 1]]}), "test.csv") == [[0, 1, 1]]


def test_lists_of_two_positions():
    spec = infer({"label": [[0, 1], [1, 0], [1, 1]]})
    assert spec.names == ("0", "1")
    assert spec.encode(Dataset.from_dict({"label": [[0, 1]]}), "x") == [[0, 1]]
    names = infer({"label": [[0, 1], [1], [0]]})
    assert names.encode(Dataset.from_dict({"label": [[0, 1]]}), "x") == [[1, 1]]


def test_integers_that_are_no_multi_hot_stay_names():
    for rows, names, encoded in (
        ([[3, 7], [7], []], ("3", "7"), [[1, 1], [0, 1], [0, 0]]),
        ([[0], [1], [0, 1]], ("0", "1"), [[1, 0], [0, 1], [1, 1]]),
        ([[0], [1]], ("0", "1"), [[1, 0], [0, 1]]),
        ([[0, 2], [1, 2]], ("0", "1", "2"), [[1, 0, 1], [0, 1, 1]]),
    ):
        for table in ({"label": rows}, {"label": [*map(str, rows)]}):
            spec = infer(table)
            assert (spec.problem_type, spec.names) == ("multi_label", names)
            assert spec.encode(Dataset.from_dict(table), "x") == encoded


def test_names_in_lists_that_a_csv_made_text_of():
    for rows in (
        ["['a, c', 'b']", "['b']", "[]"],
        ['["a, c", "b"]', '["b"]', "[]"],
        ["['a, c' 'b']", "['b']", "[]"],
        ["('a, c', 'b')", "('b',)", "()"],
        ["['a, c', 'b']", "b", "[]"],
    ):
        spec = infer({"label": rows})
        assert (spec.problem_type, spec.names) == ("multi_label", ("a, c", "b"))
        assert spec.encode(Dataset.from_dict({"label": rows}), "x") == [[1, 1], [0, 1], [0, 0]]
    assert infer({"label": ["[a, b]", "[b]"]}).names == ("a", "b")
    assert infer({"label": ["['a', 'b']", "['a']"]}, delimiter=",").names == ("a", "b")


def test_names_in_brackets_are_no_lists():
    for rows in (["[POS]", "[NEG]"], ["(other, mixed)", "film"], ["[1]", "film"], ["[a 'b]", "b"]):
        spec = infer({"label": rows})
        assert spec.problem_type == "single_label" and set(spec.names) == set(rows)


def test_lists_of_class_labels_keep_their_names():
    kinds = ClassLabel(names=["zoo", "mood", "place"])
    for rows, encoded in (
        ([[2, 0], [1], []], [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        (MULTI_HOT, MULTI_HOT),
    ):
        features = Features({"label": Sequence(kinds)})
        table = Dataset.from_dict({"label": rows}, features=features)
        spec = LabelSpec.infer(table, "hub", ["label"])
        assert spec.names == ("zoo", "mood", "place")
        assert spec.encode(table, "hub") == encoded


def test_lists_that_are_neither_are_refused():
    for rows, said in (
        ([[0, 1, 0], [1, 0], [0, 0, 1]], r"train\.csv, row 2: the label is a list of 2, not"),
        ([[0.2, 0.8], [1.0, 0.0]], r"train\.csv, row 1: the label is a list with 0\.2; give each"),
    ):
        with pytest.raises(InputError, match=said):
            infer({"label": rows})
    spec = infer({"label": MULTI_HOT})
    with pytest.raises(InputError, match=r"test\.csv, row 1: the label is a list of 2, not"):
        spec.encode(Dataset.from_dict({"label": [[0, 1]]}), "test.csv")
    for kind in ("single_label", "regression"):
        with pytest.raises(InputError, match=f"{kind} needs one label a row.*'label' holds lists"):
            infer({"label": [["a"], ["b"]]}, problem_type=kind)


# ---------------------------------------------------------------- what pandas and others write


def test_true_and_false_are_1_and_0_in_several_columns():
    for yes, no in (("True", "False"), ("TRUE", "FALSE"), (True, False)):
        columns = {"x": [yes, no], "y": [no, no]}
        spec = infer(columns, ("x", "y"))
        assert spec.problem_type == "multi_label"
        assert spec.encode(Dataset.from_dict(columns), "x") == [[1, 0], [0, 0]]
    columns = {"x": ["True", "False"], "y": ["False", "True"]}
    spec = infer(columns, ("x", "y"), problem_type="single_label")
    assert spec.encode(Dataset.from_dict(columns), "x") == [[1, 0], [0, 1]]


def test_targets_with_a_decimal_comma():
    spec = infer({"label": ["3,5", "4", "-1,25"]})
    assert spec.problem_type == "regression"
    assert spec.encode(Dataset.from_dict({"label": ["3,5", "4.5"]}), "x") == [[3.5], [4.5]]
    assert infer({"label": ["0,123", "0,456"]}).problem_type == "regression"
    assert infer({"label": ["1,2,3", "1,2"]}).problem_type == "single_label"
    for options in ({}, {"problem_type": "regression"}):
        with pytest.raises(InputError, match=r"row 2: '1,000' may be 1\.000 or 1000; write"):
            infer({"label": ["7", "1,000", "2,500"]}, **options)
    assert infer({"label": ["1,000", "x"]}).names == ("1,000", "x")


def test_blanks_around_labels_do_not_count():
    assert infer({"label": ["a ", "a", " b"]}).names == ("a", "b")
    assert infer({"label": [["a ", "b"], [" a"]]}).names == ("a", "b")
    with pytest.raises(InputError, match="row 2: the label is missing"):
        infer({"label": ["a", " ", "b"]})


def test_labels_of_minus_one_are_none():
    for problem_type, labels, hidden in (
        ("single_label", ["0", "1"], ["-1", "-1"]),
        ("single_label", ["a", "b"], [-1, -1]),
        ("multi_label", [["a"], ["b"]], [[], []]),
        ("multi_label", ["[0, 1]", "[1, 0]"], ["[-1, -1]", "[-1, -1]"]),
        ("regression", [0.5, 1.5], [-1.0, -1.0]),
    ):
        spec = infer({"label": labels})
        assert spec.problem_type == problem_type
        assert not spec.has_labels(Dataset.from_dict({"label": hidden}))
    spec = infer({"x": [0, 1], "y": [1, 0]}, ("x", "y"))
    assert not spec.has_labels(Dataset.from_dict({"x": [-1, -1], "y": [-1, -1]}))
    assert infer({"label": [-1, 1]}).has_labels(Dataset.from_dict({"label": [-1, -1]}))


def test_a_row_below_all_thresholds_gets_the_likeliest_label_if_asked():
    p = np.array([[0.1, 0.4, 0.3], [0.6, 0.2, 0.7], [0.0, 0.0, 0.0]])
    fitted = Thresholds("per_label", (0.05, 0.5, 0.5))
    for asked, plain, cut in (
        (False, [[0, 0, 0], [1, 0, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 1], [0, 0, 0]]),
        (True, [[0, 1, 0], [1, 0, 1], [1, 0, 0]], [[1, 0, 0], [1, 0, 1], [1, 0, 0]]),
    ):
        spec = LabelSpec("multi_label", ("a", "b", "c"), ("label",), at_least_one=asked)
        assert spec.decide(p).tolist() == plain
        assert spec.decide(p, fitted).tolist() == cut
