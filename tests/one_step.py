"""One optimizer step of ClassifierTrainer on data without files."""

import numpy as np
from datasets import Dataset
from tiny_models import classifier
from torch import nn
from transformers import TrainingArguments

import run_finetune
from bertchain.arguments.training import RegulariserArguments
from bertchain.data.batching import DocumentCollator
from bertchain.models.layers import layer_rates
from bertchain.models.modeling import PROBLEM_TYPES
from bertchain.training.losses import TrainingLoss


def dataset_for(problem_type, n=24):
    """Windows and labels without files; regression targets hold -100, a value like any other."""
    generator = np.random.default_rng(0)
    windows = [[[2, *generator.integers(5, 60, generator.integers(3, 9)), 3]] for _ in range(n)]
    windows = [[[int(i) for i in w] for w in d] for d in windows]
    labels = {
        "single_label": generator.integers(0, 3, n).tolist(),
        "multi_label": generator.integers(0, 2, (n, 3)).astype(float).tolist(),
        "soft": generator.dirichlet([1.0, 1.0, 1.0], n).tolist(),
        "regression": [[-100.0, float(i), 1.0] for i in range(n)],
    }[problem_type]
    return Dataset.from_dict(
        {"windows": windows, "length": [len(w[0]) for w in windows], "labels": labels}
    )


def step_arguments(out, batch, accumulation, **changes):
    """Arguments of one SGD step of rate 1 without clipping, so that it moves by the gradient."""
    return TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        logging_steps=1,
        report_to="none",
        remove_unused_columns=False,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **changes,
    )


def one_step(
    problem_type,
    out,
    batch,
    accumulation,
    rows=24,
    config=None,
    regularisers=None,
    **loss,
):
    """Gradients of the first optimizer step, by an SGD step of rate 1, and its logged loss.

    Args:
        loss: fields of TrainingLoss.
    """
    kind = "single_label" if problem_type == "soft" else problem_type
    scale = {"target_mean": [0.0] * 3, "target_scale": [50.0] * 3}
    model = classifier(
        "bert",
        problem_type=PROBLEM_TYPES[kind],
        **{"head_dropout": 0.0} | (config or {}) | (scale if kind == "regression" else {}),
    )
    model.encoder.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = run_finetune.ClassifierTrainer(
        loss=TrainingLoss(model.config, **loss),
        rates=layer_rates(4, 1.0),
        unfreeze_every=None,
        regularisers=RegulariserArguments(**regularisers or {}),
        batch_by_length=False,
        model=model,
        args=step_arguments(out, batch, accumulation),
        train_dataset=dataset_for(problem_type, rows),
        data_collator=DocumentCollator(0),
    )
    trainer.train()
    gradients = {n: before[n] - p.detach() for n, p in trainer.model.named_parameters()}
    return gradients, trainer.state.log_history[0]["loss"], model
