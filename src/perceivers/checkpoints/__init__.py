"""Models from files, folders and the Hugging Face hub."""

from perceivers.checkpoints.load import load, load_model

__all__ = ["load", "load_model"]
