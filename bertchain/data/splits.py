"""Splits of the training rows: held-out rows, subsets, folds."""

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from bertchain.arguments.competition import FoldArguments
from bertchain.data.contamination import hashes_of
from bertchain.data.grouping import find_groups, hold_out_groups
from bertchain.data.labels import LabelSpec
from bertchain.data.tables import Table, require_cells, require_columns
from bertchain.errors import InputError

logger = logging.getLogger(__name__)


def hold_out_validation(
    documents: dict[str, Dataset],
    share: float,
    problem_type: str,
    seed: int,
    groups: np.ndarray | None = None,
) -> dict[str, Dataset]:
    """Hold out a stratified share of the training rows, where there is no validation set.

    Args:
        share: 0: none.
        groups: of each training row [n]; those of one are held out together.

    Raises:
        InputError: if the share is less than one row.
    """
    if "train" not in documents or "validation" in documents:
        return documents
    if share == 0:
        logger.info("No rows are held out: nothing is chosen by validation")
        return documents
    train = documents["train"]
    strata = strata_of(train["labels"][:], problem_type)
    if groups is None:
        held_out = hold_out(strata, share, seed)
    else:
        held_out = hold_out_groups(strata, groups, share, seed)
    if not held_out.any():
        raise InputError(
            f"--validation_split {share} of {len(train)} rows holds out none; "
            "give a --validation_file or a larger share (0 holds out none)"
        )
    logger.info("Held out of training for validation: %d of %d", held_out.sum(), len(train))
    return documents | {
        "train": train.select(np.flatnonzero(~held_out)),
        "validation": train.select(np.flatnonzero(held_out)),
    }


def hold_out(strata: Sequence[Any], share: float, seed: int) -> np.ndarray:
    """Choose rows to hold out, each stratum in proportion to within one row.

    Rows are laid out stratum by stratum, shuffled inside, and every (1 / share)-th is taken. A
    stratum of one row stays in training.

    Returns:
        a mask [n], True for held-out rows.
    """
    rng = np.random.default_rng(seed)
    keys = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]  # [n] numbers
    rows = np.lexsort((rng.random(len(keys)), keys))
    rows = rows[np.bincount(keys)[keys[rows]] > 1]
    steps = np.floor((np.arange(len(rows) + 1) + rng.random()) * share)
    held_out = np.zeros(len(keys), dtype=bool)
    held_out[rows[np.diff(steps) > 0]] = True
    return held_out


def strata_of(labels: Sequence[Any], problem_type: str) -> list[Any]:
    """Stratum of each row [n]: its (likeliest) class, its rarest label, or the tenth of its target.

    A row of multi_label without any label is in stratum -1.
    """
    if problem_type == "single_label":
        soft = len(labels) > 0 and isinstance(labels[0], list)
        return np.argmax(labels, axis=1).tolist() if soft else list(labels)
    array = np.asarray(labels, dtype=float)
    if problem_type == "regression":
        tenths = np.quantile(array[:, 0], np.arange(0.1, 1, 0.1))
        return np.searchsorted(tenths, array[:, 0]).tolist()
    frequency = array.sum(axis=0)
    return [
        int(np.where(row > 0, frequency, np.inf).argmin()) if row.any() else -1 for row in array
    ]


def choose_subset(
    train: Dataset,
    problem_type: str,
    fraction: float | None,
    per_class: int | None,
    seed: int,
) -> Dataset:
    """Select a stratified share of the training rows, or a number of each class, in their order.

    Subsets of one seed are nested: a larger one holds all rows of a smaller one.

    Args:
        fraction: the share; None: all, or as `per_class` says.
        per_class: rows of each class, for single_label.

    Raises:
        InputError: if `per_class` does not fit the labels, a class has fewer rows, or none are
            left.
    """
    if fraction is None and per_class is None:
        return train
    if per_class is not None and problem_type != "single_label":
        raise InputError(f"--train_per_class needs one class a row, not {problem_type} labels")
    strata = strata_of(train["labels"][:], problem_type)
    if per_class is not None:
        few = [name for name, n in Counter(strata).items() if n < per_class]
        if few:
            raise InputError(
                f"--train_per_class {per_class}: a class has {Counter(strata)[few[0]]} training "
                "rows only"
            )
    rng = np.random.default_rng(seed)
    keys = np.unique([str(stratum) for stratum in strata], return_inverse=True)[1]  # [n] numbers
    rows = np.lexsort((rng.random(len(keys)), keys))  # class by class, shuffled inside
    counts = np.bincount(keys)
    place = np.empty(len(keys), dtype=int)  # of each row among those of its class, from 0
    place[rows] = np.concatenate([np.arange(n) for n in counts])
    wanted = place < per_class if per_class else (place + 0.5) / counts[keys] <= fraction
    chosen = np.flatnonzero(wanted)
    if len(chosen) == 0:
        raise InputError(f"--train_fraction {fraction} of {len(train)} rows leaves none")
    logger.info("Training on %d of %d rows", len(chosen), len(train))
    return train.select(chosen)


