"""The claims of Zhou & Srikumar 2022, each judged by a stated rule from values with intervals.

What is claimed stands in claims.yaml. Behind it are one or several values that are above 0 if it
holds, as a rule one for each encoder and task. With k of them intervals are at the level
1 - .05 / k; see `judging` for the verdicts. Distances are those of hulls.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import sweep
from judging import OPEN, decide
from readings import OPPOSING, RELATED, Study, changes, last_of
from scipy.stats import norm, spearmanr

from bertchain.cli import read_arguments
from bertchain.probing.each_label import last_layer


class Value(NamedTuple):
    """What is above 0 if a claim holds, with half its 95 % interval: 0 for what is counted.

    Attributes:
        name: encoder, and after a comma what of it.
    """

    name: str
    value: float
    half: float


class Claim(NamedTuple):
    """What the paper says, and our values; none: it was not run, or a note says why.

    Attributes:
        among: of how many values these were chosen, for intervals; 0: they are all.
    """

    text: dict[str, str]
    values: list[Value]
    note: str = ""
    among: int = 0

    @property
    def halves(self) -> list[float]:
        """Half the width of the interval of each value, wider the more there are."""
        k = max(1, len(self.values), self.among)
        wider = norm.ppf(1 - 0.025 / k) / norm.ppf(0.975)
        return [wider * value.half for value in self.values]

    @property
    def verdict(self) -> str:
        """Confirmed, not confirmed, cannot be told, or not run."""
        if self.note and not self.values:
            return OPEN
        return decide([value.value for value in self.values], self.halves)

    @property
    def row(self) -> dict[str, str]:
        """A row of the table of claims."""
        by_encoder: dict[str, list[str]] = {}
        for value, half in zip(self.values, self.halves, strict=True):
            encoder, _, what = value.name.partition(", ")
            said = f"{what} {value.value:+.3f}".strip()
            if half:  # of what is counted there is none
                said += " (no interval)" if np.isnan(half) else f" ± {half:.3f}"
            by_encoder.setdefault(encoder, []).append(said)
        ours = "; ".join(f"{name}: {', '.join(own)}" for name, own in by_encoder.items())
        told = {"verdict": self.verdict, "claim": self.text["claim"], "ours": ours or self.note}
        return told | {name: self.text[name] for name in ("holds if", "paper", "where")}


def all_claims(study: Study) -> list[Claim]:
    """List the claims in the order of the paper."""
    found: dict[str, Claim] = {}
    for judge in (of_performance, of_clusters, of_distances, of_epochs, of_transfer, of_layers):
        found |= judge(study)
    texts = read_arguments(str(Path(__file__).with_name("claims.yaml")))
    return [
        found[name]._replace(text=text) if name in found else Claim(text, [])
        for name, text in texts.items()
    ]


def claim(values: list[Value], note: str = "", among: int = 0) -> Claim:
    """Make a claim whose text comes later; values that are NaN are left out."""
    return Claim({}, [value for value in values if not np.isnan(value.value)], note, among)


# ---------------------------------------------------------------- cells


def cells(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each encoder and task that was run: its name, and its rows."""
    if len(table):
        for (encoder, task), rows in table.groupby(["encoder", "task"], sort=False):
            yield f"{encoder}, {task}", rows


