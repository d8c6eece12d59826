"""Modules that remember the arguments they were built with, so that a saved model can be built again."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from perceivers.errors import PerceiversError, nearest

T = TypeVar("T")


class Configured:
    """Keeps the arguments of the constructor, defaults included, in `self.config`.

    Base of everything a saved model consists of: `PerceiverIO`, adapters, position encodings. Arguments may be
    numbers, strings, booleans, None, lists, dicts of these, and other `Configured` objects.
    """

    config: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        arguments = inspect.signature(cls.__init__).bind_partial(self, *args, **kwargs)
        arguments.apply_defaults()
        config = dict(list(arguments.arguments.items())[1:])
        object.__setattr__(self, "config", config)  # torch.nn.Module takes no attributes before its own __init__
        return self


def to_tree(value: Any) -> Any:
    """Describes a `Configured` object and all it is built of as plain JSON values.

    Raises:
        PerceiversError: an argument is of a kind that a config cannot hold.
    """
    if isinstance(value, Configured):
        return {"class": type(value).__name__, **{name: to_tree(item) for name, item in value.config.items()}}
    if isinstance(value, Mapping):
        return {str(name): to_tree(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PerceiversError(
        f"cannot save an argument of type {type(value).__name__}: build modules that are to be saved "
        f"from numbers, strings, lists, dicts and other configured modules only."
    )


def from_tree(tree: Any, classes: Iterable[type[Configured]]) -> Any:
    """Builds what `to_tree` described; `classes` are the only ones that it may build.

    Raises:
        PerceiversError: the tree names a class that is not among `classes`, or an argument its class does not take.
    """
    known = {known_class.__name__: known_class for known_class in classes}

    def build(value: Any) -> Any:
        if isinstance(value, list):
            return [build(item) for item in value]
        if not isinstance(value, dict):
            return value
        arguments = {name: build(item) for name, item in value.items() if name != "class"}
        if "class" not in value:
            return arguments
        if value["class"] not in known:
            raise PerceiversError(
                f"the config names the class {value['class']!r}, which is not one of this package: "
                f"if it is yours, pass it with load(..., classes=[{value['class']}])."
            )
        return call(known[value["class"]], arguments)

    return build(tree)


def call(function: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Calls `function` with `arguments`, an unknown or missing name being the user's mistake, not a bug."""
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            raise PerceiversError(f"{function.__name__} has no argument {name!r}: {nearest(name, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise PerceiversError(f"{function.__name__} needs the argument {name!r}.")
    kinds = get_type_hints(function if inspect.isfunction(function) else function.__init__)
    for name, value in arguments.items():
        if not fits(value, kinds.get(name, Any)):
            wanted = str(getattr(kinds[name], "__name__", kinds[name])).replace("typing.", "")
            raise PerceiversError(
                f"{function.__name__}: {name} = {value!r} is not allowed: it must be of type {wanted}."
            )
    return function(**arguments)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is what an annotation says; annotations that a config does not use fit everything."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(item, parts[0]) for item in value)
    if origin is None and isinstance(kind, type):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            (number and (kind is float or isinstance(value, int))) if kind in (int, float) else isinstance(value, kind)
        )
    return True
