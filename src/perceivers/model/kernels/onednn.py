"""Matrix products on CPUs, in float32 by oneDNN where it is faster than MKL.

Shape suffixes: C input channels, E output channels
"""

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from perceivers.model.eager import is_eager
from perceivers.model.kernels.half_precision import compute_in_float32, needs_float32
from perceivers.model.kernels.tuning import MAX_TIMED_PRODUCTS, Implementation, choose, size_class

MIN_PRODUCTS = 2**20
"""Smallest number of multiplications for oneDNN: the call of its operator alone takes 15 microseconds longer."""


def linear(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """Computes x W^T + b, as `torch.nn.functional.linear` does; [..., C] -> [..., E].

    In float32 on CPU, products are computed by oneDNN or by MKL, whichever is faster; those of half precision are
    computed in float32 where the CPU has no instructions for it.
    """
    if needs_float32(x):
        return compute_in_float32(linear, x, weight_EC, bias_E)
    if not can_use_onednn(x, weight_EC) or choose_library(x, weight_EC) is F.linear:
        return F.linear(x, weight_EC, bias_E)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight_EC, bias_E)):
        return OneDNNLinear.apply(x, weight_EC, bias_E)  # type: ignore[no-untyped-call]
    return onednn_linear(x, weight_EC, bias_E)


def can_use_onednn(x: Tensor, weight_EC: Tensor) -> bool:
    """Returns whether oneDNN can multiply these: plain float32 arrays on a CPU, large enough.

    `x` must be contiguous, and the weight, or its transpose: the operator has hung on others.
    """
    return (
        x.is_cpu
        and weight_EC.is_cpu
        and x.dtype == weight_EC.dtype == torch.float32
        and x.is_contiguous()
        and (weight_EC.is_contiguous() or weight_EC.mT.is_contiguous())
        and x.dim() > 1
        and is_eager()  # before sizes are compared, which would fix them under torch.export
        and x.numel() * len(weight_EC) >= MIN_PRODUCTS
        and type(x) in (Tensor, nn.Parameter)
        and type(weight_EC) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and has_onednn()
    )


@cache
def has_onednn() -> bool:
    """Returns whether this torch has oneDNN's operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def onednn_is_preferred() -> bool:
    """Returns whether oneDNN is taken where nothing is timed: on CPUs with AVX-512, it has been faster than MKL."""
    return has_onednn() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def choose_library(x: Tensor, weight_EC: Tensor) -> Implementation:
    """Returns the function of the faster library, timed on some rows, without a bias."""
    candidates: dict[str, Implementation] = {"oneDNN": onednn_linear, "MKL": F.linear}
    if not onednn_is_preferred():
        candidates = dict(reversed(candidates.items()))
    E, C = weight_EC.shape
    rows = x.numel() // C
    key = "product", size_class(rows), C, E, "weight" if weight_EC.is_contiguous() else "transposed weight"
    some = max(1, MAX_TIMED_PRODUCTS // (C * E))
    return choose(key, rows * C * E, candidates, lambda: (x.detach().view(rows, C)[:some], weight_EC.detach()))


def onednn_linear(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """Computes x W^T + b by oneDNN, through the operator that torch's compiler uses."""
    return torch.ops.mkldnn._linear_pointwise(x, weight_EC, bias_E, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`onednn_linear` with its gradients."""

    @staticmethod
    def forward(x: Tensor, weight_EC: Tensor, bias_E: Tensor | None) -> Tensor:
        return onednn_linear(x, weight_EC, bias_E)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        x, weight_EC, _ = inputs
        ctx.save_for_backward(x, weight_EC)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_EC = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            linear(grad.contiguous(), weight_EC.mT) if needs_x else None,
            rows.t() @ x.flatten(0, -2) if needs_weight else None,  # MKL is as fast here
            rows.sum(0) if needs_bias else None,
        )


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def count_flops(x: torch.Size, weight_EC: torch.Size, *_: Any, **__: Any) -> int:
        """Registers the operator with torch's FlopCounterMode."""
        return 2 * math.prod(x) * weight_EC[0]
