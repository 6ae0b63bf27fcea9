"""Speed of run_probe.py's features and probes.

    pip install sentence-transformers
    python benchmarks/probe_speed.py --model MODEL --train_file trec/train.csv \\
        --label_column_name label_coarse

Features: all layers, cls and mean pooling, against `SentenceTransformer.encode` of the last layer
alone (mean pooling, its own sorting by length), same model and text, float32. Probes: the same grid
(layers x values of C, mean pooling) by run_probe.py's linear probe against scikit-learn's
LogisticRegression, one cold fit after the other; both reach the same objective, which is printed.
mix and mlp: CPU seconds of the learned mix of all layers, and of the network on the last one.

Each measurement is a process of its own, and the ways take turns.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from turns import take_turns

WAYS = ("encode", "features", "sklearn", "probes", "mix", "mlp")


def main() -> None:
    options = read_arguments()
    if options.worker is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        return print(json.dumps(measure(options)))
    report(take_turns(__file__, options.ways, options.turns))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--train_file", required=True)
    parser.add_argument("--text_column_names", nargs="+", default=["text"])
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- one way, in its own process


def measure(options: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(options.threads)
    documents, spec = read(options)
    if options.worker == "encode":
        return encode(documents, options)
    with tempfile.TemporaryDirectory() as folder:
        features, seconds = extract(documents, options, Path(folder))
        if options.worker == "features":
            return {"seconds": seconds, "rows": len(documents), "vectors": features.shape[1] * 2}
        if options.worker in ("mix", "mlp"):
            return by_gradient(features[:, :, 1], documents, spec, options.worker)
        return probe(features, documents, spec, options.worker)


def read(options: argparse.Namespace) -> tuple:
    from datasets import disable_progress_bars

    from bertchain.data.documents import label_documents
    from bertchain.data.labels import LabelSpec
    from bertchain.data.tables import read_splits

    disable_progress_bars()
    tables = read_splits({"train": options.train_file})
    spec = LabelSpec.infer(*tables["train"], [options.label_column_name])
    limits = {"train": options.max_train_samples}
    columns = {"text_columns": options.text_column_names}
    return label_documents(tables, limits, spec, **columns)["train"], spec


def encode(documents: object, options: argparse.Namespace) -> dict[str, float]:
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(options.model, max_seq_length=options.max_seq_length)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    texts = documents["text"][:]
    model.encode(texts[:64])  # warms up
    started = time.perf_counter()
    model.encode(texts, batch_size=64, show_progress_bar=False)
    return {"seconds": time.perf_counter() - started, "rows": len(texts), "vectors": 1}


def extract(documents: object, options: argparse.Namespace, folder: Path) -> tuple:
    """Features [rows, layers, 2, hidden] and the seconds they took, tokenizing included."""
    from bertchain.data.tokenization import Preprocessor
    from bertchain.models.loading import load_encoder
    from bertchain.probing.features import FeatureStore

    given = {"max_seq_length": options.max_seq_length}
    preprocessor = Preprocessor.for_checkpoint(options.model, given)
    store = FeatureStore(folder, load_encoder(options.model)[0], preprocessor.pad_id)
    few = documents.select(range(min(64, len(documents))))
    store.of(preprocessor.encode({"few": few})["few"], ["cls"], 8192, "warm-up")
    started = time.perf_counter()
    windows = preprocessor.encode({"rows": documents})["rows"]
    features = store.of(windows, ["cls", "mean"], 8192, "rows")
    return features, time.perf_counter() - started


def probe(features: object, documents: object, spec: object, way: str) -> dict[str, float]:
    """Seconds for the grid of layers and values of C, and the sum of its objectives."""
    import numpy as np
    from joblib import Parallel, cpu_count, delayed
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    from bertchain.probing.solvers import C_VALUES, Standardiser, fit_multinomial

    labels, classes = np.array(documents["labels"][:]), len(spec.names)
    rows = np.arange(len(labels))

    def objective(weights: np.ndarray, p: np.ndarray, C: float) -> float:
        return float(-np.log(p[rows, labels]).sum() + (weights**2).sum() / (2 * C))

    def ours(layer: int) -> float:
        x = Standardiser(features[:, layer, 1])(features[:, layer, 1])
        fits = fit_multinomial(x, labels, classes, C_VALUES)
        return sum(objective(f.predict.weights, f.predict(x), f.C) for f in fits)

    def theirs(layer: int) -> float:
        x = Standardiser(features[:, layer, 1])(features[:, layer, 1])
        total = 0.0
        for C in C_VALUES:
            model = LogisticRegression(C=C, max_iter=2000, tol=1e-4).fit(x, labels)
            total += objective(model.coef_, model.predict_proba(x), C)
        return total

    layers = range(features.shape[1])
    started = time.perf_counter()
    if way == "sklearn":
        total = sum(theirs(layer) for layer in layers)
    else:
        with threadpool_limits(limits=1):
            jobs = (delayed(ours)(layer) for layer in layers)
            total = sum(Parallel(n_jobs=cpu_count(), prefer="threads")(jobs))
    return {"seconds": time.perf_counter() - started, "fits": len(layers) * 6, "objective": total}


def by_gradient(features: object, documents: object, spec: object, way: str) -> dict[str, float]:
    """CPU seconds of a probe that torch trains; a fifth of the rows is validation."""
    import numpy as np

    from bertchain.probing.probes import ProbeLabels
    from bertchain.probing.torch_probes import fit_mix_probe, fit_mlp_probe

    labels = np.array(documents["labels"][:])
    cuts = {"train": np.arange(len(labels)) % 5 > 0, "validation": np.arange(len(labels)) % 5 == 0}
    chosen = features if way == "mix" else features[:, -1]
    fit = fit_mix_probe if way == "mix" else fit_mlp_probe
    of_splits = {split: labels[rows] for split, rows in cuts.items()}
    targets = ProbeLabels(of_splits, len(spec.names), spec.problem_type)
    started = time.process_time()
    found = fit({split: np.asarray(chosen[rows]) for split, rows in cuts.items()}, targets)
    seconds = time.process_time() - started
    return {"seconds": seconds, "score": targets.validation_score(found.predictions["validation"])}


# ---------------------------------------------------------------- what came out


def report(rows: list[dict]) -> None:
    import pandas as pd

    table = pd.DataFrame(rows).groupby("way", sort=False).median(numeric_only=True)
    print(table.drop(columns="turn").to_string())
    seconds = table["seconds"]
    for ours, theirs, what in (("features", "encode", "features"), ("probes", "sklearn", "probes")):
        if ours in seconds and theirs in seconds:
            print(f"{what}: {seconds[theirs] / seconds[ours]:.2f} times the rate of {theirs}")


if __name__ == "__main__":
    main()
