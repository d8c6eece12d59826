import subprocess
import sys
from collections import Counter
from functools import cache
from types import SimpleNamespace

import pytest

from perceivers import PerceiversError, extras

pytest.importorskip("sc2reader")
from perceivers.starcraft import replays
from perceivers.starcraft.replays import (
    ALLY,
    ENEMY,
    IGNORED_UNIT_PREFIXES,
    NEUTRAL,
    NEVER,
    SELF,
    UPGRADES,
    Game,
    apply_selection_mask,
    open_replay,
    read_decisions,
)

KNOWN = {  # Zerg against Terran of version 3.0; Protoss against the computer of 4.4
    "3.0.0.38215__third": {"humans": 1},
    "4.4.0.65895__1": {"humans": 1},
    "2.0.8.25446__ggtracker_3024127": {"humans": 2},
}


open_once = cache(open_replay)


@pytest.fixture(params=KNOWN)
def replay(request, shared_data):
    return open_once(shared_data / "replays" / f"{request.param}.SC2Replay")


def relation(player, owner):
    if owner is None:
        return NEUTRAL
    return SELF if owner.pid == player else ENEMY


def test_units_are_those_that_live_at_the_time_by_the_readers_own_record(replay):
    """sc2reader follows units from beginning to end by itself."""
    found = list(read_decisions(replay))
    moved = [event.unit for event in replay.tracker_events if type(event).__name__ == "UnitOwnerChangeEvent"]
    left_out = {kind.str_id for unit in moved for kind in unit.type_history.values()}  # the record keeps the last owner
    checked = 0
    for decision in found[:: max(1, len(found) // 25)]:
        loop = decision.loop
        units = [unit for unit in replay.objects.values() if unit.started_at is not None]
        if any(loop in (unit.started_at, unit.finished_at, unit.died_at, *unit.type_history) for unit in units):
            continue  # what came first in the very loop is not known here
        wanted = Counter()
        for unit in units:
            kind = [kind.str_id for since, kind in unit.type_history.items() if since < loop][-1:]
            alive = unit.started_at < loop and not (unit.died_at and unit.died_at < loop)
            if alive and not kind[0].startswith(IGNORED_UNIT_PREFIXES) and kind[0] not in left_out:
                finished = unit.finished_at is not None and unit.finished_at < loop
                wanted[kind[0], relation(decision.player, unit.owner), loop - unit.started_at, finished] += 1
        entities = [entity for entity in decision.entities if entity.kind not in left_out]
        assert Counter((each.kind, each.owner, each.age, each.is_finished) for each in entities) == wanted
        checked += 1
    assert checked > 5


def test_locations_are_the_last_known():
    game = Game({1: 1, 2: 2}, {1: "Zerg", 2: "Terran"})
    born = SimpleNamespace(unit_type_name="Drone", unit_id_index=5, unit_id=500, control_pid=1, x=3, y=4, frame=100)
    born.unit = None
    replays.update_game(game, "UnitBornEvent", born)

    def known(loop):
        (entity,) = replays.make_decision(game, 1, loop, set(), {500}).entities
        return entity.x, entity.y, entity.age, entity.unseen

    assert known(130) == (3, 4, 30, 30)
    replays.update_game(game, "UnitPositionsEvent", SimpleNamespace(positions=[(5, (7, 8)), (6, (1, 1))], frame=340))
    assert known(400) == (7, 8, 300, 60)
    aimed = SimpleNamespace(target_unit_id=500, x=9, y=10, frame=410)
    replays.update_game(game, "TargetUnitCommandEvent", aimed)
    assert known(415) == (9, 10, 315, 5)


def test_what_is_chosen_is_the_players_own(replay):
    count = Counter()
    for decision in read_decisions(replay):
        assert decision.chosen == sorted(set(decision.chosen))
        assert all(decision.entities[place].owner == SELF for place in decision.chosen)
        before = [place for place, entity in enumerate(decision.entities) if entity.is_selected]
        assert (before == decision.chosen) == (decision.ability is not None)
        assert all(entity.unseen <= entity.age for entity in decision.entities)
        count[decision.player, decision.ability is not None] += 1
    humans = [player.pid for player in replay.players if player.is_human]
    assert {player for player, _ in count} == set(humans)
    assert all(count[player, kind] > 10 for player in humans for kind in (False, True))


def test_what_a_player_did_before_is_known(replay):
    cameras = [event for event in replay.game_events if type(event).__name__ == "CameraEvent"]
    last, seen = {}, Counter()
    for decision in read_decisions(replay):
        player, loop = decision.player, decision.loop
        abilities, loops = last.setdefault(player, ([None], [loop - NEVER]))
        assert decision.last_ability == abilities[-1]
        assert decision.idle <= loop - loops[-1], "a selection of nothing is no decision, but counts"
        views = [event.location for event in cameras if event.player.pid == player and event.frame < loop]
        same = [event.location for event in cameras if event.player.pid == player and event.frame == loop]
        assert decision.camera in [*views[-1:], *same, *([] if views else [None])]
        for entity in decision.entities:
            assert (entity.unselected == 0) >= entity.is_selected
            assert not (entity.was_selected and entity.unselected == NEVER)
            seen[entity.owner == SELF, entity.was_selected, entity.uncommanded < NEVER] += 1
        abilities += [decision.ability] if decision.ability is not None else []
        loops.append(loop)
    assert seen[True, True, True] > 10
    assert not any(count for (own, before, _), count in seen.items() if before and not own)


def test_the_history_of_a_player():
    game = Game({1: 1, 2: 2}, {1: "Zerg", 2: "Terran"})
    for number in (1, 2, 3):
        born = SimpleNamespace(unit_type_name="Drone", unit_id_index=number, unit_id=number, control_pid=1, x=3, y=4)
        born.frame, born.unit = 100, None
        replays.update_game(game, "UnitBornEvent", born)
    history = game.history[1]
    history.select(set(), 110)  # unit 1
    history.command({1}, "Move", 120)
    history.select({1}, 130)  # units 2 and 3
    history.select({2, 3}, 150)  # unit 1 again
    decision = replays.make_decision(game, 1, 160, {1}, {2})
    assert [entity.was_selected for entity in decision.entities] == [False, True, True]
    assert [entity.unselected for entity in decision.entities] == [0, 10, 10]
    assert [entity.uncommanded for entity in decision.entities] == [40, NEVER, NEVER]
    assert (decision.last_ability, decision.idle) == ("Move", 10)
    assert replays.make_decision(game, 2, 160, set(), set()).idle == NEVER


def test_statistics_and_upgrades_are_those_recorded_last(replay):
    events = replay.tracker_events
    last = list(read_decisions(replay))[-1]
    stats = [
        e for e in events if type(e).__name__ == "PlayerStatsEvent" and e.pid == last.player and e.frame <= last.loop
    ]
    assert last.scalars["minerals"] == stats[-1].minerals_current
    assert last.scalars["food_used"] == stats[-1].food_used
    upgrades = [e for e in events if type(e).__name__ == "UpgradeCompleteEvent" and 0 < e.frame <= last.loop]
    assert last.scalars[UPGRADES] == sum(event.pid == last.player for event in upgrades)


def test_commands_have_their_ability_and_target(replay):
    commands = [event for event in replay.game_events if type(event).__name__ in replays.COMMANDS]
    found = [decision for decision in read_decisions(replay) if decision.ability is not None]
    by_time = {(event.frame, event.player.pid, event.ability_name or replays.UNKNOWN) for event in commands}
    assert all((decision.loop, decision.player, decision.ability) in by_time for decision in found)
    aimed = [decision for decision in found if decision.target is not None]
    assert len(aimed) > 5
    targets = {
        (event.frame, event.player.pid): event.target.name for event in commands if getattr(event, "target", None)
    }
    same = [decision.entities[decision.target].kind == targets[decision.loop, decision.player] for decision in aimed]
    assert sum(same) > 0.8 * len(same)  # types change between two records of the reader


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("invalid/2.0.9.26147__bad_unit_ids_2", "is of a game that was resumed"),
        ("invalid/4.1.2.60604__1", r"has no record of its units \(version 4\.1\.2\.60604\)"),
        ("invalid/4.11.0.77379__Oblivion_Express", "has 7 players: only games of two are accepted"),
        ("2.0.8.25446__ggtracker_3167674", "has 3 players"),
        ("none", "is not a readable file"),
    ],
)
def test_what_is_no_game_of_two_is_refused(shared_data, name, message):
    with pytest.raises(PerceiversError, match=message):
        open_replay(shared_data / "replays" / f"{name}.SC2Replay")


