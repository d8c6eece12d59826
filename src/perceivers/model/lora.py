"""Low-rank adaptation (Hu et al., 2021): the settings, and its weights merged with those of the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from perceivers.checks import Checked, Range

FACTOR = re.compile(r"(.+)\.lora_A(\.default)?\.weight")
"""The name of the first factor of a layer's update in a checkpoint, or in an adapter."""


@dataclass(frozen=True, kw_only=True)
class Lora(Checked):
    """Settings of low-rank adaptation: the update of the weight of each layer is a product of two small matrices.

    Attributes:
        rank: of the update, such as 8; 0 for no adaptation.
        alpha: the update is multiplied by alpha / rank.
        dropout: probability of dropping an input of the update in training.
        layers: linear layers of attention (query, key, value, output) and of MLPs (hidden, output) that are adapted.
    """

    section = "model.lora."

    rank: Annotated[int, Range(least=0)] = 0
    alpha: Annotated[float, Range(above=0)] = 16
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    layers: tuple[str, ...] = ("query", "key", "value", "output", "hidden")


def merge_lora(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns weights by the names that they have without adaptation, with `scale` times the updates added."""
    merged = {name.replace(".base_layer.", "."): value for name, value in weights.items() if ".lora_" not in name}
    for name, factor_RC in weights.items():
        if found := FACTOR.fullmatch(name):
            factor_ER, weight = weights[name.replace(".lora_A", ".lora_B")], f"{found[1]}.weight"
            update_EC = scale * factor_ER.double() @ factor_RC.double()
            merged[weight] = (merged[weight].double() + update_EC).to(merged[weight].dtype)
    return merged
