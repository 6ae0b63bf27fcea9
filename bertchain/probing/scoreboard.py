"""Scores of many probes side by side, with intervals; tables of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from bertchain.data.labels import LabelSpec
from bertchain.metrics import LESS_IS_BETTER, SCORES, main_metric, standardised_squares
from bertchain.probing.probes import ProbeLabels
from bertchain.probing.significance import paired_tests

SAMPLES = 1000  # of a bootstrap
BEST = ": best frozen layer"  # after a model's name in the headline
RANDOM = ", random weights"  # after the name of the model whose encoder got them
STATIC = "static"  # a linear probe on word embeddings
CONCAT = "concat "  # before the layers that a linear probe reads side by side
GROUPS = 10_000  # of rows, in place of rows, where there are more
KEYS_AT_ONCE = 50  # whose rows are resampled side by side


class ScoreKey(NamedTuple):
    """What was scored: a probe, or a baseline or own head, of no layer."""

    model: str
    layer: int | None
    token_pooling: str
    probe: str


class Kept(NamedTuple):
    """What is kept of a probe beside its scores.

    Attributes:
        predictions: of validation and test rows, probabilities [n, labels] or values.
        weights: of the probe on features as they are stored (see `probes.ProbeResult`).
        validated: main metric on validation, more is better.
    """

    predictions: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    validated: float


class Scoreboard:
    """Every score of a run, and the score of each row of the reported split, for intervals.

    Attributes:
        split: the split that is reported: test if it has labels, else validation.
        each: what the main metric is the mean of, for each row of that split [rows].
        predicted: classes of these rows [rows], for one label a row.
        starts: half the 95 % interval of the main score over random starts, of what has several.
        kept: predictions of each kind of probe of each model: of the best on validation, of all
            layers and of the last one; or of every probe.
    """

    def __init__(
        self, labels: dict[str, np.ndarray], spec: LabelSpec, seed: int, keep_all: bool = False
    ):
        """Args: keep_all: keep predictions of every probe."""
        self.labels, self.spec, self.seed, self.keep_all = labels, spec, seed, keep_all
        self.metric = main_metric(spec.problem_type, len(spec.names))[0]
        self.split = "test" if "test" in labels else "validation"
        self.rows: list[dict[str, Any]] = []
        self.each: dict[ScoreKey, np.ndarray] = {}
        self.predicted: dict[ScoreKey, np.ndarray] = {}
        self.starts: dict[ScoreKey, float] = {}
        self.kept: dict[ScoreKey, Kept] = {}
        self._samples: dict[ScoreKey, np.ndarray] = {}

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
        weights: dict[str, np.ndarray] | None = None,
        **facts: float,
    ) -> None:
        """Score predictions by split; of several repeats the mean, and the main metric's spread.

        Args:
            predictions: probabilities [n, labels], or values.
            repeats: predictions from several random starts; some may lack splits.
            weights: of the probe.
            facts: more to keep of the fit, such as C or converged.
        """
        self.add_facts(key, **facts)
        at = key._asdict()
        runs, scores_of = repeats or [predictions], SCORES[self.spec.problem_type]
        validated = float("-inf")
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
            if split == "validation":
                validated = self.sign * means[self.metric]
        self._keep(key, Kept(_without_train(predictions), weights or {}, validated))
        if self.split in predictions:
            truth, kind = self.labels[self.split], self.spec.problem_type
            each = [row_scores(kind, run[self.split], truth) for run in runs if self.split in run]
            self.each[key] = np.mean(each, axis=0)
            if kind == "single_label":
                self.predicted[key] = predictions[self.split].argmax(axis=1)

    def add_scores(self, key: ScoreKey, predictions: dict[str, np.ndarray]) -> None:
        """Keep the main score of predictions by split, and nothing for an interval."""
        scores_of = SCORES[self.spec.problem_type]
        for split in [name for name in predictions if name in self.labels]:
            value = scores_of(predictions[split], self.labels[split])[self.metric]
            at = key._asdict() | {"split": split, "metric": self.metric}
            self.rows.append(at | {"value": value})

    def _keep(self, key: ScoreKey, new: Kept) -> None:
        """Keep predictions; of probes of one kind those that do best on validation alone."""
        self.kept[key] = new
        if self.keep_all:
            return
        same = [k for k in self.kept if (k.model, k.probe) == (key.model, key.probe)]
        last = max((k.layer for k in same if k.layer is not None), default=None)
        of_last = [k for k in same if k.layer == last]
        best = {max(keys, key=lambda k: self.kept[k].validated) for keys in (same, of_last)}
        for beaten in {*same} - best:
            del self.kept[beaten]

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
        return math.hypot(half_width(self.samples(key)), self.starts.get(key, 0.0))

    def samples(self, key: ScoreKey) -> np.ndarray:
        """The main score on rows drawn again [SAMPLES]: the same rows for every key."""
        if key not in self._samples:
            missing = [k for k in self.each if k not in self._samples]
            for start in range(0, len(missing), KEYS_AT_ONCE):
                keys = missing[start : start + KEYS_AT_ONCE]
                rows = np.stack([self.each[k] for k in keys])
                drawn = bootstrap(rows, self.statistic, self.seed)
                self._samples |= zip(keys, drawn, strict=True)
        return self._samples[key]

    def compare(self, pairs: Sequence[tuple[ScoreKey, ScoreKey]]) -> pd.DataFrame:
        """Compare the scores of pairs on the same rows. Positive is better, whatever the metric.

        Returns:
            a row for each pair: gain, of the first over the second; half its interval, by paired
            bootstrap and over random starts of either; and what `significance.paired_tests` finds.
        """
        rows = {key: self.sign * self.each[key] for pair in pairs for key in pair}
        found = {"gain": [], "± 95 %": []}
        for one, other in pairs:
            a, b = (float(self.statistic(self.each[key][None])[0]) for key in (one, other))
            found["gain"].append(self.sign * (a - b))
            over_rows = half_width(self.samples(one) - self.samples(other))
            starts = [self.starts.get(key, 0.0) for key in (one, other)]
            found["± 95 %"].append(math.hypot(over_rows, *starts))
        tests = paired_tests([(rows[one], rows[other]) for one, other in pairs])
        found |= {"rows better": [t.better for t in tests], "rows worse": [t.worse for t in tests]}
        return pd.DataFrame(found | {"p": [t.p for t in tests], "test": [t.test for t in tests]})

    @property
    def sign(self) -> float:
        """1 where more of the main metric is better, else -1."""
        return -1.0 if self.metric in LESS_IS_BETTER else 1.0

    @property
    def statistic(self) -> Callable[[np.ndarray], np.ndarray]:
        if self.spec.problem_type == "regression":
            return lambda rows: np.sqrt(rows.mean(axis=1))
        return lambda rows: rows.mean(axis=1)


def _without_train(predictions: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {split: own for split, own in predictions.items() if split != "train"}


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
    """The statistic of resampled rows; paired, as the same seed draws the same rows.

    More than GROUPS rows are dealt out to as many groups, and groups are resampled: the variance
    is the same, the time no longer grows with the rows.

    Args:
        rows: [n], or of several that are resampled alike [several, n].
        statistic: of rows [samples, n], a function of their means alone.

    Returns:
        [SAMPLES], or [several, SAMPLES].
    """
    rng, found, several = np.random.default_rng(seed), [], np.atleast_2d(rows)
    count = several.shape[1]
    sizes = np.ones(count)
    if count > GROUPS:
        starts = np.linspace(0, count, GROUPS, endpoint=False, dtype=int)
        sizes = np.diff(starts, append=count).astype(float)
        several = np.add.reduceat(several[:, rng.permutation(count)], starts, axis=1)
        count = GROUPS
    at_once = max(1, 2_000_000 // count)
    for start in range(0, SAMPLES, at_once):
        samples = min(at_once, SAMPLES - start)
        drawn = rng.integers(count, size=(samples, count)) + count * np.arange(samples)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=drawn.size).reshape(drawn.shape)
        times = times.astype(float)  # that each row is drawn
        found.append(several @ times.T / (times @ sizes))
    means = np.concatenate(found, axis=1)
    values = statistic(means.reshape(-1, 1)).reshape(means.shape)
    return values if np.ndim(rows) == 2 else values[0]


def half_width(values: np.ndarray) -> float:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(high - low) / 2


def paired_difference(
    problem_type: str, one: np.ndarray, other: np.ndarray, truth: np.ndarray
) -> dict[str, float]:
    """Main score of one minus that of other predictions, and half its 95 % interval, by row.

    Args: as for `row_scores`.
    """
    score = np.sqrt if problem_type == "regression" else np.asarray
    a, b = (row_scores(problem_type, p, truth) for p in (one, other))
    draws = [bootstrap(each, lambda rows: score(rows.mean(axis=1)), seed=0) for each in (a, b)]
    value = float(score(a.mean()) - score(b.mean()))
    return {"difference": value, "± 95 %": half_width(draws[0] - draws[1])}


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
