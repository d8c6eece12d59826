"""Types of columns, one small class each."""

from collections.abc import Mapping
from typing import Any

from perceivers import plugins
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.model.config import construct
from perceivers.tables.columns.array import Array
from perceivers.tables.columns.category import Categories, Category, YesNo
from perceivers.tables.columns.column import Column
from perceivers.tables.columns.date import Date
from perceivers.tables.columns.image import Image
from perceivers.tables.columns.number import Number
from perceivers.tables.columns.series import Series
from perceivers.tables.columns.sound import Sound, Video
from perceivers.tables.columns.text import MaskedText, Text

TYPES: dict[str, type[Column]] = {
    kind.kind: kind
    for kind in (
        *(Number, Category, YesNo, Categories, Text, MaskedText, Date),
        *(Image, Sound, Video, Array, Series),
    )
}
"""The types by their names in configs."""


def make_column(name: str, given: Any) -> Column:
    """Returns the column that a config describes: the name of a type, or a dict of `type` and its arguments.

    Args:
        name: name of the column, for errors.
        given: the description; a type of one's own is named by its import path, such as my_types:Angle.
    """
    settings = dict(given) if isinstance(given, Mapping) else {"type": given}
    kind = settings.pop("type", None)
    try:
        return construct(find_type(kind), settings)
    except PerceiversError as error:
        raise PerceiversError(f"column {name!r}: {error}") from error


def find_type(kind: Any) -> type[Column]:
    """Returns the class of a type's name, or of an import path."""
    if not isinstance(kind, str):
        raise PerceiversError(
            f"type = {quote(kind)} is not allowed: name one of {', '.join(TYPES)}, or an import path."
        )
    if ":" not in kind:
        if kind not in TYPES:
            raise PerceiversError(f"there is no type {kind!r}: {did_you_mean(kind, TYPES)}")
        return TYPES[kind]
    plugins.trust(kind.partition(":")[0].split(".")[0])
    found = plugins.import_object(kind, "type")
    if not isinstance(found, type) or not issubclass(found, Column):
        raise PerceiversError(f"{kind} is {plugins.describe_value(found)}, but a subclass of Column is expected.")
    return found


__all__ = [
    "TYPES",
    "Array",
    "Categories",
    "Category",
    "Column",
    "Date",
    "Image",
    "MaskedText",
    "Number",
    "Series",
    "Sound",
    "Text",
    "Video",
    "YesNo",
    "find_type",
    "make_column",
]
