"""Rotary positions: attention that sees the distances between real times or coordinates.

Channels of queries and keys are rotated, in pairs, by angles that grow with their position, so that a score depends on
the difference of two positions (Su et al., 2021, "RoFormer"). With rotated values, what is read is relative to the
query's position, too (Azabou et al., 2023, "POYO").

Shape suffixes: B batch, H heads, M elements, G dimensions of a position, F pairs of channels, K channels of a head
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.config import Configurable

Stage = Literal["encoder", "processor", "decoder"]


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which the first 2 F channels of each head are rotated."""

    cos_BMF: Tensor
    sin_BMF: Tensor

    def inverse(self) -> "Rotation":
        """Returns the rotation by the negative angles."""
        return Rotation(self.cos_BMF, -self.sin_BMF)

    def flatten_batch(self, batch_size: int) -> "Rotation":
        """Returns the rotation of all examples one behind another, [1, B * M, F]."""
        return Rotation(*(array.expand(batch_size, -1, -1).flatten(0, 1)[None] for array in self))


def rotate(x_BHMK: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotates pairs of neighboring channels of each head; channels beyond the first 2 F stay as they are."""
    if rotation is None:
        return x_BHMK
    cos, sin = rotation.cos_BMF[:, None], rotation.sin_BMF[:, None]
    rotated, rest = x_BHMK.split([2 * cos.shape[-1], x_BHMK.shape[-1] - 2 * cos.shape[-1]], -1)
    a, b = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return torch.cat([pairs.flatten(-2).to(x_BHMK.dtype), rest], -1)


class RotaryPositions(Configurable, nn.Module):
    """Rotations by real positions of any number of dimensions, in periods spaced logarithmically.

    Args:
        channels: number of channels of each head to rotate: even, and a multiple of twice the dimensions. Each
            dimension rotates an equal share. No head may have fewer; further channels of a head are not rotated.
        min_period: shortest period, in the unit of the positions: the finest difference that matters.
        max_period: longest period: at least the largest difference.
        dimensions: G, number of dimensions of a position: 1 for times.
        rotate_values: the stages of the model in which values are rotated, too.

    Raises:
        PerceiversError: `channels` cannot be split into pairs for each dimension, or a period is out of range.
    """

    def __init__(
        self,
        channels: int,
        min_period: float,
        max_period: float,
        dimensions: int = 1,
        rotate_values: Sequence[Stage] = (),
    ) -> None:
        super().__init__()
        if channels < 2 or channels % (2 * dimensions):
            raise PerceiversError(
                f"channels = {channels} of rotary positions cannot be split into pairs for each of "
                f"dimensions = {dimensions}: choose a multiple of {2 * dimensions}."
            )
        if not 0 < min_period <= max_period < math.inf:
            raise PerceiversError(
                f"min_period = {min_period} and max_period = {max_period} are not allowed: "
                f"0 < min_period <= max_period is expected."
            )
        self.channels = channels
        self.min_period = min_period
        self.max_period = max_period
        self.dimensions = dimensions
        self.rotate_values = tuple(rotate_values)

    def forward(self, position_BMG: Tensor) -> Rotation:
        """Returns the rotation by positions [B, M, G], computed in float32 or wider."""
        dtype = torch.promote_types(position_BMG.dtype, torch.float32)
        count = self.channels // (2 * self.dimensions)
        low, high = math.log(self.min_period), math.log(self.max_period)
        period_f = torch.linspace(low, high, count, dtype=dtype, device=position_BMG.device).exp()
        angle_BMF = (2 * math.pi * position_BMG.to(dtype)[..., None] / period_f).flatten(-2)
        return Rotation(angle_BMF.cos(), angle_BMF.sin())
