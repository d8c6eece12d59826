import copy
import math

import pytest
import torch
import torch.nn.functional as F

import perceivers
from perceivers import FourierPositions, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, ConvStem, Patches
from perceivers.flow.adapter import FlowOutput, FramePairInput, upsample
from perceivers.flow.estimate import estimate_flow
from perceivers.flow.model import OpticalFlowConfig
from perceivers.released.export import to_transformers
from tests.support.models import TILE, TRUNK, optical

SIZE = (4, 6)
SIZES = [TILE, (21, 30), (9, 33)]  # that of training, and others

PIXELS = {
    "3x3": {},
    "3x3, separate": {"frames": "separate"},
    "1x1": {"patch_size": 1},
    "1x1, separate": {"patch_size": 1, "frames": "separate"},
}
QUARTERS = {
    "conv": {"downsampling": "conv"},
    "conv, separate": {"downsampling": "conv", "frames": "separate"},
}


def each(variants):
    return pytest.mark.parametrize("model", variants, indirect=True)


@pytest.fixture
def model(request):
    """A tiny model of a variant, the released one if none is named."""
    model = optical(**(PIXELS | QUARTERS)[getattr(request, "param", "3x3")])
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer += torch.rand_like(buffer)
    return model


@pytest.fixture
def adapter():
    return FramePairInput(SIZE, Patches(3, 6, 5, overlapping=True), FourierPositions(SIZE, 3))


def fourier(place_G, resolution, bands=3):
    """Positions, sines of all dimensions, cosines of all dimensions."""
    angles = [
        math.pi * p * f for p, n in zip(place_G, resolution, strict=True) for f in torch.linspace(1, n / 2, bands)
    ]
    return torch.tensor([*place_G, *map(math.sin, angles), *map(math.cos, angles)])


def around(frame_CYX, row, column):
    """The colors, as the model sees them, of the 3x3 pixels around one: zeros beyond the border."""
    height, width = frame_CYX.shape[1:]
    return [
        2 * frame_CYX[:, y, x] - 1 if 0 <= y < height and 0 <= x < width else torch.zeros(3)
        for y in (row - 1, row, row + 1)
        for x in (column - 1, column, column + 1)
    ]


@pytest.mark.parametrize("size", [SIZE, (5, 7), (3, 9)])
def test_elements_are_the_pixels_around_in_both_frames_projected_and_their_place(adapter, size):
    height, width = size
    frames = torch.rand(2, 2, 3, height, width)
    array = adapter(frames)
    assert array.grid == size
    assert array.x_BMC.shape == (2, height * width, 5 + 2 * 7)
    for row, column in [(0, 0), (1, 2), (height - 1, width - 1), (height - 1, 0)]:
        pairs = zip(around(frames[1, 0], row, column), around(frames[1, 1], row, column), strict=True)
        projected = adapter.image.features.projection(torch.cat([colors for pair in pairs for colors in pair]))
        place = (-1 + 2 * row / (height - 1), -1 + 2 * column / (width - 1))
        expected = torch.cat([projected, fourier(place, SIZE)])  # frequencies are those of the training size
        torch.testing.assert_close(array.x_BMC[1, row * width + column], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [SIZE, (5, 7), (3, 9)])
def test_separate_frames_are_projected_alike_and_placed_in_time_the_first_before_the_second(size):
    height, width = size
    adapter = FramePairInput(SIZE, Patches(3, 3, 5, overlapping=True), FourierPositions((2, *SIZE), 3), "separate")
    frames = torch.rand(2, 2, 3, height, width)
    array = adapter(frames)
    assert array.grid == size
    assert array.x_BMC.shape == (2, 2 * height * width, 5 + 3 * 7)
    for time in (0, 1):
        for row, column in [(0, 0), (1, 2), (height - 1, width - 1), (height - 1, 0)]:
            projected = adapter.image.features.projection(torch.cat(around(frames[1, time], row, column)))
            place = (-1 + 2 * time, -1 + 2 * row / (height - 1), -1 + 2 * column / (width - 1))
            expected = torch.cat([projected, fourier(place, (2, *SIZE))])
            element = array.x_BMC[1, (time * height + row) * width + column]
            torch.testing.assert_close(element, expected, atol=1e-5, rtol=1e-5)


