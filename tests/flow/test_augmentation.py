import contextlib
import math
from dataclasses import fields
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nan

from perceivers import PerceiversError
from perceivers.data.image_files import read_frame
from perceivers.flow import augmentation as flow_augmentation
from perceivers.flow.augmentation import (
    FlowAugmentation,
    augment_pairs,
    color_matrices,
    recolor,
    sample_crops,
    sample_intervals,
    sample_linear,
    translate,
    warp_flow,
)
from perceivers.flow.files import read_flow

HEIGHT, WIDTH = FRAME = (52, 60)
SIZE = (36, 40)

NOTHING = FlowAugmentation(scale=(0.0, 0.0)).scaled(0)

SPATIAL = {
    "nothing": {},
    "flip": {"flip": 0.5},
    "vertical_flip": {"vertical_flip": 0.5},
    "scale": {"scale": (-0.3, 0.6)},
    "stretch": {"stretch": 0.5},
    "rotation": {"rotation": 25.0},
    "relative_scale": {"relative_scale": 0.1},
    "relative_rotation": {"relative_rotation": 5.0},
    "relative_translation": {"relative_translation": 4.0},
}
SPATIAL["all"] = {name: value for part in SPATIAL.values() for name, value in part.items()}


def only(**parts):
    """A configuration that does nothing else."""
    values = {field.name: getattr(NOTHING, field.name) for field in fields(NOTHING)}
    return FlowAugmentation(**{**values, **parts})


def grid(height, width):
    """x and y of each pixel, [2, Y, X]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y]).float()


def affine_flow(linear, offset, height=HEIGHT, width=WIDTH):
    """Flow [2, Y, X] that is linear @ (x, y) + offset."""
    return torch.einsum("ij,jyx->iyx", torch.tensor(linear), grid(height, width)) + torch.tensor(offset)[:, None, None]


def sample_at(image, points):
    """[C, Y, X] at points [2, ...] by hand, bilinear; the points lie inside."""
    corner = points.floor().long()
    corner = torch.stack([corner[0].clamp(0, image.shape[-1] - 2), corner[1].clamp(0, image.shape[-2] - 2)])
    x, y = points - corner
    return sum(
        image[:, corner[1] + down, corner[0] + right] * (x if right else 1 - x) * (y if down else 1 - y)
        for down in (0, 1)
        for right in (0, 1)
    )


def inside(points, height, width, margin=0.0):
    x, y = points
    return (x >= margin) & (x <= width - 1 - margin) & (y >= margin) & (y <= height - 1 - margin)


def ramps(count):
    """Frames whose red is x and whose green is y, so that results say where they were taken from."""
    x, y = grid(HEIGHT, WIDTH)
    return torch.stack([x / WIDTH, y / HEIGHT, torch.zeros_like(x)]).expand(count, 2, 3, HEIGHT, WIDTH)


def sources(frame):
    """Where each pixel of a ramp's image [3, Y, X] was taken from, [2, Y, X]."""
    return torch.stack([frame[0] * WIDTH, frame[1] * HEIGHT])


def fitted(points):
    """The affine map, [3, 2] for rows (x, y, 1), that takes pixels to these points [2, Y, X], from the unclamped."""
    height, width = points.shape[1:]
    rows = torch.cat([grid(height, width), torch.ones(1, height, width)]).flatten(1).T.double()
    points = points.flatten(1).double()
    unclamped = inside(points, HEIGHT, WIDTH, margin=0.5)
    return torch.linalg.lstsq(rows[unclamped], points[:, unclamped].T).solution


def apply(map_32, points):
    return torch.einsum("ki,kyx->iyx", map_32, torch.cat([points, torch.ones_like(points[:1])]).double())


def linear_parts(config, count=200, size=SIZE):
    """Of the maps from first frames to their images, [B, 2, 2]."""
    frames, _ = augment_pairs(config, size, ramps(count), torch.zeros(count, 2, *FRAME))
    return torch.stack([fitted(sources(frame))[:2].T.inverse() for frame in frames[:, 0]])


def smooth(points):
    """A smooth texture of two colors at points [2, ...]."""
    x, y = points
    return 0.5 + 0.2 * torch.stack([(0.21 * x + 0.12 * y).sin() + (0.17 * y - 1).cos(), (0.2 * y - 0.14 * x + 2).sin()])


# geometry


