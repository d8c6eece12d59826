"""Reading and writing weights."""

from perceivers.checkpoints.load import load

__all__ = ["load"]
