import logging
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.data.video import read_frames
from perceivers.data.video_writer import write_video
from perceivers.flow.commands import split_model
from perceivers.flow.estimate import BUNDLED_MODEL, draw_video_flow, estimate_flow, make_tile_weights, tile_offsets
from perceivers.flow.files import read_flow
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.pictures import draw_flow
from perceivers.flow.scenes import SceneConfig
from tests.support.cli import fails
from tests.support.models import TILE, classifier, constant_flow, optical


def random_frames(height, width, count=2):
    return list(torch.randint(256, (count, 3, height, width), dtype=torch.uint8))


def save(path, frame_CYX):
    Image.fromarray(frame_CYX.permute(1, 2, 0).numpy()).save(path)
    return str(path)


@torch.no_grad()
def direct(model, frame1, frame2):
    return model({"frames": torch.stack([frame1, frame2])[None]})["flow"][0]


def evenly(size, tile, overlap):
    """Where the fewest tiles begin that overlap by so much at least, evenly spaced from border to border."""
    if size == tile:
        return [0]
    count = next(count for count in range(2, size) if (size - tile) / (count - 1) <= tile - overlap)
    return [round(Fraction((size - tile) * index, count - 1)) for index in range(count)]


def averaged(model, frame1, frame2, overlap):
    """The flow of larger frames, pixel by pixel."""
    height, width = frame1.shape[-2:]
    tiles = {
        (y, x): direct(model, *(frame[:, y : y + TILE[0], x : x + TILE[1]] for frame in (frame1, frame2))).tolist()
        for y in evenly(height, TILE[0], overlap)
        for x in evenly(width, TILE[1], overlap)
    }
    result = torch.empty(2, height, width)
    for y in range(height):
        for x in range(width):
            right, down, weights = 0.0, 0.0, 0
            for (top, left), tile in tiles.items():
                row, column = y - top, x - left
                weight = min(row + 1, TILE[0] - row, column + 1, TILE[1] - column)  # steps to the nearest edge
                if weight > 0:
                    right += weight * tile[0][row][column]
                    down += weight * tile[1][row][column]
                    weights += weight
            result[:, y, x] = torch.tensor([right / weights, down / weights])
    return result


def test_frames_of_the_models_size_are_given_as_they_are():
    model, frames = optical(), random_frames(*TILE)
    answer = estimate_flow(model, *frames)
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, direct(model, *frames))


@pytest.mark.parametrize(
    ("height", "width", "overlap", "count"), [(22, 50, 6, 2), (53, 28, 6, 3), (35, 61, 7, 6), (44, 57, 0, 6)]
)
def test_larger_frames_are_the_weighted_average_of_their_tiles(height, width, overlap, count):
    model, frames, calls = optical(), random_frames(height, width), []
    model.encoder.register_forward_hook(lambda *call: calls.append(call[2].shape[0]))
    answer = estimate_flow(model, *frames, overlap=overlap)
    assert calls == [1] * count
    torch.testing.assert_close(answer, averaged(model, *frames, overlap), rtol=1e-4, atol=1e-5)


def test_the_batch_size_changes_nothing():
    model, frames, calls = optical(), random_frames(35, 61), []
    one = estimate_flow(model, *frames, overlap=7)
    model.encoder.register_forward_hook(lambda *call: calls.append(call[2].shape[0]))
    torch.testing.assert_close(estimate_flow(model, *frames, overlap=7, batch_size=4), one, rtol=1e-4, atol=1e-5)
    assert calls == [4, 2]
    for wrong in (0, -1):
        with pytest.raises(PerceiversError, match=f"batch_size = {wrong} is not allowed: it must be at least 1"):
            estimate_flow(model, *frames, overlap=7, batch_size=wrong)


def test_tiles_of_sintels_frames():
    assert tile_offsets(436, 368, 20) == [0, 68]
    assert tile_offsets(1024, 496, 20) == [0, 264, 528]


@pytest.mark.parametrize("overlap", [0, 1, 7, 15])
def test_tiles_are_the_fewest_that_overlap_as_asked_evenly_from_border_to_border(overlap):
    for size in range(16, 120):
        places = tile_offsets(size, 16, overlap)
        assert places == evenly(size, 16, overlap)
        assert (places[0], places[-1]) == (0, size - 16)
        steps = [after - before for before, after in pairwise(places)]
        assert all(16 - step >= overlap for step in steps)
        assert not steps or max(steps) - min(steps) <= 1


