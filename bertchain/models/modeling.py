"""Document classifier on any `AutoModel` encoder.

One path for every combination of poolings:

    input_ids                        [documents, windows, length]
    windows that are there           [real, length]
    layers pooled to one tensor      [real, length, features]
    tokens pooled to one vector      [real, features]
    windows pooled to one vector     [documents, features]
    head                             [documents, labels]

This file, `encoding.py`, `pooling.py` and `windows.py` are copied into every saved folder, so that
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` and `pipeline`
work where this project is not installed. So they import only each other of this project.
(Fields of the config and names of weights call a window a segment.)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import SequenceClassifierOutput

from .encoding import encode_layers, encoder_inputs, first_tokens_only, num_blocks, strip_encoder
from .pooling import (
    LAYER_POOLINGS,
    TOKEN_POOLINGS,
    WINDOW_POOLINGS,
    AttentionPooling,
    BiLSTMPooling,
    LayerMix,
)
from .windows import SpecialTokens, WindowSpec, cut_windows

PROBLEM_TYPES = {  # words of the flags -> those of `PreTrainedConfig.problem_type`
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


# ---------------------------------------------------------------- loss


def single_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of cross-entropies. Args: labels: class numbers or probabilities."""
    if labels.is_floating_point():
        labels = labels.to(logits.dtype)
    return F.cross_entropy(logits, labels, reduction="sum")


def multi_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of binary cross-entropies over documents and labels."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")


def regression_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of squared errors over documents and targets."""
    return F.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape), reduction="sum")


LOSS_SUMS = {  # the caller divides by the number of values
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
        logits: [documents, labels]; for regression in the units of the targets.
        labels: [documents, labels], or class numbers [documents].
        num_items: label values in the accumulated batch over all processes; None: those of this
            batch, which gives its mean.
    """
    logits = logits.float()
    if config.problem_type == "regression":
        logits, labels = standardise(logits, labels, config)
    total = LOSS_SUMS[config.problem_type](logits, labels)
    if num_items is None:
        num_items = len(logits) if config.problem_type.startswith("single") else labels.numel()
    return total / num_items


IGNORED = -100  # label of a padded target


def without_padding(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Select the targets of documents that are no padding.

    Args:
        logits: [..., documents, targets, labels].
        labels: [documents, targets], `IGNORED` for padding.

    Returns:
        logits [..., n, labels] and labels [n].
    """
    real = labels != IGNORED
    return logits[..., real, :], labels[real]


def standardise(
    logits: Tensor, labels: Tensor, config: "DocumentClassifierConfig"
) -> tuple[Tensor, Tensor]:
    """Express predictions and targets [documents, targets] in standard deviations of training.

    A learning rate then suits any unit.
    """
    center, scale = logits.new_tensor(config.target_mean), logits.new_tensor(config.target_scale)
    labels = labels.to(logits.dtype).reshape(logits.shape)
    return (logits - center) / scale, (labels - center) / scale


# ---------------------------------------------------------------- model


class DocumentClassifierConfig(PreTrainedConfig):
    """Everything needed to rebuild the classifier and to cut text as in training.

    Attributes:
        layers: numbers of the layers that are read.
        layer_pooling, token_pooling, segment_pooling: keys of the dicts in `pooling.py`;
            segment_pooling pools windows; token_pooling may also be "pooler", the encoder's own.
        head_dropout: probability of dropout before the head.
        dropout_samples: dropout masks over the document vector in training, each with its loss.
        segments_per_forward: most windows that the encoder runs at once; None: all.
        windows, special_tokens: fields of `windows.WindowSpec` and `windows.SpecialTokens`.
        target_mean, target_scale: of each regression target in training.
        num_spans: 0: documents are classified; else words inside documents, each by so many spans
            (two for a pair).
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
        num_spans: int = 0,
        ordinal_head: bool = False,
        **kwargs: Any,
    ):
        num_spans = kwargs.pop("slots", num_spans)  # its name in folders of earlier versions
        # The parent resets the attention implementation of every sub-config that it finds, and a
        # loaded encoder would get a mask of one kind and attention of another: so it comes first.
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
        self.num_spans = num_spans
        self.ordinal_head = ordinal_head

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The encoder's config, where transformers looks for vocabulary and sizes."""
        return self.encoder_config if self.encoder_config is not None else self

    def window_spec(self) -> WindowSpec:
        """How documents are cut into windows."""
        return WindowSpec(**self.windows)

    def special_token_ids(self) -> SpecialTokens:
        """Ids around a text and around a pair; JSON has turned their tuples into lists."""
        fields = self.special_tokens.items()
        return SpecialTokens(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields})


