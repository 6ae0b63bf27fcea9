"""Compilation of the blocks of an encoder."""

import logging

from transformers import PreTrainedModel

from bertchain.errors import as_input_error
from bertchain.models.layers import find_blocks

logger = logging.getLogger(__name__)


def compile_blocks(model: PreTrainedModel, backend: str, mode: str | None = None) -> None:
    """Compile each block of a model's encoder, in place, for batches of any length.

    All blocks share one compiled graph, so it takes seconds where a whole model takes minutes, and
    weights keep their names. What is around the blocks stays as it is.

    Args:
        backend, mode: of torch.compile.

    Raises:
        InputError: for a model without a list of blocks.
    """
    with as_input_error("--torch_compile"):
        _, blocks = find_blocks(model.base_model)
    for block in blocks:
        block.compile(backend=backend, mode=mode, dynamic=True)
    logger.info("Compiled: %d blocks", len(blocks))
