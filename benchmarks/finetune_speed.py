"""Measure the speed of training and prediction in run_finetune.py against a plain Trainer.

    python benchmarks/finetune_speed.py --model MODEL --train_file agnews/train.csv --threads 2

The plain Trainer has an `AutoModelForSequenceClassification`, once as the official script does by
default (`max`: every row padded to --max_seq_length), once at its best (`best`: batches of similar
length, padded to their longest row). `ours` is the Trainer of run_finetune.py, which reads [CLS] of
the last layer like the others. All get the same documents in batches of the same size with the same
optimizer and precision; a token counts if it is not padding. `--compile` compiles the model of all
ways, and measures no prediction.

Every measurement is a process of its own, in turns, so that other load on the machine falls on all
alike. The share of the machine's rate is that of the model's matrix products on real tokens (6
operations per weight and token in training, 2 in prediction, attention left out) against products
of square matrices in the same process.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shapes import SHAPES, config_of, count_weights, is_shape
from turns import length_of, rates, take_turns, watch_steps

WAYS = ("max", "best", "ours")


def main() -> None:
    """Measure all ways in turns, and write the table."""
    options = read_arguments()
    if options.worker is not None:
        return print(json.dumps(measure(options)))
    rows = take_turns(__file__, options.ways, options.turns)
    report(rows, options)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help=f"a checkpoint, or {', '.join(SHAPES)}")
    parser.add_argument("--tokenizer", help="default: that of the model")
    parser.add_argument("--train_file", required=True, help="a labelled table")
    parser.add_argument("--text_column_names", nargs="+", default=["text"])
    parser.add_argument("--label_column_name", default="label")
    parser.add_argument("--max_train_samples", type=int, default=640)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="a batch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--warm", type=int, default=2, help="steps before those that are timed")
    parser.add_argument("--bf16", action="store_true", help="autocast, for all ways")
    parser.add_argument(
        "--compile", help="backend of torch.compile, such as inductor, for all ways"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output_dir", default="finetune_speed")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- one way, in its own process


def measure(options: argparse.Namespace) -> dict:
    """Train an epoch, then predict the same rows; returns real tokens per second of both."""
    import torch

    trainer, rows = make_trainer(options)
    collate = trainer.data_collator
    tokens, times = watch_steps(trainer, length_of, options.warm)
    trainer.train()
    trained, later = rates(tokens, times, options.warm)
    weights = count_weights(trainer.model)
    rate = matmul_rate(torch, trainer.args.device, options.bf16)
    found = {
        "train_tokens_per_second": trained,
        "later_tokens_per_second": later,
        "train_share_of_matmul": 6 * weights * trained / rate,
    }
    if torch.cuda.is_available():
        found["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if options.compile:
        return found
    trainer.data_collator = collate
    start = time.perf_counter()
    trainer.predict(rows)
    predicted = sum(rows["length"][:]) / (time.perf_counter() - start)
    return found | {
        "predict_tokens_per_second": predicted,
        "predict_share_of_matmul": 2 * weights * predicted / rate,
    }


def make_trainer(options: argparse.Namespace) -> tuple:
    """Build the Trainer of a way; returns it and the rows to predict."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers import AutoTokenizer, TrainingArguments, set_seed

    torch.set_num_threads(options.threads)
    if options.compile:  # the plain Trainer else compiles anew for every length
        os.environ["ACCELERATE_DYNAMO_USE_DYNAMIC"] = "true"
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer or options.model, trust_remote_code=False
    )
    fields = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": options.rows,
        "per_device_eval_batch_size": 64,
        "num_train_epochs": 1,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "dataloader_num_workers": options.workers,
        "bf16": options.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "seed": 1,
        "remove_unused_columns": False,
        "torch_compile": options.compile is not None,
        "torch_compile_backend": options.compile,
    }
    if options.worker == "best":
        if "group_by_length" in TrainingArguments.__dataclass_fields__:  # until transformers 5.2
            fields["group_by_length"] = True
        else:
            fields["train_sampling_strategy"] = "group_by_length"
    build = our_trainer if options.worker == "ours" else plain_trainer
    return build(options, tokenizer, TrainingArguments(**fields))


