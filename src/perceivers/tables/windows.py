"""Cuts long tables of series into windows: a history, and the future to predict. Shape suffixes: S steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from perceivers.checks import check_field
from perceivers.data.tables import Table
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import warn
from perceivers.model.config import Configurable
from perceivers.tables.columns.column import measure_scale
from perceivers.tables.columns.date import Date
from perceivers.tables.columns.number import parse_number
from perceivers.tables.rows import Rows, is_missing

HISTORY, FUTURE, SERIES, TIME, END, SCALE = "history", "future", "series", "time", "end", "scale"
"""The columns of a table of windows: both parts, the name of the series, the times of the future's first and last step,
and the mean and standard deviation by which both parts are scaled."""

LARGEST_DRIFT = 0.15
"""Fraction by which the time between two rows may differ from the usual one: that between months does by a tenth."""


class Window(Configurable):
    """The part of a series that an example has. Each series of a table is an example of its own.

    Args:
        history: number of steps that are read.
        horizon: number of steps after them that are predicted.
        time: the column with the times of the rows, which are a step apart.
        series: the columns of numbers to predict; learned: all columns of numbers.
        key: a column that names what the rows belong to, such as a shop, if the table has several series one below
            another.
        scales: mean and standard deviation of the training rows of each series, by which they are scaled; learned.
    """

    def __init__(
        self,
        history: int,
        horizon: int,
        time: str,
        series: Sequence[str] | None = None,
        key: str | None = None,
        scales: dict[str, Sequence[float]] | None = None,
    ) -> None:
        check_field("data.window.history", history, history >= 2, "at least 2")
        check_field("data.window.horizon", horizon, horizon >= 1, "at least 1")
        self.history, self.horizon, self.time, self.key = history, horizon, time, key
        self.series, self.scales = series, scales or {}

    def open(self, table: Table, boundary: float | None = None) -> "Series":
        """Reads the series of a table; those that are not scaled yet learn it from the rows before a time."""
        return Series.read(self, table, boundary)


@dataclass(frozen=True)
class Series:
    """The series of a table, in order of time.

    Attributes:
        window: with the scales of all of them.
        table: the table that they are from.
        values: the scaled numbers of each series, NaN for missing ones.
        times: seconds from 1970 of each row, by series.
        rows: row of the table of each step, by series.
        step: seconds between rows.
    """

    window: Window
    table: Table
    values: dict[str, np.ndarray[Any, Any]]
    times: dict[str, np.ndarray[Any, Any]]
    rows: dict[str, np.ndarray[Any, Any]]
    step: float

    @classmethod
    def read(cls, window: Window, table: Table, boundary: float | None) -> "Series":
        """Reads the series of a table; raises a PerceiversError for columns, times or numbers that are wrong."""
        names = window.series or [name for name in table.columns if is_numeric(table, name, window)]
        for name in [window.time, *names, *([window.key] if window.key else [])]:
            if name not in table.columns:
                raise PerceiversError(f"{table.name} has no column {quote(name)}: {did_you_mean(name, table.columns)}")
        if not names:
            raise PerceiversError(
                f"{table.name} has no column of numbers: name those to predict in data.window.series."
            )
        seconds = read_times(table, window.time)
        keys = [""] * len(seconds) if window.key is None else [str(key) for key in table.columns[window.key]]
        order = np.lexsort((seconds, np.unique(keys, return_inverse=True)[1]))
        if window.key is None and (np.diff(seconds) < 0).any():
            warn(f"{table.name} is not in order of {window.time}: its rows are sorted.")
        numbers = {name: read_numbers(table, name)[order] for name in names}
        sorted_keys, seconds = np.array(keys)[order], seconds[order]
        values, times, rows = {}, {}, {}
        for key in dict.fromkeys(sorted_keys.tolist()):
            mine = sorted_keys == key
            if (np.diff(seconds[mine]) == 0).any():
                which = f" of {key}" if key else ""
                raise PerceiversError(
                    f"{table.name} has two rows{which} of the same {window.time}: keep one, or name data.window.key."
                )
            for name in names:
                label = f"{key} {name}".strip() if len(names) > 1 or not key else key
                values[label], times[label], rows[label] = numbers[name][mine], seconds[mine], order[mine]
        gaps = np.concatenate([np.diff(time) for time in times.values()])
        if not len(gaps):
            raise PerceiversError(f"{table.name} has no series of more than one row.")
        step = float(np.median(gaps))
        scales = dict(window.scales)
        for label, series in values.items():
            if label not in scales:
                known = series[times[label] < boundary] if boundary is not None else series
                known = known[np.isfinite(known)]
                if not len(known):
                    raise PerceiversError(f"the series {quote(label)} of {table.name} has no number to train on.")
                scales[label] = list(measure_scale(known))
            mean, std = scales[label]
            values[label] = (series - mean) / std
        learned = Window(window.history, window.horizon, window.time, names, window.key, scales)
        return cls(learned, table, values, times, rows, step)

    def cut(self, latest: bool = False) -> Table:
        """Returns the table of all windows without a gap or a missing number, see `HISTORY`.

        Args:
            latest: only the last history of each series, whose future is not known.
        """
        history, horizon = self.window.history, 0 if latest else self.window.horizon
        names, starts, left_out = list[str](), list[int](), 0
        for name, series in self.values.items():
            count = len(series) - history - horizon + 1
            if count < 1:
                continue
            is_number = np.isfinite(series)
            is_bad = ~is_number
            is_bad[1:] |= np.abs(np.diff(self.times[name]) - self.step) > LARGEST_DRIFT * self.step
            bad = np.concatenate([[0], is_bad.cumsum()])
            # a gap before the first step of a window does no harm
            good = (bad[history + horizon :] - bad[1 : count + 1] == 0) & is_number[:count]
            found = np.flatnonzero(good)
            found = found[found == count - 1] if latest else found
            left_out += (1 if latest else count) - len(found)
            names += [name] * len(found)
            starts += found.tolist()
        if left_out:
            warn(f"Left out of {self.table.name}: {left_out} windows with a gap or a missing number.")
        if not names:
            needed = f"{history} rows" if latest else f"{history} + {horizon} rows"
            raise PerceiversError(f"{self.table.name} has no series of {needed} without a gap or a missing number.")
        places = list(zip(names, starts, strict=True))
        columns: dict[str, Sequence[Any]] = {
            HISTORY: Cut(self.values, places, 0, history),
            SERIES: names,
            TIME: [self.time_of(name, start + history) for name, start in places],
            SCALE: [self.window.scales[name] for name in names],
        }
        if not latest:
            columns[FUTURE] = Cut(self.values, places, history, horizon)
            columns[END] = [self.time_of(name, start + history + horizon - 1) for name, start in places]
        last = [int(self.rows[name][start + history - 1]) for name, start in places]
        return Table(self.table.name, columns, self.table.unit, [self.table.indices[row] for row in last])  # type: ignore[arg-type]

    def time_of(self, name: str, index: int) -> float:
        """Returns the time of a step, which may be the first one after the last row."""
        times = self.times[name]
        return float(times[index]) if index < len(times) else float(times[-1]) + self.step


class Cut(Sequence[Any]):
    """A column of parts of series, which are cut when they are read."""

    def __init__(self, values: dict[str, np.ndarray[Any, Any]], places: list[tuple[str, int]], skip: int, count: int):
        self.values, self.places, self.part = values, places, slice(skip, skip + count)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        name, start = self.places[index]
        return self.values[name][start:][self.part]


def is_numeric(table: Table, name: str, window: Window) -> bool:
    """Returns whether a column may be a series: its first cells are numbers or missing."""
    if name in (window.time, window.key):
        return False
    some = [cell for cell in table.columns[name][:100] if not is_missing(cell)]
    return bool(some) and all(parse_number(cell) is not None for cell in some)


def read_times(table: Table, name: str) -> np.ndarray[Any, Any]:
    """Returns the times of all rows in seconds from 1970; a number is a time in steps."""
    rows = Rows(table, range(len(table.indices)), Path())
    cells = [rows.cell(name, row) for row in range(len(rows))]
    for row, cell in enumerate(cells):
        if cell is None:
            raise PerceiversError(f"{rows.describe(name, row)}: the time is missing: give it, or remove the row.")
    numbers = [parse_number(cell) for cell in cells]
    if all(number is not None for number in numbers):
        return np.array(numbers, dtype=np.float64)
    column: Any = rows.learn(name, Date())
    return np.array([column.to_seconds(cell) for cell in cells])


def read_numbers(table: Table, name: str) -> np.ndarray[Any, Any]:
    """Returns the numbers of a column, NaN for missing ones."""
    found = np.full(len(table.indices), np.nan)
    for row, cell in enumerate(table.columns[name]):
        if not is_missing(cell):
            number = parse_number(cell)
            if number is None:
                raise PerceiversError(f"{table.location(row)}, column {quote(name)}: {quote(cell)} is not a number.")
            found[row] = number
    return found
