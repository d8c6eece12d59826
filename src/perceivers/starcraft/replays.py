"""StarCraft II replays as decisions: the units that there are when a player selects some or commands them.

A replay records what players did and what happened to units, not what players saw. Units are where they were born,
where the game last reported them (every 15 seconds, those that were damaged), or where a player last aimed at them.
Enemies are those that the replay reports, whether or not they were in the player's sight.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perceivers.errors import PerceiversError
from perceivers.extras import require_extra

LOOPS = 16
"""Game loops a second."""

SELF, ALLY, ENEMY, NEUTRAL = range(4)
"""Owners of units, as a player sees them."""

BUILDING, FINISHED, SELECTED = 1, 2, 4
"""Bits for what is true of a unit, in tables of units."""

SHORTEST = 30 * LOOPS
"""Loops of the shortest game that is taken for one."""

UPGRADES = "upgrades"
"""Number of a player's finished upgrades, among the statistics."""

NO_UNITS = ("Beacon", "System_Snapshot")
"""How the names of things begin that the game treats as units, and no player sees."""

UNKNOWN = "unknown"
"""An ability that sc2reader does not know."""

ACTIVE = 10
"""Where the game keeps the selection itself, behind the ten control groups."""


@dataclass
class Unit:
    """A unit that is alive.

    Attributes:
        kind: name of its type, such as "Marine".
        owner: number of its player; 0 for nobody.
        x, y: where it was last known to be, in cells of the map.
        born: loop in which it was born, or begun.
        seen: loop in which its place was last known.
        building: whether it is one.
        finished: False while it is being built.
    """

    kind: str
    owner: int
    x: float
    y: float
    born: int
    seen: int
    building: bool
    finished: bool


@dataclass(frozen=True)
class Entity:
    """A unit as a player knows it at some moment.

    Attributes:
        kind, x, y, building, finished: as in `Unit`.
        owner: SELF, ALLY, ENEMY or NEUTRAL.
        age: loops since it was born.
        unseen: loops since its place was last known.
        selected: whether it was selected before the decision.
        groups: control groups that it is in, a bit for each.
    """

    kind: str
    owner: int
    x: float
    y: float
    age: int
    unseen: int
    building: bool
    finished: bool
    selected: bool
    groups: int


@dataclass(frozen=True)
class Decision:
    """What a player did, and what there was at that moment.

    Attributes:
        player: the player's number.
        race, enemy_race: "Protoss", "Terran" or "Zerg".
        loop: when.
        scalars: by name, see `SCALARS` and `UPGRADES`.
        entities: all units.
        chosen: places among `entities` of the units that are selected by it; for a command, those that it is for.
        ability: name of the command; None for a selection.
        target: place of the unit that the command aims at; None if there is none.
        point: where it aims at, in cells of the map.
    """

    player: int
    race: str
    enemy_race: str
    loop: int
    scalars: dict[str, float]
    entities: list[Entity]
    chosen: list[int]
    ability: str | None = None
    target: int | None = None
    point: tuple[float, float] | None = None


SCALARS = {
    "minerals": "minerals_current",
    "vespene": "vespene_current",
    "food_used": "food_used",
    "food_made": "food_made",
    "workers": "workers_active_count",
    "minerals_rate": "minerals_collection_rate",
    "vespene_rate": "vespene_collection_rate",
    "army_value": "minerals_used_current_army",
    "in_progress": "minerals_used_in_progress",
}
"""Numbers of a player's statistics, which the game records every ten seconds, and what sc2reader calls them."""


