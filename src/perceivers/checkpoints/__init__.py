"""Loads models from files, folders and the Hugging Face Hub."""

from perceivers.checkpoints.load import load, load_model

__all__ = ["load", "load_model"]