def test_damaged_and_short_replays_are_refused(shared_data, tmp_path, monkeypatch):
    content = (shared_data / "replays" / "4.4.0.65895__1.SC2Replay").read_bytes()
    for name, part in (("cut", content[: len(content) // 2]), ("text", b"not a replay"), ("empty", b"")):
        (tmp_path / name).write_bytes(part)
        with pytest.raises(PerceiversError, match=f"{name} cannot be read as a replay"):
            open_replay(tmp_path / name)
    monkeypatch.setattr(replays, "MIN_LOOPS", 16 * 3600)
    with pytest.raises(PerceiversError, match=r"lasts 661 s: games shorter than 3600 s are not accepted"):
        open_replay(shared_data / "replays" / "4.4.0.65895__1.SC2Replay")


def test_only_replays_themselves_need_their_reader(tmp_path, monkeypatch):
    """Whoever trains on something else need not have it."""
    code = "import sys; sys.modules['sc2reader'] = None; import perceivers.training.config"
    subprocess.run([sys.executable, "-c", code], check=True)
    (tmp_path / "a.SC2Replay").write_bytes(b"")
    monkeypatch.setitem(extras.MODULES, "starcraft", ("no_such_reader",))
    with pytest.raises(PerceiversError, match=r"'no_such_reader' is not installed.*perceivers\[starcraft\]"):
        open_replay(tmp_path / "a.SC2Replay")


def test_team_games_have_allies(shared_data):
    replay = open_replay(shared_data / "replays" / "2.0.8.25446__ggtracker_3167674.SC2Replay", team_games=True)
    owners = Counter(entity.owner for decision in read_decisions(replay) for entity in decision.entities)
    assert set(owners) == {SELF, ALLY, ENEMY, NEUTRAL}


@pytest.mark.parametrize(
    ("kind", "data", "left"),
    [
        ("None", None, [10, 20, 30, 40]),
        ("Mask", [True, False, True], [20, 40]),
        ("OneIndices", [1, 3, 9], [10, 30]),
        ("ZeroIndices", [0, 2, 9], [10, 30]),
    ],
)
def test_masks_of_selections(kind, data, left):
    assert apply_selection_mask([10, 20, 30, 40], kind, data) == left


def test_control_groups():
    def event(group=10, units=(), mask=("None", None)):
        return SimpleNamespace(control_group=group, new_unit_ids=list(units), mask_type=mask[0], mask_data=mask[1])

    groups = Game({1: 1, 2: 2}, {1: "Zerg", 2: "Terran"}).selections[1]
    replays.update_groups(groups, "SelectionEvent", event(units=[30, 10]))
    replays.update_groups(groups, "SetControlGroupEvent", event(4))
    replays.update_groups(groups, "SelectionEvent", event(units=[20], mask=("OneIndices", [0])))
    assert groups[10] == [20, 30]
    replays.update_groups(groups, "AddToControlGroupEvent", event(4))
    assert groups[4] == [10, 20, 30]
    replays.update_groups(groups, "GetControlGroupEvent", event(4, mask=("Mask", [False, True])))
    assert groups[10] == [10, 30]
    replays.update_groups(groups, "DeleteControlGroupEvent", event(4))
    assert groups[4] == []
    assert groups[10] == [10, 30]
