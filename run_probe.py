"""Probe frozen encoders: what does each layer know of a task, and what did (further) training
change?

    python run_probe.py --models base=bert-base-uncased itpt=itpt finetuned=finetuned \\
        --train_file train.csv --test_file test.csv --output_dir probed

One forward pass a model gives every layer and pooling; features are stored memory-mapped and read
again on the next run. A linear probe is trained to convergence on each, its strength chosen on
validation. Nothing is chosen on test. Takes hub names, plain transformers folders, and folders of
run_itpt.py and run_finetune.py; of the latter the fine-tuned head is scored as well.
"""

import logging
import os
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from arguments import (
    DataArguments,
    LabelArguments,
    TextArguments,
    WindowArguments,
    arg,
)
from command_line import (
    InputError,
    as_input_error,
    at_least,
    one_of,
    parse,
    print_help,
    run_script,
    start_logging,
    value_of,
    wants_help,
)


@dataclass
class ProbeArguments:
    _argument_group_name = "probing"

    models: list[str] = arg([], "name=path ..., path being a hub name or a folder.")
    describe: str | None = arg(
        None, "Say what this checkpoint holds and which classes load it; needs nothing else."
    )
    token_pooling: list[str] = arg(["cls", "mean"], "Any of cls, mean, max, last.")
    output_dir: str = arg("probed", "For report.md, results.csv and the figure.")
    features_dir: str | None = arg(None, "For stored features. Default: features in output_dir.")
    feature_dtype: str = arg("float32", "Of stored features: float32 or float16.")
    half_precision: bool = arg(False, "Compute features in bf16 (fp16 without it) on a GPU.")
    tokens_per_batch: int = arg(8192, "Tokens a forward pass, padding included.")
    trust_remote_code: bool = arg(False, "Run code that a hub model brings along.")
    seed: int = arg(42, "Of the validation split.")

    def __post_init__(self) -> None:
        if not self.models:
            raise InputError("give --models name=path ...")
        for pooling in self.token_pooling:
            one_of("token_pooling", pooling, ("cls", "mean", "max", "last"))
        if len(set(self.token_pooling)) < len(self.token_pooling):
            raise InputError(f"--token_pooling {' '.join(self.token_pooling)}: one occurs twice")
        one_of("feature_dtype", self.feature_dtype, ("float32", "float16"))
        at_least("tokens_per_batch", self.tokens_per_batch, 1)


OWN_ARGUMENTS = (DataArguments, TextArguments, LabelArguments, WindowArguments, ProbeArguments)

if __name__ == "__main__" and wants_help(sys.argv[1:]):
    print_help(__doc__, OWN_ARGUMENTS)
    sys.exit()

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from joblib import Parallel, cpu_count, delayed
from threadpoolctl import threadpool_limits
from torch import nn
from tqdm.auto import tqdm

from batches import (
    DocumentCollator,
    load_tokenizer,
    pad_id,
    settle_windows,
    to_windows,
)
from describe import describe_checkpoint
from features import FeatureStore, token_batches
from fingerprint import find_seen
from labels import LabelSpec
from metrics import LESS_IS_BETTER, MAIN_METRIC, SCORES
from modeling import (
    DocumentClassifier,
    is_document_classifier,
    load_classifier,
    load_encoder,
    num_blocks,
)
from outputs import (
    markdown_table,
    replacing,
    versions,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)
from probes import ProbeResult, fit_linear_probe, majority_baseline
from processes import is_main_process, leave_processes, start_processes
from text_data import hold_out_validation, label_documents, read_splits

logger = logging.getLogger(__name__)


