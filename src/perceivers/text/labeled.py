"""Texts, or pairs of texts, with labels: from CSV, TSV, JSON lines or parquet."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch

from perceivers.checks import Checked, ProperFraction
from perceivers.data.splits import EVALUATION_NAMES, SPLITS, TRAINING_NAMES, Part, choose_splits, find_splits
from perceivers.data.tables import SUFFIXES, Table, hub_splits, is_missing, read_table, split_files, to_table
from perceivers.errors import PerceiversError, quote
from perceivers.files import read_lines, warn

TEXT_COLUMNS = ("text", "sentence", "review", "content", "comment", "document")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment")

Metric = Literal["accuracy", "matthews", "pearson"]
"""A metric of GLUE: accuracy, Matthews correlation, or Pearson correlation."""


@dataclass(frozen=True)
class LabeledTexts:
    """Texts, or pairs of texts, with labels.

    Attributes:
        texts: one text per example, or two for a pair.
        labels: the class index of each example, or a number if there are no classes.
        classes: names of the classes; None for regression.
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]
    classes: list[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    def subset(self, indices: Sequence[int]) -> "LabeledTexts":
        """Returns the examples at these indices."""
        return LabeledTexts([self.texts[i] for i in indices], [self.labels[i] for i in indices], self.classes)


class LabeledSplits(NamedTuple):
    """The texts for training and those for evaluation."""

    training: LabeledTexts
    evaluation: LabeledTexts


@dataclass(frozen=True)
class TextTask:
    """A task, such as one of GLUE's.

    Attributes:
        training: the training examples; None if the task is only evaluated.
        evaluation: one or more sets of evaluation examples, by name.
        metric: the metric of each set.
    """

    training: LabeledTexts | None
    evaluation: Mapping[str, LabeledTexts]
    metric: Metric

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes; None for regression."""
        return next(iter(self.evaluation.values())).classes

    @property
    def num_classes(self) -> int:
        """The number of classes; 1 for regression."""
        return 1 if self.classes is None else len(self.classes)


@dataclass
class LabeledTextData(Checked):
    """Labeled texts of one task.

    Attributes:
        path: a CSV (.csv), TSV (.tsv), JSON lines (.jsonl, .json) or parquet file, CSV and TSV with the column names in
            the first line; a folder with such files called train and dev, validation, val, valid or test; or the name
            of a data set on the Hub, optionally followed by a colon and a configuration.
        text: the text column, or two for pairs; by default the one called text, sentence, review, content, comment or
            document, or else the only text column besides the label.
        label: the class column; by default the one called label, labels, class, target, category or sentiment.
        validation_fraction: fraction of the examples held out for evaluation if the data has no split for it.
    """

    section = "data."

    path: str = ""
    text: list[str] | None = None
    label: str | None = None
    validation_fraction: ProperFraction = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and len(set(self.text) - {self.label}) != len(self.text):
            raise PerceiversError(f"data.text = {self.text} has a column twice, or that of data.label.")
        if self.text is not None and not 1 <= len(self.text) <= 2:
            raise PerceiversError(f"data.text = {self.text} is not allowed: it must be one column, or two for pairs.")

    def open(self) -> LabeledSplits:
        """Reads the texts.

        Raises:
            PerceiversError: the data cannot be read, columns are missing or ambiguous, or a text or label is missing
                or invalid; names the file and the line or column.
        """
        training, evaluations = self.find()
        if training is None:
            kind = "file (.csv, .tsv, .jsonl, .json or .parquet)" if os.path.isdir(self.path) else "split"
            raise PerceiversError(f"{self.path} has no {kind} called 'train'.")
        first = training()
        text, label = self.find_columns(first)
        first = first.drop_missing([*text, label])
        classes = class_names(first, label)
        examples = label_texts(first, text, label, classes)
        found = self.find_labeled(evaluations, (text, label))
        if found is not None:
            return LabeledSplits(examples, label_texts(*found, classes))
        return random_split(examples, self.validation_fraction)

    def open_evaluation(
        self, classes: list[str], split: str | None = None, validation_fraction: float | None = None
    ) -> tuple[LabeledTexts, Part]:
        """Reads the texts to evaluate a model on: those of a split, see `choose_splits`, or all.

        Args:
            classes: the model's classes.
            split: "train", "val" or "test".
            validation_fraction: without a split for evaluation, read only the fraction that a training run with this
                `data.validation_fraction` held out.

        Raises:
            PerceiversError: as in `open`; or there is no such split, or a label is not one of the classes.
        """
        whole, parts = self.find_parts()
        chosen: list[tuple[str | None, TablePart]] = [
            (name, parts[part]) for name, part in choose_splits(parts, split, self.path)
        ]
        if whole is not None:
            chosen = [(None, whole)]
        for name, part in chosen:  # noqa: B007  # the last one is used
            if found := self.find_labeled([part.read]):
                break
        else:
            raise PerceiversError(
                f"{self.path} has no table with labels called {', '.join(SPLITS)}: give a file with labels."
            )
        examples = label_texts(*found, classes, "the model does not know")
        if validation_fraction is not None and find_splits(parts).keys() <= {"train"}:
            examples = random_split(examples, validation_fraction).evaluation
        total = sum(part.count() for part in parts.values()) if whole is None else whole.count()
        return examples, Part("text", len(examples), total, name)

    def find_labeled(
        self, tables: Iterable[Callable[[], Table]], columns: tuple[list[str], str] | None = None
    ) -> tuple[Table, list[str], str] | None:
        """Returns the first table with labels, without the rows that have none, and its columns of text and label."""
        for read in tables:
            table = read()
            text, label = columns or self.find_columns(table)
            check_columns(table, "text", text)
            if not all(map(is_missing, table.columns.get(label, ()))):
                return table.drop_missing([*text, label]), text, label
            warn(f"{table.name} has no labels: it is not evaluated on.")
        return None

    def find_columns(self, table: Table) -> tuple[list[str], str]:
        """Returns the text columns and the label column of a table."""
        label = self.label or only_column(table, "label", [c for c in table.columns if c.lower() in LABEL_COLUMNS])
        check_columns(table, "label", [label])
        return self.find_text_columns(table, label), label

    def find_text_columns(self, table: Table, label: str | None) -> list[str]:
        """Returns the text columns of a table, with or without a label column."""
        others = [column for column in table.columns if column != label]
        usual = [column for column in others if column.lower() in TEXT_COLUMNS]
        found = usual or [column for column in others if any(map(is_words, table.columns[column]))]
        text = self.text or (found if len(found) == 1 else [only_column(table, "text", found)])
        check_columns(table, "text", text)
        return text

    def find(self) -> tuple[Callable[[], Table] | None, list[Callable[[], Table]]]:
        """Returns functions that read the training table, if there is one, and those to evaluate on.

        A single file is the training table.
        """
        whole, parts = self.find_parts()
        training = whole or next((parts[name] for name in TRAINING_NAMES if name in parts), None)
        return None if training is None else training.read, [
            parts[name].read for name in EVALUATION_NAMES if name in parts
        ]

    def find_parts(self) -> tuple["TablePart | None", dict[str, "TablePart"]]:
        """Returns the table of a single file, and those of the splits of a folder or data set by name."""
        path = Path(self.path)
        if not self.path:
            raise PerceiversError("data.path is not given: it is a file or folder of labeled texts.")
        names = (*TRAINING_NAMES, *EVALUATION_NAMES)
        if os.path.isdir(path):
            files = {name: split_files(path, (name,)) for name in names}
            return None, {name: TablePart.of_files(found) for name, found in files.items() if found}
        if os.path.exists(path):
            return TablePart.of_files([path]), {}
        if path.suffix.lower() in SUFFIXES:
            raise PerceiversError(f"data.path = {path} does not exist.")
        splits = {name.lower(): split for name, split in hub_splits(self.path).items()}
        if splits.keys().isdisjoint(names):
            raise PerceiversError(f"{self.path} has no split 'train'; it has {', '.join(splits)}.")
        return None, {
            name: TablePart(partial(to_table, splits[name], f"{self.path} ({name})"), partial(len, splits[name]))
            for name in names
            if name in splits
        }


@dataclass(frozen=True)
class TablePart:
    """A part of a data set: functions that read its table, and count its rows."""

    read: Callable[[], Table]
    count: Callable[[], int]

    @classmethod
    def of_files(cls, files: list[Path]) -> Self:
        """Returns the part in a file, or in several parquet files."""
        read = cache(partial(read_table, files))
        return cls(read, lambda: len(read().indices))


def open_texts(
    path: str, columns: list[str] | None = None, split: str | None = None
) -> tuple[list[tuple[Any, ...]], Sequence[int], Literal["line", "row"], Part]:
    """Reads texts without labels: a text of each line of a file, or those of a table, see `LabeledTextData`.

    Args:
        path: a text file, or a path of `LabeledTextData`.
        columns: the text column, or two for pairs; found as in `LabeledTextData`.
        split: "train", "val" or "test", see `choose_splits`.

    Returns:
        The texts of each row, of which some may be missing; the number of its line, or of the row from 0; which of the
        two it is; and the part of the data that they are.
    """
    file = Path(path)
    if os.path.isfile(file) and file.suffix.lower() not in SUFFIXES:
        choose_splits((), split, path)
        lines = [(line,) for line in read_lines(file)]
        return list(lines), range(1, len(lines) + 1), "line", Part("text", len(lines), len(lines))
    data = LabeledTextData(path, columns)
    whole, parts = data.find_parts()
    chosen = [(name, parts[part]) for name, part in choose_splits(parts, split, path)]
    name, part = (None, whole) if whole is not None else next(iter(chosen), (None, None))
    if part is None:
        raise PerceiversError(f"{path} has no table called {', '.join(SPLITS)}: give a file.")
    table = part.read()
    found = data.find_text_columns(table, data.label)
    texts = list(zip(*(table.columns[column] for column in found), strict=True))
    total = sum(other.count() for other in parts.values()) or len(texts)
    return texts, table.indices, table.unit, Part("text", len(texts), total, name)


def check_columns(table: Table, field: str, columns: Iterable[str]) -> None:
    """Raises a PerceiversError if a table lacks a column that a field of `LabeledTextData` names."""
    for column in columns:
        if column not in table.columns:
            found = f"{table.name} has no column {quote(column)}; it has {table.column_names()}"
            raise PerceiversError(f"data.{field}: {found}.")


def random_split(examples: LabeledTexts, validation_fraction: float) -> LabeledSplits:
    """Holds out a random fraction of the examples, always the same, for evaluation."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(max(1, round(validation_fraction * len(examples))), len(examples) - 1)
    return LabeledSplits(examples.subset(order[count:]), examples.subset(order[:count]))


def only_column(table: Table, field: str, found: list[str]) -> str:
    """Returns the only column found for a field of `LabeledTextData`."""
    names = table.column_names()
    if len(table.columns) < 2:
        raise PerceiversError(
            f"{table.name} has the single column {names}: separate columns by the character of .csv or .tsv."
        )
    if len(found) != 1:
        raise PerceiversError(f"{table.name} has the columns {names}: say with data.{field} which has the {field}.")
    return found[0]


def is_words(value: Any) -> bool:
    """Returns whether a value is text other than a number (CSV has numbers as text)."""
    return isinstance(value, str) and not re.fullmatch(r"[-+.\deE\s]*", value)


def class_names(table: Table, column: str) -> list[str]:
    """Returns the labels in order, numerical if all are integers; raises a PerceiversError if they are no classes."""
    names = sorted(set(table.labels(column)))
    if all(re.fullmatch(r"[-+]?\d{1,18}", name) for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise PerceiversError(f"{table.name} has only the class {quote(names[0])}: a classifier needs at least two.")
    if len(names) > len(table.indices) / 2:
        found = f"{len(names)} different labels for {len(table.indices)} texts in column {column!r}"
        raise PerceiversError(f"{table.name} has {found}, too many for classes: name the label column in data.label.")
    return names


def label_texts(
    table: Table, text: list[str], label: str, classes: list[str], unknown: str = "the training texts do not have"
) -> LabeledTexts:
    """Returns the examples of a table, with labels as indices of `classes`; errors call other labels `unknown`."""
    texts, labels = table.texts(text), table.labels(label)
    class_indices = {name: index for index, name in enumerate(classes)}
    for index, name in enumerate(labels):
        if name not in class_indices:
            raise PerceiversError(f"{table.location(index)} has the label {quote(name)}, which {unknown}.")
    return LabeledTexts(texts, [class_indices[name] for name in labels], classes)
