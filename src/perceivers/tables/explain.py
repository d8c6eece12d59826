"""Explains models of tables: what each column is worth, where attention goes, and which rows are wrong.

Shape suffixes: B batch, N latents, M elements of all inputs
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceivers.data.loader import SampleIndex
from perceivers.data.tables import format_label
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import warn
from perceivers.inference import check_folder, get_device
from perceivers.model.intermediates import record_attention
from perceivers.progress import track
from perceivers.tables.columns import Categories, Category, Column, Number, YesNo
from perceivers.tables.columns.category import split_cell
from perceivers.tables.columns.drawing import format_number, shorten
from perceivers.tables.columns.number import parse_number
from perceivers.tables.evaluation import open_labeled
from perceivers.tables.model import TableModel, encode_rows
from perceivers.tables.predict import compute_answers, move_batch
from perceivers.tables.rows import Rows, TableSamples
from perceivers.tables.training import RowLearner, TableMetrics
from perceivers.training import learner

BATCH = 256
"""Rows computed at a time."""

MOST_ROWS = 10_000
"""Most rows that are measured; of more, some at equal distances."""

MOST_VALUES = 30
"""Most values of a column whose rows are a group: the most frequent ones."""

LEAST_ROWS = 5
"""Least rows of a group that is measured."""

WAITING_BYTES = 2**26
"""Bytes of predictions that are kept until groups are measured with them."""

MISSING = "missing"
"""The group of the rows without a value."""


class Main(NamedTuple):
    """A figure by which a model is judged: its name, and whether a larger one is better."""

    name: str
    is_gain: bool


class Worth(NamedTuple):
    """The worth of an input: the metrics with it masked in all rows, and how much worse a main one is."""

    name: str
    metrics: dict[str, float]
    loss: float


class Group(NamedTuple):
    """Some rows, their metrics, and how many standard errors their mean loss is above that of all rows."""

    label: str
    rows: int
    metrics: dict[str, float]
    deviation: float


@dataclass(frozen=True)
class Case:
    """A single row.

    Attributes:
        row: the index of the row.
        loss: of all outputs.
        rank: place of the row by its loss from 0, the best.
        answers: of each output, a batch of one.
        weights: of the attention to each element of each input; the weights of all inputs sum to 1.
        missing: the inputs without a cell.
    """

    row: int
    loss: float
    rank: int
    answers: dict[str, Tensor]
    weights: dict[str, Tensor]
    missing: frozenset[str]

    def shares(self) -> dict[str, float]:
        """Returns the fraction of all attention that each input has."""
        return {name: float(weight_M.sum()) for name, weight_M in self.weights.items()}


@dataclass
class Outcomes:
    """The predictions and targets of a number or a category: a number, or the index of a category, of each row."""

    guesses: list[float] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """The measurements of a model on some rows.

    Attributes:
        model: the model.
        rows: the rows that were measured.
        total: number of rows of which they are some.
        mains: the main figures.
        metrics: of all rows.
        worth: by the name of a main figure, of each input, the one that is worth most first.
        outcomes: of outputs that are numbers or categories.
        cases: single rows, from the best to the worst.
        groups: by column, those that deviate most first.
    """

    model: TableModel
    rows: Rows
    total: int
    mains: list[Main]
    metrics: dict[str, float]
    worth: dict[str, list[Worth]]
    outcomes: dict[str, Outcomes]
    cases: list[Case]
    groups: dict[str, list[Group]]


def explain_table(
    model: TableModel,
    data: str,
    out: str | Path,
    split: str | None = None,
    root: str | None = None,
    rows: int = 8,
    group: Sequence[str] = (),
) -> Explanation:
    """Writes an HTML file that explains a model on a table.

    Args:
        model: the model, in evaluation mode.
        data, split, root: as in `evaluate_table`.
        out: the file.
        rows: number of rows that are shown one by one.
        group: columns by whose values errors are shown; by default those of categories and numbers.

    Raises:
        PerceiversError: the table cannot be read, lacks a column, or the file cannot be written.
    """
    from perceivers.tables.report import write_report

    check_folder(out)
    found, _ = open_labeled(model, data, split, root)
    explanation = explain_rows(model, found, rows, group)
    write_report(explanation, out)
    return explanation


@torch.inference_mode()
def explain_rows(model: TableModel, rows: Rows, count: int = 8, group: Sequence[str] = ()) -> Explanation:
    """Returns what is known of a model on rows, of which some are shown one by one."""
    total = len(rows)
    if total > MOST_ROWS:
        rows = rows.subset(np.linspace(0, total - 1, MOST_ROWS).round().astype(int).tolist())
    members = find_groups(model, rows, group)
    mains = find_mains(model)
    loss_R, metrics, outcomes, measured = measure_rows(model, rows, members)
    known = np.flatnonzero(np.isfinite(loss_R))
    if not len(known):
        names = ", ".join(map(quote, model.output_columns))
        raise PerceiversError(f"{rows.table.name} has no row with {names}: give one with what the model predicts.")
    order = known[loss_R[known].argsort(kind="stable")]
    places = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)).tolist()
    return Explanation(
        model=model,
        rows=rows,
        total=total,
        mains=mains,
        metrics=metrics,
        worth=measure_worth(model, rows, mains, metrics),
        outcomes=outcomes,
        cases=[show_case(model, rows, int(order[place]), float(loss_R[order[place]]), place) for place in places],
        groups=rank_groups(members, measured, loss_R),
    )


def find_mains(model: TableModel) -> list[Main]:
    """Returns the first metric of each output; the loss instead, if it is not known whether a larger one is better."""
    found = list[Main]()
    for output, column in model.output_columns.items():
        name, metric = next(iter(column.metrics().items()))
        prefix = f"{output}_" if len(model.output_columns) > 1 else ""
        gain = metric.higher_is_better
        found.append(Main("loss", False) if gain is None else Main(f"{prefix}{name}", gain))
    return list(dict.fromkeys(found))


class MaskedSamples(TableSamples):
    """The rows of a table with one input masked in all of them, as if its cells were missing.

    Attributes:
        masked: the input.
    """

    masked: str

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        sample = super().__getitem__(item)
        if "problem" not in sample and self.masked not in self.outputs:  # one that is continued keeps its length
            sample["inputs"][self.masked] = None
        return sample

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().collate(samples)
        if "hidden" in batch:
            batch["hidden"][self.masked] = torch.ones(len(batch["row"]), dtype=torch.bool)
        return batch


def measure_worth(
    model: TableModel, rows: Rows, mains: Sequence[Main], metrics: Mapping[str, float]
) -> dict[str, list[Worth]]:
    """Returns what each input is worth on rows with these metrics by each main figure, see `Explanation`."""
    samples = MaskedSamples(rows, model.input_columns, model.output_columns)
    masked = dict[str, dict[str, float]]()
    for name in track(model.input_columns, "inputs"):
        samples.masked = name
        masked[name] = learner.evaluate(RowLearner(model), samples, BATCH)
    found = dict[str, list[Worth]]()
    for main in mains:
        if main.name in metrics:  # else the table has no targets of the output
            sign = 1 if main.is_gain else -1
            worth = [Worth(n, values, sign * (metrics[main.name] - values[main.name])) for n, values in masked.items()]
            found[main.name] = sorted(worth, key=lambda worth: -worth.loss)
    return found


class GroupMetrics:
    """The metrics of groups of rows, of predictions that come in the order of the rows.

    Args:
        columns: the columns to predict.
        groups: the rows of each group, in order.
    """

    def __init__(self, columns: Mapping[str, Column], groups: Sequence[np.ndarray[Any, Any]]) -> None:
        self.columns, self.groups = columns, groups
        self.metrics = [TableMetrics(columns) for _ in groups]
        self.seen: list[dict[str, set[int]]] = [{name: set() for name in columns} for _ in groups]  # categories
        self.waiting, self.bytes, self.first = list[dict[str, tuple[Tensor, ...]]](), 0, 0

    def add(self, batch: dict[str, tuple[Tensor, ...]]) -> None:
        """Takes the guesses, the truths, and which of them are known, of the next rows of each column."""
        if self.waiting and shapes(batch) != shapes(self.waiting[0]):
            self.flush()
        self.waiting.append(batch)
        self.bytes += sum(tensor.nbytes for parts in batch.values() for tensor in parts)
        if self.bytes > WAITING_BYTES:
            self.flush()

    def flush(self) -> None:
        """Measures the rows that are waiting."""
        if not self.waiting:
            return
        joined = {
            name: [torch.cat(parts) for parts in zip(*(batch[name] for batch in self.waiting), strict=True)]
            for name in self.columns
        }
        count = len(next(iter(joined.values()))[0])
        for rows, metrics, seen in zip(self.groups, self.metrics, self.seen, strict=True):
            begin, end = np.searchsorted(rows, [self.first, self.first + count])
            mine = torch.from_numpy(rows[begin:end] - self.first)
            for (name, (guess, truth, known_B)), measures, total in zip(
                joined.items(), metrics.by_column, metrics.counts, strict=True
            ):
                index = mine[known_B[mine]]
                total.update(len(index))
                if isinstance(self.columns[name], Category):
                    seen[name].update(truth[index].tolist())
                for metric in measures.values() if len(index) else ():
                    metric.update(guess[index], truth[index])
        self.waiting, self.bytes, self.first = [], 0, self.first + count

    def compute(self) -> list[dict[str, float]]:
        """Returns the metrics of each group; of a single category, accuracy alone: others compare several."""
        self.flush()
        found = list[dict[str, float]]()
        for metrics, seen in zip(self.metrics, self.seen, strict=True):
            mine = dict[str, float]()
            for output, values in metrics.by_name().items():
                prefix = f"{output}_" if len(self.columns) > 1 else ""
                is_single = len(seen[output]) == 1
                mine |= {f"{prefix}{k}": float(v) for k, v in values.items() if k == "accuracy" or not is_single}
            found.append(mine)
        return found


def shapes(batch: Mapping[str, tuple[Tensor, ...]]) -> list[torch.Size]:
    """Returns the shapes of the rows of a batch."""
    return [tensor.shape[1:] for parts in batch.values() for tensor in parts]


def compute_batches(model: TableModel, rows: Rows) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yields batches of rows on the device of the model, and the predictions."""
    for batch in track(TableSamples(rows, model.input_columns, model.output_columns).loader(BATCH), "batches"):
        learner.check_complete(batch)
        batch = move_batch(batch, get_device(model))
        yield batch, model.decode(encode_rows(model, batch))


