"""Fine-tune one encoder on several labelled tasks at once (Sun et al. 2019, section 5.5).

    python run_multitask.py tasks.yaml

where tasks.yaml holds the arguments, and under `tasks` a name and the files of each task:

    model_name_or_path: bert-base-uncased
    output_dir: multitask
    tasks:
      trec: {train_file: trec.csv, label_column_name: label_coarse, test_file: trec_test.csv}
      news: {train_file: news.csv, text_column_names: [title, body]}

Each task has its own labels and its own head; a batch holds rows of one task, and tasks are sampled
in proportion to their size. The output folder is a plain encoder, for run_finetune.py with a new
head. Each folder in it, such as multitask/trec, is a classifier as run_finetune.py writes it: name
it as --model_name_or_path to fine-tune it further on its task, at a lower rate. report.html shows
scores and curves of all tasks, that in a task's folder its mistakes and the rest.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent)]

from bertchain import cli
from bertchain.arguments import common, finetuning
from bertchain.errors import at_least

DEFAULTS = {
    "output_dir": "multitask",
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
    "metric_for_best_model": "mean_score",
    "logging_steps": 20.0,
    "report_to": "none",
}


@dataclass
class TaskArguments:
    """The tasks, and when their training ends."""

    _argument_group_name = "tasks"

    tasks: str = field(
        metadata={
            "help": "YAML: name -> arguments of its data, text and labels, as of run_finetune.py."
        }
    )
    early_stopping_patience: int | None = common.arg(
        None, "Stop after so many evaluations without a better mean score. Default: never."
    )
    keep_checkpoints: bool = common.arg(False, "Keep checkpoint-* folders after the end.")

    def __post_init__(self) -> None:
        at_least("early_stopping_patience", self.early_stopping_patience, 1)


GROUPS = (
    TaskArguments,
    common.WindowArguments,
    common.EncoderArguments,
    finetuning.ModelArguments,
    finetuning.RateArguments,
    finetuning.RegulariserArguments,
)

if __name__ == "__main__":
    cli.start_script(__doc__, GROUPS, DEFAULTS)

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import multitask
import numpy as np
import pages
import torch
from multitask import Tasks
from transformers import TrainingArguments, set_seed

import run_finetune
from bertchain import metrics
from bertchain.competition import run_folder
from bertchain.data import batching, contamination, tokenization
from bertchain.errors import as_input_error
from bertchain.models import layers, modeling
from bertchain.runtime import distributed, files, records
from bertchain.training import initialization, losses, prediction, saving, trainer

logger = logging.getLogger("bertchain")


class Arguments(NamedTuple):
    """The arguments, by group."""

    run: TaskArguments
    window: common.WindowArguments
    checkpoint: common.EncoderArguments
    model: finetuning.ModelArguments
    rates: finetuning.RateArguments
    regularisers: finetuning.RegulariserArguments
    training: TrainingArguments
    run_config: dict[str, Any]


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Fine-tune as the arguments say: flags, a dict, or None for the command line.

    Returns:
        all metrics, as in all_results.json: eval_<task>_accuracy, test_<task>_accuracy ...
    """
    # 1. Arguments
    defaults = DEFAULTS | trainer.device_precision(argv)
    args = Arguments(*cli.parse((*GROUPS, TrainingArguments), argv, defaults))
    training, path = args.training, args.checkpoint.model_name_or_path
    cli.start_logging()
    common.check_training(training)
    member = run_folder.Member("", None, training.seed, path)
    options = finetuning.RunArguments(keep_checkpoints=args.run.keep_checkpoints)
    multitask.check_output(args.run.tasks, path, training)
    asked = training.resume_from_checkpoint
    run = run_folder.RunFolder(training.output_dir, [member], None, options, asked)
    resume_from = run.resume_from(member, asked)
    set_seed(training.seed)

    # 2. Labelled documents of each task
    tasks = multitask.read_tasks(args.run.tasks, path, training.seed)
    seen = multitask.find_seen(tasks, path, **args.checkpoint.hub_kwargs)

    # 3. Documents -> windows, cut alike for all tasks
    name, hub_kwargs = args.checkpoint.tokenizer_name, args.checkpoint.hub_kwargs
    preprocessor = tokenization.Preprocessor.for_checkpoint(
        path, args.window.given, 0, name, **hub_kwargs
    )
    tasks = {
        name: task.with_documents(preprocessor.encode(task.documents, f"{name}, "))
        for name, task in tasks.items()
    }

    with run:  # locked
        # 4. One encoder with a head for each task, and its trainer
        fit = build_trainer(build_model(tasks, preprocessor, args), tasks, preprocessor, args)

        # 5. Train, and keep the checkpoint with the best mean score
        results = trainer.train(fit, resume_from, [])

        # 6. Predict validation and test rows of each task
        results |= predict(fit, tasks, run.folder) | seen

        # 7. Write the encoder, a classifier for each task, curves, pages, results
        if distributed.is_main_process():
            write_models(fit, results, tasks, run.folder, args.run_config)
            given = cli.changed(args.run_config, (*GROUPS, TrainingArguments))
            pages.write_pages(run.folder, tasks, results, given, training.seed)
        run.remove_checkpoints(member)
        run.write_results(results, args.run_config, training.seed)
    return results


