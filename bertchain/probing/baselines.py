"""Baselines beside probes of encoders: the majority, words counted (TF-IDF), word embeddings."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier

from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.probes import ProbeLabels, ProbeResult, fit_linear_probe
from bertchain.probing.scoreboard import STATIC, Scoreboard, ScoreKey
from bertchain.probing.solvers import SoftmaxPredictor

C_VALUES = (0.1, 1.0, 10.0, 100.0)


def add_baselines(board: Scoreboard, texts: dict[str, Sequence[str]]) -> None:
    """Score the majority, and words counted (TF-IDF) under a linear model.

    Args:
        texts: of the labelled rows, by split.
    """
    add_majority(board)
    counted = tfidf_baseline(texts, board.probe_labels)
    if counted is not None:
        board.add(ScoreKey("", None, "", "tf-idf"), counted.predictions, **counted.setting)


def add_majority(board: Scoreboard) -> None:
    """Score the majority of the training rows."""
    labels = board.probe_labels
    constant = {
        split: majority_baseline(labels.train, labels.problem_type, labels.num_labels, len(y))
        for split, y in board.labels.items()
    }
    board.add(ScoreKey("", None, "", "majority"), constant)


def majority_baseline(labels: np.ndarray, problem_type: str, num_labels: int, n: int) -> np.ndarray:
    """Predict n rows without their text: label frequencies, or the mean of each value [n, labels].

    Args:
        labels: of the training rows.
    """
    if problem_type == "single_label":
        constant = np.bincount(labels, minlength=num_labels) / len(labels)
    else:
        constant = np.asarray(labels, dtype=float).mean(axis=0)
    return np.tile(constant, (n, 1))


def tfidf_baseline(
    texts: dict[str, Sequence[str]], labels: ProbeLabels, c_values: Sequence[float] = C_VALUES
) -> ProbeResult | None:
    """Fit a linear model to words and pairs of words, weighted by TF-IDF; C by validation.

    Args:
        texts: train and validation, and any further splits to predict.

    Returns:
        None where no text holds a word.
    """
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    try:
        words.fit(texts["train"])
    except ValueError:  # an empty vocabulary
        return None
    x = {split: words.transform(rows) for split, rows in texts.items()}
    tried = {C: _fit(x, labels, C) for C in c_values}
    best = max(tried, key=lambda C: labels.validation_score(tried[C]["validation"]))
    return ProbeResult({"C": best}, True, tried[best])


def _fit(x: dict, labels: ProbeLabels, C: float) -> dict[str, np.ndarray]:
    if labels.problem_type == "regression":
        model = Ridge(alpha=1 / C).fit(x["train"], labels.train)
        return {split: model.predict(rows).reshape(rows.shape[0], -1) for split, rows in x.items()}
    one = LogisticRegression(C=C, max_iter=2000)
    if labels.problem_type == "multi_label":
        model = OneVsRestClassifier(one).fit(x["train"], labels.train.astype(int))
        return {split: model.predict_proba(rows) for split, rows in x.items()}
    model = one.fit(x["train"], labels.train)
    predict = SoftmaxPredictor.of(model, labels.num_labels)
    return {split: predict(rows) for split, rows in x.items()}


# ---------------------------------------------------------------- of encoders


def add_static(board: Scoreboard, model: ProbedModel) -> None:
    """Score a linear probe on mean word embeddings, without context or position, if asked for."""
    if model.embeddings is None:
        return
    length = model.preprocessor.windows.max_seq_length
    features = {
        split: static_features(model.windows[split], model.embeddings, length)
        for split in board.labels
    }
    fit = fit_linear_probe(features, board.probe_labels)
    facts = fit.setting | {"converged": float(fit.converged)}
    board.add(ScoreKey(model.name, None, "mean", STATIC), fit.predictions, **facts)


def static_features(windows: Dataset, table: np.ndarray, max_seq_length: int) -> np.ndarray:
    """Mean word embedding of documents [n, features], or of labelled spans [n, spans * features].

    Args:
        windows: encoded documents. A document is the mean over its windows, as in `FeatureStore`.
        table: embeddings of the vocabulary [tokens, features].
    """
    found = []
    if "token_positions" not in windows.column_names:
        for pieces in windows["windows"]:
            found.append(np.mean([table[ids].mean(axis=0) for ids in pieces], axis=0))
        return np.array(found, dtype=np.float32)
    nothing = np.zeros(table.shape[1])  # of a word without any token
    for pieces, targets in zip(windows["windows"], windows["token_positions"], strict=True):
        for spans in targets:
            places = [[divmod(place, max_seq_length) for place in span] for span in spans]
            ids = [[pieces[window][position] for window, position in span] for span in places]
            found.append(np.concatenate([table[i].mean(axis=0) if i else nothing for i in ids]))
    return np.array(found, dtype=np.float32)
