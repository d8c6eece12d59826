"""Categories: one of several, yes or no, and any of several. Shape suffixes: B batch, K categories."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import Metric
from torchmetrics.classification import BinaryF1Score, MulticlassAccuracy, MulticlassF1Score
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from perceivers.adapters.category import CategoryInput
from perceivers.adapters.label import LabelOutput
from perceivers.checks import Range
from perceivers.data.tables import format_label
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.model.adapter import InputAdapter, InputArray
from perceivers.tables.columns.column import Column

Smoothing = Annotated[float, Range(least=0, below=1)]

MOST_CATEGORIES = 1000
"""Most names that a column learns, those that are most frequent."""

YES = ("yes", "true", "1", "y", "t", "on")
NO = ("no", "false", "0", "n", "f", "off")


class Category(Column):
    """One of several categories. One that training did not have is unknown as an input, and refused as a target.

    Args:
        names: the categories, in order; learned.
        smoothing: fraction of the probability of a target that is spread over all categories.
    """

    kind = "category"

    def __init__(self, names: Sequence[str] = (), smoothing: Smoothing = 0.0) -> None:
        self.names, self.smoothing = list(names), smoothing
        self.indices = {name: index for index, name in enumerate(names, start=1)}  # 0: unknown

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        if self.names:
            return self
        counts = Counter(format_label(cell) for cell in cells)
        names = [name for name, _ in counts.most_common(MOST_CATEGORIES)]
        return self.change(names=sort_names(names))

    def read(self, cell: Any, root: Path) -> int:
        """Returns the number of the category from 1; 0 for one that is unknown."""
        return self.indices.get(format_label(cell), 0)

    def blank(self, is_target: bool = False) -> int:
        return 0

    def collate(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values)

    def input_adapter(self, channels: int) -> InputAdapter:
        return CategoryInput(len(self.names) + 1, channels)

    def output_adapter(self, name: str, channels: int) -> LabelOutput:
        if len(self.names) < 2:
            raise PerceiversError(f"the column {quote(name)} has {len(self.names)} categories: two are needed.")
        return LabelOutput(len(self.names), names=self.names)

    def check_target(self, cell: Any) -> None:
        if format_label(cell) not in self.indices:
            names = did_you_mean(format_label(cell), self.names)
            raise PerceiversError(f"{quote(cell)} is a category that training did not have: {names}")

    def loss(self, predicted: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
        smoothing = self.smoothing
        return F.cross_entropy(predicted, (target - 1).clamp_min(0), reduction="none", label_smoothing=smoothing)

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns probabilities [B, K]."""
        return predicted.double().softmax(-1)

    def truth(self, target: Tensor) -> Tensor:
        return (target - 1).clamp_min(0)

    def metrics(self) -> dict[str, Metric]:
        """Returns accuracy, AUROC, and the F1 score of the second of two categories, or averaged over all."""
        count = len(self.names)
        return {
            "accuracy": MulticlassAccuracy(count, average="micro"),
            "auroc": Auroc(),
            "f1": OfSecond(BinaryF1Score()) if count == 2 else MulticlassF1Score(count, average="macro"),
        }

    def fields(self, name: str) -> dict[str, type]:
        return {f"{name}_predicted": str, f"{name}_probability": float}

    def write(self, answers: Tensor) -> list[list[Any]]:
        probability_B, index_B = answers.max(-1)
        return [[self.names[k], p] for k, p in zip(index_B.tolist(), probability_B.tolist(), strict=True)]


class Auroc(Metric):
    """The AUROC of each category against the others, averaged over those with examples and counterexamples.

    It is 0.5, that of chance, if there are none of such.
    """

    probability: list[Tensor]
    applies: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probability", [], "cat")
        self.add_state("applies", [], "cat")

    def update(self, probability_BK: Tensor, target: Tensor) -> None:
        """Takes the category of each row [B], or which apply to it [B, K]."""
        self.probability.append(probability_BK)
        self.applies.append(target if target.dim() == 2 else F.one_hot(target, probability_BK.shape[1]))

    def compute(self) -> Tensor:
        probability_BK, applies_BK = dim_zero_cat(self.probability), dim_zero_cat(self.applies)
        pairs = zip(probability_BK.unbind(1), applies_BK.unbind(1), strict=True)
        found = [binary_auroc(probability_B, is_B) for probability_B, is_B in pairs if len(is_B.unique()) == 2]
        return torch.stack(found).mean() if found else torch.tensor(0.5)


