"""Model configs by name, such as `perceivers.create_model("imagenet_fourier", classes=10)`, and the paper's figures."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perceivers import plugins
from perceivers.model import kernels
from perceivers.model.costs import Cost, count_flops, count_parameters
from perceivers.model.meta import check_memory
from perceivers.model.sizes import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A configuration of a model, such as a row of one of the paper's tables.

    Attributes:
        experiment: the paper's experiment.
        paper_row: its name in the paper's tables.
        config: the model's config.
        inputs: one example, by input name, on the meta device; a forward pass is measured on it.
        paper_parameters: the paper's figure; None where it gives none.
        paper_flops: the same, per example.
        outputs: outputs that the forward pass decodes, as in `PerceiverIO.decode`.
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
    """Returns the names that `create_model` takes: the paper's models, and those of other installed packages.

    Examples:
        >>> "language_bytes" in list_models()
        True
    """
    return list(plugins.find_entry_points("models"))


def find_preset(name: str) -> Preset:
    """Returns the preset of a name, or of an import path "package.module:NAME"; or raises a PerceiversError."""
    return plugins.find_instance("models", name, Preset)


def model_config(name: str, **overrides: Any) -> ModelConfig:
    """Returns the config of a preset with some fields overridden; raises the errors of `create_model`."""
    return find_preset(name).config.change(overrides)


def create_model(name: str, **overrides: Any) -> Any:
    """Builds a model with fresh weights.

    Args:
        name: one of `list_models()`, or an import path "package.module:NAME" of a `Preset`.
        overrides: fields of its config to change, such as `classes=10`.

    Raises:
        PerceiversError: there is no such model or field, a value is not allowed, or memory cannot hold the model.

    Examples:
        >>> import torch
        >>> sizes = {"image_size": 16, "latents": 8, "channels": 32, "num_blocks": 1, "depth": 1}
        >>> model = create_model("imagenet_fourier", classes=3, **sizes)
        >>> model({"image": torch.rand(2, 3, 16, 16)})["label"].shape
        torch.Size([2, 3])
    """
    config = model_config(name, **overrides)
    check_memory(config.build, name)
    return config.build()


def measure_cost(
    build: Callable[[], nn.Module], inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor | None] | None = None
) -> Cost:
    """Counts the parameters of a model, and the FLOPs of a forward pass, on the meta device.

    FLOPs are counted as in the paper: those of the formulas as written, without the savings of the optimized kernels.

    Args:
        build: builds the model.
        inputs: one example, by input name, on the meta device.
        outputs: outputs to decode, as in `PerceiverIO.decode`.
    """
    with torch.device("meta"):
        model = build().eval().requires_grad_(False)
        kernels.reset(model)
        _, flops = count_flops(lambda: model(inputs, outputs))
    return Cost(count_parameters(model), flops)
