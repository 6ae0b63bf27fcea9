"""What a task loses when another concept is erased from the features: LEACE, layer by layer.

A probe of a concept says that the concept can be read; what is lost with it says whether the task
is read from the same directions.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bertchain.data.concepts import Concept
from bertchain.probing import certainty
from bertchain.probing.baselines import add_majority
from bertchain.probing.layer_probes import side_by_side
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import ProbeLabels, ProbeResult, fit_linear_probe
from bertchain.probing.scoreboard import Scoreboard, ScoreKey
from bertchain.probing.solvers import Standardiser
from bertchain.runtime.figures import erasure_figure
from bertchain.runtime.html import Section

CHUNK = 4096  # rows in float64 at once
TIE = 4  # decimals of probabilities: what rounding alone tells apart is equal


class Eraser:
    """Least-squares concept erasure (LEACE, Belrose et al. 2023, theorem 4.3).

    The smallest change of features, in any norm, after which no linear function of them says
    anything of the concept: r(x) = x - W+ P W (x - mean), W = whitening, P = projection onto the
    columns of W cov(x, z).
    """

    def __init__(self, x: np.ndarray, z: np.ndarray):
        """Args: x: training rows [n, features]; z: the concept [n, k], one-hot or values."""
        z = z - z.mean(axis=0)
        self.mean = x.mean(axis=0, dtype=np.float64)
        covariance, cross = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], z.shape[1]))
        for start in range(0, len(x), CHUNK):
            rows = x[start : start + CHUNK].astype(np.float64) - self.mean
            covariance += rows.T @ rows / len(x)
            cross += rows.T @ z[start : start + CHUNK] / len(x)
        values, vectors = np.linalg.eigh(covariance)
        used = values > values[-1] * len(values) * np.finfo(float).eps
        values, vectors = values[used], vectors[:, used]
        whitened = vectors.T @ cross / np.sqrt(values)[:, None]
        left, sizes, _ = np.linalg.svd(whitened, full_matrices=False)
        left = left[:, sizes > 1e-9 * sizes.max(initial=0.0)]
        self.put = vectors @ (np.sqrt(values)[:, None] * left)  # [features, directions]
        self.take = vectors @ (left / np.sqrt(values)[:, None])

    @property
    def directions(self) -> int:
        """How many directions are erased: of k classes at most k - 1."""
        return self.put.shape[1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features [n, features] without the concept, in float32."""
        found = np.empty(x.shape, dtype=np.float32)
        for start in range(0, len(x), CHUNK):
            rows = x[start : start + CHUNK].astype(np.float64)
            found[start : start + CHUNK] = rows - (rows - self.mean) @ self.take @ self.put.T
        return found


