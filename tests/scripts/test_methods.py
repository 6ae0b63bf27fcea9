"""Every method of run_finetune.py that changes training, against what it should compute."""

import copy
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import BASICS, ROOT, make_rows
from forking import run_command
from one_step import dataset_for, one_step
from tiny_models import ARCHITECTURES, classifier, tiny_encoder
from torch import nn
from transformers import AutoModel

import run_finetune
from bertchain.data.splits import choose_subset
from bertchain.errors import InputError
from bertchain.models.layers import HEAD, layer_id_of
from bertchain.models.loading import load_classifier, load_encoder
from bertchain.training.regularisers import Adversary, WeightAverage
from bertchain.training.trainer import device_precision


@pytest.fixture
def run(tiny_bert, topic_files, tmp_path):
    """Fine-tune the tiny model on the easy task, with changes; results and folder."""

    def finetune(name="out", **changes):
        out = tmp_path / name
        fields = {"model_name_or_path": tiny_bert, "train_file": topic_files["train"]}
        arguments = {**BASICS, **fields, "output_dir": str(out), **changes}
        return run_finetune.main({k: v for k, v in arguments.items() if v is not None}), out

    return finetune


def state_of(folder):
    return load_classifier(folder)[0].state_dict()


# ---------------------------------------------------------------- adversarial training


def by_hand(model, batch, labels, moved, epsilon, relative):
    """Gradients of the clean loss plus those at the moved weights, with nothing shared."""
    loss = torch.nn.functional.cross_entropy

    def gradients(m):
        m.zero_grad()
        loss(m(**batch).logits, labels).backward()
        return {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}

    clean = gradients(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if moved(name):
                size = epsilon * (p.norm() if relative else 1.0)
                p += size * clean[name] / clean[name].norm()
    attacked = gradients(other)
    return {name: clean[name] + attacked[name] for name in clean}


@pytest.mark.parametrize("kind", ["fgm", "awp"])
def test_the_adversarial_step_is_the_sum_of_both_gradients(kind, tmp_path):
    flag = {"fgm": {"fgm_epsilon": 0.7}, "awp": {"awp_epsilon": 0.05}}[kind]
    step, _, _ = one_step("single_label", tmp_path, 24, 1, regularisers=flag)
    model = classifier("bert", head_dropout=0.0)
    model.encoder.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    rows = dataset_for("single_label")
    from bertchain.data.batching import DocumentCollator

    batch = DocumentCollator(0)([rows[i] for i in range(24)])
    labels = batch.pop("labels")

    def moved(name):
        if kind == "fgm":
            return name == "encoder.embeddings.word_embeddings.weight"
        return "encoder.layer." in name and "weight" in name and "LayerNorm" not in name

    epsilon = next(iter(flag.values()))
    expected = by_hand(model, batch, labels, moved, epsilon, relative=kind == "awp")
    plain, _, _ = one_step("single_label", tmp_path, 24, 1)
    for name in expected:
        torch.testing.assert_close(step[name], expected[name], atol=2e-5, rtol=1e-3)
    assert not torch.allclose(step["head.weight"], 2 * plain["head.weight"], rtol=1e-3)


def test_the_attack_uses_this_batch_alone_and_leaves_no_trace():
    model = classifier("bert")
    adversary = Adversary(model, fgm=1.0)
    word = model.encoder.get_input_embeddings().weight
    before = word.detach().clone()
    word.grad = torch.full_like(word, 5.0)  # accumulated earlier
    adversary.remember()
    own = torch.zeros_like(word)
    own[7, 3] = 2.0
    word.grad += own
    with adversary.attack():
        moved = word.detach() - before
        assert moved[7, 3] == pytest.approx(1.0, abs=1e-6) and moved.count_nonzero() == 1
    assert torch.equal(word, before)


def test_adversarial_runs_learn(run):
    for flags in ({"fgm_epsilon": 0.3}, {"awp_epsilon": 1e-3}):
        flags |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
        results, _ = run(next(iter(flags)), **flags)
        assert results["eval_accuracy"] > 0.9
    with pytest.raises(InputError, match="need trained weights to move"):
        run("frozen", fgm_epsilon=0.3, freeze="embeddings")


# ---------------------------------------------------------------- averaged weights


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.9)
    expected = None
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0]):
        nn.init.constant_(model.weight, value)
        average.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
    assert average.averaged.module.weight.item() == pytest.approx(expected, rel=1e-6)
    with average.applied(model):
        assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 4.0


