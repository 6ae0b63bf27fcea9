"""Scores of many probes side by side, with intervals; tables of them, and gains between models."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from bertchain.data.labels import LabelSpec
from bertchain.metrics import LESS_IS_BETTER, SCORES, main_metric, standardised_squares
from bertchain.probing.probes import ProbeLabels

SAMPLES = 1000  # of a bootstrap
BEST = ": best frozen layer"  # after a model's name in the headline
RANDOM = ", random weights"  # after the name of the model whose encoder got them
STATIC = "static"  # a linear probe on word embeddings
CONCAT = "concat "  # before the layers that a linear probe reads side by side
GROUPS = 10_000  # of rows, in place of rows, where there are more


class ScoreKey(NamedTuple):
    """What was scored: a probe, or a baseline or own head, of no layer."""

    model: str
    layer: int | None
    token_pooling: str
    probe: str


class Scoreboard:
    """Every score of a run, and the score of each row of the reported split, for intervals.

    Attributes:
        split: the split that is reported: test if it has labels, else validation.
        each: what the main metric is the mean of, for each row of that split [rows].
        predicted: classes of these rows [rows], for one label a row.
        starts: half the 95 % interval of the main score over random starts, of what has several.
    """

    def __init__(self, labels: dict[str, np.ndarray], spec: LabelSpec, seed: int):
        self.labels, self.spec, self.seed = labels, spec, seed
        self.metric = main_metric(spec.problem_type, len(spec.names))[0]
        self.split = "test" if "test" in labels else "validation"
        self.rows: list[dict[str, Any]] = []
        self.each: dict[ScoreKey, np.ndarray] = {}
        self.predicted: dict[ScoreKey, np.ndarray] = {}
        self.starts: dict[ScoreKey, float] = {}

    @property
    def probe_labels(self) -> ProbeLabels:
        return ProbeLabels(self.labels, len(self.spec.names), self.spec.problem_type)

    @property
    def models(self) -> list[str]:
        """Names of the models that have linear probes, in the order in which they were scored."""
        return list(dict.fromkeys(key.model for key in self.each if key.probe == "linear"))

    def add(
        self,
        key: ScoreKey,
        predictions: dict[str, np.ndarray],
        repeats: list[dict[str, np.ndarray]] | None = None,
        **facts: float,
    ) -> None:
        """Score predictions by split; of several repeats the mean, and the main metric's spread.

        Args:
            predictions: probabilities [n, labels], or values.
            repeats: predictions from several random starts; some may lack splits.
            facts: more to keep of the fit, such as C or converged.
        """
        self.add_facts(key, **facts)
        at = key._asdict()
        runs, scores_of = repeats or [predictions], SCORES[self.spec.problem_type]
        for split in predictions:
            if split not in self.labels:
                continue
            own = [run[split] for run in runs if split in run]
            scores = [scores_of(p, self.labels[split]) for p in own]
            means = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
            if len(own) > 1:
                spread = np.std([s[self.metric] for s in scores], ddof=1)
                means[f"{self.metric}_sd"] = float(spread)
                if split == self.split:
                    self.starts[key] = float(t.isf(0.025, len(own) - 1) * spread / len(own) ** 0.5)
            for name, value in means.items():
                self.rows.append(at | {"split": split, "metric": name, "value": value})
        if self.split in predictions:
            truth, kind = self.labels[self.split], self.spec.problem_type
            each = [row_scores(kind, run[self.split], truth) for run in runs if self.split in run]
            self.each[key] = np.mean(each, axis=0)
            if kind == "single_label":
                self.predicted[key] = predictions[self.split].argmax(axis=1)

    def add_scores(self, key: ScoreKey, predictions: dict[str, np.ndarray]) -> None:
        """Keep the main score of predictions by split, and nothing for an interval."""
        scores_of = SCORES[self.spec.problem_type]
        for split in predictions.keys() & self.labels.keys():
            value = scores_of(predictions[split], self.labels[split])[self.metric]
            at = key._asdict() | {"split": split, "metric": self.metric}
            self.rows.append(at | {"value": value})

    def add_facts(self, key: ScoreKey, **facts: float) -> None:
        """Keep what was measured in training, such as C."""
        at = key._asdict() | {"split": "train"}
        self.rows += [at | {"metric": name, "value": value} for name, value in facts.items()]

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def values(self, split: str, metric: str | None = None) -> dict[ScoreKey, float]:
        """A score or fact of everything that has it on a split; None: the main score."""
        return {
            ScoreKey(*(row[name] for name in ScoreKey._fields)): row["value"]
            for row in self.rows
            if row["split"] == split and row["metric"] == (metric or self.metric)
        }

    def interval(self, key: ScoreKey) -> float:
        """Half the width of the 95 % interval of the main score, over the reported rows and over
        random starts."""
        if key not in self.each:
            return float("nan")
        over_rows = half_width(bootstrap(self.each[key], self.statistic, self.seed))
        return math.hypot(over_rows, self.starts.get(key, 0.0))

    def difference(self, one: ScoreKey, other: ScoreKey) -> tuple[float, float]:
        """Score of one minus that of another, and half its interval, paired by row, over random
        starts of either too."""
        a, b = self.each[one], self.each[other]
        values = bootstrap(a, self.statistic, self.seed) - bootstrap(b, self.statistic, self.seed)
        starts = [self.starts.get(key, 0.0) for key in (one, other)]
        half = math.hypot(half_width(values), *starts)
        return float(self.statistic(a[None])[0] - self.statistic(b[None])[0]), half

    @property
    def statistic(self) -> Callable[[np.ndarray], np.ndarray]:
        if self.spec.problem_type == "regression":
            return lambda rows: np.sqrt(rows.mean(axis=1))
        return lambda rows: rows.mean(axis=1)


# ---------------------------------------------------------------- intervals


def row_scores(problem_type: str, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What the main metric is the mean of [n]: hits, LRAP of a row, or its squared error.

    RMSE is the root of the mean; of several targets it is standardised.

    Args:
        probabilities: [n, labels]; of regression values.
    """
    if problem_type == "single_label":
        return (probabilities.argmax(axis=1) == truth).astype(float)
    if problem_type == "regression" and truth.shape[1] > 1:
        return standardised_squares(probabilities, truth).mean(axis=1)
    if problem_type == "regression":
        return ((probabilities - truth) ** 2).mean(axis=1)
    return np.array([_lrap(p, t) for p, t in zip(probabilities, truth.astype(bool), strict=True)])


