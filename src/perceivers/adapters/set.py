"""The elements of a set: the query of each is the element itself (section 4.5: the units of StarCraft II)."""

from collections.abc import Mapping

from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter


class SetOutput(OutputAdapter):
    """A vector for every element of an input, whose queries are the elements themselves.

    Args:
        input: name of the input.
        channels: E of the vectors; those of the decoder by default.
    """

    def __init__(self, input: str, channels: int | None = None) -> None:
        super().__init__()
        self.input = input
        self.channels = channels

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        if self.input not in inputs:
            raise PerceiversError(f"a set output has the elements of an input {self.input!r}: name one of the model's.")
        self.query_channels = inputs[self.input].channels

    def context(self, inputs: Mapping[str, InputArray]) -> InputArray:
        return inputs[self.input]

    def num_queries(self, encoded: Encoded) -> int:
        return int(encoded.context.x_BMC.shape[1])

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        return select_elements(encoded.context.x_BMC, indices)

    def query_mask(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor | None:
        mask_BM: Tensor | None = encoded.context.mask_BM
        return None if mask_BM is None else select_elements(mask_BM[..., None], indices)[..., 0]


def select_elements(x_BMC: Tensor, indices: Tensor | None) -> Tensor:
    """Returns the elements at indices [P] or [B, P], or all; -> [B, P, C]."""
    if indices is None:
        return x_BMC
    return x_BMC[:, indices] if indices.dim() == 1 else x_BMC.take_along_dim(indices[..., None], 1)
