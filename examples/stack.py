"""Stack several runs with folds: gradient-boosted trees over their predictions and your columns.

    python examples/stack.py RUN RUN ... --output_dir stack --columns year venue \\
        --sample_submission sample.csv

Each RUN is an output folder of run_finetune.py with predictions_oof.csv and predictions_test.csv;
rows are joined by id. What scikit-learn's HistGradientBoosting sees of a row: the predictions of
the runs, the columns that are named (numbers, or else categories), and statistics of the text
(length, words, shares of capitals, digits, punctuation). The tables are those that the first run's
run_args.yaml names. The trees of each fold are fitted on the other folds, so that scores are not
inflated; those of the test rows on all.

Writes what blend.py writes. The report compares with each run, their mean, and blend.py's weights,
with intervals of the differences (bootstrap over rows): a stack pays where columns know what the
text does not, and often loses to weights where rows are few.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import blend
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from bertchain.cli import read_arguments, run_script, start_logging
from bertchain.data.documents import to_documents, to_id
from bertchain.data.label_values import is_missing, to_number
from bertchain.data.tables import read_table, require_columns
from bertchain.errors import InputError
from bertchain.metrics import main_metric
from bertchain.probing.scoreboard import paired_difference
from bertchain.reporting.joined_page import Joined
from bertchain.runtime.files import write_json, write_text
from bertchain.runtime.records import markdown_table, versions

STACK = "stack (each fold by the others)"
TREES = {  # few rows a leaf and many trees would learn single rows by heart
    "max_iter": 150,
    "learning_rate": 0.05,
    "max_leaf_nodes": 15,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,
    "early_stopping": False,
}
CATEGORIES = 200  # of a column, the most frequent; HistGradientBoosting takes at most 255


def main() -> None:
    """Fit the trees, and write the stack and its report."""
    columns = {"nargs": "+", "default": [], "help": "Columns of both tables that the trees see."}
    options = blend.read_options(__doc__, columns=columns, seed={"type": int, "default": 1})
    start_logging()
    given = blend.read_given(options)
    train, test = read_columns(options, given)
    probabilities = [np.hstack([run.oof for run in given.runs])]
    probabilities.append(np.hstack([run.test for run in given.runs]))
    train, test = (
        pd.concat([pd.DataFrame(p).add_prefix("p"), side], axis=1)
        for p, side in zip(probabilities, (train, test), strict=True)
    )

    kind, seed = given.spec.problem_type, options.seed

    def predict_fold(inside: np.ndarray) -> np.ndarray:
        return fit_trees(train[~inside], given.truth[~inside], kind, train[inside], seed)

    nested = blend.by_fold(given, predict_fold)
    stacked = fit_trees(train, given.truth, kind, test, seed)

    _, blended = blend.fit_nested(given)
    others = blend.predictions_of(given) | {blend.BLEND: blended}
    scores = {name: given.scores_of(p) for name, p in others.items()}
    scores[STACK] = given.scores_of(nested)
    cuts = blend.write_ensemble(options, given, nested, stacked, scores[STACK])
    report = write_report(Path(options.output_dir), scores, nested, others, given)
    own, rows = blend.name_of(given.metric), blend.rows_of(given, nested)
    joined = Joined("stack", rows, scores, others, metric=own)
    blend.write_page(options, given, joined, cuts)
    results = {"scores": scores, "trees": TREES | {"seed": seed}}
    results |= {"columns": [*map(str, train)], "versions": versions()}
    write_json(Path(options.output_dir) / "all_results.json", results)
    print(report)


# ---------------------------------------------------------------- columns


def read_columns(
    options: argparse.Namespace, given: blend.Given
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read columns and statistics of the text, rows as those of the runs: training, test.

    Raises:
        InputError: for a table or column that is not there, or lacks an id.
    """
    run = read_arguments(str(Path(options.runs[0]) / "run_args.yaml"))
    tables = []
    apart = given.file == blend.VALIDATION and run.get("validation_file")
    first = "validation_file" if apart else "train_file"
    for name, ids in ((first, given.table["id"].tolist()), ("test_file", given.test_ids)):
        if not isinstance(run.get(name), str):
            raise InputError(f"{options.runs[0]}: its run_args.yaml names no --{name}")
        tables.append(read_rows(run[name], run, options.columns, ids))
    train, test = tables
    for name in options.columns:
        numbers = train[name].map(to_number)
        if train[name].map(is_missing).eq(numbers.isna()).all():
            train[name], test[name] = numbers.astype(float), test[name].map(to_number).astype(float)
            continue
        kinds = train[name].dropna().astype(str).value_counts().index[:CATEGORIES]
        for table in tables:
            texts = table[name].astype(str)
            texts = texts.where(table[name].notna() & texts.isin(kinds), None)  # others are missing
            table[name] = pd.Categorical(texts, categories=kinds)
    return train, test


