"""Describe a checkpoint: what it holds, which classes load it, what each of its parts is for."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from bertchain.errors import as_input_error
from bertchain.models.folders import check_model_folder
from bertchain.models.loading import is_document_classifier, load_classifier
from bertchain.models.modeling import num_blocks
from bertchain.models.support import DECODERS
from bertchain.models.weights import NO_CODE, load_with_info, quiet_loading, unwrap_names
from bertchain.models.windows import WindowSpec

# Class, and what one loads it for. The last one is for decoders only.
CLASSES = {
    AutoModel: "features; the start of run_finetune.py and run_probe.py",
    AutoModelForMaskedLM: "further pretraining: run_itpt.py",
    AutoModelForPreTraining: "going on with both tasks BERT was pretrained on",
    AutoModelForSequenceClassification: "plain fine-tuning",
    AutoModelForCausalLM: "generating text",
}

# Words in the names of weights outside the encoder, and what such a head does.
HEADS = {
    "cls.predictions": "masked-LM head: predicts masked tokens",
    "lm_head": "LM head: predicts masked or next tokens",
    "seq_relationship": "next-sentence head: does one text follow the other? (pretraining only)",
    "vocab_transform": "masked-LM head: predicts masked tokens",
    "generator": "generator head of ELECTRA: predicts masked tokens",
    "discriminator": "discriminator head of ELECTRA: which tokens were replaced?",
    "predictions": "masked-LM head: predicts masked tokens",
    "classifier": "classification head, trained on some task",
    "score": "classification head, trained on some task",
    "qa_outputs": "question-answering head",
    "head": "prediction head",
}


def describe_checkpoint(path: str, **hub_kwargs: Any) -> str:
    """Describe a checkpoint in about ten lines of plain text.

    Args:
        path: a hub name, a transformers folder or a folder of one of these scripts.
        hub_kwargs: `revision`, `trust_remote_code`.

    Raises:
        InputError: if nothing can be loaded from there, by the checks of all scripts.
    """
    check_model_folder(path)
    with as_input_error(str(path), Exception), quiet_loading(), _no_progress():
        if is_document_classifier(path):
            return "\n".join(_describe_classifier(path))
        config = AutoConfig.from_pretrained(path, **NO_CODE | hub_kwargs)
        model, _ = load_with_info(AutoModel, path, **hub_kwargs)
        saved = _saved_names(path)
        names = None if saved is None else {*unwrap_names(dict.fromkeys(saved), model)}
        lines = [_first_line(path, config), _size(model)]
        lines += _parts(model, names)
        if names != saved:
            lines.append("names of weights: behind a prefix, which these scripts take off")
        for auto, purpose in CLASSES.items():
            loaded = _load(auto, path, config, **hub_kwargs)
            if loaded is not None:
                lines.append(_loading_line(auto.__name__, *loaded, purpose))
    return "\n".join(lines)


@contextmanager
def _no_progress() -> Iterator[None]:
    before = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            transformers_logging.enable_progress_bar()


def _first_line(path: str, config: Any) -> str:
    text = config.get_text_config()
    saved = ", ".join(config.architectures or ["unknown class"])
    return (
        f"{path}: saved as {saved} ({config.model_type}), {num_blocks(config)} blocks of "
        f"{text.hidden_size}, vocabulary {text.vocab_size:,}"
    )


def _size(model: PreTrainedModel) -> str:
    total = sum(p.numel() for p in model.parameters())
    embeddings = model.get_input_embeddings().weight.numel()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = "nothing is frozen by loading" if trained == total else f"{total - trained:,} frozen"
    return f"parameters: {total:,} ({embeddings:,} of them word embeddings); {frozen}"


def _parts(model: PreTrainedModel, names: set[str] | None) -> list[str]:
    """Find heads by the names of the saved weights; the pooler, and whether it was trained."""
    lines = []
    if names is not None:
        found = _heads_of(names, model)
        lines.append("heads in it: " + ("; ".join(found) or "none, it is an encoder alone"))
    pooler = getattr(model, "pooler", None)
    parameters = pooler.named_parameters() if pooler else ()
    bias = next((p for name, p in parameters if name.endswith("bias")), None)
    if bias is None:
        lines.append("pooler: this architecture has none")
    elif names is not None and not any("pooler" in name for name in names):
        lines.append("pooler: not in the checkpoint; a class that uses one starts it at random")
    elif not bias.any():
        lines.append("pooler: in the checkpoint, but its bias is 0 throughout: never trained")
    else:
        lines.append("pooler: in the checkpoint, and trained")
    return lines


def _heads_of(names: Iterable[str], encoder: PreTrainedModel) -> list[str]:
    own = set(encoder.state_dict())
    prefix = f"{encoder.base_model_prefix}."
    buffers = ("position_ids", "token_type_ids")  # older versions saved them
    outside = [
        name
        for name in names
        if name.removeprefix(prefix) not in own
        and "pooler" not in name
        and not name.endswith(buffers)
    ]
    found = []
    for name in outside:
        what = next((text for word, text in HEADS.items() if word in name), None)
        what = what or f"weights of unknown use ({name.split('.')[0]})"
        if what not in found:
            found.append(what)
    return found


def _saved_names(path: str) -> set[str] | None:
    """Read the names in a folder's safetensors; None for a hub name."""
    if not os.path.isdir(path):
        return None
    names: set[str] = set()
    for file in sorted(Path(path).glob("model*.safetensors")):
        with safe_open(file, "pt") as weights:
            names |= set(weights.keys())
    return names


