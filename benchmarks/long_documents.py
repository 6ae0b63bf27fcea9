"""Measure time and memory of long documents in DocumentClassifier.

    python benchmarks/long_documents.py --model MODEL --threads 2

1. Time of a forward and backward pass against the number of real windows, in batches of the same
   padded shape [documents, windows, length]: padding windows must cost nothing.
2. Peak memory of a training step on one document of --tokens tokens, --segments_per_forward windows
   at once (0: all). Each is a process of its own. On a CPU the allocator of glibc keeps freed
   memory in pieces that large tensors do not fit into; with MALLOC_MMAP_THRESHOLD_ it gives large
   ones back at once (here --mmap_threshold; 0 = leave it).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from shapes import config_of, is_shape


def main() -> None:
    """Measure both, and write the tables."""
    options = read_arguments()
    if options.worker is not None:
        return print(json.dumps(peak_memory(options)))
    timed = time_by_segments(options)
    memory = []
    environment = dict(os.environ)
    if options.mmap_threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = str(options.mmap_threshold)
    for size in options.segments_per_forward:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(size)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        last = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
        failed = {"peak_gib": float("nan"), "seconds": float("nan")}
        result = json.loads(last[0]) if last else failed
        memory.append({"windows at once": size or "all", **result})
        print(memory[-1], flush=True)
    report(timed, memory, options)


def read_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--segments", type=int, default=8, help="windows of a document, padded")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--segments_per_forward", type=int, nargs="+", default=[64, 8])
    parser.add_argument("--mmap_threshold", type=int, default=1 << 20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output_dir", default="long_documents")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def build(options: argparse.Namespace, segments_per_forward: int | None) -> object:
    """Build a classifier of documents in windows, in training mode.

    Args:
        options: model, length, threads; of a shape (shapes.py) a loaded tokenizer, too.
    """
    import torch
    from transformers import AutoModel

    from bertchain.models.loading import load_encoder
    from bertchain.models.modeling import DocumentClassifier, DocumentClassifierConfig, num_blocks

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if is_shape(options.model):
        config = config_of(options.model, options.tokenizer)
        encoder = AutoModel.from_config(config, trust_remote_code=False)
    else:
        encoder, _ = load_encoder(options.model)
    config = DocumentClassifierConfig(
        encoder_config=encoder.config,
        layers=[num_blocks(encoder.config)],
        token_pooling="mean",
        segments_per_forward=segments_per_forward,
        problem_type="single_label_classification",
        num_labels=4,
        windows={"truncation": "hierarchical", "max_seq_length": options.length},
    )
    return DocumentClassifier(config, encoder).train()


def vocabulary(model: object) -> int:
    """Number of tokens that the model knows."""
    return model.encoder.get_input_embeddings().num_embeddings


def step(model: object, ids: object, mask: object) -> float:
    """Time a forward and a backward pass, in seconds; ids, mask [documents, windows, length]."""
    import torch

    model.zero_grad()
    start = time.perf_counter()
    model(ids, mask, labels=torch.zeros(len(ids), dtype=torch.long)).loss.backward()
    return time.perf_counter() - start


def time_by_segments(options: argparse.Namespace) -> list[dict]:
    """Time a pass by number of real windows.

    In rounds, so that other load on the machine falls on all; the fastest of each is taken.
    """
    import torch

    model = build(options, None)
    shape = (options.documents, options.segments, options.length)
    ids = torch.randint(vocabulary(model), shape)
    counts = [options.documents * k for k in range(1, options.segments + 1)]
    best = dict.fromkeys(counts, float("inf"))
    for _ in range(options.repeat):
        for count in counts:
            mask = torch.zeros(shape, dtype=torch.long)
            mask[:, : count // options.documents] = 1
            best[count] = min(best[count], step(model, ids, mask))
    full = best[counts[-1]] / counts[-1]
    return [
        {"real segments": n, "seconds": s, "against linear": s / (n * full)}
        for n, s in best.items()
    ]


def peak_memory(options: argparse.Namespace) -> dict:
    """Measure peak memory and time of a step on one long document."""
    import torch

    model = build(options, options.worker or None)
    segments = -(-options.tokens // (options.length - 2))
    ids = torch.randint(vocabulary(model), (1, segments, options.length))
    seconds = step(model, ids, torch.ones_like(ids))
    return {"peak_gib": peak_resident() / 2**30, "seconds": seconds}


def peak_resident() -> int:
    """Peak memory of this process in bytes. (getrusage counts the parent's at the start, too.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def report(timed: list[dict], memory: list[dict], options: argparse.Namespace) -> None:
    """Write and print both tables."""
    import pandas as pd

    from bertchain.runtime.files import write_json, write_text
    from bertchain.runtime.records import markdown_table, versions

    tables = [markdown_table(pd.DataFrame(rows), 2) for rows in (timed, memory)]
    folder = Path(options.output_dir)
    write_text(folder / "report.md", "\n".join(tables))
    facts = {"time": timed, "memory": memory, "options": vars(options), "versions": versions()}
    write_json(folder / "all_results.json", facts)
    print("\n".join(tables))


if __name__ == "__main__":
    main()
