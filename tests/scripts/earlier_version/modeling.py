"""A document classifier on any `AutoModel` encoder.

encoder -> layer pooling -> token pooling -> segment pooling -> head, one path for every
combination:

    input_ids [documents, segments, length]      a document of one window has segments = 1
      flatten, run only the real segments        [real, length]
      layers -> one tensor                       [real, length, features]
      tokens -> one vector a segment             [real, features]
      segments -> one vector a document          [documents, features]
      head                                       [documents, labels]

This file, `pooling.py` and `windows.py` are copied into every saved folder, so that
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` and `pipeline`
work where this project is not installed. Hence the two ways to import them.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging as transformers_logging

try:
    from .pooling import (
        LAYER_POOLINGS,
        SEGMENT_POOLINGS,
        TOKEN_POOLINGS,
        AttentionPooling,
        BiLSTMPooling,
        LayerMix,
    )
    from .windows import SpecialTokens, WindowSpec, cut_windows
except ImportError:  # run as a flat script, not as the code of a saved folder
    from pooling import (
        LAYER_POOLINGS,
        SEGMENT_POOLINGS,
        TOKEN_POOLINGS,
        AttentionPooling,
        BiLSTMPooling,
        LayerMix,
    )
    from windows import SpecialTokens, WindowSpec, cut_windows

PROBLEM_TYPES = {  # our words -> those of `PreTrainedConfig.problem_type`
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


# ---------------------------------------------------------------- loss


def single_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.is_floating_point():  # probabilities
        labels = labels.to(logits.dtype)
    return F.cross_entropy(logits, labels, reduction="sum")


def multi_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def regression_loss(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape), reduction="sum")


LOSS_SUMS = {  # summed over documents and labels; the caller divides by the number of values
    "single_label_classification": single_label_loss,
    "multi_label_classification": multi_label_loss,
    "regression": regression_loss,
}


def document_loss(
    logits: Tensor,
    labels: Tensor,
    config: "DocumentClassifierConfig",
    num_items: Tensor | int | None = None,
) -> Tensor:
    """Loss of a batch, in float32.

    Args:
        logits: [documents, labels]. For regression in the units of the targets.
        labels: [documents] for single_label (or probabilities [documents, labels]), [documents,
            labels] else.
        num_items: label values in the accumulated batch over all processes. None: a plain mean.
    """
    logits = logits.float()
    if config.problem_type == "regression":
        logits, labels = standardise(logits, labels, config)
    total = LOSS_SUMS[config.problem_type](logits, labels)
    if num_items is None:
        num_items = len(logits) if config.problem_type.startswith("single") else labels.numel()
    return total / num_items


IGNORED = -100  # the label of padding


def without_padding(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of words: [..., documents, targets, labels] and [documents, targets] -> those that are there,
    [..., targets, labels] and [targets]."""
    there = labels != IGNORED
    return logits[..., there, :], labels[there]


def standardise(
    logits: Tensor, labels: Tensor, config: "DocumentClassifierConfig"
) -> tuple[Tensor, Tensor]:
    """Values and targets [documents, targets] in standard deviations, so a rate suits any unit."""
    center, scale = logits.new_tensor(config.target_mean), logits.new_tensor(config.target_scale)
    labels = labels.to(logits.dtype).reshape(logits.shape)
    return (logits - center) / scale, (labels - center) / scale


# ---------------------------------------------------------------- encoder


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence transformers' load report; the caller says in one line what is missing.

    Raises:
        ValueError: for weights that cannot be read, or have other shapes than the config says.
    """
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"its weights cannot be read, is the file cut off? ({error})") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError("its weights have other shapes than its config.json says") from error
    finally:
        transformers_logging.set_verbosity(before)


def load_encoder(
    path: str | os.PathLike, pooler: bool = False, dropout: float | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the encoder of any checkpoint, in float32, without a pooler unless it is asked for.

    Takes a hub name, a folder of plain transformers (base model, masked LM, classifier), or a
    folder written by run_finetune.py, whose encoder it takes. transformers keeps a checkpoint's own
    dtype by default; weights in half precision do not train, so float32 is asked for.

    Args:
        dropout: of all places inside the encoder; None: as the checkpoint says.
        kwargs: for `AutoModel.from_pretrained`, such as `revision`, `trust_remote_code`.

    Returns:
        the encoder and the names of the weights that the checkpoint lacked (they are random).

    Raises:
        ValueError: for an encoder-decoder, and for a checkpoint without the pooler asked for.
    """
    if is_document_classifier(path):
        classifier, missing = load_classifier(path, dropout)
        missing = [name.removeprefix("encoder.") for name in missing]
        return require_pooler(strip_encoder(classifier.encoder, pooler), missing, pooler), missing
    with quiet_loading():
        config = set_dropout(AutoConfig.from_pretrained(path, **kwargs), dropout)
        encoder, info = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,  # nothing that is unpickled
            **kwargs,
        )
    encoder = require_pooler(strip_encoder(encoder, pooler), info["missing_keys"], pooler)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    return encoder, missing


