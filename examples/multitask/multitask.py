"""Several tasks on one encoder: the model, its batches, and the order in which tasks take turns."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers.modeling_outputs import SequenceClassifierOutput

from bertchain.data.batching import DocumentCollator, GroupedByLength
from bertchain.errors import InputError
from bertchain.models.modeling import DocumentClassifier


class MultiTaskClassifier(nn.Module):
    """Document classifiers that share one encoder; a batch goes through one of them.

    The encoder is registered once, here, so that its weights are counted, averaged and saved once.
    """

    accepts_loss_kwargs = True  # losses are divided by num_items_in_batch, as in modeling.py

    def __init__(self, classifiers: dict[str, DocumentClassifier]):
        super().__init__()
        first = next(iter(classifiers.values()))
        self.config, self.encoder = first.config, first.encoder
        self.tasks = nn.ModuleDict(classifiers)
        for classifier in classifiers.values():
            del classifier._modules["encoder"]
            classifier.__dict__["encoder"] = self.encoder  # in use, but not a part

    def forward(
        self,
        input_ids: Tensor,
        task: str,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SequenceClassifierOutput:
        """See `DocumentClassifier.forward`. Args: task: the name of the head."""
        return self.tasks[task](
            input_ids, attention_mask, token_type_ids, labels, num_items_in_batch
        )

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        self.encoder.gradient_checkpointing_enable(**kwargs)

    def whole(self, task: str) -> DocumentClassifier:
        """One task's classifier with the encoder as a part of it again, as it is saved."""
        classifier = self.tasks[task]
        classifier.__dict__.pop("encoder", None)
        classifier.encoder = self.encoder
        return classifier


class TaskCollator(DocumentCollator):
    """Rows of one task -> a batch that names it."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return super().__call__(rows) | {"task": rows[0]["task"]}


class OneTaskAtATime(Sampler[int]):
    """Batches of one task each, tasks in random turns: each as often as it has batches.

    That draws tasks in proportion to their size (Sun et al. 2019, section 5.5). All processes get
    batches of the same task in the same step. Rows beyond a task's last full batch, others in each
    epoch, are left out of it.
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
    """The training rows of all tasks, one task after the other, each row with its task's name."""

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
