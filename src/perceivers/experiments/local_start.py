"""A start from which small models learn text sooner: every attention begins by reading what stands nearby.

What tells most about a hidden byte is what stands beside it. Fresh weights attend to all places alike, and small
models take thousands of steps to find their neighbours. Here positions, queries and latents begin as sines and cosines
of their place, and each attention's queries and keys begin with the same weights, so that its scores are largest where
places agree. All of it is learned from there as usual. It is no part of the paper.

Shape suffixes: S places, C channels, K channels of a head
"""

import math

import torch
from torch import Tensor, nn

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.baselines.bert import BERT
from perceivers.model.attention import Attention
from perceivers.model.errors import PerceiversError
from perceivers.model.linear import lecun_normal_
from perceivers.model.perceiver_io import PerceiverIO

POSITION_STD, TOKEN_STD = 0.3, 0.1
"""Of positions and of the vectors of tokens: large enough to outlast the noise of the first steps."""

LATENT_STD = 1.0
"""Of the latents' places: what they read and compute is added to them, and must not hide them."""

ADDED = 0.3
"""What the encoder's layers add to latents begins as this part of the usual, for the same reason."""

GAIN = 2.0
"""How much larger than usual the weights of queries and keys begin, so that attention is sharp."""


@torch.no_grad()
def start_locally(model: PerceiverIO | BERT) -> None:
    """Changes the fresh weights of a language model.

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
    for name, weight in encoder.named_parameters():
        if name.endswith("output.weight"):
            weight.mul_(ADDED)
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
    """Queries and keys begin with the same weights, of the waves alone.

    Heads look at places that are spread evenly over `reach` around the query's own.
    """
    weight_KC = torch.empty(attention.key.out_features, channels)
    lecun_normal_(weight_KC)
    weight_KC *= GAIN
    attention.query.weight.zero_()
    attention.key.weight.zero_()
    attention.key.weight[:, :channels] = weight_KC
    heads = weight_KC.chunk(attention.heads)
    for head, (query_KC, key_KC) in enumerate(zip(attention.query.weight.chunk(len(heads)), heads, strict=True)):
        distance = ((head + 0.5) / len(heads) - 0.5) * reach
        query_KC[:, :channels] = moved(key_KC, distance * frequencies(length, channels))


def moved(weight_KC: Tensor, angle_F: Tensor) -> Tensor:
    """Weights that make of the waves of a place what `weight_KC` makes of those some places on.

    sin(x + a) = sin x cos a + cos x sin a, and cos(x + a) = cos x cos a - sin x sin a.
    """
    sine_KF, cosine_KF = weight_KC.chunk(2, 1)
    sin_F, cos_F = angle_F.sin(), angle_F.cos()
    return torch.cat([sine_KF * cos_F - cosine_KF * sin_F, sine_KF * sin_F + cosine_KF * cos_F], 1)