def read_rows(path: str, run: dict, columns: list[str], ids: list[str]) -> pd.DataFrame:
    """Read columns and statistics of the text of the rows with these ids, in their order."""
    table = read_table(path, run.get("delimiter"), run.get("encoding", "utf-8"))
    require_columns(table, columns, path, "--columns")
    texts = run.get("text_column_names", ["text"])
    documents = to_documents(table, path, texts, id_column=run.get("id_column_name"))
    place = {to_id(name): row for row, name in enumerate(documents["id"][:])}
    lost = [name for name in ids if name not in place]
    if lost:
        raise InputError(f"{path}: no row has the id {lost[0]!r}; is it the table of the run?")
    rows = [place[name] for name in ids]
    found = text_statistics(np.array(documents["text"][:], dtype=object)[rows])
    for name in columns:
        found[name] = pd.Series(table[name][:], dtype=object).iloc[rows].to_numpy()
    return found


def text_statistics(texts: np.ndarray) -> pd.DataFrame:
    """Length in characters and words, and shares of characters by kind: a row for each text."""
    shares = {
        "capitals": str.isupper,
        "digits": str.isdigit,
        "punctuation": lambda c: not (c.isalnum() or c.isspace()),
    }
    rows = []
    for text in texts:
        row = {"characters": len(text), "words": len(text.split())}
        for name, is_one in shares.items():
            row[f"share of {name}"] = sum(map(is_one, text)) / max(len(text), 1)
        rows.append(row)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- trees


def fit_trees(
    rows: pd.DataFrame, truth: np.ndarray, problem_type: str, new: pd.DataFrame, seed: int
) -> np.ndarray:
    """Fit trees and predict new rows [m, labels]; each of several labels or targets has its own.

    Args:
        truth: [n, labels], 0 or 1, or numbers.
    """
    options = TREES | {"random_state": seed, "categorical_features": "from_dtype"}
    if problem_type == "single_label":
        found = np.zeros((len(new), truth.shape[1]))
        classes = truth.argmax(axis=1)
        trees = HistGradientBoostingClassifier(**options).fit(rows, classes)
        found[:, trees.classes_] = trees.predict_proba(new)
        return found
    columns = []
    for own in truth.T:
        if len(np.unique(own)) == 1:  # trees would refuse
            columns.append(np.full(len(new), own[0]))
        elif problem_type == "regression":
            trees = HistGradientBoostingRegressor(**options).fit(rows, own)
            columns.append(trees.predict(new))
        else:
            trees = HistGradientBoostingClassifier(**options).fit(rows, own)
            columns.append(trees.predict_proba(new)[:, 1])
    return np.stack(columns, axis=1)


# ---------------------------------------------------------------- report


def write_report(
    folder: Path,
    scores: dict[str, dict[str, float]],
    nested: np.ndarray,
    others: dict[str, np.ndarray],
    given: blend.Given,
) -> str:
    """Write report.md; returns its text."""
    kind = given.spec.problem_type
    metric, _ = main_metric(kind, len(given.spec.names))
    second, rows = "rmse" if kind == "regression" else "log_loss", []
    shown = filter(None, (blend.name_of(given.metric), metric, second))
    shown = [*dict.fromkeys(shown)]
    for name, own in scores.items():
        row = {"out-of-fold predictions": name} | {m: own[m] for m in shown}
        if name in others:
            row |= paired_difference(kind, nested, others[name], given.labels)
        rows.append(row)
    fitted = {name: value for name, value in scores[STACK].items() if name.startswith("oof_")}
    text = f"# Stack\n\n{markdown_table(pd.DataFrame(rows))}\n"
    text += f"The difference is that of the stack, in {metric}, paired by row.\n"
    text += f"\n{markdown_table(pd.DataFrame([fitted]))}\n" if fitted else ""
    write_text(folder / "report.md", text)
    return text


if __name__ == "__main__":
    run_script(main)
