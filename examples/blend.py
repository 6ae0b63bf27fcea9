"""Blend the predictions of several runs: weights fitted on out-of-fold or validation rows.

    python examples/blend.py RUN RUN ... --output_dir blend --sample_submission sample.csv

Each RUN is an output folder of run_finetune.py with predictions_oof.csv and predictions_test.csv;
rows are joined by id. Weights are at least 0, add up to 1, and minimise the log loss (regression:
the squared error) of the out-of-fold predictions. The gain is measured fold by fold, each with
weights fitted on the other folds, so that it is not inflated. Runs with --fit_thresholds are
blended with thresholds of the same kind, fitted on the out-of-fold rows of the blend; so are others
where it is given here. Runs with a --metric_file, or else with a --metric_for_best_model, are
blended for that score, from the weights with the least loss and from equal ones on.

Of runs without folds, which must have the same validation rows, predictions_validation.csv takes
the place of predictions_oof.csv, and five parts of its rows that of the folds. Their labels are
read from the table that the first run's run_args.yaml names.

Writes predictions_oof.csv, predictions_test.csv, submission.csv, report.md (scores of each run,
their mean and the blend; weights; correlation of the predictions), report.html (the same with
intervals, and the page of a run for the blend) and all_results.json.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bertchain.cli import read_arguments, run_script, start_logging
from bertchain.competition.ensemble import read_thresholds, read_validation, write_thresholds
from bertchain.competition.run_folder import read_members
from bertchain.competition.submission import SampleSubmission
from bertchain.competition.thresholds import KINDS, check_kind, fit_and_judge
from bertchain.data.label_values import to_number
from bertchain.data.labels import LabelSpec, Thresholds
from bertchain.errors import InputError
from bertchain.metrics import NamedScore, Score, gain, main_metric, score_directions, score_function
from bertchain.models.loading import is_document_classifier, read_classifier_config
from bertchain.reporting import joined_page
from bertchain.reporting.joined_page import Joined
from bertchain.reporting.scored import Scored
from bertchain.runtime.best import unknown_metric
from bertchain.runtime.files import write_csv, write_json, write_text
from bertchain.runtime.records import markdown_table, versions
from bertchain.scoring.metric_files import FileMetric, of_run
from bertchain.training.prediction import read_predictions, read_written_table, write_predictions

STEPS = (0.2, 0.1, 0.05, 0.02, 0.01)  # by which weights are moved for a score
BLEND = "blend (each fold by the others)"
OOF, VALIDATION = "predictions_oof.csv", "predictions_validation.csv"


@dataclass
class Run:
    """Predictions of a run, its rows in the order of the first run's."""

    name: str
    oof: np.ndarray  # [n, labels]
    test: np.ndarray  # [m, labels]


class Given(NamedTuple):
    """What is blended: the runs' predictions, and what they are of."""

    spec: LabelSpec
    table: pd.DataFrame  # id, fold and label of each row that weights are fitted on
    truth: np.ndarray  # [n, labels], 0 or 1, or numbers
    test_ids: list[str]
    runs: list[Run]
    sample: SampleSubmission | None
    file: str = OOF  # what holds the predictions of these rows
    metric: Score | None = None  # what weights maximise; of a file, thresholds too

    @property
    def folds(self) -> np.ndarray:
        return self.table["fold"].to_numpy()

    @property
    def labels(self) -> np.ndarray:
        """The true labels, as scores take them."""
        return as_scored(self.truth, self.spec)

    def scores_of(self, predictions: np.ndarray) -> dict[str, float]:
        """Score out-of-fold predictions [n, labels]."""
        own = [self.metric.described] if isinstance(self.metric, FileMetric) else []
        return score_function(self.spec, own)(predictions, self.labels)


