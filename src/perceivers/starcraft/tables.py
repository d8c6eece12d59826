"""Tables of the decisions in replays: written once, one parquet file per replay, and read in training."""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from perceivers.checks import matches
from perceivers.data.tables import describe
from perceivers.errors import PerceiversError
from perceivers.files import find_files
from perceivers.model.saving import atomic_write
from perceivers.progress import track
from perceivers.starcraft.replays import (
    ALLY,
    BUILDING,
    ENEMY,
    FINISHED,
    NEUTRAL,
    PREVIOUS,
    SCALARS,
    SELECTED,
    SELF,
    UNKNOWN,
    UPGRADES,
    Decision,
    open_replay,
    read_decisions,
)
from perceivers.values import read_json

MAX_UNITS = 512  # of a decision; the least important ones beyond are left out
VOCABULARY, STATISTICS = "vocabulary.json", "statistics.json"
RACES = ("Protoss", "Terran", "Zerg")
UNIT_COLUMNS = ("owner", "x", "y", "age", "unseen", "groups", "unselected", "uncommanded")  # with fields of `Entity`
SCHEMA = pyarrow.schema(
    {
        "player": pyarrow.int8(),
        "race": pyarrow.int8(),  # index in RACES, or -1
        "enemy_race": pyarrow.int8(),
        "loop": pyarrow.int32(),
        "scalars": pyarrow.list_(pyarrow.float32()),  # in the order of the vocabulary
        "kind": pyarrow.list_(pyarrow.int16()),  # index in the vocabulary
        "owner": pyarrow.list_(pyarrow.int8()),
        "x": pyarrow.list_(pyarrow.float32()),
        "y": pyarrow.list_(pyarrow.float32()),
        "age": pyarrow.list_(pyarrow.int32()),
        "unseen": pyarrow.list_(pyarrow.int32()),
        "flags": pyarrow.list_(pyarrow.uint8()),  # BUILDING, FINISHED, SELECTED, PREVIOUS
        "groups": pyarrow.list_(pyarrow.int16()),
        "unselected": pyarrow.list_(pyarrow.int32()),
        "uncommanded": pyarrow.list_(pyarrow.int32()),
        "chosen": pyarrow.list_(pyarrow.int16()),  # indices of units
        "ability": pyarrow.int16(),  # index in the vocabulary; -1 for a selection
        "target": pyarrow.int16(),  # index of a unit; -1 for none
        "point": pyarrow.list_(pyarrow.float32()),  # x and y; empty for none
        "camera": pyarrow.list_(pyarrow.float32()),  # likewise
        "last_ability": pyarrow.int16(),  # index in the vocabulary; -1 for none
        "idle": pyarrow.int32(),
    }
)
"""A row is a decision; its lists have one item per unit."""


@dataclass
class Vocabulary:
    """The names that tables store as indices: types of units, commands and a player's statistics."""

    kinds: list[str] = field(default_factory=list)
    abilities: list[str] = field(default_factory=list)
    scalars: list[str] = field(default_factory=lambda: [*SCALARS, UPGRADES])

    def __post_init__(self) -> None:
        self.indices = {key: {name: i for i, name in enumerate(getattr(self, key))} for key in ("kinds", "abilities")}

    def index(self, key: str, name: str) -> int:
        """Returns the index of a name among "kinds" or "abilities"; a new name is added."""
        indices = self.indices[key]
        if name not in indices:
            indices[name] = len(indices)
            getattr(self, key).append(name)
        return indices[name]


def write_replays(source: Path, out: Path, team_games: bool = False) -> dict[str, Any]:
    """Writes the decisions of all replays in a folder, except those written before.

    Args:
        source: a folder with .SC2Replay files, also in subfolders.
        out: the folder to write: a table per replay, `vocabulary.json` and `statistics.json`.
        team_games: also accept games of more than two players.

    Returns:
        The contents of `statistics.json`: figures of each replay, and why others were refused.

    Raises:
        PerceiversError: there are no replays, or all are refused.
    """
    files = find_files(source, {".sc2replay"})
    if not files:
        raise PerceiversError(f"{source} has no replays: it must contain files that end in .SC2Replay.")
    vocabulary, statistics = read_vocabulary(out), read_statistics(out)
    for file in track(files, "replays"):
        name = "__".join(file.relative_to(source).with_suffix("").parts)
        if name in statistics["replays"] and is_written(out / f"{name}.parquet"):
            continue
        try:
            table, statistics["replays"][name] = make_table(file, vocabulary, team_games)
        except PerceiversError as error:
            statistics["refused"][name] = str(error)
            continue
        atomic_write(out / f"{name}.parquet", partial(parquet.write_table, table, compression="zstd"))
        statistics["refused"].pop(name, None)
        for path, contents in ((VOCABULARY, asdict(vocabulary)), (STATISTICS, statistics)):
            atomic_write(out / path, partial(Path.write_text, data=json.dumps(contents, indent=1) + "\n"))
    if not statistics["replays"]:
        raise PerceiversError(f"{source} has no usable replay: {next(iter(statistics['refused'].values()))}")
    return statistics


