"""Explains a model of a table: what columns are worth, where attention goes, and which rows are wrong.

Shape suffixes: B batch, H heads, N latents, M elements of all inputs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.data.splits import Part
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.inference import check_folder, get_device
from perceivers.model.intermediates import record_attention
from perceivers.tables.columns import Category, Number
from perceivers.tables.columns.number import parse_number
from perceivers.tables.evaluation import open_labelled
from perceivers.tables.model import TableModel, encode_rows
from perceivers.tables.predict import compute_answers, move_batch
from perceivers.tables.rows import Rows, TableSamples
from perceivers.tables.training import RowLearner

BATCH = 256

MOST_ROWS = 10_000
"""Most rows that are measured, at equal distances in the table."""

LEAST_ROWS = 5
"""Least rows of a group whose errors are shown."""

MOST_GROUPS = 12
"""Most groups of a column, those with the largest number of rows."""

Metrics = dict[str, dict[str, float]]
"""The metrics of each column that is predicted, by name."""


@dataclass(frozen=True)
class RowView:
    """One row, for the report.

    Attributes:
        row: its index.
        loss: its loss.
        shares: the fraction of the attention that each input has.
        weights: by input, the weights of its elements [M of it], which sum to 1 over all inputs.
        answers: by output, the answer of the model, for one row.
    """

    row: int
    loss: float
    shares: dict[str, float]
    weights: dict[str, Tensor]
    answers: dict[str, Tensor]


@dataclass(frozen=True)
class Explanation:
    """What the report of a model shows.

    Attributes:
        part: the rows that were measured.
        metrics: of all rows.
        worth: the metrics of all rows with one input masked, by its name.
        groups: by input, and by its value or range of values: the number of rows, and their metrics.
        views: single rows, from the smallest loss to the largest.
        losses: the loss of each row.
        answers: by output, the answers for all rows, as `Column.point` returns them, and their targets.
    """

    part: Part
    metrics: Metrics
    worth: dict[str, Metrics]
    groups: dict[str, dict[str, tuple[int, Metrics]]]
    views: list[RowView]
    losses: np.ndarray[Any, Any]
    answers: dict[str, tuple[Tensor, Tensor]]


def explain_table(
    model: TableModel,
    data: str,
    out: Path,
    split: str | None = None,
    root: str | None = None,
    rows: int = 8,
    group: Sequence[str] = (),
) -> Explanation:
    """Writes the report of a model as one HTML file, and returns what it shows.

    Args:
        model: the model, in evaluation mode.
        data: a table with the columns to predict.
        out: the file to write.
        split: "train", "val" or "test" of a folder of tables.
        root: folder that the paths in cells start from.
        rows: number of rows that are shown one by one, evenly from the best to the worst.
        group: inputs by whose values errors are shown; by default all numbers and categories.

    Raises:
        PerceiversError: the table cannot be read, the file cannot be written, or there is no such input.
    """
    from perceivers.tables.report import write_report

    check_folder(out)
    for name in group:
        if name not in model.input_columns:
            raise PerceiversError(f"--group: the model has no input {quote(name)}: {did_you_mean(name, model.inputs)}")
    found, part = open_labelled(model, data, split, root)
    if len(found) > MOST_ROWS:
        found = found.subset(np.linspace(0, len(found) - 1, MOST_ROWS).astype(int).tolist())
        part = replace(part, count=MOST_ROWS)
    explanation = explain(model, found, part, rows, group)
    write_report(out, model, found, explanation)
    return explanation


@torch.inference_mode()
def explain(model: TableModel, rows: Rows, part: Part, views: int, group: Sequence[str] = ()) -> Explanation:
    """Computes what the report shows, see `explain_table`."""
    metrics, losses, answers = measure_rows(model, rows)
    worth = {name: measure_rows(model, rows, masked=name)[0] for name in model.input_columns}
    names = group or [name for name, column in model.input_columns.items() if isinstance(column, Number | Category)]
    groups = {name: measure_groups(model, rows, name, answers) for name in names}
    order = np.argsort(losses, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(views, len(order))).round().astype(int)]
    shown = [view_row(model, rows, int(row), float(losses[row])) for row in chosen]
    return Explanation(part, metrics, worth, groups, shown, losses, answers)


def measure_rows(
    model: TableModel, rows: Rows, masked: str | None = None
) -> tuple[Metrics, np.ndarray[Any, Any], dict[str, tuple[Tensor, Tensor]]]:
    """Returns metrics, the loss of each row, and answers and targets, with an input masked in all rows if one is named.

    Raises:
        PerceiversError: a row cannot be read.
    """
    learner = RowLearner(model).to(get_device(model)).eval()
    samples = TableSamples(rows, model.input_columns, model.output_columns)
    losses = list[Tensor]()
    answers: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in model.output_columns}
    for batch in samples.loader(BATCH):
        for problem in batch["problems"]:
            raise PerceiversError(problem)
        batch = move_batch(batch, get_device(model))
        if masked is not None:
            batch["hidden"][masked] = torch.ones_like(batch["hidden"][masked])
        predicted = model.decode(encode_rows(model, batch))
        total_B = torch.zeros(len(batch["row"]), device=get_device(model))
        for name, column in model.output_columns.items():
            known_B, target = batch["known"][name], batch["targets"][name]
            total_B += torch.where(known_B, column.loss(predicted[name], target), 0)
            guess, truth = column.point(column.answer(predicted[name])), column.truth(target)
            if guess.dim() < 3:  # pictures of all rows would need much memory
                answers[name].append((guess[known_B].cpu(), truth[known_B].cpu()))
        losses.append(total_B.cpu())
        learner.metrics.update(predicted, batch, total_B.mean())
    found = {name: {key: float(v) for key, v in values.items()} for name, values in learner.metrics.by_name().items()}
    pairs = {
        name: (torch.cat([guess for guess, _ in parts]), torch.cat([truth for _, truth in parts]))
        for name, parts in answers.items()
        if parts
    }
    return found, torch.cat(losses).numpy(), pairs


def measure_groups(
    model: TableModel, rows: Rows, name: str, answers: Mapping[str, tuple[Tensor, Tensor]]
) -> dict[str, tuple[int, Metrics]]:
    """Returns the number of rows and the metrics of each value of an input; of numbers, of each quarter of them."""
    values = [rows.read(name, model.input_columns[name], row) for row in range(len(rows))]
    labels = label_quarters(values) if isinstance(model.input_columns[name], Number) else label_cells(rows, name)
    counts = {label: labels.count(label) for label in dict.fromkeys(labels)}
    if isinstance(model.input_columns[name], Number):
        counts = dict(sorted(counts.items(), key=lambda item: parse_number(item[0].split(" to ")[0]) or 0.0))
    else:
        counts = dict(sorted(counts.items(), key=lambda item: -item[1])[:MOST_GROUPS])
    found = dict[str, tuple[int, Metrics]]()
    for label, count in counts.items():
        if count < LEAST_ROWS:
            continue
        metrics: Metrics = {}
        for output, (guess, truth) in answers.items():
            known = [row for row in range(len(rows)) if rows.cell(output, row) is not None]
            mine = torch.tensor([labels[row] == label for row in known])
            if mine.any():
                metrics[output] = measure(model.output_columns[output].metrics(), guess[mine], truth[mine])
        found[label] = (count, metrics)
    return found


def measure(metrics: Mapping[str, Any], guess: Tensor, truth: Tensor) -> dict[str, float]:
    """Returns metrics of answers."""
    for metric in metrics.values():
        metric.update(guess, truth)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def label_cells(rows: Rows, name: str) -> list[str]:
    """Returns the cells of a column as labels."""
    cells = (rows.cell(name, row) for row in range(len(rows)))
    return ["missing" if cell is None else str(cell) for cell in cells]


def label_quarters(values: Sequence[float | None]) -> list[str]:
    """Returns the range of the quarter of all numbers that each of them is in."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return ["missing"] * len(values)
    edges = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    labels = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    place = np.clip(np.searchsorted(edges, known, side="left") - 1, 0, len(labels) - 1)
    names = iter(labels[index] for index in place)
    return ["missing" if value is None else next(names) for value in values]


def view_row(model: TableModel, rows: Rows, row: int, loss: float) -> RowView:
    """Returns the attention to a row, and its answers.

    The attention is that of the encoder's cross-attention, averaged over heads and latents.
    """
    samples = TableSamples(rows.subset([row]), model.input_columns, model.output_columns)
    batch = move_batch(next(iter(samples.loader(1))), get_device(model))
    with record_attention(model.encoder) as maps:
        answers, _ = compute_answers(model, batch)
    weight_M = maps["cross_attentions.0.attention"][0].float().mean((0, 1, 2)).cpu()
    counts = {name: adapter(batch["inputs"][name]).x_BMC.shape[1] for name, adapter in model.inputs.items()}
    weights = dict(zip(counts, weight_M.split(list(counts.values())), strict=True))
    shares = {name: float(weight.sum()) for name, weight in weights.items()}
    return RowView(row, loss, shares, weights, {name: answer.cpu() for name, answer in answers.items()})
