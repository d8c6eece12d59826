"""Perceiver IO: any arrays in, any arrays out, in time linear in both."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceivers.checkpoints.load import load
    from perceivers.errors import PerceiversError
    from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
    from perceivers.model.intermediates import record_attention
    from perceivers.model.perceiver_io import PerceiverIO
    from perceivers.model.positions import FourierPositions, LearnedPositions, fourier_features
    from perceivers.model.saving import Model
    from perceivers.presets import create_model, list_models
    from perceivers.set_encoder import SetEncoder

__version__ = "0.1.0"

__all__ = [
    "Encoded",
    "FourierPositions",
    "InputAdapter",
    "InputArray",
    "LearnedPositions",
    "Model",
    "OutputAdapter",
    "PerceiverIO",
    "PerceiversError",
    "SetEncoder",
    "create_model",
    "fourier_features",
    "list_models",
    "load",
    "record_attention",
]

MODULES = {
    "load": "checkpoints.load",
    "PerceiversError": "errors",
    "Encoded": "model.adapter",
    "InputAdapter": "model.adapter",
    "InputArray": "model.adapter",
    "OutputAdapter": "model.adapter",
    "record_attention": "model.intermediates",
    "PerceiverIO": "model.perceiver_io",
    "FourierPositions": "model.positions",
    "LearnedPositions": "model.positions",
    "fourier_features": "model.positions",
    "Model": "model.saving",
    "create_model": "presets",
    "list_models": "presets",
    "SetEncoder": "set_encoder",
}
"""Modules of the public names, imported on first use, so that `perceivers --help` needs no torch."""


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
