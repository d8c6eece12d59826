"""An initialization from which small models of masked bytes learn sooner: every attention begins by reading nearby.

The most informative context for a masked byte is its neighborhood. Fresh weights attend uniformly, and small models
take thousands of steps to find their neighbors. Here positions, queries and latents begin as sines and cosines of their
positions, and each attention's queries and keys begin with the same weights, so that its scores are largest where
positions agree. All of it is trained as usual. It is not part of the paper.

Shape suffixes: S positions, C channels, F frequencies, H heads, K channels of a head
"""

import math

import torch
from torch import Tensor, nn

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.model.attention import Attention
from perceivers.model.encoder import Encoder
from perceivers.model.linear import lecun_normal_
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.bert import BERT

POSITION_STD, TOKEN_STD = 0.3, 0.1
"""Standard deviations of positions and token embeddings: large enough to outlast the noise of the first steps."""

LATENT_STD = 1.0
"""Standard deviation of the positional part of latents, which must not be hidden by what layers add."""

RESIDUAL_SCALE = 0.3
"""Factor of the initial output weights of the encoder's layers, for the same reason."""

QK_GAIN = 2.0
"""Factor of the initial weights of queries and keys, which makes attention sharp."""


@torch.no_grad()
def init_local_attention(model: PerceiverIO | BERT) -> None:
    """Changes the initial weights of a language model: latents are spread evenly over the text, heads attend nearby.

    Raises:
        PerceiversError: the model's sizes do not allow it.
    """
    text = model.inputs.get_as(TextInput, "text")
    length, channels = text.length, text.channels
    if channels % 2:
        raise PerceiversError(
            f"model.initialization = local needs an even number of channels of a token, not {channels}."
        )
    text.embedding.weight.normal_(std=TOKEN_STD)
    text.positions.table_SF.copy_(POSITION_STD * sinusoids(torch.arange(length), length, channels))
    if isinstance(model, BERT):
        for attention in find_attentions(model):
            attend_nearby(attention, length, channels, reach=attention.heads)
        return
    output, encoder = model.outputs.get_as(TextOutput, "text"), model.encoder
    count, width = encoder.latents.shape
    if width < channels:
        raise PerceiversError(
            f"model.initialization = local needs latents with at least as many channels as tokens: "
            f"model.channels = {width}, but model.embedding_channels = {channels}."
        )
    stride = length / count
    if output.positions is not None:
        output.positions.table_SF.copy_(text.positions.table_SF)
    encoder.latents[:, :channels] = LATENT_STD * sinusoids((torch.arange(count) + 0.5) * stride - 0.5, length, channels)
    shrink_residual(encoder)
    for attention in find_attentions(encoder.cross_attentions):  # a latent's heads share its stretch of the text
        attend_nearby(attention, length, channels, reach=stride)
    for attention in find_attentions(model.decoder):  # each of a query's heads reads another latent
        attend_nearby(attention, length, channels, reach=stride * attention.heads)


def sinusoids(position_S: Tensor, length: int, channels: int) -> Tensor:
    """Returns sines, then cosines, of positions in a text, of half a period to length / 2 periods; [S] -> [S, C]."""
    angle_SF = position_S[:, None] * frequencies(length, channels)
    return math.sqrt(2) * torch.cat([angle_SF.sin(), angle_SF.cos()], 1)


def frequencies(length: int, channels: int) -> Tensor:
    """Returns the frequencies of the sines in radians per token; [C / 2]."""
    return 2 * math.pi / length * torch.logspace(math.log10(0.5), math.log10(max(length / 2, 0.5)), channels // 2)


def attend_nearby(attention: Attention, length: int, channels: int, reach: float) -> None:
    """Makes heads attend to positions spread evenly over `reach` tokens around the query's position."""
    distance_H1 = (torch.arange(attention.heads)[:, None] + 0.5) / attention.heads * reach - reach / 2
    tie_query_key(attention, slice(channels), slice(channels), distance_H1 * frequencies(length, channels))


def find_attentions(module: nn.Module) -> list[Attention]:
    """Returns all attentions of a module."""
    return [part for part in module.modules() if isinstance(part, Attention)]


def shrink_residual(encoder: Encoder) -> None:
    """Shrinks what layers add to the latents at first."""
    for name, weight in encoder.named_parameters():
        if name.endswith("output.weight"):
            weight.mul_(RESIDUAL_SCALE)


def tie_query_key(attention: Attention, queries: slice, keys: slice, angle_HF: Tensor) -> None:
    """Makes queries and keys begin with the same weights, which read only the sinusoids in the given channels.

    Args:
        attention: its weights are changed.
        queries: channels of the queries with the sines, then the cosines, of their positions.
        keys: channels of the inputs with the sines, then the cosines, of their positions.
        angle_HF: phase in radians, in each frequency, from the query to the position that a head reads.
    """
    weight_KC = torch.empty(attention.key.out_features, 2 * angle_HF.shape[1])
    lecun_normal_(weight_KC)
    weight_KC *= QK_GAIN
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    attention.key.weight[:, keys] = weight_KC
    heads = attention.query.weight.chunk(attention.heads), weight_KC.chunk(attention.heads), angle_HF
    for query_KC, key_KC, angle_F in zip(*heads, strict=True):
        query_KC[:, queries] = rotate_phase(key_KC, angle_F)


def rotate_phase(weight_KC: Tensor, angle_F: Tensor) -> Tensor:
    """Returns weights whose product with a position's sinusoids is that of `weight_KC` with those at larger angles.

    sin(x + a) = sin x cos a + cos x sin a, and cos(x + a) = cos x cos a - sin x sin a.
    """
    sine_KF, cosine_KF = weight_KC.chunk(2, 1)
    sin_F, cos_F = angle_F.sin(), angle_F.cos()
    return torch.cat([sine_KF * cos_F - cosine_KF * sin_F, sine_KF * sin_F + cosine_KF * cos_F], 1)
