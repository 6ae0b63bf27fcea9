"""Fine-tune an encoder on labelled text: classification (one label or several) or regression.

    python run_finetune.py --model_name_or_path bert-base-uncased --train_file train.csv \\
        --test_file test.csv --text_column_names title abstract --output_dir out

What runs follows from the files: a training file trains (and holds out --validation_split of it
unless there is a --validation_file), a test file predicts. With a folder this script wrote as
--model_name_or_path and a test file alone, it only predicts.

With --num_folds 5 it trains a model for each fold, writes predictions of each row by a model that
did not see it, averages those of the test file, and fills a --sample_submission. The same command
goes on where it was cut off.

Recipe: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583).
"""

import logging
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from bertchain.arguments.common import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    TargetArguments,
    TextArguments,
    WindowArguments,
)
from bertchain.arguments.finetuning import (
    AdapterArguments,
    FoldArguments,
    LossArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
    RunArguments,
    SubmissionArguments,
)
from bertchain.cli import (
    changed,
    is_given,
    parse,
    refuse_data_parallel,
    refuse_fp16,
    run_script,
    start_logging,
    start_script,
)
from bertchain.errors import InputError, exclude

# What is set here and not left to transformers.TrainingArguments. Rates: Sun et al. 2019, section
# 5.2, 5.3.
DEFAULTS = {
    "output_dir": "finetuned",
    "learning_rate": 2e-5,
    "num_train_epochs": 4.0,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "logging_steps": 20.0,
    "report_to": "none",
}


OWN_ARGUMENTS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    TargetArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    RateArguments,
    LossArguments,
    RegulariserArguments,
    AdapterArguments,
    FoldArguments,
    SubmissionArguments,
    RunArguments,
)

if __name__ == "__main__":
    start_script(__doc__, OWN_ARGUMENTS, DEFAULTS)

import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from bertchain.competition.ensemble import combine, read_thresholds
from bertchain.competition.pseudo_labels import PseudoLabels, add_pseudo_labels, read_pseudo_labels
from bertchain.competition.run_folder import (
    Part,
    check_plan,
    digest_of,
    is_done,
    make_plan,
    plan_parts,
    read_parts,
    rows_of_part,
    write_plan,
)
from bertchain.competition.submission import SampleSubmission
from bertchain.competition.thresholds import check_kind
from bertchain.data.batching import GroupedByLength, SharedOut, keep_all_columns, refuse_other_order
from bertchain.data.contamination import find_seen
from bertchain.data.labels import LabelSpec
from bertchain.data.spans import collator_for, cut_targets
from bertchain.data.splits import choose_subset, hold_out_validation, settle_folds
from bertchain.data.task import read_labelled, read_words
from bertchain.data.tokenization import (
    check_vocabulary,
    load_tokenizer,
    pad_id,
    settle_windows,
    to_windows,
)
from bertchain.metrics import LESS_IS_BETTER, MAIN_METRIC, metric_function, score_function
from bertchain.models.layers import group_table, layer_groups, layer_rates, unfrozen_from
from bertchain.models.modeling import IGNORED, num_blocks, without_padding
from bertchain.runtime.checkpoints import (
    LeaveOnSignal,
    MarkWhole,
    TimeBudget,
    find_checkpoint,
    go_on_from,
    remove_checkpoints,
)
from bertchain.runtime.distributed import agreed, is_main_process, wait_for_all
from bertchain.runtime.files import write_csv, write_json, write_yaml, writing
from bertchain.runtime.locks import claim, frees_claims
from bertchain.runtime.records import evaluation_history, plot_history, versions
from bertchain.training.initialization import build_model, load_start, merge_lora, prepare_training
from bertchain.training.losses import TrainingLoss, settle_loss
from bertchain.training.prediction import predict, read_predictions
from bertchain.training.regularisers import Adversary, AveragingTrainer
from bertchain.training.saving import write_model

logger = logging.getLogger("bertchain")


