"""Probe frozen encoders: what does each layer know of a task, and what did (further) training
change?

    python run_probe.py --models base=bert-base-uncased itpt=itpt finetuned=finetuned \\
        --train_file train.csv --test_file test.csv --output_dir probed

One forward pass a model gives every layer and pooling; features are stored memory-mapped and read
again on the next run. A linear probe is trained to convergence on each, its C chosen on
validation. Nothing is chosen on test. Takes hub names, plain transformers folders, and folders of
run_itpt.py and run_finetune.py; of the latter the fine-tuned head is scored as well.

With --task_level token, span or pair, words inside sentences are probed in place of documents. With
--describe PATH alone it says what a checkpoint holds and which classes load it.
"""

import logging
import os
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from bertchain.arguments.common import (
    DataArguments,
    LabelArguments,
    TargetArguments,
    TextArguments,
    WindowArguments,
)
from bertchain.arguments.probing import OF_LABELS, ProbeArguments
from bertchain.cli import (
    is_given,
    parse,
    read_arguments,
    run_script,
    start_logging,
    start_script,
    value_of,
)
from bertchain.errors import InputError, as_input_error

OWN_ARGUMENTS = (
    DataArguments,
    TextArguments,
    LabelArguments,
    TargetArguments,
    WindowArguments,
    ProbeArguments,
)

if __name__ == "__main__":
    start_script(__doc__, OWN_ARGUMENTS)

import itertools
from collections.abc import Callable, Sequence
from functools import partial
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

from bertchain.data.contamination import find_seen
from bertchain.data.documents import all_text, label_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.spans import (
    collator_for,
    cut_targets,
    infer_span_labels,
    offsets_of,
    read_target_splits,
    target_labels,
    target_words,
)
from bertchain.data.splits import hold_out_validation
from bertchain.data.tables import Table, read_splits
from bertchain.data.tokenization import load_tokenizer, pad_id, resolve_windows, to_windows
from bertchain.metrics import MAIN_METRIC, SCORES
from bertchain.models.describe import describe_checkpoint
from bertchain.models.layers import layer_ids_of
from bertchain.models.loading import is_document_classifier, load_classifier, load_encoder
from bertchain.models.modeling import DocumentClassifier, num_blocks
from bertchain.probing.analyses import control_labels, online_code_length, weight_changes
from bertchain.probing.baselines import majority_baseline, tfidf_baseline
from bertchain.probing.batched_probes import fit_many
from bertchain.probing.features import FeatureStore, TargetStore, token_batches
from bertchain.probing.label_geometry import directprobe_table, label_geometry_table
from bertchain.probing.probes import PROBES, Fit, ProbeResult, fit_linear_probe
from bertchain.probing.report import headline_table, list_sections
from bertchain.probing.scoreboard import Place, Scoreboard, chosen_layers, drift, gains
from bertchain.runtime.checkpoints import complete_checkpoints
from bertchain.runtime.distributed import is_main_process, leave_processes, start_processes
from bertchain.runtime.files import write_csv, write_json, write_yaml
from bertchain.runtime.html import write_report_files
from bertchain.runtime.locks import claim, frees_claims
from bertchain.runtime.records import versions

logger = logging.getLogger("bertchain")


@frees_claims
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
    data, text, label, target, window, probing, run_config = parse(OWN_ARGUMENTS, argv)
    start_logging()
    check_arguments(data, target, probing, argv)
    if target.task_level != "sequence":  # a word has one vector: the mean over its tokens
        probing.token_pooling = ["word"]
        run_config.pop("token_pooling")
    if not probing.of_labels:
        run_config.pop("directprobe_points")
    models = named_models(probing.models) | named_checkpoints(probing.checkpoints_of)
    folder = Path(probing.output_dir)
    start_processes()

    # 2. Tables -> what is labelled: documents, or words inside them
    tables = read_splits(**data.sources, **text.format)
    if target.task_level == "sequence":
        task = read_documents(tables, data, text, label, probing.seed)
    else:
        task = read_words(tables, data, text, label, target, probing.seed)
    check_analyses(probing.analyses, task.spec.problem_type)

    # 3. Features of all layers of each model, each process its share
    claim(probing.output_dir)
    probed = {name: extract(name, path, task, window, probing) for name, path in models.items()}
    leave_processes()
    if not is_main_process():
        return pd.DataFrame()

    # 4. Probes on each layer; what needs no encoder; the head a model was fine-tuned with
    board = Scoreboard(task.labels, task.spec, probing.seed)
    add_baselines(board, task.texts)
    facts = []
    for name, (layers, cut, about) in probed.items():
        add_probes(board, name, layers, task, probing)
        if is_document_classifier(models[name]):
            add_own_head(board, name, models[name], cut, task.num_spans)
        seen = find_seen(task.documents.get("test"), models[name], **hub_kwargs_of(probing))
        holds = describe_checkpoint(models[name], **hub_kwargs_of(probing))
        facts.append(about | {"holds": holds} | seen)

    # 5. Compare and write
    headline = headline_table(board, list(models), probing.probes)
    features = {name: layers[board.split] for name, (layers, _, _) in probed.items()}
    changes = compare(board, features, models, probing)
    changes |= measure_labels({n: x for n, (x, _, _) in probed.items()}, board, probing)
    write_report(folder, board, headline, changes, facts, features, run_config)
    headline = headline.drop(columns="place")
    logger.info("Wrote %s\n%s", folder / "report.html", headline.to_string(index=False))
    return headline


