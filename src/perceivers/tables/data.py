"""The tables of a training run, and their splits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from perceivers.checks import Checked, ProperFraction, Range, check_field
from perceivers.data.splits import SPLITS, Part, choose_splits, find_splits
from perceivers.data.tables import SUFFIXES, Table, describe, open_parquet, read_table, split_files
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.model.config import construct
from perceivers.tables.columns.date import Date
from perceivers.tables.columns.number import parse_number
from perceivers.tables.rows import Rows, open_root
from perceivers.tables.windows import END, TIME, Window, read_times

MOST_COLUMNS = 1000
"""Most columns of a model."""

LARGEST_PARQUET = 2**28
"""Bytes of parquet files from which rows are read from the disk, when they are needed."""


class Parts(NamedTuple):
    """The rows for training and for validation, those for testing, if some are held out, and the window of series."""

    training: Rows
    validation: Rows
    test: Rows | None
    window: Window | None


@dataclass
class TableData(Checked):
    """A table, and which of its rows are held out.

    Attributes:
        path: a CSV, TSV, JSON lines or parquet file with column names, or a folder with such files called train,
            validation and test.
        root: folder that paths in cells start from; by default that of the table.
        validation: the part that is held out to evaluate on, if no file is: a fraction of the rows or, with `time`, the
            time from which rows are held out.
        test: a part that is held out and only measured at the end of the run, likewise.
        split: a column with train, validation or test.
        group: a column whose values are held out as a whole, such as a person that several rows are of.
        time: a column with the times of the rows: the last ones are held out.
        folds: number of parts that are held out in turn, by as many runs.
        fold: the one of these parts that this run holds out, from 0; all in turn, if it is not given.
        seed: seed of the random choice of rows that are held out.
        hide: fraction of the cells that training hides at random, so that the model learns to predict without them; by
            default 0.1 for a table of less than 2,000 rows, else 0.02.
        window: `history`, `horizon` and `time` of a table of series, see `Window`.
    """

    section = "data."

    path: str = ""
    root: str | None = None
    validation: ProperFraction | str = 0.1
    test: ProperFraction | str | None = None
    split: str | None = None
    group: str | None = None
    time: str | None = None
    folds: Annotated[int, Range(least=2)] | None = None
    fold: Annotated[int, Range(least=0)] | None = None
    seed: Annotated[int, Range(least=0)] = 0
    hide: Annotated[float, Range(least=0, below=1)] | None = None
    window: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        chosen = [name for name in ("split", "group", "time", "window") if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise PerceiversError(f"data.{chosen[0]} and data.{chosen[1]} both choose the rows that are held out.")
        if self.folds and chosen not in ([], ["group"]):
            raise PerceiversError(f"data.folds and data.{chosen[0]} both choose the rows that are held out.")
        check_field("data.fold", self.fold, self.fold is None or self.fold < (self.folds or 0), "below data.folds")
        for name in ("validation", "test"):
            value = getattr(self, name)
            allowed = not isinstance(value, str) or self.time is not None or self.window is not None
            check_field(f"data.{name}", value, allowed, "a fraction, or come with data.time")

    def open(self) -> Parts:
        """Reads the table and chooses rows; raises a PerceiversError for what is wrong with either."""
        tables = open_tables(self.path)
        root = open_root(self.path, self.root)
        if self.window is not None and len(tables) > 1:
            raise PerceiversError(f"{self.path} has several tables: with data.window, give the file of one.")
        if list(tables) == [None] or self.window is not None:
            table = next(iter(tables.values()))
            return self.cut_windows(table, root) if self.window is not None else self.split_rows(table, root)
        found = {split: [tables[part] for part in parts] for split, parts in find_splits(map(str, tables)).items()}
        if "train" not in found:
            raise PerceiversError(f"{self.path} has no table called train; it has {', '.join(map(str, tables))}.")
        rows = {split: all_rows(parts[0], root) for split, parts in found.items()}
        for name in ("folds", "split", "group", "time"):
            if "val" in rows and getattr(self, name) is not None:
                raise PerceiversError(
                    f"data.{name} chooses the rows that are held out, but {self.path} has a table of them: "
                    f"leave one out."
                )
        if self.test is not None and "test" in rows:
            raise PerceiversError(f"data.test holds out rows, but {self.path} has a table of them: leave one out.")
        if "val" in rows:
            check_columns(rows["train"].table)
            return Parts(rows["train"], rows["val"], rows.get("test"), None)
        parts = self.split_rows(rows["train"].table, root)
        return Parts(parts.training, parts.validation, rows.get("test"), None)

    def split_rows(self, table: Table, root: Path) -> Parts:
        """Chooses the rows of a table that are held out."""
        check_columns(table)
        rows = all_rows(table, root)
        for field in ("split", "group", "time"):
            if (name := getattr(self, field)) is not None and name not in table.columns:
                hint = did_you_mean(name, table.columns)
                raise PerceiversError(f"data.{field}: {table.name} has no column {quote(name)}: {hint}")
        if self.split is not None:
            return self.split_by_column(rows, self.split)
        if self.time is not None:
            times = read_times(table, self.time)
            return split_by_time(rows, times, times, self.find_boundaries(times))
        groups = None if self.group is None else np.array([str(cell) for cell in table.columns[self.group]])
        if self.folds:
            return self.take_fold(rows, groups)
        units = np.arange(len(rows)) if groups is None else np.unique(groups, return_inverse=True)[1]
        order = np.random.default_rng(self.seed).permutation(units.max() + 1)
        place = np.empty(len(order), dtype=int)
        place[order] = np.arange(len(order))
        sizes = [count_held_out(part, len(order)) for part in (self.validation, self.test)]
        if sum(sizes) >= len(order):
            raise PerceiversError(
                f"{table.name} has {len(order)} {'rows' if groups is None else 'groups'}, too few to hold some out."
            )
        ends = np.cumsum(sizes)
        part_of = np.searchsorted(ends, place[units], side="right")
        return make_parts(rows, *(np.flatnonzero(part_of == part) for part in (2, 0, 1)))

    def take_fold(self, rows: Rows, groups: np.ndarray[Any, Any] | None) -> Parts:
        """Holds out one of several parts of equal size, as in scikit-learn's KFold or GroupKFold."""
        from sklearn.model_selection import GroupKFold, KFold

        count, kind = (len(rows), KFold) if groups is None else (len(set(groups)), GroupKFold)
        check_field("data.folds", self.folds, (self.folds or 0) <= count, f"at most {count}")
        splitter = kind(self.folds, shuffle=True, random_state=self.seed)
        training, held_out = list(splitter.split(np.arange(len(rows)), groups=groups))[self.fold or 0]
        return make_parts(rows, training, held_out, ())

    def split_by_column(self, rows: Rows, name: str) -> Parts:
        """Takes the part of each row from a column."""
        labels = [str(cell).strip().lower() for cell in rows.table.columns[name]]
        known = {label: split for split, names in SPLITS.items() for label in names}
        for row, label in enumerate(labels):
            if label not in known:
                raise PerceiversError(
                    f"{rows.describe(name, row)}: {quote(label)} is none of train, validation and test."
                )
        parts = [
            [row for row, label in enumerate(labels) if known[label] == split] for split in ("train", "val", "test")
        ]
        if not parts[1]:  # a fraction of the rows for training
            rest = TableData(self.path, self.root, self.validation, seed=self.seed).split_rows(rows.table, rows.root)
            held_out = set(rest.validation.indices)
            parts[:2] = [row for row in parts[0] if row not in held_out], [row for row in parts[0] if row in held_out]
        return make_parts(rows, *parts)

    def find_boundaries(self, times: np.ndarray[Any, Any]) -> tuple[float, float]:
        """Returns the times from which rows are for validation, and for testing."""
        given = [parse_boundary(part) for part in (self.validation, self.test)]
        test = 0.0 if self.test is None else given[1]
        second = np.inf if self.test is None else float(np.quantile(times, 1 - test)) if 0 < test < 1 else test
        before = times[times < second]
        fraction = given[0]
        first = float(np.quantile(before, 1 - fraction)) if 0 < fraction < 1 and len(before) else fraction
        return first, second

    def cut_windows(self, table: Table, root: Path) -> Parts:
        """Cuts series into windows, and holds out the last ones."""
        window = construct(Window, self.window or {})
        check_columns(table)
        if window.time not in table.columns:
            hint = did_you_mean(window.time, table.columns)
            raise PerceiversError(f"data.window.time: {table.name} has no column {quote(window.time)}: {hint}")
        boundaries = self.find_boundaries(read_times(table, window.time))
        series = window.open(table, boundaries[0])
        cut = series.cut()
        times, ends = (np.array(cut.columns[name]) for name in (TIME, END))
        parts = split_by_time(all_rows(cut, root), times, ends, boundaries)
        return Parts(parts.training, parts.validation, parts.test, series.window)


