"""Finds optimizers and schedules of other libraries by name, and checks the arguments that a config gives them."""

import inspect
from collections import abc
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

import pytorch_optimizer
import torch
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules
from torch.optim.lr_scheduler import LRScheduler

from perceivers import plugins
from perceivers.checks import describe_expected, matches
from perceivers.errors import PerceiversError, did_you_mean, quote

WITHOUT_VALUES = ("LRScheduler", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler")
"""Schedules whose arguments are functions or other schedules, which a config cannot hold."""


def find_optimizer(name: str) -> type[Optimizer]:
    """Returns the class of an optimizer of torch or `pytorch_optimizer`, or of an import path "package.module:Class".

    Raises:
        PerceiversError: there is none, or it needs more of a training step than a gradient.
    """
    if ":" in name:
        found = plugins.import_object(name, "optimizer")
        if not isinstance(found, type) or not issubclass(found, Optimizer):
            expected = "but a subclass of torch.optim.Optimizer is expected"
            raise PerceiversError(f"optimization.optimizer = {name} is {plugins.describe_value(found)}, {expected}.")
    else:
        classes = list_classes(pytorch_optimizer, Optimizer) | list_classes(torch.optim, Optimizer)
        found = find_name("optimization.optimizer", name, classes, ["lamb", "adamw", "muon"])
    parameters = inspect.signature(found).parameters
    is_wrapper = not parameters.keys().isdisjoint({"optimizer", "base_optimizer", "model"})
    closure = inspect.signature(found.step).parameters.get("closure")
    if is_wrapper or "lr" not in parameters or hasattr(found, "eval") or (closure and closure.default is closure.empty):
        raise needs_special_step(name)
    return found


def needs_special_step(name: str) -> PerceiversError:
    """Returns the error for an optimizer such as LBFGS, SAM or AdaHessian."""
    return PerceiversError(
        f"optimization.optimizer = {name} needs a training step of its own, not only a gradient: choose another."
    )


def find_schedule(name: str, own: Iterable[str]) -> type[LRScheduler]:
    """Returns the class of a schedule of `torch.optim.lr_scheduler`; `own` are the other names that are allowed."""
    classes = list_classes(schedules, LRScheduler)
    return find_name(
        "optimization.schedule", name, {key: found for key, found in classes.items() if key not in WITHOUT_VALUES}, own
    )


def list_classes(module: Any, base: type) -> dict[str, Any]:
    """Returns the subclasses of a class that a module has, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def find_name(field: str, name: str, classes: Mapping[str, Any], own: Iterable[str]) -> Any:
    """Returns the class of a name in any capitalization; raises a PerceiversError if there is none."""
    found = next((value for key, value in classes.items() if key.lower() == name.lower()), None)
    if found is None:
        names = {*own, *(key.lower() for key in classes)}
        raise PerceiversError(f"{field} = {quote(name)} is unknown: {did_you_mean(name.lower(), names)}")
    return found


def check_arguments(field: str, kind: type, arguments: Mapping[str, Any], others: Mapping[str, str]) -> None:
    """Checks arguments for a class against its signature.

    Args:
        field: the field of the config that holds them.
        kind: the class.
        arguments: the arguments, by name.
        others: arguments that other fields of the config decide, and the names of these fields.

    Raises:
        PerceiversError: the class has no such argument, another field decides it, or a value has the wrong type.
    """
    parameters = inspect.signature(kind).parameters
    known = [name for name, found in parameters.items() if found.kind != found.VAR_KEYWORD and name not in others]
    annotations = get_type_hints(kind.__init__, localns=vars(abc))  # type: ignore[misc]
    for name, value in arguments.items():
        if name in others:
            raise PerceiversError(f"{field}.{name} cannot be set: {others[name]}.")
        if name not in known:
            raise PerceiversError(f"{field}: {kind.__name__} has no argument {name!r}: {did_you_mean(name, known)}")
        annotation = annotations.get(name, Any)
        if not matches(value, annotation):
            expected = describe_expected(value, annotation)
            raise PerceiversError(f"{field}.{name} = {quote(value)} is not allowed: it must be {expected}.")
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise PerceiversError(f"{field} lacks {name!r}, which {kind.__name__} needs.")