# ---------------------------------------------------------------- 1. arguments


def check_arguments(
    data: DataArguments,
    target: TargetArguments,
    probing: ProbeArguments,
    argv: list[str] | dict[str, Any] | None,
) -> None:
    """What no single dataclass can check."""
    if data.dataset_name is None and data.train_file is None:
        raise InputError("a probe is trained: give --train_file or --dataset_name")
    of_words = target.task_level != "sequence"
    if of_words and is_given("token_pooling", argv):
        raise InputError(f"--token_pooling does not go with --task_level {target.task_level}")
    if "control" in probing.analyses and not of_words:
        raise InputError("--analyses control needs a --task_level of words, which occur again")
    if is_given("directprobe_points", argv) and not probing.of_labels:
        raise InputError("--directprobe_points needs --analyses directprobe or geometry")


def check_analyses(analyses: list[str], problem_type: str) -> None:
    if "mdl" in analyses and problem_type == "regression":
        raise InputError("--analyses mdl needs labels, which numbers are not")
    for analysis in OF_LABELS:
        if analysis in analyses and problem_type != "single_label":
            raise InputError(
                f"--analyses {analysis} needs one label a row, not {problem_type} labels"
            )


def named_checkpoints(run: str | None) -> dict[str, str]:
    """What a run of run_finetune.py started from, and its checkpoints, in order."""
    if run is None:
        return {}
    checkpoints = complete_checkpoints(run)
    if not checkpoints:
        raise InputError(
            f"--checkpoints_of {run}: holds no whole checkpoint-* folder; fine-tune with "
            "--keep_checkpoints --save_strategy epoch"
        )
    start = read_arguments(str(Path(run) / "run_args.yaml"))["model_name_or_path"]
    return {"start": start} | {p.name.replace("checkpoint-", "step "): str(p) for p in checkpoints}


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


# ---------------------------------------------------------------- 2. what is labelled


@dataclass(frozen=True)
class Task:
    """What the probes are trained for.

    Attributes:
        documents: by split; with --task_level of words also their targets (see targets.py).
        labels: by split, as far as there are any: of documents, or of all targets.
        texts: by split, what a baseline may count: documents, or the words of each target.
        spans: of each target (see targets.py); 0: documents are labelled.
    """

    spec: LabelSpec
    documents: dict[str, Dataset]
    labels: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    num_spans: int


def read_documents(
    tables: dict[str, Table],
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    seed: int,
) -> Task:
    columns, delimiter = label.label_column_name, label.label_delimiter
    spec = LabelSpec.infer(*tables["train"], columns, label.problem_type, delimiter)
    documents = label_documents(tables, data.limits, spec, **text.columns)
    documents = hold_out_validation(documents, label.validation_split, spec.problem_type, seed)
    labels = {
        s: spec.hard_labels(np.array(d["labels"][:]))
        for s, d in documents.items()
        if "labels" in d.column_names
    }
    texts = {split: all_text(documents[split]) for split in labels}
    return Task(spec, documents, labels, texts, num_spans=0)


def read_words(
    tables: dict[str, Table],
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    target: TargetArguments,
    seed: int,
) -> Task:
    how = (data.limits, target, text.id_column_name, label.validation_split, seed)
    documents = read_target_splits(tables, *how)
    spec = infer_span_labels(documents, target.task_level)
    labels = {split: target_labels(rows, spec) for split, rows in documents.items()}
    texts = {split: target_words(rows) for split, rows in documents.items()}
    return Task(spec, documents, labels, texts, target.num_spans)


