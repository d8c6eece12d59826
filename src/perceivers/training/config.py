"""Builds an experiment from a YAML file and the command line; every key and value is checked."""

import inspect
import json as json_module
import os
import re
import textwrap
import types
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch.utilities import rank_zero_only

from perceivers import plugins
from perceivers.checkpoints.load import pretrained_config
from perceivers.checks import Checked, check_field, describe_expected, describe_type
from perceivers.command import print_answer, print_aside
from perceivers.config_files import find_config_file
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.model.sizes import TRAINING_FIELDS, ModelConfig
from perceivers.presets import find_preset
from perceivers.renames import FIELDS
from perceivers.training.checkpoints import is_first_process
from perceivers.training.experiment import Experiment
from perceivers.training.find_lr import find_lr, format_search
from perceivers.training.trainer import describe_arguments
from perceivers.values import parse_yaml, read_json, read_small_text

set_parsing_settings(subclasses_disabled=[Checked])  # a config cannot name another class in place of one of ours


def read_config(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Builds the experiment that a config file describes.

    Args:
        path: a YAML or JSON file, whose field `experiment` names the experiment, or the name of a shipped one.
        overrides: `--field.of.config=value` or `--field.of.config value`, which replace values of the file.

    Raises:
        PerceiversError: a key is unknown, or a value has the wrong type or is not allowed.
    """
    values, kind, model, parser = open_config(path, overrides)
    check_keys(values, kind, path, model=model)
    trainer = values.pop("trainer", {})  # checked by the experiment; the parser would make objects of its class paths
    try:
        arguments = parser.instantiate(parser.parse_object(values))
    except ArgumentError as error:
        raise PerceiversError(f"{path}: {explain(error.message, values, kind, model)}") from error
    experiment = kind(**vars(arguments), trainer=trainer)
    experiment.given = {name: value for name, value in values["model"].items() if name in kind.decided_by_data}
    return experiment


def explain(message: str, values: Any, experiment: type[Experiment], model: type) -> str:
    """Returns the parser's error about the type of a value as one sentence."""
    found = re.search(r'Parser key "([\w.]+)"', message)
    if found is None:
        return " ".join(message.split())
    kind: Any = experiment
    *sections, name = found[1].split(".")
    for section in sections:
        kind = model if (kind, section) == (experiment, "model") else get_type_hints(kind)[section]
        values = values[section]
    expected = describe_expected(values[name], get_type_hints(kind, include_extras=True)[name])
    return f"{found[1]} = {quote(values[name])} is not allowed: it must be {expected}."


def train_config(path: Path, overrides: Sequence[str] = (), json: bool = False) -> Path:
    """Runs the training of a config file; prints where its results are or, as JSON, its figures; -> its folder."""
    with print_aside(json):
        folder = read_config(path, overrides).run()
    where = f"model is in {folder / 'model'}" if (folder / "model").is_dir() else f"models are below {folder}"
    metrics = folder / "metrics.json"
    if is_first_process():
        text = f"\nTrained. The {where}, the figures in {metrics}."
        print_answer({"output": str(folder)} | (read_json(metrics) if json else {}), text, json)
    return folder


def configure_table(path: Path, overrides: Sequence[str]) -> list[str]:
    """Writes the config of a run for a table, see `perceivers.tables`; returns its path and the other overrides."""
    flags = [override for override in overrides if override in ("-h", "--help", "--print_config", "--find-lr")]
    given = dict(split_overrides([override for override in overrides if override not in flags]))
    table: Any = plugins.find_class("experiments", "table", Experiment)
    options = {name: given.pop(name) for name in ("predict", "ignore", "data.window") if name in given}
    output = Path(given["training.output"]) if "training.output" in given else None
    file = table.configure(path, options, output)
    return [str(file), *flags, *(f"--{name}={value}" for name, value in given.items())]


def print_search(path: Path, overrides: Sequence[str] = ()) -> None:
    """Searches a learning rate for a config file, and prints the losses and a suggestion."""
    rank_zero_only(print)(format_search(find_lr(read_config(path, overrides))))


def format_config(path: Path, overrides: Sequence[str] = ()) -> str:
    """Returns the whole config that a config file describes, with defaults, as YAML."""
    return yaml.safe_dump(read_config(path, overrides).to_config(), sort_keys=False)


def describe_config(path: Path, overrides: Sequence[str] = ()) -> str:
    """Returns help on every field of the experiment of a config file, including those of its model."""
    _, experiment, model, parser = open_config(path, overrides)
    usage = f"usage: perceivers fit {path} [--FIELD VALUE ...] [--print_config | --find-lr]"
    lines = [usage, "", f"{summarize(experiment)} Set fields in the file or on the command line."]
    return "\n".join(lines + describe_fields(experiment, parser.get_defaults(), model=model))


def describe_fields(config: Any, defaults: Namespace, prefix: str = "", model: type | None = None) -> list[str]:
    """Returns lines of help on the fields of a config class: name, type, default and documentation of each."""
    parsed = [docstring_parser.parse(base.__doc__ or "") for base in reversed(config.__mro__)]
    texts = {param.arg_name: " ".join((param.description or "").split()) for text in parsed for param in text.params}
    annotations = get_type_hints(config, include_extras=True) | ({} if model is None else {"model": model})
    lines, sections = list[str](), list[str]()
    for item in fields(config):
        name, annotation = prefix + item.name, annotations[item.name]
        if is_dataclass(annotation):
            heading = ["", f"{name}: {texts.get(item.name) or summarize(annotation)}"]
            sections += heading + describe_fields(annotation, defaults, f"{name}.")
            continue
        if name == "trainer":
            sections += ["", f"trainer: {texts[name]}"]
            for argument, *rest in describe_arguments():
                sections += describe_field(f"trainer.{argument}", *rest)
            continue
        is_required = item.default is MISSING and item.default_factory is MISSING and defaults[name] is None
        default = MISSING if is_required else defaults[name]
        lines += describe_field(name, describe_type(annotation), default, texts.get(item.name, ""))
    return lines + sections


def describe_field(name: str, kind: str, default: Any, text: str) -> list[str]:
    """Returns lines of help on one field."""
    value = "required" if default is MISSING else f"default: {json_module.dumps(default, default=str)}"
    indent = " " * 8
    return [f"  --{name} ({kind}; {value})", *textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent)]


