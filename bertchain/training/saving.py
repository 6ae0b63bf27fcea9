"""Write a classifier's folder: weights with their code, tokenizer, encoder alone, model card."""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from bertchain.arguments.finetuning import GROUPS
from bertchain.cli import changed
from bertchain.data.contamination import TRAINED_FILE, hashes_of, write_fingerprint
from bertchain.data.labels import LabelSpec
from bertchain.errors import as_input_error
from bertchain.metrics import is_score, main_metric
from bertchain.models.modeling import DocumentClassifier
from bertchain.models.weights import check_finite
from bertchain.runtime.distributed import is_main_process
from bertchain.runtime.files import atomic_files, hash_file, write_csv, write_json, write_text
from bertchain.runtime.outputs import RESULTS
from bertchain.runtime.records import evaluation_history, model_card, plot_history


def write_member(
    trainer: Trainer,
    spec: LabelSpec,
    folder: Path,
    results: dict[str, Any],
    run_config: dict[str, Any],
    with_encoder: bool,
) -> None:
    """Write a trained model, its curves and its results.

    The results come last: a member with all_results.json is done. The main process writes.

    Args: as for `write_model`, and
        trainer: its training rows have the hash of each.
    """
    if not is_main_process():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    tokenizer = trainer.processing_class
    write_model(model, tokenizer, spec, folder, results, run_config, with_encoder)
    write_seen(folder, hashes_of(trainer.train_dataset), trainer.seen)
    history = evaluation_history(trainer.state.log_history)
    write_csv(folder / "history.csv", history)
    chosen = main_metric(spec.problem_type, len(spec.names))[0]
    metric = trainer.args.metric_for_best_model or chosen
    plot_history(folder / "history.png", history, f"eval_{metric.removeprefix('eval_')}")
    files = {path.name: hash_file(path) for path in sorted(folder.glob("predictions_*.csv"))}
    write_json(folder / RESULTS, results | {"seed": trainer.args.seed, "files": files})


def write_seen(folder: Path, hashes: np.ndarray, before: dict[str, np.ndarray]) -> None:
    """Save what a classifier and its encoder have seen, now and as the checkpoint before.

    Args:
        hashes: of the rows that it was trained on now.
        before: what the checkpoint had seen, see `contamination.read_fingerprints`.
    """
    trained_on = np.union1d(before.get(TRAINED_FILE, hashes[:0]), hashes)
    for where in (folder, folder / "encoder"):
        if where.is_dir():
            for name, seen in (before | {TRAINED_FILE: trained_on}).items():
                write_fingerprint(where, seen, name)


def write_model(
    model: DocumentClassifier,
    tokenizer: PreTrainedTokenizerBase,
    spec: LabelSpec,
    folder: Path,
    results: dict[str, Any],
    run_config: dict[str, Any],
    with_encoder: bool = True,
) -> None:
    """Write a classifier with its code, a model card, and the encoder alone.

    Args:
        results: the card shows their scores.
        run_config: all arguments; the card shows those that differ from the defaults.
        with_encoder: whether to write encoder/, a plain `AutoModel` checkpoint; left out where many
            models are kept.

    Raises:
        InputError: for weights that are not finite.
    """
    with as_input_error(str(folder)):
        check_finite(model)
    with atomic_files(folder) as temporary:
        written = {temporary: model} | (
            {temporary / "encoder": model.encoder} if with_encoder else {}
        )
        for where, module in written.items():
            module.save_pretrained(where)
            tokenizer.save_pretrained(where)
    card = model_card(
        title=folder.name,
        base_model=run_config["model_name_or_path"],
        pipeline_tag="text-classification",
        summary=f"{spec.problem_type} document classifier, {len(spec.names)} labels: "
        + ", ".join(spec.names[:20])
        + (" ..." if len(spec.names) > 20 else "")
        + (f". Underfitting: {results['underfitting']}" if "underfitting" in results else ""),
        usage=USAGE_OF_SPANS if model.config.num_spans else USAGE,
        metrics={k: v for k, v in results.items() if is_score(k)},
        arguments=changed(run_config, (*GROUPS, TrainingArguments)),
    )
    write_text(folder / "README.md", card)


USAGE = """
from transformers import pipeline

classify = pipeline("text-classification", model="PATH OF THIS FOLDER", trust_remote_code=True)
classify("Some text")

# the encoder alone, without the head; False: a tokenizer needs no code, and nobody is asked
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=False)
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER/encoder", add_pooling_layer=False)
"""

USAGE_OF_SPANS = """
# labels of words: python run_finetune.py --model_name_or_path PATH --test_file more.jsonl \\
#     --spans_column_name spans

# the encoder alone, without the head; False: a tokenizer needs no code, and nobody is asked
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER", trust_remote_code=False)
encoder = AutoModel.from_pretrained("PATH OF THIS FOLDER/encoder", add_pooling_layer=False)
"""
