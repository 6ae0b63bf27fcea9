"""Which rows are sampled when, in which batches, by which process."""

from itertools import islice

import numpy as np
import pytest
from datasets import Dataset

from bertchain.models.windows import WindowSpec, find_special_tokens
from bertchain.pretraining.packing import RowMaker
from bertchain.pretraining.sampling import (
    RepeatedDataset,
    StreamedBatches,
    WeightedBatchSampler,
    token_bounds,
)

LENGTHS = np.random.default_rng(0).integers(3, 60, 230)


def sampler(weights=None, epoch=0, **changes):
    weights = np.ones(len(LENGTHS)) if weights is None else weights
    fields = dict(batch_size=8, batches_per_chunk=5, epoch=lambda: epoch) | changes
    return WeightedBatchSampler(LENGTHS, weights, **fields)


def rows_of(batches):
    return [key % len(LENGTHS) for batch in batches for key in batch]


@pytest.mark.parametrize("tokens", [None, 256])
@pytest.mark.parametrize("by_length", [True, False])
def test_an_epoch_samples_every_row_once_in_a_new_order(tokens, by_length):
    first, second = (
        list(sampler(epoch=e, tokens_per_batch=tokens, by_length=by_length)) for e in (0, 1)
    )
    for batches in (first, second):
        assert sorted(rows_of(batches)) == list(range(len(LENGTHS)))
    assert rows_of(first) != rows_of(second)
    assert len(first) == len(second) == len(sampler(tokens_per_batch=tokens, by_length=by_length))
    again = sampler(epoch=1, tokens_per_batch=tokens, by_length=by_length)
    assert list(again) == second  # the same after a resume
    assert not {k for b in first for k in b} & {k for b in second for k in b}  # new masks


def padded(batches):
    return sum(LENGTHS[np.array(b) % len(LENGTHS)].max() * len(b) for b in batches)


def test_batches_by_length_waste_little():
    assert padded(sampler()) < 1.2 * LENGTHS.sum()
    assert padded(sampler(by_length=False)) > 1.6 * LENGTHS.sum()


def test_token_batches_keep_to_their_budget():
    batches = list(sampler(tokens_per_batch=256, batches_per_chunk=50))
    assert max(padded([batch]) for batch in batches) <= 256
    assert padded(batches) < 1.1 * LENGTHS.sum()
    assert len(batches) < 1.2 * LENGTHS.sum() / 256
    assert token_bounds([5, 5, 5, 2], 10) == [(0, 2), (2, 4)]
    assert token_bounds([50, 1], 10) == [(0, 1), (1, 2)]  # a row alone may be longer
    assert token_bounds([], 10) == []


@pytest.mark.parametrize("tokens", [None, 256])
@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_epoch_and_do_as_many_steps(tokens, processes):
    shares = [
        list(sampler(tokens_per_batch=tokens, process=p, processes=processes, epoch=2))
        for p in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    assert sorted(r for share in shares for r in rows_of(share)) == list(range(len(LENGTHS)))
    steps = [[padded([share[i]]) for share in shares] for i in range(len(shares[0]))]
    assert np.mean([max(s) - min(s) for s in steps]) < 0.35 * np.mean(steps)  # nobody waits long


def test_weights_say_how_often_a_row_is_sampled():
    weights = np.where(np.arange(len(LENGTHS)) < 30, 2.5, 0.25)
    seen = []
    for epoch in range(4):
        keys = [key for batch in sampler(weights, epoch=epoch) for key in batch]
        assert len(set(keys)) == len(keys)  # a row sampled again has a key of its own
        counts = np.bincount(np.array(keys) % len(LENGTHS), minlength=len(LENGTHS))
        assert set(counts[:30]) == {2, 3} and counts[:30].sum() == 75
        assert set(counts[30:]) == {0, 1} and counts[30:].sum() == 50
        seen.append(counts)
    assert (seen[0] != seen[1]).any()  # another half each epoch


@pytest.mark.parametrize("by_length", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 5, 13, 91])
def test_a_step_of_rows_is_the_same_however_it_is_shared_out(rows, by_length):
    def steps(batch, processes, accumulation, epoch):
        of_process = [
            [
                [int(key) for key in batch]
                for batch in WeightedBatchSampler(
                    LENGTHS[:rows],
                    np.ones(rows),
                    batch,
                    by_length=by_length,
                    epoch=lambda: epoch,
                    process=p,
                    processes=processes,
                    accumulation=accumulation,
                    batches_per_chunk=2,
                )
            ]
            for p in range(processes)
        ]
        assert len({*map(len, of_process)}) == 1
        assert all(0 < len(own) <= batch for share in of_process for own in share)
        starts = range(0, len(of_process[0]), accumulation)
        return [
            sorted(k for own in of_process for b in own[i : i + accumulation] for k in b if k >= 0)
            for i in starts
        ]

    for epoch in (0, 3):
        whole = steps(8, 1, 1, epoch)
        assert sorted(key % rows for step in whole for key in step) == [*range(rows)]
        for shape in ((4, 2, 1), (4, 1, 2), (2, 2, 2), (1, 2, 4), (1, 8, 1), (1, 1, 8), (2, 4, 1)):
            assert steps(*shape, epoch) == whole


