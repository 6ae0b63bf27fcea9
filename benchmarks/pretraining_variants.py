"""Ways of further pretraining that the scripts do not have, tried beside the one that they have.

    ln -s "$(python examples/find_encoder.py bert-tiny)" BERT-tiny; ln -s DATA_FOLDER DATA
    python benchmarks/pretraining_variants.py
    python examples/sweep.py benchmarks/sweeps/pretraining_variants.yaml

All see 600 batches of 4,096 tokens of the training reviews of IMDb:

plain        as run_itpt.py does it
layer rates  each block has half of the rate of the one above it, the embeddings half of the lowest
replay       a third of the tokens come from other domains: AG News and 20 Newsgroups
detour       first 150 batches of next-token prediction under a causal mask, the same weights and
             head, then 450 of masked prediction (as arXiv 2605.12438 suggests)

Writes variants/NAME. Those that are there are not made again.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

import run_itpt
from bertchain.cli import run_script
from bertchain.models.layers import layer_ids_of, num_blocks

RATE, STEPS, CAUSAL_STEPS, LENGTH = 1e-3, 600, 150, 128
DECAY = 0.5  # of the rate, from a block to the one below it
TASK = {"imdb": {"file": "DATA/imdb/train.csv.gz", "text_column_names": ["text"]}}
GENERAL = {
    "agnews": {"file": "DATA/agnews/train.csv", "text_column_names": ["text"]},
    "20news": {"file": "DATA/20news/train.csv.gz", "text_column_names": ["title", "text"]},
}
WEIGHTS = ["imdb=1", "agnews=1", "20news=0.45"]  # their documents come so often in an epoch


class LayerRates(run_itpt.MaskedLMTrainer):
    """Lower rates for lower layers; the head has the rate that is given."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        base = self.model.base_model
        top = num_blocks(base.config)
        ids = {f"{self.model.base_model_prefix}.{k}": i for k, i in layer_ids_of(base).items()}
        decayed = set(self.get_decay_parameter_names(self.model))
        groups: dict[tuple[int, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            key = (min(ids.get(name, top), top), name in decayed)
            groups.setdefault(key, []).append(parameter)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = kind(
            [
                {
                    "params": parameters,
                    "lr": self.args.learning_rate * DECAY ** (top - layer),
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (layer, decays), parameters in groups.items()
            ],
            **options,
        )
        return self.optimizer


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    further_pretrain("plain", STEPS, corpora=TASK)
    further_pretrain("layer_rates", STEPS, corpora=TASK, trainer_class=LayerRates)
    further_pretrain("replay", STEPS, corpora=TASK | GENERAL, corpus_weights=WEIGHTS)
    if not Path("variants/detour").exists():
        learn_next_tokens(Path("variants/causal"))
    further_pretrain("detour", STEPS - CAUSAL_STEPS, "variants/causal", corpora=TASK)


def further_pretrain(name: str, steps: int, start: str = "BERT-tiny", **more: Any) -> None:
    """Run run_itpt.py into variants/NAME."""
    if Path("variants", name).exists():
        return
    result = run_itpt.main(
        model_name_or_path=start,
        test_file=["DATA/imdb/test.csv.gz"],
        max_seq_length=LENGTH,
        tokens_per_batch=4096,
        learning_rate=RATE,
        max_steps=steps,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        output_dir=f"variants/{name}.new",
        **more,
    )
    Path(f"variants/{name}.new").rename(f"variants/{name}")
    print(f"{name}: held-out perplexity {result.metrics['eval_perplexity']:.1f}", flush=True)


def learn_next_tokens(folder: Path) -> None:
    """Train all weights by next-token prediction; save them as a masked LM."""
    import pandas as pd

    tokenizer = AutoTokenizer.from_pretrained("BERT-tiny", trust_remote_code=False)
    texts = pd.read_csv("DATA/imdb/train.csv.gz")["text"].tolist()
    windows = tokenizer(
        texts,
        truncation=True,
        max_length=LENGTH,
        return_overflowing_tokens=True,
        return_token_type_ids=False,
    )
    rows = [{"input_ids": ids} for ids in windows["input_ids"] if len(ids) > 8]
    model = AutoModelForCausalLM.from_pretrained(
        "BERT-tiny", is_decoder=True, trust_remote_code=False
    )
    training = TrainingArguments(
        output_dir=f"{folder}.trainer",
        max_steps=CAUSAL_STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=15,
        per_device_train_batch_size=4096 // LENGTH,
        save_strategy="no",
        report_to="none",
        seed=42,
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, training, data_collator=collator, train_dataset=rows).train()
    masked = AutoModelForMaskedLM.from_pretrained("BERT-tiny", trust_remote_code=False)
    masked.load_state_dict(model.state_dict())  # both have the same parts
    masked.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.rmtree(f"{folder}.trainer", ignore_errors=True)


if __name__ == "__main__":
    run_script(main, __doc__)
