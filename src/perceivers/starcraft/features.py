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
    control groups, its location with Fourier features, its age, and the time since its location was known; with
    `history` also whether it was in the selection before the current one, the times since it was last selected and
    commanded, and its location as seen from the center of the player's view.

    Args:
        kinds: names of the types; all others share one vector.
        kind_channels: channels of the vector of a type.
        bands: frequencies of the Fourier features, along each side of the map.
        history: whether to include what the player did before.
    """

    def __init__(self, kinds: Sequence[str], kind_channels: int = 32, bands: int = 6, history: bool = False) -> None:
        super().__init__()
        self.kinds = list(kinds)
        self.bands, self.history = bands, history
        vectors = trunc_normal_parameter(len(kinds) + 1, kind_channels)
        self.embedding = nn.Embedding(len(kinds) + 1, kind_channels, _weight=vectors)
        location = 2 + 4 * bands
        self.channels = kind_channels + OWNERS + FLAGS + GROUPS + location + 2 + history * (1 + 2 + location)

    def index_kinds(self, names: Sequence[str]) -> Tensor:
        """Returns the indices of types in the embedding; 0 for unknown types."""
        return index_names(names, self.kinds)

    def forward(self, units: Mapping[str, Tensor]) -> Tensor:
        """Takes "kind" (index here), "owner", "flags", "groups", "x", "y", "age", "unseen", each [B, M]; -> [B, M, C].

        With history also "unselected", "uncommanded" and "camera" [B, 2], -1 if unknown. Flags and groups are bits;
        locations are in cells, times in game loops.
        """
        flag_F, group_G = (
            2 ** torch.arange(count, device=units["kind"].device) for count in (FLAGS + self.history, GROUPS)
        )
        xy_BM2 = torch.stack([units["x"], units["y"]], -1)
        features = [
            self.embedding(units["kind"]),
            F.one_hot(units["owner"], OWNERS).float(),
            (units["flags"][..., None] & flag_F).bool().float(),
            (units["groups"][..., None] & group_G).bool().float(),
            self.encode_location(xy_BM2 / CELLS * 2 - 1),
            encode_times(units["age"], units["unseen"]),
        ]
        if self.history:
            camera_B12 = units["camera"][:, None]
            offset_BM2 = (xy_BM2 - camera_B12).where(camera_B12 >= 0, 0)
            features += [
                encode_times(units["unselected"], units["uncommanded"]),
                self.encode_location((offset_BM2 / CELLS).clamp(-1, 1)),
            ]
        return torch.cat(features, -1)

    def encode_location(self, xy_BM2: Tensor) -> Tensor:
        """Returns locations, -1 ... 1, with their Fourier features, [B, M, 2 + 4 * bands]."""
        frequency_F = math.pi * 2 ** torch.arange(self.bands, device=xy_BM2.device)
        wave_BMF = (xy_BM2[..., None] * frequency_F).flatten(-2)
        return torch.cat([xy_BM2, wave_BMF.sin(), wave_BMF.cos()], -1)


def encode_times(*times_BM: Tensor) -> Tensor:
    """Returns the logarithms of times in game loops, 0 ... 1 for an hour, [B, M, times]."""
    return torch.stack(times_BM, -1).float().log1p() / math.log1p(HOUR)


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
