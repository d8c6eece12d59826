"""Arrays as they are: for data that needs no adapter of its own. Shape suffixes as in `perceivers.model.adapter`."""

import math
from typing import Any

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, Indices, InputAdapter, InputArray, OutputAdapter, read_input
from perceivers.model.arguments import check_coordinates
from perceivers.model.linear import Linear
from perceivers.model.positions import Positions, grid_coordinates
from perceivers.model.ragged import Ragged


class ArrayInput(InputAdapter):
    """An array of vectors on a grid of any number of dimensions, or, without positions, a set of vectors.

    Args:
        channels: channels of each vector.
        positions: encodes where a vector is, on a grid or at real coordinates, and is concatenated to it; None for a
            set.
        projection: channels to which a linear layer projects the vectors before that; None for no layer.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> ArrayInput(2, FourierPositions((10, 10), bands=4))(torch.randn(5, 10, 10, 2)).x_BMC.shape  # 2 + 18 channels
        torch.Size([5, 100, 20])
        >>> ArrayInput(2)(torch.randn(5, 7, 2)).x_BMC.shape  # a set
        torch.Size([5, 7, 2])
    """

    def __init__(self, channels: int, positions: Positions | None = None, projection: int | None = None) -> None:
        super().__init__()
        self.data_channels = channels
        self.positions = positions
        self.projection = None if projection is None else Linear(channels, projection)
        self.channels = (projection or channels) + (0 if positions is None else positions.channels)

    def forward(self, data: Tensor | InputArray | Ragged) -> InputArray:
        """Takes vectors [B, *grid, channels], or `InputArray(vectors, mask)` with a mask of shape [B, *grid].

        Vectors at real coordinates are `InputArray(vectors [B, M, channels], coordinates_BMG=coordinates)`; sets and
        such vectors can be ragged.
        """
        vectors, mask, _, coordinates, offsets = read_input(data, channel_dims=1)
        on_grid = self.positions is not None and coordinates is None
        if on_grid and self.positions is not None and (offsets is not None or not self.positions.grid):
            raise PerceiversError("an array without a grid was given: its vectors need coordinates.")
        rank = len(self.positions.grid) if self.positions is not None and on_grid else 1
        if vectors.dim() != rank + 2 or vectors.shape[-1] != self.data_channels:
            raise PerceiversError(
                f"an array of shape {tuple(vectors.shape)} was given, but [batch, "
                f"{rank} dimension{'s' if rank > 1 else ''}, {self.data_channels} channels] is expected."
            )
        x_BMC = vectors.flatten(1, -2)
        if self.projection is not None:
            x_BMC = self.projection(x_BMC.to(self.projection.weight.dtype))
        if self.positions is not None and coordinates is not None:
            check_coordinates("coordinates of an array", coordinates, vectors.shape[:2], self.positions.dimensions)
            x_BMC = torch.cat([x_BMC, self.positions.encode(coordinates).to(x_BMC.dtype)], -1)
        elif self.positions is not None:
            x_BMC = with_positions(x_BMC, self.positions, tuple(vectors.shape[1:-1]))
        grid = None if offsets is not None else tuple(vectors.shape[1:-1])
        return InputArray(x_BMC, None if mask is None else mask.flatten(1), grid, coordinates, offsets)


def with_positions(x_BMC: Tensor, positions: Positions, grid: tuple[int, ...]) -> Tensor:
    """Concatenates the positions of a grid to its elements; [B, M, C] -> [B, M, C + F]."""
    position_MF = positions(grid, device=x_BMC.device).to(x_BMC.dtype)
    return torch.cat([x_BMC, position_MF.expand(x_BMC.shape[0], -1, -1)], -1)


class ArrayOutput(OutputAdapter):
    """An array of vectors on a grid, or at any real coordinates; the query of a vector is its position.

    Args:
        channels: channels of each vector.
        positions: the queries, and by their grid the shape of the output. `FourierPositions` can be decoded at real
            coordinates, too, between the elements of their grid; `FourierFeatures` are at coordinates only.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions, PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> output = ArrayOutput(3, FourierPositions((4, 4), bands=2))
        >>> model = PerceiverIO({"points": ArrayInput(2)}, {"map": output}, latents=4, channels=16, depth=1)
        >>> encoded = model.encode({"points": torch.randn(5, 7, 2)})
        >>> model.decode(encoded)["map"].shape
        torch.Size([5, 4, 4, 3])
        >>> model.decode(encoded, {"map": torch.tensor([[0.25, -0.5]])})["map"].shape  # between the elements
        torch.Size([5, 1, 3])
    """

    takes_ragged = True

    def __init__(self, channels: int, positions: Positions) -> None:
        super().__init__()
        self.channels = channels
        self.positions = positions
        self.query_channels = positions.channels
        self.coordinate_dims = positions.dimensions

    def num_queries(self, encoded: Encoded) -> int:
        return math.prod(self.positions.grid) if self.positions.grid else 0

    def queries(self, encoded: Encoded, indices: Indices | None = None) -> Tensor:
        values = indices.values if isinstance(indices, Ragged) else indices
        if values is not None and values.is_floating_point():
            q_PQ = self.positions.encode(values)
        else:
            q_PQ = self.positions(indices=values, device=encoded.latents.device)
        return q_PQ if q_PQ.dim() == 3 else q_PQ[None]

    def query_coordinates(self, encoded: Encoded, indices: Indices | None = None) -> Tensor | None:
        values = indices.values if isinstance(indices, Ragged) else indices
        if self.coordinate_dims is None or (values is not None and values.is_floating_point()):
            return super().query_coordinates(encoded, indices)
        coordinates = grid_coordinates(self.positions.grid, encoded.latents.device)
        coordinates = coordinates if values is None else coordinates[values]
        return coordinates if coordinates.dim() == 3 else coordinates[None]

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Any = None) -> Tensor:
        """Returns [B, *grid, channels], or [B, P, channels] at indices or coordinates."""
        if indices is not None:
            return y_BOE
        return y_BOE.unflatten(1, self.positions.grid)
