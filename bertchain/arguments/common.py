"""The arguments that scripts share, as small dataclasses. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bertchain.errors import InputError, at_least, one_of, share


class Help(str):
    """A help text that knows more of its argument: HfArgumentParser takes no metadata beside it."""

    shown: str | None
    common: bool


def arg(default: Any, text: str, *, shown: str | None = None, common: bool = False) -> Any:
    """Make a dataclass field with a help text.

    Args:
        text: what the value is; `--help` adds the default.
        shown: the default as `--help` says it, where None stands for one that depends on others.
        common: whether `--help` lists it; `--help_all` lists all.
    """
    text = Help(text)
    text.shown, text.common = shown, common
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Which tables. Files: .csv .tsv .txt .json .jsonl .parquet, each also .gz."""

    _argument_group_name = "data"

    train_file: str | None = arg(
        None, "Labelled table: .csv .tsv .txt .json .jsonl .parquet (.gz)."
    )
    validation_file: str | None = arg(None, "Makes the choices. Default: held out of training.")
    test_file: str | None = arg(None, "Is predicted, and scored if it has labels; chooses nothing.")
    dataset_name: str | None = arg(None, "Hub data set with such splits, in place of files.")
    dataset_config_name: str | None = arg(None, "Its configuration.")
    max_train_samples: int | None = arg(None, "Use the first N training rows.")
    max_eval_samples: int | None = arg(None, "Use the first N validation rows.")
    max_predict_samples: int | None = arg(None, "Use the first N test rows.")

    def __post_init__(self) -> None:
        if self.dataset_name is None and not any(self.files.values()):
            raise InputError("no data: give --train_file, --test_file or --dataset_name")
        if self.dataset_name is not None and any(self.files.values()):
            raise InputError("--dataset_name and --train_file ... exclude each other")
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            at_least(name, getattr(self, name), 1)

    @property
    def files(self) -> dict[str, str | None]:
        return {
            "train": self.train_file,
            "validation": self.validation_file,
            "test": self.test_file,
        }

    @property
    def sources(self) -> dict[str, Any]:
        """What `text_data.read_splits` needs to know."""
        return {
            "files": self.files,
            "dataset_name": self.dataset_name,
            "dataset_config_name": self.dataset_config_name,
        }

    @property
    def limits(self) -> dict[str, int | None]:
        return {
            "train": self.max_train_samples,
            "validation": self.max_eval_samples,
            "test": self.max_predict_samples,
        }


@dataclass
class TextArguments:
    """Where the text of a row is."""

    _argument_group_name = "text"

    text_column_names: list[str] = arg(
        ["text"], "Columns joined in this order, as: title abstract."
    )
    text_separator: str = arg(" ", "Stands between joined columns; \\n and \\t work.")
    text_pair: bool = arg(
        False, "Give two columns to the tokenizer as a pair (title [SEP] abstract)."
    )
    id_column_name: str | None = arg(None, "Column with row ids. Default: the row number, from 0.")
    delimiter: str | None = arg(None, "Of .csv, \\t works. Default: found (comma, tab, ; or |).")
    encoding: str = arg("utf-8", "Of text files: utf-8 (with or without BOM), gbk, latin-1 ...")

    def __post_init__(self) -> None:
        self.text_separator = unescape(self.text_separator)
        self.delimiter = unescape(self.delimiter) if self.delimiter else None
        if self.text_pair and len(self.text_column_names) != 2:
            raise InputError(
                f"--text_pair needs two --text_column_names, got {len(self.text_column_names)}: "
                + " ".join(self.text_column_names)
            )

    @property
    def format(self) -> dict[str, Any]:
        """How text files are read."""
        return {"delimiter": self.delimiter, "encoding": self.encoding}

    @property
    def columns(self) -> dict[str, Any]:
        """How a row becomes a document: arguments of `text_data.to_documents`."""
        return {
            "text_columns": self.text_column_names,
            "separator": self.text_separator,
            "pair": self.text_pair,
            "id_column": self.id_column_name,
        }


@dataclass
class LabelArguments:
    """Where the labels are and what they mean."""

    _argument_group_name = "labels"

    label_column_name: list[str] = arg(
        ["label"],
        "One column, or several 0/1 columns (multi-label) or number columns (regression).",
    )
    label_delimiter: str | None = arg(None, "Splits a text label into several, such as | or ','.")
    problem_type: str | None = arg(
        None, "single_label, multi_label or regression. Default: found from the labels."
    )
    validation_split: float = arg(
        0.1, "Share of training held out, stratified, when there is no --validation_file."
    )

    def __post_init__(self) -> None:
        one_of("problem_type", self.problem_type, ("single_label", "multi_label", "regression"))
        share("validation_split", self.validation_split)


@dataclass
class EncoderArguments:
    """Which checkpoint to start from."""

    _argument_group_name = "checkpoint"

    model_name_or_path: str = field(
        metadata={"help": "Hub name, transformers folder, or folder of one of these scripts."}
    )
    tokenizer_name: str | None = arg(None, "Default: that of the model.")
    model_revision: str = arg("main", "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = arg(False, "Run code that a hub model brings along.")

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """For every `from_pretrained`."""
        return {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}


@dataclass
class WindowArguments:
    """How documents are cut into windows."""

    _argument_group_name = "windows (a folder of run_finetune.py brings its own; flags win)"

    truncation: str | None = arg(None, "head, tail, head_tail or hierarchical. Else: head.")
    max_seq_length: int | None = arg(
        None, "Tokens a window, special tokens included. Else: what the model takes, at most 512."
    )
    head_tokens: int | None = arg(None, "Of head_tail. Else: 128 of 510, in proportion.")
    segment_overlap: int | None = arg(None, "Tokens that hierarchical windows share. Else: 0.")
    max_segments: int | None = arg(None, "Most hierarchical windows a document. Else: all.")
    segment_choice: str | None = arg(
        None, "Which of them --max_segments keeps: head, tail, head_tail. Else: head."
    )

    def __post_init__(self) -> None:
        one_of("truncation", self.truncation, ("head", "tail", "head_tail", "hierarchical"))
        at_least("max_seq_length", self.max_seq_length, 1)
        at_least("head_tokens", self.head_tokens, 1)
        at_least("segment_overlap", self.segment_overlap, 0)
        at_least("max_segments", self.max_segments, 1)
        one_of("segment_choice", self.segment_choice, ("head", "tail", "head_tail"))

    @property
    def given(self) -> dict[str, Any]:
        """The fields that the user set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass
class SpanArguments:
    """Labelled words inside documents, in place of labelled documents."""

    _argument_group_name = "labels of words"

    spans_column_name: str | None = arg(
        None,
        "Column with labelled spans, which are then classified in place of documents: a list of "
        "{words: [[3, 4]], label: PER}; two lists of word numbers for a pair.",
    )
    tokens_column_name: str = arg("tokens", "Column with the words of a document, a list.")


def refuse_other_order(training: Any) -> None:
    """Raises InputError where the Trainer is asked to order the rows, which is done here."""
    strategy = getattr(training, "train_sampling_strategy", "random")  # its name since 5.2
    if strategy != "random" or getattr(training, "group_by_length", False):
        raise InputError(
            "--batch_by_length orders batches here; leave the Trainer's own order alone"
        )


def unescape(text: str) -> str:
    return text.replace("\\t", "\t").replace("\\n", "\n")
