"""Samplers: corpora by their weights, in batches of so many rows or tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset

from bertchain.data.batching import deal
from bertchain.pretraining.packing import IGNORE, RowMaker


class RepeatedDataset(torch.utils.data.Dataset):
    """Rows by key; rows whose weight repeats them have several keys, and another mask for each.

    key = number of the row + number of rows * repetition. ~key gives a row that is computed and
    counts nothing: no token of it is to be predicted.
    """

    def __init__(self, rows: Dataset):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[int]) -> list[dict[str, Any]]:
        columns = self.rows[[place % len(self.rows) for place in map(counted, keys)]]
        rows = [
            dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        return [
            {**row, "key": key} if key >= 0 else {**row, "labels": [IGNORE] * len(row["input_ids"])}
            for row, key in zip(rows, keys, strict=True)
        ]

    def __getitem__(self, key: int) -> dict[str, Any]:
        return self.__getitems__([key])[0]


def counted(key: int) -> int:
    """Find the key behind one that counts nothing; any other stays."""
    return key if key >= 0 else ~key


class WeightedBatchSampler:
    """Batch sampler of a `RepeatedDataset`: the batches of an epoch for one of several processes.

    Each row is sampled as often as its weight says: 2 = twice, 0.5 = a random half of the rows,
    anew each epoch. Keys are shuffled, cut into chunks, sorted by length inside a chunk (if
    `by_length`) and cut into batches of `batch_size` rows or at most `tokens_per_batch` tokens with
    padding; what belongs to one step is of similar length. All depends on seed and epoch alone, so
    that a resumed run goes on exactly. Every epoch and process has the same number of batches; no
    key is left out or repeated to reach it, but a process may get ~key, which counts nothing.

    A step has `accumulation` batches in each process. Its keys do not depend on how they are shared
    out: `batch_size` * `processes` * `accumulation` decides, with `tokens_per_batch` the number of
    batches, `processes` * `accumulation`. An incomplete step is the last one.
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
        accumulation: int = 1,
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
        self.together = processes * accumulation  # batches of a step
        keys = self._sample(0)
        if tokens_per_batch is None:
            self.count = -(-len(keys) // (batch_size * processes)) * processes
        else:
            self.count = max(1, -(-len(self._cut(keys)) // self.together)) * self.together

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.all_batches(self.epoch())[self.process :: self.processes]:
            yield batch.tolist()

    def all_batches(self, epoch: int) -> list[np.ndarray]:
        """List the keys of all batches of all processes; those of a step stand side by side."""
        keys = self._sample(epoch)
        of_rows = self.tokens_per_batch is None
        steps = self._steps_of_rows(keys) if of_rows else self._steps_of_tokens(keys)
        if self.by_length:
            rng = np.random.default_rng((self.seed, epoch, 1))
            full = len(steps)
            if of_rows and len(keys) % (self.batch_size * self.together):
                full -= 1
            order = rng.permutation(full).tolist()
            if epoch == 0 and full:  # so that memory runs out at once or never
                heaviest = max(order, key=lambda i: max(map(self._padded, steps[i])))
                order = [heaviest, *(i for i in order if i != heaviest)]
            steps = [steps[i] for i in [*order, *range(full, len(steps))]]
        return [batch for step in steps for batch in step]

    def _steps_of_rows(self, keys: np.ndarray) -> list[list[np.ndarray]]:
        """Cut keys into steps of so many, whose keys are dealt out among the processes."""
        at_once = self.batch_size * self.processes
        size = self.batch_size * self.together
        chunk = size * self.batches_per_chunk
        if self.by_length and len(keys):
            chunks = [keys[i : i + chunk] for i in range(0, len(keys), chunk)]
            keys = np.concatenate(
                [own[np.argsort(-self._lengths_of(own), kind="stable")] for own in chunks]
            )
        steps = []
        for start in range(0, len(keys), size):
            step = keys[start : start + size]
            pieces = [step[i : i + at_once] for i in range(0, len(step), at_once)]
            steps.append(
                [
                    np.array(deal(p, i, self.processes))
                    for p in pieces
                    for i in range(self.processes)
                ]
            )
        return steps

    def _steps_of_tokens(self, keys: np.ndarray) -> list[list[np.ndarray]]:
        """Cut keys into batches of so many tokens, and group these into steps."""
        batches = self._to_count(self._cut(keys))
        if self.by_length and self.together > 1:  # else a lighter batch would wait for a heavier
            batches = sorted(batches, key=self._padded)
        return [batches[i : i + self.together] for i in range(0, self.count, self.together)]

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
        """Cut keys into batches of so many tokens."""
        lengths = self._lengths_of(keys)
        size = max(1, int(self.tokens_per_batch / lengths.mean()))  # about as many rows as fit
        chunk = size * self.batches_per_chunk
        batches = []
        for start in range(0, len(keys), chunk):
            here = slice(start, start + chunk)
            own, of_own = keys[here], lengths[here]
            if self.by_length:
                order = np.argsort(-of_own, kind="stable")
                own, of_own = own[order], of_own[order]
            batches += [own[a:b] for a, b in token_bounds(of_own, self.tokens_per_batch)]
        return batches

    def _to_count(self, batches: list[np.ndarray]) -> list[np.ndarray]:
        """Split the heaviest batches, or join the lightest, until there are `count`.

        Batches of one key cannot be split: some that count nothing are added.
        """
        while len(batches) < self.count:
            heaviest = max(
                range(len(batches)), key=lambda i: (len(batches[i]) > 1, self._padded(batches[i]))
            )
            batch = batches[heaviest]
            if len(batch) == 1:
                lightest = min(batches, key=self._padded)
                return [*batches, *[~lightest] * (self.count - len(batches))]
            half = len(batch) // 2
            batches[heaviest : heaviest + 1] = [batch[:half], batch[half:]]
        while len(batches) > self.count:
            light = sorted(range(len(batches)), key=lambda i: self._padded(batches[i]))[:2]
            joined = np.concatenate([batches[i] for i in light])
            batches = [b for i, b in enumerate(batches) if i not in light] + [joined]
        return batches

    def _padded(self, batch: np.ndarray) -> int:
        return int(self._lengths_of(batch).max()) * len(batch)

    def _lengths_of(self, keys: np.ndarray) -> np.ndarray:
        return self.lengths[np.where(keys < 0, ~keys, keys) % len(self.lengths)]


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