def split_by_time(
    rows: Rows, times: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], boundaries: tuple[float, float]
) -> Parts:
    """Holds out the last rows, see `find_boundaries`; those that end in a later part than they begin are in none."""
    first, second = boundaries
    training, test = np.flatnonzero(ends < first), np.flatnonzero(times >= second)
    return make_parts(rows, training, np.flatnonzero((times >= first) & (ends < second)), test)


def make_parts(rows: Rows, *parts: Any) -> Parts:
    """Returns the rows for training, validation and testing, or raises a PerceiversError if a part has none."""
    training, validation, test = parts
    for name, part in (("train on", training), ("validate on", validation)):
        if not len(part):
            raise PerceiversError(
                f"{rows.table.name} has no rows to {name}: hold out another part of its {len(rows)} rows."
            )
    found = [rows.subset([int(row) for row in part]) for part in (training, validation, test)]
    return Parts(found[0], found[1], found[2] if len(test) else None, None)


def count_held_out(part: float | str | None, total: int) -> int:
    """Returns the number of rows or groups of a fraction."""
    return 0 if part is None else max(1, round(float(part) * total))


def parse_boundary(part: float | str | None) -> float:
    """Returns a fraction as it is, and a time in seconds from 1970."""
    if part is None or not isinstance(part, str):
        return part or 0.0
    try:
        number = parse_number(part)
        return Date().learn([part], Path()).to_seconds(part) if number is None else number
    except PerceiversError as error:
        raise PerceiversError(f"data.validation or data.test: {error}.") from error


