"""Several tasks on one encoder: the sampler, shared weights, what is saved, one task further."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import ROOT, drawing, make_rows
from forking import run_command
from tiny_models import classifier
from transformers import AutoModel

sys.path.insert(0, str(ROOT / "examples" / "multitask"))

import run_multitask
from multitask import MultiTaskClassifier, OneTaskAtATime, TaskRows

import run_finetune
from bertchain.data import contamination
from bertchain.errors import InputError
from bertchain.models.loading import load_classifier
from bertchain.models.modeling import PROBLEM_TYPES

SCRIPT = ROOT / "examples" / "multitask" / "run_multitask.py"


def test_batches_hold_one_task_and_tasks_take_turns_by_size():
    generator = np.random.default_rng(0)
    lengths = [generator.integers(1, 50, n).tolist() for n in (41, 90)]
    sampler = OneTaskAtATime(lengths, 4, 2, seed=1, epoch=lambda: 0)
    rows = list(sampler)
    assert len(rows) == len(sampler) == 40 + 88 and len(set(rows)) == len(rows)
    units = np.array(rows).reshape(-1, 8)
    tasks = units >= 41
    assert all(row.all() or not row.any() for row in tasks)  # both processes: the same task
    assert tasks[:, 0].sum() == 11 and 0 < tasks[:6, 0].sum() < 6  # mixed, not one after the other
    assert list(sampler) == rows
    other = list(OneTaskAtATime(lengths, 4, 2, seed=1, epoch=lambda: 1))
    assert other != rows
    spread = [np.ptp([lengths[0][r] for r in unit]) for unit in units[~tasks[:, 0]]]
    assert np.mean(spread) < 30  # rows of similar length


def test_the_encoder_is_shared_and_counted_once():
    first = classifier("bert", num_labels=3)
    second = classifier("bert", num_labels=5)
    second.encoder = first.encoder
    model = MultiTaskClassifier({"a": first, "b": second}).eval()
    names = list(model.state_dict())
    assert len(names) == len(set(names)) and not any(
        n.startswith("tasks.") and ".encoder." in n for n in names
    )
    ids = torch.randint(5, 60, (2, 1, 8))
    assert model(ids, task="a").logits.shape == (2, 3)
    assert model(ids, task="b").logits.shape == (2, 5)
    alone = model(ids, task="b").logits
    whole = model.whole("b")
    torch.testing.assert_close(whole(ids).logits, alone)
    assert any(name.startswith("encoder.") for name in whole.state_dict())


def test_a_task_smaller_than_a_batch_is_an_error():
    from datasets import Dataset

    with pytest.raises(InputError, match="task b has 3 training rows, fewer than one batch of 8"):
        rows = {name: Dataset.from_dict({"x": range(n)}) for name, n in (("a", 9), ("b", 3))}
        TaskRows(rows, 8)


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """Topics of 150 rows; tags (multi-label) and a degree (regression) of 90 others."""
    folder = tmp_path_factory.mktemp("tasks")
    pd.DataFrame(make_rows(150)).to_csv(folder / "topics.csv", index=False)
    pd.DataFrame(make_rows(45, seed=1)).to_csv(folder / "topics_test.csv", index=False)
    rows = pd.DataFrame(make_rows(90, seed=2)).rename(columns={"text": "body"})
    rows["tags"] = rows.label + np.where(rows.body.str.contains("cat"), "|cat", "|none")
    rows["degree"] = rows.label.map({"animals": 0.5, "moods": 1.5, "places": 4.0})
    rows.to_csv(folder / "other.csv", index=False)
    return folder


def arguments_for(task_files, tiny_bert, out, **changes):
    topics = {"train_file": str(task_files / "topics.csv"), "id_column_name": "id"}
    other = {"train_file": str(task_files / "other.csv"), "text_column_names": "body"}
    return {
        "model_name_or_path": tiny_bert,
        "tasks": {
            "topics": topics | {"test_file": str(task_files / "topics_test.csv")},
            "tags": other | {"label_column_name": "tags", "label_delimiter": "|"},
            "degree": other | {"label_column_name": "degree", "test_file": other["train_file"]},
        },
        "token_pooling": "mean",
        "learning_rate": 3e-3,
        "num_train_epochs": 6,
        "disable_tqdm": True,
        "use_cpu": True,
        "output_dir": str(out),
        **changes,
    }


@pytest.fixture(scope="module")
def multitask(tmp_path_factory, task_files, tiny_bert):
    out = tmp_path_factory.mktemp("runs") / "multitask"
    file = out.parent / "tasks.yaml"
    file.write_text(yaml.safe_dump(arguments_for(task_files, tiny_bert, out)))
    with drawing():
        return out, run_multitask.main([str(file)])


def test_every_task_learns(multitask):
    out, results = multitask
    assert results["test_topics_accuracy"] > 0.9
    assert results["eval_tags_lrap"] > 0.8 and results["test_degree_pearson"] > 0.5
    expected = (
        results["eval_topics_accuracy"] + results["eval_tags_lrap"] - results["eval_degree_rmse"]
    ) / 3
    assert results["eval_mean_score"] == pytest.approx(expected)
    history = pd.read_csv(out / "history.csv")
    assert len(history) == 6
    best = history["eval_mean_score"].max()  # the best checkpoint was kept
    assert results["eval_mean_score"] == pytest.approx(best, rel=1e-5)
    saved = json.loads((out / "all_results.json").read_text())
    assert saved["test_topics_accuracy"] == results["test_topics_accuracy"] and "versions" in saved
    assert (out / "history.png").stat().st_size > 5000


def test_the_folder_is_an_encoder_and_holds_a_classifier_for_each_task(multitask, task_files):
    out, results = multitask
    encoder = AutoModel.from_pretrained(out, add_pooling_layer=False).state_dict()
    for name, kind in (
        ("topics", "single_label"),
        ("tags", "multi_label"),
        ("degree", "regression"),
    ):
        model, missing = load_classifier(out / name)
        assert missing == [] and model.config.problem_type == PROBLEM_TYPES[kind]
        for key, value in model.encoder.state_dict().items():
            assert torch.equal(value, encoder[key])
        assert (out / name / "predictions_validation.csv").is_file()
    table = pd.read_csv(out / "topics" / "predictions_test.csv")
    truth = pd.read_csv(task_files / "topics_test.csv")
    assert list(table["id"]) == list(truth["id"])
    accuracy = (table["prediction"] == truth["label"]).mean()
    assert accuracy == pytest.approx(results["test_topics_accuracy"])
    assert not list(out.glob("checkpoint-*"))


def test_pages_of_all_tasks_and_of_each(multitask, task_files):
    out, results = multitask
    page = (out / "report.html").read_text(encoding="utf-8")
    for name, metric in (("topics", "accuracy"), ("tags", "lrap"), ("degree", "rmse")):
        row = re.search(rf"<tr><td>{name}</td><td>{metric}</td>.*?</tr>", page)[0]
        numbers = re.findall(r'data-value="(.*?)"', row)
        assert float(numbers[0]) == results[f"eval_{name}_{metric}"]
        assert float(numbers[1]) > 0 or numbers[0] == "1.0"
        tested = f"test_{name}_{metric}" in results
        assert [*map(float, filter(None, numbers[2:3]))] == (
            [results[f"test_{name}_{metric}"]] if tested else []
        )
    assert f'data-value="{results["eval_mean_score"]!r}"' in page and page.count("<svg") == 1
    own = {n: (out / n / "report.html").read_text("utf-8") for n in ("topics", "tags", "degree")}
    assert f'data-value="{results["test_topics_accuracy"]!r}"' in own["topics"]
    for name, what in (("topics", "confusion"), ("tags", "thresholds"), ("degree", "residuals")):
        for section in (what, "scores", "mistakes", "run"):
            assert f'<section id="{section}">' in own[name], (name, section)
        assert str(task_files) not in own[name] + page  # no path of the machine
    wrong = pd.read_csv(out / "degree" / "mistakes.csv", dtype={"id": str})
    texts = pd.read_csv(task_files / "other.csv")["body"]
    assert all(texts[int(name)] in own["degree"] for name in wrong["id"])
    number = results["degree_test_documents_trained_on"]
    assert f"{number} test documents" in own["degree"]  # by the tags


def test_what_all_tasks_were_trained_on_is_known(multitask, task_files):
    """The encoder has seen the rows of each task; the degrees are tested on those of the tags."""
    out, results = multitask
    hashes = contamination.trained_rows([str(out)])
    for folder in ("topics", "topics/encoder", "tags"):
        assert contamination.trained_rows([str(out / folder)]).tolist() == hashes.tolist()
    tested = pd.read_csv(task_files / "other.csv")["body"]
    seen = contamination.count_seen(contamination.hash_texts(tested), hashes)
    assert results["degree_test_documents_trained_on"] == seen >= 81
    assert results["tags_validation_documents_trained_on"] > 0  # trained on, with their degrees
    assert results["topics_test_documents_trained_on"] < 5


def test_going_on_with_one_task(multitask, task_files, tmp_path):
    out, results = multitask
    common = {
        "train_file": str(task_files / "topics.csv"),
        "test_file": str(task_files / "topics_test.csv"),
        "num_train_epochs": 1,
        "learning_rate": 1e-9,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    kept = run_finetune.main(
        common | {"model_name_or_path": str(out / "topics"), "output_dir": str(tmp_path / "a")}
    )
    assert kept["test_accuracy"] == pytest.approx(results["test_topics_accuracy"])  # with its head
    new = run_finetune.main(
        common | {"model_name_or_path": str(out), "output_dir": str(tmp_path / "b")}
    )
    assert new["test_accuracy"] < 0.9  # the encoder with a new head


def test_methods_and_resuming_work_with_several_tasks(task_files, tiny_bert, tmp_path):
    common = {"num_train_epochs": 2, "ema_decay": 0.9, "fgm_epsilon": 0.2, "keep_checkpoints": True}
    common |= {"label_smoothing_factor": 0.1, "save_total_limit": 9, "dropout_samples": 2}
    common |= {"load_best_model_at_end": False, "layers": "last4", "gradient_checkpointing": True}
    whole = run_multitask.main(arguments_for(task_files, tiny_bert, tmp_path / "whole", **common))
    first = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (tmp_path / "half").mkdir()
    first.rename(tmp_path / "half" / first.name)
    common |= {"resume_from_checkpoint": "last", "keep_checkpoints": False}
    half = run_multitask.main(arguments_for(task_files, tiny_bert, tmp_path / "half", **common))
    assert half["eval_mean_score"] == whole["eval_mean_score"]
    assert not list((tmp_path / "half").glob("checkpoint-*"))


def test_early_stopping_by_the_mean_score(task_files, tiny_bert, tmp_path):
    changes = {"early_stopping_patience": 1, "num_train_epochs": 40}
    run_multitask.main(arguments_for(task_files, tiny_bert, tmp_path / "o", **changes))
    scores = pd.read_csv(tmp_path / "o" / "history.csv")["eval_mean_score"].tolist()
    assert len(scores) < 40 and scores[-1] <= max(scores[:-1])
    assert scores[:-1] == sorted(scores[:-1])


def test_mistakes_in_the_tasks_are_named(task_files, tiny_bert, tmp_path):
    def error(tasks):
        with pytest.raises(InputError) as caught:
            run_multitask.main(arguments_for(task_files, tiny_bert, tmp_path / "x", tasks=tasks))
        assert not (tmp_path / "x").exists()
        return str(caught.value)

    fine = {"train_file": str(task_files / "topics.csv")}
    assert "--tasks needs two tasks" in error({"a": fine})
    assert "--tasks, b/c: a name consists of" in error({"a": fine, "b/c": fine})
    assert "--tasks, items: another name" in error({"a": fine, "items": fine})
    assert "--tasks, b: give its arguments" in error({"a": fine, "b": "file.csv"})
    assert "--tasks, b: give its train_file" in error({"a": fine, "b": {"test_file": "x.csv"}})
    wrong = fine | {"label_colum_name": "label"}
    assert "--tasks, b: unknown argument --label_colum_name (did you mean" in error(
        {"a": fine, "b": wrong}
    )
    assert "no such file" in error({"a": fine, "b": {"train_file": "none.csv"}})


def test_two_processes(task_files, tiny_bert, tmp_path):
    file = tmp_path / "tasks.yaml"
    arguments = arguments_for(task_files, tiny_bert, tmp_path / "o", num_train_epochs=8)
    file.write_text(yaml.safe_dump(arguments))
    config = tmp_path / "two.yaml"
    config.write_text("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 1\n")
    command = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    command += ["--main_process_port", "29873", str(SCRIPT), str(file)]
    done = run_command(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "o" / "all_results.json").read_text())
    assert results["test_topics_accuracy"] > 0.8
    history = pd.read_csv(tmp_path / "o" / "history.csv")
    assert history["step"].iloc[-1] == 8 * (135 // 32 + 81 // 32 + 81 // 32)
