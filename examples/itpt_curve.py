"""Does further pretraining pay on a task, after how many steps, blended how far with its start?

    python run_itpt.py --model_name_or_path BASE --train_file text.csv \\
        --save_at_steps 0 300 1000 --max_steps 1000 --output_dir pilot
    python examples/itpt_curve.py --itpt pilot --seeds 1 2 3 4 5 --output_dir curve \\
        -- --train_file train.csv --validation_file dev.csv
    python run_finetune.py --model_name_or_path curve/best ...

Fine-tunes the start (step 0) and each step-N folder once a seed, then the best step blended with
the start (bertchain/pretraining/blending.py). Scores are those of the validation rows; run_probe.py
adds that of each encoder frozen. Differences to the start are paired: the same seed, the same rows.
What follows `--`, or is no argument of this script, are arguments of run_finetune.py. Runs that are
done already are not repeated: more --seeds go on.

verdict.json and the last line say "pays", "does not pay" or "cannot be told yet" by intervals of
95 %, shared among all that was tried; they speak of other seeds, not of other validation rows.
best/ holds the checkpoint to fine-tune: the best one where it pays, else the start. curve.csv,
blends.csv, curve.md and curve.png (also Sun et al. 2019, section 5.4.1) hold the scores.
"""

import argparse
import dataclasses
import gc
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from frozen_or_finetuned import flags_by_name

import run_finetune
import run_probe
from bertchain import cli, metrics
from bertchain.arguments.common import DataArguments, LabelArguments, TextArguments, WindowArguments
from bertchain.errors import InputError
from bertchain.pretraining import blending
from bertchain.runtime import figures, files, records

PAYS, NOT, OPEN = "pays", "does not pay", "cannot be told yet"


def main() -> None:
    """Fine-tune each checkpoint and blend with each seed; write tables, figure and verdict."""
    options, flags = read_arguments(sys.argv[1:])
    folder = Path(options.output_dir)
    paths = find_steps(options.base, Path(options.itpt))
    scores, metric = score_all(
        {("step", step): path for step, path in paths.items()}, options, flags
    )
    sign = -1.0 if metric.partition("_")[2] in metrics.LESS_IS_BETTER else 1.0
    steps = summarise(scores, "step", 0, metric, sign)
    best = int(
        steps["step"][steps["gain"].where(steps["step"] != 0).idxmax()]
    )  # the first of equals
    blends = {("blend", share): folder / "blends" / str(share) for share in options.blends}
    for (_, share), path in blends.items():
        blending.write_blend(paths[best], paths[0], share, path)
    blended, _ = score_all(blends, options, flags, f"step-{best}-")
    ends = scores[scores["step"].isin([0, best])]
    ends = ends.assign(blend=(ends["step"] == 0).astype(float)).drop(columns="step")
    blended = pd.concat([blended, ends]).astype({"blend": float}).sort_values(["blend", "seed"])
    shares = summarise(blended, "blend", 1.0, metric, sign)
    verdict = judge(steps, shares, best, options)
    chosen = blends.get(("blend", verdict["blend"]), paths[verdict["step"]])
    take(str(chosen), folder / "best")
    frozen = {f"step-{step}": path for step, path in paths.items()}
    frozen |= {f"step-{best}-blend-{share}": path for (_, share), path in blends.items()}
    probes = probe(frozen, folder / "probe", flags) if options.probe else {}
    shutil.rmtree(folder / "blends", ignore_errors=True)
    files.write_csv(folder / "curve.csv", scores)
    files.write_csv(folder / "blends.csv", blended)
    tables = steps.rename(columns={"step": "ITPT steps"}), shares, pd.DataFrame([probes])
    files.write_text(folder / "curve.md", "\n".join(map(records.markdown_table, tables)))
    history = pd.read_csv(Path(options.itpt) / "history.csv")
    plot(folder / "curve.png", scores, blended, metric, history)
    summary = {"summary": tables[0].to_dict("records"), "blends": shares.to_dict("records")}
    summary |= {"frozen": probes, "finetuning": flags, "versions": records.versions()}
    files.write_json(folder / "all_results.json", summary)
    files.write_json(folder / "verdict.json", verdict | {"metric": metric, "frozen": probes})
    print(tables[0].to_string(index=False), shares.to_string(index=False), sep="\n")
    print(verdict["said"])


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse this script's arguments; the others, and what follows --, are of run_finetune.py."""
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--base", help="the model that run_itpt.py started from; default: its step-0 folder"
    )
    parser.add_argument("--itpt", required=True, help="its output folder, with step-N folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument(
        "--blends", type=float, nargs="*", default=[0.25, 0.5, 0.75], help="shares of the start"
    )
    parser.add_argument(
        "--metric", help="such as eval_macro_f1; default: the task's main metric on validation rows"
    )
    parser.add_argument(
        "--least_gain", type=float, default=0.01, help="a gain below it does not count as one"
    )
    parser.add_argument("--no_probe", dest="probe", action="store_false", help="no frozen probes")
    parser.add_argument("--output_dir", default="curve")
    options, others = parser.parse_known_args(argv[:at])
    if not all(0 < share < 1 for share in options.blends):
        raise InputError(f"--blends {options.blends}: each share lies between 0 and 1")
    return options, others + argv[at + 1 :]