def test_weights_grow_from_the_edge_inwards():
    expected = [[1, 1, 1, 1, 1], [1, 2, 2, 2, 1], [1, 2, 3, 2, 1], [1, 2, 2, 2, 1], [1, 1, 1, 1, 1]]
    assert make_tile_weights(5, 5).tolist() == expected
    assert make_tile_weights(2, 5).tolist() == [[1] * 5, [1] * 5]


@pytest.mark.parametrize("size", [TILE, (29, 53), (40, 29), (7, 9), (9, 60)])
def test_the_same_flow_everywhere_stays_so_whatever_the_tiles(size):
    answer = estimate_flow(constant_flow(3.5, -2.0), *random_frames(*size), overlap=5, batch_size=3)
    assert answer.shape == (2, *size)
    torch.testing.assert_close(answer, torch.tensor([3.5, -2.0])[:, None, None].expand_as(answer))


@pytest.mark.parametrize("size", [(11, 28), (22, 13), (5, 7), (1, 1)])
def test_smaller_frames_are_continued_to_the_right_and_below_with_a_notice(size, caplog):
    model, frames = optical(), random_frames(*size)
    rows, columns = (torch.arange(tile).clamp(max=have - 1) for tile, have in zip(TILE, size, strict=True))
    expected = direct(model, *(frame[:, rows][:, :, columns] for frame in frames))[:, : size[0], : size[1]]
    torch.testing.assert_close(estimate_flow(model, *frames), expected)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"The frames have {size[1]} x {size[0]} pixels, fewer than the 28 x 22" in caplog.text


def test_frames_large_enough_give_no_notice(caplog):
    estimate_flow(optical(), *random_frames(23, 28), overlap=2)
    assert not caplog.records


def test_bytes_floats_and_files_are_the_same_frames(tmp_path):
    model, (one, two) = optical(), random_frames(*TILE)
    files = save(tmp_path / "1.png", one), save(tmp_path / "2.png", two)
    expected = direct(model, one, two)
    for pair in [(one / 255, two / 255), files, (one, two / 255), (files[0], two / 255), (one / 255, files[1])]:
        torch.testing.assert_close(estimate_flow(model, *pair), expected)


def test_gray_transparent_and_16_bit_files(tmp_path):
    gray = np.random.default_rng(0).integers(256, size=TILE, dtype=np.uint8)
    alpha = np.where(np.arange(TILE[1]) < 9, 255, 0).astype(np.uint8) + np.zeros_like(gray)
    Image.fromarray(gray).save(tmp_path / "8.png")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(np.dstack([gray, gray, gray, alpha])).save(tmp_path / "alpha.png")
    three = torch.from_numpy(gray).expand(3, -1, -1)
    white = torch.where(torch.arange(TILE[1]) < 9, three, 255)
    model = optical()
    torch.testing.assert_close(
        estimate_flow(model, tmp_path / "8.png", tmp_path / "alpha.png"), direct(model, three, white)
    )
    torch.testing.assert_close(
        estimate_flow(model, tmp_path / "16.png", tmp_path / "8.png"), direct(model, three, three)
    )


def test_frames_that_cannot_be_compared(tmp_path):
    model, (one, two) = optical(), random_frames(*TILE)
    small, large = save(tmp_path / "small.png", one[:, :, :20]), save(tmp_path / "large.png", two)
    with pytest.raises(PerceiversError, match=r"small.png has 20 x 22 pixels, .*large.png has 28 x 22; flow needs"):
        estimate_flow(model, small, large)
    with pytest.raises(PerceiversError, match=r"large.png has 28 x 22 pixels, a tensor has 28 x 15"):
        estimate_flow(model, large, one[:, :15])
    for wrong in (one[:1], one[0], one[None], one.permute(1, 2, 0)):
        with pytest.raises(PerceiversError, match=r"a frame of shape .* was given, but"):
            estimate_flow(model, wrong, wrong)
    with pytest.raises(PerceiversError, match=r"cannot do flow.* it has 'image' \(ImageInput\)"):
        estimate_flow(classifier(), one, two)


@pytest.mark.parametrize("overlap", [-1, 22, 30])
def test_an_overlap_that_cannot_be(overlap):
    with pytest.raises(PerceiversError, match=f"overlap = {overlap} is not allowed: it must be from 0 to less than"):
        estimate_flow(optical(), *random_frames(30, 40), overlap=overlap)


