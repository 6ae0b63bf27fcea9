"""Further pretraining: masked language modelling on the text of a task, before fine-tuning on it.

    python run_itpt.py --model_name_or_path bert-base-uncased \\
        --train_file train.csv domain=abstracts.jsonl --text_column_names title abstract \\
        --output_dir itpt
    python run_finetune.py --model_name_or_path itpt ...

Text of the task itself is within-task (ITPT), of the same field in-domain, of others cross-domain
pretraining: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583),
section 5.4. Loss and perplexity are measured on held-out documents, before the first step and on.
"""

import logging
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from bertchain.arguments.common import TextArguments
from bertchain.arguments.pretraining import (
    BlockArguments,
    CorpusArguments,
    MaskArguments,
    RunArguments,
    StartArguments,
)
from bertchain.cli import (
    changed,
    parse,
    refuse_data_parallel,
    refuse_fp16,
    run_script,
    start_logging,
    start_script,
)
from bertchain.errors import InputError
from bertchain.pretraining.trainer import KeepSteps, MaskedLMTrainer

# What is set here and not left to transformers.TrainingArguments. Rate: Sun et al. 2019, 5.1.
DEFAULTS = {
    "output_dir": "further_pretrained",
    "learning_rate": 5e-5,
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 64,
    "warmup_steps": 0.1,  # below 1: a share of all steps
    "weight_decay": 0.01,
    "eval_strategy": "epoch",
    "eval_on_start": True,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "logging_steps": 20.0,
    "report_to": "none",
}


OWN_ARGUMENTS = (
    CorpusArguments,
    TextArguments,
    BlockArguments,
    MaskArguments,
    StartArguments,
    RunArguments,
)

if __name__ == "__main__":
    start_script(__doc__, OWN_ARGUMENTS, DEFAULTS)

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from bertchain.data.batching import keep_all_columns, refuse_other_order
from bertchain.data.contamination import hash_texts, read_fingerprint
from bertchain.data.documents import all_text
from bertchain.data.tokenization import load_tokenizer, resolve_windows
from bertchain.data.words import SEGMENTERS
from bertchain.models.loading import first_position, is_document_classifier
from bertchain.pretraining.corpora import (
    Source,
    check_test_text,
    clean,
    parse_corpus_weights,
    parse_sources,
    read_corpora,
    split_corpora,
)
from bertchain.pretraining.masked_lm import (
    MaskedLMScores,
    check_packing,
    load_masked_lm,
    masked_lm_from_scratch,
    read_pooler,
)
from bertchain.pretraining.masking import Masker
from bertchain.pretraining.packing import MaskingCollator, RowMaker, pack_rows, to_rows
from bertchain.pretraining.sampling import StreamedBatches
from bertchain.pretraining.streaming import DocumentStream
from bertchain.pretraining.vocabulary import add_words, words_to_add
from bertchain.runtime.checkpoints import (
    find_checkpoint,
    remove_checkpoints,
)
from bertchain.runtime.files import (
    disk_errors,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)
from bertchain.runtime.locks import claim, frees_claims
from bertchain.runtime.records import evaluation_history, model_card, plot_history, versions

logger = logging.getLogger("bertchain")


