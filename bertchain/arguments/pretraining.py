"""The arguments of run_itpt.py beside those that scripts share."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bertchain.arguments.common import (
    EncoderArguments,
    TextArguments,
    arg,
    check_training,
)
from bertchain.cli import read_arguments
from bertchain.errors import InputError, at_least, one_of, share
from bertchain.runtime import outputs
from bertchain.runtime.given import Hooks


@dataclass
class CorpusArguments:
    """Which text, in named corpora."""

    _argument_group_name = "corpora"

    train_file: list[str] = arg(
        [],
        "Files of text: path, or name=path with the name of a corpus (without one: task). .csv "
        ".tsv .txt .json .jsonl .parquet, each also .gz.",
        common=True,
    )
    dataset_name: str | None = arg(
        None, "Hub data set whose train split joins the corpus task.", common=True
    )
    dataset_config_name: str | None = arg(None, "Configuration of that data set.")
    corpora: str | None = arg(
        None,
        "YAML file of corpora whose tables have columns of their own; name: {file or "
        "dataset_name, text_column_names ...}.",
        common=True,
    )
    corpus_weights: list[str] = arg(
        [],
        "How often a corpus is used: name=2 twice an epoch, name=0.5 a random half of it; with "
        "--streaming the odds that a document comes from it.",
        shown="1 for each",
        common=True,
    )
    test_file: list[str] = arg(
        [],
        "Files of test text, whose documents are left out of the corpora, or see next.",
        common=True,
    )
    include_test_text: bool = arg(
        False, "Train on the text of the test set too, which makes scores transductive."
    )
    deduplicate: bool = arg(True, "Keep one of the documents with the same words.")
    max_train_samples: int | None = arg(
        None, "Number of documents to use, the first of each table.", shown="all"
    )
    validation_split: float = arg(
        0.05, "Share of the documents that is held out to measure the loss.", common=True
    )
    streaming: bool = arg(
        False, "Read text while training and not before; needs --max_steps.", common=True
    )

    def __post_init__(self) -> None:
        if not (self.train_file or self.dataset_name or self.corpora):
            raise InputError("no text: give --train_file, --dataset_name or --corpora")
        share("validation_split", self.validation_split)
        at_least("max_train_samples", self.max_train_samples, 1)


@dataclass
class PackingArguments:
    """How documents become rows, and rows batches."""

    _argument_group_name = "rows and batches"

    max_seq_length: int | None = arg(
        None,
        "Tokens of a row, special tokens included.",
        shown="what the model takes, at most 512",
        common=True,
    )
    packing: bool = arg(
        False,
        "Put several short documents into a row, where they do not see each other; without it a "
        "row is one window of a document.",
        common=True,
    )
    tokens_per_batch: int | None = arg(
        None,
        "Most tokens of a training batch, padding included.",
        shown="--per_device_train_batch_size rows, however long",
        common=True,
    )
    batch_by_length: bool = arg(True, "Put rows of similar length into a training batch.")

    def __post_init__(self) -> None:
        at_least("max_seq_length", self.max_seq_length, 1)
        at_least("tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class MaskArguments:
    """What is to be predicted."""

    _argument_group_name = "masks"

    mlm_probability: float = arg(
        0.15, "Share of the tokens to predict; up to 0.4 has been useful.", common=True
    )
    mask_unit: str = arg(
        "token", "What is chosen at once: token, or word (all its tokens or none).", common=True
    )
    word_segmenter: str = arg(
        "characters",
        "Words of Chinese and Japanese, for --mask_unit word: each of the characters, or those "
        "of jieba (pip install jieba).",
    )
    mask_replace_prob: float = arg(
        0.8, "Share of the tokens to predict that becomes the mask token."
    )
    random_replace_prob: float = arg(
        0.1, "Share of the tokens to predict that becomes a random token; the rest stays."
    )

    def __post_init__(self) -> None:
        share("mlm_probability", self.mlm_probability)
        one_of("mask_unit", self.mask_unit, ("token", "word"))
        one_of("word_segmenter", self.word_segmenter, ("characters", "jieba"))
        at_least("mask_replace_prob", self.mask_replace_prob, 0)
        at_least("random_replace_prob", self.random_replace_prob, 0)
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise InputError(
                f"--mask_replace_prob {self.mask_replace_prob} and --random_replace_prob "
                f"{self.random_replace_prob} add up to more than 1"
            )


@dataclass
class CheckpointArguments(EncoderArguments):
    """Which checkpoint to start from, or which config to train from scratch by."""

    model_name_or_path: str | None = arg(
        None, "Hub name, transformers folder, or folder of one of these scripts.", common=True
    )
    config_name: str | None = arg(
        None,
        "Hub name or folder of a config to train from scratch by, in place of a model; needs "
        "--tokenizer_name.",
    )
    add_tokens: str | None = arg(
        None,
        "New tokens: auto:500 for 500 frequent words that the tokenizer splits much, or a file "
        "with a word a line.",
        common=True,
    )
    keep_pooler: bool = arg(
        False, "Save the model's pooler along, for --token_pooling pooler of run_finetune.py."
    )

    def __post_init__(self) -> None:
        if bool(self.model_name_or_path) == bool(self.config_name):
            raise InputError("give either --model_name_or_path or, from scratch, --config_name")
        if self.config_name and not self.tokenizer_name:
            raise InputError("--config_name needs --tokenizer_name")
        if self.config_name and (self.keep_pooler or self.add_tokens):
            raise InputError("--config_name: there is no pooler to keep, no embedding to begin at")
        super().__post_init__()


@dataclass
class RunArguments:
    """What is trained first, when training stops, and what is kept of it."""

    _argument_group_name = "run"

    head_warmup_steps: int | None = arg(
        None,
        "Steps in which a masked-LM head that the checkpoint lacks is trained first, on the frozen "
        "encoder; they come before those of the run. 0 = none.",
        shown="until the held-out loss stops falling",
        common=True,
    )
    head_warmup_learning_rate: float = arg(1e-3, "Learning rate of these steps.")
    blend_with_start: float = arg(
        0.0,
        "Share of the weights before training in the encoder that is saved: (1 - share) * trained "
        "+ share * start.",
    )
    early_stopping_patience: int | None = arg(
        None,
        "Number of evaluations without a better held-out loss after which training stops.",
        shown="never",
        common=True,
    )
    save_at_steps: list[int] = arg(
        [], "Steps whose model is kept in a folder step-N; 0 is the model before training."
    )
    keep_checkpoints: bool = arg(False, "Keep checkpoint-* folders after training.")

    def __post_init__(self) -> None:
        at_least("head_warmup_steps", self.head_warmup_steps, 0)
        at_least("head_warmup_learning_rate", self.head_warmup_learning_rate, 0)
        if not 0 <= self.blend_with_start <= 1:
            raise InputError(f"--blend_with_start {self.blend_with_start} must be 0, 1 or between")
        at_least("early_stopping_patience", self.early_stopping_patience, 1)
        for step in self.save_at_steps:
            at_least("save_at_steps", step, 0)


GROUPS = (
    CorpusArguments,
    TextArguments,
    PackingArguments,
    MaskArguments,
    CheckpointArguments,
    RunArguments,
)


class Arguments(NamedTuple):
    """The arguments of run_itpt.py, by group."""

    corpus: CorpusArguments
    text: TextArguments
    packing: PackingArguments
    mask: MaskArguments
    checkpoint: CheckpointArguments
    run: RunArguments
    training: Any  # transformers.TrainingArguments, which takes seconds to import
    run_config: dict[str, Any]  # every argument that is not None, to repeat the run
    hooks: Hooks = Hooks()  # what only Python can give


def tables_of(corpora: str | None) -> list[Any]:
    """List the paths in --corpora, and its own; what is no path is refused where it is read."""
    if corpora is None:
        return []
    listed = []
    for entries in read_arguments(corpora, "--corpora").values():
        for entry in entries if isinstance(entries, list) else [entries]:
            listed.append(entry.get("file") if isinstance(entry, dict) else entry)
    return [*listed, *([] if corpora.startswith("{") else [corpora])]


def check_combinations(args: Arguments) -> None:
    """Check combinations of arguments across groups.

    Raises:
        InputError: naming the arguments, where one needs another or excludes it.
    """
    training, checkpoint = args.training, args.checkpoint
    check_training(training)
    outputs.check_apart(
        training.output_dir,
        train_file=[name.partition("=")[2] or name for name in args.corpus.train_file],
        test_file=[name.partition("=")[2] or name for name in args.corpus.test_file],
        corpora=tables_of(args.corpus.corpora),
        dataset_name=args.corpus.dataset_name,
        model_name_or_path=checkpoint.model_name_or_path,
        config_name=checkpoint.config_name,
        tokenizer_name=checkpoint.tokenizer_name,
    )
    outputs.check_unused(training.output_dir, training.resume_from_checkpoint)
    if args.run.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end true")
    if args.run.head_warmup_steps and checkpoint.config_name:
        raise InputError("--head_warmup_steps: from scratch there is no encoder to wait for a head")
    if args.run.blend_with_start and checkpoint.config_name:
        raise InputError("--blend_with_start: from scratch there is no start to go back to")
    if not args.corpus.streaming:
        return
    if training.max_steps < 1:
        raise InputError("--streaming needs --max_steps: text without end has no epochs")
    if training.dataloader_num_workers:
        raise InputError("--streaming reads in the training process; --dataloader_num_workers 0")
    if args.packing.packing:
        raise InputError("--streaming does not go with --packing")
