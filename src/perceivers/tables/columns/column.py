"""The base of column types: how cells are read, batched, encoded, predicted, measured, written and drawn.

Shape suffixes: B batch, M elements of an input
"""

import html
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from perceivers.errors import PerceiversError, quote
from perceivers.model.adapter import InputAdapter, OutputAdapter
from perceivers.model.config import Configurable


class Column(Configurable, ABC):
    """A type of column. Its constructor's arguments are what a config may set and what it has learned from cells.

    A model saves its columns with these arguments, so that it reads other tables as it read the one for training.
    An input needs `read` and `input_adapter`; a column to predict also `output_adapter`, `loss`, `answer`, `metrics`,
    `fields` and `write`. Cells that are missing never reach a column.

    Attributes:
        kind: name of the type in configs.
        is_continued: whether a column to predict is an input, too, of which it predicts what is hidden.
        is_dense: whether a column is predicted at the places of a grid. Inputs are not augmented then: a mirrored
            picture would not fit the one to predict.
        is_raw: whether cells are signals, such as pictures, from which a model has more to learn.
    """

    kind: ClassVar[str]
    is_continued: ClassVar[bool] = False
    is_dense: ClassVar[bool] = False
    is_raw: ClassVar[bool] = False

    def __init__(self) -> None:
        """Takes no arguments: a type without settings needs no constructor of its own."""

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        """Returns the column with what it needs to know of all training cells; see `change`.

        Args:
            cells: the cells that are not missing, which can be iterated over several times.
            root: folder that paths in cells start from.
        """
        return self

    def change(self, **arguments: Any) -> Self:
        """Returns the column with some arguments of its constructor replaced."""
        return type(self)(**self.config | arguments)

    @abstractmethod
    def read(self, cell: Any, root: Path) -> Any:
        """Returns the value of a cell, a number or a tensor; paths in cells are relative to a folder.

        Raises:
            PerceiversError: the cell, or the file that it names, cannot be read: see `refuse`.
        """

    def refuse(self, cell: Any, expected: str) -> PerceiversError:
        """Returns the error of a cell that cannot be read, to be raised."""
        return PerceiversError(f"{quote(cell)} is not {expected}")

    def check_target(self, cell: Any) -> None:
        """Raises a PerceiversError for a cell that cannot be a target, such as an unknown category."""

    def augment(self, value: Any, generator: torch.Generator) -> Any:
        """Returns a random variant of a value for training, such as a mirrored picture."""
        return value

    def hide(self, value: Any, generator: torch.Generator) -> tuple[Any, Any]:
        """Returns the value that the model sees of a continued column, and the one it has to predict."""
        return value, value

    def collate(self, values: Sequence[Any]) -> Any:
        """Returns the values of a batch, as the input adapter and `loss` take them."""
        return torch.stack(list(values))

    @abstractmethod
    def blank(self, is_target: bool = False) -> Any:
        """Returns a value, or a target, to stand in for a missing one, which neither model nor loss sees."""

    @abstractmethod
    def input_adapter(self, channels: int) -> InputAdapter:
        """Returns the adapter that encodes values as elements of about so many channels."""

    def initialize(self, adapter: InputAdapter, cells: Iterable[Any]) -> None:
        """Gives a fresh input adapter weights that training cells tell without a target, such as vectors of words."""

    def output_adapter(self, name: str, channels: int) -> OutputAdapter:
        """Returns the adapter that predicts the column of a name, by queries of so many channels."""
        raise PerceiversError(f"a column of type {self.kind!r} can be an input, but not be predicted.")

    def lack(self, method: str) -> PerceiversError:
        """Returns the error of a type that does not define what predicting needs, to be raised."""
        return PerceiversError(f"a column of type {self.kind!r} cannot be predicted: its class defines no {method!r}.")

    def choose_points(self, generator: torch.Generator | None = None) -> Tensor | None:
        """Returns the indices of the points of an output to train on in a step; None for all."""
        return None

    def loss(self, predicted: Any, target: Any, points: Tensor | None = None) -> Tensor:
        """Returns the loss of each row [B] for the model's predictions and collated values."""
        raise self.lack("loss")

    def answer(self, predicted: Any) -> Tensor:
        """Returns predictions of the model, or collated values, in units of the cells; of classes, probabilities."""
        raise self.lack("answer")

    def complete(self, answers: Any, values: Any, missing_B: Tensor) -> Any:
        """Returns the answers of a continued column, with what its collated inputs show instead of guesses of it."""
        return answers

    def metrics(self) -> dict[str, Metric]:
        """Returns metrics by name, which take the results of `point` and `truth`."""
        raise self.lack("metrics")

    def point(self, answers: Any) -> Any:
        """Returns answers as `metrics` take them: the best guesses, without, for example, quantiles."""
        return answers

    def truth(self, target: Any) -> Any:
        """Returns collated values as `metrics` take them."""
        return self.answer(target)

    def fields(self, name: str) -> dict[str, type]:
        """Returns the columns of a written prediction of the column of a name, and their types."""
        return {f"{name}_predicted": str}

    def write(self, answers: Tensor) -> list[list[Any]]:
        """Returns the cells of `fields` for each answer."""
        raise self.lack("write")

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns HTML that shows a cell and, if given, the weight of the attention to each element [M]."""
        return html.escape(str(cell))


def measure_scale(numbers: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Returns the mean and standard deviation of numbers; 1 instead of a deviation that is 0 but for rounding."""
    mean, std = float(numbers.mean()), float(numbers.std())
    return mean, 1.0 if std <= 1e-13 * abs(mean) else std
