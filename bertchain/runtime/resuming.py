"""A Trainer whose runs can be cut off and gone on with, as if nothing had happened."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EarlyStoppingCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import TrainOutput

from bertchain.errors import InputError
from bertchain.runtime.checkpoints import SaveAndExitOnSigterm, mark_whole, read_mark, rotate
from bertchain.runtime.distributed import barrier
from bertchain.runtime.finite import FiniteTrainer

NEEDED = {  # beside the weights, and what stands for it where a model is sharded
    "trainer_state.json": ("trainer_state.json",),
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
}


class ResumableTrainer(FiniteTrainer):
    """Trainer that marks its checkpoints as complete, and goes on from them exactly.

    A mark holds what the Trainer's own files lack: what a step consists of, and the losses since
    the last one that was logged.
    """

    def __init__(self, *args: Any, patience: int | None = None, **kwargs: Any):
        """Args:
        patience: evaluations without a better score after which training stops; None: never.
        args, kwargs: for the Trainer.
        """
        super().__init__(*args, **kwargs)
        self.patience = patience
        self.checkpoint_state: TrainerState | None = None  # that of the checkpoint gone on from
        self.on_sigterm = SaveAndExitOnSigterm()
        self.add_callback(self.on_sigterm)
        if patience is not None:
            self.add_callback(EarlyStopping(patience))
        self.logged_before = 0.0  # sum of the losses of steps before the resume
        self.resumed: dict[str, Any] | None = None  # losses to be added to the next one
        self.loss_since_log = torch.zeros(())  # sum of the losses of this process

    def step_content(self) -> dict[str, Any]:
        """Say what the steps of an epoch consist of: a run may go on only with the same.

        However the rows of a step are shared out among processes and accumulated batches.
        """
        args = self.args
        rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return {
            ROWS: rows * args.world_size,
            "number of training rows": len(self.train_dataset),
            "seed of their order": args.seed if args.data_seed is None else args.data_seed,
        }

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """Train as the Trainer does.

        Raises:
            InputError: for a checkpoint that this run cannot go on from.
        """
        if resume_from_checkpoint is None:
            output = super().train(**kwargs)
            return with_loss(output, output.training_loss + self._loss_of_others())
        self._check_checkpoint(resume_from_checkpoint)
        is_known = self.resumed is not None
        at_start, self.args.eval_on_start = self.args.eval_on_start, False  # it has been
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.args.eval_on_start = at_start
        if not is_known:
            return with_loss(output, output.training_loss + self._loss_of_others())
        total = self.logged_before + self._total_loss_scalar
        if self.resumed is not None:  # no step was left to take them up
            total += self._own_sum()
        loss = total / max(1, self.state.global_step)
        return with_loss(output, loss + self._loss_of_others())

    def _loss_of_others(self) -> float:
        """What the mean loss of a run lacks: the Trainer adds up the losses since the last line of
        the log in each process for itself."""
        if self.args.world_size == 1:
            return 0.0
        own = self.loss_since_log.detach().float().reshape(1).to(self.args.device)
        mean = self.accelerator.gather(own).mean()
        return float(mean - own) / max(1, self.state.global_step)

    def _check_checkpoint(self, checkpoint: str) -> None:
        """Compare what a step consists of; take over the losses since the last one logged."""
        for name, patterns in NEEDED.items():
            if not any(next(Path(checkpoint).glob(p), None) for p in patterns):
                raise InputError(
                    f"{checkpoint} lacks {name}, so a run cannot go on from it (--save_only_model "
                    "leaves it out); delete it, or take another"
                )
        self.checkpoint_state = TrainerState.load_from_json(
            str(Path(checkpoint, "trainer_state.json"))
        )
        mark = read_mark(checkpoint)
        if mark is None:  # of another tool
            return
        refuse_other_steps(checkpoint, mark.get("step", {}), self.step_content())
        self.resumed = mark.get("losses")
        self.logged_before = self.resumed["logged"] if self.resumed else 0.0

    def set_initial_training_values(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Plan no epoch where the checkpoint is that of the last step.

        The Trainer would make one step more, if that step is not the last of an epoch, and go on
        after early stopping.
        """
        epochs, *others, max_steps = super().set_initial_training_values(*args, **kwargs)
        if self.checkpoint_state is not None:
            stopped = (
                self.patience is not None
                and bad_evaluations(self.checkpoint_state) >= self.patience
            )
            if stopped or self.checkpoint_state.global_step >= max_steps:
                epochs = 0
        return (epochs, *others, max_steps)

    def _inner_training_loop(self, batch_size: int | None = None, *args: Any, **kw: Any) -> Any:
        """Train with the batch size that is asked for: transformers 5.0 takes the checkpoint's.

        SIGTERM then does what it did before, however training ends.
        """
        if not self.args.auto_find_batch_size:
            batch_size = self.args.train_batch_size
        try:
            return super()._inner_training_loop(batch_size, *args, **kw)
        finally:
            self.on_sigterm.restore_handler()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Train on a batch; the first one after a resume takes up the sum of losses."""
        loss = super().training_step(*args, **kwargs)
        if self.resumed is not None:
            self._globalstep_last_logged = self.resumed["step"]
            loss = loss + torch.tensor(self._own_sum(), device=loss.device)
            self.resumed = None
        return loss

    def _own_sum(self) -> float:
        """Sum of the losses of this process that no line of the log held before the resume."""
        sums = self.resumed["sums"]
        same = len(sums) == self.args.world_size
        return sums[self.args.process_index] if same else sum(sums) / len(sums)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *args: Any, **kw: Any):
        self.loss_since_log = tr_loss
        return super()._maybe_log_save_evaluate(tr_loss, grad_norm, *args, **kw)

    def _save_checkpoint(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Save as the Trainer does, and delete older checkpoints when the new one is marked."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, *args, **kwargs)
        finally:
            self.args.save_total_limit = limit
        sums = self.accelerator.gather(self.loss_since_log.detach().reshape(1)).tolist()
        barrier()  # each process writes its part
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            logged = self.logged_before + self._total_loss_scalar
            losses = {"sums": sums, "step": self._globalstep_last_logged, "logged": logged}
            mark_whole(checkpoint, {"step": self.step_content(), "losses": losses})
        if self.args.should_save:
            rotate(checkpoint, self.state.best_model_checkpoint, limit)


def with_loss(output: TrainOutput, loss: float) -> TrainOutput:
    """Set the mean loss of what a Trainer gives back."""
    return output._replace(training_loss=loss, metrics=output.metrics | {"train_loss": loss})


ROWS = "number of rows of a step (--per_device_train_batch_size x accumulation x processes)"


def refuse_other_steps(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with steps that consist of something else.

    Args:
        where: the checkpoint.
        before, now: see `ResumableTrainer.step_content`.

    Raises:
        InputError: naming what differs.
    """
    for name in [*now, *(name for name in before if name not in now)]:
        if before.get(name) != now.get(name):
            raise InputError(
                f"{where}: the {name} was {before.get(name)} and is {now.get(name)}; go on with "
                "what it was, or start anew in another --output_dir"
            )


def bad_evaluations(state: TrainerState) -> int:
    """Number of the last evaluations without a better score, as `EarlyStopping` saved it."""
    saved = state.stateful_callbacks.get(EarlyStopping.__name__)
    return saved["attributes"][COUNTER] if isinstance(saved, dict) else 0


COUNTER = "early_stopping_patience_counter"


class EarlyStopping(EarlyStoppingCallback):
    """Early stopping that counts on after a resume."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        setattr(self, COUNTER, max(getattr(self, COUNTER), bad_evaluations(state)))
