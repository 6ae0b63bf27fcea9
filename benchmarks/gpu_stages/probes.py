"""Linear probes: all in one solve against scikit-learn, one fit after the other on one core."""

import argparse
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from gpu_stages.running import Item

SPREAD = 50.0  # of the directions of drawn features, from most to least: an encoder's are as uneven


class Case(NamedTuple):
    """Drawn features of `layers` x 2 poolings, with labels that they tell apart in part."""

    rows: int
    width: int
    classes: int
    layers: int
    sklearn_fits: tuple[float, ...]  # at these C, and for one matrix alone: it is slow


CASES = {
    "5,452 x 768, 50 classes": Case(5_452, 768, 50, 13, (1e-3, 1e-1, 1e1)),
    "100,000 x 768, 10 classes": Case(100_000, 768, 10, 13, (1e-1,)),
}
TINY = {"100 x 4, 3 classes": Case(100, 4, 3, 1, (1e-1,))}


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the measurements; scikit-learn's run beside each other, on one core each."""
    for name, case in (TINY if options.tiny else CASES).items():
        yield Item(f"{name}/scikit-learn", partial(by_sklearn, case), beside=True)
        yield Item(f"{name}/one solve", partial(together, case))


def draw(case: Case, matrix: int) -> tuple:
    """Draw features [rows, width] in float32 and labels [rows]."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator(device).manual_seed(matrix)
    of_labels = torch.Generator().manual_seed(0)
    y = torch.randint(0, case.classes, (case.rows,), generator=of_labels)
    scale = torch.logspace(0, -math.log10(SPREAD), case.width, device=device)

    def normal(rows: int) -> torch.Tensor:
        return torch.randn(rows, case.width, generator=random, device=device)

    x = (0.15 * normal(case.classes)[y.to(device)] + normal(case.rows)) * scale
    return (x @ torch.linalg.qr(normal(case.width))[0]).cpu().numpy(), y.numpy()


def together(case: Case) -> dict:
    """Time one solve of all matrices at all values of C, moving them to the card included."""
    import numpy as np
    import torch

    from bertchain.probing.batched_probes import fit_many
    from bertchain.probing.solvers import C_VALUES, Standardiser

    device = "cuda" if torch.cuda.is_available() else "cpu"
    drawn = [draw(case, matrix) for matrix in range(2 * case.layers)]
    matrices, y = [x for x, _ in drawn], drawn[0][1]
    few = min(500, case.rows)
    fit_many([x[:few] for x in matrices[:2]], y[:few], case.classes, "single_label", device=device)
    start = time.perf_counter()
    paths = fit_many(matrices, y, case.classes, "single_label", device=device)
    seconds = time.perf_counter() - start
    x = Standardiser(matrices[0])(matrices[0])
    rows = np.arange(len(y))
    objectives = {
        f"objective at C={fit.C:g}": float(
            -np.log(fit.predict(x)[rows, y]).sum() + (fit.predict.weights**2).sum() / (2 * fit.C)
        )
        for fit in paths[0]
    }
    fits = len(matrices) * len(C_VALUES)
    converged = sum(fit.converged for path in paths for fit in path)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    own = {"seconds": seconds, "fits": fits, "converged": converged, "peak_gib": peak}
    return own | {"seconds of a fit": seconds / fits} | objectives


def by_sklearn(case: Case) -> dict:
    """Time some fits of one matrix on one core."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    from bertchain.probing.solvers import Standardiser

    x, y = draw(case, 0)
    x = Standardiser(x)(x)
    rows, objectives = np.arange(len(y)), {}
    with threadpool_limits(limits=1):
        start = time.perf_counter()
        for C in case.sklearn_fits:
            model = LogisticRegression(C=C, max_iter=2000, tol=1e-4).fit(x, y)
            loss = -np.log(model.predict_proba(x)[rows, y]).sum()
            objectives[f"objective at C={C:g}"] = float(loss + (model.coef_**2).sum() / (2 * C))
        seconds = time.perf_counter() - start
    fits = len(case.sklearn_fits)
    return {"seconds": seconds, "fits": fits, "seconds of a fit": seconds / fits} | objectives
