import pytest
import torch
from torch import nn

from perceivers import FourierPositions, LearnedPositions, PerceiversError
from perceivers.adapters import ConvStem, ImageInput, Patches
from perceivers.adapters.image import scale_colors


def test_pixels_are_normalized_and_get_their_positions():
    adapter = ImageInput((4, 6), Patches(), FourierPositions((4, 6), 2), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    images = torch.rand(2, 3, 4, 6)
    x = adapter(images).x_BMC
    assert x.shape == (2, 24, adapter.channels)
    pixel = (images[1, :, 2, 5] - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.6, 0.7])
    torch.testing.assert_close(x[1, 2 * 6 + 5, :3], pixel)
    torch.testing.assert_close(x[1, :, 3:], adapter.positions())


def test_bytes_and_floats_are_the_same_image():
    adapter = ImageInput((4, 4), Patches(), FourierPositions((4, 4), 2))
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(adapter(pixels).x_BMC, adapter(pixels.float() / 255).x_BMC)


def test_whole_numbers_for_mean_and_std_do_not_cut_pixels():
    adapter = ImageInput((4, 4), Patches(), FourierPositions((4, 4), 2), mean=[0, 0, 0], std=[1, 1, 1])
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(adapter(images).x_BMC[1, 5, :3], images[1, :, 1, 1])


def test_patches_hold_their_pixels():
    image = torch.arange(2 * 4 * 6).view(1, 2, 4, 6).float()
    patches = Patches(2, in_channels=2)(image)
    assert patches.shape == (1, 2, 3, 8)
    want = image[0, :, 2:4, 4:6].permute(1, 2, 0).flatten()  # rows, columns, colors
    assert torch.equal(patches[0, 1, 2], want)


def test_projected_pixels_are_a_1x1_convolution():
    features = Patches(1, 3, 16)
    convolution = nn.Conv2d(3, 16, 1)
    convolution.load_state_dict(
        {"weight": features.projection.weight[:, :, None, None], "bias": features.projection.bias}
    )
    images = torch.rand(2, 3, 5, 4)
    torch.testing.assert_close(features(images), convolution(images).movedim(1, -1))


@pytest.mark.parametrize(("size", "grid"), [((16, 16), (4, 4)), ((18, 15), (5, 4)), ((7, 33), (2, 9))])
def test_convolution_gives_a_quarter_of_each_side(size, grid):
    stem = ConvStem(8).eval()
    features = stem(torch.rand(2, 3, *size))
    assert features.shape == (2, *grid, 8)
    assert features.is_contiguous()  # as the layout is channels-last, nothing is copied
    assert stem.grid(*size) == grid


def test_convolution_is_placed_as_in_the_original():
    """An even size is padded by one more below and to the right: window 0 starts two pixels before the image."""
    stem = ConvStem(1, 1).eval()
    nn.init.zeros_(stem.convolution.weight)
    stem.convolution.weight.data[0, 0, 2, 2] = 1.0  # window i now reads pixel 2 i
    image = torch.arange(64).view(1, 1, 8, 8).float()
    scale = (1 + stem.norm.eps) ** -0.5
    # Pooling windows of 3 at 0 and 2, with one place of padding at the end, over pixels 0, 2, 4, 6 of each side.
    torch.testing.assert_close(stem(image)[0, :, :, 0], torch.tensor([[36.0, 38.0], [52.0, 54.0]]) * scale)


def test_wrong_images_are_refused():
    adapter = ImageInput((4, 4), Patches(2), LearnedPositions((2, 2), 8))
    with pytest.raises(PerceiversError, match=r"shape \(2, 1, 4, 4\) were given, but \[batch, 3 colors"):
        adapter(torch.rand(2, 1, 4, 4))
    with pytest.raises(PerceiversError, match=r"shape \(3, 4, 4\)"):
        adapter(torch.rand(3, 4, 4))
    with pytest.raises(PerceiversError, match="4 x 5 pixels cannot be cut into patches of 2 x 2"):
        adapter(torch.rand(2, 3, 4, 5))
    with pytest.raises(PerceiversError, match=r"grid of \(2, 2\) only, but the data has \(4, 4\)"):
        adapter(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_overlapping_patches_are_those_around_every_pixel(size):
    image = torch.rand(2, 2, 4, 5)
    features = Patches(size, in_channels=2, overlapping=True)
    patches = features(image)
    assert patches.shape == (2, *features.grid(4, 5), 2 * size**2) == (2, 4, 5, 2 * size**2)
    before = (size - 1) // 2  # of an even size one more stands behind
    for row in range(4):
        for column in range(5):
            values = []
            for y in range(row - before, row - before + size):
                for x in range(column - before, column - before + size):
                    inside = 0 <= y < 4 and 0 <= x < 5
                    values += [image[1, color, y, x].item() if inside else 0.0 for color in range(2)]
            torch.testing.assert_close(patches[1, row, column], torch.tensor(values))


@pytest.mark.parametrize("padding", ["same", "transformers"])
def test_the_grid_of_a_convolution_is_that_of_its_output(padding):
    stem = ConvStem(2, 1, padding).eval()
    for height, width in [*zip(range(31, 41), range(40, 30, -1), strict=True), (224, 33)]:
        assert stem(torch.rand(1, 1, height, width)).shape == (1, *stem.grid(height, width), 2)
    assert stem.grid(224, 224) == {"same": (56, 56), "transformers": (55, 55)}[padding]


def test_a_convolution_of_the_port_is_padded_evenly():
    stem = ConvStem(3, 2, "port").eval()
    image = torch.rand(1, 2, 17, 20)
    convolved = nn.functional.conv2d(image, stem.convolution.weight, stride=2, padding=3)
    want = nn.functional.max_pool2d(stem.norm(convolved).relu(), 3, 2)
    torch.testing.assert_close(stem(image), want.movedim(1, -1))


@pytest.mark.parametrize(
    ("dtype", "top"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.bool, 1), (torch.float64, 1)]
)
def test_colors_of_any_type_are_scaled(dtype, top):
    assert scale_colors(torch.tensor([0, top]).to(dtype)).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64])
def test_other_integers_and_floats_up_to_255_are_refused(dtype):
    with pytest.raises(
        PerceiversError, match=rf"colors of {dtype} were given: give torch.uint8 from 0 to 255, or floats"
    ):
        scale_colors(torch.tensor([0, 100]).to(dtype))
    with pytest.raises(PerceiversError, match=r"colors of up to 255 were given: give floats from 0 to 1"):
        scale_colors(torch.tensor([0.0, 255.0]))
    assert scale_colors(torch.full((2,), 255.0, device="meta")).device.type == "meta"