def test_a_step_of_tokens_is_the_same_for_processes_and_for_accumulation():
    def steps(**shape):
        batches = sampler(tokens_per_batch=128, epoch=1, **shape).all_batches(1)
        return [
            sorted(key for batch in batches[i : i + 4] for key in batch.tolist())
            for i in range(0, len(batches), 4)
        ]

    assert steps(processes=4) == steps(accumulation=4) == steps(processes=2, accumulation=2)


@pytest.mark.parametrize("rows", [1, 7])
def test_rows_that_are_batches_of_their_own_are_shared_by_any_number_of_processes(rows):
    lengths = [50] * rows
    for options in ({"batch_size": 1}, {"batch_size": 8, "tokens_per_batch": 60}):
        shares = [
            [*WeightedBatchSampler(lengths, [1.0] * rows, process=p, processes=4, **options)]
            for p in range(4)
        ]
        assert {len(share) for share in shares} == {-(-rows // 4)}
        keys = [key for share in shares for batch in share for key in batch]
        assert sorted(key for key in keys if key >= 0) == [*range(rows)]
        assert len(keys) == -(-rows // 4) * 4


def test_keys_map_to_rows():
    rows = RepeatedDataset(Dataset.from_dict({"x": [10, 11, 12]}))
    assert rows.__getitems__([0, 4, 8]) == [
        {"x": 10, "key": 0},
        {"x": 11, "key": 4},
        {"x": 12, "key": 8},
    ]
    assert rows[5] == {"x": 12, "key": 5} and len(rows) == 3


def test_a_key_that_counts_nothing_gives_a_row_without_anything_to_predict():
    rows = RepeatedDataset(Dataset.from_dict({"input_ids": [[5, 6], [7, 8, 9]]}))
    assert rows[~3] == {"input_ids": [7, 8, 9], "labels": [-100] * 3}


# ---------------------------------------------------------------- streams


def stream(tokenizer, tokens=None, by_length=True):
    def documents():
        rng = np.random.default_rng(0)
        number = 0
        while True:
            yield number, {"text": "red cat " * int(rng.integers(1, 9)), "corpus": "task"}
            number += 1

    maker = RowMaker(tokenizer, WindowSpec("hierarchical", 12), find_special_tokens(tokenizer))
    return StreamedBatches(documents, maker, 4, tokens, by_length, seed=0, batches_per_chunk=6)


@pytest.mark.parametrize("tokens", [None, 48])
def test_a_stream_gives_batches_without_end_and_the_same_again(tokenizers, tokens):
    source = stream(tokenizers["bert"], tokens)
    first = list(islice(source, 40))
    assert first == list(islice(stream(tokenizers["bert"], tokens), 40))
    keys = [row["key"] for batch in first for row in batch]
    assert len(set(keys)) == len(keys)
    for batch in first:
        longest = max(row["length"] for row in batch)
        assert longest <= 12
        assert len(batch) <= 4 if tokens is None else longest * len(batch) <= tokens
    assert source.hashes == set(range(len(source.hashes)))
    spread = [max(r["length"] for r in b) - min(r["length"] for r in b) for b in first]
    loose = list(islice(stream(tokenizers["bert"], tokens, by_length=False), 40))
    loose = [max(r["length"] for r in b) - min(r["length"] for r in b) for b in loose]
    assert np.mean(spread) < 0.6 * np.mean(loose)
