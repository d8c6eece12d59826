import json
from dataclasses import replace

import pytest
import torch

from perceivers import PerceiversError

pytest.importorskip("sc2reader")
pytest.importorskip("datasets")
import datasets
import pyarrow
from pyarrow import parquet

from perceivers.data.loader import SampleIndex
from perceivers.starcraft.data import DecisionData, PolicyDecisions, read_split
from perceivers.starcraft.policy import PolicyConfig
from perceivers.starcraft.replays import UNKNOWN
from perceivers.starcraft.tables import SCHEMA, STATISTICS, VOCABULARY, read_statistics, read_vocabulary
from tests.support.starcraft import row


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for number, name in enumerate(("a", "b", "c", "d")):
        rows = [row(10 * number + i, list(range(1 + i)), [i], i - 1) for i in range(3)]
        parquet.write_table(pyarrow.Table.from_pylist(rows, SCHEMA), tmp_path / f"{name}.parquet")
    names = {"kinds": ["Probe", "Zealot", "Nexus"], "abilities": ["Attack", "Move"], "scalars": ["minerals", "vespene"]}
    (tmp_path / VOCABULARY).write_text(json.dumps(names))
    (tmp_path / STATISTICS).write_text(json.dumps({"replays": {name: {} for name in "abcd"}, "refused": {}}))
    split = {"training": ["d", "a"], "validation": ["b"], "test": ["c"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    return tmp_path


def test_decisions_of_the_parts(tables):
    parts = DecisionData(str(tables), str(tables / "split.json")).open()
    assert [len(parts[name]) for name in ("training", "validation", "test")] == [6, 3, 3]
    assert parts["training"].lengths == [1, 2, 3, 1, 2, 3]
    assert parts["training"].vocabulary.kinds == ["Probe", "Zealot", "Nexus"]
    batch = parts["training"].collate([parts["training"][SampleIndex(place, 0)] for place in (4, 0, 2)])
    assert batch["loop"].tolist() == [1, 30, 32]
    assert batch["real"].tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert batch["kind"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 2]]
    assert batch["x"].tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 2]]
    assert batch["groups"].tolist() == [[512, 512, 0], [512, 0, 0], [512, 512, 512]]
    assert batch["chosen"].tolist() == [[False, True, False], [True, False, False], [False, False, True]]
    assert batch["ability"].tolist() == [0, -1, 1]
    assert batch["scalars"].tolist() == [[1, 2], [30, 2], [32, 2]]


def test_names_are_those_that_occur(tables):
    names = {"kinds": ["Probe", "Zealot", "Nexus", "Drone"], "abilities": [UNKNOWN, "Move", "Burrow"]}
    (tables / VOCABULARY).write_text(json.dumps(names | {"scalars": ["minerals", "vespene"]}))
    part = DecisionData(str(tables), str(tables / "split.json")).open()["test"]
    assert part.list_names() == (["Probe", "Zealot", "Nexus"], ["Move"])


def test_names_of_tables_and_model_are_brought_together(tables):
    decisions = DecisionData(str(tables), str(tables / "split.json")).open()["training"]
    names = PolicyConfig(kinds=("Zealot", "Probe"), abilities=("Move",), scalars=("minerals", "vespene"))
    known = PolicyDecisions(decisions, names)
    assert (len(known), known.lengths) == (len(decisions), decisions.lengths)
    batch = decisions.collate([decisions[SampleIndex(place, 0)] for place in range(6)])
    found = known.collate([known[SampleIndex(place, 0)] for place in range(6)])
    assert torch.equal(found["kind"], torch.tensor([2, 1, 0])[batch["kind"]])
    assert torch.equal(found["ability"], torch.tensor([-1, 0, 1])[batch["ability"] + 1])
    assert set(found["ability"].tolist()) == {-1, 0, 1}
    assert torch.equal(found["last_ability"], torch.tensor([-1, 0, 1])[batch["last_ability"] + 1])
    assert all(torch.equal(found[name], batch[name]) for name in batch.keys() - {"kind", "ability", "last_ability"})
    with pytest.raises(PerceiversError, match="have the statistics minerals, vespene, but the model reads minerals"):
        PolicyDecisions(decisions, replace(names, scalars=("minerals",)))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("nothing", "split.json is not valid JSON"),
        ('{"training": ["a"], "validation": ["b"]}', "needs names of replays for each of training, validation, test"),
        ('{"training": ["a", "b"], "validation": ["b"], "test": ["c"]}', "has 'b' twice"),
        ('{"training": ["e"], "validation": ["b"], "test": ["c"]}', "has no replay 'e' of training"),
    ],
)
def test_splits_that_do_not_fit(tables, split, message):
    (tables / "split.json").write_text(split)
    with pytest.raises(PerceiversError, match=message):
        DecisionData(str(tables), str(tables / "split.json")).open()


