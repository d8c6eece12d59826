"""The modules of each extra of the package, and a clear error where one is missing."""

from collections.abc import Iterable
from importlib.util import find_spec

from perceivers.errors import PerceiversError

MODULES = {
    "train": ("lightning", "jsonargparse", "torchmetrics", "pytorch_optimizer", "tensorboard"),
    "text": ("datasets", "sentencepiece"),
    "vision": ("PIL", "datasets", "kornia", "kornia_rs", "sklearn", "matplotlib", "av", "cv2", "skimage", "h5py"),
    "lora": ("peft",),
    "sweep": ("optuna",),
    "serve": ("fastapi", "uvicorn", "pydantic"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "starcraft": ("sc2reader", "pyarrow", "datasets"),
}
"""Modules that an extra installs and the package imports."""


def describe_missing(module: str | None, extras: Iterable[str] = MODULES) -> str | None:
    """Returns a sentence about a module that is not installed; None if none of the extras installs it."""
    extra = next((extra for extra in extras if module and module.split(".")[0] in MODULES[extra]), None)
    install = f"it comes with the extra {extra!r}: pip install 'perceivers[{extra}]'"
    return f"{module!r} is not installed; {install}" if extra else None


def require_extra(extra: str) -> None:
    """Raises a PerceiversError that names `extra` if one of its modules is not installed."""
    for module in MODULES[extra]:
        if find_spec(module) is None:
            raise PerceiversError(describe_missing(module, [extra]))
