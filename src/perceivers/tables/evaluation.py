"""Evaluation of models of tables."""

from dataclasses import replace

from perceivers.data.splits import Part
from perceivers.errors import PerceiversError, quote
from perceivers.files import warn
from perceivers.tables.data import all_rows, open_evaluation
from perceivers.tables.model import TableModel
from perceivers.tables.rows import Rows, TableSamples, drop_unknown_targets
from perceivers.tables.training import RowLearner
from perceivers.training import learner


def evaluate_table(
    model: TableModel, data: str, split: str | None = None, root: str | None = None, batch_size: int = 256
) -> tuple[dict[str, float], Part]:
    """Returns the metrics of a model on a table, and the part of the table that they are of.

    Raises:
        PerceiversError: the table cannot be read, or has no column that the model predicts.
    """
    rows, part = open_labeled(model, data, split, root)
    return evaluate_rows(model, rows, batch_size), part


def open_labeled(model: TableModel, data: str, split: str | None, root: str | None) -> tuple[Rows, Part]:
    """Opens a table with the columns that a model predicts; of series, all windows."""
    rows, part = open_evaluation(data, root, split)
    if model.window is not None:
        rows = all_rows(model.window.open(rows.table).cut(), rows.root)
        return rows, Part("window", len(rows), None, part.split)
    for name in model.output_columns:
        if name not in rows.table.columns:
            raise PerceiversError(f"{rows.table.name} has no column {quote(name)}, which the model predicts.")
    missing = [name for name in model.input_columns if name not in rows.table.columns]
    if missing:
        warn(f"Columns that {rows.table.name} does not have are masked: {', '.join(map(quote, missing))}.")
    known = drop_unknown_targets(rows, model.output_columns)
    return known, part if known is rows else replace(part, count=len(known))


def evaluate_rows(model: TableModel, rows: Rows, batch_size: int = 256) -> dict[str, float]:
    """Returns the metrics of a model on rows."""
    samples = TableSamples(rows, model.input_columns, model.output_columns)
    return learner.evaluate(RowLearner(model), samples, batch_size)
