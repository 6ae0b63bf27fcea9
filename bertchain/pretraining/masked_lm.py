"""Masked language models: loaded or from scratch, the sparse head, packed rows, scores."""

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from bertchain.arguments.pretraining import CheckpointArguments
from bertchain.data.tokenization import check_vocabulary, load_tokenizer
from bertchain.errors import InputError, as_input_error
from bertchain.models.encoding import keep_padding_out, last_bert_block
from bertchain.models.loading import is_document_classifier, read_config
from bertchain.models.padding_free import in_evaluation
from bertchain.models.weights import load_pretrained, some
from bertchain.pretraining.masking import IGNORE
from bertchain.pretraining.packing import MaskingCollator, RowMaker, join_windows, pack_rows
from bertchain.pretraining.vocabulary import grow_embeddings
from bertchain.runtime import best

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- load


def find_encoder(checkpoint: CheckpointArguments) -> str:
    """Find the plain checkpoint to start from, which a folder of run_finetune.py holds within.

    Returns:
        a hub name or folder; from scratch that of the config.

    Raises:
        InputError: for an architecture that is not supported.
    """
    path = checkpoint.model_name_or_path or checkpoint.config_name
    path = str(Path(path) / "encoder") if is_document_classifier(path) else path
    read_config(path, **checkpoint.hub_kwargs)
    return path


