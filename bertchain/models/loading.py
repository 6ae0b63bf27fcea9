"""Loading of encoders and classifiers, and what their configs say of positions and dropout."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from bertchain.errors import InputError, as_input_error
from bertchain.models.folders import check_model_folder, read_json
from bertchain.models.modeling import (
    PROBLEM_TYPES,
    DocumentClassifier,
    DocumentClassifierConfig,
    num_blocks,
    strip_encoder,
)
from bertchain.models.support import check_supported, settle
from bertchain.models.weights import NO_CODE, load_pretrained, quiet_loading
from bertchain.models.windows import TRUNCATIONS

MOST_BLOCKS = 10_000  # a garbled number would fill the memory before anything is read
POSITIONS_AFTER_PADDING = (  # model types whose position ids start at pad_token_id + 1
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
)


def read_config(path: str | os.PathLike, **kwargs: Any) -> PreTrainedConfig:
    """Read the encoder's config of any checkpoint; every script does so before it tokenizes.

    Args, raises: as `read_configs`.
    """
    return read_configs(path, **kwargs)[0]


def read_configs(
    path: str | os.PathLike, **kwargs: Any
) -> tuple[PreTrainedConfig, DocumentClassifierConfig | None]:
    """Read the encoder's config of any checkpoint, and of a classifier's folder the classifier's.

    Args:
        kwargs: for `AutoConfig.from_pretrained`, such as `revision`, `trust_remote_code`.

    Raises:
        InputError: if it cannot be read, or the architecture is not supported.
    """
    classifier = None
    with as_input_error(f"--model_name_or_path {path}", Exception):
        if is_document_classifier(path):
            classifier = read_classifier_config(path)
            config = classifier.encoder_config
        else:
            config = AutoConfig.from_pretrained(path, **NO_CODE | kwargs)
    check_supported(config, path)
    blocks, hidden = num_blocks(config), getattr(config.get_text_config(), "hidden_size", 1)
    if not isinstance(blocks, int) or not 1 <= blocks <= MOST_BLOCKS:
        raise InputError(f"--model_name_or_path {path}: its config.json says {blocks!r} blocks")
    if not isinstance(hidden, int):
        raise InputError(
            f"--model_name_or_path {path}: its config.json says hidden size {hidden!r}"
        )
    return settle(config), classifier


def read_classifier_config(path: str | os.PathLike) -> DocumentClassifierConfig:
    """Read the config of a classifier of run_finetune.py.

    Raises:
        InputError: naming the first field that is not as it was written there.
    """
    with as_input_error(f"{Path(path) / 'config.json'}", Exception):
        config = DocumentClassifierConfig.from_pretrained(path)
        config.special_token_ids()
        windows, count = config.window_spec(), config.num_labels
        targets = [count, count] if config.problem_type == "regression" else None
        layers = range(num_blocks(config.encoder_config) + 1)
        right = {
            "problem_type": config.problem_type in PROBLEM_TYPES.values(),
            "id2label": count > 0 and sorted(config.id2label) == [*range(count)],
            "layers": len(config.layers) > 0 and {*config.layers} <= {*layers},
            "num_spans": config.num_spans in (0, 1, 2),
            "windows": windows.truncation in TRUNCATIONS and int(windows.max_seq_length) > 0,
            "target_mean": targets in (None, [len(config.target_mean), len(config.target_scale)]),
        }
        for field, fits in right.items():
            if not fits:
                value = getattr(config, field)
                raise ValueError(f"{field} {value!r} is not what run_finetune.py writes")
    return config


def load_encoder(
    path: str | os.PathLike, pooler: bool = False, dropout: float | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the encoder of any checkpoint, in float32, without a pooler unless it is asked for.

    The default of transformers is the checkpoint's own dtype; but weights in half precision do not
    train.

    Args:
        path: a hub name, a folder of plain transformers (base model, masked LM, classifier), or a
            folder of run_finetune.py, whose encoder is taken.
        dropout: probability of every dropout inside the encoder; None: as the checkpoint says.
        kwargs: for `AutoModel.from_pretrained`, such as `revision`, `trust_remote_code`.

    Returns:
        the encoder and the names of the weights that the checkpoint lacked (they are random).

    Raises:
        InputError: for an architecture that is not supported.
        ValueError: for a checkpoint without the pooler asked for, and as `weights.load_pretrained`.
    """
    check_model_folder(path)
    if is_document_classifier(path):
        classifier, missing = load_classifier(path, dropout)
        missing = [name.removeprefix("encoder.") for name in missing]
        return require_pooler(strip_encoder(classifier.encoder, pooler), missing, pooler), missing
    with quiet_loading():
        config = set_dropout(read_config(path, **kwargs), dropout)
    encoder, missing = load_pretrained(AutoModel, path, config=config, **kwargs)
    encoder = require_pooler(strip_encoder(encoder, pooler), missing, pooler)
    return encoder, [name for name in missing if not name.startswith("pooler.")]


