"""Sounds and video clips in cells."""

from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data.video_writer import write_video
from perceivers.errors import PerceiversError
from perceivers.tables.columns import Sound, Video
from tests.support.clips import wav

HERE = Path()
TONE = 0.5 * np.sin(np.arange(1600) / 3)  # 0.2 s


def sound(**settings):
    return Sound(**{"sample_rate": 8000, "bands": 16} | settings)


def test_sounds(tmp_path):
    """A path, and the content, are the same samples."""
    content = wav(TONE)
    (tmp_path / "x.wav").write_bytes(content)
    column = sound(seconds=0.2)
    for cell in ("x.wav", content, {"bytes": content, "path": "y.wav"}, {"path": "x.wav"}):
        samples, is_real = column.read(cell, tmp_path)
        assert torch.all(is_real == 1)
        np.testing.assert_allclose(samples, TONE, atol=1e-4)


def test_short_sounds_end_in_padding_and_long_ones_are_cut():
    column = sound(seconds=0.2)
    samples, is_real = column.read(wav(TONE[:500]), HERE)
    assert is_real.sum() == 500
    assert is_real[:500].all()
    assert samples[500:].eq(0).all()
    longer, _ = column.read(wav(np.concatenate([TONE, TONE])), HERE)
    np.testing.assert_allclose(longer, TONE, atol=1e-4)


def test_seconds_are_learned():
    cells = [wav(TONE), b"broken", wav(TONE[:400])]
    column = sound().learn(cells, HERE)
    assert column.seconds == pytest.approx(0.2)
    assert sound(seconds=3.0).learn(cells, HERE).seconds == 3
    quiet = np.zeros(8000 * 12)
    assert sound().learn([wav(quiet)], HERE).seconds == 10
    with pytest.raises(PerceiversError):
        sound().learn([b"broken"], HERE)


def test_sounds_become_patches_of_a_mel_spectrogram():
    column = sound(seconds=0.2, bands=32)  # 20 frames of 10 ms
    batch = column.collate([column.read(wav(TONE), HERE), column.read(wav(TONE[:300]), HERE), column.blank()])
    found = column.input_adapter(8)(batch)
    assert found.x_BMC.shape[:2] == (3, 5 * 2)
    assert found.mask_BM[0].all()
    assert found.mask_BM[1].tolist() == [True, True, *[False] * 8]  # 37 ms: one of five patches, of two bands
    assert found.mask_BM[2].all()  # the mask token takes its place
    assert column.blank().shape == (2, 1600)


@pytest.fixture
def clip(tmp_path):
    """A clip whose frames get brighter from second to second."""
    frames = [torch.full((3, 16, 16), 20 * (index // 2), dtype=torch.uint8) for index in range(16)]
    write_video(tmp_path / "x.mkv", frames, 8)
    return tmp_path / "x.mkv"


def test_videos(clip):
    """Frames lie in the middle of equal parts of the clip."""
    column = Video(frames=8, size=8)
    for cell in ("x.mkv", clip.read_bytes(), {"bytes": clip.read_bytes()}):
        found = column.read(cell, clip.parent)
        assert found.shape == (8, 3, 8, 8)
        assert found.dtype == torch.uint8
        expected = 20.0 * torch.arange(8)
        torch.testing.assert_close(found.float().mean((1, 2, 3)), expected, atol=3, rtol=0)
    few = Video(frames=2, size=8).read("x.mkv", clip.parent).float().mean((1, 2, 3))
    assert few.tolist() == pytest.approx([40, 120], abs=3)
    more = Video(frames=32, size=8).read("x.mkv", clip.parent)
    assert len(more) == 32
    assert torch.equal(more[0], more[1])


def test_videos_become_patches_of_space_and_time(clip):
    column = Video(frames=4, size=16)
    batch = column.collate([column.read("x.mkv", clip.parent), column.blank()])
    assert column.input_adapter(8)(batch).x_BMC.shape[:2] == (2, 2 * 2 * 2)


@pytest.mark.parametrize("column", [sound(seconds=0.2), Video(frames=2, size=8)])
@pytest.mark.parametrize("cell", ["none.wav", b"broken", 5, "folder"])
def test_files_that_cannot_be_read(tmp_path, column, cell):
    (tmp_path / "folder").mkdir()
    with pytest.raises(PerceiversError):
        column.read(cell, tmp_path)


def test_files_without_sound_or_pictures(clip):
    with pytest.raises(PerceiversError, match="no sound"):
        sound(seconds=0.2).read("x.mkv", clip.parent)
    with pytest.raises(PerceiversError, match=r"no (video|frames)"):
        Video(frames=2, size=8).read(wav(TONE), HERE)


@pytest.mark.parametrize("column", [Sound(), Video()])
def test_they_cannot_be_predicted(column):
    with pytest.raises(
        PerceiversError, match=f"a column of type '{column.kind}' can be an input, but not be predicted"
    ):
        column.output_adapter("x", 8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sound(bands=20), "sound: bands = 20"),
        (lambda: Video(frames=3), "video: frames = 3"),
        (lambda: Video(size=12), "video: size = 12"),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(PerceiversError, match=message):
        build()