@dataclass
class Game:
    """What is known of a game so far.

    Attributes:
        team, race: of each player, by number.
        units: those that are alive, by the number that the game gives each.
        by_index: number of the unit that has an index; the game gives the index of a dead one to another.
        selections: of each player, the control groups and, behind them, what is selected, by number.
        statistics: of each player, see `SCALARS`.
    """

    team: dict[int, int]
    race: dict[int, str]
    units: dict[int, Unit] = field(default_factory=dict)
    by_index: dict[int, int] = field(default_factory=dict)
    selections: dict[int, list[list[int]]] = field(default_factory=dict)
    statistics: dict[int, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for player in self.team:
            self.selections[player] = [[] for _ in range(ACTIVE + 1)]
            self.statistics[player] = dict.fromkeys([*SCALARS, UPGRADES], 0.0)

    def selected(self, player: int) -> set[int]:
        """Returns the living units of their own that a player has selected."""
        return {n for n in self.selections[player][ACTIVE] if n in self.units and self.units[n].owner == player}

    def relation(self, player: int, owner: int) -> int:
        """Returns SELF, ALLY, ENEMY or NEUTRAL."""
        if owner == player:
            return SELF
        if owner not in self.team:
            return NEUTRAL
        return ALLY if self.team[owner] == self.team[player] else ENEMY


def open_replay(path: str | Path, team_games: bool = False) -> Any:
    """Reads a replay with sc2reader, if units can be followed through it.

    Args:
        path: an .SC2Replay file.
        team_games: take games of more than two players, too.

    Raises:
        PerceiversError: it cannot be read, was resumed, has no record of units, is a team game, or too short; or
            sc2reader is not installed.
    """
    require_extra("starcraft")
    import sc2reader

    if not Path(path).is_file():
        raise PerceiversError(f"{path} is not a file: give the path of a replay.")
    try:
        replay = sc2reader.load_replay(str(path), load_level=4)
    except Exception as error:  # sc2reader raises many kinds, down to struct.error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "resumed" in reason:
            raise PerceiversError(f"{path} is of a game that was resumed: its units cannot be followed.") from error
        raise PerceiversError(f"{path} cannot be read as a replay ({reason}): it is truncated or damaged.") from error
    if replay.resume_from_replay:
        raise PerceiversError(f"{path} is of a game that was resumed: its units cannot be followed.")
    if not any(type(event).__name__ == "UnitBornEvent" for event in replay.tracker_events):
        raise PerceiversError(
            f"{path} has no record of its units (version {replay.release_string}): replays from 2.0.8 on have one, "
            f"unless the installed sc2reader does not know their version."
        )
    if len(replay.players) != 2 and not team_games:
        raise PerceiversError(
            f"{path} is of {len(replay.players)} players: games of two are taken, others if team games are asked for."
        )
    if replay.frames < SHORTEST:
        raise PerceiversError(
            f"{path} lasts {replay.frames / LOOPS:.0f} s: games of less than {SHORTEST / LOOPS:.0f} s are not taken."
        )
    return replay


def decisions(replay: Any) -> Iterator[Decision]:
    """Yields every selection and command of the players of a replay, in order.

    A selection counts if it changes which living units of their own a player has selected, in whatever way: by mouse
    or by a control group. A command counts if some are selected. What the game does by itself does not count.

    Args:
        replay: as `open_replay` gives it.
    """
    players = {player.pid: player for player in replay.players}
    game = Game(
        {number: player.team.number for number, player in players.items()},
        {number: player.play_race for number, player in players.items()},
    )
    for event in replay.events:
        kind = type(event).__name__
        if kind in FOLLOWED:
            FOLLOWED[kind](game, event)
            continue
        player = getattr(getattr(event, "player", None), "pid", -1)
        if player not in players:
            continue
        before = game.selected(player)
        if kind in SELECTING:
            SELECTING[kind](game.selections[player], event)
            chosen = game.selected(player)
            if chosen and chosen != before:
                yield decide(game, player, event.frame, before, chosen)
        elif kind in COMMANDS:
            if before:
                yield decide(game, player, event.frame, before, before, event)
            aim(game, event)


def decide(
    game: Game, player: int, loop: int, before: set[int], chosen: set[int], event: Any | None = None
) -> Decision:
    """Returns a player's decision: the units that are selected by it, or those that its command `event` is for."""
    groups = game.selections[player]
    entities = [
        Entity(
            unit.kind,
            game.relation(player, unit.owner),
            unit.x,
            unit.y,
            loop - unit.born,
            loop - unit.seen,
            unit.building,
            unit.finished,
            number in before,
            sum(1 << group for group in range(ACTIVE) if number in groups[group]),
        )
        for number, unit in game.units.items()
    ]
    place = {number: index for index, number in enumerate(game.units)}
    enemies = [race for other, race in game.race.items() if game.team[other] != game.team[player]]
    point = getattr(event, "location", None)
    return Decision(
        player,
        game.race[player],
        enemies[0],
        loop,
        dict(game.statistics[player]),
        entities,
        sorted(place[number] for number in chosen),
        None if event is None else event.ability_name or UNKNOWN,
        place.get(getattr(event, "target_unit_id", None) or 0),
        None if point is None else (float(point[0]), float(point[1])),
    )


def born(game: Game, event: Any, finished: bool = True) -> None:
    """A unit is there, whole or begun."""
    if event.unit_type_name.startswith(NO_UNITS):
        return
    game.by_index[event.unit_id_index] = event.unit_id
    is_building = event.unit is not None and event.unit.is_building
    game.units[event.unit_id] = Unit(
        event.unit_type_name,
        event.control_pid,
        float(event.x),
        float(event.y),
        event.frame,
        event.frame,
        bool(is_building),
        finished,
    )


def begun(game: Game, event: Any) -> None:
    """A unit is being built."""
    born(game, event, finished=False)


def done(game: Game, event: Any) -> None:
    """It is built."""
    if event.unit_id in game.units:
        game.units[event.unit_id].finished = True


def died(game: Game, event: Any) -> None:
    """A unit is no more."""
    game.units.pop(event.unit_id, None)


def owned(game: Game, event: Any) -> None:
    """A unit has another owner."""
    if event.unit_id in game.units:
        game.units[event.unit_id].owner = event.control_pid


def changed(game: Game, event: Any) -> None:
    """A unit has become another type."""
    if event.unit_id in game.units:
        unit = game.units[event.unit_id]
        unit.kind = event.unit_type_name
        unit.building = bool(event.unit is not None and event.unit.is_building)


def placed(game: Game, event: Any) -> None:
    """Where some units are is reported."""
    for index, (x, y) in event.positions:
        unit = game.units.get(game.by_index.get(index, -1))
        if unit is not None:
            unit.x, unit.y, unit.seen = float(x), float(y), event.frame


def counted(game: Game, event: Any) -> None:
    """A player's statistics are recorded."""
    if event.pid in game.statistics:
        game.statistics[event.pid] |= {name: float(getattr(event, theirs)) for name, theirs in SCALARS.items()}


def upgraded(game: Game, event: Any) -> None:
    """A player has an upgrade; what are called so before the game begins are emblems and dances."""
    if event.pid in game.statistics and event.frame > 0:
        game.statistics[event.pid][UPGRADES] += 1


def aim(game: Game, event: Any) -> None:
    """A command at a unit tells where it is."""
    unit = game.units.get(getattr(event, "target_unit_id", None) or 0)
    if unit is not None:
        unit.x, unit.y, unit.seen = float(event.x), float(event.y), event.frame


def keep(selection: list[int], kind: str, data: Any) -> list[int]:
    """Returns what a mask leaves of a selection, whose units it knows by their places in order of number."""
    if kind == "Mask":
        return [unit for place, unit in enumerate(selection) if place >= len(data) or not data[place]]
    if kind == "OneIndices":
        return [unit for place, unit in enumerate(selection) if place not in set(data)]
    if kind == "ZeroIndices":
        return [selection[place] for place in data if place < len(selection)]
    return list(selection)


def select(groups: list[list[int]], event: Any) -> None:
    """Units are taken out of a selection and others added."""
    left = keep(groups[event.control_group], event.mask_type, event.mask_data)
    groups[event.control_group] = sorted({*left, *event.new_unit_ids})


def recall(groups: list[list[int]], event: Any) -> None:
    """A control group becomes the selection."""
    groups[ACTIVE] = keep(groups[event.control_group], event.mask_type, event.mask_data)


def assign(groups: list[list[int]], event: Any) -> None:
    """The selection becomes a control group."""
    groups[event.control_group] = list(groups[ACTIVE])


def add(groups: list[list[int]], event: Any) -> None:
    """The selection is added to a control group."""
    left = keep(groups[event.control_group], event.mask_type, event.mask_data)
    groups[event.control_group] = sorted({*left, *groups[ACTIVE]})


def clear(groups: list[list[int]], event: Any) -> None:
    """A control group is given up."""
    groups[event.control_group] = []


FOLLOWED = {
    "UnitBornEvent": born,
    "UnitInitEvent": begun,
    "UnitDoneEvent": done,
    "UnitDiedEvent": died,
    "UnitOwnerChangeEvent": owned,
    "UnitTypeChangeEvent": changed,
    "UnitPositionsEvent": placed,
    "PlayerStatsEvent": counted,
    "UpgradeCompleteEvent": upgraded,
}
"""What happens to units and players."""

SELECTING = {
    "SelectionEvent": select,
    "GetControlGroupEvent": recall,
    "SetControlGroupEvent": assign,
    "AddToControlGroupEvent": add,
    "DeleteControlGroupEvent": clear,
}
"""What changes selections and control groups."""

COMMANDS = frozenset({"BasicCommandEvent", "TargetPointCommandEvent", "TargetUnitCommandEvent", "DataCommandEvent"})
"""Commands; what the game records of how they go on is left out."""