class Arguments(NamedTuple):
    """What the command line says, by what it is about."""

    data: DataArguments
    text: TextArguments
    label: LabelArguments
    target: TargetArguments
    window: WindowArguments
    checkpoint: EncoderArguments
    model: ModelArguments
    rates: RateArguments
    losses: LossArguments
    regularisers: RegulariserArguments
    adapter: AdapterArguments
    folds: FoldArguments
    submission: SubmissionArguments
    run: RunArguments
    training: TrainingArguments
    as_run: dict[str, Any]  # every argument that is not None, to repeat the run


@frees_claims
def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    defaults = DEFAULTS | device_precision(argv)
    args = Arguments(*parse((*OWN_ARGUMENTS, TrainingArguments), argv, defaults))
    budget = TimeBudget(args.run.seconds)
    start_logging()
    check_arguments(args)
    folder, seed = Path(args.training.output_dir), args.training.seed
    trained = read_parts(args.checkpoint.model_name_or_path)  # of a run with folds, to predict with
    start = Path(args.checkpoint.model_name_or_path, trained[0].name) if trained else None
    path, hub = str(start or args.checkpoint.model_name_or_path), args.checkpoint.hub

    # 2. Tables -> labelled documents, and what they are to be submitted as
    if args.target.task_level == "sequence":
        spec, documents, tables = read_labelled(args.data, args.text, args.label, path)
    else:
        where = (args.data, args.text, args.label, args.target)
        spec, documents, tables = read_words(*where, path, seed)
    documents = only_wanted(documents, args.as_run)
    check_documents(documents, trained, args)
    folds = None
    if "train" in documents:
        folds = settle_folds(documents["train"], tables["train"], spec, args.folds, seed)
    if folds is not None:
        documents.pop("validation", None)  # a data set's own; the folds take its place
    sample = read_sample(args.submission, args.text.id_column_name, spec, documents)
    seen = find_seen(documents.get("test"), path, **hub)

    # 3. Documents -> windows
    tokenizer = load_tokenizer(args.checkpoint.tokenizer_name or path, **hub)
    given = args.window.given
    if args.target.slots:  # no word is to be cut off
        given = {"truncation": "hierarchical"} | given
    windows, special = settle_windows(given, path, tokenizer, **hub)
    rows = {}
    for split, texts in documents.items():
        if args.target.slots:
            rows[split] = cut_targets(texts, tokenizer, windows, special)
            continue
        rows[split], report = to_windows(texts, tokenizer, windows, special)
        logger.info("%s, %s %d: %s", split, windows.truncation, windows.max_seq_length, report)
    shape = {"windows": windows.to_dict(), "special_tokens": special.to_dict()}
    shape["slots"] = args.target.slots

    # 4. Which models: one, or one for each fold and seed
    parts = trained or plan_parts(folds, args.folds.wanted, args.folds.seeds, seed)
    pseudo = read_pseudo(args.folds.pseudo_label_file, spec, rows, folds)
    claim(folder)
    scratch = settle_folders(folder, parts, folds, rows, args)

    # 5. Each model: train it, predict with it, write it; those that are done stay as they are
    results: dict[str, Any] = {}
    todo = parts if trained else not_done(folder, scratch, parts, args.run.keep_checkpoints)
    for number, part in enumerate(todo):
        if part.name:
            logger.info("%s, %d of %d", part.name, number + 1, len(todo))
        splits = split_for(part, rows, folds, spec, args)
        left = time_left(budget, len(todo) - number, splits)
        where = (folder / part.name, scratch / part.name)
        begin = os.path.join(args.checkpoint.model_name_or_path, part.name) if trained else path
        labels = pseudo.get(part.fold)
        results = run_part(part, begin, spec, splits, labels, tokenizer, shape, left, where, args)

    # 6. All of them together: out of the folds, and averaged
    is_main = is_main_process()
    if parts[0].name:
        done = trained or agreed(read_parts(folder))
        splits = rows | split_for(parts[0], rows, None, spec, args) if folds is None else rows
        scores_of = score_function(spec, args.run.extra_metrics)
        fitting = (
            args.submission.fit_thresholds,
            read_thresholds(args.checkpoint.model_name_or_path),
        )
        together = (folder, done, spec, splits, folds, scores_of, *fitting)
        results = agreed(combine(*together) if is_main else {})
    if sample is not None and is_main:
        write_submission(sample, folder, spec, several=bool(parts[0].name))

    # 7. Results
    results |= seen
    if is_main:
        write_yaml(folder / "run_args.yaml", args.as_run)
        write_json(folder / "all_results.json", results | {"seed": seed, "versions": versions()})
        logger.info("Wrote %s", folder)
    wait_for_all()
    return results


