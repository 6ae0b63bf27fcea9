"""Scores of many probes side by side, with intervals; what changed from one model to the next."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bertchain.data.labels import LabelSpec
from bertchain.errors import InputError
from bertchain.metrics import LESS_IS_BETTER, MAIN_METRIC, SCORES
from bertchain.probing.analyses import anisotropy, linear_cka, mean_cosine

SAMPLES = 1000  # of a bootstrap
GROUPS = 10_000  # of rows, in place of rows, where there are more


class Place(NamedTuple):
    """Where a score comes from."""

    model: str
    layer: int | None
    token_pooling: str
    probe: str


def chosen_layers(wanted: list[int], count: int) -> list[int]:
    """Numbers of layers, 0 = embeddings; none wanted: all."""
    bad = [layer for layer in wanted if not -count <= layer < count]
    if bad:
        raise InputError(
            f"--probe_layers {bad[0]}: layers are 0 to {count - 1}, or -1 for the last"
        )
    return sorted({layer % count for layer in wanted}) or list(range(count))


class Scoreboard:
    """Every score of a run, and the score of each row of the reported split, for intervals.

    Attributes:
        split: that is reported: test if it has labels, else validation.
    """

    def __init__(self, labels: dict[str, np.ndarray], spec: LabelSpec, seed: int):
        self.labels, self.spec, self.seed = labels, spec, seed
        self.metric = MAIN_METRIC[spec.problem_type][0]
        self.split = "test" if "test" in labels else "validation"
        self.rows: list[dict[str, Any]] = []
        self.each: dict[Place, np.ndarray] = {}  # [rows of the split]
        self.predicted: dict[Place, np.ndarray] = {}  # classes [rows of the split], one label a row

    def add(
        self,
        place: Place,
        probabilities: dict[str, np.ndarray],
        repeats: list[dict[str, np.ndarray]] | None = None,
        **facts: float,
    ) -> None:
        """Score predictions by split; of several repeats the mean, and the main metric's spread.

        Args:
            facts: more to keep of the fit, such as C or converged.
        """
        at = place._asdict()
        self.rows += [at | {"split": "train", "metric": k, "value": v} for k, v in facts.items()]
        runs, scores_of = repeats or [probabilities], SCORES[self.spec.problem_type]
        for split in probabilities:
            if split not in self.labels:
                continue
            scores = [scores_of(run[split], self.labels[split]) for run in runs]
            means = {name: float(np.mean([s[name] for s in scores])) for name in scores[0]}
            if len(runs) > 1:
                spread = np.std([s[self.metric] for s in scores], ddof=1)
                means[f"{self.metric}_sd"] = float(spread)
            for name, value in means.items():
                self.rows.append(at | {"split": split, "metric": name, "value": value})
        if self.split in probabilities:
            truth, kind = self.labels[self.split], self.spec.problem_type
            each = [row_scores(kind, run[self.split], truth) for run in runs]
            self.each[place] = np.mean(each, axis=0)
            if kind == "single_label":
                self.predicted[place] = probabilities[self.split].argmax(axis=1)

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)

    def interval(self, place: Place) -> float:
        """Half the width of the 95 % interval of the main score over the reported rows."""
        if place not in self.each:
            return float("nan")
        return half_width(bootstrap(self.each[place], self.statistic, self.seed))

    def difference(self, one: Place, other: Place) -> tuple[float, float]:
        """Score of one minus that of another, and half its interval, paired by row."""
        a, b = self.each[one], self.each[other]
        values = bootstrap(a, self.statistic, self.seed) - bootstrap(b, self.statistic, self.seed)
        return float(self.statistic(a[None])[0] - self.statistic(b[None])[0]), half_width(values)

    @property
    def statistic(self) -> Callable[[np.ndarray], np.ndarray]:
        if self.spec.problem_type == "regression":
            return lambda rows: np.sqrt(rows.mean(axis=1))
        return lambda rows: rows.mean(axis=1)


# ---------------------------------------------------------------- intervals


def row_scores(problem_type: str, probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What the main metric is the mean of [n]: hits, LRAP of a row, or its squared error (of which
    RMSE is the root)."""
    if problem_type == "single_label":
        return (probabilities.argmax(axis=1) == truth).astype(float)
    if problem_type == "regression":
        return ((probabilities - truth) ** 2).mean(axis=1)
    return np.array([_lrap(p, t) for p, t in zip(probabilities, truth.astype(bool), strict=True)])


def _lrap(p: np.ndarray, truth: np.ndarray) -> float:
    """Of one row: over its labels, the share of true ones among those ranked at least as high."""
    if truth.all() or not truth.any():
        return 1.0
    higher = p[None] >= p[truth][:, None]  # [true labels, labels]
    return float((higher[:, truth].sum(axis=1) / higher.sum(axis=1)).mean())


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int
) -> np.ndarray:
    """The statistic of resampled rows [SAMPLES]; the same rows for the same seed, hence paired.

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


# ---------------------------------------------------------------- what changed


def gains(board: Scoreboard, models: list[str], probe: str = "linear") -> pd.DataFrame:
    """Score of each later model minus that of the first, layer by layer, with paired intervals.

    Positive is better, whatever the metric. Layers that only one of them has are left out.
    """
    sign = -1.0 if board.metric in LESS_IS_BETTER else 1.0
    rows = []
    for place in board.each:
        first = place._replace(model=models[0])
        if place.probe != probe or place.model == models[0] or first not in board.each:
            continue
        gain, half = board.difference(place, first)
        rows.append(
            {
                "model": place.model,
                "layer": place.layer,
                "token pooling": place.token_pooling,
                f"{board.split} {board.metric} against {models[0]}": sign * gain,
                "± 95 %": half,
            }
        )
    return pd.DataFrame(rows)


def drift(
    features: dict[str, np.ndarray], models: list[str], pooling: int, changed: dict[str, dict]
) -> pd.DataFrame:
    """How far each layer of the later models is from the first model's.

    Args:
        features: by model, [rows, layers, poolings, hidden] of the same rows.
        pooling: which of the poolings is compared.
        changed: by model, layer -> relative change of its weights.
    """
    rows = []
    first = features[models[0]]
    for model in models:
        own = features[model]
        for layer in range(own.shape[1]):
            x = own[:, layer, pooling]
            row = {"model": model, "layer": layer, "mean cosine of two rows": anisotropy(x)}
            if model != models[0] and layer < first.shape[1]:
                before = first[:, layer, pooling]
                row["CKA with the first"] = linear_cka(before, x)
                if before.shape == x.shape:
                    row["cosine before and after"] = mean_cosine(before, x)
                row["weights changed by"] = changed.get(model, {}).get(layer, float("nan"))
            rows.append(row)
    return pd.DataFrame(rows)
