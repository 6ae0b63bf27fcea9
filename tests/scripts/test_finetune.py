"""The loss under accumulation and processes, and the script."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import BASICS, ROOT, make_rows, tiny_bert_config
from forking import run_command
from one_step import one_step
from torch import nn
from transformers import AutoModel, AutoTokenizer

import run_finetune
from bertchain.arguments.common import EncoderArguments
from bertchain.arguments.training import ModelArguments
from bertchain.errors import InputError
from bertchain.models.layers import layer_id_of
from bertchain.models.loading import load_classifier
from bertchain.runtime.checkpoints import WHOLE
from bertchain.training.initialization import start_at_frequencies, suggest_rate

pytestmark = pytest.mark.versions

# ---------------------------------------------------------------- the script


def run(tiny_bert, files, out, **arguments):
    fields = {"model_name_or_path": tiny_bert, "train_file": files["train"], "output_dir": str(out)}
    return run_finetune.main({**BASICS, **fields, **arguments})


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, tiny_bert, topic_files):
    """One full run: training, validation held out, test with hidden labels."""
    out = tmp_path_factory.mktemp("runs") / "finetuned"
    results = run(tiny_bert, topic_files, out, test_file=topic_files["test"])
    return out, results


def test_a_run_learns_and_leaves_all_its_files(finetuned):
    out, results = finetuned
    assert results["eval_accuracy"] > 0.9
    expected = {
        "config.json", "model.safetensors", "tokenizer.json", "encoder", "README.md", "history.csv",
        "history.png", "optimizer_groups.csv", "predictions_validation.csv", "predictions_test.csv",
        "all_results.json", "run_args.yaml", "modeling.py", "pooling.py", "windows.py",
        "encoding.py", "report.html", "mistakes.csv", "doubtful_labels.csv",
    }  # fmt: skip
    found = {f.name for f in out.iterdir()}
    assert expected <= found
    assert not any(name.startswith((".", "checkpoint-")) for name in found)
    saved = json.loads((out / "all_results.json").read_text())
    assert saved["eval_accuracy"] == results["eval_accuracy"]
    assert saved["seed"] == 42 and {"transformers", "commit"} <= set(saved["versions"])
    for metric in ("f1_macro", "f1_weighted", "mcc", "log_loss", "roc_auc", "loss"):
        assert f"eval_{metric}" in saved


def test_predictions_are_those_of_the_saved_model_in_row_order(finetuned, topic_files):
    out, _ = finetuned
    table = pd.read_csv(out / "predictions_test.csv")
    rows = pd.read_csv(topic_files["test"])
    assert list(table["id"]) == list(rows["id"])
    assert list(table.columns) == [
        "id", "prediction", "prob_animals", "prob_moods", "prob_places"
    ]  # fmt: skip
    truth = pd.read_csv(topic_files["test_labels"])["label"]
    assert (table["prediction"] == truth).mean() > 0.9  # a permutation would score a third
    model, _ = load_classifier(out)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    for i in (0, 7, 44):
        with torch.no_grad():
            logits = model.eval()(torch.tensor([tokenizer(rows["text"][i])["input_ids"]])).logits
        np.testing.assert_allclose(
            logits.softmax(-1)[0], table.iloc[i, 2:].astype(float), atol=1e-5
        )


def test_history_has_a_row_per_evaluation_with_both_rates(finetuned):
    out, _ = finetuned
    history = pd.read_csv(out / "history.csv")
    assert list(history["epoch"]) == [1, 2, 3, 4]
    assert {"train_loss", "eval_loss", "learning_rate", "learning_rate_head"} <= set(history)
    # a rate logged at a step is that of the lowest group; the head's is higher by 1 / decay^blocks
    ratio = history["learning_rate_head"] / history["learning_rate"]
    np.testing.assert_allclose(ratio.dropna(), 0.95**-2)


def test_the_encoder_folder_is_plain_transformers(finetuned):
    from transformers import AutoModel

    out, _ = finetuned
    model, _ = load_classifier(out)
    encoder, info = AutoModel.from_pretrained(out / "encoder", output_loading_info=True)
    assert {k.split(".")[0] for k in info["missing_keys"]} <= {"pooler"}
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor)


def test_run_args_repeat_the_run_bit_by_bit(finetuned, tmp_path):
    out, _ = finetuned
    again = str(tmp_path / "again")
    run_finetune.main([str(out / "run_args.yaml"), "--output_dir", again])
    for name in ("predictions_test.csv", "predictions_validation.csv", "model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    saved = yaml.safe_load((out / "run_args.yaml").read_text())
    assert "hub_token" not in saved and saved["learning_rate"] == 3e-3


def test_prediction_alone_from_a_saved_folder(finetuned, topic_files, tmp_path):
    out, _ = finetuned
    results = run_finetune.main(
        {
            "model_name_or_path": str(out),
            "test_file": topic_files["test_labels"],
            "id_column_name": "id",
            "output_dir": str(tmp_path / "p"),
            "use_cpu": True,
        }
    )
    old, new = (
        pd.read_csv(out / "predictions_test.csv"),
        pd.read_csv(tmp_path / "p" / "predictions_test.csv"),
    )
    np.testing.assert_allclose(old.iloc[:, 2:], new.iloc[:, 2:], atol=1e-6)
    assert results["test_accuracy"] > 0.9 and "eval_accuracy" not in results
    assert not (tmp_path / "p" / "model.safetensors").exists()


def test_a_trained_head_is_kept_for_the_same_labels_and_renewed_for_others(
    finetuned, topic_files, tmp_path, caplog
):
    out, _ = finetuned
    caplog.set_level("INFO")
    common = {"num_train_epochs": 0.01, "learning_rate": 1e-9}
    results = run(str(out), topic_files, tmp_path / "a", **common)
    assert results["eval_accuracy"] > 0.9 and "Head: kept" in caplog.text
    caplog.clear()
    run(str(out), topic_files, tmp_path / "b", **common, layers="last4")
    assert "New, from random weights: head.weight, head.bias" in caplog.text


def test_a_small_encoder_is_said_once_to_need_another_rate(
    finetuned, tiny_bert, topic_files, tmp_path, caplog
):
    def said() -> list[str]:
        found = [r.getMessage() for r in caplog.records if "BERT-base size" in r.getMessage()]
        caplog.clear()
        return found

    caplog.set_level("INFO")
    quick = {"num_train_epochs": 0.01, "seeds": [1, 2], "token_pooling": None}
    run(tiny_bert, topic_files, tmp_path / "a", **quick, learning_rate=None)
    (line,) = said()
    assert line.startswith("Hidden size 32: the default --learning_rate 2e-05 is for")
    assert line.endswith("e.g. --learning_rate 3e-4 --token_pooling mean")
    run(tiny_bert, topic_files, tmp_path / "a", **quick, learning_rate=None)  # is done
    run(tiny_bert, topic_files, tmp_path / "b", **quick, learning_rate=2e-5)
    alone = {"model_name_or_path": str(finetuned[0]), "test_file": topic_files["test"]}
    run_finetune.main({**alone, "output_dir": str(tmp_path / "c"), "use_cpu": True})
    assert said() == []


@pytest.mark.parametrize(("hidden_size", "lines"), [(504, 1), (512, 0)])
def test_where_an_encoder_is_small(hidden_size, lines, tmp_path, caplog):
    tiny_bert_config(50, hidden_size=hidden_size).save_pretrained(tmp_path)
    caplog.set_level("INFO")
    args = SimpleNamespace(
        checkpoint=EncoderArguments(str(tmp_path)),
        model=ModelArguments(token_pooling="max"),
        training=SimpleNamespace(learning_rate=2e-5),
    )
    suggest_rate(str(tmp_path), args)
    assert len(caplog.records) == lines
    assert "token_pooling" not in caplog.text  # is chosen


def test_frozen_parameters_stay_bit_equal_and_the_rest_move(four_blocks, topic_files, tmp_path):
    run(four_blocks, topic_files, tmp_path / "f", freeze="2", num_train_epochs=1)
    trained, _ = load_classifier(tmp_path / "f")
    from bertchain.models.loading import load_encoder

    before = load_encoder(four_blocks)[0].state_dict()
    for name, parameter in trained.encoder.named_parameters():
        frozen = layer_id_of(f"encoder.{name}", trained) <= 2
        unmoved = torch.equal(parameter, before[name])
        # a key bias cannot change attention: its gradient is zero but for rounding
        if frozen or not name.endswith("key.bias"):
            assert unmoved == frozen, name
    table = pd.read_csv(tmp_path / "f" / "optimizer_groups.csv")
    assert set(table["group"].str.split(",").str[0]) == {"block 3", "block 4", "head"}


# ---------------------------------------------------------------- one loss for every way to batch


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label", "regression"])
def test_loss_and_gradients_are_the_same_for_accumulation_1_and_4(problem_type, tmp_path):
    whole, loss, _ = one_step(problem_type, tmp_path, 24, 1)
    parts, loss_of_parts, _ = one_step(problem_type, tmp_path, 6, 4)
    assert loss == pytest.approx(loss_of_parts, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label", "regression"])
def test_an_uneven_last_micro_batch_counts_by_its_rows(problem_type, tmp_path):
    whole, loss, _ = one_step(problem_type, tmp_path, 22, 1, rows=22)
    parts, loss_of_parts, _ = one_step(problem_type, tmp_path, 6, 4, rows=22)  # 6 + 6 + 6 + 4
    assert loss == pytest.approx(loss_of_parts, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=1e-6, rtol=1e-4)


TWO_PROCESSES = """
import sys, torch
sys.path[:0] = [{root!r}, {tests!r}]
from one_step import one_step
kind, out, batch, accumulation, rows = sys.argv[1:]
gradients, loss, _ = one_step(kind, out, int(batch), int(accumulation), int(rows))
import os
if os.environ["RANK"] == "0":
    torch.save((gradients, loss), out + "/two.pt")
