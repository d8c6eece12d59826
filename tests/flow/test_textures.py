import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from perceivers import PerceiversError
from perceivers.flow import textures
from perceivers.flow.textures import SHAPE_SIZE, TEXTURE_SIZE, compute_distances, make_shapes, make_textures


def test_textures_come_with_the_package_and_from_a_seed():
    made = make_textures(None, 6, seed=1)
    assert made.shape == (6, 3, TEXTURE_SIZE, TEXTURE_SIZE)
    assert made.dtype == torch.uint8
    assert torch.equal(made, make_textures(None, 6, seed=1))
    assert not torch.equal(made, make_textures(None, 6, seed=2))
    assert (made.float().std((2, 3)).mean(1) > 3).all()  # none is empty


def test_one_of_three_textures_of_the_package_is_noise(monkeypatch):
    flat = torch.full((3, TEXTURE_SIZE, TEXTURE_SIZE), 7, dtype=torch.uint8)
    monkeypatch.setattr(textures, "make_noise", lambda random: flat)
    assert [bool((texture == 7).all()) for texture in make_textures(None, 6, seed=0)] == [False] * 4 + [True] * 2


def test_textures_are_parts_of_the_images_of_a_folder(tmp_path):
    ramp = np.arange(400, dtype=np.float32) / 399 * 255
    (tmp_path / "below").mkdir()
    Image.fromarray(np.broadcast_to(ramp.astype(np.uint8), (300, 400)).copy()).save(tmp_path / "below" / "a.png")
    made = make_textures(tmp_path, 20, seed=0).float()
    assert made.shape[0] == 20
    assert (made.diff(dim=3) >= 0).all()  # still a ramp to the right
    assert (made.diff(dim=2).abs() <= 1).all()
    span = (made[:, 0, 0, -1] - made[:, 0, 0, 0]) / 255 * 400
    assert 95 < span.min() < 150  # from a third of the shorter side
    assert 250 < span.max() < 301  # to all of it


def test_files_that_cannot_be_read_are_named_and_left_out(tmp_path, capfd):
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(PerceiversError, match="has no image that can be read"):
        make_textures(tmp_path, 2, seed=0)
    assert "broken.png" in capfd.readouterr().err
    Image.new("RGB", (50, 60), (10, 200, 30)).save(tmp_path / "good.png")
    made = make_textures(tmp_path, 2, seed=0)
    assert "broken.png" in capfd.readouterr().err
    assert (made == torch.tensor([10, 200, 30], dtype=torch.uint8)[None, :, None, None]).all()


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(PerceiversError, match="there is no folder of textures"):
        make_textures(tmp_path / "none", 2, seed=0)


def test_shapes_say_how_far_a_place_is_inside():
    drawing = np.zeros((2 * SHAPE_SIZE,) * 2, np.uint8)
    drawing[64:192, 64:192] = 1  # a square, from a quarter to three quarters
    distance = compute_distances(drawing).float()
    assert distance.shape == (SHAPE_SIZE, SHAPE_SIZE)
    middle = SHAPE_SIZE // 2
    assert distance[middle, middle] == pytest.approx(0.25, abs=0.01)
    assert distance[middle, 0] == pytest.approx(-0.25, abs=0.01)
    row = (torch.arange(SHAPE_SIZE) + 0.5) / SHAPE_SIZE
    torch.testing.assert_close(distance[middle, :60], row[:60] - 0.25, atol=0.01, rtol=0)


def test_shapes_are_many_none_empty_none_cut_off():
    shapes = make_shapes(400, seed=3).float()
    inside = (shapes > 0).float().mean((1, 2))
    assert (inside > 0.002).all()
    assert (inside < 0.95).all()
    assert inside.std() > 0.1
    border = torch.cat([shapes[:, 0], shapes[:, -1], shapes[:, :, 0], shapes[:, :, -1]], 1)
    assert (border < 0).all()
    assert torch.equal(shapes[:60], make_shapes(60, seed=3).float())
    assert not torch.equal(shapes[:60], make_shapes(60, seed=4).float())


def test_some_shapes_have_holes():
    """More than one region lies outside: around the shape, and within it."""
    outside = [cv2.connectedComponents((shape <= 0).byte().numpy())[0] - 1 for shape in make_shapes(100, seed=3)]
    assert 20 < sum(regions > 1 for regions in outside) < 80
