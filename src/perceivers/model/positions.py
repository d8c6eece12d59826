"""Position encodings of any number of dimensions (Perceiver IO, appendix D).

Shape suffixes:
    B batch, P some elements, S all elements of the grid, G dimensions of the grid, F channels of the encoding
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.arguments import check_range
from perceivers.model.config import Configurable
from perceivers.model.eager import is_eager
from perceivers.model.linear import Linear, trunc_normal_parameter


class Positions(Configurable, nn.Module, ABC):
    """A position encoding of the elements of a grid, of time, of an image, of a volume, or of real coordinates.

    Attributes:
        grid: size of each dimension, as in training; empty for encodings of coordinates without a grid.
        channels: F, channels of the encoding.
        dimensions: G, if real coordinates can be encoded; else None.
    """

    grid: tuple[int, ...]
    channels: int
    dimensions: int | None = None

    @abstractmethod
    def forward(
        self, grid: tuple[int, ...] | None = None, indices: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Encodes the positions of a grid, or of some of its elements.

        Args:
            grid: size of each dimension; the grid of training, if not given.
            indices: integer indices into the flattened grid, last dimension fastest, [P] or [B, P]; all by default.
            device: where to compute what is not learned.

        Returns:
            [S, F] for all positions, else [P, F] or [B, P, F].
        """

    def encode(self, coordinates: Tensor) -> Tensor:
        """Encodes real coordinates, which need not be on a grid; [..., G] -> [..., F].

        Raises:
            PerceiversError: these positions are not defined between the elements of their grid, or not so far out.
        """
        raise PerceiversError(
            f"{type(self).__name__} exist on a grid only: use Fourier positions for real coordinates."
        )

    def adopt(self, pretrained: "Positions") -> dict[str, Tensor]:
        """Makes these positions, of a grid of any size, mean what those of a pretrained model mean.

        Returns:
            The weights, by name, that take the place of the pretrained ones; those that fit as they are are left out.
        """
        return {}