def find_steps(base: str | None, itpt: Path) -> dict[int, str]:
    """Find the checkpoints of step 0 and of those that --save_at_steps kept in the last run.

    Raises:
        InputError: if there is no such run, step 0 is missing, or the run was blended itself.
    """
    run_args = itpt / "run_args.yaml"
    if not run_args.is_file():
        raise InputError(f"--itpt {itpt}: no run of run_itpt.py ended there")
    arguments = cli.read_arguments(str(run_args))
    steps = arguments.get("save_at_steps", [])
    if not any(steps):
        raise InputError(f"--itpt {itpt} keeps no steps; run run_itpt.py with --save_at_steps")
    if base is None and 0 not in steps:
        raise InputError("give the model before further pretraining as --base")
    if arguments.get("blend_with_start"):
        raise InputError(f"--itpt {itpt} is blended already; run it without --blend_with_start")
    kept = {step: str(itpt / f"step-{step}") for step in sorted(steps)}
    return dict(sorted((kept if base is None else {**kept, 0: base}).items()))


# ---------------------------------------------------------------- runs


def score_all(
    paths: dict[tuple[str, float], Any],
    options: argparse.Namespace,
    flags: list[str],
    prefix: str = "",
) -> tuple[pd.DataFrame, str]:
    """Fine-tune each checkpoint with each seed.

    Args:
        paths: by (kind, number): the step or the blend.

    Returns:
        a row for each run: the number, seed and score; and the name of the score.
    """
    rows, metric = [], options.metric
    for seed in options.seeds:  # seed by seed: an interrupted curve has whole pairs
        for (kind, number), path in paths.items():
            name = f"{prefix}{kind}-{number}-seed-{seed}"
            results = finetune(str(path), seed, flags, Path(options.output_dir) / "runs" / name)
            metric = metric or main_metric(results)
            if metric not in results:
                raise InputError(f"--metric {metric} is not in the results; give the rows for it")
            rows.append({kind: number, "seed": seed, metric: results[metric]})
            print(f"{name}: {metric} {results[metric]:.4f}", flush=True)
    table = pd.DataFrame(rows, columns=None if rows else ["blend", "seed"])
    return table.sort_values([*table.columns[:2]]), metric


