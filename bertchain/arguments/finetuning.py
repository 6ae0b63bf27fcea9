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
from bertchain.arguments.competition import FoldArguments, SubmissionArguments
from bertchain.arguments.training import (
    AdapterArguments,
    LossArguments,
    ModelArguments,
    RateArguments,
    RegulariserArguments,
)
from bertchain.cli import Given, is_given
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
INPUTS = (  # arguments that name a file or folder which is read, or holds checkpoints
    "train_file",
    "validation_file",
    "test_file",
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
    check_training(training)
    check_output(args)


def default_folder(argv: Given) -> dict[str, str]:
    """The default --output_dir where nothing is trained, so that it is not that of the model."""
    trains = is_given("train_file", argv) or is_given("dataset_name", argv)
    return {} if trains else {"output_dir": "predicted"}


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
