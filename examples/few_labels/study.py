"""Which way of training for how many labels? Each way, on the same draws of rows.

    python examples/few_labels/study.py --data DATA --encoder ENCODER --output_dir few_labels
    python examples/few_labels/run_setfit.py few_labels ENCODER      # in an environment of its own
    python examples/few_labels/tables.py few_labels

DATA holds the tables that sets.yaml names; settings.yaml says what is compared. A draw has so many
rows of each class, or all there are; of several labels a row, rows are added, rarest label first,
until each label has so many. Test rows are the same in all draws. With --itpt N each way also
starts from the encoder after N steps of further pretraining on all training text of the set.

Writes SET/COUNT/sweep.csv. What is there is not run again: the same command goes on.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import pandas as pd

from bertchain.cli import read_arguments, run_script
from bertchain.errors import InputError
from bertchain.runtime.files import write_json, write_text, write_yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ALL = "all"
ITPT = ", after ITPT"


def main() -> None:
    options = read_options()
    sets, settings = (read_arguments(str(HERE / f"{name}.yaml")) for name in ("sets", "settings"))
    unknown = [name for name in options.sets or () if name not in sets]
    if unknown:
        raise InputError(f"--sets {unknown[0]} is not one of {', '.join(sets)} (sets.yaml)")
    out = Path(options.output_dir)
    for name in options.sets or sets:
        about = sets[name]
        train, test = read_tables(Path(options.data), about)
        write_table(
            test.sample(min(len(test), options.test_rows), random_state=0),
            out / name / "test.jsonl",
        )
        write_table(train, out / name / "train.jsonl")
        starts = {"": options.encoder}
        if options.itpt:
            starts[ITPT] = str(further_pretrain(out / name, about, options))
        for count in options.counts:
            for seed in range(options.seeds):
                path = out / name / count / f"{seed}.jsonl"
                if not path.is_file():
                    write_table(draw(train, about["label"], count, seed), path)
            run_sweep(out / name, count, about, settings, starts, options)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of the tables")
    parser.add_argument("--encoder", required=True, help="folder or hub name")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--sets", nargs="+", help="default: all of sets.yaml")
    parser.add_argument(
        "--counts",
        nargs="+",
        default=["4", "8", "16", "32", "64", "256", ALL],
        help="rows of a class, or all",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of draws")
    parser.add_argument("--test_rows", type=int, default=500)
    parser.add_argument("--itpt", type=int, default=0, help="steps; 0: none")
    parser.add_argument("--itpt_rate", default="1e-3")
    parser.add_argument(
        "--rate_factor", type=float, default=1, help="of the rates of settings.yaml, by encoder"
    )
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    for count in options.counts:
        if count != ALL and not (count.isdigit() and int(count) > 0):
            raise InputError(f"--counts {count} is neither a whole number above 0 nor {ALL}")
    return options


# ---------------------------------------------------------------- rows


def read_tables(data: Path, about: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read the training and test table of a set: the columns id, of the texts, of the label.

    Raises:
        InputError: if there is no such file.
    """
    tables = []
    for split in ("train", "test"):
        path = data / about[split]
        if not path.is_file():
            raise InputError(f"--data {data}: lacks {about[split]} (sets.yaml)")
        kind = pd.read_json if ".jsonl" in path.name else pd.read_csv
        table = kind(path, lines=True) if ".jsonl" in path.name else kind(path)
        tables.append(table[["id", *about["text"], about["label"]]].fillna(""))
    return tuple(tables)


def write_table(table: pd.DataFrame, path: Path) -> None:
    write_text(path, table.to_json(orient="records", lines=True, force_ascii=False))


def draw(train: pd.DataFrame, label: str, count: str, seed: int) -> pd.DataFrame:
    """Draw rows: `count` of each class, or as many as it has; "all": all."""
    if count == ALL:
        return train
    shuffled = train.sample(frac=1, random_state=seed)
    if not isinstance(train[label].iloc[0], list):
        few = [rows.head(int(count)) for _, rows in shuffled.groupby(label)]
        return pd.concat(few).sample(frac=1, random_state=seed)
    sizes = shuffled[label].explode().value_counts(ascending=True, sort=True)
    chosen: list[int] = []
    for name in sizes.index:
        has = shuffled[label].map(lambda names, name=name: name in names)
        held = int(has.loc[chosen].sum())
        others = shuffled.index[has & ~shuffled.index.isin(chosen)]
        chosen += list(others[: max(0, int(count) - held)])
    return train.loc[chosen].sample(frac=1, random_state=seed)


# ---------------------------------------------------------------- runs


def further_pretrain(folder: Path, about: dict[str, Any], options: argparse.Namespace) -> Path:
    """Pretrain on the training text of a set, once. Returns the folder of the model."""
    done = folder / "itpt"
    if not (done / "all_results.json").is_file():
        content = {
            "model_name_or_path": options.encoder,
            "train_file": [str(folder / "train.jsonl")],
            "test_file": [str(folder / "test.jsonl")],
            "text_column_names": about["text"],
            "max_seq_length": 128,
            "tokens_per_batch": 4096,
            "learning_rate": options.itpt_rate,
            "max_steps": options.itpt,
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "disable_tqdm": True,
            "output_dir": str(done),
        }
        write_yaml(folder / "itpt.yaml", content)
        run_step("run_itpt.py", folder / "itpt.yaml")
    return done


def run_sweep(
    folder: Path,
    count: str,
    about: dict[str, Any],
    settings: dict[str, Any],
    starts: dict[str, str],
    options: argparse.Namespace,
) -> None:
    """Run every setting from every start on every draw of a size."""
    sweep = {
        "output_dir": str(folder / count),
        "metric": about["metric"],
        "seeds": list(range(options.seeds)),
        "parallel": options.parallel,
        "fixed": {
            "train_file": f"{folder / count}/{{seed}}.jsonl",
            "test_file": str(folder / "test.jsonl"),
            "id_column_name": "id",
            "text_column_names": about["text"],
            "label_column_name": about["label"],
            "truncation": "head_tail",
            "max_seq_length": about["window"],
            "validation_split": 0,  # so no checkpoint is chosen
            "save_strategy": "no",
            "disable_tqdm": True,
        },
        "points": [
            {"name": name + kind, "model_name_or_path": start, "token_pooling": "mean"}
            | scaled(flags, options.rate_factor)
            for kind, start in starts.items()
            for name, flags in settings.items()
        ],
    }
    write_yaml(folder / count / "sweep.yaml", sweep)
    write_json(folder / count / "setting.json", sweep["fixed"])  # for run_setfit.py
    run_step("examples/sweep.py", folder / count / "sweep.yaml")


def scaled(flags: dict[str, Any], factor: float) -> dict[str, Any]:
    """Multiply the learning rate, where a setting names one."""
    if "learning_rate" not in flags or factor == 1:
        return flags
    return flags | {"learning_rate": float(flags["learning_rate"]) * factor}


def run_step(script: str, arguments: Path) -> None:
    """Run a script on a YAML file.

    Raises:
        InputError: if it fails.
    """
    print(f"{script} {arguments}", flush=True)
    if subprocess.run([sys.executable, ROOT / script, arguments]).returncode != 0:
        raise InputError(f"{script} {arguments} failed; what it wrote above says why")


if __name__ == "__main__":
    run_script(main, __doc__)
