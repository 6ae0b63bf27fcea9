"""Folds, seeds, submission and inference through the script, on a tiny model."""

import json
import os
import random
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import BASICS, ROOT, WORDS, make_rows
from forking import run_command, start_command
from safetensors.torch import load_file, save_file

import run_finetune
from bertchain.data import contamination
from bertchain.errors import InputError
from bertchain.runtime.checkpoints import StopInTime, TimeBudget
from bertchain.training import prediction


def run(tiny_bert, files, out, **arguments):
    fields = {
        "model_name_or_path": tiny_bert,
        "train_file": files["train"],
        "test_file": files["test"],
        "output_dir": str(out),
    }
    return run_finetune.main({**BASICS, **fields, **arguments})


def read(path):
    return prediction.read_written_table(path)


def probabilities(table):
    return table[[name for name in table if name.startswith("prob_")]].to_numpy()


@pytest.fixture(scope="module")
def sample(tmp_path_factory, topic_files):
    """A sample submission whose rows are shuffled."""
    path = tmp_path_factory.mktemp("sample") / "sample_submission.csv"
    ids = pd.read_csv(topic_files["test"])["id"].sample(frac=1, random_state=0)
    pd.DataFrame({"id": ids, "label": "moods"}).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def folded(tmp_path_factory, tiny_bert, topic_files, sample):
    """Three folds with everything that follows from them; the test file has labels."""
    out = tmp_path_factory.mktemp("folds") / "run"
    files = topic_files | {"test": topic_files["test_labels"]}
    results = run(tiny_bert, files, out, num_folds=3, sample_submission=sample)
    return out, results


def test_each_row_is_out_of_fold_once_and_scored(folded, topic_files):
    out, results = folded
    train = pd.read_csv(topic_files["train"])
    oof, folds = read(out / "predictions_oof.csv"), read(out / "folds.csv")
    assert list(oof) == [
        "id", "fold", "label", "prediction", "prob_animals", "prob_moods", "prob_places",
    ]  # fmt: skip
    assert list(oof["id"]) == list(folds["id"]) == list(train["id"])
    assert list(oof["label"]) == list(train["label"]) and list(oof["fold"]) == list(folds["fold"])
    assert results["oof_accuracy"] == (oof["label"] == oof["prediction"]).mean() > 0.9
    assert results["oof_rows"] == results["train_rows"] == len(train)
    by_fold = (oof["label"] == oof["prediction"]).groupby(oof["fold"]).mean()
    members = pd.read_csv(out / "members.csv")
    assert members["eval_accuracy"].tolist() == pytest.approx(by_fold.tolist())
    assert results["eval_accuracy_mean"] == pytest.approx(by_fold.mean())
    assert results["eval_accuracy_sd"] == pytest.approx(by_fold.std(ddof=1))
    assert results["models"] == 3
    for member in members["model"]:
        saved = json.loads((out / member / "all_results.json").read_text())
        assert saved["train_rows"] == 100
        assert (
            not [*(out / member).glob("checkpoint-*")] and not (out / member / "encoder").exists()
        )
    assert len(set(members["seed"])) == 3


def test_test_predictions_are_the_mean_over_folds(folded, topic_files):
    out, results = folded
    tables = [read(out / f"fold-{k}" / "predictions_test.csv") for k in range(3)]
    mean = read(out / "predictions_test.csv")
    expected = np.mean([probabilities(t) for t in tables], axis=0)
    np.testing.assert_allclose(probabilities(mean), expected, rtol=1e-14)
    truth = pd.read_csv(topic_files["test_labels"])
    assert list(mean["id"]) == list(truth["id"])
    assert results["test_accuracy"] == (mean["prediction"] == truth["label"]).mean()
    each = read(out / "predictions_test_by_fold.csv")
    assert list(each["fold"]) == [0] * 45 + [1] * 45 + [2] * 45
    assert (probabilities(each) == np.concatenate([probabilities(t) for t in tables])).all()


def test_the_submission_has_the_samples_rows_in_its_order(folded, sample):
    out, _ = folded
    submission, wanted = pd.read_csv(out / "submission.csv"), pd.read_csv(sample)
    assert list(submission) == ["id", "label"] and list(submission["id"]) == list(wanted["id"])
    mean = read(out / "predictions_test.csv").set_index("id")["prediction"]
    assert list(submission["label"]) == list(mean[submission["id"]])


