"""Series of numbers at even distances, and the steps that follow. Shape suffixes: B batch, S steps."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from perceivers.adapters.series import SeriesInput, SeriesOutput
from perceivers.checks import Count, check_field
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray
from perceivers.tables.columns.array import read_array
from perceivers.tables.columns.column import Column
from perceivers.tables.columns.drawing import draw_lines, relative, split_bands
from perceivers.tables.columns.files import read_some


class Series(Column):
    """A series of numbers, a list in a cell; as an output, the steps that follow another series.

    An input series may be shorter than the longest: it then ends with the others, and begins later. The loss of an
    output is the mean absolute error, which forecasts better by the squared error, too, than the latter as the loss.

    Args:
        length: number of steps; learned: the longest of the training cells.
        patch: steps in a patch: an element of the input, or a query of the output.
        follows: the input column with the series before the steps; needed for an output.
        mean, std: of all training cells; learned.
    """

    kind = "series"

    def __init__(
        self,
        length: Count | None = None,
        patch: Count = 16,
        follows: str | None = None,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        check_field("series: std", std, 0 < std < math.inf, "above 0")
        self.length, self.patch, self.follows, self.mean, self.std = length, patch, follows, mean, std
        self.padded = -(-(length or 1) // patch) * patch

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        count, longest, mean, squares = 0, 1, 0.0, 0.0  # the sum of squared distances from the mean
        for steps in read_some(cells, lambda cell: self.read_steps(cell, root)):
            distance, total = float(steps.mean()) - mean, count + len(steps)
            squares += float(steps.var()) * len(steps) + distance**2 * count * len(steps) / total
            mean += distance * len(steps) / total
            count, longest = total, max(longest, len(steps))
        std = math.sqrt(squares / max(1, count))
        return self.change(length=self.length or longest, mean=mean, std=1.0 if std <= 1e-13 * abs(mean) else std)

    def read_steps(self, cell: Any, root: Path) -> np.ndarray[Any, Any]:
        """Returns the steps in a cell."""
        steps = read_array(cell, root)
        if steps.ndim != 1:
            raise self.refuse(cell, "a list of numbers")
        return steps

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns standardized steps."""
        steps = self.read_steps(cell, root)
        if self.follows is not None and len(steps) != self.length:
            raise PerceiversError(f"a series of {len(steps)} steps is given, but {self.length} are predicted")
        return torch.from_numpy(((steps - self.mean) / self.std).astype(np.float32))[-self.padded :]

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.zeros(self.length or 1)

    def collate(self, values: Sequence[Tensor]) -> InputArray | Tensor:
        if self.follows is not None:
            return torch.stack(list(values))
        step_BS = torch.zeros(len(values), self.padded)
        mask_BS = torch.zeros(len(values), self.padded, dtype=torch.bool)
        for row, value in enumerate(values):
            step_BS[row, -len(value) :] = value
            mask_BS[row, -len(value) :] = True
        return InputArray(step_BS, mask_BS)

    def input_adapter(self, channels: int) -> InputAdapter:
        return SeriesInput(self.padded, self.patch, mean=self.mean, std=self.std)

    def output_adapter(self, name: str, channels: int) -> SeriesOutput:
        if self.follows is None:
            raise PerceiversError(f"the series {name!r} can be predicted only with follows: name the series before it.")
        return SeriesOutput(self.follows, self.padded, self.patch, channels, self.mean, self.std)

    def loss(self, predicted: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
        return (predicted[:, : self.length] - target).abs().mean(1)

    def answer(self, predicted: Tensor) -> Tensor:
        return predicted[:, : self.length].double() * self.std + self.mean

    def metrics(self) -> dict[str, Metric]:
        return {"mse": MeanSquaredError(), "mae": MeanAbsoluteError()}

    def fields(self, name: str) -> dict[str, type]:
        return {f"{name}_predicted": str}

    def write(self, answers: Tensor) -> list[list[Any]]:
        """Returns lists as JSON."""
        return [[json.dumps([float(f"{step:.6g}") for step in row])] for row in answers.tolist()]

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns a line, with the weights of the patches as its background."""
        steps = self.read_steps(cell, root)[-self.padded :]
        return draw_lines([("front", 0, steps.tolist())], self.bands(len(steps), weights), f"{len(steps)} steps")

    def bands(self, count: int, weights: Tensor | None) -> list[tuple[float, float, float]]:
        """Returns the background of a line of so many steps, which end with the last patch; see `draw_lines`."""
        bands = split_bands(relative(weights, self.padded // self.patch), self.patch, count - self.padded)
        return [band for band in bands if band[1] > 0]
