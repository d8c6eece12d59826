"""Parts of a model: which ones a run trains, and how far they are from the output."""

import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from perceivers.checks import check_field
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.model.saving import Model

HEAD = "head"
"""The name of all parts in `Model.head`."""


def freeze_parts(model: Model, train: Sequence[str] | None, freeze: Sequence[str] | None) -> None:
    """Freezes the weights of all parts of a model but those to train, or of some parts.

    Frozen batch normalization keeps its statistics, and normalizes by them.

    Args:
        model: the model.
        train: as in `ModelConfig`.
        freeze: as in `ModelConfig`.

    Raises:
        PerceiversError: both are given, there is no such part, or nothing would be trained.
    """
    if train is None and freeze is None:
        return
    check_field("model.freeze", freeze, train is None or freeze is None, "left out if model.train is given")
    field, parts = ("model.freeze", freeze) if train is None else ("model.train", train)
    prefixes = find_prefixes(model, field, parts or ())
    for name, parameter in model.named_parameters():
        is_named = any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)
        parameter.requires_grad_(is_named == (train is not None))
    is_trained = any(parameter.requires_grad for parameter in model.parameters())
    check_field(field, parts, is_trained, "parts that leave something to train")
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def find_trained(model: nn.Module) -> set[str]:
    """Returns the names of weights that training changes, with the statistics of batch normalization."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in model.named_modules()
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False))
        for name in part.state_dict()
        if not name.count(".")
    }


def find_equal(one: nn.Module, other: nn.Module) -> set[str]:
    """Returns the names of weights that are equal in two models."""
    known = one.state_dict()
    return {
        name
        for name, value in other.state_dict().items()
        if name in known and value.shape == known[name].shape and torch.equal(value, known[name].to(value))
    }


def find_prefixes(model: Model, field: str, parts: Sequence[str]) -> list[str]:
    """Returns the beginnings of the names of weights that parts stand for; or raises a PerceiversError."""
    names = [name.split(".") for name, _ in model.named_parameters()]
    known = dict.fromkeys(".".join(name[:length]) for name in names for length in range(1, len(name) + 1))
    for part in parts:
        if part not in known and part != HEAD:
            top = [name for name in known if name.count(".") <= part.count(".")]
            raise PerceiversError(f"{field}: the model has no part {part!r}: {did_you_mean(part, [HEAD, *top])}")
    return [prefix for part in parts for prefix in (model.head if part == HEAD else (part,))]


def distance_from_output(name: str, model: nn.Module) -> int:
    """Returns the number of layers of the encoder from a weight to the output.

    It is 0 for decoder and outputs, 1 for the last self-attention layer, and so on to the first; one more for latents
    and cross-attentions; and again one more for inputs.
    """
    layers = [int(found[1]) for other, _ in model.named_parameters() if (found := LAYER.search(other))]
    depth = max(layers, default=-1) + 1
    if found := LAYER.search(name):
        return depth - int(found[1])
    if LATENTS.search(name):
        return depth + 1
    return depth + 2 if INPUTS.match(name) else 0


LAYER = re.compile(r"(?:^|encoder\.)layers\.(\d+)\.")
LATENTS = re.compile(r"encoder\.(?:latents|cross_attentions)\b|^cross_attention\.")
INPUTS = re.compile(r"(?:inputs|input_padding|norm_x|units|numbers|(?:encoder\.)?embedding)\.")
"""The names of weights of self-attention layers, of what comes before these, and of inputs."""
