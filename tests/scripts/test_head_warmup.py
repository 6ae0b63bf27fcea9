"""A masked-LM head that a checkpoint lacks is trained first, alone, and a killed run goes on."""

import json
import os
from typing import ClassVar

import pandas as pd
import pytest
import torch
from conftest import PRETRAINING, ROOT
from forking import run_command
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    TrainerControl,
    TrainerState,
)

import run_itpt
from bertchain.errors import InputError
from bertchain.pretraining import head_warmup

pytestmark = pytest.mark.versions


@pytest.fixture
def run(tiny_bert, topic_files, tmp_path):
    """Run the script with few arguments of one's own; to --output_dir tmp_path / name."""

    def start(name="out", **changes):
        arguments = PRETRAINING | {
            "model_name_or_path": tiny_bert,
            "train_file": [topic_files["train"]],
            "max_steps": 2,
            "output_dir": str(tmp_path / name),
        }
        return run_itpt.main({**arguments, **changes}), tmp_path / name

    return start


def encoder_of(folder):
    return AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict()


class Watching(run_itpt.MaskedLMTrainer):
    """Notes of each batch that is trained on whether a backward pass reaches the encoder."""

    reached: ClassVar[list[bool]] = []

    def compute_loss(self, model, *args, **kwargs):
        def note(module, inputs, outputs):
            self.reached.append(outputs[0].requires_grad)

        hook = self.model.base_model.register_forward_hook(note)
        try:
            return super().compute_loss(model, *args, **kwargs)
        finally:
            hook.remove()


def test_what_is_missing_is_trained_first_and_the_encoder_is_left_alone(
    run, tiny_bert, caplog, pictures
):
    Watching.reached.clear()
    with caplog.at_level("INFO", "bertchain"):
        results, out = run(
            head_warmup_steps=6,
            head_warmup_learning_rate=0.01,
            max_steps=3,
            save_at_steps=[0, 3],
            trainer_class=Watching,
        )
    assert Watching.reached == [False] * 6 + [True] * 3
    said = [r.getMessage() for r in caplog.records if "is trained first" in r.getMessage()]
    assert len(said) == 1 and "for 6 steps" in said[0] and "rate 0.01" in said[0]
    before, kept = encoder_of(tiny_bert), encoder_of(out / "step-0")
    assert all(torch.equal(kept[name], before[name]) for name in before)
    assert results["head_warmup_steps"] == 6
    assert results["head_warmup_perplexity"] < 0.99 * results["head_warmup_perplexity_before"]
    history = pd.read_csv(out / "history.csv")
    assert history["phase"].tolist() == ["head", "head", "all", "all", "all"]
    assert history["step"].tolist() == [0, 6, 0, 2, 3]  # a budget of its own
    losses = history["eval_loss"].tolist()
    assert losses[2] == pytest.approx(losses[1])  # all begins where the head has ended
    assert (out / "history.png").stat().st_size > 10_000
    assert not (out / "head_warmup").exists()
    saved = json.loads((out / "all_results.json").read_text())
    assert saved["head_warmup_perplexity"] == results["head_warmup_perplexity"]
    again, with_head = run("again", model_name_or_path=str(out), head_warmup_steps=6)
    assert again["head_warmup_steps"] == 0  # nothing is missing
    assert "phase" not in pd.read_csv(with_head / "history.csv")


def test_it_can_be_left_out_and_lasts_no_longer_than_the_run(run, monkeypatch):
    off, _ = run("off", head_warmup_steps=0)
    usual, _ = run("usual", max_steps=4)
    assert off["head_warmup_steps"] == 0 and usual["head_warmup_steps"] == 4
    monkeypatch.setattr(head_warmup, "LEAST_STEPS", 3)
    still, _ = run("still", max_steps=9, head_warmup_learning_rate=0.0, packing=True)
    assert still["head_warmup_steps"] == 3  # the loss does not fall at all
    with pytest.raises(InputError, match=r"--head_warmup_learning_rate 1e.30: training diverged"):
        run("wild", head_warmup_learning_rate=1e30, max_steps=9)


def test_from_scratch_there_is_no_encoder_to_keep(run, tiny_bert):
    scratch = {"model_name_or_path": None, "config_name": tiny_bert, "tokenizer_name": tiny_bert}
    for asked in ({"head_warmup_steps": 2}, {"blend_with_start": 0.5}):
        with pytest.raises(InputError, match=f"--{next(iter(asked))}: from scratch there is no"):
            run("scratch", **scratch, **asked)
    assert run("scratch", **scratch)[0]["head_warmup_steps"] == 0


def test_the_rule_is_a_fall_of_less_than_a_hundredth():
    def stops(*losses):
        log = [{"eval_loss": loss} if loss else {"loss": 9.0} for loss in losses]
        control = TrainerControl(should_save=True)
        head_warmup.StopWhenFlat().on_evaluate(None, TrainerState(log_history=log), control)
        assert control.should_save != control.should_training_stop  # the end is written instead
        return control.should_training_stop

    assert not stops(5.0) and not stops(5.0, None, 4.9)
    assert stops(5.0, None, 4.96) and stops(5.0, 4.0, None, 4.1)


