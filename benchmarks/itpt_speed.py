"""Speed and memory of run_itpt.py's training against the usual masked-LM recipe.

    python benchmarks/itpt_speed.py --model MODEL --train_file agnews/train.csv --threads 2
    python benchmarks/itpt_speed.py --model bert-base-shape --tokenizer MODEL --train_file ...

The usual recipe: Trainer, `AutoModelForMaskedLM` with its dense head,
`DataCollatorForLanguageModeling`, documents joined and cut into rows of full length. Ours: the
sparse head, a document a row (batches by tokens, of similar length) or packed rows. All see the
same tokens a batch, the same optimizer and precision; a token counts if it is not padding.

Every measurement is a process of its own, so that its peak memory is its own, and the ways take
turns, so that a busy machine is busy for all. `bert-base-shape` is BERT-base with random weights.
The share of the machine's rate counts no product of the head (see finetune_speed.py).
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shapes import SHAPES, config_of, count_weights, is_shape
from turns import ids_of, rates, take_turns, watch_steps

WAYS = ("usual", "document", "packed")


def main() -> None:
    options = read_arguments()
    if options.worker is not None:
        return print(json.dumps(measure(options)))
    rows = take_turns(__file__, options.ways, options.turns)
    report(rows, options)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help=f"a checkpoint, or {', '.join(SHAPES)}")
    parser.add_argument("--tokenizer", help="default: that of the model")
    parser.add_argument("--train_file", required=True, help="a table of text")
    parser.add_argument("--text_column_names", nargs="+", default=["text"])
    parser.add_argument("--max_train_samples", type=int, default=2000)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="of max_seq_length tokens a batch")
    parser.add_argument("--steps", type=int, default=4, help="that are timed")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--bf16", action="store_true", help="autocast, for all ways")
    parser.add_argument(
        "--compile", help="backend of torch.compile, such as inductor, for all ways"
    )
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--output_dir", default="itpt_speed")
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---------------------------------------------------------------- one way, in its own process


def measure(options: argparse.Namespace) -> dict:
    """Train some steps. Returns tokens per second and peak memory in MiB."""
    import torch
    from finetune_speed import matmul_rate

    trainer, warm = make_trainer(options), options.warm
    tokens, times = watch_steps(trainer, ids_of, warm)
    memory = Memory(torch)
    trainer.train()
    peaks = memory.peaks()
    timed = int(sum(tokens[warm : warm + options.steps]))
    trained, later = rates(tokens, times, warm)
    weights = count_weights(trainer.model.base_model)
    return {
        "tokens_per_second": trained,
        "later_tokens_per_second": later,
        "tokens_per_batch": timed / options.steps,
        "share_of_matmul": 6
        * weights
        * trained
        / matmul_rate(torch, trainer.args.device, options.bf16),
        **peaks,
    }


def make_trainer(options: argparse.Namespace) -> object:
    """Build the Trainer of a way."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import torch
    from transformers import AutoTokenizer, TrainingArguments, set_seed

    torch.set_num_threads(options.threads)
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(
        options.tokenizer or options.model, trust_remote_code=False
    )
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.rows,
        max_steps=options.steps + options.warm,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        dataloader_num_workers=options.workers,
        bf16=options.bf16,
        torch_compile=options.compile is not None,
        torch_compile_backend=options.compile,
        use_cpu=not torch.cuda.is_available(),
        seed=1,
    )
    build = usual_trainer if options.worker == "usual" else our_trainer
    return build(options, load(options, tokenizer), tokenizer, read_texts(options), args)


