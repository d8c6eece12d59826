"""StarCraft II replays as decisions: the units on the map when a player selects some or commands them.

A replay records what players did and what happened to units, not what players saw. The location of a unit is where it
was born, where the game last reported it (every 15 seconds, damaged units only), or where a player last aimed at it.
Enemies are all those that the replay reports, whether or not the player could see them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perceivers.errors import PerceiversError
from perceivers.extras import require_extra
from perceivers.files import require_file

LOOPS = 16  # of the game, per second
MIN_LOOPS = 30 * LOOPS  # of the shortest game that is accepted
SELF, ALLY, ENEMY, NEUTRAL = range(4)  # owners of units, from a player's view
BUILDING, FINISHED, SELECTED, PREVIOUS = 1, 2, 4, 8  # bits of a unit's flags in tables
NEVER = 60 * 60 * LOOPS  # loops since something that has not happened
UPGRADES = "upgrades"  # the statistic that counts a player's finished upgrades
UNKNOWN = "unknown"  # an ability unknown to sc2reader
CURRENT_SELECTION = 10  # index of the selection itself, after the ten control groups

IGNORED_UNIT_PREFIXES = ("Beacon", "System_Snapshot")
"""Prefixes of the names of objects that the game treats as units, but that no player sees."""

SELECTION_EVENTS = ("SelectionEvent", "ControlGroupEvent")
"""Endings of the names of events that change selections and control groups."""

COMMANDS = frozenset({"BasicCommandEvent", "TargetPointCommandEvent", "TargetUnitCommandEvent", "DataCommandEvent"})
"""Commands; events that record their progress are ignored."""

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
"""A player's statistics, recorded every ten seconds, and their names in sc2reader."""


@dataclass
class Unit:
    """A living unit."""

    kind: str  # name of its type, such as "Marine"
    owner: int  # number of its player; 0 for nobody
    x: float  # last known location, in cells of the map
    y: float
    born: int  # loop in which it was born, or its construction began
    seen: int  # loop of the last known location
    is_building: bool
    is_finished: bool  # False while it is under construction

    def move(self, x: float, y: float, loop: int) -> None:
        """Updates the last known location."""
        self.x, self.y, self.seen = float(x), float(y), loop


@dataclass(frozen=True)
class Entity:
    """A unit as a player knows it at the time of a decision."""

    kind: str
    owner: int  # SELF, ALLY, ENEMY or NEUTRAL
    x: float
    y: float
    age: int  # loops since its birth
    unseen: int  # loops since the last known location
    is_building: bool
    is_finished: bool
    is_selected: bool  # before the decision
    was_selected: bool  # in the selection before the current one
    groups: int  # its control groups, one bit each
    unselected: int  # loops since it was last selected; 0 if it is, `NEVER` if it never was
    uncommanded: int  # loops since it was last commanded, or `NEVER`


@dataclass(frozen=True)
class Decision:
    """An action of a player, and the state of the game at that moment."""

    player: int
    race: str  # "Protoss", "Terran" or "Zerg"
    enemy_race: str
    loop: int
    scalars: dict[str, float]  # statistics, see `SCALARS` and `UPGRADES`
    entities: list[Entity]  # all units
    chosen: list[int]  # indices in `entities` of the units that are selected by the action, or that the command is for
    ability: str | None = None  # name of the command; None for a selection
    target: int | None = None  # index in `entities` of the unit that the command aims at
    point: tuple[float, float] | None = None  # location that the command aims at, in cells of the map
    camera: tuple[float, float] | None = None  # center of the player's view, if known, in cells of the map
    last_ability: str | None = None  # name of the player's last command
    idle: int = NEVER  # loops since the player's last decision


@dataclass
class History:
    """What a player has done so far; units are ids."""

    previous: set[int] = field(default_factory=set)  # the selection before the current one
    selected: dict[int, int] = field(default_factory=dict)  # loop until which a unit was last selected
    commanded: dict[int, int] = field(default_factory=dict)  # loop in which a unit was last commanded
    camera: tuple[float, float] | None = None
    ability: str | None = None  # of the last command
    loop: int | None = None  # of the last decision

    def select(self, before: set[int], loop: int) -> None:
        """Updates the history by a selection, which replaces the units `before`."""
        self.previous, self.loop = before, loop
        self.selected |= dict.fromkeys(before, loop)

    def command(self, units: set[int], ability: str, loop: int) -> None:
        """Updates the history by a command."""
        self.ability, self.loop = ability, loop
        self.commanded |= dict.fromkeys(units, loop)