torch.distributed.barrier()  # rank 0 may still be writing
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("problem_type", "batch", "accumulation", "rows"),
    [
        ("single_label", 12, 1, 24),
        ("regression", 12, 1, 24),
        ("multi_label", 2, 2, 5),  # the second micro-batch has one row for two processes
    ],
)
def test_loss_and_gradients_are_the_same_for_1_and_2_processes(
    problem_type, batch, accumulation, rows, tmp_path
):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(root=str(ROOT), tests=str(ROOT / "tests")))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(29500 + os.getpid() % 500), str(script)]
    done = run_command(*launch, problem_type, tmp_path, *map(str, (batch, accumulation, rows)))
    assert done.returncode == 0, done.stderr[-3000:]
    two, loss_of_two = torch.load(tmp_path / "two.pt", weights_only=True)
    one, loss, _ = one_step(problem_type, tmp_path, 2 * batch * accumulation, 1, rows)
    assert loss == pytest.approx(loss_of_two, rel=1e-5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("batch", [5, 64])
def test_evaluation_loss_does_not_depend_on_the_batch_size(finetuned, topic_files, tmp_path, batch):
    out, results = finetuned
    arguments = {
        "model_name_or_path": str(out),
        "test_file": topic_files["test_labels"],
        "id_column_name": "id",
        "output_dir": str(tmp_path / "p"),
        "per_device_eval_batch_size": batch,
        "use_cpu": True,
    }
    results = run_finetune.main(arguments)
    assert results["test_loss"] == pytest.approx(results["test_log_loss"], rel=1e-5)


# ---------------------------------------------------------------- other tasks and mistakes


def test_bad_arguments_are_one_line(tiny_bert, topic_files, tmp_path):
    def error(**arguments):
        with pytest.raises(InputError) as caught:
            run(tiny_bert, topic_files, tmp_path / "x", **arguments)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "x").exists()
        return str(caught.value)

    assert "--freeze" in error(freeze="all")
    assert "--token_pooling clss" in error(token_pooling="clss")
    assert "--layers" in error(layers="12")
    assert "did you mean learning_rate" in error(learning_rat=1)
    assert "--do_predict needs --test_file" in error(do_predict=True)
    assert "no column 'body'" in error(text_column_names=["body"])
    assert "no such file" in error(test_file="none.csv")
    assert "--resume_from_checkpoint last" in error(resume_from_checkpoint="last")
    assert "--label_smoothing_factor" in error(label_smoothing_factor=0.1, label_delimiter="|")


