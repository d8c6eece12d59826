"""Serves models of tables. Shape suffixes: B batch, K categories."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, create_model
from torch import nn

from perceivers.data.loader import SampleIndex
from perceivers.data.tables import Table, format_label
from perceivers.errors import PerceiversError, quote
from perceivers.inference import check_answers, get_device, sort_classes
from perceivers.serving.service import ClassProbability, Message, Service, file_type, list_classes
from perceivers.tables.columns import (
    Categories,
    Category,
    Column,
    Date,
    Image,
    MaskedText,
    Number,
    Series,
    Sound,
    Text,
    Video,
)
from perceivers.tables.data import all_rows
from perceivers.tables.model import TableModel
from perceivers.tables.predict import compute_answers, move_batch, write_answers
from perceivers.tables.rows import Rows, TableSamples

Label = Annotated[str, BeforeValidator(lambda cell: format_label(cell) if isinstance(cell, int | float) else cell)]
"""A category, which may be a number in JSON."""

CELLS: dict[type[Column], Any] = {
    Number: float,
    Category: Label,
    Categories: list[Label],
    Text: str,
    MaskedText: str,
    Date: str,
    Image: file_type("image/*"),
    Sound: file_type("audio/*"),
    Video: file_type("video/*"),
    Series: list[float],
}
"""The types of cells in requests. Files are in the request: a path would name a file of the server."""


class TableAnswer(Message):
    """The predictions for a row."""

    predictions: dict[str, Any] = Field(description="as `perceivers predict` writes them")
    classes: dict[str, list[ClassProbability]] = Field(description="the probabilities of the categories of each column")


class TableService(Service):
    """A model of a table: a request is a row, of which cells may be missing."""

    task, title = "table", "Predicts columns of a table"
    answer = TableAnswer

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return isinstance(model, TableModel)

    def __init__(self, model: TableModel, source: str | Path) -> None:
        if model.window is not None:
            raise PerceiversError(f"{source} predicts series from a whole table: use perceivers predict.")
        self.model = model
        self.names = {f"column_{number}": name for number, name in enumerate(model.input_columns)}
        cells = {key: describe_cell(name, model.input_columns[name]) for key, name in self.names.items()}
        self.request = create_model("TableRequest", __base__=Message, __doc__="A row of the table.", **cells)

    def read(self, request: Message) -> dict[str, Any]:
        """Returns the sample of a row, see `TableSamples`."""
        cells = {name: [cell] for key, name in self.names.items() if (cell := getattr(request, key)) is not None}
        if not cells:
            raise PerceiversError(f"the row is empty: give one of its columns, {', '.join(self.names.values())}.")
        sample: dict[str, Any] = self.open(cells, 1)[SampleIndex(0, 0)]
        if "problem" in sample:
            raise PerceiversError(sample["problem"])
        return sample

    def open(self, cells: Mapping[str, list[Any]], count: int) -> TableSamples:
        """Returns rows as samples."""
        return TableSamples(
            open_rows(cells, count), self.model.input_columns, self.model.output_columns, has_targets=False
        )

    @torch.inference_mode()
    def compute(self, items: Sequence[dict[str, Any]]) -> list[TableAnswer]:
        batch = self.open({}, len(items)).collate(list(items))
        answers, _ = compute_answers(self.model, move_batch(batch, get_device(self.model)))
        check_answers(answers)
        classes: list[dict[str, list[ClassProbability]]] = [{} for _ in items]
        for name, column in self.model.output_columns.items():
            if isinstance(column, Category):
                for found, row in zip(classes, sort_classes(answers[name], column.names), strict=True):
                    found[name] = list_classes(row)
        written = write_answers(self.model, open_rows({}, len(items)), list(range(len(items))), answers)
        return [TableAnswer(predictions=row, classes=own) for row, own in zip(written, classes, strict=True)]

    def example(self) -> Message | None:
        columns = self.model.input_columns.items()
        cells: dict[str, Any] = {name: float(f"{c.blank():.4g}") for name, c in columns if isinstance(c, Number)}
        cells |= {name: column.names[0] for name, column in columns if isinstance(column, Category) and column.names}
        return self.request(**cells) if cells else None


def open_rows(cells: Mapping[str, list[Any]], count: int) -> Rows:
    """Returns the rows of requests."""
    return all_rows(Table("the request", dict(cells), "row", range(count)), Path())


def describe_cell(name: str, column: Column) -> Any:
    """Returns type and field of the cells of a column; raises a PerceiversError for a type that cannot be served."""
    kind = next((cell for known, cell in CELLS.items() if isinstance(column, known)), None)
    if kind is None:
        raise PerceiversError(f"the column {quote(name)} is of type {column.kind!r}, which cannot be served.")
    names: Any = column.names if isinstance(column, Category | Categories) else []
    return kind | None, Field(
        default=None, alias=name, title=name, json_schema_extra={"names": names, "kind": column.kind}
    )
