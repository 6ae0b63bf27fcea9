"""Tokens per second, peak memory and share of the card's rate, against the usual recipes."""

import argparse
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from gpu_stages import texts
from gpu_stages.running import Item

BATCHES = 72  # of an epoch; the first two warm up
WARM_COMPILED = 12  # until the shapes are known
LENGTHS = {128: (64, 3), 512: (32, 16)}  # rows of a batch, most docstrings in a document
WORKERS = 2  # that make batches where workers do
WIDE = 4  # so many times the rows of a batch, and a third of the batches


def items(options: argparse.Namespace) -> Iterator[Item]:
    """Yield the measurements; those that take minutes to compile come last."""
    if options.tiny:
        yield from of_shape(options, "tiny-shape", 128)
        yield from by_workers(options, "tiny-shape", 128)
        yield from wide(options, "tiny-shape", 128)
        yield from of_features(options, "tiny-shape")
        return
    yield from of_shape(options, "minilm-shape", 128)
    yield from by_workers(options, "minilm-shape", 128)
    yield from of_features(options, "minilm-shape")
    yield from of_shape(options, "bert-base-shape", 512)
    yield from by_workers(options, "bert-base-shape", 512)
    yield from of_shape(options, "modernbert-base-shape", 512, itpts=())
    yield from of_shape(options, "deberta-v3-base-shape", 512, itpts=())
    yield from of_features(options, "bert-base-shape")
    yield from of_shape(options, "bert-base-shape", 128)
    yield from of_shape(options, "minilm-shape", 512)
    yield from wide(options, "bert-base-shape", 512)
    yield from compiled(options, "bert-base-shape", 512)


def of_shape(
    options: argparse.Namespace,
    model: str,
    length: int,
    itpts: Sequence[str] = ("usual", "document", "packed"),
) -> Iterator[Item]:
    """Yield both kinds of training with a model, and what a step's time is spent on."""
    shape = f"{model}, {length} tokens"
    for way in itpts:
        yield Item(f"itpt, {shape}/{way}", partial(itpt, options, model, length, way))
    for way in ("best", "ours"):
        yield Item(f"finetune, {shape}/{way}", partial(finetune, options, model, length, way))
    for task in ("itpt", "finetune") if itpts else ("finetune",):
        yield Item(f"profile, {shape}/{task}", partial(profile, options, model, length, task))


def by_workers(options: argparse.Namespace, model: str, length: int) -> Iterator[Item]:
    """Yield both kinds of training, where other processes make the batches."""
    for task, ways in ((itpt, ("usual", "document")), (finetune, ("best", "ours"))):
        for way in ways:
            name = f"{task.__name__}, {model}, {length} tokens, {WORKERS} workers/{way}"
            yield Item(name, partial(task, options, model, length, way, workers=WORKERS))


def compiled(options: argparse.Namespace, model: str, length: int) -> Iterator[Item]:
    """Yield both kinds of training with a compiled model."""
    shape = f"{model}, {length} tokens, compiled"
    for way in ("document", "packed", "usual"):
        yield Item(f"itpt, {shape}/{way}", partial(itpt, options, model, length, way, True))
    for way in ("ours", "best"):
        yield Item(f"finetune, {shape}/{way}", partial(finetune, options, model, length, way, True))


def wide(options: argparse.Namespace, model: str, length: int) -> Iterator[Item]:
    """Yield both kinds of training in batches so large that the GPU never waits for its CPU."""
    shape = f"{model}, {length} tokens, {WIDE * LENGTHS[length][0]} rows"
    for compiled in (True,) if options.tiny else (False, True):
        name = f"{shape}, compiled" if compiled else shape
        for task, ways in ((finetune, ("ours", "best")), (itpt, ("document", "usual"))):
            for way in ways:
                run = partial(task, options, model, length, way, compiled, WIDE)
                yield Item(f"{task.__name__}, {name}/{way}", run)


def of_features(options: argparse.Namespace, model: str) -> Iterator[Item]:
    """Yield features of all layers and two poolings, and another library's single vector."""
    for way in ("features",) if options.tiny else ("encode", "features"):
        yield Item(f"features, {model}/{way}", partial(features, options, model, way))


def _common(
    options: argparse.Namespace, model: str, length: int, compiled: bool, times: int, workers: int
) -> dict:
    rows, joined = LENGTHS[length]
    rows = times * (4 if options.tiny else rows)
    batches = 4 if options.tiny else BATCHES // (1 if times == 1 else 3)
    warm = WARM_COMPILED if compiled and not options.tiny else 2
    return {
        "model": model,
        "tokenizer": options.model,
        "train_file": texts.table(options.output_dir, rows * (batches + warm - 2), joined),
        "text_column_names": ["text"],
        "label_column_name": "label",
        "max_train_samples": None,
        "max_seq_length": length,
        "rows": rows,
        "warm": warm,
        # of further pretraining: joined to full rows there are fewer
        "steps": 3 if options.tiny else 44 if times == 1 else 14,
        "workers": workers,
        "threads": 2 if options.tiny else 8,
        "bf16": not options.tiny,
        "compile": ("aot_eager" if options.tiny else "inductor") if compiled else None,
    }