def test_multi_label_and_regression_runs_beat_a_constant(tiny_bert, tmp_path):
    rows = pd.DataFrame(make_rows(150))
    rows["tags"] = [
        f"{a}|{'even' if 'cat' in t else 'odd'}" for a, t in zip(rows.label, rows.text, strict=True)
    ]
    rows["score"] = [len(t.split()) + 0.5 for t in rows.text]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    files = {"train": str(tmp_path / "rows.csv")}
    common = {"test_file": files["train"], "num_train_epochs": 12}
    results = run(
        tiny_bert, files, tmp_path / "m", label_column_name=["tags"], label_delimiter="|", **common
    )
    frequencies = np.mean(
        [
            [p in t.split("|") for p in ("animals", "even", "moods", "odd", "places")]
            for t in rows.tags
        ],
        axis=0,
    )
    constant = -(frequencies * np.log(frequencies) + (1 - frequencies) * np.log(1 - frequencies))
    assert results["test_log_loss"] < 0.7 * constant.mean()
    for metric in ("f1_micro", "f1_macro", "roc_auc_micro", "roc_auc_macro", "lrap"):
        assert 0.7 < results[f"test_{metric}"] <= 1, metric
    results = run(tiny_bert, files, tmp_path / "r", label_column_name=["score"], **common)
    assert results["test_rmse"] < 0.7 * rows["score"].std()
    for metric in ("mae", "pearson", "spearman"):
        assert np.isfinite(results[f"test_{metric}"])


