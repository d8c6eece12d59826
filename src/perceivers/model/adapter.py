"""What joins a domain to the architecture: input adapters make arrays, output adapters make queries and read answers.

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels,
    O outputs, P some of the outputs, Q query channels, E output channels
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from perceivers.model.config import Configured


class InputArray(NamedTuple):
    """An input array: elements, which of them are real (None: all; False: padding, gets no weight), and how they lie.

    The grid, if they lie on one, is the size of each dimension; it lets an output take the shape of an input.
    """

    x_BMC: Tensor
    mask_BM: Tensor | None = None
    grid: tuple[int, ...] | None = None


class Encoded(NamedTuple):
    """What a model knows after encoding: latents, and the input arrays, from which queries may be made."""

    z_BND: Tensor
    inputs: dict[str, InputArray]


class InputAdapter(Configured, nn.Module):
    """Turns data as its domain has it into an input array.

    Attributes:
        channels: C of the array it returns.
    """

    channels: int

    def forward(self, data: Any) -> InputArray:
        """Data of one modality -> x_BMC, and mask_BM if some elements are padding."""
        raise AssertionError("an input adapter defines forward")


class OutputAdapter(Configured, nn.Module):
    """Asks for a domain's outputs with queries, and turns the answers into predictions.

    Attributes:
        query_channels: Q of the queries it makes. None: it asks nothing, and is given the average of the latents,
            as in the first Perceiver; its count is then 1.
        channels: E of the vectors it wants to read; the model ends in a linear layer to them.
            None: it reads what comes out of the decoder as it is.
    """

    query_channels: int | None
    channels: int | None

    def connect(self, inputs: Mapping[str, InputAdapter]) -> None:
        """Called when the model is built, for outputs that need something of an input: its channels, its weights."""

    def count(self, encoded: Encoded) -> int:
        """Number O of outputs there are."""
        return 1

    def queries(self, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        """The queries of all outputs, [B or 1, O, Q]; of those at integer `points` [P] or [B, P], [B or 1, P, Q]."""
        raise AssertionError("an output adapter with query_channels defines queries")

    def mask(self, encoded: Encoded, points: Tensor | None = None) -> Tensor | None:
        """Which queries are real, [B, O] or [B, P]: the others read nothing from the latents. None: all are."""
        return None

    def read(self, y_BOE: Tensor, encoded: Encoded, points: Tensor | None = None) -> Any:
        """Decoded vectors -> predictions: all in the domain's own shape, those of `points` as [B, P, ...]."""
        return y_BOE
