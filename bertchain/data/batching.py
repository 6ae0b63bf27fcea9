"""Batches of documents: the collator, the order of training rows, each process's share of them."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments

from bertchain.errors import InputError
from bertchain.models.modeling import IGNORED, pad_documents


def keep_all_columns(training: TrainingArguments) -> TrainingArguments:
    """Keep columns that `forward` does not name, for the collators; pin memory only for a GPU.

    The arguments are changed in place and returned.
    """
    training.remove_unused_columns = False
    training.dataloader_pin_memory = training.dataloader_pin_memory and torch.cuda.is_available()
    return training


@dataclass
class DocumentCollator:
    """Pad documents to tensors [documents, windows, length]: the most windows, the longest one."""

    pad_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = pad_documents([row["windows"] for row in rows], self.pad_id)
        batch = {"input_ids": ids, "attention_mask": mask}
        if "window_types" in rows[0]:
            batch["token_type_ids"] = pad_documents([row["window_types"] for row in rows], 0)[0]
        if "labels" in rows[0]:
            batch["labels"] = torch.tensor([row["labels"] for row in rows])
        if "weight" in rows[0]:
            batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch


class GroupedByLength(Sampler[int]):
    """A new random order every epoch whose batches hold rows of similar length.

    Rows are shuffled, cut into chunks of `batches_per_chunk` batches, sorted by length inside a
    chunk, and the batches of a chunk are shuffled. The longest batch comes first: if memory is too
    small, the run stops at once. The order depends on seed and epoch alone, so it is the same in
    every process and after a resume. (transformers' own sampler draws from the global generator,
    which processes do not share, and under its strategy evaluation is permuted too.)
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        batches_per_chunk: int = 50,
    ):
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.chunk = batch_size * batches_per_chunk

    @classmethod
    def for_trainer(
        cls, trainer: Trainer, dataset: Dataset, by_length: bool = True
    ) -> "GroupedByLength":
        """Build the order of a Trainer's training rows.

        Rows are grouped by optimizer step, that is all accumulated batches in all processes: so the
        rows of a step do not depend on how they are divided among processes.

        Args:
            dataset: with a column length.
            by_length: False: shuffle only.
        """
        args = trainer.args
        step = trainer._train_batch_size * args.gradient_accumulation_steps * args.world_size
        lengths = dataset["length"][:] if by_length else np.ones(len(dataset))
        return cls(lengths, step, *_seed_and_epoch(trainer))

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch()))
        rows = rng.permutation(len(self.lengths))
        batches = []
        for start in range(0, len(rows), self.chunk):
            chunk = rows[start : start + self.chunk]
            chunk = chunk[np.argsort(-self.lengths[chunk], kind="stable")]
            batches += [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]  # at most one, the last
        longest = max(range(len(full)), key=lambda i: self.lengths[full[i]].sum()) if full else None
        order = [i for i in rng.permutation(len(full)) if i != longest]
        order = order if longest is None else [longest, *order]
        for batch in [full[i] for i in order] + rest:
            yield from batch.tolist()


def _seed_and_epoch(trainer: Trainer) -> tuple[int, Callable[[], int]]:
    """What the order of a Trainer's rows depends on: its seed, and a function of its epoch."""
    args = trainer.args
    seed = args.seed if args.data_seed is None else args.data_seed
    return seed, lambda: int(trainer.state.epoch or 0)


class GroupedByClass(Sampler[int]):
    """A new random order every epoch in which `size` rows of a class stand side by side.

    Each row comes once. The groups of a class are spread over the epoch, so that a step holds
    groups of many classes; rows of a class that are left over come last, class by class. Like
    `GroupedByLength` it depends on seed and epoch alone.
    """

    def __init__(self, classes: Sequence[Any], size: int, seed: int, epoch: Callable[[], int]):
        """Args: classes: of each row [n]."""
        self.classes = np.unique([str(own) for own in classes], return_inverse=True)[1]
        self.size, self.seed, self.epoch = size, seed, epoch

    @classmethod
    def for_trainer(cls, trainer: Trainer, classes: Sequence[Any], size: int) -> "GroupedByClass":
        """Build the order of a Trainer's training rows."""
        return cls(classes, size, *_seed_and_epoch(trainer))

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng((self.seed, self.epoch()))
        groups, places, rest = [], [], []
        for own in rng.permutation(self.classes.max() + 1):
            rows = rng.permutation(np.flatnonzero(self.classes == own)).tolist()
            whole = len(rows) // self.size
            groups += [rows[i * self.size : (i + 1) * self.size] for i in range(whole)]
            places += [(i + rng.random()) / whole for i in range(whole)]
            rest += rows[whole * self.size :]
        for group in np.argsort(places):
            yield from groups[group]
        yield from rest


class ProcessBatchSampler(Sampler[list[int]]):
    """Batches of one process, of an order of rows that all processes know.

    Each run of `batch_size` * `processes` rows is dealt out row by row, so that all processes have
    the same number of batches and together visit each row once. (accelerate would fill up the last
    batch with rows from the beginning, which then count twice.) Where fewer rows than processes are
    left, the other processes get ~row, a row that counts nothing (see `CountedRows`): none of them
    may be missing in the backward pass.

    Raises:
        InputError: where `drop_last` leaves nothing.
    """

    def __init__(
        self,
        order: Sampler[int],
        batch_size: int,
        process: int = 0,
        processes: int = 1,
        drop_last: bool = False,
        accumulation: int = 1,
    ):
        """Args:
        drop_last: leave out an incomplete last step, of `accumulation` batches in each process.
        """
        self.order, self.batch_size, self.drop_last = order, batch_size, drop_last
        self.process, self.processes, self.accumulation = process, processes, accumulation
        if drop_last and not len(self):
            raise InputError(
                f"--dataloader_drop_last true: {len(order)} training rows are fewer than the "
                f"{batch_size * processes * accumulation} of a step; leave it out"
            )

    def __len__(self) -> int:
        together = self.batch_size * self.processes
        if self.drop_last:
            return len(self.order) // (together * self.accumulation) * self.accumulation
        return -(-len(self.order) // together)

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(self._batches(), len(self))

    def _batches(self) -> Iterator[list[int]]:
        together: list[int] = []
        for row in self.order:
            together.append(row)
            if len(together) == self.batch_size * self.processes:
                yield deal(together, self.process, self.processes)
                together = []
        if together:
            yield deal(together, self.process, self.processes)


def deal(rows: Sequence[int], process: int, processes: int) -> list[int]:
    """Give a process its share of some rows; where none is left, one that counts nothing: ~row."""
    return list(rows[process::processes]) or [~rows[0]]


class CountedRows:
    """Training rows by number; ~number gives a row that is computed and counts nothing."""

    def __init__(self, rows: Any):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, numbers: list[int]) -> list[dict[str, Any]]:
        places = [n if n >= 0 else ~n for n in numbers]
        at_once = getattr(self.rows, "__getitems__", None)
        rows = at_once(places) if at_once else [self.rows[place] for place in places]
        return [row if n >= 0 else uncounted(row) for n, row in zip(numbers, rows, strict=True)]


def uncounted(row: dict[str, Any]) -> dict[str, Any]:
    """Take a row out of the loss and its divisor: it weighs 0, or its targets are ignored."""
    if "token_positions" in row:
        return {**row, "labels": [IGNORED] * len(row["labels"])}
    return {**row, "weight": 0.0}


def longest_first(lengths: Sequence[int]) -> np.ndarray:
    """Row numbers [n] by falling length, ties in row order: prediction then pads least."""
    return np.argsort(-np.asarray(lengths), kind="stable")
