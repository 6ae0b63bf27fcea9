"""The claims of Sun et al. 2019, each judged by a stated rule from differences of test errors.

What is claimed stands in claims.yaml. Behind it are one or several differences that are below 0 if
it holds, each with a value for each seed. With k of them each gets an interval by Student's t at
the level 1 - .05 / k. Confirmed: all intervals lie below 0. Not confirmed: one of them lies above
0. Otherwise it cannot be told.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import paper
import sweep
from judging import CONFIRMED, MISSING, OPEN, REFUTED, decide

from bertchain.cli import read_arguments

__all__ = ("CONFIRMED", "MISSING", "OPEN", "REFUTED", "Claim", "all_claims")
MARGIN = 1.0  # points of error that count as no obvious benefit
CHANCE = 40.0  # % of error on two classes above which training has failed
SETS = {  # of the matrix of texts and tasks
    "imdb": "IMDb",
    "trec": "TREC",
    "agnews": "AG News",
    "20news": "20 Newsgroups",
    "ohsumed": "OHSUMED",
}
DOMAINS = ({"imdb"}, {"trec"}, {"agnews", "20news"}, {"ohsumed"})
WITHIN = {name: name for name in SETS}  # set -> its own text
BROADER = {"imdb": "all sentiment", "agnews": "all topic", "20news": "all topic"}
EVERYTHING = dict.fromkeys(SETS, "all")

Errors = Mapping[tuple[str, str], pd.DataFrame]  # (study, set) -> errors in % [seeds, points]
Differences = dict[str, pd.Series]  # name -> a value for each seed


class Claim(NamedTuple):
    """What the paper says, and our differences, below 0 if it holds; none: it was not run."""

    text: dict[str, str]
    differences: Differences

    @property
    def halves(self) -> list[float]:
        """Half the width of the interval of each difference."""
        level = 1 - 0.05 / max(1, len(self.differences))
        return [sweep.half_interval(values, level) for values in self.differences.values()]

    @property
    def verdict(self) -> str:
        """Confirmed, not confirmed, cannot be told, or not run."""
        means = [values.mean() for values in self.differences.values()]
        return decide([-mean for mean in means], self.halves)  # the interval of one seed is NaN

    @property
    def row(self) -> dict[str, str]:
        """A row of the table of claims."""
        ours = [
            f"{name} {values.mean():+.2f} ± {half:.2f}"
            for (name, values), half in zip(self.differences.items(), self.halves, strict=True)
        ]
        text = self.text
        told = {"verdict": self.verdict, "claim": text["claim"], "ours": "; ".join(ours)}
        return told | {name: text[name] for name in ("paper", "holds if", "where")}


def all_claims(errors: Errors, larger: Errors) -> list[Claim]:
    """List the claims in the order of the paper.

    Args:
        larger: of the same studies with a larger encoder; empty: not run.
    """
    found = of_fine_tuning(errors) | of_decay(errors) | of_text(errors) | of_kinds(errors)
    found |= of_multitask(errors) | of_few_rows(errors) | of_size(errors, larger)
    texts = read_arguments(str(Path(__file__).with_name("claims.yaml")))
    shown = {"margin": f"{MARGIN:g}", "chance": f"{CHANCE:g}", "helped": paper.helped()}
    return [
        Claim({k: v.format(**shown) for k, v in text.items()}, found[name])
        for name, text in texts.items()
    ]


# ---------------------------------------------------------------- differences


def minus(errors: Errors, key: tuple[str, str], one: str, other: str) -> Differences:
    """Subtract the error of a point from that of another, by seed; nothing if one is missing."""
    table = errors.get(key)
    if table is None or one not in table or other not in table:
        return {}
    return {f"{one} - {other}": table[one] - table[other]}


def minus_each(errors: Errors, key: tuple[str, str], one: str) -> Differences:
    """Subtract the error of every other point from that of one."""
    found: Differences = {}
    for other in errors.get(key, pd.DataFrame()):
        found |= minus(errors, key, one, other) if other != one else {}
    return found


def mean_over_sets(by_set: Mapping[str, Differences]) -> Differences:
    """Average the difference of each set by seed, for seeds that all of them have."""
    found = {SETS[where]: next(iter(own.values())) for where, own in by_set.items() if own}
    if not found:
        return {}
    return {"mean of " + ", ".join(found): pd.DataFrame(found).dropna().mean(axis=1)}


def gains(errors: Errors, text_of: Mapping[str, str], base: Mapping[str, str]) -> Differences:
    """Average over sets the error after pretraining on a text, less that after another.

    Args:
        text_of: set -> text.
        base: likewise, of what is subtracted.
    """
    pairs = {where: (text, base[where]) for where, text in text_of.items()}
    return mean_over_sets({w: minus(errors, ("domains", w), *pair) for w, pair in pairs.items()})


def turned(differences: Differences) -> Differences:
    """Turn gains around, less the margin: below 0 where the gain is smaller than that."""
    return {name: -values - MARGIN for name, values in differences.items()}


# ---------------------------------------------------------------- fine-tuning


def of_fine_tuning(errors: Errors) -> dict[str, Differences]:
    """Compare ways to read long text, layers, and rates: the first rate is the base."""
    single, joined, rates = ("layers", "single"), ("layers", "joined"), ("rates", "imdb")
    found: dict[str, Differences] = {
        f"cut_{where}": minus_each(errors, ("long_text", where), "head + tail")
        for where in ("imdb", "20news")
    }
    found |= {"upper_layers": {}, "joined_layers": {}, "low_rate": {}, "failing_rate": {}}
    layers = errors.get(single, pd.DataFrame(columns=[""]))
    found["last_layer"] = minus_each(errors, single, layers.columns[-1])
    for how in ("concat", "mean", "max"):
        found["upper_layers"] |= minus(errors, joined, f"last, {how}", f"first, {how}")
        found["joined_layers"] |= turned(minus(errors, joined, f"last, {how}", "last alone"))
    if rates in errors:
        rate = {point: float(point.split()[-1]) for point in errors[rates]}
        base, highest = next(iter(rate)), max(rate, key=rate.get)
        for point in sorted(rate, key=rate.get):
            if rate[point] > rate[base]:
                found["low_rate"] |= minus(errors, rates, base, point)
        found["failing_rate"] = {highest: CHANCE - errors[rates][highest]}
    return found


def of_decay(errors: Errors) -> dict[str, Differences]:
    """Compare points of the grid: two rates, the second the base; four decays: 1, .95, .90, .85."""
    key = ("decay", "imdb")
    if key not in errors:
        return {"mild_decay": {}, "strong_decay": {}, "best_decay": {}}
    points = [*errors[key]]
    half = len(points) // 2
    higher, lower = points[:half], points[half:]
    return {
        "mild_decay": minus(errors, key, lower[1], lower[0]),
        "strong_decay": minus(errors, key, lower[1], lower[-1])
        | minus(errors, key, higher[1], higher[-1]),
        "best_decay": minus_each(errors, key, lower[1]),
    }


# ---------------------------------------------------------------- further pretraining


def of_text(errors: Errors) -> dict[str, Differences]:
    """Compare steps of further pretraining, and its text by domain."""
    none = dict.fromkeys(SETS, "none")
    steps = errors.get(("steps", "imdb"), pd.DataFrame(columns=["", "", ""])).columns
    any_text, own_text = {}, {}
    for where in SETS:
        table = errors.get(("domains", where))
        if table is None:
            continue
        any_text[where] = {"": table.drop(columns="none").mean(axis=1) - table["none"]}
        domain = next(domain for domain in DOMAINS if where in domain)
        foreign = [text for text in SETS if text not in domain]
        own_text[where] = {"": table[where] - table[foreign].mean(axis=1)}
    return {
        "within_task": minus(errors, ("steps", "imdb"), steps[-1], steps[0]),
        "more_steps": minus(errors, ("steps", "imdb"), steps[-1], steps[1]),
        "any_text": mean_over_sets(any_text),
        "in_domain": gains(errors, BROADER, WITHIN),
        "trec_harm": minus(errors, ("domains", "trec"), "none", "trec"),
        "all_text": turned(gains(errors, EVERYTHING, none)),
        "foreign_text": mean_over_sets(own_text),
    }


def of_kinds(errors: Errors) -> dict[str, Differences]:
    """Compare frozen features, fine-tuning, and the three kinds of further pretraining."""
    none, three = dict.fromkeys(SETS, "none"), {}
    kinds = {"within-task": WITHIN, "in-domain": WITHIN | BROADER, "all text": EVERYTHING}
    for kind, text_of in kinds.items():
        for name, values in gains(errors, text_of, none).items():
            three[f"{kind} - none, {name}"] = values
    features = {w: minus(errors, ("features", w), "fine-tuned", "features") for w in SETS}
    return {
        "fine_tuned": mean_over_sets(features),
        "three_kinds": three,
        "narrower_text": gains(errors, kinds["in-domain"], EVERYTHING),
    }


# ---------------------------------------------------------------- several tasks, few rows, size


def of_multitask(errors: Errors) -> dict[str, Differences]:
    """Compare tasks alone with tasks that were fine-tuned together first."""

    def over_sets(one: str, other: str) -> Differences:
        return mean_over_sets({w: minus(errors, ("multitask", w), one, other) for w in SETS})

    after_all = over_sets("all text, together first", "all text, alone")
    return {
        "together_first": over_sets("together first", "alone"),
        "together_after_all": turned(after_all),
        "together_or_text": over_sets("all text, alone", "together first"),
    }


def of_few_rows(errors: Errors) -> dict[str, Differences]:
    """Compare further pretraining with few labelled rows and with all."""
    key = ("few_rows", "imdb")
    few = minus(errors, key, "0.4 %, ITPT", "0.4 %")
    whole = minus(errors, key, "100 %, ITPT", "100 %")
    both = [*few.values(), *whole.values()]
    fewer = {"0.4 % less 100 %": both[0] - both[1]} if len(both) == 2 else {}
    return {"few_rows": few, "fewer_rows": fewer}


def of_size(errors: Errors, larger: Errors) -> dict[str, Differences]:
    """Compare with a larger encoder, on IMDb: the first point is without, the last with it."""
    key = ("steps", "imdb")
    if key not in larger:
        return {"larger_gains": {}, "smaller_wins": {}}
    none, *_, last = larger[key]
    both = (errors[key].iloc[:, -1] - larger[key][none]).dropna() if key in errors else None
    smaller = {} if both is None else {"smaller with - larger without": both}
    return {"larger_gains": minus(larger, key, last, none), "smaller_wins": smaller}
