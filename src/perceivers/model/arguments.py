"""Checks of the arguments that a model is called with: each mistake is one sentence.

What has to be read from an accelerator is not checked there: it would wait for the device.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perceivers.errors import PerceiversError, did_you_mean
from perceivers.model.eager import is_concrete, is_eager


def check_mapping(argument: str, value: Any, names: Iterable[str]) -> None:
    """Raises a PerceiversError unless an argument is a mapping by the names of inputs or outputs."""
    if not isinstance(value, Mapping):
        example = ", ".join(f"{name!r}: ..." for name in names)
        found = f"{argument} is of type {type(value).__name__}"
        raise PerceiversError(f"{found}: a dict by name is expected, such as {{{example}}}.")


def check_names(kind: str, given: Iterable[str], known: Iterable[str], all_needed: bool = False) -> None:
    """Raises a PerceiversError if `given` names an unknown input or output, or leaves out one that is needed."""
    for name in given:
        if name not in known:
            raise PerceiversError(f"the model has no {kind} {name!r}: {did_you_mean(name, known)}")
    for name in known:
        if all_needed and name not in given:
            raise PerceiversError(f"the {kind} {name!r} is missing: the model takes {', '.join(known)}.")


def check_devices(data: Mapping[str, Any], device: torch.device) -> None:
    """Raises a PerceiversError if a tensor of the data is on another device than the model."""
    for name, value in data.items():
        for array in value if isinstance(value, tuple | list) else [value]:
            if isinstance(array, Tensor) and array.device != device:
                found = f"the input {name!r} is on {array.device}, but the model is on {device}"
                raise PerceiversError(f"{found}: move one of them.")


def check_batch_sizes(sizes: Mapping[str, int]) -> None:
    """Raises a PerceiversError if inputs have different numbers of examples."""
    if is_eager() and len(set(sizes.values())) > 1:
        found = ", ".join(f"{name!r} {size}" for name, size in sizes.items())
        raise PerceiversError(f"the inputs have different batch sizes ({found}): give the same number of examples.")


def check_indices(what: str, indices: Any, total: int, batch_size: int | None = None) -> None:
    """Raises a PerceiversError unless indices are integers [P], or [B, P] of a batch, from 0 to `total` - 1."""
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        found = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise PerceiversError(f"{what} are of type {found}: a tensor of integers is expected.")
    is_batch = indices.dim() == 2 and (not is_eager() or indices.shape[0] in (1, batch_size))
    if indices.dim() != 1 and (batch_size is None or not is_batch):
        expected = "[count]" if batch_size is None else f"[count] or [{batch_size}, count]"
        raise PerceiversError(f"{what} have the shape {list(indices.shape)}: {expected} is expected.")
    check_range(what, indices, 0, total - 1)


def check_range(what: str, values: Tensor, least: float, most: float, tolerance: float = 0) -> None:
    """Raises a PerceiversError unless numbers are from `least` to `most`, up to a tolerance."""
    if values.device.type != "cpu" or not is_concrete(values) or not values.numel():
        return
    low, high = values.min().item(), values.max().item()
    if not least - tolerance <= low <= high <= most + tolerance:
        raise PerceiversError(f"{what} go from {low:.6g} to {high:.6g}, but must be from {least} to {most}.")


def check_coordinates(what: str, coordinates: Any, shape: Sequence[int], dims: int | None = None) -> None:
    """Raises a PerceiversError unless coordinates are finite real numbers of shape [*shape, dims]."""
    if not isinstance(coordinates, Tensor) or not coordinates.is_floating_point():
        found = coordinates.dtype if isinstance(coordinates, Tensor) else type(coordinates).__name__
        raise PerceiversError(f"{what} are of type {found}: a tensor of real numbers is expected.")
    if coordinates.shape[:-1] != tuple(shape) or (dims is not None and coordinates.shape[-1] != dims):
        expected = [*shape, "dimensions" if dims is None else dims]
        raise PerceiversError(f"{what} have the shape {list(coordinates.shape)}: {expected} is expected.")
    if coordinates.device.type == "cpu" and is_concrete(coordinates) and not coordinates.isfinite().all():
        raise PerceiversError(f"{what} are not all finite: NaN or infinity is among them.")


def check_pair_mask(what: str, mask: Any, batch_size: int, queries: int, inputs: int) -> None:
    """Raises a PerceiversError unless a mask of pairs is [B or 1, O, M or 1] of bool."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise PerceiversError(
            f"{what} is of type {found}: a tensor of bool is expected, True where a pair may be read."
        )
    shape = list(mask.shape)
    if len(shape) != 3 or shape[0] not in (1, batch_size) or shape[1] != queries or shape[2] not in (1, inputs):
        raise PerceiversError(
            f"{what} has the shape {shape}: [{batch_size} or 1, {queries}, {inputs} or 1] is expected."
        )
