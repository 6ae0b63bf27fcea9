"""The arguments that scripts share, as small dataclasses. Imports nothing heavy."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bertchain.cli import check_processes, refuse_data_parallel, refuse_fp16
from bertchain.errors import InputError, at_least, one_of, share
from bertchain.models.folders import check_model_folder


class Help(str):
    """A help text that knows more of its argument: HfArgumentParser takes no metadata beside it."""

    shown: str | None
    common: bool


def arg(default: Any, text: str, *, shown: str | None = None, common: bool = False) -> Any:
    """Make a dataclass field with a help text.

    Args:
        text: what the value is; help adds the default.
        shown: the default as help says it, where None or [] stands for something else.
        common: whether --help lists the flag; --help_all lists all.
    """
    text = Help(text)
    text.shown, text.common = shown, common
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Labelled tables, one for each split."""

    _argument_group_name = "data"

    train_file: str | None = arg(
        None, "Training table: .csv .tsv .txt .json .jsonl .parquet, each also .gz.", common=True
    )
    validation_file: str | None = arg(
        None,
        "Validation file; selects checkpoints and settings.",
        shown="a share of the training rows, --validation_split",
        common=True,
    )
    test_file: str | None = arg(
        None,
        "Test file; is predicted, and scored if it has labels, but selects nothing.",
        common=True,
    )
    dataset_name: str | None = arg(
        None, "Data set of the hub with such splits, in place of files.", common=True
    )
    dataset_config_name: str | None = arg(None, "Configuration of that data set.")
    max_train_samples: int | None = arg(None, "Number of training rows to read, from the first on.")
    max_eval_samples: int | None = arg(
        None, "Number of validation rows to read, from the first on."
    )
    max_predict_samples: int | None = arg(None, "Number of test rows to read, from the first on.")

    def __post_init__(self) -> None:
        if self.dataset_name is None and not any(self.files.values()):
            raise InputError("no data: give --train_file, --test_file or --dataset_name")
        if self.dataset_name is not None and any(self.files.values()):
            raise InputError("--dataset_name and --train_file ... exclude each other")
        for name in ("max_train_samples", "max_eval_samples", "max_predict_samples"):
            at_least(name, getattr(self, name), 1)

    @property
    def files(self) -> dict[str, str | None]:
        """The file of each split, or None."""
        return {
            "train": self.train_file,
            "validation": self.validation_file,
            "test": self.test_file,
        }

    @property
    def sources(self) -> dict[str, Any]:
        """Arguments of `data.tables.read_splits`."""
        return {
            "files": self.files,
            "dataset_name": self.dataset_name,
            "dataset_config_name": self.dataset_config_name,
        }

    @property
    def limits(self) -> dict[str, int | None]:
        """How many rows of each split are read; None: all."""
        return {
            "train": self.max_train_samples,
            "validation": self.max_eval_samples,
            "test": self.max_predict_samples,
        }


@dataclass
class TextArguments:
    """Columns that hold text, and how they are read."""

    _argument_group_name = "text"

    text_column_names: list[str] = arg(
        ["text"], "Columns with text, joined in this order, as: title abstract.", common=True
    )
    text_separator: str = arg(" ", "Text between joined columns; \\n and \\t work.")
    text_pair: bool = arg(
        False, "Whether two columns are given to the tokenizer as a pair (title [SEP] abstract)."
    )
    id_column_name: str | None = arg(
        None, "Column with row ids.", shown="the row number, from 0", common=True
    )
    delimiter: str | None = arg(
        None, "Delimiter of .csv files; \\t works.", shown="detected: comma, tab, ; or |"
    )
    encoding: str = arg(
        "utf-8", "Encoding of text files: utf-8 (with or without BOM), gbk, latin-1 ..."
    )

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
        """Delimiter and encoding of text files."""
        return {"delimiter": self.delimiter, "encoding": self.encoding}

    @property
    def columns(self) -> dict[str, Any]:
        """Arguments of `data.documents.to_documents`, which makes a document of each row."""
        return {
            "text_columns": self.text_column_names,
            "separator": self.text_separator,
            "pair": self.text_pair,
            "id_column": self.id_column_name,
        }