def test_what_is_judged_and_kept_is_the_average(run, monkeypatch):
    seen = {}
    original = WeightAverage.update

    def update(self, model):
        original(self, model)
        seen["own"] = {n: p.detach().clone() for n, p in model.named_parameters()}
        seen["average"] = {n: p.clone() for n, p in self.averaged.module.named_parameters()}

    monkeypatch.setattr(WeightAverage, "update", update)
    common = {"ema_decay": 0.9, "load_best_model_at_end": False, "num_train_epochs": 3}
    results, out = run("average", **common)
    kept = state_of(out)
    for name, value in seen["average"].items():
        torch.testing.assert_close(kept[name], value)
    assert not torch.allclose(kept["head.weight"], seen["own"]["head.weight"], atol=1e-4)
    last = pd.read_csv(out / "history.csv").iloc[-1]  # evaluated while training, by the average
    assert last["eval_loss"] == pytest.approx(results["eval_loss"], rel=1e-5)
    results, out = run("best", **common | {"load_best_model_at_end": True})
    best = pd.read_csv(out / "history.csv").sort_values(["eval_accuracy", "epoch"])
    top = best[best["eval_accuracy"] == best["eval_accuracy"].max()]
    assert results["eval_loss"] == pytest.approx(top["eval_loss"].iloc[0], rel=1e-5)