def test_only_what_the_checkpoint_lacks_is_trained(run, tmp_path):
    """A checkpoint with all of a head but its bias."""
    _, whole = run("whole")
    model = AutoModelForMaskedLM.from_pretrained(whole)
    weights = {k: v for k, v in model.state_dict().items() if k != "cls.predictions.bias"}
    weights.pop("cls.predictions.decoder.bias", None)
    model.save_pretrained(tmp_path / "part", state_dict=weights)
    AutoTokenizer.from_pretrained(whole).save_pretrained(tmp_path / "part")
    _, out = run("out", model_name_or_path=str(tmp_path / "part"), save_at_steps=[0])
    kept = AutoModelForMaskedLM.from_pretrained(out / "step-0").state_dict()
    changed = {name for name in kept if not torch.equal(kept[name], model.state_dict()[name])}
    assert changed == {"cls.predictions.bias", "cls.predictions.decoder.bias"}


# ---------------------------------------------------------------- killed and gone on with


class InterruptedRunError(Exception):
    pass


@pytest.fixture
def cut_off(run, monkeypatch):
    """Run until a batch that is never trained on; returns how many were trained on. The head has
    checkpoints at steps 4 and 6."""
    monkeypatch.setattr(head_warmup, "LEAST_STEPS", 4)

    def start(batch, name, **options):
        step, calls = run_itpt.MaskedLMTrainer.training_step, []

        def interrupted(*args, **kwargs):
            if len(calls) == batch:
                raise InterruptedRunError
            calls.append(1)
            return step(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(run_itpt.MaskedLMTrainer, "training_step", interrupted)
            if batch is not None:
                with pytest.raises(InterruptedRunError):
                    run(name, **options)
            else:
                run(name, **options)
        return len(calls)

    return start


OPTIONS = {"head_warmup_steps": 6, "max_steps": 6, "blend_with_start": 0.25}
OPTIONS |= {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
UNTIMED = ("runtime", "per_second", "preparation")


def outputs_of(out):
    results = json.loads((out / "all_results.json").read_text())
    results = {k: v for k, v in results.items() if not k.endswith(UNTIMED)}
    return results, *((out / name).read_bytes() for name in ("model.safetensors", "history.csv"))


@pytest.mark.parametrize("streaming", [False, True], ids=["table", "stream"])
def test_a_run_that_was_cut_off_in_either_phase_goes_on_bit_by_bit(run, cut_off, streaming):
    options = OPTIONS | ({"streaming": True, "per_device_train_batch_size": 4} if streaming else {})
    _, whole = run("whole", **options)
    # trained on before the cut -> after it: a checkpoint of the head, its end state, one of all
    for batch, left in ((5, 2 + 6), (6 + 1, 6), (6 + 3, 4)):
        name = f"cut-{batch}"
        cut_off(batch, name, **options)
        with pytest.raises(
            InputError, match=r"head_warmup.* is left.* --resume_from_checkpoint last"
        ):
            run(name, **options)
        assert cut_off(None, name, resume_from_checkpoint="last", **options) == left
        assert outputs_of(whole.parent / name) == outputs_of(whole)


def test_a_damaged_end_state_is_trained_anew(run, cut_off, caplog, tmp_path):
    _, whole = run("whole", **OPTIONS)
    cut_off(6 + 1, "cut", **OPTIONS)
    head = tmp_path / "cut" / "head_warmup" / "end" / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"!")
    assert cut_off(None, "cut", resume_from_checkpoint="last", **OPTIONS) == 6 + 6
    assert "has a damaged head.safetensors: it is left out" in caplog.text
    assert outputs_of(tmp_path / "cut") == outputs_of(whole)


def test_other_rows_or_other_weights_are_refused(run, cut_off, tmp_path):
    cut_off(6 + 3, "cut", **OPTIONS, keep_checkpoints=True)
    (end,) = (tmp_path / "cut" / "head_warmup").glob("checkpoint-*")
    with pytest.raises(InputError, match=r"number of frozen parameters was [0-9]+ and is None"):
        run("cut", resume_from_checkpoint=str(end), **OPTIONS)
    cut_off(6 + 1, "early", **OPTIONS)
    with pytest.raises(
        InputError, match=r"head_warmup/end: the seed of their order was 42 and is 7"
    ):
        run("early", resume_from_checkpoint="last", **OPTIONS, seed=7)


def test_two_processes_train_the_head_as_one_does(tiny_bert, topic_files, tmp_path):
    def line(out, batch):
        return [
            *(str(ROOT / "run_itpt.py"), "--model_name_or_path", tiny_bert, "--use_cpu"),
            *("--train_file", topic_files["train"], "--max_steps", "2", "--save_at_steps", "0"),
            *("--head_warmup_steps", "4", "--per_device_train_batch_size", str(batch)),
            *("--blend_with_start", "0.5", "--output_dir", str(out)),
        ]

    launch = ["-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "examples" / "accelerate" / "two_processes.yaml")]
    launch += ["--main_process_port", str(32600 + os.getpid() % 300)]
    for command in ([*launch, *line(tmp_path / "two", 8)], line(tmp_path / "one", 16)):
        done = run_command(*command)
        assert done.returncode == 0, done.stderr[-3000:]
    heads = [AutoModelForMaskedLM.from_pretrained(tmp_path / n / "step-0") for n in ("one", "two")]
    one, two = (model.state_dict() for model in heads)
    assert all(torch.equal(one[name], two[name]) for name in one if name.startswith("bert"))
    results = [json.loads((tmp_path / n / "all_results.json").read_text()) for n in ("one", "two")]
    assert [r["head_warmup_steps"] for r in results] == [4, 4]
    for name in ("head_warmup_perplexity_before", "head_warmup_perplexity"):
        assert results[0][name] == pytest.approx(results[1][name], rel=0.02)  # but for dropout
    assert results[1]["head_warmup_perplexity"] < results[1]["head_warmup_perplexity_before"]
