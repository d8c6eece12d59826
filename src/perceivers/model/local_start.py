"""A start from which small models learn sooner: every attention begins by reading what stands nearby.

The most informative context for a masked byte or a moving pixel is its neighborhood. Fresh weights attend to all places
alike, and small models take thousands of steps to find their neighbors. Here positions, queries and latents begin as
sines and cosines of their place, and each attention's queries and keys begin with the same weights, so that its scores
are largest where places agree. All of it is learned from there as usual. It is no part of the paper. This file has
what the domains that do so share.

Shape suffixes: C channels, F frequencies, H heads, K channels of a head
"""

import torch
from torch import Tensor, nn

from perceivers.model.attention import Attention
from perceivers.model.linear import lecun_normal_
from perceivers.model.perceiver_io import Encoder

LATENT_STD = 1.0
"""Of the latents' places: what they read and compute is added to them, and must not hide them."""

ADDED = 0.3
"""What the encoder's layers add to latents begins as this part of the usual, for the same reason."""

GAIN = 2.0
"""How much larger than usual the weights of queries and keys begin, so that attention is sharp."""


def attentions(module: nn.Module) -> list[Attention]:
    """Every attention inside."""
    return [part for part in module.modules() if isinstance(part, Attention)]


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