def as_scored(truth: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """The true labels [n, labels] as scores take them: of one class a row its number [n]."""
    return truth.argmax(axis=1) if spec.problem_type == "single_label" else truth


def main() -> None:
    """Fit the weights, and write the blend and its report."""
    options = read_options(__doc__)
    start_logging()
    given = read_given(options)
    weights, nested = fit_nested(given)
    blended = combine(weights, np.stack([run.test for run in given.runs]))
    others = predictions_of(given)
    scores = {name: given.scores_of(p) for name, p in others.items()}
    scores[BLEND] = given.scores_of(nested)
    cuts = write_ensemble(options, given, nested, blended, scores[BLEND])
    by_run = dict(zip([run.name for run in given.runs], weights.tolist(), strict=True))
    report = write_report(Path(options.output_dir), scores, by_run, given)
    joined = Joined("blend", rows_of(given, nested), scores, others, by_run, name_of(given.metric))
    write_page(options, given, joined, cuts)
    results = {"scores": scores, "weights": by_run, "versions": versions()}
    write_json(Path(options.output_dir) / "all_results.json", results)
    print(report)


def read_options(description: str, **more: dict[str, Any]) -> argparse.Namespace:
    """Parse the command line. Args: more: further arguments, as argparse takes them."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--sample_submission")
    parser.add_argument("--fit_thresholds", choices=KINDS, help="As in run_finetune.py.")
    parser.add_argument("--submission_values", choices=("labels", "probabilities"))
    parser.add_argument("--positive_label", help="As in run_finetune.py.")
    parser.add_argument("--id_column_name", help="Of the sample. Default: its first column.")
    parser.add_argument("--encoding", default="utf-8", help="Of the sample.")
    for name in ("--metric_file", "--metric_for_best_model"):
        parser.add_argument(name, help="As in run_finetune.py. Default: that of the runs.")
    for name, argument in more.items():
        parser.add_argument(f"--{name}", **argument)
    options = parser.parse_args()
    if len(options.runs) < 2:
        raise InputError("give two runs or more")
    return options


# ---------------------------------------------------------------- reading


def read_given(options: argparse.Namespace) -> Given:
    """Read all that is blended. Raises InputError where the runs do not fit each other."""
    spec = read_spec(options.runs)
    first = Path(options.runs[0])
    file = OOF if (first / OOF).is_file() else VALIDATION
    table = read_written_table(first / OOF) if file == OOF else read_validation(first, spec)
    test_ids, _ = read_predictions(first / "predictions_test.csv", spec)
    sample = read_sample(options, spec, test_ids, table["label"])
    truth = encode(table, spec)
    if options.fit_thresholds:
        check_kind(options.fit_thresholds, spec.problem_type, truth)
    runs = [read_run(Path(path), file, spec, table, test_ids) for path in options.runs]
    return Given(spec, table, truth, test_ids, runs, sample, file, read_metric(options, spec))


def read_metric(options: argparse.Namespace, spec: LabelSpec) -> Score | None:
    """Find the score that is maximised: of a file, else by name; None: the loss is minimised.

    Raises:
        InputError: where the runs have different ones, or it is not known whether more is better.
    """
    runs = [read_arguments(str(Path(path) / "run_args.yaml")) for path in options.runs]
    file = one_of(options, runs, "metric_file")
    if file is not None and options.metric_for_best_model is None:
        known = [run["greater_is_better"] for run in runs if "greater_is_better" in run]
        found = of_run({"metric_file": file, "greater_is_better": known[0] if known else None})
        if found.greater_is_better is None:
            raise InputError(f"--metric_file {file}: write {found.name}.greater_is_better in it")
        return found
    name = (one_of(options, runs, "metric_for_best_model") or "loss").removeprefix("eval_")
    names = score_directions(spec.problem_type)
    if options.metric_for_best_model and name not in names:
        raise unknown_metric(name, [*names])
    # the runs may have been chosen by a score that is computed elsewhere
    by_loss = name in ("loss", "log_loss", "rmse") or name not in names
    # decisions at .5 are not those that count where thresholds are fitted to the blend
    cut = options.fit_thresholds or any(read_thresholds(path) for path in options.runs)
    by_loss |= bool(cut) and name.startswith(("f1_", "subset_"))
    return None if by_loss else NamedScore(spec.problem_type, name)


def one_of(options: argparse.Namespace, runs: list[dict[str, Any]], name: str) -> str | None:
    """Take an argument of this command, or else of the runs, if it is given there.

    Raises:
        InputError: where the runs differ in it.
    """
    if getattr(options, name) is not None:
        return getattr(options, name)
    found = {run.get(name) for run in runs} - {None}
    if len(found) > 1:
        raise InputError(
            f"the runs have several scores ({', '.join(sorted(found))}); give --{name}"
        )
    return next(iter(found), None)


def read_spec(paths: list[str]) -> LabelSpec:
    """Read what the labels are. Raises InputError where the runs differ in that."""
    specs = []
    for path in paths:
        members = read_members(path)
        if not (members or is_document_classifier(path)):
            raise InputError(f"{path}: not an output folder of run_finetune.py with a model")
        config = read_classifier_config(Path(path) / (members[0].name if members else ""))
        if config.num_spans:
            raise InputError(f"{path}: its model classifies words, which are not blended")
        delimiter = read_arguments(str(Path(path) / "run_args.yaml")).get("label_delimiter")
        specs.append(LabelSpec.from_config(config, (), delimiter))
        if (specs[-1].problem_type, specs[-1].names) != (specs[0].problem_type, specs[0].names):
            raise InputError(f"{path}: its labels are not those of {paths[0]}")
    if specs[0].problem_type == "regression" and len(specs[0].names) > 1:
        raise InputError("runs with several regression targets cannot be blended")
    return specs[0]


def read_sample(
    options: argparse.Namespace, spec: LabelSpec, test_ids: list[str], labels: pd.Series
) -> SampleSubmission | None:
    """Read the sample and check its ids; None: there is none."""
    if not options.sample_submission:
        return None
    sample = SampleSubmission.read(
        options.sample_submission,
        spec,
        options.id_column_name,
        options.submission_values,
        options.encoding,
        options.positive_label,
    )
    sample.check_ids(test_ids)
    return sample


def read_run(
    folder: Path, file: str, spec: LabelSpec, first: pd.DataFrame, test_ids: list[str]
) -> Run:
    """Read a run, its rows in the order of the first run's."""
    table = read_written_table(folder / file).set_index("id")
    check_same_ids(folder / file, table.index, first["id"])
    table = table.loc[first["id"]]
    if file == OOF and (table["label"].to_numpy() != first["label"].to_numpy()).any():
        raise InputError(f"{folder / file}: other labels than the first run's")
    ids, test = read_predictions(folder / "predictions_test.csv", spec)
    check_same_ids(folder / "predictions_test.csv", ids, test_ids)
    place = {name: row for row, name in enumerate(ids)}
    oof = table[spec.value_columns].to_numpy(dtype=float)
    return Run(str(folder), oof, test[[place[name] for name in test_ids]])


def check_same_ids(path: Path, ids: object, wanted: object) -> None:
    """Raises InputError, naming one, for ids in a file or in the first run only."""
    differ = sorted({*ids} ^ {*wanted})
    if differ:
        raise InputError(
            f"{path}: {len(differ)} ids are in this or in the first run only, such as {differ[0]}"
        )


def encode(table: pd.DataFrame, spec: LabelSpec) -> np.ndarray:
    """Encode the column label of an out-of-fold table: [n, labels], 0 or 1, or numbers."""
    if spec.problem_type == "regression":
        return np.array([[to_number(value)] for value in table["label"]])
    if spec.problem_type == "single_label":
        rows = [{text} for text in table["label"]]
    else:
        joint = spec.delimiter or "|"
        known = {text: split_labels(text, spec.names, joint) for text in set(table["label"])}
        rows = [known[text] for text in table["label"]]
    return np.array([[float(name in row) for name in spec.names] for row in rows])


def split_labels(text: str, names: Sequence[str], joint: str) -> set[str]:
    """Split joined labels, each of which may hold the delimiter itself.

    Raises:
        InputError: for text that is no row of labels, or may be of several.
    """
    found = [] if text else [()]
    begun = [((), text, names)] if text else []  # labels so far, text left, names after the last
    while begun:
        taken, left, later = begun.pop()
        for place, name in enumerate(later):
            if left == name:
                found.append((*taken, name))
            elif left.startswith(name + joint):
                rest = left[len(name + joint) :]
                begun.append(((*taken, name), rest, later[place + 1 :]))
    if len(found) != 1:
        many = "several rows" if found else "no row"
        raise InputError(
            f"predictions_oof.csv: {text!r} may stand for {many} of the labels "
            f"{', '.join(map(repr, names[:8]))}, joined by {joint!r}"
        )
    return set(found[0])


# ---------------------------------------------------------------- weights and thresholds


def fit_nested(given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Fit weights [runs] on all rows; combine each fold [n, labels] with those of the others."""
    oof = np.stack([run.oof for run in given.runs])  # [runs, n, labels]

    def combine_fold(inside: np.ndarray) -> np.ndarray:
        others = fit(oof[:, ~inside], given.truth[~inside])
        return combine(others, oof[:, inside])

    def fit(predictions: np.ndarray, truth: np.ndarray) -> np.ndarray:
        weights, metric = fit_weights(predictions, truth, given.spec), given.metric
        if metric is None:
            return weights
        labels, equal = as_scored(truth, given.spec), np.full(len(weights), 1 / len(weights))
        tried = [improve(start, predictions, labels, metric) for start in (weights, equal)]
        return max(tried, key=lambda own: gain(metric, labels, combine(own, predictions)))

    return fit(oof, given.truth), by_fold(given, combine_fold)


def improve(
    weights: np.ndarray, predictions: np.ndarray, labels: np.ndarray, metric: Score
) -> np.ndarray:
    """Move weights [runs] towards one run, or away from it, as long as a score gets better.

    Args:
        predictions: [runs, n, labels].
        labels: as scores take them.
    """
    best = gain(metric, labels, combine(weights, predictions))
    for step in STEPS:
        moved = True
        while moved:
            moved = False
            for run in range(len(weights)):
                for change in (step, -step):
                    tried = weights + change * (np.eye(len(weights))[run] - weights)
                    tried = np.clip(tried, 0, None)
                    tried /= tried.sum()
                    reached = gain(metric, labels, combine(tried, predictions))
                    if reached > best + 1e-9:
                        best, weights, moved = reached, tried, True
    return weights


def by_fold(given: Given, predict: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Predict fold by fold [n, labels].

    Args:
        predict: from which rows are in the fold [n] bool, their predictions by the other rows.
    """
    found = np.empty_like(given.runs[0].oof)
    for fold in np.unique(given.folds):
        inside = given.folds == fold
        found[inside] = predict(inside)
    return found


def fit_thresholds(
    paths: list[str],
    predictions: np.ndarray,
    truth: np.ndarray,
    folds: np.ndarray,
    kind: str | None = None,
    metric: FileMetric | None = None,
) -> tuple[Thresholds | None, dict[str, float]]:
    """Fit thresholds on the out-of-fold blend [n, labels].

    Args:
        kind: None: that of the runs.

    Returns:
        the thresholds and their scores, see `fit_and_judge`; None, {} where no run has any.

    Raises:
        InputError: where the runs' kinds differ.
    """
    if kind:
        return fit_and_judge(kind, predictions, truth, folds, metric)
    found = {path: read_thresholds(path) for path in paths}
    kinds = {cuts.kind: path for path, cuts in found.items() if cuts is not None}
    if len(kinds) > 1:
        (one, first), (two, second), *_ = kinds.items()
        raise InputError(f"{first} has thresholds of kind {one}, {second} of kind {two}")
    if not kinds:
        return None, {}
    return fit_and_judge(next(iter(kinds)), predictions, truth, folds, metric)


def combine(weights: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Weigh and add predictions: weights [runs], predictions [runs, n, labels] -> [n, labels]."""
    return np.tensordot(weights, predictions, axes=1)


def fit_weights(predictions: np.ndarray, truth: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """Fit weights [runs] on the simplex with the least loss, a convex problem.

    Args:
        predictions: [runs, n, labels].
        truth: [n, labels].
    """
    runs, rows = len(predictions), predictions.shape[1]
    variance = truth.var(axis=0)  # a target counts the same in any unit
    scale = 1 / np.where(variance > 0, variance, 1.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        p = combine(weights, predictions)
        if spec.problem_type == "regression":
            value, slope = (scale * (p - truth) ** 2).sum(), 2 * scale * (p - truth)
        else:
            p = np.clip(p, 1e-12, 1 - 1e-12)
            value, slope = -(truth * np.log(p)).sum(), -truth / p
            if spec.problem_type == "multi_label":
                value -= ((1 - truth) * np.log(1 - p)).sum()
                slope = slope + (1 - truth) / (1 - p)
        return value / rows, np.array([(slope * each).sum() for each in predictions]) / rows

    done = minimize(
        loss,
        np.full(runs, 1 / runs),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * runs,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(runs)},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    if not done.success:
        raise InputError(f"the weights did not converge: {done.message}")
    weights = np.clip(done.x, 0, None)
    return weights / weights.sum()


# ---------------------------------------------------------------- results


def predictions_of(given: Given) -> dict[str, np.ndarray]:
    """The out-of-fold predictions [n, labels] of each run and their mean."""
    found = {run.name: run.oof for run in given.runs}
    return found | {"mean of all": np.mean([run.oof for run in given.runs], axis=0)}


def rows_of(given: Given, predictions: np.ndarray) -> Scored:
    """The rows that weights are fitted on, with predictions [n, labels], for the page."""
    split = "oof" if given.file == OOF else "validation"
    ids = given.table["id"].tolist()
    return Scored(split, given.spec, ids, predictions, given.labels, given.folds)


def write_page(
    options: argparse.Namespace, given: Given, joined: Joined, cuts: Thresholds | None
) -> None:
    """Write report.html. Args: cuts: thresholds that were fitted."""
    asked = {name: value for name, value in vars(options).items() if value not in (None, [])}
    folder = Path(options.output_dir)
    joined_page.write_page(folder, joined, options.runs, cuts, given.sample, asked)


def name_of(metric: Score | None) -> str | None:
    """The name of a score among others, if there is one."""
    return None if metric is None else metric.name


def write_ensemble(
    options: argparse.Namespace,
    given: Given,
    oof: np.ndarray,
    test: np.ndarray,
    scores: dict[str, float],
) -> Thresholds | None:
    """Write predictions [n, labels] and [m, labels], thresholds, and the submission.

    The scores of thresholds are added to `scores`.

    Returns:
        the thresholds, if there are any.
    """
    folder, spec = Path(options.output_dir), given.spec
    kind = options.fit_thresholds
    own = given.metric if isinstance(given.metric, FileMetric) else None
    cuts, gains = fit_thresholds(options.runs, oof, given.truth, given.folds, kind, own)
    scores |= gains
    columns = {"fold": given.folds, "label": given.table["label"].tolist()}
    ids = given.table["id"].tolist()
    write_predictions(folder / given.file, spec, ids, oof, cuts, **columns)
    write_predictions(folder / "predictions_test.csv", spec, given.test_ids, test, cuts)
    write_thresholds(folder, cuts)
    if given.sample is not None:
        decided = spec.decide(test, cuts)
        filled = given.sample.fill(given.test_ids, test, decided, spec)
        write_csv(folder / "submission.csv", filled)
    return cuts


def write_report(
    folder: Path, scores: dict[str, dict[str, float]], weights: dict[str, float], given: Given
) -> str:
    """Write report.md; returns its text."""
    spec, runs = given.spec, given.runs
    main_score, more_is_better = main_metric(spec.problem_type, len(spec.names))
    if given.metric is not None:
        main_score, more_is_better = given.metric.name, given.metric.greater_is_better
    second = "rmse" if spec.problem_type == "regression" else "log_loss"
    rows = []
    for name, own in scores.items():
        what = "out-of-fold" if given.file == OOF else "validation"
        row = {f"{what} predictions": name, "weight": weights.get(name, float("nan"))}
        rows.append(row | {m: own[m] for m in dict.fromkeys((main_score, second))})
    flat = np.stack([run.oof.reshape(-1) for run in runs])
    correlation = pd.DataFrame(np.corrcoef(flat), columns=[run.name for run in runs])
    correlation.insert(0, "correlation", [run.name for run in runs])
    singles = [scores[run.name][main_score] for run in runs]
    best = max(singles) if more_is_better else min(singles)
    gain = scores[BLEND][main_score] - best
    fitted = {name: value for name, value in scores[BLEND].items() if name.startswith("oof_")}
    aim = "least squared error" if second == "rmse" else "least log loss"
    aim = aim if given.metric is None else f"best {main_score}"
    text = (
        f"# Blend\n\n{markdown_table(pd.DataFrame(rows))}\n"
        f"The blend, whose weights have the {aim}, differs from the best single run by "
        f"{gain:+.4f} {main_score}.\n\n"
        + (f"{markdown_table(pd.DataFrame([fitted]))}\n" if fitted else "")
        + f"{markdown_table(correlation)}"
    )
    write_text(folder / "report.md", text)
    return text


if __name__ == "__main__":
    run_script(main)
