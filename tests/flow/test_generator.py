import math

import pytest
import torch
import torch.nn.functional as F

from perceivers import PerceiversError
from perceivers.flow import generator as flow_generator
from perceivers.flow.datasets import open_pairs
from perceivers.flow.generator import FlowGenerator, write_scenes
from perceivers.flow.scenes import SceneConfig, SceneRandom, draw_layers

SIZE = (72, 96)


@pytest.fixture(scope="module", autouse=True)
def few_textures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow_generator, "TEXTURES", 12)
        patch.setattr(flow_generator, "SHAPES", 24)
        yield


@pytest.fixture(scope="module")
def generator(few_textures):
    return FlowGenerator(SceneConfig(SIZE, motion=5.0))


@pytest.fixture(scope="module")
def smooth(few_textures):
    """Paints with slow waves of color, which bilinear sampling hardly changes."""
    made = FlowGenerator(SceneConfig(SIZE, motion=5.0))
    place = torch.linspace(0, 2 * math.pi, made.textures.shape[-1])
    waves = torch.stack([torch.sin(k * place)[:, None] + torch.cos(k * place) for k in (1, 1.5, 2)])
    made.textures = (127 + 60 * waves).expand_as(made.textures).round().byte()
    return made


def drawn(seeds, **settings):
    """Layers of scenes."""
    return draw_layers(SceneRandom(seeds, torch.device("cpu")), SceneConfig(SIZE, **settings), 3, 3)


def look_up(image_BCYX, flow_B2YX):
    """The image where the flow ends."""
    height, width = image_BCYX.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    end_BYX2 = (torch.stack([x, y]) + flow_B2YX).movedim(1, -1)
    grid = (2 * end_BYX2 + 1) / torch.tensor([width, height]) - 1
    return F.grid_sample(image_BCYX.float(), grid, padding_mode="border", align_corners=False)


def inside_a_layer(flow_B2YX, seen_BYX):
    """Where all around can be seen and moves alike: outlines mix the colors of two layers."""
    outside = F.max_pool2d((~seen_BYX).float(), 5, 1, 2) > 0
    spread = F.max_pool2d(flow_B2YX, 5, 1, 2) + F.max_pool2d(-flow_B2YX, 5, 1, 2)
    return ~outside & (spread.amax(1) < 0.8)


def test_the_second_frame_looked_up_by_the_flow_is_the_first_where_it_can_be_seen(smooth):
    pairs = smooth.generate(range(20))
    for here, flow, occluded in ((0, pairs.forward, pairs.occluded), (1, pairs.backward, pairs.uncovered)):
        error = (look_up(pairs.frames[:, 1 - here], flow) - pairs.frames[:, here]).abs().amax(1)
        seen = inside_a_layer(flow, ~occluded)
        assert seen.float().mean() > 0.5
        assert error[seen].mean() * 255 < 0.4
        assert (error[seen] * 255 < 1).float().mean() > 0.98
        assert error[~seen & (flow.norm(dim=1) > 3)].mean() * 255 > 5  # and what is hidden differs


def test_without_shapes_the_frames_agree_to_less_than_a_gray_level(smooth):
    smooth.scenes.shapes, before = (0, 0), smooth.scenes.shapes
    pairs = smooth.generate(range(8))
    smooth.scenes.shapes = before
    error = (look_up(pairs.frames[:, 1], pairs.forward) - pairs.frames[:, 0]).abs().amax(1)
    assert error[~pairs.occluded].max() * 255 < 1.5
    assert error[~pairs.occluded].mean() * 255 < 0.25


def test_forward_and_backward_flow_undo_each_other_where_content_can_be_seen(generator):
    pairs = generator.generate(range(20))
    there = look_up(pairs.backward, pairs.forward)
    difference = (pairs.forward + there).norm(dim=1)
    seen = inside_a_layer(pairs.forward, ~pairs.occluded)
    assert difference[seen].quantile(0.99) < 0.05
    assert pairs.forward.norm(dim=1).mean() > 3


def test_a_layer_moves_and_is_moved_back_to_where_it_was(generator):
    layers = draw_layers(SceneRandom([5], torch.device("cpu")), generator.scenes, 3, 3)
    for layer in range(len(layers)):
        for time in (0.3, 1.0):
            moved = layers.move(layer, time, generator.point_2P)
            back = layers.move_back(layer, time, moved[0])
            torch.testing.assert_close(back[0], generator.point_2P, atol=2e-3, rtol=0)


