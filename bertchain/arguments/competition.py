"""Arguments of rows, folds, seeds and submissions."""

from dataclasses import dataclass

from bertchain.arguments.common import arg
from bertchain.errors import InputError, at_least, exclude, one_of

FOLD_STRATEGIES = ("stratified", "group", "stratified_group", "multilabel", "random")


@dataclass
class RowArguments:
    """Further training rows, and how much a row counts."""

    _argument_group_name = "weights of rows, and further rows"

    extra_train_file: str | None = arg(
        None, "Further labelled rows: every model is trained on them, none is validated on one."
    )
    extra_train_weight: float = arg(
        1.0, "Weight of such a row, times that of its own column; one of --train_file counts 1."
    )
    weight_column_name: str | None = arg(
        None, "Column with the weight of each training row in the loss, at least 0."
    )
    weigh_metrics: bool = arg(
        False, "Whether rows count by their weight in the scores, too, wherever the column is."
    )

    def __post_init__(self) -> None:
        if not self.extra_train_weight > 0:
            raise InputError(f"--extra_train_weight {self.extra_train_weight} must be above 0")
        if self.extra_train_weight != 1.0 and not self.extra_train_file:
            raise InputError("--extra_train_weight needs --extra_train_file")
        if self.weigh_metrics and not self.weight_column_name:
            raise InputError("--weigh_metrics needs --weight_column_name")

    @property
    def weighs(self) -> bool:
        """Whether some training rows count more than others."""
        return self.weight_column_name is not None or self.extra_train_weight != 1.0

    def refuse_weights(self, what: str) -> None:
        """Raises InputError where rows have weights, which `what` does not take."""
        name = "weight_column_name" if self.weight_column_name else "extra_train_weight"
        if self.weighs:
            raise InputError(f"--{name} does not go with {what}")


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
    fold_repeats: int = arg(
        1, "Number of times that rows are assigned to folds; out-of-fold predictions are averaged."
    )
    group_column_name: str | None = arg(
        None, "Column with groups; rows of one group share a fold, or are held out together."
    )
    near_duplicates: float | None = arg(
        None,
        "Jaccard similarity of their runs of three words from which on two texts share a fold, or "
        "are held out together; try 0.7 (needs `pip install datasketch`).",
        shown="off",
    )
    fold_column_name: str | None = arg(
        None,
        "Column with the fold of each row (0, 1 ...), in place of --num_folds; rows of fold -1 are "
        "trained on in every fold and validated in none.",
    )
    full_fit: bool = arg(
        False,
        "Whether one more model (for each seed) is trained on all rows, for the mean best epoch of "
        "the folds; it counts in the average of test predictions like a fold's.",
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
        exclude(near_duplicates=self.near_duplicates, fold_column_name=self.fold_column_name)
        at_least("fold_repeats", self.fold_repeats, 1)
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise InputError(
                f"--near_duplicates {self.near_duplicates} must be above 0 and at most 1"
            )
        for name, asked in (("fold_strategy", self.fold_strategy), ("fold_repeats", self.repeats)):
            if asked and not self.num_folds:
                raise InputError(f"--{name} needs --num_folds")
        for name in ("folds", "pseudo_label_file", "full_fit"):
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
    def repeats(self) -> bool:
        """Whether rows are assigned to folds more than once."""
        return self.fold_repeats > 1

    @property
    def with_groups(self) -> str | None:
        """The flag by which some rows stay together; None: there is none."""
        if self.group_column_name is not None:
            return "group_column_name"
        return "near_duplicates" if self.near_duplicates is not None else None

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


def check_grouping(folds: FoldArguments, validation_file: str | None, split: float) -> None:
    """Check that rows which stay together are assigned to folds, or held out.

    Raises:
        InputError: where neither is done.
    """
    if folds.with_groups and not folds.with_folds:
        exclude(**{folds.with_groups: True, "validation_file": validation_file})
        if split == 0:
            raise InputError(
                f"--{folds.with_groups} does not go with --validation_split 0: no row is held out"
            )