def erase(features: Mapping[str, np.ndarray], z: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
    """Erase a concept, fitted to the training rows, from the features of every split.

    Args:
        features: [n, features] by split.
        z: the concept of the training rows [n, k].

    Returns:
        standardised features without it, and how many directions were erased.
    """
    standardise = Standardiser(features["train"])
    eraser = Eraser(standardise(features["train"]), z)
    return {split: eraser(standardise(x)) for split, x in features.items()}, eraser.directions


# ---------------------------------------------------------------- of a run


def erasure_table(
    models: Sequence[ProbedModel], board: Scoreboard, concepts: Mapping[str, Concept]
) -> pd.DataFrame:
    """Erase each concept from each layer that is probed, and probe the task again.

    Beside it stands what as many directions cost that belong to shuffled labels of the concept.
    Scores of the task join the scoreboard.

    Returns:
        a row for each model, layer and concept.
    """
    jobs = [
        (model, layer, name, concept)
        for model in models
        for layer in model.layers
        for name, concept in concepts.items()
    ]
    boards = {}
    for name, concept in concepts.items():
        boards[name] = Scoreboard(concept.labels, concept.spec, board.seed)
        add_majority(boards[name])
    settings = board.values("train", "C")

    def measure(model: ProbedModel, layer: int, name: str, concept: Concept) -> tuple:
        x, own = model.at(layer, model.compared_pooling), boards[name].probe_labels
        C = settings[_linear(model, layer)]
        return measure_erasure(x, board.probe_labels, own, C, board.seed)

    measured = side_by_side(measure, jobs, "Erasure")
    for (model, layer, name, _), (fits, _) in zip(jobs, measured, strict=True):
        at = _linear(model, layer)
        for what, fit in fits.items():
            to = board if what in OF_TASK else boards[name]
            key = at._replace(probe=what.format(name))
            to.add(key, fit.predictions, fit.repeats, **fit.setting)
    rows = []
    for (model, layer, name, _), (_, directions) in zip(jobs, measured, strict=True):
        at = _linear(model, layer)
        row = {"model": model.name, "layer": layer, "token pooling": at.token_pooling}
        row |= {"concept": name, "directions": directions}
        row |= _concept_columns(boards[name], at, len(jobs))
        row |= _task_columns(board, at, name, len(jobs))
        if row["concept found"] == "no":  # what is erased is noise
            row["the task needs it"] = "no"
        rows.append(row)
    return pd.DataFrame(rows)


def _linear(model: ProbedModel, layer: int) -> ScoreKey:
    return ScoreKey(model.name, layer, model.poolings[model.compared_pooling], "linear")


WITHOUT, SHUFFLED = "without {}", "without shuffled {}"  # probes of the task
BEFORE, AFTER, FRESH = "linear", "erased", "erased, other rows"  # probes of the concept
OF_TASK = (WITHOUT, SHUFFLED)
SHUFFLES = 5  # of the concept's labels


def measure_erasure(
    features: Mapping[str, np.ndarray], task: ProbeLabels, concept: ProbeLabels, C: float, seed: int
) -> tuple[dict[str, ProbeResult], int]:
    """Train linear probes of task and concept with and without the concept.

    Args:
        C: of the probe of the task before, which probes without shuffled labels keep.

    Returns:
        probes by name: of the task WITHOUT the concept, and without its SHUFFLED labels; of the
        concept BEFORE and AFTER, and where there is a test split FRESH: trained on validation rows,
        to which the erasure was not fitted; and how many directions were erased.
    """
    z = np.asarray(concept.train)
    z = np.eye(concept.num_labels)[z] if z.ndim == 1 else z.astype(float)
    erased, directions = erase(features, z)
    rng, found = np.random.default_rng(seed), {WITHOUT: fit_linear_probe(erased, task)}
    others = [
        fit_linear_probe(erase(features, rng.permutation(z))[0], task, [C]) for _ in range(SHUFFLES)
    ]
    found[SHUFFLED] = replace(others[0], repeats=[other.predictions for other in others])
    known = {split: x for split, x in features.items() if split in concept.by_split}
    found[BEFORE] = before = fit_linear_probe(known, concept)
    after = {split: erased[split] for split in known}
    same = [before.setting["C"]]
    found[AFTER] = _untied(fit_linear_probe(after, concept, same), concept.problem_type)
    several = len(np.unique(concept.by_split["validation"], axis=0)) > 1
    if "test" in after and several:
        rows = {"train": after["validation"], "validation": after["validation"]}
        labels = replace(concept, by_split=dict.fromkeys(rows, concept.by_split["validation"]))
        fresh = fit_linear_probe(rows | {"test": after["test"]}, labels, same)
        found[FRESH] = replace(fresh, predictions={"test": fresh.predictions["test"]})
    return found, directions


def _untied(fit: ProbeResult, problem_type: str) -> ProbeResult:
    """Make classes equally likely that rounding alone tells apart."""
    if problem_type == "regression":
        return fit
    return replace(fit, predictions={s: np.round(p, TIE) for s, p in fit.predictions.items()})


def _concept_columns(board: Scoreboard, at: ScoreKey, tests: int) -> dict[str, Any]:
    """Scores of the concept before and after, and whether they are surely above the majority's."""
    majority, values, of_train = (
        ScoreKey("", None, "", "majority"),
        *(board.values(split) for split in (board.split, "train")),
    )
    after, fresh = at._replace(probe=AFTER), at._replace(probe=FRESH)
    row = {"concept metric": f"{board.split} {board.metric}", "majority": values[majority]}
    row |= {"concept before": values[at], "concept after": values[after]}
    row |= {"concept after, probed on other rows": values.get(fresh, float("nan"))}
    row |= {"majority, training rows": of_train[majority]}
    row |= {"concept after, training rows": of_train[after]}
    for column, key in (("concept found", at), ("concept left", fresh)):
        if key in board.each:
            sure = certainty.is_sure(*certainty.gain(board, key, majority), tests)
            row[column] = "yes" if sure else "no"
    return row


def _task_columns(board: Scoreboard, at: ScoreKey, name: str, tests: int) -> dict[str, Any]:
    """What the task lost, what it lost to shuffled labels, and whether that is surely less."""
    without, shuffled = (at._replace(probe=what.format(name)) for what in OF_TASK)
    lost, half = certainty.gain(board, at, without)
    row = {f"{board.split} {board.metric} lost": lost, "± 95 %": half}
    row["lost to shuffled labels"] = certainty.gain(board, at, shuffled)[0]
    lost, half = certainty.gain(board, shuffled, without)
    half = math.hypot(half, board.starts[shuffled] * SHUFFLES**0.5)  # the concept is one draw too
    row |= {"lost beyond that": lost, "± 95 % of that": half}
    return row | {"the task needs it": "yes" if certainty.is_sure(lost, half, tests) else "no"}


def erasure_warnings(table: pd.DataFrame) -> list[str]:
    """Sentences on erasures that show nothing, and on concepts that were not erased."""
    found = []
    for (model, concept), rows in table.groupby(["model", "concept"], sort=False):
        if (rows["concept found"] == "no").all():
            found.append(
                f"Erasure: no linear probe of {model} surely finds {concept}; erasing it shows "
                "nothing."
            )
        elif (rows["the task needs it"] == "no").all():
            found.append(
                f"Erasure: at no layer of {model} does the task surely lose more with {concept} "
                "than with shuffled labels."
            )
        left = rows.loc[rows["concept left"] == "yes", "layer"] if "concept left" in rows else []
        if len(left):
            layers = ", ".join(map(str, left))
            found.append(
                f"Erasure: {concept} can still be read off new rows of {model}, layer {layers}: "
                "too few training rows for so many features; what is lost is a lower bound."
            )
    return found


def erasure_sections(tables: Mapping[str, pd.DataFrame]) -> list[Section]:
    """What the task loses when a concept is erased, as far as it was measured."""
    if "erasure" not in tables:
        return []
    text = (
        "LEACE (Belrose et al. 2023) takes from the features of a layer all that a linear probe "
        "can say of a concept on the training rows, at the least change; then the task is probed "
        "again. What it loses it had read from the same directions, unless shuffled labels of the "
        "concept, as many directions, cost as much. Needs it, found, left: surely so at 95 % over "
        "all rows of the table (Bonferroni). After erasure the concept should score as the "
        "majority does."
    )
    table, title = tables["erasure"], "What the task loses with a concept"
    what = "Loss of the task and scores of the concept by layer"
    figure = erasure_figure(table)
    return [Section("erasure", title, text, table, figure, what, fold=True)]
