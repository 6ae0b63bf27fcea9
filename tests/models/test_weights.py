"""Weights of checkpoints in all three scripts: a wrapper's names, missing ones, NaN."""

import logging
import shutil

import pandas as pd
import pytest
import torch
from conftest import make_rows
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

import run_finetune
import run_itpt
import run_probe
from bertchain.errors import InputError
from bertchain.models.describe import describe_checkpoint
from bertchain.models.loading import load_encoder
from bertchain.models.weights import initialise_missing, load_pretrained

pytestmark = pytest.mark.versions
ALL = pytest.mark.parametrize("script", [run_itpt, run_finetune, run_probe])


def run(script, model, files, out, **arguments):
    given = {"train_file": files["train"], "output_dir": str(out)}
    if script is run_probe:
        given |= {"models": f"m={model}", "test_file": files["test_labels"]}
    else:
        given |= {"model_name_or_path": str(model), "use_cpu": True, "disable_tqdm": True}
    return script.main({**given, **arguments})


def renamed(folder, to, rename):
    """Copy a model's folder; its weights get other names."""
    shutil.copytree(folder, to)
    weights = {rename(n): value for n, value in load_file(to / "model.safetensors").items()}
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


# ---------------------------------------------------------------- values


@pytest.fixture
def with_nan(tiny_bert, tmp_path):
    folder = tmp_path / "nan"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@ALL
def test_no_script_takes_weights_that_are_not_finite(script, with_nan, topic_files, tmp_path):
    says = r"nan: 1 of its weights hold NaN .*layer.1.output.dense.weight"
    with pytest.raises(InputError, match=says):
        run(script, with_nan, topic_files, tmp_path / "o")
    assert not list((tmp_path / "o").rglob("*.safetensors")) + list(tmp_path.rglob("*.npy"))


MASKED_LM = ("bert", "roberta", "data2vec-text", "longformer", "fnet", "electra", "distilbert")
MASKED_LM += ("albert", "mpnet", "deberta-v2", "modernbert", "camembert", "roformer", "convbert")


@pytest.mark.parametrize("kind", MASKED_LM)
def test_a_missing_head_starts_as_in_a_new_model(kind, tmp_path):
    """Biases that are parameters of their own must be 0, not memory that nobody wrote to."""
    fields = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    fields |= dict(intermediate_size=64, max_position_embeddings=64, pad_token_id=0)
    fields |= {"n_layers": 2, "n_heads": 4, "dim": 32} if kind == "distilbert" else {}
    fields |= (
        {"embedding_size": 32} if kind in ("electra", "albert", "roformer", "convbert") else {}
    )
    fields |= {"attention_window": 8} if kind == "longformer" else {}
    fields |= dict(cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    config = AutoConfig.for_model(kind, **fields)
    encoder = AutoModel.from_config(config)
    encoder.save_pretrained(tmp_path)
    model, missing = load_pretrained(AutoModelForMaskedLM, tmp_path)
    of_head = {n: p for n, p in model.named_parameters(remove_duplicate=False) if n in missing}
    assert of_head
    assert all(not p.any() for n, p in of_head.items() if n.endswith("bias"))
    bare = [n for n in of_head if not _of_torch(model, n)]
    for name in bare:  # whatever was in memory
        torch.nn.init.constant_(of_head[name], float("nan"))
    initialise_missing(model, missing)
    assert all(not of_head[name].any() for name in bare)


def _of_torch(model, name):
    owner = model.get_submodule(name.rpartition(".")[0])
    return type(owner).__module__.startswith("torch.nn")


def test_what_is_drawn_later_does_not_depend_on_a_missing_bias(tiny_bert):
    """A new model is made for its values; the random numbers of the run go on as without."""
    torch.manual_seed(1)
    model, missing = load_pretrained(AutoModelForMaskedLM, tiny_bert)
    before = torch.random.get_rng_state()
    initialise_missing(model, missing)
    assert torch.equal(before, torch.random.get_rng_state())


# ---------------------------------------------------------------- names of a wrapper

PREFIXES = ("module.", "model.", "_orig_mod.", "module._orig_mod.", "net.encoder.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_wrapper_s_prefix_is_taken_off(prefix, tiny_bert, tmp_path):
    folder = renamed(tiny_bert, tmp_path / "m", lambda name: prefix + name)
    wanted, (encoder, missing) = load_encoder(tiny_bert)[0].state_dict(), load_encoder(folder)
    assert missing == []
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    masked, missing = load_pretrained(AutoModelForMaskedLM, folder)
    assert all(name.startswith("cls.") for name in missing)
    weight = "embeddings.word_embeddings.weight"
    assert torch.equal(masked.bert.state_dict()[weight], wanted[weight])


def test_inside_names_too_and_the_head_comes_along(tiny_bert, tmp_path):
    whole, _ = load_pretrained(AutoModelForMaskedLM, tiny_bert)
    whole.save_pretrained(tmp_path / "whole")
    folder = renamed(
        tmp_path / "whole",
        tmp_path / "m",
        lambda n: "model." + n.replace("bert.", "bert._orig_mod."),
    )
    again, missing = load_pretrained(AutoModelForMaskedLM, folder)
    assert missing == []
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_a_description_makes_the_same_checks(with_nan, tiny_bert, tmp_path):
    with pytest.raises(InputError, match=r"nan: 1 of its weights hold NaN"):
        describe_checkpoint(str(with_nan))
    plain = describe_checkpoint(tiny_bert).splitlines()
    folder = renamed(tiny_bert, tmp_path / "m", lambda name: f"module.{name}")
    lines = describe_checkpoint(str(folder)).splitlines()
    said = "names of weights: behind a prefix, which these scripts take off"
    assert said in lines and said not in plain
    assert [line for line in lines if line != said][1:] == plain[1:]
    other = renamed(tiny_bert, tmp_path / "other", lambda name: name.replace("encoder", "trunk"))
    with pytest.raises(InputError, match="other: holds less than half"):
        describe_checkpoint(str(other))


@ALL
def test_weights_of_something_else_are_refused(script, tiny_bert, topic_files, tmp_path):
    folder = renamed(tiny_bert, tmp_path / "other", lambda name: name.replace("encoder", "trunk"))
    with pytest.raises(InputError, match="other: holds less than half of the weights of Bert"):
        run(script, folder, topic_files, tmp_path / "o")


def test_a_single_missing_layer_is_said_in_every_script(tiny_bert, topic_files, tmp_path, caplog):
    def lose(name):
        return "lost." + name if "layer.1." in name else name

    folder = renamed(tiny_bert, tmp_path / "short", lose)
    few = tmp_path / "few.csv"
    pd.DataFrame(make_rows(60)).to_csv(few, index=False)
    files = {"train": str(few), "test_labels": str(few)}
    short = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no"}
    short |= {"load_best_model_at_end": False}
    for script, flags in (
        (run_itpt, short | {"eval_on_start": False}),
        (run_finetune, short),
        (run_probe, {"analyses": "none", "probe_layers": -1}),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            run(script, folder, files, tmp_path / script.__name__, **flags)
        assert "Not in" in caplog.text and "layer.1" in caplog.text and "12 more" in caplog.text
    assert "Weights not in the checkpoint, so random: m." in (
        tmp_path / "run_probe" / "report.md"
    ).read_text(encoding="utf-8")
