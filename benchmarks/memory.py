"""Memory of a long run of further pretraining on a CPU, with batches of ever other lengths.

    python benchmarks/memory.py                                         # 5,000 steps
    ONEDNN_PRIMITIVE_CACHE_CAPACITY=1024 python benchmarks/memory.py    # as torch comes

A random BERT of 2 blocks of 128 is trained on made-up documents of 5 to 400 words. Prints a row
for every so many steps, with the process's own memory, the blocks in use and the free ones between
them (glibc's count), and seconds of CPU; at the end whether all rows from step 500 on lie within
10 % of each other.
"""

import argparse
import ctypes
import json
import os
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

WORDS = 2000
SETTLED = 500  # steps until the longest batches have come by
BAND = 0.10


def main() -> None:
    options = read_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import run_itpt

    rows: list[dict[str, int]] = []
    run_itpt.MaskedLMTrainer = watched(run_itpt.MaskedLMTrainer, rows, options.every)
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), options.documents)
        run_itpt.main(arguments(Path(folder), options))
    report(rows)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=int, default=100, help="steps between two rows")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--tokens_per_batch", type=int, default=2048)
    return parser.parse_args()


def watched(trainer: type, rows: list[dict[str, int]], every: int) -> type:
    """Make a Trainer that notes memory every so many steps."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step % every == 0:
                rows.append({"step": state.global_step} | memory())
                print(" ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)

    class Watched(trainer):
        def __init__(self, **kwargs) -> None:
            super().__init__(**kwargs)
            self.add_callback(Watch())

    return Watched


class Heap(ctypes.Structure):
    """glibc's struct mallinfo2."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]


def memory() -> dict[str, int]:
    """MiB of this process (without mapped files), in use and free; seconds of CPU."""
    own = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Heap
    heap = libc.mallinfo2()
    found = {"own_mib": int(own[1]) >> 10, "in_use_mib": (heap.uordblks + heap.hblkhd) >> 20}
    return found | {"free_mib": heap.fordblks >> 20, "cpu_seconds": int(time.process_time())}


def make_inputs(folder: Path, documents: int) -> None:
    """Write model/ and train.jsonl."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

    set_seed(0)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*specials, *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = dict(zip(names, specials, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=512, **marks)
    fast.save_pretrained(folder / "model")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    BertForMaskedLM(config).save_pretrained(folder / "model")
    rng = random.Random(0)
    with open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        for _ in range(documents):
            length = min(400, int(rng.lognormvariate(4, 1)) + 5)
            text = " ".join(f"w{int(WORDS * rng.random() ** 3)}" for _ in range(length))
            row = {"text": text, "label": "long" if length > 60 else "short"}
            file.write(json.dumps(row) + "\n")


def arguments(folder: Path, options: argparse.Namespace) -> list[str]:
    """The flags of run_itpt.py."""
    line = ["--model_name_or_path", folder / "model", "--train_file", folder / "train.jsonl"]
    line += ["--output_dir", folder / "out", "--tokens_per_batch", options.tokens_per_batch]
    line += ["--max_steps", options.steps, "--eval_strategy", "no", "--save_strategy", "no"]
    line += ["--load_best_model_at_end", "false", "--eval_on_start", "false", "--use_cpu", "true"]
    line += ["--validation_split", 0.01, "--disable_tqdm", "true", "--learning_rate", "1e-3"]
    return [str(word) for word in line]


def report(rows: list[dict[str, int]]) -> None:
    """Print the least and the most memory of the settled rows."""
    sizes = [row["own_mib"] for row in rows if row["step"] >= SETTLED]
    if not sizes:
        return print(f"fewer than {SETTLED} steps: nothing to compare")
    spread = max(sizes) / min(sizes) - 1
    verdict = "flat" if spread <= BAND else "not flat"
    print(f"from step {SETTLED}: {min(sizes)} to {max(sizes)} MiB, {spread:.1%} apart: {verdict}")


if __name__ == "__main__":
    main()
