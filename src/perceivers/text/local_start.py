"""The local start of small language models, see `perceivers.model.local_attention`.

Shape suffixes: S places, C channels, F frequencies, H heads
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
"""Of positions and of the vectors of tokens: large enough to outlast the noise of the first steps."""


@torch.no_grad()
def start_locally(model: PerceiverIO | BERT) -> None:
    """Changes the fresh weights of a language model: latents stand evenly over the text, heads read around them.

    Raises:
        PerceiversError: its sizes do not allow it.
    """
    text = model.inputs["text"]
    assert isinstance(text, TextInput)
    length, channels = text.length, text.channels
    if channels % 2:
        raise PerceiversError(f"model.start = local needs an even number of channels of a token, not {channels}.")
    text.embedding.weight.normal_(std=TOKEN_STD)
    text.positions.table_SF.copy_(POSITION_STD * waves(torch.arange(length), length, channels))
    if isinstance(model, BERT):
        for attention in find_attentions(model):
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
    shrink_residual(encoder)
    for attention in find_attentions(encoder.cross_attentions):  # a latent's heads share the places that it stands for
        attend_nearby(attention, length, channels, reach=stride)
    for attention in find_attentions(model.decoder):  # a query's heads have a latent each
        attend_nearby(attention, length, channels, reach=stride * attention.heads)


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
    tie_query_key(attention, slice(channels), slice(channels), distance_H1 * frequencies(length, channels))
