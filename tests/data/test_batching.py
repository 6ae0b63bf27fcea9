import numpy as np
import pytest
from datasets import Dataset

from bertchain.data.batching import (
    DocumentCollator,
    GroupedByLength,
    ProcessBatchSampler,
    longest_first,
)
from bertchain.data.tokenization import resolve_windows, to_windows
from bertchain.errors import InputError
from bertchain.models.windows import WindowSpec, find_special_tokens

pytestmark = pytest.mark.versions


def documents(*texts, **columns):
    return Dataset.from_dict({"id": [str(i) for i in range(len(texts))], "text": texts} | columns)


def test_windows_rejoin_to_the_untruncated_ids(tokenizers):
    tokenizer = tokenizers["bert"]
    texts = ["red cat " * 40, "", "dog"]
    special = find_special_tokens(tokenizer)
    cut, report = to_windows(documents(*texts), tokenizer, WindowSpec("hierarchical", 18), special)
    for row, text in zip(cut, texts, strict=True):
        body = [i for window in row["windows"] for i in window[1:-1]]
        assert body == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert row["length"] == sum(map(len, row["windows"]))
    assert (report.documents, report.longer, report.tokens, report.kept) == (3, 1, 81, 81)
    assert report.windows == 5 + 1 + 1


def test_the_report_tells_what_is_cut(tokenizers):
    tokenizer = tokenizers["bert"]
    special = find_special_tokens(tokenizer)
    _, report = to_windows(
        documents("cat " * 100, "dog " * 10), tokenizer, WindowSpec("head", 12), special
    )
    assert (report.longer, report.tokens, report.kept) == (1, 110, 20)
    assert "1 of 2 documents are longer" in str(report) and "81.8 % of 110" in str(report)
    both = documents("cat " * 4, text_pair=["dog " * 20])
    _, report = to_windows(both, tokenizer, WindowSpec("head", 13), special)
    assert (report.longer, report.tokens, report.kept) == (1, 24, 10)


def test_changed_code_is_not_hidden_by_a_cache(tokenizers, monkeypatch):
    """datasets' cache does not see a change in an imported module; it must not be used."""
    tokenizer, spec = tokenizers["bert"], WindowSpec("head", 12)
    special = find_special_tokens(tokenizer)
    rows = documents("red cat")
    first = to_windows(rows, tokenizer, spec, special)[0]["windows"][:]
    monkeypatch.setattr(
        "bertchain.data.tokenization.cut_windows", lambda ids, spec, special: [[1, 2, 3]]
    )
    assert to_windows(rows, tokenizer, spec, special)[0]["windows"][:] == [[[1, 2, 3]]] != first


def test_the_collator_builds_documents_windows_length():
    rows = [{"windows": [[1, 2, 3], [4]], "labels": 0}, {"windows": [[5, 6]], "labels": 1}]
    batch = DocumentCollator(pad_id=9)(rows)
    assert batch["input_ids"].tolist() == [[[1, 2, 3], [4, 9, 9]], [[5, 6, 9], [9, 9, 9]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]]
    assert batch["labels"].tolist() == [0, 1]


def test_the_collator_carries_token_types_and_float_labels():
    rows = [{"windows": [[1, 2]], "window_types": [[0, 1]], "labels": [0.0, 1.0]}]
    batch = DocumentCollator(pad_id=0)(rows)
    assert batch["token_type_ids"].tolist() == [[[0, 1]]]
    assert batch["labels"].is_floating_point()


def test_grouping_by_length_visits_every_row_once_and_groups():
    lengths = np.random.default_rng(0).integers(1, 100, 1003)
    epoch = 0
    sampler = GroupedByLength(lengths, 8, seed=1, epoch=lambda: epoch)
    order = list(sampler)
    assert sorted(order) == list(range(1003)) and len(sampler) == 1003
    assert order == list(sampler)  # the same epoch, the same order: what a resumed run needs
    spread = np.mean([np.ptp(lengths[order[i : i + 8]]) for i in range(0, 1000, 8)])
    assert spread < 5 < np.ptp(lengths[:8])
    first_batch = lengths[order[:8]].sum()
    assert first_batch == max(lengths[order[i : i + 8]].sum() for i in range(0, 1000, 8))
    epoch = 1
    assert list(sampler) != order


def test_longest_first_breaks_ties_by_row():
    assert longest_first([2, 5, 2, 5]).tolist() == [1, 3, 0, 2]


def test_window_settings(tiny_bert, tokenizers):
    tokenizer = tokenizers["bert"]
    spec, special = resolve_windows({}, tiny_bert, tokenizer)
    assert spec == WindowSpec("head", 128)
    assert special == find_special_tokens(tokenizer)
    with pytest.raises(InputError, match="--max_seq_length 129 is beyond the 128 positions"):
        resolve_windows({"max_seq_length": 129}, tiny_bert, tokenizer)
    with pytest.raises(InputError, match="--head_tokens needs --truncation head_tail, not head"):
        resolve_windows({"head_tokens": 3}, tiny_bert, tokenizer)
    with pytest.raises(InputError, match="--max_seq_length 3 leaves no room"):
        resolve_windows({"max_seq_length": 3}, tiny_bert, tokenizer)


@pytest.mark.parametrize(("batch", "processes"), [(16, 1), (8, 2), (4, 4)])
def test_steps_hold_the_same_rows_however_they_are_shared_out(batch, processes):
    lengths = np.random.default_rng(0).integers(3, 60, 73)  # 4 steps of 16, and 9 rows
    order = GroupedByLength(lengths, 16, seed=1, epoch=lambda: 2)
    shares = [list(ProcessBatchSampler(order, batch, p, processes)) for p in range(processes)]
    assert (
        {len(share) for share in shares}
        == {5}
        == {len(ProcessBatchSampler(order, batch, 0, processes))}
    )
    whole = list(ProcessBatchSampler(order, 16))
    for step, rows in enumerate(whole):
        together = [row for share in shares for row in share[step]]
        assert sorted(together) == sorted(rows)  # each once, no row in the place of another
    assert sorted(row for rows in whole for row in rows) == list(range(73))


def test_of_fewer_rows_than_processes_each_counts_once():
    order = [*range(10)]
    assert [*ProcessBatchSampler(order, 4, 0, 1, True)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (
        len(ProcessBatchSampler(order, 4, 0, 1, True)) == 2
        and len(ProcessBatchSampler(order, 4)) == 3
    )
    shares = [list(ProcessBatchSampler(order, 1, p, 3)) for p in range(3)]
    assert [share[-1] for share in shares] == [[9], [~9], [~9]]
    assert [share[0] for share in shares] == [[0], [1], [2]]


def test_row_weights_are_collated():
    rows = [{"windows": [[1]], "labels": 0, "weight": w} for w in (1.0, 0.5)]
    assert DocumentCollator(pad_id=9)(rows)["weight"].tolist() == [1.0, 0.5]
