"""Search the arguments of a run with Optuna: trials over folds, pruned, resumable.

    python examples/search.py search.yaml

    run: run.yaml                      # of run_finetune.py with folds: a file, or the arguments
    output_dir: search
    space:
      learning_rate: {low: 1e-5, high: 1e-3, log: true}
      layer_lr_decay: [1.0, 0.95, 0.9]                # one of these
      num_train_epochs: {low: 2, high: 6}             # whole numbers, as both ends are
    trials: 30
    metric: oof_f1_macro               # default: the main score
    seed: 42

A trial trains the folds of the run one by one, and every trial the same folds. After each its score
over the rows so far is compared with the other trials, and one below their median is given up
(Optuna's MedianPruner). The same command goes on until there are so many trials; one that was cut
off goes on from its last checkpoint. A trial that the script refuses counts as failed.

It writes study.db (Optuna's, SQLite), trials.csv, history.png, importance.png, search.md, and
best.yaml: `python run_finetune.py best.yaml` trains the best once more, with its test rows. Trials
keep their predictions and no weights. The best of many scores on the same rows is too good: judge
it on test rows.

`Trainer.hyperparameter_search` knows one split and sets TrainingArguments alone, which leaves out
folds, layer-wise rates, windows and poolings; so Optuna is called here as it does.

Needs `pip install optuna`.
"""

import dataclasses
import hashlib
import importlib
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from transformers import TrainingArguments

import run_finetune
from bertchain import cli, metrics
from bertchain.arguments import finetuning
from bertchain.competition import manifests
from bertchain.data import tasks
from bertchain.errors import InputError, at_least, nearest
from bertchain.runtime import files, locks, records

DEFAULTS = {
    "run": None,
    "output_dir": "search",
    "space": None,
    "trials": 20,
    "metric": None,
    "seed": 42,
}
PRUNER = {"n_startup_trials": 5}  # trials before any is given up
OF_THE_TEST = ("test_file", "sample_submission", "submission_values", "positive_label")
OWN = ("output_dir", "folds", "num_folds", "fold_column_name", "fold_strategy", "seed", "seeds")
GROUPS = (*finetuning.GROUPS, TrainingArguments)


def main() -> None:
    """Run the trials that are missing, and write what was found."""
    if importlib.util.find_spec("optuna") is None:
        raise InputError("the package optuna is missing: pip install optuna")
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = read_search(sys.argv[1:])
    folder = Path(search["output_dir"])
    args = finetuning.Arguments(*cli.parse(GROUPS, search["run"], run_finetune.DEFAULTS))
    if not args.folds.with_folds:
        raise InputError("run: a search needs folds: num_folds or fold_column_name")
    seed, source = args.training.seed, args.checkpoint.model_name_or_path
    task = tasks.load_task(*args.sources, seed=seed, checkpoint=source).with_folds(args.folds, seed)
    main_score, more = metrics.main_metric(task.spec.problem_type, len(task.spec.names))
    search["metric"] = search["metric"] or f"oof_{main_score}"
    if search["metric"] != f"oof_{main_score}":
        more = search["metric"].removeprefix("oof_") not in metrics.LESS_IS_BETTER
    manifest = manifests.make_manifest(args.run_config, seed)
    with locks.lock(folder):
        study = open_study(search, manifest, "maximize" if more else "minimize")
        left = search["trials"] - sum(map(is_finished, study.trials))
        if left > 0:
            folds = sorted({*task.folds.ravel().tolist()})
            attempt = partial(try_values, search=search, folds=folds)
            study.optimize(
                attempt, n_trials=left, catch=(InputError,), callbacks=[stop_if_all_fail]
            )
        write_results(study, search)


# ---------------------------------------------------------------- what is searched


def read_search(argv: list[str]) -> dict[str, Any]:
    """Read and check the YAML file; `DEFAULTS` stand for what it leaves out.

    Raises:
        InputError: naming what is not as it should be.
    """
    if len(argv) != 1:
        raise InputError("give one YAML file; its form is described at the top of search.py")
    search = cli.read_arguments(argv[0])
    for key in search:
        if key not in DEFAULTS:
            raise InputError(f"{argv[0]}: {key} is not one of {', '.join(DEFAULTS)}")
    search = DEFAULTS | search
    for key in ("run", "space"):
        if not search[key]:
            raise InputError(f"{argv[0]}: {key} is missing")
    if isinstance(search["run"], str):
        search["run"] = cli.read_arguments(search["run"])
    if not isinstance(search["run"], dict) or not isinstance(search["space"], dict):
        raise InputError(f"{argv[0]}: run is a file or arguments, space names arguments")
    for key in ("trials", "seed"):
        if not isinstance(search[key], int):
            raise InputError(f"{argv[0]}: {key} {search[key]} is no whole number")
    at_least("trials", search["trials"], 1)
    known = sorted({field.name for group in GROUPS for field in dataclasses.fields(group)})
    for name, values in search["space"].items():
        if name not in known or name in OWN:
            raise InputError(f"space: {name} is not an argument to search{nearest(name, known)}")
        search["space"][name] = read_values(name, values)
    return search


