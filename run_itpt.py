"""Further pretraining: masked language modelling on the text of a task, before fine-tuning on it.

    python run_itpt.py --model_name_or_path bert-base-uncased --train_file train.csv unlabelled.txt
    \\
        --text_column_names title abstract --output_dir itpt
    python run_finetune.py --model_name_or_path itpt ...

Text of the task itself is within-task (ITPT), of the same field in-domain, of others cross-domain
pretraining: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.4.
Documents become windows without overlap. Loss and perplexity are measured on held-out documents.
"""

import logging
import os
import sys
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # siblings, from a notebook too

from arguments import (
    EncoderArguments,
    TextArguments,
    arg,
)
from command_line import (
    InputError,
    as_input_error,
    at_least,
    changed,
    parse,
    print_help,
    refuse_data_parallel,
    run_script,
    share,
    start_logging,
    wants_help,
)

# What is set here and not left to transformers.TrainingArguments. Rate: Sun et al. 2019, section
# 5.1.
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


@dataclass
class CorpusArguments:
    _argument_group_name = "corpus"

    train_file: list[str] = arg([], "Tables of text: .csv .tsv .txt .json .jsonl .parquet (.gz).")
    dataset_name: str | None = arg(None, "Hub data set (its train split), in place of files.")
    dataset_config_name: str | None = arg(None, "Its configuration.")
    max_train_samples: int | None = arg(None, "Use the first N documents of each table.")
    validation_split: float = arg(0.05, "Share of the documents held out to measure the loss.")
    max_seq_length: int | None = arg(
        None, "Tokens a window, special tokens included. Else: what the model takes, at most 512."
    )
    mlm_probability: float = arg(0.15, "Share of tokens to predict.")
    batch_by_length: bool = arg(True, "Training batches hold windows of similar length.")
    keep_checkpoints: bool = arg(False, "Keep checkpoint-* folders after the end.")

    def __post_init__(self) -> None:
        if bool(self.train_file) == bool(self.dataset_name):
            raise InputError("give either --train_file (one or several) or --dataset_name")
        share("validation_split", self.validation_split)
        share("mlm_probability", self.mlm_probability)
        at_least("max_train_samples", self.max_train_samples, 1)
        at_least("max_seq_length", self.max_seq_length, 1)


OWN_ARGUMENTS = (CorpusArguments, TextArguments, EncoderArguments)

if __name__ == "__main__" and wants_help(sys.argv[1:]):
    print_help(__doc__, OWN_ARGUMENTS, DEFAULTS)
    sys.exit()

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from batches import (
    GroupedByLength,
    check_vocabulary,
    keep_all_columns,
    load_tokenizer,
    settle_windows,
    to_windows,
)
from modeling import is_document_classifier, quiet_loading
from outputs import (
    evaluation_history,
    find_checkpoint,
    model_card,
    plot_history,
    remove_checkpoints,
    replacing_files,
    versions,
    write_csv,
    write_json,
    write_text,
    write_yaml,
)
from text_data import first_rows, hold_out, read_hub_table, read_table, to_documents

logger = logging.getLogger(__name__)