def test_a_model_can_be_trained_with_the_flow_afterwards():
    model, frames = optical(), random_frames(*TILE)
    answer = estimate_flow(model, *frames, dtype="bfloat16")
    assert not answer.requires_grad
    (model({"frames": torch.stack(frames)[None]})["flow"][0] * answer).sum().backward()
    assert model.encoder.latents.grad is not None


def drawn(length, longest):
    """The color of flow to the right."""
    return draw_flow(torch.tensor([length, 0.0])[:, None, None], longest)


@pytest.mark.parametrize(("max_flow", "longest"), [(None, 4.0), (10.0, 10.0)])
def test_the_flow_of_a_video_is_drawn_on_one_scale(tmp_path, monkeypatch, max_flow, longest):
    model, lengths = optical(), [4.0, 8.0, 2.0, 4.0]
    answers = iter(lengths)
    monkeypatch.setattr(
        model, "forward", lambda _: {"flow": torch.tensor([next(answers), 0.0])[:, None, None].expand(1, 2, *TILE)}
    )
    write_video(tmp_path / "in.mp4", random_frames(*TILE, count=5), 10)
    assert draw_video_flow(model, tmp_path / "in.mp4", tmp_path / "out.mp4", max_flow=max_flow) == 4
    out = read_frames(tmp_path / "out.mp4")
    assert out.rate == 10
    for picture, length in zip(out.frames, lengths, strict=True):
        assert picture.shape == (3, *TILE)
        assert (picture.float() - drawn(length, longest)).abs().max() < 10  # the compression's


def test_each_frame_of_a_video_goes_to_the_next(tmp_path, monkeypatch):
    grays = [10, 90, 200]
    write_video(tmp_path / "in.mp4", [torch.full((3, *TILE), gray, dtype=torch.uint8) for gray in grays], 25)
    model, seen = constant_flow(1.0, 0.0), []
    monkeypatch.setattr(
        "perceivers.flow.estimate.estimate_tiled",
        lambda model, pair, *others, **more: (seen.append(pair.mean((1, 2, 3)) * 255), torch.ones(2, *TILE))[1],
    )
    assert draw_video_flow(model, tmp_path / "in.mp4", tmp_path / "out.mp4") == 2
    torch.testing.assert_close(torch.stack(seen), torch.tensor([[10.0, 90], [90, 200]]), rtol=0, atol=3)


