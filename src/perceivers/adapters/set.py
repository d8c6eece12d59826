"""The elements of a set: the query of each is the element itself (section 4.5: the units of StarCraft II)."""

from collections.abc import Mapping

from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, Indices, InputAdapter, InputArray, OutputAdapter
from perceivers.model.ragged import Ragged


class SetOutput(OutputAdapter):
    """A vector for every element of an input, padded or ragged, whose queries are the elements themselves.

    Args:
        input: name of the input.
        channels: E of the vectors; those of the decoder by default.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> inputs, outputs = {"points": ArrayInput(3)}, {"parts": SetOutput("points", 4)}
        >>> model = PerceiverIO(inputs, outputs, latents=4, channels=16, depth=1)
        >>> model({"points": torch.randn(2, 50, 3)})["parts"].shape
        torch.Size([2, 50, 4])
    """

    takes_ragged = True

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

    def query_offsets(self, encoded: Encoded) -> Tensor | None:
        offsets: Tensor | None = encoded.context.offsets
        return offsets

    def queries(self, encoded: Encoded, indices: Indices | None = None) -> Tensor:
        return select_elements(encoded.context.x_BMC, indices, encoded.context.offsets)

    def query_coordinates(self, encoded: Encoded, indices: Indices | None = None) -> Tensor | None:
        coordinates: Tensor | None = encoded.context.coordinates_BMG
        return None if coordinates is None else select_elements(coordinates, indices, encoded.context.offsets)

    def query_mask(self, encoded: Encoded, indices: Indices | None = None) -> Tensor | None:
        mask_BM: Tensor | None = encoded.context.mask_BM
        return None if mask_BM is None else select_elements(mask_BM[..., None], indices)[..., 0]


def select_elements(x_BMC: Tensor, indices: Indices | None, offsets: Tensor | None = None) -> Tensor:
    """Returns the elements at indices [P], [B, P] or ragged ones, or all; -> [B, P, C], or [1, T, C] if ragged.

    Args:
        x_BMC: the elements; [1, T, C] if they are ragged.
        indices: indices of elements within their example.
        offsets: [B + 1] if they are ragged.
    """
    if indices is None:
        return x_BMC
    if isinstance(indices, Ragged):
        examples_T = indices.examples()
        if offsets is None:
            return x_BMC[examples_T, indices.values][None]
        return x_BMC[:, offsets[examples_T] + indices.values]
    if offsets is not None:
        return x_BMC[0][offsets[:-1, None] + indices]
    if indices.dim() == 1:
        return x_BMC[:, indices]
    count, _, channels = x_BMC.shape
    return x_BMC.gather(1, indices[..., None].expand(count, -1, channels))  # take_along_dim fixes sizes in torch.export
