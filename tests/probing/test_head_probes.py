"""A linear probe as the head: it predicts what the probe predicts, and nothing else moves."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BASICS, ROOT, Preempt, make_rows
from datasets import Dataset
from one_step import dataset_for, step_arguments
from tiny_models import classifier
from torch import nn

import run_finetune
from bertchain.arguments.training import RegulariserArguments
from bertchain.data.batching import DocumentCollator
from bertchain.data.labels import LabelSpec
from bertchain.data.spans import SpanCollator
from bertchain.data.tasks import Task
from bertchain.errors import InputError
from bertchain.models.layers import layer_rates
from bertchain.models.loading import load_classifier
from bertchain.models.modeling import PROBLEM_TYPES
from bertchain.probing import head_probes
from bertchain.probing.probes import ProbeLabels, fit_linear_probe
from bertchain.probing.solvers import C_VALUES, FITS, Standardiser
from bertchain.training.head_features import head_features
from bertchain.training.losses import TrainingLoss

NAMES = ("a", "b", "c")
ARCHITECTURES = [
    ("single_label", {"token_pooling": "cls"}),
    ("multi_label", {"token_pooling": "mean", "layers": [3, 4]}),
    ("regression", {"token_pooling": "attention", "layers": [2, 4], "layer_pooling": "weighted"}),
    ("single_label", {"token_pooling": "bilstm", "segment_pooling": "attention"}),
    ("multi_label", {"token_pooling": "max", "segment_pooling": "max", "dropout_samples": 3}),
    ("regression", {"token_pooling": "mean", "segments_per_forward": 2}),
]


def trainer_of(rows, out, kind="single_label", collator=None, ema_decay=0.0, **config):
    scale = {"target_mean": [2.0, 9.0, 0.0], "target_scale": [50.0, 7.0, 1.0]}
    fields = {"problem_type": PROBLEM_TYPES[kind]} | (scale if kind == "regression" else {})
    model = classifier("bert", **fields | config)
    return run_finetune.ClassifierTrainer(
        loss=TrainingLoss(model.config),
        rates=layer_rates(4, 1.0),
        regularisers=RegulariserArguments(ema_decay=ema_decay),
        model=model,
        args=step_arguments(out, 8, 1),
        train_dataset=rows,
        data_collator=collator or DocumentCollator(0),
    )


def with_windows(rows: Dataset) -> Dataset:
    """Documents of one window get a second, those of an odd number a third."""
    more = [own + own[:1] * (1 + i % 2) for i, own in enumerate(rows["windows"])]
    return rows.remove_columns("windows").add_column("windows", more)


def task_of(rows: dict[str, Dataset], kind: str, num_spans: int = 0) -> Task:
    return Task(LabelSpec(kind, NAMES, ("label",)), rows, {}, num_spans)


def logits_of(trainer, rows):
    """Logits [n, labels] in evaluation, by the Trainer's own prediction."""
    return trainer.predict(rows.remove_columns("labels")).predictions


@pytest.mark.versions
@pytest.mark.parametrize(("kind", "config"), ARCHITECTURES)
def test_the_head_predicts_what_the_probe_predicts(kind, config, tmp_path, monkeypatch):
    monkeypatch.setattr(head_probes, "FEW", 10)  # so that C is chosen on validation rows
    rows = with_windows(dataset_for(kind, 60))
    rows = {"train": rows.select(range(40)), "validation": rows.select(range(40, 60))}
    trainer = trainer_of(rows["train"], tmp_path, kind, **config)
    task = task_of(rows, kind)
    head_probes.fit_head(trainer, rows, task)
    features = {split: head_features(trainer, own) for split, own in rows.items()}
    truth = {split: np.array(own["labels"]) for split, own in rows.items()}
    score = head_probes.likelihood(kind, truth["validation"])
    expected = fit_linear_probe(features, ProbeLabels(truth, 3, kind, score)).predictions
    for split, own in rows.items():
        found = task.spec.probabilities(logits_of(trainer, own))
        scale = np.abs(expected[split]).max()
        np.testing.assert_allclose(found / scale, expected[split] / scale, atol=1e-5)


