"""Time, memory and clusters of DirectProbe.

    python benchmarks/directprobe_speed.py                         # drawn points only
    python benchmarks/directprobe_speed.py --model MODEL --trec trec/train.csv trec/dev.csv \\
        --agnews agnews/train.csv agnews/test.csv [--finetuned FOLDER]

Each case is a process of its own with --threads threads (default 1). The features are those of the
last layer, of the first special token, in float32; P16 stands for their first 16 principal
components. Counted are CPU seconds, of other work the less: of the clusters, of predicting points
midway between two rows by the nearest hull, and of the distances of the labels' hulls. Cases:

- trec: 6 coarse labels; by number of points, and by dimension.
- finetuned: the same of a folder of run_finetune.py.
- agnews2: two of the four topics against the other two, which is barely separable.
- agnews: four topics in 8 dimensions, where hundreds of clusters are found.
- agnews8: each topic cut in two by chance: 8 labels, four pairs of them mixed throughout.
- linear: 20 labels drawn around 20 centres in 768 dimensions.
- noise: drawn points whose labels mean nothing.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CASES = (  # source, points (0: all), dimensions (0: all)
    ("trec", 200, 16),
    ("trec", 700, 16),
    ("trec", 2000, 16),
    ("trec", 0, 16),
    ("trec", 0, 8),
    ("trec", 2000, 64),
    ("trec", 2000, 0),
    ("trec", 0, 0),
    ("finetuned", 0, 16),
    ("finetuned", 0, 0),
    ("agnews", 10_000, 8),
    ("agnews8", 10_000, 8),
    ("agnews2", 10_000, 0),
    ("linear", 20_000, 768),
    ("noise", 1000, 8),
    ("noise", 5000, 8),
    ("noise", 4000, 4),
    ("noise", 10_000, 4),
)
NEW = 5  # every so many rows a new point is predicted


def main() -> None:
    options = read_arguments()
    if options.worker is not None:
        source, points, axes = options.worker.split(",")
        return print(json.dumps(measure(options, source, int(points), int(axes))))
    given = {"trec": options.trec, "finetuned": options.finetuned and options.trec}
    given |= dict.fromkeys(("agnews", "agnews2", "agnews8"), options.agnews)
    given |= {"linear": True, "noise": True}
    print(
        "| points | n | dimensions | labels | linear | clusters | CPU seconds: clusters "
        "| prediction | distances of labels | peak memory, GB |"
    )
    print("| --- " * 10 + "|")
    for source, points, axes in CASES:
        if not given[source] or source not in options.cases:
            continue
        worker = ["--worker", f"{source},{points},{axes}"]
        environment = os.environ | {
            name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        }
        command = [sys.executable, __file__, *sys.argv[1:], *worker]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(done.stderr)
        print(
            "| " + " | ".join(json.loads(done.stdout.strip().splitlines()[-1])) + " |", flush=True
        )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--finetuned", help="a folder of run_finetune.py")
    parser.add_argument("--trec", nargs="+", help="csv files with text and label_coarse")
    parser.add_argument("--agnews", nargs="+", help="csv files with text and label")
    parser.add_argument("--features_dir", default="directprobe_features")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=sorted({source for source, _, _ in CASES}))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.trec or options.agnews) and not options.model:
        parser.error("--trec and --agnews need --model")
    return options


# ---------------------------------------------------------------- one case, in its own process


def measure(options: argparse.Namespace, source: str, points: int, axes: int) -> list[str]:
    import numpy as np
    from threadpoolctl import threadpool_limits

    from bertchain.directprobe import cluster, hull_distances, predict

    x, y = read_points(options, source, points, axes)
    new = (x[::NEW] + np.roll(x, -1, axis=0)[::NEW]) / 2
    before = peak_memory()
    seconds, clock = [], time.process_time
    with threadpool_limits(limits=options.threads):
        seconds.append(clock())
        found = cluster(x, y)
        seconds.append(clock())
        predict(new, x, found)
        seconds.append(clock())
        numbers = np.searchsorted(found.names, y)
        hull_distances(x, numbers, 1e-2, skip=found.conflicts)
        seconds.append(clock())
    for_clusters, for_new, for_labels = (f"{s:.2f}" for s in np.diff(seconds))
    reduced = source not in ("linear", "noise") and axes
    return [
        f"{source}, P{axes}" if reduced else source,
        f"{len(x):,}",
        str(x.shape[1]),
        str(len(found.names)),
        "yes" if found.linear else "no",
        str(len(found.label_of)),
        for_clusters,
        f"{for_new} ({len(new):,} rows)",
        for_labels,
        f"{peak_memory():.2f} (before: {before:.2f})",
    ]


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def read_points(options: argparse.Namespace, source: str, points: int, axes: int) -> tuple:
    """Points [n, d] and their labels [n]."""
    import numpy as np

    rng = np.random.default_rng(0)
    if source == "linear":
        y = rng.integers(0, 20, points)
        return rng.normal(size=(20, axes))[y] + 1.5 * rng.normal(size=(points, axes)), y
    if source == "noise":
        return rng.normal(size=(points, axes)), rng.integers(0, 4, points)
    files = options.agnews if source.startswith("agnews") else options.trec
    model = options.finetuned if source == "finetuned" else options.model
    x, y = extract(
        model, files, "label" if source.startswith("agnews") else "label_coarse", options
    )
    if source == "agnews2":
        y = np.isin(y, sorted(set(y))[:2])
    if source == "agnews8":
        y = 2 * y + rng.integers(0, 2, len(y))
    x, y = np.asarray(x, dtype=np.float64)[: points or None], y[: points or None]
    if axes:
        centred = x - x.mean(axis=0)
        x = centred @ np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :axes]
    return x, y


def extract(model: str, files: list[str], label: str, options: argparse.Namespace) -> tuple:
    """Features of the last layer [n, d], first token, and labels [n]; kept for the next case."""
    import numpy as np
    import pandas as pd

    from bertchain.data.documents import label_documents
    from bertchain.data.labels import LabelSpec
    from bertchain.data.tables import read_splits
    from bertchain.data.tokenization import Preprocessor
    from bertchain.models.loading import load_encoder
    from bertchain.probing.features import FeatureStore

    folder = Path(options.features_dir)
    folder.mkdir(exist_ok=True)
    together = folder / f"{label}.csv"
    pd.concat([pd.read_csv(file) for file in files]).to_csv(together, index=False)
    tables = read_splits({"train": str(together)})
    spec = LabelSpec.infer(*tables["train"], [label])
    documents = label_documents(tables, {"train": None}, spec, text_columns=["text"])["train"]
    preprocessor = Preprocessor.for_checkpoint(model, {"max_seq_length": 64})
    windows = preprocessor.encode({label: documents})[label]
    store = FeatureStore(folder, load_encoder(model)[0], preprocessor.pad_id)
    features = store.of(windows, ["cls"], 8192, label)
    return features[:, -1, 0], np.array(documents["labels"][:])


if __name__ == "__main__":
    main()
