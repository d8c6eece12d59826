"""Units of StarCraft II and a player's numbers as vectors.

Shape suffixes: B batch, M units, S scalars, C channels
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.linear import Linear, trunc_normal_parameter

CELLS = 256
"""Cells of the largest map, along each side."""
HOUR = 16 * 60 * 60
"""Game loops of an hour, in which ages are measured."""
OWNERS, FLAGS, GROUPS, RACES = 4, 3, 10, 3


def number(names: Sequence[str], known: Sequence[str]) -> Tensor:
    """Returns the numbers of names among those that are known, counted from 1; 0 for the unknown."""
    places = {name: place for place, name in enumerate(known, 1)}
    return torch.tensor([places.get(name, 0) for name in names], dtype=torch.long)


class UnitFeatures(nn.Module):
    """What is known of each unit: its type, learned, and the rest as numbers.

    These are the owner (self, ally, enemy, neutral), whether it is a building, is finished and was selected before, its
    control groups, its place and waves of it, how long ago it was born, and how long ago its place was known.

    Args:
        kinds: names of the types that are told apart; all others are one, the unknown.
        kind_channels: of the vector of a type.
        bands: frequencies of the waves of a place, along each side of the map.

    Attributes:
        channels: C of a unit.
    """

    def __init__(self, kinds: Sequence[str], kind_channels: int = 32, bands: int = 6) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.bands = bands
        self.embedding = nn.Embedding(
            len(kinds) + 1, kind_channels, _weight=trunc_normal_parameter(len(kinds) + 1, kind_channels)
        )
        self.channels = kind_channels + OWNERS + FLAGS + GROUPS + 2 + 4 * bands + 2

    def places(self, names: Sequence[str]) -> Tensor:
        """Returns the numbers that types have here; 0 for the unknown."""
        return number(names, self.kinds)

    def forward(self, units: Mapping[str, Tensor]) -> Tensor:
        """Takes "kind" (numbers here), "owner", "flags", "groups", "x", "y", "age", "unseen", each [B, M] -> [B, M, C].

        Flags and groups are bits; places are cells, times are game loops.
        """
        flag_F, group_G = (2 ** torch.arange(count, device=units["kind"].device) for count in (FLAGS, GROUPS))
        place_BM2 = torch.stack([units["x"], units["y"]], -1) / CELLS * 2 - 1
        frequency_F = math.pi * 2 ** torch.arange(self.bands, device=place_BM2.device)
        wave_BMF = (place_BM2[..., None] * frequency_F).flatten(-2)
        times_BM2 = torch.stack([units["age"], units["unseen"]], -1).float()
        return torch.cat(
            [
                self.embedding(units["kind"]),
                F.one_hot(units["owner"], OWNERS).float(),
                (units["flags"][..., None] & flag_F).bool().float(),
                (units["groups"][..., None] & group_G).bool().float(),
                place_BM2,
                wave_BMF.sin(),
                wave_BMF.cos(),
                times_BM2.log1p() / math.log1p(HOUR),
            ],
            -1,
        )


class ScalarFeatures(nn.Module):
    """A player's numbers, the races and the time as one vector, by an MLP.

    Args:
        scalars: how many numbers.
        channels: C of the vector.
    """

    def __init__(self, scalars: int, channels: int = 64) -> None:
        super().__init__()
        self.scalars, self.channels = scalars, channels
        self.layers = nn.Sequential(
            Linear(scalars + 2 * (RACES + 1) + 1, channels), nn.ReLU(), Linear(channels, channels), nn.ReLU()
        )

    def forward(self, scalar_BS: Tensor, race_B: Tensor, enemy_race_B: Tensor, loop_B: Tensor) -> Tensor:
        """Numbers of at least 0, races (-1: unknown) and game loops -> [B, C]."""
        if scalar_BS.shape[-1] != self.scalars:
            raise PerceiversError(f"{scalar_BS.shape[-1]} scalars were given, but the model reads {self.scalars}.")
        races = [F.one_hot(race + 1, RACES + 1).float() for race in (race_B, enemy_race_B)]
        time_B1 = loop_B[:, None].float().log1p() / math.log1p(HOUR)
        vector_BC: Tensor = self.layers(torch.cat([scalar_BS.clamp_min(0).log1p() / 8, *races, time_B1], -1))
        return vector_BC
