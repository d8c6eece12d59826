"""Checks settings against their annotations: `lr: Annotated[float, Range(above=0)]` states type and range once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from perceivers.errors import PerceiversError, quote


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for use in `Annotated`: `least` and `most` are included, `above` and `below` are not."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __repr__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {bound}" for words, bound in bounds.items() if bound is not None)


Count = Annotated[int, Range(least=1)]
"""A number of things, at least one."""

Fraction = Annotated[float, Range(least=0, most=1)]
"""A fraction from 0 to 1."""

ProperFraction = Annotated[float, Range(above=0, below=1)]
"""A fraction between 0 and 1, both excluded."""


class Checked:
    """Base of dataclasses that check their fields against the annotations when an object is constructed."""

    section: ClassVar[str] = ""
    """Prefix of a field's name in errors, such as "training."."""

    def __post_init__(self) -> None:
        annotations = get_type_hints(type(self), include_extras=True)
        for item in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            name, value, annotation = f"{self.section}{item.name}", getattr(self, item.name), annotations[item.name]
            check_field(name, value, matches(value, annotation), describe_expected(value, annotation))


def check_field(field: str, value: object, allowed: bool, expected: str) -> None:
    """Raises a PerceiversError unless the value of a field is allowed."""
    if not allowed:
        raise PerceiversError(f"{field} = {quote(value)} is not allowed: it must be {expected}.")


def matches(value: Any, annotation: Any) -> bool:
    """Returns whether a value has the type and range of an annotation; protocols and type variables match anything."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return matches(value, parts[0]) and all(value in part for part in parts[1:] if isinstance(part, Range))
    if origin in (Union, UnionType):
        return any(matches(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple and parts[-1] is not Ellipsis:
        same_length = isinstance(value, list | tuple) and len(value) == len(parts)
        return same_length and all(map(matches, value, parts))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(matches(item, parts[0]) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(all(map(matches, item, parts)) for item in value.items())
    if origin is None and isinstance(annotation, type):
        if annotation is float:
            return isinstance(value, int | float) and not isinstance(value, bool) and value == value  # not NaN
        return isinstance(value, annotation) and (annotation is not int or not isinstance(value, bool))
    return True


def describe_expected(value: Any, annotation: Any) -> str:
    """Returns the value that an annotation expects, to end the sentence "it must be ..."."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        of_type = [part for part in parts if matches(value, strip_ranges(part))]
        return " or ".join(describe_expected(value, part) for part in of_type or parts if part is not type(None))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is Annotated and matches(value, strip_ranges(annotation)):
        return " and ".join(str(part) for part in parts[1:] if isinstance(part, Range))
    ranges = set(find_ranges(annotation))
    each = "" if origin is Annotated else "each "
    return f"of type {name_annotation(annotation)}" + (f", {each}{ranges.pop()}" if len(ranges) == 1 else "")


def describe_type(annotation: Any) -> str:
    """Returns the type and the ranges of an annotation, such as "float, above 0"."""
    return ", ".join([name_annotation(annotation), *dict.fromkeys(map(str, find_ranges(annotation)))])


def find_ranges(annotation: Any) -> list[Range]:
    """Returns the ranges anywhere in an annotation."""
    if isinstance(annotation, Range):
        return [annotation]
    return [item for part in get_args(annotation) for item in find_ranges(part)]


def strip_ranges(annotation: Any) -> Any:
    """Returns an annotation without the metadata of `Annotated`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def name_annotation(annotation: Any) -> str:
    """Returns the source form of a type: `int`, `list[float]`, `tuple[int, int]`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return name_annotation(parts[0])
    if annotation is type(None):
        return "null"
    if annotation is Ellipsis:
        return "..."
    if origin in (Union, UnionType):
        return " | ".join(map(name_annotation, parts))
    if origin is Literal:
        return " | ".join(map(repr, parts))
    name = str(getattr(origin or annotation, "__name__", annotation))
    return f"{name}[{', '.join(map(name_annotation, parts))}]" if parts else name
