"""What changed between models, and tests between any two models or layers, on the same rows."""

import itertools

import pandas as pd

from bertchain.probing.scoreboard import Scoreboard, ScoreKey
from bertchain.probing.significance import holm
from bertchain.runtime.figures import drift_figure, gains_figure
from bertchain.runtime.html import Section

HOLM = "p, Holm"  # column of p values that are corrected for how many there are


def gains(board: Scoreboard, models: list[str]) -> pd.DataFrame:
    """Score of each probe of later models minus that of the first model's, layer by layer.

    Positive is better, whatever the metric. Layers that only one of them has are left out. Holm's
    correction is for all layers and poolings of a model and kind of probe.
    """
    keys = [key for key in board.each if key.model in models[1:]]
    pairs = [(key, key._replace(model=models[0])) for key in keys]
    pairs = [(key, first) for key, first in pairs if first in board.each]
    table = pd.DataFrame(
        {
            "model": [key.model for key, _ in pairs],
            "probe": [key.probe for key, _ in pairs],
            "layer": ["" if key.layer is None else key.layer for key, _ in pairs],
            "token pooling": [key.token_pooling for key, _ in pairs],
        }
    )
    found = board.compare(pairs)
    found = found.rename(columns={"gain": f"{board.split} {board.metric} against {models[0]}"})
    table = pd.concat([table, found], axis=1)
    corrected = table.groupby(["model", "probe"])["p"].transform(holm)
    table.insert(table.columns.get_loc("p") + 1, HOLM, corrected)
    return table


def layer_comparisons(board: Scoreboard) -> pd.DataFrame:
    """Compare any two models and layers under the same kind of probe and pooling.

    Holm's correction is for all pairs of a kind of probe and pooling.
    """
    groups: dict[tuple[str, str], list[ScoreKey]] = {}
    for key in board.each:
        if key.model:  # no baseline
            groups.setdefault((key.probe, key.token_pooling), []).append(key)
    pairs = [pair for keys in groups.values() for pair in itertools.combinations(keys, 2)]
    columns = {
        "probe": [one.probe for one, _ in pairs],
        "token_pooling": [one.token_pooling for one, _ in pairs],
        "model": [one.model for one, _ in pairs],
        "layer": ["" if one.layer is None else one.layer for one, _ in pairs],
        "other_model": [other.model for _, other in pairs],
        "other_layer": ["" if other.layer is None else other.layer for _, other in pairs],
    }
    return _compared(board, columns, pairs, ["probe", "token_pooling"])


def headline_comparisons(board: Scoreboard, headline: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Compare any two rows of the headline, as the table comparisons.

    Holm's correction is for all of these pairs.
    """
    named = {}
    for what, key in zip(headline["what"], headline["key"], strict=True):
        if key in board.each and key not in named:  # the best layer may be the last
            named[key] = what
    pairs = list(itertools.combinations(named, 2))
    columns = {"what": [named[a] for a, _ in pairs], "against": [named[b] for _, b in pairs]}
    return {"comparisons": _compared(board, columns, pairs, [])}


def _compared(
    board: Scoreboard,
    columns: dict[str, list],
    pairs: list[tuple[ScoreKey, ScoreKey]],
    family: list[str],
) -> pd.DataFrame:
    """Join columns that name pairs and what `Scoreboard.compare` finds.

    Args:
        family: columns whose values are the same in tests that are corrected together.
    """
    table = pd.concat([pd.DataFrame(columns), board.compare(pairs)], axis=1)
    p = table.groupby(family)["p"].transform(holm) if family else holm(table["p"])
    table.insert(table.columns.get_loc("p") + 1, HOLM, p)
    return table.rename(columns={"gain": f"{board.split} {board.metric}, difference"})


def comparison_sections(tables: dict[str, pd.DataFrame]) -> list[Section]:
    if "comparisons" not in tables:
        return []
    text = (
        "Difference of scores of the first over the second; positive is better. Intervals by "
        "bootstrap, paired by row. p: of no difference, for hits by McNemar's exact test (rows "
        "that one alone has right), else by the paired t test; it holds for a pair that was chosen "
        "before one looked. p, Holm: corrected for all pairs of the table, so that of chance alone "
        "any is below .05 in one of twenty. "
    )
    if "layer_comparisons" in tables:
        text += "Any two models and layers stand in layer_comparisons.csv."
    return [Section("comparisons", "Any two of these", text, tables["comparisons"], fold=True)]


def change_sections(tables: dict[str, pd.DataFrame]) -> list[Section]:
    sections = []
    if "gains" in tables:
        gains = tables["gains"]
        linear = gains[gains["probe"] == "linear"]
        text = (
            "The same probe on the same layer and pooling; positive is better. Intervals are "
            "paired by row: the same resampled rows for both models. p: of no gain, for hits by "
            "McNemar's exact test, else by the paired t test; p, Holm: corrected for the layers "
            "and poolings of a model and kind of probe, so that of chance alone any is below .05 "
            f"in one of twenty. {_found(gains)} In the picture linear probes; hollow: .05 or above."
        )
        sections.append(
            Section(
                "gains",
                "What changed in what the layers know",
                text,
                gains,
                gains_figure(linear, HOLM) if len(linear) else None,
                "Gain by layer, with intervals",
                fold=True,
            )
        )
    if "drift" in tables:
        text = (
            "Features are compared with those of the first model on the same rows: linear CKA (1 = "
            "the same up to rotation and scale), cosine of a row before and after; weights by the "
            "norm of their change. The mean cosine of two rows says how narrow the cone is that "
            "all rows lie in."
        )
        table = tables["drift"]
        what = "CKA and change of weights by layer"
        figure = drift_figure(table)
        sections.append(
            Section("drift", "How far the layers moved", text, table, figure, what, fold=True)
        )
    return sections


def _found(gains: pd.DataFrame) -> str:
    """Say of each model and kind of probe how many gains and losses chance does not explain."""
    (value,) = (name for name in gains if " against " in name)
    parts = []
    for (model, probe), rows in gains.groupby(["model", "probe"], sort=False):
        sure = rows[rows[HOLM] < 0.05]
        better, worse = int((sure[value] > 0).sum()), int((sure[value] < 0).sum())
        parts.append(f"{model}, {probe}: {better} better, {worse} worse of {len(rows)}")
    return f"Below it lie: {'; '.join(parts)}."
