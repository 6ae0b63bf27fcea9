"""What a script's main returns: metrics, and where to find the rest."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd


class RunResult(dict[str, Any]):
    """Metrics of a run by name, as in all_results.json; tables are read when they are asked for.

    Attributes:
        output_dir: the folder of the run.
        predictions: tables id, prediction, prob_<label> ... by split: validation, test, oof.
        tables: all tables that the folder holds, by file name without .csv: history ...
        model: with keep_model=True the trained model; of several by name, as fold-0. Else None.
        headline: of run_probe.py the table of the scores to read first. Else None.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        output_dir: str | os.PathLike,
        splits: Sequence[str] = (),
        models: Mapping[str, Any] | None = None,
        headline: pd.DataFrame | None = None,
    ):
        """Args:
        splits: of which there are predictions.
        models: by name; a single one has the name "".
        """
        super().__init__(metrics)
        self.output_dir = Path(output_dir)
        self.predictions = Tables(self.output_dir, {s: f"predictions_{s}" for s in splits})
        self.model = models.get("", models) if models else None
        self.headline = headline

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics as a plain dict."""
        return dict(self)

    @property
    def tables(self) -> "Tables":
        """All tables of the folder."""
        names = sorted(path.stem for path in self.output_dir.glob("*.csv"))
        return Tables(self.output_dir, {name: name for name in names})

    def __repr__(self) -> str:
        scores = {k: round(v, 4) for k, v in self.items() if isinstance(v, float) and _is_score(k)}
        return f"{type(self).__name__}({str(self.output_dir)!r}, {scores})"


def _is_score(name: str) -> bool:
    timing = name.endswith(("_runtime", "_per_second", "_sd"))
    return not (timing or name.startswith("train_") or name in ("epoch", "total_flos"))


class Tables(Mapping[str, pd.DataFrame]):
    """Tables of a folder, read each time that one is asked for: none is held in memory."""

    def __init__(self, folder: Path, stems: Mapping[str, str]):
        """Args: stems: file names without .csv, by the name that the table has here."""
        self.folder, self.stems = folder, dict(stems)

    def __getitem__(self, name: str) -> pd.DataFrame:
        return read_table(self.folder / f"{self.stems[name]}.csv")

    def __iter__(self) -> Iterator[str]:
        return iter(self.stems)

    def __len__(self) -> int:
        return len(self.stems)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.stems)})"


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that a script wrote, with ids, labels and predicted labels as text."""
    from bertchain.training.prediction import read_written_table  # imports scikit-learn

    try:
        columns = pd.read_csv(path, nrows=0).columns
    except pd.errors.EmptyDataError:  # the history of a run without evaluations
        return pd.DataFrame()
    classified = any(name.startswith("prob_") for name in columns)
    return read_written_table(path, ("id", "label", *(["prediction"] if classified else [])))