def summarize(config: Any) -> str:
    """Returns the first line of the docstring of a class."""
    return (inspect.getdoc(config) or config.__name__).partition("\n")[0]


def open_config(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], type[Experiment], type, ArgumentParser]:
    """Reads a config file; -> its values, the classes of its experiment and of its model, the parser of all fields."""
    path = find_config_file(path)
    values, given = read_yaml(path), list(split_overrides(overrides))
    if "model.init" in dict(given):
        leave_out_model(values)
    for key, value in given:
        *parents, name = key.split(".")
        section, override = values, f"--{key}={value}"
        try:
            for parent in parents:
                section = section.setdefault(parent, {})
            section[name] = parse_yaml(value, override)
        except (PerceiversError, TypeError, AttributeError) as error:
            raise PerceiversError(f"{override!r} is not understood: quote the value, or set single fields.") from error
    values = expand_home(values)
    experiment = find_experiment(values, path)
    model, defaults = find_model(values, experiment, path)
    parser = ArgumentParser(prog=f"perceivers fit {path}", exit_on_error=False)
    parser.add_class_arguments(experiment, skip={"model", "trainer"})
    parser.add_class_arguments(model, "model")
    parser.set_defaults({f"model.{name}": value for name, value in defaults.items()})
    return values, experiment, model, parser


