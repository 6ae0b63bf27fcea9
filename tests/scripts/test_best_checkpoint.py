"""Which checkpoint is the best: by any metric, in its direction, checked before training."""

import json
import logging

import pandas as pd
import pytest
from conftest import BASICS, make_rows
from transformers import Trainer

import run_finetune
import run_itpt
from bertchain.errors import InputError
from bertchain.metrics import LESS_IS_BETTER, score_directions
from bertchain.pretraining import masked_lm

pytestmark = pytest.mark.versions
UNSTEADY = {"learning_rate": 5e-3, "num_train_epochs": 4, "lr_scheduler_type": "constant"}


def tune(model, files, out, **arguments):
    fields = {"model_name_or_path": model, "train_file": files["train"], "output_dir": str(out)}
    return run_finetune.main({**BASICS, **fields, **arguments})


def itpt(model, out, **arguments):
    fields = {"model_name_or_path": model, "output_dir": str(out), "disable_tqdm": True}
    return run_itpt.main({**fields, "use_cpu": True, **arguments})


@pytest.fixture
def never_trains(monkeypatch):
    """What is wrong must be said before."""

    def train(*args, **kwargs):
        raise AssertionError("trained")

    monkeypatch.setattr(Trainer, "train", train)


@pytest.fixture
def corpora(tmp_path) -> list[str]:
    for name, seed in (("a", 5), ("b", 6)):
        table = pd.DataFrame(make_rows(120, seed=seed))
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    return [f"{name}={tmp_path / name}.csv" for name in "ab"]


@pytest.fixture
def misses(tmp_path) -> str:
    """A metric of which less is better, and whose name does not say so."""
    script = tmp_path / "misses.py"
    script.write_text(
        "import datasets\nimport evaluate\n"
        "class Misses(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        value = datasets.Value('int64')\n"
        "        features = datasets.Features({'predictions': value, 'references': value})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references, fail=''):\n"
        "        if fail:\n"
        "            raise ValueError('Target is not binary')\n"
        "        misses = sum(p != r for p, r in zip(predictions, references))\n"
        "        return {'misses': float(misses), 'zero_one_loss': float(misses)}\n"
    )
    return str(script)


# ---------------------------------------------------------------- direction


@pytest.mark.parametrize("metric", ["perplexity", "loss_b", "perplexity_a", "masked_accuracy"])
def test_the_best_of_further_pretraining_by_any_score(metric, tiny_bert, corpora, tmp_path):
    flags = {"train_file": corpora, "validation_split": 0.3, "metric_for_best_model": metric}
    results = itpt(tiny_bert, tmp_path / "o", **flags, **UNSTEADY)
    history = pd.read_csv(tmp_path / "o" / "history.csv").query("phase == 'all' and step > 0")
    history = history[f"eval_{metric}"]
    best = history.max() if "accuracy" in metric else history.min()
    assert results[f"eval_{metric}"] == pytest.approx(best, rel=1e-5) and len(set(history)) > 1


def test_directions_of_all_scores():
    for problem_type in ("single_label", "multi_label", "regression"):
        found = score_directions(problem_type)
        assert {name for name, more in found.items() if not more} <= {*LESS_IS_BETTER}
        assert not found["loss"] and len(found) > 4
    found = score_directions("regression", ["a", "b"])
    assert found["rmse_standardised"] is found["b_rmse"] is False and found["pearson"] is True
    assert masked_lm.score_directions(["a", "a"]) == masked_lm.DIRECTIONS
    assert masked_lm.score_directions(["a", "b"])["masked_accuracy_b"] is True


@pytest.mark.parametrize(
    ("metric", "flags", "pick"),
    [
        ("misses", {"greater_is_better": False}, min),
        ("misses", {"greater_is_better": True}, max),
        ("zero_one_loss", {}, min),
    ],
)
def test_an_extra_metric_has_the_direction_given(
    metric, flags, pick, tiny_bert, topic_files, misses, tmp_path
):
    flags = {**flags, **UNSTEADY, "extra_metrics": [misses], "metric_for_best_model": metric}
    results = tune(tiny_bert, topic_files, tmp_path / "o", **flags)
    history = pd.read_csv(tmp_path / "o" / "history.csv")[f"eval_{metric}"]
    assert results[f"eval_{metric}"] == pick(history) and len(set(history)) > 1


