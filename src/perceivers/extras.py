"""What comes with which extra of the package, and a clear error where it is missing."""

from importlib.util import find_spec

from perceivers.errors import PerceiversError

MODULES = {
    "train": ("lightning", "jsonargparse", "torchmetrics", "pytorch_optimizer", "tensorboard"),
    "text": ("datasets", "sentencepiece"),
    "vision": ("PIL", "datasets", "kornia", "kornia_rs", "sklearn", "matplotlib", "av", "cv2", "skimage", "h5py"),
    "starcraft": ("sc2reader", "pyarrow", "datasets"),
}
"""Modules that an extra installs and the package imports."""


def extra_of(module: str | None) -> str | None:
    """Returns the extra that installs a module; None for one that no extra installs."""
    return next(
        (extra for extra, modules in MODULES.items() if module is not None and module.split(".")[0] in modules), None
    )


def describe_missing(module: str, extra: str) -> str:
    """Returns a sentence about a module that is not installed."""
    return f"{module!r} is not installed; it comes with the extra {extra!r}: pip install 'perceivers[{extra}]'"


def require_extra(extra: str) -> None:
    """Raises a PerceiversError that names `extra` if a module of it is not installed."""
    missing = [module for module in MODULES[extra] if find_spec(module) is None]
    if missing:
        raise PerceiversError(describe_missing(missing[0], extra))
