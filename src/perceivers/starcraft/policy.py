"""Policies of StarCraft II players: selection, command and target, predicted from all units (section 4.5).

AlphaStar's encoder of units with its heads for selection, ability and target; the rest of its agent (maps, memory,
planning) is left out. The encoder is the paper's Perceiver IO or AlphaStar's Transformer.

Shape suffixes: B batch, M units, E output channels of the encoder, C channels of the context, A abilities
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from perceivers.checkpoints import load_model
from perceivers.checks import Count, check_field, describe_expected, matches
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.device import choose_device, move_model
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig
from perceivers.set_encoder import SetEncoder, SetEncoding
from perceivers.starcraft.entity_transformer import EntityTransformer
from perceivers.starcraft.features import ScalarFeatures, UnitFeatures, encode_times
from perceivers.starcraft.pointer import IndependentSelection, PointerNetwork

Encoder = Literal["perceiver", "transformer"]
Selection = Literal["pointer", "independent"]

ABILITY_CHANNELS = 64
"""Channels of the vector of an ability."""


class EncodedObservation(NamedTuple):
    """A policy's input after encoding: the units, the mask of those that are not padding, and the context [B, C]."""

    encoding: SetEncoding
    real_BM: Tensor
    context_BC: Tensor

    def index_batch(self, mask_B: Tensor) -> "EncodedObservation":
        """Returns the observations that a mask selects."""
        encoding = SetEncoding(self.encoding.elements_BME[mask_B], self.encoding.pooled_BE[mask_B])
        return EncodedObservation(encoding, self.real_BM[mask_B], self.context_BC[mask_B])


