"""Reading and writing weights."""

from perceivers.checkpoints.load import load, load_any

__all__ = ["load", "load_any"]
