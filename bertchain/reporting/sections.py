"""Sections of a run's page about the rows that were scored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bertchain.data.labels import Thresholds
from bertchain.metrics import LESS_IS_BETTER, main_metric
from bertchain.reporting import calibration, mistakes, pictures, tables
from bertchain.reporting.scored import ON, Scored
from bertchain.runtime.html import Section

HOW_SEEN = {
    "oof": "Training rows, each by a model that did not train on it (out of the folds).",
    "validation": "Validation rows: no model was trained on them, the best epoch was chosen on "
    "them.",
    "test": "Test rows.",
}


def score_section(scored: Sequence[Scored], results: dict[str, Any], seed: int) -> Section:
    """All scores with intervals."""
    spec = scored[0].spec
    name = main_metric(spec.problem_type, len(spec.names))[0]
    less = "less" if name in LESS_IS_BETTER else "more"
    rows = "; ".join(f"{len(own):,} rows {ON[own.split]}" for own in scored)
    text = (
        f"{rows}. The first score chooses settings ({less} is better). Half of each 95 % interval, "
        "by bootstrap over the rows, stands beside it; of scores that have none it is empty."
    )
    table = tables.scores_table(scored, results, seed)
    limit = (
        "how much another seed or split of the training rows would change: intervals are over the "
        "rows that are scored."
    )
    return Section("scores", "In short", text, table, limit=limit)


def fold_sections(rows: Scored, members: pd.DataFrame | None, seed: int) -> list[Section]:
    """The score of each fold, and of each model where there are several of a fold."""
    if rows.folds is None:
        return []
    text = "The rows of each fold, by models that did not train on them."
    found = [Section("folds", "By fold", text, tables.fold_table(rows, seed))]
    if members is not None:
        found.append(Section("members", "Each model", "", members, fold=True))
    return found


def class_sections(rows: Scored, thresholds: Thresholds | None) -> list[Section]:
    """Confusions, and precision, recall and F1 of each class."""
    kind, names = rows.spec.problem_type, rows.spec.names
    if kind == "regression":
        return []
    what = f"{HOW_SEEN[rows.split]} A click on a heading sorts."
    if kind == "multi_label":
        confused = tables.confused_labels(rows)
        text = "Rows in which a label was missed and another given that is not theirs."
        found = [Section("confusion", "Confused labels", text, confused)] if len(confused) else []
        cuts = "the fitted thresholds" if thresholds else "threshold 0.5"
        what = f"{what} A label is given from {cuts} on."
    else:
        found = [confusion_section(rows)]
    table = tables.class_table(rows, thresholds)
    fold = len(names) > tables.NUMBERED
    return [*found, Section("classes", "Each label", what, table, fold=fold)]


def confusion_section(rows: Scored) -> Section:
    """The confusion matrix; where classes are many, the most frequent confusions."""
    counts, names = tables.confusion_counts(rows), rows.spec.names
    if len(names) > tables.NUMBERED:
        text = f"{HOW_SEEN[rows.split]} The confusions of most rows."
        return Section("confusion", "Largest confusions", text, counts if len(counts) else None)
    figure = pictures.confusion_picture(rows.spec, rows.classes, rows.truth, ON[rows.split])
    text = f"{HOW_SEEN[rows.split]} Shares of each true class; below, the numbers of rows."
    what = f"Confusion matrix of {len(names)} classes"
    return Section("confusion", "Confusion", text, counts, figure, what, fold=True)


def calibration_sections(rows: Scored) -> list[Section]:
    """Reliability diagrams as given and with the temperature that fits best."""
    kind = rows.spec.problem_type
    if kind == "regression":
        return []
    truth = rows.truth if kind == "single_label" else rows.truth >= 1
    temperature = calibration.fit_temperature(kind, rows.probabilities, truth)
    measured = {
        "as given": calibration.measure(kind, rows.probabilities, truth),
        f"temperature {temperature:.3g}": calibration.measure(
            kind, rows.probabilities, truth, temperature
        ),
    }
    share = "accuracy" if kind == "single_label" else "share that is there"
    of = "the likeliest class" if kind == "single_label" else "each label of each row"
    sure = "too sure" if temperature > 1 else "not sure enough"
    text = (
        f"{HOW_SEEN[rows.split]} Of {of}, by its probability. ECE is the mean distance of "
        f"probability and {share} over {calibration.BINS} bins. Logits divided by the temperature "
        f"{temperature:.3g} have the least log loss on these rows: as they are, probabilities are "
        f"{sure}. Rankings and the likeliest class stay the same."
    )
    table = pd.DataFrame(
        {"probabilities": name, "ECE": own.error, "log loss": own.log_loss}
        for name, own in measured.items()
    )
    figure = pictures.reliability_figure(measured, share)
    limit = (
        "what the temperature gives on other rows: it was fitted on these. ECE of few rows is too "
        "high by chance."
    )
    what = "Reliability diagrams"
    return [Section("calibration", "Calibration", text, table, figure, what, limit=limit)]


def length_sections(rows: Scored, seed: int) -> list[Section]:
    """The score by length of the text, and by the share that no window holds."""
    if rows.tokens is None:
        return []
    table = tables.length_table(rows, seed)
    cut = rows.cut > 0
    text = f"{HOW_SEEN[rows.split]} "
    if cut.any():
        share = f"{rows.cut.sum() / rows.tokens.sum():.1%}".replace("%", " %")
        text += f"Of {cut.sum():,} of {len(rows):,} documents a part is cut off, {share} of all "
        text += "tokens."
    else:
        text += "No text is cut off."
    figure = pictures.length_figure(table)
    what, limit = "Score by length of the text", "why: long texts may differ in more than length."
    return [Section("lengths", "By length", text, table, figure, what, fold=True, limit=limit)]


def threshold_sections(rows: Scored, thresholds: Thresholds | None) -> list[Section]:
    """Scores by threshold, where a threshold decides."""
    kind, names, title = rows.spec.problem_type, rows.spec.names, "Thresholds"
    text = HOW_SEEN[rows.split]
    if thresholds is not None:
        text += " The fitted thresholds were fitted on them: what they reach here is a little too "
        text += "good (go by the nested score)."
    if kind == "multi_label":
        figure = pictures.thresholds_figure(tables.threshold_curves(rows), thresholds)
        what = "F1 by threshold"
    elif kind == "single_label" and len(names) == 2:
        name, curves = tables.two_class_curves(rows)
        figure = pictures.two_class_figure(name, curves)
        what, title = "Precision, recall, F1 and accuracy by threshold", f"Threshold of {name}"
    elif thresholds is not None and thresholds.kind == "ordinal":
        curves = tables.grade_curves(rows, thresholds)
        if not len(curves):
            return []
        figure = pictures.grades_figure(curves, thresholds)
        what = "Weighted kappa by each threshold between two grades"
    else:
        return []
    return [Section("thresholds", title, text, figure=figure, figure_text=what)]


def number_sections(rows: Scored) -> list[Section]:
    """Predicted against true numbers, and residuals."""
    if rows.spec.problem_type != "regression":
        return []
    residuals = rows.probabilities - rows.truth
    table = pd.DataFrame(
        {
            "target": rows.spec.names,
            "mean residual": residuals.mean(axis=0),
            "standard deviation": residuals.std(axis=0),
            "half are from": np.quantile(residuals, 0.25, axis=0),
            "to": np.quantile(residuals, 0.75, axis=0),
        }
    )
    figure = pictures.numbers_figure(rows.probabilities, rows.truth, rows.spec.names)
    text, what = HOW_SEEN[rows.split], "Predicted against true values, and residuals"
    more = len(rows.spec.names) - pictures.MOST_TARGETS
    if more > 0:
        text += f" Of {len(rows.spec.names)} targets the first {pictures.MOST_TARGETS} are drawn."
    return [Section("residuals", "Predicted and true", text, table, figure, what)]


def mistake_sections(rows: Scored, found: pd.DataFrame, texts: dict[str, str]) -> list[Section]:
    """The most confident mistakes, with the beginning of their text.

    Args:
        found: of `mistakes.find_mistakes`.
        texts: by id.
    """
    regression = rows.spec.problem_type == "regression"
    title = "Largest errors" if regression else "Most confident mistakes"
    if not len(found):
        return [Section("mistakes", title, f"{HOW_SEEN[rows.split]} There are none.")]
    text = f"{HOW_SEEN[rows.split]} By id also in mistakes.csv, there without text."
    return [Section("mistakes", title, text, _with_texts(found, texts))]


def doubtful_sections(
    rows: Scored, found: pd.DataFrame | None, texts: dict[str, str]
) -> list[Section]:
    """Rows whose label is probably wrong. Args: as `mistake_sections`, of `find_doubtful`."""
    if found is None:
        return []
    title, text = "Labels that are probably wrong", HOW_SEEN[rows.split]
    if not len(found):
        return [Section("doubtful", title, f"{text} None.")]
    count = found["row"].nunique()
    share = f"{count / len(rows):.1%}".replace("%", " %")
    text += (
        f" {count:,} rows ({share}): another label has at least the probability that it has on "
        "average in rows that carry it (confident learning, Northcutt et al. 2021). All of them, "
        "by id and without text, in doubtful_labels.csv; the surest here."
    )
    shown = _with_texts(found.head(mistakes.SHOWN), texts)
    limit = "that a label is wrong: a model can be surely wrong as well. Look at the row."
    pairs = mistakes.count_pairs(found)
    return [
        Section("doubtful", title, text, shown, limit=limit),
        Section("pairs", "Which labels these are", "The most frequent pairs.", pairs, fold=True),
    ]


def _with_texts(found: pd.DataFrame, texts: dict[str, str]) -> pd.DataFrame:
    """Put the beginning of the text of each row, as far as it is known, beside its label."""
    table = found.drop(columns="row")
    first = [name for name in ("id", "target", "label", "given", "prediction") if name in table]
    if texts:
        table["text"] = [texts[i] for i in table["id"]]
        first.append("text")
    return table[[*first, *(name for name in table if name not in first)]]