def measure_rows(
    model: TableModel, rows: Rows, members: Mapping[str, Mapping[str, np.ndarray[Any, Any]]]
) -> tuple[np.ndarray[Any, Any], dict[str, float], dict[str, Outcomes], list[dict[str, float]]]:
    """Returns the loss of each row, NaN without a target; the metrics of all; outcomes; and the metrics of groups."""
    columns = model.output_columns
    whole = RowLearner(model)
    whole.metrics.to(get_device(model))
    groups = GroupMetrics(columns, [found for values in members.values() for found in values.values()])
    outcomes = {name: Outcomes() for name, column in columns.items() if isinstance(column, Number | Category)}
    losses = list[Tensor]()
    for batch, predicted in compute_batches(model, rows):
        parts = whole.compute_losses(batch, predicted, dict.fromkeys(predicted))
        whole.metrics.update(predicted, batch, sum(parts.values()))
        total_B = torch.zeros(len(batch["row"]))
        any_B = torch.zeros(len(total_B), dtype=torch.bool)
        found = dict[str, tuple[Tensor, ...]]()
        for name, column in columns.items():
            target, known_B = batch["targets"][name], batch["known"][name].cpu()
            total_B += torch.where(known_B, column.loss(predicted[name], target).float().cpu(), 0)
            any_B |= known_B
            guess, truth = column.point(column.answer(predicted[name])).cpu(), column.truth(target).cpu()
            found[name] = (guess, truth, known_B)
            if name in outcomes:
                best = guess.argmax(-1) if isinstance(column, Category) else guess
                outcomes[name].guesses += best[known_B].tolist()
                outcomes[name].truths += truth[known_B].tolist()
        losses.append(torch.where(any_B, total_B, torch.nan))
        if members:
            groups.add(found)
    metrics = {name: float(value) for name, value in whole.metrics.compute().items()}
    if problem := learner.find_nan(metrics):
        raise PerceiversError(problem)
    return torch.cat(losses).double().numpy(), metrics, outcomes, groups.compute()