# ---------------------------------------------------------------- 1. arguments


def device_precision(argv: list[str] | dict[str, Any] | None) -> dict[str, bool]:
    """On a GPU bf16, or fp16 where it has no bf16, unless the user says something of precision."""
    chosen = any(is_given(name, argv) for name in ("bf16", "fp16", "use_cpu"))
    if chosen or not torch.cuda.is_available():
        return {}
    name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {name: True}


NOT_OF_WORDS = (
    *("num_folds", "fold_column_name", "seeds", "sample_submission", "fit_thresholds"),
    *("train_fraction", "train_per_class", "rdrop_alpha", "token_pooling", "segment_pooling"),
    *("segments_per_forward", "text_pair", "max_segments"),
)
NOT_WITH_LORA = ("reinit_layers", "unfreeze_every", "fgm_epsilon", "awp_epsilon")


def check_arguments(args: Arguments) -> None:
    """What no single dataclass can check."""
    data, as_run, training = args.data, args.as_run, args.training
    if data.dataset_name is None:
        needs = {
            "do_train": ("train_file",),
            "do_eval": ("validation_file", "train_file"),
            "do_predict": ("test_file",),
        }
        for flag, names in needs.items():
            if as_run.get(flag) and not any(getattr(data, name) for name in names):
                raise InputError(f"--{flag} needs " + " or ".join(f"--{name}" for name in names))
    if args.target.slots:
        given = {**vars(args.folds), **vars(args.submission), **vars(args.run), **as_run}
        for name in NOT_OF_WORDS:
            if given.get(name):
                raise InputError(f"--{name} does not go with --task_level {args.target.task_level}")
    frozen_by_lora = {name: as_run.get(name) for name in NOT_WITH_LORA}
    frozen_by_lora["freeze"] = as_run["freeze"] != "none"
    for name, value in frozen_by_lora.items():
        exclude(lora_r=as_run["lora_r"], **{name: value})
    if as_run.get("early_stopping_patience") and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end")
    with_folds = args.folds.with_folds
    folds = "num_folds" if args.folds.num_folds else "fold_column_name"
    exclude(validation_file=data.validation_file, **{folds: with_folds})
    if args.submission.fit_thresholds and not with_folds:
        raise InputError("--fit_thresholds needs --num_folds or --fold_column_name")
    if args.submission.sample_submission and args.text.id_column_name is None:
        raise InputError("--sample_submission needs --id_column_name")
    if (with_folds or args.folds.seeds) and training.resume_from_checkpoint:
        raise InputError(
            "--resume_from_checkpoint does not go with folds or --seeds: the same command goes on"
        )
    if not (with_folds or args.folds.seeds or args.run.checkpoint_dir):
        find_checkpoint(training.output_dir, training.resume_from_checkpoint)  # refuse it early
    refuse_data_parallel(training.n_gpu)
    refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)


# ---------------------------------------------------------------- 2. documents, labels, folds


def only_wanted(documents: dict[str, Dataset], as_run: dict[str, Any]) -> dict[str, Dataset]:
    """All there are files for; with any of --do_train, --do_eval, --do_predict, what they name."""
    flags = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}
    asked = {split for split, flag in flags.items() if as_run.get(flag)}
    if not asked:
        return documents
    if "train" in asked:
        asked.add("validation")  # chooses the best checkpoint
    return {split: rows for split, rows in documents.items() if split in asked}


