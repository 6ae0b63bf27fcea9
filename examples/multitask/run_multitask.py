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

from bertchain.arguments.common import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    TextArguments,
    WindowArguments,
    arg,
)
from bertchain.arguments.finetuning import ModelArguments, RateArguments, RegulariserArguments
from bertchain.cli import flags_of, parse, read_arguments, run_script, start_logging, start_script
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


OWN_ARGUMENTS = (
    TaskArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
)

if __name__ == "__main__":
    start_script(__doc__, OWN_ARGUMENTS, DEFAULTS)

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from multitask import MultiTaskClassifier, OneTaskAtATime, TaskCollator, TaskRows
from torch import nn
from transformers import TrainingArguments, set_seed

from bertchain.cli import changed, refuse_data_parallel, refuse_fp16
from bertchain.data.batching import keep_all_columns, refuse_other_order
from bertchain.data.contamination import find_seen, read_fingerprint, write_fingerprint
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import hold_out_validation
from bertchain.data.tasks import read_labelled
from bertchain.data.tokenization import (
    check_vocabulary,
    load_tokenizer,
    pad_id,
    resolve_windows,
    to_windows,
)
from bertchain.errors import as_input_error
from bertchain.metrics import MAIN_METRIC, is_score, metric_function
from bertchain.models.layers import freeze, layer_rates, reinit_top_blocks
from bertchain.models.modeling import PROBLEM_TYPES, num_blocks
from bertchain.runtime.checkpoints import find_checkpoint, remove_checkpoints
from bertchain.runtime.files import atomic_files, disk_errors, write_csv, write_json, write_yaml
from bertchain.runtime.locks import claim, frees_claims
from bertchain.runtime.records import evaluation_history, plot_history, versions
from bertchain.training.initialization import build_model, load_start, start_at_frequencies
from bertchain.training.losses import TrainingLoss
from bertchain.training.prediction import predict
from bertchain.training.saving import write_model
from run_finetune import ClassifierTrainer, device_precision, early_stopping

logger = logging.getLogger("bertchain")


