"""SetFit on the draws that study.py made: contrastive pairs, then logistic regression.

    python -m venv setfit && setfit/bin/pip install -r examples/few_labels/requirements-setfit.txt
    setfit/bin/python examples/few_labels/run_setfit.py few_labels ENCODER

SetFit needs transformers 4, so it runs in an environment of its own, and this file imports nothing
of bertchain. As its authors set it: 20 pairs of each kind a row, 16 pairs a step, one epoch; no
more than --max_steps. Writes SET/COUNT/setfit.csv, a line for each draw. Draws that are in it are
not run again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="that study.py filled")
    parser.add_argument("encoder", help="a sentence encoder: folder or hub name")
    parser.add_argument("--pairs_per_row", type=int, default=20)
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--sets", nargs="+", help="default: all that are there")
    parser.add_argument("--counts", nargs="+", help="default: all that are there")
    options = parser.parse_args()
    files = sorted(options.folder.glob("*/*/[0-9]*.jsonl"))
    if not files:
        parser.error(f"{options.folder}: holds no SET/COUNT/SEED.jsonl; run study.py first")
    for path in files:
        if options.sets and path.parent.parent.name not in options.sets:
            continue
        if options.counts and path.parent.name not in options.counts:
            continue
        out = path.parent / "setfit.csv"
        done = pd.read_csv(out) if out.is_file() else pd.DataFrame({"seed": pd.Series(dtype=int)})
        if int(path.stem) in set(done["seed"]):
            continue
        row = {"seed": int(path.stem)} | run(path, options)
        print(path, row, flush=True)
        pd.concat([done, pd.DataFrame([row])]).to_csv(out, index=False)


def run(path: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train on a draw; score on the test rows of its set."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.metrics import accuracy_score, label_ranking_average_precision_score

    fixed = json.loads(path.with_name("setting.json").read_text(encoding="utf-8"))
    train, test = (pd.read_json(p, lines=True) for p in (path, path.parent.parent / "test.jsonl"))
    texts = [
        (table[fixed["text_column_names"]].astype(str).agg(" ".join, axis=1)).tolist()
        for table in (train, test)
    ]
    label = fixed["label_column_name"]
    several = isinstance(train[label].iloc[0], list)
    names = sorted(train[label].explode().astype(str).unique())
    if several:
        targets = [[int(name in row) for name in names] for row in train[label]]
        model = SetFitModel.from_pretrained(
            options.encoder, multi_target_strategy="one-vs-rest", trust_remote_code=False
        )
    else:
        targets = [names.index(str(value)) for value in train[label]]
        model = SetFitModel.from_pretrained(options.encoder, trust_remote_code=False)
    model.model_body.max_seq_length = fixed["max_seq_length"]
    args = TrainingArguments(
        batch_size=16,
        num_epochs=1,
        num_iterations=options.pairs_per_row,
        max_steps=min(options.max_steps, len(train) * options.pairs_per_row * 2 // 16 + 1),
        seed=int(path.stem),
        report_to="none",
        show_progress_bar=False,
        save_strategy="no",
        output_dir=str(path.parent / "setfit"),
    )
    started = time.perf_counter()
    data = Dataset.from_dict({"text": texts[0], "label": targets})
    Trainer(model=model, args=args, train_dataset=data).train()
    seconds = time.perf_counter() - started
    found = np.asarray(model.predict_proba(texts[1], as_numpy=True))
    if several:
        truth = np.array([[int(name in row) for name in names] for row in test[label]])
        kept = truth.any(1)  # the draw may lack a label
        return {
            "test_lrap": label_ranking_average_precision_score(truth[kept], found[kept]),
            "train_runtime": seconds,
        }
    predicted = [names[i] for i in found.argmax(1)]
    return {
        "test_accuracy": accuracy_score(test[label].astype(str), predicted),
        "train_runtime": seconds,
    }


if __name__ == "__main__":
    main()
