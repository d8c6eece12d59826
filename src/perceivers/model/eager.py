"""Tells whether operators run at once, or are recorded or transformed: then only plain ones are used."""

import torch
from torch import Tensor


def is_eager() -> bool:
    """Returns whether operators run at once: not under torch.compile, torch.export, torch.jit.trace or torch.func."""
    return not (torch.compiler.is_compiling() or torch._C._is_tracing() or is_transforming())


def is_transforming() -> bool:
    """Returns whether a transform of torch.func is active, or forward-mode differentiation."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def is_concrete(mask: Tensor) -> bool:
    """Returns whether the values of a mask can be read: operators run at once, and it is not on the meta device."""
    return is_eager() and mask.device.type != "meta"
