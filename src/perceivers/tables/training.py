"""Training of models of tables. Shape suffixes: B batch."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from perceivers.checkpoints.load import load_model
from perceivers.checks import Range, check_field
from perceivers.command import print_table
from perceivers.data.class_weights import ClassWeights, weigh_examples
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import warn
from perceivers.model.meta import check_memory
from perceivers.model.saving import atomic_write
from perceivers.tables import commands
from perceivers.tables.columns import Column, make_column
from perceivers.tables.columns.category import Category
from perceivers.tables.data import Parts, TableData
from perceivers.tables.fit import write_config
from perceivers.tables.model import TableModel, TableModelConfig, choose_size, encode_rows
from perceivers.tables.predict import TablePredictor
from perceivers.tables.rows import Rows, TableSamples, drop_unknown_targets
from perceivers.tables.simple import compare
from perceivers.training import learner
from perceivers.training.checkpoints import METRICS
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner, Monitor
from perceivers.training.loop import Training
from perceivers.training.optimization import Optimization
from perceivers.values import read_json

COMPARISON = "comparison.json"
"""The file of a run with the metrics of its model and of simple methods."""

UPDATES = 200
"""Updates of a run for up to 1,000 rows; more rows take more, in proportion to their number to the power of 0.65.

They are multiplied by `rate_effort`.
"""

FEW_ROWS = 2000
"""Rows below which training hides more cells."""

Weight = Annotated[float, Range(above=0)]


@dataclass(kw_only=True)
class TableExperiment(Experiment):
    """A training run that predicts columns of a table from others.

    Attributes:
        model: `size`, the numbers that it stands for, or `init`, a saved model of a table.
        data: the table.
        inputs: the columns to read: {name: type}, or {name: {type: ..., and its settings}}.
        outputs: the columns to predict, likewise; `weight` is that of its loss.
        trainer: as for other experiments; the number of rows decides the number of epochs, if nothing limits the run.
        class_weights: how often training draws the rows of a category of the first output: "balanced", all equally
            often; or {name: weight}; by default, every row once in an epoch.
        compare: whether simple methods are fitted and measured on the same rows.
    """

    decided_by_data = ("columns",)
    evaluate = staticmethod(commands.evaluate)
    predictor = TablePredictor

    model: TableModelConfig = field(default_factory=TableModelConfig)
    data: TableData = field(default_factory=TableData)
    optimization: Optimization = field(
        default_factory=lambda: Optimization(lr=2e-3, weight_decay=0.5, warmup_steps=0.1)
    )
    training: Training = field(default_factory=lambda: Training(batch_size=128))
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    class_weights: ClassWeights = None
    compare: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, given in (("inputs", self.inputs), ("outputs", self.outputs)):
            check_field(name, given, bool(given), "columns by name, such as {age: number}")
        self.input_columns = {name: make_column(name, given) for name, given in self.inputs.items()}
        self.weights = dict[str, float]()
        self.output_columns = dict[str, Column]()
        for name, given in self.outputs.items():
            settings = dict(given) if isinstance(given, Mapping) else {"type": given}
            self.weights[name] = weight = settings.pop("weight", 1.0)
            check_field(f"outputs.{name}.weight", weight, isinstance(weight, int | float) and weight > 0, "above 0")
            self.output_columns[name] = make_column(name, settings)
        for name in self.inputs:
            if name in self.outputs:
                raise PerceiversError(f"the column {quote(name)} is both an input and an output: leave one out.")

    @classmethod
    def configure(cls, data: Path, options: Mapping[str, str], output: Path | None) -> Path:
        """Writes the config of a run for a table, and returns its path: see `write_config`."""
        return write_config(data, options, output)

    def prepare(self) -> Setup:
        parts = self.data.open()
        columns = self.learn_columns(parts)
        validation = drop_unknown_targets(parts.validation, columns["outputs"])
        test = None if parts.test is None else drop_unknown_targets(parts.test, columns["outputs"])
        self.parts = parts = parts._replace(validation=validation, test=test)
        size = self.model.size or choose_size(len(parts.training), self.rate_effort() > 1)
        config = replace(self.model, columns=columns, size=size)
        model = check_memory(config.build, "the config")
        self.settle_training(len(parts.training))
        hide = (0.1 if len(parts.training) < FEW_ROWS else 0.02) if self.data.hide is None else self.data.hide
        training = TableSamples(parts.training, model.input_columns, model.output_columns, hide)
        training.weights = self.weigh(parts.training, model.output_columns)

        def build() -> TableModel:
            model = config.build()
            for name, column in model.input_columns.items():
                column.initialize(model.inputs[name], parts.training.cells(name))
            return model

        return Setup(build, training, TableSamples(parts.validation, model.input_columns, model.output_columns))

    def rate_effort(self) -> int:
        """Returns 1, or 2 with raw signals, such as pictures, or 4 with arrays or pictures to predict."""
        inputs, outputs = self.input_columns.values(), self.output_columns.values()
        if any(column.is_dense for column in outputs):
            return 4
        return 2 if any(column.is_raw for column in (*inputs, *outputs)) else 1

    def settle_training(self, rows: int) -> None:
        """Chooses what the config does not give of the length of the run, by the number of training rows."""
        self.training.batch_size = min(self.training.batch_size, rows)
        defaults: dict[str, Any] = {"gradient_clip_val": 1.0}
        if not self.trainer.keys() & {"max_epochs", "max_steps", "max_time"}:
            independent = rows / 4 if self.data.window else rows  # windows overlap
            updates = UPDATES * self.rate_effort() * max(1.0, (independent / 1000) ** 0.65)
            epochs = max(2, round(updates * self.training.batch_size / rows))
            defaults |= {"max_epochs": epochs, "check_val_every_n_epoch": max(1, epochs // 10)}
        self.trainer = defaults | self.trainer

    def learn_columns(self, parts: Parts) -> dict[str, Any]:
        """Returns the columns with what they learn of the training rows, or know from `model.init`."""
        known: dict[str, Column] = {}
        if self.model.init is not None and isinstance(pretrained := load_model(self.model.init), TableModel):
            known = pretrained.input_columns
        for name in (*self.inputs, *self.outputs):
            if name not in parts.training.table.columns:
                there = did_you_mean(name, parts.training.table.columns)
                raise PerceiversError(f"{parts.training.table.name} has no column {quote(name)}: {there}")
        inputs = dict[str, Column]()
        for name, column in self.input_columns.items():
            if name in known and type(known[name]) is type(column):
                inputs[name] = known[name]
            elif next(parts.training.cells(name), None) is None:
                warn(f"Column {quote(name)} of {parts.training.table.name} is empty: it is left out.")
            else:
                inputs[name] = parts.training.learn(name, column)
        outputs = {name: learn_target(parts.training, name, column) for name, column in self.output_columns.items()}
        if not inputs and not any(column.is_continued for column in outputs.values()):
            raise PerceiversError(f"{parts.training.table.name} has no cells in any of the inputs: name others.")
        return {"inputs": inputs, "outputs": outputs, "window": parts.window}

    def weigh(self, rows: Rows, outputs: Mapping[str, Column]) -> list[float] | None:
        """Returns the weights with which rows are drawn, see `class_weights`."""
        if self.class_weights is None:
            return None
        name, column = next(iter(outputs.items()))
        if not isinstance(column, Category):
            raise PerceiversError(f"class_weights is for categories, but {name!r} is a {column.kind}: leave it out.")
        labels = [rows.read(name, column, row) or 0 for row in range(len(rows))]
        return weigh_examples(self.class_weights, ["", *column.names], labels)

    def learner(self, model: TableModel) -> "RowLearner":
        return RowLearner(model, self.optimization, self.weights)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, TableModel)

    def run(self, callbacks: Sequence[Callback] = (), monitor: Monitor | None = None) -> Path:
        if self.data.folds is not None and self.data.fold is None:
            return self.run_folds(callbacks, monitor)
        folder = super().run(callbacks, monitor)
        if self.compare and not os.path.exists(folder / COMPARISON):
            self.report(folder)
        return folder

    @rank_zero_only
    def report(self, folder: Path) -> None:
        """Measures the model and simple methods on the same rows, prints all, and writes them to the run's folder."""
        model: Any = load_model(folder / "model")
        found = dict[str, Any]()
        for part in ("validation", "test"):
            rows = getattr(self.parts, part)
            if rows is None:
                continue
            simple = compare(self.parts.training, rows, model.input_columns, model.output_columns)
            own = evaluate_outputs(model, rows)
            found[part] = {name: {"perceiver": own[name], **simple.get(name, {})} for name in model.output_columns}
            for name, methods in found[part].items():
                print(f"\n{name}, {len(rows):,} rows ({part}):")
                print_methods(methods)
        text = json.dumps(found, indent=2) + "\n"
        atomic_write(folder / COMPARISON, lambda file: file.write_text(text))

    def run_folds(self, callbacks: Sequence[Callback], monitor: Monitor | None) -> Path:
        """Trains a model for each part that is held out in turn, and writes the mean of their metrics."""
        output = Path(self.training.output)
        for fold in range(self.data.folds or 0):
            rank_zero_only(print)(f"\nFold {fold + 1} of {self.data.folds}:")
            training = replace(self.training, output=str(output / f"fold_{fold}"))
            one = replace(self, data=replace(self.data, fold=fold), training=training)
            one.given, one.settled = self.given, self.settled
            one.run(callbacks, monitor)
        self.summarize_folds(output)
        return output

    @rank_zero_only
    def summarize_folds(self, output: Path) -> None:
        """Prints and writes the mean of the metrics of all folds, and its standard error."""
        folders = [output / f"fold_{fold}" for fold in range(self.data.folds or 0)]
        metrics = average([read_json(folder / METRICS) for folder in folders])
        text = json.dumps(metrics, indent=2) + "\n"
        atomic_write(output / METRICS, lambda file: file.write_text(text))
        if not self.compare:
            return
        runs = [read_json(folder / COMPARISON)["validation"] for folder in folders]
        found = {
            name: {method: average([run[name][method] for run in runs]) for method in runs[0][name]} for name in runs[0]
        }
        for name, methods in found.items():
            print(f"\n{name}, mean of {len(folders)} folds ± standard error:")
            print_methods(methods)
        text = json.dumps({"folds": found}, indent=2) + "\n"
        atomic_write(output / COMPARISON, lambda file: file.write_text(text))


