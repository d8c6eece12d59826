"""Players' decisions, as `perceivers prepare-replays` writes them, divided by replay.

Shape suffixes: B batch, M units
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from perceivers.checks import Checked
from perceivers.data.loader import SampleIndex, Samples
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.starcraft.features import number
from perceivers.starcraft.replays import UNKNOWN
from perceivers.starcraft.tables import Vocabulary, read_statistics, read_vocabulary

PARTS = ("training", "validation", "test")
UNITS = ("kind", "owner", "x", "y", "age", "unseen", "flags", "groups")
"""Columns with a value for each unit."""


@dataclass
class DecisionData(Checked):
    """Which decisions to use.

    Attributes:
        path: the folder that `perceivers prepare-replays` wrote.
        split: a JSON file with the names of the replays of "training", "validation" and "test".
    """

    section = "data."

    path: str = ""
    split: str = "configs/starcraft/split.json"

    def open(self) -> dict[str, "Decisions"]:
        """Returns the decisions of each part.

        Raises:
            PerceiversError: the tables or the split cannot be read, or do not fit each other.
        """
        if not self.path:
            raise PerceiversError("data.path is not given: it is the folder that `perceivers prepare-replays` wrote.")
        folder, names = Path(self.path), read_split(Path(self.split))
        there = read_statistics(folder)["replays"]
        if not there:
            raise PerceiversError(f"data.path = {folder} has no tables of decisions: write them by prepare-replays.")
        for part, replays in names.items():
            missing = [name for name in replays if name not in there]
            if missing:
                raise PerceiversError(f"{self.split}: {folder} has no replay {missing[0]!r} of {part}: "
                                      f"{did_you_mean(missing[0], there)}")  # fmt: skip
        vocabulary = read_vocabulary(folder)
        return {part: Decisions([folder / f"{name}.parquet" for name in names[part]], vocabulary) for part in PARTS}


def read_split(file: Path) -> dict[str, list[str]]:
    """Reads which replays are to train on, to choose by, and to test on.

    Raises:
        PerceiversError: it cannot be read, lacks one of them, or has a replay twice.
    """
    try:
        names = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise PerceiversError(f"data.split = {file} cannot be read as JSON ({error}).") from error
    if not isinstance(names, dict) or any(not names.get(part) for part in PARTS):
        raise PerceiversError(f"data.split = {file} needs names of replays for each of {', '.join(PARTS)}.")
    every = [name for part in PARTS for name in names[part]]
    twice = {name for name in every if every.count(name) > 1}
    if twice:
        raise PerceiversError(f"data.split = {file} has {min(twice)!r} twice: a replay belongs to one part.")
    return {part: list(names[part]) for part in PARTS}


class Decisions(Samples):
    """Decisions of some replays, with the tables' numbers, read from disk as they are needed.

    Attributes:
        vocabulary: what numbers stand for.
        lengths: number of units of each decision.
    """

    lengths: list[int]

    def __init__(self, files: Sequence[Path], vocabulary: Vocabulary) -> None:
        import datasets

        paths = [str(file) for file in files]
        self.rows = datasets.Dataset.from_parquet(paths).with_format("numpy")
        self.vocabulary = vocabulary
        self.lengths = self.rows.data.column("flags").combine_chunks().value_lengths().to_pylist()

    def names(self) -> tuple[list[str], list[str]]:
        """Returns the types of units and the abilities that there are in these decisions."""
        columns = (self.rows.data.column("kind").combine_chunks().flatten(), self.rows.data.column("ability"))
        found = [sorted(value for value in column.unique().to_pylist() if value >= 0) for column in columns]
        kinds, abilities = self.vocabulary.kinds, self.vocabulary.abilities
        return [kinds[place] for place in found[0]], [
            abilities[place] for place in found[1] if abilities[place] != UNKNOWN
        ]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[item.sample]
        return row

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """-> columns of units [B, M], padded with 0 to the most units of the batch, and "real" [B, M], which there are.

        Also "chosen" [B, M]; "scalars"; "ability", "target", "race", "enemy_race" and "loop" [B], as in the tables.
        """
        most = max(len(row["kind"]) for row in samples)
        batch: dict[str, Any] = {"real": torch.zeros(len(samples), most, dtype=torch.bool)}
        for name in UNITS:
            kind = torch.float32 if name in ("x", "y") else torch.long
            batch[name] = torch.zeros(len(samples), most, dtype=kind)
        batch["chosen"] = torch.zeros(len(samples), most, dtype=torch.bool)
        for place, row in enumerate(samples):
            count = len(row["kind"])
            batch["real"][place, :count] = True
            for name in UNITS:
                batch[name][place, :count] = torch.from_numpy(np.asarray(row[name]))
            batch["chosen"][place, torch.from_numpy(np.asarray(row["chosen"], dtype=np.int64))] = True
        batch["scalars"] = torch.from_numpy(np.stack([row["scalars"] for row in samples])).float()
        for name in ("ability", "target", "race", "enemy_race", "loop"):
            batch[name] = torch.tensor([int(row[name]) for row in samples])
        return batch


class Names(Protocol):
    """What a policy, or its config, calls types of units, abilities and a player's numbers."""

    @property
    def kinds(self) -> Sequence[str]: ...

    @property
    def abilities(self) -> Sequence[str]: ...

    @property
    def scalars(self) -> Sequence[str]: ...


class PolicyDecisions(Samples):
    """Decisions with a policy's numbers for types of units and abilities.

    Args:
        decisions: the decisions.
        names: the policy, or its config.

    Raises:
        PerceiversError: the tables have other numbers of players than the policy reads.
    """

    def __init__(self, decisions: Decisions, names: Names) -> None:
        vocabulary = decisions.vocabulary
        if vocabulary.scalars != list(names.scalars):
            raise PerceiversError(
                f"the tables have the numbers {', '.join(vocabulary.scalars)}, "
                f"the model reads {', '.join(names.scalars)}."
            )
        self.decisions, self.lengths = decisions, decisions.lengths
        self.kinds = number(vocabulary.kinds, names.kinds)
        self.abilities = torch.cat([torch.tensor([-1]), number(vocabulary.abilities, names.abilities)])

    def __len__(self) -> int:
        return len(self.decisions)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        return self.decisions[item]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.translate(self.decisions.collate(samples))

    def translate(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch with the policy's numbers: the ability of a selection stays -1, an unknown one is 0."""
        return dict(batch) | {"kind": self.kinds[batch["kind"]], "ability": self.abilities[batch["ability"] + 1]}
