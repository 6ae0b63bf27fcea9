"""Fine-tune an encoder on labelled text: classification (one label or several) or regression.

    python run_finetune.py --model_name_or_path bert-base-uncased --train_file train.csv \\
        --test_file test.csv --text_column_names title abstract --output_dir out

What runs follows from the files: a training file trains (and holds out --validation_split of it
unless there is a --validation_file), a test file predicts. With a folder this script wrote as
--model_name_or_path and a test file alone, it only predicts, to the folder `predicted` by default.

With --num_folds 5 it trains a model for each fold, writes predictions of each row by a model that
did not see it, averages those of the test file, and fills a --sample_submission. The same command
goes on where it was cut off.

Recipe: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # finds bertchain from a notebook too

from bertchain import cli
from bertchain.arguments import finetuning
from bertchain.errors import InputError

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

if __name__ == "__main__":
    cli.start_script(__doc__, finetuning.GROUPS, DEFAULTS)

import copy
import logging
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments, set_seed

from bertchain import metrics
from bertchain.competition import (
    ensemble,
    manifests,
    pseudo_labels,
    run_folder,
    submission,
    teacher,
)
from bertchain.data import contamination, splits, tasks, tokenization
from bertchain.models import layers, modeling
from bertchain.probing import head_probes
from bertchain.reporting import page
from bertchain.runtime import checkpoints, files
from bertchain.training import (
    contrastive,
    head_features,
    initialization,
    losses,
    outcome,
    prediction,
    saving,
    trainer,
    underfitting,
)

logger = logging.getLogger("bertchain")


@cli.callable_again
def main(argv: cli.Given = None, **arguments: Any) -> outcome.RunResult:
    """Fine-tune as the arguments say: flags, keywords, a dict or a file; else the command line.

    Returns the metrics, as in all_results.json, with the folder, predictions and model beside them.
    """
    # 1. Arguments
    argv, hooks = cli.take(argv, arguments, ClassifierTrainer)
    defaults = DEFAULTS | trainer.device_precision(argv) | finetuning.defaults_for(argv)
    parsed = cli.parse((*finetuning.GROUPS, TrainingArguments), argv, defaults)
    args = finetuning.Arguments(*parsed, hooks)
    budget, seed = checkpoints.TimeBudget(args.run.seconds), args.training.seed
    cli.start_logging(args.training.disable_tqdm)
    finetuning.check_combinations(args)
    source, share = args.checkpoint, args.label.validation_split
    trained = run_folder.read_members(source.model_name_or_path)  # to predict with
    path = trained[0].checkpoint if trained else source.model_name_or_path

    # 2. Labelled documents, and the form their predictions are handed in
    task = tasks.load_task(*args.sources, seed=seed, checkpoint=path, rows=args.rows)
    task = task.only(args.wanted_splits)
    check_splits(task, trained, args)
    task = task.with_folds(args.folds, seed).with_validation(share, seed, args.folds)
    form = submission.read_sample(args.submission, args.text, task)

    # 3. Documents -> windows that fit the encoder
    preprocessor = tokenization.Preprocessor.for_checkpoint(
        path, args.window.given, task.num_spans, source.tokenizer_name, **source.hub_kwargs
    )
    task = task.encoded_by(preprocessor)

    # 4. The models: one, or one for each fold and seed
    members = trained or run_folder.plan_members(task.folds, args.folds, seed, path)
    rows_of = plan_rows(task, members, args)
    seen = check_rows(task, members, rows_of, args)
    manifest = None
    if task.has_training_rows:
        manifest = manifests.make_manifest(args.run_config, seed, task.tables)
    folder, asked = args.training.output_dir, args.training.resume_from_checkpoint
    with run_folder.RunFolder(folder, members, manifest, args.run, asked) as run:  # locked
        ensemble.write_folds(run.folder, task)

        # 5. Train each and predict with it; members that are done stay as they are
        results, unfinished = {}, run.unfinished()
        if unfinished and task.has_training_rows and not cli.is_given("learning_rate", argv):
            initialization.suggest_rate(path, args)
        for number, member in enumerate(unfinished):
            rows = rows_of[member.fold]
            stop_in_time = budget.callbacks(len(unfinished) - number, rows)
            results = fine_tune(member, rows, task, preprocessor, run, args, stop_in_time)

        # 6. Out-of-fold predictions, averages over members, the submission
        if run.has_several:
            results = ensemble.combine(run, task, args.submission, args.metrics, args.run_config)
        if form is not None:
            submission.write_submission(form, run.folder, task.spec, ensemble.thresholds_of(run))

        # 7. The page to look at; results, and the arguments that repeat the run
        page.write_page(run, task, form, results | seen, args)
        run.write_results(results | seen, args.run_config, seed)
    return outcome.RunResult(results | seen, run.folder, task.predicted_splits, run.models(hooks))


def fine_tune(
    member: run_folder.Member,
    rows: dict[str, Dataset],
    task: tasks.Task,
    preprocessor: tokenization.Preprocessor,
    run: run_folder.RunFolder,
    args: finetuning.Arguments,
    stop_in_time: list[TrainerCallback],
) -> dict[str, Any]:
    """Train one model on rows by split, predict with it, write it. Returns its metrics."""
    folder, trains = run.folder_of(member), "train" in rows
    labels = task.labels_of(rows["train"]) if trains else []

    # a. Encoder and head
    resume_from = run.resume_from(member, args.training.resume_from_checkpoint) if trains else None
    set_seed(member.seed)
    spec = task.spec.fitted_to(labels) if trains else task.spec
    model, lora = initialization.build_classifier(
        member.checkpoint, spec, preprocessor, args, labels if trains else None
    )

    # b. Trainer
    blocks, rate = modeling.num_blocks(model.encoder.config), args.training.learning_rate
    given, scratch = args.run_config, run.scratch_of(member)
    scores_of = metrics.metric_function(spec, model.config, args.metrics, rows.get("validation"))
    fit = args.hooks.trainer_class(
        loss=losses.build_loss(args.losses, args.training, spec, model.config, labels),
        rates=layers.layer_rates(blocks, rate, **args.rates.rates),
        unfreeze_every=args.rates.unfreeze_every,
        regularisers=args.regularisers,
        batch_by_length=args.run.batch_by_length,
        rows_of_a_class=args.rows_of_a_class(),
        patience=args.run.early_stopping_patience if "validation" in rows else None,
        folder=folder,
        seen=contamination.read_fingerprints(member.checkpoint, **args.checkpoint.hub_kwargs),
        model=model,
        args=trainer.member_arguments(args.training, spec, given, member.seed, scratch, rows),
        train_dataset=pseudo_labels.join(rows, spec) if trains else None,
        eval_dataset=rows.get("validation"),
        processing_class=preprocessor.tokenizer,
        data_collator=preprocessor.collator,
        compute_metrics=scores_of,
        callbacks=[*args.hooks.callbacks, *stop_in_time, *run.stops(member)],
    )

    # c. Train
    results: dict[str, Any] = {}
    if trains:
        results = train_one(fit, lora, rows, task, args, resume_from, stop_in_time)

    # d. Predict, rows in their order
    for split in [name for name in ("validation", "test") if name in rows]:
        results |= prediction.predict(fit, rows[split], split, spec, folder)

    # e. Write the model, its curves, its results; of many models no encoders
    if trains:
        saving.write_member(fit, spec, folder, results, given, with_encoder=not run.has_several)
        run.remove_checkpoints(member)
    args.hooks.keep(member.name, fit)
    return results


def train_one(
    fit: trainer.DocumentTrainer,
    lora: Any,
    rows: dict[str, Dataset],
    task: tasks.Task,
    args: finetuning.Arguments,
    resume_from: str | None,
    stop_in_time: list[TrainerCallback],
) -> dict[str, Any]:
    """Train, and keep the best checkpoint; a probe may be the head before, or after. For results.

    Args:
        lora: see `initialization.merge_lora`.
    """
    if args.head.head_init and resume_from is None:
        head_probes.fit_head(fit, rows, task)
    trainer.raise_epochs(fit, args.run.min_steps)
    learns = head_probes.trains_encoder(fit)  # before adapters are merged
    results = trainer.train(fit, resume_from, stop_in_time)
    results |= {"train_rows": len(task.labels_of(rows["train"]))} | pseudo_labels.count(rows)
    initialization.merge_lora(lora, fit, fit.folder, args.adapter)
    if args.refits_head:
        results |= head_probes.fit_head(fit, rows, task, learnt=learns)
    else:
        results |= underfitting.find_underfitting(fit, rows["train"])
    return results


class ClassifierTrainer(trainer.DocumentTrainer):
    """What a competitor edits: the optimizer's groups and the loss. The rest is in its parent."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the groups, print and save their table. (FSDP passes the model it has wrapped.)"""
        if self.optimizer is not None:
            return self.optimizer
        model = self.model if model is None else model
        decayed = {
            n for n in self.get_decay_parameter_names(model) if not n.startswith("layer_mix.")
        }
        groups = layers.layer_groups(model, self.rates, self.args.weight_decay, decayed)
        if not groups:
            raise InputError("nothing is left to train")
        table = layers.group_table(groups)
        if self.is_world_process_zero():
            logger.info("Optimizer groups:\n%s", table.to_string(index=False))
            files.write_csv(self.folder / "optimizer_groups.csv", table)
        optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

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
        with head_features.kept_vectors(self.model, loss.contrastive_weight > 0) as kept:
            logits = model(**inputs).logits
        if "token_positions" in inputs:
            logits, labels = modeling.without_padding(logits, labels)
        if loss.rdrop_alpha:
            total = sum(loss.total(half, labels, weights) for half in logits.chunk(2, dim=-2)) / 2
            total = total + loss.rdrop_alpha * loss.divergence(logits, weights)
        else:
            total = loss.total(logits, labels, weights)
        if num_items_in_batch is None:
            mean = total / loss.divisor(labels, weights)
        elif self.args.average_tokens_across_devices:  # gradients are averaged over processes
            mean = total * self.accelerator.num_processes / num_items_in_batch
        else:
            mean = total / num_items_in_batch
        return contrastive.mixed(loss, mean, kept, labels, weights, self.accelerator)


