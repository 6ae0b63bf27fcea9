"""Features of a frozen encoder: every layer and pooling in one pass, on disk, memory-mapped."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor, nn
from tqdm.auto import tqdm

from bertchain.data.batching import DocumentCollator, longest_first
from bertchain.data.spans import offsets_of
from bertchain.data.tokenization import Preprocessor
from bertchain.errors import InputError
from bertchain.models.modeling import encode_layers, num_blocks
from bertchain.models.padding_free import remove_padding
from bertchain.models.pooling import TOKEN_POOLINGS, mean_items
from bertchain.probing.feature_files import allocate, is_array, mark_of
from bertchain.runtime import screen
from bertchain.runtime.devices import suit_many_shapes
from bertchain.runtime.distributed import barrier, broadcast, is_main_process, rank_and_size
from bertchain.runtime.files import check_seal, seal, sync
from bertchain.runtime.locks import wait_for_lock
from bertchain.runtime.outputs import WRITING
from bertchain.runtime.records import versions

logger = logging.getLogger(__name__)


DTYPES = {"float32": np.float32, "float16": np.float16}
SECONDS_BETWEEN_MARKS = 10.0  # what a kill can cost
CODE = (  # features made by other code are not used again
    "probing/features.py",
    "data/batching.py",
    "data/spans.py",
    "models/encoding.py",
    "models/loading.py",
    "models/modeling.py",
    "models/padding_free.py",
    "models/pooling.py",
)


class FeatureStore:
    """Features of one encoder on disk, as [rows, layers, poolings, hidden].

    A file's name is a hash of the encoder's weights and config, the windows, the options, the
    versions and the code that computes them: what changed is never read from an old file. Rows are
    written where they belong as they are computed, so memory does not grow with their number; a
    run that was killed goes on where it was; several processes each compute their share. A file
    ends with the hash of its content, and a batch that is there already is known by its own: what
    was damaged since is computed again.
    """

    def __init__(
        self,
        folder: Path,
        encoder: nn.Module,
        padding_id: int,
        dtype: str = "float32",
        half_precision: bool = False,
    ):
        """
        Args:
            padding_id: token id that fills windows up.
            dtype: of stored numbers, a key of DTYPES.
            half_precision: compute in bf16 on a GPU (fp16 where it has no bf16).
        """
        suit_many_shapes(encoder.device)
        remove_padding(encoder, encoder.device)
        self.folder = folder
        self.encoder = encoder.eval()
        self.collate = DocumentCollator(padding_id)
        self.encoder_hash = hash_encoder(encoder)
        self.dtype = dtype
        self.half = half_type(encoder.device) if half_precision else None

    def of(
        self, dataset: Dataset, poolings: Sequence[str], tokens_per_batch: int, what: str
    ) -> np.ndarray:
        """Read the features of every row, memory-mapped; compute those that are not there yet.

        Args:
            dataset: documents as windows, with their lengths in tokens.
            poolings: names in `TOKEN_POOLINGS`.
            tokens_per_batch: of a forward pass, padding included.
            what: the rows' name in the log.

        Returns:
            [rows, layers, poolings, hidden]
        """
        path = self.folder / f"{self.key(dataset, poolings)}.npy"
        if self._is_there(path):
            logger.info("%s: features read from %s", what, path)
            return np.load(path, mmap_mode="r")
        self.folder.mkdir(parents=True, exist_ok=True)
        with wait_for_lock(path, what):
            if not self._is_there(path):  # another run may have made it meanwhile
                self._make(path, dataset, poolings, tokens_per_batch, what)
        return np.load(path, mmap_mode="r")

    def _is_there(self, path: Path) -> bool:
        """Return whether the main process finds the file as it was written."""
        if is_main_process() and path.is_file() and not check_seal(path):
            logger.warning("%s is damaged: computed again", path)
            path.unlink()
        return broadcast(path.is_file())

    def _make(
        self,
        path: Path,
        dataset: Dataset,
        poolings: Sequence[str],
        tokens_per_batch: int,
        what: str,
    ) -> None:
        """Make the file of features, all processes together; go on with what a killed run left."""
        start = time.perf_counter()
        batches = list(token_batches(dataset["length"][:], tokens_per_batch))
        unfinished = path.with_suffix(f".{tokens_per_batch}.unfinished.npy")
        marks = path.with_suffix(f".{tokens_per_batch}.marks.npy")
        if is_main_process():
            for left in self.folder.glob(f"{WRITING}{path.stem}*"):  # by a run that was killed
                left.unlink(missing_ok=True)
            self._begin(unfinished, marks, self.shape(dataset, poolings), len(batches))
        barrier()
        self._compute_all(dataset, poolings, batches, unfinished, marks, what)
        barrier()
        if is_main_process():
            seal(unfinished)
            sync(unfinished)
            unfinished.replace(path)
            marks.unlink()
        barrier()
        seconds = time.perf_counter() - start
        logger.info("%s: features of %d rows in %.1f s", what, len(dataset), seconds)

    def shape(self, dataset: Dataset, poolings: Sequence[str]) -> tuple[int, int, int, int]:
        config = self.encoder.config
        hidden = config.get_text_config().hidden_size
        return len(dataset), num_blocks(config) + 1, len(poolings), hidden

    def rows_of(self, dataset: Dataset, batch: np.ndarray) -> np.ndarray:
        """Numbers of the features' rows that belong to a batch of documents."""
        return batch

    def _begin(self, unfinished: Path, marks: Path, shape: tuple[int, ...], batches: int) -> None:
        """Make an empty file and one mark a batch; those of a killed run stay as they are."""
        dtype = DTYPES[self.dtype]
        if is_array(unfinished, dtype, shape) and is_array(marks, np.uint64, (batches,)):
            return
        allocate(unfinished, dtype, shape)
        allocate(marks, np.uint64, (batches,))

    def _compute_all(
        self,
        dataset: Dataset,
        poolings: Sequence[str],
        batches: list[np.ndarray],
        unfinished: Path,
        marks: Path,
        what: str,
    ) -> None:
        """Compute this process's batches. A batch is marked only when its rows are on disk."""
        rank, size = rank_and_size()
        features, done = np.load(unfinished, mmap_mode="r+"), np.load(marks, mmap_mode="r+")
        mine = range(rank, len(batches), size)
        there = {i for i in mine if done[i] == mark_of(features[self.rows_of(dataset, batches[i])])}
        if there:
            logger.info("%s: %d of %d batches were there", what, len(there), len(mine))
        fresh, last = {}, time.monotonic()

        def mark() -> None:
            features.flush()
            done[[*fresh]] = [*fresh.values()]
            done.flush()
            fresh.clear()

        left = [i for i in mine if i not in there]
        for i in tqdm(left, desc=f"Features of {what}", disable=screen.bars_are_hidden()):
            found = self.compute(dataset[batches[i]], poolings)
            features[self.rows_of(dataset, batches[i])] = found
            fresh[i] = mark_of(found)
            if time.monotonic() - last > SECONDS_BETWEEN_MARKS:
                mark()
                last = time.monotonic()
        mark()

    @torch.no_grad()
    def compute(self, columns: dict[str, list], poolings: Sequence[str]) -> np.ndarray:
        """Features of a batch [rows, layers, poolings, hidden].

        A document's vector is the mean over its windows.
        """
        layers, present, mask = self._forward(columns)
        pooled = [
            torch.stack([TOKEN_POOLINGS[name](layer, mask) for name in poolings], dim=1)
            for layer in layers
        ]  # each [windows, poolings, hidden]
        vectors = torch.stack(pooled, dim=1).flatten(1)  # [windows, layers * poolings * hidden]
        documents = vectors.new_zeros(*present.shape, vectors.shape[-1])
        documents[present] = vectors
        means = mean_items(documents, present)  # [documents, ...]
        return self._stored(means.view(len(present), len(layers), len(poolings), -1))

    def _forward(self, columns: dict[str, list]) -> tuple[list[Tensor], Tensor, Tensor]:
        """All layers [windows, length, hidden] of the documents' windows; which windows exist
        [documents, windows]; which tokens do [windows, length]."""
        kept = [name for name in ("windows", "window_types") if name in columns]
        rows = [
            dict(zip(kept, values, strict=True))
            for values in zip(*(columns[name] for name in kept), strict=True)
        ]
        device = self.encoder.device
        batch = {k: v.to(device) for k, v in self.collate(rows).items()}
        present = batch["attention_mask"].bool().any(dim=-1)
        mask = batch["attention_mask"][present]
        types = batch["token_type_ids"][present] if "token_type_ids" in batch else None
        numbers = list(range(num_blocks(self.encoder.config) + 1))
        half = nullcontext() if self.half is None else torch.autocast(device.type, self.half)
        with half:
            layers = encode_layers(self.encoder, batch["input_ids"][present], mask, types, numbers)
        return [layer.float() for layer in layers], present, mask.bool()

    def _stored(self, features: Tensor) -> np.ndarray:
        found = features.cpu().numpy()
        if np.abs(found).max(initial=0) > np.finfo(DTYPES[self.dtype]).max:
            raise InputError("a feature is too large for --feature_dtype float16; use float32")
        return found.astype(DTYPES[self.dtype])

    def key(self, dataset: Dataset, poolings: Sequence[str]) -> str:
        content = hashlib.sha256()
        kept = [
            n for n in ("windows", "window_types", "token_positions") if n in dataset.column_names
        ]
        for table in dataset.select_columns(kept).with_format("arrow").iter(10_000):
            for column in table.columns:
                add_numbers(content, column.combine_chunks())
        for name in CODE:
            content.update((Path(__file__).resolve().parents[1] / name).read_bytes())
        found = versions()
        parts: list[Any] = [self.encoder_hash, *poolings, found["torch"], found["transformers"]]
        parts += [self.encoder.device.type, self.dtype, self.half]
        content.update("\n".join(map(str, parts)).encode())
        return content.hexdigest()[:32]


