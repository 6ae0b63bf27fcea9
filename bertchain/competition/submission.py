"""Fill a sample submission with predictions: its columns, its rows, in its order."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bertchain.arguments.common import TextArguments
from bertchain.arguments.finetuning import SubmissionArguments
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
    """

    source: str
    sample: pd.DataFrame
    id_column: str
    values: str
    outputs: dict[str, int]

    @classmethod
    def read(
        cls,
        source: str,
        spec: LabelSpec,
        id_column: str | None,
        values: str | None = None,
        encoding: str = "utf-8",
    ) -> "SampleSubmission":
        """Read a file and infer what its columns hold.

        Args:
            id_column: of the test file; a sample without it has its ids in the first column.
            values: --submission_values; None: inferred. Fractions, and a column for each of several
                classes, are probabilities; all else are labels.

        Raises:
            InputError: for a column that is no label, or an id that occurs twice.
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
        values = values or _values_of(sample[columns], spec)
        return cls(source, sample, id_column, values, _outputs(columns, spec, values, source))

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
            filled[column] = spec.decode(decisions[rows])
            return filled
        as_labels = self.values == "labels"
        source = decisions[rows] if as_labels else probabilities[rows]
        for column, output in self.outputs.items():
            numbers = source[:, output]
            whole = as_labels and (numbers == np.round(numbers)).all()
            filled[column] = numbers.astype(int) if whole else numbers
        return filled


def _values_of(sample: pd.DataFrame, spec: LabelSpec) -> str:
    """Infer `labels` or `probabilities` from the sample's columns without the id."""
    if spec.problem_type == "regression":
        return "labels"  # grades where they are fitted, else the values
    numbers = [to_number(value) for column in sample for value in sample[column]]
    if any(n is not None and not n.is_integer() for n in numbers):
        return "probabilities"
    several = len(sample.columns) > 1 and spec.problem_type == "single_label"
    return "probabilities" if several else "labels"


def _outputs(columns: list[str], spec: LabelSpec, values: str, source: str) -> dict[str, int]:
    """Map columns to the model's outputs; see `SampleSubmission.outputs`."""
    names = {to_name(name): i for i, name in enumerate(spec.names)}
    found = {}
    for column in columns:
        plain = column if column in names else column.removeprefix("prob_")
        if plain in names:
            found[column] = names[plain]
    if len(found) == len(columns):
        return found
    if len(columns) == 1:
        if spec.problem_type == "regression" and len(names) == 1:
            return {columns[0]: 0}
        if values == "labels" and spec.problem_type != "regression":
            return {}
        if values == "probabilities" and len(names) == 2 and spec.problem_type == "single_label":
            return {columns[0]: 1}
    stray = next(column for column in columns if column not in found)
    raise InputError(
        f"{source}: column {stray!r} is none of the labels {', '.join(spec.names[:8])}"
        f"{' ...' if len(spec.names) > 8 else ''}{nearest(stray, spec.names)}"
    )


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
    sample = SampleSubmission.read(source, task.spec, text.id_column_name, values, text.encoding)
    sample.check_ids(task.documents["test"]["id"][:])
    return sample


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
