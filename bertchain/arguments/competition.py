"""Arguments of folds, seeds and submissions."""

from dataclasses import dataclass

from bertchain.arguments.common import arg
from bertchain.errors import InputError, at_least, exclude, one_of

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