def all_rows(table: Table, root: Path) -> Rows:
    """Returns all rows of a table."""
    return Rows(table, range(len(table.indices)), root)


def check_columns(table: Table) -> None:
    """Raises a PerceiversError for too many columns."""
    if len(table.columns) > MOST_COLUMNS:
        raise PerceiversError(
            f"{table.name} has {len(table.columns):,} columns, more than {MOST_COLUMNS:,}: leave some out, or put "
            f"numbers that belong together into one column, as a list."
        )


def open_tables(path: str) -> dict[str | None, Table]:
    """Returns the tables of a folder by their names, which are those of splits; or that of a file, named None."""
    if not path:
        raise PerceiversError("data.path is not given: it is the file of a table, or a folder of them.")
    if os.path.isdir(path):
        names = [name for split in SPLITS.values() for name in split]
        files = {name: split_files(Path(path), (name,)) for name in names}
        tables: dict[str | None, Table] = {name: open_table(found) for name, found in files.items() if found}
        if not tables:
            raise PerceiversError(f"{path} has no tables called train, validation or test ({', '.join(SUFFIXES)}).")
        return tables
    if not os.path.exists(path):
        raise PerceiversError(f"{path} does not exist: give the file of a table.")
    return {None: open_table([Path(path)])}


def open_evaluation(path: str, root: str | None, split: str | None) -> tuple[Rows, Part]:
    """Returns the rows to evaluate or predict: of a table, or of the split of a folder, see `choose_splits`."""
    tables = open_tables(path)
    names = [name for name in tables if name is not None]
    chosen = choose_splits(names, split, path)
    name, table = (chosen[0][0], tables[chosen[0][1]]) if chosen else (None, next(iter(tables.values())))
    rows = all_rows(table, open_root(path, root))
    return rows, Part("row", len(rows), sum(len(table.indices) for table in tables.values()), name)


def open_table(paths: list[Path]) -> Table:
    """Reads a table, as `read_table` does; of large parquet files, rows are read when they are needed."""
    if paths[0].suffix.lower() != ".parquet":
        return read_table(paths)
    if sum(path.stat().st_size for path in paths) < LARGEST_PARQUET:
        dataset = open_parquet(*paths)
    else:
        from datasets import Dataset

        try:
            dataset = Dataset.from_parquet([str(path) for path in paths])  # on the disk, mapped into memory
        except Exception as error:  # the library raises many kinds
            raise PerceiversError(f"{paths[0]} cannot be read as parquet: {describe(error)}") from error
    if not len(dataset):
        raise PerceiversError(f"{paths[0]} has no rows.")
    columns = {name: ArrowColumn(dataset, name) for name in dataset.column_names}
    return Table(str(paths[0]), columns, "row", range(len(dataset)))  # type: ignore[arg-type]


class ArrowColumn(Sequence[Any]):
    """A column of a data set of Hugging Face, whose cells are read when they are needed, with names for classes."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.cells = dataset.data.column(name)
        self.names: list[str] | None = getattr(dataset.features[name], "names", None)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        cell = self.cells[index].as_py()
        if self.names is None or cell is None:
            return cell
        return self.names[cell] if 0 <= cell < len(self.names) else None


def of_frame(frame: Any, name: str = "the frame") -> Table:
    """Returns a pandas DataFrame as a table."""
    columns: dict[str, list[Any]] = {}
    for place, column in enumerate(frame.columns):
        if str(column) in columns:
            raise PerceiversError(f"{name} has the column {quote(str(column))} twice: rename one.")
        series = frame.iloc[:, place]
        columns[str(column)] = [
            None if gone else cell for cell, gone in zip(series.tolist(), series.isna(), strict=True)
        ]
    return Table(name, columns, "row", range(len(frame)))
