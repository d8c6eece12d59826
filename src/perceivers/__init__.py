"""Perceiver IO: any arrays in, any arrays out, in time linear in both."""

from perceivers.checkpoints import load
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
from perceivers.model.attention import record_attention
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, LearnedPositions, fourier_features
from perceivers.presets import create_model, list_models
from perceivers.set_encoder import SetEncoder

__version__ = "0.1.0"

__all__ = [
    "Encoded",
    "FourierPositions",
    "InputAdapter",
    "InputArray",
    "LearnedPositions",
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
