"""Convert tagged words, dependencies or STREUSLE's targets into tables of labelled spans.

    python examples/zhou2022/to_spans.py token train.jsonl spans.jsonl --tags_column_name tags
    python examples/zhou2022/to_spans.py pair ud_partut dep --relations_column_name deprels
    python examples/zhou2022/to_spans.py span streusle role --target_label_field role

The first reads a label for each word, the second the head of each word and its relation to it, the
third a list of objects with `span`, the numbers of their words. Files are .jsonl or .parquet, each
also .gz; of a folder all of them are converted into another folder. What is written is .jsonl with
one column more, `spans`, for run_finetune.py and run_probe.py --spans_column_name spans.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from datasets import Dataset

from bertchain.cli import OneLineErrors, run_script
from bertchain.data.tables import read_table, require_columns
from bertchain.errors import InputError, at_least
from bertchain.runtime.files import write_text

COLUMN = "spans"
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz")

Target = tuple[list[list[int]], Any]  # word numbers of each span, label


def main() -> None:
    options = read_arguments()
    for source, target in find_files(Path(options.source), Path(options.target)):
        table = read_table(str(source))
        spans = convert(table, str(source), options)
        rows = ({**row, COLUMN: own} for row, own in zip(table, spans, strict=True))
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        write_text(target, "".join(lines))
        print(f"{target}: {sum(map(len, spans))} targets in {len(table)} rows", flush=True)


class Parser(OneLineErrors, argparse.ArgumentParser):
    """Raises InputError for arguments that cannot be parsed."""


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse flags, or None for the command line, and check them."""
    parser = Parser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("level", choices=LEVELS, help="what has a label")
    parser.add_argument("source", help=f"table ({' '.join(ENDINGS)}), or folder of tables")
    parser.add_argument("target", help="the .jsonl to write, or folder")
    add = parser.add_argument
    add("--tokens_column_name", default="tokens", help="column with the words, a list")
    add("--tags_column_name", default="tags", help="token: a label for each word, a list")
    add("--concept_column_names", nargs="+", default=[], help="token: lists that stand beside it")
    add("--heads_column_name", default="heads", help="pair: number of each head, -1 for none")
    add("--relations_column_name", default="deprels", help="pair: the relation to it, a list")
    add("--targets_column_name", default="targets", help="span: a list of objects")
    add("--target_label_field", default="label", help="span: the field with the label")
    add("--longest_target", type=int, help="span: leave out targets of more words")
    add("--skip_labels", nargs="+", default=[], help="leave out targets with these labels")
    options = parser.parse_args(argv)
    at_least("longest_target", options.longest_target, 1)
    if options.longest_target and options.level != "span":
        raise InputError("--longest_target needs the level span")
    if options.concept_column_names and options.level != "token":
        raise InputError("--concept_column_names needs the level token")
    return options


def find_files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """Each table to read, with the file to write.

    Raises:
        InputError: for a file of another kind, or a folder without any.
    """
    if source.is_dir():
        found = [path for path in sorted(source.iterdir()) if path.name.endswith(ENDINGS)]
        pairs = [(path, target / f"{path.name.split('.')[0]}.jsonl") for path in found]
        if not pairs or len({written for _, written in pairs}) < len(pairs):
            raise InputError(f"{source}: holds no tables to convert, or two of one name")
        return pairs
    if source.is_file() and not source.name.endswith(ENDINGS):
        raise InputError(f"{source}: is none of {', '.join(ENDINGS)}")
    if target.suffix != ".jsonl":
        raise InputError(f"{target}: what is written must be called .jsonl")
    return [(source, target)]


def convert(table: Dataset, source: str, options: argparse.Namespace) -> list[list[dict]]:
    """The labelled spans of each row [rows][targets], as objects with words and label.

    Raises:
        InputError: naming the row, for a missing column or lists that do not fit the words.
    """
    read, needed = LEVELS[options.level]
    for flag in ("tokens_column_name", *needed):
        require_columns(table, [getattr(options, flag)], source, f"--{flag}")
    require_columns(table, options.concept_column_names, source, "--concept_column_names")
    if COLUMN in table.column_names:
        raise InputError(f"{source}: has a column {COLUMN!r}; convert the table it was made from")
    found = []
    for number, row in enumerate(table, 1):
        where = f"{source}, row {number}"
        words = row[options.tokens_column_name]
        if not isinstance(words, list):
            raise InputError(f"{where}: {options.tokens_column_name} is not a list of words")
        beside = {
            name: list_of(row, name, len(words), where) for name in options.concept_column_names
        }
        found.append(
            [
                {"words": spans, "label": str(label)}
                | {name: values[i] for name, values in beside.items()}
                for i, (spans, label) in enumerate(read(row, len(words), options, where))
                if label is not None and str(label) not in options.skip_labels
            ]
        )
    return found


def read_tokens(row: dict, words: int, options: argparse.Namespace, where: str) -> list[Target]:
    """Each word with its tag."""
    tags = list_of(row, options.tags_column_name, words, where)
    return [([[i]], tag) for i, tag in enumerate(tags)]


def read_pairs(row: dict, words: int, options: argparse.Namespace, where: str) -> list[Target]:
    """Each word that has a head: head, word, and the relation."""
    heads = list_of(row, options.heads_column_name, words, where)
    relations = list_of(row, options.relations_column_name, words, where)
    pairs = []
    for i, (head, relation) in enumerate(zip(heads, relations, strict=True)):
        head = None if head is None else to_number(head, where)
        if head is not None and head >= 0:  # the root has none
            check_words([head], words, where)
            pairs.append(([[head], [i]], relation))
    return pairs


def read_spans(row: dict, words: int, options: argparse.Namespace, where: str) -> list[Target]:
    """Each object of the column of targets: the words of its span, the field with its label."""
    targets, field = row[options.targets_column_name] or [], options.target_label_field
    if not isinstance(targets, list) or not all(isinstance(t, dict) for t in targets):
        raise InputError(
            f"{where}: {options.targets_column_name} must be a list of objects, each with a span"
        )
    spans = []
    for target in targets:
        if not {"span", field} <= target.keys():
            raise InputError(
                f"{where}: a target needs span and {field} (--target_label_field); "
                f"there are: {', '.join(target)}"
            )
        numbers = target["span"] if isinstance(target["span"], list) else []
        span = [to_number(value, where) for value in numbers]
        check_words(span, words, where)
        if options.longest_target is None or len(span) <= options.longest_target:
            spans.append(([span], target[field]))
    return spans


def list_of(row: dict, column: str, words: int, where: str) -> list:
    values = row[column]
    if not isinstance(values, list) or len(values) != words:
        got = len(values) if isinstance(values, list) else "no list"
        raise InputError(f"{where}: {column} must have one entry for each of {words} words: {got}")
    return values


def to_number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: {value!r} is not the number of a word") from error


def check_words(span: list[int], words: int, where: str) -> None:
    wrong = [i for i in span if not 0 <= i < words]
    if wrong or not span:
        raise InputError(f"{where}: a target names word {wrong or 'none'} of {words}")


LEVELS = {  # how the targets of a row are read, and the columns that this needs
    "token": (read_tokens, ("tags_column_name",)),
    "pair": (read_pairs, ("heads_column_name", "relations_column_name")),
    "span": (read_spans, ("targets_column_name",)),
}


if __name__ == "__main__":
    run_script(main)
