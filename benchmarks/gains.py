"""What blend, stack, student and soup add: the test rows of the runs that gains.yaml made.

    python examples/recipe.py benchmarks/gains.yaml data=DATA model=MODEL out=gains
    python benchmarks/gains.py gains

Prints a row for each set and way: the main score of the test rows, the way it is held against, the
difference, and half its 95 % interval (paired bootstrap over test rows); writes gains.csv. The
intervals speak of other test rows, not of other seeds. Sets that have not run are left out.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd

from bertchain.cli import run_script
from bertchain.competition.ensemble import read_rows
from bertchain.errors import InputError
from bertchain.metrics import main_metric, score_function
from bertchain.probing.scoreboard import paired_difference
from bertchain.runtime.files import write_csv
from bertchain.runtime.records import markdown_table
from bertchain.training.prediction import read_predictions

AGAINST = {  # folder of a way -> folder of what it is held against; None: nothing
    "recipe": None,
    "second": "recipe",
    "blend": "recipe",
    "stack": "blend",
    "one model": "recipe",
    "student": "one model",
    "a": "one model",
    "soup": "a",
}


def main() -> None:
    if len(sys.argv) != 2:
        raise InputError("give the folder that the recipe gains.yaml filled: gains.py gains")
    folder = Path(sys.argv[1])
    tables = [judge(path.parent) for path in sorted(folder.glob("*/one model"))]
    if not tables:
        raise InputError(f"{folder}: holds no SET/one model; run the recipe gains.yaml first")
    table = pd.concat(tables, ignore_index=True)
    write_csv(folder / "gains.csv", table)
    print(markdown_table(table))


def judge(folder: Path) -> pd.DataFrame:
    """Score every way of a set that is there."""
    task = read_rows(folder / "one model")
    spec, test = task.spec, task.documents["test"]
    truth, ids = np.asarray(test["labels"][:]), test["id"][:]
    metric, _ = main_metric(spec.problem_type, len(spec.names))
    score, found, rows = score_function(spec, []), {}, []
    for way, other in AGAINST.items():
        path = folder / way / "predictions_test.csv"
        if not path.is_file():
            continue
        own, found[way] = read_predictions(path, spec)
        if own != ids:
            raise InputError(f"{path}: its rows are not those of the other ways")
        row = {"set": folder.name, "way": way, "metric": metric, "test": score(found[way], truth)}
        row["test"] = row["test"][metric]
        if other in found:
            row["against"] = other
            row |= paired_difference(spec.problem_type, found[way], found[other], truth)
        rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    run_script(main, __doc__)
