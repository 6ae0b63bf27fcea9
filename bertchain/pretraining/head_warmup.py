"""Head warm-up: a masked-LM head that a checkpoint lacks is trained first, on a frozen encoder.

The gradients of a random head would harm the encoder. The warm-up has steps, rate and checkpoints
of its own, in a folder beside the run's; its end state is the new head alone.
"""

import copy
import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from bertchain.arguments.pretraining import Arguments
from bertchain.data.batching import keep_all_columns
from bertchain.pretraining.sampling import StreamedBatches
from bertchain.pretraining.trainer import PretrainingTrainer
from bertchain.runtime import checkpoints
from bertchain.runtime.distributed import broadcast, is_main_process
from bertchain.runtime.files import atomic_write
from bertchain.runtime.outputs import HEAD_WARMUP
from bertchain.runtime.resuming import refuse_other_steps

logger = logging.getLogger(__name__)

END = "end"  # folder of the end state
LEAST_FALL = 0.01  # of the held-out loss, from one evaluation to the next
LEAST_STEPS = 20  # from one evaluation to the next


def find_checkpoint(training: TrainingArguments) -> str | None:
    """Find the checkpoint to resume from; None where only the head was trained yet, or nothing.

    Raises:
        InputError: as `checkpoints.find_checkpoint`, for what a warm-up has left, too.
    """
    folder, asked = Path(training.output_dir), training.resume_from_checkpoint
    own = folder / HEAD_WARMUP
    ended = [own / END] if (own / END / checkpoints.WHOLE).is_file() else []
    if asked is None:
        checkpoints.find_checkpoint(own, None)
        checkpoints.check_none_left([], ended)
    elif asked.lower() in ("last", "true"):
        found = checkpoints.complete_checkpoints
        if not found(folder) and (ended or found(own)):
            return None
    return checkpoints.find_checkpoint(folder, asked)


def warm_up(
    trainer_of: partial[PretrainingTrainer],
    model: PreTrainedModel,
    untrained: Sequence[str],
    args: Arguments,
    resume_from: str | None,
) -> list[dict[str, Any]]:
    """Train what a checkpoint lacks of its head, unless that was done before; in place.

    Args:
        trainer_of: makes a Trainer of (model, args, run).
        untrained: names of the weights that the checkpoint lacks.
        resume_from: the checkpoint that all weights will be read from, or None.

    Returns:
        the log of the warm-up, which a resumed run has in its folder; [] where there was none.
    """
    names = head_to_train(model, untrained)
    if not names or args.checkpoint.config_name or args.run.head_warmup_steps == 0:
        return []
    folder = Path(args.training.output_dir if resume_from is None else Path(resume_from).parent)
    end, rows = folder / HEAD_WARMUP / END, trainer_of.keywords["train_dataset"]
    before = _read_end(end)
    if resume_from is None:
        fit = head_trainer(trainer_of, model, names, args)
        if before is None:
            _train(fit, names, end, args)
            before = _read_end(end)
        else:
            refuse_other_steps(str(end), before["step"], fit.step_content())
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name in names:
                own[name].copy_(before["weights"][name])
        del fit
        gc.collect()  # or its copy of the model would stay on the GPU
    if before is not None and isinstance(rows, StreamedBatches):
        rows.hashes.update(before["seen"].tolist())
    return before["log"] if before else []


def head_to_train(model: PreTrainedModel, untrained: Sequence[str]) -> list[str]:
    """Name the parameters of a head that start untrained; one that the encoder holds is not its."""
    of_encoder = {id(parameter) for parameter in model.base_model.parameters()}
    missing = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name in untrained
    }
    own = missing - of_encoder
    return [name for name, parameter in model.named_parameters() if id(parameter) in own]