def _lrap(p: np.ndarray, truth: np.ndarray) -> float:
    """Label ranking average precision of one row: over its labels, the share of true ones among
    those ranked at least as high."""
    if truth.all() or not truth.any():
        return 1.0
    higher = p[None] >= p[truth][:, None]  # [true labels, labels]
    return float((higher[:, truth].sum(axis=1) / higher.sum(axis=1)).mean())


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> np.ndarray:
    """The statistic of resampled rows [SAMPLES]; paired, as the same seed draws the same rows.

    More than GROUPS rows are dealt out to as many groups, and groups are resampled: the variance
    is the same, the time no longer grows with the rows.

    Args:
        statistic: of rows [samples, n], a function of their means alone.
    """
    rng, found = np.random.default_rng(seed), []
    sizes = np.ones(len(rows))
    if len(rows) > GROUPS:
        starts = np.linspace(0, len(rows), GROUPS, endpoint=False, dtype=int)
        sizes = np.diff(starts, append=len(rows)).astype(float)
        rows = np.add.reduceat(rows[rng.permutation(len(rows))], starts)
    at_once = max(1, 2_000_000 // len(rows))
    for start in range(0, SAMPLES, at_once):
        drawn = rng.integers(len(rows), size=(min(at_once, SAMPLES - start), len(rows)))
        means = rows[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
        found.append(statistic(means[:, None]))
    return np.concatenate(found)


def half_width(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(high - low) / 2


# ---------------------------------------------------------------- tables


def headline_table(board: Scoreboard, models: list[str], probes: list[str]) -> pd.DataFrame:
    """The scores to read first: baselines; of each model its best and last layer, its own head.

    The best layer and every pooling are chosen on validation. Intervals are of the reported split.

    Args:
        models, probes: names, in the order of the rows.

    Returns:
        a row for each; column key holds its `ScoreKey`.
    """
    metric, more_is_better = board.metric, board.metric not in LESS_IS_BETTER
    results = board.table()
    scores = results[results["metric"] == metric]
    wide = scores.pivot_table(
        index=["model", "layer", "token_pooling", "probe"],
        columns="split",
        values="value",
        dropna=False,
        sort=False,
    ).reset_index()
    wide = wide.dropna(subset=["validation"])
    if "test" not in wide:
        wide["test"] = np.nan

    def best(rows: pd.DataFrame) -> pd.Series:
        return rows.loc[
            rows["validation"].idxmax() if more_is_better else rows["validation"].idxmin()
        ]

    found = [("majority class", best(wide[wide["probe"] == "majority"]))]
    if (wide["probe"] == "tf-idf").any():
        found.append(("words counted (TF-IDF), linear", best(wide[wide["probe"] == "tf-idf"])))
    for model in models:
        own = wide[wide["model"] == model]
        linear = own[own["probe"] == "linear"]
        found.append((f"{model}{BEST}", best(linear)))
        found.append(
            (f"{model}: last layer", best(linear[linear["layer"] == linear["layer"].max()]))
        )
        probed = own["probe"].unique()
        joined = [name for name in probed if name.startswith(CONCAT) or name == STATIC]
        for probe in [*joined, *probes]:
            if probe != "linear" and probe in probed:
                found.append((f"{model}: {_which(probe)}", best(own[own["probe"] == probe])))
        head = own[own["probe"] == "own head"]
        if len(head):
            found.append((f"{model}: as fine-tuned, own head", head.iloc[0]))
    return pd.DataFrame(
        {
            "what": what,
            "layer": _where(row),
            f"validation {metric}": row["validation"],
            f"test {metric}": row["test"],
            "± 95 %": board.interval(key_of(row)),
            "key": key_of(row),
        }
        for what, row in found
    )


def _which(probe: str) -> str:
    """Name the best of a probe other than linear."""
    if probe == STATIC:
        return "word embeddings, no context or position"
    if probe.startswith(CONCAT):
        return f"layers {probe.removeprefix(CONCAT)} concatenated"
    return "learned mix of layers" if probe == "mix" else f"best frozen layer, {probe}"


def _where(row: pd.Series) -> str:
    """Layer and pooling of a row of scores; of several layers the pooling alone."""
    layer = "" if pd.isna(row["layer"]) else f"{int(row['layer'])} "
    return layer + row["token_pooling"]


def main_scores(headline: pd.DataFrame) -> dict[str, float]:
    """The scores of a headline table by what has them: on test, without one on validation."""
    on_validation, on_test = headline.columns[2:4]
    chosen = headline[on_test].fillna(headline[on_validation])
    return dict(zip(headline["what"], chosen.tolist(), strict=True))


def key_of(row: pd.Series) -> ScoreKey:
    """The key of a row of scores, in which no layer is NaN."""
    layer = None if pd.isna(row["layer"]) else int(row["layer"])
    return ScoreKey(row["model"], layer, row["token_pooling"], row["probe"])


def layer_table(results: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """Values of the linear probes: a row for each layer, and for layers that are concatenated; a
    column for each model and pooling."""
    linear = (results["probe"] == "linear") | results["probe"].str.startswith(CONCAT)
    chosen = results[linear & (results["metric"] == metric) & (results["split"] == split)]
    names = [
        int(layer) if probe == "linear" else probe
        for layer, probe in zip(chosen["layer"], chosen["probe"], strict=True)
    ]
    chosen = chosen.assign(layer=pd.Series(names, index=chosen.index, dtype=object))
    table = chosen.pivot_table(
        index="layer", columns=["model", "token_pooling"], values="value", sort=False
    )
    table.columns = [" ".join(column) for column in table.columns]
    return table.reset_index()


def gains(board: Scoreboard, models: list[str], probe: str = "linear") -> pd.DataFrame:
    """Score of each later model minus that of the first, layer by layer, with paired intervals.

    Positive is better, whatever the metric. Layers that only one of them has are left out.
    """
    sign = -1.0 if board.metric in LESS_IS_BETTER else 1.0
    rows = []
    for key in board.each:
        first = key._replace(model=models[0])
        if key.probe != probe or key.model == models[0] or first not in board.each:
            continue
        gain, half = board.difference(key, first)
        rows.append(
            {
                "model": key.model,
                "layer": key.layer,
                "token pooling": key.token_pooling,
                f"{board.split} {board.metric} against {models[0]}": sign * gain,
                "± 95 %": half,
            }
        )
    return pd.DataFrame(rows)
