"""The chain through the real command line, from another working directory."""

import json
import os

import pandas as pd
import pytest
from conftest import ROOT, make_rows
from forking import run_command

from bertchain.data import contamination as fingerprint

pytestmark = pytest.mark.versions


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_bert):
    """A working directory with data and nothing of the project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, n, seed in (("train", 150, 0), ("test", 45, 1), ("unlabelled", 200, 2)):
        rows = pd.DataFrame(make_rows(n, seed))
        rows["title"] = rows["text"].str.split().str[0]
        rows.to_csv(folder / f"{name}.tsv", sep="\t", index=False)
    (folder / "model").symlink_to(tiny_bert)
    return folder


LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file"]
LAUNCHER += [str(ROOT / "examples" / "accelerate" / "two_processes.yaml")]
TEXT = ["--text_column_names", "title", "text", "--id_column_name", "id"]


def test_the_chain(folder):
    done = run_command(
        ROOT / "run_itpt.py", "--model_name_or_path", "model", "--train_file", "unlabelled.tsv",
        "train.tsv", *TEXT[:3], "--output_dir", "itpt", "--num_train_epochs", 4,
        "--learning_rate", "3e-3", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    itpt = json.loads((folder / "itpt" / "all_results.json").read_text())
    history = pd.read_csv(folder / "itpt" / "history.csv")
    assert itpt["eval_loss"] < history["eval_loss"][0] - 0.5

    done = run_command(
        ROOT / "run_finetune.py", "--model_name_or_path", "itpt", "--train_file", "train.tsv",
        "--test_file", "test.tsv", *TEXT, "--token_pooling", "mean", "--learning_rate", "3e-3",
        "--num_train_epochs", 3, "--output_dir", "finetuned", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "block 2" in done.stderr and "of 135 documents are longer" in done.stderr
    finetuned = json.loads((folder / "finetuned" / "all_results.json").read_text())
    assert finetuned["test_accuracy"] > 0.9
    predictions = pd.read_csv(folder / "finetuned" / "predictions_test.csv")
    truth = pd.read_csv(folder / "test.tsv", sep="\t")
    assert list(predictions["id"]) == list(truth["id"])
    hits = (predictions["prediction"] == truth["label"]).mean()
    assert hits == pytest.approx(finetuned["test_accuracy"])

    done = run_command(
        ROOT / "run_probe.py", "--models", "base=model", "itpt=itpt", "tuned=finetuned",
        "--train_file", "train.tsv", "--test_file", "test.tsv", *TEXT, "--output_dir", "probed",
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    headline = json.loads((folder / "probed" / "all_results.json").read_text())["headline"]
    score = {row["what"]: row["test accuracy"] for row in headline}
    assert score["tuned: as fine-tuned, own head"] == pytest.approx(hits)
    assert score["majority class"] < 0.5 < score["base: best frozen layer"]
    assert "itpt: last layer" in score


def test_two_processes_by_accelerate_launch(folder):
    """Both launchers start the same script; rows come back once, in order."""
    launch = [*LAUNCHER, "--main_process_port", str(29000 + os.getpid() % 400)]
    done = run_command(
        *launch, ROOT / "run_finetune.py", "--model_name_or_path", "model", "--train_file",
        "train.tsv", "--test_file", "test.tsv", *TEXT, "--token_pooling", "mean", "--learning_rate",
        "3e-3", "--num_train_epochs", 3, "--per_device_train_batch_size", 8, "--output_dir", "two",
        "--use_cpu", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "two" / "all_results.json").read_text())
    assert results["test_accuracy"] > 0.9
    predictions = pd.read_csv(folder / "two" / "predictions_test.csv")
    truth = pd.read_csv(folder / "test.tsv", sep="\t")
    assert list(predictions["id"]) == list(truth["id"])
    hits = (predictions["prediction"] == truth["label"]).mean()
    assert hits == pytest.approx(results["test_accuracy"])
    assert len(pd.read_csv(folder / "two" / "predictions_validation.csv")) == 15
    assert done.stderr.count("Optimizer groups:") == 1  # said by one process
    steps = pd.read_csv(folder / "two" / "history.csv")["step"].iloc[-1]
    assert steps == 3 * -(-135 // 16)  # two processes: 16 rows a step


@pytest.mark.parametrize("stream", [False, True])
def test_further_pretraining_in_two_processes(folder, stream):
    """Rows are shared out, the loss is one, and the fingerprint holds what both have seen."""
    out = f"itpt_two_{stream}"
    more = ["--streaming", "--max_steps", 12] if stream else ["--num_train_epochs", 2]
    done = run_command(
        *LAUNCHER, "--main_process_port", 29400 + os.getpid() % 400 + stream,
        ROOT / "run_itpt.py", "--model_name_or_path", "model", "--train_file", "train.tsv",
        *TEXT[:3], "--per_device_train_batch_size", 8, "--use_cpu", "--validation_split", 0.2,
        "--learning_rate", "3e-3", "--output_dir", out, *more, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / out / "all_results.json").read_text())
    history = pd.read_csv(folder / out / "history.csv")
    assert history["eval_loss"].iloc[-1] < history["eval_loss"].iloc[0] - 0.3
    rows = pd.read_csv(folder / "train.tsv", sep="\t")
    documents = {*map(fingerprint.hash_text, rows["title"] + " " + rows["text"])}
    seen = {*fingerprint.read_fingerprint(folder / out).tolist()}
    assert seen < documents
    if stream:  # 12 steps of 16 rows: both processes are through their half of about 120
        assert len(seen) == len(documents) - results["held_out_documents"]
    else:
        assert len(seen) == results["documents"]
        assert history["step"].iloc[-1] == 2 * -(-results["rows"] // 16)


def test_two_processes_extract_the_features_of_one(folder):
    common = [
        ROOT / "run_probe.py", "--models", "base=model", "--train_file", "train.tsv", "--test_file",
        "test.tsv", *TEXT, "--tokens_per_batch", 200, "--output_dir",
    ]  # fmt: skip
    launch = [*LAUNCHER, "--main_process_port", str(28700 + os.getpid() % 250)]
    assert run_command(*common, "probed_one", cwd=folder).returncode == 0
    done = run_command(*launch, *common, "probed_two", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [pd.read_csv(folder / f"probed_{n}" / "results.csv") for n in ("one", "two")]
    pd.testing.assert_frame_equal(*results)
    features = [sorted((folder / f"probed_{n}" / "features").iterdir()) for n in ("one", "two")]
    assert [f.name for f in features[0]] == [f.name for f in features[1]]
    for one, two in zip(*features, strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert done.stderr.count("report.html") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run_finetune.py", ["--train_file", "none.tsv"], "none.tsv: no such file"),
        ("run_finetune.py", ["--train_file", "train.tsv", "--label_column_name", "topic"],
         "train.tsv: no column 'topic' (--label_column_name); there are: id, text, label, title"),
        ("run_finetune.py", ["--train_flie", "x"],
         "unknown argument --train_flie (did you mean train_file?)"),
        ("run_itpt.py", ["--train_file", "train.tsv", "--mlm_probability", "2"],
         "--mlm_probability 2.0 must lie between 0 and 1"),
        ("run_probe.py", ["--models", "model"], "no data: give --train_file"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(folder, script, arguments, message):
    model = [] if script == "run_probe.py" else ["--model_name_or_path", "model"]
    before = sorted(os.listdir(folder))
    done = run_command(ROOT / script, *model, *arguments, "--output_dir", "none", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"{script}: error: {message}")
    assert "Traceback" not in done.stderr and sorted(os.listdir(folder)) == before
