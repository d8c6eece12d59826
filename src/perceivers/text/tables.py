"""Tables with named columns: CSV, TSV, JSON lines, parquet, and splits of Hugging Face data sets."""

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

from perceivers.errors import PerceiversError

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
        return [str(value).strip() for value in self.columns[column]]

    def check_values(self, column: str, kind: str, types: Any, expected: str) -> None:
        """Raises a PerceiversError, which names the row, if a text or label is missing or of another type."""
        for index, value in enumerate(self.columns[column]):
            if value is None or value != value or (kind == "label" and not str(value).strip()):  # None, NaN or empty
                raise PerceiversError(f"{self.location(index)} has no {kind} in column {column!r}: remove the row.")
            if not isinstance(value, types):
                found = f"{value!r} in column {column!r}"
                raise PerceiversError(f"{self.location(index)} has {found} instead of {expected}.")


def split_files(folder: Path, names: Iterable[str]) -> list[Path]:
    """Returns the file of the first of these splits that exists, or its numbered parquet files.

    Raises:
        PerceiversError: there are several files of that name, or numbered files are missing.
    """
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    for name in names:
        parts = [file for file in files if re.fullmatch(rf"{name}-\d+-of-\d+\.parquet", file.name)]
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
    if suffix in (".csv", ".tsv"):
        return read_separated(paths[0], "," if suffix == ".csv" else "\t")
    if suffix in (".jsonl", ".json"):
        return read_json_lines(paths[0])
    if suffix == ".parquet":
        return read_parquet(paths)
    raise PerceiversError(f"{paths[0]} is not a table: a file with the suffix {', '.join(SUFFIXES)} is expected.")


def read_separated(
    path: Path, delimiter: str, quotes: bool = True, columns: list[str] | None = None, skip_short: bool = False
) -> Table:
    """Reads CSV or TSV.

    Args:
        path, delimiter: the file, and what separates its fields.
        quotes: whether fields may be quoted; otherwise a quote is a character like any other.
        columns: names of the columns if the file has no header.
        skip_short: skip rows with too few fields, and print their number on stderr.

    Raises:
        PerceiversError: the file is not UTF-8, has no rows, a duplicate column, a row with too few or too many fields,
            or wrong quotes; names file and line.
    """
    text = read_utf8(path).removeprefix("\ufeff")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # documents can exceed the default limit
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    rows, indices = list[list[str]](), list[int]()
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
                    f"correct the line{', or quote fields that contain the delimiter' if quotes else ''}."
                )
            else:
                rows.append(row)
                indices.append(begin)
    except csv.Error as error:
        raise PerceiversError(
            f"line {line} of {path} cannot be read ({error}): "
            f"a field that begins with a quote has to end with one, and quotes inside it are doubled."
        ) from error
    if skipped:
        print(f"\nSkipped: {skipped} rows of {path} that have too few fields.", file=sys.stderr)
    if columns is None or not rows:
        raise PerceiversError(f"{path} has no rows: a line of column names and a line per example are expected.")
    for name in columns:
        if columns.count(name) > 1:
            raise PerceiversError(f"{path} has the column {name!r} twice: rename one in the first line.")
    return Table(str(path), {name: [row[i] for row in rows] for i, name in enumerate(columns)}, "line", indices)


def read_json_lines(path: Path) -> Table:
    """Reads one object per line, whose keys are the columns; errors are as in `read_table`."""
    rows, indices = list[dict[str, Any]](), list[int]()
    for index, line in enumerate(read_utf8(path).removeprefix("\ufeff").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):
                raise PerceiversError(f"line {index} of {path} is not a JSON object: one object per line is expected.")
            rows.append(row)
            indices.append(index)
    if not rows:
        raise PerceiversError(f"{path} has no rows: one JSON object per line is expected.")
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(str(path), {name: [row.get(name) for row in rows] for name in names}, "line", indices)


def read_utf8(path: Path, start: int = 0, end: int | None = None, advice: str = "save it as UTF-8") -> str:
    """Reads the bytes from `start` to `end` of a text file; a PerceiversError names the byte that is not UTF-8."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(-1 if end is None else end - start)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {start + error.start} is {content[error.start]:#04x}"
        raise PerceiversError(f"{path} is not UTF-8 text: {byte}; {advice}.") from error


def read_parquet(paths: list[Path]) -> Table:
    """Reads the rows of one or more files; errors are as in `read_table`."""
    import pyarrow.parquet
    from datasets import Dataset

    try:
        content = pyarrow.parquet.read_table(paths)
    except (pyarrow.ArrowException, OSError) as error:
        raise PerceiversError(f"{paths[0]} cannot be read as parquet: {str(error).splitlines()[0]}") from error
    return to_table(Dataset(content), str(paths[0]) if len(paths) == 1 else f"{paths[0]} and the files after it")


def hub_splits(name: str, streaming: bool = False) -> Mapping[str, Any]:
    """Returns the splits of a data set on the Hub or in a folder; a colon and a configuration may follow its name.

    Raises:
        PerceiversError: it cannot be loaded.
    """
    import datasets

    path, _, configuration = name.partition(":")
    options = {"streaming": True} if streaming else {}
    try:
        splits: Mapping[str, Any] = datasets.load_dataset(path, configuration or None, **options)
    except Exception as error:  # the library raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = "cannot be read as a data set" if Path(path).exists() else "is neither here nor on the Hub"
        raise PerceiversError(f"data.path: {name} {problem}: {reason}") from error
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
            values = [None if value is None or value < 0 else feature.names[value] for value in values]
        columns[column] = values
    return Table(name, columns, "row", range(len(dataset)))