def is_written(file: Path) -> bool:
    """Returns whether there is a table with all columns: those of earlier versions are written again."""
    return file.is_file() and parquet.read_schema(file).equals(SCHEMA)


def make_table(file: Path, vocabulary: Vocabulary, team_games: bool = False) -> tuple[pyarrow.Table, dict[str, Any]]:
    """Returns the decisions of a replay as a table, and figures of it; raises a PerceiversError as `open_replay`."""
    replay = open_replay(file, team_games)
    rows, figures = [], {"decisions": 0, "selections": 0, "most_units": 0, "cut": 0, "unknown_abilities": 0}
    try:
        for decision in read_decisions(replay):
            figures["decisions"] += 1
            figures["selections"] += decision.ability is None
            figures["most_units"] = max(figures["most_units"], len(decision.entities))
            figures["cut"] += len(decision.entities) > MAX_UNITS
            figures["unknown_abilities"] += decision.ability == UNKNOWN
            rows.append(to_row(truncate_units(decision), vocabulary))
        table = pyarrow.Table.from_pylist(rows, SCHEMA)
    except Exception as error:  # damaged events have any values
        raise PerceiversError(
            f"{file} has events that cannot be followed ({describe(error)}): it is damaged."
        ) from error
    return table, figures | {"version": replay.release_string, "map": replay.map_name}


def truncate_units(decision: Decision, max_units: int = MAX_UNITS) -> Decision:
    """Drops units beyond the maximum: neutral ones first, then allies, then enemies, the oldest of each first.

    Units that the decision selects or aims at are dropped last.
    """
    if len(decision.entities) <= max_units:
        return decision
    order = {SELF: 0, ENEMY: 1, ALLY: 2, NEUTRAL: 3}
    important = {*decision.chosen, decision.target}

    def rank(index: int) -> tuple[bool, int, int]:
        entity = decision.entities[index]
        return index not in important, order[entity.owner], entity.age

    kept = sorted(sorted(range(len(decision.entities)), key=rank)[:max_units])
    new_index: dict[int | None, int] = {old: new for new, old in enumerate(kept)}
    return replace(
        decision,
        entities=[decision.entities[old] for old in kept],
        chosen=sorted(new_index[old] for old in decision.chosen if old in new_index),
        target=new_index.get(decision.target),
    )


def to_row(decision: Decision, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns a decision as a row of `SCHEMA`."""
    entities = decision.entities
    return {
        "player": decision.player,
        "race": RACES.index(decision.race) if decision.race in RACES else -1,
        "enemy_race": RACES.index(decision.enemy_race) if decision.enemy_race in RACES else -1,
        "loop": decision.loop,
        "scalars": [decision.scalars[name] for name in vocabulary.scalars],
        "kind": [vocabulary.index("kinds", entity.kind) for entity in entities],
        **{name: [getattr(entity, name) for entity in entities] for name in UNIT_COLUMNS},
        "flags": [
            BUILDING * e.is_building + FINISHED * e.is_finished + SELECTED * e.is_selected + PREVIOUS * e.was_selected
            for e in entities
        ],
        "chosen": decision.chosen,
        "ability": -1 if decision.ability is None else vocabulary.index("abilities", decision.ability),
        "target": -1 if decision.target is None else decision.target,
        "point": [] if decision.point is None else list(decision.point),
        "camera": [] if decision.camera is None else list(decision.camera),
        "last_ability": -1 if decision.last_ability is None else vocabulary.index("abilities", decision.last_ability),
        "idle": decision.idle,
    }


def read_vocabulary(folder: Path) -> Vocabulary:
    """Returns the vocabulary of a folder of tables; an empty one if there are no tables yet."""
    file = folder / VOCABULARY
    if not os.path.exists(file):
        return Vocabulary()
    names = read_json(file)
    if not matches(names, dict[str, list[str]]) or names.keys() != {"kinds", "abilities", "scalars"}:
        raise PerceiversError(f"{file} does not have the names of kinds, abilities and scalars: it is damaged.")
    return Vocabulary(**names)


def read_statistics(folder: Path) -> dict[str, Any]:
    """Returns the statistics of a folder of tables; empty ones if there are no tables yet."""
    file = folder / STATISTICS
    if not os.path.exists(file):
        return {"replays": {}, "refused": {}}
    statistics = read_json(file)
    if not matches(statistics, dict[str, dict[str, Any]]) or statistics.keys() != {"replays", "refused"}:
        raise PerceiversError(f"{file} does not have the replays and refused ones: it is damaged.")
    return dict(statistics)