def test_a_resumed_average_equals_an_uninterrupted_one(run, tmp_path):
    common = {"ema_decay": 0.9, "num_train_epochs": 2, "load_best_model_at_end": False}
    _, whole = run("whole", **common, keep_checkpoints=True, save_total_limit=5)
    first = min(whole.glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (tmp_path / "half").mkdir()
    first.rename(tmp_path / "half" / first.name)
    _, half = run("half", **common, save_total_limit=5, resume_from_checkpoint="last")
    whole, half = state_of(whole), state_of(half)
    assert all(torch.equal(whole[name], half[name]) for name in whole)


# ---------------------------------------------------------------- dropout


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_encoder_dropout_reaches_every_place(kind, tmp_path):
    tiny_encoder(kind).save_pretrained(tmp_path)
    ids = torch.randint(5, 60, (2, 9))
    encoder, _ = load_encoder(tmp_path, dropout=0.0)
    outputs = [encoder.train(mode)(ids)[0] for mode in (True, False)]
    torch.testing.assert_close(*outputs)
    encoder, _ = load_encoder(tmp_path, dropout=0.4)
    outputs = [encoder.train(mode)(ids)[0] for mode in (True, False)]
    assert not torch.allclose(*outputs, atol=1e-3)


def test_encoder_dropout_is_kept_and_can_be_set_again(run):
    _, out = run(encoder_dropout=0.0, max_steps=1)
    config = json.loads((out / "config.json").read_text())["encoder_config"]
    assert config["hidden_dropout_prob"] == config["attention_probs_dropout_prob"] == 0.0
    _, out = run("again", model_name_or_path=str(out), encoder_dropout=0.3, max_steps=1)
    config = json.loads((out / "config.json").read_text())["encoder_config"]
    assert config["hidden_dropout_prob"] == 0.3


def test_dropout_samples_train_on_several_masks_and_predict_as_one():
    model = classifier("bert", dropout_samples=8, head_dropout=0.5)
    ids = torch.randint(5, 60, (2, 1, 8))
    logits = model.train()(ids).logits
    assert logits.shape == (8, 2, 3)
    assert len({tuple(sample[0].tolist()) for sample in logits}) == 8
    assert model.eval()(ids).logits.shape == (2, 3)
    labels = torch.tensor([0, 2])
    assert model.train()(ids, labels=labels).logits.shape == (2, 3)  # the plain loss of forward


def test_dropout_samples_and_rdrop_learn_together(run):
    results, out = run(dropout_samples=4, head_dropout=0.4, rdrop_alpha=0.5)
    assert results["eval_accuracy"] > 0.9
    assert json.loads((out / "config.json").read_text())["dropout_samples"] == 4


# ---------------------------------------------------------------- what is trained


def test_gradual_unfreezing_leaves_lower_blocks_bit_equal_until_their_turn(run, tiny_bert):
    common = {"num_train_epochs": 1, "load_best_model_at_end": False}
    _, out = run(unfreeze_every=0.5, **common)
    before = load_encoder(tiny_bert)[0].state_dict()
    model, _ = load_classifier(out)
    moved = set()
    for name, parameter in model.named_parameters():
        start = before.get(name.removeprefix("encoder."))
        if start is None or not torch.equal(parameter, start):
            moved.add(layer_id_of(name, model))
    assert moved == {2, HEAD}  # the head for half an epoch, then block 2 as well


def test_top_blocks_dropped_and_started_anew_from_the_command_line(run, four_blocks):
    changes = {"drop_layers_above": 3, "reinit_layers": 1, "learning_rate": 1e-9, "max_steps": 1}
    _, out = run(model_name_or_path=four_blocks, **changes)
    config = json.loads((out / "config.json").read_text())
    assert config["encoder_config"]["num_hidden_layers"] == 3 and config["layers"] == [3]
    before, after = load_encoder(four_blocks)[0], load_classifier(out)[0].encoder
    assert len(after.encoder.layer) == 3
    for k, equal in ((0, True), (1, True), (2, False)):
        pair = [m.encoder.layer[k].output.dense.weight for m in (before, after)]
        assert torch.allclose(*pair, atol=1e-6) == equal
    assert AutoModel.from_pretrained(out / "encoder").config.num_hidden_layers == 3


def test_explicit_rates_stand_in_the_table(run):
    _, out = run(
        layer_learning_rates=[1e-5, 4e-5],
        embedding_learning_rate=0,
        head_learning_rate=1e-3,
        max_steps=1,
    )
    table = pd.read_csv(out / "optimizer_groups.csv").set_index("group")["learning_rate"]
    expected = {"embeddings": 0.0, "block 1": 1e-5, "block 2": 4e-5, "head": 1e-3}
    assert {name: table[name] for name in expected} == pytest.approx(expected)


# ---------------------------------------------------------------- losses by flag


def test_losses_by_flag_reach_the_gradient(run, topic_files, tmp_path):
    rows = pd.read_csv(topic_files["train"])
    rare = rows[rows["label"] != "moods"].copy()
    rare = pd.concat([rare, rows[rows["label"] == "moods"].head(12)])
    rare.to_csv(tmp_path / "rare.csv", index=False)
    run("plain", train_file=str(tmp_path / "rare.csv"), num_train_epochs=1)
    weighted, _ = run(
        "weighted",
        train_file=str(tmp_path / "rare.csv"),
        num_train_epochs=1,
        class_weights=["animals=0", "moods=1", "places=0"],
    )
    shares = {}
    for name in ("plain", "weighted"):
        table = pd.read_csv(tmp_path / name / "predictions_validation.csv")
        shares[name] = (table["prediction"] == "moods").mean()
    assert shares["plain"] < 0.5 and shares["weighted"] == 1.0  # nothing else counts
    assert weighted["eval_loss"] == pytest.approx(weighted["eval_log_loss"], rel=1e-5)  # plain
    assert run("focal", focal_gamma=2.0)[0]["eval_accuracy"] > 0.9
    assert run("smooth", label_smoothing_factor=0.1)[0]["eval_accuracy"] > 0.9


def test_soft_labels_from_columns(run, tmp_path):
    rows = pd.DataFrame(make_rows(150))
    for name in ("animals", "moods", "places"):
        rows[name] = np.where(rows["label"] == name, 0.8, 0.1)
    rows.to_csv(tmp_path / "soft.csv", index=False)
    soft = {
        "train_file": str(tmp_path / "soft.csv"),
        "label_column_name": ["animals", "moods", "places"],
        "problem_type": "single_label",
    }
    results, out = run(**soft, num_train_epochs=8)
    assert results["eval_accuracy"] > 0.9  # against the likeliest class
    table = pd.read_csv(out / "predictions_validation.csv")
    top = table[["prob_animals", "prob_moods", "prob_places"]].max(axis=1)
    assert 0.65 < top.mean() < 0.9  # as sure as the labels, not surer
    alone = {"model_name_or_path": str(out), "train_file": None, "test_file": soft["train_file"]}
    shuffled = ["places", "animals", "moods"]  # the classifier knows its own order
    again, _ = run("again", **soft | alone | {"label_column_name": shuffled})
    assert again["test_accuracy"] > 0.9
    with pytest.raises(InputError, match="the classifier's labels are animals moods places"):
        run("other", **soft | alone | {"label_column_name": ["animals", "label"]})
    rows["moods"] = 0.5
    rows.to_csv(tmp_path / "soft.csv", index=False)
    with pytest.raises(InputError, match="row 1: soft labels must be at least 0 and add up to 1"):
        run("bad", **soft)


def test_huber_and_positive_weights_by_flag(run, tmp_path):
    rows = pd.DataFrame(make_rows(90))
    rows["score"] = [len(t.split()) + 0.5 for t in rows.text]
    rows["cat"] = [int("cat" in t) for t in rows.text]
    rows["dog"] = [int("dog" in t) for t in rows.text]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    file = {"train_file": str(tmp_path / "rows.csv"), "num_train_epochs": 1}
    results, _ = run("huber", **file, label_column_name=["score"], huber_delta=1.0)
    assert np.isfinite(results["eval_rmse"])
    two = {"label_column_name": ["cat", "dog"]}
    run("multi", **file | {"num_train_epochs": 5}, **two, positive_weights=["balanced"])
    run("none", **file | {"num_train_epochs": 5}, **two)
    mean = [
        pd.read_csv(tmp_path / name / "predictions_validation.csv")[["prob_cat", "prob_dog"]]
        .to_numpy()
        .mean()
        for name in ("multi", "none")
    ]
    assert mean[0] > mean[1] + 0.03  # presence of rare labels counts more


# ---------------------------------------------------------------- contradictions


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"layer_learning_rates": [1e-5] * 4, "layer_lr_decay": 0.9},
            "--layer_learning_rates and --layer_lr_decay exclude each other",
        ),
        ({"freeze": "2", "unfreeze_every": 1}, "--freeze and --unfreeze_every exclude"),
        ({"freeze": "encoder", "reinit_layers": 1}, "--freeze and --reinit_layers exclude"),
        ({"fgm_epsilon": 1, "awp_epsilon": 1}, "--fgm_epsilon and --awp_epsilon exclude"),
        ({"train_fraction": 0.5, "train_per_class": 2}, "--train_fraction and --train_per_class"),
        ({"lora_r": 2, "reinit_layers": 1}, "--lora_r and --reinit_layers exclude"),
        ({"lora_r": 2, "freeze": "1"}, "--lora_r and --freeze exclude"),
        ({"lora_r": 2, "unfreeze_every": 1}, "--lora_r and --unfreeze_every exclude"),
        ({"lora_alpha": 2}, "--lora_alpha needs --lora_r"),
        ({"save_adapter": True}, "--save_adapter needs --lora_r"),
        ({"positive_weights": ["balanced"]}, "--positive_weights does not go with single_label"),
        ({"huber_delta": 1}, "--huber_delta does not go with single_label"),
        ({"layer_learning_rates": [1e-5]}, "one rate for each of 2 blocks"),
        ({"layer_learning_rates": [1e-5, -1]}, "--layer_learning_rates -1.0 is too small"),
        ({"head_learning_rate": -1}, "--head_learning_rate -1.0 is too small"),
        ({"embedding_learning_rate": -1}, "--embedding_learning_rate -1.0 is too small"),
        ({"unfreeze_every": 0}, "--unfreeze_every 0.0 must be above 0"),
        ({"encoder_dropout": 1}, "--encoder_dropout 1.0 must be at least 0 and below 1"),
        ({"ema_decay": 1}, "--ema_decay 1.0 must be"),
        ({"dropout_samples": 0}, "--dropout_samples 0 is too small"),
        ({"segments_per_forward": 0}, "--segments_per_forward 0 is too small"),
        ({"drop_layers_above": 9}, "--drop_layers_above 9: bert has 2 blocks"),
        ({"segment_choice": "tail"}, "--segment_choice needs --truncation hierarchical"),
        (
            {"segment_choice": "tail", "truncation": "hierarchical"},
            "--segment_choice needs --max_segments",
        ),
        ({"train_fraction": 0}, "--train_fraction 0.0 must be above 0"),
        ({"train_per_class": 900}, "--train_per_class 900: a class has .. training rows only"),
        ({"early_stopping_patience": 0}, "--early_stopping_patience 0 is too small"),
        (
            {"early_stopping_patience": 2, "load_best_model_at_end": False},
            "--early_stopping_patience needs --load_best_model_at_end",
        ),
        ({"class_weights": ["a=1"]}, "--class_weights a=1: write balanced, or name=weight"),
    ],
)
def test_contradictions_and_bad_values_name_the_flags(run, flags, message, tmp_path):
    with pytest.raises(InputError, match=message) as caught:
        run("x", **flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- fewer rows


def test_subsets_are_stratified_nested_and_repeatable():
    from datasets import Dataset

    labels = [0] * 60 + [1] * 30 + [2] * 10
    rows = Dataset.from_dict({"id": list(range(100)), "labels": labels})

    def chosen(*options, seed=1):
        return set(choose_subset(rows, "single_label", *options, seed)["id"][:])

    halves = chosen(0.5, None)
    assert [sum(labels[i] == c for i in halves) for c in range(3)] == [30, 15, 5]
    assert chosen(0.2, None) < halves < chosen(0.8, None) < chosen(1.0, None) == set(range(100))
    assert chosen(0.5, None) == halves != chosen(0.5, None, seed=2)
    few = chosen(None, 4)
    assert [sum(labels[i] == c for i in few) for c in range(3)] == [4, 4, 4]
    assert few < chosen(None, 9)
    assert choose_subset(rows, "single_label", 0.5, None, 1)["id"][:] == sorted(halves)
    multi = Dataset.from_dict({"labels": [[1.0, 0.0]] * 10})
    with pytest.raises(InputError, match="--train_per_class needs one class a row, not multi"):
        choose_subset(multi, "multi_label", None, 2, 1)
    with pytest.raises(InputError, match="leaves none"):
        choose_subset(rows, "single_label", 0.001, None, 1)


def test_fewer_rows_keep_the_validation_rows(run):
    whole, out = run("whole", max_steps=1)
    fewer, small = run("fewer", max_steps=1, train_per_class=5)
    assert whole["train_rows"] == 135 and fewer["train_rows"] == 15
    ids = [pd.read_csv(f / "predictions_validation.csv")["id"].tolist() for f in (out, small)]
    assert ids[0] == ids[1]


def test_early_stopping(run):
    _, out = run(num_train_epochs=30, early_stopping_patience=2, learning_rate=1e-9)
    assert len(pd.read_csv(out / "history.csv")) == 3  # one that is the best, two that are not


# ---------------------------------------------------------------- long documents


def test_segments_in_parts_give_the_same_loss_and_gradients(tmp_path):
    generator = np.random.default_rng(0)
    sizes = [(12,), (9, 12, 12, 4), (12, 3), (5,)]
    documents = [[generator.integers(5, 60, n).tolist() for n in size] for size in sizes]
    from bertchain.models.modeling import pad_documents

    ids, mask = pad_documents(documents, 0)
    results = []
    for size in (None, 1, 3):
        model = classifier(
            "bert", token_pooling="mean", segments_per_forward=size, head_dropout=0.0
        )
        model.encoder.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
        loss = model.train()(ids, mask, labels=torch.tensor([0, 1, 2, 0])).loss
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters()}
        with torch.no_grad():
            results.append((loss, gradients, model.eval()(ids, mask).logits))
    for loss, gradients, logits in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(logits, results[0][2], atol=1e-5, rtol=1e-4)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-6, rtol=1e-3)


