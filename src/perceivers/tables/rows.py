"""The rows of a table of any columns: cells, of which some are missing, and where they are."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perceivers.data.loader import SampleIndex, Samples
from perceivers.data.tables import Table
from perceivers.errors import PerceiversError, quote
from perceivers.files import warn
from perceivers.tables.columns import Column

MISSING = frozenset(("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null", "none", "nil", "?", "-", "--"))
"""Texts in any case of letters that stand for a missing cell."""

CACHE_BYTES = 2**30
"""Bytes of values that are kept in memory, instead of being read in each epoch."""


def is_missing(cell: Any) -> bool:
    """Returns whether a cell has no value: None, NaN, blank, or a text of `MISSING`."""
    if isinstance(cell, str):
        return cell.strip().lower() in MISSING
    return cell is None or (isinstance(cell, float | np.floating | Decimal) and bool(cell != cell))


@dataclass(frozen=True)
class Rows:
    """Some rows of a table.

    Attributes:
        table: the table.
        indices: the rows of it.
        root: folder that the paths in cells start from.
    """

    table: Table
    indices: Sequence[int]
    root: Path

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, rows: Sequence[int]) -> "Rows":
        """Returns some of the rows."""
        return replace(self, indices=[self.indices[row] for row in rows])

    def cell(self, name: str, row: int) -> Any:
        """Returns a cell; None if it is missing, or the table does not have the column."""
        column = self.table.columns.get(name)
        cell = None if column is None else column[self.indices[row]]
        return None if is_missing(cell) else cell

    def cells(self, name: str) -> Iterator[Any]:
        """Yields the cells of a column that are not missing."""
        return (cell for row in range(len(self)) if (cell := self.cell(name, row)) is not None)

    def describe(self, name: str, row: int) -> str:
        """Returns the location of a cell for a message."""
        return f"{self.table.location(self.indices[row])}, column {quote(name)}"

    def read(self, name: str, column: Column, row: int) -> Any:
        """Returns the value of a cell, None if it is missing; an error names the cell."""
        cell = self.cell(name, row)
        try:
            return None if cell is None else column.read(cell, self.root)
        except PerceiversError as error:
            raise PerceiversError(f"{self.describe(name, row)}: {str(error).removesuffix('.')}.") from error

    def learn(self, name: str, column: Column) -> Column:
        """Returns a column with what it learns of its cells; an error names the first cell that cannot be read."""
        cells = Cells(self, name)
        try:
            return column.learn(cells, self.root)
        except PerceiversError as error:
            is_of_all = cells.row is None  # not of a single cell
            where = f"column {quote(name)} of {self.table.name}" if is_of_all else self.describe(name, cells.row or 0)
            raise PerceiversError(f"{where}: {str(error).removesuffix('.')}.") from error


class Cells(Iterable[Any]):
    """The cells of a column that are not missing, to iterate over as often as needed.

    Attributes:
        row: the row of the cell that was read last; None before the first cell and after the last one.
    """

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows, self.name = rows, name
        self.row: int | None = None

    def __iter__(self) -> Iterator[Any]:
        for row in range(len(self.rows)):
            if (cell := self.rows.cell(self.name, row)) is not None:
                self.row = row
                yield cell
        self.row = None


class TableSamples(Samples):
    """The rows of a table as samples of the columns of a model.

    A sample has the values of "inputs" and "targets", None for missing ones. A batch has:
        inputs: by name, what the input adapters take.
        hidden: by name, the rows [B] whose cell is missing, or hidden at random.
        targets: by name, collated values.
        known: by name, the rows [B] that have a target.
        row: the index of each row [B].

    Args:
        rows: the rows.
        inputs: columns to read, by name.
        outputs: columns to predict, by name; a continued one is an input, too.
        hide: in training, the fraction of cells that are hidden at random; None for an evaluation.
        has_targets: whether the rows have targets.
    """

    def __init__(
        self,
        rows: Rows,
        inputs: Mapping[str, Column],
        outputs: Mapping[str, Column],
        hide: float | None = None,
        has_targets: bool = True,
    ) -> None:
        self.rows, self.inputs, self.outputs, self.hide, self.has_targets = rows, inputs, outputs, hide, has_targets
        self.is_aligned = any(column.is_dense for column in outputs.values())
        self.cache, self.free_bytes = dict[int, dict[str, Any]](), CACHE_BYTES

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> dict[str, Any]:
        """Returns the values of all columns of a row, from memory if they were read before."""
        if row in self.cache:
            return self.cache[row]
        columns = {**self.inputs, **(self.outputs if self.has_targets else {})}
        values = {name: self.rows.read(name, column, row) for name, column in columns.items()}
        if self.has_targets:
            for name, column in self.outputs.items():
                self.check_target(name, column, row)
        size = sum(value.nbytes if isinstance(value, torch.Tensor) else 64 for value in values.values())
        if size <= self.free_bytes:
            self.cache[row] = values
            self.free_bytes -= size
        return values

    def check_target(self, name: str, column: Column, row: int) -> None:
        """Raises a PerceiversError for a target that a model cannot predict, such as an unknown category."""
        cell = self.rows.cell(name, row)
        try:
            if cell is not None:
                column.check_target(cell)
        except PerceiversError as error:
            raise PerceiversError(f"{self.rows.describe(name, row)}: {str(error).removesuffix('.')}.") from error

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        try:
            values = self.read(item.sample)
        except PerceiversError as error:
            return {"problem": str(error)}
        generator = torch.Generator().manual_seed(item.seed if self.hide is not None else item.sample)
        inputs, targets = dict[str, Any](), dict[str, Any]()
        for name, column in self.inputs.items():
            value = values[name]
            if name in self.outputs and self.has_targets:
                if value is not None:
                    value, targets[name] = column.hide(value, generator)
            elif self.hide is not None and value is not None and not self.is_aligned:
                value = column.augment(value, generator)
            inputs[name] = value
        for name in self.outputs if self.has_targets else ():
            targets.setdefault(name, values[name])
        if self.hide:  # not of a continued column, which hides parts of its own
            drawn = torch.rand(len(inputs), generator=generator).tolist()
            inputs = {
                name: None if value < self.hide and name not in self.outputs else inputs[name]
                for name, value in zip(inputs, drawn, strict=True)
            }
        return {"inputs": inputs, "targets": targets, "row": item.sample}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        problems = [sample["problem"] for sample in samples if "problem" in sample]
        good = [sample for sample in samples if "problem" not in sample]
        if not good:
            return {"problems": problems}
        batch: dict[str, Any] = {"problems": problems, "row": torch.tensor([sample["row"] for sample in good])}
        for part, missing, columns in (("inputs", "hidden", self.inputs), ("targets", "known", self.outputs)):
            is_target = part == "targets"
            if is_target and not self.has_targets:
                break
            batch[part], batch[missing] = {}, {}
            for name, column in columns.items():
                values = [sample[part][name] for sample in good]
                is_none = torch.tensor([value is None for value in values])
                batch[part][name] = column.collate([column.blank(is_target) if v is None else v for v in values])
                batch[missing][name] = is_none if part == "inputs" else ~is_none
        return batch


def drop_unknown_targets(rows: Rows, outputs: Mapping[str, Column]) -> Rows:
    """Returns the rows whose targets a model can predict, and prints how many have, for example, an unknown category.

    Raises:
        PerceiversError: there are none.
    """
    samples, unknown, kept = TableSamples(rows, {}, outputs), list[str](), list[int]()
    for row in range(len(rows)):
        try:
            for name, column in outputs.items():
                samples.check_target(name, column, row)
            kept.append(row)
        except PerceiversError as error:
            unknown.append(str(error))
    if not unknown:
        return rows
    if not kept:
        raise PerceiversError(unknown[0])
    warn(f"Left out of {rows.table.name}: {len(unknown)} of {len(rows)} rows, such as {unknown[0]}")
    return rows.subset(kept)


def open_root(path: str, root: str | None) -> Path:
    """Returns the folder that the paths in the cells of a table start from: by default that of the table."""
    if root is not None:
        if not os.path.isdir(root):
            raise PerceiversError(f"data.root = {root} is not a folder: give the one that paths in cells start from.")
        return Path(root)
    return Path(path) if os.path.isdir(path) else Path(path).parent
