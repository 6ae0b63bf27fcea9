"""Samplers: corpora by their weights, in batches of so many rows or tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset

from bertchain.errors import InputError
from bertchain.pretraining.packing import RowMaker


class RepeatedDataset(torch.utils.data.Dataset):
    """Rows by key; rows whose weight repeats them have several keys, and another mask for each.

    key = number of the row + number of rows * repetition.
    """

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        columns = self.rows[[key % len(self.rows) for key in keys]]
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        return [{**row, "key": key} for row, key in zip(rows, keys, strict=True)]

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])[0]


class WeightedBatchSampler:
    """Batch sampler of a `RepeatedDataset`: the batches of an epoch for one of several processes.

    Each row is sampled as often as its weight says: 2 = twice, 0.5 = a random half of the rows,
    anew each epoch. Keys are shuffled, cut into chunks, sorted by length inside a chunk (if
    `by_length`) and cut into batches of `batch_size` rows or at most `tokens_per_batch` tokens with
    padding; what the processes compute at the same time is of similar length. All depends on seed
    and epoch alone, so that a resumed run goes on exactly. Every epoch and process has the same
    number of batches; no key is left out or repeated to reach it.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        tokens_per_batch: int | None = None,
        by_length: bool = True,
        seed: int = 0,
        epoch: Callable[[], int] = lambda: 0,
        process: int = 0,
        processes: int = 1,
        batches_per_chunk: int = 50,
    ):
        """Args:
        lengths: of each row, in tokens.
        weights: of each row.
        epoch: gives the current epoch.
        """
        self.lengths = np.asarray(lengths)
        self.weights = np.asarray(weights, dtype=float)
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.by_length = by_length
        self.seed = seed
        self.epoch = epoch
        self.process = process
        self.processes = processes
        self.batches_per_chunk = batches_per_chunk
        self.times = max(1, int(np.ceil(self.weights.max())))
        first = len(self._cut(self._sample(0)))
        self.count = max(1, -(-first // processes)) * processes  # a multiple of the processes

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.all_batches(self.epoch())[self.process :: self.processes]:
            yield batch.tolist()

    def all_batches(self, epoch: int) -> list[np.ndarray]:
        """List the keys of all batches of all processes; those of a step stand side by side."""
        batches = self._to_count(self._cut(self._sample(epoch)))
        if not self.by_length:
            return batches
        if self.processes > 1:  # else the lighter batch of a step would wait for the heavier
            batches = sorted(batches, key=self._padded)
        steps = [batches[i : i + self.processes] for i in range(0, self.count, self.processes)]
        rng = np.random.default_rng((self.seed, epoch, 1))
        order = rng.permutation(len(steps)).tolist()
        if epoch == 0:  # so that memory runs out at once or never
            heaviest = max(order, key=lambda i: max(map(self._padded, steps[i])))
            order = [heaviest, *(i for i in order if i != heaviest)]
        return [batch for i in order for batch in steps[i]]

    def _sample(self, epoch: int) -> np.ndarray:
        """The keys of an epoch, shuffled."""
        rng = np.random.default_rng((self.seed, epoch, 0))
        rows = len(self.lengths)
        keys = []
        for time in range(self.times):
            shares = np.clip(self.weights - time, 0, 1)
            for weight in np.unique(shares[shares > 0]):
                candidates = np.flatnonzero(shares == weight)
                count = round(weight * len(candidates))
                if weight < 1:
                    candidates = rng.permutation(candidates)[: max(1, count)]
                keys.append(candidates + rows * (epoch * self.times + time))
        return rng.permutation(np.concatenate(keys))

    def _cut(self, keys: np.ndarray) -> list[np.ndarray]:
        """Cut keys into batches."""
        lengths = self.lengths[keys % len(self.lengths)]
        if self.tokens_per_batch is None:
            size = self.batch_size
        else:  # about as many rows as fit
            size = max(1, int(self.tokens_per_batch / lengths.mean()))
        chunk = size * self.batches_per_chunk
        batches = []
        for start in range(0, len(keys), chunk):
            here = slice(start, start + chunk)
            own, of_own = keys[here], lengths[here]
            if self.by_length:
                order = np.argsort(-of_own, kind="stable")
                own, of_own = own[order], of_own[order]
            batches += [own[a:b] for a, b in self._bounds(of_own)]
        return batches

    def _bounds(self, lengths: np.ndarray) -> list[tuple[int, int]]:
        if self.tokens_per_batch is None:
            starts = range(0, len(lengths), self.batch_size)
            return [(i, min(i + self.batch_size, len(lengths))) for i in starts]
        return token_bounds(lengths, self.tokens_per_batch)

    def _to_count(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Split the heaviest batches, or join the lightest, until there are `count`."""
        while len(batches) < self.count:
            heaviest = max(
                range(len(batches)), key=lambda i: (len(batches[i]) > 1, self._padded(batches[i]))
            )
            batch = batches[heaviest]
            if len(batch) == 1:
                raise InputError(f"{len(batches)} rows are too few for {self.processes} processes")
            half = len(batch) // 2
            batches[heaviest : heaviest + 1] = [batch[:half], batch[half:]]
        while len(batches) > self.count:
            light = sorted(range(len(batches)), key=lambda i: self._padded(batches[i]))[:2]
            joined = np.concatenate([batches[i] for i in light])
            batches = [b for i, b in enumerate(batches) if i not in light] + [joined]
        return batches

    def _padded(self, batch: np.ndarray) -> int:
        return int(self.lengths[batch % len(self.lengths)].max()) * len(batch)


def token_bounds(lengths: Sequence[int], tokens: int) -> list[tuple[int, int]]:
    """Cut rows in their order into batches of at most `tokens` with padding, or of one row."""
    bounds, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        if i > start and max(longest, length) * (i - start + 1) > tokens:
            bounds.append((start, i))
            start, longest = i, 0
        longest = max(longest, length)
    return [*bounds, (start, len(lengths))] if len(lengths) else []


class StreamedBatches(IterableDataset):
    """Batches of rows out of an endless stream of documents, for one process.

    Rows are collected for `batches_per_chunk` batches, then shuffled, sorted by length and cut as
    in `WeightedBatchSampler`.

    Attributes:
        hashes: of the documents that were used so far.
    """

    def __init__(
        self,
        documents: Callable[[], Iterator[tuple[int, dict[str, str]]]],
        maker: RowMaker,
        batch_size: int,
        tokens_per_batch: int | None,
        by_length: bool,
        seed: int,
        batches_per_chunk: int = 50,
    ):
        """Args:
        documents: starts the stream of (hash, document).
        """
        self.documents = documents
        self.maker = maker
        self.batch_size = batch_size
        self.tokens_per_batch = tokens_per_batch
        self.by_length = by_length
        self.seed = seed
        self.batches_per_chunk = batches_per_chunk
        self.hashes: set[int] = set()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        chunk: list[dict[str, Any]] = []
        key = tokens = 0
        for digest, document in self.documents():
            self.hashes.add(digest)
            columns = self.maker({name: [value] for name, value in document.items()})
            for values in zip(*columns.values(), strict=True):
                chunk.append({**dict(zip(columns, values, strict=True)), "key": key})
                key += 1
            tokens += sum(columns["length"])
            if self._is_full(len(chunk), tokens):
                yield from self._batches(chunk)
                chunk, tokens = [], 0

    def _is_full(self, rows: int, tokens: int) -> bool:
        if self.tokens_per_batch is None:
            return rows >= self.batch_size * self.batches_per_chunk
        return tokens >= self.tokens_per_batch * self.batches_per_chunk

    def _batches(self, chunk: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        sampler = WeightedBatchSampler(
            [row["length"] for row in chunk],
            np.ones(len(chunk)),
            self.batch_size,
            self.tokens_per_batch,
            self.by_length,
            seed=self.seed + chunk[0]["key"],
        )
        for batch in sampler:
            yield [chunk[i] for i in batch]
