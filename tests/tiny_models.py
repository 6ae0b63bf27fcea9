"""Tiny random encoders of every architecture, and classifiers on them."""

import torch
import transformers
from transformers import AutoModel, PreTrainedModel
from transformers.models.modernbert import modeling_modernbert

from bertchain.models.modeling import DocumentClassifier, DocumentClassifierConfig, strip_encoder

ARCHITECTURES = {
    "bert": {},
    "roberta": {"max_position_embeddings": 40},
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "deberta-v2": {"pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "mpnet": {"max_position_embeddings": 40},
    "xlm-roberta": {"max_position_embeddings": 40},
    "modernbert": {"global_attn_every_n_layers": 2, "pad_token_id": 0, "eos_token_id": 1},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 40},
    "qwen2": {"num_key_value_heads": 2},
}
IDS = {"bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 2, "eos_token_id": 2}
# Windows of these can be laid end to end; ModernBERT's since its attention is one among all.
LAID = {"bert", "camembert", "distilbert", "electra", "ernie", "roberta", "roberta-prelayernorm"}
LAID |= {"xlm-roberta"}
if hasattr(modeling_modernbert, "ALL_ATTENTION_FUNCTIONS"):
    LAID |= {"modernbert"}


def tiny_encoder(kind: str) -> PreTrainedModel:
    """Make an encoder of 4 blocks of 32, with the same weights each time."""
    fields = dict(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
    )
    if kind in ("distilbert", "gpt2"):
        fields = {"vocab_size": 60, "pad_token_id": 0}
    if kind in ("modernbert", "gpt2", "qwen2"):
        fields |= IDS
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **fields | ARCHITECTURES[kind])
    return AutoModel.from_config(config)


def classifier(kind: str, **config) -> DocumentClassifier:
    """Make a classifier of three labels on a tiny encoder. Args: config: fields of its config."""
    encoder = strip_encoder(tiny_encoder(kind))
    fields = dict(layers=[4], problem_type="single_label_classification", num_labels=3)
    config = DocumentClassifierConfig(encoder_config=encoder.config, **fields | config)
    return DocumentClassifier(config, encoder)