def check_documents(documents: dict[str, Dataset], trained: list[Part], args: Arguments) -> None:
    """What the files must hold for what is asked of them."""
    path, folds = args.checkpoint.model_name_or_path, args.folds
    if trained and "train" in documents:
        raise InputError(
            f"--model_name_or_path {path} holds {len(trained)} models; to train, name one of them, "
            f"such as {Path(path, trained[0].name)}"
        )
    for flag in ("num_folds", "fold_column_name", "seeds"):
        if getattr(folds, flag) and "train" not in documents:
            raise InputError(f"--{flag} needs --train_file")
    for flag, given in (
        ("sample_submission", args.submission.sample_submission),
        ("pseudo_label_file", folds.pseudo_label_file),
    ):
        if given and "test" not in documents:
            raise InputError(f"--{flag} needs --test_file")


def read_sample(
    options: SubmissionArguments,
    id_column: str | None,
    spec: LabelSpec,
    documents: dict[str, Dataset],
) -> SampleSubmission | None:
    """The sample submission, checked before anything is trained."""
    if options.fit_thresholds:
        check_kind(
            options.fit_thresholds, spec.problem_type, spec.truth(documents["train"]["labels"][:])
        )
    if options.sample_submission is None:
        return None
    source, values = options.sample_submission, options.submission_values
    sample = SampleSubmission.read(source, spec, id_column, values)
    sample.check_ids(documents["test"]["id"][:])
    return sample


# ---------------------------------------------------------------- 4. which models


def read_pseudo(
    path: str | None, spec: LabelSpec, rows: dict[str, Dataset], folds: np.ndarray | None
) -> dict[int, PseudoLabels]:
    if path is None:
        return {}
    return read_pseudo_labels(path, spec, rows["train"]["id"][:], folds)


def settle_folders(
    folder: Path,
    parts: list[Part],
    folds: np.ndarray | None,
    rows: dict[str, Dataset],
    args: Arguments,
) -> Path:
    """Write which models a run consists of; refuse a folder that holds others.

    Returns:
        where checkpoints go.
    """
    scratch = args.run.checkpoint_dir
    if "train" not in rows or not (parts[0].name or scratch):
        return folder
    plan = make_plan(args.as_run, args.training.seed)
    if parts[0].name:
        check_plan(folder, plan)
        if is_main_process():
            write_plan(folder, plan, parts)
        if folds is not None and is_main_process():
            table = {"id": rows["train"]["id"][:], "fold": folds}
            write_csv(folder / "folds.csv", pd.DataFrame(table))
        wait_for_all()
    return folder if scratch is None else Path(scratch) / f"{folder.name}-{digest_of(plan)}"


def not_done(folder: Path, scratch: Path, parts: list[Part], keep: bool) -> list[Part]:
    """The models that an earlier command with the same arguments has not trained to their end.

    Args:
        keep: whether checkpoints of the others stay (a kill may have left some).
    """
    done = agreed([part.name for part in parts if part.name and is_done(folder, part)])
    for name in done if is_main_process() and not keep else []:
        remove_checkpoints(scratch / name)
    if done:
        logger.info("done before: %s", ", ".join(done))
    return [part for part in parts if part.name not in done]


def split_for(
    part: Part,
    rows: dict[str, Dataset],
    folds: np.ndarray | None,
    spec: LabelSpec,
    args: Arguments,
) -> dict[str, Dataset]:
    """What one model trains on, is validated on, and predicts."""
    splits = dict(rows)
    if "train" not in rows:
        return splits
    seed, kind = args.training.seed, spec.problem_type
    if folds is None:
        splits = hold_out_validation(splits, args.label.validation_split, kind, seed)
    else:
        chosen = rows_of_part(part, folds)
        splits |= {s: rows["train"].select(r) for s, r in zip(TRAINED, chosen, strict=True)}
    subset = (args.run.train_fraction, args.run.train_per_class, seed)
    splits["train"] = choose_subset(splits["train"], kind, *subset)
    return splits


TRAINED = ("train", "validation")


def time_left(
    budget: TimeBudget, parts_left: int, splits: dict[str, Dataset]
) -> list[TrainerCallback]:
    """Of --time_budget, an equal share for each model that is still to be trained."""
    if budget.seconds is None:
        return []
    tokens = [sum(splits[s]["length"][:]) if s in splits else 0 for s in (*TRAINED, "test")]
    return budget.callbacks(parts_left, *tokens)