def test_no_more_windows_at_once_than_asked_and_no_padding_of_short_parts():
    from bertchain.models.modeling import pad_documents

    model = classifier("bert", segments_per_forward=2).eval()
    seen = []
    model.encoder.register_forward_pre_hook(
        lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True
    )
    documents = [[[7] * 9, [8] * 3, [9] * 9], [[5] * 4], [[6] * 2]]
    with torch.no_grad():
        model(*pad_documents(documents, 0))
    assert seen == [(2, 9), (2, 4), (1, 2)]


def test_which_segments_are_kept():
    from bertchain.models.windows import WindowSpec, window_spans

    def starts(choice, most):
        spec = WindowSpec("hierarchical", 12, max_segments=most, segment_choice=choice)
        return [spans[0][0] for spans in window_spans(95, spec, 2)]  # ten windows of ten tokens

    assert starts("head", 3) == [0, 10, 20]
    assert starts("tail", 3) == [70, 80, 90]
    assert starts("head_tail", 3) == [0, 10, 90]
    assert starts("head_tail", 4) == [0, 10, 80, 90]
    assert starts("tail", 40) == list(range(0, 100, 10))


def test_padding_on_the_left_changes_nothing():
    for kind in ("bert", "gpt2", "qwen2"):
        model = classifier(kind, token_pooling="last" if kind != "bert" else "cls").eval()
        model.config.windows = {"max_seq_length": 20}
        ids = torch.randint(5, 60, (1, 7))
        left = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
        mask = (torch.arange(11) >= 4).long().unsqueeze(0)
        with torch.no_grad():
            torch.testing.assert_close(model(left, mask).logits, model(ids).logits)