def test_a_folder_of_folds_predicts_again(folded, tmp_path, monkeypatch, topic_files, sample):
    """Bit by bit, from saved weights, in pieces of any size."""
    out, _ = folded
    monkeypatch.setattr(prediction, "ROWS_AT_ONCE", 7)
    arguments = {
        "model_name_or_path": str(out),
        "test_file": topic_files["test"],
        "sample_submission": sample,
        "id_column_name": "id",
        "output_dir": str(tmp_path / "again"),
        "use_cpu": True,
        "disable_tqdm": True,
    }
    results = run_finetune.main(arguments)
    assert results["models"] == 3 and "test_accuracy" not in results
    again = read(tmp_path / "again" / "predictions_test.csv")
    before = read(out / "predictions_test.csv")
    np.testing.assert_allclose(probabilities(again), probabilities(before), atol=1e-6)
    assert list(again["prediction"]) == list(before["prediction"])
    submissions = [(f / "submission.csv").read_bytes() for f in (tmp_path / "again", out)]
    assert submissions[0] == submissions[1]
    with pytest.raises(InputError, match=r"holds 3 models; to train, name one of them, .*fold-0"):
        training = {"train_file": topic_files["train"], "output_dir": str(tmp_path / "trained")}
        run_finetune.main(arguments | training)
    single = arguments | {"model_name_or_path": str(out / "fold-1")}
    run_finetune.main(single | {"output_dir": str(tmp_path / "one")})
    one = read(tmp_path / "one" / "predictions_test.csv")
    own = read(out / "fold-1" / "predictions_test.csv")
    np.testing.assert_allclose(probabilities(one), probabilities(own), atol=1e-6)


def test_finished_folds_are_kept_and_others_added(tiny_bert, topic_files, tmp_path, caplog):
    caplog.set_level("INFO")
    results = run(tiny_bert, topic_files, tmp_path / "o", num_folds=3, folds=["0,2"])
    assert results["oof_rows"] == 100 and results["models"] == 2
    assert not (tmp_path / "o" / "fold-1").exists()
    first = (tmp_path / "o" / "fold-0" / "model.safetensors").stat().st_mtime_ns
    results = run(tiny_bert, topic_files, tmp_path / "o", num_folds=3)
    assert results["oof_rows"] == 150 and results["models"] == 3
    assert "done before: fold-0, fold-2" in caplog.text
    assert (tmp_path / "o" / "fold-0" / "model.safetensors").stat().st_mtime_ns == first
    before = (tmp_path / "o" / "predictions_oof.csv").read_bytes()
    for change, message in (
        ({"learning_rate": 1e-3}, "--learning_rate was 0.003 and is 0.001"),
        ({"seed": 7}, "--seed was 42 and is 7"),
        ({"train_file": topic_files["test_labels"]}, "--train_file holds something else now"),
        ({"num_folds": 4}, "--num_folds was 3 and is 4"),
    ):
        with pytest.raises(InputError, match=message):
            run(tiny_bert, topic_files, tmp_path / "o", **{"num_folds": 3} | change)
    assert (tmp_path / "o" / "predictions_oof.csv").read_bytes() == before
    for fold in range(3):  # no model is done, but one was begun: that is not mixed up either
        (tmp_path / "o" / f"fold-{fold}" / "all_results.json").unlink()
    (tmp_path / "o" / "fold-1" / "checkpoint-7").mkdir()
    with pytest.raises(InputError, match="--learning_rate was"):
        run(tiny_bert, topic_files, tmp_path / "o", num_folds=3, learning_rate=1e-3)


def test_a_model_that_memorises_shows_that_its_rows_were_not_trained_on(tiny_bert, tmp_path):
    """Labels are random, so a row can only be right by having been seen."""
    rng = random.Random(0)
    rows = [
        {"id": i, "text": " ".join(rng.sample(WORDS, 8)), "label": "ab"[i % 2]} for i in range(64)
    ]
    rng.shuffle(rows)
    pd.DataFrame(rows).to_csv(tmp_path / "train.csv", index=False)
    files = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv")}
    memorise = {"num_train_epochs": 40, "load_best_model_at_end": False, "save_strategy": "no"}
    out = tmp_path / "o"
    results = run(tiny_bert, files, out, num_folds=2, head_dropout=0.0, **memorise)
    folds = read(out / "folds.csv")["fold"]
    for fold in (0, 1):
        own = read(out / f"fold-{fold}" / "predictions_test.csv")  # test is the training file
        right = own["prediction"] == [row["label"] for row in rows]
        assert right[folds != fold].mean() > 0.95  # it has memorised what it trained on
    assert results["oof_accuracy"] < 0.75