# ---------------------------------------------------------------- 5. one model


def run_part(
    part: Part,
    start: str,
    spec: LabelSpec,
    splits: dict[str, Dataset],
    pseudo: PseudoLabels | None,
    tokenizer: PreTrainedTokenizerBase,
    shape: dict[str, Any],
    callbacks: list[TrainerCallback],
    where: tuple[Path, Path],
    args: Arguments,
) -> dict[str, Any]:
    """Train one model, predict with it and write it.

    Args:
        start: the checkpoint it starts from.
        pseudo: labels for rows of test, which are trained on as well.
        shape: the config's `windows` and `special_tokens`.
        where: the folder for what is kept, and that for checkpoints.

    Returns:
        its metrics.
    """
    folder, scratch = where
    trains = "train" in splits
    # a. The model
    resume_from = where_to_go_on(part, scratch, args.training) if trains else None
    set_seed(part.seed)
    encoder, before = load_start(
        start, args.model, args.regularisers.encoder_dropout, **args.checkpoint.hub
    )
    check_vocabulary(tokenizer, encoder, start)
    labels = splits["train"]["labels"][:] if trains else []
    if shape["slots"]:
        labels = [label for own in labels for label in own]
    if pseudo is not None:
        weight = args.folds.pseudo_label_weight
        rows = add_pseudo_labels(splits["train"], splits["test"], pseudo, weight, spec)
        splits = splits | {"train": rows}
    spec = spec.fitted_to(labels) if trains else spec
    model, new_head = build_model(encoder, before, args.model, spec, shape, tokenizer)
    if new_head and not trains:
        raise InputError(
            f"--model_name_or_path {start}: its head was trained for other labels, layers, pooling "
            "or task level than these flags say; leave them out, or give --train_file"
        )
    lora = prepare_training(model, new_head, labels, args.rates, args.adapter) if trains else None

    # b. The trainer
    rates = (num_blocks(encoder.config), args.training.learning_rate)
    trainer = ClassifierTrainer(
        loss=settle_loss(
            args.losses, args.training.label_smoothing_factor, spec, model.config, labels
        ),
        rates=layer_rates(*rates, **args.rates.rates),
        unfreeze_every=args.rates.unfreeze_every,
        regularisers=args.regularisers,
        batch_by_length=args.run.batch_by_length,
        folder=folder,
        model=model,
        args=settle_training(args.training, spec, args.as_run, trains, part.seed, scratch),
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=collator_for(model.config, pad_id(tokenizer)),
        compute_metrics=metric_function(spec, model.config, args.run.extra_metrics),
        callbacks=[*early_stopping(args.run.early_stopping_patience), *callbacks],
    )

    # c. Train, and keep the best
    results: dict[str, Any] = {}
    if trains:
        with writing(trainer.args.output_dir):
            results |= trainer.train(resume_from_checkpoint=resume_from).metrics
        results["train_rows"] = len(labels)
        results |= {} if pseudo is None else {"pseudo_labelled_rows": len(pseudo.ids)}
        if callbacks:
            results["stopped_by_time_budget"] = any(c.stopped for c in callbacks)
    if lora is not None:
        merge_lora(lora, trainer, folder if args.adapter.save_adapter else None)

    # d. Predict validation and test, rows in their order
    for split in ("validation", "test"):
        if split in splits:
            results |= predict(trainer, splits[split], split, spec, folder)

    # e. Write the model, its curves, its results
    if trains and trainer.is_world_process_zero():
        write_part(trainer, results, spec, folder, args.as_run, with_encoder=not part.name)
        write_json(folder / "all_results.json", results | {"seed": part.seed})  # last: it is done
        if not args.run.keep_checkpoints:
            remove_checkpoints(scratch)
    wait_for_all()
    return results


def where_to_go_on(part: Part, scratch: Path, training: TrainingArguments) -> str | None:
    """The checkpoint to resume from: that of the same command, or, of a single model, as asked."""
    if not part.name:
        return find_checkpoint(scratch, training.resume_from_checkpoint)
    return agreed(go_on_from(scratch) if is_main_process() else None)


