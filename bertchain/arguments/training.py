"""Arguments of how a classifier is built and trained."""

from dataclasses import dataclass
from typing import Any

from bertchain.arguments.common import arg
from bertchain.errors import InputError, at_least, exclude, one_of


@dataclass
class ModelArguments:
    """Layers that are read, poolings and the head."""

    _argument_group_name = (
        "pooling and head (a folder of run_finetune.py brings its own; flags override it)"
    )

    layers: str | None = arg(
        None,
        "Layers to read: last, first4, last4, all, or numbers (0 = embeddings, -1 = last), as "
        "'9 10 11 12'.",
        shown="last",
        common=True,
    )
    layer_pooling: str | None = arg(
        None,
        "How several layers become one: concat, mean, max or weighted (learned).",
        shown="concat",
    )
    token_pooling: str | None = arg(
        None,
        "How the tokens of a window become one vector: cls, mean, max, attention, bilstm (with "
        "attention), last, or pooler (BERT's own).",
        shown="cls, of a decoder last",
        common=True,
    )
    segment_pooling: str | None = arg(
        None, "How hierarchical windows become one vector: mean, max or attention.", shown="mean"
    )
    segments_per_forward: int | None = arg(
        None, "Most windows that the encoder reads at once; bounds memory.", shown="all"
    )
    head_dropout: float | None = arg(None, "Dropout before the head.", shown="0.1")
    dropout_samples: int | None = arg(
        None,
        "Dropout masks on which the head is trained at once (multi-sample dropout).",
        shown="1",
    )
    ordinal_head: bool | None = arg(
        None,
        "Whether classes that are grades (numbers) get one value and a cut between each two, "
        "trained by the ordinal loss (CORAL).",
        shown="false",
    )
    drop_layers_above: int | None = arg(
        None, "Highest block to keep; those above are removed and cost nothing."
    )

    def __post_init__(self) -> None:
        one_of("layer_pooling", self.layer_pooling, ("concat", "mean", "max", "weighted"))
        poolings = ("cls", "mean", "max", "attention", "bilstm", "last", "pooler")
        one_of("token_pooling", self.token_pooling, poolings)
        one_of("segment_pooling", self.segment_pooling, ("mean", "max", "attention"))
        at_least("segments_per_forward", self.segments_per_forward, 1)
        at_least("dropout_samples", self.dropout_samples, 1)
        at_least("drop_layers_above", self.drop_layers_above, 1)
        probability("head_dropout", self.head_dropout)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields that the saved config carries."""
        return {name: v for name, v in vars(self).items() if name != "drop_layers_above"}


@dataclass
class HeadArguments:
    """Linear probes as the head."""

    _argument_group_name = "linear probes as the head (converged, C chosen)"

    head_init: str | None = arg(
        None,
        "What the head is when training starts: probe, the converged linear probe of the frozen "
        "features (LP-FT); good with few labels.",
        shown="the checkpoint's, else random",
        common=True,
    )
    head_refit: str | None = arg(
        None,
        "What the head becomes when training ends: probe, the converged linear probe of the "
        "trained features.",
        shown="what was trained",
    )

    def __post_init__(self) -> None:
        one_of("head_init", self.head_init, ("probe",))
        one_of("head_refit", self.head_refit, ("probe",))


@dataclass
class RateArguments:
    """Learning rates of layers, and which layers are trained."""

    _argument_group_name = "learning rates of layers, and which are trained"

    layer_lr_decay: float | None = arg(
        None,
        "Layer-wise decay: block k of L learns at learning_rate * decay^(L-k); 1 = off.",
        shown="0.95",
        common=True,
    )
    layer_learning_rates: list[float] = arg(
        [], "Learning rates of blocks 1 to L in place of the decay; embeddings learn like block 1."
    )
    head_learning_rate: float | None = arg(
        None, "Learning rate of all above the blocks.", shown="--learning_rate", common=True
    )
    embedding_learning_rate: float | None = arg(
        None, "Learning rate of the embeddings.", shown="learning_rate * decay^L"
    )
    freeze: str = arg(
        "none",
        "What is not trained: none, embeddings, encoder, or N for embeddings and the lowest N "
        "blocks.",
    )
    unfreeze_every: float | None = arg(
        None,
        "Epochs after which one block more learns (gradual unfreezing): first the head alone, "
        "then blocks from the top.",
    )
    reinit_layers: int = arg(0, "Number of top blocks that start from new random weights.")

    def __post_init__(self) -> None:
        if self.layer_lr_decay is not None and not 0 < self.layer_lr_decay <= 1:
            raise InputError(
                f"--layer_lr_decay {self.layer_lr_decay} must be above 0 and at most 1"
            )
        for name in ("head_learning_rate", "embedding_learning_rate"):
            at_least(name, getattr(self, name), 0)
        for rate in self.layer_learning_rates:
            at_least("layer_learning_rates", rate, 0)
        if self.freeze not in ("none", "embeddings", "encoder") and not self.freeze.isdigit():
            raise InputError(
                f"--freeze {self.freeze} is not none, embeddings, encoder or a number of blocks"
            )
        at_least("reinit_layers", self.reinit_layers, 0)
        if self.unfreeze_every is not None and self.unfreeze_every <= 0:
            raise InputError(f"--unfreeze_every {self.unfreeze_every} must be above 0")
        exclude(layer_learning_rates=self.layer_learning_rates, layer_lr_decay=self.layer_lr_decay)
        exclude(freeze=self.freeze != "none", unfreeze_every=self.unfreeze_every)
        exclude(freeze=self.freeze == "encoder", reinit_layers=self.reinit_layers)

    @property
    def rates(self) -> dict[str, Any]:
        """Arguments of `models.layers.layer_rates` beside the learning rate."""
        return {
            "decay": 0.95 if self.layer_lr_decay is None else self.layer_lr_decay,
            "head": self.head_learning_rate,
            "embedding": self.embedding_learning_rate,
            "explicit": self.layer_learning_rates,
        }


@dataclass
class LossArguments:
    """Weights and shape of the training loss."""

    _argument_group_name = "loss (see also --label_smoothing_factor)"

    class_weights: list[str] = arg(
        [], "Weights of classes, one label a row: balanced, or name=weight for each.", common=True
    )
    positive_weights: list[str] = arg(
        [],
        "Weights of presence against absence, multi-label: balanced, or name=weight for each "
        "label.",
    )
    focal_gamma: float = arg(
        0.0, "Exponent of the focal loss, (1 - p)^gamma, with which easy rows count less; 0 = off."
    )
    huber_delta: float | None = arg(
        None,
        "Error, in standard deviations, from which on the loss of a regression is linear; "
        "without it the loss is the squared error.",
    )
    ranking_weight: float = arg(
        0.0,
        "Share of the pairwise ranking loss in a regression: of two rows of a batch the one with "
        "the higher target ought to get the higher value. 1 = alone: values then only rank.",
    )
    rdrop_alpha: float = arg(
        0.0, "Weight of R-Drop, the divergence of two passes with other dropout; 0 = off."
    )
    contrastive_weight: float | None = arg(
        None,
        "Share of the supervised contrastive loss, which draws documents of one class together; "
        "good with few labels. 1 = alone: the head is then a probe of the result.",
        shown="0, off",
        common=True,
    )
    contrastive_loss: str | None = arg(
        None,
        "Contrastive loss: softmax, of each row over the others, or cosine, of each pair towards 1 "
        "or 0, as in SetFit.",
        shown="softmax",
    )
    contrastive_temperature: float | None = arg(
        None, "Temperature of the softmax of the contrastive loss.", shown="0.1"
    )
    rows_per_class_in_batch: int | None = arg(
        None,
        "Rows of a class that come into a step together.",
        shown="off; with --contrastive_weight 4, 3 or 2, what divides the rows of a step",
    )

    def __post_init__(self) -> None:
        at_least("focal_gamma", self.focal_gamma, 0)
        at_least("rdrop_alpha", self.rdrop_alpha, 0)
        if not 0 <= self.ranking_weight <= 1:
            raise InputError(
                f"--ranking_weight {self.ranking_weight} must be at least 0 and at most 1"
            )
        at_least("rows_per_class_in_batch", self.rows_per_class_in_batch, 2)
        if not 0 <= (self.contrastive_weight or 0) <= 1:
            raise InputError(
                f"--contrastive_weight {self.contrastive_weight} must be at least 0 and at most 1"
            )
        for name in ("contrastive_loss", "contrastive_temperature"):
            if getattr(self, name) is not None and not self.contrastive_weight:
                raise InputError(f"--{name} needs --contrastive_weight")
        one_of("contrastive_loss", self.contrastive_loss, ("softmax", "cosine"))
        if self.contrastive_temperature is not None:
            if self.contrastive_loss == "cosine":
                raise InputError(
                    "--contrastive_temperature does not go with --contrastive_loss cosine"
                )
            if self.contrastive_temperature <= 0:
                raise InputError(
                    f"--contrastive_temperature {self.contrastive_temperature} must be above 0"
                )
        exclude(contrastive_weight=self.contrastive_weight, rdrop_alpha=self.rdrop_alpha)
        if self.huber_delta is not None and self.huber_delta <= 0:
            raise InputError(f"--huber_delta {self.huber_delta} must be above 0")

    @property
    def temperature(self) -> float | None:
        """Temperature of the contrastive loss; None: the one of pairs, which has none."""
        if self.contrastive_loss == "cosine":
            return None
        return 0.1 if self.contrastive_temperature is None else self.contrastive_temperature

    @property
    def trains_head(self) -> bool:
        """Whether the loss says anything to the head."""
        return self.contrastive_weight != 1

    def rows_of_a_class(self, rows: int) -> int | None:
        """Resolve how many rows of a class come into a step of so many rows; None: as they come.

        Raises:
            InputError: for a number that does not divide them into two groups or more.
        """
        asked = self.rows_per_class_in_batch
        if asked is None and not self.contrastive_weight:
            return None
        for size in (4, 3, 2) if asked is None else (asked,):
            if rows % size == 0 and rows >= 2 * size:
                return size
        name = "contrastive_weight" if asked is None else f"rows_per_class_in_batch {asked}"
        raise InputError(
            f"--{name}: a step of {rows} rows (--per_device_train_batch_size x accumulation x "
            "processes) is not two or more groups of one class; 48 rows, 4 of a class, do well"
        )


@dataclass
class RegulariserArguments:
    """Dropout in the encoder, adversaries and averaged weights."""

    _argument_group_name = "regularisers (all off by default)"

    encoder_dropout: float | None = arg(
        None,
        "Dropout in all places inside the encoder; 0 helps regression.",
        shown="the checkpoint's",
    )
    fgm_epsilon: float = arg(
        0.0, "Length by which FGM moves the word embeddings, for one more pass; 0 = off, try 0.5."
    )
    awp_epsilon: float = arg(
        0.0,
        "Share of their norm by which AWP moves the weights, for one more pass; 0 = off, try 1e-3.",
    )
    ema_decay: float = arg(
        0.0,
        "Decay of the moving average of the weights, which is evaluated and kept; 0 = off, try "
        "0.99.",
    )

    def __post_init__(self) -> None:
        probability("encoder_dropout", self.encoder_dropout)
        probability("ema_decay", self.ema_decay)
        at_least("fgm_epsilon", self.fgm_epsilon, 0)
        at_least("awp_epsilon", self.awp_epsilon, 0)
        exclude(fgm_epsilon=self.fgm_epsilon, awp_epsilon=self.awp_epsilon)


@dataclass
class AdapterArguments:
    """LoRA matrices in the encoder."""

    _argument_group_name = "LoRA (needs `pip install peft`)"

    lora_r: int = arg(
        0, "Rank of LoRA matrices, which are trained in the encoder, beside the head; 0 = off."
    )
    lora_alpha: float | None = arg(
        None, "Alpha of LoRA: matrices are scaled by alpha / r.", shown="2 * lora_r"
    )
    lora_dropout: float = arg(0.0, "Dropout on the input of the LoRA matrices.")
    lora_target_modules: list[str] = arg(
        [], "Names of the linear layers that get LoRA matrices.", shown="all in the encoder"
    )
    save_adapter: bool = arg(
        False,
        "Whether adapter/ is written as well, in peft's format; the model itself is saved merged.",
    )

    def __post_init__(self) -> None:
        at_least("lora_r", self.lora_r, 0)
        probability("lora_dropout", self.lora_dropout)
        given = {
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "lora_target_modules": self.lora_target_modules,
            "save_adapter": self.save_adapter,
        }
        for name, value in given.items():
            if value and not self.lora_r:
                raise InputError(f"--{name} needs --lora_r")


def probability(name: str, value: float | None) -> None:
    """Check an argument that is a probability below 1; None passes."""
    if value is not None and not 0 <= value < 1:
        raise InputError(f"--{name} {value} must be at least 0 and below 1")