def test_a_video_smaller_than_a_tile_is_noticed_once(tmp_path, caplog):
    write_video(tmp_path / "in.mp4", random_frames(10, 12, count=4), 25)
    draw_video_flow(optical(), tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert [record.name for record in caplog.records] == ["perceivers.flow.estimate"]
    assert [tuple(frame.shape) for frame in read_frames(tmp_path / "out.mp4").frames] == [(3, 10, 12)] * 3


def test_a_video_without_a_second_frame(tmp_path):
    write_video(tmp_path / "one.mp4", random_frames(*TILE, count=1), 25)
    with pytest.raises(PerceiversError, match=r"one.mp4 has fewer than two frames: flow needs two"):
        draw_video_flow(optical(), tmp_path / "one.mp4", tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*"))


def test_where_a_video_cannot_be_written_is_said_before_the_model_is_loaded(tmp_path):
    with pytest.raises(PerceiversError, match=r"there is no folder .*none; make it"):
        draw_video_flow("not loaded", "in.mp4", tmp_path / "none" / "out.mp4")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def files(tmp_path):
    """A model and frames, and the names of files to write."""
    constant_flow(3.0, -4.0).save(tmp_path / "model")
    for name, frame in zip("12", random_frames(30, 40), strict=True):
        save(tmp_path / f"{name}.png", frame)
    write_video(tmp_path / "clip.mp4", random_frames(*TILE, count=3), 25)
    classifier().save(tmp_path / "classifier")
    (tmp_path / "folder.flo").mkdir()
    return lambda *names: [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("name", ["out.flo", "out.png", "out.npy"])
def test_the_command_writes_flow(files, tmp_path, capsys, name):
    main(["flow", *files("model", "1.png", "2.png"), "--overlap", "5", "--out", *files(name)])
    assert capsys.readouterr().out == (
        f"{tmp_path / name}: flow of 40 x 30 pixels, 5.00 pixels long on average, 5.00 at most.\n"
    )
    read, known = read_flow(tmp_path / name)
    assert known.all()
    torch.testing.assert_close(read, torch.tensor([3.0, -4.0])[:, None, None].expand(2, 30, 40))


def test_the_command_draws_flow(files, tmp_path, capsys):
    options = ["--overlap", "5", "--max-flow", "20", "--batch-size", "2", "--out", *files("out.npy")]
    main(["flow", *files("model", "1.png", "2.png"), *options, "--picture", *files("picture.png")])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out.npy'} and {tmp_path / 'picture.png'}: flow of 40 x 30")
    with Image.open(tmp_path / "picture.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    top = (pixels.shape[1] - 30) // 2
    expected = draw_flow(torch.tensor([3.0, -4.0])[:, None, None], 20.0)
    assert (pixels[:, top : top + 30, :40] == expected).all()


def test_the_command_draws_the_flow_of_a_video(files, tmp_path, capsys):
    main(["flow", *files("model", "clip.mp4"), "--overlap", "5", "--out", *files("out.mkv")])
    assert capsys.readouterr().out == f"{tmp_path / 'out.mkv'}: the flow of 2 pairs of frames, in colors.\n"
    assert len(list(read_frames(tmp_path / "out.mkv").frames)) == 2


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (["1.png", "2.png"], ["--out", "none/out.flo"], "there is no folder"),
        (["1.png", "2.png"], ["--out", "out.flo", "--picture", "none/out.png"], "there is no folder"),
        (["clip.mp4"], ["--out", "none/out.mp4"], "there is no folder"),
        (["1.png", "2.png"], ["--out", "folder.flo"], "folder.flo: it is a folder"),
        (
            ["1.png", "2.png"],
            ["--out", "out.mp4"],
            "out.mp4 does not have the suffix of a flow file: use one of",
        ),
        (
            ["1.png", "2.png"],
            ["--out", "out.flo", "--picture", "out.flow"],
            "out.flow does not have the suffix of a picture",
        ),
        (["1.png", "2.png"], ["--out", "out.flo", "--max-flow", "0"], "max_flow = 0.0 is not allowed"),
        (["clip.mp4"], ["--out", "out.mp4", "--max-flow", "-1"], "max_flow = -1.0 is not allowed"),
        (["clip.mp4"], ["--out", "out.flo"], "out.flo cannot be written as a video: it must end in .mp4, .mkv, .mov"),
        (["clip.mp4"], ["--out", "out.mp4", "--picture", "out.png"], "--picture is for two frames"),
        (["1.png", "2.png", "1.png"], ["--out", "out.flo"], "two frames or one video, but 3 files were given"),
    ],
)
def test_the_command_refuses_before_it_computes(files, tmp_path, capsys, monkeypatch, frames, options, message):
    def compute(*_):
        pytest.fail("a model was loaded")

    monkeypatch.setattr("perceivers.flow.estimate.load_for_inference", compute)
    before = sorted(tmp_path.rglob("*"))
    paths = [option if option[0] == "-" or option[0].isdigit() else files(option)[0] for option in options]
    assert message in fails(capsys, "flow", *files("model", *frames), *paths)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("model", "frames", "options", "message"),
    [
        ("model", ["1.png", "clip.mp4"], [], "clip.mp4 cannot be decoded as an image"),
        ("model", ["1.png", "none.png"], [], "none.png is not a readable file"),
        ("model", ["1.png", "2.png"], ["--overlap", "22"], "overlap = 22 is not allowed"),
        ("model", ["1.png", "2.png"], ["--batch-size", "0"], "batch_size = 0 is not allowed"),
        ("classifier", ["1.png", "2.png"], [], "this model cannot do flow, which needs one FramePairInput"),
        ("none", ["1.png", "2.png"], [], "neither a folder nor a file here"),
    ],
)
def test_what_the_command_cannot_do_ends_in_one_sentence(files, tmp_path, capsys, model, frames, options, message):
    assert message in fails(capsys, "flow", *files(model, *frames), "--out", *files("out.flo"), *options)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("model", "video", "options", "message"),
    [
        ("model", "clip.mp4", ["--overlap", "22"], "overlap = 22 is not allowed"),
        ("model", "clip.mp4", ["--overlap=-1"], "overlap = -1 is not allowed"),
        ("model", "none.mp4", [], "none.mp4 is not a readable file"),
        ("model", "model/config.json", [], "config.json cannot be read as a video"),
        ("classifier", "clip.mp4", [], "this model cannot do flow"),
    ],
)
def test_videos_that_end_in_one_sentence(files, tmp_path, capsys, model, video, options, message):
    assert message in fails(capsys, "flow", *files(model, video), "--out", *files("out.mp4"), *options)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("size", [TILE, (35, 61), (9, 40)])
