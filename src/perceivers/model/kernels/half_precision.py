"""Products of half precision on CPUs that have no instructions for it: they are computed in float32.

Without AVX-512, torch multiplies bfloat16 matrices in a plain loop. On an AMD EPYC, products of 256
rows take 10 times as long as in float32, and of 2,048 rows 400 times.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from perceivers.model.eager import is_eager

HALF = (torch.bfloat16, torch.float16)


def needs_float32(x: Tensor) -> bool:
    """Returns whether products with an array take less time in float32 than in its type, or that of autocast."""
    dtype = product_dtype(x)
    return dtype in HALF and x.is_cpu and is_eager() and not has_fast_products(dtype)


def product_dtype(x: Tensor) -> torch.dtype:
    """Returns the type of products with an array of numbers: its own, or that of autocast on its device."""
    device = x.device.type
    is_cast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_cast else x.dtype


def compute_in_float32(function: Callable[..., Tensor], *arrays: Tensor | None) -> Tensor:
    """Computes a function of arrays in float32, without autocast; the result has the type that products would have."""
    assert arrays[0] is not None
    dtype = product_dtype(arrays[0])
    with torch.autocast("cpu", enabled=False):
        wide = {id(x): x.float() for x in arrays if x is not None}  # an array that is given twice stays one
        return function(*(None if x is None else wide[id(x)] for x in arrays)).to(dtype)


def convolve(layer: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """Applies a convolution, in float32 where this takes less time."""
    return compute_in_float32(layer._conv_forward, x, layer.weight, layer.bias) if needs_float32(x) else layer(x)


@cache
def has_fast_products(dtype: torch.dtype) -> bool:
    """Returns whether oneDNN multiplies arrays of half precision on this CPU; torch has no other fast way."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
