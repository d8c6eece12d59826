import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nan

from perceivers import PerceiversError
from perceivers.flow.datasets import FlowPair, open_all_layouts
from perceivers.flow.estimate import estimate_flow
from perceivers.flow.evaluation import CLASSICAL, draw_comparison, draw_error, evaluate, to_gray
from perceivers.flow.pictures import draw_flow
from tests.support.models import constant_flow, language, optical


class Pairs:
    """As `FlowPairs`, but of what is given."""

    def __init__(self, pairs, layout="sintel-clean", sequences=None):
        self.pairs, self.layout = pairs, layout
        self.sequences = sequences or ["all"] * len(pairs)
        self.names = [f"pair_{index}" for index in range(len(pairs))]

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def random_pair(height=32, width=40, unknown=0.0, occluded=None):
    flow_2YX = 3 * torch.randn(2, height, width)
    flow_2YX[(torch.rand(1, height, width) < unknown).expand_as(flow_2YX)] = nan
    return FlowPair(torch.randint(256, (2, 3, height, width), dtype=torch.uint8), flow_2YX, occluded)


def lengths(flow_2YX, right=0.0, down=0.0):
    """Of the known vectors, from a point."""
    x, y = flow_2YX[0] - right, flow_2YX[1] - down
    return (x**2 + y**2).sqrt()[~x.isnan()]


@pytest.fixture(scope="module")
def moving():
    """Smooth noise that moves by three pixels to the right and two up."""
    noise = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    scene = F.interpolate(noise, (100, 120), mode="bicubic").clamp(0, 1).mul(255).byte()[0]
    return torch.stack([scene[:, 10:90, 10:110], scene[:, 12:92, 7:107]])


@pytest.mark.parametrize("name", ["Farneback", "DIS fast", "DIS medium"])
def test_classical_methods_see_what_moves(moving, name):
    flow_2YX = CLASSICAL[name](moving)
    assert (flow_2YX.shape, flow_2YX.dtype) == ((2, 80, 100), torch.float32)
    inner = flow_2YX[:, 20:-20, 20:-20]
    assert inner.mean((1, 2)).tolist() == pytest.approx([3, -2], abs=0.2)


def test_classical_methods_see_brightness_as_the_eye_does():
    colors = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8).T.reshape(1, 3, 1, 3)
    assert to_gray(colors)[0].tolist() == [[76, 150, 29]]


def test_published_pairs(shared_data):
    (pairs,) = open_all_layouts(shared_data / "flow" / "middlebury")
    scores = evaluate(constant_flow(1.0, -0.5), pairs, overlap=0, batch_size=64)
    assert list(scores) == ["model", *CLASSICAL]
    means = {name: lengths(pairs[index].flow, 1.0, -0.5).mean().item() for index, name in enumerate(pairs.sequences)}
    assert scores["model"].sequences == pytest.approx(means, rel=1e-4)
    assert scores["model"].errors["epe"] == pytest.approx(np.mean(list(means.values())), rel=1e-4)
    for name, epe in {"zero flow": 3.50, "Farneback": 1.26, "DIS fast": 0.69, "DIS medium": 0.62}.items():
        assert scores[name].errors["epe"] == pytest.approx(epe, abs=0.01)
        assert len(scores[name].sequences) == 5


@pytest.mark.parametrize(("layout", "of_pairs"), [("sintel-final", False), ("kitti15", True), ("middlebury", True)])
def test_each_data_sets_convention(layout, of_pairs):
    pairs = Pairs([random_pair(), random_pair(40, 50, unknown=0.5), random_pair(34, 33)], layout, list("aab"))
    pairs.pairs[0].flow.mul_(3)
    errors = [lengths(pair.flow) for pair in pairs.pairs]
    score = evaluate(optical(), pairs, overlap=0)["zero flow"]

    def average(some):
        return (torch.stack([error.mean() for error in some]) if of_pairs else torch.cat(some)).mean().item()

    assert score.errors["epe"] == pytest.approx(average(errors), rel=1e-5)
    assert score.sequences == pytest.approx({"a": average(errors[:2]), "b": average(errors[2:])}, rel=1e-5)
    assert score.errors["over3px"] == pytest.approx((torch.cat(errors) > 3).float().mean().item(), rel=1e-5)


def test_the_model_computes_what_the_flow_command_does():
    model, (frames, _, _) = optical(), random_pair(50, 61)
    truth = estimate_flow(model, frames[0], frames[1], overlap=7)
    score = evaluate(model, Pairs([FlowPair(frames, truth, None)]), overlap=7, batch_size=3)["model"]
    assert score.errors["epe"] < 1e-5
    assert evaluate(model, Pairs([FlowPair(frames, truth, None)]), overlap=15)["model"].errors["epe"] > 1e-3


