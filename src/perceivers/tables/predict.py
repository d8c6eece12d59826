"""Predicts columns of tables: `perceivers predict`, and `TableModel.predict`. Shape suffixes: B batch."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from perceivers.checkpoints.load import load_model
from perceivers.data.splits import Part
from perceivers.data.tables import Table
from perceivers.errors import PerceiversError, quote
from perceivers.files import warn
from perceivers.inference import check_answers, get_device
from perceivers.model.device import check_dtype, choose_device, move_model
from perceivers.prediction import Inputs, Predictor
from perceivers.tables.columns import Column
from perceivers.tables.columns.number import Number
from perceivers.tables.data import all_rows, of_frame, open_evaluation
from perceivers.tables.model import TableModel, encode_rows
from perceivers.tables.rows import Rows, TableSamples
from perceivers.tables.windows import SCALE, SERIES, TIME

Root = Annotated[str | None, "folder that the paths in cells start from; by default that of the table"]


def load_table_model(model: TableModel | str | Path, device: str | None = None, dtype: str | None = None) -> TableModel:
    """Returns a model of a table in evaluation mode, see `load_for_inference`; or raises a PerceiversError."""
    check_dtype(dtype)
    loaded = model if isinstance(model, TableModel) else load_model(model)
    if not isinstance(loaded, TableModel):
        raise PerceiversError(f"{model} is not a model of a table: give one that `perceivers fit` trained on a table.")
    return move_model(loaded, device or (None if loaded is model else choose_device()), dtype)


def open_rows(model: TableModel, table: Table, root: Path) -> Rows:
    """Returns the rows to predict of a table, for series the last history of each; warns of columns that are masked."""
    if model.window is not None:
        return all_rows(model.window.open(table).cut(latest=True), root)
    missing = [name for name in model.input_columns if name not in table.columns]
    if len(missing) == len(model.input_columns):
        raise PerceiversError(f"{table.name} has none of the columns that the model reads: {', '.join(missing)}.")
    if missing:
        warn(f"Columns that {table.name} does not have are masked: {', '.join(map(quote, missing))}.")
    return all_rows(table, root)


def compute_answers(model: TableModel, batch: Mapping[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the answers of a batch of `TableSamples` by the name of the column, and the latents."""
    encoded = encode_rows(model, batch)
    predicted = model.decode(encoded)
    answers = {name: column.answer(predicted[name]) for name, column in model.output_columns.items()}
    for name, column in model.output_columns.items():
        if column.is_continued:
            answers[name] = column.complete(answers[name], batch["inputs"][name], batch["hidden"][name])
    return answers, encoded.latents


def write_answers(model: TableModel, rows: Rows, batch_rows: list[int], answers: Mapping[str, Tensor]) -> list[Any]:
    """Returns a dict of cells for each row: what the table has of the columns to predict, and the predictions."""
    written: list[dict[str, Any]] = [{} for _ in batch_rows]
    for name, column in model.output_columns.items():
        answer = answers[name].cpu()
        if model.window is not None:
            mean_B1, std_B1 = torch.tensor([rows.cell(SCALE, row) for row in batch_rows], dtype=answer.dtype).T[
                ..., None
            ]
            answer = answer * std_B1 + mean_B1
            for found, row in zip(written, batch_rows, strict=True):
                found[TIME] = rows.cell(TIME, row)
        elif name in rows.table.columns:
            for found, row in zip(written, batch_rows, strict=True):
                found[name] = keep_target(column, rows.cell(name, row), rows.root)
        fields = column.fields(name)
        for found, cells in zip(written, column.write(answer), strict=True):
            found |= zip(fields, cells, strict=True)
    return written


def keep_target(column: Column, cell: Any, root: Path) -> Any:
    """Returns what a table has of a column to predict, for the table of predictions."""
    if cell is None:
        return None
    if not isinstance(column, Number):
        return str(cell)
    try:
        return column.read(cell, root)
    except PerceiversError:
        return None


class TablePredictor(Predictor):
    """A model of a table: each row has the predictions, beside what the table has of the columns to predict."""

    batch_size = 256

    def __init__(
        self,
        model: TableModel | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        root: Root = None,
    ) -> None:
        self.model = load_table_model(model, device, dtype)
        self.root = root
        self.outputs = dict.fromkeys(self.model.output_columns)

    def open(self, data: str, split: str | None = None) -> Inputs:
        given, part = open_evaluation(data, self.root, split)
        self.rows_given = rows = open_rows(self.model, given.table, given.root)
        samples = TableSamples(rows, self.model.input_columns, self.model.output_columns, has_targets=False)
        names = [rows.table.indices[index] for index in rows.indices]
        unit = rows.table.unit
        if self.model.window is not None:
            return Inputs(
                samples, list(rows.table.columns[SERIES]), SERIES, Part(SERIES, len(rows), None), checksum(rows)
            )
        return Inputs(samples, names, unit, part, checksum(rows))

    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        inputs: Mapping[str, Any] = batch["inputs"]
        return inputs

    def compute(self, batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Tensor | None]:
        answers, latents = compute_answers(self.model, batch)
        return {"answers": answers, "row": batch["row"]}, latents

    @property
    def columns(self) -> dict[str, type]:
        found: dict[str, type] = {TIME: float} if self.model.window is not None else {}
        for name, column in self.model.output_columns.items():
            if self.model.window is None and name in self.rows_given.table.columns:
                found[name] = float if isinstance(column, Number) else str
            found |= column.fields(name)
        return found

    def rows(self, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        return write_answers(self.model, self.rows_given, outputs["row"].tolist(), outputs["answers"])


def checksum(rows: Rows) -> str:
    """Returns a checksum of the cells of rows."""
    digest = hashlib.sha256()
    for name, column in rows.table.columns.items():
        digest.update(repr(name).encode())
        for cell in column:
            digest.update(repr(cell).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def move_batch(batch: Any, device: torch.device) -> Any:
    """Returns a batch on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), batch)


@torch.inference_mode()
def predict_rows(model: TableModel, rows: Rows, batch_size: int = 256) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yields the rows of each batch and their answers; raises a PerceiversError for a row that cannot be read."""
    samples = TableSamples(rows, model.input_columns, model.output_columns, has_targets=False)
    for batch in samples.loader(batch_size):
        for problem in batch["problems"]:
            raise PerceiversError(problem)
        answers, _ = compute_answers(model, move_batch(batch, get_device(model)))
        check_answers(answers)
        yield batch["row"].tolist(), answers


def predict_frame(model: TableModel, frame: Any) -> Any:
    """Returns the predictions for a DataFrame as another one, see `TableModel.predict`."""
    import pandas as pd

    was_training = model.training
    model.eval()
    rows = open_rows(model, of_frame(frame), Path())
    found = list[dict[str, Any]]()
    for batch_rows, answers in predict_rows(model, rows):
        found += write_answers(model, rows, batch_rows, answers)
    model.train(was_training)
    index = list(rows.table.columns[SERIES]) if model.window is not None else frame.index
    return pd.DataFrame(found, index=index)