def test_seeds_are_averaged_with_and_without_folds(tiny_bert, topic_files, tmp_path):
    files = topic_files | {"test": topic_files["test_labels"]}
    short = {"num_train_epochs": 1}
    results = run(tiny_bert, files, tmp_path / "s", seeds=[1, 2], **short)
    tables = [read(tmp_path / "s" / f"seed-{s}" / "predictions_validation.csv") for s in (1, 2)]
    assert list(tables[0]["id"]) == list(tables[1]["id"])  # the same rows are held out
    assert (probabilities(tables[0]) != probabilities(tables[1])).any()
    mean = read(tmp_path / "s" / "predictions_validation.csv")
    expected = (probabilities(tables[0]) + probabilities(tables[1])) / 2
    np.testing.assert_allclose(probabilities(mean), expected, rtol=1e-14)
    truth = pd.read_csv(files["train"]).set_index("id")["label"]
    hits = mean["prediction"].to_numpy() == truth[mean["id"]].to_numpy()
    assert results["eval_accuracy"] == hits.mean() and results["models"] == 2
    results = run(tiny_bert, files, tmp_path / "f", seeds=[1, 2], num_folds=2, **short)
    assert results["models"] == 4 and results["oof_rows"] == 150
    oof = read(tmp_path / "f" / "predictions_oof.csv")
    row = oof.iloc[0]
    of = [
        read(tmp_path / "f" / f"seed-{s}-fold-{row['fold']}" / "predictions_validation.csv")
        for s in (1, 2)
    ]
    each = [probabilities(t[t["id"] == row["id"]])[0] for t in of]
    np.testing.assert_allclose(probabilities(oof)[0], np.mean(each, axis=0), rtol=1e-14)


def test_groups_and_given_folds(tiny_bert, tmp_path):
    rows = pd.DataFrame(make_rows(60))
    rows["author"] = [f"author {i // 5}" for i in range(60)]
    rows["member"] = [i % 3 for i in range(60)]
    rows.to_csv(tmp_path / "train.csv", index=False)
    files = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv")}
    short = {"num_train_epochs": 1}
    run(tiny_bert, files, tmp_path / "g", num_folds=3, group_column_name="author", **short)
    folds = read(tmp_path / "g" / "folds.csv")["fold"]
    assert (folds.groupby(rows["author"]).nunique() == 1).all()
    run(tiny_bert, files, tmp_path / "c", fold_column_name="member", folds=["1"], **short)
    assert list(read(tmp_path / "c" / "predictions_oof.csv")["id"]) == list(rows["id"][1::3])
    for strategy in ("random", "group"):
        given = {"group_column_name": "author"} if strategy == "group" else {}
        more = {"num_folds": 3, "fold_strategy": strategy, "folds": ["0"]}
        run(tiny_bert, files, tmp_path / strategy, **more, **given, **short)
    with pytest.raises(InputError, match="no column 'nobody'"):
        run(tiny_bert, files, tmp_path / "x", num_folds=3, group_column_name="nobody")


