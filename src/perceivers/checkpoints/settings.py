"""Reads the config of a loaded model, and changes its settings."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

from torch import nn

from perceivers import plugins
from perceivers.errors import PerceiversError
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig, describe
from perceivers.model.transfer import transfer_weights


def find_config(model: nn.Module, kinds: Iterable[type[ModelConfig]]) -> ModelConfig | None:
    """Returns the config of a model, of the first class that describes it; None if none does."""
    return next((config for kind in kinds if (config := kind.from_model(model)) is not None), None)


def list_config_types() -> list[type[ModelConfig]]:
    """Returns the classes of the configs of all installed models."""
    kinds = dict[type[ModelConfig], None]()
    for name in plugins.find_entry_points("models"):
        with suppress(PerceiversError):  # what needs an extra that is not installed
            kinds[type(plugins.find_object("models", name).config)] = None
    return list(kinds)


def change_model(model: Model, settings: Mapping[str, Any], source: object) -> Model:
    """Returns a model with some fields of its config changed, see `change_settings`.

    Raises:
        PerceiversError: no config describes the model, or as in `change_settings`.
    """
    config = find_config(model, list_config_types())
    if config is None or config.describe() != describe(model):
        raise PerceiversError(
            f"{source} holds a model that no installed config describes: {', '.join(settings)} cannot be given."
        )
    return change_settings(model, config, settings, source)


def change_settings(model: Model, config: ModelConfig, settings: Mapping[str, Any], source: object) -> Model:
    """Returns a model with some fields of its config changed and its weights; warns of weights that are fresh.

    Raises:
        PerceiversError: there is no such field, its value is not allowed, or it has no effect on this model.
    """
    changed = config.change(settings)
    if changed == config:
        return model
    for name, value in settings.items():
        if value != getattr(config, name) and has_no_effect(config, name, value):
            raise PerceiversError(f"{source} holds a model on which {name} has no effect: leave it out.")
    new: Any = changed.build().to(next(model.parameters()).dtype).eval()
    found = transfer_weights(model, new)
    weights = model.state_dict()
    if {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in new.state_dict().items()}:
        new.load_state_dict(weights)  # classes may have other names
    else:
        found.warn(source)
    return cast(Model, new)


def has_no_effect(config: ModelConfig, name: str, value: Any) -> bool:
    """Returns whether a field of a config changes nothing of its model."""
    try:
        return bool(config.change({name: value}).describe() == config.describe())
    except PerceiversError:  # it is allowed with another field only
        return False
