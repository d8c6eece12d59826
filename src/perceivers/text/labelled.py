"""Texts, or pairs of texts, with labels: from CSV, TSV, JSON lines or parquet."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from perceivers.checks import Checked, ProperFraction
from perceivers.errors import PerceiversError
from perceivers.text.tables import SUFFIXES, Table, hub_splits, hub_table, read_table, split_files

TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("validation", "val", "valid", "dev", "test")
TEXT_COLUMNS = ("text", "sentence", "review", "content", "comment", "document")
LABEL_COLUMNS = ("label", "labels", "class", "target", "category", "sentiment")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts, or pairs of texts, with labels.

    Attributes:
        texts: one text an example, or two for a pair.
        labels: class index of each; a number where there are no classes.
        classes: names of the classes; None for numbers (regression).
    """

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]
    classes: list[str] | None

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, indices: Sequence[int]) -> "LabelledTexts":
        """Some of the examples."""
        return LabelledTexts([self.texts[i] for i in indices], [self.labels[i] for i in indices], self.classes)


@dataclass(frozen=True)
class LabelledSplits:
    """The texts to train on and those to evaluate on."""

    training: LabelledTexts
    evaluation: LabelledTexts


@dataclass
class LabelledTextData(Checked):
    """Which texts with labels to use.

    Attributes:
        path: a file of CSV (.csv), TSV (.tsv), JSON lines (.jsonl, .json) or parquet, the first two with a line of
            names above the columns; a folder with such files called train and dev, validation, val, valid or test;
            or the name of a data set on the hub, a configuration of which may follow after a colon.
        text: the column that holds the text, or two for pairs; if not given, the one called text, sentence, review,
            content, comment or document, or the only one with text that is not the label.
        label: the column that holds the class; if not given, the one called label, labels, class, target, category
            or sentiment.
        held_out: part of the examples to evaluate on where there is no split for that.
    """

    section = "data."

    path: str = ""
    text: list[str] | None = None
    label: str | None = None
    held_out: ProperFraction = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text is not None and len(set(self.text) - {self.label}) != len(self.text):
            raise PerceiversError(f"data.text = {self.text} has a column twice, or that of data.label.")
        if self.text is not None and not 1 <= len(self.text) <= 2:
            raise PerceiversError(f"data.text = {self.text} is not allowed: it is one column, or two for pairs.")

    def open(self) -> LabelledSplits:
        """Reads the texts.

        Raises:
            PerceiversError: they cannot be read, columns are missing or cannot be told apart, a text or a label is
                missing, or the labels make no classes; names the file and the line or column.
        """
        training, evaluation = self.find()
        if training is None and Path(self.path).is_dir():
            raise PerceiversError(
                f"{self.path} has no file to train on: train.csv, .tsv, .jsonl, .json or .parquet is expected in it."
            )
        if training is None:
            raise PerceiversError(f"{self.path} has no split 'train'.")
        first, second = training(), None if evaluation is None else evaluation()
        text, label = self.columns(first, second)
        classes = class_names(first, label)
        examples = classified(first, text, label, classes)
        if second is not None:
            return LabelledSplits(examples, classified(second, text, label, classes))
        return divide(examples, self.held_out)

    def open_evaluation(self, classes: list[str], held_out: float | None = None) -> tuple[LabelledTexts, str]:
        """Reads the texts to evaluate a model on: of a folder or data set, the split for that; of a file, all.

        Args:
            classes: the model's.
            held_out: take of texts without a split for evaluation only the part that a training run keeps whose
                `data.held_out` is this.

        Returns:
            The texts, and which they are, for people.

        Raises:
            PerceiversError: as in `open`; or there is no split for evaluation, or a label is not among the classes.
        """
        training, evaluation = self.find()
        whole = held_out is None and Path(self.path).is_file()
        read = evaluation or (training if whole or held_out is not None else None)
        if read is None:
            raise PerceiversError(
                f"{self.path} has no split to evaluate on, called {', '.join(EVALUATION_NAMES)}: give a file, or say "
                f"which part training held out (--held-out)."
            )
        table = read()
        text, label = self.columns(table)
        examples = classified(table, text, label, classes, "the model does not know")
        if evaluation is not None or held_out is None:
            return examples, table.name
        return divide(examples, held_out).evaluation, f"the part of {table.name} that training held out"

    def columns(self, first: Table, second: Table | None = None) -> tuple[list[str], str]:
        """Returns the columns of the text and of the label, as they are in the first table; both tables have them."""
        label = self.label or label_column(first)
        text = self.text or [text_column(first, label)]
        for table in filter(None, (first, second)):
            for field, column in [("label", label), *(("text", name) for name in text)]:
                if column not in table.columns:
                    raise PerceiversError(
                        f"data.{field}: {table.name} has no column {column!r}; it has {table.listed()}."
                    )
        return text, label

    def find(self) -> tuple[Callable[[], Table] | None, Callable[[], Table] | None]:
        """Returns what reads the table to train on and that to evaluate on, those that there are; a file is the first.

        Raises:
            PerceiversError: there is neither.
        """
        path = Path(self.path)
        if not self.path:
            raise PerceiversError("data.path is not given: it is a file or folder of labelled texts.")
        usual = (TRAINING_NAMES, EVALUATION_NAMES)
        if path.is_dir():
            files = (split_files(path, names) for names in usual)
            training, evaluation = (partial(read_table, found) if found else None for found in files)
            return training, evaluation
        if path.exists():
            return partial(read_table, [path]), None
        if path.suffix.lower() in SUFFIXES:
            raise PerceiversError(f"data.path = {path} does not exist.")
        splits = hub_splits(self.path)
        found = [next((name for name in names if name in splits), None) for names in usual]
        training, evaluation = (partial(hub_table, splits, name, self.path) if name else None for name in found)
        if training is None and evaluation is None:
            raise PerceiversError(f"{self.path} has no split 'train'; it has {', '.join(splits)}.")
        return training, evaluation


