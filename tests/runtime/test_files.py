"""Atomic writes, errors of the disk, and what is recorded about a run."""

import errno
import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from safetensors import SafetensorError

from bertchain.runtime.files import atomic_files, atomic_write, disk_errors, write_csv, write_json
from bertchain.runtime.html import html_table
from bertchain.runtime.records import (
    evaluation_history,
    latex_table,
    markdown_table,
    model_card,
    plot_history,
    versions,
)


def test_a_crash_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_crash_while_writing_a_folder_leaves_the_old_files(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_files(tmp_path) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]
    with atomic_files(tmp_path) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_text("new")
    assert (tmp_path / "sub" / "b").read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["a", "sub"]


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), errno.ENOSPC),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), None),
        (RuntimeError("basic_ios::clear: iostream error"), None),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), None),
    ],
)
def test_what_goes_wrong_with_the_disk_has_one_name(error, number, tmp_path, monkeypatch):
    for free, expected in ((0, errno.ENOSPC), (2**30, errno.EIO)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(
            "bertchain.runtime.files.shutil.disk_usage", lambda path, usage=usage: usage
        )
        with pytest.raises(OSError) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value.errno == (number or expected)
        assert caught.value.filename == str(tmp_path)


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (RuntimeError("CUDA out of memory"), ValueError("no"), OSError(2, "no", "x")):
        with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
            raise error
        assert caught.value is error


def test_undefined_metrics_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5, float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, None]}


def test_csv_keeps_text_as_it_is(tmp_path):
    table = pd.DataFrame({"id": ["007", 'a,"b"'], "p": [0.5, 1.0]})
    write_csv(tmp_path / "a.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv", dtype={"id": str}), table)


def test_versions_name_packages_and_commit():
    assert {"python", "torch", "transformers", "datasets", "commit"} <= versions().keys()


def test_tables_escape_what_could_break_them():
    table = markdown_table(pd.DataFrame({"a|b": ["<i>x\ny|z"], "n": [0.123456]}))
    assert table == "| a\\|b | n |\n| --- | --- |\n| &lt;i>x y\\|z | 0.1235 |\n"
    numbers = markdown_table(pd.DataFrame({"a": ["5.42 to 6", "2. x", "3."]}))
    assert numbers.split("\n")[2:5] == ["| 5.42 to 6 |", "| 2\\. x |", "| 3\\. |"]


def test_a_gap_is_an_empty_cell_and_what_rounding_leaves_is_0():
    table = pd.DataFrame({"count": [46, None], "x": [-2.7e-17, float("nan")], "y": [4e-5, 0.5]})
    table = table.astype({"count": "Int64"})
    rows = markdown_table(table).splitlines()[2:]
    assert rows == ["| 46 | 0.0000 | 4.0e-05 |", "|  |  | 0.5000 |"]
    latex = latex_table(table)
    assert "46 & 0.0000 & 4.0e-05" in latex and " &  & 0.5000" in latex
    html = html_table(table)
    assert ">46<" in html and html.count('data-value=""></td>') == 2 and "NA" not in html


EVIL = (
    "<script>alert(1)</script>",
    "![x](https://evil.example/p.png)",
    "[click](https://evil.example)",
    "a\n\n# Heading",
    "# Heading",
    "```\n# out of the block\n```",
    "~~~",
    "> quoted",
    "1. first",
    "- one\n- two",
    "a | b",
    "**bold** __init__ `code` &lt;b&gt;",
    "C:\\[x]",
)


@pytest.mark.parametrize("text", EVIL)
def test_text_from_data_stays_text_in_markdown(text):
    """It is what a reader of Markdown shows of it, and nothing but text."""
    reader = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    plain = " ".join(text.split())
    card = model_card(title=text, base_model="b", pipeline_tag="p", summary=text, usage="u",
                      metrics={text: 0.5}, arguments={"label": text})  # fmt: skip
    body = card.split("---\n", 2)[2]
    tokens = reader.parse(body)
    inside = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inside} <= {"text", "text_special"}
    assert sum(token.type == "heading_open" for token in tokens) == 5  # ours
    assert not [t for t in tokens if t.type in ("html_block", "blockquote_open", "list_item_open")]
    shown = ["".join(c.content for c in token.children) for token in tokens if token.children]
    assert shown.count(plain) == 3  # title, summary, table
    (arguments,) = [t.content for t in tokens if t.type == "fence" and "label" in t.content]
    assert yaml.safe_load(arguments) == {"label": text}