def main(argv: list[str] | dict[str, Any] | None = None) -> pd.DataFrame:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        the headline table; every score is in results.csv.
    """
    # 0. A checkpoint is to be described: that needs no data
    path = value_of("describe", argv)
    if path is not None:
        print(describe_checkpoint(path))
        return pd.DataFrame()

    # 1. Arguments
    data, text, label, window, probing, as_run = parse(OWN_ARGUMENTS, argv)
    start_logging()
    check_arguments(data)
    models = named_models(probing.models)
    folder = Path(probing.output_dir)
    start_processes()

    # 2. Tables -> labelled documents
    tables = read_splits(**data.sources, **text.format)
    columns, delimiter = label.label_column_name, label.label_delimiter
    spec = LabelSpec.infer(*tables["train"], columns, label.problem_type, delimiter)
    documents = label_documents(tables, data.limits, spec, **text.columns)
    documents = hold_out_validation(
        documents, label.validation_split, spec.problem_type, probing.seed
    )
    labels = {
        s: spec.hard(np.array(d["labels"][:]))
        for s, d in documents.items()
        if "labels" in d.column_names
    }

    # 3. Features of all layers of each model, each process its share
    probed = {
        name: extract(name, path, documents, window, probing) for name, path in models.items()
    }
    leave_processes()
    if not is_main_process():
        return pd.DataFrame()

    # 4. A probe on each layer, and the head a model was fine-tuned with
    rows, facts = baseline_rows(labels, spec), []
    for name, (layers, cut, about) in probed.items():
        path = models[name]
        rows += probe_rows(name, layers, labels, probing.token_pooling, spec)
        if is_document_classifier(path):
            rows += own_head_rows(name, path, cut, labels, spec, find_device())
        facts.append(about | find_seen(documents.get("test"), path, **hub_of(probing)))

    # 5. Compare and write
    results = pd.DataFrame(rows)
    headline = headline_table(results, list(models), spec)
    write_report(folder, results, headline, facts, spec, as_run)
    logger.info("Wrote %s\n%s", folder / "report.md", headline.to_string(index=False))
    return headline


# ---------------------------------------------------------------- 1. arguments


def check_arguments(data: DataArguments) -> None:
    if data.dataset_name is None and data.train_file is None:
        raise InputError("a probe is trained: give --train_file or --dataset_name")


def named_models(arguments: list[str]) -> dict[str, str]:
    """name=path, or a path alone, which is then called by its last part."""
    models = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        name, path = (name, path) if equals else (Path(argument).name, argument)
        if name in models:
            raise InputError(f"--models: the name {name} occurs twice")
        if not name or not path:
            raise InputError(f"--models {argument}: write name=path")
        models[name] = path
    return models


# ---------------------------------------------------------------- 3. features


def find_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def hub_of(probing: ProbeArguments) -> dict[str, Any]:
    return {"trust_remote_code": probing.trust_remote_code}


def extract(
    name: str,
    path: str,
    documents: dict[str, Dataset],
    window: WindowArguments,
    probing: ProbeArguments,
) -> tuple[dict[str, np.ndarray], dict[str, Dataset], dict[str, Any]]:
    """Features by split, the windows they are of, and what was probed."""
    hub = hub_of(probing)
    tokenizer = load_tokenizer(path, **hub)
    windows, special = settle_windows(window.given, path, tokenizer, **hub)
    cut = {s: to_windows(d, tokenizer, windows, special)[0] for s, d in documents.items()}
    with as_input_error(f"--models {name}={path}"):
        encoder, missing = load_encoder(path, **hub)
    store = FeatureStore(
        Path(probing.features_dir or Path(probing.output_dir) / "features"),
        encoder.to(find_device()),
        pad_id(tokenizer),
        probing.feature_dtype,
        probing.half_precision,
    )
    how = (probing.token_pooling, probing.tokens_per_batch)
    layers = {split: store.of(rows, *how, f"{name}, {split}") for split, rows in cut.items()}
    return layers, cut, describe(name, path, encoder, missing, windows.truncation)


# ---------------------------------------------------------------- 4. probes


def probe_rows(
    name: str,
    layers: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    poolings: list[str],
    spec: LabelSpec,
) -> list[dict[str, Any]]:
    """Scores of a linear probe on every layer and pooling.

    Probes run side by side, each with one BLAS thread: threads inside one small fit only wait for
    each other.
    """
    jobs = list(itertools.product(range(layers["train"].shape[1]), range(len(poolings))))
    score = validation_score(labels["validation"], spec)

    def fit(layer: int, pooling: int) -> ProbeResult:
        features = {split: x[:, layer, pooling] for split, x in layers.items()}
        names, kind = len(spec.names), spec.problem_type
        return fit_linear_probe(features, labels["train"], names, kind, score)

    with threadpool_limits(limits=1):
        work = Parallel(n_jobs=cpu_count(), prefer="threads", return_as="generator")(
            delayed(fit)(*job) for job in jobs
        )
        results = list(tqdm(work, total=len(jobs), desc=f"Probes of {name}"))
    rows = []
    for (layer, pooling), result in zip(jobs, results, strict=True):
        at = {"model": name, "layer": layer, "token_pooling": poolings[pooling], "probe": "linear"}
        fitted = {"strength": result.strength, "converged": float(result.converged)}
        rows += [at | {"split": "train", "metric": k, "value": v} for k, v in fitted.items()]
        rows += score_rows(at, result.probabilities, labels, spec)
    return rows


def validation_score(labels: np.ndarray, spec: LabelSpec) -> Any:
    """Probabilities -> the metric that chooses, turned so that more is better."""
    metric, more_is_better = MAIN_METRIC[spec.problem_type]
    sign = 1.0 if more_is_better else -1.0
    return lambda probabilities: sign * SCORES[spec.problem_type](probabilities, labels)[metric]


def score_rows(
    at: dict[str, Any],
    probabilities: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    spec: LabelSpec,
) -> list[dict[str, Any]]:
    """One row per split and metric, for the splits that have labels."""
    return [
        at | {"split": split, "metric": metric, "value": float(value)}
        for split, p in probabilities.items()
        if split in labels
        for metric, value in SCORES[spec.problem_type](p, labels[split]).items()
    ]


def baseline_rows(labels: dict[str, np.ndarray], spec: LabelSpec) -> list[dict[str, Any]]:
    at = {"model": "", "layer": None, "token_pooling": "", "probe": "majority"}
    kind, names = spec.problem_type, len(spec.names)
    predictions = {
        split: majority_baseline(labels["train"], kind, names, len(y))
        for split, y in labels.items()
    }
    return score_rows(at, predictions, labels, spec)


@torch.no_grad()
def own_head_rows(
    name: str,
    path: str,
    cut: dict[str, Dataset],
    labels: dict[str, np.ndarray],
    spec: LabelSpec,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Scores of a fine-tuned model's own head, if it knows the same labels."""
    model, _ = load_classifier(path)
    own = LabelSpec.from_config(model.config, spec.columns, spec.delimiter)
    if (own.problem_type, own.names) != (spec.problem_type, spec.names):
        logger.warning("%s: its head was trained for other labels and is not scored", name)
        return []
    model = model.to(device).eval()
    splits = {split: cut[split] for split in ("validation", "test") if split in labels}
    logits = {split: predict_logits(model, dataset) for split, dataset in splits.items()}
    at = {"model": name, "layer": None, "token_pooling": "", "probe": "own head"}
    return score_rows(at, {s: spec.probabilities(x) for s, x in logits.items()}, labels, spec)


