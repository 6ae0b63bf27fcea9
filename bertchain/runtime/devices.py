"""Settings of a GPU that suit batches of many shapes."""

import torch


def suit_many_shapes(device: torch.device) -> None:
    """Leave attention to the kernels that take a batch of any shape as it comes.

    cuDNN's, which PyTorch prefers on some cards, are planned anew for each shape. That takes longer
    than a step, and batches of similar length hardly repeat a shape: on an H100, BERT-base at up to
    512 tokens trained 2.3 times as fast without them.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