# ---------------------------------------------------------------- 4. model and trainer


def build_model(
    tasks: Tasks, preprocessor: tokenization.Preprocessor, args: Arguments
) -> multitask.MultiTaskClassifier:
    """Load the encoder and put a new head on it for each task."""
    path, dropout = args.checkpoint.model_name_or_path, args.regularisers.encoder_dropout
    encoder, _ = initialization.load_checkpoint(
        path, args.model, dropout, **args.checkpoint.hub_kwargs
    )
    tokenization.check_vocabulary(preprocessor.tokenizer, encoder, path)
    heads = {}
    for name, task in tasks.items():
        head, _ = initialization.build_model(encoder, None, args.model, task.spec, preprocessor)
        labels = task.labels_of(task.documents["train"])
        initialization.start_at_frequencies(head.head, labels, head.config.problem_type)
        heads[name] = head
    model = multitask.MultiTaskClassifier(heads)
    with as_input_error():
        layers.reinit_top_blocks(encoder, args.rates.reinit_layers)
        layers.freeze(model, args.rates.freeze)
    return model


def build_trainer(
    model: multitask.MultiTaskClassifier,
    tasks: Tasks,
    preprocessor: tokenization.Preprocessor,
    args: Arguments,
) -> "MultiTaskTrainer":
    """Build the trainer of all tasks, whose mean score chooses the checkpoint."""
    training = batching.keep_all_columns(args.training)
    training.greater_is_better = True
    if training.world_size > 1:
        training.ddp_find_unused_parameters = True  # the heads of the other tasks
    blocks, rate = modeling.num_blocks(model.encoder.config), training.learning_rate
    batch = training.train_batch_size * training.world_size
    return MultiTaskTrainer(
        tasks=tasks,
        rates=layers.layer_rates(blocks, rate, **args.rates.rates),
        unfreeze_every=args.rates.unfreeze_every,
        regularisers=args.regularisers,
        seen=contamination.read_fingerprints(
            args.checkpoint.model_name_or_path, **args.checkpoint.hub_kwargs
        ),
        model=model,
        args=training,
        train_dataset=multitask.TaskRows(multitask.rows_of(tasks, "train"), batch),
        eval_dataset=multitask.rows_of(tasks, "validation"),
        processing_class=preprocessor.tokenizer,
        data_collator=multitask.TaskCollator(preprocessor.pad_id),
        patience=args.run.early_stopping_patience,
    )


