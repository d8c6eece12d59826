"""Local attention as the initialization of small flow models, see `perceivers.model.local_attention`.

Shape suffixes: S positions, C channels, F frequencies, H heads
"""

import math

import torch

from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FramePairInput
from perceivers.model.local_attention import LATENT_STD, find_attentions, shrink_residual, tie_query_key
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, fourier_features

HEAD_SPREAD = 1.5  # side of the area that a latent's heads read, in distances between latents: areas overlap


@torch.no_grad()
def init_local_attention(model: PerceiverIO) -> None:
    """Spreads latents evenly over the frames; their heads read around them, and each query reads the nearest latent.

    Raises:
        PerceiversError: the frames are not concatenated, or latents have too few channels.
    """
    frames = model.inputs.get_as(FramePairInput, "frames")
    positions = frames.image.positions
    if not isinstance(positions, FourierPositions) or len(positions.grid) != 2:
        raise PerceiversError("model.initialization = local needs model.frames = concatenated.")
    count, width = model.encoder.latents.shape
    channels = 2 * 2 * positions.bands
    if width < channels:
        needed = f"model.channels of at least 4 * model.bands = {channels}, not {width}"
        raise PerceiversError(f"model.initialization = local needs {needed}.")
    grid = torch.tensor(positions.grid)
    rows, columns = choose_layout(count, positions.grid)
    position_S2 = 2 * spread_evenly(rows, columns) - 1
    position_S2 = position_S2 * grid / (grid - 1)  # positions of -1 and 1 are the centers of the outer elements
    features_SC = fourier_features(position_S2, positions.resolution, positions.bands)[:, 2:]
    model.encoder.latents[:, :channels] = LATENT_STD * math.sqrt(2) * features_SC
    shrink_residual(model.encoder)
    sides = zip(positions.grid, positions.resolution, strict=True)
    bands = [2 * math.pi / (side - 1) * torch.linspace(1, bound / 2, positions.bands) for side, bound in sides]
    frequency_2F = torch.stack(bands)
    first = frames.image.features.channels + 2  # after the features and the position itself
    of_elements, of_latents = slice(first, first + channels), slice(channels)
    stride_2 = grid / torch.tensor([rows, columns])
    for attention in find_attentions(model.encoder.cross_attentions):
        offset_H2 = spread_evenly(*choose_layout(attention.heads, (1, 1))) - 0.5
        angle_H2F = (HEAD_SPREAD * stride_2 * offset_H2)[..., None] * frequency_2F
        tie_query_key(attention, of_latents, of_elements, angle_H2F.flatten(1))
    for attention in find_attentions(model.decoder):
        tie_query_key(attention, of_elements, of_latents, torch.zeros(attention.heads, channels // 2))


def spread_evenly(rows: int, columns: int) -> torch.Tensor:
    """Returns the positions [S, 2] of the cells of a grid over the unit square, row by row."""
    return torch.cartesian_prod((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns)


def choose_layout(count: int, grid: tuple[int, ...]) -> tuple[int, int]:
    """Returns the rows and columns of `count` cells, as square as possible, that fill a grid of this size."""
    ratio = grid[0] / grid[1]
    layouts = ((rows, count // rows) for rows in range(1, count + 1) if count % rows == 0)
    return min(layouts, key=lambda sides: abs(math.log(sides[0] / sides[1] / ratio)))