def split_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields field and value of each `--field=value` or `--field value`."""
    rest = iter(overrides)
    for override in rest:
        key, equals, value = override.removeprefix("--").partition("=")
        found = value if equals else next(rest, None)
        if not override.startswith("--") or not key or found is None or (not equals and found.startswith("--")):
            raise PerceiversError(f"{override!r} is not understood: write --field.of.config=value.")
        yield key, found


def expand_home(value: Any) -> Any:
    """Replaces "~/" at the beginning of strings by the home folder."""
    if isinstance(value, dict):
        return {key: expand_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [expand_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def find_experiment(values: dict[str, Any], path: Path) -> type[Experiment]:
    """Removes the experiment, a declared name or an import path, from a config, and returns its class.

    Modules are also imported from the folder of the config, from the current folder, and from `import_from`, the field
    in which the config of a run keeps the folder of its experiment.
    """
    name, folder = values.pop("experiment", None), values.pop("import_from", None)
    if not isinstance(name, str):
        names = ", ".join(plugins.find_entry_points("experiments"))
        raise PerceiversError(f"{path}: experiment is {quote(name)}: name one of {names}, or an import path.")
    for directory in (path.parent, Path.cwd(), Path(folder if isinstance(folder, str) else ".")):
        plugins.add_import_folder(directory)
    if ":" in name:
        plugins.trust(name.partition(":")[0].split(".")[0])
    try:
        return plugins.find_class("experiments", name, Experiment)  # type: ignore[type-abstract]
    except PerceiversError as error:
        raise PerceiversError(f"{path}: {error}") from error


def find_model(values: dict[str, Any], experiment: type[Experiment], path: Path) -> tuple[type, dict[str, Any]]:
    """Removes the preset from a config.

    Returns:
        The class of its model, which preset, pretrained model or fields decide, and the values of its fields.
    """
    given = values.setdefault("model", {})
    if not isinstance(given, dict):
        raise PerceiversError(f"{path}: model = {quote(given)}, but it has fields, such as preset.")
    kinds = model_types(experiment)
    if (init := given.get("init")) is not None:
        check_field("model.init", init, isinstance(init, str), "a saved model")
        if "preset" in given:
            raise PerceiversError(f"{path}: model.init and model.preset both name a model: leave one of them out.")
        config: ModelConfig = pretrained_config(init, *kinds)
        names = [name for name in experiment.decided_by_data if isinstance(getattr(config, name), list | tuple | dict)]
        return type(config), {name: value for name, value in config.settings().items() if name not in names}
    if "preset" in given:
        name = given.pop("preset")
        check_field("model.preset", name, isinstance(name, str), "one of `perceivers models`")
        chosen = find_preset(name)
        if not isinstance(chosen.config, tuple(kinds)):
            trained = f"{experiment.__name__} trains a model of {' or '.join(kind.__name__ for kind in kinds)}."
            raise PerceiversError(f"{path}: model.preset = {name} is of {chosen.experiment}: {trained}")
        return type(chosen.config), chosen.config.settings()
    possible = [kind for kind in kinds if given and set(given) <= set(field_names(kind))]
    if len(kinds) > 1 and len(possible) != 1:
        raise PerceiversError(
            f"{path}: model.preset is missing: name one of `perceivers models`, or a saved model as model.init."
        )
    return (possible or kinds)[0], {}


def leave_out_model(values: dict[str, Any]) -> None:
    """Removes the model from a config that a pretrained one is to replace, but keeps how it is trained."""
    model = values.get("model")
    if isinstance(model, dict) and model.get("init") is None:
        values["model"] = {name: value for name, value in model.items() if name in TRAINING_FIELDS}


def model_types(experiment: type[Experiment]) -> list[type]:
    """Returns the classes of model configs that an experiment takes."""
    annotation = get_type_hints(experiment)["model"]
    kinds = list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]
    for kind in kinds:
        if not is_dataclass(kind):
            raise PerceiversError(f"{experiment.__name__} annotates model with {kind}, which is not a dataclass.")
    return kinds


def field_names(kind: type) -> list[str]:
    """Returns the names of the fields of a dataclass."""
    return [item.name for item in fields(kind)]


def check_keys(values: dict[str, Any], config: type, path: Path, parents: str = "", model: type | None = None) -> None:
    """Raises a PerceiversError for a key that the config class does not have."""
    known = field_names(config)
    annotations = get_type_hints(config) | ({} if model is None else {"model": model})
    for key, value in values.items():
        if not isinstance(key, str):
            raise PerceiversError(
                f"{path}: {quote(key)} is not the name of a field{f' of {parents[:-1]}' * bool(parents)}."
            )
        if key not in known:
            new_names = FIELDS.get(parents + key, "").split()  # experiments may have different new names for an old one
            there = (name for name in new_names if name.removeprefix(parents) in known or name.startswith("trainer."))
            if (new := next(there, None)) is not None:
                raise PerceiversError(f"{path}: the field {parents + key!r} is now called {new!r}: rename it.")
            raise PerceiversError(f"{path}: there is no field {parents + key!r}: {did_you_mean(key, known)}")
        if is_dataclass(annotations[key]):
            if not isinstance(value, dict):
                names = ", ".join(field_names(annotations[key]))
                raise PerceiversError(f"{path}: {parents + key} = {quote(value)}, but it has fields: {names}.")
            check_keys(value, annotations[key], path, f"{parents}{key}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a config file as plain values."""
    if not os.path.isfile(path):
        raise PerceiversError(f"there is no config file {path}.")
    values = parse_yaml(read_small_text(path), str(path))
    if not isinstance(values, dict):
        raise PerceiversError(f"{path} is not a config: it needs fields, such as 'experiment: image_classification'.")
    return values