def count_absent_labels(labels: Sequence[Any], spec: LabelSpec) -> dict[str, int]:
    """Count the labels without a training row, which are never predicted; warn of them.

    Returns:
        for the results: labels_without_training_rows; {} where there are none.
    """
    if spec.problem_type == "regression" or not len(labels):
        return {}
    numbers = spec.label_matrix(labels).sum(axis=0)
    absent = [name for name, number in zip(spec.names, numbers, strict=True) if number == 0]
    if not absent:
        return {}
    logger.warning(
        "%d of %d labels have no training row and are not learnt: %s (--max_train_samples reads "
        "the first rows; --train_fraction takes a share of each label)",
        len(absent),
        len(spec.names),
        ", ".join(absent[:8]),
    )
    return {"labels_without_training_rows": len(absent)}


# ---------------------------------------------------------------- folds


def resolve_folds(
    train: Dataset, table: Table, spec: LabelSpec, options: FoldArguments, seed: int
) -> np.ndarray:
    """Assign training rows to folds: by a column of the table, or by a strategy.

    Args:
        train: documents with labels, the first rows of the table.

    Returns:
        the fold of each row [n], -1 for rows that no fold validates; with repeats [n, repeats],
        counted on from one repeat to the next.

    Raises:
        InputError: for a missing column, or folds that cannot be made.
    """
    name = options.fold_column_name
    if name:
        require_columns(table.rows, [name], table.source, "--fold_column_name")
        values = table.rows[name][: len(train)]
        require_cells(values, name, table.source, "--fold_column_name")
        folds = folds_of_column(values, table.source, name)
        inside = np.flatnonzero(folds >= 0)
        report_folds(train.select(inside), spec, folds[inside])
        return folds
    kind, groups = spec.problem_type, find_groups(train, table, options)
    strategy = options.fold_strategy or default_strategy(kind, groups is not None)
    labels = train["labels"][:]
    if strategy.startswith("stratified"):
        refuse_single_rows(labels, spec, strategy)
    if strategy == "group" and options.repeats:
        raise InputError(
            "--fold_repeats: the folds of --fold_strategy group are the same each time; use "
            "stratified_group"
        )
    number, repeats = options.num_folds, []
    for repeat in range(options.fold_repeats):
        folds = assign_folds(strategy, number, labels, kind, groups, seed + repeat)
        report_folds(train, spec, folds)
        repeats.append(folds + repeat * number)
    logger.info("%d folds, %s", number * options.fold_repeats, strategy)
    return np.stack(repeats, axis=1) if options.repeats else repeats[0]


def in_fold(folds: np.ndarray, fold: int) -> np.ndarray:
    """Which rows a fold validates, a mask [n]. Args: folds: [n], or of each repeat [n, repeats]."""
    return (folds == fold).reshape(len(folds), -1).any(axis=1)


def fold_columns(folds: np.ndarray) -> dict[str, np.ndarray]:
    """Folds as columns of a table: fold, of further repeats fold_1, fold_2 ..."""
    columns = folds.reshape(len(folds), -1).T
    return {f"fold_{i}" if i else "fold": column for i, column in enumerate(columns)}


def refuse_single_rows(labels: Sequence[Any], spec: LabelSpec, strategy: str) -> None:
    """Refuse folds where a class has a single row: its model would never have seen the class."""
    if spec.problem_type != "single_label":
        return
    counts = Counter(strata_of(labels, spec.problem_type))
    alone = [spec.names[label] for label, count in counts.items() if count == 1]
    if alone:
        raise InputError(
            f"--fold_strategy {strategy}: label {alone[0]!r} has one row, which cannot be both "
            "trained on and validated; leave it out, or use --fold_strategy random"
        )


def report_folds(train: Dataset, spec: LabelSpec, folds: np.ndarray) -> None:
    """Warn of equal texts in several folds, which flatter the scores, and of rare classes."""
    shared = texts_in_several_folds(hashes_of(train), folds)
    if shared:
        logger.warning(
            "%d of %d training rows have the same words as a row of another fold, which flatters "
            "the scores; give such rows a group (--group_column_name or --near_duplicates)",
            shared,
            len(train),
        )
    if spec.problem_type == "single_label":
        counts = Counter(strata_of(train["labels"][:], spec.problem_type))
        number = len(set(folds.tolist()))
        for label, count in counts.items():
            if count < number:
                name = spec.names[label]
                logger.warning("label %r has %d rows: some folds validate none", name, count)