class UnitPolicy(Model):
    """Predicts the selection, ability and target of a decision; the arguments are the fields of `PolicyConfig`."""

    head = ("selection", "ability", "ability_vector", "target_query")

    def __init__(
        self,
        kinds: Sequence[str],
        abilities: Sequence[str],
        scalars: Sequence[str],
        encoder: Encoder = "perceiver",
        width: int = 128,
        latents: int = 32,
        latent_channels: int = 512,
        depth: int = 3,
        heads: int = 2,
        selection: Selection = "pointer",
        history: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (("encoder", encoder, Encoder), ("selection", selection, Selection)):
            check_field(name, value, matches(value, allowed), describe_expected(value, allowed))
        self.kinds, self.abilities, self.scalars = list(kinds), list(abilities), list(scalars)
        self.units, self.numbers = UnitFeatures(kinds, history=history), ScalarFeatures(len(scalars))
        self.history = history
        channels = 256
        self.encoder: SetEncoder | EntityTransformer
        if encoder == "perceiver":
            self.encoder = SetEncoder(self.units.channels, channels, width, latents, latent_channels, depth, heads)
        else:
            self.encoder = EntityTransformer(self.units.channels, channels, width, depth, heads)
        context = channels + self.numbers.channels + history * (ABILITY_CHANNELS + 1)
        self.selection = (PointerNetwork if selection == "pointer" else IndependentSelection)(channels, context)
        self.ability = nn.Sequential(Linear(context + channels, 256), nn.ReLU(), Linear(256, len(abilities) + 1))
        self.ability_vector = trunc_normal_parameter(len(abilities) + 1, ABILITY_CHANNELS)
        known = context + channels + ABILITY_CHANNELS
        self.target_query = nn.Sequential(Linear(known, 256), nn.ReLU(), Linear(256, channels))
        kernels.optimize(self)

    def index_names(self) -> dict[str, tuple[int, list[str]]]:
        """Returns the names of types, abilities and statistics; the first is the unknown one."""
        abilities, others = (
            (0, ["", *self.abilities]),
            [f"{index}." for index in range(self.numbers.inputs - len(self.scalars))],
        )
        return {
            "units.embedding.weight": (0, ["", *self.kinds]),
            "numbers.layers.0.weight": (1, [*self.scalars, *others]),
            "ability.2.weight": abilities,
            "ability.2.bias": abilities,
            "ability_vector": abilities,
        }

    def forward(self, batch: Mapping[str, Tensor]) -> EncodedObservation:
        """Encodes units and statistics; `batch` is made by `perceivers.starcraft.data.PolicyDecisions`."""
        encoding = self.encoder(self.units(batch), batch["real"])
        context = [encoding.pooled_BE]
        context += [self.numbers(batch["scalars"], batch["race"], batch["enemy_race"], batch["loop"])]
        if self.history:
            last_B1 = batch["last_ability"][:, None]
            context += [self.ability_vector[last_B1.clamp_min(0)[:, 0]] * (last_B1 >= 0)]
            context += [encode_times(batch["idle"])]
        return EncodedObservation(encoding, batch["real"], torch.cat(context, 1))

    def ability_logits(self, observation: EncodedObservation, chosen_BM: Tensor) -> Tensor:
        """Returns logits of the abilities for the selected units, the unknown ability first; [B, 1 + A]."""
        logits_BA: Tensor = self.ability(self.append_selected_mean(observation, chosen_BM))
        return logits_BA.float()

    def target_logits(self, observation: EncodedObservation, chosen_BM: Tensor, ability_B: Tensor) -> Tensor:
        """Returns logits of the units as targets of an ability (its index, 0 for the unknown ability); [B, M]."""
        known_BC = torch.cat([self.append_selected_mean(observation, chosen_BM), self.ability_vector[ability_B]], 1)
        query_BE1 = self.target_query(known_BC)[..., None]
        logits_BM = (observation.encoding.elements_BME @ query_BE1)[..., 0] / query_BE1.shape[1] ** 0.5
        return logits_BM.float().masked_fill(~observation.real_BM, -torch.inf)

    def append_selected_mean(self, observation: EncodedObservation, chosen_BM: Tensor) -> Tensor:
        """Returns the context followed by the mean of the selected units; [B, C + E]."""
        elements_BME = observation.encoding.elements_BME
        chosen_BM1 = chosen_BM[..., None].to(elements_BME.dtype)
        mean_BE = (elements_BME * chosen_BM1).sum(1) / chosen_BM1.sum(1).clamp_min(1)
        return torch.cat([observation.context_BC, mean_BE], 1)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ModelConfig):
    """Config of a `UnitPolicy`. The defaults are the paper's Perceiver IO.

    Attributes:
        kinds: names of the types of units; all others are one unknown type.
        abilities: names of the commands that are predicted; all others are one unknown ability.
        scalars: names of the player's statistics.
        encoder: "perceiver" or "transformer".
        width: channels of units inside the encoder.
        latents: number of latents of Perceiver IO.
        latent_channels: channels of latents of Perceiver IO.
        depth: self-attention layers.
        heads: heads of all attentions.
        selection: "pointer", one unit after another, or "independent", each unit independently.
        history: whether to read what the player did before: the last selections, commands and view.
    """

    kinds: tuple[str, ...] = ()
    abilities: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    encoder: Encoder = "perceiver"
    width: Count = 128
    latents: Count = 32
    latent_channels: Count = 512
    depth: Count = 3
    heads: Count = 2
    selection: Selection = "pointer"
    history: bool = False

    def build(self) -> UnitPolicy:
        return UnitPolicy(**self.settings())

    @classmethod
    def from_model(cls, model: nn.Module) -> "PolicyConfig | None":
        if not isinstance(model, UnitPolicy):
            return None
        names = {name: tuple(model.config[name]) for name in ("kinds", "abilities", "scalars")}
        return cls(**(model.config | names))


def load_policy(source: str | Path, device: str | None = None) -> UnitPolicy:
    """Loads a policy like `load_for_inference`; raises a PerceiversError if it is another kind of model."""
    policy = load_model(source)
    if not isinstance(policy, UnitPolicy):
        raise PerceiversError(f"{source} holds a {type(policy).__name__}, not a UnitPolicy.")
    return move_model(policy, device or choose_device())
