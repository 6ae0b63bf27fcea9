import gzip
import json
import logging

import datasets
import numpy as np
import pandas as pd
import pytest

from bertchain.data.documents import label_documents, to_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import hold_out, hold_out_validation, strata_of
from bertchain.data.tables import read_hub_table, read_splits, read_table, require_cells
from bertchain.errors import InputError

pytestmark = pytest.mark.versions

ROWS = [
    {"id": "007", "text": 'a "quoted", text', "label": "NA"},
    {"id": "1e5", "text": "second\nline", "label": "null"},
    {"id": "3", "text": "", "label": "x"},
]


def write(path, text, encoding="utf-8", compress=False):
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if compress else data)
    return str(path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_rows(tmp_path, suffix, compress):
    frame = pd.DataFrame(ROWS)
    path = tmp_path / f"rows{suffix}"
    if suffix in (".csv", ".tsv"):
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS))
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        frame.to_parquet(path)
    if compress:
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    assert read_table(str(path)).to_list() == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_be_long(tmp_path, suffix):
    rows = pd.DataFrame({"text": ["short", "word " * 40_000], "label": ["a", "b"]})
    path = tmp_path / f"long{suffix}"
    rows.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    assert read_table(str(path))["text"][:] == rows["text"].tolist()


def test_a_text_file_holds_a_document_a_line(tmp_path):
    path = write(tmp_path / "a.txt", "one\n\ntwo\u2028still two\x85too\n")
    assert read_table(path)["text"][:] == ["one", "", "two\u2028still two\x85too"]


@pytest.mark.parametrize("delimiter", ["\t", ";", "|", ","])
def test_the_delimiter_of_a_csv_is_found(tmp_path, delimiter):
    lines = [["id", "text", "label"], ["1", "a. b! c", "x"], ["2", "d? e", "y"]]
    path = write(tmp_path / "a.csv", "\n".join(delimiter.join(row) for row in lines))
    assert read_table(path).column_names == lines[0]


