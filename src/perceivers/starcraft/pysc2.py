"""Units from the raw observations of pysc2, in the features that replays have, so that its agents can use the encoders.

    follow = RawUnits({unit.value: unit.name for race in (Neutral, Protoss, Terran, Zerg) for unit in race}, map_height)
    batch = follow.read(timestep.observation["raw_units"], int(timestep.observation["game_loop"][0]))
    numbers = policy.units.places([*follow.kinds, "unknown"])
    encoding = policy.encoder(policy.units(batch | {"kind": numbers[batch["kind"]]}), batch["real"])

Nothing of pysc2 is needed here: only its arrays, with a row for each unit and the columns of its `FeatureUnit`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.starcraft.replays import ALLY, BUILDING, ENEMY, FINISHED, NEUTRAL, SELECTED, SELF

UNIT_TYPE, ALLIANCE, BUILD_PROGRESS, DISPLAY_TYPE, X, Y, IS_SELECTED, TAG = 0, 1, 6, 10, 12, 13, 17, 29
"""Columns that are read; the others (health, orders, cargo ...) have no counterpart in replays."""

OWNERS = {1: SELF, 2: ALLY, 3: NEUTRAL, 4: ENEMY}
"""pysc2's alliances as the owners of replays."""

VISIBLE = 1
"""The display type of a unit that is seen now; 2 is one that is remembered where it was, 3 is hidden."""

FEATURES = ("kind", "owner", "x", "y", "age", "unseen", "flags", "groups")


class RawUnits:
    """Follows the units of a game through its observations, for how long each is there, and how long ago it was seen.

    | feature | from |
    | --- | --- |
    | `kind` | `unit_type`, by name: a place in `kinds` |
    | `owner` | `alliance` |
    | `x`, `y` | `x`, and `y` counted from below, as replays do |
    | `age` | game loops since a unit of this `tag` was first there |
    | `unseen` | game loops since its `display_type` was "visible" |
    | `flags` | building: the type's name; finished: `build_progress` of 100; selected before: `is_selected` |
    | `groups` | none: raw observations do not tell control groups |

    Args:
        names: of the types of units, by the number that pysc2 has for each.
        height: cells of the map from top to bottom.
        buildings: names of types that are buildings.

    Attributes:
        kinds: names of types, in the order of their numbers in `kind`.
    """

    def __init__(self, names: Mapping[int, str], height: int, buildings: Collection[str] = ()) -> None:
        self.kinds = sorted(set(names.values()))
        place = {name: index for index, name in enumerate(self.kinds)}
        self.place = {number: place[name] for number, name in names.items()}
        self.height = height
        self.building = {number for number, name in names.items() if name in buildings}
        self.unknown = 0
        self.first: dict[int, int] = {}
        self.seen: dict[int, int] = {}

    def read(self, raw_units: np.ndarray[Any, Any], loop: int) -> dict[str, Tensor]:
        """One observation as a batch of one, as `perceivers.starcraft.data.collate` makes it of replays.

        Args:
            raw_units: [units, columns], integers.
            loop: game loop; those of a game are given in order.

        Returns:
            Each [1, units]. A type that `names` lacks has the number `len(kinds)`, and is counted in `unknown`.

        Raises:
            PerceiversError: the array has another layout.
        """
        check_layout(raw_units)
        fields: dict[str, list[float]] = {name: [] for name in FEATURES}
        for row in np.asarray(raw_units).tolist():
            tag, number = int(row[TAG]), int(row[UNIT_TYPE])
            if row[DISPLAY_TYPE] == VISIBLE:
                self.seen[tag] = loop
            first = self.first.setdefault(tag, loop)
            self.unknown += number not in self.place
            fields["kind"].append(self.place.get(number, len(self.kinds)))
            fields["owner"].append(OWNERS[int(row[ALLIANCE])])
            fields["x"].append(row[X])
            fields["y"].append(self.height - row[Y])
            fields["age"].append(loop - first)
            fields["unseen"].append(loop - self.seen.get(tag, first))
            flags = BUILDING * (number in self.building) + FINISHED * (row[BUILD_PROGRESS] >= 100)
            fields["flags"].append(flags + SELECTED * (row[IS_SELECTED] > 0))
            fields["groups"].append(0)
        kinds = {name: torch.float32 if name in ("x", "y") else torch.long for name in fields}
        batch = {name: torch.tensor([values], dtype=kinds[name]) for name, values in fields.items()}
        return batch | {"real": torch.ones(1, len(raw_units), dtype=torch.bool)}


def check_layout(raw_units: np.ndarray[Any, Any]) -> None:
    """Raises a PerceiversError unless an array has a row for each unit and the columns of pysc2's `FeatureUnit`."""
    shape = np.shape(raw_units)
    if len(shape) != 2 or shape[1] <= TAG:
        raise PerceiversError(
            f"raw units of shape {shape} were given, but [units, at least {TAG + 1} columns] is expected, as in "
            f"observation['raw_units'] of pysc2."
        )
    wrong = sorted(set(np.asarray(raw_units)[:, ALLIANCE].tolist()) - set(OWNERS))
    if wrong:
        raise PerceiversError(
            f"column {ALLIANCE} of the raw units has the value {wrong[0]}, but alliances are 1 to 4: the columns are "
            f"in another order than pysc2's, or these are feature layers."
        )