@pytest.mark.parametrize("parts", SPATIAL.values(), ids=SPATIAL)
def test_affine_flow_stays_exact(parts):
    flow = affine_flow([[0.05, -0.11], [0.08, 0.13]], [-3.0, 5.5])
    frames, got = augment_pairs(only(**parts), SIZE, ramps(12), flow.expand(12, 2, *FRAME))
    for (first, second), new in zip(frames, got, strict=True):
        begin = sources(first)
        end = begin + sample_at(flow, begin)
        end_again = apply(fitted(sources(second)), grid(*SIZE) + new)
        # a thousandth of a pixel of the result; its scale is below 2 with these parts
        assert (end - end_again).abs().max() < 5e-4


@pytest.mark.parametrize("parts", SPATIAL.values(), ids=SPATIAL)
def test_the_second_frame_at_the_end_of_the_flow_is_the_first(parts):
    linear, offset = torch.tensor([[0.05, -0.04], [0.03, 0.06]]), torch.tensor([2.5, -3.0])
    flow = affine_flow(linear.tolist(), offset.tolist())
    back = torch.einsum("ij,jyx->iyx", (torch.eye(2) + linear).inverse(), grid(*FRAME) - offset[:, None, None])
    marked = torch.zeros(1, *FRAME)  # what is sampled as 1 is not from beyond the second frame
    marked[:, 1:-1, 1:-1] = 1
    frames = torch.stack([torch.cat([smooth(grid(*FRAME)), marked]), torch.cat([smooth(back), marked])])
    frames, got = augment_pairs(only(**parts), SIZE, frames.expand(12, 2, 3, *FRAME), flow.expand(12, 2, *FRAME))
    compared = 0
    for (first, second), new in zip(frames, got, strict=True):
        ends = grid(*SIZE) + new
        seen = sample_at(second, ends)
        compare = inside(ends, *SIZE) & (seen[2] > 0.999)
        assert (seen - first)[:2, compare].abs().max() < 1 / 255
        compared += compare.float().mean().item() / 12
    assert compared > 0.6


def test_real_pairs_match_as_well_as_before(shared_data):
    folder = shared_data / "flow/middlebury"
    frames = torch.stack([read_frame(folder / f"other-data/RubberWhale/frame{n}.png") for n in (10, 11)]) / 255
    flow, _ = read_flow(folder / "other-gt-flow/RubberWhale/flow10.flo")

    def difference(pair, flow):
        ends = grid(*flow.shape[1:]) + flow.nan_to_num()
        seen = inside(ends, *flow.shape[1:]) & ~flow[0].isnan()
        return (sample_at(pair[1], ends) - pair[0])[:, seen].abs().mean().item()

    augment = partial(augment_pairs, only(**SPATIAL["all"] | {"relative_translation": 20.0}), (288, 384))
    pairs = zip(*augment(frames.expand(3, *frames.shape), flow.expand(3, *flow.shape)), strict=True)
    before = difference(frames, flow)
    for pair, new in pairs:
        assert difference(pair, new) < 1.3 * before
        assert difference(pair, new + 1) > 1.5 * before


@pytest.mark.parametrize(("part", "axis"), [("flip", -1), ("vertical_flip", -2)])
def test_flips_mirror_frames_and_flow(part, axis):
    frames, flow = torch.rand(3, 2, 3, *FRAME), torch.randn(3, 2, *FRAME) * 0.2
    got, new = augment_pairs(only(**{part: 1.0}), FRAME, frames, flow)
    sign = torch.tensor([-1.0, 1.0] if part == "flip" else [1.0, -1.0])[:, None, None]
    torch.testing.assert_close(got, frames.flip(axis), atol=1e-4, rtol=0)
    torch.testing.assert_close(new, flow.flip(axis) * sign, atol=1e-4, rtol=0)


def test_flow_grows_with_the_scale():
    flow = torch.tensor([3.0, -2.0])[:, None, None].expand(2, 2, *FRAME)
    for strength, factor in ((1, 2), (0.5, math.sqrt(2))):
        _, new = augment_pairs(only(scale=(1.0, 1.0)), SIZE, torch.rand(2, 2, 3, *FRAME), flow, strength)
        torch.testing.assert_close(new, flow[..., : SIZE[0], : SIZE[1]] * factor)


