# ruff: noqa: E501
"""What users get wrong, through the real command line of the three scripts: one line that names the
thing and what to do, exit code 2, no traceback, and nothing written.

BAD_INPUT_TABLE=benchmarks/BAD_INPUT.md python -m pytest -n 0 tests/scripts/test_bad_input.py   # writes the table
"""

import gzip
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from conftest import ROOT, tiny_bert_config
from safetensors.torch import load_file, save_file
from transformers import BertModel, FNetConfig

from bertchain.runtime.checkpoints import WHOLE
from bertchain.runtime.resuming import ROWS as ROWS_OF_A_STEP

pytestmark = pytest.mark.versions

ROWS = pd.DataFrame(
    {
        "id": [f"r{i}" for i in range(12)],
        "text": [f"the cat runs in the city {i}" for i in range(12)],
        "label": ["a", "b", "c"] * 4,
    }
)


class Case(NamedTuple):
    """What is wrong, the flags that show it, and words that the message must hold.

    Attributes:
        make: writes files into a folder and returns further flags, by name.
    """

    name: str
    script: str
    make: Callable[[Path, str], dict]
    says: tuple[str, ...]


def write_text(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(rows: pd.DataFrame = ROWS, name: str = "train.csv", flag: str = "train_file", **flags):
    def make(folder: Path, model: str) -> dict:
        rows.to_csv(folder / name, index=False)
        return {flag: str(folder / name), **flags}

    return make


def raw(content: str | bytes, name: str = "train.csv", **flags):
    return lambda folder, model: {"train_file": write_text(folder, name, content), **flags}


def as_parquet(rows: pd.DataFrame):
    def make(folder: Path, model: str) -> dict:
        rows.to_parquet(folder / "train.parquet", index=False)
        return {"train_file": str(folder / "train.parquet")}

    return make


def whole_number_weights(weights: dict) -> dict:
    name = "encoder.layer.1.output.dense.weight"
    return weights | {name: (100 * weights[name]).to(torch.int8)}


def arguments_file(content: str):
    return lambda folder, model: {"": write_text(folder, "args.yaml", content)}


def binary_arguments(folder: Path, model: str) -> dict:
    return {"": write_text(folder, "args.yaml", b"\x80\xff: 1")}


def flags(**given):
    return lambda folder, model: {**table()(folder, model), **given}


def changed(**columns) -> pd.DataFrame:
    return ROWS.assign(**columns)


def other_folder(make: Callable[[Path, Path], None], **given):
    """The model is a changed copy of the tiny one."""

    def copy(folder: Path, model: str) -> dict:
        shutil.copytree(model, folder / "model")
        make(folder / "model", folder)
        return {**table()(folder, model), "model_name_or_path": str(folder / "model"), **given}

    return copy


def edit_json(name: str, **changes):
    def make(model: Path, folder: Path) -> None:
        path = model / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return make


def put(name: str, content: str | bytes):
    """A file of the model with other content."""
    return lambda model, folder: write_text(model, name, content)


def out_at(place: str, **files: str):
    """The model is a copy; the output folder is a place beside, at or in it, or holds files."""

    def make(folder: Path, model: str) -> dict:
        for name, content in files.items():
            (folder / place).mkdir(exist_ok=True)
            write_text(folder / place, name.replace("__", "."), content)
        given = other_folder(lambda *_: None)(folder, model)
        return given | {"output_dir": str(folder / place)}

    return make


def left_checkpoint(files: dict, step: dict):
    """A checkpoint whose mark lists these files, and says this of its steps."""

    def make(folder: Path, model: str) -> dict:
        (folder / "checkpoint-3").mkdir()
        for name in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
            if name not in files:
                (folder / "checkpoint-3" / name).write_text("{}")
        (folder / "checkpoint-3" / WHOLE).write_text(json.dumps({"files": files, "step": step}))
        return {**table()(folder, model), "resume_from_checkpoint": str(folder / "checkpoint-3")}

    return make


def in_a_circle(folder: Path, model: str) -> dict:
    os.symlink("circle", folder / "circle")
    return {**table()(folder, model), "output_dir": str(folder / "circle" / "out")}


def of_a_stranger(model: Path, folder: Path) -> None:
    """A run with folds, whose predictions would be written to another folder."""
    put("manifest.json", '{"members": [{"name": "../o", "fold": 0, "seed": 1}]}')(model, folder)


def no_mask_token(model: Path, folder: Path) -> None:
    path = model / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["mask_token"]
    path.write_text(json.dumps(settings))


def without_mask(model: Path, folder: Path) -> None:
    """FNet has no attention mask."""
    FNetConfig().save_pretrained(model)


def cut_weights(model: Path, folder: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled_weights(model: Path, folder: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04N.")


def change_weights(change: Callable[[dict], dict]):
    def make(model: Path, folder: Path) -> None:
        weights = change(load_file(model / "model.safetensors"))
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return make


def one_nan(weights: dict) -> dict:
    weights["encoder.layer.0.output.dense.bias"][3] = float("nan")
    return weights


def other_names(weights: dict) -> dict:
    return {name.replace("encoder", "trunk"): value for name, value in weights.items()}


def an_adapter(model: Path, folder: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "roberta-base"}')


def sentence_transformers(model: Path, folder: Path) -> None:
    model.rename(folder / "inner")
    model.mkdir()
    (folder / "inner").rename(model / "0_Transformer")
    (model / "modules.json").write_text('[{"path": "0_Transformer"}]')


def no_tokenizer(model: Path, folder: Path) -> None:
    for path in model.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def small_vocabulary(model: Path, folder: Path) -> None:
    BertModel(tiny_bert_config(7)).save_pretrained(model)


def in_use(folder: Path, model: str) -> dict:
    (folder / "out").write_text("a file, not a folder")
    return {**table()(folder, model), "output_dir": str(folder / "out")}


def second_file(rows: pd.DataFrame, flag: str = "test_file", **given):
    def make(folder: Path, model: str) -> dict:
        return {**table()(folder, model), **table(rows, "second.csv", flag)(folder, model), **given}

    return make


def sample(rows: pd.DataFrame):
    def make(folder: Path, model: str) -> dict:
        files = second_file(ROWS.drop(columns="label"))(folder, model)
        rows.to_csv(folder / "sample.csv", index=False)
        return {**files, "sample_submission": str(folder / "sample.csv"), "id_column_name": "id"}

    return make


def words(row: dict, **given):
    def make(folder: Path, model: str) -> dict:
        spans = [{"words": [[0]], "label": "X"}, {"words": [[1]], "label": "Y"}]
        good = {"id": "0", "tokens": ["a", "b"], "spans": spans}
        lines = [json.dumps(r) for r in (*[good | {"id": str(i)} for i in range(9)], row)]
        write_text(folder, "train.jsonl", "\n".join(lines))
        return {"train_file": str(folder / "train.jsonl"), "spans_column_name": "spans", **given}

    return make


def own_metric(code: str):
    def make(folder: Path, model: str) -> dict:
        path = write_text(folder, "my.py", code)
        return {**table()(folder, model), "metric_file": f"{path}:score", "validation_split": 0.3}

    return make


TUNE, PRE, PROBE = "run_finetune.py", "run_itpt.py", "run_probe.py"
CSV = ROWS.to_csv(index=False)
CASES = [
    # ---------------------------------------------------------------- files
    Case("no such file", TUNE, flags(train_file="nowhere.csv"), ("nowhere.csv",)),
    Case("a folder for a file", TUNE, lambda f, m: {"train_file": str(f)}, ("is a folder", "--dataset_name")),
    Case("unknown ending", TUNE, raw(CSV, "train.xlsx"), ("train.xlsx", ".csv")),
    Case("empty file", TUNE, raw(""), ("train.csv", "empty")),
    Case("header only", TUNE, raw("id,text,label\n"), ("train.csv", "no rows")),
    Case("wrong delimiter", TUNE, raw(CSV.replace(",", "~")), ("column", "text", "train.csv")),
    Case("wrong encoding", TUNE, raw(CSV.replace("cat", "Käse").encode("latin-1")), ("train.csv", "utf-8")),
    Case("NUL bytes", TUNE, raw(CSV.encode().replace(b"cat", b"c\0t")), ("train.csv", "NUL")),
    Case("ragged rows", TUNE, raw(CSV + "x,1,2,3,4\n"), ("train.csv",)),
    Case("rows wider than the header", TUNE, raw("text,label\n" + "a cat,x,\na dog,y,\n" * 6), ("train.csv, row 1", "3 cells", "2")),
    Case("duplicate columns", TUNE, raw(CSV.replace("id,text,label", "id,text,text")), ("text", "twice")),
    Case("truncated gz", TUNE, raw(gzip.compress(CSV.encode())[:40], "train.csv.gz"), ("train.csv.gz",)),
    Case("not json", TUNE, raw('{"text": "a"\n{', "train.jsonl"), ("train.jsonl",)),
    Case("nested json", TUNE, raw('{"text": {"a": 1}, "label": "x"}\n{"text": {"a": 2}, "label": "y"}\n' * 3, "train.jsonl"), ("row 1", "text", "object")),
    Case("not parquet", TUNE, raw(b"PAR1 no", "train.parquet"), ("train.parquet",)),
    Case("bytes for text", TUNE, as_parquet(changed(text=[b"\xff\xfe"] * 12)), ("row 1", "'text'", "bytes")),
    Case("mixed types in a column", TUNE, raw("".join(json.dumps({"text": "a cat", "label": value}) + "\n" for value in ("a", 1.5, {"c": 1})), "train.jsonl"), ("row", "label")),
    Case("no text column", TUNE, flags(text_column_names="body"), ("body", "text")),
    Case("blanks after the commas of a header", TUNE, raw(CSV.replace("id,text,label", "id, text, label")), ("train.csv", "' label'", "blanks")),
    Case("a lone surrogate", TUNE, raw('{"text": "\\ud800 cat", "label": "a"}\n' * 4, "train.jsonl"), ("surrogate",)),
    # ---------------------------------------------------------------- rows and labels
    Case("no label column", TUNE, flags(label_column_name="class"), ("class", "label")),
    Case("label among the text", TUNE, flags(text_column_names=["text", "label"]), ("label", "text_column_names")),
    Case("one class only", TUNE, table(changed(label="a")), ("label",)),
    Case("missing labels", TUNE, table(changed(label=["a", None, "b"] * 4)), ("label", "row")),
    Case("missing numbers", TUNE, table(changed(label=[0.5, None, 1.5] * 4), problem_type="regression"), ("label",)),
    Case("words for numbers", TUNE, table(problem_type="regression"), ("row 1", "number")),
    Case("lists of 0 and 1 of several lengths", TUNE, raw('{"text": "a cat", "label": [0, 1, 0]}\n{"text": "a dog", "label": [1, 0]}\n' * 6, "train.jsonl"), ("train.jsonl, row 2", "list of 2", "3 labels")),
    Case("lists of numbers", TUNE, raw('{"text": "a cat", "label": [0.2, 0.8]}\n' * 9, "train.jsonl"), ("train.jsonl, row 1", "0.2", "--label_column_name")),
    Case("thousands or decimals", TUNE, table(changed(label=["1,234", "2,500"] * 6)), ("row 1", "'1,234'", "decimal point")),
    Case("at least one label of one", TUNE, flags(at_least_one_label="true"), ("--at_least_one_label", "single_label")),
    Case("unseen label", TUNE, second_file(changed(label="d"), "validation_file"), ("second.csv", "'d'")),
    Case("duplicate ids", TUNE, table(changed(id="same"), id_column_name="id"), ("id", "same")),
    Case("a missing id", TUNE, table(changed(id=[*ROWS["id"][:11], None]), id_column_name="id"), ("train.csv, row 12", "'id'", "empty")),
    Case("a missing group", TUNE, table(changed(g=["x", "y", None] * 4), num_folds=2, group_column_name="g"), ("train.csv, row 3", "'g'", "--group_column_name")),
    Case("a missing fold", TUNE, table(changed(k=[0, 1, None] * 4), fold_column_name="k"), ("train.csv, row 3", "'k'", "--fold_column_name")),
    Case("a missing second text", TUNE, table(changed(b=[*["a cat"] * 11, None]), text_column_names=["text", "b"], text_pair="true"), ("train.csv, row 12", "'b'", "--text_pair")),
    Case("no id column", TUNE, flags(id_column_name="key"), ("key",)),
    Case("class weights of no class", TUNE, flags(class_weights="z=2"), ("z",)),
    Case("too few rows of a class", TUNE, table(changed(label=["a"] * 11 + ["b"]), num_folds=3), ("'b'", "fold_strategy")),
    Case("a fold without rows of a weighted class", TUNE, table(changed(f=[0, 0, 1] * 2 + [1] * 6), fold_column_name="f", class_weights="balanced"), ("fold 1", "class_weights", "'c'")),
    Case("fewer groups than folds", TUNE, table(changed(g="one"), num_folds=3, fold_strategy="group", group_column_name="g"), ("group",)),
    # ---------------------------------------------------------------- submission
    Case("submission of other ids", TUNE, sample(pd.DataFrame({"id": ["q"], "label": ["a"]})), ("id",)),
    Case("submission of 0 for words", TUNE, sample(pd.DataFrame({"id": ROWS["id"], "target": 0})), ("target", "positive_label")),
    Case("submission without ids", TUNE, sample(pd.DataFrame({"x": [1], "y": [2]})), ("sample",)),
    # ---------------------------------------------------------------- words
    Case("a word beyond the sentence", TUNE, words({"id": "x", "tokens": ["a", "b"], "spans": [{"words": [[2]], "label": "X"}]}), ("row 10", "word 2", "0 to 1")),
    Case("no words", TUNE, words({"id": "x", "tokens": "a b", "spans": []}), ("tokens",)),
    Case("a pair among spans", TUNE, words({"id": "x", "tokens": ["a", "b"], "spans": [{"words": [[0], [1]], "label": "X"}]}, id_column_name="id"), ("document x", "2 lists of words")),
    Case("one list where there should be two", TUNE, raw('{"tokens": ["a", "b"], "spans": [{"words": [0, 1], "label": "X"}]}\n', "t.jsonl", spans_column_name="spans"), ("row 1", "list of lists", "[[3, 4]]")),
    Case("no such column of spans", TUNE, flags(spans_column_name="spans"), ("spans_column_name",)),
    # ---------------------------------------------------------------- arguments
    Case("a seed below 0", TUNE, flags(seed=-1), ("seed -1", "2^32")),
    Case("a seed below 0 to pretrain with", PRE, flags(seed=-1), ("seed -1", "2^32")),
    Case("a seed below 0 to probe with", PROBE, flags(seed=-1), ("seed -1", "2^32")),
    Case("a rate that is no number", TUNE, flags(learning_rate="nan"), ("learning_rate", "finite")),
    Case("a rate below 0", TUNE, flags(learning_rate="-0.5"), ("learning_rate", "at least 0")),
    Case("a table that was in memory", TUNE, flags(train_file="<train_file: DataFrame, 12 rows>"), ("in memory", "train_file=...")),
    Case("a corpus that was in memory", PRE, flags(train_file="<train_file: Dataset, 12 rows>"), ("in memory", "train_file=...")),
    Case("unknown flag", TUNE, flags(learning_rat="1e-4"), ("learning_rat", "learning_rate")),
    Case("a stray word", TUNE, flags(num_train_epochs="three"), ("num_train_epochs",)),
    Case("unknown choice", TUNE, flags(truncation="middle"), ("truncation", "head_tail")),
    Case("negative length", TUNE, flags(max_seq_length=-1), ("max_seq_length",)),
    Case("beyond the positions", TUNE, flags(max_seq_length=100_000), ("max_seq_length",)),
    Case("layers it has not", TUNE, flags(layers="9"), ("layers", "9")),
    Case("a reporter that is not there", TUNE, flags(report_to="wandb"), ("report_to", "wandb")),
    Case("one fold", TUNE, flags(num_folds=1), ("num_folds",)),
    Case("a split of everything", TUNE, flags(validation_split=1.5), ("validation_split",)),
    Case("nothing held out to stop early by", TUNE, flags(validation_split=0, early_stopping_patience=2, load_best_model_at_end="true", eval_strategy="epoch", save_strategy="epoch"), ("early_stopping_patience", "validation_split 0", "last weights")),
    Case("nothing held out to evaluate", TUNE, flags(validation_split=0, eval_strategy="epoch"), ("eval_strategy", "validation_split 0")),
    Case("a best checkpoint of an untrained head", TUNE, flags(contrastive_weight=1, metric_for_best_model="accuracy"), ("metric_for_best_model", "contrastive_weight 1", "no head")),
    Case("a share above 1", TUNE, flags(contrastive_weight=2), ("contrastive_weight", "at most 1")),
    Case("a contrast of numbers", TUNE, table(changed(label=[0.5 * i for i in range(12)]), contrastive_weight=0.5, validation_split=0.3), ("contrastive_weight", "regression")),
    Case("a contrast cut into batches", TUNE, flags(contrastive_weight=0.5, gradient_accumulation_steps=2), ("contrastive_weight", "gradient_accumulation_steps", "segments_per_forward")),
    Case("a contrast of words", TUNE, raw('{"tokens": ["a", "b"], "spans": [{"words": [[0]], "label": "X"}]}\n', "t.jsonl", spans_column_name="spans", contrastive_weight=0.5), ("contrastive_weight", "spans_column_name")),
    Case("a contrast of two passes", TUNE, flags(contrastive_weight=0.5, rdrop_alpha=1), ("contrastive_weight", "rdrop_alpha")),
    Case("a temperature of nothing", TUNE, flags(contrastive_temperature=0.1), ("contrastive_temperature", "contrastive_weight")),
    Case("a temperature of 0", TUNE, flags(contrastive_weight=0.5, contrastive_temperature=0), ("contrastive_temperature", "above 0")),
    Case("a temperature of pairs", TUNE, flags(contrastive_weight=0.5, contrastive_loss="cosine", contrastive_temperature=0.1), ("contrastive_temperature", "contrastive_loss cosine")),
    Case("a contrast of nothing", TUNE, flags(contrastive_loss="cosine"), ("contrastive_loss", "contrastive_weight")),
    Case("an unknown contrast", TUNE, flags(contrastive_weight=0.5, contrastive_loss="cosin"), ("contrastive_loss", "cosine")),
    Case("groups that do not fill a step", TUNE, flags(rows_per_class_in_batch=5), ("rows_per_class_in_batch 5", "per_device_train_batch_size")),
    Case("an unknown start of the head", TUNE, flags(head_init="zero"), ("head_init", "probe")),
    Case("least and most steps", TUNE, flags(min_steps=5, max_steps=5), ("min_steps", "max_steps")),
    Case("a contradiction", TUNE, flags(huber_delta=1), ("huber_delta", "single_label")),
    Case("folds and a validation file", TUNE, second_file(ROWS, "validation_file", num_folds=3), ("validation_file", "num_folds")),
    Case("half precision without a GPU", TUNE, flags(fp16="true"), ("fp16",)),
    Case("no rows to train on", TUNE, lambda f, m: {}, ("train_file",)),
    Case("pooling of one window", TUNE, flags(segment_pooling="max"), ("segment_pooling", "hierarchical")),
    Case("a head warm-up of less than nothing", PRE, flags(head_warmup_steps=-1), ("head_warmup_steps -1", "at least 0")),
    Case("a blend beyond the start", PRE, flags(blend_with_start=1.5), ("blend_with_start 1.5", "0, 1 or between")),
    Case("arguments given twice", PRE, arguments_file("seed: 1\nepochs: 2\nseed: 3\n"), ("args.yaml", "seed is given twice, line 1 and 3")),
    Case("arguments that hold themselves", PROBE, arguments_file("models: &m [*m]\n"), ("args.yaml", "line 1", "inside itself")),
    Case("arguments that are no text", TUNE, binary_arguments, ("args.yaml",)),
    Case("no such yaml", TUNE, lambda f, m: {"": "no.yaml"}, ("no.yaml",)),
    Case("fewer rows than a step, all dropped", TUNE, flags(dataloader_drop_last="true"), ("dataloader_drop_last", "of a step", "leave it out")),
    Case("damaged hashes of text", TUNE, other_folder(lambda model, folder: (model / "trained_on.npy").write_bytes(b"x")), ("trained_on.npy", "damaged", "restore")),
    Case("damaged manifest", TUNE, other_folder(lambda model, folder: (model / "manifest.json").write_text("{")), ("manifest.json", "is not JSON", "anew")),
    Case("damaged checkpoint", TUNE, left_checkpoint({"optimizer.pt": {"size": 9, "sha256": ""}}, {}), ("checkpoint-3", "lacks optimizer.pt", "say last")),
    Case("checkpoint of other steps", TUNE, left_checkpoint({}, {ROWS_OF_A_STEP: 8}), ("checkpoint-3", "was 8 and is 16", "per_device_train_batch_size")),
    Case("no checkpoint to go on from", TUNE, flags(resume_from_checkpoint="last"), ("resume",)),
    Case("output is a file", TUNE, in_use, ("out",)),
    Case("output is the model", TUNE, out_at("model"), ("--output_dir", "is --model_name_or_path")),
    Case("output in the model", PRE, out_at("model/itpt"), ("--output_dir", "lies in --model_name_or_path")),
    Case("output around the data", TUNE, out_at("."), ("--output_dir", "holds --train_file")),
    Case("output around a corpus", PRE, lambda f, m: {"train_file": None, "corpora": json.dumps({"notes": [{"file": str(f / "o" / "a.csv")}]})}, ("--output_dir", "holds --corpora")),
    Case("output without a name", PROBE, flags(output_dir=""), ("--output_dir is empty",)),
    Case("going on where a run has ended", TUNE, lambda f, m: out_at("done", all_results__json="{}")(f, m) | {"resume_from_checkpoint": "last"}, ("no whole checkpoint-*", "has ended", "another")),
    Case("output of a run that has ended", TUNE, out_at("done", all_results__json="{}"), ("--output_dir", "has ended", "another")),
    Case("output with a model", PRE, out_at("done", model__safetensors="x"), ("--output_dir", "holds a model")),
    Case("output of a run with folds", PRE, out_at("done", manifest__json="{}"), ("--output_dir", "with folds")),
    Case("output in a circle of links", TUNE, in_a_circle, ("--output_dir", "circle", "symbolic links")),
    Case("output with a long name", PRE, lambda f, m: {**table()(f, m), "output_dir": str(f / ("x" * 300))}, ("--output_dir", "too long")),
    Case("a path that is not UTF-8", TUNE, flags(test_file="test\udcff.csv"), ("--test_file", "udcff", "UTF-8")),
    Case("a word that is no number", TUNE, raw('{"tokens": ["a", "b"], "spans": [{"words": [["x"]], "label": "X"}]}\n', "t.jsonl", spans_column_name="spans"), ("t.jsonl", "row 1", "'x'")),
    Case("targets that are no objects", TUNE, raw('{"tokens": ["a", "b"], "spans": [1, 2]}\n', "t.jsonl", spans_column_name="spans"), ("t.jsonl", "row 1", "spans")),
    # ---------------------------------------------------------------- models
    Case("no such model", TUNE, flags(model_name_or_path="no/such"), ("no/such",)),
    Case("cut-off weights", TUNE, other_folder(cut_weights), ("model",)),
    Case("pickled weights", TUNE, other_folder(pickled_weights), ("safetensors",)),
    Case("no tokenizer", TUNE, other_folder(no_tokenizer), ("tokenizer",)),
    Case("unknown architecture", TUNE, other_folder(edit_json("config.json", model_type="zork")), ("model",)),
    Case("another shape", TUNE, other_folder(edit_json("config.json", hidden_size=64)), ("model",)),
    Case("smaller vocabulary", TUNE, other_folder(small_vocabulary), ("tokenizer", "7")),
    Case("weights that are whole numbers", TUNE, other_folder(change_weights(whole_number_weights)), ("model.safetensors", "layer.1.output.dense.weight", "I8", "float32")),
    Case("weights that are NaN", TUNE, other_folder(change_weights(one_nan)), ("model", "NaN", "layer.0.output.dense.bias")),
    Case("weights of another architecture", TUNE, other_folder(change_weights(other_names)), ("model", "less than half", "trunk")),
    Case("a manifest of a stranger", TUNE, other_folder(of_a_stranger), ("manifest.json", "'../o'")),
    Case("a manifest that is no manifest", TUNE, other_folder(put("manifest.json", "[]")), ("manifest.json", "not as")),
    Case("weights in another place", TUNE, other_folder(put("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}')), ("index.json", "weight_map")),
    Case("a config that is a list", PROBE, lambda f, m: {**table()(f, m), "models": other_folder(put("config.json", "[]"))(f, m)["model_name_or_path"]}, ("config.json", "mapping")),
    Case("a config that is cut off", PRE, other_folder(put("config.json", '{"model_type": "be')), ("config.json", "not JSON")),
    Case("a size that is no number", TUNE, other_folder(edit_json("config.json", hidden_size="x")), ("model",)),
    Case("a tokenizer that is no tokenizer", TUNE, other_folder(put("tokenizer.json", '{"model": null}')), ("tokenizer of", "model")),
    Case("hashes that are garbled", TUNE, other_folder(put("trained_on.npy", b"\x93NUMPY\x01")), ("trained_on.npy",)),
    Case("an adapter", TUNE, other_folder(an_adapter), ("adapter", "merge", "roberta-base")),
    Case("sentence-transformers", TUNE, other_folder(sentence_transformers), ("0_Transformer",)),
    Case("no such metric", TUNE, flags(metric_for_best_model="f1_marco"), ("metric_for_best_model", "f1_macro")),
    Case("upload while training", TUNE, flags(push_to_hub="true"), ("push_to_hub", "hf upload")),
    Case("an architecture that is not supported", TUNE, other_folder(without_mask), ("fnet", "attention mask", "use")),
    # ---------------------------------------------------------------- further pretraining
    Case("no such score", PRE, flags(metric_for_best_model="accuracy", validation_split=0.3), ("metric_for_best_model", "masked_accuracy")),
    Case("an architecture not supported", PRE, other_folder(without_mask, validation_split=0.3), ("fnet", "attention mask", "use")),
    Case("no text", PRE, flags(train_file="nowhere.csv"), ("nowhere.csv",)),
    Case("mask of everything", PRE, flags(mlm_probability=1.5), ("mlm_probability",)),
    Case("unknown unit", PRE, flags(mask_unit="letter"), ("mask_unit", "word")),
    Case("no model at all", PRE, flags(model_name_or_path=None), ("model_name_or_path",)),
    Case("no mask token", PRE, other_folder(no_mask_token, validation_split=0.3), ("mask token",)),
    Case("empty texts", PRE, table(changed(text="")), ("text",)),
    # ---------------------------------------------------------------- probing
    Case("a probe without validation rows", PROBE, flags(validation_split=0), ("validation_split 0", "validation rows")),
    Case("no models", PROBE, flags(models=None), ("models",)),
    Case("no such checkpoint", PROBE, flags(models="a=no/such"), ("no/such",)),
    Case("architecture not supported", PROBE, lambda f, m: {**table()(f, m), "models": other_folder(without_mask)(f, m)["model_name_or_path"]}, ("fnet", "attention mask", "use")),
    Case("a name twice", PROBE, lambda f, m: {**table()(f, m), "models": [f"a={m}", f"a={m}"]}, ("a", "twice")),
    Case("unknown pooling", PROBE, flags(token_pooling="median"), ("token_pooling", "mean")),
    Case("unknown probe", PROBE, flags(probes=["linear", "svm"]), ("probes", "knn")),
    Case("unknown analysis", PROBE, flags(analyses="magic"), ("analyses", "mdl")),
    Case("control without words", PROBE, flags(analyses="control"), ("control", "spans_column_name")),
    Case("hulls of numbers", PROBE, table(changed(label=[0.5, 1.5, 2.5] * 4), analyses="directprobe"), ("directprobe",)),
    Case("predictions of some probes", PROBE, flags(save_predictions="best"), ("save_predictions best", "chosen, all, none")),
    Case("layers it has not to probe", PROBE, flags(probe_layers=99), ("probe_layers",)),
    Case("one layer to concatenate", PROBE, flags(concat_layers=["0", "4"]), ("concat_layers 0", "last4", "0,6,12")),
    Case("layers it has not to concatenate", PROBE, flags(concat_layers=["all", "0,99"]), ("concat_layers 0,99", "0 to 2")),
    Case("unknown baseline", PROBE, flags(baselines="magic"), ("baselines magic", "random_encoder")),
    Case("no start at all", PROBE, flags(probe_seeds=0), ("probe_seeds 0", "at least 1")),
    Case("erasure of nothing", PROBE, flags(analyses="erasure"), ("erasure", "concept_column_names")),
    Case("a concept that nothing erases", PROBE, flags(concept_column_names="id"), ("erasure", "concept_column_names")),
    Case("no such concept", PROBE, flags(analyses="erasure", concept_column_names="tense"), ("train.csv", "tense", "concept_column_names", "id, text, label")),
    Case("a concept that rows lack", PROBE, table(changed(tense=["now", None, "then"] * 4), analyses="erasure", concept_column_names="tense"), ("train.csv", "tense", "row 2", "missing")),
    Case("a concept of one label", PROBE, table(changed(tense="now"), analyses="erasure", concept_column_names="tense"), ("train.csv", "tense", "one label")),
    Case("no labels to probe", PROBE, table(ROWS.drop(columns="label")), ("label",)),
    # ---------------------------------------------------------------- weights and further rows
    Case("a weight below 0", TUNE, table(changed(w=[1, 2, -1] * 4), weight_column_name="w"), ("train.csv, row 3", "'w'", "'-1'", "weight")),
    Case("a weight that is no number", TUNE, table(changed(w=["1", "", "heavy"] * 4), weight_column_name="w"), ("train.csv, row 2", "'w'", "weight")),
    Case("weights of 0 alone", TUNE, table(changed(w=0), weight_column_name="w"), ("train.csv", "'w'", "zeros")),
    Case("no weight column", TUNE, flags(weight_column_name="w"), ("train.csv", "'w'", "weight_column_name")),
    Case("scores by weights without weights", TUNE, flags(weigh_metrics="true"), ("--weigh_metrics", "--weight_column_name")),
    Case("weights of a probe", TUNE, table(changed(w=1.5), weight_column_name="w", head_init="probe"), ("--weight_column_name", "probe")),
    Case("validation without labels", TUNE, second_file(ROWS.drop(columns="label"), "validation_file"), ("second.csv", "'label'")),
    Case("further rows without labels", TUNE, second_file(ROWS.drop(columns="label"), "extra_train_file"), ("second.csv", "'label'")),
    Case("a new label in further rows", TUNE, second_file(changed(label="d"), "extra_train_file"), ("second.csv", "'d'")),
    Case("a weight without further rows", TUNE, flags(extra_train_weight=2), ("--extra_train_weight", "--extra_train_file")),
    Case("a fold of -2", TUNE, table(changed(fold=[0, 1, -2] * 4), fold_column_name="fold"), ("train.csv, row 3", "'fold'", "-1")),
    Case("one fold and rows that train alone", TUNE, table(changed(fold=[0, -1] * 6), fold_column_name="fold"), ("'fold'", "one fold")),
    Case("all rows without folds", TUNE, flags(full_fit="true"), ("--full_fit", "--num_folds")),
    Case("repeats without folds", TUNE, flags(fold_repeats=2), ("--fold_repeats", "--num_folds")),
    Case("one group to hold out", TUNE, table(changed(g="x"), group_column_name="g"), ("--validation_split 0.1", "one group", "--validation_file")),
    Case("groups and a validation file", TUNE, second_file(ROWS, "validation_file", group_column_name="id"), ("--group_column_name", "--validation_file")),
    Case("groups and nothing held out", TUNE, flags(group_column_name="id", validation_split=0), ("--group_column_name", "--validation_split 0")),
    Case("a similarity above 1", TUNE, flags(near_duplicates=1.5, num_folds=2), ("--near_duplicates", "1.5")),
    # ---------------------------------------------------------------- scores of one's own
    Case("no such metric file", TUNE, flags(metric_file="nowhere.py:score"), ("--metric_file nowhere.py:score", "no such file")),
    Case("a metric file without a function", TUNE, flags(metric_file="nowhere.py"), ("--metric_file", "FILE.py:FUNCTION")),
    Case("a metric file that fails", TUNE, own_metric("import nothing_of_it"), ("--metric_file", "my.py:score", "nothing_of_it")),
    Case("a metric that fails", TUNE, own_metric("def score(y, p):\n    return p['x']\nscore.greater_is_better = True"), ("--metric_file", "my.py:score", "IndexError")),
    Case("a metric that is no number", TUNE, own_metric("def score(y, p):\n    return p\nscore.greater_is_better = True"), ("--metric_file", "my.py:score", "number")),
    Case("a metric without a direction", TUNE, own_metric("def score(y, p):\n    return 1.0"), ("--metric_file", "greater_is_better")),
    Case("kappa of words", TUNE, flags(metric_for_best_model="qwk"), ("qwk", "grades")),
    # ---------------------------------------------------------------- grades, soft labels, teachers
    Case("a soft label above 1", TUNE, table(changed(a=[0.5, 1.5] * 6, b=0.5), label_column_name=["a", "b"], problem_type="multi_label"), ("train.csv, row 2", "'a'", "1.5", "regression")),
    Case("a ranking of classes", TUNE, flags(ranking_weight=0.5), ("--ranking_weight", "single_label")),
    Case("a share of the ranking above 1", TUNE, flags(ranking_weight=1.5), ("--ranking_weight 1.5",)),
    Case("cuts between words", TUNE, flags(ordinal_head="true"), ("--ordinal_head", "grades", "a, b, c")),
    Case("cuts of a probe", TUNE, table(changed(label=[1, 2, 3] * 4), ordinal_head="true", head_init="probe"), ("--ordinal_head", "probe")),
    Case("no such teacher", TUNE, flags(teacher="nowhere"), ("predictions_oof.csv", "no such file")),
    Case("a teacher and pseudo-labels", TUNE, flags(teacher="x", pseudo_label_file="y", num_folds=2), ("--teacher", "--pseudo_label_file")),
    Case("a share without a teacher", TUNE, flags(teacher_weight=0.3), ("--teacher_weight", "--teacher")),
]  # fmt: skip


def run(case: Case, folder: Path, model: str, monkeypatch, capfd) -> tuple[int, str]:
    given = {"output_dir": str(folder / "o")}
    if case.script == PROBE:
        given["models"] = f"base={model}"
    else:
        given |= {"model_name_or_path": model, "use_cpu": "true"}
    given |= case.make(folder, model)
    argv = []
    for name, value in given.items():
        if name == "":
            argv = [value]
        elif value is not None:
            argv += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    monkeypatch.setattr(sys, "argv", [str(ROOT / case.script), *argv])
    capfd.readouterr()
    try:
        runpy.run_path(str(ROOT / case.script), run_name="__main__")
        code = 0
    except SystemExit as left:
        code = left.code
    return code, capfd.readouterr().err


@pytest.fixture(scope="module")
def messages():
    """By case; written as a table where BAD_INPUT_TABLE says."""
    found: dict[Case, str] = {}
    yield found
    if "BAD_INPUT_TABLE" in os.environ:
        lines = [
            "# What is said of bad input",
            "",
            "| script | what is wrong | message |",
            "| --- | --- | --- |",
        ]
        lines += [f"| {case.script} | {case.name} | {said} |" for case, said in found.items()]
        Path(os.environ["BAD_INPUT_TABLE"]).write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.usefixtures("asks_the_hub")
def test_one_line_and_nothing_written(case, tiny_bert, tmp_path, monkeypatch, capfd, messages):
    code, said = run(case, tmp_path, tiny_bert, monkeypatch, capfd)
    last = [line for line in said.splitlines() if ": error: " in line]
    assert code == 2 and len(last) == 1, said[-2000:]
    assert "Traceback" not in said
    for word in case.says:
        assert word in last[0], last[0]
    written = (
        [p for p in (tmp_path / "o").rglob("*") if p.is_file()] if (tmp_path / "o").is_dir() else []
    )
    assert not written, written
    message = (
        last[0].partition(": error: ")[2].replace(str(tmp_path), "DIR").replace(tiny_bert, "MODEL")
    )
    messages[case] = message.replace("|", "\\|")


def test_there_are_sixty_cases_of_all_three_scripts():
    assert len(CASES) >= 60 and {case.script for case in CASES} == {TUNE, PRE, PROBE}
    assert len({case.name for case in CASES}) == len(CASES)
