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


def missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or value != value


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
    import pyarrow.parquet
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