class MultiTaskTrainer(run_finetune.ClassifierTrainer):
    """ClassifierTrainer whose batches, losses and evaluations belong to one task at a time."""

    def __init__(self, tasks: Tasks, **kwargs: Any):
        heads = kwargs["model"].tasks
        super().__init__(loss=None, **kwargs)
        self.tasks = tasks
        self.losses, self.metrics_of = {}, {}
        for name, task in tasks.items():
            config = heads[name].config
            single = config.problem_type == modeling.PROBLEM_TYPES["single_label"]
            smoothing = self.args.label_smoothing_factor if single else 0.0
            self.losses[name] = losses.TrainingLoss(config, label_smoothing=smoothing)
            self.metrics_of[name] = metrics.metric_function(task.spec, config, [])

    def loss_of(self, batch: dict[str, Any]) -> losses.TrainingLoss:
        """Return the loss of the batch's task."""
        return self.losses[batch["task"]]

    def step_content(self) -> dict[str, Any]:
        batch = self.args.per_device_train_batch_size * self.args.world_size  # of one task
        return super().step_content() | {"number of rows of a batch over all processes": batch}

    def row_order(self) -> torch.utils.data.Sampler[int]:
        """Return the sampler of batches of one task."""
        lengths = [rows["length"][:] for rows in self.train_dataset.tasks.values()]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        size, processes = self.args.train_batch_size, self.args.world_size
        return multitask.OneTaskAtATime(
            lengths, size, processes, seed, lambda: int(self.state.epoch or 0)
        )

    @contextmanager
    def scoring(self, task: str) -> Iterator[None]:
        """Score predictions inside as those of one task."""
        self.compute_metrics = self.metrics_of[task]
        try:
            yield
        finally:
            self.compute_metrics = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate each task in turn, and the mean of their main scores."""
        results = {}
        for name, rows in multitask.rows_of(self.tasks, "validation").items():
            with self.scoring(name):
                rows = multitask.with_task(rows, name)
                own = self.predict(rows, metric_key_prefix="eval").metrics
            results |= {insert(name, k): v for k, v in own.items() if metrics.is_score(k)}
        results["eval_mean_score"] = mean_score(results, self.tasks)
        self.log(results)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, results
        )
        return results


def insert(task: str, metric: str) -> str:
    """eval_accuracy -> eval_<task>_accuracy"""
    prefix, _, rest = metric.partition("_")
    return f"{prefix}_{task}_{rest}"


def mean_score(results: dict[str, float], tasks: Tasks) -> float:
    """Mean over tasks of the main validation score, negative where less is better."""
    scores = []
    for name, task in tasks.items():
        metric, more_is_better = metrics.main_metric(task.spec.problem_type, len(task.spec.names))
        scores.append(results[f"eval_{name}_{metric}"] * (1 if more_is_better else -1))
    return float(np.mean(scores))


# ---------------------------------------------------------------- 6. predict


def predict(fit: MultiTaskTrainer, tasks: Tasks, folder: Path) -> dict[str, float]:
    """Predict validation and test rows of each task, and write them to its folder."""
    results = {}
    for split in ("validation", "test"):
        for name, rows in multitask.rows_of(tasks, split).items():
            spec, rows = tasks[name].spec, multitask.with_task(rows, name)
            with fit.scoring(name):
                own = prediction.predict(fit, rows, split, spec, folder / name)
            results |= {insert(name, metric): value for metric, value in own.items()}
    return results | {"eval_mean_score": mean_score(results, tasks)}


# ---------------------------------------------------------------- 7. write


def write_models(
    fit: MultiTaskTrainer,
    results: dict[str, Any],
    tasks: Tasks,
    folder: Path,
    run_config: dict[str, Any],
) -> None:
    """Write the encoder, a folder for each task as run_finetune.py writes it, and the curves."""
    tokenizer, model = fit.processing_class, fit.accelerator.unwrap_model(fit.model)
    rows = multitask.rows_of(tasks, "train").values()
    trained_on = np.concatenate([contamination.hashes_of(own) for own in rows])
    with files.atomic_files(folder) as temporary:
        model.encoder.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    saving.write_seen(folder, trained_on, fit.seen)
    for name, task in tasks.items():
        own = {k.replace(f"_{name}_", "_", 1): v for k, v in results.items() if f"_{name}_" in k}
        whole = model.whole(name)
        saving.write_model(whole, tokenizer, task.spec, folder / name, own, run_config)
        saving.write_seen(folder / name, trained_on, fit.seen)
        content = own | {"versions": records.versions()}
        files.write_json(folder / name / "all_results.json", content)
    history = records.evaluation_history(fit.state.log_history)
    files.write_csv(folder / "history.csv", history)
    records.plot_history(folder / "history.png", history, "eval_mean_score")


if __name__ == "__main__":
    cli.run_script(main)
