"""Loads models to a device, finds the adapter for a task, ranks classes. Shape suffix: K classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from perceivers.adapters.label import LabelOutput
from perceivers.checkpoints import load
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Adapters
from perceivers.model.device import check_dtype, choose_device, move_model
from perceivers.model.perceiver_io import PerceiverIO

T = TypeVar("T")


def load_for_inference(
    model: PerceiverIO | str | Path, device: str | None = None, dtype: str | None = None
) -> PerceiverIO:
    """Returns a model in evaluation mode. A model that is given as an object is changed in place.

    Args:
        model: a model, or anything that `perceivers.load` takes.
        device: device, such as "cpu" or "cuda:1". By default, a loaded model goes to the accelerator if there is one,
            and a model that is given as an object stays where it is.
        dtype: "float32", "bfloat16" or "float16"; unchanged by default.

    Raises:
        PerceiversError: the model cannot be loaded, or there is no such device or dtype.
    """
    if isinstance(model, PerceiverIO):
        return move_model(model, device, dtype)
    check_dtype(dtype)  # before loading, which takes time
    return move_model(load(model), device or choose_device(), dtype)


def get_device(model: PerceiverIO) -> torch.device:
    """Returns the device of a model."""
    return model.encoder.latents.device


def find_adapter(parts: Adapters[Any], kind: type[T], task: str) -> tuple[str, T]:
    """Returns name and adapter of the only input or output of a kind; raises a PerceiversError for none or several."""
    found = [(name, part) for name, part in parts.items() if isinstance(part, kind)]
    if len(found) != 1:
        have = ", ".join(f"{name!r} ({type(part).__name__})" for name, part in parts.items())
        raise PerceiversError(f"this model cannot do {task}, which needs one {kind.__name__}: it has {have}.")
    return found[0]


def check_answers(answers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the outputs of a model; raises a PerceiversError that names one with NaN or infinite values."""
    for name, answer in answers.items():
        if isinstance(answer, Mapping):
            check_answers(answer)
        elif not answer.isfinite().all():
            raise PerceiversError(
                f"the model's output {name!r} has NaN or infinite values: try precision float32 and check the input."
            )
    return answers


def class_names(model: PerceiverIO, name: str = "label") -> list[str]:
    """Returns the class names of the label output of that name."""
    return model.outputs.get_as(LabelOutput, name).class_names


def rank_classes(logits_K: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Returns the probabilities of the classes by name, most probable first, see `sort_classes`."""
    return sort_classes(logits_K[None].float().softmax(-1), names)[0]


def sort_classes(probability_BK: Tensor, names: Sequence[str], top: int | None = None) -> list[dict[str, float]]:
    """Sorts the classes of each example, most probable first; at most `top` of them, if given.

    The index of the class is added to a name that several share.
    """
    count = Counter(names)
    unique = [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    probability_BK, class_BK = (sorted_BK[:, :top] for sorted_BK in probability_BK.sort(1, descending=True))
    return [
        {unique[k]: value for k, value in zip(classes, values, strict=True)}
        for classes, values in zip(class_BK.tolist(), probability_BK.tolist(), strict=True)
    ]


def check_folder(path: str | Path) -> None:
    """Raises a PerceiversError, before any work is done, if an output file has no parent folder or is a folder."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise PerceiversError(f"cannot write {path}: there is no folder {folder}; make it, or choose another path.")
    if Path(path).is_dir():
        raise PerceiversError(f"cannot write {path}: it is a folder; give the path of a file in it.")
