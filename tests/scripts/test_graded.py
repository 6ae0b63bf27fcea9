"""Soft labels, grades and distillation through the script on a tiny model."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import BASICS, ROOT, make_rows
from forking import run_command
from transformers import AutoModelForSequenceClassification

import run_finetune
from bertchain.competition import pseudo_labels
from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier
from bertchain.training.prediction import read_written_table as read
from bertchain.training.prediction import write_predictions

FEW = BASICS | {"num_train_epochs": 2}
SHARES = {"animals": 0.9, "moods": 0.25, "places": 0.6}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Three classes as words, as grades, and as two numbers from 0 to 1."""
    found = pd.DataFrame(make_rows(60))
    found["grade"] = found["label"].map({"animals": 1, "moods": 2, "places": 3})
    found["one"] = found["label"].map(SHARES)
    found["two"] = 1 - found["one"] / 2
    return found


def run(tiny_bert, train, out, **given):
    fields = {"model_name_or_path": tiny_bert, "train_file": train, "output_dir": str(out)}
    return run_finetune.main({**FEW, **fields, **given})


@pytest.mark.parametrize("columns", [["one", "two"], ["one"]])
def test_targets_from_0_to_1_by_binary_cross_entropy(columns, tiny_bert, rows, tmp_path):
    given = {"label_column_name": columns, "problem_type": "multi_label", "max_steps": 4}
    results = run(tiny_bert, rows, tmp_path / "o", num_folds=2, test_file=rows, **given)
    oof = read(tmp_path / "o" / "predictions_oof.csv")
    p = oof[[f"prob_{name}" for name in columns]].to_numpy()
    truth = rows[columns].to_numpy()
    assert results["oof_rmse"] == pytest.approx(((p - truth) ** 2).mean() ** 0.5)
    assert results["oof_spearman"] == pytest.approx(
        np.mean([pd.Series(p[:, c]).corr(rows[n], "spearman") for c, n in enumerate(columns)])
    )
    hard = truth >= 0.5
    assert results["oof_subset_accuracy"] == ((p >= 0.5) == hard).all(axis=1).mean()
    own = json.loads((tmp_path / "o" / "fold-1" / "all_results.json").read_text())
    inside = (oof["fold"] == 1).to_numpy()
    bce = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))[inside].mean()
    assert own["eval_loss"] == pytest.approx(bce, rel=1e-5)
    names = ["|".join(n for n, yes in zip(columns, row, strict=True) if yes) for row in hard]
    assert oof["label"].fillna("").tolist() == names


def test_what_soft_labels_of_several_are():
    def infer(values, kind="multi_label"):
        table = pd.DataFrame(values, columns=["a", "b"][: len(values[0])])
        return LabelSpec.infer(from_pandas(table), "t.csv", list(table), kind), from_pandas(table)

    from datasets import Dataset

    from_pandas = Dataset.from_pandas
    spec, table = infer([[0.5, 1], [0, 0.25]])
    assert spec.soft and spec.names == ("a", "b")
    assert spec.encode(table, "t.csv") == [[0.5, 1.0], [0.0, 0.25]]
    assert (
        not infer([[0, 1], [1, 1]])[0].soft
        and infer([[0.5, 1]], None)[0].problem_type != "multi_label"
    )
    for bad in (1.5, -0.1, "x"):
        other = from_pandas(pd.DataFrame({"a": ["0.5", str(bad)], "b": ["1", "0"]}))
        with pytest.raises(InputError, match=r"u\.csv, row 2, column 'a': .* from 0 to 1"):
            spec.encode(other, "u.csv")


def test_grades_with_one_value_and_cuts(tiny_bert, rows, tmp_path):
    given = {"label_column_name": "grade", "ordinal_head": True, "metric_for_best_model": "qwk"}
    test = rows[["id", "text"]]
    results = run(tiny_bert, rows, tmp_path / "o", test_file=test, min_steps=60, **given)
    assert results["eval_qwk"] > 0.5
    model = DocumentClassifier.from_pretrained(tmp_path / "o")
    shapes = {name: tuple(p.shape) for name, p in model.head.named_parameters()}
    assert shapes == {"value.weight": (1, 32), "bias": (2,)}
    loaded = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "o", trust_remote_code=True
    )
    for name, parameter in loaded.head.named_parameters():
        assert torch.equal(parameter, dict(model.head.named_parameters())[name])
    given = {"model_name_or_path": str(tmp_path / "o"), "test_file": test, "id_column_name": "id"}
    given |= {"output_dir": str(tmp_path / "p"), "use_cpu": True, "disable_tqdm": True}
    again = run_finetune.main(given).predictions["test"].filter(like="prob_")
    before = read(tmp_path / "o" / "predictions_test.csv").filter(like="prob_")
    np.testing.assert_allclose(again, before, atol=1e-6)
    np.testing.assert_allclose(before.sum(axis=1), 1, atol=1e-6)


# ---------------------------------------------------------------- distillation


