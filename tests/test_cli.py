import json
import pickle
import re
import time
from copy import copy, deepcopy
from dataclasses import dataclass, fields

import numpy as np
import pytest
from conftest import ROOT, tiny_bert_config
from datasets import Dataset
from forking import run_bare, run_command
from tiny_models import tiny_encoder
from transformers import TrainingArguments

import run_finetune
from bertchain.arguments import finetuning
from bertchain.arguments.common import LabelArguments, TextArguments, arg
from bertchain.cli import (
    changed,
    check_processes,
    flags_of,
    following,
    is_given,
    parse,
    read_arguments,
    refuse_data_parallel,
    value_of,
)
from bertchain.competition.run_folder import RunFolder, plan_members
from bertchain.competition.submission import SampleSubmission
from bertchain.data.documents import to_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import default_strategy, hold_out_validation
from bertchain.data.tables import DELIMITERS
from bertchain.data.tokenization import Preprocessor, resolve_windows
from bertchain.errors import InputError
from bertchain.help import TRAINING_FLAGS, default_of, print_help
from bertchain.models.layers import HEAD, layer_rates, resolve_layers
from bertchain.models.loading import set_dropout
from bertchain.models.windows import WindowSpec, head_tail_spans
from bertchain.training.initialization import add_lora, resolve_architecture


@dataclass
class Numbers:
    _argument_group_name = "numbers"

    rate: float = arg(0.1, "")
    many: list[str] = arg(["a"], "")
    switch: bool = arg(False, "")
    hub_token: str | None = arg(None, "")
    two_words: str | None = arg(None, "")