class OrdinalHead(nn.Module):
    """One value for all grades, and a cut between each two (CORAL, Cao et al. 2020).

    Gives log-probabilities of the grades [..., grades]. The cuts rise, whatever the bias is, so
    that no probability is below 0.
    """

    def __init__(self, features: int, grades: int):
        super().__init__()
        self.value = nn.Linear(features, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(grades - 1))  # the lowest cut, then steps upwards

    @property
    def weight(self) -> Tensor:
        """The weights of the value."""
        return self.value.weight

    def cuts(self) -> Tensor:
        """The cuts, rising [grades - 1]."""
        return torch.cat([self.bias[:1], F.softplus(self.bias[1:])]).cumsum(dim=0)

    def forward(self, vectors: Tensor) -> Tensor:
        above = self.value(vectors) - self.cuts()  # logits of a higher grade, falling
        # sigmoid(a) - sigmoid(b) = sigmoid(a) * sigmoid(-b) * (1 - exp(b - a))
        steps = (-torch.expm1(-F.softplus(self.bias[1:]))).log()
        inner = F.logsigmoid(above[..., :-1]) + F.logsigmoid(-above[..., 1:]) + steps
        return torch.cat(
            [F.logsigmoid(-above[..., :1]), inner, F.logsigmoid(above[..., -1:])], dim=-1
        )