def test_a_new_multi_label_head_starts_at_the_label_frequencies():
    head = nn.Linear(2, 3)
    labels = [[1.0, 0.0, 1.0]] * 30 + [[0.0, 0.0, 1.0]] * 69
    start_at_frequencies(head, labels, "multi_label_classification")
    expected = torch.tensor([30.5, 0.5, 99.5]) / 100
    torch.testing.assert_close(head.bias.detach().sigmoid(), expected)
    before = head.bias.detach().clone()
    start_at_frequencies(head, [0, 1, 2], "single_label_classification")
    assert torch.equal(head.bias, before)


def test_a_run_left_in_the_middle_is_not_mixed_with_a_new_one(tiny_bert, topic_files, tmp_path):
    (tmp_path / "o" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "o" / "checkpoint-7" / WHOLE).touch()
    with pytest.raises(InputError, match=r"checkpoint-7 is left .*--resume_from_checkpoint last"):
        run(tiny_bert, topic_files, tmp_path / "o")
    assert (tmp_path / "o" / "checkpoint-7").is_dir()


def test_a_resumed_run_equals_an_uninterrupted_one(tiny_bert, topic_files, tmp_path):
    run(tiny_bert, topic_files, tmp_path / "whole", num_train_epochs=2, keep_checkpoints=True)
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
    assert checkpoints  # kept as asked
    half = tmp_path / "half"
    half.mkdir()
    first = min(checkpoints, key=lambda p: int(p.name.split("-")[1]))
    shutil.copytree(first, half / first.name)  # that of the best epoch may be asked for there
    run(tiny_bert, topic_files, half, num_train_epochs=2, resume_from_checkpoint="last")
    a, b = (load_classifier(tmp_path / name)[0].state_dict() for name in ("whole", "half"))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def test_extra_metrics_by_path(tiny_bert, topic_files, tmp_path):
    script = tmp_path / "hits.py"
    script.write_text(
        "import datasets\nimport evaluate\n"
        "class Hits(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        value = datasets.Value('int64')\n"
        "        features = datasets.Features({'predictions': value, 'references': value})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references, times='1'):\n"
        "        hits = sum(p == r for p, r in zip(predictions, references))\n"
        "        return {'hits': float(hits) * float(times)}\n"
    )
    extra = f"{script}:times=10"
    results = run(tiny_bert, topic_files, tmp_path / "o", num_train_epochs=1, extra_metrics=[extra])
    rows = len(pd.read_csv(tmp_path / "o" / "predictions_validation.csv"))
    assert results["eval_hits"] == pytest.approx(10 * results["eval_accuracy"] * rows)