def test_features_are_what_the_head_reads_in_evaluation(tmp_path):
    rows = with_windows(dataset_for("single_label", 30))
    trainer = trainer_of(rows, tmp_path, token_pooling="bilstm", head_dropout=0.5)
    trainer.model.train()
    found = trainer.model.head(torch.tensor(head_features(trainer, rows)))
    assert trainer.model.training  # as it was
    np.testing.assert_allclose(found.detach(), logits_of(trainer, rows), atol=1e-6)


def test_words_are_probed_one_by_one(tmp_path):
    rng = np.random.default_rng(0)
    counts = [1 + i % 3 for i in range(30)]
    rows = {
        "windows": [[[2, *rng.integers(5, 60, 6).tolist(), 3]] for _ in counts],
        "length": [8] * 30,
        "labels": [rng.integers(0, 3, n).tolist() for n in counts],
        "token_positions": [[[[1 + t]] for t in range(n)] for n in counts],
    }
    rows = {"train": Dataset.from_dict(rows)}
    trainer = trainer_of(rows["train"], tmp_path, collator=SpanCollator(0, 8), num_spans=1)
    features = head_features(trainer, rows["train"])
    assert features.shape == (sum(counts), 32)
    task = task_of(rows, "single_label", num_spans=1)
    C = head_probes.fit_head(trainer, rows, task)["head_probe_C"]
    y, x = np.concatenate(rows["train"]["labels"]), Standardiser(features)(features)
    (fit,) = FITS["single_label"](x, y, 3, [C])
    logits = trainer.model.head(torch.tensor(features)).detach()
    np.testing.assert_allclose(logits.softmax(-1), fit.predict(x), atol=1e-5)


@pytest.mark.parametrize("labels", [[0] * 23 + [2], [1] * 24, [0, 1, 2] + [0] * 21])
def test_classes_of_one_row_or_none_leave_a_head_without_nan(labels, tmp_path):
    rows = {"train": dataset_for("single_label").remove_columns("labels")}
    rows["train"] = rows["train"].add_column("labels", labels)
    trainer = trainer_of(rows["train"], tmp_path)
    head_probes.fit_head(trainer, rows, task_of(rows, "single_label"))
    found = torch.tensor(logits_of(trainer, rows["train"])).softmax(-1)
    assert found.isfinite().all()
    for absent in {0, 1, 2} - {*labels}:
        assert found[:, absent].max() < 1e-9


def test_nothing_but_the_head_changes_and_the_average_gets_it_too(tmp_path):
    rows = {"train": dataset_for("multi_label")}
    trainer = trainer_of(rows["train"], tmp_path, "multi_label", ema_decay=0.9)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    head_probes.fit_head(trainer, rows, task_of(rows, "multi_label"))
    changed = {n for n, v in trainer.model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {"head.weight", "head.bias"}
    averaged = trainer.average.averaged.module.head.weight
    assert torch.equal(averaged, trainer.model.head.weight)


def test_another_head_is_refused(tmp_path):
    rows = {"train": dataset_for("single_label")}
    trainer = trainer_of(rows["train"], tmp_path)
    trainer.model.head = nn.Sequential(nn.Linear(32, 3))
    with pytest.raises(InputError, match="set a linear head; this one is Sequential"):
        head_probes.fit_head(trainer, rows, task_of(rows, "single_label"))


# ---------------------------------------------------------------- through the script


@pytest.fixture
def tune(tiny_bert, topic_files, tmp_path):
    def run(name, **changes):
        given = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]} | BASICS
        given |= {"num_train_epochs": 1, "test_file": topic_files["test"]}
        return run_finetune.main(**given | changes, output_dir=str(tmp_path / name))

    return run


@pytest.mark.versions
def test_at_a_rate_of_zero_both_flags_give_the_frozen_probe(tune):
    first, last = (tune(f, learning_rate=0, **{f: "probe"}) for f in ("head_init", "head_refit"))
    assert first["eval_accuracy"] == last["eval_accuracy"] > 0.9
    columns = [r.predictions["test"].filter(like="prob_") for r in (first, last)]
    np.testing.assert_allclose(*columns, atol=1e-6)
    assert last["head_probe_C"] > 0


