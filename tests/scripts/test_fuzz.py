"""Tables, labels, windows and arguments that nobody would think of: rows in are rows out, or one
line says why not.

The same examples every time. For others:

    FUZZ_EXAMPLES=2000 python -m pytest tests/scripts/test_fuzz.py
"""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import run_finetune
import run_itpt
import run_probe
from bertchain.arguments.common import SpanArguments
from bertchain.cli import parse, read_arguments
from bertchain.data.documents import label_documents, to_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.spans import read_targets
from bertchain.data.splits import assign_folds
from bertchain.data.tables import Table, read_table
from bertchain.errors import InputError
from bertchain.models.windows import (
    TRUNCATIONS,
    SpecialTokens,
    WindowSpec,
    cut_windows,
    kept_tokens,
    window_spans,
)

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FEW = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MANY = settings(FEW, max_examples=4 * EXAMPLES)
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet")
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
cells = st.text(characters, max_size=12)
TEXTS = st.lists(st.tuples(cells, cells), min_size=1, max_size=6)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` makes of hundreds of small files is thrown away."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def as_bytes(rows: list[tuple[str, str]], suffix: str) -> bytes:
    frame = pd.DataFrame(rows, columns=["text", "label"])
    if suffix in (".csv", ".tsv"):
        out = io.StringIO()
        quoting = {"quoting": csv.QUOTE_ALL, "delimiter": "\t" if suffix == ".tsv" else ","}
        csv.writer(out, **quoting).writerows([("text", "label"), *rows])
        return out.getvalue().encode()
    if suffix == ".json":
        return json.dumps(frame.to_dict("records")).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in frame.to_dict("records")).encode()
    out = io.BytesIO()
    frame.to_parquet(out)
    return out.getvalue()


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".txt"])
@given(rows=TEXTS, packed=st.booleans())
@FEW
def test_what_is_written_is_read(tmp_path, suffix, rows, packed):
    content = as_bytes(rows, suffix)
    path = tmp_path / f"rows{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    table = read_table(str(path))
    found = list(zip(table["text"][:], table["label"][:], strict=True))
    assert found == rows
    documents = to_documents(table, str(path), ["text", "label"], "\t")
    assert documents["id"][:] == [str(i) for i in range(len(rows))]
    assert documents["text"][:] == ["\t".join(t for t in row if t) for row in rows]


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(content=st.binary(min_size=1, max_size=200), packed=st.booleans())
@FEW
def test_any_bytes_are_a_table_or_one_line(tmp_path, suffix, content, packed):
    path = tmp_path / f"any{suffix}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    read_or_refused(path)


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s != ".txt"])
@given(rows=TEXTS, packed=st.booleans(), data=st.data())
@FEW
def test_a_damaged_file_is_a_table_or_one_line(tmp_path, suffix, rows, packed, data):
    content = as_bytes(rows, suffix)
    content = bytearray(gzip.compress(content) if packed else content)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(1, len(content)))
    path = tmp_path / f"damaged{suffix}{'.gz' if packed else ''}"
    path.write_bytes(bytes(content[:end]))
    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    try:
        table = read_table(str(path))
        names = table.column_names
        documents = to_documents(table, str(path), names[:1])
    except InputError as error:
        assert "\n" not in str(error) and path.name in str(error)
        return
    assert len(documents) == len(table) > 0


# ---------------------------------------------------------------- labels

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(characters, max_size=3),
    st.lists(st.sampled_from("abc"), max_size=3),
)
KINDS = ("single_label", "multi_label", "regression", None)


@given(labels=st.lists(values, min_size=1, max_size=8), kind=st.sampled_from(KINDS))
@MANY
def test_any_labels_are_encoded_or_one_line(labels, kind):
    same = [v for v in labels if type(v) is type(labels[-1])]  # a column holds one type
    try:
        table = datasets.Dataset.from_dict({"text": ["x"] * len(same), "label": same})
        spec = LabelSpec.infer(table, "rows.csv", ["label"], kind)
        encoded = spec.encode(table, "rows.csv")
    except InputError as error:
        assert "\n" not in str(error) and ("rows.csv" in str(error) or "--" in str(error))
        return
    assert len(encoded) == len(same) and np.isfinite(np.asarray(encoded, dtype=float)).all()
    if spec.problem_type == "single_label":
        assert set(encoded) <= set(range(len(spec.names)))
    tables, limits = {"train": Table(table, "rows.csv")}, {"train": None}
    documents = label_documents(tables, limits, spec, text_columns=["text"])
    assert len(documents["train"]) == len(same)


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    strategy=st.sampled_from(["stratified", "random", "group", "stratified_group", "multilabel"]),
    folds=st.integers(2, 6),
    groups=st.none() | st.integers(1, 9),
)
@MANY
def test_every_row_is_in_one_fold_or_one_line_says_why(labels, strategy, folds, groups):
    of_rows = None if groups is None else [i % groups for i in range(len(labels))]
    try:
        found = assign_folds(strategy, folds, labels, "single_label", of_rows)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert len(found) == len(labels) and set(found.tolist()) == set(range(folds))


# ---------------------------------------------------------------- windows


@given(
    length=st.integers(0, 400),
    special=st.integers(0, 4),
    truncation=st.sampled_from(sorted(TRUNCATIONS)),
    room=st.integers(1, 60),
    overlap=st.integers(0, 30),
    most=st.none() | st.integers(1, 5),
    choice=st.sampled_from(["head", "tail", "head_tail"]),
    head=st.none() | st.integers(1, 50),
)
@MANY
def test_windows_hold_what_they_should(
    length, special, truncation, room, overlap, most, choice, head
):
    spec = WindowSpec(truncation, room, head, overlap, most, choice)
    try:
        spans = window_spans(length, spec, special)
    except ValueError as error:
        assert room <= special or overlap >= room - special
        assert "\n" not in str(error)
        return
    body = room - special
    assert 1 <= len(spans) <= (most or 400 if truncation == "hierarchical" else 1)
    for window in spans:
        assert all(0 <= start <= stop <= length for start, stop in window)
        assert sum(stop - start for start, stop in window) <= body
    if truncation == "hierarchical" and most is None:
        assert kept_tokens(spans) == length  # nothing is lost
    elif truncation == "hierarchical":  # the last of the windows may be short
        assert kept_tokens(spans) >= min(length, 1)
    else:
        assert kept_tokens(spans) == min(length, body)
    fixed = SpecialTokens(prefix=(1,) * (special // 2), suffix=(2,) * (special - special // 2))
    windows = cut_windows(list(range(10, 10 + length)), spec, fixed)
    assert len(windows) == len(spans) and all(1 <= len(w) <= max(room, 1) for w in windows)


# ---------------------------------------------------------------- words

numbers = st.integers(-3, 9)
lists = st.one_of(st.none(), st.lists(numbers, max_size=4), st.lists(cells, max_size=4))
words_of = lists | numbers | st.lists(st.none() | st.lists(numbers, max_size=3), max_size=3)
good = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=2)
targets = st.lists(
    st.fixed_dictionaries(
        {}, optional={"words": good | words_of, "label": st.none() | cells, "other": numbers}
    )
    | st.fixed_dictionaries({"words": good, "label": cells}),
    max_size=3,
)


@given(
    rows=st.lists(
        st.fixed_dictionaries({"tokens": lists, "spans": targets | lists}), min_size=1, max_size=4
    )
)
@MANY
def test_any_targets_are_read_or_one_line(rows):
    options = SpanArguments("spans")
    try:
        table = datasets.Dataset.from_list(rows)
    except Exception:  # not a table at all: numbers and text in one column
        return
    try:
        found = read_targets(Table(table, "rows.jsonl"), options, None)
    except InputError as error:
        assert "\n" not in str(error) and "rows.jsonl" in str(error)
        return
    for row in found:
        count = len(row["words"])
        assert all(0 <= word < count for spans in row["spans"] for own in spans for word in own)
        assert len(row["spans"]) == len(row["tags"]) > 0


# ---------------------------------------------------------------- arguments


@given(content=st.binary(max_size=80))
@MANY
def test_any_file_of_arguments_is_read_or_one_line(tmp_path, content):
    path = tmp_path / "run_args.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_arguments(str(path)), dict)
    except InputError as error:
        assert "\n" not in str(error) and "run_args.yaml" in str(error)


def flags_of(types: tuple[type, ...]) -> list[str]:
    return sorted({f"--{name}" for cls in types for name in cls.__dataclass_fields__})


SCRIPTS = {
    "itpt": (run_itpt.pretraining.GROUPS, flags_of(run_itpt.pretraining.GROUPS)),
    "finetune": (run_finetune.finetuning.GROUPS, flags_of(run_finetune.finetuning.GROUPS)),
    "probe": (run_probe.probing.GROUPS, flags_of(run_probe.probing.GROUPS)),
}
WORDS = st.one_of(  # but not -h, which prints help and leaves
    cells.filter(lambda word: not word.startswith("-h")),
    st.floats().map(str),
    st.integers(-2, 10**19).map(str),
    st.sampled_from(["true", "none", "-1", "{", "[]", "a=b", "last4", "cls", "1e-4", "=", "--"]),
)


@pytest.mark.parametrize("script", SCRIPTS)
@given(data=st.data())
@MANY
def test_any_flags_are_parsed_or_one_line(script, data):
    types, names = SCRIPTS[script]
    given_flags = data.draw(st.lists(st.sampled_from(names), max_size=4))
    argv = ["--models", "m"] if script == "probe" else []
    for name in given_flags:
        argv += [name, *data.draw(st.lists(WORDS, max_size=2))]
    try:
        parse(types, argv)
    except InputError as error:
        assert "\n" not in str(error).strip()