# ---------------------------------------------------------------- 3. features


def find_device() -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def hub_kwargs_of(probing: ProbeArguments) -> dict[str, Any]:
    return {"trust_remote_code": probing.trust_remote_code}


def extract(
    name: str, path: str, task: Task, window: WindowArguments, probing: ProbeArguments
) -> tuple[dict[str, np.ndarray], dict[str, Dataset], dict[str, Any]]:
    """Features by split, the windows they are of, and what was probed."""
    hub_kwargs, of_words = hub_kwargs_of(probing), task.num_spans > 0
    tokenizer = load_tokenizer(path, **hub_kwargs)
    given = ({"truncation": "hierarchical"} if of_words else {}) | window.given
    windows, special = resolve_windows(given, path, tokenizer, **hub_kwargs)
    cut = {
        split: cut_targets(rows, tokenizer, windows, special)
        if of_words
        else to_windows(rows, tokenizer, windows, special)[0]
        for split, rows in task.documents.items()
    }
    with as_input_error(f"--models {name}={path}"):
        encoder, missing = load_encoder(path, **hub_kwargs)
    chosen_layers(probing.probe_layers, num_blocks(encoder.config) + 1)
    where = Path(probing.features_dir or Path(probing.output_dir) / "features")
    options = (where, encoder.to(find_device()), pad_id(tokenizer))
    options = (*options, probing.feature_dtype, probing.half_precision)
    if of_words:
        store: FeatureStore = TargetStore(windows.max_seq_length, task.num_spans, *options)
    else:
        store = FeatureStore(*options)
    how = (probing.token_pooling, probing.tokens_per_batch)
    layers = {split: store.of(rows, *how, f"{name}, {split}") for split, rows in cut.items()}
    return layers, cut, describe(name, path, encoder, missing, windows.truncation)


# ---------------------------------------------------------------- 4. probes


def add_baselines(board: Scoreboard, texts: dict[str, list[str]]) -> None:
    """Scores of the majority, and of words counted (TF-IDF) under a linear model."""
    labels, spec = board.labels, board.spec
    kind, names = spec.problem_type, len(spec.names)
    constant = {
        s: majority_baseline(labels["train"], kind, names, len(y)) for s, y in labels.items()
    }
    board.add(Place("", None, "", "majority"), constant)
    score = validation_score(labels["validation"], spec)
    counted = tfidf_baseline(texts, labels["train"], names, kind, score)
    if counted is not None:
        board.add(Place("", None, "", "tf-idf"), counted.probabilities, **counted.setting)


def add_probes(
    board: Scoreboard,
    name: str,
    layers: dict[str, np.ndarray],
    task: Task,
    probing: ProbeArguments,
) -> None:
    """Scores of each probe on every layer and pooling of a model."""
    labels, spec, poolings = board.labels, board.spec, probing.token_pooling
    pooled, each = range(len(poolings)), [p for p in probing.probes if p != "mix"]
    chosen = chosen_layers(probing.probe_layers, layers["train"].shape[1])
    jobs = list(itertools.product(each, chosen, pooled))
    jobs += [("mix", None, pooling) for pooling in pooled if "mix" in probing.probes]
    score = validation_score(labels["validation"], spec)
    control = assign_control_labels(task, labels["train"], probing)
    places = [(layer, pooling) for probe, layer, pooling in jobs if probe == "linear"]
    solve = partial(solve_paths, layers["train"], places, spec=spec, solver=probing.probe_solver)
    paths, control_paths = solve(labels["train"]), solve(control["train"]) if control else {}
    mlp = {"widths": probing.mlp_widths, "repeats": probing.mlp_repeats, "seed": probing.seed}

    def fit(probe: str, layer: int | None, pooling: int) -> tuple[ProbeResult, dict[str, float]]:
        at = slice(None) if layer is None else layer
        features = {split: x[:, at, pooling] for split, x in layers.items()}
        labelled = (labels, len(spec.names), spec.problem_type, score)
        given = {"linear": {"path": paths.get((layer, pooling))}, "mlp": mlp}.get(probe, {})
        result, more = PROBES[probe](features, *labelled, **given), {}
        if probe == "linear" and "mdl" in probing.analyses:
            more |= code_length(features["train"], board, probing.seed)
        if probe == "linear" and control:
            path = control_paths.get((layer, pooling))
            more |= selectivity(features, board, control, result, path)
        return result, more

    found = side_by_side(fit, jobs, f"Probes of {name}")
    for (probe, layer, pooling), (result, more) in zip(jobs, found, strict=True):
        place = Place(name, layer, poolings[pooling], probe)
        facts = result.setting | {"converged": float(result.converged)} | more
        board.add(place, result.probabilities, result.repeats, **facts)