def test_of_several_targets_no_large_one_chooses_alone(tiny_bert, tmp_path):
    rows = pd.DataFrame(make_rows(90))
    rows["small"] = [len(text.split()) / 10 for text in rows["text"]]
    rows["large"] = rows["label"].map({"animals": 1000.5, "moods": 9000.0, "places": 2000.0})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    files = {"train": str(tmp_path / "rows.csv")}
    targets = {"label_column_name": ["small", "large"]}
    results = tune(tiny_bert, files, tmp_path / "o", **targets, **UNSTEADY)
    history = pd.read_csv(tmp_path / "o" / "history.csv")
    best = min(history["eval_rmse_standardised"])
    assert results["eval_rmse_standardised"] == pytest.approx(best, rel=1e-5)
    assert results["eval_rmse"] > 100 * results["eval_small_rmse"] > 0
    both = [results[f"eval_{name}_rmse_standardised"] for name in ("small", "large")]
    mean = (sum(value**2 for value in both) / 2) ** 0.5
    assert results["eval_rmse_standardised"] == pytest.approx(mean)
    flags = targets | {"metric_for_best_model": "large_rmse", "max_steps": 3}
    tune(tiny_bert, files, tmp_path / "p", **flags, **{**UNSTEADY, "eval_strategy": "epoch"})


@pytest.mark.usefixtures("never_trains")
def test_without_one_it_is_asked_for(tiny_bert, topic_files, misses, tmp_path):
    with pytest.raises(InputError, match=r"misses: .* add --greater_is_better true or false"):
        flags = {"extra_metrics": [misses], "metric_for_best_model": "misses"}
        tune(tiny_bert, topic_files, tmp_path / "o", **flags)


OWN = """
def odd(labels, probabilities):
    return -abs(probabilities[:, 1] - 0.4).mean()

def even(labels, probabilities):
    return abs(probabilities[:, 1] - 0.4).mean()

odd.greater_is_better = True
"""


def test_a_score_of_ones_own_chooses(tiny_bert, topic_files, tmp_path):
    """Checkpoint, early stopping, and what the manifest holds of it."""
    (tmp_path / "own.py").write_text(OWN)
    flags = {**UNSTEADY, "metric_file": f"{tmp_path}/own.py:odd", "num_folds": 2, "folds": ["0"]}
    out = tmp_path / "o"
    tune(tiny_bert, topic_files, out, **flags, early_stopping_patience=1)
    history = pd.read_csv(out / "fold-0" / "history.csv")["eval_odd"]
    results = json.loads((out / "fold-0" / "all_results.json").read_text())
    assert results["eval_odd"] == pytest.approx(max(history), rel=1e-5) and len(set(history)) > 1
    table = pd.read_csv(out / "fold-0" / "predictions_validation.csv")
    assert results["eval_odd"] == pytest.approx(-(table["prob_moods"] - 0.4).abs().mean())
    assert history.argmax() == len(history) - 2 or history.argmax() == len(history) - 1
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["arguments"]["metric_file"] == "odd" and manifest["files"]["metric_file"]
    (tmp_path / "own.py").write_text(OWN.replace("0.4", "0.5"))
    with pytest.raises(InputError, match="--metric_file holds something else now"):
        tune(tiny_bert, topic_files, out, **flags, early_stopping_patience=1)
    assert json.loads((out / "all_results.json").read_text())["oof_odd"] == results["eval_odd"]


