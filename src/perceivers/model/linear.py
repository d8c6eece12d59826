"""Linear layers and how weights are initialised, as in the original code.

Shape suffixes: C input channels, E output channels
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula


class Linear(nn.Linear):
    """A linear layer with a bias: truncated normal of variance 1 / fan-in, zero bias; multiplied as `project` does."""

    def reset_parameters(self) -> None:
        lecun_normal_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """[..., C] -> [..., E]."""
        return project(input, self.weight, self.bias)


def lecun_normal_(weight: Tensor) -> None:
    """Fills `weight` from a normal of variance 1 / fan-in, truncated at two standard deviations before scaling."""
    std = 1 / math.sqrt(weight[0].numel()) / 0.87962566103423978  # std of a unit normal truncated at +-2
    truncated_normal_(weight, std)


def learned(*shape: int) -> nn.Parameter:
    """A learned array (latents, positions, queries), truncated normal of std 0.02."""
    return nn.Parameter(truncated_normal_(torch.empty(shape), std=0.02))


@torch.no_grad()
def truncated_normal_(array: Tensor, std: float) -> Tensor:
    """Fills `array` from a normal truncated at two of its standard deviations, by the inverse of its distribution.

    A large model is made in seconds so; `torch.nn.init.trunc_normal_`, which draws again what falls outside, takes 18
    times as long.
    """
    bound = math.erf(math.sqrt(2))
    return array.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)


def project(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """X W^T + b; [..., C] -> [..., E].

    This is `torch.nn.functional.linear`, but by the faster of the two libraries of matrix products that torch has for
    float32 on processors with AVX-512: oneDNN instead of MKL.
    """
    if not by_onednn(x, weight_EC):
        return F.linear(x, weight_EC, bias_E)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight_EC, bias_E)):
        return Projection.apply(x, weight_EC, bias_E)  # type: ignore[no-untyped-call]
    return onednn(x, weight_EC, bias_E)


def by_onednn(x: Tensor, weight_EC: Tensor) -> bool:
    """Whether oneDNN multiplies these: plain float32 arrays on a processor on which it is the faster library.

    They must have no gaps: with a transposed matrix that has, its operator was seen not to come back.
    """
    return (
        x.dtype == weight_EC.dtype == torch.float32
        and x.is_contiguous()
        and (weight_EC.is_contiguous() or weight_EC.mT.is_contiguous())
        and x.device.type == weight_EC.device.type == "cpu"
        and x.dim() > 1
        and x.numel() > 0
        and type(x) in (Tensor, nn.Parameter)
        and type(weight_EC) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()  # compilers choose for themselves
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and onednn_is_faster()
    )


@cache
def onednn_is_faster() -> bool:
    """Whether this processor and this torch are such that oneDNN is to be used."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def onednn(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` by oneDNN: torch has it as an operator for its own compiler only."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_EC, bias_E, "none", [], "")


class Projection(torch.autograd.Function):
    """`onednn` with its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None) -> Tensor:
        return onednn(x, weight_EC, bias_E)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight_EC, _ = inputs
        ctx.save_for_backward(x, weight_EC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_EC = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            project(gradient.contiguous(), weight_EC.mT) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,  # of which MKL is as fast
            rows.sum(0) if of_bias else None,
        )


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def count_flops(x: torch.Size, weight_EC: torch.Size, *_: Any, **__: Any) -> int:
        """So that torch's counter of FLOPs sees it."""
        return 2 * math.prod(x) * weight_EC[0]
