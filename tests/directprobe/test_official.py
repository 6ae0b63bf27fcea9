"""DirectProbe against what the official code found on the same points (official.json says how)."""

import json
from pathlib import Path

import numpy as np
import pytest

from bertchain.directprobe import cluster, hull_distances, predict

CASES = json.loads(Path(__file__).with_name("official.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_as_the_official_code(case):
    x, labels, theirs = (np.array(case[name]) for name in ("points", "labels", "clusters"))
    found = cluster(x, labels)
    ours = found.clusters
    assert ((ours[:, None] == ours) == (theirs[:, None] == theirs)).all()

    distances = hull_distances(x, theirs, accuracy=1e-5)
    for a, b, theirs_apart in case["distances"]:
        assert distances[a, b] == pytest.approx(theirs_apart, rel=5e-4), (a, b)

    predicted = predict(np.array(case["new"]), x, found)
    assert predicted.tolist() == case["predicted"]
    assert np.mean(predicted == case["new_labels"]) == pytest.approx(case["accuracy"])
