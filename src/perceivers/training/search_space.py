"""The values that a sweep tries for the fields of a config."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import yaml
from optuna.trial import BaseTrial, FixedTrial

from perceivers.checks import check_field
from perceivers.errors import PerceiversError, quote

Space = list[Any] | dict[str, Any]
"""Values of a field, or the bounds {low, high} of a number and, if need be, log and step."""


def check_space(name: str, space: Any, is_grid: bool) -> None:
    """Raises a PerceiversError unless the space of a field can be searched."""
    if isinstance(space, list) and space:
        return
    check_field(f"fields.{name}", space, not is_grid, "a list of values, since a grid has all combinations")
    expected = "a list of values, or {low, high} and, if need be, log and step"
    check_field(f"fields.{name}", space, isinstance(space, dict) and {"low", "high"} <= space.keys(), expected)
    try:
        if not space["low"] < space["high"]:
            raise ValueError("low must be below high")
        suggest(FixedTrial({name: space["low"]}), name, space)
    except (TypeError, ValueError) as error:
        raise PerceiversError(f"fields.{name} = {quote(space)} is not allowed: {str(error).rstrip('.')}.") from error


def read_numbers(space: Any) -> Any:
    """Returns a space whose bounds are numbers, even if YAML reads 1e-3 as text."""
    if not isinstance(space, dict):
        return space
    numbers = dict[str, Any]()
    for key, value in space.items():
        try:
            numbers[key] = float(value) if isinstance(value, str) else value
        except ValueError as error:
            raise PerceiversError(f"{key} = {quote(value)} is not allowed: it must be a number.") from error
    return numbers


def suggest(trial: BaseTrial, name: str, space: Space) -> Any:
    """Returns the value of a field in a trial, which is drawn if the trial has none yet."""
    if isinstance(space, list):
        choices = [encode(value) for value in space]
        return space[choices.index(trial.suggest_categorical(name, choices))]
    if isinstance(space["low"], int) and isinstance(space["high"], int):
        return trial.suggest_int(name, **space)
    return trial.suggest_float(name, **space)


def list_examples(space: Space) -> list[Any]:
    """Returns the values of a space, or the bounds."""
    return space if isinstance(space, list) else [space["low"], space["high"]]


def encode(value: Any) -> Any:
    """Returns a value as Optuna stores it: lists and dicts as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def list_combinations(spaces: Mapping[str, Space]) -> list[dict[str, Any]]:
    """Returns all combinations of the values of fields, as Optuna stores them."""
    values = ([encode(value) for value in space] for space in spaces.values())
    return [dict(zip(spaces, combination, strict=True)) for combination in itertools.product(*values)]


def list_overrides(values: Mapping[str, Any]) -> list[str]:
    """Returns values as `--field=value`."""
    return [
        f"--{name}={yaml.safe_dump([value], default_flow_style=True, width=10**6).strip()[1:-1]}"
        for name, value in values.items()
    ]
