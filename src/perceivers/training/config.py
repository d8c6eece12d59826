"""From a YAML file and the command line to an experiment, every key and value checked."""

import types
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.pytorch.utilities import rank_zero_only

from perceivers import plugins
from perceivers.checks import Checked, check_field
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.presets import find_preset
from perceivers.renames import FIELDS
from perceivers.training.experiment import Experiment

set_parsing_settings(subclasses_disabled=[Checked])  # a config cannot name another class in place of one of ours


@dataclass(frozen=True)
class Config:
    """A config file, and what it describes.

    Attributes:
        path: the file.
        values: its fields, without `experiment` and what is said once of the model (`preset`).
        experiment: the class of the experiment.
        model: the class of the model's config.
        defaults: values of the model's fields that the preset gives.
    """

    path: Path
    values: dict[str, Any]
    experiment: type[Experiment]
    model: type
    defaults: dict[str, Any]

    def parser(self) -> ArgumentParser:
        """Returns the parser of all fields, with their help."""
        parser = ArgumentParser(prog=f"perceivers fit {self.path}", exit_on_error=False)
        parser.add_class_arguments(self.experiment, skip={"model"})
        parser.add_class_arguments(self.model, "model")
        parser.set_defaults({f"model.{name}": value for name, value in self.defaults.items()})
        return parser

    def build(self) -> Experiment:
        """Returns the experiment.

        Raises:
            PerceiversError: a key is unknown, or a value is of the wrong type or not allowed.
        """
        check_keys(self.values, self.experiment, self.path, model=self.model)
        parser = self.parser()
        try:
            arguments = parser.instantiate(parser.parse_object(self.values))
        except ArgumentError as error:
            raise PerceiversError(f"{self.path}: {' '.join(error.message.split())}") from error
        experiment = self.experiment(**vars(arguments))
        given = self.values.get("model", {})
        experiment.given = {name: given[name] for name in self.experiment.decided_by_data if name in given}
        return experiment


def read_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Builds the experiment that a config file describes.

    Args:
        path: a YAML or JSON file; its field `experiment` says which experiment it is.
        overrides: `--field.of.config=value`, which replace what the file says.

    Raises:
        PerceiversError: a key is unknown, or a value is of the wrong type or not allowed.
    """
    return open_config(path, overrides).build()


def train_config(path: Path, overrides: Sequence[str] = ()) -> Path:
    """Trains as a config file says, and prints where the results are; -> the run's folder. See `read_config`."""
    folder = read_config(path, overrides).run()
    where = f"model is in {folder / 'model'}" if (folder / "model").is_dir() else f"models are below {folder}"
    rank_zero_only(print)(f"\nTrained. The {where}, the figures in {folder / 'metrics.json'}.")
    return folder


def describe(path: Path, overrides: Sequence[str] = ()) -> str:
    """Returns help on every field of the experiment of a config file, those of the model included."""
    return open_config(path, overrides).parser().format_help()


