"""Decisions of players, read from the tables that `perceivers prepare-replays` writes.

Shape suffixes: B batch, M units
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from numpy.typing import NDArray
from pyarrow import parquet
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from perceivers.checks import Checked, matches
from perceivers.config_files import find_config_file
from perceivers.data.loader import SampleIndex, Samples
from perceivers.data.tables import check_parquet, describe
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.files import resolve_inside
from perceivers.starcraft.features import index_names
from perceivers.starcraft.policy import PolicyConfig, UnitPolicy
from perceivers.starcraft.replays import UNKNOWN
from perceivers.starcraft.tables import RACES, SCHEMA, Vocabulary, read_statistics, read_vocabulary
from perceivers.values import read_json

PARTS = ("training", "validation", "test")
INDICES = ("ability", "last_ability", "target", "race", "enemy_race")  # -1 for none
UNIT_COLUMNS = ("kind", "owner", "x", "y", "age", "unseen", "flags", "groups", "unselected", "uncommanded")


@dataclass
class DecisionData(Checked):
    """The decisions to use.

    Attributes:
        path: folder that `perceivers prepare-replays` wrote.
        split: JSON file with the names of the replays for "training", "validation" and "test",
            or of a shipped one.
    """

    section = "data."

    path: str = ""
    split: str = "configs/starcraft/split.json"

    def open(self) -> dict[str, "Decisions"]:
        """Returns the decisions of each part, or raises a PerceiversError if tables and split do not fit each other."""
        if not self.path:
            raise PerceiversError("data.path is not given: give the folder that `perceivers prepare-replays` wrote.")
        folder, names = Path(self.path), read_split(find_config_file(self.split))
        available = read_statistics(folder)["replays"]
        if not available:
            raise PerceiversError(f"data.path = {folder} has no tables of decisions: write them by prepare-replays.")
        for part, replays in names.items():
            for name in replays:
                if name not in available:
                    hint = did_you_mean(name, available)
                    raise PerceiversError(f"{self.split}: {folder} has no replay {name!r} of {part}: {hint}")
        vocabulary = read_vocabulary(folder)
        files = {
            part: [resolve_inside(folder, f"{name}.parquet", self.split) for name in names[part]] for part in PARTS
        }
        return {part: Decisions(files[part], vocabulary) for part in PARTS}


def read_split(file: Path) -> dict[str, list[str]]:
    """Reads the names of the replays of each part; a missing part, or a replay that appears twice, is an error."""
    names = read_json(file)
    if not matches(names, dict[str, list[str]]) or any(not names.get(part) for part in PARTS):
        raise PerceiversError(f"data.split = {file} needs names of replays for each of {', '.join(PARTS)}.")
    every = [name for part in PARTS for name in names[part]]
    duplicates = {name for name in every if every.count(name) > 1}
    if duplicates:
        raise PerceiversError(f"data.split = {file} has {min(duplicates)!r} twice: a replay belongs to one part.")
    return {part: list(names[part]) for part in PARTS}


def check_decisions(file: Path, vocabulary: Vocabulary) -> None:
    """Raises a PerceiversError unless a table has the columns that were written, and indices of what there is."""
    check_parquet(file)
    try:
        table = parquet.read_table(file, schema=SCHEMA)
        units = table["kind"].combine_chunks().value_lengths().to_numpy()
        lengths = {name: table[name].combine_chunks().value_lengths().to_numpy() for name in (*UNIT_COLUMNS, "scalars")}
        flat = {name: flatten(table[name]) for name in ("kind", "owner", "chosen", *INDICES)}
    except Exception as error:  # the library raises many kinds
        raise PerceiversError(f"{file} cannot be read as a table of decisions: {describe(error)}") from error
    expected = dict.fromkeys(UNIT_COLUMNS, units) | {"scalars": len(vocabulary.scalars)}
    chosen = np.repeat(units, table["chosen"].combine_chunks().value_lengths().to_numpy())
    abilities = len(vocabulary.abilities)
    below = {"kind": len(vocabulary.kinds), "target": units, "chosen": chosen}
    below |= {"ability": abilities, "last_ability": abilities}
    for name, values in flat.items():
        least = -1 if name in INDICES else 0
        if not ((values >= least) & (values < below.get(name, 4 if name == "owner" else len(RACES)))).all():
            raise PerceiversError(
                f"{file} has an index in {name!r} that there is not: write it again by prepare-replays."
            )
    for name, count in expected.items():
        if (lengths[name] != count).any():
            raise PerceiversError(f"{file} has too few or many values in {name!r}: write it again by prepare-replays.")


def flatten(column: Any) -> NDArray[Any]:
    """Returns the values of a column, or of its lists; raises a ValueError if one is missing."""
    values = column.combine_chunks()
    values = values.flatten() if hasattr(values, "flatten") and hasattr(values, "value_lengths") else values
    return np.asarray(values.to_numpy(zero_copy_only=True))


def read_cell(cell: Any) -> Any:
    """Returns the value of a cell of an Arrow table, lists as arrays."""
    return cell.values.to_numpy() if isinstance(cell, pyarrow.ListScalar) else cell.as_py()


class Decisions(Samples):
    """The decisions of some replays as they are in the tables, read from disk when needed.

    Attributes:
        vocabulary: the names that the tables' indices refer to.
        lengths: number of units of each decision.
    """

    def __init__(self, files: Sequence[Path], vocabulary: Vocabulary) -> None:
        import datasets

        for file in files:
            check_decisions(file, vocabulary)
        self.rows = datasets.Dataset.from_parquet([str(file) for file in files]).with_format("arrow")
        self.vocabulary = vocabulary
        self.lengths: list[int] = self.rows.data.column("flags").combine_chunks().value_lengths().to_pylist()

    def list_names(self) -> tuple[list[str], list[str]]:
        """Returns the types of units and the abilities that occur in these decisions."""
        columns = (self.rows.data.column("kind").combine_chunks().flatten(), self.rows.data.column("ability"))
        kinds, abilities = (sorted(index for index in column.unique().to_pylist() if index >= 0) for column in columns)
        names = [self.vocabulary.abilities[index] for index in abilities]
        return [self.vocabulary.kinds[index] for index in kinds], [name for name in names if name != UNKNOWN]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        row = self.rows[item.sample]
        return {name: read_cell(column[0]) for name, column in zip(row.column_names, row.columns, strict=True)}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Makes a batch: columns of units [B, M], padded with 0, and "real" [B, M], the mask of units.

        Also "chosen" [B, M], a mask; "scalars"; "camera" [B, 2], -1 if unknown; "ability", "last_ability", "target",
        "race", "enemy_race", "loop" and "idle" [B], as in tables.
        """
        real = [torch.ones(len(row["kind"]), dtype=torch.bool) for row in samples]
        batch = {"real": pad_sequence(real, batch_first=True)}
        for name in UNIT_COLUMNS:
            dtype = torch.float32 if name in ("x", "y") else torch.long
            batch[name] = pad_sequence([torch.tensor(row[name], dtype=dtype) for row in samples], batch_first=True)
        batch["chosen"] = torch.zeros_like(batch["real"])
        for chosen_M, row in zip(batch["chosen"], samples, strict=True):
            chosen_M[torch.tensor(row["chosen"], dtype=torch.long)] = True
        batch["scalars"] = torch.from_numpy(np.stack([row["scalars"] for row in samples])).float()
        unknown = np.full(2, -1.0)
        cameras = np.stack([row["camera"] if len(row["camera"]) else unknown for row in samples])
        batch["camera"] = torch.from_numpy(cameras).float()
        for name in (*INDICES, "loop", "idle"):
            batch[name] = torch.tensor([int(row[name]) for row in samples])
        return batch


class PolicyDecisions(Decisions):
    """Decisions with a policy's indices of types and abilities; they must have the statistics that it reads."""

    def __init__(self, decisions: Decisions, policy: UnitPolicy | PolicyConfig) -> None:
        vocabulary = decisions.vocabulary
        if vocabulary.scalars != list(policy.scalars):
            tables, model = ", ".join(vocabulary.scalars), ", ".join(policy.scalars)
            raise PerceiversError(f"the tables have the statistics {tables}, but the model reads {model}.")
        self.rows, self.vocabulary, self.lengths = decisions.rows, vocabulary, decisions.lengths
        self.kinds = index_names(vocabulary.kinds, policy.kinds)
        self.abilities = torch.cat([torch.tensor([-1]), index_names(vocabulary.abilities, policy.abilities)])

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.translate(super().collate(samples))

    def translate(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a batch with the policy's indices: -1 for the ability of a selection, 0 for an unknown ability."""
        abilities = {name: self.abilities[batch[name] + 1] for name in ("ability", "last_ability")}
        return dict(batch) | {"kind": self.kinds[batch["kind"]], **abilities}