class OfSecond(Metric):
    """A metric of the second of two categories."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self.metric = metric

    def update(self, probability_BK: Tensor, target_B: Tensor) -> None:
        self.metric.update(probability_BK[:, 1], target_B)

    def compute(self) -> Any:
        return self.metric.compute()

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


class YesNo(Category):
    """Yes or no, in one of the usual forms: yes, true, 1, y, t, on; no, false, 0, n, f, off, in any case of letters.

    Args:
        names: the forms that the training cells have of no and of yes; learned.
        smoothing: as in `Category`.
    """

    kind = "yes_no"

    def __init__(self, names: Sequence[str] = ("no", "yes"), smoothing: Smoothing = 0.0) -> None:
        super().__init__(names, smoothing)

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        forms = dict[int, str]()
        for cell in cells:
            forms.setdefault(self.read(cell, root), format_label(cell))
        return self.change(names=[forms.get(1, "no"), forms.get(2, "yes")])

    def read(self, cell: Any, root: Path) -> int:
        """Returns 2 for yes, 1 for no."""
        text = format_label(cell).lower()
        if text not in YES + NO:
            raise self.refuse(cell, "yes or no")
        return 2 if text in YES else 1

    def check_target(self, cell: Any) -> None:
        """Both are always known."""


class Categories(Column):
    """Any of several categories, in a list, or separated in the cell by one of the characters , ; and |.

    Args:
        names: the categories, in order; learned.
        separator: what separates categories in a cell; learned.
    """

    kind = "categories"

    def __init__(self, names: Sequence[str] = (), separator: str | None = None) -> None:
        self.names, self.separator = list(names), separator
        self.indices = {name: index for index, name in enumerate(names, start=1)}  # 0: unknown

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        cells = list(cells)
        separator = self.separator or find_separator(cells)
        counts = Counter(part for cell in cells for part in split_cell(cell, separator))
        names = self.names or sort_names([name for name, _ in counts.most_common(MOST_CATEGORIES)])
        return self.change(names=names, separator=separator)

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns the numbers of the categories [M] from 1; 0 for unknown ones and for none."""
        found = [self.indices.get(part, 0) for part in split_cell(cell, self.separator)]
        return torch.tensor(sorted(set(found)) or [0])

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.tensor([0])

    def collate(self, values: Sequence[Tensor]) -> InputArray:
        lengths = torch.tensor([len(value) for value in values])
        padded_BM = pad_sequence(list(values), batch_first=True)
        return InputArray(padded_BM, torch.arange(padded_BM.shape[1]) < lengths[:, None])

    def input_adapter(self, channels: int) -> InputAdapter:
        return CategoryInput(len(self.names) + 1, channels)

    def output_adapter(self, name: str, channels: int) -> LabelOutput:
        if not self.names:
            raise PerceiversError(f"the column {quote(name)} has no categories: one is needed.")
        return LabelOutput(len(self.names), names=self.names, multilabel=True)

    def loss(self, predicted: Tensor, target: InputArray, points: Tensor | None = None) -> Tensor:
        return F.binary_cross_entropy_with_logits(predicted, self.truth(target).float(), reduction="none").mean(-1)

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns the probability of each category [B, K]."""
        return predicted.double().sigmoid()

    def truth(self, target: InputArray) -> Tensor:
        """Returns which categories apply, [B, K] of 0 and 1."""
        index_BM = target.x_BMC
        return torch.zeros(len(index_BM), len(self.names) + 1, dtype=torch.long, device=index_BM.device).scatter(
            1, index_BM, 1
        )[:, 1:]

    def metrics(self) -> dict[str, Metric]:
        """Returns the F1 score of all decisions, and AUROC averaged over the categories."""
        return {"f1": BinaryF1Score(), "auroc": Auroc()}

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        parts = split_cell(cell, self.separator)
        return "".join(f"<span class=chip>{html.escape(part)}</span>" for part in parts)

    def write(self, answers: Tensor) -> list[list[Any]]:
        separator = f"{self.separator or ','} ".replace("| ", "|")
        rows = (answers > 0.5).tolist()
        return [[separator.join(n for n, chosen in zip(self.names, row, strict=True) if chosen)] for row in rows]


def sort_names(names: Iterable[str]) -> list[str]:
    """Returns names in order, numerical if all are whole numbers."""
    names = sorted(names)
    return sorted(names, key=int) if all(re.fullmatch(r"[-+]?\d{1,18}", name) for name in names) else names


def find_separator(cells: Sequence[Any]) -> str:
    """Returns the character of , ; and | that most cells have."""
    counts = {mark: sum(isinstance(cell, str) and mark in cell for cell in cells) for mark in ",;|"}
    return max(counts, key=lambda mark: counts[mark])


def split_cell(cell: Any, separator: str | None) -> list[str]:
    """Returns the categories in a cell."""
    if isinstance(cell, str):
        parts: Iterable[Any] = cell.split(separator)
    else:
        parts = cell if isinstance(cell, list | tuple | set | np.ndarray) else [cell]
    return [label for part in parts if part is not None and (label := format_label(part))]
