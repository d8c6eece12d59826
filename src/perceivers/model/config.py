"""Modules that record the arguments they were built with, so that a saved model can be built again."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from perceivers.checks import check_field, describe_expected, matches
from perceivers.errors import PerceiversError, did_you_mean

T = TypeVar("T")

CLASS = "class"
"""The key that holds an object's class in its description."""

DICT = "dict"
"""The class name of a dict that JSON would mistake for an object, or whose keys are not strings."""

RECORDS = "records_arguments"
"""The attribute that marks a constructor wrapped by `record_arguments`."""


class Configurable:
    """Base of all that a saved model consists of: records the constructor's arguments, with defaults, in `config`.

    Arguments may be numbers, strings, booleans, None, lists, tuples, dicts of these, and other `Configurable` objects.
    Lists and dicts are copied: changing them later does not change the record. `*args` and `**kwargs` are recorded too.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls.__init__, RECORDS):
            cls.__init__ = record_arguments(cls.__init__)  # type: ignore[method-assign]


def record_arguments(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wraps a constructor to record its arguments, unless a subclass's constructor, which calls it, has done so."""
    signature = inspect.signature(constructor)

    @wraps(constructor)
    def wrapper(self: Configurable, *args: Any, **kwargs: Any) -> None:
        if "config" not in self.__dict__:
            bound = signature.bind_partial(self, *args, **kwargs)
            bound.apply_defaults()
            config: dict[str, Any] = {}
            for name, value in list(bound.arguments.items())[1:]:
                kind = signature.parameters[name].kind
                if kind is inspect.Parameter.VAR_KEYWORD:
                    config |= value
                elif kind is not inspect.Parameter.VAR_POSITIONAL or value:
                    config[name] = value
            # torch.nn.Module rejects attributes before its own __init__
            object.__setattr__(self, "config", copy_argument(config))
        constructor(self, *args, **kwargs)

    setattr(wrapper, RECORDS, True)
    return wrapper


def copy_argument(value: Any) -> Any:
    """Copies lists, tuples and dicts with their content; returns everything else as it is."""
    if isinstance(value, Mapping):
        return {key: copy_argument(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = map(copy_argument, value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def import_path(kind: type) -> str:
    """Returns the name of a class in a saved model, "package.module:Class"."""
    return f"{kind.__module__}:{kind.__qualname__}"


def to_config(value: Any) -> Any:
    """Describes a `Configurable` object and everything it is built from as plain JSON values.

    Raises:
        PerceiversError: an argument has a type that a config cannot hold.
    """
    if isinstance(value, Configurable):
        return {CLASS: import_path(type(value)), **{name: to_config(item) for name, item in value.config.items()}}
    if isinstance(value, Mapping):
        if CLASS not in value and all(isinstance(key, str) for key in value):
            return {key: to_config(item) for key, item in value.items()}
        return {CLASS: DICT, "items": [[to_config(key), to_config(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [to_config(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PerceiversError(
        f"cannot save an argument of type {type(value).__name__}: a saved module must be built from numbers, strings, "
        f"lists, dicts and other configurable modules only."
    )


def from_config(config: Any, find_class: Callable[[str], type[Configurable]]) -> Any:
    """Builds what `to_config` described.

    Args:
        config: the description.
        find_class: returns the class of a name, or raises a PerceiversError.

    Raises:
        PerceiversError: a class is not found, or does not take an argument.
    """
    if isinstance(config, list):
        return [from_config(item, find_class) for item in config]
    if not isinstance(config, dict):
        return config
    if CLASS not in config:
        return {name: from_config(item, find_class) for name, item in config.items()}
    if config[CLASS] == DICT:
        return {from_config(key, find_class): from_config(item, find_class) for key, item in config["items"]}
    kind = find_class(config[CLASS])
    return construct(kind, {name: from_config(item, find_class) for name, item in config.items() if name != CLASS})


def construct(function: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Calls `function` with arguments by name; `*args` are a list under their name, `**kwargs` are among the others.

    Raises:
        PerceiversError: an argument is unknown, missing, or does not match its annotation.
    """
    signature = inspect.signature(function)
    names = {parameter.kind: name for name, parameter in signature.parameters.items()}
    args, kwargs = names.get(inspect.Parameter.VAR_POSITIONAL), names.get(inspect.Parameter.VAR_KEYWORD)
    named = {name: parameter for name, parameter in signature.parameters.items() if name != kwargs}
    annotations = read_annotations(function)
    for name, value in arguments.items():
        if name not in named and kwargs is None:
            raise PerceiversError(f"{function.__name__} has no argument {name!r}: {did_you_mean(name, named)}")
        annotation = annotations.get(name, Any) if name in named and name != args else Any
        expected = describe_expected(value, annotation)
        check_field(f"{function.__name__}: {name}", value, matches(value, annotation), expected)
    for name, parameter in named.items():
        if name not in arguments and name != args and parameter.default is inspect.Parameter.empty:
            raise PerceiversError(f"{function.__name__} needs the argument {name!r}.")
    bound = signature.bind_partial(**{name: value for name, value in arguments.items() if name != args})
    if args is not None and args in arguments:
        bound.arguments[args] = arguments[args]
    bound.apply_defaults()
    return function(*bound.args, **bound.kwargs)


def read_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's or constructor's arguments, or none if one cannot be resolved."""
    try:
        return get_type_hints(function if inspect.isfunction(function) else function.__init__, include_extras=True)
    except (NameError, TypeError):  # such as names that are imported only for type checkers
        return {}
