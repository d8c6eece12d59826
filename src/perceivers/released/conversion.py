"""Shared by both importers: the config of a model, its settings, and arrays under other names."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.checkpoints.settings import change_settings
from perceivers.errors import PerceiversError
from perceivers.model.config import construct
from perceivers.model.meta import build_on_meta
from perceivers.model.saving import Model, check_numbers
from perceivers.model.sizes import ModelConfig

LAYER = re.compile(r"(encoder\.cross_attentions\.0|encoder\.layers\.\d+|decoder)\.(.+)\.(weight|bias)")
"""Our name of an array in a layer: the layer, the part, weight or bias."""

MODALITIES = {"video": "image", "audio": "audio", "label": "label"}
"""Our names of the autoencoder's modalities, and the published ones."""

FLOW_PROJECTION = "inputs.frames.image.features.projection.weight"


class ExternalCheckpoint(NamedTuple):
    """A checkpoint in a format of another library."""

    source: Path  # the file with the arrays
    config: type[ModelConfig]  # the class of the model's config
    settings: dict[str, Any]  # fields of the config
    arrays: dict[str, Tensor]  # by the file's names; linear layers and convolutions are laid out as in torch
    rename: Callable[[str], str]  # maps our name of an array to the file's
    missing: Collection[str] = ()  # fields of the config that the file does not tell


def build_model(checkpoint: ExternalCheckpoint, overrides: Mapping[str, Any]) -> Model:
    """Builds the model of a checkpoint, with some settings changed, in evaluation mode.

    Raises:
        PerceiversError: a setting is not allowed, or an array is missing, unused or of another shape.
    """
    source, arrays = checkpoint.source, dict(checkpoint.arrays)
    told = {name: value for name, value in overrides.items() if name in checkpoint.missing}
    config = construct(checkpoint.config, checkpoint.settings | told)
    model: Any = build_on_meta(config.build, len(arrays), source)  # every array is replaced
    tensors = {}
    for name, expected in model.state_dict().items():
        external = checkpoint.rename(name)
        array = arrays.pop(external, None)
        if array is None:
            raise PerceiversError(
                f"{source} has no array {external!r}, which its model needs with shape {tuple(expected.shape)}: "
                f"it is incomplete or belongs to another model."
            )
        if squeezed(array.shape) != squeezed(expected.shape):
            raise PerceiversError(
                f"{source}: the array {external!r} has shape {tuple(array.shape)}, but its model needs "
                f"{tuple(expected.shape)}: a setting is wrong, or it belongs to another model."
            )
        check_numbers(array, expected.dtype, f"{source}: {external}")
        tensors[name] = array.reshape(expected.shape)
    if arrays:
        raise PerceiversError(
            f"{source} has an array {min(arrays)!r}, which its model does not have: it belongs to another model."
        )
    if FLOW_PROJECTION in tensors:
        tensors[FLOW_PROJECTION] = pixels_first(tensors[FLOW_PROJECTION])
    model.load_state_dict(tensors, assign=True)
    changes = {name: value for name, value in overrides.items() if name not in told}
    return change_settings(model.eval(), config, changes, source)


def squeezed(shape: torch.Size) -> tuple[int, ...]:
    """Returns a shape without dimensions of size 1, in which the formats differ."""
    return tuple(size for size in shape if size != 1)


def pixels_first(weight: Tensor) -> Tensor:
    """Reorders the flow model's patch values, [F, frame * pixel * color] -> [F, pixel * frame * color]."""
    return weight.unflatten(1, (2, -1, 3)).transpose(1, 2).flatten(1)


def frames_first(weight: Tensor) -> Tensor:
    """Inverts `pixels_first`."""
    return weight.unflatten(1, (-1, 2, 3)).transpose(1, 2).flatten(1)