def test_points_are_the_same_entries_of_the_whole_flow(size):
    model, frames, asked = optical(), random_frames(*size), []
    points = torch.stack([torch.randint(size[1], (15,)), torch.randint(size[0], (15,))], 1)
    whole = estimate_flow(model, *frames, overlap=6)
    model.decoder.register_forward_hook(lambda _module, inputs, _output: asked.append(inputs[0].shape[1]))
    answer = estimate_flow(model, *frames, points, overlap=6)
    torch.testing.assert_close(answer, whole[:, points[:, 1], points[:, 0]].T, rtol=1e-4, atol=1e-5)
    assert sum(asked) <= 15 * 4  # a point lies in four tiles at most
    assert estimate_flow(model, *frames, points[:0]).shape == (0, 2)


def test_tiles_without_points_are_left_out():
    model, calls = optical(), []
    model.encoder.register_forward_hook(lambda *call: calls.append(1))
    estimate_flow(model, *random_frames(44, 57), [(2, 3), (1, 1)], overlap=0)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "points", "expected"),
    [
        ({}, [(0, 0), (28, 3)], r"the point \(28, 3\) lies outside the frames of 28 x 22 pixels"),
        ({}, [(0, -1)], r"the point \(0, -1\) lies outside"),
        ({}, [(0.5, 1.0)], "whole numbers"),
        ({}, [1, 2], r"points of shape \(2,\)"),
        ({"downsampling": "conv"}, [(0, 0)], "this one upsamples"),
    ],
)
def test_points_that_cannot_be_asked_for(settings, points, expected):
    with pytest.raises(PerceiversError, match=expected):
        estimate_flow(optical(**settings), *random_frames(*TILE), points)


@pytest.mark.parametrize(
    ("files", "model", "frames"),
    [
        (["a.png", "b.PNG"], BUNDLED_MODEL, ["a.png", "b.PNG"]),
        (["clip.mp4"], BUNDLED_MODEL, ["clip.mp4"]),
        (["folder", "clip.mp4"], "folder", ["clip.mp4"]),
        (["deepmind/optical-flow-perceiver", "a.png", "b.ppm"], "deepmind/optical-flow-perceiver", ["a.png", "b.ppm"]),
        (["a.png", "b.png", "c.png"], "a.png", ["b.png", "c.png"]),
    ],
)
def test_the_model_is_what_stands_before_the_frames(files, model, frames):
    assert split_model(files) == (model, frames)


def test_the_model_that_comes_along_is_small_and_sees_motion():
    assert sum(file.stat().st_size for file in BUNDLED_MODEL.iterdir()) < 8e6
    pairs = FlowGenerator(SceneConfig((96, 96), shapes=(1, 5), motion=3.0)).generate(range(2**31 + 1000, 2**31 + 1032))
    answers = torch.stack([estimate_flow(BUNDLED_MODEL, *frames) for frames in pairs.frames])
    errors = (answers - pairs.forward).norm(dim=1)
    assert errors.mean() < 0.37 * pairs.forward.norm(dim=1).mean()
    still = estimate_flow(BUNDLED_MODEL, pairs.frames[0, 0], pairs.frames[0, 0])
    assert still.norm(dim=0).mean() < 0.1


def test_real_frames_without_naming_a_model(shared_data, tmp_path, capsys):
    folder = shared_data / "flow" / "middlebury"
    frames = [str(folder / "other-data" / "Dimetrodon" / f"frame{number}.png") for number in (10, 11)]
    main(["flow", *frames, "--out", str(tmp_path / "f.flo"), "--picture", str(tmp_path / "f.png")])
    answer, _ = read_flow(tmp_path / "f.flo")
    truth, _ = read_flow(folder / "other-gt-flow" / "Dimetrodon" / "flow10.flo")
    assert (answer - truth).norm(dim=0).nanmean() < 0.33  # zero flow has 2.06, Farneback's method 0.94
    assert (tmp_path / "f.png").stat().st_size > 1000
