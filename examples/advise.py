"""Which command to start with, for a table and an encoder, from what was measured.

    python examples/advise.py --train_file train.csv --model_name_or_path MODEL
    python examples/advise.py --train_file train.csv --model_name_or_path MODEL \\
        --text_column_names title abstract --label_column_name labels --test_file test.csv

Takes the flags of run_finetune.py on data, text, labels and checkpoint. Looks at rows, classes,
lengths and the size of the encoder, prints a command line of run_finetune.py, and for each flag
why: the figure behind it and where it was measured (measured.yaml), or the count it follows from.
Nothing is trained. It is a start: validation, not this table, has the last word.
"""

import math
import shlex
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bertchain import cli
from bertchain.arguments.common import (
    DataArguments,
    EncoderArguments,
    LabelArguments,
    SpanArguments,
    TextArguments,
)
from bertchain.data import tasks, tokenization
from bertchain.errors import InputError
from bertchain.models.loading import read_config

GROUPS = (DataArguments, TextArguments, LabelArguments, SpanArguments, EncoderArguments)
LOOKED_AT = 1000  # documents whose tokens are counted, drawn at random
LONGEST = 0.95  # share of the documents that a window is to hold whole
EPOCHS, BATCH = 4, 16  # run_finetune.py's own
FEW_STEPS = 100  # fewer leave a new head untrained: `--min_steps`
FEW_VALIDATION = 200  # rows of a tenth below which folds validate better


class Look(NamedTuple):
    """What was seen of a table and an encoder."""

    rows: int
    problem_type: str
    classes: int
    rows_a_class: float  # median over classes; of numbers inf
    lengths: np.ndarray  # tokens of the documents looked at, with special tokens
    limit: int  # most tokens of a window
    hidden_size: int
    held_out: bool  # whether there is a validation file


class Advice(NamedTuple):
    """Flags and why, in one line."""

    flags: dict[str, Any]
    why: str


def main() -> None:
    data, text, label, span, checkpoint, values = cli.parse(GROUPS, sys.argv[1:])
    given = {name: value for name, value in values.items() if cli.is_given(name, sys.argv[1:])}
    if span.spans_column_name or data.train_file is None:
        raise InputError("advice is for documents with labels: give --train_file, without spans")
    look = look_at(data, text, label, span, checkpoint)
    measured = cli.read_arguments(str(Path(__file__).resolve().parent / "measured.yaml"))
    way = advise_way(look, measured["few_labels"])
    advice = [
        advise_rate(look, measured["rates"], way.flags.pop("rate_factor", 1)),
        way,
        advise_window(look, measured["long_text"]),
        advise_validation(look),
    ]
    flags = given | {name: value for one in advice for name, value in one.flags.items()}
    print(f"\n{describe(look)}\n\n{command(flags)}\n")
    for one in advice:
        named = " ".join(f"--{name} {value}" for name, value in one.flags.items())
        print(f"- {named or 'no flag'}: {one.why}")


# ---------------------------------------------------------------- what is there


def look_at(
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    span: SpanArguments,
    checkpoint: EncoderArguments,
) -> Look:
    """Read the training table, and the config and tokenizer of the encoder."""
    task = tasks.load_task(data, text, label, span, seed=0)
    path, hub_kwargs = checkpoint.model_name_or_path, checkpoint.hub_kwargs
    preprocessor = tokenization.Preprocessor.for_checkpoint(
        path, {}, 0, checkpoint.tokenizer_name, **hub_kwargs
    )
    train = task.documents["train"]
    drawn = np.random.default_rng(0).permutation(len(train))[:LOOKED_AT]
    encoded = preprocessor.encode({"train": train.select(np.sort(drawn))})["train"]
    special = preprocessor.special
    more = special.pair_count if "text_pair" in train.column_names else special.count
    return Look(
        rows=len(train),
        problem_type=task.spec.problem_type,
        classes=len(task.spec.names),
        rows_a_class=rows_a_class(task),
        lengths=np.array(encoded["tokens"]) + more,
        limit=preprocessor.windows.max_seq_length,
        hidden_size=read_config(path, **hub_kwargs).get_text_config().hidden_size,
        held_out=data.validation_file is not None,
    )


def rows_a_class(task: tasks.Task) -> float:
    """Median over classes of the rows that have it; inf for numbers."""
    if task.spec.problem_type == "regression":
        return math.inf
    labels = task.hard_labels("train")
    if labels.ndim == 2:
        return float(np.median(labels.sum(axis=0)))
    return float(np.median(list(Counter(labels.tolist()).values())))