def open_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file, and finds the classes of its experiment and of its model."""
    values = read_file(path)
    for override in overrides:
        key, equals, value = override.removeprefix("--").partition("=")
        if not override.startswith("--") or not equals:
            raise PerceiversError(f"{override!r} is not understood: write --field.of.config=value.")
        try:
            put(values, key.split("."), yaml.safe_load(value))
        except (yaml.YAMLError, TypeError) as error:
            raise PerceiversError(f"{override!r} is not understood: quote the value, or set single fields.") from error
    experiment = find_experiment(values, path)
    model, defaults = find_model(values, experiment, path)
    return Config(path, values, experiment, model, defaults)


def find_experiment(values: dict[str, Any], path: Path) -> type[Experiment]:
    """Takes the experiment out of a config, a declared name or an import path; -> its class.

    Modules are also looked for in the folder of the config, in the current one, and in `import_from`, in which a run's
    config says where its experiment was.
    """
    name, folder = values.pop("experiment", None), values.pop("import_from", None)
    if not isinstance(name, str):
        names = ", ".join(plugins.declared("experiments"))
        raise PerceiversError(f"{path}: experiment is {name!r}: name one of {names}, or an import path.")
    if ":" in name:
        for place in (path.parent, Path.cwd(), Path(folder or ".")):
            plugins.add_import_folder(place)
        plugins.trust(name.partition(":")[0].split(".")[0])
    try:
        return plugins.find_class("experiments", name, Experiment)  # type: ignore[type-abstract]
    except PerceiversError as error:
        raise PerceiversError(f"{path}: {error}") from error


def find_model(values: dict[str, Any], experiment: type[Experiment], path: Path) -> tuple[type, dict[str, Any]]:
    """Takes the preset out of a config; -> the class of the model's config, and its fields as the preset has them.

    An experiment may take several classes: then the preset says which it is or, without one, the fields that are given.
    """
    given = values.setdefault("model", {})
    if not isinstance(given, dict):
        raise PerceiversError(f"{path}: model = {given!r}, but it has fields, such as preset.")
    kinds = model_types(experiment)
    if "init" in given and (pretrained := [kind for kind in kinds if field_names(kind) == ["init"]]):
        if len(kinds) > 1:  # in place of the model with fresh weights that the config describes
            values["model"] = {"init": given["init"]}
        return pretrained[0], {}
    if "preset" in given:
        name = given.pop("preset")
        check_field("model.preset", name, isinstance(name, str), "one of `perceivers models`")
        chosen = find_preset(name)
        if not isinstance(chosen.config, tuple(kinds)):
            raise PerceiversError(
                f"{path}: model.preset = {name} is of {chosen.experiment}: {experiment.__name__} trains "
                f"a model of {' or '.join(kind.__name__ for kind in kinds)}."
            )
        return type(chosen.config), dict(vars(chosen.config))
    able = [kind for kind in kinds if given and set(given) <= set(field_names(kind))]
    if len(kinds) > 1 and len(able) != 1:
        raise PerceiversError(f"{path}: model.preset is missing: name one of `perceivers models`.")
    return (able or kinds)[0], {}


def model_types(experiment: type[Experiment]) -> list[type]:
    """Returns the classes of model configs that an experiment takes.

    Raises:
        PerceiversError: it annotates `model` with something else than dataclasses.
    """
    annotation = get_type_hints(experiment)["model"]
    kinds = list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    for kind in kinds:
        if not is_dataclass(kind):
            raise PerceiversError(
                f"{experiment.__name__} annotates model with {kind}: the dataclass of a model's config is expected."
            )
    return kinds


def field_names(kind: type) -> list[str]:
    """Returns the names of a dataclass's fields."""
    return [item.name for item in fields(kind)]


def check_keys(values: dict[str, Any], config: type, path: Path, parents: str = "", model: type | None = None) -> None:
    """Raises a PerceiversError for a key that the config class does not have."""
    known: dict[str, Field[Any]] = {item.name: item for item in fields(config)}
    annotations = get_type_hints(config) | ({} if model is None else {"model": model})
    for key, value in values.items():
        if key not in known:
            names = FIELDS.get(parents + key, "").split()  # experiments may have different new names for an old one
            if (new := next((name for name in names if name.removeprefix(parents) in known), None)) is not None:
                raise PerceiversError(f"{path}: the field {parents + key!r} is called {new!r} now: rename it.")
            raise PerceiversError(f"{path}: there is no field {parents + key!r}: {did_you_mean(key, known)}")
        if is_dataclass(annotations[key]):
            if not isinstance(value, dict):
                names = ", ".join(field_names(annotations[key]))
                raise PerceiversError(f"{path}: {parents + key} = {value!r}, but it has fields: {names}.")
            check_keys(value, annotations[key], path, f"{parents}{key}.")


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
