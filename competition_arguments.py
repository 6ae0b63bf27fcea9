"""The arguments of run_finetune.py around the model: folds, submission. Imports nothing heavy."""

from dataclasses import dataclass

from arguments import arg
from command_line import InputError, at_least, exclude, one_of

FOLD_STRATEGIES = ("stratified", "group", "stratified_group", "multilabel", "random")


@dataclass
class FoldArguments:
    _argument_group_name = "folds and seeds (one model for each of both; finished ones are kept)"

    num_folds: int | None = arg(None, "Train so many models, each validated on its own share.")
    fold_strategy: str | None = arg(
        None,
        "stratified, group, stratified_group, multilabel or random. Else: what suits the labels.",
    )
    group_column_name: str | None = arg(None, "Rows of one group share a fold.")
    fold_column_name: str | None = arg(None, "Column with the fold of each row (0, 1 ...).")
    folds: list[str] = arg([], "Train these only, as 0,1. Default: all.")
    seeds: list[int] = arg([], "Train each with these seeds; predictions are averaged.")
    pseudo_label_file: str | None = arg(
        None, "predictions_test_by_fold.csv of a run with the same folds: more training rows."
    )
    pseudo_label_weight: float = arg(1.0, "Of such a row; a labelled one counts 1.")

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
        return bool(self.num_folds or self.fold_column_name)

    @property
    def wanted(self) -> list[int]:
        """--folds as numbers."""
        words = [word for item in self.folds for word in item.split(",") if word.strip()]
        for word in words:
            if not word.strip().isdigit():
                raise InputError(f"--folds {word}: write numbers of folds, as 0,1")
        return [int(word) for word in words]


@dataclass
class SubmissionArguments:
    _argument_group_name = "submission"

    sample_submission: str | None = arg(
        None, "File whose columns, ids and order submission.csv gets."
    )
    submission_values: str | None = arg(
        None, "labels or probabilities. Default: what the sample holds, fractions or not."
    )
    fit_thresholds: str | None = arg(
        None,
        "On the out-of-fold predictions: global or per_label (F1), ordinal (regression to grades).",
    )

    def __post_init__(self) -> None:
        one_of("submission_values", self.submission_values, ("labels", "probabilities"))
        one_of("fit_thresholds", self.fit_thresholds, ("global", "per_label", "ordinal"))
        if self.submission_values and not self.sample_submission:
            raise InputError("--submission_values needs --sample_submission")
