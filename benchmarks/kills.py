"""Kill each script in each of its phases, run it again, compare the end with a run left alone.

    python benchmarks/kills.py --output kills.md      # 4 signals x 8 phases x 4 kinds of run
    python benchmarks/kills.py --short                # 4 cells
    python benchmarks/kills.py --runs folds --signals KILL --phases "a save"

Runs are small (48 documents, a BERT of 4 blocks of 32) and forks of one process that has imported
torch (tests/forking.py). The signal comes from inside, at the call that `POINTS` names, so each
cell is the same each time. Then the same command runs again; where it is refused and names
--resume_from_checkpoint, once more with that. Predictions, tables and weights must then have the
bytes of the run left alone.
"""

import argparse
import importlib
import inspect
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SIGNALS = ("INT", "TERM", "HUP", "KILL")
PHASES = (
    *("start", "data", "model", "first step", "between checkpoints", "a save", "evaluation"),
    "last write",
)
SHORT = [("one", "a save", "KILL"), ("folds", "between checkpoints", "TERM")]
SHORT += [("itpt", "evaluation", "INT"), ("probe", "a save", "HUP")]


class Run(NamedTuple):
    """A kind of run: its script, its arguments but for --output_dir, and what is compared."""

    script: str
    arguments: str
    outputs: tuple[str, ...]


class Cell(NamedTuple):
    """What happened: the exit code of the killed run, what was then typed, and how that ended."""

    code: int
    again: str
    outcome: str


TRAINING = "--use_cpu true --disable_tqdm true --save_strategy steps --save_steps 4 --eval_steps 4"
TRAINING += " --eval_strategy steps --per_device_train_batch_size 8 --learning_rate 3e-3"
TUNING = f"--model_name_or_path model --train_file train.csv --test_file test.csv {TRAINING}"
TUNING += " --id_column_name id --num_train_epochs 3"
PROBING = "--models base=model other=model --train_file train.csv --test_file train.csv"
PROBING += " --id_column_name id --analyses change geometry"
RUNS = {
    "one": Run("run_finetune", TUNING, ("predictions_*.csv", "history.csv", "model.safetensors")),
    "folds": Run(
        "run_finetune", f"{TUNING} --num_folds 2", ("predictions_*.csv", "history.csv", "folds.csv")
    ),
    "itpt": Run(
        "run_itpt",
        f"--model_name_or_path model --train_file train.csv {TRAINING} --num_train_epochs 2",
        ("model.safetensors", "config.json", "history.csv"),
    ),
    "probe": Run("run_probe", PROBING, ("results.csv", "drift.csv", "geometry.csv")),
}


# ---------------------------------------------------------------- inside the run


def points(run: str, phase: str) -> tuple[Any, str, int, Callable[..., bool]]:
    """Find where a phase is: owner and name of a function, which of its calls, and of which kind.

    A call counts if the last function holds for its arguments.
    """
    import datasets
    import numpy as np
    import transformers

    from bertchain import cli
    from bertchain.probing import features, layer_probes, probed_models

    trainer, store = transformers.Trainer, features.FeatureStore

    def any_call(*arguments: Any, **named: Any) -> bool:
        return True

    def writes_results(source: Any, target: Any) -> bool:
        return Path(target).name == "all_results.json" and Path(target).parent.name == "out"

    last = 2 if run == "one" else 1  # its model has an all_results.json of the same name
    found = {
        "start": (cli, "start_logging", 1, any_call),
        "data": (datasets.Dataset, "map", 1, any_call),
        "model": (transformers.PreTrainedModel, "from_pretrained", 1, any_call),
        "first step": (trainer, "training_step", 1, any_call),
        "between checkpoints": (trainer, "training_step", 7, any_call),
        "a save": (trainer, "_save_optimizer_and_scheduler", 2, any_call),
        "evaluation": (trainer, "evaluation_loop", 2, any_call),
        "last write": (os, "replace", last, writes_results),
    }
    if run == "probe":
        found |= {
            "first step": (store, "compute", 1, any_call),
            "between checkpoints": (probed_models, "compute_features", 2, any_call),
            "a save": (np.memmap, "flush", 1, any_call),
            "evaluation": (layer_probes, "add_probes", 2, any_call),
        }
    return found[phase]


