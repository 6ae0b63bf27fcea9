"""A traced classifier, as exporters make one, holds at other sizes; so does one in int8."""

import warnings

import pytest
import torch
from tiny_models import ARCHITECTURES, classifier
from torch import nn

from bertchain.models.pooling import TOKEN_POOLINGS


def batch(documents: int, windows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask with padding and, of several windows, absent ones."""
    ids = torch.randint(5, 55, (documents, windows, length))
    mask = torch.ones_like(ids)
    mask[0, 0, 3:] = 0
    if windows > 1:
        mask[1:, -1] = 0
    return ids, mask


class Logits(nn.Module):
    """The logits of a classifier alone."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, attention_mask).logits


CASES = [(kind, "cls", "mean") for kind in ARCHITECTURES]
CASES += [("bert", token, "mean") for token in TOKEN_POOLINGS if token not in ("cls", "bilstm")]
CASES += [("bert", "mean", window) for window in ("max", "attention")]


@pytest.mark.parametrize(("kind", "token", "window"), CASES)
def test_numbers_of_rows_windows_and_tokens_are_not_fixed_by_tracing(kind, token, window):
    """What took the number of rows from `len` kept the number that it was traced with."""
    model = classifier(kind, token_pooling=token, segment_pooling=window).eval()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Logits(model), batch(2, 2, 8), check_trace=False)
        for sizes in ((5, 3, 17), (1, 1, 4), (4, 1, 30)):
            given = batch(*sizes)
            torch.testing.assert_close(traced(*given), model(*given).logits, atol=1e-5, rtol=1e-5)


def test_a_classifier_runs_in_int8():
    """Weights of int8 are no parameters, of which the head has none then."""
    model = classifier("bert", token_pooling="mean").eval()
    given = batch(4, 2, 12)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
        torch.testing.assert_close(
            quantised(*given).logits, model(*given).logits, atol=0.02, rtol=0.02
        )
