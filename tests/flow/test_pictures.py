from math import inf, nan

import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.data.image_files import read_frame
from perceivers.flow.files import read_flow
from perceivers.flow.pictures import MARGIN, WHEEL_NC, check_picture_path, draw_flow, draw_legend, write_picture


def flow_of(*vectors):
    """One row of vectors."""
    return torch.tensor(vectors, dtype=torch.float32).T[:, None]


def random_flow(height=5, width=7, scale=20.0):
    return scale * torch.randn(2, height, width)


def colors(flow, max_flow=None):
    return [tuple(pixel) for pixel in draw_flow(flow, max_flow)[:, 0].T.tolist()]


def test_the_published_wheel():
    assert WHEEL_NC.shape == (55, 3)
    corners = {
        0: (255, 0, 0),
        15: (255, 255, 0),
        21: (0, 255, 0),
        25: (0, 255, 255),
        36: (0, 0, 255),
        49: (255, 0, 255),
    }
    assert {place: tuple(WHEEL_NC[place].tolist()) for place in corners} == corners
    assert WHEEL_NC[[34, 47, 54]].tolist() == [[0, 47, 255], [215, 0, 255], [255, 0, 43]]  # 208.6, 215.8 and 212.5 cut


@pytest.mark.parametrize(
    ("vector", "color"),
    [
        ((1, 0), (255, 0, 0)),
        ((1, -0.0), (255, 0, 0)),
        ((1, 1), (255, 114, 0)),  # 6.75 steps: between 102 and 119 of green
        ((0, 1), (255, 229, 0)),  # 13.5 steps: between 221 and 238
        ((-1, 1), (32, 255, 0)),  # 20.25 steps: red from 43 to 0
        ((-1, 0), (0, 209, 255)),  # 27 steps: 255 - 46 of green
        ((-1, -1), (0, 52, 255)),  # 33.75 steps: green from 70 to 47
        ((0, -1), (88, 0, 255)),  # 40.5 steps: red between 78 and 98
        ((1, -1), (220, 0, 255)),  # 47.25 steps: red from 215 to 235
    ],
)
def test_directions_have_the_published_colors(vector, color):
    assert colors(flow_of(vector)) == [color]
    assert colors(7 * flow_of(vector)) == [color]


def test_length_is_saturation():
    flow = flow_of((0, 0), (1, 0), (2, 0), (4, 0), (8, 0), (0, 4), (nan, 1), (2e9, 0))
    black = (0, 0, 0)
    assert colors(flow, max_flow=4) == [
        (255, 255, 255),
        (255, 191, 191),
        (255, 127, 127),
        (255, 0, 0),
        (191, 0, 0),  # longer: darkened
        (255, 229, 0),
        black,
        black,
    ]
    assert colors(flow)[3:5] == [(255, 127, 127), (255, 0, 0)]  # the longest known is 8
    assert draw_flow(flow).dtype == torch.uint8


def test_no_flow_is_white_and_no_knowledge_black():
    assert colors(torch.zeros(2, 1, 2)) == [(255, 255, 255)] * 2
    assert colors(torch.full((2, 1, 2), nan)) == [(0, 0, 0)] * 2


def test_pictures_keep_the_place():
    flow = torch.full((2, 3, 5), nan)
    flow[:, 1, 4] = torch.tensor([3.0, 0])
    assert draw_flow(flow).nonzero().tolist() == [[0, 1, 4]]


def test_unusable_lengths_are_refused():
    for max_flow in (0, -1, nan, inf):
        with pytest.raises(PerceiversError, match=f"max_flow = {max_flow} is not allowed"):
            draw_flow(flow_of((1, 0)), max_flow)