def show_case(model: TableModel, rows: Rows, row: int, loss: float, rank: int) -> Case:
    """Returns what is shown of a row."""
    samples = TableSamples(rows, model.input_columns, model.output_columns)
    batch = move_batch(samples.collate([samples[SampleIndex(row, 0)]]), get_device(model))
    with record_attention(model.encoder.cross_attentions) as maps:
        answers, _ = compute_answers(model, batch)
    weight_M = torch.cat([weight[0].float().flatten(0, 1) for found in maps.values() for weight in found]).mean(0).cpu()
    counts = [adapter(batch["inputs"][name]).x_BMC.shape[1] for name, adapter in model.inputs.items()]
    weights = dict(zip(model.inputs, weight_M.split(counts), strict=True))
    missing = frozenset(name for name, hidden_B in batch["hidden"].items() if hidden_B.any())
    return Case(row, loss, rank, {name: answer.cpu() for name, answer in answers.items()}, weights, missing)


def find_groups(model: TableModel, rows: Rows, names: Sequence[str] = ()) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    """Returns the rows of each value of columns, of numbers of each quartile; only values with several rows.

    Args:
        names: the columns; by default those of categories and numbers that the model reads or predicts.
    """
    columns = {**model.input_columns, **model.output_columns}
    for name in names:
        if name not in rows.table.columns:
            hint = did_you_mean(name, rows.table.columns)
            raise PerceiversError(f"--group: {rows.table.name} has no column {quote(name)}: {hint}")
    of_type = [name for name, column in columns.items() if isinstance(column, Category | Categories | Number)]
    found = dict[str, dict[str, np.ndarray[Any, Any]]]()
    for name in dict.fromkeys(names or [name for name in of_type if name in rows.table.columns]):
        values = read_values(rows, name, columns.get(name))
        large = {label: np.array(mine) for label, mine in values.items() if len(mine) >= LEAST_ROWS}
        if len(large) > MOST_VALUES:
            most = sorted(large, key=lambda label: -len(large[label]))[:MOST_VALUES]
            large = {label: mine for label, mine in large.items() if label in most}
        if any(label != MISSING for label in large) and any(len(mine) < len(rows) for mine in large.values()):
            found[name] = large
        elif names:
            warn(f"Column {quote(name)} of {rows.table.name} has no two values of {LEAST_ROWS} rows: it is left out.")
    return found


