"""Probes: how much of a task a simple model reads off frozen features.

Feature matrices in, predictions out; no files, no tokenizers. A linear probe is trained until its
gradient vanishes: one that is not measures the optimizer, not the representation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from sklearn.neighbors import NearestNeighbors

from bertchain.data.splits import hold_out, strata_of
from bertchain.metrics import NamedScore, gain, main_metric
from bertchain.probing.solvers import C_VALUES, FITS, Fit, Standardiser, linear_map

Score = Callable[[np.ndarray], float]  # predictions of validation rows -> a number, more is better


@dataclass(frozen=True)
class ProbeLabels:
    """What probes are trained to predict.

    Attributes:
        by_split: class numbers [n], or 0/1 or values [n, num_labels]; train, and validation unless
            there is a score.
        num_labels: also counts classes that no training row has.
        problem_type: single_label, multi_label or regression.
        score: chooses settings; None: the main metric of the problem type.
    """

    by_split: dict[str, np.ndarray]
    num_labels: int
    problem_type: str
    score: Score | None = None

    @property
    def train(self) -> np.ndarray:
        return self.by_split["train"]

    def validation_score(self, predictions: np.ndarray) -> float:
        """Score of predictions [n, num_labels] of the validation rows; more is better."""
        if self.score is not None:
            return self.score(predictions)
        metric = NamedScore(self.problem_type, main_metric(self.problem_type, self.num_labels)[0])
        return gain(metric, self.by_split["validation"], predictions)


@dataclass
class ProbeResult:
    """The probe whose setting did best on validation.

    Attributes:
        setting: what was chosen, such as C.
        converged: whether the chosen fit reached its tolerance.
        predictions: by split, probabilities [n, labels] (regression: values).
        repeats: predictions of the same setting from each random start; empty where a fit has none.
        weights: by name, on features as they are given, not standardised; of the nearest
            neighbours none.
        tried: name -> predictions of other settings, where their scores say something too.
    """

    setting: dict[str, float]
    converged: bool
    predictions: dict[str, np.ndarray]
    repeats: list[dict[str, np.ndarray]] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    tried: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)


def fit_linear_probe(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    c_values: Sequence[float] = C_VALUES,
    path: list[Fit] | None = None,
) -> ProbeResult:
    """Train a linear probe at every C and keep the one that does best on validation.

    Multinomial logistic regression, one-versus-rest logistic regression, or ridge regression by
    problem type, on features standardised by the training rows. Fits go from strong to weak
    regularisation, each starting from the solution before. Of equal scores the stronger
    regularisation is kept.

    Args:
        features: [n, features] for train and validation, and any further splits to predict.
        path: fits that were trained already (see `batched_probes`), from strong to weak.
    """
    standardise = Standardiser(features["train"])
    if path is None:
        fit, x = FITS[labels.problem_type], standardise(features["train"])
        path = fit(x, labels.train, labels.num_labels, sorted(c_values))
    best = best_fit(path, standardise(features["validation"]), labels)
    predictions = {split: best.predict(standardise(x)) for split, x in features.items()}
    weights, bias = linear_map(best, standardise, labels.num_labels)
    kept = {"weight": weights, "bias": bias}
    return ProbeResult({"C": best.C}, best.converged, predictions, weights=kept)


def fit_over_splits(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    path: list[Fit] | None = None,
    *,
    share: float,
    seeds: Sequence[int],
) -> ProbeResult:
    """Train a linear probe, and again where other training rows are held out for validation.

    What other splits would have given on test belongs to the uncertainty of a score.

    Args:
        share: of the training rows that validate.
        seeds: of the other splits.

    Returns:
        the probe of the split at hand; repeats: its predictions, and those of test by the others.
    """
    result = fit_linear_probe(features, labels, path=path)
    if "test" not in labels.by_split or not seeds:
        return result
    both = ("train", "validation")
    x = np.concatenate([features[split] for split in both])
    y = np.concatenate([labels.by_split[split] for split in both])
    repeats = [result.predictions]
    for seed in seeds:
        held = hold_out(strata_of(y.tolist(), labels.problem_type), share, seed)
        rows = {"train": x[~held], "validation": x[held], "test": features["test"]}
        own = replace(labels, by_split={"train": y[~held], "validation": y[held]})
        repeats.append({"test": fit_linear_probe(rows, own).predictions["test"]})
    return replace(result, repeats=repeats)


def best_fit(path: list[Fit], validation: np.ndarray, labels: ProbeLabels) -> Fit:
    """Choose the fit that does best on validation; of equal ones the first.

    Args:
        path: from strong to weak regularisation.
        validation: standardised features [n, features].
    """
    scored = [(labels.validation_score(fit.predict(validation)), fit) for fit in path]
    return max(scored, key=lambda pair: pair[0])[1]


NEIGHBOURS = (1, 3, 5, 9, 17, 33)


def fit_knn_probe(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> ProbeResult:
    """Predict the mean label of the k nearest training rows by cosine, k chosen on validation.

    Nothing is trained, so that what it finds lies in the features as they are: they are not
    standardised. A training row is not its own neighbour. Args: see `fit_linear_probe`.
    """
    train = np.asarray(features["train"], dtype=np.float32)
    wanted = [k for k in neighbours if k < len(train)]
    index = NearestNeighbors(n_neighbors=max(wanted), metric="cosine").fit(train)
    truth = np.asarray(labels.train, dtype=float)
    if labels.problem_type == "single_label":
        truth = np.eye(labels.num_labels)[np.asarray(labels.train)]
    means = {}
    for split, x in features.items():
        rows = None if split == "train" else np.asarray(x, dtype=np.float32)
        nearest = index.kneighbors(rows, return_distance=False)  # [n, most]
        sums = np.cumsum(truth[nearest], axis=1)
        means[split] = {k: sums[:, k - 1] / k for k in wanted}
    best = max(wanted, key=lambda k: labels.validation_score(means["validation"][k]))
    return ProbeResult({"neighbours": best}, True, {s: by_k[best] for s, by_k in means.items()})
