"""Named corpora, duplicates, test text, streams and fingerprints."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from bertchain.arguments.pretraining import PackingArguments
from bertchain.data.contamination import (
    count_seen,
    find_seen,
    hash_text,
    hash_texts,
    read_fingerprint,
    write_fingerprint,
)
from bertchain.errors import InputError
from bertchain.models.windows import WindowSpec, find_special_tokens
from bertchain.pretraining.corpora import DocumentTable, clean, read_corpora, split_corpora
from bertchain.pretraining.packing import RowMaker, to_rows
from bertchain.pretraining.sources import (
    Source,
    check_test_text,
    parse_corpus_weights,
    parse_sources,
)
from bertchain.pretraining.streaming import DocumentStream, stream_documents


def documents(texts, corpus="task", **columns):
    names = [corpus] * len(texts) if isinstance(corpus, str) else corpus
    return Dataset.from_dict({"text": texts, "corpus": names, **columns})


# ---------------------------------------------------------------- what the user names


def test_files_have_names_and_corpora_their_own_columns(tmp_path):
    with_equals = tmp_path / "a=b.txt"
    with_equals.write_text("red\n")
    yaml = tmp_path / "corpora.yaml"
    yaml.write_text(
        "domain:\n"
        "  - {file: d.jsonl, text_column_names: [title, body], max_samples: 5}\n"
        "  - e.txt\n"
        "other: {dataset_name: wiki, split: train, text_column_names: passage}\n"
    )
    files = ["train.csv", "domain=x.csv", str(with_equals)]
    sources = parse_sources(files, str(yaml), {"text_column_names": ("t",)})
    assert [(s.corpus, s.name) for s in sources] == [
        ("task", "train.csv"),
        ("domain", "x.csv"),
        ("task", str(with_equals)),
        ("domain", "d.jsonl"),
        ("domain", "e.txt"),
        ("other", "wiki (train)"),
    ]
    assert sources[3].text_column_names == ("title", "body") and sources[3].max_samples == 5
    assert sources[4].text_column_names == ("t",) and sources[5].text_column_names == ("passage",)
    inline = parse_sources([], '{"domain": "d.txt"}', {})  # as from the arguments' own YAML
    assert inline == [Source("domain", file="d.txt")]


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ('{"a": {"file": "x", "columns": ["t"]}}', "columns is not one of file"),
        ('{"a": {"fil": "x"}}', "did you mean file"),
        ('{"a": {"max_samples": 3}}', "either file or dataset_name"),
        ('{"a": {"file": "x", "text_pair": true}}', "text_pair is not one of"),
        ('{"a": 3}', "give a path or a mapping"),
        ("nowhere.yaml", "--corpora nowhere.yaml: cannot be read"),
        ("{[", "cannot be read as YAML"),
    ],
)
def test_a_wrong_corpus_is_one_line(corpora, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_sources([], corpora, {})
    assert "\n" not in str(caught.value)


def test_pairs_need_two_columns_in_every_table():
    with pytest.raises(InputError, match="--corpora, a: --text_pair needs two"):
        parse_sources([], '{"a": "x.txt"}', {"text_pair": True})


def test_weights():
    names = ["task", "domain"]
    assert parse_corpus_weights(["domain=0.5"], names) == {"task": 1.0, "domain": 0.5}
    for wrong, message in (
        ("wiki=1", "no corpus 'wiki', only task, domain"),
        ("task", "write task=2"),
        ("task=0", "above 0"),
        ("task=-1", "above 0"),
        ("task=nan", "above 0"),
    ):
        with pytest.raises(InputError, match=message):
            parse_corpus_weights([wrong], names)


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        (Source("t", file="data/test.csv"), True),
        (Source("t", file="my_test_labels.csv"), True),
        (Source("t", file="imdb-Test.parquet"), True),
        (Source("t", file="test/latest.csv"), False),
        (Source("t", file="contest2.csv"), False),
        (Source("t", dataset_name="imdb", split="test"), True),
        (Source("t", dataset_name="imdb", split="unsupervised"), False),
    ],
)
def test_test_text_must_be_asked_for(source, refused):
    if not refused:
        return check_test_text([source], [], asked=False)
    check_test_text([source], [], asked=True)
    with pytest.raises(InputError, match="--include_test_text"):
        check_test_text([source], [], asked=False)


def test_there_must_be_test_text_to_include():
    train, test = Source("t", file="train.csv"), Source("t", file="hidden.csv")
    check_test_text([train], [test], asked=True)
    check_test_text([train], [test], asked=False)
    with pytest.raises(InputError, match="there is no test text; give --test_file"):
        check_test_text([train], [], asked=True)


# ---------------------------------------------------------------- documents


def test_tables_of_several_corpora_become_one(tmp_path):
    table = pd.DataFrame({"t": ["red", "cat"], "b": ["x", "y"]})
    table.to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "b.txt").write_text("dog\nbird\nfish\n")
    read = read_corpora(
        [
            Source("task", str(tmp_path / "a.csv"), text_column_names=("t", "b")),
            Source("other", str(tmp_path / "b.txt"), max_samples=2),
        ]
    )
    assert read["text"][:] == ["red x", "cat y", "dog", "bird"]
    assert read["corpus"][:] == ["task", "task", "other", "other"]


def test_duplicates_are_counted_and_the_first_stays():
    texts = ["Red cat.", "dog", "", "red  CAT", "dog", " ", "bird!", "bird"]
    left, counts = clean(documents(texts), deduplicate=True, test_hashes=None)
    assert left["text"][:] == ["Red cat.", "dog", "bird!"]
    assert counts == {
        "read": 8,
        "empty": 2,
        "duplicates_removed": 3,
        "test_documents_removed": 0,
    }
    left, counts = clean(documents(texts), deduplicate=False, test_hashes=None)
    assert len(left) == 6 and counts["duplicates_removed"] == 0


def test_text_of_the_test_set_is_taken_out():
    test = hash_texts(["DOG", "fish"])
    left, counts = clean(documents(["cat", "dog", "dog", "bird"]), True, test)
    assert left["text"][:] == ["cat", "bird"] and counts["test_documents_removed"] == 2
    with pytest.raises(InputError, match="no text is left of 1"):
        clean(documents(["dog"]), True, test)


def test_the_same_text_is_never_on_both_sides_and_corpora_share_alike():
    texts = [f"text {i % 20}" for i in range(100)] + [f"other {i}" for i in range(50)]
    names = ["task"] * 100 + ["other"] * 50
    train, held_out = split_corpora(clean(documents(texts, names), False, None)[0], 0.2, seed=0)
    assert len(train) + len(held_out) == 150
    assert set(train["text"][:]).isdisjoint(held_out["text"][:])
    per_corpus = pd.Series(held_out["corpus"][:]).value_counts()
    assert per_corpus.to_dict() == {"task": 20, "other": 10}  # 4 of 20 texts, 10 of 50
    with pytest.raises(InputError, match=r"--validation_split 0\.2 of 2 different documents"):
        split_corpora(clean(documents(["a", "b"]), True, None)[0], 0.2, seed=0)


# ---------------------------------------------------------------- streams


def write_tables(folder):
    rows = [{"text": f"document number {i}"} for i in range(200)]
    rows += rows[:40]  # duplicates
    (folder / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    pd.DataFrame({"text": [f"other {i}" for i in range(50)]}).to_csv(folder / "b.csv", index=False)
    pd.DataFrame({"text": [f"more {i}" for i in range(9)]}).to_parquet(folder / "c.parquet")
    return [
        Source("task", str(folder / "a.jsonl")),
        Source("other", str(folder / "b.csv")),
        Source("other", str(folder / "c.parquet")),
    ]


def texts_of(stream, n, process=0, processes=1):
    return [d["text"] for _, d in itertools.islice(stream.documents(process, processes), n)]


def test_a_stream_draws_by_weight_and_drops_duplicates(tmp_path):
    sources = write_tables(tmp_path)
    stream = DocumentStream(sources, {"task": 3.0, "other": 1.0}, 0.1, None, True, seed=0)
    texts = texts_of(stream, 200)
    assert texts == texts_of(stream, 200)
    share = np.mean([text.startswith("document") for text in texts])
    assert share == pytest.approx(0.75, abs=0.1)
    first_pass = [t for t in texts if t.startswith("document")]
    assert len(set(first_pass)) == len(first_pass)
    kept = DocumentStream(sources[:1], {"task": 1.0}, 0.1, None, False, seed=0)
    assert len(set(texts_of(kept, 210))) < 200  # without deduplication some come twice in a pass


def test_processes_of_a_stream_share_the_documents(tmp_path):
    sources = write_tables(tmp_path)[:1]
    stream = DocumentStream(sources, {"task": 1.0}, 0.1, None, True, seed=0)
    held_out = {*stream.first_held_out(1000)["text"][:]}
    one, other = ({*texts_of(stream, 75, p, 2)} for p in range(2))  # less than one pass each
    assert not one & other and not (one | other) & held_out
    assert 8 <= len(held_out) <= 35
    assert len(stream.first_held_out(5)) == 5


def test_a_stream_leaves_out_test_text_and_ends_never(tmp_path):
    (tmp_path / "a.txt").write_text("red\ncat\n\ndog\n")
    test = hash_texts(["CAT"])
    source = Source("task", str(tmp_path / "a.txt"))
    stream = DocumentStream([source], {"task": 1.0}, 1e-9, test, True, seed=0)
    assert texts_of(stream, 5) == ["red", "dog", "red", "dog", "red"]
    empty = DocumentStream(
        [source], {"task": 1.0}, 1e-9, hash_texts(["red", "cat", "dog"]), True, 0
    )
    with pytest.raises(InputError, match="a whole pass gives no document"):
        texts_of(empty, 1)
    with pytest.raises(InputError, match="--validation_split holds out no document"):
        stream.first_held_out(10)
    with pytest.raises(InputError, match="no column 'body'"):
        list(stream_documents(Source("task", str(tmp_path / "a.txt"), text_column_names=("body",))))


def test_streamed_rows_equal_read_ones(tmp_path):
    texts = pd.DataFrame({"text": ["red", "cat", "dog", "bird"]})
    texts.to_parquet(tmp_path / "a.parquet")
    source = Source("task", str(tmp_path / "a.parquet"), max_samples=3)
    streamed = list(stream_documents(source))
    read = read_corpora([source])
    assert len(streamed) == len(read) == 3
    for name in ("text", "corpus"):
        assert [d[name] for d in streamed] == read[name][:]


def test_a_table_and_a_stream_have_one_interface(tmp_path, tokenizers):
    sources = write_tables(tmp_path)
    given = (sources, {"task": 1.0, "other": 1.0}, 0.2, hash_texts(["other 3"]), True, 0)
    maker = RowMaker(
        tokenizers["bert"], WindowSpec("hierarchical", 16), find_special_tokens(tokenizers["bert"])
    )
    training = SimpleNamespace(process_index=0, world_size=1, per_device_train_batch_size=2, seed=0)
    for kind in (DocumentTable, DocumentStream):
        documents = kind(*given)
        held_out = to_rows(documents.held_out, maker)
        rows = documents.rows(maker, PackingArguments(), training)
        assert [*itertools.islice(rows, 30)] and documents.weights == given[1]
        counts = documents.counts(rows, held_out)
        assert counts["held_out_documents"] == len(documents.held_out) > 0
        first = {*itertools.islice(documents.first_texts(), 200)}
        assert first and not first & {*documents.held_out["text"][:], "other 3"}
        seen = {*documents.hashes().tolist()}
        assert seen and not seen & {*hash_texts(documents.held_out["text"][:]).tolist()}
        assert seen <= {*hash_texts(documents.first_texts()).tolist()}


# ---------------------------------------------------------------- fingerprint


def test_case_punctuation_and_spacing_do_not_make_another_text():
    assert hash_text("A Title. An abstract") == hash_text("a title\nan ABSTRACT!")
    assert hash_text("ﬁne") == hash_text("fine")  # a ligature
    assert hash_text("red cat") != hash_text("redcat") != hash_text("cat red")
    assert hash_text("!!") != hash_text("??")  # no words: then all counts
    assert hash_text("हिन्दी") != hash_text("हिन्द")  # vowel signs are part of words


def test_leak_detection_finds_exactly_the_planted_documents(tmp_path, caplog):
    rng = np.random.default_rng(0)
    corpus = [f"text {i} of the corpus" for i in rng.permutation(5000)]
    planted = [corpus[7].upper(), corpus[99] + ".", f"  {corpus[4000]}"]
    test = [f"unseen text {i}" for i in range(500)] + planted
    write_fingerprint(tmp_path, hash_texts(corpus))
    hashes = read_fingerprint(tmp_path)
    assert len(hashes) == 5000 and (np.diff(hashes.astype(object)) > 0).all()
    assert count_seen(hash_texts(test), hashes) == 3
    found = find_seen(Dataset.from_dict({"text": test}), str(tmp_path))
    assert found == {"test_documents_in_pretraining": 3, "transductive": True}
    assert "3 of 503 test documents" in caplog.text
    clean_test = Dataset.from_dict({"text": test[:500]})
    assert find_seen(clean_test, str(tmp_path)) == {
        "test_documents_in_pretraining": 0,
        "transductive": False,
    }


def test_without_a_fingerprint_nothing_is_claimed(tmp_path, asks_the_hub):
    assert find_seen(Dataset.from_dict({"text": ["a"]}), str(tmp_path)) == {}
    assert read_fingerprint("no/such/model") is None  # that it is not there, loading says
    assert find_seen(None, str(tmp_path)) == {}