@frees_claims
def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    corpus, text, block, mask, start, run, training, run_config = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS
    )
    start_logging()
    check_arguments(corpus, text, block, mask, run, training)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    path, hub_kwargs = encoder_path(start.model_name_or_path or start.config_name), start.hub_kwargs

    # 2. Corpora -> documents, some held out
    sources, weights, test_hashes = resolve_corpora(corpus, text, mask.label_words)
    read = stream_documents if corpus.streaming else read_documents
    documents, held_out, counts = read(corpus, sources, weights, test_hashes, training.seed)

    # 3. Tokenizer and model, perhaps with new tokens
    tokenizer = load_tokenizer(start.tokenizer_name or path, **hub_kwargs)
    check_mask_token(tokenizer, start.tokenizer_name or path)
    new_tokens = grow_tokenizer(tokenizer, start.add_tokens, documents)
    if start.config_name is not None:
        model, untrained = masked_lm_from_scratch(path, tokenizer, hub_kwargs)
    else:
        model, untrained = load_masked_lm(path, tokenizer, hub_kwargs, new_tokens)
    pooler = read_pooler(path, model, hub_kwargs) if start.keep_pooler else {}

    # 4. Documents -> rows; those held out get their mask once and for all
    maker = build_row_maker(path, tokenizer, block, mask, hub_kwargs)
    collator = build_collator(tokenizer, mask, model, training.seed)
    held_out = collator.mask_for_good(to_rows(held_out, maker))
    if corpus.streaming:
        rows = stream_rows(documents, maker, block, training)
    else:
        rows = training_rows(documents, maker, block, collator, model)
        counts |= count_rows(rows, held_out)

    # 5. Trainer
    claim(training.output_dir)
    trainer = MaskedLMTrainer(
        block=block,
        weights=weights,
        pooler=pooler,
        hashes=known_hashes(documents, rows, path, hub_kwargs),
        model=model,
        args=keep_all_columns(training),
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=MaskedLMScores(held_out["corpus"][:]),
    )
    add_callbacks(trainer, run)

    # 6. Train, and keep the best
    facts = {"untrained_weights": len(untrained), "new_tokens": len(new_tokens)}
    results = {**counts, **facts, "transductive": corpus.include_test_text}
    with disk_errors(training.output_dir):
        results |= trainer.train(resume_from_checkpoint=resume_from).metrics

    # 7. Measure on held-out documents
    results |= trainer.evaluate()

    # 8. Write the checkpoint, curves and results
    trainer.save_plain(Path(training.output_dir))
    if trainer.is_world_process_zero():
        write_run(trainer, results, run_config)
        if not run.keep_checkpoints:
            remove_checkpoints(training.output_dir)
    trainer.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 1. arguments


def check_arguments(
    corpus: CorpusArguments,
    text: TextArguments,
    block: BlockArguments,
    mask: MaskArguments,
    run: RunArguments,
    training: TrainingArguments,
) -> None:
    """What no single dataclass can check."""
    refuse_data_parallel(training.n_gpu)
    refuse_fp16(training.fp16, training.device.type == "cpu")
    refuse_other_order(training)
    if text.text_pair and mask.label_words is not None:
        raise InputError("--label_words stands where the first text of a --text_pair would")
    if run.early_stopping_patience is not None and not training.load_best_model_at_end:
        raise InputError("--early_stopping_patience needs --load_best_model_at_end true")
    if not corpus.streaming:
        return
    if training.max_steps < 1:
        raise InputError("--streaming needs --max_steps: text without end has no epochs")
    if training.dataloader_num_workers:
        raise InputError("--streaming reads in the training process; --dataloader_num_workers 0")
    if block.blocks == "packed":
        raise InputError("--streaming goes with --blocks document")


def encoder_path(path: str) -> str:
    """A folder of run_finetune.py holds a plain checkpoint of its encoder."""
    return str(Path(path) / "encoder") if is_document_classifier(path) else path


# ---------------------------------------------------------------- 2. documents


def resolve_corpora(
    corpus: CorpusArguments, text: TextArguments, label_words: str | None
) -> tuple[list[Source], dict[str, float], np.ndarray | None]:
    """All tables, the weights of the corpora, and the hashes of the documents to leave out."""
    defaults = {
        "text_column_names": tuple(text.text_column_names),
        "text_separator": text.text_separator,
        "text_pair": text.text_pair,
        "max_samples": corpus.max_train_samples,
        **text.format,
    }
    sources = parse_sources(corpus.train_file, corpus.corpora, defaults, label_words)
    if corpus.dataset_name is not None:
        names = {
            "dataset_name": corpus.dataset_name,
            "dataset_config_name": corpus.dataset_config_name,
        }
        sources.append(Source("task", **names, label_words=label_words, **defaults))
    test = parse_sources(corpus.test_file, None, {**defaults, "max_samples": None})
    check_test_text(sources, test, corpus.include_test_text)
    test_hashes = None
    if corpus.include_test_text:
        sources += test
    elif test:
        test_hashes = hash_texts(all_text(read_corpora(test)))
    names = list(dict.fromkeys(source.corpus for source in sources))
    return sources, parse_corpus_weights(corpus.corpus_weights, names), test_hashes


