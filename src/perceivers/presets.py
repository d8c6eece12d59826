"""Configurations of models by name, with the paper's figures; their parameters and FLOPs can be asked for.

perceivers.list_models()
perceivers.create_model("imagenet_fourier", classes=10)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers import plugins
from perceivers.model import kernels
from perceivers.model.config import construct
from perceivers.model.sizes import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A configuration of a model, such as a row of one of the paper's tables.

    Attributes:
        experiment: the paper's experiment.
        paper_row: what the paper calls it.
        config: the model's config.
        inputs: what one forward pass is measured on, by input name: one example, on the meta device.
        paper_parameters, paper_flops: the paper's figures, FLOPs of one example; None where it gives none.
        outputs: what the forward pass decodes, as in `PerceiverIO.decode`.
    """

    experiment: str
    paper_row: str
    config: ModelConfig
    inputs: Mapping[str, Tensor]
    paper_parameters: float | None = None
    paper_flops: float | None = None
    outputs: Mapping[str, Tensor | None] | None = None


def make_example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns an input of one example, on the meta device."""
    return torch.empty(1, *shape, dtype=dtype, device="meta")


def list_models() -> list[str]:
    """Returns the names that `create_model` takes: those of the paper, and of other installed packages."""
    return list(plugins.find_entry_points("models"))


def find_preset(name: str) -> Preset:
    """Returns the preset of that name, or of an import path "package.module:NAME".

    Raises:
        PerceiversError: there is none.
    """
    return plugins.find_instance("models", name, Preset)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Returns the config of a preset with other values for some of its fields.

    Raises:
        PerceiversError: there is no such preset or field, or the field cannot have that value.
    """
    config = find_preset(name).config
    return construct(type(config), vars(config) | overrides)


def create_model(name: str, **overrides: Any) -> Any:
    """Builds a model with fresh weights.

    Args:
        name: one of `list_models()`, or an import path "package.module:NAME" of a `Preset`.
        overrides: fields of its config to change, such as `classes=10`.

    Raises:
        PerceiversError: there is no such model or field, or the field cannot have that value.
    """
    return model_config(name, **overrides).build()


@dataclass(frozen=True)
class ModelCost:
    """What a model costs: number of parameters, and FLOPs of a forward pass (a multiply and an add are two)."""

    parameters: int
    flops: int


def measure(
    build: Callable[[], nn.Module],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor | None] | None = None,
) -> ModelCost:
    """Counts parameters, and FLOPs of a forward pass of one example, without computing either (on the meta device).

    FLOPs are those of the formulas as written, as the paper counts them, not what rearranging saves.

    Args:
        build: builds the model.
        inputs: what is encoded, by input name, on the meta device.
        outputs: what is decoded, as in `PerceiverIO.decode`.
    """
    with torch.device("meta"):
        model = build().eval().requires_grad_(False)
        kernels.reset(model)
        with FlopCounterMode(display=False) as counter:
            model(inputs, outputs)
    return ModelCost(sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops())
