"""Feature vectors of StarCraft II units and of a player's statistics.

Shape suffixes: B batch, M units, S scalars, C channels
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.linear import Linear, trunc_normal_parameter

CELLS = 256  # of the largest map, along each side
HOUR = 16 * 60 * 60  # in game loops
OWNERS, FLAGS, GROUPS, RACES = 4, 3, 10, 3


def index_names(names: Sequence[str], known: Sequence[str]) -> Tensor:
    """Returns the indices of names in `known`, counted from 1; 0 for an unknown name."""
    indices = {name: index for index, name in enumerate(known, 1)}
    return torch.tensor([indices.get(name, 0) for name in names], dtype=torch.long)


class UnitFeatures(nn.Module):
    """Features of each unit: a learned vector of its type, and numbers for the rest.

    These are its owner (self, ally, enemy, neutral), whether it is a building, finished and selected before, its
    control groups, its location with Fourier features, its age, and the time since its location was known.

    Args:
        kinds: names of the types; all others share one vector.
        kind_channels: channels of the vector of a type.
        bands: frequencies of the Fourier features, along each side of the map.
    """

    def __init__(self, kinds: Sequence[str], kind_channels: int = 32, bands: int = 6) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.bands = bands
        vectors = trunc_normal_parameter(len(kinds) + 1, kind_channels)
        self.embedding = nn.Embedding(len(kinds) + 1, kind_channels, _weight=vectors)
        self.channels = kind_channels + OWNERS + FLAGS + GROUPS + 2 + 4 * bands + 2

    def index_kinds(self, names: Sequence[str]) -> Tensor:
        """Returns the indices of types in the embedding; 0 for unknown types."""
        return index_names(names, self.kinds)

    def forward(self, units: Mapping[str, Tensor]) -> Tensor:
        """Takes "kind" (index here), "owner", "flags", "groups", "x", "y", "age", "unseen", each [B, M]; -> [B, M, C].

        Flags and groups are bits; locations are in cells, times in game loops.
        """
        flag_F, group_G = (2 ** torch.arange(count, device=units["kind"].device) for count in (FLAGS, GROUPS))
        xy_BM2 = torch.stack([units["x"], units["y"]], -1) / CELLS * 2 - 1
        frequency_F = math.pi * 2 ** torch.arange(self.bands, device=xy_BM2.device)
        wave_BMF = (xy_BM2[..., None] * frequency_F).flatten(-2)
        times_BM2 = torch.stack([units["age"], units["unseen"]], -1).float()
        return torch.cat(
            [
                self.embedding(units["kind"]),
                F.one_hot(units["owner"], OWNERS).float(),
                (units["flags"][..., None] & flag_F).bool().float(),
                (units["groups"][..., None] & group_G).bool().float(),
                xy_BM2,
                wave_BMF.sin(),
                wave_BMF.cos(),
                times_BM2.log1p() / math.log1p(HOUR),
            ],
            -1,
        )


class ScalarFeatures(nn.Module):
    """One vector [B, C] of a player's statistics, the races and the time, by an MLP."""

    def __init__(self, scalars: int, channels: int = 64) -> None:
        super().__init__()
        self.scalars, self.channels = scalars, channels
        self.inputs = scalars + 2 * (RACES + 1) + 1
        self.layers = nn.Sequential(Linear(self.inputs, channels), nn.ReLU(), Linear(channels, channels), nn.ReLU())

    def forward(self, scalar_BS: Tensor, race_B: Tensor, enemy_race_B: Tensor, loop_B: Tensor) -> Tensor:
        """Takes statistics, races (-1: unknown) and game loops; -> [B, C]. Negative statistics count as 0."""
        if scalar_BS.shape[-1] != self.scalars:
            raise PerceiversError(f"{scalar_BS.shape[-1]} scalars were given, but the model reads {self.scalars}.")
        races = [F.one_hot(race + 1, RACES + 1).float() for race in (race_B, enemy_race_B)]
        time_B1 = loop_B[:, None].float().log1p() / math.log1p(HOUR)
        vector_BC: Tensor = self.layers(torch.cat([scalar_BS.clamp_min(0).log1p() / 8, *races, time_B1], -1))
        return vector_BC
