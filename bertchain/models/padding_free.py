"""Batches without padding on a GPU: the tokens of all windows laid end to end in one row.

A batch of similar lengths has little padding, but with a mask of it attention runs on a slow
kernel. Laid end to end no mask is needed: each window attends to itself by where it starts and ends
(flash attention, Dao 2023, arXiv 2307.08691). What comes out is padded again, so that nothing else
knows of it.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from bertchain.models.loading import first_position, max_positions

logger = logging.getLogger(__name__)

END_TO_END = "end_to_end"  # name of this way to attend; a config never saves it
TRIAL_LENGTHS = (3, 160)  # of two windows; the longer one reaches beyond a local attention
CLOSE = 3e-3  # relative distance in float32, of which a GPU may round the products
CLOSE_IN_HALF = 2e-2
FIRST_CAPABILITY = (8, 0)  # of a GPU that the kernel runs on
WIDEST = 256  # head that it takes


# ---------------------------------------------------------------- attention


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend inside each window; or as usual, where windows are not laid end to end.

    Args:
        query, key, value: [1, heads, tokens, width].
        kwargs: cu_seq_lens_q, where windows start, and the last one's end [windows + 1];
            max_length_q, which no window is longer than; sliding_window: a token sees those less
            than this far away, all of its window without it.

    Returns:
        [1, tokens, heads, width], and no weights.
    """
    starts, reach = kwargs.get("cu_seq_lens_q"), kwargs.get("sliding_window")
    if starts is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if has_kernel(query):
        tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        out = flash(tokens, starts, kwargs["max_length_q"], dropout, scale, reach)
        return out.unsqueeze(0), None
    # of no more than what the kernel takes, so that a trial finds what it would leave out
    sees = who_sees_whom(starts, query.shape[2], reach)[None, None]
    return sdpa_attention_forward(module, query, key, value, sees, dropout, scaling)


def has_kernel(query: Tensor) -> bool:
    """Return whether the kernel takes such queries [..., width]."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cuda" and half and query.shape[-1] <= WIDEST


def flash(
    tokens: Sequence[Tensor],
    starts: Tensor,
    most: int,
    dropout: float,
    scale: float,
    reach: int | None,
) -> Tensor:
    """Attend by the kernel, which takes heads whose width is a multiple of 8.

    Args:
        tokens: queries, keys and values [tokens, heads, width].
        starts, most, reach: cu_seq_lens_q, max_length_q and sliding_window of `attend`.

    Returns:
        [tokens, heads, width]
    """
    width = tokens[0].shape[-1]
    if width % 8:
        tokens = [F.pad(tensor, (0, -width % 8)) for tensor in tokens]
    aside = None if reach is None else reach - 1
    out = kernel(
        *tokens, starts, starts, most, most, dropout, False, False,
        scale=scale, window_size_left=aside, window_size_right=aside,
    )[0]  # fmt: skip
    return out[..., :width] if width % 8 else out


def kernel(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """Run PyTorch's operator, which its autograd knows."""
    return torch.ops.aten._flash_attention_forward(*args, **kwargs)


def who_sees_whom(starts: Tensor, tokens: int, sliding_window: int | None = None) -> Tensor:
    """Return the mask [tokens, tokens] of windows that start there: True where one sees one."""
    places = torch.arange(tokens, device=starts.device)
    windows = torch.searchsorted(starts, places, right=True)
    sees = windows[:, None] == windows[None]
    if sliding_window is None:
        return sees
    return sees & ((places[:, None] - places[None]).abs() < sliding_window)


