"""Texts, or pairs of texts, with labels: from CSV, TSV, JSON lines or parquet."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from perceivers.checks import Checked, ProperFraction
from perceivers.errors import PerceiversError
from perceivers.text.tables import SUFFIXES, Table, hub_splits, read_table, split_files, to_table

TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("validation", "val", "valid", "dev", "test")
TEXT_COLUMNS = ("text", "sentence", "review", "content", "comment", "document")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment")

Metric = Literal["accuracy", "matthews", "pearson"]
"""A metric of GLUE: accuracy, Matthews correlation, or Pearson correlation."""


@dataclass(frozen=True)
class LabelledTexts:
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

    def subset(self, indices: Sequence[int]) -> "LabelledTexts":
        """Returns the examples at these indices."""
        return LabelledTexts([self.texts[i] for i in indices], [self.labels[i] for i in indices], self.classes)


class LabelledSplits(NamedTuple):
    """The texts for training and those for evaluation."""

    training: LabelledTexts
    evaluation: LabelledTexts


@dataclass(frozen=True)
class TextTask:
    """A task, such as one of GLUE's.

    Attributes:
        training: the training examples; None if the task is only evaluated.
        evaluation: one or more sets of evaluation examples, by name.
        metric: the metric of each set.
    """

    training: LabelledTexts | None
    evaluation: Mapping[str, LabelledTexts]
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
class LabelledTextData(Checked):
    """Labelled texts of one task.

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

    def open(self) -> LabelledSplits:
        """Reads the texts.

        Raises:
            PerceiversError: the data cannot be read, columns are missing or ambiguous, or a text or label is missing
                or invalid; names the file and the line or column.
        """
        training, evaluation = self.find()
        if training is None:
            kind = "file (.csv, .tsv, .jsonl, .json or .parquet)" if Path(self.path).is_dir() else "split"
            raise PerceiversError(f"{self.path} has no {kind} called 'train'.")
        first, second = training(), None if evaluation is None else evaluation()
        text, label = self.find_columns(first, second)
        classes = class_names(first, label)
        examples = label_texts(first, text, label, classes)
        if second is not None:
            return LabelledSplits(examples, label_texts(second, text, label, classes))
        return random_split(examples, self.validation_fraction)

    def open_evaluation(
        self, classes: list[str], validation_fraction: float | None = None
    ) -> tuple[LabelledTexts, str]:
        """Reads the texts to evaluate a model on: the evaluation split of a folder or data set, or all of a file.

        Args:
            classes: the model's classes.
            validation_fraction: if the texts have no evaluation split, read only those that a training run with this
                `data.validation_fraction` held out.

        Returns:
            The texts, and a description of them for messages.

        Raises:
            PerceiversError: as in `open`; or there is no evaluation split, or a label is not one of the classes.
        """
        training, evaluation = self.find()
        may_hold_out = validation_fraction is not None or Path(self.path).is_file()
        read = evaluation or (training if may_hold_out else None)
        if read is None:
            raise PerceiversError(
                f"{self.path} has no split to evaluate on, called {', '.join(EVALUATION_NAMES)}: give a file, or the "
                f"fraction that training held out (--validation-fraction)."
            )
        table = read()
        text, label = self.find_columns(table)
        examples = label_texts(table, text, label, classes, "the model does not know")
        if evaluation is not None or validation_fraction is None:
            return examples, table.name
        held_out = random_split(examples, validation_fraction).evaluation
        return held_out, f"the part of {table.name} that training held out"

    def find_columns(self, first: Table, second: Table | None = None) -> tuple[list[str], str]:
        """Returns the text columns and the label column of the first table, and checks that both tables have them."""
        label = self.label or only_column(first, "label", [c for c in first.columns if c.lower() in LABEL_COLUMNS])
        others = [column for column in first.columns if column != label]
        usual = [column for column in others if column.lower() in TEXT_COLUMNS]
        found = usual or [column for column in others if any(map(is_words, first.columns[column]))]
        text = self.text or [only_column(first, "text", found)]
        for table in filter(None, (first, second)):
            for field, column in [("label", label), *(("text", name) for name in text)]:
                if column not in table.columns:
                    names = table.column_names()
                    raise PerceiversError(f"data.{field}: {table.name} has no column {column!r}; it has {names}.")
        return text, label

    def find(self) -> list[Callable[[], Table] | None]:
        """Returns functions that read the training table and the evaluation table; None for one that does not exist.

        A single file is the training table.
        """
        path, usual = Path(self.path), (TRAINING_NAMES, EVALUATION_NAMES)
        if not self.path:
            raise PerceiversError("data.path is not given: it is a file or folder of labelled texts.")
        if path.is_dir():
            files = [split_files(path, names) for names in usual]
            return [partial(read_table, found) if found else None for found in files]
        if path.exists():
            return [partial(read_table, [path]), None]
        if path.suffix.lower() in SUFFIXES:
            raise PerceiversError(f"data.path = {path} does not exist.")
        splits = hub_splits(self.path)
        found = [next((name for name in names if name in splits), None) for names in usual]
        if not any(found):
            raise PerceiversError(f"{self.path} has no split 'train'; it has {', '.join(splits)}.")
        return [partial(to_table, splits[name], f"{self.path} ({name})") if name else None for name in found]


def random_split(examples: LabelledTexts, validation_fraction: float) -> LabelledSplits:
    """Holds out a random fraction of the examples, always the same, for evaluation."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(max(1, round(validation_fraction * len(examples))), len(examples) - 1)
    return LabelledSplits(examples.subset(order[count:]), examples.subset(order[:count]))


def only_column(table: Table, field: str, found: list[str]) -> str:
    """Returns the only column found for a field of `LabelledTextData`."""
    if len(found) != 1:
        names = table.column_names()
        raise PerceiversError(f"{table.name} has the columns {names}: say with data.{field} which has the {field}.")
    return found[0]


def is_words(value: Any) -> bool:
    """Returns whether a value is text other than a number (CSV has numbers as text)."""
    return isinstance(value, str) and not re.fullmatch(r"[-+.\deE\s]*", value)


def class_names(table: Table, column: str) -> list[str]:
    """Returns the labels in order, numerical if all are integers; raises a PerceiversError if they are no classes."""
    names = sorted(set(table.labels(column)))
    if all(re.fullmatch(r"[-+]?\d+", name) for name in names):
        names.sort(key=int)
    if len(names) < 2:
        raise PerceiversError(f"{table.name} has only the class {names[0]!r}: a classifier needs at least two.")
    if len(names) > len(table.indices) / 2:
        found = f"{len(names)} different labels for {len(table.indices)} texts in column {column!r}"
        raise PerceiversError(f"{table.name} has {found}, too many for classes: name the label column in data.label.")
    return names


def label_texts(
    table: Table, text: list[str], label: str, classes: list[str], unknown: str = "the training texts do not have"
) -> LabelledTexts:
    """Returns the examples of a table, with labels as indices of `classes`; errors call other labels `unknown`."""
    texts, labels = table.texts(text), table.labels(label)
    class_indices = {name: index for index, name in enumerate(classes)}
    for index, (parts, name) in enumerate(zip(texts, labels, strict=True)):
        for column, part in zip(text, parts, strict=True):
            if not part.strip():
                raise PerceiversError(f"{table.location(index)} has an empty text in column {column!r}: remove it.")
        if name not in class_indices:
            raise PerceiversError(f"{table.location(index)} has the label {name!r}, which {unknown}.")
    return LabelledTexts(texts, [class_indices[name] for name in labels], classes)
