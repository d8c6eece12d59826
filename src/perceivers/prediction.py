"""Predictions for the rows of data: the files of a folder, or the rows of a table or data set.

Shape suffixes: B batch, K classes, N latents, D channels
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from perceivers.data.labeled import Files, Labeled
from perceivers.data.loader import SampleIndex, Samples
from perceivers.data.splits import Part
from perceivers.errors import PerceiversError
from perceivers.inference import check_answers, sort_classes
from perceivers.progress import track

SCORE = "score"
"""The name of the answer of a model that predicts a number."""


@dataclass(frozen=True)
class Inputs:
    """The rows to predict.

    Attributes:
        samples: a dict for each row; one that cannot be read has only a "problem", or raises a PerceiversError.
        names: the name of each row: a path, or a number.
        unit: the name of a row: "file", "row" or "line".
        part: the part of the data that they are.
        checksum: of their contents, or of sizes and times of files.
    """

    samples: Samples
    names: Sequence[str | int]
    unit: str
    part: Part
    checksum: str

    @classmethod
    def of(cls, examples: Labeled, samples: Samples, part: Part) -> "Inputs":
        """Returns examples that are files, or rows of a data set, as the rows to predict."""
        checksum = examples.source.checksum()
        if not isinstance(examples.source, Files):
            return cls(samples, examples.indices, "row", part, checksum)
        paths = [examples.describe(row) for row in range(len(examples))]
        return cls(samples, [path.encode(errors="backslashreplace").decode() for path in paths], "file", part, checksum)


class Predictor(ABC):
    """A model that answers for each row of data; experiments define one for `perceivers predict`.

    The first three arguments of a constructor are those of `load_for_inference`. Those after `*`, which have
    annotations as in `perceivers.command`, are options of `perceivers predict` for the models of the experiment.

    Attributes:
        model: the model, in evaluation mode.
        outputs: the outputs to decode, see `PerceiverIO.decode`; none for a model whose outputs are no rows of a table.
        names: the names of the classes; None for a model that predicts a number.
        top: number of classes in a row, the most probable ones.
        batch_size: default number of rows in a batch.
    """

    model: Any
    outputs: Mapping[str, Tensor | None] = {}  # never changed
    names: Sequence[str] | None = None
    top: int = 1
    batch_size: ClassVar[int] = 64

    @abstractmethod
    def __init__(self, model: Any, device: str | None = None, dtype: str | None = None, **options: Any) -> None:
        """Loads the model."""

    @abstractmethod
    def open(self, data: str, split: str | None = None) -> Inputs:
        """Finds the rows of data, of a split if it has some, see `choose_splits`; raises a PerceiversError for none."""

    @abstractmethod
    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the inputs of the model for collated samples."""

    def values(self, outputs: Mapping[str, Any]) -> Tensor:
        """Returns the probabilities of the classes [B, K], or the numbers [B, 1]; by default the softmax of "label"."""
        probability_BK: Tensor = outputs["label"].float().softmax(-1)
        return probability_BK

    def compute(self, batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Tensor | None]:
        """Returns the outputs of the model for collated samples, and its latents [B, N, D], if it has some."""
        encoded = self.model.encode(self.inputs(batch))
        return self.model.decode(encoded, self.outputs), encoded.latents

    @property
    def columns(self) -> dict[str, type]:
        """The columns of an answer and their types: str, int or float."""
        if not self.outputs:
            return {}
        if self.names is None:
            return {SCORE: float}
        ends = ["", *(f"_{number}" for number in range(2, min(self.top, len(self.names)) + 1))]
        return {f"{name}{end}": kind for end in ends for name, kind in (("class", str), ("probability", float))}

    def rows(self, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the answer for each row of a batch, with the values of `columns`."""
        if not self.outputs:
            return []
        answers = self.rank(outputs, self.top)
        if self.names is None:
            return [dict(answer) for answer in answers]
        flat = [[value for pair in answer.items() for value in pair] for answer in answers]
        return [dict(zip(self.columns, values, strict=True)) for values in flat]

    def rank(self, outputs: Mapping[str, Any], top: int | None = None) -> list[dict[str, float]]:
        """Returns for each row of a batch the probabilities of its classes, most probable first; or its score."""
        values = self.values(outputs).float()
        if self.names is None:
            return [{SCORE: value} for value in values.flatten().tolist()]
        return sort_classes(values, self.names, top)


class RowSamples(Samples):
    """Some of the rows to predict.

    A batch has the indices of its "rows", the "batch" of their samples, and by index the "errors" of other rows.
    """

    def __init__(self, inputs: Inputs, rows: Sequence[int]) -> None:
        self.samples, self.rows = inputs.samples, rows
        if (lengths := inputs.samples.lengths) is not None:
            self.lengths = [lengths[row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: SampleIndex) -> tuple[int, dict[str, Any]]:
        row = self.rows[item.sample]
        try:
            return row, self.samples[SampleIndex(row, 0)]
        except PerceiversError as error:
            return row, {"problem": str(error)}

    def collate(self, samples: list[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
        good = {row: sample for row, sample in samples if "problem" not in sample}
        errors = {row: sample["problem"] for row, sample in samples if "problem" in sample}
        batch = self.samples.collate(list(good.values())) if good else {}
        return {"rows": list(good), "batch": batch, "errors": errors}


@torch.inference_mode()
def classify(predictor: Predictor, inputs: Inputs, batch_size: int = 16) -> list[dict[str, float] | PerceiversError]:
    """Returns all probabilities, most probable first, for each row, or why it has none."""
    answers: dict[int, dict[str, float] | PerceiversError] = {}
    device = next(predictor.model.parameters()).device
    for batch in track(RowSamples(inputs, range(len(inputs.names))).loader(batch_size), "batches"):
        answers |= {row: PerceiversError(reason) for row, reason in batch["errors"].items()}
        if batch["rows"]:
            outputs, _ = predictor.compute(tree_map_only(Tensor, lambda tensor: tensor.to(device), batch["batch"]))
            answers |= zip(batch["rows"], predictor.rank(check_answers(outputs)), strict=True)
    return [answers[row] for row in range(len(inputs.names))]


def require_answers(answers: Sequence[dict[str, float] | PerceiversError]) -> list[dict[str, float]]:
    """Returns answers; raises the first PerceiversError among them."""
    for answer in answers:
        if isinstance(answer, PerceiversError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, PerceiversError)]