def default_strategy(problem_type: str, grouped: bool) -> str:
    """Choose a stratified strategy that fits the labels, and keeps groups if there are any."""
    if grouped:
        return "group" if problem_type == "multi_label" else "stratified_group"
    return "multilabel" if problem_type == "multi_label" else "stratified"


def assign_folds(
    strategy: str,
    num_folds: int,
    labels: Sequence[Any],
    problem_type: str,
    groups: Sequence[Any] | None = None,
    seed: int = 42,
) -> np.ndarray:
    """Assign each row to the fold that validates it.

    Args:
        strategy: `stratified` and `stratified_group` keep the shares of the strata (see
            `strata_of`); `multilabel` those of each label (Sechidis et al. 2011); `group` only
            keeps groups together; `random` does neither.
        labels: as `LabelSpec.encode` gives them.
        groups: of each row, for the two strategies that keep a group in one fold.

    Returns:
        int [n], from 0 to num_folds - 1.

    Raises:
        InputError: if there are fewer rows or groups than folds, or the strategy does not fit.
    """
    from sklearn import model_selection as selection

    strata = [str(stratum) for stratum in strata_of(labels, problem_type)]
    _check_strategy(strategy, num_folds, strata, problem_type, groups)
    options = {"n_splits": num_folds, "shuffle": True, "random_state": seed}
    makers = {
        "stratified": lambda: selection.StratifiedKFold(**options),
        "group": lambda: selection.GroupKFold(n_splits=num_folds),
        "stratified_group": lambda: selection.StratifiedGroupKFold(**options),
        "multilabel": lambda: _multilabel_folds(**options),
        "random": lambda: selection.KFold(**options),
    }
    targets = np.asarray(labels, dtype=int) if strategy == "multilabel" else strata
    folds = np.full(len(labels), -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows of a class: `report_folds` says so
        splits = makers[strategy]().split(np.zeros(len(labels)), targets, groups)
        for fold, (_, validated) in enumerate(splits):
            folds[validated] = fold
    empty = [fold for fold in range(num_folds) if not (folds == fold).any()]
    if empty:
        raise InputError(f"--num_folds {num_folds}: fold {empty[0]} would hold no row; use fewer")
    return folds


def _check_strategy(
    strategy: str,
    num_folds: int,
    strata: Sequence[str],
    problem_type: str,
    groups: Sequence[Any] | None,
) -> None:
    """Check that rows, labels and groups suit the strategy; raises InputError."""
    if num_folds > len(strata):
        raise InputError(f"--num_folds {num_folds}: there are {len(strata)} training rows only")
    grouped = strategy in ("group", "stratified_group")
    if grouped and groups is None:
        raise InputError(f"--fold_strategy {strategy} needs --group_column_name")
    if groups is not None and not grouped:
        raise InputError(f"--group_column_name does not go with --fold_strategy {strategy}")
    if strategy == "multilabel" and problem_type != "multi_label":
        raise InputError(f"--fold_strategy multilabel does not go with {problem_type} labels")
    if grouped and len(set(groups)) < num_folds:
        raise InputError(f"--num_folds {num_folds}: there are {len(set(groups))} groups only")
    if strategy in ("stratified", "stratified_group") and max(Counter(strata).values()) < num_folds:
        raise InputError(
            f"--num_folds {num_folds}: no class has so many rows; use --fold_strategy random"
        )


def _multilabel_folds(**options: Any) -> Any:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    return MultilabelStratifiedKFold(**options)


def folds_of_column(values: Sequence[Any], source: str, column: str) -> np.ndarray:
    """Parse a column of fold numbers as int [n].

    Raises:
        InputError: naming the row of what is not a whole number of at least -1; for a single fold.
    """
    folds = np.empty(len(values), dtype=int)
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -2.0
        if not (number >= -1 and number.is_integer()):
            raise InputError(
                f"{source}, row {row + 1}, column {column!r}: {value!r} is not a fold number (0, 1 "
                "..., or -1 for a row that no fold validates)"
            )
        folds[row] = int(number)
    if len({*folds.tolist()} - {-1}) < 2:
        raise InputError(f"{source}: column {column!r} (--fold_column_name) names one fold only")
    return folds


def texts_in_several_folds(hashes: np.ndarray, folds: np.ndarray) -> int:
    """Count the rows whose text, by its hash, is also in another fold."""
    _, number = np.unique(hashes, return_inverse=True)
    lowest = np.full(number.max() + 1, np.iinfo(int).max)
    highest = np.full(number.max() + 1, -1)
    np.minimum.at(lowest, number, folds)
    np.maximum.at(highest, number, folds)
    return int((lowest < highest)[number].sum())
