import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nan

from perceivers import PerceiversError
from perceivers.flow.inverse import inverse_flow


def by_loop(flow_2YX):
    """Pixel by pixel."""
    _, height, width = flow_2YX.shape
    ending = {}
    for y in range(height):
        for x in range(width):
            dx, dy = flow_2YX[:, y, x].tolist()
            if math.isfinite(dx) and math.isfinite(dy):
                end = math.floor(y + dy + 0.5), math.floor(x + dx + 0.5)
                ending.setdefault(end, []).append((-dx, -dy))
    inverse_2YX = torch.full_like(flow_2YX, nan)
    for (y, x), flows in ending.items():
        if 0 <= y < height and 0 <= x < width:
            inverse_2YX[:, y, x] = torch.tensor(flows).mean(0)
    return inverse_2YX


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.4, 2, 30]), st.integers(0, 2**31))
def test_it_is_what_a_loop_over_pixels_computes(height, width, scale, seed):
    torch.manual_seed(seed)
    flow_B2YX = scale * torch.randn(3, 2, height, width)
    flow_B2YX[(torch.rand(3, 1, height, width) < 0.2).expand_as(flow_B2YX)] = nan
    expected_B2YX = torch.stack([by_loop(flow_2YX) for flow_2YX in flow_B2YX])
    torch.testing.assert_close(inverse_flow(flow_B2YX), expected_B2YX, equal_nan=True)
    torch.testing.assert_close(inverse_flow(flow_B2YX[1]), expected_B2YX[1], equal_nan=True)


def test_flows_that_end_in_one_pixel_are_averaged():
    flow = torch.tensor([[[2.25, 1, -0.25, 5]], [[0, 0.375, 0, 0]]])  # three end in the third pixel, one leaves
    assert inverse_flow(flow)[:, 0, 2].tolist() == [-1, -0.125]
    assert inverse_flow(flow)[:, 0, [0, 1, 3]].isnan().all()


def test_a_half_known_or_infinite_flow_ends_nowhere():
    flow = torch.tensor([[[0, nan, 0, torch.inf]], [[nan, 0, 0, 0]]])
    assert inverse_flow(flow)[0, 0].isnan().tolist() == [True, True, False, True]
    assert inverse_flow(flow)[1, 0].isnan().tolist() == [True, True, False, True]


def test_a_constant_flow_by_half_a_pixel_leaves_no_holes():
    inverse = inverse_flow(torch.full((2, 6, 8), 0.5))
    assert (inverse[:, 1:, 1:] == -0.5).all()
    assert inverse[:, 0].isnan().all()


def test_a_shift_is_undone():
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 7, 9)
    inverse = inverse_flow(flow)
    assert torch.equal(inverse[:, :5, 3:], -flow[:, :5, 3:])
    assert inverse.isnan().sum() == 2 * (7 * 9 - 5 * 6)
    assert torch.equal(inverse_flow(inverse)[:, 2:, :6], flow[:, 2:, :6])


def test_pixels_are_counted_exactly_in_half_precision():
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 50, 90)
    torch.testing.assert_close(inverse_flow(flow.half()), inverse_flow(flow).half(), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5, 4, 2), (2, 4), (1, 1, 2, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(PerceiversError, match=r"flow has the shape .*: \[2, height, width\] or a batch is expected"):
        inverse_flow(torch.zeros(shape))
