"""Linear layers, GELU, and learned arrays, initialized as in the original code.

Shape suffixes: C input channels, E output channels
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.model.sizes import Gelu

Activation = Gelu | Literal["silu"]
"""GELU by its tanh approximation ("tanh") or exactly ("exact"), or SiLU."""


class Linear(nn.Linear):
    """A linear layer: weights from a truncated normal distribution of variance 1 / fan-in, zero bias.

    Attributes:
        linear_kernel: computes the product; `kernels.optimize` may choose a faster one.
    """

    linear_kernel: Callable[..., Tensor] = staticmethod(F.linear)

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., E]."""
        return self.linear_kernel(input, self.weight, self.bias)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Computes an activation function."""
    if activation == "silu":
        return F.silu(x)
    return F.gelu(x, approximate="none" if activation == "exact" else activation)


def lecun_normal_(weight: Tensor) -> None:
    """Fills `weight` from a normal distribution of variance 1 / fan-in, truncated at two standard deviations."""
    std = 1 / math.sqrt(weight[0].numel()) / 0.87962566103423978  # std of a unit normal truncated at +-2
    trunc_normal_(weight, std)


def trunc_normal_parameter(*shape: int) -> nn.Parameter:
    """Returns a learned array (latents, positions, queries), from a truncated normal distribution of std 0.02."""
    return nn.Parameter(trunc_normal_(torch.empty(shape), std=0.02))


@torch.no_grad()
def trunc_normal_(array: Tensor, std: float) -> Tensor:
    """Fills `array` from a normal distribution truncated at two standard deviations, by the inverse of its CDF.

    It is much faster than `torch.nn.init.trunc_normal_`, which uses rejection sampling.
    """
    if array.is_meta:
        return array  # the meta device has no values, but takes time to compute them
    bound = math.erf(math.sqrt(2))
    return array.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)