# ---------------------------------------------------------------- LoRA and decoders


@pytest.fixture(scope="module")
def decoders(tmp_path_factory, tokenizers):
    """Folders of tiny GPT-2 and Qwen2 models with a tokenizer that has no padding token."""
    folders = {}
    for kind in ("gpt2", "qwen2"):
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(0)
        config = tiny_encoder(kind).config
        config.vocab_size, config.pad_token_id = len(tokenizers["gpt2"]) + 1, None
        config.n_positions = config.max_position_embeddings = 128
        config.bos_token_id = config.eos_token_id = 0
        config.num_hidden_layers = 2
        if kind == "qwen2":
            config.layer_types = config.layer_types[:2]
        AutoModel.from_config(config).save_pretrained(folder)
        tokenizers["gpt2"].save_pretrained(folder)
        folders[kind] = str(folder)
    return folders


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_a_decoder_learns_from_its_last_token_with_and_without_lora(kind, run, decoders):
    common = {"model_name_or_path": decoders[kind], "token_pooling": None, "num_train_epochs": 12}
    results, out = run(**common)
    assert results["eval_accuracy"] > 0.7
    assert json.loads((out / "config.json").read_text())["token_pooling"] == "last"
    results, out = run("lora", **common, lora_r=8, learning_rate=1e-2)
    assert results["eval_accuracy"] > 0.6
    table = pd.read_csv(out / "optimizer_groups.csv")
    assert table["parameters"].sum() < 30_000 and "embeddings" not in set(table["group"])


