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
    check_training,
)
from bertchain.arguments.competition import (
    FoldArguments,
    RowArguments,
    SubmissionArguments,
    check_grouping,
)
from bertchain.arguments.training import (
    AdapterArguments,
    HeadArguments,
    LossArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
)
from bertchain.cli import Given, is_given, value_of
from bertchain.errors import InputError, at_least, exclude
from bertchain.runtime import outputs
from bertchain.runtime.given import Hooks


@dataclass
class RunArguments:
    """Rows to train on, metrics, checkpoints and time."""

    _argument_group_name = "run"

    train_fraction: float | None = arg(
        None, "Share of the training rows to use, stratified; shares of one seed are nested."
    )
    train_per_class: int | None = arg(None, "Number of training rows of each class to use.")
    min_steps: int | None = arg(
        None,
        "Least number of optimizer steps; a small table gets more epochs than --num_train_epochs.",
        common=True,
    )
    batch_by_length: bool = arg(True, "Whether training batches hold rows of similar length.")
    extra_metrics: list[str] = arg(
        [],
        "Metrics beside the usual ones: of `evaluate` by name or path (name:argument=value works), "
        "qwk (grades), or FILE.py:FUNCTION.",
    )
    metric_file: str | None = arg(
        None,
        "Your own score as FILE.py:FUNCTION, a function of labels and probabilities: it chooses "
        "checkpoints, and thresholds and blends maximise it.",
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
        at_least("min_steps", self.min_steps, 1)
        at_least("early_stopping_patience", self.early_stopping_patience, 1)
        exclude(train_fraction=self.train_fraction, train_per_class=self.train_per_class)

    def metrics(self, chosen: str | None) -> list[str]:
        """Describe the scores beside the usual ones. Args: chosen: --metric_for_best_model."""
        own = [self.metric_file] if self.metric_file else []
        own += ["qwk"] if (chosen or "").removeprefix("eval_") == "qwk" else []
        return list(dict.fromkeys([*self.extra_metrics, *own]))

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


GROUPS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    SpanArguments,
    WindowArguments,
    EncoderArguments,
    ModelArguments,
    HeadArguments,
    RateArguments,
    LossArguments,
    RegulariserArguments,
    AdapterArguments,
    RowArguments,
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
    head: HeadArguments
    rates: RateArguments
    losses: LossArguments
    regularisers: RegulariserArguments
    adapter: AdapterArguments
    rows: RowArguments
    folds: FoldArguments
    submission: SubmissionArguments
    run: RunArguments
    training: Any  # transformers.TrainingArguments, which takes seconds to import
    run_config: dict[str, Any]  # every argument that is not None, to repeat the run
    hooks: Hooks = Hooks()  # what only Python can give

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
            asked |= {"validation", "extra"}  # validation chooses the best checkpoint
        return asked or {*flags, "extra"}

    def rows_of_a_class(self) -> int | None:
        """Rows of a class that come into a step together; None: as they come.

        Raises:
            InputError: where the rows of a step are no groups of so many.
        """
        training = self.training
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        return self.losses.rows_of_a_class(rows * training.world_size)

    @property
    def metrics(self) -> list[str]:
        """Descriptions of the scores beside the usual ones, see `metrics.load_extra`."""
        return self.run.metrics(self.training.metric_for_best_model)

    @property
    def refits_head(self) -> bool:
        """Whether the head becomes a probe after training."""
        return bool(self.head.head_refit) or not self.losses.trains_head

    @property
    def keeps_last(self) -> str | None:
        """Why no evaluation chooses a checkpoint: a flag; None: one may."""
        if not self.losses.trains_head:
            return "--contrastive_weight 1"
        held_out = self.data.validation_file or self.folds.with_folds or self.data.dataset_name
        return None if held_out or self.label.validation_split else "--validation_split 0"


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
    "contrastive_weight",
    "rows_per_class_in_batch",
    "extra_train_file",
    "weight_column_name",
    "teacher",
    "ranking_weight",
    "ordinal_head",
    "group_column_name",
    "near_duplicates",
)
INPUTS = (  # arguments that name a file or folder which is read, or holds checkpoints
    "train_file",
    "validation_file",
    "test_file",
    "extra_train_file",
    "metric_file",
    "teacher",
    "dataset_name",
    "pseudo_label_file",
    "sample_submission",
    "model_name_or_path",
    "tokenizer_name",
    "checkpoint_dir",
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
            if given.get(name) and (name, given[name]) != ("token_pooling", "attention"):
                raise InputError(f"--{name} does not go with --spans_column_name")
    frozen_by_lora = {name: given.get(name) for name in NOT_WITH_LORA}
    frozen_by_lora["freeze"] = args.rates.freeze != "none"
    for name, value in frozen_by_lora.items():
        exclude(lora_r=args.adapter.lora_r, **{name: value})
    if args.run.early_stopping_patience and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end")
    check_few_labels(args)
    exclude(min_steps=args.run.min_steps, max_steps=training.max_steps > 0)
    name = "num_folds" if folds.num_folds else "fold_column_name"
    exclude(validation_file=args.data.validation_file, **{name: folds.with_folds})
    exclude(ordinal_head=args.model.ordinal_head, focal_gamma=args.losses.focal_gamma)
    check_grouping(folds, args.data.validation_file, args.label.validation_split)
    if args.head.head_init or args.refits_head:
        if args.model.ordinal_head:
            raise InputError("--ordinal_head does not go with a head that is a linear probe")
        args.rows.refuse_weights("a head that is a linear probe")
    if args.submission.fit_thresholds and not folds.with_folds:
        raise InputError("--fit_thresholds needs --num_folds or --fold_column_name")
    if args.submission.sample_submission and args.text.id_column_name is None:
        raise InputError("--sample_submission needs --id_column_name")
    if (folds.with_folds or folds.seeds) and training.resume_from_checkpoint:
        raise InputError(
            "--resume_from_checkpoint does not go with folds or --seeds: the same command goes on"
        )
    check_training(training)
    check_output(args)


def check_few_labels(args: Arguments) -> None:
    """Check the contrastive loss, and that nothing is chosen where no evaluation can choose.

    Raises:
        InputError: naming the arguments.
    """
    training = args.training
    if args.losses.contrastive_weight and training.gradient_accumulation_steps > 1:
        raise InputError(
            "--contrastive_weight compares all rows of a step, which therefore are one batch: "
            "leave out --gradient_accumulation_steps (--gradient_checkpointing true and "
            "--segments_per_forward save memory)"
        )
    args.rows_of_a_class()  # refuses what cannot be
    asked = {
        "early_stopping_patience": args.run.early_stopping_patience is not None,
        "load_best_model_at_end": training.load_best_model_at_end,
        "eval_strategy": training.eval_strategy != "no",
        "metric_for_best_model": training.metric_for_best_model is not None,
    }
    for name, value in asked.items():
        if args.keeps_last and value:
            raise InputError(
                f"--{name} does not go with {args.keeps_last}: there is "
                + ("no head" if "weight" in args.keeps_last else "no validation row")
                + " to evaluate while training, and the last weights are kept"
            )


def defaults_for(argv: Given) -> dict[str, Any]:
    """Defaults that other arguments entail.

    Where nothing is trained, the output folder is not that of the model. Where no evaluation can
    choose a checkpoint (see `Arguments.keeps_last`), none is made while training.
    """
    found: dict[str, Any] = {}
    if not (is_given("train_file", argv) or is_given("dataset_name", argv)):
        found["output_dir"] = "predicted"
    held_out = ("validation_file", "num_folds", "fold_column_name", "dataset_name")
    none = _number("validation_split", argv) == 0 and not any(is_given(n, argv) for n in held_out)
    if none or _number("contrastive_weight", argv) == 1:
        found |= {"eval_strategy": "no", "load_best_model_at_end": False}
        found |= {"save_strategy": "steps", "save_steps": 0.1}  # an epoch may be a single step
    return found


def _number(name: str, argv: Given) -> float | None:
    try:
        return float(value_of(name, argv) or "nan")
    except ValueError:  # the parser says so
        return None


def check_output(args: Arguments) -> None:
    """Refuse early an output folder that holds another run, or that does not lie beside the inputs.

    Raises:
        InputError: as the functions that it calls.
    """
    training, folds = args.training, args.folds
    asked, given = training.resume_from_checkpoint, args.run_config
    outputs.check_apart(training.output_dir, **{name: given.get(name) for name in INPUTS})
    if folds.with_folds or folds.seeds:
        return  # what may lie there, the manifest says
    outputs.check_unused(training.output_dir, asked)
    if not args.run.checkpoint_dir:
        from bertchain.runtime.checkpoints import find_checkpoint  # imports transformers

        find_checkpoint(training.output_dir, asked)


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
