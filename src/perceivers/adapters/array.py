"""Arrays as they are: for data that needs no adapter of its own. Shape suffixes as in `perceivers.model.adapter`."""

import math

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter, read_array
from perceivers.model.linear import Linear
from perceivers.model.positions import Positions


class ArrayInput(InputAdapter):
    """An array of vectors on a grid of any number of dimensions, or, without positions, a set of vectors.

    Args:
        channels: channels of each vector.
        positions: encodes where on the grid a vector is, and is concatenated to it; None for a set.
        projection: channels to which a linear layer projects the vectors before that; None for no layer.
    """

    def __init__(self, channels: int, positions: Positions | None = None, projection: int | None = None) -> None:
        super().__init__()
        self.data_channels = channels
        self.positions = positions
        self.projection = None if projection is None else Linear(channels, projection)
        self.channels = (projection or channels) + (0 if positions is None else positions.channels)

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes vectors [B, *grid, channels], or `InputArray(vectors, mask)` with a mask of shape [B, *grid]."""
        vectors, mask = read_array(data, channel_dims=1)
        rank = 1 if self.positions is None else len(self.positions.grid)
        if vectors.dim() != rank + 2 or vectors.shape[-1] != self.data_channels:
            raise PerceiversError(
                f"an array of shape {tuple(vectors.shape)} was given, but [batch, "
                f"{rank} dimension{'s' if rank > 1 else ''}, {self.data_channels} channels] is expected."
            )
        x_BMC = vectors.flatten(1, -2)
        if self.projection is not None:
            x_BMC = self.projection(x_BMC.to(self.projection.weight.dtype))
        if self.positions is not None:
            x_BMC = with_positions(x_BMC, self.positions, tuple(vectors.shape[1:-1]))
        return InputArray(x_BMC, None if mask is None else mask.flatten(1), tuple(vectors.shape[1:-1]))


def with_positions(x_BMC: Tensor, positions: Positions, grid: tuple[int, ...]) -> Tensor:
    """Concatenates the positions of a grid to its elements; [B, M, C] -> [B, M, C + F]."""
    position_MF = positions(grid, device=x_BMC.device).to(x_BMC.dtype)
    return torch.cat([x_BMC, position_MF.expand(x_BMC.shape[0], -1, -1)], -1)


class ArrayOutput(OutputAdapter):
    """An array of vectors on a grid; the query of a vector is its position.

    Args:
        channels: channels of each vector.
        positions: the queries, and by their grid the shape of the output.
    """

    def __init__(self, channels: int, positions: Positions) -> None:
        super().__init__()
        self.channels = channels
        self.positions = positions
        self.query_channels = positions.channels

    def num_queries(self, encoded: Encoded) -> int:
        return math.prod(self.positions.grid)

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        q_PQ: Tensor = self.positions(indices=indices, device=encoded.latents.device)
        return q_PQ if q_PQ.dim() == 3 else q_PQ[None]

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns [B, *grid, channels], or [B, P, channels] at indices."""
        if indices is not None:
            return y_BOE
        return y_BOE.unflatten(1, self.positions.grid)