@pytest.mark.usefixtures("never_trains")
def test_a_score_of_ones_own_says_its_direction(tiny_bert, topic_files, tmp_path):
    (tmp_path / "own.py").write_text(OWN + "\ndef accuracy(y, p):\n    return 0.5\n")
    flags = {"metric_file": f"{tmp_path}/own.py:even"}
    with pytest.raises(InputError, match=r"even\.greater_is_better = True"):
        tune(tiny_bert, topic_files, tmp_path / "o", **flags)
    with pytest.raises(InputError, match="there is a score accuracy; rename"):
        flags = {"metric_file": f"{tmp_path}/own.py:accuracy", "greater_is_better": True}
        tune(tiny_bert, topic_files, tmp_path / "o", **flags)


# ---------------------------------------------------------------- before training


@pytest.mark.usefixtures("never_trains")
def test_an_unknown_metric_is_refused_before_training(
    tiny_bert, topic_files, corpora, misses, tmp_path
):
    says = r"--metric_for_best_model f1_marco .*log_loss.*did you mean f1_macro"
    with pytest.raises(InputError, match=says):
        tune(tiny_bert, topic_files, tmp_path / "o", metric_for_best_model="f1_marco")
    with pytest.raises(InputError, match="--metric_for_best_model rmse is not one of"):
        tune(tiny_bert, topic_files, tmp_path / "o", metric_for_best_model="eval_rmse")
    with pytest.raises(InputError, match="accuracy is not one of loss, perplexity, masked"):
        itpt(tiny_bert, tmp_path / "p", train_file=corpora, metric_for_best_model="accuracy")
    flags = {"extra_metrics": [misses], "greater_is_better": True}
    with pytest.raises(InputError, match=r"missed is not one of .*misses.*did you mean misses"):
        tune(tiny_bert, topic_files, tmp_path / "o", metric_for_best_model="missed", **flags)


@pytest.mark.usefixtures("never_trains")
def test_an_extra_metric_that_fails_does_so_before_training(
    tiny_bert, topic_files, misses, tmp_path
):
    with pytest.raises(InputError, match=r"--extra_metrics.*Target is not binary"):
        tune(tiny_bert, topic_files, tmp_path / "o", extra_metrics=[f"{misses}:fail=yes"])


@pytest.mark.usefixtures("never_trains")
def test_a_metric_the_validation_rows_do_not_define(tiny_bert, topic_files, tmp_path):
    rows = pd.DataFrame(make_rows(60))
    rows[rows["label"] == "animals"].to_csv(tmp_path / "v.csv", index=False)
    flags = {"validation_file": str(tmp_path / "v.csv"), "metric_for_best_model": "roc_auc"}
    with pytest.raises(InputError, match="roc_auc is not defined for the 20 validation rows"):
        tune(tiny_bert, topic_files, tmp_path / "o", **flags)


def test_a_metric_that_is_never_a_number_is_said(tiny_bert, tmp_path, caplog):
    """The model predicts one value for all rows: there is no correlation."""
    rows = pd.DataFrame(make_rows(60)).assign(label=[float(i % 7) + 0.5 for i in range(60)])
    rows.to_csv(tmp_path / "t.csv", index=False)
    files = {"train": str(tmp_path / "t.csv")}
    flags = {"metric_for_best_model": "pearson", "learning_rate": 0, "num_train_epochs": 2}
    flags |= {"text_column_names": ["same"], "problem_type": "regression"}
    rows.assign(same="the cat").to_csv(tmp_path / "t.csv", index=False)
    with caplog.at_level(logging.WARNING):
        tune(tiny_bert, files, tmp_path / "o", **flags)
    assert "No evaluation gave a number for pearson" in caplog.text


# ---------------------------------------------------------------- upload


@pytest.mark.usefixtures("never_trains")
def test_nothing_is_uploaded_while_training(tiny_bert, topic_files, tmp_path):
    out, flags = tmp_path / "o", {"push_to_hub": True, "hub_model_id": "me/mine"}
    says = rf"--push_to_hub .* hf upload me/mine {out}"
    with pytest.raises(InputError, match=says):
        tune(tiny_bert, topic_files, out, **flags)
    with pytest.raises(InputError, match=says):
        itpt(tiny_bert, out, train_file=[topic_files["train"]], **flags)
    assert not out.exists()
