"""Documents to windows: tokenizer, window settings, and what the windows cut off."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bertchain.data import spans
from bertchain.data.batching import DocumentCollator
from bertchain.data.tables import fingerprint
from bertchain.errors import InputError, as_input_error
from bertchain.models.loading import max_positions, quiet_loading, read_config, read_configs
from bertchain.models.support import count_token_types
from bertchain.models.weights import NO_CODE
from bertchain.models.windows import (
    IDS_ALONE,
    SpecialTokens,
    WindowSpec,
    cut_pair_windows,
    cut_windows,
    find_special_tokens,
    first_text_room,
    kept_tokens,
    window_spans,
)

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- tokenizer and window settings


def load_tokenizer(name: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a padding token (a decoder's) pads with its end token.

    Args:
        kwargs: for `AutoTokenizer.from_pretrained`, such as `revision`, `trust_remote_code`.

    Raises:
        InputError: if it cannot be loaded, or `name` is a folder without its files.
    """
    with as_input_error(f"tokenizer of {name}", Exception), quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(name, **NO_CODE | kwargs)
    if Path(name).is_dir() and not _has_files(tokenizer, Path(name)):
        raise InputError(
            f"{name} holds a model without its tokenizer; give the --tokenizer_name that belongs "
            "to it, or save the tokenizer there"
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked, so any id does
    return tokenizer


def _has_files(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Return whether the vocabulary is there; without, transformers makes an empty tokenizer."""
    vocabulary = set(tokenizer.vocab_files_names.values()) - {"tokenizer_config.json"}
    names = {"tokenizer.json", *vocabulary} if vocabulary else {"tokenizer_config.json"}
    return any((folder / name).is_file() for name in names)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str) -> None:
    """Check that the model of `path` embeds every token; raises InputError if not."""
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, {path} has {rows}; "
            "give the --tokenizer_name that belongs to the model"
        )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the padding token; 0 where there is none: padding is masked, so any id does."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


NEEDED_TRUNCATIONS = {  # of flags that mean something under one truncation alone
    "head_tokens": "head_tail",
    "segment_overlap": "hierarchical",
    "max_segments": "hierarchical",
    "segment_choice": "hierarchical",
}


def resolve_windows(
    given: dict[str, Any], path: str, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
) -> tuple[WindowSpec, SpecialTokens]:
    """Resolve window settings: flags, else a trained classifier's, else the defaults.

    The default length is what model and tokenizer take, at most 512 tokens.

    Args:
        given: the fields of `WindowSpec` that the user set.
        path: the checkpoint, whose config says how many positions there are.
        kwargs: for `AutoConfig.from_pretrained`.

    Returns:
        the settings, and the special tokens that the tokenizer adds.

    Raises:
        InputError: for an architecture that is not supported, a window beyond the model's
            positions or without room for text, and for flags that the truncation does not use.
    """
    config, classifier = read_configs(path, **kwargs)
    known = dict(classifier.windows) if classifier is not None else {}
    special = known_types_only(find_special_tokens(tokenizer), config)
    limit = max_positions(config)
    known.setdefault("max_seq_length", int(min(512, limit, tokenizer.model_max_length)))
    spec = WindowSpec(**known | given)
    if spec.max_seq_length > limit:
        raise InputError(
            f"--max_seq_length {spec.max_seq_length} is beyond the {limit} positions of {path}"
        )
    for flag, truncation in NEEDED_TRUNCATIONS.items():
        if flag in given and spec.truncation != truncation:
            raise InputError(f"--{flag} needs --truncation {truncation}, not {spec.truncation}")
    if "segment_choice" in given and spec.max_segments is None:
        raise InputError("--segment_choice needs --max_segments")
    with as_input_error():
        window_spans(spec.max_seq_length + 1, spec, special.pair_count)  # is there room for text?
    return spec, special


def known_types_only(special: SpecialTokens, config: PreTrainedConfig) -> SpecialTokens:
    """Leave out a tokenizer's token types where the model has fewer (RoBERTa weights, say, with a
    BERT tokenizer); the special tokens between two texts still part them."""
    known = count_token_types(config)
    if special.pair_types is None or max(special.pair_types) < known:
        return special
    logger.info("Token types of a pair are left out: %s takes %d", config.model_type, known)
    return replace(special, pair_types=None)


@dataclass(frozen=True)
class Preprocessor:
    """Tokenizer, windows and collator of one checkpoint: documents to windows to tensors.

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

        Raises:
            InputError: as `load_tokenizer` and `resolve_windows`.
        """
        read_config(path, **hub_kwargs)  # a tokenizer's error would hide what is not supported
        tokenizer = load_tokenizer(tokenizer_name or path, **hub_kwargs)
        if num_spans:  # no word may be cut off
            given = {"truncation": "hierarchical"} | given
        windows, special = resolve_windows(given, path, tokenizer, **hub_kwargs)
        return cls(tokenizer, windows, special, num_spans)

    def encode(self, documents: dict[str, Dataset], name: str = "") -> dict[str, Dataset]:
        """Cut documents, by split, into windows; see `to_windows` and `spans.cut_targets`.

        Args:
            name: what the log puts before the split, as "model, ".
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
        """The collator of encoded documents; with spans it adds `token_positions`."""
        if self.num_spans:
            return spans.SpanCollator(self.pad_id, self.windows.max_seq_length)
        return DocumentCollator(self.pad_id)

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
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
    """Counts of documents, tokens and windows: how much of the text the windows leave out."""

    documents: int
    longer: int  # documents that do not fit one window
    tokens: int
    kept: int  # tokens that are in some window
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
    """Tokenize documents and cut them into windows.

    Returns:
        the documents with columns windows (lists of ids), window_types (pairs only, where the
        tokenizer has token types), length (tokens in all windows), tokens (of the text) and cut
        (those in no window) in place of text; and a report of what was cut off.
    """
    names = [name for name in ("text", "text_pair") if name in documents.column_names]
    counts = Counter()

    def convert(rows: dict[str, list]) -> dict[str, list]:
        ids = [tokenizer(rows[name], **IDS_ALONE)["input_ids"] for name in names]
        columns: dict[str, list] = {"windows": [], "length": [], "tokens": [], "cut": []}
        for texts in zip(*ids, strict=True):
            windows, types = _cut(texts, spec, special)
            columns["windows"].append(windows)
            if types is not None:
                columns.setdefault("window_types", []).append(types)
            columns["length"].append(sum(map(len, windows)))
            count = _count(texts, windows, spec, special)
            columns["tokens"].append(count["tokens"])
            columns["cut"].append(count["tokens"] - count["kept"])
            counts.update(count)
        return columns

    cut = documents.map(
        convert,
        batched=True,
        remove_columns=names,
        new_fingerprint=fingerprint(documents, convert),
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
        kept = kept_tokens(window_spans(tokens, spec, special.count))
    else:
        first = min(len(texts[0]), first_text_room(spec, special))
        kept = first + kept_tokens(window_spans(len(texts[1]), spec, special.pair_count + first))
    room = spec.max_seq_length - (special.count if len(texts) == 1 else special.pair_count)
    return {
        "documents": 1,
        "longer": int(tokens > room),
        "tokens": tokens,
        "kept": kept,
        "windows": len(windows),
    }