def learn_target(rows: Rows, name: str, column: Column) -> Column:
    """Returns a column to predict with what it learns; raises a PerceiversError if there is nothing to learn."""
    seen = set[str]()
    for cell in rows.cells(name):
        seen.add(repr(cell))
        if len(seen) > 1:
            return rows.learn(name, column)
    what = "has no cells" if not seen else f"has the same cell, {seen.pop()}, in all rows"
    raise PerceiversError(f"{rows.table.name}: the column {quote(name)} {what}, so that there is nothing to predict.")


def evaluate_outputs(model: TableModel, rows: Rows) -> dict[str, dict[str, float]]:
    """Returns the metrics of each column that a model predicts."""
    measured = RowLearner(model)
    learner.evaluate(measured, TableSamples(rows, model.input_columns, model.output_columns), 256)
    return {name: {k: float(v) for k, v in values.items()} for name, values in measured.metrics.by_name().items()}


def average(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the mean of each figure that is a number in all runs, and as NAME_error its standard error."""
    found = dict[str, Any]()
    for name in runs[0]:
        values = [run[name] for run in runs if isinstance(run.get(name), int | float)]
        if len(values) == len(runs):
            found[name] = float(np.mean(values))
            found[f"{name}_error"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return found


def print_methods(methods: Mapping[str, Mapping[str, float]]) -> None:
    """Prints the metrics of several methods as a table."""
    names = [name for name in next(iter(methods.values())) if not name.endswith("_error")]

    def show(figures: Mapping[str, float], name: str) -> str:
        if name not in figures:
            return "-"
        error = f" ± {figures[f'{name}_error']:.2g}" if f"{name}_error" in figures else ""
        return f"{figures[name]:.4g}{error}"

    print_table(
        ["method", *names], [[method, *(show(figures, n) for n in names)] for method, figures in methods.items()]
    )


class RowLearner(Learner):
    """Trains with the weighted sum of the losses of all outputs, each the mean over the rows that have a target."""

    def __init__(
        self, model: TableModel, optimization: Optimization | None = None, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(model, optimization)
        self.weights = dict(weights or dict.fromkeys(model.output_columns, 1.0))
        self.metrics = TableMetrics(model.output_columns)

    def compute_losses(self, batch: Mapping[str, Any], predicted: Mapping[str, Any], points: Any) -> dict[str, Tensor]:
        """Returns the loss of each output."""
        losses = dict[str, Tensor]()
        for name, column in self.model.output_columns.items():
            known_B = batch["known"][name]
            loss_B = column.loss(predicted[name], batch["targets"][name], points[name])
            losses[name] = torch.where(known_B, loss_B, 0).sum() / known_B.sum().clamp_min(1)
        return losses

    def loss(self, batch: dict[str, Any]) -> Tensor:
        points = {name: column.choose_points() for name, column in self.model.output_columns.items()}
        points = {name: None if index is None else index.to(self.device) for name, index in points.items()}
        losses = self.compute_losses(batch, self.model.decode(encode_rows(self.model, batch), points), points)
        if len(losses) > 1:
            self.log_dict({f"train_{name}": loss for name, loss in losses.items()})
        return sum((self.weights[name] * loss for name, loss in losses.items()), torch.zeros((), device=self.device))

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        predicted = self.model.decode(encode_rows(self.model, batch))
        losses = self.compute_losses(batch, predicted, dict.fromkeys(predicted))
        loss = sum(self.weights[name] * loss for name, loss in losses.items())
        self.metrics.update(predicted, batch, loss)


class TableMetrics(nn.Module):
    """The metrics of all columns to predict, and the loss. With several columns, their name precedes the metric's."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        super().__init__()
        self.columns = dict(columns)
        self.by_column: Any = nn.ModuleList([nn.ModuleDict(column.metrics()) for column in columns.values()])
        self.counts: Any = nn.ModuleList([SumMetric() for _ in columns])
        self.loss = MeanMetric()

    def update(self, predicted: Mapping[str, Any], batch: Mapping[str, Any], loss: Any) -> None:
        self.loss.update(loss, len(batch["row"]))
        for (name, column), metrics, count in zip(self.columns.items(), self.by_column, self.counts, strict=True):
            known_B = batch["known"][name]
            count.update(known_B.sum())
            if known_B.any():
                guess = column.point(column.answer(predicted[name]))[known_B]
                truth = column.truth(batch["targets"][name])[known_B]
                for metric in metrics.values():
                    metric.update(guess, truth)

    def by_name(self) -> dict[str, dict[str, Tensor]]:
        """Returns the metrics of each column of which there are targets."""
        return {
            name: {key: torch.as_tensor(metric.compute()) for key, metric in metrics.items()}
            for name, metrics, count in zip(self.columns, self.by_column, self.counts, strict=True)
            if count.compute() > 0
        }

    def compute(self) -> dict[str, Tensor]:
        found = self.by_name()
        prefixes = {name: f"{name}_" if len(self.columns) > 1 else "" for name in found}
        flat = {f"{prefixes[name]}{key}": value for name, values in found.items() for key, value in values.items()}
        return flat | {"loss": self.loss.compute()}

    def reset(self) -> None:
        for metric in (self.loss, *self.counts, *(metric for metrics in self.by_column for metric in metrics.values())):
            metric.reset()