def itpt(
    options: argparse.Namespace,
    model: str,
    length: int,
    way: str,
    compiled: bool = False,
    times: int = 1,
    workers: int = 0,
) -> dict:
    """Measure further pretraining. Args: times: the usual rows of a batch."""
    import itpt_speed

    own = _common(options, model, length, compiled, times, workers)
    return itpt_speed.measure(Namespace(**own, worker=way))


def finetune(
    options: argparse.Namespace,
    model: str,
    length: int,
    way: str,
    compiled: bool = False,
    times: int = 1,
    workers: int = 0,
) -> dict:
    """Measure fine-tuning and prediction. Args: times: the usual rows of a batch."""
    import finetune_speed

    own = _common(options, model, length, compiled, times, workers)
    return finetune_speed.measure(Namespace(**own, worker=way))


def features(options: argparse.Namespace, model: str, way: str) -> dict:
    """Measure features of all layers and two poolings, or the last layer's by another library."""
    import torch
    from shapes import config_of
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    path = texts.table(options.output_dir, 200 if options.tiny else 8_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = config_of(model, tokenizer)
        AutoModel.from_config(config, trust_remote_code=False).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return _features(folder, path, way)


def _features(folder: str, path: str, way: str) -> dict:
    import pandas as pd
    import torch
    from datasets import Dataset

    found = pd.read_csv(path)["text"].tolist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if way == "encode":
        from sentence_transformers import SentenceTransformer, models

        body = models.Transformer(folder, max_seq_length=128)
        pooling = models.Pooling(body.get_word_embedding_dimension(), pooling_mode="mean")
        model = SentenceTransformer(modules=[body, pooling], device=device)
        model = model.bfloat16() if device == "cuda" else model
        model.encode(found[:256], batch_size=64)
        start = time.perf_counter()
        model.encode(found, batch_size=64, show_progress_bar=False)
        return {"seconds": time.perf_counter() - start, "rows": len(found), "vectors": 1}

    from bertchain.data.tokenization import Preprocessor
    from bertchain.models.loading import load_encoder
    from bertchain.probing.features import FeatureStore

    preprocessor = Preprocessor.for_checkpoint(folder, {"max_seq_length": 128})
    encoder = load_encoder(folder)[0].to(device)
    with tempfile.TemporaryDirectory() as kept:
        store = FeatureStore(Path(kept), encoder, preprocessor.pad_id, half_precision=True)
        few, rows = (Dataset.from_dict({"text": part}) for part in (found[:256], found))
        store.of(preprocessor.encode({"few": few})["few"], ["cls"], 8192, "warm-up")
        start = time.perf_counter()
        windows = preprocessor.encode({"rows": rows})["rows"]
        made = store.of(windows, ["cls", "mean"], 8192, "rows")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": len(found), "vectors": made.shape[1] * 2}


def profile(options: argparse.Namespace, model: str, length: int, task: str) -> dict:
    """Find what the time of some steps is spent on: shares of the kernels, and of idling."""
    import finetune_speed
    import itpt_speed
    import torch
    from torch.profiler import ProfilerActivity
    from transformers import TrainerCallback

    own = _common(options, model, length, False, 1, 0)
    if task == "itpt":
        trainer = itpt_speed.make_trainer(Namespace(**own, worker="document"))
    else:
        trainer, _ = finetune_speed.make_trainer(Namespace(**own, worker="ours"))
    on_gpu = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    profiler = torch.profiler.profile(activities=kinds)
    first, last = (1, 3) if options.tiny else (6, 12)
    clock: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
            if state.global_step not in (first, last):
                return
            if on_gpu:
                torch.cuda.synchronize()
            clock.append(time.perf_counter())
            profiler.start() if state.global_step == first else profiler.stop()

    trainer.add_callback(Watch())
    trainer.train()
    return _shares(profiler, clock[1] - clock[0], on_gpu)


def _shares(profiler: object, seconds: float, on_gpu: bool) -> dict:
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    events = [event for event in profiler.key_averages() if getattr(event, own) > 0]
    if on_gpu:  # the kernels alone, not the calls that started them
        events = [event for event in events if str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: -getattr(event, own))
    total = sum(getattr(event, own) for event in events) / 1e6
    waits = [e for e in profiler.key_averages() if "ynchronize" in e.key or e.key == "aten::item"]
    shares = {e.key[:90]: round(getattr(e, own) / 1e6 / total, 4) for e in events[:25]}
    counts = {event.key: event.count for event in waits}
    return {"seconds": seconds, "busy": total / seconds, "waits": counts, "kernels": shares}