def predict_logits(model: DocumentClassifier, dataset: Dataset) -> np.ndarray:
    """[rows, labels], in row order."""
    collate = DocumentCollator(model.config.pad_token_id or 0)
    logits = np.empty((len(dataset), model.config.num_labels), dtype=np.float32)
    columns = [c for c in ("windows", "window_types") if c in dataset.column_names]
    data = dataset.select_columns(columns)
    for batch in token_batches(dataset["length"][:], 8192):
        inputs = collate([data[int(row)] for row in batch])
        inputs = {k: v.to(model.device) for k, v in inputs.items()}
        logits[batch] = model(**inputs).logits.float().cpu().numpy()
    return logits


# ---------------------------------------------------------------- 5. report


def describe(
    name: str, path: str, encoder: nn.Module, missing: list[str], truncation: str
) -> dict[str, Any]:
    """What was probed."""
    return {
        "model": name,
        "path": path,
        "encoder": type(encoder).__name__,
        "blocks": num_blocks(encoder.config),
        "hidden": encoder.config.get_text_config().hidden_size,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "text": truncation,
        "weights not in the checkpoint": ", ".join(missing) or "none",
    }


def headline_table(results: pd.DataFrame, models: list[str], spec: LabelSpec) -> pd.DataFrame:
    """Majority class, and for each model the best frozen layer, the last layer, and its own head.

    The best layer and every pooling are chosen on validation.
    """
    metric, more_is_better = MAIN_METRIC[spec.problem_type]
    scores = results[results["metric"] == metric]
    wide = scores.pivot_table(
        index=["model", "layer", "token_pooling", "probe"],
        columns="split",
        values="value",
        dropna=False,
        sort=False,
    ).reset_index()
    wide = wide.dropna(subset=["validation"])
    if "test" not in wide:
        wide["test"] = np.nan

    def best(rows: pd.DataFrame) -> pd.Series:
        return rows.loc[
            rows["validation"].idxmax() if more_is_better else rows["validation"].idxmin()
        ]

    found = [("majority class", best(wide[wide["probe"] == "majority"]))]
    for model in models:
        probes = wide[(wide["model"] == model) & (wide["probe"] == "linear")]
        last = probes[probes["layer"] == probes["layer"].max()]
        found += [
            (f"{model}: best frozen layer", best(probes)),
            (f"{model}: last layer", best(last)),
        ]
        head = wide[(wide["model"] == model) & (wide["probe"] == "own head")]
        if len(head):
            found.append((f"{model}: as fine-tuned, own head", head.iloc[0]))
    return pd.DataFrame(
        {
            "what": what,
            "layer": "" if pd.isna(row["layer"]) else f"{int(row['layer'])} {row['token_pooling']}",
            f"validation {metric}": row["validation"],
            f"test {metric}": row["test"],
        }
        for what, row in found
    )