def check_splits(
    task: tasks.Task, trained: list[run_folder.Member], args: finetuning.Arguments
) -> None:
    """Raises InputError where a file or metric is missing for what is asked."""
    if trained and task.has_training_rows:
        raise InputError(
            f"--model_name_or_path {args.checkpoint.model_name_or_path} holds {len(trained)} "
            f"models; to train, name one of them, such as {Path(trained[0].checkpoint)}"
        )
    given, needs = args.run_config, {"train": ("num_folds", "fold_column_name", "seeds")}
    needs["train"] += ("head_init", "head_refit", "group_column_name", "near_duplicates")
    needs["train"] += ("extra_train_file", "weight_column_name", "teacher")
    needs["test"] = ("sample_submission", "pseudo_label_file")
    for split, flags in needs.items():
        for flag in flags:
            if given.get(flag) and split not in task.documents:
                raise InputError(f"--{flag} needs --{split}_file")
    if task.has_training_rows:
        trainer.choose_metric(copy.copy(args.training), task.spec, given)
        if args.model.ordinal_head:
            task.spec.require_grades("--ordinal_head")


def check_rows(
    task: tasks.Task,
    members: list[run_folder.Member],
    rows_of: dict[int | None, dict[str, Dataset]],
    args: finetuning.Arguments,
) -> dict[str, Any]:
    """Find documents that are scored and were seen before, and labels without rows; warn of them.

    Args:
        members: the models to train or to predict with.
        rows_of: the rows of each fold by split; those of pseudo are trained on as well.

    Returns:
        their numbers, for the results.
    """
    documents, hub_kwargs = task.documents, args.checkpoint.hub_kwargs
    paths = [*dict.fromkeys(member.checkpoint for member in members)]
    results = contamination.find_seen(documents.get("test"), paths[0], **hub_kwargs)
    folded = task.folds is not None
    others = [rows["pseudo"] for rows in rows_of.values() if "pseudo" in rows]
    others += [documents["extra"]] if "extra" in documents else []
    results |= contamination.find_trained_on(documents, folded, paths, others, **hub_kwargs)
    if task.has_training_rows:
        results |= splits.count_absent_labels(task.training_labels(), task.spec)
    return results


def plan_rows(
    task: tasks.Task, members: list[run_folder.Member], args: finetuning.Arguments
) -> dict[int | None, dict[str, Dataset]]:
    """Select the rows of each fold by split, and those that an earlier run has labelled.

    Raises:
        InputError: before any model is trained, where the labels of one fold do not fit the flags.
    """
    subset, seed = args.run.subset, args.training.seed
    folds = dict.fromkeys(member.fold for member in members)
    rows_of = {fold: task.for_fold(fold, subset, seed) for fold in folds}
    for fold, rows in rows_of.items():
        if "train" not in rows:
            continue
        labels, where = task.labels_of(rows["train"]), "" if fold is None else f"fold {fold}: "
        try:
            losses.build_loss(args.losses, args.training, task.spec.fitted_to(labels), None, labels)
        except InputError as error:
            raise InputError(f"{where}{error}") from error
    pseudo = pseudo_labels.read_pseudo_labels(args.folds, task)
    taught = teacher.read_teacher(args.folds, task)
    return {fold: rows | pseudo.get(fold, {}) | taught for fold, rows in rows_of.items()}


if __name__ == "__main__":
    cli.run_script(main)
