"""A training step on one long document: seconds and peak memory, by windows at a time."""

import argparse
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial

from gpu_stages.running import Item

LENGTH = 512


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the measurements."""
    tokens, length = (2_000, 64) if options.tiny else (100_000, LENGTH)
    models = ("tiny-shape",) if options.tiny else ("minilm-shape", "bert-base-shape")
    sizes = (4, 0) if options.tiny else (16, 64, 0)
    for model in models:
        run = partial(measure_all, options.model, model, tokens, length, sizes)
        yield Item(f"{tokens:,} tokens/{model}", run)


def measure_all(tokenizer: str, model: str, tokens: int, length: int, sizes: Sequence[int]) -> dict:
    """Measure each number of windows at once; 0: all."""
    found = {}
    for size in sizes:
        own = measure(tokenizer, model, tokens, length, size)
        found |= {f"{size or 'all'} at once: {name}": value for name, value in own.items()}
    return found


def measure(tokenizer: str, model: str, tokens: int, length: int, size: int) -> dict:
    """Time a forward and a backward pass; all windows at once, or `size` of them."""
    import long_documents
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    options = Namespace(
        model=model,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False),
        length=length,
        threads=8,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    built = long_documents.build(options, size or None).to(device)
    segments = -(-tokens // (length - 2))
    ids = torch.randint(1000, (1, segments, length), device=device)
    found: dict[str, float] = {"windows": segments}
    for run in ("first", "second"):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            loss = built(
                ids, torch.ones_like(ids), labels=torch.zeros(1, dtype=torch.long).to(device)
            ).loss
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
            found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found[f"seconds, {run}"] = time.perf_counter() - start
        built.zero_grad()
    del built, loss
    return found | {"tokens per second": tokens / found["seconds, second"]}