@pytest.mark.parametrize("size", [(64, 64), (218, 512), (150, 40), (3, 5)])
def test_the_legend_is_beside_the_picture(tmp_path, size):
    flow, valid = random_flow(*size), torch.rand(size) > 0.1
    write_picture(tmp_path / "a.png", flow, valid, max_flow=12.34)
    page = read_frame(tmp_path / "a.png")
    margin = torch.from_numpy(np.array(draw_legend(12.34, max(48, min(size) // 4)))).permute(2, 0, 1)
    height, width = size
    assert page.shape == (3, max(height, margin.shape[1]), width + margin.shape[2])
    top = (page.shape[1] - height) // 2
    picture = draw_flow(flow.masked_fill(~valid, nan), 12.34)
    assert torch.equal(page[:, top : top + height, :width], picture)
    top = (page.shape[1] - margin.shape[1]) // 2
    assert torch.equal(page[:, top : top + margin.shape[1], width:], margin)


def test_the_legend_shows_directions_and_length():
    picture = np.array(draw_legend(5, 100)).astype(int)
    gap, middle = 100 // 6, picture.shape[1] // 2
    y, x = gap + 50, middle
    for (dx, dy), color in {(-48, 0): (0, 209, 255), (0, 48): (255, 229, 0), (0, -48): (88, 0, 255)}.items():
        assert np.abs(picture[y + dy, x + dx] - color).max() < 25
    assert (picture[y, x + 25] == 0).all()  # the arrow
    assert (picture[y, x + 52] == MARGIN).all()
    label = picture[gap + 102 :]
    assert label.min() < 60
    assert (picture[:, [0, -1]] == MARGIN).all()  # nothing is cut off
    assert (picture[[0, -1]] == MARGIN).all()


@pytest.mark.parametrize(
    ("max_flow", "label"),
    [(12.345, "12.3 px"), (5, "5 px"), (0.0012345, "0.00123 px"), (1234.5, "1230 px"), (None, "13 px")],
)
def test_the_label_is_the_length_of_full_color(tmp_path, monkeypatch, max_flow, label):
    written = []
    monkeypatch.setattr("perceivers.flow.pictures.ImageDraw.ImageDraw.text", lambda *given: written.append(given[2]))
    write_picture(tmp_path / "a.png", flow_of((5, 12), (400, 0)), torch.tensor([[True, False]]), max_flow)
    assert written == [label]


def test_pictures_of_other_suffixes(tmp_path):
    for name in ("a.jpg", "b.webp", "c.TIFF"):
        write_picture(tmp_path / name, torch.full((2, 70, 90), nan))
        picture = read_frame(tmp_path / name)[:, :, :80]
        assert picture.shape[1] == draw_legend(1, 48).height
        assert picture[:, 10:60].max() < 10
    for name, message in {
        "a.flo": "a.flo does not have the suffix of a picture: use .png",
        "a": "a does not have the suffix of a picture: use .png",
        "a.xbm": r"a.xbm cannot hold this picture \(cannot write mode RGB as XBM\): use .png",
    }.items():
        with pytest.raises(PerceiversError, match=message):
            write_picture(tmp_path / name, random_flow())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jpg", "b.webp", "c.TIFF"]


def test_a_real_flow_becomes_a_picture(shared_data, tmp_path):
    flow, valid = read_flow(shared_data / "flow/middlebury/other-gt-flow/RubberWhale/flow10.flo")
    write_picture(tmp_path / "a.png", flow, valid)
    picture = read_frame(tmp_path / "a.png")[:, :, :584]
    assert torch.equal(picture.sum(0) == 0, ~valid)
    assert torch.equal(picture, draw_flow(flow))


def test_a_failing_disk_leaves_no_picture(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("perceivers.model.saving.os.replace", full)
    with pytest.raises(PerceiversError, match="no space left on device; choose another output path"):
        write_picture(tmp_path / "a.png", flow_of((1, 2)))
    assert list(tmp_path.iterdir()) == []


def test_paths_of_pictures_can_be_checked_beforehand(tmp_path):
    for name in ("a.png", "b.JPG", "c.tiff"):
        check_picture_path(tmp_path / name)
    with pytest.raises(PerceiversError, match=r"a\.mp3 does not have the suffix of a picture"):
        check_picture_path("a.mp3")