def _load(
    auto: Any, path: str, config: Any, **hub_kwargs: Any
) -> tuple[str, list[str], list[str]] | None:
    """Load with a class. Returns its own class's name, missing and unused weights; None where there
    is no such class for the model."""
    decoder = config.model_type in DECODERS
    if type(config) not in auto._model_mapping or (auto is AutoModelForCausalLM and not decoder):
        return None
    model, info = load_with_info(auto, path, **hub_kwargs)
    return type(model).__name__, sorted(info["missing_keys"]), sorted(info["unexpected_keys"])


def _loading_line(auto: str, own: str, missing: list[str], unused: list[str], purpose: str) -> str:
    says = f"random: {_short(missing)}" if missing else "all weights found"
    if unused:
        says += f"; left out: {_short(unused)}"
    return f"{auto} -> {own}: {says}. For {purpose}"


def _short(names: list[str], most: int = 3) -> str:
    """Name modules in place of tensors: classifier for classifier.weight and classifier.bias."""
    parts = (name.rsplit(".", 1)[0].split(".")[:2] for name in names)
    modules = list(dict.fromkeys(".".join(part) for part in parts))
    more = f" and {len(modules) - most} more" if len(modules) > most else ""
    return ", ".join(modules[:most]) + more


def _describe_classifier(path: str) -> list[str]:
    """Describe a folder of run_finetune.py."""
    model, _ = load_classifier(path)
    config = model.config
    kind, names = config.problem_type, [*config.id2label.values()]
    shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
    encoder, blocks = type(model.encoder).__name__, num_blocks(model.encoder.config)
    windows = WindowSpec(**config.windows)
    hidden = model.encoder.config.get_text_config().hidden_size
    over = "attention" if config.token_pooling == "attention" else "the mean"
    words = {1: f"words, {over} over their tokens", 2: "pairs of words, side by side"}
    pooled = words.get(config.num_spans, f"{config.token_pooling} of tokens")
    head = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    lines = [
        f"{path}: a classifier of run_finetune.py around {encoder}, {blocks} blocks of {hidden}",
        _size(model.encoder) + f"; {head:,} above the encoder",
        f"labels: {kind}, {len(names)}: {shown}",
        f"reads: layers {config.layers} ({config.layer_pooling}), {pooled}",
        f"windows: {windows.truncation}, {windows.max_seq_length} tokens",
        "pooler: taken off" if getattr(model.encoder, "pooler", None) is None else "pooler: in use",
        "AutoModelForSequenceClassification with trust_remote_code=True: all weights found. For "
        + (
            "Python with `token_positions` of words"
            if config.num_spans
            else "pipeline('text-classification')"
        ),
        "modeling.DocumentClassifier: all weights found. For Python beside these scripts",
    ]
    if (Path(path) / "encoder").is_dir():
        lines.append(f"AutoModel on {Path(path, 'encoder')}: the encoder alone. For features")
    lines.append("run_finetune.py and run_probe.py take the folder itself")
    return lines
