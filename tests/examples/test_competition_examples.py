"""The examples around folds: blending, the recipe of a whole competition, the notebook."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, TOPICS, make_rows, tiny_bert_config
from forking import run_command
from transformers import TrainingArguments

import run_finetune
from bertchain import cli
from bertchain.arguments import finetuning
from bertchain.competition import ensemble
from bertchain.models.modeling import DocumentClassifierConfig
from bertchain.training.prediction import read_written_table, write_predictions

sys.path.insert(0, str(ROOT / "examples"))
import blend
import recipe
import stack

from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError

SINGLE = LabelSpec("single_label", ("a", "b"), ())
NUMBER = LabelSpec("regression", ("y",), (), None, (0.0,), (1.0,))


@pytest.fixture(scope="module")
def competition(tmp_path_factory, tiny_bert):
    """A folder with train, test and sample_submission, tab- and comma-separated, and a model."""
    folder = tmp_path_factory.mktemp("competition")
    for name, n, seed in (("train", 90, 0), ("test", 30, 1)):
        rows = pd.DataFrame(make_rows(n, seed)).rename(columns={"text": "abstract"})
        rows["title"] = rows["abstract"].str.split().str[0]
        rows = rows if name == "train" else rows.drop(columns="label")
        rows.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
        rows.to_csv(folder / f"{name}.csv", index=False)
    ids = [f"r{i}" for i in range(30)][::-1]
    pd.DataFrame({"id": ids, "label": "x"}).to_csv(folder / "sample_submission.csv", index=False)
    (folder / "model").symlink_to(tiny_bert)
    return folder


# ---------------------------------------------------------------- blending


def test_weights_computed_by_hand():
    """Errors of two predictors of 0 are 1 and -3: the mean square is least at 3/4, 1/4."""
    predictions = np.array([[[1.0]], [[-3.0]]])
    weights = blend.fit_weights(predictions, np.array([[0.0]]), NUMBER)
    np.testing.assert_allclose(weights, [0.75, 0.25], atol=1e-6)


def test_weights_are_never_negative_and_leave_a_bad_run_out():
    truth = np.eye(2)[[0, 1, 0, 1]]
    good = np.where(truth == 1, 0.8, 0.2)
    weights = blend.fit_weights(np.stack([good, 1 - good, good]), truth, SINGLE)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
    assert weights[1] == pytest.approx(0, abs=1e-6)


def test_blending_runs_by_id(tiny_bert, competition, tmp_path, monkeypatch):
    common = {"model_name_or_path": tiny_bert, "train_file": str(competition / "train.tsv")}
    common |= {"test_file": str(competition / "test.tsv"), "id_column_name": "id"}
    common |= {"text_column_names": ["title", "abstract"], "num_folds": 3, "use_cpu": True}
    common |= {"token_pooling": "mean", "learning_rate": 3e-3, "disable_tqdm": True}
    run_finetune.main({**common, "output_dir": str(tmp_path / "long"), "num_train_epochs": 4})
    run_finetune.main({**common, "output_dir": str(tmp_path / "short"), "num_train_epochs": 1})
    shuffled = tmp_path / "short" / "predictions_oof.csv"
    table = pd.read_csv(shuffled)
    table.sample(frac=1, random_state=0).to_csv(shuffled, index=False)  # by id, not by place
    sample = competition / "sample_submission.csv"
    line = [ROOT / "examples" / "blend.py", "long", "short", "--output_dir", "blend"]
    done = run_command(*line, "--sample_submission", sample, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "blend" / "all_results.json").read_text())
    weights = saved["weights"]
    assert weights["long"] > weights["short"] and sum(weights.values()) == pytest.approx(1)
    p = {n: read_written_table(tmp_path / n / "predictions_test.csv") for n in (*weights, "blend")}
    mixed = sum(w * p[n]["prob_moods"] for n, w in weights.items())
    np.testing.assert_allclose(p["blend"]["prob_moods"], mixed, atol=1e-12)
    oof = pd.read_csv(tmp_path / "long" / "predictions_oof.csv")
    assert saved["scores"]["long"]["accuracy"] == (oof["label"] == oof["prediction"]).mean()
    submission = pd.read_csv(tmp_path / "blend" / "submission.csv")
    assert list(submission["id"]) == list(pd.read_csv(sample)["id"])
    expected = p["blend"].set_index("id")["prediction"]
    assert list(submission["label"]) == list(expected[submission["id"]])
    report = (tmp_path / "blend" / "report.md").read_text()
    assert "| long |" in report and "correlation" in report and "differs from the best" in report
    lost = oof.iloc[1:]
    lost.to_csv(tmp_path / "long" / "predictions_oof.csv", index=False)
    for runs, message in (
        (["short", "long"], "ids are in this or in the first"),
        (["short"], "two"),
    ):
        paths = [str(tmp_path / name) for name in runs]
        monkeypatch.setattr(sys, "argv", ["blend.py", *paths, "--output_dir", str(tmp_path / "b")])
        with pytest.raises(InputError, match=message):
            blend.main()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("held_out", [{"validation_split": 0.3}, {"validation_file": "dev.tsv"}])
def test_runs_without_folds_are_blended_by_their_validation_rows(
    held_out, tiny_bert, competition, tmp_path, monkeypatch
):
    """Weights are of all validation rows; what is scored is weighed by the other parts of them."""
    monkeypatch.chdir(tmp_path)
    train = pd.read_csv(competition / "train.csv")
    train.sample(frac=0.4, random_state=0).to_csv("dev.tsv", sep="\t", index=False)
    common = {"model_name_or_path": tiny_bert, "train_file": str(competition / "train.tsv")}
    common |= {"test_file": str(competition / "test.tsv"), "id_column_name": "id", "seed": 7}
    common |= {"text_column_names": ["abstract"], "token_pooling": "mean", "use_cpu": True}
    common |= {"num_train_epochs": 1, "disable_tqdm": True, **held_out}
    for name, rate in (("a", 5e-3), ("b", 1e-3)):
        run_finetune.main({**common, "output_dir": name, "learning_rate": rate})
    monkeypatch.setattr(sys, "argv", ["blend.py", "a", "b", "--output_dir", "o"])
    blend.main()
    saved = json.loads((tmp_path / "o" / "all_results.json").read_text())
    for name in ("a", "b"):
        own = json.loads((tmp_path / name / "all_results.json").read_text())
        assert saved["scores"][name]["accuracy"] == pytest.approx(own["eval_accuracy"])
    spec = LabelSpec("single_label", ("animals", "moods", "places"), ())
    ids, _ = blend.read_predictions("a/predictions_validation.csv", spec)
    labels = train.set_index("id").loc[ids, "label"].to_numpy()
    truth = (labels[:, None] == np.array(spec.names)).astype(float)
    p = [blend.read_predictions(f"{name}/predictions_validation.csv", spec)[1] for name in "ab"]
    weights = blend.fit_weights(np.stack(p), truth, spec)
    np.testing.assert_allclose([*saved["weights"].values()], weights, atol=1e-6)
    table = read_written_table("o/predictions_validation.csv")
    assert table["label"].tolist() == labels.tolist() and table["fold"].nunique() == 5
    inside = table["fold"].to_numpy() == 2
    others = blend.fit_weights(np.stack(p)[:, ~inside], truth[~inside], spec)
    found = table[spec.value_columns].to_numpy()[inside]
    np.testing.assert_allclose(found, blend.combine(others, np.stack(p)[:, inside]), atol=1e-9)
    assert "| validation predictions |" in (tmp_path / "o" / "report.md").read_text()
    monkeypatch.setitem(stack.TREES, "max_iter", 5)
    monkeypatch.setattr(sys, "argv", ["stack.py", "a", "b", "--output_dir", "s"])
    stack.main()
    stacked = read_written_table("s/predictions_validation.csv")
    assert stacked[["id", "fold", "label"]].equals(table[["id", "fold", "label"]])
    monkeypatch.setattr(sys, "argv", ["blend.py", "a", "b", "--output_dir", "o"])
    changed = train.assign(id=[f"x{name}" for name in train["id"]])
    for file in ("dev.tsv", "moved.tsv"):
        changed.to_csv(file, sep="\t", index=False)
    arguments = yaml.safe_load((tmp_path / "a" / "run_args.yaml").read_text())
    (tmp_path / "a" / "run_args.yaml").write_text(
        yaml.safe_dump(arguments | {"train_file": "moved.tsv"})
    )
    with pytest.raises(InputError, match="a: its table has no validation row"):
        blend.main()


def written_run(folder, spec, labels, oof, test, cuts=None):
    """A run of two folds as run_finetune.py leaves it, without its weights."""
    member = folder / "fold-0"
    member.mkdir(parents=True)
    encoder = tiny_bert_config(100)
    config = DocumentClassifierConfig(encoder_config=encoder, layers=[1], **spec.config_fields())
    config.save_pretrained(member)
    (member / "all_results.json").write_text("{}")
    manifest = {"members": [{"name": "fold-0", "fold": 0, "seed": 1}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run_args.yaml").write_text("label_delimiter: null")
    ids, folds = [f"r{i}" for i in range(len(oof))], [2 * i // len(oof) for i in range(len(oof))]
    columns = {"fold": folds, **spec.label_columns(labels)}
    write_predictions(folder / "predictions_oof.csv", spec, ids, oof, cuts, **columns)
    tests = [f"t{i}" for i in range(len(test))]
    write_predictions(folder / "predictions_test.csv", spec, tests, test, cuts)
    ensemble.write_thresholds(folder, cuts)


def blend_two(tmp_path, monkeypatch, spec, cuts, sample, labels, oof, test):
    """Blend two such runs, the second a little off; returns the submission and all_results.json."""
    written_run(tmp_path / "a", spec, labels, oof, test, cuts)
    written_run(tmp_path / "b", spec, labels, oof * 0.98, test * 0.98, cuts)
    pd.DataFrame(sample).to_csv(tmp_path / "sample.csv", index=False)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "o")]
    words += ["--sample_submission", str(tmp_path / "sample.csv")]
    monkeypatch.setattr(sys, "argv", ["blend.py", *words])
    blend.main()
    results = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert json.loads((tmp_path / "o" / "thresholds.json").read_text())["kind"] == cuts.kind
    page = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    for section in ("scores", "runs", "correlation", "thresholds", "mistakes", "submission"):
        assert f'<section id="{section}">' in page
    return pd.read_csv(tmp_path / "o" / "submission.csv"), results


def test_a_blend_decides_by_thresholds_that_are_fitted_anew(tmp_path, monkeypatch):
    """All probabilities are below 0.5, so without thresholds no document had a label."""
    spec = LabelSpec("multi_label", ("a|b", "c"), ("tags",))  # a label may hold the delimiter
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 6)
    oof = 0.05 + 0.3 * labels + 0.01 * np.arange(24)[:, None] / 24
    sample = {"id": ["t0", "t1", "t2", "t3"], "tags": "c"}
    cuts = Thresholds("per_label", (0.2, 0.2))
    given = {"labels": labels.astype(float), "oof": oof, "test": oof[:4]}
    table, results = blend_two(tmp_path, monkeypatch, spec, cuts, sample, **given)
    assert table["tags"].fillna("").tolist() == ["a|b", "c", "a|b|c", ""]
    assert results["scores"][blend.BLEND]["oof_f1_macro_nested"] == 1.0
    assert "oof_f1_macro_nested" in (tmp_path / "o" / "report.md").read_text()


def test_a_blend_of_grades_is_graded(tmp_path, monkeypatch):
    grades = np.array([[1.0], [2.0], [4.0]] * 8)
    values = grades + 0.3
    sample = {"id": ["t2", "t0", "t1"], "y": 1}
    cuts = Thresholds("ordinal", (1.5, 3.0), (1.0, 2.0, 4.0))
    given = {"labels": grades, "oof": values, "test": values[:3]}
    table, results = blend_two(tmp_path, monkeypatch, NUMBER, cuts, sample, **given)
    assert table["y"].tolist() == [4, 1, 2]
    assert results["scores"][blend.BLEND]["oof_qwk_nested"] == 1.0


def test_a_blend_for_a_score_of_ones_own(tmp_path, monkeypatch):
    """The least log loss leaves the second run out; the score takes it alone."""
    metric = tmp_path / "my_metric.py"
    metric.write_text(
        "def middle(labels, p):\n    return abs(p[:, 1] - 0.6).mean()\n"
        "middle.greater_is_better = False\n"
    )
    labels, ones = np.arange(24) % 2, np.full(24, 0.9)
    runs = {"a": np.where(labels == 1, ones, 1 - ones), "b": np.full(24, 0.6)}
    spec = LabelSpec("single_label", ("0", "1"), ("label",))
    for name, p in runs.items():
        p = np.stack([1 - p, p], axis=1)
        written_run(tmp_path / name, spec, labels, p, p[:4])
    options = f"label_delimiter: null\nmetric_file: {metric}:middle\n"
    (tmp_path / "b" / "run_args.yaml").write_text(options)
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["blend.py", *words])
    blend.main()
    results = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert results["weights"][words[1]] == pytest.approx(1, abs=0.02)
    nested = results["scores"][blend.BLEND]
    assert nested["middle"] < 0.02 < results["scores"][words[0]]["middle"]
    oof = read_written_table(tmp_path / "o" / "predictions_oof.csv")
    assert nested["middle"] == pytest.approx(np.abs(oof["prob_1"] - 0.6).mean())
    assert "| middle |" in (tmp_path / "o" / "report.md").read_text()


def two_rankings(folder: Path) -> list[str]:
    """Runs whose mean ranks all rows; the least log loss takes the second, which is surer."""
    labels = np.tile([0, 1, 0, 1, 1, 0], 8)
    near = {
        "a": np.tile([0.46, 0.47, 0.45, 0.54, 0.53, 0.48], 8),
        "b": np.tile([0.10, 0.90, 0.55, 0.90, 0.50, 0.10], 8),
    }
    spec = LabelSpec("single_label", ("0", "1"), ("label",))
    for name, p in near.items():
        p = np.stack([1 - p, p], axis=1)
        written_run(folder / name, spec, labels, p, p[:4])
    return [str(folder / name) for name in near]


def scores_of_blend(folder: Path, words: list[str], monkeypatch) -> tuple[dict, str]:
    """Scores of the blend, and its report."""
    monkeypatch.setattr(sys, "argv", ["blend.py", *words, "--output_dir", str(folder / "o")])
    blend.main()
    results = json.loads((folder / "o" / "all_results.json").read_text())
    return results["scores"], (folder / "o" / "report.md").read_text()


def test_a_blend_for_the_score_that_the_runs_were_chosen_by(tmp_path, monkeypatch):
    runs = two_rankings(tmp_path)
    scores, report = scores_of_blend(tmp_path, runs, monkeypatch)
    assert scores[blend.BLEND]["roc_auc"] == scores[runs[1]]["roc_auc"] < 1
    assert "have the least log loss" in report and "| roc_auc |" not in report
    for run in runs:
        (Path(run) / "run_args.yaml").write_text("metric_for_best_model: eval_roc_auc\n")
    scores, report = scores_of_blend(tmp_path, runs, monkeypatch)
    assert scores[blend.BLEND]["roc_auc"] == 1 > scores[runs[1]]["roc_auc"]
    assert "have the best roc_auc" in report and "| roc_auc |" in report
    assert "the best roc_auc" in (tmp_path / "o" / "report.html").read_text()
    by_loss = [*runs, "--metric_for_best_model", "log_loss"]
    assert scores_of_blend(tmp_path, by_loss, monkeypatch)[0][blend.BLEND]["roc_auc"] < 1


def test_runs_chosen_by_different_scores(tmp_path, monkeypatch):
    runs = two_rankings(tmp_path)
    for run, name in zip(runs, ("roc_auc", "accuracy"), strict=True):
        (Path(run) / "run_args.yaml").write_text(f"metric_for_best_model: {name}\n")
    with pytest.raises(InputError, match=r"accuracy, roc_auc.*give --metric_for_best_model"):
        scores_of_blend(tmp_path, runs, monkeypatch)
    chosen = [*runs, "--metric_for_best_model", "roc_auc"]
    assert scores_of_blend(tmp_path, chosen, monkeypatch)[0][blend.BLEND]["roc_auc"] == 1
    with pytest.raises(InputError, match=r"roc_acu is not one of loss, accuracy.*roc_auc"):
        scores_of_blend(tmp_path, [*runs, "--metric_for_best_model", "roc_acu"], monkeypatch)
    for run in runs:  # of a metric that is computed elsewhere the weights know nothing
        (Path(run) / "run_args.yaml").write_text("metric_for_best_model: kappa\n")
    assert "least log loss" in scores_of_blend(tmp_path, runs, monkeypatch)[1]


def test_decisions_at_half_choose_no_weights_where_thresholds_are_fitted(tmp_path, monkeypatch):
    spec = LabelSpec("multi_label", ("x", "y"), ("tags",))
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 6)
    oof = 0.05 + 0.3 * labels + 0.01 * np.arange(24)[:, None] / 24
    for name, p in (("a", oof), ("b", oof / 2)):
        written_run(tmp_path / name, spec, labels.astype(float), p, p[:4])
        (tmp_path / name / "run_args.yaml").write_text("metric_for_best_model: f1_macro\n")
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert "best f1_macro" in scores_of_blend(tmp_path, runs, monkeypatch)[1]
    cut = [*runs, "--fit_thresholds", "global"]
    assert "least log loss" in scores_of_blend(tmp_path, cut, monkeypatch)[1]


def test_weights_for_a_score_are_sought_from_two_starts():
    """Far from the least loss the score is better, but for no single step on the way there."""
    truth = np.eye(2)[[0, 0, 1, 1]]
    runs = np.array([[0.9, 0.9, 0.45, 0.45], [0.49, 0.49, 0.8, 0.8]])  # of class 0
    p = np.stack([runs, 1 - runs], axis=2)

    class Middle:
        """A score that only the two together reach."""

        name, greater_is_better = "middle", True

        def __call__(self, labels, predictions):
            return float(abs(predictions[0, 0] - p[:, 0, 0].mean()) < 1e-9)

    given = blend.Given(
        SINGLE, pd.DataFrame({"fold": [0, 1, 0, 1]}), truth, [],
        [blend.Run(str(i), own, own) for i, own in enumerate(p)], None, metric=Middle(),
    )  # fmt: skip
    np.testing.assert_allclose(blend.fit_nested(given)[0], [0.5, 0.5])


def test_thresholds_of_a_blend_may_be_asked_for(tmp_path, monkeypatch):
    """The runs have none; their kind has to fit the labels."""
    spec = LabelSpec("multi_label", ("x", "y"), ("tags",))
    labels = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 6)
    oof = 0.05 + 0.3 * labels + 0.01 * np.arange(24)[:, None] / 24
    for name in ("a", "b"):
        written_run(tmp_path / name, spec, labels.astype(float), oof, oof[:4])
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--output_dir", str(tmp_path / "o")]
    monkeypatch.setattr(sys, "argv", ["blend.py", *words, "--fit_thresholds", "global"])
    blend.main()
    kept = json.loads((tmp_path / "o" / "thresholds.json").read_text())
    assert kept["kind"] == "global" and 0.07 < kept["cuts"][0] < 0.35
    predicted = pd.read_csv(tmp_path / "o" / "predictions_test.csv", keep_default_na=False)
    assert predicted["prediction"].tolist() == ["x", "y", "x|y", ""]
    monkeypatch.setattr(sys, "argv", ["blend.py", *words, "--fit_thresholds", "ordinal"])
    with pytest.raises(InputError, match="--fit_thresholds ordinal goes with regression labels"):
        blend.main()


def test_joined_labels_are_split_by_the_labels_there_are():
    names = ("a", "a|b", "c")
    assert blend.split_labels("a|b|c", names, "|") == {"a|b", "c"}
    assert blend.split_labels("", names, "|") == set()
    for text, message in (("b", "no row"), ("a|b|b", "several rows")):
        with pytest.raises(InputError, match=message):
            blend.split_labels(text, ("a", "a|b", "b", "b|b") if "|" in text else names, "|")


# ---------------------------------------------------------------- the recipe


def test_the_recipe_of_a_competition(competition, tmp_path):
    path = ROOT / "examples" / "competition.yaml"
    words = [f"data={competition}", f"model={competition / 'model'}", f"out={tmp_path / 'work'}"]
    words += ["length=32", "epochs=3", "rate=3e-3", "head_rate=3e-3", "pooling=mean"]
    words += ["itpt_epochs=1"]
    script = ROOT / "examples" / "recipe.py"
    done = run_command(script, path, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "work" / "finetuned"
    results = json.loads((folder / "all_results.json").read_text())
    assert results["transductive"] is True and results["test_documents_in_pretraining"] > 20
    assert results["models"] == 5 and results["oof_accuracy"] > 0.6
    submission = pd.read_csv(folder / "submission.csv")
    sample = pd.read_csv(competition / "sample_submission.csv")
    assert list(submission["id"]) == list(sample["id"])
    arguments = yaml.safe_load((folder / "run_args.yaml").read_text())
    assert arguments["layers"] == "last4" and arguments["layer_lr_decay"] == 0.95
    scores = json.loads((tmp_path / "work" / "stack" / "all_results.json").read_text())["scores"]
    assert {name.split("/")[-1] for name in scores} > {"finetuned", "second", blend.BLEND}
    again = run_command(script, path, *words, "distil=true", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stdout.count(": done") == 5
    student = json.loads((tmp_path / "work" / "student" / "all_results.json").read_text())
    assert student["train_rows"] == 90 and student["pseudo_labelled_rows"] == 30
    for name in ("second", "blend", "stack", "student"):  # one of them is handed in
        table = pd.read_csv(tmp_path / "work" / name / "submission.csv")
        assert list(table["id"]) == list(sample["id"]) and set(table["label"]) <= {*TOPICS}


def test_switches_of_the_recipe():
    """What is null is left out, in all runs; a list stays one; names stand for each other."""
    path = str(ROOT / "examples" / "competition.yaml")
    words = ["itpt=false", "start=deberta", "group=venue", "metric=my.py:score", "full_fit=true"]
    steps = [command for command, _ in recipe.read_steps([path, *words])]
    assert [Path(command[0]).stem for command in steps] == [
        "run_finetune", "run_finetune", "blend", "stack",
    ]  # fmt: skip
    for command in steps[:2]:
        groups = (*finetuning.GROUPS, TrainingArguments)
        args = finetuning.Arguments(*cli.parse(groups, command[1:]))
        assert args.checkpoint.model_name_or_path == "deberta" and args.folds.full_fit is True
        assert args.folds.group_column_name == "venue" and args.folds.near_duplicates is None
        assert "--metric_file=my.py:score" in command
    assert not any("columns" in word for word in steps[3])
    words += ["blend=false", "metric=null", "group=null"]
    ((command, folder),) = recipe.read_steps([path, *words])
    assert folder == Path("work/finetuned") and not any("metric" in word for word in command)


def test_a_list_on_the_command_line_and_the_recipe_of_gains():
    path = str(ROOT / "benchmarks" / "gains.yaml")
    steps = recipe.read_steps([path, "name=reuters", "texts=[title, text]", "out=o"])
    assert len({folder for _, folder in steps}) == len(steps) == 10
    for command, folder in steps:
        assert folder.parent == Path("o/reuters")
        if command[0] == "run_finetune.py":
            groups = (*finetuning.GROUPS, TrainingArguments)
            args = finetuning.Arguments(*cli.parse(groups, command[1:]))
            assert args.text.text_column_names == ["title", "text"]
            assert args.data.train_file == "data/reuters/train.jsonl.gz"


def test_a_pilot_decides_what_is_fine_tuned(competition, tmp_path):
    pilot = yaml.safe_load((ROOT / "examples" / "pilot.yaml").read_text())
    pilot["steps"][1] |= {"seeds": [1, 2], "blends": [0.5]}
    pilot["steps"][2]["num_folds"] = 2
    (tmp_path / "pilot.yaml").write_text(yaml.safe_dump(pilot))
    words = [f"data={competition}", f"model={competition / 'model'}", f"out={tmp_path / 'work'}"]
    words += ["length=32", "epochs=1", "rate=3e-3", "pooling=mean", "some=2", "most=4"]
    done = run_command(ROOT / "examples" / "recipe.py", "pilot.yaml", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    curve, tuned = tmp_path / "work" / "curve", tmp_path / "work" / "finetuned"
    verdict = json.loads((curve / "verdict.json").read_text())
    assert verdict["verdict"] in ("pays", "does not pay", "cannot be told yet")
    assert verdict["metric"] == "eval_accuracy" and verdict["seeds"] == [1, 2]
    best = max(
        (2, 4), key=pd.read_csv(curve / "curve.csv").groupby("step")["eval_accuracy"].mean().get
    )
    assert {*verdict["frozen"]} == {"step-0", "step-2", "step-4", f"step-{best}-blend-0.5"}
    assert all(0 < score <= 1 for score in verdict["frozen"].values())
    arguments = yaml.safe_load((tuned / "run_args.yaml").read_text())
    assert arguments["model_name_or_path"] == str(curve / "best")
    results = json.loads((tuned / "all_results.json").read_text())
    assert results["transductive"] is True  # best/ knows what it has seen


def test_recipes_that_cannot_be(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: [{script: run_itpt.py, output_dir: '{nowhere}/x'}]")
    (tmp_path / "b.yaml").write_text("steps: [{script: rm.py, output_dir: x}]")
    (tmp_path / "c.yaml").write_text("step: []")
    script = ROOT / "examples" / "recipe.py"
    for name, message in (("a", "'nowhere'"), ("b", "needs a script"), ("c", "not step")):
        done = run_command(script, f"{name}.yaml", cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
    (tmp_path / "d.yaml").write_text("steps: [{script: run_itpt.py, output_dir: x, when: 2}]")
    with pytest.raises(InputError, match="step 1: when has to be true or false, not 2"):
        recipe.read_steps([str(tmp_path / "d.yaml")])
    with pytest.raises(InputError, match=r"has no distill \(did you mean distil\?\)"):
        recipe.read_steps([str(ROOT / "examples" / "competition.yaml"), "distill=true"])
    assert run_command(script, "a.yaml", "nowhere", cwd=tmp_path).returncode == 2


# ---------------------------------------------------------------- the notebook


@pytest.mark.parametrize("processes", [1, 2])
def test_the_notebook_runs_offline(processes, competition, tmp_path, forked_workers):
    """What its cells print is short, also where several processes train."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "competition.ipynb", as_version=4)
    ours = {"CODE": str(ROOT), "WHEELS": None, "DATA": str(competition), "WORK": str(tmp_path)}
    ours |= {"MODEL": str(competition / "model"), "TEXT": ["title", "abstract"], "LABEL": "label"}
    ours |= {"ID": "id", "PROCESSES": processes, "PRECISION": "no", "TIME_BUDGET": "10m"}
    ours |= {"METRIC": "my_metric.py:score", "JOIN": "stack" if processes == 1 else "blend"}
    ours["RUNS"] = {"first": {"token_pooling": "mean"}, "second": {"layers": "last4"}}
    ours["FURTHER_PRETRAIN"] = processes == 1
    ours["OPTIONS"] = {"num_folds": 2, "learning_rate": 3e-3, "use_cpu": True}
    ours["OPTIONS"] |= {"num_train_epochs": 1}
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    named = {line.split("=")[0].strip() for line in cell.source.splitlines() if "=" in line}
    assert {n for names in named for n in names.split(", ")} == set(ours)  # none forgotten
    cell.source = "\n".join(f"{name} = {value!r}" for name, value in ours.items())
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = json.dumps(notebook.cells)
    assert "oof_accuracy" in shown and "oof_score" in shown and "30 rows" in shown
    assert "iframe srcdoc" in shown and "Learning curves" in shown  # the page of a run
    assert blend.BLEND in shown
    for cell in notebook.cells:
        printed = "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream")
        assert len(printed.splitlines()) <= 15, printed
    assert len(pd.read_csv(tmp_path / "submission.csv")) == 30
    assert not list(competition.glob("*checkpoint*"))  # the input folder stays as it was
    assert sorted(p.name for p in competition.iterdir()) == sorted(
        ["model", "sample_submission.csv", "test.csv", "test.tsv", "train.csv", "train.tsv"]
    )


def test_the_notebook_is_saved_without_outputs():
    notebook = json.loads((ROOT / "examples" / "competition.ipynb").read_text())
    assert not any(cell.get("outputs") for cell in notebook["cells"])
