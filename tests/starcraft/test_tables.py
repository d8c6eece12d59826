import json
import shutil

import pytest

from perceivers import PerceiversError

pytest.importorskip("sc2reader")
from pyarrow import parquet

from perceivers.cli import main
from perceivers.starcraft import tables as replay_tables
from perceivers.starcraft.replays import (
    ALLY,
    BUILDING,
    ENEMY,
    FINISHED,
    NEUTRAL,
    SELECTED,
    SELF,
    Decision,
    Entity,
    open_replay,
    read_decisions,
)
from perceivers.starcraft.tables import read_vocabulary, truncate_units, write_replays
from tests.support.cli import fails

FIRST, SECOND = "4.3.0.64469__1", "2.0.8.25605__ggtracker_3663861"


@pytest.fixture
def source(shared_data, tmp_path):
    """Two short games, one that is refused, and one in a folder."""
    root = shared_data / "replays"
    (tmp_path / "replays" / "old").mkdir(parents=True)
    shutil.copy(root / f"{FIRST}.SC2Replay", tmp_path / "replays")
    shutil.copy(root / f"{SECOND}.SC2Replay", tmp_path / "replays" / "old")
    shutil.copy(root / "invalid" / "4.1.2.60604__1.SC2Replay", tmp_path / "replays")
    return tmp_path / "replays"


def test_tables_hold_the_decisions(source, tmp_path):
    statistics = write_replays(source, tmp_path / "out")
    assert sorted(statistics["replays"]) == [FIRST, f"old__{SECOND}"]
    assert list(statistics["refused"]) == ["4.1.2.60604__1"]
    assert "has no record of its units" in statistics["refused"]["4.1.2.60604__1"]
    names = read_vocabulary(tmp_path / "out")
    for name, path in (
        (FIRST, source / f"{FIRST}.SC2Replay"),
        (f"old__{SECOND}", source / "old" / f"{SECOND}.SC2Replay"),
    ):
        rows = parquet.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        found = list(read_decisions(open_replay(path)))
        assert len(rows) == len(found) == statistics["replays"][name]["decisions"]
        assert statistics["replays"][name]["most_units"] == max(len(each.entities) for each in found)
        for row, decision in zip(rows[::20], found[::20], strict=True):
            entities = decision.entities
            assert [names.kinds[kind] for kind in row["kind"]] == [entity.kind for entity in entities]
            for column in ("owner", "x", "y", "age", "unseen", "groups"):
                assert row[column] == [getattr(entity, column) for entity in entities]
            for bit, column in ((BUILDING, "is_building"), (FINISHED, "is_finished"), (SELECTED, "is_selected")):
                assert [bool(flags & bit) for flags in row["flags"]] == [getattr(entity, column) for entity in entities]
            assert row["chosen"] == decision.chosen
            ability = None if row["ability"] == -1 else names.abilities[row["ability"]]
            assert ability == decision.ability
            assert row["target"] == (-1 if decision.target is None else decision.target)
            assert row["point"] == pytest.approx(list(decision.point or ()))
            assert dict(zip(names.scalars, row["scalars"], strict=True)) == pytest.approx(decision.scalars)
            assert (row["player"], row["loop"]) == (decision.player, decision.loop)
            assert replay_tables.RACES[row["race"]] == decision.race


def test_what_is_written_is_kept_and_numbers_stay(source, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.move(source / "old", other)
    write_replays(source, tmp_path / "out")
    before, kinds = (tmp_path / "out" / f"{FIRST}.parquet").stat(), read_vocabulary(tmp_path / "out").kinds
    shutil.move(other, source / "old")
    opened = []
    monkeypatch.setattr(
        replay_tables, "open_replay", lambda path, teams: opened.append(path.stem) or open_replay(path, teams)
    )
    write_replays(source, tmp_path / "out")
    assert opened == ["4.1.2.60604__1", SECOND]
    assert (tmp_path / "out" / f"{FIRST}.parquet").stat().st_mtime_ns == before.st_mtime_ns
    assert read_vocabulary(tmp_path / "out").kinds[: len(kinds)] == kinds


def test_a_table_that_was_not_entered_is_written_again(source, tmp_path, monkeypatch):
    write_replays(source, tmp_path / "out")
    file = tmp_path / "out" / "statistics.json"
    statistics = json.loads(file.read_text())
    figures = statistics["replays"].pop(FIRST)
    file.write_text(json.dumps(statistics | {"refused": {FIRST: "for some reason"}}))
    again = write_replays(source, tmp_path / "out")
    assert again["replays"][FIRST] == figures
    assert list(again["refused"]) == ["4.1.2.60604__1"]


def unit(owner, age):
    return Entity("Probe", owner, 0.0, 0.0, age, 0, False, True, False, False, 0, 0, 0)


def test_of_too_many_units_those_that_matter_are_kept():
    entities = [unit(NEUTRAL, 3), unit(SELF, 9), unit(ENEMY, 5), unit(ALLY, 1), unit(ENEMY, 2), unit(NEUTRAL, 8)]
    decision = Decision(1, "Zerg", "Terran", 7, {}, entities, [1], "Attack", 5, (1.0, 2.0))
    few = truncate_units(decision, 4)
    assert [(entity.owner, entity.age) for entity in few.entities] == [(SELF, 9), (ENEMY, 5), (ENEMY, 2), (NEUTRAL, 8)]
    assert (few.chosen, few.target) == ([0], 3)
    assert truncate_units(decision, 6) is decision
    # the older enemy is dropped first
    assert truncate_units(decision, 3).entities == [entities[1], entities[4], entities[5]]
    assert truncate_units(decision, 2).entities == [entities[1], entities[5]]


def test_more_units_than_fit_are_counted(source, tmp_path, monkeypatch):
    counts = sorted(len(each.entities) for each in read_decisions(open_replay(source / f"{FIRST}.SC2Replay")))
    most = counts[len(counts) // 2]
    monkeypatch.setattr(replay_tables, "MAX_UNITS", most)
    monkeypatch.setattr(replay_tables, "truncate_units", lambda decision: truncate_units(decision, most))
    figures = write_replays(source, tmp_path / "out")["replays"][FIRST]
    assert figures["most_units"] == counts[-1]
    assert figures["cut"] == sum(count > most for count in counts) > 0


def test_the_command(source, tmp_path, capsys):
    main(["prepare-replays", str(source), str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Refused: ")
    assert lines[0].endswith("does not know their version.")
    assert lines[-1].startswith(f"{tmp_path / 'out'}: ")
    assert "2 replays" in lines[-1]
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert f"{sum(each['decisions'] for each in statistics['replays'].values()):,} decisions" in lines[-1]
    (tmp_path / "empty").mkdir()
    assert "has no replays" in fails(capsys, "prepare-replays", str(tmp_path / "empty"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    shutil.copy(source / "4.1.2.60604__1.SC2Replay", tmp_path / "empty")
    assert "has no usable replay" in fails(capsys, "prepare-replays", str(tmp_path / "empty"), str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_no_replays(tmp_path):
    with pytest.raises(PerceiversError, match=r"has no replays: it must contain files that end in \.SC2Replay"):
        write_replays(tmp_path, tmp_path / "out")
