"""Linear probes as the head of a classifier: what training starts from, or what follows it.

LP-FT (Kumar et al. 2022, arXiv 2202.10054): from a random head the first steps distort features
that were good; from a probe that has converged they do not.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import Trainer

from bertchain.data import splits
from bertchain.data.tasks import Task
from bertchain.errors import InputError
from bertchain.metrics import NamedScore, gain
from bertchain.models.layers import HEAD
from bertchain.models.modeling import DocumentClassifierConfig
from bertchain.probing.batched_probes import fit_many
from bertchain.probing.probes import ProbeLabels, Score, best_fit
from bertchain.probing.solvers import (
    C_VALUES,
    FITS,
    Fit,
    SoftmaxPredictor,
    Standardiser,
    linear_map,
)
from bertchain.runtime.distributed import broadcast, is_main_process
from bertchain.training.head_features import head_features

logger = logging.getLogger(__name__)

FEW = 200  # with fewer validation rows C is chosen by cross-validation of the training rows
FOLDS = 5
# Of the median deviation: features that vary less (two of MiniLM's, by 1e-9) would get weights so
# large that a head trained on from them explodes.
HARDLY = 1e-4
MIDDLE = 1.0  # C where there are too few rows to choose one
# C where the encoder has learnt the rows that would choose it: they all fit, whatever C is.
LEARNT = 0.1


def fit_head(
    trainer: Trainer, rows: dict[str, Dataset], task: Task, learnt: bool = False
) -> dict[str, float]:
    """Set a classifier's head to the linear probe of what it reads, in place.

    The probe is that of `probes.fit_linear_probe`, on the encoder as it is now, but C is the one
    with the highest likelihood, since a head is used for its probabilities: of the validation rows,
    or in cross-validation where these are few, or `LEARNT` where training rows would choose it that
    the encoder was trained on. No other weight changes. All processes must call this.

    Args:
        rows: encoded documents by split: train, and validation if there is one.
        learnt: whether the encoder was trained on them.

    Returns:
        for the results: head_probe_C.

    Raises:
        InputError: for a head that is not one linear layer.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    head = model.head
    if type(head) is not nn.Linear:
        raise InputError(
            f"--head_init and --head_refit set a linear head; this one is {type(head).__name__}"
        )
    known = [split for split in ("train", "validation") if "labels" in _columns(rows, split)]
    truth = {split: np.array(task.labels_of(rows[split])) for split in known}
    labels = {split: task.spec.hard_labels(values) for split, values in truth.items()}
    if len(labels.get("validation", ())) < FEW:
        labels = {"train": labels["train"]}
    features = {split: head_features(trainer, rows[split]) for split in labels}
    found = None
    if is_main_process():
        kind = task.spec.problem_type
        score = likelihood(kind, labels["validation"]) if "validation" in labels else None
        by_split = ProbeLabels(labels, len(task.spec.names), kind, score)
        found = fit_probe(features, by_split, trainer.args.device, model.config, learnt)
    weights, bias, C, converged = broadcast(found)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weights))
        head.bias.copy_(torch.from_numpy(bias))
    if trainer.average is not None:
        trainer.average.averaged.module.head.load_state_dict(head.state_dict())
    said = "" if converged else ", has not converged"
    logger.info("Head: linear probe of %d rows, C = %g%s", len(labels["train"]), C, said)
    return {"head_probe_C": C}


def trains_encoder(trainer: Trainer) -> bool:
    """Whether training will change a weight below the head: neither frozen nor at a rate of 0."""
    rated = any(rate > 0 for place, rate in trainer.rates.items() if place != HEAD)
    return rated and any(w.requires_grad for w in trainer.model.encoder.parameters())


def likelihood(kind: str, truth: np.ndarray) -> Score | None:
    """Score predictions by their mean log likelihood; None for regression: by its own score."""
    if kind == "regression":
        return None
    return partial(gain, NamedScore(kind, "log_loss"), truth)


def _columns(rows: dict[str, Dataset], split: str) -> Sequence[str]:
    return rows[split].column_names if split in rows else ()


def fit_probe(
    features: dict[str, np.ndarray],
    labels: ProbeLabels,
    device: torch.device,
    config: DocumentClassifierConfig,
    learnt: bool = False,
) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Fit a linear probe and express it as a head on features that are not standardised.

    Args:
        features: [n, features] by split; without validation C is chosen by cross-validation.
        config: for the scale of regression targets.
        learnt: the training rows say nothing of C.

    Returns:
        weights [labels, features]; bias [labels]; C; whether the fit has converged.
    """
    x, standardise = features["train"], Standardiser(features["train"], HARDLY)
    if "validation" in features:
        path = fit_path(x, labels.train, labels, C_VALUES, device)
        fit = best_fit(path, standardise(features["validation"]), labels)
    else:
        C = LEARNT if learnt else choose_by_folds(x, labels)
        fit = fit_path(x, labels.train, labels, [C], device)[0]
    weights, bias = linear_map(fit, standardise, labels.num_labels)
    if labels.problem_type == "regression":
        scale = np.array(config.target_scale)
        weights, bias = weights / scale[:, None], (bias - config.target_mean) / scale
    return weights, bias, fit.C, fit.converged


def fit_path(
    x: np.ndarray,
    y: np.ndarray,
    labels: ProbeLabels,
    c_values: Sequence[float],
    device: torch.device,
) -> list[Fit]:
    """Fit features [n, d], standardised here, at each C; rows of one class are all of that."""
    kind, number = labels.problem_type, labels.num_labels
    seen = np.unique(y)
    if kind == "single_label" and len(seen) == 1:
        constant = SoftmaxPredictor(np.zeros((1, x.shape[1])), np.zeros(1), seen, number)
        return [Fit(C, True, constant) for C in c_values]
    if device.type == "cuda":
        return fit_many([x], y, number, kind, c_values, device, HARDLY)[0]
    return FITS[kind](Standardiser(x, HARDLY)(x), y, number, c_values)


def choose_by_folds(x: np.ndarray, labels: ProbeLabels) -> float:
    """Choose C by the likelihood of out-of-fold predictions; of equal ones the strongest.

    Args:
        x: features of the training rows [n, d].
    """
    kind, y = labels.problem_type, labels.train
    strata = Counter(splits.strata_of(y.tolist(), kind))
    most = max(strata.values()) if kind == "single_label" else len(y)
    if most < 2:
        return MIDDLE
    strategy = "stratified" if kind == "single_label" else "random"
    folds = splits.assign_folds(strategy, min(FOLDS, most), y.tolist(), kind)
    found = np.empty((len(C_VALUES), len(y), labels.num_labels))
    for fold in np.unique(folds):
        inside = folds == fold
        path = fit_path(x[~inside], y[~inside], labels, C_VALUES, torch.device("cpu"))
        held_out = Standardiser(x[~inside], HARDLY)(x[inside])
        found[:, inside] = [fit.predict(held_out) for fit in path]
    judge = ProbeLabels({"validation": y}, labels.num_labels, kind, likelihood(kind, y))
    return C_VALUES[int(np.argmax([judge.validation_score(own) for own in found]))]