def test_lora_is_merged_and_saved_as_asked(run, four_blocks, topic_files):
    from peft import PeftModel

    changes = {"lora_r": 4, "learning_rate": 1e-2, "num_train_epochs": 6}
    results, out = run(model_name_or_path=four_blocks, save_adapter=True, **changes)
    assert results["eval_accuracy"] > 0.9
    model, missing = load_classifier(out)
    assert missing == [] and not any("lora" in name for name in model.state_dict())
    before = load_encoder(four_blocks)[0]
    ids = torch.randint(5, 40, (2, 9))
    with torch.no_grad():
        merged = model.encoder.eval()(ids)[0]
        adapted = PeftModel.from_pretrained(before, out / "adapter").eval()(ids)[0]
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    fresh = load_encoder(four_blocks)[0]
    word = "embeddings.word_embeddings.weight"
    assert torch.equal(fresh.state_dict()[word], model.encoder.state_dict()[word])
    alone = {"model_name_or_path": str(out), "train_file": None}
    again, _ = run("again", **alone, test_file=topic_files["test_labels"])
    assert again["test_accuracy"] > 0.9
    run("some", lora_r=2, lora_target_modules=["query", "value"], max_steps=1)
    with pytest.raises(InputError, match="--lora_target_modules"):
        run("none", lora_r=2, lora_target_modules=["nothing"], max_steps=1)


