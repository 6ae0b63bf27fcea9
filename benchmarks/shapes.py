"""Encoders with random weights in the shapes of well-known ones, for measurements of speed."""

SHAPES = {  # name -> model type, fields of its config that are not the defaults
    "minilm-shape": (
        "bert",
        {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536},
    ),
    "bert-base-shape": ("bert", {}),
    "modernbert-base-shape": ("modernbert", {}),
    "deberta-v3-base-shape": (
        "deberta-v2",
        {
            "vocab_size": 128_100,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "max_relative_positions": -1,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    "tiny-shape": (
        "bert",
        {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
        | {"intermediate_size": 64},
    ),
}


def is_shape(name: str) -> bool:
    """Return whether it names a shape, and no checkpoint."""
    return name in SHAPES


def config_of(name: str, tokenizer: object, **fields: object) -> object:
    """Build the config of a shape.

    Args:
        tokenizer: its padding, and no fewer tokens than it has.
        fields: of the config, such as num_labels.
    """
    from transformers import AutoConfig

    kind, own = SHAPES[name]
    config = AutoConfig.for_model(kind, **own, **fields)
    config.vocab_size = max(config.vocab_size, len(tokenizer))
    config.pad_token_id = tokenizer.pad_token_id
    for token in ("bos", "eos", "cls", "sep"):  # defaults are ids of another vocabulary
        if getattr(config, f"{token}_token_id", None) is not None:
            setattr(config, f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
    return config


def count_weights(model: object) -> int:
    """Count the weights of matrix products: of embeddings nothing is multiplied."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.dim() > 1 and "embed" not in name)
