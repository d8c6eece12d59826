"""The command `convert`."""

import ast
import json as json_module
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from perceivers import plugins
from perceivers.command import Choices, Json, Metavar, print_answer
from perceivers.errors import PerceiversError
from perceivers.values import check_values


def list_formats() -> list[str]:
    """Returns the names of our own format and of the other installed ones."""
    return ["perceivers", *plugins.find_entry_points("formats")]


def convert(
    source: Annotated[str, "saved model, in any format", Metavar("SRC")],
    target: Annotated[Path, "folder to write", Metavar("DST")],
    *,
    to: Annotated[str, "format to write: perceivers, transformers, or another installed format", Choices(list_formats)],
    set: Annotated[list[str], "settings missing in the source, such as heads=8", Metavar("NAME=VALUE")] = [],  # noqa: B006  # never changed
    json: Json = False,
) -> None:
    """Writes a model in another format."""
    import perceivers
    from perceivers.checkpoints.load import find_format

    settings = dict(read_setting(setting) for setting in set)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PerceiversError(f"{target} exists already: choose a new folder.")
    other = None if to == "perceivers" else find_format(to)
    model = perceivers.load(source, **settings)
    if other is None:
        model.save(target)
    else:
        other.write(model, target)
    print_answer({"target": str(target), "format": to}, f"{target} holds the model in the format of {to}.", json)


def read_setting(setting: str) -> tuple[str, Any]:
    """Parses a setting NAME=VALUE; the value is a JSON or Python literal, or else text."""
    name, equals, text = setting.partition("=")
    if not equals:
        raise PerceiversError(f"--set {setting} is not allowed: write NAME=VALUE, such as --set heads=8.")
    if name in ("source", "custom_classes", "device", "dtype"):  # other arguments of `load`
        raise PerceiversError(f"--set {setting} is not allowed: {name} is not a setting of a model.")
    for read in (json_module.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = read(text)
            check_values(value, f"--set {setting}")
            return name, value
    return name, text