def test_values_that_are_not_allowed():
    with pytest.raises(PerceiversError, match=r"data\.split = 3 is not allowed: it must be of type str"):
        DecisionData("tables", 3)


def test_there_are_no_tables(tmp_path, tables):
    with pytest.raises(PerceiversError, match=r"data\.path is not given"):
        DecisionData().open()
    (tmp_path / "empty").mkdir()
    with pytest.raises(PerceiversError, match="has no tables of decisions: write them by prepare-replays"):
        DecisionData(str(tmp_path / "empty"), str(tables / "split.json")).open()


def test_the_committed_split_is_of_the_real_replays(shared_data):
    from pathlib import Path

    names = read_split(Path(__file__).parents[2] / "configs/starcraft/split.json")
    there = {file.stem for file in (shared_data / "replays").glob("*.SC2Replay")}
    every = [name for part in names.values() for name in part]
    assert set(every) <= there
    assert len(every) == 38


def change(tables, **columns):
    table = parquet.read_table(tables / "a.parquet").to_pydict()
    table |= {name: values(table[name]) for name, values in columns.items()}
    parquet.write_table(pyarrow.Table.from_pydict(table, SCHEMA), tables / "a.parquet")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("kind", lambda rows: [[3, *row[1:]] for row in rows], "has an index in 'kind' that there is not"),
        ("ability", lambda rows: [2] * len(rows), "has an index in 'ability' that there is not"),
        ("target", lambda rows: [500] * len(rows), "has an index in 'target' that there is not"),
        ("chosen", lambda rows: [[-1]] * len(rows), "has an index in 'chosen' that there is not"),
        ("x", lambda rows: [row[1:] for row in rows], "has too few or many values in 'x'"),
        ("scalars", lambda rows: [[1.0]] * len(rows), "has too few or many values in 'scalars'"),
        ("owner", lambda rows: [None] * len(rows), "has too few or many values in 'owner'|cannot be read"),
    ],
)
def test_damaged_tables_are_refused(tables, name, values, message):
    change(tables, **{name: values})
    with pytest.raises(PerceiversError, match=f"a.parquet .*{message}"):
        DecisionData(str(tables), str(tables / "split.json")).open()


def test_other_parquet_files_and_names_that_lead_outside_are_refused(tables):
    parquet.write_table(pyarrow.table({"x": [1]}), tables / "a.parquet")
    with pytest.raises(PerceiversError, match=r"a\.parquet cannot be read as a table of decisions"):
        DecisionData(str(tables), str(tables / "split.json")).open()
    (tables / "statistics.json").write_text(json.dumps({"replays": {n: {} for n in ("../x", "b", "c")}, "refused": {}}))
    (tables / "split.json").write_text(json.dumps({"training": ["../x"], "validation": ["b"], "test": ["c"]}))
    with pytest.raises(PerceiversError, match=r"names the file \.\./x\.parquet, which is outside of"):
        DecisionData(str(tables), str(tables / "split.json")).open()


@pytest.mark.parametrize("content", ["[]", '{"kinds": 3}', "{", '{"replays": {}, "refused": []}'])
def test_damaged_names_and_statistics_are_refused(tables, content):
    for name in ("vocabulary.json", "statistics.json"):
        (tables / name).write_text(content)
        with pytest.raises(PerceiversError, match=name):
            (read_vocabulary if name == "vocabulary.json" else read_statistics)(tables)
