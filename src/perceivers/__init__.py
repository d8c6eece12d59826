"""Perceiver IO: any arrays in, any arrays out, in time linear in both."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perceivers.checkpoints.load import load
    from perceivers.errors import PerceiversError
    from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
    from perceivers.model.costs import summarize
    from perceivers.model.embedding import NamedEmbedding
    from perceivers.model.intermediates import record_attention
    from perceivers.model.masks import window_mask
    from perceivers.model.perceiver_io import PerceiverIO
    from perceivers.model.positions import (
        FourierFeatures,
        FourierPositions,
        LearnedPositions,
        fourier_features,
        grid_coordinates,
    )
    from perceivers.model.ragged import Ragged
    from perceivers.model.rotary import RotaryPositions, spaced_periods
    from perceivers.model.sampling import farthest_points
    from perceivers.model.saving import Model
    from perceivers.presets import create_model, list_models
    from perceivers.resampler import Resampler
    from perceivers.set_encoder import SetEncoder
    from perceivers.tables.fit import fit_table

__version__ = "0.1.0"

__all__ = [
    "Encoded",
    "FourierFeatures",
    "FourierPositions",
    "InputAdapter",
    "InputArray",
    "LearnedPositions",
    "Model",
    "NamedEmbedding",
    "OutputAdapter",
    "PerceiverIO",
    "PerceiversError",
    "Ragged",
    "Resampler",
    "RotaryPositions",
    "SetEncoder",
    "create_model",
    "farthest_points",
    "fit_table",
    "fourier_features",
    "grid_coordinates",
    "list_models",
    "load",
    "record_attention",
    "spaced_periods",
    "summarize",
    "window_mask",
]

MODULES = {
    "checkpoints.load": ["load"],
    "errors": ["PerceiversError"],
    "model.adapter": ["Encoded", "InputAdapter", "InputArray", "OutputAdapter"],
    "model.costs": ["summarize"],
    "model.embedding": ["NamedEmbedding"],
    "model.intermediates": ["record_attention"],
    "model.masks": ["window_mask"],
    "model.perceiver_io": ["PerceiverIO"],
    "model.positions": [
        "FourierFeatures",
        "FourierPositions",
        "LearnedPositions",
        "fourier_features",
        "grid_coordinates",
    ],
    "model.ragged": ["Ragged"],
    "model.rotary": ["RotaryPositions", "spaced_periods"],
    "model.sampling": ["farthest_points"],
    "model.saving": ["Model"],
    "presets": ["create_model", "list_models"],
    "resampler": ["Resampler"],
    "set_encoder": ["SetEncoder"],
    "tables.fit": ["fit_table"],
}
"""Public names by module, imported on first use, so that `perceivers --help` needs no torch."""


def __getattr__(name: str) -> Any:
    for module, names in MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