@frees_claims
def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json: eval_<task>_accuracy, test_<task>_accuracy ...
    """
    # 1. Arguments
    run, window, checkpoint, architecture, rates, regularisers, training, run_config = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS | device_precision(argv)
    )
    start_logging()
    refuse_data_parallel(training.n_gpu)
    refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    path, hub_kwargs = checkpoint.model_name_or_path, checkpoint.hub_kwargs

    # 2. The tables of each task -> labelled documents
    specs, documents = {}, {}
    for name, task in parse_tasks(run.tasks).items():
        specs[name], rows, _ = read_labelled(*task, path)
        share = task[-1].validation_split
        documents[name] = hold_out_validation(rows, share, specs[name].problem_type, training.seed)

    # 3. Documents -> windows, cut alike for all tasks
    tokenizer = load_tokenizer(checkpoint.tokenizer_name or path, **hub_kwargs)
    windows, special = resolve_windows(window.given, path, tokenizer, **hub_kwargs)
    splits: dict[str, dict[str, Dataset]] = {"train": {}, "validation": {}, "test": {}}
    for name, parts in documents.items():
        for split, rows in parts.items():
            splits[split][name], report = to_windows(rows, tokenizer, windows, special)
            logger.info("%s, %s: %s", name, split, report)

    # 4. Model: one encoder, a head for each task
    shape = {"windows": windows.to_dict(), "special_tokens": special.to_dict(), "spans": 0}
    encoder, _ = load_start(path, architecture, regularisers.encoder_dropout, **hub_kwargs)
    check_vocabulary(tokenizer, encoder, path)
    heads = {
        name: build_model(encoder, None, architecture, spec, shape, tokenizer)[0]
        for name, spec in specs.items()
    }
    for name, head in heads.items():
        labels = splits["train"][name]["labels"][:]
        start_at_frequencies(head.head, labels, head.config.problem_type)
    model = MultiTaskClassifier(heads)
    with as_input_error():
        reinit_top_blocks(encoder, rates.reinit_layers)
        freeze(model, rates.freeze)

    # 5. Trainer
    claim(training.output_dir)
    batch = training.train_batch_size * training.world_size
    trainer = MultiTaskTrainer(
        specs=specs,
        validation=splits["validation"],
        rates=layer_rates(num_blocks(encoder.config), training.learning_rate, **rates.rates),
        unfreeze_every=rates.unfreeze_every,
        regularisers=regularisers,
        model=model,
        args=prepare_arguments(training),
        train_dataset=TaskRows(splits["train"], batch),
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=TaskCollator(pad_id(tokenizer)),
        callbacks=early_stopping(run.early_stopping_patience),
    )

    # 6. Train, and keep what is best over all tasks
    with disk_errors(training.output_dir):
        results = dict(trainer.train(resume_from_checkpoint=resume_from).metrics)

    # 7. Predict validation and test of each task
    folder = Path(training.output_dir)
    for split, tasks in (("validation", splits["validation"]), ("test", splits["test"])):
        for name, rows in tasks.items():
            with trainer.judging(name):
                metrics = predict(trainer, with_task(rows, name), split, specs[name], folder / name)
            results |= {insert(name, metric): value for metric, value in metrics.items()}
    for name in specs:
        seen = find_seen(documents[name].get("test"), path, **hub_kwargs)
        results |= {f"{name}_{key}": value for key, value in seen.items()}
    results["eval_mean_score"] = mean_score(results, specs)

    # 8. Write the encoder, a classifier for each task, curves and results
    if trainer.is_world_process_zero():
        write_run(trainer, results, specs, run_config)
        if not run.keep_checkpoints:
            remove_checkpoints(folder)
    trainer.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 2. tasks

Task = tuple[DataArguments, TextArguments, LabelArguments]


def parse_tasks(tasks: str) -> dict[str, Task]:
    """YAML -> the arguments of each task.

    Raises:
        InputError: naming the task, for a name that cannot be a folder, an unknown argument, or no
            training file.
    """
    settled = {}
    for name, fields in read_arguments(tasks, "--tasks").items():
        where = f"--tasks, {name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise InputError(f"{where}: a name consists of letters, digits, _ and -")
        if name == "encoder" or hasattr(nn.ModuleDict, str(name)):
            raise InputError(f"{where}: another name is needed, this one has a meaning in PyTorch")
        if not isinstance(fields, dict):
            raise InputError(f"{where}: give its arguments, such as train_file: train.csv")
        try:
            *task, _ = parse((DataArguments, TextArguments, LabelArguments), flags_of(fields))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if task[0].train_file is None and task[0].dataset_name is None:
            raise InputError(f"{where}: give its train_file")
        settled[str(name)] = tuple(task)
    if len(settled) < 2:
        raise InputError("--tasks needs two tasks; for one there is run_finetune.py")
    return settled


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

    def __init__(self, specs: dict[str, LabelSpec], validation: dict[str, Dataset], **kwargs: Any):
        heads = kwargs["model"].tasks
        super().__init__(loss=None, batch_by_length=True, **kwargs)
        self.specs, self.validation = specs, validation
        smoothing = self.args.label_smoothing_factor
        self.losses, self.metrics_of = {}, {}
        for name, spec in specs.items():
            config = heads[name].config
            single = config.problem_type == PROBLEM_TYPES["single_label"]
            self.losses[name] = TrainingLoss(config, label_smoothing=smoothing if single else 0.0)
            self.metrics_of[name] = metric_function(spec, config, [])

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
        for name, rows in self.validation.items():
            with self.judging(name):
                metrics = self.predict(with_task(rows, name), metric_key_prefix="eval").metrics
            results |= {insert(name, k): value for k, value in metrics.items() if is_score(k)}
        results["eval_mean_score"] = mean_score(results, self.specs)
        self.log(results)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, results
        )
        return results


def insert(task: str, metric: str) -> str:
    """eval_accuracy -> eval_<task>_accuracy"""
    prefix, _, rest = metric.partition("_")
    return f"{prefix}_{task}_{rest}"


def mean_score(results: dict[str, float], specs: dict[str, LabelSpec]) -> float:
    """Mean over tasks of the main validation score; of what should be small, its negative."""
    scores = []
    for name, spec in specs.items():
        metric, more_is_better = MAIN_METRIC[spec.problem_type]
        scores.append(results[f"eval_{name}_{metric}"] * (1 if more_is_better else -1))
    return float(np.mean(scores))


# ---------------------------------------------------------------- 8. write


def write_run(
    trainer: MultiTaskTrainer,
    results: dict[str, Any],
    specs: dict[str, LabelSpec],
    run_config: dict[str, Any],
) -> None:
    """The encoder in the folder itself, and a folder for each task as run_finetune.py writes it."""
    folder, tokenizer = Path(trainer.args.output_dir), trainer.processing_class
    model = trainer.accelerator.unwrap_model(trainer.model)
    hashes = read_fingerprint(
        run_config["model_name_or_path"], revision=run_config["model_revision"]
    )
    with atomic_files(folder) as temporary:
        model.encoder.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if hashes is not None:
            write_fingerprint(temporary, hashes)
    for name, spec in specs.items():
        own = {k.replace(f"_{name}_", "_", 1): v for k, v in results.items() if f"_{name}_" in k}
        arguments = changed(run_config, (*OWN_ARGUMENTS, TrainingArguments))
        what = (own, spec, run_config, arguments)
        write_model(model.whole(name), tokenizer, folder / name, *what)
        write_json(folder / name / "all_results.json", own | {"versions": versions()})
    history = evaluation_history(trainer.state.log_history)
    write_csv(folder / "history.csv", history)
    plot_history(folder / "history.png", history, "eval_mean_score")
    write_yaml(folder / "run_args.yaml", run_config)
    write_json(
        folder / "all_results.json", results | {"seed": trainer.args.seed, "versions": versions()}
    )
    logger.info("Wrote %s", folder)


if __name__ == "__main__":
    run_script(main)