def test_thresholds_are_fitted_on_oof_alone(tiny_bert, tmp_path):
    """Multi-label with a rare label; test labels, all wrong, change nothing."""
    rows = pd.DataFrame(make_rows(150))
    rows["tags"] = [f"{a}|rare" if i % 9 == 0 else a for i, a in enumerate(rows["label"])]
    rows.to_csv(tmp_path / "train.csv", index=False)
    test = pd.DataFrame(make_rows(30, seed=1))
    for name, tags in (("test", None), ("wrong", "rare")):
        own = test.drop(columns="label") if tags is None else test.assign(tags=tags)
        own.to_csv(tmp_path / f"{name}.csv", index=False)
    written = []
    for name in ("test", "wrong"):
        files = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / f"{name}.csv")}
        out = tmp_path / f"out-{name}"
        options = {"label_column_name": ["tags"], "label_delimiter": "|", "num_folds": 2}
        results = run(tiny_bert, files, out, fit_thresholds="per_label", **options)
        written.append((out / "thresholds.json").read_text())
        assert results["oof_f1_macro_fitted"] >= results["oof_f1_macro_nested"]
        assert "oof_f1_macro_plain" in results
        cuts = dict(
            zip(
                ("animals", "moods", "places", "rare"), json.loads(written[-1])["cuts"], strict=True
            )
        )
        table = read(out / "predictions_test.csv").fillna("")
        for tags, row in zip(table["prediction"], table.to_dict("records"), strict=True):
            assert {*tags.split("|")} - {""} == {
                n for n, c in cuts.items() if row[f"prob_{n}"] >= c
            }
    assert written[0] == written[1] and "test_f1_macro_fitted" in results
    again = {"model_name_or_path": str(tmp_path / "out-test"), "id_column_name": "id"}
    again |= {"test_file": str(tmp_path / "test.csv"), "output_dir": str(tmp_path / "again")}
    again |= {"use_cpu": True, "label_column_name": ["tags"], "label_delimiter": "|"}
    run_finetune.main(again)  # the thresholds travel with the models
    tables = [read(tmp_path / f / "predictions_test.csv") for f in ("again", "out-test")]
    assert list(tables[0]["prediction"].fillna("")) == list(tables[1]["prediction"].fillna(""))


def test_rows_without_a_label_are_counted_and_get_one_if_asked(tiny_bert, tmp_path, caplog):
    """A model sure of nothing; and all names of files could be patterns."""
    folder = tmp_path / "[NLP] data"
    folder.mkdir()
    rows = pd.DataFrame(make_rows(60))
    topics = sorted(set(rows["label"]))
    rows["tags"] = [[float(label == name) for name in topics] for label in rows["label"]]
    rows.drop(columns="label").to_json(folder / "train[1].jsonl", orient="records", lines=True)
    rows[["id", "text"]].to_csv(folder / "test[1].csv")  # with the index of pandas
    rows[["id"]].assign(tags="").to_csv(folder / "sample[1].csv", index=False)
    files = {"train": str(folder / "train[1].jsonl"), "test": str(folder / "test[1].csv")}
    results = run(tiny_bert, files, folder / "out[1]", label_column_name=["tags"])
    assert results["eval_lrap"] < 1 or results["eval_f1_macro"] < 1  # not all labels of all rows
    weights = load_file(folder / "out[1]" / "model.safetensors")
    save_file(weights | {"head.bias": torch.full((3,), -9.0)}, folder / "out[1]/model.safetensors")

    def predicted(out, **more):
        options = {"model_name_or_path": str(folder / "out[1]"), "test_file": files["test"]}
        options |= {"output_dir": str(out), "id_column_name": "id", "use_cpu": True}
        options |= {"label_column_name": ["tags"], "disable_tqdm": True}
        options |= {"sample_submission": str(folder / "sample[1].csv"), **more}
        caplog.clear()
        run_finetune.main(options)
        tables = [read(out / f"{name}.csv") for name in ("predictions_test", "submission")]
        assert [*tables[0]["prediction"].fillna("")] == [*tables[1]["tags"].fillna("")]
        assert [*tables[0]][2:] == ["prob_0", "prob_1", "prob_2"]
        assert (probabilities(tables[0]) < 0.5).all()
        return tables[0], caplog.text

    table, said = predicted(tmp_path / "plain")
    assert (table["prediction"].fillna("") == "").all()
    assert "60 of 60 rows get no label" in said and "--fit_thresholds" in said
    table, said = predicted(tmp_path / "one", at_least_one_label=True)
    assert [*map(str, table["prediction"])] == [*map(str, probabilities(table).argmax(axis=1))]
    assert "get no label" not in said


