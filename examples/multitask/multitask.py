"""Several tasks on one encoder: their files, the model, its batches, the sampler."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.modeling_outputs import SequenceClassifierOutput

from bertchain import cli
from bertchain.arguments.common import DataArguments, LabelArguments, SpanArguments, TextArguments
from bertchain.data import contamination
from bertchain.data.batching import DocumentCollator, GroupedByLength
from bertchain.data.tables import with_column
from bertchain.data.tasks import Task, load_task
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier
from bertchain.runtime import outputs

Tasks = dict[str, Task]
Sources = tuple[DataArguments, TextArguments, LabelArguments]


# ---------------------------------------------------------------- tasks


def read_tasks(tasks: str, checkpoint: str, seed: int) -> Tasks:
    """Read the labelled documents of each task; some are held out for validation.

    Args:
        tasks: path of a YAML file, or YAML text; see `parse_tasks`.
    """
    found = {}
    for name, (data, text, label) in parse_tasks(tasks).items():
        task = load_task(data, text, label, SpanArguments(), seed=seed, checkpoint=checkpoint)
        found[name] = task.with_validation(label.validation_split, seed)
        if task.has_training_rows and "validation" not in found[name].documents:
            raise InputError(f"--tasks, {name}: validation_split 0 leaves no validation rows")
    return found


def parse_tasks(tasks: str) -> dict[str, Sources]:
    """Parse YAML, a name and the arguments of each task, into argument groups.

    Raises:
        InputError: naming the task, for a name that cannot be a folder, an unknown argument, or no
            training file.
    """
    parsed = {}
    for name, fields in cli.read_arguments(tasks, "--tasks").items():
        where = f"--tasks, {name}"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise InputError(f"{where}: a name consists of letters, digits, _ and -")
        if name == "encoder" or hasattr(nn.ModuleDict, str(name)):
            raise InputError(f"{where}: another name is needed, this one has a meaning in PyTorch")
        if not isinstance(fields, dict):
            raise InputError(f"{where}: give its arguments, such as train_file: train.csv")
        try:
            data, text, label, _ = cli.parse(
                (DataArguments, TextArguments, LabelArguments), cli.flags_of(fields)
            )
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        if data.train_file is None and data.dataset_name is None:
            raise InputError(f"{where}: give its train_file")
        parsed[str(name)] = data, text, label
    if len(parsed) < 2:
        raise InputError("--tasks needs two tasks; for one there is run_finetune.py")
    return parsed


def check_output(tasks: str, checkpoint: str, training: Any) -> None:
    """Refuse an output folder that holds another run, or does not lie beside the inputs.

    Raises:
        InputError: naming what lies there.
    """
    files = [path for data, *_ in parse_tasks(tasks).values() for path in data.files.values()]
    outputs.check_apart(training.output_dir, tasks=files, model_name_or_path=checkpoint)
    outputs.check_unused(training.output_dir, training.resume_from_checkpoint)


def find_seen(tasks: Tasks, path: str, **hub_kwargs: Any) -> dict[str, object]:
    """Find documents that were pretrained on, or trained on here or before, for the results.

    The encoder is trained on the rows of all tasks.
    """
    results = {}
    for name, task in tasks.items():
        seen = contamination.find_seen(task.documents.get("test"), path, **hub_kwargs)
        others = [*rows_of({n: t for n, t in tasks.items() if n != name}, "train").values()]
        seen |= contamination.find_trained_on(task.documents, False, [path], others, **hub_kwargs)
        results |= {f"{name}_{key}": value for key, value in seen.items()}
    return results


def rows_of(tasks: Tasks, split: str) -> dict[str, Dataset]:
    """Rows of a split, of the tasks that have it."""
    return {n: task.documents[split] for n, task in tasks.items() if split in task.documents}


def with_task(rows: Dataset, name: str) -> Dataset:
    """Add a column with the task's name."""
    return with_column(rows, "task", [name] * len(rows))


# ---------------------------------------------------------------- model


class MultiTaskClassifier(nn.Module):
    """Document classifiers that share one encoder; a batch goes through one of them.

    Only this module registers the encoder, so that its weights are counted, averaged and saved
    once.
    """

    accepts_loss_kwargs = True  # losses are divided by num_items_in_batch, as in models.modeling

    def __init__(self, classifiers: dict[str, DocumentClassifier]):
        super().__init__()
        first = next(iter(classifiers.values()))
        self.config, self.encoder = first.config, first.encoder
        self.tasks = nn.ModuleDict(classifiers)
        for classifier in classifiers.values():
            del classifier._modules["encoder"]
            classifier.__dict__["encoder"] = self.encoder  # used, but not registered

    def forward(
        self,
        input_ids: Tensor,
        task: str,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """Classify with the head named `task`; see `DocumentClassifier.forward`."""
        return self.tasks[task](
            input_ids, attention_mask, token_type_ids, labels, num_items_in_batch
        )

    @property
    def base_model(self) -> nn.Module:
        """The encoder, by the name that it has in every model of transformers."""
        return self.encoder

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Called by the Trainer."""
        self.encoder.gradient_checkpointing_enable(**kwargs)

    def whole(self, task: str) -> DocumentClassifier:
        """Return the classifier of a task, with the encoder registered again, to be saved."""
        classifier = self.tasks[task]
        classifier.__dict__.pop("encoder", None)
        classifier.encoder = self.encoder
        return classifier


# ---------------------------------------------------------------- batches


class TaskCollator(DocumentCollator):
    """Collator of rows of one task; the batch names it."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__(rows) | {"task": rows[0]["task"]}


class OneTaskAtATime(Sampler[int]):
    """Sample batches of one task at a time, each task in proportion to its number of batches.

    See Sun et al. 2019, section 5.5. All processes get batches of the same task in the same step.
    An epoch leaves out the rows beyond a task's last full batch, other rows in each epoch.

    Args:
        lengths: for each task the lengths of its rows, in tokens.
        batch_size: of one process.
        epoch: number of the current one.
    """

    def __init__(
        self,
        lengths: Sequence[Sequence[int]],
        batch_size: int,
        processes: int,
        seed: int,
        epoch: Callable[[], int],
    ):
        self.unit, self.seed, self.epoch = batch_size * processes, seed, epoch
        self.starts = np.cumsum([0, *(len(rows) for rows in lengths)])
        self.orders = [
            GroupedByLength(rows, self.unit, seed + i, epoch) for i, rows in enumerate(lengths)
        ]

    def __len__(self) -> int:
        return sum(len(order) // self.unit for order in self.orders) * self.unit

    def __iter__(self) -> Iterator[int]:
        turns = np.repeat(np.arange(len(self.orders)), [len(o) // self.unit for o in self.orders])
        np.random.default_rng((self.seed, self.epoch())).shuffle(turns)
        rows = [iter(order) for order in self.orders]
        for task in turns:
            for _ in range(self.unit):
                yield int(self.starts[task] + next(rows[task]))


class TaskRows:
    """Training rows of all tasks, one task after the other, each row with its task's name.

    Raises:
        InputError: where a task has fewer rows than a batch over all processes.
    """

    def __init__(self, tasks: dict[str, Dataset], batch: int):
        few = [name for name, rows in tasks.items() if len(rows) < batch]
        if few:
            raise InputError(
                f"task {few[0]} has {len(tasks[few[0]])} training rows, fewer than one batch of "
                f"{batch} over all processes"
            )
        self.tasks = tasks
        self.starts = np.cumsum([0, *(len(rows) for rows in tasks.values())])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        name = [*self.tasks][at]
        return self.tasks[name][int(row - self.starts[at])] | {"task": name}