def test_a_quarter_turn_and_a_relative_shift():
    turn = torch.tensor([[[0.0, -1, 5], [1, 0, 0], [0, 0, 1]]], dtype=torch.float64)  # clockwise: right becomes down
    flow = affine_flow([[0.0, 0.0], [0.0, 0.0]], [3.0, 1.0], 6, 4)[None]
    new = warp_flow(flow, turn, translate(torch.tensor([[0.5, 10.0]], dtype=torch.float64)), (4, 6))
    torch.testing.assert_close(new[0], torch.tensor([-1 + 0.5, 3 + 10])[:, None, None].expand(2, 4, 6))


def test_flow_from_beyond_the_frame_is_unknown():
    shift = translate(torch.tensor([[2.0, -1.5]], dtype=torch.float64))
    new = warp_flow(torch.ones(1, 2, 6, 8), shift, torch.eye(3, dtype=torch.float64)[None], (6, 8))
    known = torch.zeros(6, 8, dtype=torch.bool)
    known[:4, 2:] = True  # row 4 is half beyond
    assert torch.equal(~new[0].isnan(), known.expand(2, 6, 8))


def test_no_crop_leaves_its_frame():
    linear = sample_linear(FlowAugmentation(scale=(-3.0, 1.0), stretch=1.0, rotation=180.0), 500)
    maps = sample_crops(linear, FRAME, SIZE)
    corners = torch.tensor([[x, y, 1.0] for x in (0, SIZE[1] - 1) for y in (0, SIZE[0] - 1)]).double()
    x, y, _ = (maps.inverse() @ corners.T).unbind(1)
    places = torch.stack([x.flatten(), y.flatten()])
    assert inside(places, *FRAME, margin=-1e-9).all()
    enlarged = maps[:, 0, 0] / linear[:, 0, 0]
    touches = ((x.amax(1) - x.amin(1)) / (WIDTH - 1)).maximum((y.amax(1) - y.amin(1)) / (HEIGHT - 1))
    assert enlarged.min() >= 1 - 1e-9
    assert 100 < (enlarged > 1 + 1e-6).sum() < 500
    torch.testing.assert_close(touches[enlarged > 1 + 1e-6], torch.ones(()).double().expand(500)[enlarged > 1 + 1e-6])


@pytest.mark.parametrize(
    ("parts", "measure", "low", "high"),
    [
        ({"scale": (0.1, 0.6)}, lambda a: a.det().log2() / 2, 0.1, 0.6),
        ({"stretch": 0.3, "scale": (0.5, 0.5)}, lambda a: (a[:, 0, 0] / a[:, 1, 1]).log2(), -0.3, 0.3),
        ({"rotation": 30.0}, lambda a: torch.atan2(a[:, 1, 0], a[:, 0, 0]).rad2deg(), -30, 30),
    ],
)
def test_amounts_fill_their_range(parts, measure, low, high):
    values = measure(linear_parts(only(**parts), size=(20, 20)))
    assert values.min() > low - 1e-3
    assert values.max() < high + 1e-3
    assert values.min() < low + 0.05 * (high - low)
    assert values.max() > high - 0.05 * (high - low)


@pytest.mark.parametrize(
    ("parts", "measure", "largest"),
    [
        ({"relative_scale": 0.1}, lambda a: a[:, :2, :2].det().log2() / 2, 0.1),
        ({"relative_rotation": 5.0}, lambda a: torch.atan2(a[:, 1, 0], a[:, 0, 0]).rad2deg(), 5),
        ({"relative_translation": 4.0}, lambda a: a[:, 0, 2], 4),
        ({"relative_translation": 4.0}, lambda a: a[:, 1, 2], 4),
    ],
)
def test_relative_amounts_fill_their_range_around_the_middle(parts, measure, largest):
    maps = flow_augmentation.sample_relative_motions(only(**parts), 300, SIZE)
    values = measure(maps)
    assert values.abs().max() < largest
    assert values.min() < -0.95 * largest
    assert values.max() > 0.95 * largest
    if "relative_translation" not in parts:
        middle = torch.tensor([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2, 1]).double()
        torch.testing.assert_close(maps @ middle, middle.expand(300, 3))


def test_flips_happen_as_often_as_asked():
    for part, sign in (("flip", lambda a: a[:, 0, 0]), ("vertical_flip", lambda a: a[:, 1, 1])):
        assert (sign(sample_linear(only(**{part: 0.3}), 2000)) < 0).float().mean().item() == pytest.approx(
            0.3, abs=0.05
        )


