"""A way back: the weights of a trained encoder blended with those that it started from.

Wortsman et al. 2021, "Robust fine-tuning of zero-shot models" (WiSE-FT, arXiv 2109.01903), blend a
fine-tuned model with the one before: often the mean keeps what either of them knows.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from bertchain.errors import InputError, as_input_error
from bertchain.models.weights import load_pretrained, read_weights
from bertchain.runtime.files import atomic_files


def encoder_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copy the encoder's parameters to the CPU, by their names in the model; tied ones once."""
    of_encoder = {id(parameter) for parameter in model.base_model.parameters()}
    own = [(name, value) for name, value in model.named_parameters() if id(value) in of_encoder]
    return {name: value.detach().to("cpu", copy=True) for name, value in own}


@torch.no_grad()
def blend(model: PreTrainedModel, start: Mapping[str, Tensor], share: float) -> None:
    """Set weights to (1 - share) * their value + share * that of the start, in place."""
    own = dict(model.named_parameters())
    for name, value in start.items():
        own[name].lerp_(value.to(own[name]), share)


@contextmanager
def blended(model: PreTrainedModel, start: Mapping[str, Tensor], share: float) -> Iterator[None]:
    """Blend a model in this block, and give it its own weights back; nothing where start is {}."""
    kept = encoder_weights(model) if start else {}
    blend(model, start, share)
    try:
        yield
    finally:
        blend(model, kept, 1.0)  # exact


def write_blend(trained: str | os.PathLike, start: str, share: float, folder: Path) -> None:
    """Write a checkpoint with its encoder blended with that of another one.

    So that a run is not repeated for each share: give a folder step-N that was not blended.

    Args:
        trained: a folder of run_itpt.py; its head, tokenizer and all else are taken over.
        start: what the run started from: its step-0 folder, or a hub name or folder.

    Raises:
        InputError: for a start whose encoder is another one.
    """
    with as_input_error(f"{start}", Exception):
        before, _ = load_pretrained(AutoModelForMaskedLM, start)
    weights, others = read_weights(trained), encoder_weights(before)
    for name, value in others.items():
        if name not in weights or weights[name].shape != value.shape:
            raise InputError(
                f"{start} has other weights than {trained} ({name}); take the step-0 folder of the "
                "run (--save_at_steps 0)"
            )
        weights[name] = torch.lerp(weights[name], value.to(weights[name]), share)
    with atomic_files(folder) as temporary:
        for path in Path(trained).iterdir():
            if path.is_file() and not path.name.startswith((".", "model.safetensors")):
                shutil.copy2(path, temporary)
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