def mask_of(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Make the mask of padded windows; windows laid end to end come without one."""
    if attention_mask is None:
        return None
    return sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(END_TO_END, attend)
AttentionMaskInterface.register(END_TO_END, mask_of)


# ---------------------------------------------------------------- an encoder


@dataclass
class Laid:
    """Windows [windows, length] laid end to end.

    Attributes:
        shape: windows, length.
        places: of the tokens, counted over windows * length [tokens].
        starts: of the windows among the tokens, and the end of the last one [windows + 1].
        gathered: whether a hook has taken what it needs of the last block already.
    """

    shape: tuple[int, int]
    places: Tensor
    starts: Tensor
    gathered: bool = False

    @classmethod
    def of(cls, mask: Tensor) -> "Laid":
        """Args: mask: [windows, length], 1 for a token. Waits for the GPU."""
        lengths = mask.bool().sum(dim=1)
        starts = F.pad(lengths.cumsum(dim=0), (1, 0)).int()
        return cls(tuple(mask.shape), mask.flatten().nonzero()[:, 0], starts)

    def lay(self, windows: Tensor) -> Tensor:
        """[windows, length] -> [1, tokens]"""
        return windows.flatten()[self.places].unsqueeze(0)

    def put_back(self, tokens: Tensor) -> Tensor:
        """[1, tokens, hidden] -> [windows, length, hidden], 0 where no token is."""
        rows, length = self.shape
        padded = tokens.new_zeros(rows * length, tokens.shape[-1])
        return padded.index_copy(0, self.places, tokens[0]).view(rows, length, -1)

    def find(self, places: Tensor) -> Tensor:
        """Find tokens, by their places counted over windows * length, among those laid."""
        return torch.searchsorted(self.places, places)


class EndToEnd:
    """Hooks that lay the windows of each batch end to end before an encoder, and pad what it gives.

    Batches in single precision, or that come with masks of another form, are left as they are.
    """

    def __init__(self, encoder: PreTrainedModel):
        self.first_position = first_position(encoder.config)
        self.always: bool | None = None  # None: by precision
        self.handles = [
            encoder.register_forward_pre_hook(self._lay, with_kwargs=True),
            encoder.register_forward_hook(self._pad, always_call=True),
        ]

    def _lay(self, encoder: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if len(args) > 2:  # never by this project
            return args, kwargs
        kwargs = dict(zip(("input_ids", "attention_mask"), args, strict=False)) | kwargs
        ids, mask = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if mask is None and ids is not None:  # without one they would be taken for laid ones
            kwargs["attention_mask"] = mask = torch.ones_like(ids)
        fits = ids is not None and mask.dim() == 2 and kwargs.get("position_ids") is None
        lays = in_half_precision(encoder) if self.always is None else self.always
        if not (fits and lays):
            return (), kwargs
        laid = encoder.laid = Laid.of(mask)
        positions = mask.cumsum(dim=1) - 1 + self.first_position
        kwargs |= {"input_ids": laid.lay(ids), "position_ids": laid.lay(positions)}
        if kwargs.get("token_type_ids") is not None:
            kwargs["token_type_ids"] = laid.lay(kwargs["token_type_ids"])
        where = {"cu_seq_lens_q": laid.starts, "max_length_q": ids.shape[1]}
        return (), kwargs | {"attention_mask": None} | where

    def _pad(self, encoder: nn.Module, inputs: tuple, outputs: Any) -> Any:
        laid = getattr(encoder, "laid", None)
        encoder.laid = None
        if laid is None or laid.gathered or outputs is None:
            return outputs
        if isinstance(outputs, tuple):
            return (laid.put_back(outputs[0]), *outputs[1:])
        outputs["last_hidden_state"] = laid.put_back(outputs.last_hidden_state)
        if outputs.get("hidden_states") is not None:
            outputs["hidden_states"] = tuple(laid.put_back(h) for h in outputs.hidden_states)
        return outputs

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def in_half_precision(encoder: PreTrainedModel) -> bool:
    """Return whether the products of an encoder are in bf16 or fp16 now."""
    device = encoder.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device) in (torch.bfloat16, torch.float16)
    return encoder.dtype in (torch.bfloat16, torch.float16)


# ---------------------------------------------------------------- where it works


def remove_padding(encoder: PreTrainedModel, device: torch.device) -> bool:
    """Lay the windows of each batch end to end from now on, where GPU and architecture allow it.

    Whether they do is tried and not presumed: by two windows together against each alone, and by
    the kernel against the formula.

    Args:
        device: that the encoder will run on.

    Returns:
        whether they do.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < FIRST_CAPABILITY or not kernel_is_right(device):
        return False
    return lay_end_to_end(encoder) is not None


def lay_end_to_end(encoder: PreTrainedModel) -> EndToEnd | None:
    """Hook an encoder, unless it shows in a trial that its windows would see each other."""
    config = encoder.config
    if getattr(encoder, "laid", 0) is None:  # hooked already
        return None
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return None  # another was asked for
    if isinstance(getattr(encoder, "pooler", None), nn.Module) and not isinstance(
        encoder.pooler, nn.Identity
    ):
        return None  # it reads the first place of each window
    hooks = EndToEnd(encoder)
    config._attn_implementation = END_TO_END
    if changes_nothing(encoder, hooks):
        logger.info("Windows are laid end to end: no padding in half precision")
        return hooks
    hooks.remove()
    config._attn_implementation = "sdpa"
    return None


@torch.no_grad()
def changes_nothing(encoder: PreTrainedModel, hooks: EndToEnd) -> bool:
    """Return whether two windows laid end to end give what they give when padded."""
    found = []
    with in_evaluation(encoder):
        try:
            ids, mask = trial_windows(encoder)
            for hooks.always in (False, True):
                found.append(encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
            return distance(found[1], found[0], mask) < CLOSE
        except Exception as error:  # whatever an architecture may raise: it stays padded
            logger.info("Batches are padded: %s (%s)", type(encoder).__name__, error)
            return False
        finally:
            hooks.always = None


def trial_windows(encoder: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Draw two windows of different length: ids and mask [2, length]."""
    config = encoder.config.get_text_config()
    short, long = (int(min(length, max_positions(config))) for length in TRIAL_LENGTHS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size - 1, (2, long), generator=generator)
    pad = config.pad_token_id
    ids = ids if pad is None else ids + (ids >= pad).long()  # any but padding
    mask = torch.ones_like(ids)
    ids[0, short:], mask[0, short:] = pad or 0, 0
    return ids.to(encoder.device), mask.to(encoder.device)


def distance(found: Tensor, right: Tensor, mask: Tensor) -> float:
    """Relative distance of the states [windows, length, hidden], of the window it is largest in."""
    off, size = (found - right) * mask.unsqueeze(-1), right * mask.unsqueeze(-1)
    return float((off.flatten(1).norm(dim=1) / size.flatten(1).norm(dim=1)).max())


@contextmanager
def in_evaluation(encoder: nn.Module) -> Iterator[None]:
    """Run without dropout."""
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def kernel_is_right(device: torch.device) -> bool:
    """Return whether the kernel, which PyTorch does not promise to keep, does what it should."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 24, 32, generator=generator).to(device)
    starts = torch.tensor([0, 5, 24], dtype=torch.int32, device=device)
    options = {"cu_seq_lens_q": starts, "max_length_q": 128, "sliding_window": 8}
    right, _ = attend(None, query, key, value, None, **options)
    try:
        half = (tensor.bfloat16() for tensor in (query, key, value))
        found, _ = attend(None, *half, None, **options)
    except (AttributeError, TypeError, RuntimeError) as error:
        logger.info("Batches are padded: flash attention of PyTorch does not run here (%s)", error)
        return False
    return float((found.float() - right).norm() / right.norm()) < CLOSE_IN_HALF