def test_the_launchers_precision_is_the_users_word(monkeypatch):
    def parsed(*words: str) -> tuple[bool, bool]:
        training, run_config = parse([TrainingArguments], ["--use_cpu", *words])
        assert (training.bf16, training.fp16) == (run_config["bf16"], run_config["fp16"])
        return training.bf16, training.fp16

    assert parsed() == (False, False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert parsed() == parsed("--bf16") == (True, False)
    with pytest.raises(InputError, match="--bf16 False, but the launcher says --mixed_precision b"):
        parsed("--bf16", "false")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert parsed() == (False, True)
    with pytest.raises(InputError, match="--bf16 True, but the launcher says --mixed_precision f"):
        parsed("--bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # also where nobody said it
    assert parsed("--bf16") == (True, False)


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_stands_for_arguments_and_flags_override_it(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = {"rate": "1e-4", "many": ["b", "c"], "switch": True}
    path.write_text(
        json.dumps(content) if suffix == "json" else "rate: 1e-4\nmany: [b, c]\nswitch: yes"
    )
    numbers, _ = parse([Numbers], [str(path)])
    assert numbers == Numbers(1e-4, ["b", "c"], True)
    numbers, run_config = parse([Numbers], [str(path), "--rate", "2", "--many", "d"])
    assert numbers == Numbers(2.0, ["d"], True)
    assert run_config == {"rate": 2.0, "many": ["d"], "switch": True}


def test_what_was_run_round_trips():
    first, run_config = parse([Numbers], ["--rate=-3", "--many", "x y", "z", "--switch"])
    again, _ = parse([Numbers], flags_of(run_config))
    assert again == first == parse([Numbers], run_config)[0]


def test_dashes_stand_for_underscores():
    assert parse([Numbers], ["--two-words", "x"])[0] == Numbers(two_words="x")
    assert parse([Numbers], ["--two_words=x"])[0] == Numbers(two_words="x")


def test_what_is_given_is_known_before_it_is_parsed(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("two_words: x\nrate: null")
    for argv in ({"two_words": "x"}, ["--two-words", "x"], ["--two_words=x"], [str(path)]):
        assert is_given("two_words", argv) and value_of("two_words", argv) == "x"
        assert not is_given("rate", argv) and value_of("rate", argv) is None
    assert value_of("two_words", [str(path), "--two_words", "y"]) == "y"
    assert is_given("two_words", ["--no_two_words"])


def test_secrets_are_not_kept():
    numbers, run_config = parse([Numbers], ["--hub_token", "s3cret"])
    assert numbers.hub_token == "s3cret" and "hub_token" not in run_config
    assert deepcopy(numbers).hub_token == copy(numbers).hub_token == "s3cret"
    assert b"s3cret" not in pickle.dumps(numbers)
    assert pickle.loads(pickle.dumps(numbers)).hub_token is None


def test_defaults_of_the_script_and_what_a_run_changed():
    numbers, run_config = parse([Numbers], ["--switch"], {"rate": 0.5})
    assert numbers.rate == 0.5
    assert changed(run_config, [Numbers]) == {"rate": 0.5, "switch": True}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rat", "1"], r"unknown argument --rat \(did you mean rate\?\)"),
        (["--rate", "x"], "invalid float value: 'x'"),
        (["oops"], "'oops' belongs to no argument"),
        (["none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_mistakes_are_one_line(argv, message):
    with pytest.raises(InputError, match=message) as error:
        parse([Numbers], argv)
    assert "\n" not in str(error.value)


LAUGHS = "a0: &a0 [x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate: 1\nnames: [a]\nrate: 2\n", "rate is given twice, line 1 and 3"),
        ('{"x": {"b": 1, "c": 2, "b": 1}}', "b is given twice, line 1"),
        ("a: &a 1\nb: [" + "*a, " * 1_000_000 + "1]", "more than 10,000 values"),
        (LAUGHS, "more than 10,000 values"),
        ("[" * 100_000, "more than 100 deep"),
        ("- " * 5000 + "x", "more than 100 deep"),
        ("a: &a {b: [*a]}", "line 1 is inside itself"),
    ],
    ids=["twice", "in JSON", "aliases", "aliases of aliases", "lists", "lines", "circle"],
)
def test_yaml_that_does_harm_is_refused_at_once(text, message, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    began = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        parse([Numbers], [str(tmp_path / "a.yaml")])
    assert time.process_time() - began < 2  # the rest of a million aliases is not read
    assert "a.yaml: " in str(error.value) and len(str(error.value)) < 300


def test_anchors_and_merged_keys_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("c: &c {x: 1, y: 2}\nd:\n  <<: *c\n  y: 3\n")
    assert read_arguments(str(tmp_path / "a.yaml"))["d"] == {"x": 1, "y": 3}


def test_checks_of_shared_arguments():
    assert TextArguments(text_separator="\\n\\t").text_separator == "\n\t"
    with pytest.raises(InputError, match="--text_pair needs two"):
        TextArguments(text_pair=True)
    with pytest.raises(InputError, match=r"--problem_type multi .*did you mean multi_label"):
        LabelArguments(problem_type="multi")
    with pytest.raises(InputError, match="--validation_split"):
        LabelArguments(validation_split=1.0)
    with pytest.raises(InputError, match="accelerate launch --num_processes 2"):
        refuse_data_parallel(2)


def test_saving_follows_evaluation_and_the_other_way_round():
    ours = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    steps = {"eval_strategy": "steps", "save_strategy": "steps"}
    for flag in ("eval_strategy", "save_strategy"):
        assert steps.items() <= (following(ours, {flag: "steps"}) | {flag: "steps"}).items()
        assert following(ours, {flag: "no"}) == ours
    assert following(ours, steps) == ours and following({}, {"eval_strategy": "steps"}) == {}
    given = {"output_dir": "o", "eval_strategy": "steps", "eval_steps": 7, "use_cpu": True}
    best = ours | {"load_best_model_at_end": True}
    training, _ = parse((TrainingArguments,), given, best)
    assert training.save_strategy == "steps" and training.save_steps == 7


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch, caplog):
    caplog.set_level("INFO", logger="bertchain")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"2 processes were started, .* --use_cpu true"):
        check_processes(1)
    check_processes(2)
    assert "Processes: 2" in caplog.text


@pytest.mark.parametrize("script", ["run_itpt.py", "run_finetune.py", "run_probe.py"])
def test_help_is_grouped_and_imports_nothing_heavy(script, tmp_path):
    code = (
        f"import runpy, sys; sys.argv = [{script!r}, '--help']\n"
        f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'datasets', 'transformers'} & {*sys.modules}"
    )
    start = time.perf_counter()
    done = run_bare("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in ("text:", "--text_column_names", "--model"):
        assert line in done.stdout
    assert time.perf_counter() - start < 60  # a hang; the time itself depends on the machine


SCRIPTS = ["run_itpt.py", "run_finetune.py", "run_probe.py", "examples/multitask/run_multitask.py"]


def flags_in(text: str) -> list[str]:
    return re.findall(r"^  --(\S+)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("flag", ["--help", "--help_all"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_lists_each_flag_once_with_a_real_default(script, flag, tmp_path):
    done = run_command(ROOT / script, flag, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = flags_in(done.stdout)
    assert len(set(found)) == len(found) and not any("-" in name for name in found)
    assert "(default: None)" not in done.stdout and "(default: )" not in done.stdout
    whole = flag == "--help_all"
    assert ("--help_all lists every flag" in done.stdout) != whole
    if script != "run_probe.py":
        assert {"learning_rate", "seed"} <= set(found) and ("warmup_steps" in found) == whole


def test_help_of_fine_tuning_is_short_and_help_all_complete(capsys):
    arguments = (run_finetune.__doc__, finetuning.GROUPS, run_finetune.DEFAULTS)
    print_help(*arguments)
    assert 20 <= len(flags_in(capsys.readouterr().out)) <= 32
    print_help(*arguments, everything=True)
    said = capsys.readouterr().out
    classes = (*finetuning.GROUPS, TrainingArguments)
    assert sorted(flags_in(said)) == sorted(f.name for cls in classes for f in fields(cls))
    texts = dict(re.findall(r"^  --(\S+) (.*?)(?=^  --|^\S)", said, flags=re.MULTILINE | re.DOTALL))
    defaults = {"learning_rate": "2e-5", "warmup_steps": "0.1", "logging_steps": "20"}
    defaults |= {"text_separator": "' '", "batch_by_length": "true", "eval_strategy": "epoch"}
    for name, default in defaults.items():
        assert " ".join(texts[name].split()).endswith(f"(default: {default})"), name
    for name in ("text_pair", "label_delimiter", "class_weights", "max_train_samples", "fp16"):
        assert "(default" not in texts[name]


def test_help_lists_all_own_flags_where_none_is_marked(capsys):
    print_help("Numbers.", (Numbers,))
    said = capsys.readouterr().out
    assert flags_in(said) == [f.name for f in fields(Numbers)]
    assert said.endswith("--help_all lists every flag.\n") and "(default: 0.1)" in said


def test_flags_of_training_have_the_names_and_defaults_of_the_trainer():
    known = {f.name: default_of(f) for f in fields(TrainingArguments)}
    for flag in TRAINING_FLAGS:
        assert known[flag.name] in (flag.default, False), flag.name


def test_defaults_of_none_are_those_that_help_says(tiny_bert, tokenizers, tmp_path):
    texts = {f.name: f.metadata["help"] for cls in finetuning.GROUPS for f in fields(cls)}
    shown = {name: text.shown for name, text in texts.items() if getattr(text, "shown", None)}
    tokenizer = tokenizers["bert"]
    used = used_by_models() | used_by_rates() | used_by_windows(tiny_bert, tokenizer, tmp_path)
    assert shown == used | used_by_tables(tmp_path) | used_by_runs(tmp_path)


def used_by_models() -> dict[str, str]:
    encoders = {kind: tiny_encoder(kind) for kind in ("bert", "gpt2")}
    nothing = finetuning.ModelArguments()
    bert, gpt2 = (resolve_architecture(nothing, encoder, None) for encoder in encoders.values())
    assert bert["layers"] == resolve_layers("last", 4) and bert["segments_per_forward"] is None
    config = encoders["bert"].config
    assert set_dropout(copy(config), None).to_dict() == config.to_dict()
    lora = add_lora(encoders["bert"], finetuning.AdapterArguments(lora_r=3)).peft_config["default"]
    assert lora.lora_alpha == 2 * 3
    assert {"query", "dense"} <= {name.split(".")[-1] for name in lora.target_modules}
    names = ("layer_pooling", "segment_pooling", "head_dropout", "dropout_samples")
    return {
        **{name: str(bert[name]) for name in names},
        "layers": "last",
        "ordinal_head": str(bert["ordinal_head"]).lower(),
        "token_pooling": f"{bert['token_pooling']}, of a decoder {gpt2['token_pooling']}",
        "segments_per_forward": "all",
        "encoder_dropout": "the checkpoint's",
        "head_init": "the checkpoint's, else random",
        "head_refit": "what was trained",
        "lora_alpha": "2 * lora_r",
        "lora_target_modules": "all in the encoder",
    }


def used_by_rates() -> dict[str, str]:
    rates = finetuning.RateArguments().rates
    by_layer = layer_rates(4, 2.0, **rates)
    assert by_layer[HEAD] == 2.0 and by_layer[0] == 2.0 * rates["decay"] ** 4
    losses, some = finetuning.LossArguments(), finetuning.LossArguments(contrastive_weight=0.5)
    assert losses.rows_of_a_class(12) is None and losses.trains_head
    *sizes, last = [some.rows_of_a_class(rows) for rows in (8, 9, 10)]
    return {
        "contrastive_weight": "0, off",
        "contrastive_temperature": str(losses.temperature),
        "contrastive_loss": "softmax" if losses.temperature else "cosine",
        "rows_per_class_in_batch": "off; with --contrastive_weight "
        f"{', '.join(map(str, sizes))} or {last}, what divides the rows of a step",
        "layer_lr_decay": str(rates["decay"]),
        "head_learning_rate": "--learning_rate",
        "embedding_learning_rate": "learning_rate * decay^L",
    }


def used_by_windows(model: str, tokenizer, folder) -> dict[str, str]:
    spec = WindowSpec()
    of_spans = Preprocessor.for_checkpoint(model, {}, 1)
    assert of_spans.tokenizer.name_or_path == model and spec.max_segments is None
    (((_, head), _),) = head_tail_spans(1000, 510, spec)
    assert resolve_windows({}, model, tokenizer)[0].max_seq_length == 128  # what it takes
    tiny_bert_config(50, max_position_embeddings=4096).save_pretrained(folder)
    tokenizer = deepcopy(tokenizer)
    tokenizer.model_max_length = 4096
    most = resolve_windows({}, str(folder), tokenizer)[0].max_seq_length
    return {
        "tokenizer_name": "that of the model",
        "truncation": f"{spec.truncation}, with --spans_column_name {of_spans.windows.truncation}",
        "max_seq_length": f"what the encoder takes, at most {most}",
        "head_tokens": f"{head} of 510, in proportion",
        "segment_overlap": str(spec.segment_overlap),
        "max_segments": "all",
        "segment_choice": spec.segment_choice,
    }


def used_by_tables(folder) -> dict[str, str]:
    rows = Dataset.from_dict({"text": ["a", "b"] * 10, "label": ["x", "y"] * 10})
    spec = LabelSpec.infer(rows, "rows", ["label"], LabelArguments().problem_type, None)
    assert spec.problem_type == "single_label"
    documents = to_documents(rows, "rows", ["text"])
    assert documents["id"][:2] == ["0", "1"]
    labelled = documents.add_column("labels", [0, 1] * 10)
    share = LabelArguments().validation_split
    held_out = hold_out_validation({"train": labelled}, share, spec.problem_type, 0)["validation"]
    assert len(held_out) == share * len(rows)
    for values in ("labels", "probabilities"):
        path = folder / f"{values}.csv"
        path.write_text("id,is_y\n0,0" + (".5" if values == "probabilities" else ""))
        assert SampleSubmission.read(str(path), spec, "id").values == values
    names = [{",": "comma", "\t": "tab"}.get(delimiter, delimiter) for delimiter in DELIMITERS]
    return {
        "validation_file": "a share of the training rows, --validation_split",
        "id_column_name": "the row number, from 0",
        "delimiter": f"detected: {', '.join(names[:-1])} or {names[-1]}",
        "problem_type": "inferred from the labels",
        "submission_values": "what the sample holds",
    }


def used_by_runs(folder) -> dict[str, str]:
    kinds = ("single_label", "multi_label")
    alone, grouped = ([default_strategy(kind, g) for kind in kinds] for g in (False, True))
    members = plan_members(np.array([1, 0, 2]), finetuning.FoldArguments(num_folds=3), 7, "path")
    assert [member.fold for member in members] == [0, 1, 2]
    (member,) = plan_members(None, finetuning.FoldArguments(), 7, "path")
    run = RunFolder(folder, [member], {}, finetuning.RunArguments())
    assert member.seed == 7 and run.scratch_of(member).is_relative_to(folder)
    return {
        "fold_strategy": f"{' or '.join(alone)}, with groups {' or '.join(grouped)}",
        "folds": "all",
        "seeds": "--seed",
        "checkpoint_dir": "--output_dir",
    }


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_line_comes_before_anything_heavy_is_imported(script, tmp_path):
    """What it says it loads cannot be loaded here, and the line is there all the same, once."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'datasets', 'pandas']))\n"
        f"sys.argv = [{script!r}]; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    for rank in ("0", "1"):
        done = run_command("-c", code, cwd=tmp_path, env={"RANK": rank})
        first = done.stderr.splitlines()[0]
        assert first.endswith("Loading torch, transformers and datasets") == (rank == "0")
        assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


def test_what_a_script_does_not_need_at_first_is_not_imported():
    """scikit-learn scores and splits, matplotlib draws: further pretraining waits for neither."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import run_itpt\n"
    code += "print(sorted({'sklearn', 'matplotlib', 'evaluate', 'joblib'} & {*sys.modules}))\n"
    code += "import run_probe; print('matplotlib' in sys.modules)"
    assert run_bare("-c", code).stdout == "[]\nFalse\n"
