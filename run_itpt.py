"""Further pretraining: masked language modelling on the text of a task, before fine-tuning on it.

    python run_itpt.py --model_name_or_path bert-base-uncased \\
        --train_file train.csv domain=abstracts.jsonl --text_column_names title abstract \\
        --output_dir itpt
    python run_finetune.py --model_name_or_path itpt ...

Text of the task itself is within-task (ITPT), of the same field in-domain, of others cross-domain
pretraining: Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?" (arXiv 1905.05583),
section 5.4. Loss and perplexity are measured on held-out documents, before the first step and on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # finds bertchain from a notebook too

from bertchain import cli
from bertchain.arguments import pretraining

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

if __name__ == "__main__":
    cli.start_script(__doc__, pretraining.GROUPS, DEFAULTS)

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainingArguments, set_seed

from bertchain.data import batching
from bertchain.pretraining import corpora, head_warmup, masked_lm, packing, trainer, vocabulary
from bertchain.runtime import files, outputs
from bertchain.training import outcome


@cli.callable_again
def main(argv: cli.Given = None, **arguments: Any) -> outcome.RunResult:
    """Pretrain as the arguments say: flags, keywords, a dict or a file; else the command line.

    Returns the metrics, as in all_results.json, with the folder and the model beside them.
    """
    # 1. Arguments
    argv, hooks = cli.take(argv, arguments, MaskedLMTrainer)
    parsed = cli.parse((*pretraining.GROUPS, TrainingArguments), argv, DEFAULTS)
    args = pretraining.Arguments(*parsed, hooks)
    training, checkpoint = args.training, args.checkpoint
    cli.start_logging(training.disable_tqdm)
    pretraining.check_combinations(args)
    resume_from = head_warmup.find_checkpoint(training)
    set_seed(training.seed)

    # 2. Documents of each corpus, some held out
    documents = corpora.load_documents(args.corpus, args.text, training.seed)
    masked_lm.choose_metric(training, args.run_config, documents.held_out["corpus"][:])

    # 3. Tokenizer and model, perhaps with new tokens
    path, hub_kwargs = masked_lm.find_encoder(checkpoint), checkpoint.hub_kwargs
    tokenizer = masked_lm.load_masking_tokenizer(path, checkpoint)
    new_tokens = vocabulary.grow(tokenizer, checkpoint, args.text, documents.first_texts())
    model, untrained = masked_lm.build_masked_lm(path, tokenizer, checkpoint, new_tokens)
    pooler = masked_lm.read_pooler(path, model, checkpoint)

    # 4. Documents -> rows; those held out get their mask once and for all
    maker = packing.RowMaker.for_checkpoint(path, tokenizer, args.packing, args.mask, hub_kwargs)
    collator = packing.MaskingCollator.for_model(model, tokenizer, args.mask, training.seed)
    held_out = collator.mask_for_good(packing.to_rows(documents.held_out, maker))
    rows = documents.rows(maker, args.packing, training)
    rows = masked_lm.pack_for(model, rows, maker, collator) if args.packing.packing else rows
    results = documents.counts(rows, held_out) | {"untrained_weights": len(untrained)}
    results |= {"new_tokens": len(new_tokens), "transductive": args.corpus.include_test_text}

    with outputs.claim(training.output_dir, resume_from), files.disk_errors(training.output_dir):
        # 5. Train a head that the checkpoint lacks, alone
        trainer_of = functools.partial(
            hooks.trainer_class,
            packing=args.packing,
            weights=documents.weights,
            hashes=trainer.all_seen(documents, path, hub_kwargs),
            pooler=pooler,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            data_collator=collator,
            compute_metrics=masked_lm.MaskedLMScores(held_out["corpus"][:]),
            callbacks=hooks.callbacks,
        )
        head_log = head_warmup.warm_up(trainer_of, model, untrained, args, resume_from)

        # 6. Train all, keep the best, and measure it on the held-out documents
        fit = trainer_of(model=model, run=args.run, args=batching.keep_all_columns(training))
        results |= fit.train(resume_from_checkpoint=resume_from).metrics | fit.measure()

        # 7. Write the checkpoint, curves and results
        results |= head_warmup.scores(head_log)
        trainer.write_run(fit, results, args, head_log)
    return outcome.RunResult(results, training.output_dir, models=hooks.models)


class MaskedLMTrainer(trainer.PretrainingTrainer):
    """What is edited for another loss or optimizer. The rest is in its parent."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean over the masked tokens of the whole accumulated batch in all processes.

        Most masked-LM heads take no notice of `num_items_in_batch`; left to the Trainer their loss
        would be multiplied by accumulation steps and processes.
        """
        logits, targets = self.sparse_head(model, inputs)  # [masked, vocabulary], [masked]
        total = F.cross_entropy(logits, targets, reduction="sum")
        count = targets.numel() if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return loss


if __name__ == "__main__":
    cli.run_script(main)
