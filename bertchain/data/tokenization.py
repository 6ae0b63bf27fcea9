"""Documents -> windows -> batches: tokenizer, window settings, collator, the order of rows."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bertchain.data import spans
from bertchain.data.batching import DocumentCollator
from bertchain.errors import InputError, as_input_error
from bertchain.models.loading import is_document_classifier, max_positions, quiet_loading
from bertchain.models.modeling import DocumentClassifierConfig
from bertchain.models.windows import (
    IDS_ALONE,
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_spans,
    cut_windows,
    find_special_tokens,
    first_text_room,
    kept_tokens,
)

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- tokenizer and window settings


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer; a decoder's without a padding token pads with its end token.

    Args:
        kwargs: for `AutoTokenizer.from_pretrained`, such as `revision`, `trust_remote_code`.
    """
    kwargs = {"trust_remote_code": False} | kwargs  # unsaid, it would be asked for
    with as_input_error(f"tokenizer of {name}"), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    if Path(name).is_dir() and not _has_files(tokenizer, Path(name)):
        raise InputError(
            f"{name} holds a model without its tokenizer; give the --tokenizer_name that belongs "
            "to it, or save the tokenizer there"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any id does
    return tokenizer


def _has_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Without them transformers makes a tokenizer that knows no word."""
    vocabulary = set(tokenizer.vocab_files_names.values()) - {"tokenizer_config.json"}
    names = {"tokenizer.json", *vocabulary} if vocabulary else {"tokenizer_config.json"}
    return any((folder / name).is_file() for name in names)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str) -> None:
    """Raises InputError if the tokenizer has more tokens than the model of `path` embeds."""
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, {path} has {rows}; "
            "give the --tokenizer_name that belongs to the model"
        )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


# Flags that mean something under one truncation only.
ONLY_UNDER = {
    "head_tokens": "head_tail",
    "segment_overlap": "hierarchical",
    "max_segments": "hierarchical",
    "segment_choice": "hierarchical",
}


def resolve_windows(
    given: dict[str, Any], path: str, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
) -> tuple[WindowSpec, SpecialTokens]:
    """Flags, else what a trained classifier says, else head windows of what the model takes.

    Args:
        given: the fields of `WindowSpec` that the user set.
        path: the checkpoint, whose config tells how many positions there are.
        kwargs: for `AutoConfig.from_pretrained`.

    Raises:
        InputError: for a window beyond the model's positions or without room for text, and for
            flags that the truncation does not use.
    """
    with as_input_error(f"--model_name_or_path {path}"):
        if is_document_classifier(path):
            classifier = DocumentClassifierConfig.from_pretrained(path)
            config, known = classifier.encoder_config, dict(classifier.windows)
        else:
            config, known = AutoConfig.from_pretrained(path, **kwargs), {}
    special = find_special_tokens(tokenizer)
    limit = max_positions(config)
    known.setdefault("max_seq_length", int(min(512, limit, tokenizer.model_max_length)))
    spec = WindowSpec(**known | given)
    if spec.max_seq_length > limit:
        raise InputError(
            f"--max_seq_length {spec.max_seq_length} is beyond the {limit} positions of {path}"
        )
    for flag, truncation in ONLY_UNDER.items():
        if flag in given and spec.truncation != truncation:
            raise InputError(f"--{flag} needs --truncation {truncation}, not {spec.truncation}")
    if "segment_choice" in given and spec.max_segments is None:
        raise InputError("--segment_choice needs --max_segments")
    with as_input_error():
        cut_spans(spec.max_seq_length + 1, spec, special.pair_count)  # is there room for text?
    return spec, special


@dataclass(frozen=True)
class Preprocessor:
    """Documents -> windows -> tensors, as one checkpoint takes them.

    Attributes:
        windows: how documents are cut.
        special: the special tokens of a window.
        num_spans: see `Task.num_spans`; 0: documents are classified.
    """

    tokenizer: PreTrainedTokenizerBase
    windows: WindowSpec
    special: SpecialTokens
    num_spans: int = 0

    @classmethod
    def for_checkpoint(
        cls,
        path: str,
        given: dict[str, Any],
        num_spans: int = 0,
        tokenizer_name: str | None = None,
        **hub_kwargs: Any,
    ) -> "Preprocessor":
        """Load the tokenizer and resolve the windows of a checkpoint.

        Args:
            path: a hub name or folder.
            given: the fields of `WindowSpec` that the user set.
            num_spans: see `Task.num_spans`; labelled spans are hierarchical unless given.
            tokenizer_name: a hub name or folder; None: the checkpoint's own.
            hub_kwargs: `revision`, `trust_remote_code`.
        """
        tokenizer = load_tokenizer(tokenizer_name or path, **hub_kwargs)
        if num_spans:  # no word may be cut off
            given = {"truncation": "hierarchical"} | given
        windows, special = resolve_windows(given, path, tokenizer, **hub_kwargs)
        return cls(tokenizer, windows, special, num_spans)

    def encode(self, documents: dict[str, Dataset], name: str = "") -> dict[str, Dataset]:
        """Documents by split -> their windows; see `to_windows` and `spans.cut_targets`.

        Args:
            name: stands before the split in the log.
        """
        return {split: self._encode(rows, f"{name}{split}") for split, rows in documents.items()}

    def _encode(self, rows: Dataset, name: str) -> Dataset:
        if self.num_spans:
            return spans.cut_targets(rows, self.tokenizer, self.windows, self.special)
        encoded, report = to_windows(rows, self.tokenizer, self.windows, self.special)
        size = self.windows.max_seq_length
        logger.info("%s, %s %d: %s", name, self.windows.truncation, size, report)
        return encoded

    @property
    def collator(self) -> DocumentCollator:
        if self.num_spans:
            return spans.SpanCollator(self.pad_id, self.windows.max_seq_length)
        return DocumentCollator(self.pad_id)

    @property
    def pad_id(self) -> int:
        return pad_id(self.tokenizer)

    @property
    def config_fields(self) -> dict[str, Any]:
        """Fields of `DocumentClassifierConfig` that say how text is prepared."""
        return {
            "windows": self.windows.to_dict(),
            "special_tokens": self.special.to_dict(),
            "num_spans": self.num_spans,
            "pad_token_id": self.tokenizer.pad_token_id,
        }


# ---------------------------------------------------------------- windows


@dataclass(frozen=True)
class CutReport:
    """How much of the text the windows leave out."""

    documents: int
    longer: int  # documents that do not fit one window
    tokens: int
    kept: int
    windows: int

    def __str__(self) -> str:
        share = 100 * (1 - self.kept / max(1, self.tokens))
        return (
            f"{self.longer} of {self.documents} documents are longer than one window; "
            f"{share:.1f} % of {self.tokens} tokens are cut; {self.windows} windows"
        )


def to_windows(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, spec: WindowSpec, special: SpecialTokens
) -> tuple[Dataset, CutReport]:
    """Documents -> their windows.

    Returns:
        the documents with columns windows (lists of ids), window_types (pairs only, where the
        tokenizer has token types) and length (tokens in all windows), text removed; and what was
        cut.
    """
    pair = "text_pair" in documents.column_names
    counts = Counter()

    def convert(rows: dict[str, list]) -> dict[str, list]:
        ids = [
            tokenizer(rows[name], **IDS_ALONE)["input_ids"]
            for name in (("text", "text_pair") if pair else ("text",))
        ]
        columns: dict[str, list] = {"windows": [], "length": []}
        for texts in zip(*ids, strict=True):
            windows, types = _cut(texts, spec, special)
            columns["windows"].append(windows)
            if types is not None:
                columns.setdefault("window_types", []).append(types)
            columns["length"].append(sum(map(len, windows)))
            counts.update(_count(texts, windows, spec, special))
        return columns

    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    cut = documents.map(
        convert,
        batched=True,
        remove_columns=names,
        load_from_cache_file=False,  # would skip the counts, and not notice changed code
        desc="Tokenizing",
    )
    return cut, CutReport(**counts)


def _cut(
    texts: Sequence[list[int]], spec: WindowSpec, special: SpecialTokens
) -> tuple[list[list[int]], list[list[int]] | None]:
    if len(texts) == 2:
        return cut_pair_windows(texts[0], texts[1], spec, special)
    return cut_windows(texts[0], spec, special), None


def _count(
    texts: Sequence[list[int]], windows: list[list[int]], spec: WindowSpec, special: SpecialTokens
) -> dict[str, int]:
    tokens = sum(map(len, texts))
    if len(texts) == 1:
        kept = kept_tokens(cut_spans(tokens, spec, special.count))
    else:
        first = min(len(texts[0]), first_text_room(spec, special))
        kept = first + kept_tokens(cut_spans(len(texts[1]), spec, special.pair_count + first))
    room = spec.max_seq_length - (special.count if len(texts) == 1 else special.pair_count)
    return {
        "documents": 1,
        "longer": int(tokens > room),
        "tokens": tokens,
        "kept": kept,
        "windows": len(windows),
    }
