"""Scores of the head that a model was fine-tuned with, beside those of probes."""

import logging

import numpy as np
import torch
from datasets import Dataset

from bertchain.data.labels import LabelSpec
from bertchain.data.spans import offsets_of
from bertchain.data.tokenization import Preprocessor
from bertchain.models.loading import is_document_classifier, load_classifier
from bertchain.models.modeling import DocumentClassifier
from bertchain.probing.features import find_device, token_batches
from bertchain.probing.probed_models import ProbedModel
from bertchain.probing.scoreboard import Scoreboard, ScoreKey

logger = logging.getLogger(__name__)

TOKENS = 8192  # of a batch


@torch.no_grad()
def add_own_head(board: Scoreboard, model: ProbedModel) -> None:
    """Score a classifier's own head, if it knows the same labels; other models have none."""
    if not is_document_classifier(model.path):
        return
    spec, preprocessor = board.spec, model.preprocessor
    classifier, _ = load_classifier(model.path)
    own = LabelSpec.from_config(classifier.config, spec.columns, spec.delimiter)
    knows = (own.problem_type, own.names, classifier.config.num_spans)
    if knows != (spec.problem_type, spec.names, preprocessor.num_spans):
        logger.warning("%s: its head was trained for other labels and is not scored", model.name)
        return
    classifier = classifier.to(find_device()).eval()
    probabilities = {
        split: spec.probabilities(predict_logits(classifier, model.windows[split], preprocessor))
        for split in ("validation", "test")
        if split in board.labels
    }
    board.add(ScoreKey(model.name, None, "", "own head"), probabilities)


def predict_logits(
    classifier: DocumentClassifier, windows: Dataset, preprocessor: Preprocessor
) -> np.ndarray:
    """Logits in row order [rows, labels]; of labelled spans [targets, labels].

    Args:
        windows: documents that the preprocessor encoded.
    """
    of_spans = preprocessor.num_spans > 0
    ends = offsets_of(windows) if of_spans else np.arange(len(windows) + 1)
    logits = np.empty((ends[-1], classifier.config.num_labels), dtype=np.float32)
    wanted = ("windows", "window_types", "token_positions")
    inputs_only = windows.select_columns([n for n in windows.column_names if n in wanted])
    for batch in token_batches(windows["length"][:], TOKENS):
        inputs = preprocessor.collator([inputs_only[int(i)] for i in batch])
        inputs = {name: values.to(classifier.device) for name, values in inputs.items()}
        found = classifier(**inputs).logits.float().cpu()
        for row, own in zip(batch, found.numpy(), strict=True):
            count = ends[row + 1] - ends[row]
            logits[ends[row] : ends[row + 1]] = own[:count] if of_spans else own
    return logits
