"""Texts, or pairs of texts, with labels: from CSV, TSV, JSON lines or parquet."""

import csv
import io
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from perceivers.model.errors import PerceiversError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
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


@dataclass(frozen=True)
class Table:
    """The columns of a file, or of a split of a data set.

    Attributes:
        name: how messages call it.
        columns: the values of each column.
        unit: what `places` counts.
        places: the line from 1 on that each row begins in, or its number from 0 on.
    """

    name: str
    columns: dict[str, list[Any]]
    unit: Literal["line", "row"]
    places: Sequence[int]

    def where(self, index: int) -> str:
        """Names a row in a message."""
        return f"{self.unit} {self.places[index]} of {self.name}"

    def listed(self) -> str:
        """The names of the columns for a message; short, since a file without a header has texts there."""
        return ", ".join(repr(textwrap.shorten(name, 40, placeholder="...")) for name in self.columns)

    def texts(self, columns: Sequence[str]) -> list[tuple[str, ...]]:
        """The texts of each row.

        Raises:
            PerceiversError: a value is missing or not text; names row and column.
        """
        for column in columns:
            for index, value in enumerate(self.columns[column]):
                if missing(value):
                    raise PerceiversError(f"{self.where(index)} has no text in column {column!r}: leave the row out.")
                if not isinstance(value, str):
                    raise PerceiversError(
                        f"{self.where(index)} has {value!r} in column {column!r}, where a text is expected."
                    )
        return list(zip(*(self.columns[column] for column in columns), strict=True))

    def labels(self, column: str) -> list[str]:
        """The label of each row, without white space around it.

        Raises:
            PerceiversError: it is missing, empty, or neither text nor number; names row and column.
        """
        labels = []
        for index, value in enumerate(self.columns[column]):
            if missing(value) or value == "" or str(value).isspace():
                raise PerceiversError(f"{self.where(index)} has no label in column {column!r}: leave the row out.")
            if not isinstance(value, str | int | float):
                raise PerceiversError(
                    f"{self.where(index)} has {value!r} in column {column!r}, where a text or a number is expected."
                )
            labels.append(str(value).strip())
        return labels


@dataclass
class LabelledTextData:
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

    path: str = ""
    text: list[str] | None = None
    label: str | None = None
    held_out: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise PerceiversError(f"data.held_out = {self.held_out} is not allowed: it is a part between 0 and 1.")
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
        training, evaluation = self.tables()
        label = self.label or label_column(training)
        text = self.text or [text_column(training, label)]
        for table in filter(None, (training, evaluation)):
            for field, column in [("label", label), *(("text", name) for name in text)]:
                if column not in table.columns:
                    raise PerceiversError(
                        f"data.{field}: {table.name} has no column {column!r}; it has {table.listed()}."
                    )
        classes = class_names(training, label)
        examples = classified(training, text, label, classes)
        if evaluation is not None:
            return LabelledSplits(examples, classified(evaluation, text, label, classes))
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
        count = min(max(1, round(self.held_out * len(examples))), len(examples) - 1)
        return LabelledSplits(examples.part(order[count:]), examples.part(order[:count]))

    def tables(self) -> tuple[Table, Table | None]:
        """The table to train on and, if there is one, that to evaluate on."""
        path = Path(self.path)
        if not self.path:
            raise PerceiversError("data.path is not given: it is a file or folder of labelled texts.")
        if path.is_dir():
            training, evaluation = split_files(path, TRAINING_NAMES), split_files(path, EVALUATION_NAMES)
            if not training:
                raise PerceiversError(
                    f"{path} has no file to train on: train.csv, .tsv, .jsonl, .json or .parquet is expected in it."
                )
            return read_table(training), read_table(evaluation) if evaluation else None
        if path.exists():
            return read_table([path]), None
        if path.suffix.lower() in SUFFIXES:
            raise PerceiversError(f"data.path = {path} does not exist.")
        splits = hub_splits(self.path)
        name = next((name for name in TRAINING_NAMES if name in splits), None)
        if name is None:
            raise PerceiversError(f"{self.path} has no split 'train'; it has {', '.join(splits)}.")
        other = next((name for name in EVALUATION_NAMES if name in splits), None)
        return hub_table(splits, name, self.path), hub_table(splits, other, self.path) if other else None


def missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or value != value


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


