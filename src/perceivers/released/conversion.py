"""What reading the two published formats has in common: a task and its settings, and arrays under other names."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.config import construct
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.sizes import ModelConfig

LAYER = re.compile(r"(encoder\.cross_attentions\.0|encoder\.layers\.\d+|decoder)\.(.+)\.(weight|bias)")
"""Our name of an array in a layer: the layer, the part, weight or bias."""

FLOW_PROJECTION = "inputs.frames.image.features.projection.weight"


class Foreign(NamedTuple):
    """A checkpoint in a format of another library.

    Attributes:
        source: the file that holds its arrays.
        config: the class of the model's config.
        settings: its fields.
        arrays: what the file holds, by the file's names, linear layers and convolutions as torch has them.
        rename: gives the file's name of an array of our model.
    """

    source: Path
    config: type[ModelConfig]
    settings: dict[str, Any]
    arrays: dict[str, Tensor]
    rename: Callable[[str], str]


def build(foreign: Foreign, overrides: Mapping[str, Any]) -> PerceiverIO:
    """The model that a foreign checkpoint holds, in evaluation mode.

    Args:
        foreign: the checkpoint.
        overrides: settings to change.

    Raises:
        PerceiversError: a setting cannot be, or an array is missing, of another shape, or has no place in the model.
    """
    with torch.device("meta"):  # every array is replaced
        model = construct(foreign.config, foreign.settings | dict(overrides)).build()
    assert isinstance(model, PerceiverIO)
    left, tensors = dict(foreign.arrays), {}
    for name, wanted in model.state_dict().items():
        array = left.pop(foreign.rename(name), None)
        if array is None:
            raise PerceiversError(
                f"{foreign.source} has no array {foreign.rename(name)!r}, "
                f"which its model needs with shape {tuple(wanted.shape)}: it is incomplete or of another model."
            )
        if without_ones(array.shape) != without_ones(wanted.shape):
            raise PerceiversError(
                f"{foreign.source}: the array {foreign.rename(name)!r} has shape {tuple(array.shape)}, "
                f"but its model needs {tuple(wanted.shape)}: a setting is wrong, or it is of another model."
            )
        tensors[name] = array.reshape(wanted.shape)
    if left:
        raise PerceiversError(
            f"{foreign.source} has an array {min(left)!r}, for which its model has no place: it is of another model."
        )
    if FLOW_PROJECTION in tensors:
        tensors[FLOW_PROJECTION] = pixels_first(tensors[FLOW_PROJECTION])
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def without_ones(shape: torch.Size) -> tuple[int, ...]:
    """A shape but for its dimensions of size 1, in which the formats differ."""
    return tuple(size for size in shape if size != 1)


def pixels_first(weight: Tensor) -> Tensor:
    """Reorders the flow model's patch values, [F, frame * pixel * color] -> [F, pixel * frame * color]."""
    return weight.unflatten(1, (2, -1, 3)).transpose(1, 2).flatten(1)


def frames_first(weight: Tensor) -> Tensor:
    """Undoes `pixels_first`."""
    return weight.unflatten(1, (-1, 2, 3)).transpose(1, 2).flatten(1)