def read_values(rows: Rows, name: str, column: Column | None) -> dict[str, list[int]]:
    """Returns the rows of each value of a column, in order of the values."""
    cells = [rows.cell(name, row) for row in range(len(rows))]
    numbers = [parse_number(cell) for cell in cells]
    is_number = [number is not None for number, cell in zip(numbers, cells, strict=True) if cell is not None]
    values: dict[str, list[int]] = {}
    if isinstance(column, Number) or (column is None and all(is_number)):
        known = [number for number in numbers if number is not None]
        if len(set(known)) > 4:
            edges = np.unique(np.quantile(known, [0, 0.25, 0.5, 0.75, 1]))
            places = [None if n is None else max(0, int(np.searchsorted(edges, n)) - 1) for n in numbers]
            ends = [shorten(edge) for edge in edges.tolist()]
            labels = [f"{low} to {high}" for low, high in pairwise(ends)]
            values = {label: [] for label in labels}
            for row, place in enumerate(places):
                values.setdefault(MISSING if place is None else labels[place], []).append(row)
            return values
        values = {format_number(number): [] for number in sorted(set(known))}
        for row, number in enumerate(numbers):
            values.setdefault(MISSING if number is None else format_number(number), []).append(row)
        return values
    for row, cell in enumerate(cells):
        if cell is None:
            found = [MISSING]
        elif isinstance(column, Categories):
            found = split_cell(cell, column.separator)
        elif isinstance(column, YesNo):
            found = [column.names[column.read(cell, rows.root) - 1]]
        else:
            found = [format_label(cell)]
        for label in dict.fromkeys(found):
            values.setdefault(label, []).append(row)
    order = sorted(values, key=lambda label: (label == MISSING, label))
    return {label: values[label] for label in order}


def rank_groups(
    members: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
    measured: Sequence[dict[str, float]],
    loss_R: np.ndarray[Any, Any],
) -> dict[str, list[Group]]:
    """Returns the groups of each column with their metrics, the columns that deviate most first."""
    known = loss_R[np.isfinite(loss_R)]
    mean, std = known.mean(), known.std()
    metrics = iter(measured)
    found = dict[str, list[Group]]()
    for name, values in members.items():
        groups = list[Group]()
        for label, rows in values.items():
            mine, figures = loss_R[rows][np.isfinite(loss_R[rows])], next(metrics)
            if len(mine) >= LEAST_ROWS:
                error = std / len(mine) ** 0.5
                groups.append(Group(label, len(mine), figures, float((mine.mean() - mean) / error) if error else 0.0))
        if groups:
            found[name] = groups
    return dict(sorted(found.items(), key=lambda item: -max(abs(group.deviation) for group in item[1])))