def test_a_convolution_reads_both_frames_at_once_or_each_by_itself():
    frames = torch.rand(2, 2, 3, 10, 13)
    grid = (3, 4)
    together = FramePairInput((10, 13), ConvStem(5, 6), FourierPositions(grid, 3)).eval()
    array = together(frames)
    assert array.grid == (10, 13)
    seen = together.image.features(2 * frames.flatten(1, 2) - 1).flatten(1, 2)
    torch.testing.assert_close(array.x_BMC, torch.cat([seen, together.image.positions().expand(2, -1, -1)], -1))

    apart = FramePairInput((10, 13), ConvStem(5, 3), FourierPositions((2, *grid), 3), "separate").eval()
    array = apart(frames)
    assert array.grid == (10, 13)
    seen = torch.cat([apart.image.features(2 * frames[:, time] - 1).flatten(1, 2) for time in (0, 1)], 1)
    torch.testing.assert_close(array.x_BMC, torch.cat([seen, apart.image.positions().expand(2, -1, -1)], -1))


def test_a_batch_normalization_takes_its_statistics_over_both_frames():
    adapter = FramePairInput((9, 9), ConvStem(5, 3), FourierPositions((2, 3, 3), 1), "separate").train()
    frames = torch.rand(2, 2, 3, 9, 9)
    frames[:, 1] /= 4
    stem = adapter.image.features
    adapter(frames)
    padded = F.pad(2 * frames.flatten(0, 1) - 1, (3, 3, 3, 3))
    mean = stem.convolution(padded).mean((0, 2, 3))
    torch.testing.assert_close(stem.norm.running_mean, 0.1 * mean)
    assert stem.norm.num_batches_tracked == 1


