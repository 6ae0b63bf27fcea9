"""Make a competition of arXiv papers: train.tsv, test.tsv, sample_submission.csv, solution.csv.

    python benchmarks/make_competition_data.py DATA/arxiv input

Reads train, dev and test.jsonl.gz (id, title, abstract, primary) and writes title, abstract and the
primary category as label; train and dev become train.tsv. Categories with fewer than --least
papers are left out. The test labels go to solution.csv alone.
"""

import argparse
from pathlib import Path

import pandas as pd


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--least", type=int, default=20)
    options = parser.parse_args()
    splits = {
        name: pd.read_json(options.data / f"{name}.jsonl.gz", lines=True).rename(
            columns={"primary": "label"}
        )[["id", "title", "abstract", "label"]]
        for name in ("train", "dev", "test")
    }
    train = pd.concat([splits["train"], splits["dev"]])
    counts = train["label"].value_counts()
    kept = counts[counts >= options.least].index
    train, test = (t[t["label"].isin(kept)] for t in (train, splits["test"]))
    options.output.mkdir(parents=True, exist_ok=True)
    train.to_csv(options.output / "train.tsv", sep="\t", index=False)
    test.drop(columns="label").to_csv(options.output / "test.tsv", sep="\t", index=False)
    test[["id", "label"]].to_csv(options.output / "solution.csv", index=False)
    sample = test[["id"]].sample(frac=1, random_state=0).assign(label=kept[0])
    sample.to_csv(options.output / "sample_submission.csv", index=False)
    print(f"{len(train)} training and {len(test)} test rows, {len(kept)} labels")


if __name__ == "__main__":
    main()