def load_masking_tokenizer(path: str, checkpoint: CheckpointArguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a checkpoint, or the one that is asked for.

    Raises:
        InputError: if it has no mask token.
    """
    name = checkpoint.tokenizer_name or path
    tokenizer = load_tokenizer(name, **checkpoint.hub_kwargs)
    if tokenizer.mask_token is None:
        raise InputError(
            f"the tokenizer of {name} has no mask token, so it cannot be used for masked language "
            "modelling; give an encoder such as BERT or RoBERTa"
        )
    return tokenizer


def build_masked_lm(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    checkpoint: CheckpointArguments,
    new_tokens: dict[int, list[int]],
) -> tuple[PreTrainedModel, list[str]]:
    """Load a masked LM, or make one from scratch by a config.

    Returns:
        the model, and the names of the weights that start untrained.
    """
    if checkpoint.config_name is not None:
        return masked_lm_from_scratch(path, tokenizer, checkpoint.hub_kwargs)
    return load_masked_lm(path, tokenizer, checkpoint.hub_kwargs, new_tokens)


def load_masked_lm(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    hub_kwargs: dict[str, Any],
    new_tokens: dict[int, list[int]] | None = None,
) -> tuple[PreTrainedModel, list[str]]:
    """Load any `*ForMaskedLM`; log which weights of its head were not in the checkpoint.

    Args:
        hub_kwargs: for `from_pretrained`: revision, trust_remote_code.
        new_tokens: what `vocabulary.add_words` gave.

    Returns:
        the model, and the names of the weights that start untrained.
    """
    with as_input_error(f"--model_name_or_path {path}", Exception):
        config = read_config(path, **hub_kwargs)
        model, untrained = load_pretrained(AutoModelForMaskedLM, path, config=config, **hub_kwargs)
    keep_padding_out(model)
    # Saved under the names they have here: a Trainer loads its checkpoints by these, and weights
    # that came under old names (LayerNorm.gamma of bert-base-uncased) would be lost without a word.
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)
    if new_tokens:
        grow_embeddings(model, len(tokenizer), new_tokens)
    check_vocabulary(tokenizer, model, path)
    of_encoder = [n for n in untrained if n.startswith(f"{model.base_model_prefix}.")]
    of_head = [n for n in untrained if n not in of_encoder]
    if of_encoder:
        logger.warning("Not in %s, random: %s", path, some(of_encoder))
    if of_head:
        logger.warning("%s holds no masked-LM head: %s start untrained", path, ", ".join(of_head))
    return model, untrained


def masked_lm_from_scratch(
    config_name: str, tokenizer: PreTrainedTokenizerBase, hub_kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Make a model with random weights; its vocabulary and padding are the tokenizer's."""
    with as_input_error(f"--config_name {config_name}", Exception):
        config = read_config(config_name, **hub_kwargs)
        config.vocab_size = len(tokenizer)
        config.pad_token_id = tokenizer.pad_token_id
        trusted = hub_kwargs.get("trust_remote_code", False)
        model = AutoModelForMaskedLM.from_config(config, trust_remote_code=trusted).float()
    keep_padding_out(model)
    logger.warning(
        "Training from scratch by the config of %s: all %d million weights are random",
        config_name,
        round(model.num_parameters() / 1e6),
    )
    return model, sorted(name for name, _ in model.named_parameters())


def read_pooler(
    path: str, model: PreTrainedModel, checkpoint: CheckpointArguments
) -> dict[str, Tensor]:
    """Read the pooler's weights of a checkpoint if they are to be kept; else {}.

    They are named as in a checkpoint of `model`.

    A masked LM has no use for BERT's pooler, so its checkpoints lack it, and a classifier that
    starts from one starts with a random pooler.

    Raises:
        InputError: if the checkpoint has none.
    """
    if not checkpoint.keep_pooler:
        return {}
    with as_input_error("--keep_pooler", Exception):
        encoder, missing = load_pretrained(AutoModel, path, **checkpoint.hub_kwargs)
    weights = {n: t for n, t in encoder.state_dict().items() if n.startswith("pooler.")}
    if not weights or {*weights} & {*missing}:
        raise InputError(f"--keep_pooler: {path} holds no pooler; leave it out")
    return {f"{model.base_model_prefix}.{name}": tensor for name, tensor in weights.items()}


# ---------------------------------------------------------------- sparse head


def masked_places(labels: Tensor) -> Tensor:
    """Find what is to be predicted: numbers [masked] of the labels that are not `IGNORE`."""
    return (labels.flatten() != IGNORE).nonzero().squeeze(1)


class SparseHead:
    """Runs the head of a `*ForMaskedLM` on the positions to predict alone.

    About 15 % of the positions need logits. A forward hook on the base model gathers them from the
    last hidden state, so that the head gets [1, masked, hidden] in place of [rows, length, hidden]
    and gives logits [1, masked, vocabulary]. Loss and gradients stay the same; most of the head's
    work and memory is gone.

    Where blocks are built like BERT's, the positions are gathered a little earlier: after the
    attention of the last block nothing looks at other positions, so its feed-forward half runs on
    the masked ones alone. (Not under activation checkpointing, which runs blocks a second time, nor
    in compiled blocks.)
    """

    def __init__(self, model: PreTrainedModel):
        self.places: Tensor | None = None  # [masked], of what to predict, counted over all rows
        self.gathered = False
        self.base = model.base_model
        self.last = last_bert_block(self.base)
        if self.last is not None:
            self.last.attention.register_forward_hook(self._gather_early)
        self.base.register_forward_hook(self._gather)

    def __call__(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [masked, vocabulary] in float32, and targets [masked], in the order of rows.

        Args:
            inputs: with labels, and `masked_places` of them where they are known already.

        Raises:
            ValueError: for a model whose head does not follow its base model's last hidden state.
        """
        inputs = dict(inputs)
        labels = inputs.pop("labels").flatten()
        places = inputs.pop("masked_places", None)
        self.places, self.gathered = masked_places(labels) if places is None else places, False
        try:
            outputs = model(**inputs)
        finally:
            places, self.places = self.places, None
        if outputs.logits.shape[:2] != (1, len(places)):
            raise ValueError(
                f"{type(model).__name__} gives logits {tuple(outputs.logits.shape)} for "
                f"{len(places)} masked tokens: its head does not read the last hidden state"
            )
        return outputs.logits[0].float(), labels[places]

    def _gather_early(self, module: nn.Module, inputs: tuple, outputs: Any) -> Any:
        if torch.compiler.is_compiling():  # their number differs: a compiled block has one shape
            return outputs
        if self.places is None or (module.training and self.last.gradient_checkpointing):
            return outputs
        self.gathered = True
        return self._gather_from(outputs)

    def _gather(self, module: nn.Module, inputs: tuple, outputs: Any) -> Any:
        if self.places is None or self.gathered:
            return outputs
        return self._gather_from(outputs)

    def _gather_from(self, outputs: Any) -> Any:
        """The first output at the masked positions, [1, masked, hidden]; the others as they are."""
        places, laid = self.places, getattr(self.base, "laid", None)
        if laid is not None:  # the rows are laid end to end, see models/padding_free.py
            places, laid.gathered = laid.find(places), True
        # no position occurs twice; indexing by rows and columns would sort them to be sure
        masked = outputs[0].flatten(0, 1).index_select(0, places).unsqueeze(0)
        if isinstance(outputs, tuple):
            return (masked, *outputs[1:])
        outputs["last_hidden_state"] = masked
        return outputs


# ---------------------------------------------------------------- packed rows


def pack_for(
    model: PreTrainedModel, rows: Dataset, maker: RowMaker, collator: MaskingCollator
) -> Dataset:
    """Pack rows, after a trial of the longest windows that the model keeps them apart.

    Args:
        rows: of one window each.
        maker: made them; a packed row has as many tokens as its longest windows.

    Raises:
        InputError: if it does not.
    """
    capacity = maker.windows.max_seq_length
    lengths = np.array(rows["length"][:])
    order = np.argsort(-lengths, kind="stable").tolist()
    longest, shortest = order[0], order[-1]
    beside = next((i for i in order if lengths[i] + lengths[shortest] <= capacity), shortest)
    for windows in ([longest], [beside, shortest]):
        check_packing(model, [rows[i] for i in windows], collator)
    return pack_rows(rows, capacity)


@torch.no_grad()
def check_packing(
    model: PreTrainedModel, rows: Sequence[dict[str, Any]], collator: MaskingCollator
) -> None:
    """Compare the hidden states of windows that share a row with those of each window alone.

    Models differ in whether they take a mask of who sees whom, and positions that start anew. So
    this is tried and not presumed.

    Args:
        rows: windows that fit one row.

    Raises:
        InputError: if the model's hidden states differ.
    """
    error = InputError(
        f"--packing does not work with {model.config.model_type}: documents of a row would see "
        "each other; leave it out"
    )
    packed = join_windows({name: [row[name] for row in rows] for name in rows[0]})
    rows = [{**row, "labels": row["input_ids"]} for row in rows]  # what has labels is not masked
    with in_evaluation(model):
        try:
            together = _hidden(model, collator([{**packed, "labels": packed["input_ids"]}]))[0]
        except (TypeError, ValueError, RuntimeError, IndexError) as failure:
            raise error from failure
        apart = torch.cat([_hidden(model, collator([row]))[0] for row in rows])
    if together.shape != apart.shape or (together - apart).abs().max() > 1e-3 * apart.abs().max():
        raise error


def _hidden(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    batch = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
    return model.base_model(**batch)[0]


# ---------------------------------------------------------------- scores


DIRECTIONS = {"loss": False, "perplexity": False, "masked_accuracy": True}  # is more better?


def score_directions(corpora: Sequence[str]) -> dict[str, bool]:
    """Name the scores of an evaluation, and whether more of each is better.

    Args:
        corpora: of each held-out row.
    """
    names = dict.fromkeys(corpora)
    of_each = {f"{s}_{n}": up for n in names for s, up in DIRECTIONS.items()}
    return DIRECTIONS | (of_each if len(names) > 1 else {})


def choose_metric(
    training: TrainingArguments, given: dict[str, Any], corpora: Sequence[str]
) -> None:
    """Check which score chooses the best checkpoint, in place; see `best.choose_metric`."""
    best.choose_metric(training, given, score_directions(corpora))


class MaskedLMScores:
    """Compute means over all masked tokens, of whatever batch; of several corpora each too.

    Takes what `MaskedLMTrainer.prediction_step` gives per row: [summed loss, hits] and the number
    of masked tokens. Perplexity = exp(mean loss).
    """

    def __init__(self, corpora: Sequence[str]):
        self.corpora = np.array(corpora)  # of each held-out row

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        sums = np.asarray(prediction.predictions, dtype=np.float64)  # [rows, 2]
        tokens = np.asarray(prediction.label_ids)  # [rows]
        scores = _scores(sums, tokens)
        names = dict.fromkeys(self.corpora.tolist())
        for name in names if len(names) > 1 else ():
            here = self.corpora == name
            of_corpus = _scores(sums[here], tokens[here])
            scores |= {f"{score}_{name}": value for score, value in of_corpus.items()}
        return scores


def _scores(sums: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    count = max(int(tokens.sum()), 1)
    losses, hits = sums.sum(axis=0)
    return {
        "loss": losses / count,
        "perplexity": float(np.exp(min(losses / count, 700.0))),
        "masked_accuracy": hits / count,
        "masked_tokens": count,
    }