@dataclass
class Game:
    """The state of a game up to the current event."""

    team: dict[int, int]  # by number of the player, as the race
    race: dict[int, str]
    units: dict[int, Unit] = field(default_factory=dict)  # living units by id
    unit_ids: dict[int, int] = field(default_factory=dict)  # by index; the game reuses the indices of dead units
    # By player: the unit ids of the control groups and, after them, of the current selection.
    selections: dict[int, list[list[int]]] = field(default_factory=dict)
    statistics: dict[int, dict[str, float]] = field(default_factory=dict)  # by player, see `SCALARS`
    history: dict[int, History] = field(default_factory=dict)  # by player

    def __post_init__(self) -> None:
        for player in self.team:
            self.history[player] = History()
            self.selections[player] = [[] for _ in range(CURRENT_SELECTION + 1)]
            self.statistics[player] = dict.fromkeys([*SCALARS, UPGRADES], 0.0)

    def selected_units(self, player: int) -> set[int]:
        """Returns the ids of a player's own living units that are selected."""
        selection = self.selections[player][CURRENT_SELECTION]
        return {unit for unit in selection if unit in self.units and self.units[unit].owner == player}

    def relation(self, player: int, owner: int) -> int:
        """Returns SELF, ALLY, ENEMY or NEUTRAL."""
        if owner == player:
            return SELF
        if owner not in self.team:
            return NEUTRAL
        return ALLY if self.team[owner] == self.team[player] else ENEMY


def open_replay(path: str | Path, team_games: bool = False) -> Any:
    """Reads a replay with sc2reader, if its units can be tracked.

    Args:
        path: a .SC2Replay file.
        team_games: also accept games of more than two players.

    Raises:
        PerceiversError: it cannot be read, was resumed, has no record of units, is a team game, or too short; or
            sc2reader is not installed.
    """
    require_extra("starcraft")
    import sc2reader

    require_file(path)
    resumed = f"{path} is of a game that was resumed: its units cannot be tracked."
    try:
        replay = sc2reader.load_replay(str(path), load_level=4)
    except Exception as error:  # sc2reader raises many kinds, down to struct.error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "resumed" in reason:
            raise PerceiversError(resumed) from error
        raise PerceiversError(f"{path} cannot be read as a replay ({reason}): it is truncated or damaged.") from error
    if replay.resume_from_replay:
        raise PerceiversError(resumed)
    if not any(type(event).__name__ == "UnitBornEvent" for event in replay.tracker_events):
        raise PerceiversError(
            f"{path} has no record of its units (version {replay.release_string}): replays have one since version "
            f"2.0.8, unless the installed sc2reader does not know their version."
        )
    if len(replay.players) != 2 and not team_games:
        raise PerceiversError(
            f"{path} has {len(replay.players)} players: only games of two are accepted unless team games are allowed."
        )
    if replay.frames < MIN_LOOPS:
        raise PerceiversError(
            f"{path} lasts {replay.frames / LOOPS:.0f} s: games shorter than {MIN_LOOPS // LOOPS} s are not accepted."
        )
    return replay


def read_decisions(replay: Any) -> Iterator[Decision]:
    """Yields every selection and command of the players of a replay that `open_replay` returned, in order.

    A selection counts if it changes which of their own living units a player has selected, by mouse or by control
    group. A command counts if any are selected. Actions of the game itself do not count.
    """
    players = replay.players
    game = Game({each.pid: each.team.number for each in players}, {each.pid: each.play_race for each in players})
    for event in replay.events:
        kind = type(event).__name__
        player = getattr(getattr(event, "player", None), "pid", -1)
        if kind == "CameraEvent" and player in game.team and event.location is not None:
            game.history[player].camera = (float(event.x), float(event.y))
        if kind not in COMMANDS and not kind.endswith(SELECTION_EVENTS):
            update_game(game, kind, event)
            continue
        if player not in game.team:
            continue
        before = game.selected_units(player)
        if kind in COMMANDS:
            if before:
                decision = make_decision(game, player, event.frame, before, before, event)
                yield decision
                game.history[player].command(before, decision.ability or UNKNOWN, event.frame)
            update_game(game, kind, event)
        else:
            update_groups(game.selections[player], kind, event)
            chosen = game.selected_units(player)
            if chosen and chosen != before:
                yield make_decision(game, player, event.frame, before, chosen)
            if chosen != before:
                game.history[player].select(before, event.frame)