def describe(look: Look) -> str:
    of_class = "" if math.isinf(look.rows_a_class) else f", {look.rows_a_class:g} a class (median)"
    half, most = np.percentile(look.lengths, [50, 100 * LONGEST], method="higher")
    return (
        f"{look.rows} training rows{of_class}; {look.problem_type}. Tokens of a document: median "
        f"{half:g}, {LONGEST:.0%} have up to {most:g}. Hidden size {look.hidden_size}, windows of "
        f"up to {look.limit}."
    )


# ---------------------------------------------------------------- advice


def advise_rate(look: Look, measured: list[dict[str, Any]], factor: float) -> Advice:
    """The rate that measured best for the nearest size of encoder, times that of the way."""
    size = nearest_number(look.hidden_size, [row["hidden_size"] for row in measured])
    near = next(row for row in measured if row["hidden_size"] == size)
    flags = {"learning_rate": f"{float(near['rate']) * factor:.1g}"}
    if "token_pooling" in near:
        flags["token_pooling"] = near["token_pooling"]
    why = f"{near['what']} ({near['where']})"
    if near["hidden_size"] != look.hidden_size:
        why += f"; a hidden size of {look.hidden_size} was not measured, {near['hidden_size']} was"
    if factor != 1:
        why += f"; {factor:g} of the rate for cross-entropy, which is {near['rate']}"
    return Advice(flags, why)


def advise_way(look: Look, measured: dict[str, Any]) -> Advice:
    """Enough steps; with few rows of a class the way that measured best on the most alike set."""
    steps = math.ceil(look.rows / BATCH) * EPOCHS
    alike = most_alike(look, measured["sets"])
    if look.problem_type == "regression" or look.rows_a_class > max(alike["rows_a_class"]):
        if steps >= FEW_STEPS:
            return Advice({}, f"{EPOCHS} epochs of {look.rows} rows are {steps} steps: enough")
        return Advice({"min_steps": FEW_STEPS}, f"{EPOCHS} epochs would be {steps} steps")
    near = nearest_number(look.rows_a_class, alike["rows_a_class"])
    scores = alike["rows_a_class"][near]
    best = max(scores, key=scores.get)
    found = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    why = f"{alike['what']}, {alike['labels']} labels, {near} rows of each: {found} "
    return Advice(dict(measured["flags"][best]), f"{why}({measured['where']})")


def most_alike(look: Look, sets: list[dict[str, Any]]) -> dict[str, Any]:
    """The measured set with one or several labels a row, as here, and nearly as many in all."""
    several = look.problem_type == "multi_label"
    same = [about for about in sets if about.get("several", False) == several]
    labels = nearest_number(look.classes, [about["labels"] for about in same])
    return next(about for about in same if about["labels"] == labels)


def nearest_number(wanted: float, known: Iterable[int]) -> int:
    """The one with the least ratio to a number above 0."""
    return min(known, key=lambda number: abs(math.log(number / max(1, wanted))))


def advise_window(look: Look, measured: list[dict[str, Any]]) -> Advice:
    """A window that most documents fit; else the way that measured best where as many do not."""
    most = np.percentile(look.lengths, 100 * LONGEST, method="higher")
    size = min(look.limit, 8 * math.ceil(most / 8))
    share = float((look.lengths > size).mean())
    if size < look.limit or share <= 1 - LONGEST:
        why = f"holds {1 - share:.0%} of the documents whole; shorter windows cost less"
        return Advice({"max_seq_length": size}, why)
    near = min(measured, key=lambda row: abs(row["longer"] - share))
    why = f"{share:.0%} of the documents are longer than the encoder's window; where "
    why += f"{near['longer']:.0%} are, {near['what']} ({near['where']})"
    return Advice({"max_seq_length": size, **near["flags"]}, why)


def advise_validation(look: Look) -> Advice:
    """Whether rows can be spared to choose by."""
    if look.held_out:
        return Advice({}, "your validation file chooses the checkpoint")
    tenth = round(look.rows / 10)
    if tenth >= FEW_VALIDATION:
        return Advice({}, f"a tenth of the rows, {tenth}, is held out and chooses the checkpoint")
    error = 100 * 1.96 * math.sqrt(0.25 / max(1, tenth))
    short = f"a tenth of the rows would be {tenth}, an accuracy of up to ± {error:.0f} points"
    if look.rows < FEW_VALIDATION:
        return Advice({"validation_split": 0}, f"{short}: none can be spared")
    return Advice({"num_folds": 5}, f"{short}: with folds each row validates once")


def command(flags: dict[str, Any]) -> str:
    """The command line, a flag a line."""
    words = cli.flags_of(flags)
    lines = [["python run_finetune.py"]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n  ".join(" ".join(line) for line in lines)


if __name__ == "__main__":
    cli.run_script(main, __doc__)
