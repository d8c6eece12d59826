from itertools import pairwise

import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.adapters import NumberInput

EDGES = (-1.0, 0.0, 0.5, 3.0)


def test_the_encoding_is_piecewise_linear():
    numbers = torch.tensor([-5.0, -1.0, -0.25, 0.0, 0.4, 1.0, 2.9, 3.0, 50.0])
    found = NumberInput(EDGES, 8).encode(numbers)
    for row, number in zip(found, numbers.tolist(), strict=True):
        want = [np.interp(number, [low, high], [0, 1]) for low, high in pairwise(EDGES)]
        torch.testing.assert_close(row[1:], torch.tensor(want, dtype=torch.float32))
    assert found[:, 0].tolist() == pytest.approx([-5.0, -1.0, -0.25, 0.0, 0.4, 1.0, 2.9, 3.0, 10.0])


def test_the_element_is_a_linear_layer_of_the_encoding():
    adapter = NumberInput(EDGES, 8)
    numbers = torch.randn(5)
    array = adapter(numbers)
    assert array.x_BMC.shape == (5, 1, 8)
    assert array.mask_BM is None
    want = adapter.encode(numbers) @ adapter.linear.weight.T + adapter.linear.bias
    torch.testing.assert_close(array.x_BMC[:, 0], want)


@pytest.mark.parametrize("edges", [(1.0,), (0.0, 1.0, 1.0), (2.0, 1.0)])
def test_edges_that_do_not_increase_are_refused(edges):
    with pytest.raises(PerceiversError, match="must increase, and there must be at least two"):
        NumberInput(edges, 8)


def test_numbers_of_another_shape_are_refused():
    with pytest.raises(PerceiversError, match=r"numbers of shape \(2, 1\) were given, but \[batch\] is expected"):
        NumberInput(EDGES, 8)(torch.zeros(2, 1))
