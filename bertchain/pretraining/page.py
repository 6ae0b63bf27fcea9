"""The page of a run of run_itpt.py, report.html: scores, curves, what was run."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from transformers import TrainingArguments

from bertchain.arguments.pretraining import GROUPS
from bertchain.cli import changed
from bertchain.runtime import html
from bertchain.runtime.files import write_text
from bertchain.runtime.records import history_figure, versions, without_folders

TIMES = ("_runtime", "_per_second", "total_flos")


def write_page(
    folder: Path, history: pd.DataFrame, results: dict[str, Any], run_config: dict[str, Any]
) -> None:
    """Write report.html. The main process calls this.

    Args:
        history: of `evaluation_history`.
        results: of the whole run.
    """
    numbers = {
        name: value
        for name, value in results.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    known = {name: value for name, value in numbers.items() if not name.endswith(TIMES)}
    table = pd.DataFrame({"what": known.keys(), "value": pd.Series(known.values(), dtype=object)})
    text = "Scores (eval_) are of held-out documents, each masked once and for all."
    warning = "Transductive: the text of the test file is trained on, without labels."
    made = {"arguments": without_folders(changed(run_config, (*GROUPS, TrainingArguments)))}
    plain = yaml.safe_dump(made | {"versions": versions()}, allow_unicode=True)
    with html.spare_the_run(folder / "report.html"):
        found = [html.Section("scores", "In short", text, table)]
        if results.get("transductive"):
            found.append(html.Section("warnings", "Warnings", warning, warning=True))
        figure = history_figure(history, "eval_masked_accuracy")
        what = "Loss and accuracy of masked tokens by step"
        found.append(html.Section("curves", "Learning curves", "", None, figure, what))
        found.append(html.Section("run", "What was run", plain=plain))
        write_text(folder / "report.html", html.to_html(folder.resolve().name, found))
