"""Average the weights of several classifiers into one (a soup), greedily by validation.

    python examples/soup.py RUN RUN ... --output_dir soup

Each RUN is an output folder of run_finetune.py without folds, or one of its checkpoint-* folders
(--keep_checkpoints true). They began from the same encoder and have the same labels, windows and
validation rows; what differs are steps, rates or dropout. (Seeds give other heads to begin with,
which average badly.) The best on the validation rows comes first; of the others, best first, each
is added whose weights do not make the average worse (Wortsman et al. 2022, "Model soups", arXiv
2203.05482). The soup is one model: it predicts in the time of one, where a blend takes that of all.

Writes the soup as a classifier that run_finetune.py and export_onnx.py take, its
predictions_validation.csv and predictions_test.csv, report.md (each run, the average of all
weights, the soup, and the mean of the runs' predictions, which is no single model) and
all_results.json. The soup was chosen by the validation rows: their score is a little too good.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blend
from torch import Tensor
from transformers import Trainer, TrainingArguments

from bertchain.cli import read_arguments, run_script, start_logging
from bertchain.competition.ensemble import read_rows, validated
from bertchain.data.contamination import TRAINED_FILE, read_fingerprints
from bertchain.data.tasks import Task
from bertchain.data.tokenization import Preprocessor
from bertchain.errors import InputError
from bertchain.metrics import main_metric, metric_function, score_function
from bertchain.models.loading import is_document_classifier, load_classifier
from bertchain.models.modeling import DocumentClassifier
from bertchain.runtime.files import write_json, write_text
from bertchain.runtime.outputs import check_apart, claim
from bertchain.runtime.records import markdown_table, versions
from bertchain.training.initialization import HEAD_FIELDS
from bertchain.training.prediction import predict, read_predictions
from bertchain.training.saving import write_model, write_seen

MEAN, ALL, SOUP = "mean of predictions", "average of all weights", "soup"
Weights = dict[str, Tensor]


def main() -> None:
    """Choose the models whose weights are averaged, and write their average."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output_dir", required=True)
    options = parser.parse_args()
    start_logging()
    check(options)
    paths, folder = [Path(path) for path in options.runs], Path(options.output_dir)
    first = run_of(paths[0])
    task, arguments = read_rows(first), read_arguments(str(first / "run_args.yaml"))
    spec, preprocessor = task.spec, Preprocessor.for_checkpoint(str(first), {})
    task = choose_rows(task, paths)
    task = task.only(["validation", "test"]).encoded_by(preprocessor)
    metric, more = main_metric(spec.problem_type, len(spec.names))
    model, _ = load_classifier(paths[0])
    with claim(folder), tempfile.TemporaryDirectory() as scratch:
        fit = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=scratch,
                per_device_eval_batch_size=arguments.get("per_device_eval_batch_size", 64),
                use_cpu=arguments.get("use_cpu", False),
                remove_unused_columns=False,
                disable_tqdm=True,
                report_to="none",
            ),
            data_collator=preprocessor.collator,
            compute_metrics=metric_function(spec, model.config, []),
        )

        def score(weights: Weights) -> dict[str, float]:
            model.load_state_dict(weights)
            found = predict(fit, task.documents["validation"], "validation", spec, Path(scratch))
            return {name.removeprefix("eval_"): value for name, value in found.items()}

        singles, total = [], 0.0
        for path in paths:
            singles.append(score(weights_of(path, model)))
            total += read_predictions(Path(scratch) / blend.VALIDATION, spec)[1]
        scores = dict(zip(options.runs, singles, strict=True))
        labels = np.asarray(task.documents["validation"]["labels"][:])
        scores[MEAN] = score_function(spec, [])(total / len(paths), labels)
        scores[ALL] = score(average(paths, model))
        chosen, scores[SOUP] = add_greedily(paths, singles, metric, more, score, model)
        model.load_state_dict(average(chosen, model))
        results = {f"eval_{name}": value for name, value in scores[SOUP].items()}
        for split in task.documents:
            results |= predict(fit, task.documents[split], split, spec, folder)
        run_config = arguments | {"model_name_or_path": str(paths[0])}
        write_model(model.cpu(), preprocessor.tokenizer, spec, folder, results, run_config)
        write_seen(folder, *seen_by(paths))
        report = write_report(folder, scores, [str(path) for path in chosen], metric, task)
        results |= {"scores": scores, "soup_of": [str(path) for path in chosen]}
        write_json(folder / "all_results.json", results | {"versions": versions()})
    print(report)


