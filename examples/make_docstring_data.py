"""Make a data set of titles and abstracts from the docstrings of installed packages, offline.

    python examples/make_docstring_data.py --output_dir data

A row is a function, class or method of numpy, scipy, scikit-learn, pandas or torch: title = its
name, abstract = its description without signature, parameters and examples, label = one of 13
topics. Most topics draw on several libraries, so that a library's style does not give the label
away. A class and its methods, namesakes (numpy.fft.fft and scipy.fft.fft) and near-duplicates
are always in the same split.

Writes train.csv (labelled), unlabelled.csv (for further pretraining), test.csv (no labels),
test_labels.csv (test.csv with its labels, to score with afterwards), sample_submission.csv.
"""

import argparse
import hashlib
import importlib
import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

# Topic -> modules, with all their public objects, and single names of larger modules.
TOPICS = {
    "linear algebra": "numpy.linalg scipy.linalg torch.linalg scipy.sparse.linalg",
    "sparse matrices and graphs": "scipy.sparse scipy.sparse.csgraph torch.sparse",
    "probability distributions": "torch.distributions numpy.random scipy.stats:distribution",
    "statistics": """scipy.stats:function scipy.stats.mstats pandas:qcut,cut
        numpy:mean,average,median,std,var,quantile,percentile,nanmean,nanmedian,nanstd,nanvar
        numpy:nanquantile,corrcoef,cov,histogram,histogram2d,bincount,digitize
        torch:mean,median,mode,std,var,std_mean,var_mean,quantile,nanquantile,nanmean,nanmedian
        torch:histc,histogram,cov,corrcoef""",
    "signal processing": """scipy.signal scipy.fft numpy.fft torch.fft torch.signal.windows
        torch:stft,istft,hann_window,hamming_window,bartlett_window,blackman_window,kaiser_window
        numpy:convolve,correlate,hanning,hamming,kaiser,blackman,bartlett""",
    "optimisation": "scipy.optimize torch.optim torch.optim.lr_scheduler torch.optim.swa_utils",
    "clustering and neighbours": """sklearn.cluster sklearn.mixture sklearn.neighbors
        sklearn.manifold scipy.cluster.hierarchy scipy.cluster.vq scipy.spatial
        scipy.spatial.distance""",
    "neural networks": """torch.nn torch.nn.functional torch.nn.init torch.nn.utils
        sklearn.neural_network""",
    "supervised learning": """sklearn.linear_model sklearn.svm sklearn.tree sklearn.ensemble
        sklearn.naive_bayes sklearn.gaussian_process sklearn.gaussian_process.kernels
        sklearn.discriminant_analysis sklearn.kernel_ridge sklearn.isotonic sklearn.multiclass""",
    "evaluation and preprocessing": """sklearn.metrics sklearn.model_selection
        sklearn.inspection sklearn.preprocessing sklearn.impute sklearn.decomposition
        sklearn.feature_selection sklearn.compose sklearn.feature_extraction sklearn.calibration
        sklearn.pipeline""",
    "mathematical functions": "scipy.special torch.special numpy:ufunc",
    "interpolation and integration": """scipy.interpolate scipy.integrate numpy.polynomial
        numpy.polynomial.polynomial numpy.polynomial.chebyshev numpy.polynomial.legendre
        torch:trapezoid,cumulative_trapezoid numpy:interp,trapezoid,polyfit,polyval""",
    "tables and time series": """pandas pandas.Series.str pandas.Series.dt
        pandas.tseries.offsets pandas.api.types""",
}
MOST_ROWS_A_TOPIC = 330
MOST_METHODS_A_CLASS = 12  # a DataFrame has 200, all in one split
WORDS = (12, 120)  # a shorter description says too little; a longer one is cut
SHARES = (("test", 22), ("train", 30), ("unlabelled", 48))  # percent of the groups of rows
NEAR_DUPLICATE = 0.8  # cosine of TF-IDF vectors


