"""The local start of small flow models, see `perceivers.model.local_start`.

Shape suffixes: S places, C channels, F frequencies, H heads
"""

import math

import torch

from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FramePairInput
from perceivers.model.local_start import LATENT_STD, add_less, align, attentions
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, fourier_features

REACH = 1.5
"""Over how much of the way to its neighbors a latent's heads are spread in frames, so that areas overlap."""


@torch.no_grad()
def start_locally(model: PerceiverIO) -> None:
    """Latents stand evenly over the frames; their heads read around them, queries the latent that they are nearest to.

    Raises:
        PerceiversError: the model's sizes or its kind do not allow it.
    """
    frames = model.inputs["frames"]
    assert isinstance(frames, FramePairInput)
    positions = frames.image.positions
    if not isinstance(positions, FourierPositions) or len(positions.grid) != 2:
        raise PerceiversError("model.start = local needs frames = concatenated.")
    count, width = model.encoder.latents.shape
    channels = 2 * 2 * positions.bands
    if width < channels:
        raise PerceiversError(
            f"model.start = local needs latents of at least 4 channels for each of model.bands = {positions.bands}: "
            f"model.channels = {width} are fewer."
        )
    grid = torch.tensor(positions.grid)
    rows, columns = layout(count, positions.grid)
    place_S2 = torch.cartesian_prod(*((torch.arange(many) + 0.5) / many for many in (rows, columns)))
    place_S2 = (2 * place_S2 - 1) * grid / (grid - 1)  # positions of -1 and 1 are the middles of the outer elements
    waves_SC = fourier_features(place_S2, positions.resolution, positions.bands)[:, 2:]
    model.encoder.latents[:, :channels] = LATENT_STD * math.sqrt(2) * waves_SC
    add_less(model.encoder)
    frequency_2F = torch.stack(
        [2 * math.pi / (side - 1) * torch.linspace(1, bound / 2, positions.bands)
         for side, bound in zip(positions.grid, positions.resolution, strict=True)]
    )  # fmt: skip
    first = frames.image.features.channels + 2  # after the features and the position itself
    elements, places = slice(first, first + channels), slice(channels)
    stride_2 = grid / torch.tensor([rows, columns])
    for attention in attentions(model.encoder.cross_attentions):
        rows, columns = layout(attention.heads, (1, 1))
        offset_H2 = torch.cartesian_prod(*((torch.arange(many) + 0.5) / many - 0.5 for many in (rows, columns)))
        angle_H2F = (REACH * stride_2 * offset_H2)[..., None] * frequency_2F
        align(attention, places, elements, angle_H2F.flatten(1))
    for attention in attentions(model.decoder):
        align(attention, elements, places, torch.zeros(attention.heads, channels // 2))


def layout(count: int, grid: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of `count` places, as square as can be, over a grid of this size."""
    ratio = grid[0] / grid[1]
    return min(
        ((rows, count // rows) for rows in range(1, count + 1) if count % rows == 0),
        key=lambda sides: abs(math.log(sides[0] / sides[1] / ratio)),
    )
