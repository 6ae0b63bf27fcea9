"""The tables of a task -> documents with labels, and what the labels are."""

import logging

from datasets import Dataset

from bertchain.arguments.common import DataArguments, LabelArguments, TargetArguments, TextArguments
from bertchain.data.documents import label_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.spans import read_target_splits, settle_target_labels, with_labels
from bertchain.data.tables import Table, read_splits
from bertchain.errors import InputError
from bertchain.models.loading import is_document_classifier
from bertchain.models.modeling import DocumentClassifierConfig

logger = logging.getLogger(__name__)


def read_labelled(
    data: DataArguments, text: TextArguments, label: LabelArguments, path: str
) -> tuple[LabelSpec, dict[str, Dataset], dict[str, Table]]:
    """The tables of a task -> what its labels are, documents by split with their labels, tables."""
    tables = read_splits(**data.sources, **text.format)
    spec = settle_labels(tables, label, path)
    documents = label_documents(tables, data.limits, spec, **text.columns)
    return spec, documents, tables


def read_words(
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    target: TargetArguments,
    path: str,
    seed: int,
) -> tuple[LabelSpec, dict[str, Dataset], dict[str, Table]]:
    """The same for --task_level token, span or pair: documents with targets (see targets.py)."""
    tables = read_splits(**data.sources, **text.format)
    how = (data.limits, target, text.id_column_name, label.validation_split, seed)
    documents = read_target_splits(tables, *how)
    if "train" in documents:
        spec = settle_target_labels(documents, target.task_level)
    else:
        spec = settle_labels(tables, label, path)
    return spec, {split: with_labels(rows, spec) for split, rows in documents.items()}, tables


def settle_labels(tables: dict[str, Table], label: LabelArguments, path: str) -> LabelSpec:
    """From the training labels; without training, from the classifier that is loaded."""
    columns, delimiter = label.label_column_name, label.label_delimiter
    if "train" in tables:
        spec = LabelSpec.infer(*tables["train"], columns, label.problem_type, delimiter)
    elif is_document_classifier(path):
        config = DocumentClassifierConfig.from_pretrained(path)
        spec = LabelSpec.from_config(config, columns, delimiter)
    else:
        raise InputError(
            f"--model_name_or_path {path} was not written by run_finetune.py, so it cannot "
            "predict; give --train_file"
        )
    names = ", ".join(spec.names[:12]) + (" ..." if len(spec.names) > 12 else "")
    logger.info("Labels: %s, %d: %s", spec.problem_type, len(spec.names), names)
    return spec
