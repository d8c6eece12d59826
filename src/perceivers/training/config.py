"""From a YAML file and command line to an experiment, every key checked."""

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from perceivers.clips.autoencoding import Autoencoding
from perceivers.clips.classification import ClipClassification
from perceivers.errors import PerceiversError, nearest
from perceivers.flow.training import OpticalFlow
from perceivers.images.training import ImageClassification
from perceivers.starcraft.training import BehaviouralCloning
from perceivers.text.fine_tuning import TextClassification
from perceivers.text.glue import Glue
from perceivers.text.pretraining import MaskedLanguage

Experiment = (
    ImageClassification
    | MaskedLanguage
    | TextClassification
    | Glue
    | OpticalFlow
    | ClipClassification
    | Autoencoding
    | BehaviouralCloning
)

EXPERIMENTS: dict[str, type[Experiment]] = {
    "image_classification": ImageClassification,
    "masked_language": MaskedLanguage,
    "text_classification": TextClassification,
    "glue": Glue,
    "optical_flow": OpticalFlow,
    "clip_classification": ClipClassification,
    "autoencoding": Autoencoding,
    "behavioural_cloning": BehaviouralCloning,
}
"""What the field `experiment` of a config file may be."""


def read_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Builds the experiment that a config file describes.

    Args:
        path: a YAML or JSON file; its field `experiment` says which experiment it is.
        overrides: `--field.of.config=value`, which replace what the file says.

    Raises:
        PerceiversError: a key is unknown, or a value is of the wrong kind or not allowed.
    """
    values = read_file(path)
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not override.startswith("--") or not equals:
            raise PerceiversError(f"{override!r} is not understood: write --field.of.config=value.")
        try:
            put(values, key.split("."), yaml.safe_load(value))
        except (yaml.YAMLError, TypeError) as error:
            raise PerceiversError(f"{override!r} is not understood: quote the value, or set single fields.") from error
    experiment = EXPERIMENTS[experiment_name(values, path)]
    check_keys(values, experiment, path)
    parser = build_parser(experiment)
    try:
        fields = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise PerceiversError(f"{path}: {' '.join(error.message.split())}") from error
    return experiment(**vars(fields))


def describe(path: Path) -> str:
    """Help on every field of the experiment of a config file."""
    return build_parser(EXPERIMENTS[experiment_name(read_file(path), path)]).format_help()


def experiment_name(values: dict[str, Any], path: Path) -> str:
    """Takes the name of the experiment out of a config."""
    name = str(values.pop("experiment", None))
    if name not in EXPERIMENTS:
        raise PerceiversError(f"{path}: experiment is {name!r}: {nearest(name, EXPERIMENTS)}")
    return name


def check_keys(values: dict[str, Any], config: type, path: Path, parents: str = "") -> None:
    """Raises a PerceiversError for a key that the config class does not have."""
    kinds = get_type_hints(config)
    for key, value in values.items():
        if key not in kinds:
            raise PerceiversError(f"{path}: there is no field {parents + key!r}: {nearest(key, kinds)}")
        if is_dataclass(kinds[key]):
            if not isinstance(value, dict):
                raise PerceiversError(
                    f"{path}: {parents + key} = {value!r}, but it has fields: {', '.join(get_type_hints(kinds[key]))}."
                )
            check_keys(value, kinds[key], path, f"{parents}{key}.")


def read_file(path: Path) -> dict[str, Any]:
    """Reads a config file as plain values."""
    if not path.is_file():
        raise PerceiversError(f"there is no config file {path}.")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise PerceiversError(
            f"{path} is not a config: fields such as 'experiment: image_classification' are expected."
        )
    return values


def put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Sets a nested value."""
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def build_parser(experiment: type) -> ArgumentParser:
    """The parser of one experiment's fields, with their help."""
    parser = ArgumentParser(prog="perceivers fit CONFIG", exit_on_error=False)
    parser.add_class_arguments(experiment)
    return parser