def side_by_side(work: Callable[..., Any], jobs: Sequence[tuple], what: str) -> list:
    """What the jobs give, in order. They share the cores, each with one thread: threads inside one
    small fit only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        found = Parallel(n_jobs=cpu_count(), prefer="threads", return_as="generator")(
            delayed(work)(*job) for job in jobs
        )
        results = list(tqdm(found, total=len(jobs), desc=what))
    torch.set_num_threads(threads)
    return results


def assign_control_labels(
    task: Task, labels: np.ndarray, probing: ProbeArguments
) -> dict[str, np.ndarray]:
    """Labels of the control task by split, if it is asked for."""
    if "control" not in probing.analyses:
        return {}
    types = {split: [text.lower() for text in texts] for split, texts in task.texts.items()}
    return control_labels(types, labels, len(task.spec.names), probing.seed)


def solve_paths(
    features: np.ndarray,
    places: list[tuple[int, int]],
    labels: np.ndarray,
    *,
    spec: LabelSpec,
    solver: str,
) -> dict[tuple[int, int], list[Fit]]:
    """Linear probes of all places (layer, pooling) in one solve; nothing where cores do it."""
    device = find_device()
    if solver == "cores" or (solver == "auto" and device.type == "cpu"):
        return {}
    each = [features[:, layer, pooling] for layer, pooling in places]
    paths = fit_many(each, labels, len(spec.names), spec.problem_type, device=device)
    return dict(zip(places, paths, strict=True))


def code_length(features: np.ndarray, board: Scoreboard, seed: int) -> dict[str, float]:
    """Minimum description length of the training labels, by names that stand in results.csv."""
    labels, spec = board.labels["train"], board.spec
    lengths = online_code_length(
        features, labels, len(spec.names), seed, problem_type=spec.problem_type
    )
    return {f"mdl_{name}": value for name, value in lengths.items()}


def selectivity(
    features: dict[str, np.ndarray],
    board: Scoreboard,
    control: dict[str, np.ndarray],
    result: ProbeResult,
    path: list[Fit] | None,
) -> dict[str, float]:
    """Accuracy on the control task, and how much more the probe has on the task itself."""
    classes = len(board.spec.names)
    score = validation_score(control["validation"], board.spec)
    found = fit_linear_probe(features, control, classes, "single_label", score, path=path)
    split = board.split
    of_control = float((found.probabilities[split].argmax(1) == control[split]).mean())
    of_task = float((result.probabilities[split].argmax(1) == board.labels[split]).mean())
    return {"control_accuracy": of_control, "selectivity": of_task - of_control}


def validation_score(labels: np.ndarray, spec: LabelSpec) -> Any:
    """Probabilities -> the metric that chooses, turned so that more is better."""
    metric, more_is_better = MAIN_METRIC[spec.problem_type]
    sign = 1.0 if more_is_better else -1.0
    return lambda probabilities: sign * SCORES[spec.problem_type](probabilities, labels)[metric]


@torch.no_grad()
def add_own_head(
    board: Scoreboard, name: str, path: str, cut: dict[str, Dataset], num_spans: int
) -> None:
    """Scores of a fine-tuned model's own head, if it knows the same labels."""
    spec = board.spec
    model, _ = load_classifier(path)
    own = LabelSpec.from_config(model.config, spec.columns, spec.delimiter)
    knows = (own.problem_type, own.names, model.config.num_spans)
    if knows != (spec.problem_type, spec.names, num_spans):
        logger.warning("%s: its head was trained for other labels and is not scored", name)
        return
    model = model.to(find_device()).eval()
    splits = {split: cut[split] for split in ("validation", "test") if split in board.labels}
    logits = {split: predict_logits(model, dataset) for split, dataset in splits.items()}
    probabilities = {split: spec.probabilities(x) for split, x in logits.items()}
    board.add(Place(name, None, "", "own head"), probabilities)


