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
    """Rotations by real positions of any number of dimensions.

    Args:
        periods: in the unit of the positions, one for each pair of channels of a head that a dimension rotates, from
            the finest difference that matters to the largest, see `spaced_periods`. Further channels are not rotated.
        dimensions: G, number of dimensions of a position: 1 for times.
        rotate_values: the stages of the model in which values are rotated, too.

    Attributes:
        channels: 2 F, number of channels of each head that are rotated.

    Raises:
        PerceiversError: there are no periods, or one is not positive.

    Examples:
        >>> import torch
        >>> from perceivers import InputArray, PerceiverIO, spaced_periods
        >>> from perceivers.adapters import ArrayInput, LabelOutput
        >>> rotary = RotaryPositions(spaced_periods(4, 0.01, 10.0))  # times in seconds
        >>> inputs, outputs = {"events": ArrayInput(8)}, {"label": LabelOutput(2)}
        >>> model = PerceiverIO(inputs, outputs, latents=4, channels=32, depth=1, heads=2, rotary=rotary)
        >>> events = InputArray(torch.randn(2, 50, 8), coordinates_BMG=torch.rand(2, 50, 1))
        >>> encoded = model.encode({"events": events}, latent_coordinates=torch.linspace(0, 1, 4)[:, None])
        >>> model.decode(encoded)["label"].shape
        torch.Size([2, 2])
    """

    def __init__(self, periods: Sequence[float], dimensions: int = 1, rotate_values: Sequence[Stage] = ()) -> None:
        super().__init__()
        if not periods or not all(0 < period < math.inf for period in periods):
            raise PerceiversError(f"periods = {list(periods)} are not allowed: positive numbers are expected.")
        self.periods = tuple(periods)
        self.dimensions = dimensions
        self.rotate_values = tuple(rotate_values)
        self.channels = 2 * dimensions * len(periods)

    def forward(self, position_BMG: Tensor) -> Rotation:
        """Returns the rotation by positions [B, M, G], computed in float32 or wider."""
        dtype = torch.promote_types(position_BMG.dtype, torch.float32)
        frequency_f = torch.tensor([2 * math.pi / period for period in self.periods], dtype=dtype)
        angle_BMF = (position_BMG.to(dtype)[..., None] * frequency_f.to(position_BMG.device)).flatten(-2)
        return Rotation(angle_BMF.cos(), angle_BMF.sin())


def spaced_periods(count: int, shortest: float, longest: float) -> list[float]:
    """Returns periods from the shortest to the longest, each the same factor times the one before.

    Examples:
        >>> spaced_periods(3, 0.25, 4.0)
        [0.25, 1.0, 4.0]
    """
    return [shortest * (longest / shortest) ** (index / max(1, count - 1)) for index in range(count)]