def require_pooler(
    encoder: PreTrainedModel, missing: Sequence[str], asked: bool
) -> PreTrainedModel:
    """Raises ValueError where a pooler is asked for and would be none or a random one."""
    none = getattr(encoder, "pooler", None) is None
    if asked and (none or any(name.startswith("pooler.") for name in missing)):
        raise ValueError(
            "the checkpoint holds no pooler; use another --token_pooling, or for further "
            "pretraining from a model that has one --keep_pooler of run_itpt.py"
        )
    return encoder


def strip_encoder(encoder: PreTrainedModel, keep_pooler: bool = False) -> PreTrainedModel:
    """Take off what is not used: a pooler, which would get no gradient, and the cache."""
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{encoder.config.model_type} is an encoder-decoder; "
            "give an encoder (BERT, RoBERTa ...) or a decoder"
        )
    if getattr(encoder, "pooler", None) is not None and not keep_pooler:
        encoder.pooler = None
    if getattr(encoder.config, "use_cache", False):
        encoder.config.use_cache = False
    return encoder


def set_dropout(config: PreTrainedConfig, dropout: float | None) -> PreTrainedConfig:
    """Set every dropout of an encoder's config, by whatever names it has; None leaves it.

    Raises:
        ValueError: if the config knows no dropout.
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
) -> tuple["DocumentClassifier", list[str]]:
    """Load what run_finetune.py wrote; and the names of missing weights (normally none).

    Args:
        dropout: of all places inside the encoder; None: as the folder says.
    """
    with quiet_loading():
        config = DocumentClassifierConfig.from_pretrained(path)
        set_dropout(config.encoder_config, dropout)
        model, info = DocumentClassifier.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
        )
    return model, sorted(info["missing_keys"])


def is_document_classifier(path: str | os.PathLike) -> bool:
    """Whether `path` is a folder written by run_finetune.py."""
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        return False
    model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    return model_type == DocumentClassifierConfig.model_type


def num_blocks(config: PreTrainedConfig) -> int:
    """Number of blocks; layers are numbered 0 (embeddings) to this."""
    return config.get_text_config().num_hidden_layers


def max_positions(config: PreTrainedConfig) -> int | float:
    """The longest window that the position embeddings allow; inf where nothing says."""
    config = config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if (
        positions is None
        or positions < 1
        or getattr(config, "position_biased_input", True) is False
    ):
        return float("inf")  # DeBERTa-v3 and others have relative positions only
    if config.model_type in POSITIONS_AFTER_PADDING:  # positions start at padding_idx + 1
        return positions - first_position(config)
    return positions


def first_position(config: PreTrainedConfig) -> int:
    """The position id of a text's first token."""
    config = config.get_text_config()
    return config.pad_token_id + 1 if config.model_type in POSITIONS_AFTER_PADDING else 0


POSITIONS_AFTER_PADDING = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "longformer",
    "data2vec-text",
)


def encode_layers(
    encoder: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None,
    layers: list[int],
) -> list[Tensor]:
    """Run the encoder on flat windows; the asked-for layers, each [windows, length, hidden]."""
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids
    if layers == [num_blocks(encoder.config)]:  # keeps no other layer alive
        return [encoder(**inputs).last_hidden_state]
    outputs = encoder(**inputs, output_hidden_states=True)
    # transformers 5.0 lists ModernBERT's last block before the final norm, later versions after it
    states = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
    return [states[k] for k in layers]


