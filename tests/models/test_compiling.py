"""Compiled blocks: found, compiled once for all lengths and blocks, the same values."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig

from bertchain.errors import InputError
from bertchain.models.compiling import compile_blocks
from bertchain.models.modeling import DocumentClassifier, DocumentClassifierConfig

FIELDS = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
FIELDS |= {"intermediate_size": 32, "max_position_embeddings": 40}


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled; `count` is a backend."""
    torch._dynamo.reset()
    seen = []

    def count(graph, inputs):
        seen.append(graph)
        return graph.forward

    yield seen, count
    torch._dynamo.reset()


def classifier(token_pooling):
    torch.manual_seed(0)
    encoder = AutoModel.from_config(BertConfig(**FIELDS), trust_remote_code=False)
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        layers=[3],
        token_pooling=token_pooling,
        problem_type="single_label_classification",
        num_labels=2,
        windows={"max_seq_length": 40},
    )
    return DocumentClassifier(config, encoder).eval()


def test_the_blocks_of_the_encoder_are_compiled_and_a_model_without_is_refused():
    model = classifier("cls")
    compile_blocks(model, "eager")
    assert all(block._compiled_call_impl is not None for block in model.encoder.encoder.layer)
    model.encoder.encoder.layer = nn.ModuleList()
    with pytest.raises(InputError, match="--torch_compile: BertModel has no list of 3 blocks"):
        compile_blocks(model, "eager")


@pytest.mark.parametrize("token_pooling", ["cls", "mean"])
def test_all_blocks_and_lengths_share_a_graph_and_values_stay(token_pooling, graphs):
    seen, count = graphs
    model = classifier(token_pooling)
    batches = [torch.randint(5, 50, (4, 1, length)) for length in (8, 11, 17, 30, 33)]
    with torch.no_grad():
        plain = [model(ids).logits for ids in batches]
        names = [*model.state_dict()]
        compile_blocks(model, count)
        compiled = [model(ids).logits for ids in batches]
    assert 1 <= len(seen) <= 2
    assert [*model.state_dict()] == names
    for one, other in zip(plain, compiled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