def test_grades_for_an_ordinal_target(tiny_bert, tmp_path):
    rows = pd.DataFrame(make_rows(120))
    rows["grade"] = rows["label"].map({"animals": 1, "moods": 2, "places": 4})
    rows.to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"id": rows["id"], "grade": 0}).to_csv(tmp_path / "sample.csv", index=False)
    files = {"train": str(tmp_path / "train.csv"), "test": str(tmp_path / "train.csv")}
    results = run(
        tiny_bert, files, tmp_path / "o", label_column_name=["grade"], problem_type="regression",
        num_folds=2, fit_thresholds="ordinal", sample_submission=str(tmp_path / "sample.csv"),
        num_train_epochs=8,
    )  # fmt: skip
    assert results["oof_qwk_nested"] > 0.8
    table = read(tmp_path / "o" / "predictions_test.csv")
    submission = pd.read_csv(tmp_path / "o" / "submission.csv")
    assert set(submission["grade"]) <= {1, 2, 4}
    assert list(submission["grade"]) == list(table["grade"])
    assert (table["prediction"] != table["grade"]).any()  # the value itself is there, too


def test_rows_that_a_classifier_was_trained_on_are_counted(
    tiny_bert, topic_files, folded, tmp_path, caplog, monkeypatch
):
    """Folds that go on from it, and what it predicts: it has seen the rows."""
    hashed, hash_text = [], contamination.hash_text
    monkeypatch.setattr(
        contamination, "hash_text", lambda text: hashed.append(text) or hash_text(text)
    )
    out, results = folded
    texts = pd.read_csv(topic_files["train"])["text"]
    fold = read(out / "folds.csv")["fold"]
    seen = texts.isin(texts[fold != 0]).sum()  # by the model of fold 0, equal texts included
    assert results["oof_documents_trained_on"] == 0
    given = {"num_folds": 2, "max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    given |= {"load_best_model_at_end": False}
    results = run(str(out / "fold-0"), topic_files, tmp_path / "o", **given)
    assert results["oof_documents_trained_on"] == seen >= 100
    assert f"{seen} of 150 oof documents" in caplog.text
    assert len(hashed) == 150 + 45  # each text once
    for member in ("fold-0", "fold-1"):  # what it has seen since is added
        hashes = contamination.trained_rows([str(tmp_path / "o" / member)])
        own = texts[read(tmp_path / "o" / "folds.csv")["fold"] != int(member[-1])]
        every = contamination.hash_texts([*texts[fold != 0], *own])
        assert hashes.tolist() == sorted(set(every.tolist()))
    predicts = {"model_name_or_path": str(out), "test_file": topic_files["train"]}
    predicts |= {"output_dir": str(tmp_path / "p"), "id_column_name": "id", "use_cpu": True}
    assert run_finetune.main(predicts)["test_documents_trained_on"] == 150  # by one or another


def test_training_rows_that_are_scored_are_counted(tiny_bert, topic_files, tmp_path, caplog):
    files = topic_files | {"test": topic_files["train"]}
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    short |= {"load_best_model_at_end": False, "validation_file": topic_files["train"]}
    results = run(tiny_bert, files, tmp_path / "o", max_train_samples=2, **short)
    assert results["labels_without_training_rows"] == 1  # animals, moods, but no places
    assert "1 of 3 labels have no training row and are not learnt: places" in caplog.text
    texts = pd.read_csv(topic_files["train"])["text"]
    seen = texts.isin(texts[:2]).sum()
    assert results["validation_documents_trained_on"] == seen
    assert results["test_documents_trained_on"] == seen > 0
    assert f"{seen} of 150 validation documents, {seen} of 150 test documents" in caplog.text
    assert caplog.text.count("their scores are too good") == 1


def test_pseudo_labels_come_from_models_that_did_not_see_the_fold(
    tiny_bert, topic_files, folded, tmp_path
):
    out, _ = folded
    files = topic_files | {"test": topic_files["test_labels"]}
    pseudo = {"pseudo_label_file": str(out / "predictions_test_by_fold.csv"), "num_folds": 3}
    given = pseudo | {"pseudo_label_weight": 0.5, "folds": ["1"]}
    results = run(tiny_bert, files, tmp_path / "p", **given)
    texts = pd.read_csv(files["test"])["text"]
    assert results["test_documents_trained_on"] == 45  # what they are scored with is no other text
    trained = contamination.trained_rows([str(tmp_path / "p" / "fold-1")])
    assert contamination.count_seen(contamination.hash_texts(texts), trained) == 45
    saved = json.loads((tmp_path / "p" / "fold-1" / "all_results.json").read_text())
    assert saved["train_rows"] == 100 and saved["pseudo_labelled_rows"] == 45
    with pytest.raises(InputError, match=r"folds\.csv: not the folds of this run"):
        run(tiny_bert, files, tmp_path / "q", seed=1, **pseudo)
    mean = {"pseudo_label_file": str(out / "predictions_test.csv"), "num_folds": 3}
    with pytest.raises(InputError, match="no column 'fold'"):
        run(tiny_bert, files, tmp_path / "q", **mean)


def test_contradictions_and_what_is_missing(tiny_bert, topic_files, tmp_path, sample, folded):
    def error(**arguments):
        with pytest.raises(InputError) as raised:
            run(tiny_bert, topic_files, tmp_path / "x", **arguments)
        assert not (tmp_path / "x" / "fold-0").exists()
        return str(raised.value)

    test = topic_files["test_labels"]
    assert "--validation_file and --num_folds" in error(num_folds=3, validation_file=test)
    assert "--num_folds and --fold_column_name" in error(num_folds=3, fold_column_name="f")
    assert "--fit_thresholds needs --num_folds" in error(fit_thresholds="global")
    assert "per_label goes with multi_label" in error(num_folds=3, fit_thresholds="per_label")
    assert "--folds needs --num_folds" in error(folds=["1"])
    assert "--folds names 1 twice" in error(num_folds=3, folds=["1,1"])
    assert "--folds x" in error(num_folds=3, folds=["x"])
    assert "--folds 5: there are 0, 1, 2" in error(num_folds=3, folds=["5"])
    assert "--pseudo_label_weight needs" in error(pseudo_label_weight=0.5)
    assert "--fold_strategy needs --num_folds" in error(fold_strategy="random")
    assert "--resume_from_checkpoint" in error(num_folds=3, resume_from_checkpoint="last")
    assert "--seeds names 3 twice" in error(seeds=[3, 3])
    assert "--sample_submission needs --id_column" in error(
        sample_submission=sample, id_column_name=None
    )
    assert "--submission_values needs" in error(submission_values="labels")
    assert "--time_budget 8 hours" in error(time_budget="8 hours")
    model = {"model_name_or_path": str(folded[0] / "fold-0"), "train_file": None}
    assert "--seeds needs --train_file" in error(seeds=[1], **model)
    assert "--num_folds needs --train_file" in error(num_folds=2, **model)
    sample_needs = {"sample_submission": sample, "test_file": None}
    assert "--sample_submission needs --test_file" in error(**sample_needs)


# ---------------------------------------------------------------- time


def test_training_ends_in_time(tiny_bert, topic_files, tmp_path):
    """A budget that 200 epochs do not fit into; what has been trained predicts."""
    started = time.monotonic()
    results = run(
        tiny_bert, topic_files, tmp_path / "o", num_train_epochs=2000, time_budget="18s",
        num_folds=2, eval_strategy="steps", save_strategy="steps", eval_steps=20, save_steps=20,
        warmup_steps=0,  # or how far it learns is a matter of the machine's speed
    )  # fmt: skip
    assert time.monotonic() - started < 33
    assert results["oof_rows"] == 150 and results["oof_accuracy"] > 0.5
    members = [
        json.loads((tmp_path / "o" / f"fold-{k}" / "all_results.json").read_text()) for k in (0, 1)
    ]
    assert all(member["stopped_by_time_budget"] for member in members)
    history = pd.read_csv(tmp_path / "o" / "fold-1" / "history.csv")
    assert history["epoch"].iloc[-1] < 1000


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def rows(**tokens):
    """By split, so many tokens."""
    return {split: {"length": [n]} for split, n in tokens.items()}


def test_the_time_that_prediction_will_take_is_kept_free():
    clock = Clock()
    budget = TimeBudget(110.0, clock)
    (callback,) = budget.callbacks(1, rows(train=1000, validation=100, test=300))
    assert isinstance(callback, StopInTime) and callback.deadline == 100.0  # 10 s to write
    assert TimeBudget(None).callbacks(1, {}) == []
    (half,) = budget.callbacks(2, rows(train=1000, validation=100, test=300))
    assert half.deadline == 50.0  # an equal share

    class State:
        epoch, global_step = 0.0, 0

    class Control:
        should_training_stop = should_evaluate = should_save = False

    class Options:
        eval_strategy, load_best_model_at_end = "steps", True

    state, control = State(), Control()
    callback.on_train_begin(Options(), state, control)
    # A step of 100 tokens takes 1 s, so a token takes at least 5 ms forward, and 500 tokens are
    # predicted at the end: 1.3 * 2.5 s, and a step more.
    for step in range(1, 96):
        clock.now, state.epoch, state.global_step = float(step), step / 10, step
        callback.on_step_end(Options(), state, control)
        assert callback.stopped == (step + 1 + 1.3 * 2.5 >= 100), step
    callback.stopped = control.should_training_stop = False
    clock.now, state.epoch, state.global_step = 50.0, 5.0, 50
    callback.on_evaluate(Options(), state, control, {"eval_runtime": 8.0})  # 80 ms a token: slower
    callback.on_step_end(Options(), state, control)
    assert callback.stopped and control.should_training_stop
    assert control.should_evaluate and control.should_save


# ---------------------------------------------------------------- killed, and two processes


def command(tiny_bert, files, out, sample, **arguments):
    fields = {"model_name_or_path": tiny_bert, "train_file": files["train"]}
    fields |= {"test_file": files["test"], "output_dir": str(out), "sample_submission": sample}
    fields |= {"num_folds": 3, "num_train_epochs": 3, "ema_decay": 0.9}
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump({**BASICS, **fields, **arguments}))
    return [ROOT / "run_finetune.py", path]


