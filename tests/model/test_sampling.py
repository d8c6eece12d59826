"""Farthest-point sampling against a plain loop, and what covers a cloud evenly."""

import math

import pytest
import torch

from perceivers import PerceiversError
from perceivers.model.sampling import farthest_points


def plain(x_MG, count):
    """The definition, point by point."""
    chosen = [0]
    while len(chosen) < count:
        rest = [index for index in range(len(x_MG)) if index not in chosen]
        distance = {index: min((x_MG[index] - x_MG[other]).norm().item() for other in chosen) for index in rest}
        chosen.append(max(rest, key=distance.get))
    return chosen


@pytest.mark.parametrize("dims", [1, 3])
def test_farthest_points_are_those_of_a_plain_loop(dims):
    x = torch.randn(3, 40, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert farthest_points(x, 17).tolist() == [plain(cloud, 17) for cloud in x]


def test_points_on_a_line():
    x = torch.tensor([[[3.0], [0.0], [10.0], [6.0], [4.0]]])
    assert farthest_points(x, 5).tolist() == [[0, 2, 1, 3, 4]]  # 10 is 7 away; then 0 and 6, of which the first; ...


def test_no_point_is_sampled_twice_even_where_points_coincide():
    x = torch.zeros(1, 6, 2)
    assert farthest_points(x, 6).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_padding_is_not_sampled_whatever_it_holds():
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0]])
    x[mask == 0] = torch.nan
    for cloud, real, found in zip(x, mask.bool(), farthest_points(x, 6, mask), strict=True):
        kept = real.nonzero()[:, 0]
        assert found.tolist() == kept[plain(cloud[kept], 6)].tolist()


def test_sampled_points_cover_a_circle_within_twice_the_optimum():
    angle = torch.rand(1, 500, generator=torch.Generator().manual_seed(2)) * 2 * torch.pi
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    sampled = circle[0, farthest_points(circle, 16)[0]]
    optimum = 2 * math.sin(math.pi / 32)  # of 16 centers at equal angles
    assert torch.cdist(circle[0], sampled).amin(1).max() < 2 * optimum


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(1, 4, 2), 5), "5 points cannot be sampled from a cloud of 4: choose from 1 to 4."),
        ((torch.zeros(1, 4, 2), 0), "0 points cannot be sampled"),
        ((torch.zeros(2, 4, 2), 3, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])), "a cloud of 2"),
        ((torch.zeros(4, 2), 3), "the coordinates of points have the shape"),
        ((torch.zeros(1, 4, 2, dtype=torch.long), 3), "the coordinates of points are of type torch.int64"),
        (([[0.0, 1.0]], 1), "the coordinates of points are of type list"),
        ((torch.full((1, 4, 2), torch.nan), 3), "not all finite"),
        ((torch.zeros(1, 4, 2), 3, torch.ones(1, 5)), r"the mask of points has the shape \[1, 5\]: \[1, 4\]"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(PerceiversError, match=message):
        farthest_points(*arguments)