def test_pairs_are_stretched_before_they_are_turned():
    right, down = sample_linear(only(rotation=30.0, stretch=0.5), 100).unbind(2)
    torch.testing.assert_close((right * down).sum(1), torch.zeros(100).double())
    assert torch.atan2(right[:, 1], right[:, 0]).rad2deg().abs().max() < 30


# strength


def test_without_strength_only_a_part_is_cut_out():
    frames, flow = torch.rand(40, 2, 3, 8, 9), torch.randn(40, 2, 8, 9)
    flow[(torch.rand(40, 1, 8, 9) < 0.2).expand_as(flow)] = nan
    got, new = augment_pairs(FlowAugmentation(), (6, 6), frames, flow, strength=0)
    places = set()
    for index in range(40):
        parts = {(y, x): frames[index, :, :, y : y + 6, x : x + 6] for y in range(3) for x in range(4)}
        y, x = min(parts, key=lambda place: (parts[place] - got[index]).abs().max().item())
        torch.testing.assert_close(got[index], parts[y, x], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            new[index], flow[index, :, y : y + 6, x : x + 6], atol=1e-5, rtol=1e-5, equal_nan=True
        )
        places.add((y, x))
    assert len(places) == 12


def test_without_strength_frames_of_that_size_stay():
    frames, flow = torch.randint(256, (3, 2, 3, *FRAME), dtype=torch.uint8), 9 * torch.randn(3, 2, *FRAME)
    got, new = augment_pairs(FlowAugmentation(), FRAME, frames, flow, strength=0)
    torch.testing.assert_close(got, frames / 255, atol=1e-4, rtol=0)
    torch.testing.assert_close(new, flow, atol=1e-3, rtol=0)


def test_strength_is_a_factor_of_every_amount():
    config = FlowAugmentation()
    for field in fields(config):
        half, full = getattr(config.scaled(0.5), field.name), getattr(config, field.name)
        assert half == ((full[0] / 2, full[1] / 2) if field.name == "scale" else full / 2)


# unknown flow


def test_what_is_unknown_does_not_leak():
    flow = 40 + 0.1 * torch.randn(6, 2, *FRAME)
    holes = torch.rand(6, 2, *FRAME) < 0.05  # also of one direction only
    augment = partial(augment_pairs, only(**SPATIAL["all"]), SIZE)
    torch.manual_seed(1)
    _, known = augment(ramps(6), flow)
    torch.manual_seed(1)
    frames, new = augment(ramps(6), flow.masked_fill(holes, nan))
    assert not known.isnan().any()
    assert torch.equal(new[:, 0].isnan(), new[:, 1].isnan())
    torch.testing.assert_close(new, known.where(~new.isnan(), nan), equal_nan=True, atol=1e-3, rtol=0)
    for frame, hole, got in zip(frames[:, 0], holes.any(1, keepdim=True).float(), new, strict=True):
        weight = sample_at(hole, sources(frame))[0]
        assert got[0][weight > 2e-3].isnan().all()
        assert not got[0][weight < 5e-4].isnan().any()


def test_motions_are_not_mixed_at_their_boundary():
    flow = torch.zeros(1, 2, *FRAME)
    flow[..., 30:] = 20
    _, new = augment_pairs(only(scale=(0.6, 0.6)), SIZE, ramps(1), flow)
    assert set((new / 2**0.6).unique().mul(1e3).round().tolist()) == {0, 20e3}


# erasing