class FourierPositions(Positions):
    """The position, sines of all dimensions and their cosines, in `bands` frequencies per dimension.

    Positions are scaled to [-1, 1]; frequencies are spaced linearly from 1 to half the resolution.
    A model with these positions takes grids of other sizes than it was trained on: they span the same [-1, 1].

    Args:
        grid: size of each dimension in training.
        bands: number of frequencies per dimension.
        resolution: bounds the frequencies of each dimension; the grid, if not given.
        endpoint: whether the last position of n is 1; otherwise it is 1 - 2 / n, as in the queries of the released
            video autoencoder, which was trained on subsets of its outputs and computes their positions so.

    Examples:
        >>> import torch
        >>> positions = FourierPositions((8, 8), bands=4)  # frequencies 1, 2, 3, 4 in each of two dimensions
        >>> positions.channels, positions().shape
        (18, torch.Size([64, 18]))
        >>> positions.encode(torch.tensor([[0.5, -1.0]])).shape  # between two rows, in the first column
        torch.Size([1, 18])
    """

    def __init__(
        self,
        grid: Sequence[int],
        bands: int,
        resolution: Sequence[int] | None = None,
        endpoint: bool = True,
    ) -> None:
        super().__init__()
        if bands < 1:
            raise PerceiversError(f"bands = {bands} is not allowed: Fourier positions need at least 1.")
        self.grid = tuple(grid)
        self.bands = bands
        self.resolution = self.grid if resolution is None else tuple(resolution)
        self.endpoint = endpoint
        if len(self.resolution) != len(self.grid):
            raise PerceiversError(f"resolution = {self.resolution} must have a number for each of grid = {self.grid}.")
        self.dimensions = len(self.grid)
        self.channels = self.dimensions * (2 * bands + 1)

    def encode(self, coordinates: Tensor) -> Tensor:
        """Encodes coordinates from -1, the first element of the grid, to 1, the last one; [..., G] -> [..., F].

        Beyond, the highest frequencies would repeat what the model learned of other coordinates.
        """
        check_range("coordinates", coordinates, -1, 1, tolerance=1e-5)
        return fourier_features(coordinates, self.resolution, self.bands)

    def adopt(self, pretrained: Positions) -> dict[str, Tensor]:
        """Takes the frequencies: they are what the weights know, whatever the size of the grid."""
        if isinstance(pretrained, FourierPositions) and len(pretrained.grid) == len(self.grid):
            self.resolution = pretrained.resolution
            self.config["resolution"] = None if self.resolution == self.grid else self.resolution
        return {}

    def forward(
        self, grid: tuple[int, ...] | None = None, indices: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        grid = self.grid if grid is None else grid
        if len(grid) != len(self.grid):
            raise PerceiversError(f"positions have {len(self.grid)} dimensions, but the data has {len(grid)}: {grid}.")
        by_axis: Sequence[Tensor | None] = [None] * len(grid)
        if indices is not None:
            by_axis = torch.unravel_index(indices, grid)
        axes = [
            axis_features(size, resolution, self.bands, self.endpoint, index, device)
            for size, resolution, index in zip(grid, self.resolution, by_axis, strict=True)
        ]
        if indices is None:
            ones = [1] * (len(grid) - 1)
            axes = [
                axis.view(*ones[:place], -1, *ones[place:], axis.shape[-1]).expand(*grid, -1)
                for place, axis in enumerate(axes)
            ]
        parts = [axis.split([1, self.bands, self.bands], -1) for axis in axes]
        features = torch.cat([part for kind in zip(*parts, strict=True) for part in kind], -1)
        return features.flatten(0, -2) if indices is None else features


def axis_features(
    size: int, resolution: int, bands: int, endpoint: bool, index: Tensor | None, device: torch.device | None
) -> Tensor:
    """Returns the Fourier features along one dimension, or of some of its indices; -> [..., 2 * bands + 1].

    They are computed once per distinct index.
    """
    last = 1 if endpoint else 1 - 2 / size
    position_S1 = torch.linspace(-1, last, size, device=device, dtype=torch.float32)[:, None]
    if index is not None and is_eager() and index.numel() < size:
        return fourier_features(position_S1[index], (resolution,), bands)
    features = fourier_features(position_S1, (resolution,), bands)
    return features if index is None else features[index]


def fourier_features(position_PG: Tensor, resolution: tuple[int, ...], bands: int) -> Tensor:
    """[position, sines of all dimensions, cosines of all dimensions]; [..., G] -> [..., G * (2 * bands + 1)].

    Examples:
        >>> import torch
        >>> fourier_features(torch.tensor([[1.0]]), resolution=(4,), bands=2).round().abs()  # x, two sines, two cosines
        tensor([[1., 0., 0., 1., 1.]])
    """
    dtype = torch.promote_types(position_PG.dtype, torch.float32)
    frequencies = [torch.linspace(1, size / 2, bands, device=position_PG.device, dtype=dtype) for size in resolution]
    return sines_and_cosines(position_PG.to(dtype), torch.stack(frequencies))


def sines_and_cosines(position_PG: Tensor, frequency_Gf: Tensor) -> Tensor:
    """[x, sin(pi f x) of all dimensions, cos(pi f x) of all dimensions]; [..., G] -> [..., G * (2 * f + 1)]."""
    angle_PF = (math.pi * position_PG[..., None] * frequency_Gf).flatten(-2)
    return torch.cat([position_PG, angle_PF.sin(), angle_PF.cos()], -1)


def grid_coordinates(grid: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Returns the coordinates of the elements of a grid that spans [-1, 1] in each dimension; [S, G].

    Examples:
        >>> grid_coordinates((2, 3)).tolist()
        [[-1.0, -1.0], [-1.0, 0.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 0.0], [1.0, 1.0]]
    """
    axes = [torch.linspace(-1, 1, size, device=device) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)


class FourierFeatures(Positions):
    """Sines and cosines of real coordinates in any frequencies, and the coordinates; in any range, without a grid.

    Args:
        dimensions: G, number of dimensions of the coordinates.
        frequencies: f, in half periods per unit: each dimension x gives sin(pi f x) and cos(pi f x) for each.
        projection: channels to which a linear layer projects the features; None for no layer.

    `FourierFeatures(3, [2**k for k in range(8)], projection=512)` are those of 3DShape2VecSet (Zhang et al., 2023).

    Examples:
        >>> import torch
        >>> FourierFeatures(1, [1, 2, 4]).encode(torch.tensor([[0.0]]))
        tensor([[0., 0., 0., 0., 1., 1., 1.]])
    """

    grid = ()

    def __init__(self, dimensions: int, frequencies: Sequence[float], projection: int | None = None) -> None:
        super().__init__()
        if dimensions < 1 or not frequencies:
            raise PerceiversError("Fourier features need at least one dimension and one frequency.")
        self.dimensions: int = dimensions
        self.frequencies = tuple(frequencies)
        channels = dimensions * (2 * len(self.frequencies) + 1)
        self.projection = nn.Identity() if projection is None else Linear(channels, projection)
        self.channels = channels if projection is None else projection

    def encode(self, coordinates: Tensor) -> Tensor:
        """[coordinates, sines of all dimensions, cosines of all dimensions], projected; [..., G] -> [..., F]."""
        dtype = torch.promote_types(coordinates.dtype, torch.float32)
        frequency_f = torch.tensor(self.frequencies, dtype=dtype, device=coordinates.device)
        features = sines_and_cosines(coordinates.to(dtype), frequency_f[None])
        if isinstance(self.projection, Linear):
            features = features.to(self.projection.weight.dtype)
        return self.projection(features)

    def forward(
        self, grid: tuple[int, ...] | None = None, indices: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        raise PerceiversError("Fourier features have no grid: give real coordinates.")


class LearnedPositions(Positions):
    """A learned vector for every element of a grid of fixed size.

    Args:
        grid: size of each dimension.
        channels: F, channels of each vector.
        projected: pass the vectors through a linear layer, as the released ImageNet model does.

    Examples:
        >>> LearnedPositions((8, 8), channels=32)().shape
        torch.Size([64, 32])
    """

    def __init__(self, grid: Sequence[int], channels: int, projected: bool = False) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.channels = channels
        self.table_SF = trunc_normal_parameter(math.prod(self.grid), channels)
        self.projection = Linear(channels, channels) if projected else nn.Identity()

    def adopt(self, pretrained: Positions) -> dict[str, Tensor]:
        """Interpolates the vectors to this grid. A sequence, of one dimension, keeps the vectors of its elements."""
        rank = len(self.grid)
        if not isinstance(pretrained, LearnedPositions) or pretrained.grid == self.grid:
            return {}
        if rank not in (2, 3) or len(pretrained.grid) != rank:
            return {}
        table_1F = pretrained.table_SF.detach().float().T.unflatten(1, pretrained.grid)[None]
        mode = "bicubic" if rank == 2 else "trilinear"
        resized_1F = nn.functional.interpolate(table_1F, self.grid, mode=mode, antialias=rank == 2)
        return {"table_SF": resized_1F[0].flatten(1).T}

    def forward(
        self, grid: tuple[int, ...] | None = None, indices: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        if grid is not None and tuple(grid) != self.grid:
            raise PerceiversError(
                f"learned positions exist for a grid of {self.grid} only, but the data has {tuple(grid)}: "
                f"bring the data to that size, or use Fourier positions."
            )
        return self.projection(self.table_SF if indices is None else self.table_SF[indices])