def matmul_rate(torch: object, device: object, bf16: bool) -> float:
    """Measure operations per second of products of square matrices; the best of 12."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = float("inf")
    for _ in range(12):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def read_documents(options: argparse.Namespace) -> tuple[object, object]:
    """Read labelled documents; returns them and their LabelSpec."""
    from bertchain.arguments import common
    from bertchain.data.tasks import load_task

    task = load_task(
        common.DataArguments(options.train_file, max_train_samples=options.max_train_samples),
        common.TextArguments(options.text_column_names),
        common.LabelArguments([options.label_column_name]),
        common.SpanArguments(),
        seed=0,
    )
    return task.documents["train"], task.spec


def plain_trainer(options: argparse.Namespace, tokenizer: object, args: object) -> tuple:
    """Build a plain Trainer; returns it and the rows to predict."""
    import torch
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer

    documents, spec = read_documents(options)

    def tokenize(rows: dict) -> dict:
        padding = "max_length" if options.worker == "max" else False
        size = options.max_seq_length
        encoded = dict(tokenizer(rows["text"], truncation=True, max_length=size, padding=padding))
        return encoded | {"length": [sum(mask) for mask in encoded["attention_mask"]]}

    others = [name for name in documents.column_names if name != "labels"]
    rows = documents.map(tokenize, batched=True, remove_columns=others)
    if is_shape(options.model):
        config = config_of(options.model, tokenizer, num_labels=len(spec.names))
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            options.model,
            num_labels=len(spec.names),
            dtype=torch.float32,
            trust_remote_code=False,
        )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=PlainCollator(DataCollatorWithPadding(tokenizer)),
        processing_class=tokenizer,
    )
    return trainer, rows


class PlainCollator(NamedTuple):
    """Pads what the model reads."""

    pad: Callable[[list[dict]], dict]

    def __call__(self, batch: list[dict]) -> dict:
        return self.pad([{k: v for k, v in row.items() if k != "length"} for row in batch])


def our_trainer(options: argparse.Namespace, tokenizer: object, args: object) -> tuple:
    """Build the Trainer of run_finetune.py; returns it and the rows to predict."""
    import run_finetune
    from bertchain.arguments.training import ModelArguments, RegulariserArguments
    from bertchain.data.batching import longest_first
    from bertchain.data.tokenization import Preprocessor
    from bertchain.models.layers import layer_rates
    from bertchain.models.loading import load_encoder
    from bertchain.models.modeling import strip_encoder
    from bertchain.models.windows import WindowSpec, find_special_tokens
    from bertchain.training.initialization import build_model
    from bertchain.training.losses import TrainingLoss

    documents, spec = read_documents(options)
    windows = WindowSpec("head", options.max_seq_length)
    preprocessor = Preprocessor(tokenizer, windows, find_special_tokens(tokenizer))
    rows = preprocessor.encode({"train": documents})["train"]
    if is_shape(options.model):
        from transformers import AutoModel

        config = config_of(options.model, tokenizer)
        encoder = strip_encoder(AutoModel.from_config(config, trust_remote_code=False))
    else:
        encoder, _ = load_encoder(options.model)
    model, _ = build_model(encoder, None, ModelArguments(), spec, preprocessor)
    trainer = run_finetune.ClassifierTrainer(
        loss=TrainingLoss(model.config),
        rates=layer_rates(encoder.config.num_hidden_layers, args.learning_rate, 0.95),
        unfreeze_every=None,
        regularisers=RegulariserArguments(),
        batch_by_length=True,
        model=model,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=preprocessor.collator,
    )
    return trainer, rows.select(longest_first(rows["length"][:]))


# ---------------------------------------------------------------- report


def report(rows: list[dict], options: argparse.Namespace) -> None:
    """Write and print medians over the turns, and ratios to the plain ways."""
    import pandas as pd

    from bertchain.runtime.files import write_json, write_text
    from bertchain.runtime.records import markdown_table, versions

    table = pd.DataFrame(rows).drop(columns="turn").groupby("way", sort=False).median()
    for way in ("max", "best"):
        if way in table.index:
            for kind in ("train", "predict"):
                speed = table[f"{kind}_tokens_per_second"]
                table[f"{kind} x {way}"] = speed / speed[way]
    folder = Path(options.output_dir)
    facts = {"rows": rows, "options": vars(options), "versions": versions()}
    write_json(folder / f"{Path(options.model).name}.json", facts)
    write_text(folder / f"{Path(options.model).name}.md", markdown_table(table.reset_index(), 2))
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