def classified(table: Table, text: list[str], label: str, classes: list[str]) -> LabelledTexts:
    """The examples of a table.

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
            raise PerceiversError(f"{table.where(index)} has the label {name!r}, which the training texts do not have.")
    return LabelledTexts(texts, [numbers[name] for name in labels], classes)


def split_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """The file of the first of these splits that is there, or the numbered parquet files that it is divided into.

    Raises:
        PerceiversError: there are several other files of that name, or some of the numbered are missing.
    """
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    for name in names:
        parts = [file for file in files if re.fullmatch(rf"{name}-\d+-of-\d+\.parquet", file.name)]
        if parts and len(parts) != int(parts[0].stem.rpartition("-")[2]):
            raise PerceiversError(
                f"{parts[0]} is one of several files, of which {len(parts)} are there: fetch the others."
            )
        found = [file for file in files if file.stem.lower() == name]
        if len(found) + bool(parts) > 1:
            both = [*found, *parts]
            raise PerceiversError(f"{both[0]} and {both[1].name} are of the same split: keep one of them.")
        if found or parts:
            return found or parts
    return []


def read_table(paths: list[Path]) -> Table:
    """Reads a file, or several of parquet, by its suffix.

    Raises:
        PerceiversError: it cannot be read, is empty, or has another suffix; names file and line.
    """
    match paths[0].suffix.lower():
        case ".csv":
            return read_separated(paths[0], ",")
        case ".tsv":
            return read_separated(paths[0], "\t")
        case ".jsonl" | ".json":
            return read_json_lines(paths[0])
        case ".parquet":
            return read_parquet(paths)
    raise PerceiversError(f"{paths[0]} is no table: a file that ends in {', '.join(SUFFIXES)} is expected.")


def read_separated(
    path: Path, delimiter: str, quotes: bool = True, columns: list[str] | None = None, skip_short: bool = False
) -> Table:
    """Reads CSV or TSV.

    Args:
        path: the file.
        delimiter: between the fields of a row.
        quotes: whether fields may stand in quotes; otherwise a quote is a character like any other.
        columns: their names, if the first line does not have them.
        skip_short: leave out rows with too few fields, and say on stderr how many they were.

    Raises:
        PerceiversError: it is not UTF-8, has no rows, a column twice, a row of too few or too many fields, or wrong
            quotes; names file and line.
    """
    text = read_utf8(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # documents can be longer than the usual limit
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows: list[list[str]] = []
    places: list[int] = []
    line, skipped = 1, 0
    try:
        for row in reader:
            begin, line = line, reader.line_num + 1
            if not row:
                continue
            if columns is None:
                columns = [name.strip() for name in row]
            elif len(row) < len(columns) and skip_short:
                skipped += 1
            elif len(row) != len(columns):
                raise PerceiversError(
                    f"line {begin} of {path} has {len(row)} fields, but the file has {len(columns)} columns: "
                    f"correct the line{', or put fields that hold the delimiter in quotes' if quotes else ''}."
                )
            else:
                rows.append(row)
                places.append(begin)
    except csv.Error as error:
        raise PerceiversError(
            f"line {line} of {path} cannot be read ({error}): "
            f"a field that begins with a quote has to end with one, and quotes in it are written twice."
        ) from error
    if skipped:
        print(f"\nSkipped: {skipped} rows of {path} that have too few fields.", file=sys.stderr)
    if columns is None or not rows:
        raise PerceiversError(f"{path} has no rows: names of the columns and a line for each example are expected.")
    for name in columns:
        if columns.count(name) > 1:
            raise PerceiversError(f"{path} has the column {name!r} twice: the first line is to name each once.")
    return Table(str(path), {name: [row[i] for row in rows] for i, name in enumerate(columns)}, "line", places)


def read_json_lines(path: Path) -> Table:
    """Reads an object a line, their keys the columns.

    Raises:
        PerceiversError: it is not UTF-8, has no rows, or a line is something else; names file and line.
    """
    rows: list[dict[str, Any]] = []
    places: list[int] = []
    for place, line in enumerate(read_utf8(path).split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise PerceiversError(f"line {place} of {path} is no JSON object: each line is to be one.")
            rows.append(row)
            places.append(place)
    if not rows:
        raise PerceiversError(f"{path} has no rows: a JSON object on a line for each example is expected.")
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names}, "line", places)


def read_utf8(path: Path) -> str:
    """A text file without the byte order mark that some have.

    Raises:
        PerceiversError: it is not UTF-8; names the byte.
    """
    content = path.read_bytes()
    try:
        return content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise PerceiversError(
            f"{path} is not UTF-8 text: byte {error.start} is {content[error.start]:#04x}; save it as UTF-8."
        ) from error


def read_parquet(paths: list[Path]) -> Table:
    """Reads the rows of one or several files.

    Raises:
        PerceiversError: they cannot be read, or have no rows.
    """
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    try:
        content = pyarrow.parquet.read_table(paths)
    except (pyarrow.ArrowException, OSError) as error:
        raise PerceiversError(f"{paths[0]} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    return table_of(Dataset(content), str(paths[0]) if len(paths) == 1 else f"{paths[0]} and those that follow it")


def hub_splits(name: str) -> Mapping[str, Any]:
    """The splits of a data set on the hub, a configuration of which may follow after a colon.

    Raises:
        PerceiversError: it cannot be had.
    """
    import datasets

    path, _, configuration = name.partition(":")
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(path, configuration or None)
    except Exception as error:  # the library raises many kinds; each means that it cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PerceiversError(
            f"data.path = {name} is neither a file, nor a folder, nor a data set of the hub: {reason}"
        ) from error
    return splits


def hub_table(splits: Mapping[str, Any], split: str, name: str) -> Table:
    """One split of `hub_splits`."""
    return table_of(splits[split], f"{name} ({split})")


def table_of(dataset: Any, name: str) -> Table:
    """The rows of a Hugging Face data set, numbers of classes as their names; below 0 stands for no label."""
    from datasets import ClassLabel

    if not len(dataset):
        raise PerceiversError(f"{name} has no rows.")
    columns: dict[str, list[Any]] = {}
    for column, feature in dataset.features.items():
        values = dataset.data.column(column).to_pylist()
        if isinstance(feature, ClassLabel):
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[column] = values
    return Table(name, columns, "row", range(len(dataset)))
