"""Compilation of the repeated blocks of a model."""

import logging

from torch import nn

logger = logging.getLogger(__name__)


def compile_blocks(model: nn.Module, backend: str, mode: str | None = None) -> None:
    """Compile each repeated block of a model, in place, for batches of any length.

    All blocks share one compiled graph, so it takes seconds where a whole model takes minutes, and
    weights keep their names. What is around the blocks stays as it is.

    Args:
        backend, mode: of torch.compile.

    Raises:
        ValueError: for a model without repeated blocks.
    """
    blocks = repeated_blocks(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no repeated blocks to compile")
    for block in blocks:
        block.compile(backend=backend, mode=mode, dynamic=True)
    logger.info("Compiled: %d blocks", len(blocks))


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Find the blocks of a model: what stands in lists of one class, no list within a list."""
    if isinstance(model, nn.ModuleList) and len({type(block) for block in model}) == 1:
        return list(model)
    return [block for child in model.children() for block in repeated_blocks(child)]