@contextmanager
def first_tokens_only(encoder: PreTrainedModel, mask: Tensor) -> Iterator[bool]:
    """Inside, the encoder's last block gives the first real token of each window alone.

    After the attention of the last block nothing looks at other tokens, so its feed-forward half
    need not run on them where [CLS] is all that is read: a tenth of the work of six blocks, at the
    same result. Yields False, and changes nothing, for blocks that are built otherwise, under
    activation checkpointing (which runs blocks a second time) and under compilation.

    Args:
        mask: [windows, length].
    """
    block = last_bert_block(encoder)
    if block is None or torch.compiler.is_compiling() or block.gradient_checkpointing:
        yield False
        return
    first = mask.int().argmax(dim=1)  # [windows]

    def gather(module: nn.Module, inputs: tuple, outputs: tuple) -> tuple:
        rows = torch.arange(len(first), device=first.device)
        return outputs[0][rows, first].unsqueeze(1), *outputs[1:]  # [windows, 1, hidden]

    handle = block.attention.register_forward_hook(gather)
    try:
        yield True
    finally:
        handle.remove()


def last_bert_block(base: PreTrainedModel) -> nn.Module | None:
    """The last block, where all that follows its attention in the base model is token by token.

    That is so where blocks are built like BERT's: `attention` with its own residual and norm, then
    `intermediate` and `output`. None for all others.
    """
    blocks = getattr(getattr(base, "encoder", None), "layer", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != base.config.num_hidden_layers:
        return None
    last = blocks[-1]
    names = ("attention.output", "intermediate", "output", "gradient_checkpointing")
    like_bert = all(_has(last, name) for name in names) and not hasattr(last, "LayerNorm")
    return last if like_bert else None


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


# ---------------------------------------------------------------- model


class DocumentClassifierConfig(PreTrainedConfig):
    """Everything needed to rebuild the classifier and to cut text the way it was trained.

    `dropout_samples` heads share one document vector in training, each with its own dropout;
    `segments_per_forward` bounds how many windows the encoder sees at once. `windows` and
    `special_tokens` are the fields of `windows.WindowSpec` and `windows.SpecialTokens`;
    `target_mean` and `target_scale` (one per target) undo the
    standardisation of regression targets. `slots` above 0: words inside documents are classified
    and not documents, each by so many slots (see targets.py; a pair has two).
    """

    model_type = "document_classifier"
    sub_configs = {"encoder_config": AutoConfig}  # noqa: RUF012 (transformers reads it off the class)
    _auto_class = "AutoConfig"

    def __init__(
        self,
        encoder_config: dict | PreTrainedConfig | None = None,
        layers: Sequence[int] = (),
        layer_pooling: str = "concat",
        token_pooling: str = "cls",
        segment_pooling: str = "mean",
        head_dropout: float = 0.1,
        dropout_samples: int = 1,
        segments_per_forward: int | None = None,
        windows: dict | None = None,
        special_tokens: dict | None = None,
        target_mean: Sequence[float] = (0.0,),
        target_scale: Sequence[float] = (1.0,),
        slots: int = 0,
        **kwargs: Any,
    ):
        # The parent comes before the encoder's config: it resets the attention implementation of
        # every sub-config it finds, and a loaded encoder would get a mask of one kind, attention of
        # another.
        self.encoder_config = None
        super().__init__(**kwargs)
        if isinstance(encoder_config, dict):
            fields = dict(encoder_config)
            encoder_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.encoder_config = encoder_config
        self.layers = list(layers)
        self.layer_pooling = layer_pooling
        self.token_pooling = token_pooling
        self.segment_pooling = segment_pooling
        self.head_dropout = head_dropout
        self.dropout_samples = dropout_samples
        self.segments_per_forward = segments_per_forward
        self.windows = windows or {}
        self.special_tokens = special_tokens or {}
        self.target_mean = list(target_mean)
        self.target_scale = list(target_scale)
        self.slots = slots

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        return self.encoder_config if self.encoder_config is not None else self

    def window_spec(self) -> WindowSpec:
        return WindowSpec(**self.windows)

    def specials(self) -> SpecialTokens:
        as_tuples = {
            k: tuple(v) if isinstance(v, list) else v for k, v in self.special_tokens.items()
        }
        return SpecialTokens(**as_tuples)


class DocumentClassifier(PreTrainedModel):
    """Encoder, poolings and a linear head. See the top of the file for the path of shapes."""

    config_class = DocumentClassifierConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True  # forward divides by num_items_in_batch itself
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: DocumentClassifierConfig, encoder: PreTrainedModel | None = None):
        super().__init__(config)
        if encoder is None:
            encoder = AutoModel.from_config(config.encoder_config)
        self.encoder = strip_encoder(encoder, keep_pooler=config.token_pooling == "pooler")
        self.num_labels = config.num_labels
        hidden = config.encoder_config.get_text_config().hidden_size
        features = hidden * len(config.layers) if config.layer_pooling == "concat" else hidden
        if config.layer_pooling == "weighted":
            self.layer_mix = LayerMix(len(config.layers))
        if config.token_pooling == "attention":
            self.token_attention = AttentionPooling(features)
        if config.token_pooling == "bilstm":
            self.token_attention = BiLSTMPooling(features)
            features = self.token_attention.features
        if config.segment_pooling == "attention":
            self.segment_attention = AttentionPooling(features)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = nn.Linear(features * max(1, config.slots), config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LayerMix):
            init.zeros_(module.weights)
            init.ones_(module.gamma)
        elif isinstance(module, nn.LSTM):
            for weight in module.parameters():
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, mean=0.0, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        places: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Classify documents, or, with `slots`, words inside them.

        Args:
            input_ids: [documents, segments, length], or [documents, length] as a `pipeline` gives
                it, padded on either side: then a row longer than the window is cut as in training.
            attention_mask: like `input_ids`; a segment with no 1 is absent.
            labels: [documents] or [documents, labels]; adds the loss.
            num_items_in_batch: see `document_loss`.
            places: of words [documents, targets, slots, tokens]: the tokens of each slot, counted
                over segments * length; -1 is none. Labels are then [documents, targets], -100 is
                none.

        Returns:
            loss (with labels) and logits [documents, labels] (of words [documents, targets,
            labels]); in training with several `dropout_samples` and no labels, one more dimension
            in front.
        """
        if self.config.slots and places is None:
            raise ValueError("this model classifies words: pass their places (see targets.py)")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.dim() == 2:
            input_ids, attention_mask, token_type_ids = self._as_documents(
                input_ids, attention_mask, token_type_ids
            )
        if places is None:
            document = self.pool_documents(input_ids, attention_mask, token_type_ids)
        else:  # [documents, targets, features]
            document = self.pool_words(input_ids, attention_mask, token_type_ids, places)
        document = document.to(self.head.weight.dtype)
        if self.training and self.config.dropout_samples > 1 and labels is None:
            document = document.expand(self.config.dropout_samples, *document.shape)
        logits = self.head(self.dropout(document))  # [documents, labels], or of each sample
        if self.config.problem_type == "regression":
            logits = logits * logits.new_tensor(self.config.target_scale) + logits.new_tensor(
                self.config.target_mean
            )
        loss = None
        if labels is not None:
            scored = (logits, labels) if places is None else without_padding(logits, labels)
            loss = document_loss(*scored, self.config, num_items_in_batch)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def pool_documents(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        """[documents, segments, length] -> [documents, features]; absent segments never run."""
        mask = attention_mask.bool()
        present = mask.any(dim=-1)  # [documents, segments]
        types = None if token_type_ids is None else token_type_ids[present]
        vectors = self._run_windows(input_ids[present], attention_mask[present], types)
        if present.shape[1] == 1:  # one window a document: nothing to pool
            return vectors
        segments = vectors.new_zeros(
            *present.shape, vectors.shape[-1]
        )  # [documents, segments, features]
        segments[present] = vectors
        return self._pool(
            SEGMENT_POOLINGS, self.config.segment_pooling, "segment_attention", segments, present
        )

    def pool_words(
        self, input_ids: Tensor, attention_mask: Tensor, types: Tensor | None, places: Tensor
    ) -> Tensor:
        """[documents, segments, length] -> [documents, targets, slots * features]: the mean over
        the tokens of each slot, in whichever windows they stand."""
        present = attention_mask.bool().any(dim=-1)  # [documents, segments]
        types = None if types is None else types[present]
        mask = attention_mask[present]
        numbers = self.config.layers
        layers = encode_layers(self.encoder, input_ids[present], mask, types, numbers)
        real = self._pool_layers(layers)  # [real, length, features]
        windows = real.new_zeros(*input_ids.shape, real.shape[-1])
        windows[present] = real
        flat = windows.flatten(1, 2)  # [documents, segments * length, features]
        there = places >= 0
        rows = torch.arange(len(flat), device=flat.device).view(-1, 1, 1, 1)
        tokens = flat[rows, places.clamp_min(0)]  # [documents, targets, slots, tokens, features]
        tokens = tokens * there.unsqueeze(-1)
        counts = there.sum(dim=-1, keepdim=True).clamp_min(1)
        return (tokens.sum(dim=3) / counts).flatten(2)

    def _run_windows(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Windows [real, length] -> [real, features], in parts of `segments_per_forward`.

        Then memory holds the inside of the encoder for one part only, in training too: what a part
        needs for its gradient is computed once more.
        """
        size = self.config.segments_per_forward
        if size is None or len(ids) <= size:
            return self._pool_tokens(ids, mask, types)
        lengths = mask.shape[1] - mask.flip(1).argmax(dim=1)  # [real], padding on the right
        order = lengths.argsort(descending=True)  # parts of similar length
        vectors = []
        for rows in order.split(size):
            longest = int(lengths[rows].max())
            part = [None if t is None else t[rows, :longest] for t in (ids, mask, types)]
            if self.training and torch.is_grad_enabled():
                vectors.append(checkpoint(self._pool_tokens, *part, use_reentrant=False))
            else:
                vectors.append(self._pool_tokens(*part))
        return torch.cat(vectors)[order.argsort()]

    def _pool_tokens(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Windows [real, length] -> [real, features]."""
        if self.config.token_pooling == "pooler":
            typed = {} if types is None else {"token_type_ids": types}
            return self.encoder(input_ids=ids, attention_mask=mask, **typed).pooler_output
        pooling = self.config.token_pooling
        if pooling == "cls" and self.config.layers == [num_blocks(self.encoder.config)]:
            with first_tokens_only(self.encoder, mask) as alone:
                layers = encode_layers(self.encoder, ids, mask, types, self.config.layers)
            if alone:
                return self._pool_layers(layers).squeeze(1)
        else:
            layers = encode_layers(self.encoder, ids, mask, types, self.config.layers)
        tokens = self._pool_layers(layers)  # [real, length, features]
        return self._pool(TOKEN_POOLINGS, pooling, "token_attention", tokens, mask.bool())

    def _pool_layers(self, layers: list[Tensor]) -> Tensor:
        pooling = LAYER_POOLINGS[self.config.layer_pooling]
        return self.layer_mix(layers) if pooling is None else pooling(layers)

    def _pool(
        self, poolings: dict, name: str, attention: str, items: Tensor, mask: Tensor
    ) -> Tensor:
        pooling = poolings[name]
        return getattr(self, attention)(items, mask) if pooling is None else pooling(items, mask)

    def _as_documents(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[documents, length] -> [documents, segments, length], cut if longer than a window."""
        spec = self.config.window_spec()
        if not attention_mask[:, 0].all():  # padded on the left: positions would be shifted
            order = attention_mask.argsort(dim=1, descending=True, stable=True)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
            if token_type_ids is not None:
                token_type_ids = token_type_ids.gather(1, order)
        if input_ids.shape[1] <= spec.max_seq_length:
            types = None if token_type_ids is None else token_type_ids.unsqueeze(1)
            return input_ids.unsqueeze(1), attention_mask.unsqueeze(1), types
        if token_type_ids is not None and token_type_ids.any():
            raise ValueError(
                f"a text pair of {input_ids.shape[1]} tokens does not fit the window of "
                f"{spec.max_seq_length}: pass truncation=True, max_length=... to the tokenizer"
            )
        special = self.config.specials()
        documents = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            plain = ids[mask].tolist()
            plain = plain[len(special.prefix) : len(plain) - len(special.suffix)]
            documents.append(cut_windows(plain, spec, special))
        ids, mask = pad_documents(documents, special.blank)
        return ids.to(input_ids.device), mask.to(input_ids.device), None


def pad_documents(documents: list[list[list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Windows of several documents -> ids and attention mask, both [documents, segments, length].

    Padded to the most segments and the longest window among them.
    """
    segments = max(len(windows) for windows in documents)
    length = max(len(window) for windows in documents for window in windows)
    absent: list[list[int]] = [[]]
    windows = [w for own in documents for w in own + absent * (segments - len(own))]
    padded = [window + [pad_id] * (length - len(window)) for window in windows]
    shape = (len(documents), segments, length)
    ids = torch.tensor(padded, dtype=torch.long).view(shape)
    lengths = torch.tensor([len(window) for window in windows]).view(*shape[:2], 1)
    mask = (torch.arange(length) < lengths).long()
    return ids, mask
