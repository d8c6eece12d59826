import pytest
import torch

from perceivers import FourierPositions, InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, ArrayOutput
from tests.support.models import shaken


def test_vectors_are_projected_before_positions_are_added():
    adapter = ArrayInput(3, FourierPositions((4, 5), 2), projection=7)
    data = torch.randn(2, 4, 5, 3)
    array = adapter(data)
    assert array.x_BMC.shape == (2, 20, adapter.channels) == (2, 20, 7 + 2 * (2 * 2 + 1))
    want = adapter.projection.weight @ data[1, 2, 4] + adapter.projection.bias
    torch.testing.assert_close(array.x_BMC[1, 2 * 5 + 4, :7], want)
    torch.testing.assert_close(array.x_BMC[0, :, 7:], adapter.positions())


def test_without_a_projection_vectors_are_as_they_are():
    data = torch.randn(2, 4, 3)
    adapter = ArrayInput(3)
    assert torch.equal(adapter(data).x_BMC, data)
    assert adapter.channels == 3


def test_a_projected_set_keeps_its_mask():
    mask = torch.tensor([[True, False, True]])
    array = ArrayInput(2, projection=5)(InputArray(torch.randn(1, 3, 2), mask))
    assert array.x_BMC.shape == (1, 3, 5)
    assert torch.equal(array.mask_BM, mask)


def test_places_of_an_output_are_those_of_the_full_decode():
    model = shaken(
        PerceiverIO({"x": ArrayInput(3)}, {"y": ArrayOutput(2, FourierPositions((3, 4), 2))}, 4, 16, 1, heads=2)
    )
    encoded = model.encode({"x": torch.randn(2, 5, 3)})
    full = model.decode(encoded)["y"]
    assert full.shape == (2, 3, 4, 2)
    some = model.decode(encoded, {"y": torch.tensor([11, 5])})["y"]
    torch.testing.assert_close(some, torch.stack([full[:, 2, 3], full[:, 1, 1]], 1))


def test_wrong_arrays_are_refused():
    with pytest.raises(PerceiversError, match=r"shape \(2, 4\) was given, but \[batch, 1 dimension, 3 channels\]"):
        ArrayInput(3, projection=5)(torch.zeros(2, 4))
    with pytest.raises(PerceiversError, match=r"\[batch, 2 dimensions, 3 channels\] is expected"):
        ArrayInput(3, FourierPositions((4, 5), 2))(torch.zeros(2, 20, 3))