def finetune(path: str, seed: int, flags: list[str], folder: Path) -> dict:
    """Fine-tune once, unless it was done before; delete the weights, keep the predictions."""
    asked = [*flags, "--model_name_or_path", path, "--seed", str(seed), "--output_dir", str(folder)]
    done = folder / "done.json"
    if done.is_file() and json.loads(done.read_text())["arguments"] == asked:
        return json.loads((folder / "all_results.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    results = run_finetune.main(asked)
    gc.collect()
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    files.write_json(done, {"arguments": asked})
    return results


def main_metric(results: dict) -> str:
    """Name the main score of the task on validation rows."""
    mains = (metrics.STANDARDISED, *(metric for metric, *_ in metrics.MAIN_METRIC.values()))
    names = [f"eval_{metric}" for metric in mains]
    return next((name for name in names if name in results), names[1])


def probe(paths: dict[str, Any], out: Path, flags: list[str]) -> dict[str, float]:
    """Probe each encoder frozen; the validation score of its best layer."""
    groups = (DataArguments, TextArguments, LabelArguments, WindowArguments)
    known = {field.name for group in groups for field in dataclasses.fields(group)}
    arguments: dict[str, Any] = {k: v for k, v in flags_by_name(flags).items() if k in known}
    arguments |= {"models": [f"{name}={path}" for name, path in paths.items()]}
    shutil.rmtree(out, ignore_errors=True)
    done = run_probe.main(cli.flags_of(arguments | {"output_dir": str(out)}))
    scores = done.headline.set_index("what").iloc[:, 1]
    shutil.rmtree(out / "features", ignore_errors=True)
    return {name: float(scores[f"{name}: best frozen layer"]) for name in paths}


def take(source: str, folder: Path) -> None:
    """Copy a checkpoint, from a folder or the hub."""
    if not Path(source).is_dir():
        from huggingface_hub import snapshot_download

        source = snapshot_download(source, allow_patterns=["*.safetensors", "*.json", "*.txt"])
    shutil.rmtree(folder, ignore_errors=True)
    with files.atomic_files(folder) as temporary:
        for path in Path(source).iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(path, temporary)


# ---------------------------------------------------------------- what came out


def summarise(
    scores: pd.DataFrame, by: str, start: float, metric: str, sign: float
) -> pd.DataFrame:
    """Compute mean and standard deviation over seeds, and the paired difference to the start.

    Args:
        by: the column of steps or blends, of which `start` is that of the start.
        sign: -1 for a metric of which less is better; `gain` is positive where it got better.
    """
    table = scores.pivot(index="seed", columns=by, values=metric)
    rows = []
    for number in table.columns:
        difference = table[number] - table[start]
        rows.append(
            {
                by: number,
                metric: table[number].mean(),
                "sd": table[number].std(),
                "difference to 0": difference.mean(),
                "its standard error": difference.std() / len(table) ** 0.5,
                "seeds better": f"{(sign * difference > 0).sum()} of {len(table)}",
                "gain": sign * difference.mean(),
            }
        )
    return pd.DataFrame(rows)


def judge(
    steps: pd.DataFrame, shares: pd.DataFrame, best: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Judge by intervals of 95 % for all that was tried at once (Bonferroni, Student's t)."""
    tried = [(int(row["step"]), 0.0, row) for _, row in steps.iterrows() if row["step"] != 0]
    tried += [(best, row["blend"], row) for _, row in shares.iterrows() if 0 < row["blend"] < 1]
    seeds, least = len(options.seeds), options.least_gain

    def half(row: pd.Series, n: int = seeds) -> float:
        error = row["its standard error"] * (seeds / n) ** 0.5
        return float(stats.t.ppf(1 - 0.025 / len(tried), n - 1) * error) if n > 1 else math.inf

    sure = [one for one in tried if one[2]["gain"] - half(one[2]) > 0]
    step, blend, row = max(sure or tried, key=lambda one: one[2]["gain"])
    gain, width = row["gain"], half(row)
    if sure:
        word, why = PAYS, "so fine-tune best/, which is that checkpoint"
    elif all(one[2]["gain"] + half(one[2]) < least for one in tried):
        word, why = NOT, f"so nothing that was tried gains {least:g}; best/ is the start"
    else:
        aim = gain if gain > 0 else least - gain
        enough = (n for n in range(seeds + 1, 101) if seeds > 1 and half(row, n) < aim)
        more = next(enough, None)
        word = OPEN
        why = f"some {more} seeds would tell; " if more else "a handful of seeds will not tell; "
        why += "until then best/ is the start"
    said = f"Further pretraining {word}: step {step}, blend {blend:g}: {gain:+.4f} "
    said += f"({gain - width:+.4f} to {gain + width:+.4f}; {seeds} seeds), {why}"
    taken = {"step": step, "blend": blend} if sure else {"step": 0, "blend": 0.0}
    tried_best = {"tried_step": step, "tried_blend": blend, "gain": gain}
    interval = {"interval": [gain - width, gain + width], "candidates": len(tried)}
    return {
        "verdict": word,
        **taken,
        **tried_best,
        **interval,
        "seeds": options.seeds,
        "said": said,
    }


def plot(
    path: Path, scores: pd.DataFrame, blended: pd.DataFrame, metric: str, history: pd.DataFrame
) -> None:
    """Plot scores by step and by blend, of each seed and their mean, and held-out perplexity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.5, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    titles = {"step": "steps of further pretraining", "blend": "share of the start in the blend"}
    for axis, table, by in zip(axes, (scores, blended), titles, strict=False):
        for seed, rows in table.groupby("seed"):
            axis.plot(rows[by], rows[metric], marker=".", linewidth=0.6, alpha=0.6, label=seed)
        mean = table.groupby(by)[metric].mean()
        axis.plot(mean.index, mean, marker="o", color="black", label="mean")
        start = mean[0 if by == "step" else 1.0]
        axis.axhline(start, color="grey", linestyle="--", linewidth=1, label="without ITPT")
        axis.set(xlabel=titles[by], ylabel=metric, title=f"Fine-tuned score by {by}")
    figures.add_legend(axes[0], title="seed", ncols=3)
    own = history[history["phase"] == "all"] if "phase" in history else history
    axes[2].plot(own["step"], own["eval_perplexity"], marker="o", color="tab:orange")
    axes[2].set(xlabel=titles["step"], ylabel="perplexity, held-out documents")
    axes[2].set_yscale("log")
    axes[2].set_title("Masked language model")
    for axis in axes:
        axis.grid(alpha=0.3)
    for axis in (axes[0], axes[2]):
        figures.tick_whole_numbers(axis)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


if __name__ == "__main__":
    cli.run_script(main)