def test_erasing_changes_the_second_frame_only():
    frames, flow = torch.rand(60, 2, 3, *FRAME), torch.randn(60, 2, *FRAME)
    got, new = augment_pairs(only(erase=0.6, erase_side=20.0), FRAME, frames, flow)
    torch.testing.assert_close(got[:, 0], frames[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(new, flow, atol=1e-3, rtol=0)
    erased = ((got - frames)[:, 1].abs() > 1e-4).any(1)
    count = erased.flatten(1).any(1).sum()
    assert 24 < count < 48
    for frame, result, where in zip(frames[:, 1], got[:, 1], erased, strict=True):
        mean = frame.mean((1, 2), keepdim=True)
        torch.testing.assert_close(result, torch.where(where, mean, frame), atol=1e-4, rtol=0)


def test_erased_rectangles_are_as_large_as_asked():
    rows = sample_intervals(20.0, 300, 1000)
    assert rows.shape == (300, flow_augmentation.MAX_RECTANGLES, 1000)
    sides = rows.sum(-1)[~rows[..., 0] & ~rows[..., -1]]  # not cut at the ends
    assert set(sides.unique().tolist()) == set(range(5, 21))
    begins = rows.float().argmax(-1)
    assert begins.max() > 950
    assert begins.min() < 50


def test_up_to_three_rectangles_are_erased(monkeypatch):
    def diagonal(side, count, size):
        return torch.eye(3, size, dtype=torch.bool).repeat(count, 1, 1)

    monkeypatch.setattr(flow_augmentation, "sample_intervals", diagonal)
    frames = torch.rand(200, 2, 3, 8, 8)
    erased = (flow_augmentation.erase(only(erase=1.0), frames) != frames)[:, 1].any(1)
    assert set(erased.sum((1, 2)).tolist()) == {1, 2, 3}


# occluders


def occluded(count=30, **parts):
    """Pairs of one gray each, with flow unknown outside the patches; and what became of them."""
    frames = torch.arange(1, count + 1).div(count + 1)[:, None, None, None, None].expand(count, 2, 3, *FRAME)
    config = only(occlude=0.7, occlude_side=24.0, occlude_motion=6.0, **parts)
    return frames, augment_pairs(config, FRAME, frames, torch.full((count, 2, *FRAME), nan))


def test_a_patch_of_another_pair_moves_over_both_frames_exactly():
    frames, (got, flow) = occluded()
    patches = (got - frames).abs().amax(2) > 1e-3
    hit, within = patches[:, 0].flatten(1).any(1), 0
    assert 12 < hit.sum() < 28
    for index in hit.nonzero().flatten().tolist():
        first, second = patches[index]
        torch.testing.assert_close(got[index, :, :, first & second], frames[index - 1][:, :, first & second])
        vector = flow[index][:, first]
        assert (vector == vector[:, :1]).all()
        assert flow[index][:, ~first].isnan().all()
        ends = grid(*FRAME)[:, first] + vector
        ends = ends[:, inside(ends, *FRAME)]
        begins = grid(*FRAME)[:, second] - vector[:, :1]
        begins = begins[:, inside(begins, *FRAME)]
        # partly the other's color at the patch's border, fully within
        assert (sample_at(second[None].float(), ends) > 0).all()
        assert (sample_at(first[None].float(), begins) > 0).all()
        within += (sample_at(second[None].float(), ends) == 1).sum().item() / first.sum().item() / hit.sum().item()
    assert within > 0.6
    motions = flow[hit].flatten(2).nan_to_num().abs().amax(2)
    assert 5 < motions.max() < 6
    assert motions.min() < 1


def test_a_patch_looks_alike_in_both_frames():
    x, y = grid(*FRAME)
    texture = torch.stack([*smooth(torch.stack([x, y])), torch.ones_like(x)])
    plain = torch.full_like(texture, 0)
    frames = torch.stack([plain, texture] * 4)[:, None].expand(8, 2, 3, *FRAME)
    config = only(occlude=1.0, occlude_side=24.0, occlude_motion=4.0, rotation=20.0, scale=(0.2, 0.5))
    got, flow = augment_pairs(config, SIZE, frames, torch.full((8, 2, *FRAME), nan))
    compared = 0
    for (first, second), new in zip(got[::2], flow[::2], strict=True):
        patch = ~new[0].isnan()
        assert torch.equal(patch, first[2] > 0.5)
        ends = (grid(*SIZE) + new)[:, patch]
        seen, compare = sample_at(second, ends.clamp(0, 35)), inside(ends, 36, 36)
        compare &= seen[2] > 0.999
        assert (seen - first[:, patch])[:2, compare].abs().max() < 1 / 255
        compared += compare.sum()
    assert compared > 200


def test_patches_have_the_size_asked_for():
    unit, wave = flow_augmentation.sample_shapes(40.0, 200, (200, 200))
    unit[:, :2, 2] = -(unit[:, :2, :2] @ torch.full((2,), 99.5).double())  # none is cut
    area = flow_augmentation.rasterize(unit, wave, (200, 200), torch.device("cpu")).flatten(1).sum(1)
    torch.testing.assert_close(area.double(), math.pi / unit[:, :2, :2].det().abs(), rtol=0.1, atol=10)
    sides = 2 / torch.linalg.svdvals(unit[:, :2, :2])
    assert sides.min() > 10
    assert 38 < sides.max() < 40


def test_patches_are_bent_and_turned_at_random():
    unit, wave = flow_augmentation.sample_shapes(60.0, 100, (80, 80))
    cpu = torch.device("cpu")
    bent, straight = (flow_augmentation.rasterize(unit, part * wave, (80, 80), cpu) for part in (1, 0))
    assert ((bent & straight).sum((1, 2, 3)) / (bent | straight).sum((1, 2, 3)) < 0.9).sum() > 50
    angle = torch.atan2(unit[:, 0, 1], unit[:, 0, 0])
    assert set((angle / (math.pi / 2)).floor().tolist()) == {-2, -1, 0, 1}


# colors


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ("brightness", torch.zeros_like),
        ("contrast", lambda frames: frames.mean((1, 2, 3, 4), keepdim=True)),
        ("saturation", lambda frames: frames.mean(2, keepdim=True)),
    ],
)
def test_factors_of_colors_fill_their_range(part, kept):
    before = 0.3 + 0.2 * torch.rand(200, 2, 3, 4, 5)
    after = recolor(only(**{part: 0.4}), before)
    old, new = before - kept(before), after - kept(before)
    factors = (new / old).flatten(1).median(1).values
    torch.testing.assert_close(new, factors[:, None, None, None, None] * old, atol=1e-5, rtol=0)
    assert 0.6 < factors.min() < 0.64
    assert 1.36 < factors.max() < 1.4