def make_decision(
    game: Game, player: int, loop: int, before: set[int], chosen: set[int], command: Any | None = None
) -> Decision:
    """Returns a player's decision: the units that are selected by it, or those that `command` is for."""
    control_groups = game.selections[player][:CURRENT_SELECTION]
    history, entities = game.history[player], []
    for unit_id, unit in game.units.items():
        owner, age, unseen = game.relation(player, unit.owner), loop - unit.born, loop - unit.seen
        flags = (unit.is_building, unit.is_finished, unit_id in before, unit_id in history.previous)
        groups = sum(1 << number for number, group in enumerate(control_groups) if unit_id in group)
        unselected = 0 if unit_id in before else min(NEVER, loop - history.selected.get(unit_id, -NEVER))
        uncommanded = min(NEVER, loop - history.commanded.get(unit_id, -NEVER))
        known = (unit.x, unit.y, age, unseen, *flags, groups, unselected, uncommanded)
        entities.append(Entity(unit.kind, owner, *known))
    index = {unit_id: index for index, unit_id in enumerate(game.units)}
    race, statistics = game.race[player], dict(game.statistics[player])
    enemies = [race for other, race in game.race.items() if game.team[other] != game.team[player]]
    units = sorted(index[unit_id] for unit_id in chosen)
    ability = None if command is None else command.ability_name or UNKNOWN
    target = index.get(getattr(command, "target_unit_id", None) or 0)
    location = getattr(command, "location", None)
    point = None if location is None else (float(location[0]), float(location[1]))
    idle = NEVER if history.loop is None else loop - history.loop
    action = (ability, target, point, history.camera, history.ability, idle)
    return Decision(player, race, enemies[0], loop, statistics, entities, units, *action)


def update_game(game: Game, kind: str, event: Any) -> None:
    """Applies an event, by the name of its class in sc2reader, to units and statistics."""
    unit = game.units.get(getattr(event, "unit_id", -1))
    match kind:
        case "UnitBornEvent" | "UnitInitEvent" if not event.unit_type_name.startswith(IGNORED_UNIT_PREFIXES):
            game.unit_ids[event.unit_id_index] = event.unit_id
            x, y, loop, is_finished = float(event.x), float(event.y), event.frame, kind == "UnitBornEvent"
            game.units[event.unit_id] = Unit(
                event.unit_type_name, event.control_pid, x, y, loop, loop, is_building(event), is_finished
            )
        case "UnitDoneEvent" if unit:
            unit.is_finished = True
        case "UnitDiedEvent":
            game.units.pop(event.unit_id, None)
        case "UnitOwnerChangeEvent" if unit:
            unit.owner = event.control_pid
        case "UnitTypeChangeEvent" if unit:
            unit.kind, unit.is_building = event.unit_type_name, is_building(event)
        case "UnitPositionsEvent":
            for index, (x, y) in event.positions:
                if moved := game.units.get(game.unit_ids.get(index, -1)):
                    moved.move(x, y, event.frame)
        case "PlayerStatsEvent" if event.pid in game.statistics:
            game.statistics[event.pid] |= {name: float(getattr(event, theirs)) for name, theirs in SCALARS.items()}
        case "UpgradeCompleteEvent" if event.pid in game.statistics and event.frame > 0:  # before: emblems and dances
            game.statistics[event.pid][UPGRADES] += 1
        case _ if kind in COMMANDS:  # tells the location of the unit that it aims at
            if target := game.units.get(getattr(event, "target_unit_id", None) or 0):
                target.move(event.x, event.y, event.frame)


def is_building(event: Any) -> bool:
    """Returns whether the unit of an event is a building."""
    return event.unit is not None and bool(event.unit.is_building)


def apply_selection_mask(selection: list[int], kind: str, data: Any) -> list[int]:
    """Returns the units of a selection that a mask keeps; masks index units in order of their ids."""
    if kind == "Mask":
        return [unit for index, unit in enumerate(selection) if index >= len(data) or not data[index]]
    if kind == "OneIndices":
        return [unit for index, unit in enumerate(selection) if index not in set(data)]
    if kind == "ZeroIndices":
        return [selection[index] for index in data if index < len(selection)]
    return list(selection)


def update_groups(groups: list[list[int]], kind: str, event: Any) -> None:
    """Applies an event, by the name of its class in sc2reader, to a player's control groups and selection."""
    group = event.control_group
    kept = apply_selection_mask(groups[group], event.mask_type, event.mask_data)
    match kind:
        case "SelectionEvent":
            groups[group] = sorted({*kept, *event.new_unit_ids})
        case "GetControlGroupEvent":
            groups[CURRENT_SELECTION] = kept
        case "SetControlGroupEvent":
            groups[group] = list(groups[CURRENT_SELECTION])
        case "AddToControlGroupEvent":
            groups[group] = sorted({*kept, *groups[CURRENT_SELECTION]})
        case "DeleteControlGroupEvent":
            groups[group] = []
