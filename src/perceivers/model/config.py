"""Modules that record the arguments they were built with, so that a saved model can be built again."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar, get_type_hints

from perceivers.checks import check_field, describe_expected, matches
from perceivers.errors import PerceiversError, did_you_mean

T = TypeVar("T")

CLASS = "class"
"""The key under which the description of an object names its class."""

DICT = "dict"
"""The class name of a dict that JSON could not tell from an object, or whose keys JSON does not have."""


RECORDS = "records_arguments"
"""The mark of a constructor that `record_arguments` has wrapped."""


class Configured:
    """Records the arguments of the constructor, defaults included, in `self.config`.

    Base of everything a saved model consists of: `PerceiverIO`, adapters, position encodings. Arguments may be
    numbers, strings, booleans, None, lists, tuples, dicts of these, and other `Configured` objects. They are copied
    as they are when the constructor is called: what happens to a list afterwards does not change the record. `*args`
    and `**kwargs` are recorded too.
    """

    config: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls.__init__, RECORDS):
            cls.__init__ = record_arguments(cls.__init__)  # type: ignore[method-assign]


def record_arguments(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wraps a constructor so that the outermost one of an object's class records its arguments."""
    signature = inspect.signature(constructor)

    @wraps(constructor)
    def wrapper(self: Configured, *args: Any, **kwargs: Any) -> None:
        if "config" not in self.__dict__:  # else a subclass's constructor calls this one
            bound = signature.bind_partial(self, *args, **kwargs)
            bound.apply_defaults()
            config: dict[str, Any] = {}
            for name, value in list(bound.arguments.items())[1:]:
                kind = signature.parameters[name].kind
                if kind is inspect.Parameter.VAR_KEYWORD:
                    config |= value
                elif kind is not inspect.Parameter.VAR_POSITIONAL or value:
                    config[name] = value
            # torch.nn.Module takes no attributes before its own __init__
            object.__setattr__(self, "config", copy_argument(config))
        constructor(self, *args, **kwargs)

    setattr(wrapper, RECORDS, True)
    return wrapper


def copy_argument(value: Any) -> Any:
    """Copies lists, tuples and dicts, with what is in them; everything else is kept as it is."""
    if isinstance(value, Mapping):
        return {key: copy_argument(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = (copy_argument(item) for item in value)
        return list(items) if isinstance(value, list) else tuple(items)
    return value


def import_path(kind: type) -> str:
    """Returns what a class is called in a saved model, "package.module:Class"."""
    return f"{kind.__module__}:{kind.__qualname__}"


def to_tree(value: Any) -> Any:
    """Describes a `Configured` object and all it is built of as plain JSON values.

    Raises:
        PerceiversError: an argument is of a type that a config cannot hold.
    """
    if isinstance(value, Configured):
        return {CLASS: import_path(type(value)), **{name: to_tree(item) for name, item in value.config.items()}}
    if isinstance(value, Mapping):
        if CLASS not in value and all(isinstance(key, str) for key in value):
            return {key: to_tree(item) for key, item in value.items()}
        return {CLASS: DICT, "items": [[to_tree(key), to_tree(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return [to_tree(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise PerceiversError(
        f"cannot save an argument of type {type(value).__name__}: build modules that are to be saved "
        f"from numbers, strings, lists, dicts and other configured modules only."
    )


def from_tree(tree: Any, find_class: Callable[[str], type[Configured]]) -> Any:
    """Builds what `to_tree` described.

    Args:
        tree: the description.
        find_class: returns the class of a name, or raises a PerceiversError.

    Raises:
        PerceiversError: the tree names a class that is not found, or an argument its class does not take.
    """
    if isinstance(tree, list):
        return [from_tree(item, find_class) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if CLASS not in tree:
        return {name: from_tree(item, find_class) for name, item in tree.items()}
    if tree[CLASS] == DICT:
        return {from_tree(key, find_class): from_tree(item, find_class) for key, item in tree["items"]}
    kind = find_class(tree[CLASS])
    return construct(kind, {name: from_tree(item, find_class) for name, item in tree.items() if name != CLASS})


def construct(function: Callable[..., T], arguments: Mapping[str, Any]) -> T:
    """Calls `function` with arguments by name; an unknown, missing or wrong one is the user's mistake, not a bug.

    Those of `*args` are a list under its name, those of `**kwargs` stand among the others.

    Raises:
        PerceiversError: an argument is unknown or missing, or is not what its annotation says.
    """
    named = dict(inspect.signature(function).parameters)
    by_kind = {parameter.kind: name for name, parameter in named.items()}
    variable = by_kind.get(inspect.Parameter.VAR_POSITIONAL)
    extra = named.pop(by_kind.get(inspect.Parameter.VAR_KEYWORD, ""), None)
    annotations = read_annotations(function)
    for name, value in arguments.items():
        if name not in named and extra is None:
            raise PerceiversError(f"{function.__name__} has no argument {name!r}: {did_you_mean(name, named)}")
        annotation = annotations.get(name, Any) if name in named and name != variable else Any
        expected = describe_expected(value, annotation)
        check_field(f"{function.__name__}: {name}", value, matches(value, annotation), expected)
    for name, parameter in named.items():
        if name not in arguments and name != variable and parameter.default is inspect.Parameter.empty:
            raise PerceiversError(f"{function.__name__} needs the argument {name!r}.")
    keywords = dict(arguments)
    rest = keywords.pop(variable, []) if variable is not None else []
    before = list(named)[: list(named).index(variable)] if rest and variable is not None else []
    positional = [keywords.pop(name, named[name].default) for name in before]
    return function(*positional, *rest, **keywords)


def read_annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's, or a class's constructor's, arguments; none that cannot be resolved."""
    try:
        return get_type_hints(
            function if inspect.isfunction(function) else function.__init__,
            include_extras=True,
        )
    except (NameError, TypeError):  # such as names that are imported for type checkers alone
        return {}