@pytest.mark.parametrize("frames", ["concatenated", "separate"])
def test_what_a_convolution_learns_holds_in_evaluation(frames):
    torch.manual_seed(0)
    config = OpticalFlowConfig(
        image_size=(12, 16), bands=2, downsampling="conv", frames=frames, feature_channels=8, **TRUNK
    )
    model = config.build()
    data, truth = {"frames": torch.rand(2, 2, 3, 12, 16)}, torch.randn(2, 2, 3, 4).repeat_interleave(4, 2)
    truth = truth.repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(100):
        loss = F.mse_loss(model(data)["flow"], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        assert F.mse_loss(model.eval()(data)["flow"], truth) < 1.1 * losses[-1]


@each(PIXELS | QUARTERS)
def test_bytes_and_floats_are_the_same_frames(model):
    frames = torch.randint(256, (1, 2, 3, *TILE), dtype=torch.uint8)
    torch.testing.assert_close(model({"frames": frames}), model({"frames": frames.float() / 255}))


def answers(model, frames):
    """What the elements of the first frame read from the latents; [B, rows * columns, channels of the output]."""
    encoded = model.encode({"frames": frames})
    x_BMC = model.inputs["frames"](frames).x_BMC
    first = x_BMC.shape[1] // (2 if model.inputs["frames"].separate else 1)
    return model.heads["flow"](model.decoder(x_BMC[:, :first], encoded.latents))


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@each(PIXELS)
def test_flow_is_what_the_query_of_each_pixel_of_the_first_frame_reads_scaled(model, size):
    frames = torch.rand(2, 2, 3, *size)
    full = model({"frames": frames})["flow"]
    assert full.shape == (2, 2, *size)
    expected = 0.2 * answers(model, frames).transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(full, expected, atol=1e-5, rtol=1e-4)


def mixed(coarse_2yx, scores_yx9ff):
    """Pixel by pixel the mean of the nine flows around, the nearest beyond the border, weighted with softmax."""
    rows, columns, _, factor, _ = scores_yx9ff.shape
    result = torch.empty(2, rows * factor, columns * factor)
    for y in range(rows * factor):
        for x in range(columns * factor):
            row, column = y // factor, x // factor
            exponentials = [math.exp(score) for score in scores_yx9ff[row, column, :, y % factor, x % factor]]
            places = [(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
            flows = [coarse_2yx[:, min(max(a, 0), rows - 1), min(max(b, 0), columns - 1)] for a, b in places]
            weighted = [e / sum(exponentials) * f for e, f in zip(exponentials, flows, strict=True)]
            result[:, y, x] = torch.stack(weighted).sum(0)
    return result


@pytest.mark.parametrize(("rows", "columns", "factor"), [(3, 4, 2), (1, 5, 3), (2, 1, 4), (4, 3, 1)])
def test_every_fine_pixel_mixes_the_nine_coarse_flows_around_it(rows, columns, factor):
    coarse_B2yx, scores_Byx9ff = torch.randn(2, 2, rows, columns), torch.randn(2, rows, columns, 9, factor, factor)
    fine = upsample(coarse_B2yx, scores_Byx9ff)
    assert fine.shape == (2, 2, rows * factor, columns * factor)
    torch.testing.assert_close(fine[1], mixed(coarse_B2yx[1], scores_Byx9ff[1]))


def test_flow_that_is_the_same_everywhere_stays_the_same_up_to_the_border():
    coarse_B2yx = torch.tensor([30.0, -7.0])[None, :, None, None].expand(1, 2, 3, 2)
    fine = upsample(coarse_B2yx, 3 * torch.randn(1, 3, 2, 9, 4, 4))
    torch.testing.assert_close(fine, torch.tensor([30.0, -7.0])[None, :, None, None].expand(1, 2, 12, 8))


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@each(QUARTERS)
def test_upsampled_flow_is_mixed_from_what_the_queries_read_and_cut_to_the_frame(model, size):
    frames = torch.rand(2, 2, 3, *size)
    full = model({"frames": frames})["flow"]
    assert full.shape == (2, 2, *size)
    rows, columns = math.ceil(size[0] / 4), math.ceil(size[1] / 4)
    y_yxE = answers(model, frames)[1].unflatten(0, (rows, columns))
    coarse_2yx, scores_yx9ff = 0.2 * y_yxE[..., :2].movedim(-1, 0), 0.25 * y_yxE[..., 2:].unflatten(-1, (9, 4, 4))
    expected = mixed(coarse_2yx, scores_yx9ff)[:, : size[0], : size[1]]
    torch.testing.assert_close(full[1], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_model_mixes_all_nine_flows(monkeypatch):
    """Were one of them to have all the weight, the others would get no gradient."""
    given = []
    monkeypatch.setattr("perceivers.flow.adapter.upsample", lambda *arrays: given.append(arrays) or upsample(*arrays))
    settings = {"image_size": (32, 48), "latents": 16, "channels": 64, "depth": 2, "heads": 4}
    model = OpticalFlowConfig(downsampling="conv", **settings).build()
    model({"frames": torch.rand(1, 2, 3, 32, 48)})
    weights = given[0][1].softmax(3)
    assert weights.min() > 0.02
    assert weights.max() < 0.4


@pytest.mark.parametrize("points", [[3, 0, 615, 3], [[3, 0, 7], [615, 1, 8]]])
@pytest.mark.parametrize("max_memory", [None, 1])
@each(PIXELS)
def test_some_pixels_are_those_of_the_full_flow(model, points, max_memory):
    encoded = model.encode({"frames": torch.rand(2, 2, 3, *TILE)})
    points = torch.tensor(points)
    full = model.decode(encoded, max_memory=None)["flow"].flatten(2).movedim(1, 2)
    some = model.decode(encoded, {"flow": points}, max_memory)["flow"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(2, -1)[..., None], 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_memory", [None, 1])
@each(QUARTERS)
def test_pixels_of_upsampled_flow_are_refused(model, max_memory):
    with pytest.raises(PerceiversError, match=r"upsampled flow cannot be decoded at indices: .* Decode all"):
        model({"frames": torch.rand(1, 2, 3, *TILE)}, {"flow": torch.tensor([3, 1])}, max_memory=max_memory)


def gradients(model, frames, target, max_memory):
    model.zero_grad()
    F.mse_loss(model({"frames": frames}, max_memory=max_memory)["flow"], target).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@each(PIXELS | QUARTERS)
def test_every_weight_learns_whether_or_not_decoding_is_bounded_in_memory(model):
    frames, target = torch.rand(2, 2, 3, *TILE), 10 * torch.randn(2, 2, *TILE)
    model.eval()  # in training a batch normalization would be moved by each pass
    plain, bounded = (gradients(model, frames, target, memory) for memory in (None, 50_000))
    for name, gradient in plain.items():
        assert gradient.isfinite().all(), name
        assert gradient.any() or name.endswith("key.bias"), name  # which adds the same to all scores of a query
    torch.testing.assert_close(bounded, plain, rtol=1e-3, atol=1e-5)


@each(PIXELS | QUARTERS)
def test_a_saved_model_answers_the_same(model, tmp_path):
    model.save(tmp_path)
    frames = {"frames": torch.rand(1, 2, 3, *TILE)}
    loaded = copy.deepcopy(perceivers.load(tmp_path))  # products round by how weights lie in memory; copies lie alike
    assert torch.equal(loaded(frames)["flow"], model(frames)["flow"])


@torch.no_grad()
@each(PIXELS | QUARTERS)
def test_larger_frames_are_computed_in_tiles(model):
    frames = torch.rand(2, 3, TILE[0], 50)
    whole = estimate_flow(model, *frames, overlap=6)
    left, right = (model({"frames": frames[None, ..., x : x + TILE[1]]})["flow"][0] for x in (0, 22))
    torch.testing.assert_close(whole[..., :22], left[..., :22], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole[..., 28:], right[..., 6:], atol=1e-5, rtol=1e-4)


def test_wrong_frames_are_refused(adapter, model):
    with pytest.raises(PerceiversError, match=r"frames of shape \(1, 3, 3, 4, 6\) were given, but \[batch, 2 frames"):
        adapter(torch.rand(1, 3, 3, 4, 6))
    with pytest.raises(PerceiversError, match=r"frames of shape \(2, 3, 4, 6\) were given"):
        adapter(torch.rand(2, 3, 4, 6))
    with pytest.raises(PerceiversError, match="indices of output 'flow' go from 0 to 24, but must be from 0 to 23"):
        model({"frames": torch.rand(1, 2, 3, *SIZE)}, {"flow": torch.tensor([0, 24])})


def test_the_second_frame_has_no_points():
    model = optical(frames="separate")
    with pytest.raises(PerceiversError, match="indices of output 'flow' go from 24 to 24, but must be from 0 to 23"):
        model({"frames": torch.rand(1, 2, 3, *SIZE)}, {"flow": torch.tensor([24])})


def test_features_of_other_colors_are_refused():
    for features, frames, colors in ((Patches(1, 3, 5), "concatenated", 6), (ConvStem(5, 6), "separate", 3)):
        with pytest.raises(PerceiversError, match=f"colors do not fit frames that are {frames}: .* for {colors}"):
            FramePairInput(SIZE, features, FourierPositions(SIZE, 1), frames)
    with pytest.raises(
        PerceiversError, match="frames = 'both' is not allowed: it must be 'concatenated' or 'separate'"
    ):
        FramePairInput(SIZE, Patches(1, 3, 5), FourierPositions(SIZE, 1), "both")


@pytest.mark.parametrize(("upsampling", "needed"), [(None, "10 x 13"), (2, "5 x 7")])
def test_upsampling_that_does_not_lead_from_the_elements_to_the_pixels_is_refused(upsampling, needed):
    frames = FramePairInput((10, 13), ConvStem(5, 6), FourierPositions((3, 4), 1))
    with pytest.raises(PerceiversError, match=f"upsampling = {upsampling} .* {needed} .* but the input makes 3 x 4"):
        PerceiverIO({"frames": frames}, {"flow": FlowOutput("frames", upsampling=upsampling)}, 4, 16, 1)


def test_upsampling_below_1_is_refused():
    with pytest.raises(PerceiversError, match="upsampling = 0 is not allowed: it must be at least 1, or None"):
        FlowOutput("frames", upsampling=0)


def test_a_flow_without_its_frames_is_refused():
    with pytest.raises(PerceiversError, match="the flow is that of an input 'frames', which the model does not have"):
        PerceiverIO({"x": ArrayInput(3)}, {"flow": FlowOutput("frames")}, 4, 16, 1)


def test_a_flow_of_an_input_without_rows_and_columns_is_refused():
    model = PerceiverIO({"x": ArrayInput(3)}, {"flow": FlowOutput("x")}, 4, 16, 1)
    with pytest.raises(PerceiversError, match=r"the input 'x' has no rows and columns, .* its grid is \(7,\)"):
        model({"x": torch.rand(1, 7, 3)})


@each([name for name in PIXELS | QUARTERS if name != "3x3"])
def test_only_the_released_variant_can_be_written_for_transformers(model, tmp_path):
    with pytest.raises(PerceiversError, match=r"transformers has no such model: inputs\.frames"):
        to_transformers(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_upsampled_flow_is_compiled_with_its_gradients():
    """Padding that repeats the border has another memory layout in torch's compiler, which stops where that matters."""
    model = perceivers.create_model(
        "optical_flow_light", image_size=(16, 16), feature_channels=4, bands=2, latents=4, channels=16, depth=1, heads=2
    )
    frames = {"frames": torch.rand(2, 2, 3, 16, 16)}
    gradients = []
    for run in (model, torch.compile(model)):
        model.zero_grad()
        run(frames)["flow"].square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
