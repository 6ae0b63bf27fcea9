"""The figures of Sun et al. 2019 (arXiv 1905.05583v3): test errors in % of BERT-base."""

from typing import Any

import pandas as pd

BLOCKS = 12
# Where a row of ours is a row of the paper: (study, set) -> point -> error.
SAME = {
    ("long_text", "imdb"): {
        "head": 5.63,
        "tail": 5.44,
        "head + tail": 5.42,
        "hierarchical, mean": 5.89,
        "hierarchical, max": 5.71,
        "hierarchical, attention": 5.49,
    },
    ("layers", "joined"): {
        "last alone": 5.42,
        "first, concat": 8.69,
        "first, mean": 9.09,
        "first, max": 8.76,
        "last, concat": 5.43,
        "last, mean": 5.44,
        "last, max": 5.42,
        "all, concat": 5.44,
    },
    ("domains", "imdb"): {
        "none": 5.40,
        "imdb": 4.37,
        "all sentiment": 4.88,
        "trec": 5.65,
        "agnews": 5.97,
        "all topic": 5.85,
        "all": 5.18,
    },
    ("domains", "trec"): {
        "none": 2.80,
        "imdb": 2.60,
        "all sentiment": 3.00,
        "trec": 3.20,
        "agnews": 2.00,
        "all topic": 2.60,
        "all": 2.80,
    },
    ("domains", "agnews"): {
        "none": 5.25,
        "imdb": 5.24,
        "all sentiment": 5.34,
        "trec": 5.12,
        "agnews": 4.80,
        "all topic": 4.88,
        "all": 5.08,
    },
    ("features", "imdb"): {"fine-tuned": 5.40, "features": 6.79},
    ("features", "trec"): {"fine-tuned": 2.80, "features": 4.20},
    ("features", "agnews"): {"fine-tuned": 5.25, "features": 5.92},
    ("multitask", "imdb"): {
        "alone": 5.40,
        "together first": 5.36,
        "all text, alone": 5.18,
        "all text, together first": 4.96,
    },
    ("multitask", "agnews"): {
        "alone": 5.25,
        "together first": 5.20,
        "all text, alone": 5.08,
        "all text, together first": 5.13,
    },
    ("few_rows", "imdb"): {"0.4 %": 17.26, "100 %": 5.40, "0.4 %, ITPT": 9.23, "100 %, ITPT": 4.37},
}
SINGLE_LAYERS = (11.07, 9.81, 9.29, 8.66, 7.83, 6.83, 6.83, 6.41, 6.04, 5.70, 5.46, 5.42)
DECAY_GRID = (5.52, 5.46, 5.44, 5.58, 5.42, 5.40, 5.52, 5.65)  # 2.5e-5, 2e-5; 1, .95, .9, .85


def errors_of(study: str, where: str, points: list[str]) -> list[float]:
    """List the paper's errors of a study's points on a set; NaN where it has no such row."""
    missing = [float("nan")] * len(points)
    if (study, where) in SAME:
        return [SAME[study, where].get(point, float("nan")) for point in points]
    if study == "decay" and len(points) == len(DECAY_GRID):
        return list(DECAY_GRID)
    if study == "steps":  # figure 3 names no more; those of its ends are in table 5
        return [5.40, *missing[2:], 4.37]
    if where == "single":  # first and last block, and all where there are as many
        blocks = [int(point.split()[-1]) for point in points]
        known = {1: SINGLE_LAYERS[0], max(blocks): SINGLE_LAYERS[-1]}
        if max(blocks) == BLOCKS:
            known = dict(enumerate(SINGLE_LAYERS, 1))
        return [known.get(block, float("nan")) for block in blocks]
    return missing


def table(columns: str, *rows: tuple[Any, ...]) -> pd.DataFrame:
    """Make a table. Args: columns: their names, with | between them."""
    return pd.DataFrame(rows, columns=columns.split("|"))


