import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.starcraft.policy import UnitPolicy
from perceivers.starcraft.pysc2 import RawUnits
from perceivers.starcraft.replays import ENEMY, NEUTRAL, SELF
from tests.starcraft.test_policy import SIZES

NAMES = {84: "Probe", 59: "Nexus", 341: "MineralField"}


def unit(tag, kind=84, alliance=1, x=10, y=20, progress=100, display=1, selected=0):
    row = np.zeros(46, dtype=np.int64)
    row[[0, 1, 6, 10, 12, 13, 17, 29]] = kind, alliance, progress, display, x, y, selected, tag
    return row


def test_fields_stand_where_pysc2_has_them():
    follow = RawUnits(NAMES, 100, buildings={"Nexus"})
    assert follow.kinds == ["MineralField", "Nexus", "Probe"]
    units = [unit(7, selected=1), unit(8, kind=59, alliance=4, progress=40, x=3, y=99), unit(9, kind=341, alliance=3)]
    batch = follow.read(np.stack(units), 500)
    assert batch["real"].tolist() == [[True] * 3]
    assert batch["kind"].tolist() == [[2, 1, 0]]
    assert batch["owner"].tolist() == [[SELF, ENEMY, NEUTRAL]]
    assert batch["x"].tolist() == [[10, 3, 10]]
    assert batch["y"].tolist() == [[80, 1, 80]]
    assert batch["flags"].tolist() == [[2 + 4, 1, 2]]
    assert batch["age"].tolist() == batch["unseen"].tolist() == batch["groups"].tolist() == [[0, 0, 0]]
    assert follow.unknown == 0


def test_units_are_followed_by_their_tags():
    follow = RawUnits(NAMES, 100)
    follow.read(np.stack([unit(7), unit(8, alliance=4)]), 100)
    batch = follow.read(np.stack([unit(8, alliance=4, display=2), unit(9), unit(7)]), 180)
    assert batch["age"].tolist() == [[80, 0, 80]]
    assert batch["unseen"].tolist() == [[80, 0, 0]]
    assert follow.read(np.stack([unit(8, alliance=4)]), 200)["unseen"].tolist() == [[0]]


def test_a_type_without_a_name_is_unknown_and_counted():
    follow = RawUnits(NAMES, 100)
    assert follow.read(np.stack([unit(1, kind=9999), unit(2)]), 0)["kind"].tolist() == [[3, 2]]
    assert follow.unknown == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8)), r"raw units of shape \(3, 8\) were given, but \[units, at least 30 columns\]"),
        (np.zeros(46), r"raw units of shape \(46,\) were given"),
        (np.stack([unit(1, alliance=16)]), "column 1 of the raw units has the value 16, but alliances are 1 to 4"),
    ],
)
def test_another_layout_is_refused(array, message):
    with pytest.raises(PerceiversError, match=message):
        RawUnits(NAMES, 100).read(array, 0)


def test_an_encoder_takes_them():
    torch.manual_seed(0)
    policy, follow = UnitPolicy(["Probe", "Nexus"], ["Attack"], ["minerals"], **SIZES), RawUnits(NAMES, 100)
    batch = follow.read(np.stack([unit(7), unit(8, kind=341, alliance=3)]), 0)
    numbers = policy.units.places([*follow.kinds, "unknown"])
    features = policy.units(batch | {"kind": numbers[batch["kind"]]})
    torch.testing.assert_close(features[0, :, :32], policy.units.embedding.weight[[1, 0]])
    assert policy.encoder(features, batch["real"]).elements_BME.shape == (1, 2, 256)
