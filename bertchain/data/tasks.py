"""Task: labelled documents, or documents with labelled words, by split."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from bertchain.arguments.common import DataArguments, LabelArguments, SpanArguments, TextArguments
from bertchain.arguments.competition import FoldArguments, RowArguments
from bertchain.data import spans, weights
from bertchain.data.concepts import Concept, read_concepts
from bertchain.data.contamination import HASH_COLUMN, hashes_of, with_hashes
from bertchain.data.documents import all_text, label_documents
from bertchain.data.grouping import find_groups
from bertchain.data.labels import LabelSpec
from bertchain.data.splits import choose_subset, hold_out_validation, in_fold, resolve_folds
from bertchain.data.tables import Table, read_splits, with_column
from bertchain.data.tokenization import Preprocessor
from bertchain.errors import InputError
from bertchain.models.loading import is_document_classifier, read_classifier_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """Labelled documents, or documents with labelled spans of spans. Its methods return new tasks.

    Attributes:
        spec: problem type and label map.
        documents: by split (train, validation, test, as far as they are there; extra: rows that
            are only ever trained on): columns id, text, of pairs text_pair, and labels; with spans
            also words, spans and tags (see data/spans.py), the hash of the text (see
            data/contamination.py), and weights (see data/weights.py). Once they are encoded,
            windows take the place of text.
        tables: the tables they were read from, by split.
        num_spans: spans that a label belongs to: 1, or 2 for a pair; 0: it is the document's.
        folds: the fold of each training row [n], or those of each repeat [n, repeats]; or None.
        concepts: labels that rows have beside those of the task, by column.
    """

    spec: LabelSpec
    documents: dict[str, Dataset]
    tables: dict[str, Table]
    num_spans: int = 0
    folds: np.ndarray | None = None
    concepts: dict[str, Concept] = field(default_factory=dict)

    @property
    def has_training_rows(self) -> bool:
        """Whether there is a training split; else the task is to predict."""
        return "train" in self.documents

    def with_documents(self, documents: dict[str, Dataset]) -> "Task":
        """Replace the documents, by split."""
        return replace(self, documents=documents)

    def encoded_by(self, preprocessor: Preprocessor) -> "Task":
        """Cut the documents into windows; rows keep the hash of their text, for later."""
        documents = preprocessor.encode(self.documents)
        for split, rows in documents.items():
            if HASH_COLUMN not in rows.column_names:  # of words in documents
                hashes = hashes_of(self.documents[split])
                documents[split] = with_column(rows, HASH_COLUMN, hashes)
        return self.with_documents(documents)

    def only(self, splits: Iterable[str]) -> "Task":
        """Keep these splits alone, as far as they are there."""
        kept = {split: rows for split, rows in self.documents.items() if split in splits}
        return self.with_documents(kept)

    def with_folds(self, options: FoldArguments, seed: int) -> "Task":
        """Assign training rows to folds, if asked for; they take the place of a validation set.

        Raises:
            InputError: as `splits.resolve_folds`.
        """
        if not (options.with_folds and self.has_training_rows):
            return self
        train, table = self.documents["train"], self.tables["train"]
        folds = resolve_folds(train, table, self.spec, options, seed)
        task = replace(self.only(self.documents.keys() - {"validation"}), folds=folds)
        always = folds < 0  # of a column alone
        return task if not always.any() else task._with_extra(always)

    def _with_extra(self, rows: np.ndarray) -> "Task":
        """Move training rows, a mask [n], to those that are only ever trained on."""
        train = self.documents["train"]
        extra = weights.without(train.select(np.flatnonzero(rows)), weights.SCORE)
        if weights.EXTRA in self.documents:
            extra = concatenate_datasets([extra, self.documents[weights.EXTRA]])
        moved = {"train": train.select(np.flatnonzero(~rows)), weights.EXTRA: extra}
        return replace(self, documents=self.documents | moved, folds=self.folds[~rows])

    def with_validation(
        self, share: float, seed: int, options: FoldArguments | None = None
    ) -> "Task":
        """Hold out a stratified share of the training rows, unless folds or a split validate.

        Args:
            options: which rows are held out together; None: each for itself.
        """
        if self.folds is not None:
            return self
        kind, groups = self.spec.problem_type, None
        if options is not None and options.with_groups and self.has_training_rows:
            if "validation" in self.documents:
                raise InputError(
                    f"--{options.with_groups} holds out rows together, but there is a validation "
                    "split; leave it out"
                )
            groups = find_groups(self.documents["train"], self.tables["train"], options)
        held_out = hold_out_validation(self.documents, share, kind, seed, groups)
        return self.with_documents(held_out)

    def with_concepts(
        self,
        columns: Sequence[str],
        limits: dict[str, int | None],
        spans_column: str | None,
        id_column: str | None,
    ) -> "Task":
        """Read further labels of the rows, once it is settled which rows validate.

        Args, raises: as `concepts.read_concepts`.
        """
        found = read_concepts(
            columns,
            self.tables,
            self.documents,
            limits,
            spans_column=spans_column,
            id_column=id_column,
        )
        return replace(self, concepts=found)

    def for_fold(self, fold: int | None, subset: dict[str, Any], seed: int) -> dict[str, Dataset]:
        """Select the rows that one model is trained on, validated on and predicts, by split.

        Args:
            fold: its rows validate, the others train; None: all train, or as the splits say.
            subset: `fraction` and `per_class` of `splits.choose_subset`, for the training rows.
        """
        if not self.has_training_rows:
            return dict(self.documents)
        chosen, train = dict(self.documents), self.documents["train"]
        if self.folds is not None and fold is not None:
            inside = in_fold(self.folds, fold)
            chosen["validation"] = train.select(np.flatnonzero(inside))
            train = train.select(np.flatnonzero(~inside))
        train = choose_subset(train, self.spec.problem_type, **subset, seed=seed)
        chosen["train"] = weights.join_rows(train, chosen.pop(weights.EXTRA, None))
        if "validation" in chosen:  # evaluation knows no weights but those of scores
            chosen["validation"] = weights.without(chosen["validation"], weights.LOSS)
        return chosen

    def training_labels(self) -> list:
        """Encoded labels of all rows that are trained on."""
        splits = [split for split in ("train", weights.EXTRA) if split in self.documents]
        return list(chain.from_iterable(self.labels_of(self.documents[s]) for s in splits))

    def labels_of(self, rows: Dataset) -> list:
        """Encoded labels of rows [n]; with spans those of all targets, document after document."""
        labels = rows["labels"][:]
        return list(chain.from_iterable(labels)) if self.num_spans else labels

    def hard_labels(self, split: str) -> np.ndarray:
        """Encoded labels of a split, [n] or [n, labels]; of soft labels the likeliest class."""
        return self.spec.hard_labels(np.array(self.labels_of(self.documents[split])))

    def texts(self, split: str) -> list[str]:
        """The text of each document; with spans, the words of each target."""
        rows = self.documents[split]
        return spans.target_texts(rows) if self.num_spans else all_text(rows)

    def row_names(self, split: str) -> dict[str, Sequence]:
        """Columns that say what each row of a split is: split, row, id; with spans the target.

        The label, or labels of several targets, follow where the split has some.
        """
        documents = self.documents[split]
        ids, columns = documents["id"][:], {}
        if self.num_spans:
            counts = [len(own) for own in documents["spans"]]
            ids = list(chain.from_iterable([name] * n for name, n in zip(ids, counts, strict=True)))
            columns["target"] = list(chain.from_iterable(map(range, counts)))
        if split in self.labelled_splits:
            columns |= self.spec.label_columns(self.labels_of(documents))
        return {"split": [split] * len(ids), "row": range(len(ids)), "id": ids, **columns}

    @property
    def predicted_splits(self) -> list[str]:
        """What a run writes predictions of: with folds out-of-fold, in place of validation."""
        known = ("validation", "test") if self.folds is None else ("test",)
        averaged = [split for split in known if split in self.documents]
        return averaged if self.folds is None else ["oof", *averaged]

    @property
    def labelled_splits(self) -> list[str]:
        """Splits whose documents have labels: a test split may have none."""
        return [split for split, rows in self.documents.items() if "labels" in rows.column_names]


def load_task(
    data: DataArguments,
    text: TextArguments,
    label: LabelArguments,
    span: SpanArguments,
    *,
    seed: int,
    checkpoint: str | None = None,
    rows: RowArguments | None = None,
) -> Task:
    """Read tables into a task.

    With a spans column, validation documents are held out here (by `label.validation_split`);
    without, `Task.with_validation` does so once folds are known.

    Args:
        checkpoint: where there is no training table, the labels are those of this classifier.
        rows: further training rows, and weights; None: neither.

    Raises:
        InputError: naming file, column or row, for what is missing or cannot be read.
    """
    tables = read_splits(**data.sources, **text.format)
    if span.spans_column_name is None:
        spec = _resolve_labels(tables, label, checkpoint)
        if rows is not None and "train" in tables:
            tables |= weights.read_extra(rows, text.format)
        documents = label_documents(tables, data.limits, spec, **text.columns)
        if rows is not None:
            documents = weights.with_weights(documents, tables, rows)
        hashed = {split: with_hashes(rows) for split, rows in documents.items()}
        return Task(spec, hashed, tables)
    documents, num_spans = spans.read_splits(tables, data.limits, span, text.id_column_name)
    documents = spans.hold_out_documents(documents, label.validation_split, seed)
    if "train" in documents:
        spec = spans.infer_span_labels(documents, span.spans_column_name)
    else:
        spec = _resolve_labels(tables, label, checkpoint)
    labelled = {
        split: with_hashes(spans.with_labels(rows, spec)) for split, rows in documents.items()
    }
    return Task(spec, labelled, tables, num_spans)


def _resolve_labels(
    tables: dict[str, Table], label: LabelArguments, checkpoint: str | None
) -> LabelSpec:
    """Infer the labels from the training table; without one, read those of a classifier."""
    columns, delimiter = label.label_column_name, label.label_delimiter
    if "train" in tables:
        train = tables["train"]
        spec = LabelSpec.infer(train.rows, train.source, columns, label.problem_type, delimiter)
    elif checkpoint is not None and is_document_classifier(checkpoint):
        config = read_classifier_config(checkpoint)
        spec = LabelSpec.from_config(config, columns, delimiter)
    else:
        raise InputError(
            f"--model_name_or_path {checkpoint} was not written by run_finetune.py, so it cannot "
            "predict; give --train_file"
        )
    if label.at_least_one_label and spec.problem_type != "multi_label":
        raise InputError(f"--at_least_one_label is of multi_label, not of {spec.problem_type}")
    spec = replace(spec, at_least_one=label.at_least_one_label)
    names = ", ".join(spec.names[:12]) + (" ..." if len(spec.names) > 12 else "")
    logger.info("Labels: %s, %d: %s", spec.problem_type, len(spec.names), names)
    return spec