def test_hues_turn_around_gray():
    before = 0.4 + 0.2 * torch.rand(200, 2, 3, 4, 5)
    after = recolor(only(hue=50.0), before)
    torch.testing.assert_close(after.mean(2), before.mean(2))
    old, new = before - before.mean(2, True), after - after.mean(2, True)
    angle = F.cosine_similarity(old, new, dim=2, eps=1e-12).clamp(-1, 1).acos().rad2deg().flatten(1)
    torch.testing.assert_close(new.norm(dim=2), old.norm(dim=2))
    assert (angle.amax(1) - angle.amin(1)).max() < 0.5
    assert 48 < angle.max() < 50.1
    assert angle.mean(1).min() < 3


def test_a_third_of_a_turn_takes_red_to_green():
    turned = color_matrices(torch.ones(1).double(), torch.tensor([120.0]).double())[0]
    torch.testing.assert_close(turned @ torch.eye(3).double(), torch.eye(3).double()[[2, 0, 1]])
    gray = color_matrices(torch.zeros(1).double(), torch.tensor([33.0]).double())[0]
    torch.testing.assert_close(gray, torch.full((3, 3), 1 / 3).double())


def test_frames_change_alike_or_not():
    frames = torch.rand(1, 1, 3, *FRAME).expand(300, 2, 3, *FRAME)
    colors = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 20.0}
    for asymmetric in (0, 0.4, 1):
        first, second = recolor(only(**colors, asymmetric=asymmetric), frames).unbind(1)
        differ = (first - second).abs().amax((1, 2, 3)) > 1e-3
        assert differ.float().mean().item() == pytest.approx(asymmetric, abs=0.1)


def test_colors_stay_in_range():
    frames, _ = augment_pairs(
        FlowAugmentation(brightness=1.0), SIZE, torch.rand(8, 2, 3, *FRAME), torch.zeros(8, 2, *FRAME)
    )
    assert (frames.min(), frames.max()) == (0, 1)


# all together


def test_the_same_seed_gives_the_same_and_another_another():
    frames, flow = torch.rand(3, 2, 3, *FRAME), torch.randn(3, 2, *FRAME)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(augment_pairs(FlowAugmentation(), SIZE, frames, flow))
    for one, same, other in zip(*results, strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0, equal_nan=True)
        assert not torch.allclose(one, other, equal_nan=True)


def test_each_pair_of_a_batch_is_changed_in_its_own_way():
    pair, flow = torch.rand(2, 3, *FRAME), torch.randn(2, *FRAME)
    for part, amount in {
        **dict.fromkeys(("brightness", "contrast", "saturation", "stretch", "relative_scale"), 0.5),
        **dict.fromkeys(("hue", "rotation", "relative_rotation", "relative_translation"), 20.0),
        "scale": (0.0, 1.0),
    }.items():
        frames, _ = augment_pairs(
            only(**{part: amount}), FRAME, pair.expand(4, *pair.shape), flow.expand(4, *flow.shape)
        )
        assert all((frames[i] - frames[j]).abs().max() > 0.01 for i in range(4) for j in range(i)), part