def read_values(name: str, values: Any) -> list[Any] | dict[str, Any]:
    """Check the values of an argument: two or more to choose from, or {low, high, log}.

    Raises:
        InputError: naming the argument.
    """
    if isinstance(values, list):
        if len(values) < 2 or any(isinstance(value, list | dict) for value in values):
            raise InputError(f"space: {name}: give two plain values or more to choose from")
        return values
    if not isinstance(values, dict) or not {"low", "high"} <= {*values} <= {"low", "high", "log"}:
        raise InputError(f"space: {name}: give a list of values, or low and high (and log: true)")
    try:  # YAML reads 1e-5 as text
        ends = [v if isinstance(v, int) else float(v) for v in (values["low"], values["high"])]
    except (TypeError, ValueError) as error:
        raise InputError(f"space: {name}: low and high are numbers: {error}") from error
    log = bool(values.get("log", False))
    if not ends[0] < ends[1] or (log and ends[0] <= 0):
        raise InputError(f"space: {name}: low is below high, and with log: true above 0")
    return {"low": ends[0], "high": ends[1], "log": log}


def open_study(search: dict[str, Any], manifest: dict[str, Any], direction: str) -> Any:
    """Open the study of a folder, or begin it; trials that were cut off are queued again.

    Raises:
        InputError: where it is of other arguments, files or values.
    """
    optuna = importlib.import_module("optuna")
    folder = Path(search["output_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{(folder / 'study.db').absolute()}",
        load_if_exists=True,
        direction=direction,
        pruner=optuna.pruners.MedianPruner(**PRUNER),
    )
    # from the same seed a study that goes on would draw its first values again
    study.sampler = optuna.samplers.TPESampler(seed=search["seed"] + len(study.trials))
    asked = manifest["arguments"] | manifest["files"] | {"seed": manifest["seed"]}
    asked = {name: value for name, value in asked.items() if name not in search["space"]}
    asked |= {"space": search["space"], "metric": search["metric"]}
    asked = json.loads(json.dumps(asked))
    before = study.user_attrs.get("asked", asked)
    study.set_user_attr("asked", before)
    differ = [name for name in {**before, **asked} if before.get(name) != asked.get(name)]
    if differ:
        raise InputError(
            f"output_dir {folder} holds a search with another {differ[0]}; choose another folder"
        )
    known = [values_of(t) for t in study.trials if is_finished(t) or t.state.name == "WAITING"]
    for trial in study.trials:
        cut_off = not is_finished(trial) and trial.state.name in ("RUNNING", "FAIL")
        if trial.state.name == "RUNNING":
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if cut_off and len(trial.params) == len(search["space"]) and trial.params not in known:
            study.enqueue_trial(trial.params)
            known.append(trial.params)
    return study


def is_finished(trial: Any) -> bool:
    """Return whether a trial has a score, was given up, or was refused: it is not tried again."""
    return trial.state.name in ("COMPLETE", "PRUNED") or "error" in trial.user_attrs


def values_of(trial: Any) -> dict[str, Any]:
    """The arguments of a trial, of one that waits those that it will have."""
    return trial.params or trial.system_attrs.get("fixed_params", {})


# ---------------------------------------------------------------- trials


def try_values(trial: Any, search: dict[str, Any], folds: list[int]) -> float:
    """Train the folds with a trial's values, one by one. Returns the score over all rows.

    Raises:
        InputError: as run_finetune.py; the trial keeps its line.
        TrialPruned: where the folds so far are worse than those of most trials.
    """
    optuna = importlib.import_module("optuna")
    values = {name: suggest(trial, name, own) for name, own in search["space"].items()}
    spelt = json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(spelt.encode()).hexdigest()[:12]
    folder = Path(search["output_dir"]) / "trials" / digest
    trial.set_user_attr("folder", digest)
    run = {"disable_tqdm": True} | search["run"] | values | {"output_dir": str(folder)}
    if not run.get("pseudo_label_file"):
        run = {name: value for name, value in run.items() if name not in OF_THE_TEST}
    print(f"trial {trial.number}: {spelt}", flush=True)
    try:
        for number, fold in enumerate(folds):
            results = run_finetune.main(run | {"folds": [fold]}).metrics
            score = score_of(results, search["metric"])
            trial.report(score, number)
            print(f"trial {trial.number}: {search['metric']} {score:.4f}", flush=True)
            if number + 1 < len(folds) and trial.should_prune():
                drop_weights(folder)
                raise optuna.TrialPruned
    except InputError as error:
        trial.set_user_attr("error", str(error))
        raise
    drop_weights(folder)
    return score


def drop_weights(folder: Path) -> None:
    """Delete the weights of a trial that has ended; its predictions stay."""
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()


def suggest(trial: Any, name: str, values: list[Any] | dict[str, Any]) -> Any:
    """Let Optuna suggest a value of an argument."""
    if isinstance(values, list):
        return trial.suggest_categorical(name, values)
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(name, **values)


def score_of(results: dict[str, Any], metric: str) -> float:
    """Find a score. Raises InputError, listing them, where there is none of the name."""
    if metric not in results:
        known = ", ".join(name for name in results if name.startswith("oof_"))
        raise InputError(f"metric {metric} is not in the results; there are: {known}")
    return float(results[metric])


def stop_if_all_fail(study: Any, trial: Any) -> None:
    """End a search whose first trial is refused: the others would be, too."""
    if all(own.state.name not in ("COMPLETE", "PRUNED") for own in study.trials):
        study.stop()


# ---------------------------------------------------------------- results


def write_results(study: Any, search: dict[str, Any]) -> None:
    """Write the trials, the best arguments, the figures and search.md.

    Raises:
        InputError: where no trial has a score; it says why the last has none.
    """
    optuna = importlib.import_module("optuna")
    folder, metric = Path(search["output_dir"]), search["metric"]
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            metric: trial.value if trial.state.name == "COMPLETE" else float("nan"),
            "folds": len(trial.intermediate_values),
            **trial.params,
            "run": trial.user_attrs.get("folder", ""),
            "error": trial.user_attrs.get("error", ""),
        }
        for trial in study.trials
        if is_finished(trial)
    ]
    table = pd.DataFrame(rows)
    files.write_csv(folder / "trials.csv", table)
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if not done:
        raise InputError(f"no trial has a score: {table['error'].iloc[-1]}")
    best = study.best_trial
    files.write_yaml(folder / "best.yaml", search["run"] | best.params)
    importance = {}
    if len({trial.value for trial in done}) > 1:
        importance = optuna.importance.get_param_importances(study)
    draw(study, folder, importance)
    order = table[table["state"] == "complete"].sort_values(
        metric, ascending=study.direction.name == "MINIMIZE", kind="stable"
    )
    shares = pd.DataFrame({"argument": importance.keys(), "importance": importance.values()})
    short = order.drop(columns=["state", "folds", "error"]).head(10)
    for name in best.params:  # 1e-5 is not 0.0000
        short[name] = [f"{own:.3g}" if isinstance(own, float) else own for own in short[name]]
    text = f"# Search\n\n{records.markdown_table(short)}"
    text += f"\n{table['state'].eq('pruned').sum()} of {len(table)} trials were given up early.\n"
    text += f"\n{records.markdown_table(shares)}" if importance else ""
    files.write_text(folder / "search.md", text)
    results = {
        "metric": metric,
        "value": best.value,
        "arguments": best.params,
        "trials": len(table),
    }
    results |= {"importance": dict(importance), "versions": records.versions()}
    files.write_json(folder / "all_results.json", results)
    print(text)


def draw(study: Any, folder: Path, importance: dict[str, float]) -> None:
    """Draw Optuna's history.png, and importance.png where scores differ."""
    import matplotlib

    matplotlib.use("Agg")
    plots = importlib.import_module("optuna.visualization.matplotlib")
    drawn = {"history": plots.plot_optimization_history}
    drawn |= {"importance": plots.plot_param_importances} if importance else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls them experimental
        for name, plot in drawn.items():
            with files.atomic_write(folder / f"{name}.png") as temporary:
                plot(study).figure.savefig(temporary, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    cli.run_script(main, __doc__)
