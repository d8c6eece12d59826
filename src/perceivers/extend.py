"""The base classes and helpers for your own models, data sets and experiments (docs/extending.md)."""

from perceivers.checkpoints.load import pretrained_config
from perceivers.checks import Checked, Count, Fraction, ProperFraction, Range, check_field
from perceivers.data.loader import SampleIndex, Samples
from perceivers.inference import load_for_inference
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig, Sizes
from perceivers.prediction import Inputs, Predictor
from perceivers.presets import Preset, make_example
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner, evaluate

__all__ = [
    "Checked",
    "Count",
    "Experiment",
    "Fraction",
    "Inputs",
    "Learner",
    "Model",
    "ModelConfig",
    "Predictor",
    "Preset",
    "ProperFraction",
    "Range",
    "SampleIndex",
    "Samples",
    "Setup",
    "Sizes",
    "check_field",
    "evaluate",
    "load_for_inference",
    "make_example",
    "pretrained_config",
]