def test_motion_is_what_its_formula_says(generator):
    layers = draw_layers(SceneRandom([7], torch.device("cpu")), generator.scenes, 3, 3)
    place = torch.tensor([[20.0], [30.0]])
    x, y = (place[:, 0] - layers.center[0, 1]).double().tolist()
    turn, zoom, (u, v) = float(layers.turn[0, 1]), math.exp(layers.zoom[0, 1]), layers.perspective[0, 1].tolist()
    far = 1 + u * x + v * y
    moved = torch.tensor(
        [zoom * (math.cos(turn) * x - math.sin(turn) * y) / far, zoom * (math.sin(turn) * x + math.cos(turn) * y) / far]
    )
    # perspective belongs to the place before it is shifted: the center moves by the shift alone
    moved = moved + layers.center[0, 1] + layers.shift[0, 1]
    for shear in range(2):
        angle = layers.wave[0, 1, shear] @ moved + layers.phase[0, 1, shear]
        moved = moved + layers.amplitude[0, 1, shear] * angle.sin()
    torch.testing.assert_close(layers.move(1, 1.0, place)[0, :, 0], moved, atol=1e-3, rtol=0)


def test_a_pair_depends_on_its_seed_alone(generator):
    alone, together = generator.generate([11]), generator.generate([3, 11, 2**31 + 3])
    for one, three in zip(alone, together, strict=True):
        torch.testing.assert_close(three[1].float(), one[0].float(), atol=1e-4, rtol=0)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(together.forward[a], together.forward[b], atol=0.1)


def test_mixed_precision_does_not_round_pairs(generator):
    with torch.autocast("cpu", torch.bfloat16):
        rounded = generator.generate([11, 12])
    for one, other in zip(rounded, generator.generate([11, 12]), strict=True):
        assert torch.equal(one, other)


def test_another_seed_of_the_scenes_paints_with_other_textures(generator):
    other = FlowGenerator(SceneConfig(SIZE, motion=5.0, seed=1))
    assert not torch.equal(other.textures, generator.textures)
    assert not torch.equal(other.shapes, generator.shapes)


def test_the_background_moves_by_the_length_that_was_asked_for():
    generator = FlowGenerator(SceneConfig(SIZE, shapes=(0, 0), motion=6.0, rotation_scale=0.0, shear_scale=0.0))
    pairs = generator.generate(range(600))
    assert (pairs.forward - pairs.forward[:, :, :1, :1]).abs().max() < 1e-3  # the same everywhere
    assert pairs.forward[:, :, 0, 0].norm(dim=1).mean() == pytest.approx(6.0, rel=0.12)


def test_a_shape_moves_as_much_again_on_top_of_the_background():
    layers = draw_layers(
        SceneRandom(range(3000), torch.device("cpu")), SceneConfig(SIZE, shapes=(1, 2), motion=4.0), 3, 3
    )
    background, shape = layers.shift[:, 0], layers.shift[:, 1]
    assert background.norm(dim=-1).mean() == pytest.approx(4.0, rel=0.1)
    assert (shape - background).norm(dim=-1).mean() == pytest.approx(4.0, rel=0.1)
    assert abs(((shape - background) * background).sum(-1).mean()) < 1.5  # whatever way that moves


def test_bending_never_folds_a_layer():
    """Neighboring places would change their order where amplitude * wave exceeds 1; it stays at half of that."""
    layers = draw_layers(
        SceneRandom(range(300), torch.device("cpu")), SceneConfig(SIZE, motion=30.0, shear_scale=5.0), 3, 3
    )
    steepness = layers.amplitude.norm(dim=-1) * layers.wave.norm(dim=-1)
    assert steepness.max() == pytest.approx(0.5, rel=1e-4)


def test_a_heavier_tail_has_the_same_mean_but_longer_motions():
    plain, heavy = (
        drawn(range(3000), shapes=(0, 0), motion_exponent=exponent).shift.norm(dim=-1) for exponent in (1.0, 2.0)
    )
    assert float(heavy.mean()) == pytest.approx(float(plain.mean()), rel=0.15)
    assert heavy.quantile(0.99) > 1.8 * plain.quantile(0.99)


def test_what_does_not_move_is_nowhere_hidden():
    generator = FlowGenerator(SceneConfig(SIZE, motion=0.0))
    pairs = generator.generate(range(4))
    assert pairs.forward.abs().max() < 1e-3
    assert not pairs.occluded.any()
    torch.testing.assert_close(pairs.frames[:, 0], pairs.frames[:, 1], atol=1e-3, rtol=0)


def test_content_that_leaves_the_frame_is_hidden():
    generator = FlowGenerator(SceneConfig(SIZE, shapes=(0, 0), motion=8.0, rotation_scale=0.0, shear_scale=0.0))
    pairs = generator.generate(range(6))
    y, x = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    for flow, occluded in zip(pairs.forward, pairs.occluded, strict=True):
        end_x, end_y = x + flow[0], y + flow[1]
        outside = (end_x < -0.5) | (end_x > SIZE[1] - 0.5) | (end_y < -0.5) | (end_y > SIZE[0] - 0.5)
        assert (occluded == outside).float().mean() > 0.999


