import math

import pytest
import torch

from perceivers.errors import PerceiversError
from perceivers.model.positions import FourierPositions, LearnedPositions, fourier_features


def test_fourier_features_are_the_papers():
    positions = FourierPositions((5, 9), bands=3)
    table = positions()
    assert table.shape == (45, positions.channels)
    assert positions.channels == 2 * (2 * 3 + 1)
    for row, column in [(0, 0), (2, 7), (4, 8)]:
        place = [-1 + 2 * row / 4, -1 + 2 * column / 8]
        frequencies = [[1.0, 1.75, 2.5], [1.0, 2.75, 4.5]]  # from 1 to half the resolution
        angles = [math.pi * f * p for p, axis in zip(place, frequencies, strict=True) for f in axis]
        want = [*place, *map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(table[row * 9 + column], torch.tensor(want), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 5)])
def test_points_are_entries_of_the_whole_grid(shape):
    for positions in (FourierPositions(shape, 4), LearnedPositions(shape, 6), LearnedPositions(shape, 6, True)):
        points = torch.randint(math.prod(shape), (2, 5))
        torch.testing.assert_close(positions(indices=points), positions()[points])
        torch.testing.assert_close(positions(indices=points[0]), positions()[points[0]])


def test_positions_are_exact_whatever_the_default_precision():
    want = FourierPositions((224,), 64)()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(FourierPositions((224,), 64)(), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_other_grids_span_the_same_range():
    positions = FourierPositions((4, 4), bands=2)
    small, large = positions(), positions((7, 7))
    torch.testing.assert_close(large.view(7, 7, -1)[::2, ::2], small.view(4, 4, -1), atol=1e-6, rtol=0)


def test_projected_positions():
    positions = LearnedPositions((3,), 4, projected=True)
    want = positions.table_SF @ positions.projection.weight.T + positions.projection.bias
    torch.testing.assert_close(positions(), want)


def test_wrong_grids_are_refused():
    with pytest.raises(PerceiversError, match=r"grid of \(4, 4\) only, but the data has \(5, 4\)"):
        LearnedPositions((4, 4), 8)((5, 4))
    with pytest.raises(PerceiversError, match="2 dimensions, but the data has 1"):
        FourierPositions((4, 4), 8)((5,))
    with pytest.raises(PerceiversError, match="bands = 0"):
        FourierPositions((4, 4), 0)


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_without_the_endpoint_position_i_of_n_is_2_i_over_n_from_minus_one(size):
    want = torch.tensor([-1 + 2 * i / size for i in range(size)])
    torch.testing.assert_close(FourierPositions((size,), 2, endpoint=False)()[:, 0], want)
    two = FourierPositions((3, size), 2, endpoint=False)()
    torch.testing.assert_close(two.view(3, size, -1)[0, :, 1], want)
    torch.testing.assert_close(two.view(3, size, -1)[:, 0, 0], torch.tensor([-1.0, -1 / 3, 1 / 3]))


def test_the_resolution_bounds_the_frequencies():
    positions = FourierPositions((5, 4), bands=3, resolution=(20, 6))
    place = positions()[4 * 1 + 3, :2]
    assert place.tolist() == [-0.5, 1.0]
    angles = math.pi * place[:, None] * torch.tensor([[1, 5.5, 10], [1, 2, 3]])
    torch.testing.assert_close(positions()[7, 2:8], angles.flatten().sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(positions()[7, 8:], angles.flatten().cos(), atol=1e-5, rtol=0)
    same = FourierPositions((5, 4), bands=3, resolution=(5, 4))
    assert torch.equal(same(), FourierPositions((5, 4), bands=3)())


@pytest.mark.parametrize("resolution", [(8,), (8, 8, 8)])
def test_a_resolution_of_other_dimensions_is_refused(resolution):
    with pytest.raises(PerceiversError, match=r"resolution = .* must have a number for each of grid = \(4, 4\)"):
        FourierPositions((4, 4), 2, resolution)


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("grid", [(50,), (6, 9), (3, 4, 5)])
def test_what_is_computed_along_each_axis_is_what_every_point_would_give(grid, endpoint):
    positions = FourierPositions(grid, 3, [size + 2 for size in grid], endpoint)
    axes = [torch.linspace(-1, 1 if endpoint else 1 - 2 / size, size) for size in grid]
    every = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    expected = fourier_features(every, positions.resolution, 3)
    assert torch.equal(positions(), expected)
    few, many = torch.tensor([[0, 3, 49], [7, 7, 1]]), torch.randint(0, 50, (2, 70))
    assert torch.equal(positions(indices=few), expected[few])
    assert torch.equal(positions(indices=many), expected[many])


def test_some_points_of_a_long_axis_do_not_compute_all_of_it():
    positions = FourierPositions((100000,), 4)
    with torch.profiler.profile(record_shapes=True) as profile:
        positions(indices=torch.arange(10))
    sizes = [math.prod(event.input_shapes[0]) for event in profile.events() if event.name == "aten::sin"]
    assert sizes == [40]
