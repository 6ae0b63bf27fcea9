"""Scores of probes by class, and which classes they take for which."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bertchain.metrics import regression_scores
from bertchain.probing.scoreboard import Scoreboard
from bertchain.runtime.html import Section


def class_tables(board: Scoreboard) -> dict[str, pd.DataFrame]:
    """Tables of the probes that the scoreboard keeps, by file name, of validation and test rows.

    classes: of each label its rows, those predicted, those that are both (of several labels a row
    at a threshold of .5), precision, recall, F1; of numbers the scores of each target. confusion,
    of one label a row: how many rows of a class are predicted as which, without pairs of none.
    """
    classes, confusions = [], []
    for key, kept in board.kept.items():
        for split, values in kept.predictions.items():
            if split not in board.labels:
                continue
            at, truth = key._asdict() | {"split": split}, board.labels[split]
            classes.append(_with(at, scores_by_class(values, truth, board)))
            if board.spec.problem_type == "single_label":
                table = confusion_table(values.argmax(axis=1), truth, board.spec.names)
                confusions.append(_with(at, table))
    tables = {"classes": pd.concat(classes, ignore_index=True)}
    if confusions:
        tables["confusion"] = pd.concat(confusions, ignore_index=True)
    return tables


def _with(at: dict, table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([pd.DataFrame([at] * len(table), columns=list(at)), table], axis=1)


def scores_by_class(values: np.ndarray, truth: np.ndarray, board: Scoreboard) -> pd.DataFrame:
    """A row of scores for each label, or regression target.

    Args:
        values: probabilities [n, labels], or values.
        truth: class numbers [n], or 0/1 or values [n, labels].
    """
    names, kind = list(board.spec.names), board.spec.problem_type
    if kind == "regression":
        each = [regression_scores(values[:, [k]], truth[:, [k]]) for k in range(len(names))]
        return pd.DataFrame({"target": names}).join(pd.DataFrame(each))
    if kind == "single_label":
        chosen = values.argmax(axis=1)
        of = (truth, chosen, truth[truth == chosen])
        rows, predicted, right = (np.bincount(own, minlength=len(names)) for own in of)
    else:
        decided, there = board.spec.decide(values) > 0.5, truth > 0.5
        rows, predicted, right = (own.sum(axis=0) for own in (there, decided, there & decided))
    counts = {"rows": rows, "predicted": predicted, "right": right}
    scores = {"precision": right / np.maximum(1, predicted), "recall": right / np.maximum(1, rows)}
    scores["f1"] = 2 * right / np.maximum(1, rows + predicted)
    return pd.DataFrame({"class": names} | counts | scores)


def confusion_table(predicted: np.ndarray, truth: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """Count rows by true and predicted class, where there are any. Args: class numbers [n]."""
    size = len(names)
    pairs, rows = np.unique(truth * size + predicted, return_counts=True)
    true, other = np.divmod(pairs, size)
    named = {"true": [names[k] for k in true], "predicted": [names[k] for k in other]}
    share = rows / np.bincount(truth, minlength=size)[true]
    return pd.DataFrame(named | {"rows": rows, "share of the true class": share})


def class_sections(
    board: Scoreboard, headline: pd.DataFrame, tables: dict[str, pd.DataFrame]
) -> list[Section]:
    """Scores by class of the best layer of each model, and of its own head."""
    if "classes" not in tables:
        return []
    chosen = [
        (what, board.kept[key].predictions[board.split])
        for what, key in zip(headline["what"], headline["key"], strict=True)
        if key in board.kept and (what.endswith("best frozen layer") or "own head" in what)
    ]
    truth, parts = board.labels[board.split], []
    for what, values in chosen:
        parts.append(scores_by_class(values, truth, board))
        parts[-1].insert(0, "probe", what)
    text = f"On the {board.split} rows. Those of every kind of probe stand in classes.csv"
    several = board.spec.problem_type == "multi_label"
    text += "; a label is predicted from a probability of .5 on." if several else "."
    title = "Scores by target" if board.spec.problem_type == "regression" else "Scores by class"
    return [Section("classes", title, text, pd.concat(parts, ignore_index=True), fold=True)]
