"""run_itpt.py as a whole: every argument, long runs, several processes."""

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers
from conftest import make_rows
from test_modeling import tiny_encoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

import run_itpt
from command_line import InputError

# ---------------------------------------------------------------- the script


@pytest.fixture(scope="module")
def further_pretrained(tmp_path_factory, tiny_bert):
    folder = tmp_path_factory.mktemp("itpt")
    pd.DataFrame(make_rows(200, seed=5)).to_csv(folder / "a.csv", index=False)
    lines = [row["text"] for row in make_rows(100, seed=6)]
    (folder / "b.txt").write_text("\n".join(lines) + "\n\n")
    out = folder / "out"
    arguments = {
        "model_name_or_path": tiny_bert,
        "train_file": [str(folder / "a.csv"), str(folder / "b.txt")],
        "output_dir": str(out),
        "num_train_epochs": 8,
        "learning_rate": 5e-3,
        "validation_split": 0.2,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return out, run_itpt.main(arguments), arguments


def texts_of(arguments):
    table, lines = arguments["train_file"]
    return [*pd.read_csv(table)["text"], *Path(lines).read_text().split("\n")[:-2]]


def test_a_run_learns_and_writes_a_plain_checkpoint(further_pretrained, tiny_bert):
    out, results, arguments = further_pretrained
    history = pd.read_csv(out / "history.csv")
    assert history["epoch"][0] == 0 and len(history) == 9  # before the first step, and by epoch
    assert results["eval_perplexity"] < 0.5 * history["eval_perplexity"][0]
    assert results["eval_perplexity"] == pytest.approx(np.exp(results["eval_loss"]))
    assert results["read"] == 301 and results["empty"] == 1
    assert (
        results["documents"] + results["held_out_documents"] == 300 - results["duplicates_removed"]
    )
    assert results["duplicates_removed"] == 301 - 1 - len(set(texts_of(arguments)))
    for load in (AutoModelForMaskedLM, AutoModel):
        _, info = load.from_pretrained(out, output_loading_info=True)
        assert {k.split(".")[0] for k in info["missing_keys"]} <= {"pooler"}
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(tiny_bert))
    names = {f.name for f in out.iterdir()}
    assert {"README.md", "history.png", "run_args.yaml", "all_results.json"} <= names
    assert not any(name.startswith((".", "checkpoint-")) for name in names)
    saved = json.loads((out / "all_results.json").read_text())
    assert saved["eval_loss"] == results["eval_loss"] and "commit" in saved["versions"]


def test_run_args_repeat_the_run_bit_by_bit(further_pretrained, tmp_path):
    out, _, _ = further_pretrained
    run_itpt.main([str(out / "run_args.yaml"), f"--output_dir={tmp_path / 'again'}"])
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "again")]
    assert weights[0] == weights[1]


def test_a_missing_head_is_said_once_in_a_line(further_pretrained, tmp_path, caplog):
    _, results, arguments = further_pretrained
    assert results["untrained_weights"] > 0  # the tiny BERT is an encoder alone
    out, _, _ = further_pretrained
    with caplog.at_level(logging.WARNING, "run_itpt"):
        changes = {"model_name_or_path": str(out), "output_dir": str(tmp_path / "x")}
        again = run_itpt.main({**arguments, **changes, "max_steps": 1})
        assert again["untrained_weights"] == 0
        assert "masked-LM head" not in caplog.text
        run_itpt.main({**arguments, "output_dir": str(tmp_path / "y"), "max_steps": 1})
    lines = [r.getMessage() for r in caplog.records if "masked-LM head" in r.getMessage()]
    assert len(lines) == 1 and "cls.predictions.transform.dense.weight" in lines[0]


def test_text_pairs_and_windows(tokenizers, tiny_bert, tmp_path):
    rows = [{"title": "red cat", "text": "the river of the forest " * 20}] * 30
    frame = pd.DataFrame(rows)
    frame["text"] += [f"dog {i}" for i in range(30)]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    results = run_itpt.main(
        {
            "model_name_or_path": tiny_bert,
            "train_file": [str(tmp_path / "rows.csv")],
            "text_column_names": ["title", "text"],
            "text_pair": True,
            "max_seq_length": 32,
            "max_steps": 1,
            "validation_split": 0.1,
            "output_dir": str(tmp_path / "o"),
            "use_cpu": True,
        }
    )
    assert np.isfinite(results["eval_loss"])


def test_bad_arguments_are_one_line(tiny_bert, tokenizers, topic_files, tmp_path):
    def error(**arguments):
        fields = {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "output_dir": str(tmp_path / "x"),
            "use_cpu": True,
        }
        with pytest.raises(InputError) as caught:
            run_itpt.main({**fields, **arguments})
        assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()
        return str(caught.value)

    assert "no text: give --train_file" in error(train_file=[])
    assert "--mlm_probability 1.5" in error(mlm_probability=1.5)
    assert "no column 'body'" in error(text_column_names=["body"])
    assert "did you mean mlm_probability" in error(mlm_probabilty=0.2)
    transformers.GPT2Model(tiny_encoder("gpt2").config).save_pretrained(tmp_path / "gpt2")
    tokenizers["gpt2"].save_pretrained(tmp_path / "gpt2")
    assert "has no mask token" in error(model_name_or_path=str(tmp_path / "gpt2"))
