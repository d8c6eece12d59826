"""Decisions of replays as tables, written once, a parquet file for each replay, and read in training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from tqdm import tqdm

from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write
from perceivers.starcraft.replays import (
    ALLY,
    BUILDING,
    ENEMY,
    FINISHED,
    NEUTRAL,
    SCALARS,
    SELECTED,
    SELF,
    UNKNOWN,
    UPGRADES,
    Decision,
    Entity,
    decisions,
    open_replay,
)

MOST = 512
"""Units of a decision; of more, those that matter least are left out, and it is counted."""

VOCABULARY, STATISTICS = "vocabulary.json", "statistics.json"
RACES = ("Protoss", "Terran", "Zerg")
AS_THEY_ARE = ("owner", "x", "y", "age", "unseen", "groups")
"""Columns that hold what `Entity` does."""
SCHEMA = pyarrow.schema(
    {
        "player": pyarrow.int8(),
        "race": pyarrow.int8(),  # place in RACES, or -1
        "enemy_race": pyarrow.int8(),
        "loop": pyarrow.int32(),
        "scalars": pyarrow.list_(pyarrow.float32()),  # in the order of the vocabulary
        "kind": pyarrow.list_(pyarrow.int16()),  # place in the vocabulary
        "owner": pyarrow.list_(pyarrow.int8()),
        "x": pyarrow.list_(pyarrow.float32()),
        "y": pyarrow.list_(pyarrow.float32()),
        "age": pyarrow.list_(pyarrow.int32()),
        "unseen": pyarrow.list_(pyarrow.int32()),
        "flags": pyarrow.list_(pyarrow.uint8()),  # BUILDING, FINISHED, SELECTED
        "groups": pyarrow.list_(pyarrow.int16()),
        "chosen": pyarrow.list_(pyarrow.int16()),  # places among the units
        "ability": pyarrow.int16(),  # place in the vocabulary; -1 for a selection
        "target": pyarrow.int16(),  # place among the units; -1 for none
        "point": pyarrow.list_(pyarrow.float32()),  # x and y; empty for none
    }
)
"""A row is a decision; lists are as long as it has units."""


@dataclass
class Vocabulary:
    """Names that tables have numbers for.

    Attributes:
        kinds: of types of units.
        abilities: of commands.
        scalars: of a player's numbers.
    """

    kinds: list[str] = field(default_factory=list)
    abilities: list[str] = field(default_factory=list)
    scalars: list[str] = field(default_factory=lambda: [*SCALARS, UPGRADES])

    def __post_init__(self) -> None:
        self.places = {name: {each: place for place, each in enumerate(getattr(self, name))} for name in NAMES}

    def place(self, name: str, each: str) -> int:
        """Returns the number of a kind or an ability; a new one gets the next."""
        places = self.places[name]
        if each not in places:
            places[each] = len(places)
            getattr(self, name).append(each)
        return places[each]


NAMES = ("kinds", "abilities")


def write_replays(source: Path, out: Path, team_games: bool = False, progress: bool = False) -> dict[str, Any]:
    """Writes the decisions of all replays of a folder; those that are written are kept.

    Args:
        source: a folder with .SC2Replay files, directly or in folders.
        out: the folder to write: a file for each replay, `vocabulary.json` and `statistics.json`.
        team_games: take games of more than two players, too.
        progress: show a bar.

    Returns:
        What is in `statistics.json`: of each replay its figures, and of those that were refused the reasons.

    Raises:
        PerceiversError: there are no replays, or none that can be taken.
    """
    files = sorted(source.rglob("*.SC2Replay"))
    if not files:
        raise PerceiversError(f"{source} has no replays: files that end in .SC2Replay are expected in it.")
    vocabulary, statistics = read_vocabulary(out), read_statistics(out)
    for file in tqdm(files, "replays", disable=None if progress else True):
        name = "__".join(file.relative_to(source).with_suffix("").parts)
        if name in statistics["replays"] and (out / f"{name}.parquet").is_file():
            continue
        try:
            replay = open_replay(file, team_games)
        except PerceiversError as error:
            statistics["refused"][name] = str(error)
            continue
        rows, figures = [], {"decisions": 0, "selections": 0, "most_units": 0, "cut": 0, "unknown_abilities": 0}
        for decision in decisions(replay):
            figures["decisions"] += 1
            figures["selections"] += decision.ability is None
            figures["most_units"] = max(figures["most_units"], len(decision.entities))
            figures["cut"] += len(decision.entities) > MOST
            figures["unknown_abilities"] += decision.ability == UNKNOWN
            rows.append(to_row(cut(decision), vocabulary))
        table = pyarrow.Table.from_pylist(rows, SCHEMA)
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / f"{name}.parquet", partial(parquet.write_table, table, compression="zstd"))
        statistics["replays"][name] = figures | {"version": replay.release_string, "map": replay.map_name}
        statistics["refused"].pop(name, None)
        write_json(out / VOCABULARY, {name: getattr(vocabulary, name) for name in (*NAMES, "scalars")})
        write_json(out / STATISTICS, statistics)
    if not statistics["replays"]:
        raise PerceiversError(f"{source} has no replay that can be taken: {next(iter(statistics['refused'].values()))}")
    return statistics


def write_json(file: Path, content: Any) -> None:
    """Writes a file, whole or not at all."""
    atomic_write(file, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def cut(decision: Decision, most: int = MOST) -> Decision:
    """Leaves out units beyond the most: neutral ones first, then allies, then enemies, and the oldest of each."""
    if len(decision.entities) <= most:
        return decision
    order = {SELF: 0, ENEMY: 1, ALLY: 2, NEUTRAL: 3}
    chosen = set(decision.chosen)

    def rank(place: int) -> tuple[bool, int, int]:
        entity = decision.entities[place]
        return place not in chosen and place != decision.target, order[entity.owner], entity.age

    kept = sorted(sorted(range(len(decision.entities)), key=rank)[:most])
    place = {old: new for new, old in enumerate(kept)}
    return Decision(
        decision.player,
        decision.race,
        decision.enemy_race,
        decision.loop,
        decision.scalars,
        [decision.entities[old] for old in kept],
        sorted(place[old] for old in chosen if old in place),
        decision.ability,
        place.get(-1 if decision.target is None else decision.target),
        decision.point,
    )


def to_row(decision: Decision, vocabulary: Vocabulary) -> dict[str, Any]:
    """Returns a decision as a row of `SCHEMA`."""
    entities: Sequence[Entity] = decision.entities
    return {
        "player": decision.player,
        "race": RACES.index(decision.race) if decision.race in RACES else -1,
        "enemy_race": RACES.index(decision.enemy_race) if decision.enemy_race in RACES else -1,
        "loop": decision.loop,
        "scalars": [decision.scalars[name] for name in vocabulary.scalars],
        "kind": [vocabulary.place("kinds", entity.kind) for entity in entities],
        **{name: [getattr(entity, name) for entity in entities] for name in AS_THEY_ARE},
        "flags": [BUILDING * e.building + FINISHED * e.finished + SELECTED * e.selected for e in entities],
        "chosen": decision.chosen,
        "ability": -1 if decision.ability is None else vocabulary.place("abilities", decision.ability),
        "target": -1 if decision.target is None else decision.target,
        "point": [] if decision.point is None else list(decision.point),
    }


def read_vocabulary(folder: Path) -> Vocabulary:
    """Returns the vocabulary of tables; an empty one, if there are none yet."""
    file = folder / VOCABULARY
    return Vocabulary(**json.loads(file.read_text())) if file.is_file() else Vocabulary()


def read_statistics(folder: Path) -> dict[str, Any]:
    """Returns the statistics of tables; empty ones, if there are none yet."""
    file = folder / STATISTICS
    return json.loads(file.read_text()) if file.is_file() else {"replays": {}, "refused": {}}
