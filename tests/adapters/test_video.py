import pytest
import torch

from perceivers import FourierPositions, InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import VideoInput, VideoOutput

GRID = (2, 2, 3)  # of patches of 2 frames, 2 rows and 3 columns
FRAMES, HEIGHT, WIDTH = 4, 4, 9


@pytest.fixture
def adapter():
    return VideoInput((2, 2, 3), FourierPositions(GRID, 2))


def test_patches_hold_time_rows_columns_and_colors_and_their_place(adapter):
    video = torch.rand(2, FRAMES, 3, HEIGHT, WIDTH)
    array = adapter(video)
    assert array.grid == GRID
    assert array.x_BMC.shape == (2, 12, adapter.channels) == (2, 12, 36 + 3 * 5)
    t, y, x = 1, 0, 2
    values = [
        video[1, 2 * t + frame, color, 2 * y + row, 3 * x + column]
        for frame in range(2)
        for row in range(2)
        for column in range(3)
        for color in range(3)
    ]
    element = array.x_BMC[1, (t * 2 + y) * 3 + x]
    assert torch.equal(element[:36], torch.stack(values))
    assert element[36:39].tolist() == [1, -1, 1]
    assert torch.equal(array.x_BMC[0, :, 36:], adapter.positions())


def test_bytes_and_floats_are_the_same_video(adapter):
    video = torch.randint(256, (1, FRAMES, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    torch.testing.assert_close(adapter(video).x_BMC, adapter(video.float() / 255).x_BMC)


def test_a_patch_with_a_real_frame_is_real(adapter):
    mask = torch.tensor([[False, True, False, False], [True, True, True, True]])
    array = adapter(InputArray(torch.rand(2, FRAMES, 3, HEIGHT, WIDTH), mask))
    assert array.mask_BM.tolist() == [[True] * 6 + [False] * 6, [True] * 12]


def test_longer_and_larger_videos_are_taken(adapter):
    array = adapter(torch.rand(1, 6, 3, 8, 6))
    assert array.grid == (3, 4, 2)
    assert array.x_BMC.shape[1] == 24


def model():
    model = PerceiverIO(
        {"video": VideoInput((2, 2, 3), FourierPositions(GRID, 2), in_channels=2)},
        {"video": VideoOutput(FourierPositions((3, 4, 5), 2), in_channels=2)},
        latents=4,
        channels=16,
        depth=1,
        heads=2,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_a_pixel_stands_where_its_query_asked():
    chosen = model()
    encoded = chosen.encode({"video": torch.rand(2, FRAMES, 2, HEIGHT, WIDTH)})
    video = chosen.decode(encoded)["video"]
    assert video.shape == (2, 3, 2, 4, 5)
    position = chosen.outputs["video"].positions().view(3, 4, 5, -1)[2, 1, 3]
    y_BOE = chosen.decoder(position.expand(2, 1, -1), encoded.latents)
    torch.testing.assert_close(video[:, 2, :, 1, 3], chosen.heads["video"](y_BOE)[:, 0])


@pytest.mark.parametrize("points", [[3, 0, 59, 3], [[3, 0], [59, 1]]])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_some_pixels_are_those_of_the_full_video(points, max_memory):
    chosen = model()
    encoded = chosen.encode({"video": torch.rand(2, FRAMES, 2, HEIGHT, WIDTH)})
    points = torch.tensor(points)
    full = chosen.decode(encoded, max_memory=None)["video"].movedim(2, -1).flatten(1, 3)
    some = chosen.decode(encoded, {"video": points}, max_memory)["video"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(2, -1)[..., None], 1))


def test_wrong_videos_are_refused(adapter):
    with pytest.raises(
        PerceiversError, match=r"video of shape \(1, 4, 1, 4, 9\) was given, but \[batch, frames, 3 col"
    ):
        adapter(torch.rand(1, 4, 1, 4, 9))
    with pytest.raises(PerceiversError, match=r"video of shape \(4, 3, 4, 9\) was given"):
        adapter(torch.rand(4, 3, 4, 9))
    for frames, height, width in ((3, 4, 9), (4, 5, 9), (4, 4, 10)):
        with pytest.raises(PerceiversError, match=f"{frames} frames of {height} x {width} pixels cannot be cut into"):
            adapter(torch.rand(1, frames, 3, height, width))