class TargetStore(FeatureStore):
    """Features of labelled spans on disk, as [targets, layers, 1, spans * hidden].

    A span's vector is the mean over its tokens, in whichever windows they stand; a pair has two
    spans side by side (see `data.spans`).
    """

    def __init__(
        self,
        max_seq_length: int,
        num_spans: int,
        folder: Path,
        encoder: nn.Module,
        padding_id: int,
        dtype: str = "float32",
        half_precision: bool = False,
    ):
        super().__init__(folder, encoder, padding_id, dtype, half_precision)
        self.max_seq_length, self.num_spans = max_seq_length, num_spans

    def shape(self, dataset: Dataset, poolings: Sequence[str]) -> tuple[int, int, int, int]:
        _, layers, _, hidden = super().shape(dataset, poolings)
        return int(offsets_of(dataset)[-1]), layers, 1, self.num_spans * hidden

    def rows_of(self, dataset: Dataset, batch: np.ndarray) -> np.ndarray:
        if dataset is not self.counted:
            self.counted, self.offsets = dataset, offsets_of(dataset)
        return np.concatenate([np.arange(*self.offsets[[i, i + 1]]) for i in batch])

    counted: Dataset | None = None

    @torch.no_grad()
    def compute(self, columns: dict[str, list], poolings: Sequence[str]) -> np.ndarray:
        """Features of a batch of documents [targets, layers, 1, spans * hidden]."""
        layers, present, mask = self._forward(columns)
        length = mask.shape[1]
        first_window = [0, *present.sum(dim=1).cumsum(0).tolist()]
        tokens, span_of = [], []  # of all spans: which tokens of the flat windows; whose they are
        spans = 0
        for document, targets in enumerate(columns["token_positions"]):
            for target in targets:
                for span in target:
                    for place in span:
                        window, position = divmod(place, self.max_seq_length)
                        tokens.append((first_window[document] + window) * length + position)
                        span_of.append(spans)
                    spans += 1
        index = torch.tensor(span_of, device=mask.device, dtype=torch.long)
        taken = torch.tensor(tokens, device=mask.device, dtype=torch.long)
        counts = torch.bincount(index, minlength=spans).clamp_min(1).unsqueeze(-1)
        found = []
        for layer in layers:
            vectors = layer.flatten(0, 1)[taken]  # [tokens, hidden]
            sums = vectors.new_zeros(spans, vectors.shape[-1]).index_add_(0, index, vectors)
            found.append(
                (sums / counts).view(spans // self.num_spans, -1)
            )  # [targets, spans * hidden]
        return self._stored(torch.stack(found, dim=1).unsqueeze(2))


def make_store(
    folder: Path, encoder: nn.Module, preprocessor: Preprocessor, dtype: str, half_precision: bool
) -> FeatureStore:
    """Make the store of documents, or of labelled spans, as the preprocessor encodes them."""
    pad, spans = preprocessor.pad_id, preprocessor.num_spans
    if not spans:
        return FeatureStore(folder, encoder, pad, dtype, half_precision)
    length = preprocessor.windows.max_seq_length
    return TargetStore(length, spans, folder, encoder, pad, dtype, half_precision)


def find_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def half_type(device: torch.device) -> torch.dtype | None:
    """Find the half precision of a device: bf16, fp16 where the GPU has no bf16, None on a CPU."""
    if device.type != "cuda":
        return None
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def hash_encoder(encoder: nn.Module) -> str:
    """Hash weights and config: the same whether a checkpoint came from a hub or a folder."""
    content = hashlib.sha256(type(encoder).__name__.encode())
    settings = encoder.config.to_dict()
    settings = {k: v for k, v in settings.items() if not k.startswith("_") and k != "architectures"}
    content.update(repr(sorted(settings.items(), key=lambda item: item[0])).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()


def add_numbers(content: Any, array: pa.Array) -> None:
    """Add nested lists of whole numbers, and the length of each list, to a hash."""
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        content.update(array.value_lengths().to_numpy().astype(np.int64).tobytes() + b"|")
        array = array.flatten()
    content.update(array.to_numpy(zero_copy_only=False).astype(np.int64).tobytes() + b"|")


def token_batches(lengths: list[int], tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Yield row numbers, longest first, in batches of at most so many tokens (or of one row)."""
    lengths = np.asarray(lengths)
    batch: list[int] = []
    for row in longest_first(lengths):
        longest = lengths[batch[0]] if batch else lengths[row]
        if batch and longest * (len(batch) + 1) > tokens_per_batch:
            yield np.array(batch)
            batch = []
        batch.append(row)
    if batch:
        yield np.array(batch)