def new_encoder(path: str | os.PathLike, seed: int, **kwargs: Any) -> PreTrainedModel:
    """Make the encoder of any checkpoint with random weights, as before any pretraining.

    Args, raises: as `load_encoder`.
    """
    config = read_config(path, **kwargs)
    with torch.random.fork_rng(), quiet_loading():
        torch.manual_seed(seed)
        encoder = AutoModel.from_config(config, **NO_CODE | kwargs)
    return strip_encoder(encoder.float())


def require_pooler(
    encoder: PreTrainedModel, missing: Sequence[str], asked: bool
) -> PreTrainedModel:
    """Check that the checkpoint has a trained pooler where one is asked for; return the encoder.

    Args:
        missing: names of the weights that the checkpoint lacked.

    Raises:
        ValueError: where the pooler would be none or a random one.
    """
    none = getattr(encoder, "pooler", None) is None
    if asked and (none or any(name.startswith("pooler.") for name in missing)):
        raise ValueError(
            "the checkpoint holds no pooler; use another --token_pooling, or for further "
            "pretraining from a model that has one --keep_pooler of run_itpt.py"
        )
    return encoder


def set_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """Set every dropout of an encoder's config, whatever their names; None leaves them.

    Raises:
        ValueError: if the config has no dropout.
    """
    if dropout is None:
        return config
    config = config.get_text_config()
    names = [n for n in config.to_dict() if "dropout" in n or n.endswith("pdrop")]
    inside = [n for n in names if not n.startswith(("classifier", "seq_classif", "summary"))]
    if not inside:
        raise ValueError(f"{config.model_type} has no dropout to set (--encoder_dropout)")
    for name in inside:
        setattr(config, name, dropout)
    return config


def load_classifier(
    path: str | os.PathLike, dropout: float | None = None
) -> tuple[DocumentClassifier, list[str]]:
    """Load a classifier of run_finetune.py, in float32.

    Args:
        dropout: probability of every dropout inside the encoder; None: as the folder says.

    Returns:
        the classifier and the names of missing weights (normally none).
    """
    config = read_classifier_config(path)
    check_supported(config.encoder_config, path)
    set_dropout(settle(config.encoder_config), dropout)
    return load_pretrained(DocumentClassifier, path, config=config)


def is_document_classifier(path: str | os.PathLike) -> bool:
    """Return whether `path` is a folder written by run_finetune.py."""
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        return False
    return read_json(config_file).get("model_type") == DocumentClassifierConfig.model_type


def max_positions(config: PreTrainedConfig) -> int | float:
    """Longest window that the position embeddings allow, in tokens; inf where there is no limit."""
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 0
    relative = getattr(config, "position_biased_input", True) is False
    if positions < 1 or relative:  # DeBERTa-v3 and others have relative positions only
        return float("inf")
    return positions - first_position(config)


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a text's first token."""
    config = config.get_text_config()
    rotary = getattr(config, "position_embedding_type", "absolute") == "rotary"  # some of ESM
    if config.model_type not in POSITIONS_AFTER_PADDING or rotary:
        return 0
    return 2 if config.model_type == "mpnet" else config.pad_token_id + 1  # MPNet's is fixed
