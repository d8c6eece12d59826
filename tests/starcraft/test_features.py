import math

import pytest
import torch

from perceivers import PerceiversError
from perceivers.starcraft.features import CELLS, HOUR, ScalarFeatures, UnitFeatures


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


def test_types_that_are_not_known_are_one():
    features = UnitFeatures(["Probe", "Zealot"])
    assert features.places(["Zealot", "Lurker", "Probe"]).tolist() == [2, 0, 1]


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
