"""Is a frozen encoder bad, or only its head badly trained? Four ways in one picture.

    python examples/frozen_or_finetuned.py --model MODEL --output_dir frozen_or_finetuned -- \\
        --train_file train.csv --validation_file dev.csv --test_file test.csv \\
        --text_column_names title abstract --label_column_name labels

1. frozen, head trained by SGD at the rate of fine-tuning: so it seems that a frozen BERT is no use
2. frozen, the same head at a rate that fits a new head
3. frozen, a probe trained until its gradient vanishes (run_probe.py)
4. everything fine-tuned

What follows `--` are arguments of run_finetune.py; those on data, text, labels and windows go to
run_probe.py as well. Written are scores.csv, report.md and curves.png: the validation score by
epoch of 1, 2 and 4, and the level of 3. Runs that are done already are not repeated.
"""

import argparse
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run_finetune
import run_probe
from bertchain.arguments.common import DataArguments, LabelArguments, TextArguments, WindowArguments
from bertchain.cli import flags_of, run_script
from bertchain.errors import InputError
from bertchain.runtime.figures import add_legend, tick_whole_numbers
from bertchain.runtime.files import atomic_write, write_csv, write_json, write_text
from bertchain.runtime.records import markdown_table, versions

# Roc auc does not depend on a threshold, which a badly trained head would not have found either.
METRICS = ("roc_auc_macro", "roc_auc", "spearman")

EXPLANATION = """
The encoder of the first three rows is the same, bit by bit. What differs is how far the layer on
top of it came: at the rate that suits weights which are almost right, a new layer hardly leaves its
random start, and its score says how many steps it took, not what the features hold. Only between a
head that has converged and a fine-tuned model does a comparison tell what fine-tuning adds.
"""


def main() -> None:
    options, flags = read_arguments(sys.argv[1:])
    folder = Path(options.output_dir)
    rates = (options.finetuning_rate, options.head_rate)
    sgd = {"freeze": "encoder", "optim": "sgd", "learning_rate": rates[0], "head_dropout": 0.0}
    ways = {
        "frozen, SGD at the rate of fine-tuning": sgd,
        "frozen, a fitting rate": {"freeze": "encoder", "learning_rate": rates[1]},
        "fine-tuned": {"learning_rate": rates[0]},
    }
    scores, curves = {}, {}
    for i, (name, own) in enumerate(ways.items()):
        out = folder / f"run-{i}"
        scores[name] = once(out, own, options, flags)
        curves[name] = pd.read_csv(out / "history.csv")
    metric = next((m for m in METRICS if f"eval_{m}" in scores["fine-tuned"]), None)
    if metric is None:
        raise InputError("the results hold none of " + ", ".join(METRICS))
    probe = best_layer(probe_all_layers(folder / "probe", options, flags), metric)
    order = [*list(ways)[:2], PROBE, "fine-tuned"]
    table = score_table({**scores, PROBE: probe}, order, metric)
    write_csv(folder / "scores.csv", table)
    write_text(folder / "report.md", markdown_table(table) + EXPLANATION)
    write_json(folder / "all_results.json", {"arguments": vars(options), "versions": versions()})
    plot(folder / "curves.png", curves, probe, metric)
    print(table.to_string(index=False))


PROBE = "frozen, converged probe"


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    own, flags = (argv, []) if "--" not in argv else split(argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="a hub name or folder")
    parser.add_argument("--finetuning_rate", type=float, default=2e-5)
    parser.add_argument("--head_rate", type=float, default=2e-2, help="that fits a new head")
    parser.add_argument("--output_dir", default="frozen_or_finetuned")
    return parser.parse_args(own), flags_by_name(flags)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    at = argv.index("--")
    return argv[:at], argv[at + 1 :]


def flags_by_name(flags: list[str]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for word in flags:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            named[name] = [value] if value else []
        elif named:
            next(reversed(named.values())).append(word)
    return named


def once(out: Path, own: dict, options: argparse.Namespace, flags: dict) -> dict:
    """Fine-tune, or read the results of an equal run."""
    arguments = {"model_name_or_path": options.model, "token_pooling": "mean", **flags}
    arguments |= {**own, "output_dir": str(out), "load_best_model_at_end": False}
    done = out / "done.json"
    asked = {k: str(v) for k, v in arguments.items()}
    if done.is_file() and json.loads(done.read_text()) == asked:
        return json.loads((out / "all_results.json").read_text())
    shutil.rmtree(out, ignore_errors=True)
    results = run_finetune.main(
        flags_of({name: True if value == [] else value for name, value in arguments.items()})
    )
    write_json(done, asked)
    return results


def probe_all_layers(out: Path, options: argparse.Namespace, flags: dict) -> pd.DataFrame:
    groups = (DataArguments, TextArguments, LabelArguments, WindowArguments)
    known = {field.name for group in groups for field in dataclasses.fields(group)}
    arguments = {name: value for name, value in flags.items() if name in known}
    arguments |= {"models": [f"base={options.model}"], "features_dir": str(out.parent / "features")}
    shutil.rmtree(out, ignore_errors=True)
    run_probe.main(flags_of(arguments | {"output_dir": str(out)}))
    return pd.read_csv(out / "results.csv")


def best_layer(results: pd.DataFrame, metric: str) -> dict[str, float]:
    """Pick eval_ and test_ scores of the layer and pooling with the best validation score."""
    probes = results[results["layer"].notna() & (results["metric"] == metric)]
    table = probes.pivot(index=["layer", "token_pooling"], columns="split", values="value")
    best = table.loc[table["validation"].idxmax()]
    names = {"validation": "eval", "test": "test"}
    return {f"{names[split]}_{metric}": best[split] for split in names if split in best}


# ---------------------------------------------------------------- what came out


def score_table(scores: dict[str, dict], order: list[str], metric: str) -> pd.DataFrame:
    columns = {f"eval_{metric}": f"validation {metric}", f"test_{metric}": f"test {metric}"}
    rows = [
        {"what": name, **{title: scores[name].get(key) for key, title in columns.items()}}
        for name in order
    ]
    return pd.DataFrame(rows).dropna(axis="columns", how="all")


def plot(path: Path, curves: dict[str, pd.DataFrame], probe: dict[str, float], metric: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axis = figure.subplots()
    colors = dict(zip(curves, ("tab:red", "tab:blue", "tab:green"), strict=True))
    for name, history in curves.items():
        label, color = name, colors[name]
        axis.plot(history["epoch"], history[f"eval_{metric}"], "o-", label=label, color=color)
    axis.axhline(probe[f"eval_{metric}"], linestyle="--", color="tab:purple", label=PROBE)
    axis.set(xlabel="epoch", ylabel=f"validation {metric}", title="The same encoder, four ways")
    add_legend(axis)
    tick_whole_numbers(axis)
    axis.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


if __name__ == "__main__":
    run_script(main)
