"""Fine-tune one encoder on several labelled tasks at once (Sun et al. 2019, section 5.5).

    python run_multitask.py tasks.yaml

where tasks.yaml holds the arguments, and under `tasks` a name and the files of each task:

    model_name_or_path: bert-base-uncased
    output_dir: multitask
    tasks:
      trec: {train_file: trec.csv, label_column_name: label_coarse, test_file: trec_test.csv}
      news: {train_file: news.csv, text_column_names: [title, body]}

Each task has its own labels and its own head; batches come from one task at a time, drawn in
proportion to size. The output folder is a plain encoder (a start for run_finetune.py with a new
head), and each folder in it, such as multitask/trec, is what run_finetune.py writes: name it as
--model_name_or_path to fine-tune further on one task, at a lower rate, with its head.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2]), str(HERE.parent)]

from bertchain import cli
from bertchain.arguments.common import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    SpanArguments,
    TextArguments,
    WindowArguments,
    arg,
    refuse_other_order,
)
from bertchain.arguments.finetuning import ModelArguments, RateArguments, RegulariserArguments
from bertchain.errors import InputError, at_least

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
    _argument_group_name = "tasks"

    tasks: str = field(
        metadata={
            "help": "YAML: name -> arguments of its data, text and labels, as of run_finetune.py."
        }
    )
    early_stopping_patience: int | None = arg(
        None, "Stop after so many evaluations without a better mean score. Default: never."
    )
    keep_checkpoints: bool = arg(False, "Keep checkpoint-* folders after the end.")

    def __post_init__(self) -> None:
        at_least("early_stopping_patience", self.early_stopping_patience, 1)


GROUPS = (
    TaskArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
)

if __name__ == "__main__":
    cli.start_script(__doc__, GROUPS, DEFAULTS)

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from multitask import MultiTaskClassifier, OneTaskAtATime, TaskCollator, TaskRows
from torch import nn
from transformers import TrainingArguments, set_seed

from bertchain.data.batching import keep_all_columns
from bertchain.data.contamination import find_seen, read_fingerprint, write_fingerprint
from bertchain.data.tasks import Task, load_task
from bertchain.data.tokenization import Preprocessor, check_vocabulary
from bertchain.errors import as_input_error
from bertchain.metrics import MAIN_METRIC, is_score, metric_function
from bertchain.models.layers import freeze, layer_rates, reinit_top_blocks
from bertchain.models.modeling import PROBLEM_TYPES, num_blocks
from bertchain.runtime.checkpoints import find_checkpoint, remove_checkpoints
from bertchain.runtime.files import atomic_files, write_csv, write_json, write_yaml
from bertchain.runtime.locks import lock
from bertchain.runtime.records import evaluation_history, plot_history, versions
from bertchain.training.initialization import build_model, load_checkpoint, start_at_frequencies
from bertchain.training.losses import TrainingLoss
from bertchain.training.prediction import predict
from bertchain.training.saving import write_model
from bertchain.training.trainer import device_precision, early_stopping, train
from run_finetune import ClassifierTrainer

logger = logging.getLogger("bertchain")


class Arguments(NamedTuple):
    """The arguments, by group."""

    run: TaskArguments
    window: WindowArguments
    checkpoint: EncoderArguments
    model: ModelArguments
    rates: RateArguments
    regularisers: RegulariserArguments
    training: TrainingArguments
    run_config: dict[str, Any]


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Fine-tune as the arguments say: flags, a dict, or None for the command line.

    Returns:
        all metrics, as in all_results.json: eval_<task>_accuracy, test_<task>_accuracy ...
    """
    # 1. Arguments
    defaults = DEFAULTS | device_precision(argv)
    args = Arguments(*cli.parse((*GROUPS, TrainingArguments), argv, defaults))
    training, path = args.training, args.checkpoint.model_name_or_path
    cli.start_logging()
    cli.refuse_data_parallel(training.n_gpu)
    cli.refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)

    # 2. Labelled documents of each task
    tasks = read_tasks(args.run.tasks, path, training.seed)
    seen = find_seen_tests(tasks, args.checkpoint)

    # 3. Documents -> windows, cut alike for all tasks
    name, hub_kwargs = args.checkpoint.tokenizer_name, args.checkpoint.hub_kwargs
    preprocessor = Preprocessor.for_checkpoint(path, args.window.given, 0, name, **hub_kwargs)
    tasks = {
        name: task.with_documents(preprocessor.encode(task.documents, f"{name}, "))
        for name, task in tasks.items()
    }

    # 4. Model: one encoder, a head for each task
    model = build_model_of(tasks, preprocessor, args)

    with lock(training.output_dir):
        # 5. Trainer
        blocks, rate = num_blocks(model.encoder.config), training.learning_rate
        batch = training.train_batch_size * training.world_size
        fit = MultiTaskTrainer(
            tasks=tasks,
            rates=layer_rates(blocks, rate, **args.rates.rates),
            unfreeze_every=args.rates.unfreeze_every,
            regularisers=args.regularisers,
            model=model,
            args=prepare_arguments(training),
            train_dataset=TaskRows(rows_of(tasks, "train"), batch),
            eval_dataset=rows_of(tasks, "validation"),
            processing_class=preprocessor.tokenizer,
            data_collator=TaskCollator(preprocessor.pad_id),
            callbacks=early_stopping(args.run.early_stopping_patience),
        )

        # 6. Train, and keep what is best over all tasks
        results = train(fit, resume_from, [])

        # 7. Predict validation and test of each task
        results |= predict_tasks(fit, tasks) | seen

        # 8. Write the encoder, a classifier for each task, curves and results
        if fit.is_world_process_zero():
            write_run(fit, results, tasks, args.run_config)
            if not args.run.keep_checkpoints:
                remove_checkpoints(training.output_dir)
        fit.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 2. tasks

