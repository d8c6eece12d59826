"""Arrays of numbers. Shape suffixes: B batch, M elements, E channels, P points."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric

from perceivers.adapters.array import ArrayInput, ArrayOutput
from perceivers.checks import Count, check_field
from perceivers.errors import PerceiversError, quote
from perceivers.files import check_count
from perceivers.model.adapter import InputAdapter
from perceivers.model.positions import FourierPositions
from perceivers.tables.columns.column import Column, measure_scale
from perceivers.tables.columns.drawing import draw_lines, relative, shorten, split_bands
from perceivers.tables.columns.files import open_cell, read_some
from perceivers.tables.columns.image import above_mean, overlay, to_data_uri, to_pillow

SAMPLE = 500
"""Arrays that are read to learn the shape, mean and standard deviation."""

SMALLEST_MAP, LARGEST_MAP = 128, 256
"""Sides in pixels to which the drawn map of an array is enlarged or reduced."""


class Array(Column):
    """An array of numbers on a grid: a list, lists of lists, or a .npy file; all of one shape.

    As an output, it is predicted at all places of the grid, and trained at random ones.

    Args:
        shape: size of each dimension; learned.
        channels: whether the last dimension is that of channels, not of the grid.
        points: places that a training step predicts of each array.
        mean, std: of all numbers; learned.
    """

    kind = "array"
    is_dense = True

    def __init__(
        self,
        shape: Sequence[Count] | None = None,
        channels: bool = False,
        points: Count = 256,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        check_field("array: std", std, 0 < std < math.inf, "above 0")
        self.shape, self.has_channels, self.points, self.mean, self.std = shape, channels, points, mean, std
        grid = tuple(shape or (1,))
        self.grid, self.width = (grid[:-1] or (1,), grid[-1]) if channels else (grid, 1)

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        arrays = list(read_some(cells, lambda cell: read_array(cell, root), SAMPLE))
        values = np.concatenate([array.ravel() for array in arrays])
        mean, std = measure_scale(values)
        return self.change(shape=self.shape or list(arrays[0].shape), mean=mean, std=std)

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns standardized numbers [*grid, E]."""
        array = read_array(cell, root)
        if array.shape != tuple(self.shape or ()):
            raise PerceiversError(
                f"an array of shape {array.shape} is given, but {tuple(self.shape or ())} is expected"
            )
        standardized = torch.from_numpy(((array - self.mean) / self.std).astype(np.float32))
        return standardized.reshape(*self.grid, self.width)

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.zeros(*self.grid, self.width)

    def input_adapter(self, channels: int) -> InputAdapter:
        return ArrayInput(self.width, FourierPositions(self.grid, bands=8), projection=channels)

    def output_adapter(self, name: str, channels: int) -> ArrayOutput:
        return ArrayOutput(self.width, FourierPositions(self.grid, bands=max(8, max(self.grid) // 4)))

    def choose_points(self, generator: torch.Generator | None = None) -> Tensor | None:
        count = math.prod(self.grid)
        return None if self.points >= count else torch.randperm(count, generator=generator)[: self.points]

    def loss(self, predicted: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
        if points is not None:
            target = target.flatten(1, -2)[:, points]
        return (predicted - target).square().flatten(1).mean(1)

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns numbers in the shape of the cells."""
        return (predicted.double() * self.std + self.mean).reshape(len(predicted), *(self.shape or ()))

    def metrics(self) -> dict[str, Metric]:
        return {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}

    def write(self, answers: Tensor) -> list[list[Any]]:
        """Returns nested lists as JSON."""
        return [[json.dumps(shorten_numbers(row))] for row in answers.tolist()]

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns a line for one dimension, a map of the numbers for two, or else the shape."""
        array = read_array(cell, root)
        shape = " x ".join(map(str, array.shape))
        if array.ndim == 1:
            shades = relative(weights, len(array))
            return draw_lines([("front", 0, array.tolist())], split_bands(shades, 1, -0.5), f"{shape} numbers")
        extent = f"{shorten(float(array.min()))} to {shorten(float(array.max()))}"
        if array.ndim > 2:
            return f'{shape} numbers<br><span class="quiet">{extent}</span>'
        picture = to_pillow(torch.from_numpy((array - array.min()) / (np.ptp(array) or 1.0))[..., None])
        if max(array.shape) > LARGEST_MAP:
            picture.thumbnail((LARGEST_MAP, LARGEST_MAP))
        if weights is not None and len(weights) == array.size:
            picture = overlay(picture, above_mean(weights).reshape(array.shape))
        uri = to_data_uri(picture)
        width = SMALLEST_MAP if max(array.shape) < SMALLEST_MAP else picture.width
        return f'<img class="map" width="{width}" alt="{shape} numbers" src="{uri}"><span class="quiet">{extent}</span>'


def shorten_numbers(value: Any) -> Any:
    """Returns a number, or nested lists of numbers, with six digits."""
    return [shorten_numbers(item) for item in value] if isinstance(value, list) else float(f"{value:.6g}")


def read_array(cell: Any, root: Path) -> np.ndarray[Any, Any]:
    """Returns the numbers of a cell: a list, JSON of one, or a .npy file; or raises a PerceiversError."""
    expected = "a list of numbers, or the path of a .npy file with an array of them"
    try:
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            found = json.loads(cell)
        elif isinstance(cell, list | tuple | np.ndarray):
            found = to_lists(cell)
        else:
            file = open_cell(cell, root)
            mmap_mode: Literal["r"] | None = "r" if isinstance(file, Path) else None  # to check the size before reading
            found = np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
            check_count("the array", found.size, "values")
            if found.dtype.kind not in "biuf":
                raise PerceiversError(f"{quote(cell)} is not {expected}")
        array = np.asarray(found, dtype=np.float64)
    except PerceiversError:
        raise
    except Exception as error:  # numpy raises many kinds
        raise PerceiversError(f"{quote(cell)} is not {expected}") from error
    check_count("the array", array.size, "values")
    if not array.size or not np.isfinite(array).all():
        raise PerceiversError(f"{quote(cell)} has no numbers, or some that are not finite")
    return array


def to_lists(cell: Any) -> Any:
    """Returns an array of arrays, as pandas reads nested lists from parquet, as lists of arrays."""
    is_nested = isinstance(cell, np.ndarray) and cell.dtype == object
    return [to_lists(item) for item in cell] if is_nested else cell