def test_inputs_are_left_as_they_are():
    frames, flow = torch.rand(3, 2, 3, *FRAME), torch.randn(3, 2, *FRAME)
    kept = frames.clone(), flow.clone()
    augment_pairs(FlowAugmentation(erase=1.0, occlude=1.0), FRAME, frames, flow, strength=0)
    augment_pairs(FlowAugmentation(erase=1.0, occlude=1.0), FRAME, frames, flow)
    assert torch.equal(frames, kept[0])
    assert torch.equal(flow, kept[1])


def test_mixed_precision_changes_nothing():
    frames, flow = torch.rand(2, 2, 3, *FRAME), torch.randn(2, 2, *FRAME)
    augment = partial(augment_pairs, FlowAugmentation(), SIZE)
    torch.manual_seed(1)
    expected = augment(frames, flow)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = augment(frames, flow)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_everything_happens_where_the_frames_are(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # unknown for this device
    config = FlowAugmentation(erase=1.0, occlude=1.0)
    frames, flow = torch.rand(2, 2, 3, *FRAME, device="meta"), torch.rand(2, 2, *FRAME, device="meta")
    frames, flow = augment_pairs(config, SIZE, frames, flow)
    assert (frames.device.type, flow.device.type) == ("meta", "meta")
    assert (frames.shape, flow.shape) == ((2, 2, 3, *SIZE), (2, 2, *SIZE))


# what is refused


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"scale": (0.5, 0.1)}, r"augmentation.scale = \(0.5, 0.1\) is not allowed: .* two numbers, the smaller first"),
        ({"scale": (0.5, nan)}, "augmentation.scale"),
        ({"scale": (-math.inf, 0.0)}, "augmentation.scale"),
        ({"brightness": 1.1}, "augmentation.brightness = 1.1 is not allowed: it must be at least 0 and at most 1"),
        ({"erase": -0.1}, "augmentation.erase = -0.1 is not allowed: it must be at least 0 and at most 1"),
        ({"rotation": 181.0}, "augmentation.rotation = 181.0 is not allowed: it must be at least 0 and at most 180"),
        ({"stretch": -1.0}, "augmentation.stretch = -1.0 is not allowed: it must be at least 0"),
        ({"erase_side": nan}, "augmentation.erase_side = nan is not allowed"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(parts, message):
    with pytest.raises(PerceiversError, match=message):
        FlowAugmentation(**parts)


@pytest.mark.parametrize(
    ("frames", "flow", "message"),
    [
        (
            (1, 2, 3, 35, 60),
            (1, 2, 35, 60),
            "frames of 35 x 60 pixels are smaller than the crop of 36 x 40: use larger frames",
        ),
        ((1, 2, 3, 60, 39), (1, 2, 60, 39), "frames of 60 x 39 pixels are smaller than the crop of 36 x 40"),
        ((2, 2, 3, *FRAME), (1, 2, *FRAME), r"frames of shape \(2, 2, 3, 52, 60\) and flow of shape \(1, 2, 52, 60\)"),
        ((1, 3, 2, *FRAME), (1, 2, *FRAME), "2 frames, 3 colors, height, width"),
        ((1, 2, 3, *FRAME), (1, *FRAME, 2), "2 frames, 3 colors, height, width"),
    ],
)
def test_frames_that_do_not_fit_are_refused(frames, flow, message):
    with pytest.raises(PerceiversError, match=message):
        augment_pairs(NOTHING, SIZE, torch.rand(frames), torch.rand(flow))


def test_other_strengths_and_sizes_are_refused():
    with pytest.raises(PerceiversError, match=r"strength = 1\.5 is not allowed: it must be from 0 to 1"):
        augment_pairs(NOTHING, SIZE, ramps(1), torch.rand(1, 2, *FRAME), 1.5)
    with pytest.raises(PerceiversError, match=r"size = \(1, 40\) is not allowed: it must be height and width"):
        augment_pairs(NOTHING, (1, 40), ramps(1), torch.rand(1, 2, *FRAME))
