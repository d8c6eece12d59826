"""The elements of a set: each is asked for with itself (section 4.5: the units of StarCraft II)."""

from collections.abc import Mapping

from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, OutputAdapter


class ElementOutput(OutputAdapter):
    """A vector for every element of an input, whose queries are the elements themselves.

    Args:
        input: name of the input.
        channels: E of the vectors; those of the decoder, if not given.
    """

    def __init__(self, input: str, channels: int | None = None) -> None:
        super().__init__()
        self.input = input
        self.channels = channels

    def connect(self, inputs: Mapping[str, InputAdapter]) -> None:
        if self.input not in inputs:
            raise PerceiversError(f"the elements are those of an input {self.input!r}, which the model does not have.")
        self.query_channels = inputs[self.input].channels

    def count(self, encoded: Encoded) -> int:
        return encoded.inputs[self.input].x_BMC.shape[1]

    def queries(self, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        x_BMC = encoded.inputs[self.input].x_BMC
        if points is None:
            return x_BMC
        return x_BMC[:, points] if points.dim() == 1 else x_BMC.take_along_dim(points[..., None], 1)

    def mask(self, encoded: Encoded, points: Tensor | None = None) -> Tensor | None:
        mask_BM = encoded.inputs[self.input].mask_BM
        if mask_BM is None or points is None:
            return mask_BM
        return mask_BM[:, points] if points.dim() == 1 else mask_BM.gather(1, points)