class DocumentClassifier(PreTrainedModel):
    """Encoder, poolings and a linear head; the top of the file shows the shapes."""

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
            encoder = AutoModel.from_config(config.encoder_config, trust_remote_code=False)
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
        make_head = OrdinalHead if config.ordinal_head else nn.Linear
        self.head = make_head(features * max(1, config.num_spans), config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, LayerMix):
            init.zeros_(module.weights)
            init.ones_(module.gamma)
        elif isinstance(module, OrdinalHead):
            init.zeros_(module.bias)
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
        token_positions: Tensor | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """Classify documents, or, with `num_spans`, words inside them.

        Args:
            input_ids: [documents, windows, length]; or [documents, length] as a `pipeline` gives
                it, padded on either side: then a row longer than a window is cut as in training.
            attention_mask: like `input_ids`; a window with no 1 is absent.
            labels: [documents] or [documents, labels]; adds the loss.
            num_items_in_batch: see `document_loss`.
            token_positions: of words, the tokens of each span [documents, targets, spans, tokens],
                counted over windows * length, -1 for none. Labels are then [documents, targets],
                `IGNORED` for none.

        Returns:
            loss (with labels) and logits [documents, labels], of words [documents, targets,
            labels]; in training without labels one more dimension in front, if there are several
            `dropout_samples`.

        Raises:
            ValueError: for words without `token_positions`, or a pair too long for a window.
        """
        if self.config.num_spans and token_positions is None:
            raise ValueError("this model classifies words: pass their token_positions")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if input_ids.dim() == 2:
            input_ids, attention_mask, token_type_ids = self._as_documents(
                input_ids, attention_mask, token_type_ids
            )
        if token_positions is None:
            vectors = self.pool_documents(input_ids, attention_mask, token_type_ids)
        else:
            vectors = self.pool_words(input_ids, attention_mask, token_type_ids, token_positions)
        # [documents, (targets,) features]; a head in int8 has no parameters, and takes what comes
        vectors = vectors.to(next(self.head.parameters(), vectors).dtype)
        if self.training and self.config.dropout_samples > 1 and labels is None:
            vectors = vectors.expand(self.config.dropout_samples, *vectors.shape)
        logits = self.head(self.dropout(vectors))  # [(samples,) documents, (targets,) labels]
        if self.config.problem_type == "regression":
            logits = logits * logits.new_tensor(self.config.target_scale) + logits.new_tensor(
                self.config.target_mean
            )
        loss = None
        if labels is not None:
            scored, known = logits, labels
            if token_positions is not None:
                scored, known = without_padding(logits, labels)
            loss = document_loss(scored, known, self.config, num_items_in_batch)
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def pool_documents(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> Tensor:
        """Pool inputs [documents, windows, length] to [documents, features].

        Absent windows do not run through the encoder.
        """
        if input_ids.shape[1] == 1:  # one window a document: none absent, nothing to pool
            types = None if token_type_ids is None else token_type_ids[:, 0]
            return self._run_windows(input_ids[:, 0], attention_mask[:, 0], types)
        present = attention_mask.bool().any(dim=-1)  # [documents, windows]
        types = None if token_type_ids is None else token_type_ids[present]
        vectors = self._run_windows(input_ids[present], attention_mask[present], types)
        windows = vectors.new_zeros(*present.shape, vectors.shape[-1])
        windows[present] = vectors  # [documents, windows, features]
        pooling = self.config.segment_pooling
        return self._pool(WINDOW_POOLINGS, pooling, "segment_attention", windows, present)

    def pool_words(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None,
        token_positions: Tensor,
    ) -> Tensor:
        """Pool inputs [documents, windows, length] to [documents, targets, spans * features].

        A span is the mean over its tokens, or attention over them, in whichever windows they are;
        spans stand side by side.
        """
        present = attention_mask.bool().any(dim=-1)  # [documents, windows]
        ids, mask = input_ids[present], attention_mask[present]
        types = None if token_type_ids is None else token_type_ids[present]
        layers = encode_layers(self.encoder, ids, mask, types, self.config.layers)
        vectors = self._pool_layers(layers)  # [real, length, features]
        windows = vectors.new_zeros(*input_ids.shape, vectors.shape[-1])
        windows[present] = vectors
        flat = windows.flatten(1, 2)  # [documents, windows * length, features]
        real = token_positions >= 0
        rows = torch.arange(flat.shape[0], device=flat.device).view(-1, 1, 1, 1)
        tokens = flat[rows, token_positions.clamp_min(0)]
        if self.config.token_pooling == "attention":  # as in edge probing, Tenney et al. 2019
            pooled = self.token_attention(tokens.flatten(0, 2), real.flatten(0, 2))
            return pooled.view(*real.shape[:2], -1)
        tokens = tokens * real.unsqueeze(-1)  # [documents, targets, spans, tokens, features]
        counts = real.sum(dim=-1, keepdim=True).clamp_min(1)
        return (tokens.sum(dim=3) / counts).flatten(2)

    def _run_windows(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Pool windows [real, length] to [real, features], `segments_per_forward` at a time.

        Memory then holds the activations of one chunk only, in training too: its backward pass
        computes them once more.
        """
        size = self.config.segments_per_forward
        if size is None or len(ids) <= size:
            return self._pool_tokens(ids, mask, types)
        lengths = mask.shape[1] - mask.flip(1).argmax(dim=1)  # [real], padding on the right
        order = lengths.argsort(descending=True)  # chunks of similar length
        run = self._pool_tokens
        if self.training and torch.is_grad_enabled():
            run = partial(checkpoint, self._pool_tokens, use_reentrant=False)
        vectors = []
        for rows in order.split(size):
            own = rows, slice(int(lengths[rows].max()))
            vectors.append(run(ids[own], mask[own], None if types is None else types[own]))
        return torch.cat(vectors)[order.argsort()]

    def _pool_tokens(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        """Pool windows [real, length] to [real, features]."""
        if self.config.token_pooling == "pooler":
            return self.encoder(**encoder_inputs(self.encoder, ids, mask, types)).pooler_output
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
        """Turn inputs [documents, length] into [documents, windows, length], cut where too long.

        Token types of a tokenizer that the encoder does not take are left out.
        """
        spec, special = self.config.window_spec(), self.config.special_token_ids()
        if not attention_mask[:, 0].all():  # padded on the left: positions would be shifted
            order = attention_mask.argsort(dim=1, descending=True, stable=True)
            input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
            if token_type_ids is not None:
                token_type_ids = token_type_ids.gather(1, order)
        if input_ids.shape[1] <= spec.max_seq_length:
            unknown = self.config.special_tokens and special.pair_types is None
            left_out = token_type_ids is None or unknown
            types = None if left_out else token_type_ids.unsqueeze(1)
            return input_ids.unsqueeze(1), attention_mask.unsqueeze(1), types
        if token_type_ids is not None and token_type_ids.any():
            raise ValueError(
                f"a text pair of {input_ids.shape[1]} tokens does not fit the window of "
                f"{spec.max_seq_length}: pass truncation=True, max_length=... to the tokenizer"
            )
        documents = []
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True):
            text = ids[mask].tolist()
            text = text[len(special.prefix) : len(text) - len(special.suffix)]
            documents.append(cut_windows(text, spec, special))
        ids, mask = pad_documents(documents, special.blank)
        return ids.to(input_ids.device), mask.to(input_ids.device), None


def pad_documents(documents: list[list[list[int]]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad the windows of documents to ids and attention mask, both [documents, windows, length].

    They are padded to the most windows and the longest window among them.
    """
    most = max(len(windows) for windows in documents)
    length = max(len(window) for windows in documents for window in windows)
    absent: list[list[int]] = [[]]
    windows = [w for own in documents for w in own + absent * (most - len(own))]
    padded = [window + [pad_id] * (length - len(window)) for window in windows]
    ids = torch.tensor(padded, dtype=torch.long).view(len(documents), most, length)
    lengths = torch.tensor([len(window) for window in windows]).view(len(documents), most, 1)
    mask = (torch.arange(length) < lengths).long()
    return ids, mask
