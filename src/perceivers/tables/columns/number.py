"""Numbers. Shape suffixes: B batch, Q quantiles."""

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError, Metric

from perceivers.adapters.array import ArrayOutput
from perceivers.adapters.number import NumberInput
from perceivers.checks import check_field
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter
from perceivers.model.positions import LearnedPositions
from perceivers.tables.columns.column import Column, measure_scale
from perceivers.tables.columns.drawing import format_number

Scale = Literal["linear", "log"]
Loss = Literal["huber", "squared", "absolute"]

INTERVALS = 24
CELLS_PER_INTERVAL = 64
"""Most intervals of the piecewise linear encoding, and least training cells of each, but there are at least four."""

SKEWNESS = 1.0
"""Skewness of positive numbers from which they are scaled by their logarithm."""


class Number(Column):
    """A number.

    Args:
        scale: "log" for positive numbers whose ratios matter, such as prices; learned from the cells, if not given.
        loss: of a number to predict: "huber", squared up to half a standard deviation; "squared", or "absolute".
        quantiles: quantiles to predict beside the median, such as [0.1, 0.9]; the loss is then that of quantiles.
        mean, std: of the scaled training cells; learned.
        edges: quantiles of the standardized training cells; learned.
    """

    kind = "number"

    def __init__(
        self,
        scale: Scale | None = None,
        loss: Loss = "huber",
        quantiles: Sequence[float] | None = None,
        mean: float = 0.0,
        std: float = 1.0,
        edges: Sequence[float] = (-1.0, 1.0),
    ) -> None:
        check_field("number: std", std, 0 < std < math.inf, "above 0")
        allowed = all(0 < quantile < 1 and quantile != 0.5 for quantile in quantiles or ())
        check_field("number: quantiles", quantiles, allowed, "between 0 and 1, without the median 0.5")
        self.scale, self.loss_kind, self.mean, self.std, self.edges = scale, loss, mean, std, edges
        self.quantiles = [0.5, *quantiles] if quantiles else None

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        numbers = np.fromiter((self.read(cell, root) for cell in cells), dtype=np.float64)
        if not len(numbers):
            raise PerceiversError("it has no numbers")
        scale = self.scale or choose_scale(numbers)
        if scale == "log" and numbers.min() <= 0:
            raise PerceiversError(f"it has {numbers.min():g}, but scale: log needs positive numbers")
        scaled = np.log(numbers) if scale == "log" else numbers
        mean, std = measure_scale(scaled)
        intervals = min(INTERVALS, max(4, len(scaled) // CELLS_PER_INTERVAL))
        edges = np.unique(np.quantile((scaled - mean) / std, np.linspace(0, 1, intervals + 1)).astype(np.float32))
        if len(edges) < 2:
            edges = edges[0] + np.array([-1.0, 1.0])
        return self.change(scale=scale, mean=mean, std=std, edges=edges.tolist())

    def read(self, cell: Any, root: Path) -> float:
        number = parse_number(cell)
        if number is None:
            raise self.refuse(cell, "a number")
        return number

    def blank(self, is_target: bool = False) -> float:
        return math.exp(self.mean) if self.scale == "log" else self.mean

    def collate(self, values: Sequence[float]) -> Tensor:
        """Returns standardized numbers [B]."""
        return self.standardize(torch.tensor(values, dtype=torch.float64))

    def standardize(self, number_B: Tensor) -> Tensor:
        """Returns numbers, of type float64, as the model reads them, of type float32."""
        if self.scale == "log":  # cells of other tables may be 0 or negative
            number_B = number_B.clamp_min(math.exp(max(-700, self.mean - 20 * self.std))).log()
        return ((number_B - self.mean) / self.std).float()

    def input_adapter(self, channels: int) -> InputAdapter:
        return NumberInput(self.edges, channels)

    def output_adapter(self, name: str, channels: int) -> ArrayOutput:
        return ArrayOutput(len(self.quantiles or [0]), LearnedPositions((1,), channels))

    def loss(self, predicted: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
        error_BQ = target[:, None] - predicted[:, 0]
        if self.quantiles:
            quantile_Q = torch.tensor(self.quantiles, device=target.device)
            return torch.maximum(quantile_Q * error_BQ, (quantile_Q - 1) * error_BQ).mean(1)
        if self.loss_kind == "huber":
            return F.huber_loss(predicted[:, 0, 0], target, reduction="none", delta=0.5)
        return error_BQ[:, 0].abs() if self.loss_kind == "absolute" else error_BQ[:, 0].square()

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns numbers [B], or the median and the quantiles [B, Q]."""
        number = predicted.double() * self.std + self.mean
        number = number.exp() if self.scale == "log" else number
        return number if number.dim() == 1 else number[:, 0].squeeze(1)

    def point(self, answers: Tensor) -> Tensor:
        return answers if answers.dim() == 1 else answers[:, 0]

    def metrics(self) -> dict[str, Metric]:
        """Returns RMSE, MAE, R2 and, for positive numbers scaled by their logarithm, MAPE, a fraction."""
        found: dict[str, Metric] = {
            "rmse": MeanSquaredError(squared=False),
            "mae": MeanAbsoluteError(),
            "r2": R2(),
        }
        if self.scale == "log":
            found["mape"] = Mape()
        return found

    def fields(self, name: str) -> dict[str, type]:
        names = ["predicted", *(f"q{100 * quantile:g}" for quantile in (self.quantiles or [])[1:])]
        return {f"{name}_{end}": float for end in names}

    def write(self, answers: Tensor) -> list[list[Any]]:
        return answers.reshape(len(answers), -1).tolist()

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        number = parse_number(cell)
        return super().draw(cell, root) if number is None else format_number(number)


class R2(Metric):
    """The coefficient of determination, in double precision; 0 if all numbers are equal, as with a single one."""

    count: Tensor
    sum: Tensor
    squares: Tensor
    residual: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "sum", "squares", "residual"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), "sum")

    def update(self, guess_B: Tensor, truth_B: Tensor) -> None:
        guess_B, truth_B = guess_B.double(), truth_B.double()
        self.count += len(truth_B)
        self.sum += truth_B.sum()
        self.squares += truth_B.square().sum()
        self.residual += (guess_B - truth_B).square().sum()

    def compute(self) -> Tensor:
        total = self.squares - self.sum.square() / self.count
        return torch.where(total > 1e-13 * self.squares, 1 - self.residual / total, 0)


class Mape(MeanMetric):
    """The mean absolute error as a fraction of each number."""

    def update(self, guess_B: Tensor, truth_B: Tensor) -> None:  # type: ignore[override]
        super().update(((guess_B - truth_B) / truth_B).abs())


def choose_scale(numbers: np.ndarray[Any, Any]) -> Scale:
    """Returns "log" for positive numbers that are skewed, and less so by their logarithm."""
    if numbers.min() <= 0:
        return "linear"
    skewness = compute_skewness(numbers)
    return "log" if skewness > SKEWNESS and abs(compute_skewness(np.log(numbers))) < skewness else "linear"


def compute_skewness(numbers: np.ndarray[Any, Any]) -> float:
    """Returns the third standardized moment; 0 for equal numbers."""
    centered = numbers - numbers.mean()
    return float((centered**3).mean() / (centered.std() ** 3 or 1))


def parse_number(cell: Any) -> float | None:
    """Returns the finite number in a cell, which may be text such as "1,234.5"; None if there is none."""
    if isinstance(cell, str):
        text = re.sub(r"\s", "", cell)  # also spaces that do not break, between thousands
        if re.fullmatch(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?", text):
            text = text.replace(",", "")
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", text):
            return None
        number = float(text)
    elif isinstance(cell, bool | int | float | Decimal | np.integer | np.floating | np.bool_):
        try:
            number = float(cell)
        except (OverflowError, ValueError):  # an integer of hundreds of digits, a signaling NaN
            return None
    else:
        return None
    return number if math.isfinite(number) else None