def test_a_refit_leaves_the_encoder_as_training_left_it(tune):
    plain, refitted = tune("plain"), tune("refitted", head_refit="probe")
    one, other = (load_classifier(r.output_dir)[0].state_dict() for r in (plain, refitted))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"head.weight", "head.bias"}
    assert refitted["eval_accuracy"] > plain["eval_accuracy"]


def test_folds_several_labels_and_thresholds_go_with_both(tune):
    rows = pd.DataFrame(make_rows(90))
    rows["label"] += ["|red" if "red" in text else "" for text in rows["text"]]
    flags = {"head_init": "probe", "head_refit": "probe", "label_delimiter": "|", "num_folds": 2}
    found = tune("folds", train_file=rows, fit_thresholds="per_label", **flags)
    assert found["oof_f1_macro_nested"] > 0.8


@pytest.mark.versions
def test_a_run_that_was_cut_off_ends_with_the_same_weights(tune, tmp_path):
    flags = {"head_init": "probe", "head_refit": "probe", "num_train_epochs": 2}
    whole = tune("whole", **flags)
    with pytest.raises(SystemExit):
        tune("cut", **flags, callbacks=Preempt)
    cut = tune("cut", **flags, resume_from_checkpoint="last")
    for name in ("history.csv", "predictions_test.csv", "model.safetensors"):
        assert (cut.output_dir / name).read_bytes() == (whole.output_dir / name).read_bytes()


def test_a_probe_needs_training_rows(tune):
    trained = str(ROOT / "tests" / "scripts" / "earlier_version")
    with pytest.raises(InputError, match="--head_init needs --train_file"):
        tune("x", model_name_or_path=trained, train_file=None, head_init="probe")


def test_a_feature_that_hardly_varies_gets_no_weight():
    """Its weight would be the inverse of its deviation: training on from it explodes."""
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    x[:, 2] *= 1e-9
    assert np.isfinite(Standardiser(x).scale[2])
    scaled = Standardiser(x, head_probes.HARDLY)
    assert np.isinf(scaled.scale[2]) and np.isfinite(np.delete(scaled.scale, 2)).all()
    assert (scaled(x)[:, 2] == 0).all()


# ---------------------------------------------------------------- which C


def clouds(kind: str, apart: float, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Features around a centre for each class, so many deviations apart, and labels of the kind."""
    rng = np.random.default_rng(1)
    y = np.arange(rows) % 3
    x = apart * np.eye(3)[y] + rng.normal(size=(rows, 3))
    return x.astype(np.float32), y if kind == "single_label" else np.eye(3)[y]


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_the_likeliest_out_of_fold_is_chosen_not_the_first_without_errors(kind):
    """All strengths sort such rows without an error; the strongest is next to no answer at all."""
    x, y = clouds(kind, 20)
    assert head_probes.choose_by_folds(x, ProbeLabels({"train": y}, 3, kind)) == max(C_VALUES)
    x, y = clouds(kind, 0)  # noise: hardly an answer is the best there is
    assert head_probes.choose_by_folds(x, ProbeLabels({"train": y}, 3, kind)) < 0.1


def test_likelihood_by_hand():
    score = head_probes.likelihood("single_label", np.array([0, 1]))
    assert score(np.array([[0.5, 0.5], [0.75, 0.25]])) == pytest.approx(np.log(0.5 * 0.25) / 2)
    assert head_probes.likelihood("regression", np.zeros((2, 1))) is None


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ({}, True),
        ({"lora_r": 2}, True),
        ({"unfreeze_every": 0.5}, True),
        ({"learning_rate": 0}, False),
        ({"freeze": "encoder"}, False),
        ({"learning_rate": 0, "head_learning_rate": 1e-3}, False),
    ],
)
def test_rows_that_the_encoder_has_learnt_choose_nothing(tune, monkeypatch, flags, chosen):
    monkeypatch.setattr(head_probes, "LEARNT", 0.037)
    C = tune("x", head_refit="probe", **flags)["head_probe_C"]
    assert (C == 0.037) == chosen and (chosen or C in C_VALUES)