TABLES = {
    "Table 2: long text": table(
        "method|IMDb|Sogou",
        ("head-only", 5.63, 2.58),
        ("tail-only", 5.44, 3.17),
        ("head+tail", 5.42, 2.43),
        ("hier. mean", 5.89, 2.83),
        ("hier. max", 5.71, 2.47),
        ("hier. self-attention", 5.49, 2.65),
    ),
    "Table 3: layers, IMDb": table(
        "layer|test error",
        *((f"Layer-{k}", error) for k, error in enumerate(SINGLE_LAYERS)),
        ("First 4 Layers + concat", 8.69),
        ("First 4 Layers + mean", 9.09),
        ("First 4 Layers + max", 8.76),
        ("Last 4 Layers + concat", 5.43),
        ("Last 4 Layers + mean", 5.44),
        ("Last 4 Layers + max", 5.42),
        ("All 12 Layers + concat", 5.44),
    ),
    "Table 4: layer-wise decay, IMDb": table(
        "learning rate|decay|test error",
        *(
            (rate, decay, error)
            for (rate, decay), error in zip(
                [(r, d) for r in ("2.5e-5", "2.0e-5") for d in ("1.00", "0.95", "0.90", "0.85")],
                DECAY_GRID,
                strict=True,
            )
        ),
    ),
    "Table 5: further pretraining by text (rows) and task (columns)": table(
        "text|IMDb|Yelp P.|Yelp F.|TREC|Yah. A.|AG's News|DBPedia",
        ("IMDb", 4.37, 2.18, 29.60, 2.60, 22.39, 5.24, 0.68),
        ("Yelp P.", 5.24, 1.92, 29.37, 2.00, 22.38, 5.14, 0.65),
        ("Yelp F.", 5.18, 1.94, 29.42, 2.40, 22.33, 5.43, 0.65),
        ("all sentiment", 4.88, 1.87, 29.25, 3.00, 22.35, 5.34, 0.67),
        ("TREC", 5.65, 2.09, 29.35, 3.20, 22.17, 5.12, 0.66),
        ("Yah. A.", 5.52, 2.08, 29.31, 1.80, 22.38, 5.16, 0.67),
        ("all question", 5.68, 2.14, 29.52, 2.20, 21.86, 5.21, 0.68),
        ("AG's News", 5.97, 2.15, 29.38, 2.00, 22.32, 4.80, 0.68),
        ("DBPedia", 5.80, 2.13, 29.47, 2.60, 22.30, 5.13, 0.68),
        ("all topic", 5.85, 2.20, 29.68, 2.60, 22.28, 4.88, 0.65),
        ("all", 5.18, 1.97, 29.20, 2.80, 21.94, 5.08, 0.67),
        ("w/o pretrain", 5.40, 2.28, 30.06, 2.80, 22.42, 5.25, 0.71),
    ),
    "Table 6: features, fine-tuning, further pretraining": table(
        "model|IMDb|Yelp P.|Yelp F.|TREC|Yah. A.|AG|DBP|Sogou|average gain on BERT-Feat",
        ("BERT-Feat", 6.79, 2.39, 30.47, 4.20, 22.72, 5.92, 0.70, 2.50, ""),
        ("BERT-FiT", 5.40, 2.28, 30.06, 2.80, 22.42, 5.25, 0.71, 2.43, "9.22 %"),
        ("BERT-ITPT-FiT", 4.37, 1.92, 29.42, 3.20, 22.38, 4.80, 0.68, 1.93, "16.07 %"),
        ("BERT-IDPT-FiT", 4.88, 1.87, 29.25, 2.20, 21.86, 4.88, 0.65, float("nan"), "18.57 %"),
        ("BERT-CDPT-FiT", 5.18, 1.97, 29.20, 2.80, 21.94, 5.08, 0.67, float("nan"), "14.38 %"),
    ),
    "Table 7: several tasks at once": table(
        "method|IMDb|Yelp P.|AG|DBP",
        ("BERT-FiT", 5.40, 2.28, 5.25, 0.71),
        ("BERT-MFiT-FiT", 5.36, 2.19, 5.20, 0.68),
        ("BERT-CDPT-FiT", 5.18, 1.97, 5.08, 0.67),
        ("BERT-CDPT-MFiT-FiT", 4.96, 2.06, 5.13, 0.67),
    ),
    "Table 8: a larger encoder": table(
        "model|IMDb|Yelp P.|Yelp F.|AG|DBP",
        ("BERT-base", 5.40, 2.28, 30.06, 5.25, 0.71),
        ("BERT-base + ITPT", 4.37, 1.92, 29.42, 4.80, 0.68),
        ("BERT-large", 4.86, 2.04, 29.25, 4.86, 0.62),
        ("BERT-large + ITPT", 4.21, 1.81, 28.62, 4.66, 0.61),
    ),
}


def helped() -> str:
    """Count the cells of table 5 with less error than without further pretraining."""
    errors = next(t for name, t in TABLES.items() if name.startswith("Table 5")).set_index("text")
    without = errors.loc["w/o pretrain"]
    return str(int((errors.drop("w/o pretrain") < without).to_numpy().sum()))