def head_trainer(
    trainer_of: partial[PretrainingTrainer],
    model: PreTrainedModel,
    names: Sequence[str],
    args: Arguments,
) -> PretrainingTrainer:
    """Make a Trainer of a copy of the model in which nothing but the named parameters learns.

    So no backward pass runs through the encoder. Where no number of steps is asked for, training
    ends when the held-out loss stops falling, and no later than the run itself would.
    """
    run, model = args.run, copy.deepcopy(model)  # it may be sharded or wrapped
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    training = keep_all_columns(copy.copy(args.training))
    training.output_dir = str(Path(training.output_dir) / HEAD_WARMUP)
    training.learning_rate = run.head_warmup_learning_rate
    training.lr_scheduler_type, training.lr_scheduler_kwargs = "constant", None
    training.max_steps = run.head_warmup_steps or training.max_steps
    training.gradient_checkpointing = training.load_best_model_at_end = False
    training.report_to = []  # whose steps are those of the run
    training.eval_on_start, training.eval_delay = True, 0
    training.eval_strategy = IntervalStrategy.STEPS
    if training.save_strategy != SaveStrategy.NO:
        training.save_strategy = SaveStrategy.STEPS
    fit = trainer_of(
        model=model,
        args=training,
        run=replace(run, save_at_steps=[], early_stopping_patience=None, blend_with_start=0.0),
    )
    fit.rate_flag = "head_warmup_learning_rate"
    # An evaluation then costs no more than the steps before it, or little
    every = -(-len(fit.eval_dataset) // training.per_device_eval_batch_size)
    training.eval_steps = training.save_steps = max(LEAST_STEPS, every)
    if run.head_warmup_steps is None:
        fit.add_callback(StopWhenFlat())
    return fit


class StopWhenFlat(TrainerCallback):
    """Stop when the held-out loss is not at least 1 % lower than at the evaluation before."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
        if len(losses) > 1 and losses[-1] > (1 - LEAST_FALL) * losses[-2]:
            control.should_training_stop = True
            # A run that is killed now goes on from the evaluation before and stops here again; from
            # a checkpoint of this step it would take one more
            control.should_save = False


def scores(log: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tell of a warm-up in the results of a run: its steps, and the perplexities around it."""
    found = [entry for entry in log if "eval_perplexity" in entry]
    if not found:
        return {"head_warmup_steps": 0}
    return {
        "head_warmup_steps": found[-1]["step"],
        "head_warmup_perplexity_before": found[0]["eval_perplexity"],
        "head_warmup_perplexity": found[-1]["eval_perplexity"],
    }


# ---------------------------------------------------------------- the end state


def _train(fit: PretrainingTrainer, names: list[str], end: Path, args: Arguments) -> None:
    """Train the head, or go on with it, and write its end state. Called by all processes."""
    run, training = args.run, args.training
    logger.info(
        "The new masked-LM head is trained first, on the frozen encoder, at rate %g, %s "
        "(--head_warmup_steps 0: not)",
        run.head_warmup_learning_rate,
        f"for {run.head_warmup_steps} steps"
        if run.head_warmup_steps
        else f"until the held-out loss falls by less than {LEAST_FALL:.0%} in "
        f"{fit.args.eval_steps} steps",
    )
    found = None
    if training.resume_from_checkpoint is not None:
        found = broadcast(checkpoints.latest_checkpoint(end.parent) if is_main_process() else None)
    fit.train(resume_from_checkpoint=found)
    evaluated = [entry["step"] for entry in fit.state.log_history if "eval_loss" in entry]
    if evaluated[-1:] != [fit.state.global_step]:  # transformers 5.0 leaves out the last step
        fit.evaluate()
    fit.check_weights()
    weights = fit.accelerator.get_state_dict(fit.model)
    streamed = isinstance(fit.train_dataset, StreamedBatches)
    seen = gather_object([*fit.train_dataset.hashes]) if streamed else []
    if not is_main_process():
        return
    with atomic_write(end / "head.safetensors") as temporary:
        save_file({name: weights[name].detach().cpu().clone() for name in names}, temporary)
    with atomic_write(end / "seen.npy") as temporary:
        np.save(temporary, np.array(sorted(seen), dtype=np.uint64), allow_pickle=False)
    record = {"step": fit.step_content(), "log": fit.state.log_history}
    checkpoints.mark_whole(end, record)
    logger.info("The head is trained: steps, held-out perplexity: %s", scores(record["log"]))
    if not run.keep_checkpoints:
        checkpoints.remove_checkpoints(end.parent)


def _read_end(end: Path) -> dict[str, Any] | None:
    """Read an end state: step, log, weights, seen; None where there is none that is whole.

    Called by all processes; the main process reads.
    """
    return broadcast(_read_here(end) if is_main_process() else None)


def _read_here(end: Path) -> dict[str, Any] | None:
    if not (end / checkpoints.WHOLE).is_file():
        return None
    damage = checkpoints.find_damage(end)
    if damage is not None:
        logger.warning("%s %s: it is left out", end, damage)
        return None
    mark = checkpoints.read_mark(end)
    return {
        "step": mark["step"],
        "log": mark["log"],
        "weights": load_file(end / "head.safetensors"),
        "seen": np.load(end / "seen.npy", allow_pickle=False),
    }
