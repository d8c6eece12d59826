import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from perceivers import PerceiversError
from perceivers.data.image_files import evaluation_view, read_frame, read_image
from perceivers.images.data import LabeledImages


def both(path):
    """The image as flow and as image classification read it, which is the same."""
    frame_CYX = read_frame(path)
    image = LabeledImages.from_files([path]).read(0, 3)
    assert torch.equal(frame_CYX, torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return frame_CYX


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    pixels_YX = np.zeros((16, 24), np.uint8)
    pixels_YX[:8, :8] = 255
    turned = {
        1: pixels_YX,
        2: np.fliplr(pixels_YX),
        3: np.rot90(pixels_YX, 2),
        4: np.flipud(pixels_YX),
        5: pixels_YX.T,
        6: np.rot90(pixels_YX, -1),
        7: np.rot90(pixels_YX, 2).T,
        8: np.rot90(pixels_YX, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels_YX).convert("RGB").save(tmp_path / f"a{suffix}", exif=exif)
    frame_CYX = both(tmp_path / f"a{suffix}")
    assert ((frame_CYX[0] > 127).numpy() == (turned > 127)).all()


MODES = {
    "1": 1, "L": 200, "LA": (200, 255), "RGB": (10, 200, 90), "RGBA": (10, 200, 90, 255),
    "CMYK": (245, 55, 165, 0), "I;16": 200 * 257,
}  # fmt: skip
EXPECTED = {
    "1": (255, 255, 255),
    "L": (200,) * 3,
    "LA": (200,) * 3,
    "I;16": (200,) * 3,
}


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_read(tmp_path, mode):
    Image.new(mode, (3, 2), MODES[mode]).save(tmp_path / "a.tif")
    assert both(tmp_path / "a.tif")[:, 1, 2].tolist() == list(EXPECTED.get(mode, (10, 200, 90)))


@pytest.mark.parametrize("transparency", [None, 0])
def test_palettes_are_read_on_white(tmp_path, transparency):
    image = Image.new("P", (3, 2))
    image.putpalette([10, 200, 90, 1, 2, 3])
    image.putpixel((2, 1), 1)
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": 0}))
    first = [10, 200, 90] if transparency is None else [255, 255, 255]
    assert both(tmp_path / "a.png")[:, 0, 0].tolist() == first
    assert both(tmp_path / "a.png")[:, 1, 2].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "YCbCr", "HSV"])
def test_decoded_images_of_any_mode_are_converted(mode):
    image = read_image(Image.new(mode, (3, 2)), "x")
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_lab_is_converted(tmp_path):
    rgb = Image.new("RGB", (3, 2), (90, 140, 120))
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.applyTransform(rgb, ImageCms.buildTransform(*profiles, "RGB", "LAB")).save(tmp_path / "a.tif")
    found = both(tmp_path / "a.tif")[:, 0, 0]
    assert (found - torch.tensor([90, 140, 120])).abs().max() <= 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.0, 0.25, 1.0]], np.float32), [0, 64, 255]),
        (np.array([[0, 257 * 64, 65535]], np.uint16), [0, 64, 255]),
        (np.array([[0, 64, 255]], np.uint8), [0, 64, 255]),
    ],
)
def test_gray_levels_of_any_depth_are_scaled(tmp_path, values, expected):
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert both(tmp_path / "a.tif").tolist() == [[expected]] * 3
    assert np.asarray(LabeledImages.from_files([tmp_path / "a.tif"]).read(0, 1)).tolist() == [expected]


@pytest.mark.parametrize(
    "values", [np.float32([[0, 255]]), np.float32([[np.nan, 0]]), np.int32([[0, 255]]), np.int32([[-1, 70000]])]
)
def test_levels_of_an_unknown_range_are_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(PerceiversError, match=r"a\.tif has .* save it with 8 or 16 bits"):
        both(tmp_path / "a.tif")


def test_programs_are_not_run(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(PerceiversError, match=r"a\.png cannot be decoded as an image"):
        both(tmp_path / "a.png")


def test_more_pixels_than_the_limit_are_not_decoded(tmp_path, monkeypatch):
    Image.new("L", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(PerceiversError, match=r"a\.png has 81,000,000 pixels, more than 67,108,864: set PERCEIVERS_"):
        both(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (20, 20)).save(tmp_path / "b.png")
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "399")
    with pytest.raises(PerceiversError, match=r"b\.png has 400 pixels, more than 399"):
        both(tmp_path / "b.png")
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "400")
    assert both(tmp_path / "b.png").shape == (3, 20, 20)


def test_very_thin_images_are_cropped_before_they_are_resized():
    image = Image.fromarray(np.tile(np.arange(100_000, dtype=np.float32)[None] / 1e5 * 255, (1, 1)).astype(np.uint8))
    view = np.asarray(evaluation_view(image, (224, 224), 224 / 256))
    assert view.shape == (224, 224)
    assert abs(view.astype(int) - 127).max() <= 1  # the middle
    assert np.asarray(evaluation_view(image.transpose(Image.Transpose.TRANSPOSE), (224, 224), 1.0)).shape == (224, 224)


def test_content_has_a_name_in_errors():
    with pytest.raises(PerceiversError, match=r"^row 3 of x cannot be decoded as an image"):
        read_image(io.BytesIO(b"no"), "row 3 of x")