# ---------------------------------------------------------------- the trainer


class ClassifierTrainer(AveragingTrainer):
    """Trainer with layer-wise rates, batches by length, sums of losses, and the regularisers."""

    def __init__(
        self,
        loss: TrainingLoss,
        rates: dict[int, float],
        unfreeze_every: float | None,
        regularisers: RegulariserArguments,
        batch_by_length: bool,
        folder: Path | None = None,
        **kwargs: Any,
    ):
        """Args: rates: of each room, see `layers.layer_rates`; folder: for optimizer_groups.csv, by
        default output_dir. Others: as for the Trainer."""
        super().__init__(ema_decay=regularisers.ema_decay, **kwargs)
        self.folder = Path(self.args.output_dir) if folder is None else folder
        self.add_callback(MarkWhole())
        self.add_callback(LeaveOnSignal())  # after the mark
        self.label_smoother = None  # the Trainer's own knows nothing of accumulated batches
        self.loss, self.rates, self.unfreeze_every = loss, rates, unfreeze_every
        self.batch_by_length = batch_by_length
        self.adversary = None
        if regularisers.fgm_epsilon or regularisers.awp_epsilon:
            epsilons = regularisers.fgm_epsilon, regularisers.awp_epsilon
            self.adversary = Adversary(self.model, *epsilons)
            if self.train_dataset is not None and not self.adversary.moved:
                raise InputError("--fgm_epsilon and --awp_epsilon need trained weights to move")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the groups, print and save their table. (FSDP passes the model it has wrapped.)"""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = {
            n for n in self.get_decay_parameter_names(model) if not n.startswith("layer_mix.")
        }
        groups = layer_groups(model, self.rates, self.args.weight_decay, decayed)
        if not groups:
            raise InputError("nothing is left to train")
        table = group_table(groups)
        if self.is_world_process_zero():
            logger.info("Optimizer groups:\n%s", table.to_string(index=False))
            write_csv(self.folder / "optimizer_groups.csv", table)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """What the summed loss of the accumulated batch over all processes is divided by."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if count is None:
            return batches, count
        divisor = 0.0
        for batch in batches:
            labels = batch["labels"]
            labels = labels[labels != IGNORED] if "places" in batch else labels
            divisor = divisor + self.loss_of(batch).divisor(labels, batch.get("weight"))
        divisor = torch.as_tensor(divisor, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            divisor = self.accelerator.gather(divisor).sum()
        return batches, divisor

    def loss_of(self, batch: dict[str, Any]) -> TrainingLoss:
        return self.loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training the loss with all that is switched on; in evaluation the plain one."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs)
        loss, labels, weights = self.loss_of(inputs), inputs["labels"], inputs.get("weight")
        inputs = {k: value for k, value in inputs.items() if k not in ("labels", "weight")}
        if loss.rdrop_alpha:  # two passes as one batch
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        logits = model(**inputs).logits
        if "places" in inputs:
            logits, labels = without_padding(logits, labels)
        if loss.rdrop_alpha:
            total = sum(loss.total(half, labels, weights) for half in logits.chunk(2, dim=-2)) / 2
            total = total + loss.rdrop_alpha * loss.divergence(logits, weights)
        else:
            total = loss.total(logits, labels, weights)
        if num_items_in_batch is None:
            return total / loss.divisor(labels, weights)
        if self.args.average_tokens_across_devices:
            total = total * self.accelerator.num_processes  # gradients are averaged over processes
        return total / num_items_in_batch

    def training_step(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any) -> Tensor:
        """The Trainer's, then a second backward pass against the adversary, then unfreezing."""
        if self.adversary is not None:
            self.adversary.remember()
        loss = super().training_step(model, inputs, *args)
        if self.adversary is not None:
            with self.adversary.attack():
                super().training_step(model, inputs, *args)
        if self.unfreeze_every is not None:
            self.drop_gradients_of_frozen_rooms()
        return loss

    def drop_gradients_of_frozen_rooms(self) -> None:
        """The optimizer skips what has no gradient. (Processes would wait for parameters that are
        frozen and unfrozen on the way, so all of them keep taking part in the backward pass.)"""
        blocks = num_blocks(self.model.encoder.config)
        lowest = unfrozen_from(self.state.epoch or 0.0, self.unfreeze_every, blocks)
        for group in self.optimizer.param_groups:
            if group["room"] < lowest:
                for parameter in group["params"]:
                    parameter.grad = None

    def get_train_dataloader(self) -> DataLoader:
        """Rows are dealt out to the processes here, and not once more by accelerate."""
        args = self.args
        order = self.row_order()
        return DataLoader(
            self.train_dataset,
            batch_sampler=SharedOut(
                order,
                self._train_batch_size,
                args.process_index,
                args.world_size,
                args.dataloader_drop_last,
            ),
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            persistent_workers=args.dataloader_persistent_workers,
            pin_memory=args.dataloader_pin_memory,
        )

    def row_order(self) -> torch.utils.data.Sampler[int]:
        return GroupedByLength.of(self, self.train_dataset, self.batch_by_length)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer logs the rate of the first group; add that of the last, the head."""
        if "learning_rate" in logs and self.optimizer is not None:
            rates = [group["initial_lr"] for group in self.optimizer.param_groups]
            if rates[0] > 0:  # logged is the rate of the step before, which the ratio keeps to
                logs["learning_rate_head"] = logs["learning_rate"] * rates[-1] / rates[0]
        super().log(logs, *args, **kwargs)


def early_stopping(patience: int | None) -> list[TrainerCallback]:
    return [] if patience is None else [EarlyStoppingCallback(patience)]


def settle_training(
    training: TrainingArguments,
    spec: LabelSpec,
    as_run: dict[str, Any],
    trains: bool,
    seed: int,
    scratch: Path,
) -> TrainingArguments:
    """A copy for one model: its seed and checkpoint folder, and what follows from the task unless
    the user gave it."""
    training = copy.copy(training)
    training.seed, training.output_dir = seed, str(scratch)
    keep_all_columns(training)
    if not trains:
        training.eval_strategy = "no"
        training.load_best_model_at_end = False
        return training
    if training.load_best_model_at_end and "metric_for_best_model" not in as_run:
        training.metric_for_best_model = MAIN_METRIC[spec.problem_type][0]
    if training.load_best_model_at_end and "greater_is_better" not in as_run:
        name = training.metric_for_best_model.removeprefix("eval_")
        training.greater_is_better = name not in LESS_IS_BETTER
    return training


# ---------------------------------------------------------------- 6. submission


def write_submission(
    sample: SampleSubmission, folder: Path, spec: LabelSpec, several: bool
) -> None:
    """submission.csv in the form of the sample, from predictions_test.csv.

    Args:
        several: whether thresholds may lie in the folder, which models together can have.
    """
    ids, probabilities = read_predictions(folder / "predictions_test.csv", spec)
    thresholds = read_thresholds(folder) if several else None
    decisions = spec.decide(probabilities, thresholds)
    write_csv(folder / "submission.csv", sample.fill(ids, probabilities, decisions, spec))
    logger.info("Wrote %s, %d rows", folder / "submission.csv", len(sample.sample))


# ---------------------------------------------------------------- write one model


def write_part(
    trainer: Trainer,
    results: dict[str, Any],
    spec: LabelSpec,
    folder: Path,
    as_run: dict[str, Any],
    with_encoder: bool,
) -> None:
    """A model and its curves."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    arguments = changed(as_run, (*OWN_ARGUMENTS, TrainingArguments))
    what = (results, spec, as_run, arguments, with_encoder)
    write_model(model, trainer.processing_class, folder, *what)
    history = evaluation_history(trainer.state.log_history)
    write_csv(folder / "history.csv", history)
    metric = trainer.args.metric_for_best_model or MAIN_METRIC[spec.problem_type][0]
    plot_history(folder / "history.png", history, f"eval_{metric.removeprefix('eval_')}")


if __name__ == "__main__":
    run_script(main)
