import pytest
import torch

from perceivers import FourierPositions, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, FlowOutput, FramePairInput

SIZE = (4, 6)


@pytest.fixture
def adapter():
    return FramePairInput(SIZE, FourierPositions(SIZE, 3), channels=5)


@pytest.fixture
def model(adapter):
    model = PerceiverIO(
        {"frames": adapter}, {"flow": FlowOutput("frames", 0.5)}, 4, 16, 1, heads=2, query_residual=False
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("size", [SIZE, (5, 7), (3, 9)])
def test_elements_are_the_pixels_around_in_both_frames_projected_and_their_place(adapter, size):
    height, width = size
    frames = torch.rand(2, 2, 3, height, width)
    array = adapter(frames)
    assert array.grid == size
    assert array.x_BMC.shape == (2, height * width, 5 + 2 * 7)
    projection = adapter.image.features.projection
    for row, column in [(0, 0), (1, 2), (height - 1, width - 1), (height - 1, 0)]:
        values = []
        for y in (row - 1, row, row + 1):
            for x in (column - 1, column, column + 1):
                inside = 0 <= y < height and 0 <= x < width
                for frame in (0, 1):
                    values += [2 * frames[1, frame, c, y, x] - 1 if inside else torch.tensor(0.0) for c in range(3)]
        element = array.x_BMC[1, row * width + column]
        torch.testing.assert_close(element[:5], projection(torch.stack(values)))
        place = torch.tensor([-1 + 2 * row / (height - 1), -1 + 2 * column / (width - 1)])
        torch.testing.assert_close(element[5:7], place)
        angles = torch.pi * place[:, None] * torch.tensor([[1.0, 1.5, 2.0], [1.0, 2.0, 3.0]])  # of the training size
        torch.testing.assert_close(element[7:13], angles.flatten().sin(), atol=1e-5, rtol=0)
        torch.testing.assert_close(element[13:], angles.flatten().cos(), atol=1e-5, rtol=0)


def test_bytes_and_floats_are_the_same_frames(adapter):
    frames = torch.randint(256, (1, 2, 3, *SIZE), dtype=torch.uint8)
    torch.testing.assert_close(adapter(frames).x_BMC, adapter(frames.float() / 255).x_BMC)


@pytest.mark.parametrize("size", [SIZE, (5, 7), (9, 3)])
def test_flow_is_what_the_query_of_each_pixel_reads_scaled(model, size):
    frames = torch.rand(2, 2, 3, *size)
    encoded = model.encode({"frames": frames})
    flow = model.decode(encoded)["flow"]
    assert flow.shape == (2, 2, *size)
    y_BOE = model.heads["flow"](model.decoder(model.inputs["frames"](frames).x_BMC, encoded.z_BND))
    row, column = size[0] - 1, 1
    torch.testing.assert_close(flow[1, :, row, column], 0.5 * y_BOE[1, row * size[1] + column])


@pytest.mark.parametrize("points", [[3, 0, 34, 3], [[3, 0, 7], [34, 1, 8]]])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_some_pixels_are_those_of_the_full_flow(model, points, max_memory):
    encoded = model.encode({"frames": torch.rand(2, 2, 3, 5, 7)})
    points = torch.tensor(points)
    full = model.decode(encoded, max_memory=None)["flow"].flatten(2).movedim(1, 2)
    some = model.decode(encoded, {"flow": points}, max_memory)["flow"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(2, -1)[..., None], 1))


def test_wrong_frames_are_refused(adapter, model):
    with pytest.raises(PerceiversError, match=r"frames of shape \(1, 3, 3, 4, 6\) were given, but \[batch, 2 frames"):
        adapter(torch.rand(1, 3, 3, 4, 6))
    with pytest.raises(PerceiversError, match=r"frames of shape \(2, 3, 4, 6\) were given"):
        adapter(torch.rand(2, 3, 4, 6))
    with pytest.raises(PerceiversError, match="points of output 'flow' go from 0 to 24, but it has points 0 to 23"):
        model({"frames": torch.rand(1, 2, 3, *SIZE)}, {"flow": torch.tensor([0, 24])})


def test_a_flow_without_its_frames_is_refused():
    with pytest.raises(PerceiversError, match="the flow is that of an input 'frames', which the model does not have"):
        PerceiverIO({"x": ArrayInput(3)}, {"flow": FlowOutput("frames")}, 4, 16, 1)
