"""The arguments of run_itpt.py."""

from dataclasses import dataclass

from bertchain.arguments.common import EncoderArguments, arg
from bertchain.errors import InputError, at_least, one_of, share


@dataclass
class CorpusArguments:
    _argument_group_name = "corpora"

    train_file: list[str] = arg(
        [], "path or name=path ...: .csv .tsv .txt .json .jsonl .parquet (.gz). No name: task."
    )
    dataset_name: str | None = arg(None, "Hub data set (its train split), corpus task.")
    dataset_config_name: str | None = arg(None, "Its configuration.")
    corpora: str | None = arg(
        None, "YAML file, name: {file or dataset_name, text_column_names ...}, for own columns."
    )
    corpus_weights: list[str] = arg(
        [], "name=2: twice an epoch, name=0.5: a random half. --streaming: odds of being drawn."
    )
    test_file: list[str] = arg([], "Test text: is taken out of the corpora, or see next.")
    include_test_text: bool = arg(False, "Train on text of the test set too (transductive).")
    deduplicate: bool = arg(True, "Keep one of documents with the same words.")
    max_train_samples: int | None = arg(None, "Use the first N documents of each table.")
    validation_split: float = arg(0.05, "Share of the documents held out to measure the loss.")
    streaming: bool = arg(False, "Read text as it is needed; needs --max_steps.")

    def __post_init__(self) -> None:
        if not (self.train_file or self.dataset_name or self.corpora):
            raise InputError("no text: give --train_file, --dataset_name or --corpora")
        share("validation_split", self.validation_split)
        at_least("max_train_samples", self.max_train_samples, 1)


@dataclass
class BlockArguments:
    _argument_group_name = "rows and batches"

    max_seq_length: int | None = arg(
        None, "Tokens a row, special tokens included. Else: what the model takes, at most 512."
    )
    blocks: str = arg(
        "document", "document: a window a row. packed: short documents share a row, unseen."
    )
    tokens_per_batch: int | None = arg(
        None, "At most so many tokens a batch, padding included, in place of a number of rows."
    )
    batch_by_length: bool = arg(True, "Training batches hold rows of similar length.")

    def __post_init__(self) -> None:
        one_of("blocks", self.blocks, ("document", "packed"))
        at_least("max_seq_length", self.max_seq_length, 1)
        at_least("tokens_per_batch", self.tokens_per_batch, 1)


@dataclass
class MaskArguments:
    _argument_group_name = "masks"

    mlm_probability: float = arg(0.15, "Share of tokens to predict; up to 0.4 has been useful.")
    mask_unit: str = arg("token", "token, word (all pieces or none) or ngram (runs of words).")
    max_ngram: int = arg(3, "Most words of a run.")
    word_segmenter: str = arg(
        "characters", "Chinese and Japanese: characters as words, or jieba (pip install jieba)."
    )
    mask_replace_prob: float = arg(0.8, "Share of the chosen that becomes the mask token.")
    random_replace_prob: float = arg(0.1, "Share that becomes a random token; the rest stays.")
    label_words: str | None = arg(
        None, "Label column: its words stand before the text, and half the time are predicted."
    )

    def __post_init__(self) -> None:
        share("mlm_probability", self.mlm_probability)
        one_of("mask_unit", self.mask_unit, ("token", "word", "ngram"))
        one_of("word_segmenter", self.word_segmenter, ("characters", "jieba"))
        at_least("max_ngram", self.max_ngram, 1)
        at_least("mask_replace_prob", self.mask_replace_prob, 0)
        at_least("random_replace_prob", self.random_replace_prob, 0)
        if self.mask_replace_prob + self.random_replace_prob > 1:
            raise InputError(
                f"--mask_replace_prob {self.mask_replace_prob} and --random_replace_prob "
                f"{self.random_replace_prob} add up to more than 1"
            )


@dataclass
class StartArguments(EncoderArguments):
    model_name_or_path: str | None = arg(
        None, "Hub name, transformers folder, or folder of one of these scripts."
    )
    config_name: str | None = arg(
        None, "In place of a model: train from scratch by this config, with --tokenizer_name."
    )
    add_tokens: str | None = arg(
        None, "auto:500: frequent words that are split much become tokens; or a file of words."
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


@dataclass
class RunArguments:
    _argument_group_name = "run"

    early_stopping_patience: int | None = arg(
        None, "Stop after N evaluations without a better held-out loss."
    )
    save_at_steps: list[int] = arg([], "Keep the model of these steps, 0 too, as step-N folders.")
    keep_checkpoints: bool = arg(False, "Keep checkpoint-* folders after the end.")

    def __post_init__(self) -> None:
        at_least("early_stopping_patience", self.early_stopping_patience, 1)
        for step in self.save_at_steps:
            at_least("save_at_steps", step, 0)