@dataclass
class LabelArguments:
    """Columns that hold labels, and what the labels are."""

    _argument_group_name = "labels"

    label_column_name: list[str] = arg(
        ["label"],
        "Column with labels; or several columns of 0/1 (multi-label) or of numbers (regression).",
        common=True,
    )
    label_delimiter: str | None = arg(
        None, "Delimiter between the labels of a row, such as | or ',' (multi-label)."
    )
    problem_type: str | None = arg(
        None,
        "What the labels are: single_label, multi_label or regression.",
        shown="inferred from the labels",
        common=True,
    )
    at_least_one_label: bool = arg(
        False,
        "Whether a row none of whose labels reaches its threshold gets the likeliest "
        "(multi-label).",
    )
    validation_split: float = arg(
        0.1,
        "Share of the training rows held out for validation, stratified, when there is no "
        "--validation_file; of run_finetune.py also 0: none, and the last weights are kept.",
    )

    def __post_init__(self) -> None:
        one_of("problem_type", self.problem_type, ("single_label", "multi_label", "regression"))
        if self.validation_split != 0:
            share("validation_split", self.validation_split)


@dataclass
class EncoderArguments:
    """Checkpoint to start from."""

    _argument_group_name = "encoder"

    model_name_or_path: str = field(
        metadata={
            "help": "Encoder to start from: hub name, folder of transformers, or output folder of "
            "one of these scripts."
        }
    )
    tokenizer_name: str | None = arg(
        None, "Tokenizer: hub name or folder.", shown="that of the model"
    )
    model_revision: str = arg("main", "Branch, tag or commit of a hub model.")
    trust_remote_code: bool = arg(False, "Whether to run code that a hub model brings along.")

    def __post_init__(self) -> None:
        check_model_folder(self.model_name_or_path)

    @property
    def hub_kwargs(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained`."""
        return {"revision": self.model_revision, "trust_remote_code": self.trust_remote_code}


@dataclass
class WindowArguments:
    """How documents are cut into windows."""

    _argument_group_name = "windows (a folder of run_finetune.py brings its own; flags override it)"

    truncation: str | None = arg(
        None,
        "What is read of a document: head, tail, head_tail (one window) or hierarchical (as "
        "many windows as it needs).",
        shown="head, with --spans_column_name hierarchical",
        common=True,
    )
    max_seq_length: int | None = arg(
        None,
        "Tokens in a window, special tokens included.",
        shown="what the encoder takes, at most 512",
        common=True,
    )
    head_tokens: int | None = arg(
        None,
        "Tokens that head_tail takes from the start of a document; the others are from its end.",
        shown="128 of 510, in proportion",
    )
    segment_overlap: int | None = arg(
        None, "Tokens that neighbouring hierarchical windows share.", shown="0"
    )
    max_segments: int | None = arg(None, "Most hierarchical windows of a document.", shown="all")
    segment_choice: str | None = arg(
        None, "Windows that --max_segments keeps: head, tail or head_tail.", shown="head"
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
        """Fields that the user set."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}


@dataclass
class SpanArguments:
    """Labelled spans of words inside documents, in place of labelled documents."""

    _argument_group_name = "labelled spans of words"

    spans_column_name: str | None = arg(
        None,
        "Column with labelled spans of words, which are classified in place of documents: a "
        "list of {words: [[3, 4]], label: PER}; for a pair, two lists of word numbers.",
    )
    tokens_column_name: str = arg("tokens", "Column with the words of a document, a list.")


def check_training(training: Any) -> None:
    """Check transformers.TrainingArguments for what no training script here can do.

    Raises:
        InputError: as the functions that it calls.
    """
    refuse_data_parallel(training.n_gpu)
    check_processes(training.world_size)
    refuse_missing_reporters(training)
    refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)
    refuse_push(training)


def refuse_other_order(training: Any) -> None:
    """Refuse flags that ask the Trainer to order the rows, which is done here.

    Raises:
        InputError: for any order but a random one.
    """
    strategy = getattr(training, "train_sampling_strategy", "random")  # its name since 5.2
    if strategy != "random" or getattr(training, "group_by_length", False):
        raise InputError(
            "--batch_by_length orders batches here; leave the Trainer's own order alone"
        )


def refuse_push(training: Any) -> None:
    """Refuse to upload while training: that is another model than the best, without its card.

    Raises:
        InputError: naming the command that uploads the finished folder.
    """
    if training.push_to_hub:
        name = training.hub_model_id or "NAME"
        raise InputError(
            "--push_to_hub would upload another model than the best, without its card; leave it "
            f"out, and then: hf upload {name} {training.output_dir}"
        )


def refuse_missing_reporters(training: Any) -> None:
    """Refuse a --report_to that is not known or not installed.

    Raises:
        InputError: naming it.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()
    except (RuntimeError, ValueError, ImportError) as error:
        said = str(error).splitlines()[0]
        raise InputError(f"--report_to {' '.join(training.report_to)}: {said}") from error


def unescape(text: str) -> str:
    """Replace the characters \\t and \\n, as a shell passes them, by a tab and a line break."""
    return text.replace("\\t", "\t").replace("\\n", "\n")
