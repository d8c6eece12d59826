"""What comes with which extra of the package, and a clear error where it is missing."""

from importlib.util import find_spec

from perceivers.errors import PerceiversError

MODULES = {
    "train": ("lightning", "jsonargparse", "torchmetrics", "pytorch_optimizer", "tensorboard"),
    "text": ("datasets", "sentencepiece"),
    "vision": ("PIL", "datasets", "kornia", "kornia_rs", "sklearn", "matplotlib", "av", "cv2", "skimage", "h5py"),
    "starcraft": ("sc2reader", "pyarrow"),
}
"""Modules that an extra installs and the package imports."""


def need(extra: str) -> None:
    """Raises a PerceiversError that names `extra` if a module of it is not installed."""
    missing = [module for module in MODULES[extra] if find_spec(module) is None]
    if missing:
        raise PerceiversError(
            f"{missing[0]!r} is not installed; it comes with the extra {extra!r}: pip install 'perceivers[{extra}]'"
        )
