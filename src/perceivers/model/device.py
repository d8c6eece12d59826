"""Devices and precisions of models."""

from typing import TypeVar

import torch
from torch import nn

from perceivers.errors import PerceiversError, did_you_mean

T = TypeVar("T", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device() -> str:
    """Returns the accelerator if there is one, or else the CPU."""
    return str(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def check_dtype(dtype: str | None) -> None:
    """Raises a PerceiversError for a name that is not one of `DTYPES`."""
    if dtype is not None and dtype not in DTYPES:
        raise PerceiversError(f"dtype = {dtype!r} is not allowed: {did_you_mean(dtype, DTYPES)}")


def move_model(model: T, device: str | None, dtype: str | None = None) -> T:
    """Moves a model to a device and precision, if given, and sets evaluation mode; or raises a PerceiversError."""
    check_dtype(dtype)
    try:
        model.to(device=device, dtype=None if dtype is None else DTYPES[dtype])
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise PerceiversError(f"device = {device!r} cannot be used here ({reason}): try 'cpu'.") from error
    return model.eval()