def test_the_delimiter_flag_wins(tmp_path):
    path = write(tmp_path / "a.csv", "id:text,more\n1:a,b\n")
    assert read_table(path, delimiter=":").column_names == ["id", "text,more"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("line", ["sep=;\n", "\ufeffsep=;\r\n", '"sep=;"\n', "SEP=\t\n"])
def test_a_first_line_that_names_the_delimiter_is_read(tmp_path, name, line):
    """As Excel writes and wants it."""
    mark = "\t" if "\t" in line else ";"
    text = f"{line}text{mark}label\na, b, c{mark}x\nd, e{mark}y\n"
    path = tmp_path / name
    with (gzip.open if name.endswith("gz") else open)(path, "wb") as file:
        file.write(text.encode())
    expected = {"text": ["a, b, c", "d, e"], "label": ["x", "y"]}
    assert read_table(str(path)).to_dict() == expected
    assert next(iter(read_table(str(path), streaming=True))) == {"text": "a, b, c", "label": "x"}
    if mark == ";":  # the flag wins
        assert read_table(str(path), "|").column_names == ["text;label"]


def test_commas_inside_text_do_not_hide_a_semicolon(tmp_path):
    path = write(tmp_path / "a.csv", "id;text\n1;a, b, c\n2;d\n3;e, f\n")
    assert read_table(path).column_names == ["id", "text"]


def test_stray_quotes_in_tab_separated_text_swallow_no_row(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"an open quote\n2\tplain\n3\t5" pipe\n4\tend"\n')
    table = read_table(path)
    assert len(table) == 4
    assert table["text"][0] == '"an open quote'
    assert "quotation marks are read as plain text" in caplog.text


def test_a_quoted_header_says_that_marks_are_quoting(tmp_path):
    for header in ('"text"\t"label"', 'text\t"label"'):
        path = write(tmp_path / "a.tsv", header + '\n""\t"\r\t"\n')
        assert read_table(str(path)).to_list() == [{"text": "", "label": "\r\t"}]


def test_empty_lines_of_a_one_column_csv_are_empty_documents(tmp_path):
    assert len(read_table(write(tmp_path / "a.csv", "text\none\n\ntwo\n"))) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_changes_nothing(tmp_path, encoding):
    table = read_table(write(tmp_path / "a.csv", "text,label\nä,x\n", encoding))
    assert table.to_list() == [{"text": "ä", "label": "x"}]
    lines = read_table(write(tmp_path / "a.txt", "ä\n", encoding))
    assert lines["text"][:] == ["ä"]


def test_gbk_is_read_when_named_and_named_when_not_utf8(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n中文,好\n", "gbk")
    assert read_table(path, encoding="gbk").to_list() == [{"text": "中文", "label": "好"}]
    with pytest.raises(InputError, match=r"a\.csv: not utf-8 text \(byte 0xd6\).*--encoding"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "text,text\n1,2\n", "column 'text' occurs twice"),
        ("a.csv", "text,label\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
        ("a.xls", "x", "one of .csv"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "JSON"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as error:
        read_table(path)
    assert path in str(error.value) and "\n" not in str(error.value)


def test_other_bad_inputs(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(str(tmp_path / "none.csv"))
    path = write(tmp_path / "a.csv", "text\nx\n")
    with pytest.raises(InputError, match="--encoding klingon is not known"):
        read_table(path, encoding="klingon")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"text\n" + b"x\n" * 9999)[:40])
    with pytest.raises(InputError, match=r"b\.csv\.gz"):
        read_table(str(tmp_path / "b.csv.gz"))


def test_a_changed_file_is_read_anew(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text\nbefore\n")
    assert read_table(str(path))["text"][:] == ["before"]
    path.write_text("text\nafter!\n")
    assert read_table(str(path))["text"][:] == ["after!"]


def test_data_sets_by_name(tmp_path, asks_the_hub):
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    assert read_hub_table(str(tmp_path), None, "train")["text"][:] == ["a"]
    assert read_hub_table(str(tmp_path), None, "test") is None
    files = dict.fromkeys(("train", "validation", "test"))
    assert list(read_splits(files, dataset_name=str(tmp_path))) == ["train"]
    with pytest.raises(InputError, match="--dataset_name no/such"):
        read_hub_table("no/such", None, "train")


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="older: refused with one line")
def test_numbers_among_texts_are_read_as_text(tmp_path):
    """What newer `datasets` read as a column of JSON values."""
    path = write(tmp_path / "a.jsonl", '{"text": 7}\n{"text": "a cat"}\n{"text": null}\n')
    documents = to_documents(read_table(path), path, ["text"])
    assert documents["text"][:] == ["7", "a cat", ""]
    assert documents.features["text"].dtype == "string"


def test_limits_take_the_first_rows(tmp_path):
    """Labels are settled by the whole training table, so that a sample has the same classes."""
    path = write(tmp_path / "a.csv", "text,label\na,x\nb,y\nc,z\n")
    tables = read_splits({"train": path, "test": path})
    spec = LabelSpec.infer(*tables["train"], ["label"])
    limits = {"train": 2, "test": None}
    documents = label_documents(tables, limits, spec, text_columns=["text"])
    assert documents["train"]["text"][:] == ["a", "b"]
    assert documents["test"]["labels"][:] == [0, 1, 2]


# ---------------------------------------------------------------- documents


def table_of(tmp_path, text):
    return read_table(write(tmp_path / "t.csv", text))


def test_text_columns_are_joined_and_missing_texts_said_aloud(tmp_path, caplog):
    table = table_of(tmp_path, "title,abstract\nA,b\nC,\n,\n")
    documents = to_documents(table, "t.csv", ["title", "abstract"], separator=" | ")
    assert documents.to_list() == [
        {"id": "0", "text": "A | b"},
        {"id": "1", "text": "C"},
        {"id": "2", "text": ""},
    ]
    assert "1 of 3 documents have no text" in caplog.text


def test_pairs_and_ids(tmp_path):
    table = table_of(tmp_path, "key,title,abstract\nk1,A,b\n")
    documents = to_documents(table, "t", ["title", "abstract"], pair=True, id_column="key")
    assert documents.to_list() == [{"id": "k1", "text": "A", "text_pair": "b"}]


def test_missing_columns_and_repeated_ids_are_named(tmp_path):
    table = table_of(tmp_path, "key,text\nk,a\nk,b\n")
    with pytest.raises(InputError, match=r"no column 'body' .*there are: key, text"):
        to_documents(table, "t.csv", ["body"])
    with pytest.raises(InputError, match="id 'k' occurs more than once"):
        to_documents(table, "t.csv", ["text"], id_column="key")


def test_labels_stay_with_their_rows_and_test_may_lack_them(tmp_path):
    train = write(
        tmp_path / "a.csv", "text,label\n" + "".join(f"t{i},{i % 3}\n" for i in range(60))
    )
    test = write(tmp_path / "b.csv", "text\nt\n")
    files = {"train": train, "validation": None, "test": test}
    tables = read_splits(files)
    spec = LabelSpec.infer(*tables["train"], ["label"])
    documents = label_documents(tables, dict.fromkeys(files), spec, text_columns=["text"])
    assert "labels" not in documents["test"].column_names
    split = hold_out_validation(documents, 0.1, spec.problem_type, seed=1)
    rows = split["train"].to_list() + split["validation"].to_list()
    assert sorted(int(row["id"]) for row in rows) == list(range(60))
    for row in rows:  # ids are those of the file, and label and text belong together
        assert row["text"] == f"t{row['id']}" and row["labels"] == int(row["id"]) % 3
    assert [split["validation"]["labels"][:].count(c) for c in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5])
def test_hold_out_is_in_proportion_to_within_one_row(share):
    labels = np.random.default_rng(0).choice(5, size=500, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    mask = hold_out(labels, share, seed=3)
    for c in range(5):
        assert abs(mask[labels == c].sum() - share * (labels == c).sum()) <= 1
    assert abs(mask.sum() - share * 500) <= 1
    assert (mask == hold_out(labels, share, seed=3)).all()
    assert (mask != hold_out(labels, share, seed=4)).any()


def test_a_class_of_one_row_stays_in_training():
    for seed in range(20):
        assert not hold_out(["a"] * 10 + ["rare"], 0.5, seed)[-1]


def test_strata():
    assert strata_of([2, 0], "single_label") == [2, 0]
    labels = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert strata_of(labels, "multi_label") == [1, 0, -1, 2]  # a row's rarest label
    tenths = strata_of([[float(i)] for i in range(100)], "regression")
    assert [tenths.count(t) for t in range(10)] == pytest.approx([10] * 10, abs=1)


def test_too_small_a_share_is_refused(tmp_path):
    documents = {"train": table_of(tmp_path, "text,labels\na,0\nb,1\n")}
    with pytest.raises(InputError, match="holds out none"):
        hold_out_validation(documents, 0.1, "single_label", 0)


# ---------------------------------------------------------------- names and tables of other tools


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["fold[1]", "a*", "w?", "[NLP] data/train"])
def test_a_path_is_no_pattern(tmp_path, name, suffix, streaming):
    """Beside each file lies one that its name, read as a pattern, would find."""
    for stem in ("fold1", "ab", "w1", "N data/train", name):
        path = tmp_path / f"{stem}{suffix}"
        path.parent.mkdir(exist_ok=True)
        frame = pd.DataFrame({"text": [stem]})
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif "json" in suffix:
            frame.to_json(path, orient="records", lines=suffix == ".jsonl")
        else:
            frame.to_csv(path, index=False, header=suffix != ".txt")
    table = read_table(str(tmp_path / f"{name}{suffix}"), streaming=streaming)
    assert [row["text"] for row in table] == [name]


def test_a_folder_of_a_data_set_whose_name_is_a_pattern_is_refused(tmp_path):
    for name in ("N set", "[N] set"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.csv").write_text(f"text\n{name}\n")
    with pytest.raises(InputError, match=r"takes .* for a pattern; rename the folder"):
        read_hub_table(str(tmp_path / "[N] set"), None, "train")


def test_an_index_that_pandas_wrote_and_empty_columns_have_names(tmp_path):
    frame = pd.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "a.csv")
    for streaming in (False, True):
        table = read_table(str(tmp_path / "a.csv"), streaming=streaming)
        assert list(table)[1] == {"Unnamed: 0": "1", "text": "b", "label": "y"}
    table = read_table(write(tmp_path / "b.csv", "text,,label,\na,,x,\n"))
    assert table.to_list() == [{"text": "a", "Unnamed: 1": "", "label": "x", "Unnamed: 3": ""}]


@pytest.mark.parametrize("content", ["text,label\n1,a,x\n", "text,label\na,x,\n", "text\na, b\n"])
def test_rows_wider_than_the_header_are_refused_and_not_shifted(tmp_path, content):
    with pytest.raises(InputError, match=r"a\.csv, row 1: . cells, but the header has"):
        read_table(write(tmp_path / "a.csv", content))


@pytest.mark.parametrize("encoding", ["utf-16", "gbk", "cp936", "gb18030"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.txt"])
def test_files_in_other_encodings(tmp_path, name, encoding):
    contents = {
        "a.csv": "text,label\n中文,好\n",
        "a.tsv": "text\tlabel\n中文\t好\n",
        "a.jsonl": '{"text": "中文", "label": "好"}\n',
        "a.txt": "中文\n",
    }
    row = read_table(write(tmp_path / name, contents[name], encoding), encoding=encoding)[0]
    assert row == {"text": "中文"} | ({} if name == "a.txt" else {"label": "好"})


def test_ids_that_pandas_made_floats(tmp_path):
    pd.DataFrame({"id": [7.0, 8.5], "text": ["a", "b"]}).to_parquet(tmp_path / "a.parquet")
    table = read_table(str(tmp_path / "a.parquet"))
    assert to_documents(table, "a", ["text"], id_column="id")["id"][:] == ["7", "8.5"]
    table = table_of(tmp_path, "id,text\n7.0,a\n07,b\n")
    assert to_documents(table, "a", ["text"], id_column="id")["id"][:] == ["7.0", "07"]


@pytest.mark.parametrize("missing", ["", None, float("nan"), " "])
def test_a_cell_that_gives_structure_is_there(missing):
    with pytest.raises(
        InputError, match=r"a\.csv, row 2, column 'g' \(--flag\): the cell is empty"
    ):
        require_cells(["x", missing], "g", "a.csv", "--flag")
    require_cells([0, 0.0, False, "0"], "g", "a.csv", "--flag")


def test_missing_ids_and_second_texts_are_named(tmp_path):
    table = table_of(tmp_path, "id,q,a\n1,x,y\n,x,\n")
    with pytest.raises(InputError, match=r"row 2, column 'id' \(--id_column_name\)"):
        to_documents(table, "t.csv", ["q"], id_column="id")
    with pytest.raises(InputError, match=r"row 2, column 'a' \(--text_pair\)"):
        to_documents(table, "t.csv", ["q", "a"], pair=True)