def test_a_cell_is_no_argument_of_the_row_before_it_in_latex():
    table = pd.DataFrame({"[0]": ["[1] of two", "*", "a [2] *"], "n": [1, 2, 3]})
    lines = latex_table(table).splitlines()
    assert [line.split(" & ")[0] for line in lines if "&" in line] == [
        "{[}0]",
        "{[}1] of two",
        "{*}",
        "a [2] *",
    ]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_text_from_data(tmp_path):
    table = pd.DataFrame({"50 % of [a]": [*EVIL, "[1]", "*", "{x}^2_~$&#\\"], "± 95 %": 0.5})
    (tmp_path / "table.tex").write_text(latex_table(table), encoding="utf-8")
    head = r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}"
    (tmp_path / "page.tex").write_text(head + r"\input{table}\end{document}")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "page"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_cards_name_files_by_their_last_part(tmp_path):
    (tmp_path / "a b.csv").write_text("")
    tasks = json.dumps({"t": {"train_file": f"{tmp_path}/a b.csv", "label_column_name": "x/y"}})
    given = {
        "train_file": [f"{tmp_path}/a b.csv", "news=/home/me/secret/n.csv"],
        "model_name_or_path": "org/name",
        "output_dir": "../out",
        "tasks": tasks,
        "text_separator": "/",
        "learning_rate": 1e-5,
    }
    card = model_card(title="t", base_model=str(tmp_path), pipeline_tag="p", summary="s",
                      usage="u", metrics={}, arguments=given)  # fmt: skip
    assert str(tmp_path) not in card and "secret" not in card
    shown = yaml.safe_load(card.split("## Arguments")[1].split("```yaml\n")[1].split("```")[0])
    assert shown["train_file"] == ["a b.csv", "news=n.csv"] and shown["output_dir"] == "out"
    assert shown["model_name_or_path"] == "org/name" and shown["text_separator"] == "/"
    expected = {"t": {"train_file": "a b.csv", "label_column_name": "x/y"}}
    assert json.loads(shown["tasks"]) == expected


def test_model_cards_name_a_hub_base_and_no_folder():
    fields = dict(title="t", pipeline_tag="fill-mask", summary="s", usage="u", arguments={})
    for base, known in (("bert-base-uncased", True), ("org/name", True), ("/tmp/x", False)):
        card = model_card(base_model=base, metrics={"eval_loss": 1.0}, **fields)
        front = yaml.safe_load(card.split("---")[1])
        assert (front.get("base_model") == base) == known
        assert "| eval_loss | 1.0000 |" in card


def test_history_weighs_losses_by_steps_and_keeps_one_row_a_step(tmp_path, pictures):
    log = [
        {"eval_loss": 9.0, "epoch": 0, "step": 0},
        {"loss": 4.0, "learning_rate": 2.0, "step": 10},
        {"loss": 1.0, "learning_rate": 1.0, "learning_rate_head": 3.0, "step": 15},
        {"eval_loss": 2.0, "eval_accuracy": 0.5, "eval_runtime": 1.0, "epoch": 1, "step": 15},
        {"eval_loss": 2.0, "eval_accuracy": 0.5, "epoch": 1, "step": 15},
        {"train_loss": 3.0, "step": 15},
    ]
    history = evaluation_history(log)
    assert list(history["step"]) == [0, 15]
    assert history["train_loss"][1] == pytest.approx((4.0 * 10 + 1.0 * 5) / 15)
    assert history["learning_rate_head"][1] == 3.0 and "eval_runtime" not in history
    plot_history(tmp_path / "h.png", history, "eval_accuracy")
    assert (tmp_path / "h.png").read_bytes()[:4] == b"\x89PNG"
