"""Folds: which model validates which row, and which models a run trains. No files, no models."""

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from command_line import InputError
from competition_arguments import FoldArguments
from fingerprint import hash_texts
from labels import LabelSpec, require_columns
from text_data import Table, all_text, strata_of

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------- which fold a row is in


def settle_folds(
    train: Dataset, table: Table, spec: LabelSpec, options: FoldArguments, seed: int
) -> np.ndarray | None:
    """The fold of each training row [n], or None where the run has no folds.

    Args:
        train: documents with labels, the first rows of the table.

    Raises:
        InputError: for a missing column, or folds that cannot be made.
    """
    if not options.with_folds:
        return None
    columns = {}
    for flag in ("fold_column_name", "group_column_name"):
        name = getattr(options, flag)
        if name is not None:
            require_columns(table.rows, [name], table.source, f"--{flag}")
            columns[flag] = table.rows[name][: len(train)]
    if options.fold_column_name:
        values = columns["fold_column_name"]
        folds = folds_of_column(values, table.source, options.fold_column_name)
    else:
        kind, groups = spec.problem_type, columns.get("group_column_name")
        strategy = options.fold_strategy or default_strategy(kind, groups is not None)
        labels = train["labels"][:]
        if strategy.startswith("stratified"):
            refuse_single_rows(labels, spec, strategy)
        folds = assign_folds(strategy, options.num_folds, labels, kind, groups, seed)
        logger.info("%d folds, %s", options.num_folds, strategy)
    report_folds(train, spec, folds)
    return folds


def refuse_single_rows(labels: Sequence[Any], spec: LabelSpec, strategy: str) -> None:
    """A class with one row is validated by a model that never saw it."""
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
    """Say what makes a score out of the folds look too good, or leaves a class out."""
    shared = texts_in_several_folds(hash_texts(all_text(train)), folds)
    if shared:
        logger.warning(
            "%d of %d training rows have the same words as a row of another fold, which flatters "
            "the scores; give such rows a group (--group_column_name)",
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
    """Stratified, by groups if there are any; several labels need a way of their own."""
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
    """The fold that validates each row.

    Args:
        strategy: `stratified` and `stratified_group` keep the shares of the classes (of tenths of a
            regression target, of a row's rarest label); `multilabel` those of each label (Sechidis
            et al. 2011); `group` only keeps groups together; `random` does neither.
        labels: as `LabelSpec.encode` gives them.
        groups: of each row, for the two strategies that keep a group in one fold.

    Returns:
        int [n], from 0 to num_folds - 1.

    Raises:
        InputError: if there are fewer rows or groups than folds, or the strategy does not fit.
    """
    from sklearn import model_selection as selection

    rows = len(labels)
    if num_folds > rows:
        raise InputError(f"--num_folds {num_folds}: there are {rows} training rows only")
    grouped = strategy in ("group", "stratified_group")
    if grouped and groups is None:
        raise InputError(f"--fold_strategy {strategy} needs --group_column_name")
    if groups is not None and not grouped:
        raise InputError(f"--group_column_name does not go with --fold_strategy {strategy}")
    if strategy == "multilabel" and problem_type != "multi_label":
        raise InputError(f"--fold_strategy multilabel does not go with {problem_type} labels")
    if grouped and len(set(groups)) < num_folds:
        raise InputError(f"--num_folds {num_folds}: there are {len(set(groups))} groups only")
    strata = [str(stratum) for stratum in strata_of(labels, problem_type)]
    if strategy in ("stratified", "stratified_group") and max(Counter(strata).values()) < num_folds:
        raise InputError(
            f"--num_folds {num_folds}: no class has so many rows; use --fold_strategy random"
        )
    options = {"n_splits": num_folds, "shuffle": True, "random_state": seed}
    makers = {
        "stratified": lambda: selection.StratifiedKFold(**options),
        "group": lambda: selection.GroupKFold(n_splits=num_folds),
        "stratified_group": lambda: selection.StratifiedGroupKFold(**options),
        "multilabel": lambda: _multilabel_folds(**options),
        "random": lambda: selection.KFold(**options),
    }
    targets = np.asarray(labels, dtype=int) if strategy == "multilabel" else strata
    folds = np.full(rows, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few rows of a class: said by the script
        splits = makers[strategy]().split(np.zeros(rows), targets, groups)
        for fold, (_, validated) in enumerate(splits):
            folds[validated] = fold
    empty = [fold for fold in range(num_folds) if not (folds == fold).any()]
    if empty:
        raise InputError(f"--num_folds {num_folds}: fold {empty[0]} would hold no row; use fewer")
    return folds


def _multilabel_folds(**options: Any) -> Any:
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    return MultilabelStratifiedKFold(**options)


def folds_of_column(values: Sequence[Any], source: str, column: str) -> np.ndarray:
    """A column of fold numbers -> int [n].

    Raises:
        InputError: naming the row, for what is not a whole number of at least 0; for one fold only.
    """
    folds = np.empty(len(values), dtype=int)
    for row, value in enumerate(values):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not (number >= 0 and number.is_integer()):
            raise InputError(
                f"{source}, row {row + 1}, column {column!r}: {value!r} is not a fold number (0, 1 "
                "...)"
            )
        folds[row] = int(number)
    if len(set(folds.tolist())) < 2:
        raise InputError(f"{source}: column {column!r} (--fold_column_name) names one fold only")
    return folds


def texts_in_several_folds(hashes: np.ndarray, folds: np.ndarray) -> int:
    """How many rows have the same words as a row of another fold: so much the scores flatter."""
    _, number = np.unique(hashes, return_inverse=True)
    lowest = np.full(number.max() + 1, np.iinfo(int).max)
    highest = np.full(number.max() + 1, -1)
    np.minimum.at(lowest, number, folds)
    np.maximum.at(highest, number, folds)
    return int((lowest < highest)[number].sum())


# ---------------------------------------------------------------- which models are trained


@dataclass(frozen=True)
class Part:
    """One of the models of a run.

    Attributes:
        name: of its folder, such as fold-0 or seed-1-fold-0; "" where a run trains one model, in
            the output folder itself.
        fold: whose rows it validates; None without folds.
        seed: of everything random in its training.
    """

    name: str
    fold: int | None
    seed: int


def plan_parts(
    folds: np.ndarray | None, wanted: Sequence[int], seeds: Sequence[int], seed: int
) -> list[Part]:
    """The models of a run, fold by fold, each with all seeds.

    Args:
        folds: of each row, or None.
        wanted: --folds, or [] for all.
        seeds: --seeds, or [] for `seed` alone.

    Raises:
        InputError: for a wanted fold that there is not.
    """
    numbers = [None] if folds is None else sorted(set(folds.tolist()))
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        there = ", ".join(map(str, numbers))
        raise InputError(f"--folds {unknown[0]}: there are {there}")
    parts = []
    for fold in numbers:
        if wanted and fold not in wanted:
            continue
        for own in seeds or [seed]:
            names = [f"seed-{own}"] if seeds else []
            names += [] if fold is None else [f"fold-{fold}"]
            parts.append(Part("-".join(names), fold, part_seed(own, fold)))
    return parts


def part_seed(seed: int, fold: int | None) -> int:
    """A seed of its own for each fold, the same in every run."""
    if fold is None:
        return seed
    return int(np.random.SeedSequence((seed, fold)).generate_state(1)[0] >> 1)  # below 2^31


def rows_of_part(part: Part, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers that a fold's model trains on, and those that it validates."""
    return np.flatnonzero(folds != part.fold), np.flatnonzero(folds == part.fold)
