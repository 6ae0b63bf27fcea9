"""Training that diverges: one line names rate and step, and nothing bad is written."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainerControl

import run_finetune
import run_itpt
from bertchain.errors import InputError
from bertchain.runtime.finite import MOST_SKIPPED, FiniteTrainer

pytestmark = pytest.mark.versions


def run(script, model, files, out, **arguments):
    given = {"train_file": files["train"], "output_dir": str(out)}
    given |= {"model_name_or_path": str(model), "use_cpu": True, "disable_tqdm": True}
    return script.main({**given, **arguments})


def written(folder):
    return list(folder.rglob("*.safetensors"))


# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("script", [run_itpt, run_finetune], ids=["itpt", "finetune"])
def test_a_diverging_run_stops_and_writes_no_model(script, tiny_bert, topic_files, tmp_path):
    says = r"--learning_rate 1e\+20: .* at step [12]; .*no checkpoint is left"
    flags = {"learning_rate": 1e20, "warmup_steps": 0}
    flags |= {"head_warmup_steps": 0} if script is run_itpt else {}
    with pytest.raises(InputError, match=says):
        run(script, tiny_bert, topic_files, tmp_path / "o", **flags)
    assert not written(tmp_path / "o")


@pytest.mark.parametrize("flags", [{"max_grad_norm": 0}, {"gradient_accumulation_steps": 2}])
def test_it_does_so_however_gradients_are_handled(flags, tiny_bert, topic_files, tmp_path):
    with pytest.raises(InputError, match="training diverged"):
        run(run_finetune, tiny_bert, topic_files, tmp_path / "o", learning_rate=1e20, **flags)
    assert not written(tmp_path / "o")


def test_the_last_good_checkpoint_is_kept(tiny_bert, topic_files, tmp_path, monkeypatch):
    """The loss is NaN from step 4 on; checkpoints of steps 1 to 3 hold finite weights."""
    plain = Trainer.training_step

    def step(self, *args, **kwargs):
        loss = plain(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step >= 3 else loss

    monkeypatch.setattr(Trainer, "training_step", step)
    flags = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    flags |= {"load_best_model_at_end": False}
    out = tmp_path / "o"
    with pytest.raises(InputError, match=r"loss is not finite .* at step 4; .*checkpoint-3\)"):
        run(run_finetune, tiny_bert, topic_files, out, **flags)
    (kept,) = out.glob("checkpoint-*")
    assert kept.name == "checkpoint-3"
    assert all(t.isfinite().all() for t in load_file(kept / "model.safetensors").values())


class Scaled(FiniteTrainer):
    """As on a GPU under fp16: steps whose gradients overflow are skipped."""

    def __init__(self, skips):
        self.skips = skips
        self.now = now = [2.0**16]
        self.bad_loss, self.bad_steps, self.checked_step, self.skipped = False, [], 0, 0
        scaler = type("", (), {"get_scale": lambda self: now[0]})()
        self.accelerator = type("", (), {"scaler": scaler})()
        self.control = TrainerControl()
        self.state = type("", (), {"global_step": 0})()
        own = {"learning_rate": 1e-3, "output_dir": "nowhere", "device": torch.device("cpu")}
        self.args = type("", (), own)()

    def step(self, norm):
        self.state.global_step += 1
        self.scale = self.now[0]
        if self.skips and not math.isfinite(float(norm)):
            self.now[0] /= 2
        self._check_step(norm)
        self._check_step(norm)  # as at the end of an epoch


def test_steps_that_fp16_skips_are_no_divergence_unless_all_are():
    trainer = Scaled(skips=True)
    for _ in range(3):  # each time the scale is found
        for _ in range(MOST_SKIPPED - 1):
            trainer.step(torch.tensor(float("inf")))
        trainer.step(torch.tensor(1.0))
    with pytest.raises(InputError, match="the gradients are not finite"):
        for _ in range(MOST_SKIPPED):
            trainer.step(float("nan"))
    with pytest.raises(InputError, match="at step 1;"):
        Scaled(skips=False).step(float("inf"))


def test_a_gpu_is_asked_when_something_is_shown_and_the_step_is_right():
    trainer = Scaled(skips=False)
    trainer.accelerator.scaler, trainer.args.device = None, SimpleNamespace(type="cuda")
    for norm in (1.0, 1.0, float("nan"), 1.0):
        trainer.state.global_step += 1
        trainer._check_step(torch.tensor(norm))
    trainer.control.should_log, trainer.state.global_step = True, 5
    with pytest.raises(InputError, match=r"the gradients are not finite .* at step 3;"):
        trainer._check_step(torch.tensor(1.0))
    trainer = Scaled(skips=False)
    trainer.accelerator.scaler, trainer.args.device = None, SimpleNamespace(type="cuda")
    trainer.bad_loss, trainer.state.global_step = torch.tensor(True), 1
    trainer._check_step(1.0)
    with pytest.raises(InputError, match=r"the loss is not finite .* at step 1;"):
        trainer._check_step(1.0)  # an epoch has ended


def test_an_evaluation_that_is_not_finite_stops_the_run(
    tiny_bert, topic_files, tmp_path, monkeypatch
):
    """Weights so large that outputs overflow, and finite all the same."""
    folder = tmp_path / "large"
    model = AutoModelForMaskedLM.from_pretrained(tiny_bert)
    model.cls.predictions.decoder.weight.data *= 1e38
    model.cls.predictions.decoder.weight.data.clamp_(-3e38, 3e38)
    model.cls.predictions.transform.LayerNorm.weight.data.fill_(1e10)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_bert).save_pretrained(folder)
    with pytest.raises(InputError, match="before the first step"):
        run(run_itpt, folder, topic_files, tmp_path / "o")
    assert not written(tmp_path / "o")