OUTPUTS = ("predictions_oof.csv", "predictions_test.csv", "submission.csv", "folds.csv")


def test_killed_at_any_moment_the_same_command_ends_alike(tiny_bert, topic_files, sample, tmp_path):
    whole = command(tiny_bert, topic_files, tmp_path / "whole", sample)
    assert run_command(*whole).returncode == 0
    scratch = tmp_path / "scratch"
    line = command(tiny_bert, topic_files, tmp_path / "killed", sample, checkpoint_dir=str(scratch))
    moments = [  # each waited for in a new process, which then is killed
        lambda: [*scratch.glob("*/fold-0/checkpoint-*/whole")],
        lambda: [*scratch.glob("*/fold-1/checkpoint-*/optimizer.pt")],  # perhaps half written
        lambda: [*scratch.glob("*/fold-2/checkpoint-*/whole")],
    ]
    for reached in moments:
        process = start_command(*line)
        while not reached():
            assert process.poll() is None, "it ended before the moment came"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "submission.csv").exists()
    done = run_command(*line)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "done before: fold-0, fold-1" in done.stderr
    for name in OUTPUTS:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [*scratch.rglob("checkpoint-*")]


def test_two_processes_give_the_predictions_of_one(tiny_bert, topic_files, sample, tmp_path):
    """100 rows a fold are 6 steps of 16 and one of 4: the short one is shared out as well."""
    plain = {"ema_decay": 0.0, "encoder_dropout": 0.0, "head_dropout": 0.0, "num_folds": 2}
    plain |= {"save_strategy": "no", "load_best_model_at_end": False, "num_train_epochs": 2}
    plain |= {"max_train_samples": 147}  # 73 and 74 rows: 4 steps of 16, and 9 or 10 left over
    one = command(tiny_bert, topic_files, tmp_path / "one", sample, **plain)
    assert run_command(*one).returncode == 0
    two = command(
        tiny_bert, topic_files, tmp_path / "two", sample, per_device_train_batch_size=8, **plain
    )
    launch = ["-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "examples" / "accelerate" / "two_processes.yaml")]
    launch += ["--main_process_port", str(29800 + os.getpid() % 150)]
    done = run_command(*launch, *two)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in OUTPUTS[:3]:
        a, b = (read(tmp_path / f / name) for f in ("one", "two"))
        assert list(a["id"]) == list(b["id"])
        if name != "submission.csv":
            np.testing.assert_allclose(probabilities(a), probabilities(b), atol=2e-4)
        else:  # two labels as likely as each other may change places
            assert (a["label"] == b["label"]).mean() > 0.98
    assert done.stderr.count("submission.csv, 45 rows") == 1  # written by one process
    assert (tmp_path / "one" / "folds.csv").read_bytes() == (
        tmp_path / "two" / "folds.csv"
    ).read_bytes()