def read_documents(
    corpus: CorpusArguments,
    sources: list[Source],
    weights: dict[str, float],
    test_hashes: np.ndarray | None,
    seed: int,
) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Training and held-out documents, and how many were read and left out."""
    documents, counts = clean(read_corpora(sources), corpus.deduplicate, test_hashes)
    train, held_out = split_corpora(documents, corpus.validation_split, seed)
    counts |= {"documents": len(train), "held_out_documents": len(held_out)}
    names = np.array(train["corpus"][:])
    for name, weight in weights.items():
        logger.info("Corpus %s: %d documents, weight %g", name, (names == name).sum(), weight)
    return train, held_out, counts


HELD_OUT_OF_STREAM = 1000  # documents


def stream_documents(
    corpus: CorpusArguments,
    sources: list[Source],
    weights: dict[str, float],
    test_hashes: np.ndarray | None,
    seed: int,
) -> tuple[DocumentStream, Dataset, dict[str, Any]]:
    """A stream for training, and held-out documents from its beginning."""
    stream = DocumentStream(
        sources, weights, corpus.validation_split, test_hashes, corpus.deduplicate, seed
    )
    held_out = stream.held_out(HELD_OUT_OF_STREAM)
    return stream, held_out, {"held_out_documents": len(held_out)}


# ---------------------------------------------------------------- 3. tokenizer


def check_mask_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.mask_token is None:
        raise InputError(
            f"the tokenizer of {name} has no mask token, so it cannot be used for masked language "
            "modelling; give an encoder such as BERT or RoBERTa"
        )


def grow_tokenizer(
    tokenizer: PreTrainedTokenizerBase, asked: str | None, documents: Dataset | DocumentStream
) -> dict[int, list[int]]:
    """Add what --add_tokens asks for, counted in the documents or the first 10,000 of a stream."""
    if asked is None:
        return {}
    if isinstance(documents, DocumentStream):
        first = itertools.islice(documents.documents(0, 1), 10_000)
        texts = ["\n".join((d["text"], d.get("text_pair", ""))) for _, d in first]
    else:
        texts = all_text(documents)
    words = words_to_add(asked, texts, tokenizer)
    logger.info("New tokens: %d: %s", len(words), " ".join(words[:12]))
    return add_words(tokenizer, words)


# ---------------------------------------------------------------- 4. rows and masks


def build_row_maker(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    block: BlockArguments,
    mask: MaskArguments,
    hub_kwargs: dict[str, Any],
) -> RowMaker:
    """Windows without overlap, of what the model takes; words where masks need them."""
    given = {"truncation": "hierarchical", "max_seq_length": block.max_seq_length}
    given = {name: value for name, value in given.items() if value is not None}
    windows, special = resolve_windows(given, path, tokenizer, **hub_kwargs)
    segment = None if mask.mask_unit == "token" else SEGMENTERS[mask.word_segmenter]
    return RowMaker(tokenizer, windows, special, segment)


def build_collator(
    tokenizer: PreTrainedTokenizerBase, mask: MaskArguments, model: PreTrainedModel, seed: int
) -> MaskingCollator:
    masker = Masker(
        mask_id=tokenizer.mask_token_id,
        vocabulary=np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids),
        rate=mask.mlm_probability,
        unit=mask.mask_unit,
        max_ngram=mask.max_ngram,
        mask=mask.mask_replace_prob,
        random=mask.random_replace_prob,
    )
    additive = model.config._attn_implementation == "eager"
    return MaskingCollator(tokenizer, masker, seed, first_position(model.config), additive)


def training_rows(
    documents: Dataset,
    maker: RowMaker,
    block: BlockArguments,
    collator: MaskingCollator,
    model: PreTrainedModel,
) -> Dataset:
    """Windows as rows, or several in a row."""
    rows, capacity = to_rows(documents, maker), maker.windows.max_seq_length
    if block.blocks == "document":
        return rows
    lengths = np.array(rows["length"][:])
    order = [int(i) for i in np.argsort(-lengths, kind="stable")]
    longest, shortest = order[0], order[-1]
    beside = next((i for i in order if lengths[i] + lengths[shortest] <= capacity), shortest)
    for windows in ([longest], [beside, shortest]):
        check_packing(model, [rows[i] for i in windows], collator)
    return pack_rows(rows, capacity)


def count_rows(rows: Dataset, held_out: Dataset) -> dict[str, int]:
    counts = {
        "rows": len(rows),
        "tokens": int(np.sum(rows["length"][:])),
        "held_out_rows": len(held_out),
    }
    logger.info("Rows: %(rows)d, %(tokens)d tokens; held out: %(held_out_rows)d rows", counts)
    return counts


def stream_rows(
    documents: DocumentStream, maker: RowMaker, block: BlockArguments, training: TrainingArguments
) -> StreamedBatches:
    return StreamedBatches(
        lambda: documents.documents(training.process_index, training.world_size),
        maker,
        training.per_device_train_batch_size,
        block.tokens_per_batch,
        block.batch_by_length,
        training.seed,
    )


def known_hashes(
    documents: Dataset | DocumentStream,
    rows: Dataset | StreamedBatches,
    path: str,
    hub_kwargs: dict[str, Any],
) -> Callable[[], np.ndarray]:
    """What the checkpoint will have seen: all documents of this run and of those before it."""
    before = read_fingerprint(path, **hub_kwargs)
    before = np.zeros(0, dtype=np.uint64) if before is None else before
    if isinstance(rows, StreamedBatches):  # known when they were read
        return lambda: np.array([*before.tolist(), *gather_object([*rows.hashes])], np.uint64)
    now = np.concatenate([before, np.array(documents["hash"][:], dtype=np.uint64)])
    return lambda: now


def add_callbacks(trainer: MaskedLMTrainer, run: RunArguments) -> None:
    if run.save_at_steps:
        trainer.add_callback(KeepSteps(run.save_at_steps, trainer))
    if run.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(run.early_stopping_patience))


# ---------------------------------------------------------------- 8. write


def write_run(trainer: Trainer, results: dict[str, Any], run_config: dict[str, Any]) -> None:
    """Beside the checkpoint: its card, curves, arguments and results."""
    folder = Path(trainer.args.output_dir)
    history = evaluation_history(trainer.state.log_history)
    write_csv(folder / "history.csv", history)
    plot_history(folder / "history.png", history, "eval_masked_accuracy")
    card = model_card(
        title=folder.name,
        base_model=run_config.get("model_name_or_path") or run_config["config_name"],
        pipeline_tag="fill-mask",
        summary="Masked language model, "
        + ("further pretrained" if "model_name_or_path" in run_config else "trained from scratch")
        + " on the text of a task.",
        usage=USAGE,
        metrics={k: v for k, v in results.items() if k in SCORES},
        arguments=changed(run_config, (*OWN_ARGUMENTS, TrainingArguments)),
    )
    write_text(folder / "README.md", card)
    write_yaml(folder / "run_args.yaml", run_config)
    seed = {"seed": trainer.args.seed}
    write_json(folder / "all_results.json", results | seed | {"versions": versions()})
    logger.info("Wrote %s: perplexity %.2f", folder, results["eval_perplexity"])


SCORES = ("eval_loss", "eval_perplexity", "eval_masked_accuracy")

USAGE = """
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = AutoModelForMaskedLM.from_pretrained("PATH OF THIS FOLDER")

# the encoder alone, without the head
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER", add_pooling_layer=False)
"""


if __name__ == "__main__":
    run_script(main)