def layer_table(results: pd.DataFrame, metric: str, split: str) -> pd.DataFrame:
    """A row per layer, a column per model and pooling."""
    chosen = results[
        (results["probe"] == "linear") & (results["metric"] == metric) & (results["split"] == split)
    ]
    table = chosen.pivot_table(
        index="layer", columns=["model", "token_pooling"], values="value", sort=False
    )
    table.columns = [" ".join(column) for column in table.columns]
    table.index = table.index.astype(int)
    return table.reset_index()


def plot_layers(path: Path, results: pd.DataFrame, metric: str, split: str) -> None:
    """Score by layer: a colour per model, a line style per pooling; dotted: no text, own heads."""
    from matplotlib.figure import Figure  # no pyplot: no display, no global state

    scores = results[(results["metric"] == metric) & (results["split"] == split)]
    probes = scores[scores["probe"] == "linear"]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    colours = {model: f"C{i}" for i, model in enumerate(probes["model"].unique())}
    styles = dict(zip(probes["token_pooling"].unique(), ("-", "--", "-.", ":"), strict=False))
    for (model, pooling), line in probes.groupby(["model", "token_pooling"], sort=False):
        style = {"color": colours[model], "linestyle": styles[pooling], "marker": "o", "ms": 4}
        axis.plot(line["layer"].astype(int), line["value"], label=f"{model}, {pooling}", **style)
    for _, row in scores[scores["probe"] == "own head"].iterrows():
        label, colour = f"{row['model']}, own head", colours[row["model"]]
        axis.axhline(row["value"], color=colour, linestyle=":", label=label)
    for value in scores[scores["probe"] == "majority"]["value"]:
        axis.axhline(value, color="grey", linestyle=":", label="majority")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(
        xlabel="layer (0 = embeddings)", ylabel=f"{split} {metric}", title="Linear probe by layer"
    )
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)


def write_report(
    folder: Path,
    results: pd.DataFrame,
    headline: pd.DataFrame,
    facts: list[dict[str, Any]],
    spec: LabelSpec,
    as_run: dict[str, Any],
) -> None:
    """results.csv, the figure, report.md, run_args.yaml, all_results.json."""
    metric = MAIN_METRIC[spec.problem_type][0]
    split = "test" if "test" in set(results["split"]) else "validation"
    write_csv(folder / "results.csv", results)
    plot_layers(folder / "layers.png", results, metric, split)
    unconverged = results[(results["metric"] == "converged") & (results["value"] == 0)]
    less = "less" if metric in LESS_IS_BETTER else "more"
    report = [
        "# What the layers know\n",
        f"Task: {spec.problem_type}, {len(spec.names)} labels.",
        f"Metric: {metric} ({less} is better).\n",
        markdown_table(headline),
        "Encoders are frozen: only probes are trained. Layer, pooling and strength of a probe are "
        "chosen on validation.\n",
        "## Score by layer\n",
        f"![{split} {metric} by layer](layers.png)\n",
        markdown_table(layer_table(results, metric, split)),
        convergence_note(unconverged),
        transductive_note(facts),
        "## What was probed\n",
        markdown_table(pd.DataFrame(facts)),
    ]
    write_text(folder / "report.md", "\n".join(report))
    write_yaml(folder / "run_args.yaml", as_run)
    summary = {"headline": headline.to_dict("records"), "models": facts}
    write_json(
        folder / "all_results.json", summary | {"seed": as_run["seed"], "versions": versions()}
    )


def transductive_note(facts: list[dict[str, Any]]) -> str:
    seen = [
        f"{fact['model']} ({fact['test_documents_in_pretraining']} documents)"
        for fact in facts
        if fact.get("transductive")
    ]
    if not seen:
        return ""
    return f"**Transductive: test text was in the further pretraining of** {', '.join(seen)}.\n"


def convergence_note(unconverged: pd.DataFrame) -> str:
    if unconverged.empty:
        return "Every probe converged.\n"
    names = [f"{r.model} layer {r.layer:.0f} {r.token_pooling}" for r in unconverged.itertuples()]
    return f"**Not converged, not to be trusted:** {'; '.join(names)}.\n"


if __name__ == "__main__":
    run_script(main)