def predict_logits(model: DocumentClassifier, dataset: Dataset) -> np.ndarray:
    """[rows, labels] in row order; of words [targets, labels]."""
    collate = collator_for(model.config, model.config.pad_token_id or 0)
    of_words = model.config.num_spans > 0
    ends = offsets_of(dataset) if of_words else np.arange(len(dataset) + 1)
    logits = np.empty((ends[-1], model.config.num_labels), dtype=np.float32)
    wanted = ("windows", "window_types", "token_positions")
    rows_only = dataset.select_columns([n for n in dataset.column_names if n in wanted])
    for batch in token_batches(dataset["length"][:], 8192):
        inputs = collate([rows_only[int(i)] for i in batch])
        found = model(**{k: v.to(model.device) for k, v in inputs.items()}).logits.float().cpu()
        for row, own in zip(batch, found.numpy(), strict=True):
            count = ends[row + 1] - ends[row]
            logits[ends[row] : ends[row + 1]] = own[:count] if of_words else own
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


def compare(
    board: Scoreboard,
    features: dict[str, np.ndarray],
    models: dict[str, str],
    probing: ProbeArguments,
) -> dict[str, pd.DataFrame]:
    """What the later models gained on the first, layer by layer, and how far they moved from it."""
    names = list(models)
    if "change" not in probing.analyses:
        return {}
    start, _ = load_encoder(models[names[0]], **hub_kwargs_of(probing))
    changed = {}
    for name in names[1:]:
        encoder, _ = load_encoder(models[name], **hub_kwargs_of(probing))
        layer_ids = {
            k: layer_id
            for k, layer_id in layer_ids_of(encoder).items()
            if layer_id <= num_blocks(encoder.config)
        }
        changed[name] = weight_changes(start.state_dict(), encoder.state_dict(), layer_ids)
    tables = {"drift": drift(features, names, compared_pooling(probing), changed)}
    if len(names) > 1:
        tables["gains"] = gains(board, names)
    return tables


def compared_pooling(probing: ProbeArguments) -> int:
    """The pooling that models are compared by, where only one is."""
    return probing.token_pooling.index("mean") if "mean" in probing.token_pooling else 0


def measure_labels(
    features: dict[str, dict[str, np.ndarray]], board: Scoreboard, probing: ProbeArguments
) -> dict[str, pd.DataFrame]:
    """DirectProbe's clusters, and how labels lie, as far as asked for."""
    pooling = compared_pooling(probing)
    layers = {
        name: {split: x[:, :, pooling] for split, x in splits.items()}
        for name, splits in features.items()
    }
    which = (probing.probe_layers, board.split, probing.directprobe_points, probing.seed)
    what = (layers, board.labels, *which)
    tables, of_pairs = {}, []
    if "directprobe" in probing.analyses:
        folder = Path(probing.output_dir) / "decisions"
        tables["directprobe"], pairs = directprobe_table(*what, folder)
        of_pairs.append(pairs)
    if "geometry" in probing.analyses:
        tables["geometry"], pairs = label_geometry_table(*what)
        of_pairs.append(pairs)
    if of_pairs:
        tables["label_pairs"] = join_pairs(of_pairs, board.spec.names)
    return tables


def join_pairs(tables: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    """Distances of pairs of labels side by side, by the labels' names."""
    keys = ["model", "layer", "label", "other label"]
    joined = tables[0]
    for table in tables[1:]:
        joined = joined.merge(table, on=keys, how="outer", sort=False)
    return joined.assign(**{key: [names[k] for k in joined[key]] for key in keys[2:]})


def write_report(
    folder: Path,
    board: Scoreboard,
    headline: pd.DataFrame,
    changes: dict[str, pd.DataFrame],
    facts: list[dict[str, Any]],
    features: dict[str, np.ndarray],
    run_config: dict[str, Any],
) -> None:
    """report.html, report.md with its pictures, tables as csv, run_args.yaml, all_results.json."""
    for name, table in changes.items():
        write_csv(folder / f"{name}.csv", table)
    write_csv(folder / "results.csv", board.table())
    sections = list_sections(board, headline, changes, facts, features)
    write_report_files(folder, "What the layers know", sections)
    write_yaml(folder / "run_args.yaml", run_config)
    plain = headline.drop(columns="place").to_dict("records")
    summary = {"headline": plain, "models": facts}
    how = {"seed": run_config["seed"], "device": find_device().type, "versions": versions()}
    write_json(folder / "all_results.json", summary | how)


if __name__ == "__main__":
    run_script(main)