def main(argv: list[str] | dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the script. Args: flags, a dict of arguments, or None for the command line.

    Returns:
        all metrics, as in all_results.json.
    """
    # 1. Arguments
    corpus, text, checkpoint, training, as_run = parse(
        (*OWN_ARGUMENTS, TrainingArguments), argv, DEFAULTS
    )
    start_logging()
    refuse_data_parallel(training.n_gpu)
    resume_from = find_checkpoint(training.output_dir, training.resume_from_checkpoint)
    set_seed(training.seed)
    path, hub = encoder_path(checkpoint.model_name_or_path), checkpoint.hub

    # 2. Tables -> documents, some held out
    documents = read_corpus(corpus, text)
    train, held_out = split_corpus(documents, corpus.validation_split, training.seed)

    # 3. Documents -> windows, each a row; those held out get their mask once and for all
    tokenizer = load_tokenizer(checkpoint.tokenizer_name or path, **hub)
    check_mask_token(tokenizer, checkpoint.tokenizer_name or path)
    given = {"truncation": "hierarchical", "max_seq_length": corpus.max_seq_length}
    given = {name: value for name, value in given.items() if value is not None}
    windows, special = settle_windows(given, path, tokenizer, **hub)
    train, held_out = (
        one_row_per_window(to_windows(rows, tokenizer, windows, special)[0])
        for rows in (train, held_out)
    )
    collator = MaskingCollator(tokenizer, corpus.mlm_probability)
    held_out = collator.mask_for_good(held_out, training.seed)
    logger.info(
        "Windows of %d tokens: %d, %d held out", windows.max_seq_length, len(train), len(held_out)
    )

    # 4. Model
    model, untrained = load_masked_lm(path, tokenizer, hub)

    # 5. Trainer
    trainer = MaskedLMTrainer(
        model=model,
        args=keep_all_columns(training),
        batch_by_length=corpus.batch_by_length,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=masked_lm_scores,
    )

    # 6. Train, and keep the best
    results: dict[str, Any] = {
        "documents": len(documents),
        "untrained_head_weights": len(untrained),
    }
    results |= trainer.train(resume_from_checkpoint=resume_from).metrics

    # 7. Measure on held-out documents
    results |= trainer.evaluate()

    # 8. Write the checkpoint, curves and results
    if trainer.is_world_process_zero():
        write_run(trainer, results, as_run)
        if not corpus.keep_checkpoints:
            remove_checkpoints(training.output_dir)
    trainer.accelerator.wait_for_everyone()
    return results


# ---------------------------------------------------------------- 2. documents


def encoder_path(path: str) -> str:
    """A folder of run_finetune.py holds a plain checkpoint of its encoder."""
    return str(Path(path) / "encoder") if is_document_classifier(path) else path


def read_corpus(corpus: CorpusArguments, text: TextArguments) -> Dataset:
    """All documents of all tables, in order, labels left aside."""
    if corpus.dataset_name is not None:
        table = read_hub_table(corpus.dataset_name, corpus.dataset_config_name, "train")
        if table is None:
            raise InputError(f"--dataset_name {corpus.dataset_name} has no train split")
        tables = {corpus.dataset_name: table}
    else:
        tables = {p: read_table(p, **text.format) for p in corpus.train_file}
    parts = []
    for source, table in tables.items():
        rows = first_rows(table, corpus.max_train_samples)
        parts.append(to_documents(rows, source, **text.columns | {"id_column": None}))
        logger.info("%s: %d documents", source, len(rows))
    documents = concatenate_datasets(parts)
    filled = [i for i, words in enumerate(all_text(documents)) if words.strip()]
    if not filled:
        raise InputError(f"{', '.join(tables)}: no text")
    return documents.select(filled)


def all_text(documents: Dataset) -> list[str]:
    """The text of each document, both texts of a pair."""
    if "text_pair" not in documents.column_names:
        return documents["text"][:]
    pairs = zip(documents["text"][:], documents["text_pair"][:], strict=True)
    return ["\n".join(pair) for pair in pairs]


def split_corpus(documents: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out documents; documents of the same text stay on one side."""
    texts, group = np.unique(all_text(documents), return_inverse=True)
    held_out = hold_out([0] * len(texts), share, seed)
    if not held_out.any() or held_out.all():
        raise InputError(
            f"--validation_split {share} of {len(texts)} different documents leaves one side "
            "empty; use another share or more text"
        )
    held_out = held_out[group]
    return documents.select(np.flatnonzero(~held_out)), documents.select(np.flatnonzero(held_out))


# ---------------------------------------------------------------- 3. windows and masks


def check_mask_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    if tokenizer.mask_token is None:
        raise InputError(
            f"the tokenizer of {name} has no mask token, so it cannot be used for masked language "
            "modelling; give an encoder such as BERT or RoBERTa"
        )


def one_row_per_window(documents: Dataset) -> Dataset:
    """Documents with windows -> rows input_ids, (token_type_ids,) length, in order."""

    def explode(rows: dict[str, list]) -> dict[str, list]:
        ids = [window for windows in rows["windows"] for window in windows]
        columns = {"input_ids": ids, "length": [len(window) for window in ids]}
        if "window_types" in rows:
            columns["token_type_ids"] = [t for types in rows["window_types"] for t in types]
        return columns

    return documents.map(
        explode,
        batched=True,
        remove_columns=documents.column_names,
        load_from_cache_file=False,
        desc="Windows",
    )


class MaskingCollator:
    """Pads windows; masks those that come without labels, anew each time (dynamic masking).

    Of the chosen tokens 80 % become the mask token, 10 % a random token, 10 % stay (Devlin et al.
    2019). Special tokens are never chosen.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float):
        self.masker = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
        self.padder = DataCollatorForTokenClassification(tokenizer)
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        rows = [{k: v for k, v in row.items() if k != "length"} for row in rows]
        if "labels" in rows[0]:
            return dict(self.padder(rows))
        batch = dict(self.masker.tokenizer.pad(rows, return_tensors="pt"))
        batch["input_ids"], batch["labels"] = self.mask(batch["input_ids"])
        return batch

    def mask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids [rows, length] -> masked ids and labels, -100 where nothing is to be predicted."""
        special = torch.isin(ids, self.special)
        return self.masker.torch_mask_tokens(ids.clone(), special_tokens_mask=special)

    def mask_for_good(self, rows: Dataset, seed: int) -> Dataset:
        """Mask each row by the seed alone: losses compare over steps and checkpoints."""

        def convert(row: dict[str, Any], index: int) -> dict[str, Any]:
            self.masker.generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
            ids, labels = self.mask(torch.tensor([row["input_ids"]]))
            return {"input_ids": ids[0].tolist(), "labels": labels[0].tolist()}

        masked = rows.map(convert, with_indices=True, load_from_cache_file=False, desc="Masking")
        self.masker.generator = None  # training draws from the global generator
        return masked


# ---------------------------------------------------------------- 4. model


def load_masked_lm(
    path: str, tokenizer: PreTrainedTokenizerBase, hub: dict[str, Any]
) -> tuple[PreTrainedModel, list[str]]:
    """Load any `*ForMaskedLM`; says aloud which weights of its head were not in the checkpoint."""
    with as_input_error(f"--model_name_or_path {path}"), quiet_loading():
        model, info = AutoModelForMaskedLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, **hub
        )
    check_vocabulary(tokenizer, model, path)
    untrained = sorted(info["missing_keys"])
    if untrained:
        logger.warning(
            "%s holds no masked-LM head: %s start untrained, so the loss starts high and the first "
            "steps train mostly the head",
            path,
            ", ".join(untrained),
        )
    return model, untrained