def test_nobody_is_asked_whether_code_may_run(finetuned, monkeypatch):
    """As the card says; a question would hang a notebook."""
    out, asked = finetuned[0], []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "n")
    assert len(AutoTokenizer.from_pretrained(out, trust_remote_code=False)) > 5
    assert len(AutoTokenizer.from_pretrained(out / "encoder")) > 5
    AutoModel.from_pretrained(out / "encoder", add_pooling_layer=False)
    assert not asked
    card = (out / "README.md").read_text(encoding="utf-8")
    assert 'AutoTokenizer.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=False)' in card


@pytest.mark.usefixtures("asks_the_hub")
def test_a_metric_that_is_nowhere(tiny_bert, topic_files, tmp_path):
    with pytest.raises(InputError, match="--extra_metrics no_such_metric"):
        run(tiny_bert, topic_files, tmp_path / "p", extra_metrics=["no_such_metric"])


@pytest.fixture
def long_pairs(tmp_path) -> str:
    """A folder in the form of a hub data set: title and text, documents of up to four windows."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split, n, seed in (("train", 150, 0), ("validation", 30, 1), ("test", 30, 2)):
        rows = make_rows(n, seed, words=(5, 60))
        rows = [row | {"title": row["text"].split()[0]} for row in rows]
        pd.DataFrame(rows).to_json(folder / f"{split}.jsonl", orient="records", lines=True)
    return str(folder)


def test_long_text_pairs_from_a_data_set_by_name(four_blocks, long_pairs, tmp_path, caplog):
    caplog.set_level("INFO")
    arguments = {
        **BASICS,
        "model_name_or_path": four_blocks,
        "dataset_name": long_pairs,
        "text_column_names": ["title", "text"],
        "text_pair": True,
        "truncation": "hierarchical",
        "max_seq_length": 20,
        "segment_overlap": 2,
        "max_segments": 4,
        "layers": "0 -1",
        "layer_pooling": "weighted",
        "token_pooling": "attention",
        "segment_pooling": "attention",
        "max_train_samples": 120,
        "max_eval_samples": 27,
        "do_train": True,
    }
    results = run_finetune.main({**arguments, "output_dir": str(tmp_path / "o")})
    assert results["eval_accuracy"] > 0.8
    assert not (tmp_path / "o" / "predictions_test.csv").exists()  # --do_train asks for no more
    assert len(pd.read_csv(tmp_path / "o" / "predictions_validation.csv")) == 27
    assert "of 120 documents are longer than one window" in caplog.text
    groups = set(pd.read_csv(tmp_path / "o" / "optimizer_groups.csv")["group"])
    assert "head" in groups and "block 4" in groups
    alone = {
        "model_name_or_path": str(tmp_path / "o"),
        "dataset_name": long_pairs,
        "text_column_names": ["title", "text"],
        "text_pair": True,
        "id_column_name": "id",
        "do_predict": True,
        "max_predict_samples": 21,
        "output_dir": str(tmp_path / "p"),
        "use_cpu": True,
    }
    results = run_finetune.main(alone)  # windows and poolings come from the folder
    assert results["test_accuracy"] > 0.8 and "eval_accuracy" not in results
    assert len(pd.read_csv(tmp_path / "p" / "predictions_test.csv")) == 21


def test_joined_columns_and_other_ways_to_cut(four_blocks, long_pairs, tmp_path):
    for truncation in ("tail", "head_tail"):
        arguments = {
            **BASICS,
            "model_name_or_path": four_blocks,
            "dataset_name": long_pairs,
            "text_column_names": ["title", "text"],
            "text_separator": " . ",
            "truncation": truncation,
            "max_seq_length": 16,
            "layers": "last4",
            "output_dir": str(tmp_path / truncation),
        }
        if truncation == "head_tail":
            arguments["head_tokens"] = 4
        assert run_finetune.main(arguments)["test_accuracy"] > 0.7
        saved = json.loads((tmp_path / truncation / "config.json").read_text())
        assert saved["windows"]["truncation"] == truncation and saved["layers"] == [1, 2, 3, 4]
