"""Checkpoints of training runs: files with a checksum of their content, which hold a model and its description."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.errors import PerceiversError

CHECKSUM = "sha256"
"""The field of a checkpoint with the checksum of all others."""

GUARD = "RunGuard"
"""The callback that keeps the run's config and the description of the model in a checkpoint."""

PREFIX = "model."
"""The beginning of the names of the model's weights in a checkpoint."""


def open_checkpoint(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Opens a checkpoint, whose tensors are read when they are used, unless they are not mapped.

    Raises:
        PerceiversError: the file is damaged, or was not written by this release.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # what is raised depends on which bytes are damaged
        raise PerceiversError(f"{path} is truncated or damaged: start again with another training.output.") from error
    if not isinstance(checkpoint, dict) or CHECKSUM not in checkpoint:
        raise PerceiversError(
            f"{path} has no checksum: it was written by another release, with which the run can be resumed, "
            f"or start again with another training.output."
        )
    return checkpoint


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Opens a checkpoint and compares its content with its checksum.

    Raises:
        PerceiversError: the file is damaged, was changed, or was not written by this release.
    """
    checkpoint = open_checkpoint(path)
    if compute_checksum(checkpoint) != checkpoint[CHECKSUM]:
        raise PerceiversError(
            f"{path} was changed after it was saved, as its checksum shows: start again with another training.output."
        )
    return checkpoint


def compute_checksum(checkpoint: Mapping[str, Any]) -> str:
    """Returns the SHA-256 checksum of everything in a checkpoint but its own checksum."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                total.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            total.update(b"[")
            for item in value:
                add(item)
        else:
            total.update(repr(value).encode())

    add({name: value for name, value in checkpoint.items() if name != CHECKSUM})
    return total.hexdigest()


def describe_run(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what the run keeps in its checkpoints: its "config", and its "model" as in a saved model's config."""
    found: Mapping[str, Any] = checkpoint["callbacks"][GUARD]
    return found


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of the model in a checkpoint, averaged if the run averages them."""
    weights: Mapping[str, Tensor] = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