class Memory:
    """Peak memory of the process, and above what was in use when training began, in MiB.

    On a GPU: of its memory. Else: resident memory, looked at every 5 ms.
    """

    def __init__(self, torch: object):
        self.cuda = torch.cuda if torch.cuda.is_available() else None
        if self.cuda:
            self.cuda.reset_peak_memory_stats()
            self.start = self.cuda.memory_allocated()
            return
        self.start = self.peak = resident()
        self.running = True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while self.running:
            self.peak = max(self.peak, resident())
            time.sleep(0.005)

    def peaks(self) -> dict:
        if self.cuda:
            peak = self.cuda.max_memory_allocated()
        else:
            self.running = False
            self.thread.join()
            peak = max(self.peak, resident())
        return {"peak_mib": peak / 2**20, "training_mib": (peak - self.start) / 2**20}


def resident() -> int:
    """Bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def read_texts(options: argparse.Namespace) -> list[str]:
    from bertchain.data.documents import to_documents
    from bertchain.data.tables import first_rows, read_table

    table = first_rows(read_table(options.train_file), options.max_train_samples)
    return to_documents(table, options.train_file, options.text_column_names)["text"][:]


def load(options: argparse.Namespace, tokenizer: object) -> object:
    import torch
    from transformers import AutoModelForMaskedLM

    if is_shape(options.model):
        config = config_of(options.model, tokenizer)
        return AutoModelForMaskedLM.from_config(config, trust_remote_code=False)
    return AutoModelForMaskedLM.from_pretrained(
        options.model, dtype=torch.float32, trust_remote_code=False
    )


def usual_trainer(
    options: argparse.Namespace, model: object, tokenizer: object, texts: list[str], args: object
) -> object:
    """Documents with their special tokens, joined and cut into full rows; a dense head."""
    from itertools import chain

    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling, Trainer

    ids = list(chain.from_iterable(tokenizer(texts)["input_ids"]))
    size = options.max_seq_length
    rows = [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]
    return Trainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        processing_class=tokenizer,
    )


def our_trainer(
    options: argparse.Namespace, model: object, tokenizer: object, texts: list[str], args: object
) -> object:
    """The same documents in rows of run_itpt.py; the sparse head."""
    from datasets import Dataset

    import run_itpt
    from bertchain.arguments.pretraining import MaskArguments, PackingArguments, RunArguments
    from bertchain.models.windows import WindowSpec, find_special_tokens
    from bertchain.pretraining import masked_lm, packing

    asked = PackingArguments(
        packing=options.worker == "packed",
        tokens_per_batch=options.rows * options.max_seq_length,
    )
    windows = WindowSpec("hierarchical", options.max_seq_length)
    maker = packing.RowMaker(tokenizer, windows, find_special_tokens(tokenizer))
    collator = packing.MaskingCollator.for_model(model, tokenizer, MaskArguments(), 1)
    documents = Dataset.from_dict({"text": texts, "corpus": ["task"] * len(texts)})
    rows = packing.to_rows(documents, maker)
    if asked.packing:
        rows = masked_lm.pack_for(model, rows, maker, collator)
    return run_itpt.MaskedLMTrainer(
        packing=asked,
        run=RunArguments(),
        weights={"task": 1.0},
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=collator,
        processing_class=tokenizer,
    )


# ---------------------------------------------------------------- report


def report(rows: list[dict], options: argparse.Namespace) -> None:
    """Medians over the turns, and ratios to the usual way."""
    import pandas as pd

    from bertchain.runtime.files import write_json, write_text
    from bertchain.runtime.records import markdown_table, versions

    table = pd.DataFrame(rows).drop(columns="turn").groupby("way", sort=False).median()
    if "usual" in table.index:
        usual = table.loc["usual"]
        table["speed ratio"] = table["tokens_per_second"] / usual["tokens_per_second"]
        table["peak ratio"] = table["peak_mib"] / usual["peak_mib"]
        table["training ratio"] = table["training_mib"] / usual["training_mib"]
    folder = Path(options.output_dir)
    facts = {"rows": rows, "options": vars(options), "versions": versions()}
    write_json(folder / f"{Path(options.model).name}.json", facts)
    write_text(folder / f"{Path(options.model).name}.md", markdown_table(table.reset_index(), 2))
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