def test_lora_without_peft_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install peft"):
        run(lora_r=2)


# ---------------------------------------------------------------- speed switches


def test_compile_and_activation_checkpointing_give_the_same_model(run):
    common = {"max_steps": 3, "segments_per_forward": None}
    common |= {"encoder_dropout": 0.0, "head_dropout": 0.0}
    _, plain = run("plain", **common)
    _, checkpointed = run("checkpointed", **common, gradient_checkpointing=True)
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    _, compiled = run("compiled", **common, **compiled)
    plain = state_of(plain)
    for other in (checkpointed, compiled):
        for name, value in state_of(other).items():
            torch.testing.assert_close(value, plain[name], atol=1e-4, rtol=1e-3)


def test_two_processes_train_with_everything_on(tiny_bert, topic_files, tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n")
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "29871", str(ROOT / "run_finetune.py"), "--use_cpu"]
    command += ["--model_name_or_path", tiny_bert, "--train_file", topic_files["train"]]
    command += ["--test_file", topic_files["test_labels"], "--id_column_name", "id"]
    command += ["--learning_rate", "3e-3", "--fgm_epsilon", "0.3", "--ema_decay", "0.9"]
    command += ["--rdrop_alpha", "0.3", "--unfreeze_every", "0.1", "--class_weights", "balanced"]
    command += ["--dropout_samples", "2", "--output_dir", str(tmp_path / "o")]
    command += ["--token_pooling", "mean", "--num_train_epochs", "6"]
    done = run_command(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert results["test_accuracy"] > 0.8
    history = pd.read_csv(tmp_path / "o" / "history.csv")
    assert history["step"].iloc[-1] == 6 * 5  # 135 rows by 2 x 16


def test_a_gpu_trains_in_its_half_precision_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    precision = device_precision
    assert precision([]) == {}  # no GPU here, or it is hidden
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_bf16, name in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, h=has_bf16: h
        )
        assert precision(["--seed", "3"]) == {name: True}
    (tmp_path / "a.yaml").write_text("use_cpu: true\n")
    said = (
        ["--fp16"],
        ["--bf16=False"],
        {"bf16": False},
        [str(tmp_path / "a.yaml")],
        ["--use-cpu"],
    )
    for argv in said:
        assert precision(argv) == {}
    for word in ("no", "bf16", "fp16"):  # of `accelerate launch --mixed_precision`
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", word)
        assert precision([]) == {}


def test_half_precision_trains(run):
    results, out = run(bf16=True)
    assert results["eval_accuracy"] > 0.9
    assert load_classifier(out)[0].dtype == torch.float32  # autocast: the weights stay as they are


@pytest.mark.parametrize("metric", ["log_loss", "f1_macro"])
def test_the_best_checkpoint_by_any_score(run, metric):
    # rates that overshoot, so that the last epoch is not the best one
    changes = {"learning_rate": 5e-3, "num_train_epochs": 5, "lr_scheduler_type": "constant"}
    results, out = run(metric_for_best_model=metric, **changes)
    history = pd.read_csv(out / "history.csv")[f"eval_{metric}"]
    best = history.min() if metric == "log_loss" else history.max()
    assert results[f"eval_{metric}"] == pytest.approx(best, rel=1e-5)
    assert len(set(history)) > 1
