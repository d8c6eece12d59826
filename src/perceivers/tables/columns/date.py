"""Dates and times. Shape suffixes: B batch, F features."""

import math
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from perceivers.adapters.array import ArrayInput
from perceivers.model.adapter import InputAdapter
from perceivers.tables.columns.column import Column, measure_scale

FORMATS = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y")
TIMES = ("", " %H:%M", " %H:%M:%S")


class Date(Column):
    """A date, with or without a time, as its place in the training data and in hour, day, week, month and year.

    Times with a zone are converted to UTC; those without one are taken as they are, and may not be mixed with others.

    Args:
        format: as in `datetime.strptime`; learned, if it is not ISO 8601.
        mean, std: of the training cells, in seconds; learned.
        has_zone: whether times have a zone; learned.
    """

    kind = "date"

    def __init__(
        self, format: str | None = None, mean: float = 0.0, std: float = 1.0, has_zone: bool | None = None
    ) -> None:
        self.format, self.mean, self.std, self.has_zone = format, mean, std, has_zone

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        column = self if self.format else self.change(format=find_format(cells))
        for cell in cells:
            column = column.change(has_zone=column.parse(cell).tzinfo is not None)
            break
        seconds = np.array([column.to_seconds(cell) for cell in cells])
        mean, std = measure_scale(seconds)
        return column.change(mean=mean, std=std)

    def parse(self, cell: Any) -> datetime:
        """Returns the time in a cell."""
        if isinstance(cell, datetime):
            return cell
        if isinstance(cell, date):
            return datetime(cell.year, cell.month, cell.day)
        try:
            text = str(cell).strip()
            return datetime.strptime(text, self.format) if self.format else datetime.fromisoformat(text)
        except ValueError as error:
            raise self.refuse(cell, f"a date of the form {self.format or '2026-01-31 23:59:59'}") from error

    def to_seconds(self, cell: Any) -> float:
        """Returns the seconds from 1970 of the time in a cell."""
        time = self.parse(cell)
        if self.has_zone is not None and self.has_zone != (time.tzinfo is not None):
            raise self.refuse(cell, f"a time {'with' if self.has_zone else 'without'} a zone, as others of the column")
        if not 2 <= time.year <= 9998:  # a zone may move it out of the range of Python's times
            raise self.refuse(cell, "a date from year 2 to 9998")
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()

    def read(self, cell: Any, root: Path) -> torch.Tensor:
        """Returns features [1, F]: the standardized time, and sines and cosines of its places in periods."""
        seconds = self.to_seconds(cell)
        time = datetime.fromtimestamp(seconds, UTC)
        places = [
            time.hour / 24 + time.minute / 1440,
            (time.weekday() + time.hour / 24) / 7,
            (time.day - 1) / 31,
            (time.timetuple().tm_yday - 1) / 366,
        ]
        waves = [wave(2 * math.pi * place) for place in places for wave in (math.sin, math.cos)]
        return torch.tensor([[max(-10.0, min(10.0, (seconds - self.mean) / self.std)), *waves]])

    def blank(self, is_target: bool = False) -> torch.Tensor:
        return torch.zeros(1, 9)

    def input_adapter(self, channels: int) -> InputAdapter:
        return ArrayInput(9, projection=channels)

    def draw(self, cell: Any, root: Path, weights: torch.Tensor | None = None) -> str:
        """Returns the date, with the time if it is not midnight."""
        return str(self.parse(cell)).removesuffix(" 00:00:00")


def find_format(cells: Iterable[Any]) -> str | None:
    """Returns the first format in which all cells are dates; None for ISO 8601, or if there is none."""
    texts = [str(cell).strip() for cell in cells]
    for format in (None, *(day + time for day in FORMATS for time in TIMES)):
        try:
            for text in texts:
                datetime.strptime(text, format) if format else datetime.fromisoformat(text)
            return format
        except ValueError:
            continue
    return None
