"""An initialization from which small models learn sooner: every attention begins by reading its neighborhood.

The most informative context for a masked byte or a moving pixel is its neighborhood. Fresh weights attend uniformly,
and small models take thousands of steps to find their neighbors. Here positions, queries and latents begin as sines and
cosines of their positions, and each attention's queries and keys begin with the same weights, so that its scores are
largest where positions agree. All of it is trained as usual. It is not part of the paper.

Shape suffixes: C channels, F frequencies, H heads, K channels of a head
"""

import torch
from torch import Tensor, nn

from perceivers.model.attention import Attention
from perceivers.model.encoder import Encoder
from perceivers.model.linear import lecun_normal_

LATENT_STD = 1.0
"""Standard deviation of the positional part of latents, which must not be hidden by what layers add."""

RESIDUAL_SCALE = 0.3
"""Factor of the initial output weights of the encoder's layers, for the same reason."""

QK_GAIN = 2.0
"""Factor of the initial weights of queries and keys, which makes attention sharp."""


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
