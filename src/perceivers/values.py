"""Reads plain values (numbers, strings, lists, dicts) from JSON and YAML, of limited size and depth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from perceivers.errors import PerceiversError, shorten
from perceivers.files import read_text, require_file

LARGEST_FILE = 2**24
DEEPEST = 64
"""Limits on the bytes of a file, and on the levels of lists and dicts in it."""


def read_json(file: Path) -> Any:
    """Reads a JSON file; raises a PerceiversError if it cannot be read or is not valid."""
    text = read_small_text(file)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError also for numbers of thousands of digits
        raise PerceiversError(f"{file} is not valid JSON ({error}): the file is damaged.") from error
    check_values(values, str(file))
    return values


def read_small_text(file: Path) -> str:
    """Reads a text file of limited size; errors are as in `read_text`."""
    if (size := require_file(file).stat().st_size) > LARGEST_FILE:
        raise PerceiversError(f"{file} has {size} bytes, but at most {LARGEST_FILE} are expected of such a file.")
    return read_text(file)


class PlainLoader(yaml.SafeLoader):
    """Leaves dates as strings."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as in the base class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_yaml(text: str, source: str) -> Any:
    """Parses YAML without aliases, which could stand for any number of values; an error names the source."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise PerceiversError(f"{source} has the alias *{event.anchor}: write its value out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:  # before values are constructed, recursively
                raise too_deep(source)
        values = yaml.load(text, PlainLoader)
    except PerceiversError:
        raise
    except Exception as error:  # tags, dates and numbers that are not valid raise anything
        raise PerceiversError(f"{source} is not valid YAML: {shorten(' '.join(str(error).split()), 300)}") from error
    check_values(values, source)
    return values


def check_values(values: Any, source: str) -> None:
    """Raises a PerceiversError for deep nesting, integers of more than 64 bits, and text with zero bytes."""
    level = [values]
    for _ in range(DEEPEST + 1):
        if any(isinstance(value, int) and value.bit_length() > 63 for value in level):
            raise PerceiversError(f"{source} has an integer of more than 64 bits: write a smaller one.")
        if any(isinstance(value, str) and "\0" in value for value in level):
            raise PerceiversError(f"{source} has a text with a zero byte: leave it out.")
        level = [item for value in level for item in list_items(value)]
        if not level:
            return
    raise too_deep(source)


def list_items(value: Any) -> list[Any]:
    """Returns the items of a list, or the keys and values of a dict; nothing for other values."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def too_deep(source: str) -> PerceiversError:
    """Returns the error for values that are nested too deeply."""
    return PerceiversError(f"{source} has lists or fields nested more than {DEEPEST} levels deep.")


def describe_values(values: Mapping[str, Any]) -> str:
    """Returns values in one line for the user."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )
