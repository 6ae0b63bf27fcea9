"""What is to be learnt: documents by split, and what their labels mean."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from bertchain.arguments.common import DataArguments, LabelArguments, SpanArguments, TextArguments
from bertchain.arguments.finetuning import FoldArguments
from bertchain.data import spans as words
from bertchain.data.documents import all_text, label_documents
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import choose_subset, hold_out_validation, resolve_folds
from bertchain.data.tables import Table, read_splits
from bertchain.errors import InputError
from bertchain.models.loading import is_document_classifier
from bertchain.models.modeling import DocumentClassifierConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Labelled documents, or documents with labelled spans of words.

    Attributes:
        spec: what the labels are.
        documents: by split (train, validation, test, as far as they are there): columns id, text,
            text_pair of pairs, labels; with spans also words, spans and tags (see `data.spans`).
        tables: the tables they were read from, by split.
        num_spans: how many spans a label belongs to (two for a pair); 0: it is the document's.
        folds: of each training row, or None.
    """

    spec: LabelSpec
    documents: dict[str, Dataset]
    tables: dict[str, Table]
    num_spans: int = 0
    folds: np.ndarray | None = None

    @property
    def has_training_rows(self) -> bool:
        return "train" in self.documents

    def with_documents(self, documents: dict[str, Dataset]) -> "Task":
        return replace(self, documents=documents)

    def only(self, splits: Iterable[str]) -> "Task":
        """The task with these splits alone, as far as they are there."""
        kept = {split: rows for split, rows in self.documents.items() if split in splits}
        return self.with_documents(kept)

    def with_folds(self, options: FoldArguments, seed: int) -> "Task":
        """Assign training rows to folds, as asked; they take the place of a validation set."""
        if not (options.with_folds and self.has_training_rows):
            return self
        train, table = self.documents["train"], self.tables["train"]
        folds = resolve_folds(train, table, self.spec, options, seed)
        return replace(self.only(self.documents.keys() - {"validation"}), folds=folds)

    def with_validation(self, share: float, seed: int) -> "Task":
        """Without a validation set or folds hold out a stratified share of the training rows."""
        if self.folds is not None:
            return self
        kind = self.spec.problem_type
        return self.with_documents(hold_out_validation(self.documents, share, kind, seed))

    def for_fold(self, fold: int | None, subset: dict[str, Any], seed: int) -> dict[str, Dataset]:
        """What one model is trained on, validated on and predicts.

        Args:
            fold: whose rows validate; None: the validation set does.
            subset: of the training rows, as `splits.choose_subset` takes it.
        """
        if not self.has_training_rows:
            return dict(self.documents)
        chosen, train = dict(self.documents), self.documents["train"]
        if self.folds is not None:
            chosen["validation"] = train.select(np.flatnonzero(self.folds == fold))
            train = train.select(np.flatnonzero(self.folds != fold))
        chosen["train"] = choose_subset(train, self.spec.problem_type, **subset, seed=seed)
        return chosen

    def labels_of(self, rows: Dataset) -> list:
        """Encoded labels of rows; with spans those of all their targets, one after the other."""
        labels = rows["labels"][:]
        return [label for own in labels for label in own] if self.num_spans else labels

    def hard_labels(self, split: str) -> np.ndarray:
        """Labels of a split [n] or [n, labels], soft ones as the likeliest class."""
        return self.spec.hard(np.array(self.labels_of(self.documents[split])))

    def texts(self, split: str) -> list[str]:
        """The text of each document, or the words of each target."""
        rows = self.documents[split]
        return words.target_texts(rows) if self.num_spans else all_text(rows)

    @property
    def labelled_splits(self) -> list[str]:
        return [split for split, rows in self.documents.items() if "labels" in rows.column_names]


def load_task(
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    span: SpanArguments,
    *,
    seed: int,
    checkpoint: str | None = None,
) -> Task:
    """Read the tables and their labels.

    Args:
        checkpoint: whose labels hold where there is no training table.

    Raises:
        InputError: naming file, column or row, for what is missing or cannot be read.
    """
    tables = read_splits(**data.sources, **text.format)
    if span.spans_column_name is None:
        spec = _resolve_labels(tables, label, checkpoint)
        documents = label_documents(tables, data.limits, spec, **text.columns)
        return Task(spec, documents, tables)
    documents, num_spans = words.read_splits(tables, data.limits, span, text.id_column_name)
    documents = words.hold_out_documents(documents, label.validation_split, seed)
    if "train" in documents:
        spec = words.infer_span_labels(documents, span.spans_column_name)
    else:
        spec = _resolve_labels(tables, label, checkpoint)
    labelled = {split: words.with_labels(rows, spec) for split, rows in documents.items()}
    return Task(spec, labelled, tables, num_spans)


def _resolve_labels(
    tables: dict[str, Table], label: LabelArguments, checkpoint: str | None
) -> LabelSpec:
    """The labels of the training table; without one, those of the trained classifier."""
    columns, delimiter = label.label_column_name, label.label_delimiter
    if "train" in tables:
        spec = LabelSpec.infer(*tables["train"], columns, label.problem_type, delimiter)
    elif checkpoint is not None and is_document_classifier(checkpoint):
        config = DocumentClassifierConfig.from_pretrained(checkpoint)
        spec = LabelSpec.from_config(config, columns, delimiter)
    else:
        raise InputError(
            f"--model_name_or_path {checkpoint} was not written by run_finetune.py, so it cannot "
            "predict; give --train_file"
        )
    names = ", ".join(spec.names[:12]) + (" ..." if len(spec.names) > 12 else "")
    logger.info("Labels: %s, %d: %s", spec.problem_type, len(spec.names), names)
    return spec
