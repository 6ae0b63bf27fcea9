"""Rows that stay together: near-duplicates and held-out groups, against the plain definitions."""

import random

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from bertchain.arguments.competition import FoldArguments
from bertchain.data.contamination import normalise
from bertchain.data.grouping import find_groups, hold_out_groups, join, near_duplicates
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import resolve_folds
from bertchain.data.tables import Table
from bertchain.errors import InputError


def similarity(one: str, two: str) -> float:
    """Jaccard similarity of runs of three words, by sets of them."""
    sets = []
    for text in (one, two):
        words = normalise(text).split()
        sets.append({tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Texts of which some are another with a few words changed, one is another in capitals."""
    rng = random.Random(3)
    words = [f"w{i}" for i in range(400)]
    found = [" ".join(rng.choices(words, k=40)) for _ in range(60)]
    for row in range(0, 40, 4):
        changed = found[row].split()
        for place in range(row // 8):
            changed[place * 3] = "new"
        found.append(" ".join(changed))
    return [*found, found[1].upper() + " !", "", "", "one two", "One, two."]


def test_pairs_are_those_of_the_definition(texts):
    pytest.importorskip("datasketch")
    found = {tuple(pair) for pair in near_duplicates(texts, 0.6).tolist()}
    rows = [row for row, text in enumerate(texts) if text]
    pairs = [(a, b) for a in rows for b in rows if a < b]
    scored = {(a, b): similarity(texts[a], texts[b]) for a, b in pairs}
    assert found == {pair for pair, score in scored.items() if score >= 0.6}
    assert any(0.6 <= score < 1 for score in scored.values())
    assert {scored[pair] for pair in found} >= {1.0}
    assert (1, 70) in found and (73, 74) in found  # case and punctuation do not count
    assert len(near_duplicates([], 0.6)) == 0


def test_groups_and_near_duplicates_are_joined(texts, caplog):
    pytest.importorskip("datasketch")
    ids = [f"r{i}" for i in range(len(texts))]
    train = Dataset.from_dict({"id": ids, "text": texts, "labels": [i % 2 for i in range(75)]})
    groups = [i // 2 for i in range(75)]
    table = Table(Dataset.from_pandas(pd.DataFrame({"g": groups})), "train.csv")
    options = FoldArguments(num_folds=3, group_column_name="g", near_duplicates=0.6)
    found = find_groups(train, table, options)
    assert found[1] == found[70] == found[0] and found[2] != found[0]
    for group in range(37):
        assert len({found[i] for i in range(75) if groups[i] == group}) == 1
    assert "r0 and r60: such rows stay together" in caplog.text
    spec = LabelSpec("single_label", ("0", "1"), ("label",))
    folds = resolve_folds(train, table, spec, options, seed=1)
    for group in set(found.tolist()):
        assert len(set(folds[found == group])) == 1
    assert find_groups(train, table, FoldArguments(num_folds=3)) is None
    assert "2 of 75 training rows have the same words" in caplog.text  # the empty ones


def test_joined_groups_are_connected():
    groups = np.array([0, 1, 2, 1, 3])
    joined = join(groups, np.array([[0, 3], [3, 4]]))
    assert joined[0] == joined[1] == joined[3] == joined[4] != joined[2]
    assert len(set(join(groups, np.empty((0, 2), dtype=int)))) == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_held_out_in_part(seed):
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, 30, 300), rng.integers(0, 3, 300)
    held_out = hold_out_groups(labels.tolist(), groups, 0.2, seed)
    assert not set(groups[held_out]) & set(groups[~held_out])
    counts, all_of_them = np.bincount(labels[held_out]), np.bincount(labels)
    assert np.abs(counts / all_of_them - 0.2).max() < 0.1  # of each class about the share
    assert (held_out == hold_out_groups(labels.tolist(), groups, 0.2, seed)).all()


def test_one_group_cannot_be_split():
    with pytest.raises(InputError, match=r"--validation_split 0\.2: all rows are of one group"):
        hold_out_groups([0, 1, 0], np.zeros(3), 0.2, 1)


def test_repeated_folds_are_counted_on():
    labels = [i % 2 for i in range(24)]
    texts = [f"text {i}" for i in range(24)]
    train = Dataset.from_dict({"id": [*map(str, range(24))], "text": texts, "labels": labels})
    spec = LabelSpec("single_label", ("0", "1"), ("label",))
    table = Table(train, "train.csv")
    folds = resolve_folds(train, table, spec, FoldArguments(num_folds=3, fold_repeats=2), seed=1)
    assert folds.shape == (24, 2)
    assert sorted(set(folds[:, 0])) == [0, 1, 2] and sorted(set(folds[:, 1])) == [3, 4, 5]
    assert (folds[:, 1] - 3 != folds[:, 0]).any()
    once = resolve_folds(train, table, spec, FoldArguments(num_folds=3), seed=1)
    assert (folds[:, 0] == once).all()