@pytest.fixture
def teacher(rows, tmp_path):
    """Tables of a teacher, their rows in another order than those of training."""
    folder, rng = tmp_path / "teacher", np.random.default_rng(0)
    folder.mkdir()
    spec = LabelSpec("single_label", ("animals", "moods", "places"), ("label",))
    tests = pd.DataFrame(make_rows(12, seed=1))
    tests["id"] = "t" + tests["id"]
    for name, table in (("oof", rows), ("test", tests)):
        ids = table["id"].sample(frac=1, random_state=1).tolist()
        p = rng.dirichlet([1, 1, 1], len(ids))
        write_predictions(folder / f"predictions_{name}.csv", spec, ids, p)
    return folder, tests


def test_a_student_learns_the_teachers_probabilities(
    tiny_bert, rows, teacher, tmp_path, monkeypatch
):
    folder, tests = teacher
    learnt, join = [], pseudo_labels.join
    monkeypatch.setattr(
        pseudo_labels, "join", lambda *given: learnt.append(join(*given)) or learnt[-1]
    )
    more = rows.iloc[:6].assign(text="a red house")  # ids of others: their labels stay
    out = tmp_path / "o"
    results = run(
        tiny_bert,
        rows,
        out,
        test_file=tests.drop(columns="label"),
        extra_train_file=more,
        teacher=str(folder),
        teacher_weight=0.7,
        max_steps=2,
        validation_split=0.2,
    )
    oof = read(folder / "predictions_oof.csv").set_index("id")
    test = read(folder / "predictions_test.csv").set_index("id")
    names = [f"prob_{name}" for name in ("animals", "moods", "places")]
    one_hot = pd.get_dummies(rows.set_index("id")["label"]).astype(float)
    (trained,) = learnt
    assert len(trained) == 48 + 6 + 12 and results["pseudo_labelled_rows"] == 12
    for place, row in enumerate(trained):
        if place < 48:
            expected = 0.7 * oof.loc[row["id"], names].to_numpy() + 0.3 * one_hot.loc[row["id"]]
        elif place < 54:
            expected = one_hot.loc[row["id"]]
        else:
            expected = test.loc[row["id"], names].to_numpy()
        np.testing.assert_allclose(row["labels"], np.array(expected, dtype=float), atol=1e-12)
        assert row["weight"] == (0.7 if place >= 54 else 1.0)
    held_out = read(out / "predictions_validation.csv")["id"]
    assert not set(held_out) & set(trained["id"][:48])
    truth = rows.set_index("id")["label"][held_out]  # scores are those of the labels
    predicted = read(out / "predictions_validation.csv")["prediction"]
    assert results["eval_accuracy"] == (truth.to_numpy() == predicted.to_numpy()).mean()


def test_a_teacher_of_other_rows_is_refused(tiny_bert, rows, teacher, tmp_path):
    folder, _ = teacher
    given = {"teacher": str(folder), "max_steps": 1, "validation_split": 0}
    with pytest.raises(InputError, match=r"predictions_oof\.csv .*lacks the id 'new' of --train"):
        run(tiny_bert, rows.replace({"id": {"r5": "new"}}), tmp_path / "o", **given)
    with pytest.raises(
        InputError, match=r"predictions_oof\.csv .*has the id 'r59', not in --train"
    ):
        run(tiny_bert, rows.iloc[:59], tmp_path / "o", **given)
    with pytest.raises(InputError, match=r"predictions_test\.csv .*lacks the id 'r0' of --test"):
        run(tiny_bert, rows, tmp_path / "o", test_file=rows.drop(columns="label"), **given)
    with pytest.raises(InputError, match="it holds predictions of other labels"):
        run(tiny_bert, rows, tmp_path / "o", label_column_name="grade", **given)
    with pytest.raises(InputError, match=r"nowhere/predictions_oof\.csv: no such file"):
        run(tiny_bert, rows, tmp_path / "o", **given | {"teacher": "nowhere"})
    assert not (tmp_path / "o").exists()


def test_the_example_goes_from_two_runs_to_a_student(tiny_bert, rows, tmp_path):
    """On a copy with fewer folds and epochs."""
    table = rows.rename(columns={"text": "abstract"})[["id", "abstract", "label"]]
    table["title"] = "the"
    (tmp_path / "input").mkdir()
    table.to_csv(tmp_path / "input" / "train.tsv", sep="\t", index=False)
    test = table.iloc[:12].drop(columns="label").assign(id=[f"t{i}" for i in range(12)])
    test.to_csv(tmp_path / "input" / "test.tsv", sep="\t", index=False)
    words = ["data=input", f"model={tiny_bert}", "out=work", "length=32", "epochs=1", "rate=3e-3"]
    recipe = ROOT / "examples" / "distil.yaml"
    script = ROOT / "examples" / "recipe.py"
    done = run_command(script, recipe, *words, "folds=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    student = tmp_path / "work" / "student"
    results = json.loads((student / "all_results.json").read_text())
    assert results["train_rows"] == 60 and results["pseudo_labelled_rows"] == 12
    arguments = yaml.safe_load((student / "run_args.yaml").read_text())
    assert (
        arguments["teacher"] == "work/blend" and len(read(student / "predictions_test.csv")) == 12
    )