def test_occlusions_are_told_apart():
    occluded = torch.rand(32, 40) < 0.3
    pair = random_pair(occluded=occluded)
    scores = evaluate(constant_flow(0.5, 0.25), Pairs([pair]), overlap=0)
    expected = lengths(pair.flow, 0.5, 0.25).view(32, 40)[occluded].mean().item()
    assert scores["model"].errors["epe_occluded"] == pytest.approx(expected, rel=1e-5)


def test_seconds_are_the_median(monkeypatch):
    clock = iter([time for took in (9, 1, 2) for time in (0, took, *[0] * 8)])  # four other methods, two looks each
    monkeypatch.setattr("perceivers.flow.evaluation.time.perf_counter", lambda: next(clock))
    assert evaluate(optical(), Pairs([random_pair() for _ in range(3)]), overlap=0)["model"].seconds == 2


def test_a_sequence_of_which_nothing_is_known_is_left_out():
    pairs = Pairs([random_pair(), random_pair(unknown=2)], "kitti15", ["a", "b"])
    score = evaluate(optical(), pairs, overlap=0)["zero flow"]
    assert score.sequences == pytest.approx({"a": score.errors["epe"]})


def test_padding_is_noticed_once_a_size(caplog):
    pairs = [random_pair(), random_pair(), random_pair(40, 44), random_pair(33, 50)]
    with caplog.at_level(logging.WARNING):
        evaluate(optical(image_size=(40, 44)), Pairs(pairs), overlap=0)
    assert len(caplog.records) == 2


def test_pictures_of_every_pair(tmp_path):
    pairs = Pairs([random_pair(), random_pair(40, 50)])
    for _ in range(2):  # the second time they are replaced
        evaluate(constant_flow(1.0, 2.0), pairs, overlap=0, pictures=tmp_path / "new")
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.*"))
    assert list(map(str, files)) == ["new/sintel-clean/pair_0.png", "new/sintel-clean/pair_1.png"]
    expected = np.array(draw_comparison(pairs[1], torch.tensor([1.0, 2.0])[:, None, None].expand(2, 40, 50)))
    with Image.open(tmp_path / files[1]) as picture:
        assert picture.format == "PNG"
        assert np.array_equal(np.array(picture), expected)


def find(page, picture):
    """Columns and rows where a picture begins on a page."""
    windows = page.unfold(1, picture.shape[1], 1).unfold(2, picture.shape[2], 1)
    return [(x, y) for y, x in (windows == picture[:, None, None]).all(-1).all(-1).all(0).nonzero().tolist()]


def test_a_picture_shows_frame_flows_and_error_side_by_side(monkeypatch):
    written = []
    monkeypatch.setattr(
        "perceivers.flow.evaluation.ImageDraw.ImageDraw.text",
        lambda self, place, text, *rest, **settings: written.append(text),
    )
    pair, predicted = random_pair(unknown=0.2), torch.randn(2, 32, 40)
    page = torch.from_numpy(np.array(draw_comparison(pair, predicted))).permute(2, 0, 1)
    max_flow = lengths(pair.flow).max().item()
    error = (predicted - pair.flow).norm(dim=0)
    panels = [pair.frames[0], draw_flow(predicted, max_flow), draw_flow(pair.flow, max_flow), draw_error(error)]
    places = [find(page, panel) for panel in panels]
    assert all(len(place) == 1 for place in places)
    (columns, rows) = zip(*(place[0] for place in places), strict=True)
    assert list(columns) == sorted(columns)
    assert len(set(rows)) == 1
    average = f"end-point error, {error.nanmean():.2f} px on average"
    assert set(written) == {"first frame", "predicted flow", "true flow", average, f"{max_flow:.3g} px", "0",
                            "5 px or more"}  # fmt: skip


def test_the_errors_colors():
    error = torch.tensor([[0, 2.5, 5, 50, nan]])
    assert draw_error(error)[:, 0].T.tolist() == [
        [255, 255, 255],
        [228, 128, 128],
        [200, 0, 0],
        [200, 0, 0],
        [0, 0, 0],
    ]


def test_frames_that_crash_a_method_are_refused():
    for size in ((31, 400), (400, 31)):
        with pytest.raises(PerceiversError, match="pixels are too few for the comparison with DIS"):
            evaluate(optical(), Pairs([random_pair(*size)]), overlap=0, batch_size=64)
    evaluate(optical(), Pairs([random_pair(32, 400)]), overlap=0, batch_size=64)


def test_no_known_flow_and_other_models_are_refused():
    with pytest.raises(PerceiversError, match="no pixel of sintel-clean has known flow"):
        evaluate(optical(), Pairs([random_pair(unknown=2)]), overlap=0)
    with pytest.raises(PerceiversError, match="this model cannot do flow"):
        evaluate(language(), Pairs([random_pair()]))


def test_the_pictures_folder_must_be_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PerceiversError, match=r"cannot write .*pair_0\.png"):
        evaluate(optical(), Pairs([random_pair()]), overlap=0, pictures=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
