"""Fill a sample submission with predictions: its columns, its rows, in its order."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertchain.arguments.common import TextArguments
from bertchain.arguments.competition import SubmissionArguments
from bertchain.competition.thresholds import check_kind
from bertchain.data.documents import to_id
from bertchain.data.label_values import to_name, to_number
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.data.tables import read_table, require_cells
from bertchain.data.tasks import Task
from bertchain.errors import InputError, nearest
from bertchain.runtime.distributed import is_main_process
from bertchain.runtime.files import write_csv
from bertchain.training.prediction import read_predictions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleSubmission:
    """Form of a submission.

    Attributes:
        source: path of the file.
        sample: its table, all text.
        id_column: column with the ids of the rows.
        values: `labels` (decisions: a class, 0/1, a grade, a regression's value) or
            `probabilities`.
        outputs: index of the model's output for each other column; empty where a single column
            holds the label itself.
        spelling: how a label is written, by its name: "2.0" for "2".
    """

    source: str
    sample: pd.DataFrame
    id_column: str
    values: str
    outputs: dict[str, int]
    spelling: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        source: str,
        spec: LabelSpec,
        id_column: str | None,
        values: str | None = None,
        encoding: str = "utf-8",
        positive: str | None = None,
        labels: Sequence[Any] = (),
    ) -> "SampleSubmission":
        """Read a file and infer what its columns hold.

        Args:
            id_column: of the test file; a sample without it has its ids in the first column.
            values: --submission_values; None: inferred. Fractions, and a column for each of several
                classes, are probabilities; all else are labels.
            positive: --positive_label; None: the column's name says which label it stands for.
            labels: cells of the label file: they are spelt alike where the sample shows none.

        Raises:
            InputError: for a column that is no label, or may stand for either; or an id that occurs
                twice.
        """
        table = read_table(source, encoding=encoding)
        sample = pd.DataFrame({name: table[name][:] for name in table.column_names})
        id_column = id_column if id_column in sample else sample.columns[0]
        columns = [name for name in sample.columns if name != id_column]
        if not columns:
            raise InputError(f"{source}: there is no column to fill beside {id_column!r}")
        require_cells(sample[id_column], id_column, source, "--sample_submission")
        twice = sample[id_column][sample[id_column].duplicated()]
        if len(twice):
            raise InputError(f"{source}: id {twice.iloc[0]!r} occurs more than once")
        reader = _Columns(source, sample[columns], spec, values, positive)
        outputs = reader.outputs()
        form = cls(source, sample, id_column, reader.values, outputs)
        form.spelling.update(_spelling(reader.cells, spec) or _spelling(labels, spec))
        for column in columns:
            logger.info("%s: column %r gets %s", source, column, form.meaning_of(column, spec))
        return form

    def meaning_of(self, column: str, spec: LabelSpec) -> str:
        """Say what a column is filled with, and whether that is decided."""
        if column not in self.outputs:
            return "the decided label (by its name)"
        name = spec.names[self.outputs[column]]
        if spec.problem_type == "regression":
            return f"the value of {name!r} (a grade with --fit_thresholds ordinal)"
        if self.values == "probabilities":
            return f"the probability of {name!r}"
        return f"the decision, 1 for {name!r}, else 0"

    def check_ids(self, ids: list[str]) -> None:
        """Raises InputError, naming some, unless the test file has exactly the sample's ids."""
        wanted, there = {*map(to_id, self.sample[self.id_column])}, set(ids)
        for what, some in (
            ("has no prediction, since the test file lacks it", wanted - there),
            ("of the test file is not in it", there - wanted),
        ):
            if some:
                named = ", ".join(sorted(some)[:5]) + (" ..." if len(some) > 5 else "")
                raise InputError(f"{self.source}: {len(some)} ids: {named}: each {what}")

    def fill(
        self, ids: list[str], probabilities: np.ndarray, decisions: np.ndarray, spec: LabelSpec
    ) -> pd.DataFrame:
        """Fill the sample with predictions, in its order of rows.

        Args:
            ids: of the n predicted rows, in any order.
            probabilities: [n, labels]; for regression the values.
            decisions: [n, labels], 0 or 1, also for single_label; for regression values or grades.
        """
        place = {name: row for row, name in enumerate(ids)}
        rows = [place[to_id(name)] for name in self.sample[self.id_column]]
        filled = self.sample.copy()
        if not self.outputs:
            (column,) = (name for name in self.sample.columns if name != self.id_column)
            filled[column] = [
                self.spelling.get(name, name) for name in spec.decode(decisions[rows])
            ]
            return filled
        as_labels = self.values == "labels"
        source = decisions[rows] if as_labels else probabilities[rows]
        for column, output in self.outputs.items():
            numbers = source[:, output]
            whole = as_labels and (numbers == np.round(numbers)).all()
            whole = whole and not all(str(cell).endswith(".0") for cell in filled[column])
            filled[column] = numbers.astype(int if whole else float)
        return filled


# What may stand around a label in the name of its column.
PREFIXES = ("prob_", "proba_", "probability_", "p_", "is_", "pred_", "target_", "label_")
SUFFIXES = ("_prob", "_proba", "_probability", "_pred", "_score")


@dataclass
class _Columns:
    """Columns of a sample beside its id, and what they ask for.

    Attributes:
        values: labels or probabilities; inferred where None is given.
        positive: --positive_label.
    """

    source: str
    sample: pd.DataFrame
    spec: LabelSpec
    values: str | None
    positive: str | None

    def __post_init__(self) -> None:
        self.asked, self.values = self.values, self.values or self._infer_values()

    @property
    def cells(self) -> list[Any]:
        """All cells of the first column, which may be the only one."""
        return self.sample.iloc[:, 0].tolist()

    def _infer_values(self) -> str:
        """Infer `labels` or `probabilities` from the cells."""
        if self.spec.problem_type == "regression":
            return "labels"  # grades where they are fitted, else the values
        numbers = [to_number(value) for column in self.sample for value in self.sample[column]]
        if any(n is not None and not n.is_integer() for n in numbers):
            return "probabilities"
        several = len(self.sample.columns) > 1 and self.spec.problem_type == "single_label"
        return "probabilities" if several else "labels"

    def outputs(self) -> dict[str, int]:
        """Map columns to the model's outputs; see `SampleSubmission.outputs`."""
        names = [to_name(name) for name in self.spec.names]
        columns = [*self.sample.columns]
        if self.positive is not None:
            return {columns[0]: self._positive_output(names)}
        if len(columns) == 1 and self._holds_names():
            return {}
        found = {column: output_of(column, names) for column in columns}
        if None not in found.values():
            return found
        if len(columns) == 1:
            only = self._only_output(names)
            if only is not None:
                return {} if only < 0 else {columns[0]: only}
        stray = next(column for column in columns if found[column] is None)
        raise InputError(
            f"{self.source}: column {stray!r} is none of the labels {', '.join(names[:8])}"
            f"{' ...' if len(names) > 8 else ''}{nearest(stray, names)}"
        )

    def _holds_names(self) -> bool:
        """Whether the cells are labels by name, words that a column takes and not 0 or 1."""
        if self.values != "labels" or self.spec.problem_type != "single_label":
            return False
        words = {to_name(cell) for cell in self.cells}
        return words <= {*self.spec.names} and any(to_number(word) is None for word in words)

    def _positive_output(self, names: list[str]) -> int:
        """The output of --positive_label; raises InputError where it does not fit."""
        columns, wanted = [*self.sample.columns], to_name(self.positive)
        flag = f"--positive_label {self.positive}"
        if self.spec.problem_type != "single_label" or len(columns) > 1:
            raise InputError(f"{flag} needs one label a row, and a sample with one column to fill")
        if wanted not in names:
            raise InputError(f"{flag} is none of the labels {', '.join(names[:8])}")
        named = output_of(columns[0], names)
        if named is not None and names[named] != wanted:
            raise InputError(f"{flag}: column {columns[0]!r} of {self.source} says {names[named]}")
        return names.index(wanted)

    def _only_output(self, names: list[str]) -> int | None:
        """The output for a single column whose name is no label; -1: labels by name; None: none.

        Raises:
            InputError: where it may stand for either of two classes.
        """
        column, kind = self.sample.columns[0], self.spec.problem_type
        if kind == "regression":
            return 0 if len(names) == 1 else None
        codes = all(to_number(name) is not None for name in names)
        if self.values == "labels":
            numeric = all(to_number(cell) is not None for cell in self.cells)
            if kind == "single_label" and numeric and not codes and self.asked is None:
                raise InputError(
                    f"{self.source}: column {column!r} holds {self.cells[0]}, which is none of the "
                    f"labels {', '.join(names[:8])}; say which is 1 by --positive_label, or "
                    "--submission_values labels to fill in their names"
                )
            return -1
        if len(names) != 2 or kind != "single_label":
            return None
        if {name.casefold() for name in names} in ({"0", "1"}, {"false", "true"}):
            return [name.casefold() in ("1", "true") for name in names].index(True)
        raise InputError(
            f"{self.source}: column {column!r} does not say whether it takes the probability of "
            f"{names[0]!r} or {names[1]!r}; name it by --positive_label"
        )


def output_of(column: str, names: Sequence[str]) -> int | None:
    """Find the label that a column is named after, such as fake by is_fake or prob_fake.

    Returns:
        its number among `names`; None: there is none.
    """
    for same in (str, str.casefold):  # case counts where labels differ in that alone
        whole, labels = same(column), [same(name) for name in names]
        starts = {whole.removeprefix(prefix) for prefix in ("", *PREFIXES)}
        stems = {start.removesuffix(suffix) for start in starts for suffix in ("", *SUFFIXES)}
        for wanted in ({whole}, stems):
            found = [i for i, name in enumerate(labels) if name in wanted]
            if len(found) == 1:
                return found[0]
    return None


def _spelling(cells: Sequence[Any], spec: LabelSpec) -> dict[str, str]:
    """How labels are written, by name; where all known ones end in .0, the others do as well."""
    found = {to_name(cell): str(cell) for cell in cells if to_name(cell) in spec.names}
    if found and all(written.endswith(".0") and written != name for name, written in found.items()):
        whole = [name for name in spec.names if name.lstrip("-").isdigit()]
        found = {name: f"{name}.0" for name in whole} | found
    return found


def read_sample(
    options: SubmissionArguments, text: TextArguments, task: Task
) -> SampleSubmission | None:
    """Read --sample_submission, and check it and --fit_thresholds before anything is trained.

    Returns:
        the form of the submission; None: there is no sample.

    Raises:
        InputError: see `check_kind`, `SampleSubmission.read` and `check_ids`.
    """
    if options.fit_thresholds:
        truth = task.spec.label_matrix(task.documents["train"]["labels"][:])
        check_kind(options.fit_thresholds, task.spec.problem_type, truth)
    if options.sample_submission is None:
        return None
    source, values = options.sample_submission, options.submission_values
    sample = SampleSubmission.read(
        source,
        task.spec,
        text.id_column_name,
        values,
        text.encoding,
        options.positive_label,
        label_cells(task),
    )
    sample.check_ids(task.documents["test"]["id"][:])
    return sample


def label_cells(task: Task) -> list[Any]:
    """The cells of the label column of the training file, as they are spelt there."""
    spec = task.spec
    if "train" not in task.tables or len(spec.columns) != 1 or spec.problem_type != "single_label":
        return []
    return task.tables["train"].rows.unique(spec.columns[0])


def write_submission(
    sample: SampleSubmission, folder: Path, spec: LabelSpec, thresholds: Thresholds | None
) -> None:
    """Write submission.csv in the form of the sample, from predictions_test.csv.

    Only the main process reads and writes.
    """
    if not is_main_process():
        return
    ids, probabilities = read_predictions(folder / "predictions_test.csv", spec)
    decisions = spec.decide(probabilities, thresholds)
    write_csv(folder / "submission.csv", sample.fill(ids, probabilities, decisions, spec))
    logger.info("Wrote %s, %d rows", folder / "submission.csv", len(sample.sample))