def check(options: argparse.Namespace) -> None:
    """Raises InputError for fewer than two classifiers, and where one cannot be averaged."""
    if len(options.runs) < 2:
        raise InputError("give two runs or more")
    check_apart(options.output_dir, runs=options.runs)
    for path in options.runs:
        if not is_document_classifier(path):
            raise InputError(f"{path}: not an output folder of run_finetune.py without folds")


def run_of(path: Path) -> Path:
    """The folder of the run that a folder of weights is, or that it is a checkpoint of."""
    return path if (path / "run_args.yaml").is_file() else path.parent


def choose_rows(task: Task, paths: list[Path]) -> Task:
    """Take the validation rows of the first run. Raises InputError where another has others."""
    files = [run_of(path) / blend.VALIDATION for path in paths]
    ids = [read_predictions(file, task.spec)[0] for file in files]
    for file, own in zip(files, ids, strict=True):
        blend.check_same_ids(file, own, ids[0])
    chosen = validated(task, ids[0], paths[0])
    return task.with_documents(task.documents | {"validation": chosen})


# ---------------------------------------------------------------- weights


def weights_of(path: Path, like: DocumentClassifier) -> Weights:
    """Read the weights of a classifier.

    Raises:
        InputError: where they do not fit those of the first.
    """
    own = load_classifier(path)[0]
    found, wanted = own.state_dict(), like.state_dict()
    differ = [n for n in {**found, **wanted} if shape_of(found, n) != shape_of(wanted, n)]
    fields = (*HEAD_FIELDS, "windows")
    differ += [name for name in fields if getattr(own.config, name) != getattr(like.config, name)]
    if differ:
        raise InputError(f"{path}: its {differ[0]} is not that of the first; it cannot be averaged")
    return found


def shape_of(weights: Weights, name: str) -> Any:
    return weights[name].shape if name in weights else None


def average(paths: list[Path], like: DocumentClassifier) -> Weights:
    """Average the weights of classifiers, in float64; two are in memory at a time."""
    total: Weights = {}
    for path in paths:
        for name, value in weights_of(path, like).items():
            own = value.double() / len(paths) if value.is_floating_point() else value
            total[name] = total[name] + own if name in total and own.is_floating_point() else own
    kinds = like.state_dict()
    return {name: value.to(kinds[name].dtype) for name, value in total.items()}


def seen_by(paths: list[Path]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which rows any of the classifiers was trained on: hashes [n], and by file as each has it."""
    merged: dict[str, np.ndarray] = {}
    for path in paths:
        for name, hashes in read_fingerprints(run_of(path)).items():
            merged[name] = np.union1d(merged.get(name, hashes), hashes)
    return merged.get(TRAINED_FILE, np.empty(0, dtype=np.uint64)), merged


def add_greedily(
    paths: list[Path],
    singles: list[dict[str, float]],
    metric: str,
    more: bool,
    score: Any,
    like: DocumentClassifier,
) -> tuple[list[Path], dict[str, float]]:
    """Add each model, best first, that does not make the average worse.

    Args:
        singles: scores of each.
        more: whether more of the metric is better.
        score: weights -> scores on the validation rows.

    Returns:
        the models of the soup; its scores.
    """
    sign = 1 if more else -1
    order = sorted(range(len(paths)), key=lambda i: -sign * singles[i][metric])
    chosen, best = [paths[order[0]]], singles[order[0]]
    for i in order[1:]:
        tried = score(average([*chosen, paths[i]], like))
        if sign * tried[metric] >= sign * best[metric]:
            chosen, best = [*chosen, paths[i]], tried
    return chosen, best


# ---------------------------------------------------------------- report


def write_report(
    folder: Path, scores: dict[str, dict[str, float]], chosen: list[str], metric: str, task: Task
) -> str:
    """Write report.md; returns its text."""
    second = "mae" if task.spec.problem_type == "regression" else "log_loss"
    table = pd.DataFrame(
        {"validation": name, "in the soup": "yes" if name in chosen else ""}
        | {one: own[one] for one in (metric, second)}
        for name, own in scores.items()
    )
    text = f"# Soup\n\n{markdown_table(table)}"
    write_text(folder / "report.md", text)
    return text


if __name__ == "__main__":
    run_script(main)