def test_a_shape_in_front_hides_what_it_moves_over(generator, monkeypatch):
    generator = FlowGenerator(SceneConfig((60, 60), shapes=(1, 1), motion=0.0))
    draw = draw_layers

    def one_disc(random, scenes, textures, shapes):
        layers = draw(random, scenes, textures, shapes)
        layers.shift[:, 1] = torch.tensor([15.0, 0.0])
        layers.center[:, 1] = torch.tensor([20.0, 30.0])
        layers.extent[:, 1] = 20.0
        layers.shape_map[:, 1] = torch.tensor([[0.1, 0, -2.0], [0, 0.1, -3.0]])
        return layers

    monkeypatch.setattr(flow_generator, "draw_layers", one_disc)
    axis = torch.arange(128) + 0.5 - 64
    generator.shapes = ((40 - torch.hypot(axis[:, None], axis)) / 128).half().expand(len(generator.shapes), -1, -1)
    pairs = generator.generate([0])
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    disc, moved = (torch.hypot(x - middle, y - 30.0) < 40 / 128 * 20 for middle in (20, 35))
    assert ((pairs.forward[0, 0] > 14) == disc).float().mean() > 0.995
    assert (pairs.occluded[0] == (moved & ~disc)).float().mean() > 0.995
    assert (pairs.uncovered[0] == (disc & ~moved)).float().mean() > 0.995
    assert 0.02 < disc.float().mean() < 0.05


@pytest.mark.parametrize("field", ["blur", "fog", "lighting"])
def test_options_change_the_frames_but_not_the_flow(generator, field):
    changed = FlowGenerator(SceneConfig(SIZE, motion=5.0, **{field: 1.0}))
    pairs, plain = changed.generate([0, 1, 2]), generator.generate([0, 1, 2])
    torch.testing.assert_close(pairs.forward, plain.forward)
    assert torch.equal(pairs.occluded, plain.occluded)
    difference = (pairs.frames - plain.frames).abs().mean((2, 3, 4))
    assert (difference[:, 1] > 0.002).all()
    assert (difference[:, 0] > 0.002).all() == (field != "lighting")
    assert 0 <= pairs.frames.min() <= pairs.frames.max() <= 1


def test_motion_blur_is_the_mean_of_moments(generator):
    layers = draw_layers(SceneRandom([4], torch.device("cpu")), generator.scenes, 12, 24)
    blurred, _ = generator.render(layers, (0.0, 1.0), torch.tensor([True]))
    moments = [generator.render_sharp(layers, (time,))[0].color_BCP for time in (-0.25, -0.125, 0.0, 0.125, 0.25)]
    torch.testing.assert_close(blurred.color_BCP, sum(moments) / 5)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("size", (4, 100), "height and width, at least 8"),
        ("size", (100,), r"of type tuple\[int, int\]"),
        ("shapes", (3, 2), "minimum and maximum"),
        ("motion", -1.0, "at least 0"),
        ("motion_exponent", 0.0, "above 0"),
        ("fog", 1.5, "at least 0 and at most 1"),
        ("seed", -1, "at least 0"),
    ],
)
def test_what_scenes_cannot_be(field, value, expected):
    with pytest.raises(PerceiversError, match=rf"scenes\.{field} = .* is not allowed: it must be {expected}"):
        SceneConfig(**{field: value})


def test_pairs_are_written_as_flyingchairs_and_kept(tmp_path):
    scenes = SceneConfig((16, 24), shapes=(1, 2), motion=2.0, seed=3)
    write_scenes(scenes, tmp_path / "pairs", 3)
    before = (tmp_path / "pairs" / "00002_img1.png").stat().st_mtime_ns
    write_scenes(scenes, tmp_path / "pairs", 40)
    assert (tmp_path / "pairs" / "00002_img1.png").stat().st_mtime_ns == before
    training, validation = (open_pairs(tmp_path / "pairs", split=split) for split in ("training", "validation"))
    assert (len(training), validation.names) == (38, ["00020", "00040"])
    made = FlowGenerator(scenes).generate([3 * 2**20 + 2])
    pair = training[1]
    assert (pair.frames / 255 - made.frames[0]).abs().max() <= 0.5 / 255 + 1e-4
    torch.testing.assert_close(pair.flow, made.forward[0])
    assert torch.equal(pair.occluded, made.occluded[0])


def test_pairs_are_not_written_among_other_files_or_other_scenes(tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(PerceiversError, match="has other files"):
        write_scenes(SceneConfig((16, 24)), tmp_path, 1)
    write_scenes(SceneConfig((16, 24)), tmp_path / "pairs", 1)
    with pytest.raises(PerceiversError, match=r"has pairs of other scenes, see .*scenes\.json"):
        write_scenes(SceneConfig((16, 24), motion=3.0), tmp_path / "pairs", 2)
