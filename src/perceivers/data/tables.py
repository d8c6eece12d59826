"""Tables with named columns: CSV, TSV, JSON lines, parquet, and splits of Hugging Face data sets."""

import json
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from perceivers.errors import PerceiversError, quote, shorten
from perceivers.files import check_count, list_folder, read_rows, read_text, require_file, walk, warn
from perceivers.progress import Shown

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class Table:
    """The columns of a file, or of a split of a data set.

    Attributes:
        name: its name in messages.
        columns: the values of each column.
        unit: what `indices` counts.
        indices: the line in which each row begins, from 1, or the number of the row, from 0.
    """

    name: str
    columns: dict[str, list[Any]]
    unit: Literal["line", "row"]
    indices: Sequence[int]

    def location(self, index: int) -> str:
        """Returns the location of a row for a message."""
        return f"{self.unit} {self.indices[index]} of {self.name}"

    def column_names(self) -> str:
        """Returns the column names for a message, shortened: a file without a header has texts there."""
        return ", ".join(repr(textwrap.shorten(name, 40, placeholder="...")) for name in self.columns)

    def texts(self, columns: Sequence[str]) -> list[tuple[str, ...]]:
        """Returns the texts of each row; raises a PerceiversError if one is missing or not text."""
        for column in columns:
            self.check_values(column, "text", str, "text")
        return list(zip(*(self.columns[column] for column in columns), strict=True))

    def labels(self, column: str) -> list[str]:
        """Returns the label of each row without white space around it; raises a PerceiversError as `texts` does."""
        self.check_values(column, "label", str | int | float, "a text or a number")
        return [format_label(value) for value in self.columns[column]]

    def check_values(self, column: str, kind: str, types: Any, expected: str) -> None:
        """Raises a PerceiversError, which names the row, if a text or label is missing or of another type."""
        for index, value in enumerate(self.columns[column]):
            if value is None or value != value:  # None or NaN
                raise PerceiversError(f"{self.location(index)} has no {kind} in column {column!r}: remove the row.")
            if not isinstance(value, types):
                found = f"{quote(value)} in column {column!r}"
                raise PerceiversError(f"{self.location(index)} has {found} instead of {expected}.")

    def drop_missing(self, columns: Sequence[str]) -> "Table":
        """Returns the rows in which none of some columns is missing or blank, and prints the number of the others."""
        kept = [
            index for index in range(len(self.indices)) if not any(is_missing(self.columns[c][index]) for c in columns)
        ]
        if len(kept) == len(self.indices):
            return self
        if not kept:
            raise PerceiversError(f"{self.name} has no row with {' and '.join(columns)}.")
        missing = len(self.indices) - len(kept)
        warn(f"Left out of {self.name}: {missing} of {len(self.indices)} rows, without {' or '.join(columns)}.")
        values = {name: [column[index] for index in kept] for name, column in self.columns.items()}
        return replace(self, columns=values, indices=[self.indices[index] for index in kept])


def is_missing(value: Any) -> bool:
    """Returns whether a value is None, NaN or blank."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def format_label(value: Any) -> str:
    """Returns a label as text; 1.0, to which a missing value beside it turns 1, is "1"."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()


def split_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Returns the file of the first of these splits that exists, or its numbered parquet files.

    Raises:
        PerceiversError: there are several files of that name, or numbered files are missing.
    """
    files = [file for file in list_folder(folder) if file.suffix.lower() in SUFFIXES]
    for name in names:
        parts = [file for file in files if re.fullmatch(rf"{name}-\d+-of-\d+\.parquet", file.name.lower())]
        if parts and len(parts) != int(parts[0].stem.rpartition("-")[2]):
            raise PerceiversError(f"{parts[0]} is one of several files, but only {len(parts)} exist: get the others.")
        found = [file for file in files if file.stem.lower() == name]
        if len(found) + bool(parts) > 1:
            both = [*found, *parts]
            raise PerceiversError(f"{both[0]} and {both[1].name} are of the same split: keep one of them.")
        if found or parts:
            return found or parts
    return []


def read_table(paths: list[Path]) -> Table:
    """Reads a file by its suffix; parquet may be in several files.

    Raises:
        PerceiversError: the file cannot be read, is empty, or has another suffix; names file and line.
    """
    suffix = paths[0].suffix.lower()
    if suffix == ".csv":
        return read_separated(paths[0], ",;\t")
    if suffix == ".tsv":
        return read_separated(paths[0], "\t")
    if suffix in (".jsonl", ".json"):
        return read_objects(paths[0])
    if suffix == ".parquet":
        return read_parquet(paths)
    raise PerceiversError(f"{paths[0]} is not a table: a file with the suffix {', '.join(SUFFIXES)} is expected.")


def read_separated(path: Path, delimiters: str, columns: list[str] | None = None, skip_short: bool = False) -> Table:
    """Reads CSV or TSV, with quoted fields unless tabs separate them.

    Args:
        path: the file.
        delimiters: what may separate its fields: the first of these characters that is in its first line does.
        columns: names of the columns if the file has no header.
        skip_short: skip rows with too few fields, and print their number on stderr.

    Raises:
        PerceiversError: the file is not UTF-8, has no rows, a duplicate column, a row with too few or too many fields,
            or wrong quotes; names file and line.
    """
    text = read_text(path)
    first_line = text.lstrip("\r\n").partition("\n")[0]
    delimiter = next((character for character in delimiters if character in first_line), delimiters[0])
    quotes = delimiter != "\t"
    rows, indices = list[list[str]](), list[int]()
    skipped = 0
    for line, row in read_rows(text, path, delimiter, quotes):
        if columns is None:
            columns = [name.strip() for name in row]
        elif len(row) < len(columns) and skip_short:
            skipped += 1
        elif len(row) != len(columns):
            raise PerceiversError(
                f"line {line} of {path} has {len(row)} fields, but the file has {len(columns)} columns: "
                f"correct the line{', or quote fields that contain the delimiter' if quotes else ''}."
            )
        else:
            rows.append(row)
            indices.append(line)
    if skipped:
        warn(f"Skipped: {skipped} rows of {path} that have too few fields.")
    if columns is None or not rows:
        raise PerceiversError(f"{path} has no rows: a line of column names and a line per example are expected.")
    for name, count in Counter(columns).items():
        if count > 1:
            raise PerceiversError(f"{path} has the column {quote(name)} twice: rename one in the first line.")
    return Table(str(path), {name: [row[i] for row in rows] for i, name in enumerate(columns)}, "line", indices)


def read_objects(path: Path) -> Table:
    """Reads an object per line, or an array of objects, whose keys are the columns; errors are as in `read_table`."""
    text = read_text(path)
    unit: Literal["line", "row"] = "line"
    if text.lstrip().startswith("["):
        values = parse_json(text)
        if not isinstance(values, list):
            raise PerceiversError(
                f"{path} is not valid JSON: an array of objects, or one object per line, is expected."
            )
        found, unit = list(enumerate(values)), "row"
    else:
        found = [(index, parse_json(line)) for index, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for index, row in found:
        if not isinstance(row, dict):
            expected = "one object per line, or an array of objects, is expected"
            raise PerceiversError(f"{unit} {index} of {path} is not a JSON object: {expected}.")
    if not found:
        raise PerceiversError(f"{path} has no rows: one JSON object per line, or an array of objects, is expected.")
    names = dict.fromkeys(name for _, row in found for name in row)
    columns = {name: [row.get(name) for _, row in found] for name in names}
    return Table(str(path), columns, unit, [index for index, _ in found])


def parse_json(text: str) -> Any:
    """Returns a JSON value; None for anything that is not one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a ValueError also for numbers of thousands of digits
        return None


