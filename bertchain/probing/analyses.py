"""Analyses of linear probes beside their scores: control task and description length.

Both are measured on each layer and pooling that is probed, and stand in results.csv.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from bertchain.probing.layer_probes import linear_paths, measure_layers
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import ProbeLabels, fit_linear_probe
from bertchain.probing.scoreboard import Scoreboard, ScoreKey
from bertchain.probing.solvers import (
    C_VALUES,
    Standardiser,
    fit_multinomial,
    fit_one_versus_rest,
)

# ---------------------------------------------------------------- control task


def add_selectivity(
    board: Scoreboard,
    model: ProbedModel,
    texts: dict[str, list[str]],
    solver: str,
) -> None:
    """Measure accuracy on the control task, and how much more the linear probe has on the task.

    Args:
        texts: the words of each row, by split; case does not count.
        solver: --probe_solver.
    """
    types = {split: [text.lower() for text in own] for split, own in texts.items()}
    drawn = control_labels(types, board.labels["train"], len(board.spec.names), board.seed)
    labels = ProbeLabels(drawn, len(board.spec.names), "single_label")
    paths = linear_paths(model, labels, solver)
    split = board.split

    def measure(layer: int, pooling: int) -> dict[str, float]:
        path = paths.get((layer, pooling))
        found = fit_linear_probe(model.at(layer, pooling), labels, path=path)
        of_control = float((found.predictions[split].argmax(1) == drawn[split]).mean())
        key = ScoreKey(model.name, layer, model.poolings[pooling], "linear")
        of_task = float((board.predicted[key] == board.labels[split]).mean())
        return {"control_accuracy": of_control, "selectivity": of_task - of_control}

    measure_layers(board, model, measure, "Control task")


def control_labels(
    types: dict[str, Sequence[str]], labels: np.ndarray, num_labels: int, seed: int
) -> dict[str, np.ndarray]:
    """Draw the labels of a control task (Hewitt & Liang 2019), by split: one for each type.

    Labels are drawn as often as they occur in training. They can only be learnt by heart, so a
    probe that does well on them says little about the features: selectivity is the accuracy on the
    task minus that on its control.

    Args:
        types: what is remembered of each row, such as its word, by split.
        labels: of the training rows.
    """
    shares = np.bincount(labels, minlength=num_labels) / len(labels)
    names = sorted({name for split in types.values() for name in split})
    drawn = np.random.default_rng(seed).choice(num_labels, size=len(names), p=shares)
    label_of = dict(zip(names, drawn.tolist(), strict=True))
    return {split: np.array([label_of[name] for name in own]) for split, own in types.items()}


# ---------------------------------------------------------------- description length


def add_code_length(board: Scoreboard, model: ProbedModel, seeds: int = 1) -> None:
    """Measure the minimum description length of the training labels, as `online_code_length`.

    Args:
        seeds: orders in which labels are sent. Of several the means, and the compression's spread.
    """
    y, spec = board.labels["train"], board.spec

    def measure(layer: int, pooling: int) -> dict[str, float]:
        x, kind = model.at(layer, pooling)["train"], spec.problem_type
        found = [
            online_code_length(x, y, len(spec.names), board.seed + start, problem_type=kind)
            for start in range(seeds)
        ]
        facts = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        facts["C"] = found[0]["C"]
        if seeds > 1:
            facts["compression_sd"] = float(np.std([one["compression"] for one in found], ddof=1))
        return {f"mdl_{name}": value for name, value in facts.items()}

    measure_layers(board, model, measure, "Description length")


CURVE = "bits_per_label_after_"
PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


def online_code_length(
    features: np.ndarray,
    labels: np.ndarray,
    num_labels: int,
    seed: int,
    c_values: Sequence[float] = C_VALUES,
    portions: Sequence[float] = PORTIONS,
    problem_type: str = "single_label",
) -> dict[str, float]:
    """Measure the description length of labels by online coding (Voita & Titov 2020, eq. 3).

    Labels are sent portion by portion: the first at log2(classes) bits each (of several labels: at
    one bit each), every other with the probabilities of a linear probe trained on all before it.
    Features that make the labels easy to tell need few bits, and few rows. C is the one that needs
    the fewest bits, and which one it is, is sent as well: accuracy on other rows would often choose
    one that is sure of nothing, and costs many bits.

    Args:
        features: [n, features] and labels, [n] or 0/1 [n, num_labels], of the training rows, sent
            in a random order.
        seed: of that order.
        portions: ends of the portions, as shares of the rows.

    Returns:
        bits; uniform_bits, of n labels without any features; compression, their ratio; model_bits,
        those beyond the bits of a probe trained on all rows: what learning took; C; and as a
        learning curve bits_per_label_after_<n>, of the rows sent after n had been.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = np.asarray(features, dtype=np.float32)[order], np.asarray(labels)[order]
    ends = sorted({max(1, round(share * len(y))) for share in portions})
    each = np.log2(num_labels) if problem_type == "single_label" else num_labels
    code = {"single_label": _class_bits, "multi_label": _label_bits}[problem_type]
    ordered = sorted(c_values)
    bits = np.full(len(ordered), ends[0] * each + np.log2(len(ordered)))
    portions_bits = {}  # after how many rows -> bits of a label, by C
    for end, following in itertools.pairwise(ends):
        own = code(x[:end], y[:end], x[end:following], y[end:following], num_labels, ordered)
        portions_bits[end], bits = own / (following - end), bits + own
    best = int(bits.argmin())
    (whole,) = code(x, y, x, y, num_labels, [ordered[best]])
    uniform = len(y) * each
    values = {"bits": bits[best], "uniform_bits": uniform, "compression": uniform / bits[best]}
    values |= {"model_bits": bits[best] - whole, "C": ordered[best]}
    values |= {f"{CURVE}{end}": own[best] for end, own in portions_bits.items()}
    return {name: float(value) for name, value in values.items()}


def _class_bits(
    x: np.ndarray,
    y: np.ndarray,
    new: np.ndarray,
    truth: np.ndarray,
    classes: int,
    c_values: Sequence[float],
) -> np.ndarray:
    """-log2 of the probabilities of new labels after training on x, y, by C.

    A class not seen so far must cost something finite: each keeps a share of 1 / (rows + classes).
    """
    if len(np.unique(y)) < 2:
        p = np.zeros((len(new), classes))
        p[:, y[0]] = 1.0
        found = [p] * len(c_values)
    else:
        standardise = Standardiser(x)
        fits = fit_multinomial(standardise(x), y, classes, c_values)
        found = [fit.predict(standardise(new)) for fit in fits]
    shares = [(p * len(x) + 1.0) / (len(x) + classes) for p in found]
    return np.array([-np.log2(p[np.arange(len(truth)), truth]).sum() for p in shares])


def _label_bits(
    x: np.ndarray,
    y: np.ndarray,
    new: np.ndarray,
    truth: np.ndarray,
    labels: int,
    c_values: Sequence[float],
) -> np.ndarray:
    """The same for several labels, each yes or no."""
    standardise = Standardiser(x)
    bits = []
    for fit in fit_one_versus_rest(standardise(x), y, labels, c_values):
        p = (fit.predict(standardise(new)).astype(np.float64) * len(x) + 1.0) / (len(x) + 2)
        bits.append(-np.log2(np.where(truth > 0.5, p, 1.0 - p)).sum())
    return np.array(bits)
