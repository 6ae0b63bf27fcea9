"""Probes on every layer and pooling of a model, side by side on all cores."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from bertchain.probing.batched_probes import fit_many
from bertchain.probing.features import find_device
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import ProbeLabels, ProbeResult, fit_linear_probe
from bertchain.probing.scoreboard import CONCAT, Scoreboard, ScoreKey
from bertchain.probing.solvers import Fit
from bertchain.runtime import screen

Probe = Callable[..., ProbeResult]  # features by split, labels -> the best fit
Layers = int | tuple[int, ...] | None  # one, several side by side, or each for itself
Paths = dict[tuple[Layers, int], list[Fit]]  # (layer, pooling) -> linear fits


def add_probes(
    board: Scoreboard, model: ProbedModel, probes: dict[str, Probe], solver: str
) -> None:
    """Train each probe on every layer and pooling of a model, a linear one on layers side by side,
    and score them.

    Args:
        probes: by name; mix takes all layers at once, the others one.
        solver: --probe_solver of linear probes.
    """
    labels, poolings = board.probe_labels, range(len(model.poolings))
    of_one_layer = [name for name in probes if name != "mix"]
    jobs: list[tuple] = list(itertools.product(of_one_layer, model.layers, poolings))
    jobs += [("mix", None, pooling) for pooling in poolings if "mix" in probes]
    paths = linear_paths(model, labels, solver)
    for name, layers in model.concatenated.items():
        jobs += [(CONCAT + name, layers, pooling) for pooling in poolings]
        paths |= linear_paths(model, labels, solver, [layers])

    def fit(name: str, layer: Layers, pooling: int) -> ProbeResult:
        if name == "linear" or isinstance(layer, tuple):
            path = paths.get((layer, pooling))
            return probes["linear"](model.at(layer, pooling), labels, path=path)
        return probes[name](model.at(layer, pooling), labels)

    results = side_by_side(fit, jobs, f"Probes of {model.name}")
    for (name, layer, pooling), result in zip(jobs, results, strict=True):
        one = None if isinstance(layer, tuple) else layer
        key = ScoreKey(model.name, one, model.poolings[pooling], name)
        facts = result.setting | {"converged": float(result.converged)}
        board.add(key, result.predictions, result.repeats, result.weights, **facts)
        for setting, predictions in result.tried.items():
            board.add_scores(key._replace(probe=setting), predictions)


def add_random(board: Scoreboard, models: Sequence[ProbedModel], solver: str) -> None:
    """Score linear probes on the same encoder with random weights: the mean over several.

    Args:
        models: of one name, each with weights of its own; none: nothing is to be done.
        solver: --probe_solver.
    """
    if not models:
        return
    first, labels = models[0], board.probe_labels
    places = list(itertools.product(first.layers, range(len(first.poolings))))
    jobs = [(start, *place) for place in places for start in range(len(models))]
    paths = [linear_paths(model, labels, solver) for model in models]

    def fit(start: int, layer: int, pooling: int) -> ProbeResult:
        path = paths[start].get((layer, pooling))
        return fit_linear_probe(models[start].at(layer, pooling), labels, path=path)

    results = side_by_side(fit, jobs, f"Probes of {first.name}")
    for number, (layer, pooling) in enumerate(places):
        own = results[number * len(models) : (number + 1) * len(models)]
        key = ScoreKey(first.name, layer, first.poolings[pooling], "linear")
        facts = {"C": own[0].setting["C"], "converged": float(all(fit.converged for fit in own))}
        board.add(key, own[0].predictions, [fit.predictions for fit in own], **facts)


def measure_layers(
    board: Scoreboard,
    model: ProbedModel,
    measure: Callable[[int, int], dict[str, float]],
    what: str,
) -> None:
    """Add to the linear probe of each layer and pooling what `measure(layer, pooling)` finds."""
    jobs = list(itertools.product(model.layers, range(len(model.poolings))))
    found = side_by_side(measure, jobs, f"{what} of {model.name}")
    for (layer, pooling), facts in zip(jobs, found, strict=True):
        board.add_facts(ScoreKey(model.name, layer, model.poolings[pooling], "linear"), **facts)


def linear_paths(
    model: ProbedModel,
    labels: ProbeLabels,
    solver: str,
    layers: Sequence[Layers] | None = None,
) -> Paths:
    """Fit the linear probes of layers, under each pooling, in one solve.

    Args:
        solver: batched; auto: only where there is a GPU; cores: never.
        layers: with as many features each; None: those that are probed.

    Returns:
        nothing where each probe is to be fitted for itself.
    """
    device = find_device()
    if solver == "cores" or (solver == "auto" and device.type == "cpu"):
        return {}
    layers = model.layers if layers is None else layers
    places = list(itertools.product(layers, range(len(model.poolings))))
    each = [model.at(layer, pooling)["train"] for layer, pooling in places]
    paths = fit_many(each, labels.train, labels.num_labels, labels.problem_type, device=device)
    return dict(zip(places, paths, strict=True))


def side_by_side(work: Callable[..., Any], jobs: Sequence[tuple], what: str) -> list:
    """Do the jobs on all cores, one thread each: threads inside a small fit wait for each other.

    Args:
        jobs: positional arguments of `work`.
        what: label of the progress bar.

    Returns:
        what `work` returned, in the order of the jobs.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # told by Fit.converged; threads share the filters
            found = Parallel(n_jobs=cpu_count(), prefer="threads", return_as="generator")(
                delayed(work)(*job) for job in jobs
            )
            hidden = screen.bars_are_hidden()
            return list(tqdm(found, total=len(jobs), desc=what, disable=hidden))
    finally:
        torch.set_num_threads(threads)