class SparseHead:
    """Let the head of a `*ForMaskedLM` see only the positions to predict.

    About 15 % of the positions need logits. A forward hook on the base model gathers them from the
    last hidden state, so that the head gets [1, masked, hidden] in place of [rows, length, hidden]
    and gives logits [1, masked, vocabulary]. Loss and gradients stay the same; most of the head's
    work and memory is gone.
    """

    def __init__(self, model: PreTrainedModel):
        self.positions: Tensor | None = None  # [rows, length], True where to predict
        model.base_model.register_forward_hook(self._gather)

    def _gather(self, module: nn.Module, inputs: tuple, outputs: Any) -> Any:
        if self.positions is None:
            return outputs
        masked = outputs[0][self.positions].unsqueeze(0)  # [1, masked, hidden]
        if isinstance(outputs, tuple):
            return (masked, *outputs[1:])
        outputs["last_hidden_state"] = masked
        return outputs


# ---------------------------------------------------------------- 5. trainer


class MaskedLMTrainer(Trainer):
    """Trainer whose loss is a mean over the masked tokens of the whole accumulated batch.

    Most masked-LM heads take no notice of `num_items_in_batch`; left to the Trainer their loss
    would be multiplied by accumulation steps and processes.
    """

    def __init__(self, batch_by_length: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True  # counts masked tokens over steps and processes
        self.batch_by_length = batch_by_length
        self.sparse_head = SparseHead(self.model)

    def masked_logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [masked, vocabulary] and targets [masked]."""
        labels = inputs["labels"]
        self.sparse_head.positions = labels != -100
        try:
            outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        finally:
            self.sparse_head.positions = None
        return outputs.logits[0].float(), labels[labels != -100]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        logits, targets = self.masked_logits(model, inputs)
        total = F.cross_entropy(logits, targets, reduction="sum")
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        loss = total / max(int(count), 1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Per row [summed loss, hits] and the masked tokens; `masked_lm_scores` adds up."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits, targets = self.masked_logits(model, inputs)
        losses = F.cross_entropy(logits, targets, reduction="none")  # [masked]
        hits = (logits.argmax(dim=-1) == targets).float()
        masked = inputs["labels"] != -100
        row = masked.nonzero()[:, 0]  # [masked]
        sums = losses.new_zeros(len(masked), 2).index_add_(
            0, row, torch.stack([losses, hits], dim=1)
        )
        counts = masked.sum(dim=1)
        return losses.mean(), sums, counts

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not self.batch_by_length:
            return super()._get_train_sampler(dataset)
        return GroupedByLength.of(self, dataset)


def masked_lm_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Means over all masked tokens, whatever batch they were in. Perplexity = exp(mean loss)."""
    losses, hits = prediction.predictions.astype(np.float64).sum(axis=0)
    tokens = max(int(prediction.label_ids.sum()), 1)
    loss = losses / tokens
    return {
        "loss": loss,
        "perplexity": float(np.exp(min(loss, 700.0))),
        "masked_accuracy": hits / tokens,
        "masked_tokens": tokens,
    }


# ---------------------------------------------------------------- 8. write


def write_run(trainer: Trainer, results: dict[str, Any], as_run: dict[str, Any]) -> None:
    """A plain masked-LM checkpoint, its tokenizer, card, curves and results."""
    folder = Path(trainer.args.output_dir)
    with replacing_files(folder) as temporary:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(temporary)
        trainer.processing_class.save_pretrained(temporary)
    history = evaluation_history(trainer.state.log_history)
    write_csv(folder / "history.csv", history)
    plot_history(folder / "history.png", history, "eval_masked_accuracy")
    card = model_card(
        title=folder.name,
        base_model=as_run["model_name_or_path"],
        pipeline_tag="fill-mask",
        summary="Masked language model, further pretrained on the text of a task.",
        usage=USAGE,
        metrics={k: v for k, v in results.items() if k in SCORES},
        arguments=changed(as_run, (*OWN_ARGUMENTS, TrainingArguments)),
    )
    write_text(folder / "README.md", card)
    write_yaml(folder / "run_args.yaml", as_run)
    seed = {"seed": trainer.args.seed}
    write_json(folder / "all_results.json", results | seed | {"versions": versions()})
    logger.info("Wrote %s: perplexity %.2f", folder, results["eval_perplexity"])


SCORES = ("eval_loss", "eval_perplexity", "eval_masked_accuracy")

USAGE = """
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER") model =
AutoModelForMaskedLM.from_pretrained("PATH OF THIS FOLDER") encoder =
AutoModel.from_pretrained("PATH OF THIS FOLDER", add_pooling_layer=False)  # without its head
"""


if __name__ == "__main__":
    run_script(main)
