"""A start from which small models learn sooner: every attention begins by reading what stands nearby.

What tells most about a hidden byte, or about where a pixel moves, is what stands beside it. Fresh weights attend to all
places alike, and small models take thousands of steps to find their neighbours. Here positions, queries and latents
begin as sines and cosines of their place, and each attention's queries and keys begin with the same weights, so that
its scores are largest where places agree. All of it is learned from there as usual. It is no part of the paper.

Shape suffixes: S places, C channels, F frequencies, H heads, K channels of a head, G dimensions of a place
"""

import math

import torch
from torch import Tensor, nn

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FramePairInput
from perceivers.model.attention import Attention
from perceivers.model.linear import lecun_normal_
from perceivers.model.perceiver_io import Encoder, PerceiverIO
from perceivers.model.positions import FourierPositions, fourier_features
from perceivers.text.bert import BERT

POSITION_STD, TOKEN_STD = 0.3, 0.1
"""Of positions and of the vectors of tokens: large enough to outlast the noise of the first steps."""

LATENT_STD = 1.0
"""Of the latents' places: what they read and compute is added to them, and must not hide them."""

ADDED = 0.3
"""What the encoder's layers add to latents begins as this part of the usual, for the same reason."""

GAIN = 2.0
"""How much larger than usual the weights of queries and keys begin, so that attention is sharp."""

REACH = 1.5
"""Over how much of the way to its neighbours a latent's heads are spread in frames, so that areas overlap."""


@torch.no_grad()
def start_locally(model: PerceiverIO | BERT) -> None:
    """Changes the fresh weights of a language model or of one of optical flow.

    Raises:
        PerceiversError: its sizes do not allow it.
    """
    if "text" not in model.inputs:
        assert isinstance(model, PerceiverIO)
        start_flow(model)
        return
    text = model.inputs["text"]
    assert isinstance(text, TextInput)
    length, channels = text.length, text.channels
    if channels % 2:
        raise PerceiversError(f"model.start = local needs an even number of channels of a token, not {channels}.")
    text.embedding.weight.normal_(std=TOKEN_STD)
    text.positions.table_SF.copy_(POSITION_STD * waves(torch.arange(length), length, channels))
    if isinstance(model, BERT):
        for attention in attentions(model):
            attend_nearby(attention, length, channels, reach=attention.heads)
        return
    output, encoder = model.outputs["text"], model.encoder
    assert isinstance(output, TextOutput)
    count, width = encoder.latents.shape
    if width < channels:
        raise PerceiversError(
            f"model.start = local needs latents of at least as many channels as tokens have: "
            f"model.channels = {width}, but model.embedding_channels = {channels}."
        )
    stride = length / count
    output.positions.table_SF.copy_(text.positions.table_SF)
    encoder.latents[:, :channels] = LATENT_STD * waves((torch.arange(count) + 0.5) * stride - 0.5, length, channels)
    add_less(encoder)
    for attention in attentions(encoder.cross_attentions):  # a latent's heads share the places that it stands for
        attend_nearby(attention, length, channels, reach=stride)
    for attention in attentions(model.decoder):  # a query's heads have a latent each
        attend_nearby(attention, length, channels, reach=stride * attention.heads)


def attentions(module: nn.Module) -> list[Attention]:
    """Every attention inside."""
    return [part for part in module.modules() if isinstance(part, Attention)]


def waves(place_S: Tensor, length: int, channels: int) -> Tensor:
    """Sines, then cosines, of places in a text, from half a wave to one every two places; [S] -> [S, C]."""
    angle_SF = place_S[:, None] * frequencies(length, channels)
    return math.sqrt(2) * torch.cat([angle_SF.sin(), angle_SF.cos()], 1)


def frequencies(length: int, channels: int) -> Tensor:
    """Radians from one place to the next, of each sine; [C / 2]."""
    return 2 * math.pi / length * torch.logspace(math.log10(0.5), math.log10(max(length / 2, 0.5)), channels // 2)


def attend_nearby(attention: Attention, length: int, channels: int, reach: float) -> None:
    """Heads look at places of a text that are spread evenly over `reach` around the query's own."""
    distance_H1 = (torch.arange(attention.heads)[:, None] + 0.5) / attention.heads * reach - reach / 2
    align(attention, slice(channels), slice(channels), distance_H1 * frequencies(length, channels))


def start_flow(model: PerceiverIO) -> None:
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


def add_less(encoder: Encoder) -> None:
    """What layers add to latents begins smaller."""
    for name, weight in encoder.named_parameters():
        if name.endswith("output.weight"):
            weight.mul_(ADDED)


def align(attention: Attention, queries: slice, keys: slice, angle_HF: Tensor) -> None:
    """Queries and keys begin with the same weights, of the waves alone, which stand in these channels of each.

    Args:
        attention: is changed.
        queries: channels of the queries with the sines, then the cosines, of their places.
        keys: channels with the sines, then the cosines, of their places.
        angle_HF: how much further in each wave than the query the place is that a head looks at, in radians.
    """
    weight_KC = torch.empty(attention.key.out_features, 2 * angle_HF.shape[1])
    lecun_normal_(weight_KC)
    weight_KC *= GAIN
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    attention.key.weight[:, keys] = weight_KC
    heads = attention.query.weight.chunk(attention.heads), weight_KC.chunk(attention.heads), angle_HF
    for query_KC, key_KC, angle_F in zip(*heads, strict=True):
        query_KC[:, queries] = moved(key_KC, angle_F)


def moved(weight_KC: Tensor, angle_F: Tensor) -> Tensor:
    """Weights that make of the waves of a place what `weight_KC` makes of those some angles on.

    sin(x + a) = sin x cos a + cos x sin a, and cos(x + a) = cos x cos a - sin x sin a.
    """
    sine_KF, cosine_KF = weight_KC.chunk(2, 1)
    sin_F, cos_F = angle_F.sin(), angle_F.cos()
    return torch.cat([sine_KF * cos_F - cosine_KF * sin_F, sine_KF * sin_F + cosine_KF * cos_F], 1)