Sources = tuple[DataArguments, TextArguments, LabelArguments]


def read_tasks(tasks: str, checkpoint: str, seed: int) -> dict[str, Task]:
    """Read the labelled documents of each task, some held out for validation."""
    found = {}
    for name, (data, text, label) in parse_tasks(tasks).items():
        task = load_task(data, text, label, SpanArguments(), seed=seed, checkpoint=checkpoint)
        found[name] = task.with_validation(label.validation_split, seed)
    return found


def parse_tasks(tasks: str) -> dict[str, Sources]:
    """Parse YAML -> the arguments of each task.

    Raises:
        InputError: naming the task, for a name that cannot be a folder, an unknown argument, or no
            training file.
    """
    settled = {}
    for name, fields in cli.read_arguments(tasks, "--tasks").items():
        where = f"--tasks, {name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise InputError(f"{where}: a name consists of letters, digits, _ and -")
        if name == "encoder" or hasattr(nn.ModuleDict, str(name)):
            raise InputError(f"{where}: another name is needed, this one has a meaning in PyTorch")
        if not isinstance(fields, dict):
            raise InputError(f"{where}: give its arguments, such as train_file: train.csv")
        try:
            *task, _ = cli.parse(
                (DataArguments, TextArguments, LabelArguments), cli.flags_of(fields)
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if task[0].train_file is None and task[0].dataset_name is None:
            raise InputError(f"{where}: give its train_file")
        settled[str(name)] = tuple(task)
    if len(settled) < 2:
        raise InputError("--tasks needs two tasks; for one there is run_finetune.py")
    return settled


def find_seen_tests(tasks: dict[str, Task], checkpoint: EncoderArguments) -> dict[str, object]:
    """For the results: whether test documents were in the text of further pretraining."""
    results = {}
    for name, task in tasks.items():
        path, test = checkpoint.model_name_or_path, task.documents.get("test")
        seen = find_seen(test, path, **checkpoint.hub_kwargs)
        results |= {f"{name}_{key}": value for key, value in seen.items()}
    return results


def rows_of(tasks: dict[str, Task], split: str) -> dict[str, Dataset]:
    return {n: task.documents[split] for n, task in tasks.items() if split in task.documents}


# ---------------------------------------------------------------- 4. model


def build_model_of(
    tasks: dict[str, Task], preprocessor: Preprocessor, args: "Arguments"
) -> MultiTaskClassifier:
    """Load the encoder and put a new head on it for each task."""
    path, dropout = args.checkpoint.model_name_or_path, args.regularisers.encoder_dropout
    encoder, _ = load_checkpoint(path, args.model, dropout, **args.checkpoint.hub_kwargs)
    check_vocabulary(preprocessor.tokenizer, encoder, path)
    heads = {
        name: build_model(encoder, None, args.model, task.spec, preprocessor)[0]
        for name, task in tasks.items()
    }
    for name, head in heads.items():
        labels = tasks[name].labels_of(tasks[name].documents["train"])
        start_at_frequencies(head.head, labels, head.config.problem_type)
    model = MultiTaskClassifier(heads)
    with as_input_error():
        reinit_top_blocks(encoder, args.rates.reinit_layers)
        freeze(model, args.rates.freeze)
    return model


# ---------------------------------------------------------------- 5. trainer


def prepare_arguments(training: TrainingArguments) -> TrainingArguments:
    """The Trainer's settings that follow from there being several tasks."""
    keep_all_columns(training)
    training.greater_is_better = True
    if training.world_size > 1:
        training.ddp_find_unused_parameters = True  # the heads of the other tasks
    return training


def with_task(rows: Dataset, name: str) -> Dataset:
    return rows.add_column("task", [name] * len(rows))


class MultiTaskTrainer(ClassifierTrainer):
    """ClassifierTrainer whose batches, losses and evaluations belong to one task at a time."""

    def __init__(self, tasks: dict[str, Task], **kwargs: Any):
        heads = kwargs["model"].tasks
        super().__init__(loss=None, **kwargs)
        self.tasks = tasks
        smoothing = self.args.label_smoothing_factor
        self.losses, self.metrics_of = {}, {}
        for name, task in tasks.items():
            config = heads[name].config
            single = config.problem_type == PROBLEM_TYPES["single_label"]
            self.losses[name] = TrainingLoss(config, label_smoothing=smoothing if single else 0.0)
            self.metrics_of[name] = metric_function(task.spec, config, [])

    def loss_of(self, batch: dict[str, Any]) -> TrainingLoss:
        return self.losses[batch["task"]]

    def row_order(self) -> torch.utils.data.Sampler[int]:
        lengths = [rows["length"][:] for rows in self.train_dataset.tasks.values()]
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        size, processes = self.args.train_batch_size, self.args.world_size
        return OneTaskAtATime(lengths, size, processes, seed, lambda: int(self.state.epoch or 0))

    @contextmanager
    def judging(self, task: str) -> Iterator[None]:
        """Inside, predictions are scored as those of one task."""
        self.compute_metrics = self.metrics_of[task]
        try:
            yield
        finally:
            self.compute_metrics = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Every task in turn, and the mean of their main scores, which picks the checkpoint."""
        results = {}
        for name, rows in rows_of(self.tasks, "validation").items():
            with self.judging(name):
                metrics = self.predict(with_task(rows, name), metric_key_prefix="eval").metrics
            results |= {insert(name, k): value for k, value in metrics.items() if is_score(k)}
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


def mean_score(results: dict[str, float], tasks: dict[str, Task]) -> float:
    """Mean over tasks of the main validation score; of what should be small, its negative."""
    scores = []
    for name, task in tasks.items():
        metric, more_is_better = MAIN_METRIC[task.spec.problem_type]
        scores.append(results[f"eval_{name}_{metric}"] * (1 if more_is_better else -1))
    return float(np.mean(scores))


# ---------------------------------------------------------------- 7. predict


def predict_tasks(fit: MultiTaskTrainer, tasks: dict[str, Task]) -> dict[str, float]:
    """Predict validation and test of each task into its folder."""
    results, folder = {}, Path(fit.args.output_dir)
    for split in ("validation", "test"):
        for name, rows in rows_of(tasks, split).items():
            with fit.judging(name):
                own = predict(fit, with_task(rows, name), split, tasks[name].spec, folder / name)
            results |= {insert(name, metric): value for metric, value in own.items()}
    return results | {"eval_mean_score": mean_score(results, tasks)}


# ---------------------------------------------------------------- 8. write


def write_run(
    fit: MultiTaskTrainer,
    results: dict[str, Any],
    tasks: dict[str, Task],
    run_config: dict[str, Any],
) -> None:
    """Write the encoder, and a folder for each task as run_finetune.py writes it."""
    folder, tokenizer = Path(fit.args.output_dir), fit.processing_class
    model = fit.accelerator.unwrap_model(fit.model)
    hashes = read_fingerprint(
        run_config["model_name_or_path"], revision=run_config["model_revision"]
    )
    with atomic_files(folder) as temporary:
        model.encoder.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if hashes is not None:
            write_fingerprint(temporary, hashes)
    for name, task in tasks.items():
        own = {k.replace(f"_{name}_", "_", 1): v for k, v in results.items() if f"_{name}_" in k}
        write_model(model.whole(name), tokenizer, task.spec, folder / name, own, run_config)
        write_json(folder / name / "all_results.json", own | {"versions": versions()})
    history = evaluation_history(fit.state.log_history)
    write_csv(folder / "history.csv", history)
    plot_history(folder / "history.png", history, "eval_mean_score")
    write_yaml(folder / "run_args.yaml", run_config)
    content = results | {"seed": fit.args.seed, "versions": versions()}
    write_json(folder / "all_results.json", content)
    logger.info("Wrote %s", folder)


if __name__ == "__main__":
    cli.run_script(main)
