import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from perceivers import PerceiversError
from perceivers.starcraft.features import CELLS, HOUR, ScalarFeatures, UnitFeatures
from perceivers.starcraft.replays import ENEMY, NEUTRAL, SELF


def units(**changes):
    zero = torch.zeros(1, 1, dtype=torch.long)
    fields = dict.fromkeys(("kind", "owner", "flags", "groups", "age", "unseen"), zero)
    return fields | {"x": torch.zeros(1, 1), "y": torch.zeros(1, 1)} | changes


def test_numbers_of_a_unit_stand_where_they_belong():
    features = UnitFeatures(["Probe", "Zealot"], kind_channels=4, bands=2)
    assert features.channels == 4 + 4 + 3 + 10 + 2 + 8 + 2
    one = torch.ones(1, 1, dtype=torch.long)
    x_C = features(
        units(kind=2 * one, owner=2 * one, flags=5 * one, groups=513 * one, x=torch.tensor([[CELLS / 2]]),
              y=torch.tensor([[CELLS / 4]]), age=HOUR * one, unseen=0 * one)
    )[0, 0]  # fmt: skip
    torch.testing.assert_close(x_C[:4], features.embedding.weight[2])
    assert x_C[4:8].tolist() == [0, 0, 1, 0]
    assert x_C[8:11].tolist() == [1, 0, 1]
    assert x_C[11:21].tolist() == [1, *[0] * 8, 1]
    assert x_C[21:23].tolist() == [0, -0.5]
    waves = [torch.pi * 0, 0, -torch.pi / 2, -torch.pi]
    torch.testing.assert_close(x_C[23:27], torch.tensor(waves).sin(), atol=1e-6, rtol=0)
    torch.testing.assert_close(x_C[27:31], torch.tensor(waves).cos(), atol=1e-6, rtol=0)
    assert x_C[31:].tolist() == [pytest.approx(1, abs=1e-4), 0]


def test_what_the_player_did_before_follows():
    features = UnitFeatures(["Probe"], kind_channels=4, bands=1, history=True)
    one = torch.ones(1, 1, dtype=torch.long)
    location = {"x": torch.tensor([[CELLS / 2]]), "y": torch.tensor([[CELLS / 4]])}
    history = {"flags": 8 * one, "unselected": 0 * one, "uncommanded": HOUR * one}
    x_C = features(units(**location, **history, camera=torch.tensor([[CELLS / 4, CELLS / 2]])))[0, 0]
    assert x_C.shape == (features.channels,) == (4 + 4 + 4 + 10 + 6 + 2 + 2 + 6,)
    assert x_C[8:12].tolist() == [0, 0, 0, 1]
    assert x_C[-8:-6].tolist() == [0, pytest.approx(1, abs=1e-4)]
    expected = [0.25, -0.25, math.sin(math.pi / 4), -math.sin(math.pi / 4), *[math.cos(math.pi / 4)] * 2]
    torch.testing.assert_close(x_C[-6:], torch.tensor(expected))
    unknown = features(units(**location, **history, camera=torch.full((1, 2), -1.0)))[0, 0]
    assert unknown[-6:].tolist() == [0, 0, 0, 0, 1, 1], "as if the unit were at the center"
    torch.testing.assert_close(unknown[:-6], x_C[:-6])


def test_types_that_are_not_known_are_one():
    features = UnitFeatures(["Probe", "Zealot"])
    assert features.index_kinds(["Zealot", "Lurker", "Probe"]).tolist() == [2, 0, 1]


def test_scalars_are_brought_to_a_common_size():
    features, zero = ScalarFeatures(3, 8), torch.zeros(2, dtype=torch.long)
    numbers = torch.tensor([[0.0, 100.0, 5000.0], [-1.0, 100.0, 5000.0]])
    found = features(numbers, zero, zero, zero)
    assert found.shape == (2, 8)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(features(numbers, zero - 1, zero, zero), found)
    features.layers = torch.nn.Identity()
    x_C = features(numbers, zero, zero + 2, zero + HOUR)[1]
    expected = [0, math.log(101) / 8, math.log(5001) / 8, 0, 1, 0, 0, 0, 0, 0, 1, math.log(HOUR + 1) / math.log(HOUR)]
    torch.testing.assert_close(x_C, torch.tensor(expected))
    with pytest.raises(PerceiversError, match="3 scalars were given, but the model reads 2"):
        ScalarFeatures(2)(numbers, zero, zero, zero)


def raw(tag, unit_type=84, alliance=1, x=10, y=20, build_progress=100, display_type=1, is_selected=0):
    """A row of pysc2's raw units."""
    return SimpleNamespace(**locals())


def test_raw_units_of_pysc2_become_columns():
    """As docs/starcraft.md shows."""
    page = (Path(__file__).parents[2] / "docs/starcraft.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.S) if "def read_units" in text]
    names = {"torch": torch}
    exec(block, names)
    features, born, seen = UnitFeatures(["Nexus", "Probe"]), {}, {}

    def read(units, loop):
        known = {84: "Probe", 59: "Nexus", 341: "MineralField"}
        return names["read_units"](units, loop, features.index_kinds, known, {"Nexus"}, 100, born, seen)

    units = [raw(7, is_selected=1), raw(8, 59, 4, 3, 99, build_progress=40), raw(9, 341, 3), raw(6, 9999)]
    batch = read(units, 500)
    assert batch["real"].tolist() == [[True] * 4]
    assert batch["kind"].tolist() == [[2, 1, 0, 0]]
    assert batch["owner"].tolist() == [[SELF, ENEMY, NEUTRAL, SELF]]
    assert batch["x"].tolist() == [[10, 3, 10, 10]]
    assert batch["y"].tolist() == [[80, 1, 80, 80]]
    assert batch["flags"].tolist() == [[2 + 4, 1, 2, 2]]
    assert batch["age"].tolist() == batch["unseen"].tolist() == batch["groups"].tolist() == [[0] * 4]
    assert features(batch).shape == (1, 4, features.channels)
    later = read([raw(8, 59, 4, display_type=2), raw(5), raw(7)], 580)
    assert later["age"].tolist() == [[80, 0, 80]]
    assert later["unseen"].tolist() == [[80, 0, 0]]
    assert read([raw(8, 59, 4)], 600)["unseen"].tolist() == [[0]]