def arm(run: str, phase: str, number: int) -> None:
    """Have this process send itself a signal in a phase."""
    owner, name, nth, counts = points(run, phase)
    static = inspect.getattr_static(owner, name)
    own = static.__func__ if isinstance(static, classmethod) else static
    calls = 0

    def armed(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += counts(*arguments, **named)
        if calls == nth and counts(*arguments, **named):
            os.kill(os.getpid(), number)
        return own(*arguments, **named)

    setattr(owner, name, classmethod(armed) if isinstance(static, classmethod) else armed)


def run_armed(run: str, phase: str, name: str, arguments: list[str]) -> None:
    """Run a script in this process as its command line does, with a signal on its way."""
    from bertchain import cli

    script = RUNS[run].script
    sys.argv = [f"{script}.py", *arguments]
    number = signal.Signals[f"SIG{name}"]
    # jobs in the background of a shell ignore SIGINT, those under nohup SIGHUP
    own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    if number != signal.SIGKILL:
        signal.signal(number, own)
    module = importlib.import_module(script)
    arm(run, phase, number)
    cli.run_script(module.main)


# ---------------------------------------------------------------- from outside


def make_inputs(folder: Path) -> None:
    """Write model/, train.csv and test.csv."""
    import pandas as pd
    import torch
    from conftest import bert_tokenizer, make_rows, tiny_bert_config
    from transformers import BertModel

    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    BertModel(tiny_bert_config(len(tokenizer))).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    pd.DataFrame(make_rows(60)).to_csv(folder / "train.csv", index=False)
    test = pd.DataFrame(make_rows(20, seed=1)).drop(columns="label")
    test.to_csv(folder / "test.csv", index=False)


def contents(run: str, out: Path) -> dict[str, bytes]:
    """Bytes of what is compared, by path; of a run that was killed, perhaps nothing."""
    found = {path for pattern in RUNS[run].outputs for path in out.rglob(pattern)}
    kept = [p for p in sorted(found) if not any(d.startswith("checkpoint-") for d in p.parts)]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}


def start(folder: Path, run: str, out: Path, *more: str) -> tuple[int, str]:
    """Run a command; its exit code, and what it said on standard error."""
    from forking import run_command

    words = [*RUNS[run].arguments.split(), "--output_dir", str(out), *more]
    done = run_command(ROOT / f"{RUNS[run].script}.py", *words, cwd=folder)
    return done.returncode, done.stderr


def left_alone(folder: Path, run: str) -> dict[str, bytes]:
    """Run without a signal; what is compared with."""
    out = folder / f"{run}-alone" / "out"
    code, said = start(folder, run, out)
    if code:
        sys.exit(said)
    return contents(run, out)


def run_cell(folder: Path, cell: tuple[str, str, str], expected: dict[str, bytes]) -> Cell:
    """Kill a run, and run it again."""
    from forking import run_command

    run, phase, name = cell
    out = folder / "-".join(cell).replace(" ", "-") / "out"
    words = [*RUNS[run].arguments.split(), "--output_dir", str(out)]
    done = run_command(__file__, "--inside", run, phase, name, *words, cwd=folder)
    again, (code, said) = "the same", start(folder, run, out)
    if code == 2 and "--resume_from_checkpoint last" in said:
        again = "--resume_from_checkpoint last"
        code, said = start(folder, run, out, *again.split())
    if code:
        return Cell(done.returncode, again, f"{code}: {said.strip().splitlines()[-1]}")
    found = contents(run, out)
    differ = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
    return Cell(done.returncode, again, f"differ: {', '.join(differ)}" if differ else "equal")


def table(cells: dict[tuple[str, str, str], Cell]) -> Iterator[str]:
    """Rows of a Markdown table: a run and phase, with what each signal led to."""
    names = [name for name in SIGNALS if any(cell[2] == name for cell in cells)]
    yield "| run | killed in | " + " | ".join(f"SIG{name}" for name in names) + " |"
    yield "| --- " * (2 + len(names)) + "|"
    for run, phase in dict.fromkeys(cell[:2] for cell in cells):
        found = [cells.get((run, phase, name)) for name in names]
        shown = [
            f"{c.outcome} ({c.code}{'+' * (c.again != 'the same')})" if c else "" for c in found
        ]
        yield f"| {run} | {phase} | " + " | ".join(shown) + " |"
    equal = sum(cell.outcome == "equal" for cell in cells.values())
    yield f"\n{equal} of {len(cells)} end with the bytes of a run left alone. In brackets: the exit"
    yield "code of the killed run; + : the second needed --resume_from_checkpoint last."


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="a few cells")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--phases", nargs="+", default=list(PHASES), choices=PHASES)
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=SIGNALS)
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--output", help="file for the table, beside the screen")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["--inside"]:
        return run_armed(*sys.argv[2:5], sys.argv[5:])
    options = read_arguments()
    wanted = [(r, p, s) for r in options.runs for p in options.phases for s in options.signals]
    wanted = SHORT if options.short else wanted
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as jobs:
        folder = Path(name)
        make_inputs(folder)
        alone = {run: left_alone(folder, run) for run in dict.fromkeys(cell[0] for cell in wanted)}

        def measure(cell: tuple[str, str, str]) -> Cell:
            found = run_cell(folder, cell, alone[cell[0]])
            print(*cell, *found, sep=" | ", flush=True)
            return found

        text = "\n".join(table(dict(zip(wanted, jobs.map(measure, wanted), strict=True))))
    print(text)
    if options.output:
        Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
