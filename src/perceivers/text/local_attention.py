"""Local initialization of small language models, see `perceivers.model.local_attention`.

Shape suffixes: S positions, C channels, F frequencies, H heads
"""

import math

import torch
from torch import Tensor

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.model.attention import Attention
from perceivers.model.local_attention import LATENT_STD, find_attentions, shrink_residual, tie_query_key
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.bert import BERT

POSITION_STD, TOKEN_STD = 0.3, 0.1
"""Standard deviations of positions and token embeddings: large enough to outlast the noise of the first steps."""


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
