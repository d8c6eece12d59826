"""Pictures in cells."""

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from sklearn import metrics

from perceivers.errors import PerceiversError
from perceivers.tables.columns import Image

HERE = Path()


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def column(**settings):
    return Image(**{"size": 8, "patch": 4} | settings)


def test_cells(tmp_path, pixels):
    """A path, its content, and both of these as Hugging Face has them, are the same picture."""
    content = png(pixels)
    (tmp_path / "x.png").write_bytes(content)
    uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    expected = torch.from_numpy(pixels).movedim(-1, 0)
    cells = ["x.png", tmp_path / "x.png", str(tmp_path / "x.png"), content, uri, {"bytes": content, "path": None}]
    for cell in [*cells, {"bytes": None, "path": "x.png"}]:
        assert torch.equal(column().read(cell, tmp_path), expected)


def test_other_sizes_are_cropped_to_a_square():
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 200
    assert column().read(png(wide), HERE).eq(200).all()
    assert column().read(png(np.full((3, 5, 3), 7, dtype=np.uint8)), HERE).eq(7).all()


def test_gray(pixels):
    gray = np.asarray(Pillow.fromarray(pixels).convert("L"))
    found = column(colors=1).read(png(pixels), HERE)
    assert torch.equal(found, torch.from_numpy(gray.copy())[None])
    assert column(colors=1).blank().shape == found.shape
    assert torch.equal(column().read(png(gray), HERE)[2], found[0])
    assert column(colors=1).write(torch.rand(1, 8, 8, 1))[0][0].startswith("data:image/png")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("none.png", "none.png is not a readable file"),
        (b"no picture", "the picture cannot be decoded as an image"),
        ("data:image/png;base64,?", "a data URI is damaged: its content is not base64"),
        ("data:image/png;base64,AAAA", "the picture cannot be decoded"),
        (3, "3 is not the path of a file"),
        ({"bytes": None, "path": None}, "None is not the path of a file"),
    ],
)
def test_cells_that_are_no_pictures(cell, message):
    with pytest.raises(PerceiversError, match=message):
        column().read(cell, HERE)


def test_colors_are_learned(pixels):
    learned = column().learn([png(pixels), b"broken", png(255 - pixels)], HERE)
    both = np.stack([pixels, 255 - pixels]).reshape(-1, 3) / 255
    np.testing.assert_allclose(learned.mean, both.mean(0), rtol=1e-5)
    np.testing.assert_allclose(learned.std, both.std(0, ddof=1), rtol=1e-5)
    assert learned.learn([b"broken"], HERE) is learned  # it knows them
    assert min(column().learn([png(np.zeros_like(pixels))], HERE).std) == pytest.approx(1e-3)
    with pytest.raises(PerceiversError, match="cannot be decoded"):
        column().learn([b"broken"], HERE)


def test_augmented_pictures(pixels):
    """Mirrored or not, if nothing is cropped; the same seed gives the same picture."""
    value = column().read(png(pixels), HERE)
    flips = [column(crop=1.0).augment(value, torch.Generator().manual_seed(seed)) for seed in range(20)]
    same = sum(torch.equal(found, value) for found in flips)
    assert 0 < same < 20
    assert same + sum(torch.equal(found, value.flip(-1)) for found in flips) == 20
    assert torch.equal(column(crop=1.0, flip=False).augment(value, torch.Generator()), value)
    one, other, third = (column().augment(value, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, other)
    assert not torch.equal(one, third)
    assert one.shape == value.shape


def test_the_input_is_patches_of_normalized_colors(pixels):
    learned = column(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])
    adapter = learned.input_adapter(6)
    batch = learned.collate([learned.read(png(pixels), HERE)] * 2)
    assert batch.dtype == torch.uint8
    found = adapter(batch)
    assert found.x_BMC.shape[:2] == (2, 4)
    assert found.grid == (2, 2)
    changed = batch.clone()
    changed[:, :, :4, :4] = 255 - changed[:, :, :4, :4]
    is_other = (adapter(changed).x_BMC - found.x_BMC).abs().amax((0, 2)) > 1e-6
    assert is_other.tolist() == [True, False, False, False]


def test_loss_is_of_normalized_colors_at_all_or_some_pixels(pixels):
    learned = column(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0], points=5)
    target = learned.collate([learned.read(png(pixels), HERE)])
    predicted = torch.randn(1, 8, 8, 3)
    normalized = (pixels.reshape(64, 3) / 255 - np.array(learned.mean)) / np.array(learned.std)
    expected = metrics.mean_squared_error(normalized, predicted.reshape(64, 3))
    assert learned.loss(predicted, target).tolist() == pytest.approx([expected], rel=1e-5)
    points = learned.choose_points(torch.Generator().manual_seed(0))
    assert len(set(points.tolist())) == 5
    some = predicted.flatten(1, 2)[:, points]
    expected = metrics.mean_squared_error(normalized[points], some[0])
    assert learned.loss(some, target, points).tolist() == pytest.approx([expected], rel=1e-5)
    assert column(points=64).choose_points() is None
    torch.testing.assert_close(learned.answer(learned.normalize(target).unflatten(1, (8, 8))), learned.truth(target))


def test_metrics_are_of_colors_from_0_to_1():
    guess, truth = torch.rand(3, 8, 8, 3), torch.rand(3, 8, 8, 3)
    found = column().metrics()
    for part in (slice(0, 2), slice(2, 3)):
        for metric in found.values():
            metric.update(guess[part], truth[part])
    errors = [metrics.mean_squared_error(t.flatten(), g.flatten()) for t, g in zip(truth, guess, strict=True)]
    assert found["psnr"].compute().item() == pytest.approx(np.mean([-10 * math.log10(e) for e in errors]), rel=1e-5)
    expected = metrics.mean_absolute_error(truth.flatten(), guess.flatten())
    assert found["mae"].compute().item() == pytest.approx(expected, rel=1e-5)
    found["psnr"].reset()
    found["psnr"].update(truth, truth)
    assert found["psnr"].compute().item() == pytest.approx(100)


@pytest.mark.parametrize("colors", [1, 3])
def test_a_written_picture_can_be_read(colors):
    learned = column(colors=colors)
    answers = learned.answer(torch.randn(2, 8, 8, colors) * 2)
    assert 0 <= answers.min() < answers.max() <= 1
    for answer, (cell,) in zip(answers, learned.write(answers), strict=True):
        found = learned.read(cell, HERE)
        assert torch.equal(found, (answer * 255).round().byte().movedim(-1, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 10}, "image: size"),
        ({"mean": [0.5]}, "image: mean"),
        ({"crop": 0.0}, "image: crop"),
        ({"colors": 2}, "colors"),
    ],
)
def test_wrong_settings(settings, message):
    from perceivers.tables.columns import make_column

    with pytest.raises(PerceiversError, match=rf"column 'x': .*{message}"):
        make_column("x", {"type": "image", "size": 8, "patch": 4} | settings)
