"""What a StarCraft II player does next, seen from all units: selection, command and target (section 4.5).

AlphaStar's encoder of units with its heads for selection, ability and target, without the rest of its agent: maps,
memory, planning. The encoder is the paper's Perceiver IO or AlphaStar's Transformer.

Shape suffixes: B batch, M units, E channels of the encoder's answers, C channels of the context, A abilities
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
from perceivers.inference import choose_device, move_model
from perceivers.model import kernels
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig
from perceivers.set_encoder import SetEncoder, SetEncoding
from perceivers.starcraft.entity_transformer import EntityTransformer
from perceivers.starcraft.features import ScalarFeatures, UnitFeatures
from perceivers.starcraft.pointer import PointerNetwork, SeparateSelection

Encoder = Literal["perceiver", "transformer"]
Selection = Literal["pointer", "separate"]


class Situation(NamedTuple):
    """What a policy knows: the units' encoding, which of them are real, and the context [B, C]."""

    encoding: SetEncoding
    real_BM: Tensor
    context_BC: Tensor


class UnitPolicy(Model):
    """Selection, ability and target of a decision. The defaults are the paper's Perceiver IO.

    The arguments are the fields of `PolicyConfig`.
    """

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
    ) -> None:
        super().__init__()
        for name, value, allowed in (("encoder", encoder, Encoder), ("selection", selection, Selection)):
            check_field(name, value, matches(value, allowed), describe_expected(value, allowed))
        self.kinds, self.abilities, self.scalars = list(kinds), list(abilities), list(scalars)
        self.units, self.numbers = UnitFeatures(kinds), ScalarFeatures(len(scalars))
        answers = 256
        self.encoder: SetEncoder | EntityTransformer
        if encoder == "perceiver":
            self.encoder = SetEncoder(self.units.channels, answers, width, latents, latent_channels, depth, heads)
        else:
            self.encoder = EntityTransformer(self.units.channels, answers, width, depth, heads)
        context = answers + self.numbers.channels
        self.selection = (PointerNetwork if selection == "pointer" else SeparateSelection)(answers, context)
        self.ability = nn.Sequential(Linear(context + answers, 256), nn.ReLU(), Linear(256, len(abilities) + 1))
        self.ability_vector = trunc_normal_parameter(len(abilities) + 1, 64)
        self.target_query = nn.Sequential(Linear(context + answers + 64, 256), nn.ReLU(), Linear(256, answers))
        kernels.optimize(self)

    def forward(self, batch: Mapping[str, Tensor]) -> Situation:
        """Encodes units and numbers; `batch` is as `perceivers.starcraft.data.PolicyDecisions` makes it."""
        encoding = self.encoder(self.units(batch), batch["real"])
        context_BC = self.numbers(batch["scalars"], batch["race"], batch["enemy_race"], batch["loop"])
        return Situation(encoding, batch["real"], torch.cat([encoding.whole_BE, context_BC], 1))

    def ability_logits(self, situation: Situation, chosen_BM: Tensor) -> Tensor:
        """Returns logits of the abilities, an unknown one before them, for the units that are selected; [B, 1 + A]."""
        logits_BA: Tensor = self.ability(self.with_chosen(situation, chosen_BM))
        return logits_BA.float()

    def target_logits(self, situation: Situation, chosen_BM: Tensor, ability_B: Tensor) -> Tensor:
        """Returns logits of the units that an ability, whose number counts the unknown as 0, may aim at; [B, M]."""
        known_BC = torch.cat([self.with_chosen(situation, chosen_BM), self.ability_vector[ability_B]], 1)
        query_BE1 = self.target_query(known_BC)[..., None]
        logits_BM = (situation.encoding.elements_BME @ query_BE1)[..., 0] / query_BE1.shape[1] ** 0.5
        return logits_BM.float().masked_fill(~situation.real_BM, -torch.inf)

    def with_chosen(self, situation: Situation, chosen_BM: Tensor) -> Tensor:
        """Returns the context and the mean of the units that are selected; [B, C + E]."""
        chosen_BM1 = chosen_BM[..., None].to(situation.encoding.elements_BME.dtype)
        mean_BE = (situation.encoding.elements_BME * chosen_BM1).sum(1) / chosen_BM1.sum(1).clamp_min(1)
        return torch.cat([situation.context_BC, mean_BE], 1)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(ModelConfig):
    """Config of a `UnitPolicy`.

    Attributes:
        kinds: names of the types of units that are told apart.
        abilities: names of the commands that are predicted; all others are one, the unknown.
        scalars: names of the player's numbers.
        encoder: "perceiver" or "transformer".
        width: channels of units inside the encoder.
        latents: number of latents, of Perceiver IO.
        latent_channels: their channels.
        depth: layers of self-attention, of both encoders.
        heads: heads of each.
        selection: "pointer", one unit after another, or "separate", each by itself.
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

    def build(self) -> UnitPolicy:
        """Returns the policy, with fresh weights."""
        return UnitPolicy(**vars(self))


def load_policy(source: str | Path, device: str | None = None) -> UnitPolicy:
    """Returns a saved policy in evaluation mode.

    Args:
        source: anything that `perceivers.load` takes.
        device: where it is to run; on the accelerator if there is one, if not given.

    Raises:
        PerceiversError: it cannot be loaded, is another kind of model, or there is no such device.
    """
    policy = load_model(source)
    if not isinstance(policy, UnitPolicy):
        raise PerceiversError(f"{source} holds a {type(policy).__name__}, not a UnitPolicy.")
    return move_model(policy, device or choose_device())