def both_ends(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The last layer of a cell, before and after."""
    last = rows[rows["layer"] == rows["layer"].max()].set_index("model")
    return last.loc["base"], last.loc["tuned"]


def shares(outcomes: dict[str, list[bool]]) -> list[Value]:
    """Of each encoder the share of tasks where something holds, less one half. Nothing is drawn."""
    return [Value(name, float(np.mean(own)) - 0.5, 0.0) for name, own in outcomes.items() if own]


def mean_of(name: str, values: pd.Series) -> Value:
    """The mean with its interval by Student's t."""
    known = values.dropna()
    return Value(name, float(known.mean()), sweep.half_interval(known))


# ---------------------------------------------------------------- accuracy and clusters


def of_performance(study: Study) -> dict[str, Claim]:
    """Judge gains of accuracy, and whether training and test rows diverge."""
    after = {name: both_ends(rows)[1] for name, rows in cells(study.layers)}
    gains = [Value(name, row["gain"], row["gain ± 95 %"]) for name, row in after.items()]
    least = min(gains, key=lambda value: value.value, default=None)
    falls = [Value(name, -row["change"], row["change ± 95 %"]) for name, row in after.items()]
    worst = [] if least is None else [least._replace(value=-least.value)]
    return {
        "improves": claim(gains),
        "exception": claim(worst, among=len(gains)),
        "diverges": claim(falls),
    }


def of_clusters(study: Study) -> dict[str, Claim]:
    """Judge numbers of clusters; one a label is judged where shuffled labels have more."""
    if not len(study.layers):
        return {}
    smallest = study.encoders.sort_values("parameters", kind="stable")["encoder"].iloc[0]
    fewer, curved, single = [], {}, {}
    for name, rows in cells(study.layers):
        before, after = both_ends(rows)
        encoder = rows["encoder"].iloc[0]
        curved.setdefault(encoder, []).append(before["clusters"] > before["labels"])
        if before["clusters"] > before["labels"]:
            fewer.append(Value(name, 1 - after["clusters"] / before["clusters"], 0.0))
        if after["shuffled apart"] != "yes":
            single.setdefault(encoder, []).append(after["clusters"] == after["labels"])
    linear = "all had one cluster a label before"
    empty = "shuffled labels have one cluster each as well"
    return {
        "curved_before": claim(shares({k: v for k, v in curved.items() if k == smallest})),
        "fewer_clusters": claim(fewer, linear),
        "one_cluster": claim(shares(single), empty),
    }


# ---------------------------------------------------------------- distances of labels


def of_distances(study: Study) -> dict[str, Claim]:
    """Judge how the smallest distance of each label changed, as it is and against its spread."""
    apart, more = [], []
    for name, rows in cells(last_of(study.labels)):
        change = changes(rows, "base", "tuned")
        apart.append(mean_of(name, change["change"]))
        more.append(mean_of(name, change["of ratio"]))
    return {"apart": claim(apart), "more_than_scaled": claim(more)}


def of_epochs(study: Study) -> dict[str, Claim]:
    """Judge whether smallest distances grow from epoch to epoch: rank correlations, over labels."""
    trends = []
    for name, rows in cells(last_of(study.epoch_labels)):
        wide = last_layer(rows)
        if wide.shape[1] > 2:
            steps = np.arange(wide.shape[1])
            moved = wide[wide.nunique(axis=1) > 1]
            ranks = moved.apply(lambda own, steps=steps: spearmanr(steps, own)[0], axis=1)
            trends.append(mean_of(name, ranks))
    return {"every_epoch": claim(trends)}


# ---------------------------------------------------------------- other tasks


def of_transfer(study: Study) -> dict[str, Claim]:
    """Judge what fine-tuning on one task does to another, nearer or further from it."""
    if not len(study.cross):
        return {}
    table = study.cross.set_index(["encoder", "fine-tuned on", "probed on"])
    encoders = list(study.cross["encoder"].unique())

    def found(pairs: tuple, column: str, sign: int) -> list[Value]:
        at = [(e, *pair) for e in encoders for pair in pairs if (e, *pair) in table.index]
        rows = [(f"{e}, {a} -> {b}", table.loc[(e, a, b)]) for e, a, b in at]
        return [Value(name, sign * row[column], row[f"{column} ± 95 %"]) for name, row in rows]

    nearer = []
    for encoder in encoders:
        for near, probed in RELATED:
            (far,) = (tuned for tuned, other in OPPOSING if other == probed)
            ends = [(encoder, one, probed) for one in (near, far)]
            if all(end in table.index for end in ends):
                one, other = (table.loc[end] for end in ends)
                half = float(np.hypot(one["gain ± 95 %"], other["gain ± 95 %"]))
                name = f"{encoder}, {near} less {far} -> {probed}"
                nearer.append(Value(name, one["gain"] - other["gain"], half))
    return {
        "related_helps": claim(found(RELATED, "gain", 1)),
        "related_apart": claim(found(RELATED, "mean change", 1)),
        "opposing_hurts": claim(found(OPPOSING, "gain", -1)),
        "opposing_nearer": claim(found(OPPOSING, "mean change", -1)),
        "nearer_task": claim(nearer),
        "distances_tell": claim([correlated(e, study.cross) for e in encoders]),
    }


def correlated(encoder: str, cross: pd.DataFrame) -> Value:
    """Correlate changes of distances with gains (ranks), over pairs of tasks; Fisher's interval."""
    own = cross[(cross["encoder"] == encoder) & (cross["kind"] != "before")]
    own = own.dropna(subset=["mean change", "gain"])
    if len(own) < 5:
        return Value(encoder, float("nan"), float("nan"))
    rank = float(spearmanr(own["mean change"], own["gain"])[0])
    z, half = np.arctanh(np.clip(rank, -0.999, 0.999)), 1.96 / np.sqrt(len(own) - 3)
    return Value(encoder, rank, float(np.tanh(z + half) - np.tanh(z - half)) / 2)


# ---------------------------------------------------------------- layers


def of_layers(study: Study) -> dict[str, Claim]:
    """Judge how lower and upper layers changed: their arrangement, and the moves of centroids."""
    falls, kept = [], []
    moves: dict[str, dict[str, list[float]]] = {}
    for name, rows in cells(study.layers):
        after = rows[rows["model"] == "tuned"].set_index("layer")
        first, last = after.loc[1], after.loc[after.index.max()]
        alike, spread = "similarity with before", "similarity ± 95 %"
        half = float(np.hypot(first[spread], last[spread]))
        falls.append(Value(name, first[alike] - last[alike], half))
        kept.append(Value(name, last[alike] - 0.5, last[spread]))
        own = moves.setdefault(rows["encoder"].iloc[0], {"less": [], "alike": []})
        own["less"].append(last["centroids moved by"] - first["centroids moved by"])
        own["alike"].append(first["moves alike"] - last["moves alike"])
    return {
        "upper_layers": claim(falls),
        "kept": claim(kept),
        "lower_less": claim([mean_of(e, pd.Series(own["less"])) for e, own in moves.items()]),
        "lower_alike": claim([mean_of(e, pd.Series(own["alike"])) for e, own in moves.items()]),
    }
