"""Task score against steps of further pretraining (the figure of Sun et al. 2019, section 5.4.1).

    python run_itpt.py --model_name_or_path BASE --train_file text.csv \\
        --save_at_steps 1000 3000 10000 --output_dir itpt
    python examples/itpt_curve.py --base BASE --itpt itpt --seeds 1 2 3 --output_dir curve \\
        -- --train_file train.csv --test_file test.csv

Fine-tunes the base model (step 0) and each step-N folder once a seed; what follows `--` are the
arguments of run_finetune.py. Differences to step 0 are paired: the same seed, the same rows. Runs
that are done already are not repeated.
"""

import argparse
import gc
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import run_finetune
from bertchain import cli, metrics
from bertchain.errors import InputError
from bertchain.runtime import figures, files, records


def main() -> None:
    """Fine-tune each checkpoint with each seed; write a table and a figure."""
    options, flags = read_arguments(sys.argv[1:])
    checkpoints = find_steps(options.base, Path(options.itpt))
    folder = Path(options.output_dir)
    rows = []
    for seed in options.seeds:  # seed by seed: an interrupted curve has whole pairs
        for step, path in sorted(checkpoints.items()):
            results = finetune(path, seed, flags, folder / "runs" / f"step-{step}-seed-{seed}")
            metric = options.metric or main_metric(results)
            if metric not in results:
                raise InputError(f"--metric {metric} is not in the results; give a --test_file")
            rows.append({"step": step, "seed": seed, metric: results[metric]})
            print(f"step {step}, seed {seed}: {metric} {results[metric]:.4f}", flush=True)
    scores = pd.DataFrame(rows).sort_values(["step", "seed"])
    summary = summarise(scores, metric)
    files.write_csv(folder / "curve.csv", scores)
    files.write_text(folder / "curve.md", records.markdown_table(summary))
    plot(folder / "curve.png", scores, metric, pd.read_csv(Path(options.itpt) / "history.csv"))
    results = {"summary": summary.to_dict("records"), "finetuning": flags}
    files.write_json(folder / "all_results.json", results | {"versions": records.versions()})
    print(summary.to_string(index=False))


def read_arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse this script's arguments, up to --; what follows are flags of run_finetune.py."""
    at = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--base", help="the model that run_itpt.py started from; default: its step-0 folder"
    )
    parser.add_argument("--itpt", required=True, help="its output folder, with step-N folders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--metric", help="such as test_macro_f1; default: the task's main metric")
    parser.add_argument("--output_dir", default="curve")
    return parser.parse_args(argv[:at]), argv[at + 1 :]


def find_steps(base: str | None, itpt: Path) -> dict[int, str]:
    """Find the checkpoints of step 0 and of those that --save_at_steps kept in the last run.

    Raises:
        InputError: if there is no such run or step 0 is missing.
    """
    run_args = itpt / "run_args.yaml"
    if not run_args.is_file():
        raise InputError(f"--itpt {itpt}: no run of run_itpt.py ended there")
    steps = cli.read_arguments(str(run_args)).get("save_at_steps", [])
    if not steps:
        raise InputError(f"--itpt {itpt} keeps no steps; run run_itpt.py with --save_at_steps")
    if base is None and 0 not in steps:
        raise InputError("give the model before further pretraining as --base")
    kept = {step: str(itpt / f"step-{step}") for step in sorted(steps)}
    return kept if base is None else {**kept, 0: base}


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
    """Name the main test score of the task, as far as the results hold one."""
    mains = (metrics.STANDARDISED, *(metric for metric, *_ in metrics.MAIN_METRIC.values()))
    names = [f"test_{metric}" for metric in mains]
    return next((name for name in names if name in results), names[1])


def summarise(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Compute mean and standard deviation over seeds, and the paired difference to step 0."""
    table = scores.pivot(index="seed", columns="step", values=metric)
    rows = []
    for step in table.columns:
        difference = table[step] - table[0]
        rows.append(
            {
                "ITPT steps": int(step),
                metric: table[step].mean(),
                "sd": table[step].std(),
                "difference to 0": difference.mean(),
                "its standard error": difference.std() / len(table) ** 0.5,
                "seeds better": f"{(difference > 0).sum()} of {len(table)}",
            }
        )
    return pd.DataFrame(rows)


def plot(path: Path, scores: pd.DataFrame, metric: str, history: pd.DataFrame) -> None:
    """Plot the score of each seed and their mean (left), and held-out perplexity (right)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    mean = scores.groupby("step")[metric].mean()
    left.axhline(mean[0], color="grey", linestyle="--", linewidth=1, label="without ITPT")
    for seed, rows in scores.groupby("seed"):
        left.plot(rows["step"], rows[metric], marker=".", linewidth=0.6, alpha=0.6, label=seed)
    left.plot(mean.index, mean, marker="o", color="black", label="mean")
    left.set(xlabel="steps of further pretraining", ylabel=metric, title="Fine-tuned score")
    left.legend(title="seed", fontsize="small", ncols=2, framealpha=0.6)
    right.plot(history["step"], history["eval_perplexity"], marker="o", color="tab:orange")
    right.set(xlabel="steps of further pretraining", ylabel="perplexity, held-out documents")
    right.set_yscale("log")
    right.set_title("Masked language model")
    for axis in (left, right):
        figures.tick_whole_numbers(axis)
        axis.grid(alpha=0.3)
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


if __name__ == "__main__":
    cli.run_script(main)