def read_parquet(paths: list[Path]) -> Table:
    """Reads the rows of one or more files; errors are as in `read_table`."""
    name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and the files after it"
    try:
        return to_table(open_parquet(*paths), name)
    except PerceiversError:
        raise
    except Exception as error:  # the libraries raise many kinds
        raise PerceiversError(f"{paths[0]} cannot be read as parquet: {describe(error)}") from error


def open_parquet(*paths: Path) -> Any:
    """Returns the rows of one or more files as a Hugging Face data set; errors are as in `read_table`."""
    import pyarrow.parquet
    from datasets import Dataset

    for path in paths:
        check_parquet(path)
    try:
        return Dataset(pyarrow.parquet.read_table(list(paths)))
    except Exception as error:  # the libraries raise many kinds
        raise PerceiversError(f"{paths[0]} cannot be read as parquet: {describe(error)}") from error


def check_parquet(path: Path) -> None:
    """Raises a PerceiversError unless a path is that of a parquet file, and it announces few enough rows to read."""
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_metadata(require_file(path)).num_rows
    except PerceiversError:
        raise
    except Exception as error:  # the library raises many kinds
        raise PerceiversError(f"{path} cannot be read as parquet: {describe(error)}") from error
    check_count(path, rows, "rows")


def describe(error: Exception) -> str:
    """Returns the first line of an error of a library, shortened."""
    return shorten((str(error).strip() or type(error).__name__).splitlines()[0], 300)


def hub_splits(name: str, streaming: bool = False) -> Mapping[str, Any]:
    """Returns the splits of a data set on the Hub or in a folder; a colon and a configuration may follow its name.

    Raises:
        PerceiversError: it cannot be loaded.
    """
    import datasets

    path, _, configuration = name.partition(":")
    options = {"streaming": True} if streaming else {}
    if not (Shown.loops and sys.stderr.isatty()):  # bars are for terminals, and --quiet hides them
        datasets.disable_progress_bars()
    try:
        for entry in walk(path) if os.path.isdir(path) else ():
            file = require_file(entry.path)
            if file.suffix.lower() == ".parquet":
                check_parquet(file)
        splits: Mapping[str, Any] = datasets.load_dataset(path, configuration or None, **options)
    except Exception as error:  # the library raises many kinds
        problem = "cannot be read as a data set" if os.path.exists(path) else "is neither here nor on the Hub"
        raise PerceiversError(f"data.path = {name} {problem}: {describe(error)}") from error
    return splits


def to_table(dataset: Any, name: str) -> Table:
    """Returns the rows of a Hugging Face data set, with class names for class indices; a negative index is no label."""
    from datasets import ClassLabel

    if not len(dataset):
        raise PerceiversError(f"{name} has no rows.")
    columns: dict[str, list[Any]] = {}
    for column, feature in dataset.features.items():
        values = dataset.data.column(column).to_pylist()
        if isinstance(feature, ClassLabel):
            check_labels(values, feature, name)
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[column] = values
    return Table(name, columns, "row", range(len(dataset)))


def check_labels(labels: Iterable[int | None], feature: Any, name: str) -> None:
    """Raises a PerceiversError if a label is larger than the indices of the classes of its column."""
    largest = max((label for label in labels if label is not None), default=-1)
    if largest >= len(feature.names):
        raise PerceiversError(f"{name} has the label {largest}, but only {len(feature.names)} names of classes.")
