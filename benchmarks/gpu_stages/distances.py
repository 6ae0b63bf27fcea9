"""Distances between many points, as DirectProbe and the checks of labels' geometry need them."""

import argparse
import time
from collections.abc import Iterator
from functools import partial

from gpu_stages.running import Item


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the measurements."""
    count, width = (500, 16) if options.tiny else (20_000, 768)
    for device in ("cpu", "cuda"):
        name = f"{count:,} points in {width} dimensions/{device}"
        yield Item(name, partial(measure, count, width, device))


def measure(count: int, width: int, device: str) -> dict:
    """Time all pairs, the largest and mean, and the nearest of as many new points; the fastest."""
    import numpy as np
    import torch

    from bertchain.directprobe.distances import (
        largest_and_mean,
        nearest_distances,
        squared_distances,
    )

    if device == "cuda" and not torch.cuda.is_available():
        device = "cpu"
    rng = np.random.default_rng(0)
    points, new = rng.normal(size=(2, count, width))
    measures = {
        "all pairs": lambda: squared_distances(points, device).sum(),
        "largest and mean": lambda: sum(largest_and_mean(points, device)),
        "nearest of new points": lambda: nearest_distances(new, points, device).sum(),
    }
    found: dict[str, float] = {}
    for name, run in measures.items():
        run() if device == "cuda" else None  # warms up
        start = time.perf_counter()
        found[f"{name}: sum"] = float(run())
        found[f"{name}: seconds"] = time.perf_counter() - start
    return found
