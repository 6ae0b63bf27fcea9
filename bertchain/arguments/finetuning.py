"""Arguments of run_finetune.py beside those that scripts share. Imports nothing heavy."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from bertchain.arguments.common import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    SpanArguments,
    TextArguments,
    WindowArguments,
    arg,
    refuse_missing_reporters,
    refuse_other_order,
    refuse_push,
)
from bertchain.cli import check_processes, refuse_data_parallel, refuse_fp16
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
    rdrop_alpha: float = arg(
        0.0, "Weight of R-Drop, the divergence of two passes with other dropout; 0 = off."
    )

    def __post_init__(self) -> None:
        at_least("focal_gamma", self.focal_gamma, 0)
        at_least("rdrop_alpha", self.rdrop_alpha, 0)
        if self.huber_delta is not None and self.huber_delta <= 0:
            raise InputError(f"--huber_delta {self.huber_delta} must be above 0")


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


@dataclass
class RunArguments:
    """Rows to train on, metrics, checkpoints and time."""

    _argument_group_name = "run"

    train_fraction: float | None = arg(
        None, "Share of the training rows to use, stratified; shares of one seed are nested."
    )
    train_per_class: int | None = arg(None, "Number of training rows of each class to use.")
    batch_by_length: bool = arg(True, "Whether training batches hold rows of similar length.")
    extra_metrics: list[str] = arg(
        [],
        "Metrics of `evaluate` beside the usual ones, by name or path; name:argument=value works.",
    )
    early_stopping_patience: int | None = arg(
        None, "Evaluations without a better score after which training stops.", common=True
    )
    keep_checkpoints: bool = arg(False, "Whether checkpoint-* folders are kept after the end.")
    checkpoint_dir: str | None = arg(
        None, "Folder for checkpoints, such as one on a scratch disk.", shown="--output_dir"
    )
    time_budget: str | None = arg(
        None,
        "Time for the whole run, as 8h30m: training ends early enough to predict with the best "
        "weights so far.",
        common=True,
    )

    def __post_init__(self) -> None:
        if self.train_fraction is not None and not 0 < self.train_fraction <= 1:
            raise InputError(
                f"--train_fraction {self.train_fraction} must be above 0 and at most 1"
            )
        if self.time_budget is not None:
            to_seconds(self.time_budget)
        at_least("train_per_class", self.train_per_class, 1)
        at_least("early_stopping_patience", self.early_stopping_patience, 1)
        exclude(train_fraction=self.train_fraction, train_per_class=self.train_per_class)

    @property
    def subset(self) -> dict[str, Any]:
        """Arguments of `data.splits.choose_subset`: which training rows are used."""
        return {"fraction": self.train_fraction, "per_class": self.train_per_class}

    @property
    def seconds(self) -> float | None:
        """The time budget in seconds; None: there is none."""
        return None if self.time_budget is None else to_seconds(self.time_budget)


UNITS = {"h": 3600, "m": 60, "s": 1}


def to_seconds(text: str) -> float:
    """Convert 8h30m, 45m, 90s or plain seconds to seconds.

    Raises:
        InputError: for anything else, and for 0.
    """
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if parts is None or not text.strip():
        raise InputError(f"--time_budget {text}: write it as 8h30m, 45m, 90s or in seconds")
    seconds = sum(
        float(n or 0) * unit for n, unit in zip(parts.groups(), UNITS.values(), strict=True)
    )
    if seconds <= 0:
        raise InputError(f"--time_budget {text} leaves no time")
    return seconds


def probability(name: str, value: float | None) -> None:
    """Check an argument that is a probability below 1; None passes."""
    if value is not None and not 0 <= value < 1:
        raise InputError(f"--{name} {value} must be at least 0 and below 1")


FOLD_STRATEGIES = ("stratified", "group", "stratified_group", "multilabel", "random")


@dataclass
class FoldArguments:
    """Folds, seeds and pseudo-labels."""

    _argument_group_name = "folds and seeds (a model for each pair; finished models are kept)"

    num_folds: int | None = arg(
        None,
        "Number of folds; each model is validated on one and trained on the others.",
        common=True,
    )
    fold_strategy: str | None = arg(
        None,
        "How rows are assigned to folds: stratified, group, stratified_group, multilabel or "
        "random.",
        shown="stratified or multilabel, with groups stratified_group or group",
    )
    group_column_name: str | None = arg(None, "Column with groups; rows of one group share a fold.")
    fold_column_name: str | None = arg(
        None, "Column with the fold of each row (0, 1 ...), in place of --num_folds."
    )
    folds: list[str] = arg([], "Folds to train, as 0,1.", shown="all")
    seeds: list[int] = arg(
        [],
        "Seeds; a model is trained with each, and their predictions are averaged.",
        shown="--seed",
        common=True,
    )
    pseudo_label_file: str | None = arg(
        None,
        "File predictions_test_by_fold.csv of a run with the same folds, whose rows are "
        "trained on too (pseudo-labels).",
    )
    pseudo_label_weight: float = arg(
        1.0, "Weight of a pseudo-labelled row; a labelled one counts 1."
    )

    def __post_init__(self) -> None:
        at_least("num_folds", self.num_folds, 2)
        one_of("fold_strategy", self.fold_strategy, FOLD_STRATEGIES)
        exclude(num_folds=self.num_folds, fold_column_name=self.fold_column_name)
        exclude(fold_strategy=self.fold_strategy, fold_column_name=self.fold_column_name)
        exclude(group_column_name=self.group_column_name, fold_column_name=self.fold_column_name)
        for name in ("fold_strategy", "group_column_name"):
            if getattr(self, name) and not self.num_folds:
                raise InputError(f"--{name} needs --num_folds")
        for name in ("folds", "pseudo_label_file"):
            if getattr(self, name) and not self.with_folds:
                raise InputError(f"--{name} needs --num_folds or --fold_column_name")
        if self.pseudo_label_weight <= 0:
            raise InputError(f"--pseudo_label_weight {self.pseudo_label_weight} must be above 0")
        if self.pseudo_label_weight != 1.0 and not self.pseudo_label_file:
            raise InputError("--pseudo_label_weight needs --pseudo_label_file")
        for name, values in (("folds", self.wanted), ("seeds", self.seeds)):
            if len(set(values)) < len(values):
                raise InputError(f"--{name} names {max(values, key=values.count)} twice")

    @property
    def with_folds(self) -> bool:
        """Whether there are folds."""
        return bool(self.num_folds or self.fold_column_name)

    @property
    def wanted(self) -> list[int]:
        """--folds as numbers; [] stands for all."""
        words = [word for item in self.folds for word in item.split(",") if word.strip()]
        for word in words:
            if not word.strip().isdigit():
                raise InputError(f"--folds {word}: write numbers of folds, as 0,1")
        return [int(word) for word in words]


@dataclass
class SubmissionArguments:
    """Sample submission, and how it is filled."""

    _argument_group_name = "submission"

    sample_submission: str | None = arg(
        None, "Sample file, whose columns, ids and order submission.csv gets.", common=True
    )
    submission_values: str | None = arg(
        None, "What submission.csv holds: labels or probabilities.", shown="what the sample holds"
    )
    positive_label: str | None = arg(
        None,
        "Label that the only column of a sample stands for, by its probability or by 1, where its "
        "name does not say so (as label, is_label, prob_label or p_label do).",
    )
    fit_thresholds: str | None = arg(
        None,
        "Thresholds to fit on the out-of-fold predictions: global or per_label (F1), ordinal "
        "(regression to grades).",
    )

    def __post_init__(self) -> None:
        one_of("submission_values", self.submission_values, ("labels", "probabilities"))
        one_of("fit_thresholds", self.fit_thresholds, ("global", "per_label", "ordinal"))
        for name in ("submission_values", "positive_label"):
            if getattr(self, name) and not self.sample_submission:
                raise InputError(f"--{name} needs --sample_submission")


GROUPS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    SpanArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    RateArguments,
    LossArguments,
    RegulariserArguments,
    AdapterArguments,
    FoldArguments,
    SubmissionArguments,
    RunArguments,
)


class Arguments(NamedTuple):
    """The arguments of run_finetune.py, by group."""

    data: DataArguments
    text: TextArguments
    label: LabelArguments
    span: SpanArguments
    window: WindowArguments
    checkpoint: EncoderArguments
    model: ModelArguments
    rates: RateArguments
    losses: LossArguments
    regularisers: RegulariserArguments
    adapter: AdapterArguments
    folds: FoldArguments
    submission: SubmissionArguments
    run: RunArguments
    training: Any  # transformers.TrainingArguments, which takes seconds to import
    run_config: dict[str, Any]  # every argument that is not None, to repeat the run

    @property
    def sources(self) -> tuple[DataArguments, TextArguments, LabelArguments, SpanArguments]:
        """Where documents and labels come from."""
        return self.data, self.text, self.label, self.span

    @property
    def wanted_splits(self) -> set[str]:
        """All splits; with any of --do_train, --do_eval, --do_predict, those that they name."""
        flags = {"train": "do_train", "validation": "do_eval", "test": "do_predict"}
        asked = {split for split, flag in flags.items() if self.run_config.get(flag)}
        if "train" in asked:
            asked.add("validation")  # chooses the best checkpoint
        return asked or {*flags}


NOT_OF_SPANS = (
    "num_folds",
    "fold_column_name",
    "seeds",
    "sample_submission",
    "fit_thresholds",
    "train_fraction",
    "train_per_class",
    "rdrop_alpha",
    "token_pooling",
    "segment_pooling",
    "segments_per_forward",
    "text_pair",
    "max_segments",
)
NOT_WITH_LORA = ("reinit_layers", "unfreeze_every", "fgm_epsilon", "awp_epsilon")


def check_combinations(args: Arguments) -> None:
    """Check combinations of arguments across groups.

    Raises:
        InputError: naming the arguments, where one needs another or excludes it.
    """
    given, training, folds = args.run_config, args.training, args.folds
    _check_files(args.data, given)
    if args.span.spans_column_name:
        for name in NOT_OF_SPANS:
            if given.get(name):
                raise InputError(f"--{name} does not go with --spans_column_name")
    frozen_by_lora = {name: given.get(name) for name in NOT_WITH_LORA}
    frozen_by_lora["freeze"] = args.rates.freeze != "none"
    for name, value in frozen_by_lora.items():
        exclude(lora_r=args.adapter.lora_r, **{name: value})
    if args.run.early_stopping_patience and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end")
    name = "num_folds" if folds.num_folds else "fold_column_name"
    exclude(validation_file=args.data.validation_file, **{name: folds.with_folds})
    if args.submission.fit_thresholds and not folds.with_folds:
        raise InputError("--fit_thresholds needs --num_folds or --fold_column_name")
    if args.submission.sample_submission and args.text.id_column_name is None:
        raise InputError("--sample_submission needs --id_column_name")
    if (folds.with_folds or folds.seeds) and training.resume_from_checkpoint:
        raise InputError(
            "--resume_from_checkpoint does not go with folds or --seeds: the same command goes on"
        )
    refuse_data_parallel(training.n_gpu)
    check_processes(training.world_size)
    refuse_missing_reporters(training)
    refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)
    refuse_push(training)
    if not (folds.with_folds or folds.seeds or args.run.checkpoint_dir):
        from bertchain.runtime.checkpoints import find_checkpoint  # imports transformers

        find_checkpoint(training.output_dir, training.resume_from_checkpoint)  # refuse it early


def _check_files(data: DataArguments, given: dict[str, Any]) -> None:
    if data.dataset_name is not None:
        return
    needs = {
        "do_train": ("train_file",),
        "do_eval": ("validation_file", "train_file"),
        "do_predict": ("test_file",),
    }
    for flag, names in needs.items():
        if given.get(flag) and not any(getattr(data, name) for name in names):
            raise InputError(f"--{flag} needs " + " or ".join(f"--{name}" for name in names))