def main(argv: list[str] | None = None) -> dict[str, int]:
    """Write the files. Returns the number of rows by split."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", default="docstring_data")
    folder = Path(parser.parse_args(argv).output_dir)

    rows = collect_rows()
    rows["split"] = assign_splits(rows)
    folder.mkdir(parents=True, exist_ok=True)
    text = ["id", "title", "abstract"]
    train, test, unlabelled = (rows[rows["split"] == s] for s in ("train", "test", "unlabelled"))
    train[[*text, "label"]].to_csv(folder / "train.csv", index=False)
    unlabelled[text].to_csv(folder / "unlabelled.csv", index=False)
    test[text].to_csv(folder / "test.csv", index=False)
    test[[*text, "label"]].to_csv(folder / "test_labels.csv", index=False)
    sample = test[["id"]].assign(label=train["label"].mode()[0])
    sample.to_csv(folder / "sample_submission.csv", index=False)
    counts = rows["split"].value_counts().to_dict()
    words = rows["abstract"].str.split().str.len().mean()
    print(
        f"{folder}: {len(rows)} rows, {rows['label'].nunique()} topics, "
        f"{words:.0f} words on average; "
        + ", ".join(f"{n} {split}" for split, n in sorted(counts.items()))
    )
    return counts


# ---------------------------------------------------------------- rows


def collect_rows() -> pd.DataFrame:
    """Collect descriptions, the same words once: id, library, title, group, label, abstract."""
    found = [
        (library, title, group, label, abstract)
        for label, sources in TOPICS.items()
        for source in sources.split()
        for library, title, group, abstract in descriptions(source)
    ]
    rows = pd.DataFrame(found, columns=["library", "title", "group", "label", "abstract"])
    words = rows["abstract"].str.lower().str.findall(r"\w+").str.join(" ")
    rows = rows[~words.duplicated()].drop_duplicates(["library", "title"])
    order = rows["library"] + rows["title"]
    rows = rows.iloc[np.argsort([digest(o) for o in order], kind="stable")]
    rows = rows.groupby("label", sort=False).head(MOST_ROWS_A_TOPIC).reset_index(drop=True)
    rows["id"] = [f"d{i:04d}" for i in range(len(rows))]
    return rows


def descriptions(source: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield (library, title, group, abstract) of a source's objects and its classes' methods."""
    path, _, wanted = source.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some names are deprecated
        for name, thing in public_objects(path):
            if not is_wanted(name, thing, wanted):
                continue
            library, group = path.split(".")[0], name.strip("_").lower()
            described = [(name, thing)]
            if inspect.isclass(thing):
                methods = [
                    (m, getattr(thing, m, None)) for m in vars(thing) if not m.startswith("_")
                ]
                methods = [(f"{name}.{m}", method) for m, method in methods if callable(method)]
                methods.sort(key=lambda pair: digest(pair[0]))
                described += methods[:MOST_METHODS_A_CLASS]
            for title, own in described:
                abstract = describe(own)
                if abstract:
                    yield library, title, group, abstract


def public_objects(path: str) -> Iterator[tuple[str, Any]]:
    """Yield names and objects of a module, or of a class in one (pandas.Series.str)."""
    try:
        holder = importlib.import_module(path)
    except ModuleNotFoundError:
        module, *names = path.split(".")
        holder = importlib.import_module(module)
        for name in names:
            holder = getattr(holder, name)
    for name in sorted(getattr(holder, "__all__", None) or dir(holder)):
        try:
            thing = getattr(holder, name, None)
        except ImportError:  # scikit-learn's experimental classes ask for an import of their own
            continue
        if not name.startswith("_") and callable(thing) and not inspect.ismodule(thing):
            yield name, thing


def is_wanted(name: str, thing: Any, wanted: str) -> bool:
    """Return whether an object is of the wanted kind, or among the wanted names."""
    kinds = {
        "": lambda: True,
        "function": lambda: inspect.isfunction(thing),
        "distribution": lambda: hasattr(thing, "rvs"),
        "ufunc": lambda: isinstance(thing, np.ufunc),
    }
    return kinds[wanted]() if wanted in kinds else name in wanted.split(",")


SECTION = re.compile(
    r"\n\s*(?:Parameters|Returns|Yields|Args|Arguments|Keyword args|Keyword Arguments|Examples?|"
    r"See Also|Attributes|Methods|Notes?|References|Raises|Shape)\s*:{0,2}\s*\n"
    r"|\n\s*\.\. |\n\s*>>> "
)


def describe(thing: Any) -> str:
    """Extract the description of a docstring, as plain words; empty if it is too short."""
    text = "\n" + (inspect.getdoc(thing) or "")
    text = re.sub(r"^\s*[\w.]+\([^\n]*(?:\n(?=\S)[^\n]*)*\n", "\n", text, count=1)  # signature
    text = SECTION.split(text + "\n", maxsplit=1)[0]
    text = re.sub(r":\w+:`~?([^`<]*)(?:<[^`]*>)?`", r"\1", text)  # :func:`~torch.add` -> torch.add
    text = re.sub(r"[`*]+", "", text)
    words = text.split()
    return "" if len(words) < WORDS[0] else " ".join(words[: WORDS[1]])


# ---------------------------------------------------------------- splits


def assign_splits(rows: pd.DataFrame) -> list[str]:
    """Assign each row to a split by a hash of its group: new library versions move few rows."""
    keys = merge_near_duplicates(rows)
    bounds = np.cumsum([share for _, share in SHARES])
    numbers = [int(digest(key), 16) % 100 for key in keys]
    return [SHARES[int(np.searchsorted(bounds, n, side="right"))][0] for n in numbers]


def merge_near_duplicates(rows: pd.DataFrame) -> list[str]:
    """Name the group of each row; groups with near-duplicates become one (union-find)."""
    parent = {group: group for group in rows["group"]}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(rows["abstract"])
    neighbours = NearestNeighbors(radius=1 - NEAR_DUPLICATE, metric="cosine").fit(vectors)
    for i, near in enumerate(neighbours.radius_neighbors(vectors, return_distance=False)):
        for j in near:
            one, two = sorted((root(rows["group"][i]), root(rows["group"][j])))
            parent[two] = one
    return [root(group) for group in rows["group"]]


def digest(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