def divide(examples: LabelledTexts, held_out: float) -> LabelledSplits:
    """Holds out a part of the examples, drawn at random but always the same."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(max(1, round(held_out * len(examples))), len(examples) - 1)
    return LabelledSplits(examples.part(order[count:]), examples.part(order[:count]))


def label_column(table: Table) -> str:
    """The column with a usual name for labels."""
    found = [column for column in table.columns if column.lower() in LABEL_COLUMNS]
    if len(found) != 1:
        raise PerceiversError(
            f"{table.name} has the columns {table.listed()}: say with data.label which has the label."
        )
    return found[0]


def text_column(table: Table, label: str) -> str:
    """The column with a usual name for texts, or the only one with text that is not the label."""
    found = [column for column in table.columns if column.lower() in TEXT_COLUMNS and column != label]
    if not found:
        found = [column for column, values in table.columns.items() if column != label and any(map(is_words, values))]
    if len(found) != 1:
        raise PerceiversError(
            f"{table.name} has the columns {table.listed()}: say with data.text which has the text, or which two."
        )
    return found[0]


def is_words(value: Any) -> bool:
    """Whether a value is text other than a number, as which all values of CSV come."""
    return isinstance(value, str) and not re.fullmatch(r"[-+.\deE\s]*", value)


def class_names(table: Table, column: str) -> list[str]:
    """The distinct labels in order, numerical if all are whole numbers.

    Raises:
        PerceiversError: there is only one, or so many that they can be no classes.
    """
    names = sorted(set(table.labels(column)))
    if all(re.fullmatch(r"[-+]?\d+", name) for name in names):
        names.sort(key=int)
    count = len(table.places)
    if len(names) < 2:
        raise PerceiversError(f"{table.name} has only the class {names[0]!r}: a classifier needs at least two.")
    if len(names) > count / 2:
        raise PerceiversError(
            f"{table.name} has {len(names)} different labels for {count} texts in column {column!r}, "
            f"which looks like another column than that of the label: name the right one in data.label."
        )
    return names


def classified(
    table: Table,
    text: list[str],
    label: str,
    classes: list[str],
    unknown: str = "the training texts do not have",
) -> LabelledTexts:
    """Returns the examples of a table, their labels numbers of `classes`.

    `unknown` says of a label in an error why it is none of them.

    Raises:
        PerceiversError: a text is empty, or a label not among `classes`; names the row.
    """
    texts, labels = table.texts(text), table.labels(label)
    numbers = {name: number for number, name in enumerate(classes)}
    for index, (parts, name) in enumerate(zip(texts, labels, strict=True)):
        for column, part in zip(text, parts, strict=True):
            if not part.strip():
                raise PerceiversError(f"{table.where(index)} has an empty text in column {column!r}: leave it out.")
        if name not in numbers:
            raise PerceiversError(f"{table.where(index)} has the label {name!r}, which {unknown}.")
    return LabelledTexts(texts, [numbers[name] for name in labels], classes)
