"""Adapters: what low-rank adaptation learned of a model, in the format of `peft`, and what else was trained."""

from collections.abc import Callable
from pathlib import Path

from perceivers.errors import PerceiversError
from perceivers.model.config import Configurable, from_config
from perceivers.model.lora import merge_lora
from perceivers.model.meta import build_on_meta
from perceivers.model.saving import CONFIG, Model, build_model, read_config, read_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""The beginning of the names of all weights in the format of `peft`."""


def apply_adapter(base: Model, folder: Path, find_class: Callable[[str], type[Configurable]]) -> Model:
    """Returns the model that was fine-tuned from a base model.

    Args:
        base: the model from which the adapter was trained.
        folder: the adapter, as a training run writes it.
        find_class: as in `read_model`.

    Raises:
        PerceiversError: the folder is no adapter, or is one of another model.
    """
    settings, config, file = read_config(folder, ADAPTER_CONFIG), read_config(folder), folder / ADAPTER_WEIGHTS
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or "model" not in config:
        raise PerceiversError(
            f"{folder} is not an adapter of a training run: its {ADAPTER_CONFIG} or {CONFIG} is damaged."
        )
    adapter = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(file).items()}
    known = base.state_dict()
    model = build_on_meta(lambda: from_config(config["model"], find_class), len(known), folder / CONFIG)
    weights = {name: known[name] for name in model.state_dict() if name in known}
    try:
        merged = merge_lora(weights | adapter, alpha / rank)
    except (KeyError, RuntimeError) as error:
        raise PerceiversError(f"{folder} is an adapter of another model ({error}): load it with its own.") from error
    return build_model(config, merged, folder / CONFIG, file, find_class)
