from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from perceivers import PerceiversError

pytest.importorskip("av")
from perceivers.clips.model import Window
from perceivers.clips.windows import decode_clip, read_window
from perceivers.data.video import Content, read_clip
from tests.data.test_video import flash_and_click, make, numbers, ramp, tone
from tests.support.clips import wav

SOUND = Window(samples=800, sample_rate=8000)  # 0.1 s
BOTH = Window(frames=5, size=(16, 16), samples=9600)  # 0.2 s


def stairs(count):
    """Recordings of which every sample tells its number."""
    return np.arange(count) / 4096


@pytest.mark.parametrize(("place", "first"), [(0.0, 0), (0.25, 300), (0.5, 600), (1.0, 1200)])
def test_a_window_moves_from_the_beginning_of_a_clip_to_its_end(place, first):
    seen = read_window(Content(wav(stairs(2000)), "a recording"), SOUND, place)
    assert seen.video is seen.video_mask is None
    assert seen.audio_mask.all()
    torch.testing.assert_close(seen.audio * 4096, first + torch.arange(800.0), atol=0.2, rtol=0)


@pytest.mark.parametrize(("place", "before"), [(0.0, 0), (0.5, 300), (1.0, 600)])
def test_a_clip_shorter_than_its_window_is_masked_around(tmp_path, place, before):
    (tmp_path / "a.wav").write_bytes(wav(stairs(201)[1:]))
    seen = read_window(tmp_path / "a.wav", SOUND, place)
    assert torch.equal(seen.audio_mask.nonzero()[:, 0], torch.arange(before, before + 200))
    torch.testing.assert_close(seen.audio[seen.audio_mask] * 4096, 1 + torch.arange(200.0), atol=0.2, rtol=0)
    assert (seen.audio[~seen.audio_mask] == 0).all()


def test_frames_and_sound_begin_at_the_same_moment(tmp_path):
    pictures, sound = flash_and_click(at=4.0, seconds=6)
    path = make(tmp_path / "a.mkv", pictures, wave=sound)
    window = Window(frames=25, size=(16, 16), samples=48000)
    seen = read_window(path, window, position=3.6 / 5)
    assert int(seen.video.float().mean((1, 2, 3)).argmax()) == 10  # at 4.0 s
    assert abs(int(seen.audio.abs().argmax()) - round(0.4 * 48000)) <= 5
    clip = read_clip(path, 3.6, frames=25, size=16)
    assert torch.equal(seen.video, clip.video)
    torch.testing.assert_close(seen.audio, clip.audio)
    assert seen.video_mask.all()
    assert seen.audio_mask.all()


def test_a_video_shorter_than_its_window_is_masked_around(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(3), wave=tone(0.12, 48000)[None])
    for place, before in ((0.0, 0), (1.0, 2)):
        seen = read_window(path, BOTH, place)
        assert seen.video_mask.nonzero()[:, 0].tolist() == [before, before + 1, before + 2]
        assert numbers(seen.video[seen.video_mask]) == [0, 1, 2]
        audio_mask = seen.audio_mask.nonzero()[:, 0]
        assert abs(int(audio_mask[0]) - before * 1920) < 100
        assert abs(len(audio_mask) - 5760) < 100


def test_a_missing_modality_is_masked_not_faked(tmp_path):
    silent = read_window(make(tmp_path / "a.mkv", ramp(10)), BOTH, 0.5)
    assert silent.video_mask.all()
    assert not silent.audio_mask.any()
    (tmp_path / "b.wav").write_bytes(wav(stairs(4000)))
    blind = read_window(tmp_path / "b.wav", BOTH, 0.5)
    assert not blind.video_mask.any()
    assert not blind.video.any()
    assert blind.audio_mask.all()


def test_what_a_window_cannot_show(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(stairs(4000)))
    with pytest.raises(PerceiversError, match=r"a\.wav has no video: leave it out"):
        read_window(tmp_path / "a.wav", Window(frames=3), 0.0)
    with pytest.raises(PerceiversError, match=r"a\.mkv has no sound: leave it out"):
        read_window(make(tmp_path / "a.mkv", ramp(10)), SOUND, 0.0)
    with pytest.raises(PerceiversError, match="a recording cannot be read"):
        read_window(Content(b"RIFF and no more", "a recording"), SOUND, 0.0)
    with pytest.raises(PerceiversError, match="an empty one has no decodable frames"):
        read_window(Content(wav([]), "an empty one"), SOUND, 0.0)
    with pytest.raises(PerceiversError, match=r"none\.wav is not a readable file"):
        read_window(tmp_path / "none.wav", SOUND, 0.0)


def test_sound_that_is_no_number_is_refused(tmp_path):
    samples = np.zeros(4000, dtype=np.float32)
    samples[2000] = np.nan
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    with pytest.raises(PerceiversError, match=r"the sound of .*a\.wav has NaN"):
        read_window(tmp_path / "a.wav", SOUND, 0.5)


@pytest.mark.parametrize("place", [0.0, 0.31, 0.5, 0.77, 1.0])
def test_cutting_a_whole_clip_shows_what_reading_a_window_does(tmp_path, place):
    path = make(tmp_path / "a.mkv", ramp(20), rate=30, wave=tone(0.6, 48000)[None])
    whole = decode_clip(path, BOTH, 1e9)
    assert whole.bytes == whole.frames.nbytes + whole.sound.samples.nbytes > 20 * 3 * 16 * 16
    cut, read = whole.window_at(BOTH, place), read_window(path, BOTH, place)
    assert torch.equal(cut.video, read.video)
    assert torch.equal(cut.video_mask, read.video_mask)
    assert (cut.audio_mask != read.audio_mask).sum() <= 1
    assert (cut.audio - read.audio).abs().max() < 0.1  # the tone's slope times a part of a sample


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_cutting_a_clip_shorter_than_its_window_masks_around_it(tmp_path, place):
    path = make(tmp_path / "a.mkv", ramp(3), wave=tone(0.12, 48000)[None])
    cut, read = decode_clip(path, BOTH, 1e9).window_at(BOTH, place), read_window(path, BOTH, place)
    assert torch.equal(cut.video_mask, read.video_mask)
    assert torch.equal(cut.video, read.video)
    assert (cut.audio_mask != read.audio_mask).sum() <= 2
    assert 0 < read.video_mask.sum() < 5


def test_sound_that_begins_after_the_picture_is_masked_before(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(20), rate=30, wave=tone(0.6, 48000)[None])
    whole = decode_clip(path, BOTH, 1e9)
    late = replace(whole, sound=whole.sound._replace(begin=500)).window_at(BOTH, 0.0)
    assert not late.audio_mask[:500].any()
    assert late.audio_mask[500:].equal(whole.window_at(BOTH, 0.0).audio_mask[500:])
    assert not late.audio[:500].any()


def test_a_whole_clip_may_lack_a_modality_or_be_too_large(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(10))
    silent = decode_clip(path, BOTH, 1e9)
    assert silent.sound is None
    assert not silent.window_at(BOTH, 0.5).audio_mask.any()
    (tmp_path / "b.wav").write_bytes(wav(stairs(4000)))
    blind = decode_clip(tmp_path / "b.wav", BOTH, 1e9).window_at(BOTH, 0.5)
    assert not blind.video_mask.any()
    assert blind.audio_mask.all()
    size = 10 * 3 * 16 * 16
    assert decode_clip(path, BOTH, 0.9 * size) is None
    assert decode_clip(path, BOTH, 1.1 * size).frames.shape == (10, 3, 16, 16)
    samples = np.zeros(4000, dtype=np.float32)
    samples[2000] = np.nan
    wavfile.write(tmp_path / "c.wav", 8000, samples)
    with pytest.raises(PerceiversError, match=r"the sound of .*c\.wav has NaN"):
        decode_clip(tmp_path / "c.wav", SOUND, 1e9)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_of_any_channels_is_their_mean(tmp_path, channels):
    samples = np.stack([stairs(1000) * (channel + 1) / channels for channel in range(channels)], 1).astype(np.float32)
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    expected = torch.from_numpy(samples.mean(1)[:800])
    torch.testing.assert_close(read_window(tmp_path / "a.wav", SOUND, 0.0).audio, expected, atol=1e-4, rtol=1e-4)


def test_frames_of_a_variable_rate_are_those_of_their_moments(tmp_path):
    moments = [0, 40, 50, 60, 200, 240, 400, 480]  # milliseconds
    path = make(tmp_path / "a.mkv", ramp(8), moments=moments)
    window = Window(frames=10, size=(16, 16))
    seen = read_window(path, window, 0.0)
    assert numbers(seen.video) == [0, 1, 3, 3, 3, 4, 5, 5, 5, 5]
    assert torch.equal(decode_clip(path, window, 1e9).window_at(window, 0.0).video, seen.video)


def test_turned_and_odd_video_fills_its_window(tmp_path):
    pictures = [np.zeros((34, 50, 3), dtype=np.uint8) for _ in range(6)]
    for picture in pictures:
        picture[:, :25] = 255  # the left half is white
    upright = read_window(make(tmp_path / "a.mp4", pictures), Window(frames=3, size=(20, 30)), 0.0).video.float()
    turned = read_window(make(tmp_path / "b.mp4", pictures, rotation=90), Window(frames=3, size=(30, 20)), 0.0)
    assert upright[..., :10].mean() > 240 > 10 > upright[..., 20:].mean()
    halves = turned.video.float()[..., :10, :].mean(), turned.video.float()[..., 20:, :].mean()
    assert max(halves) > 240
    assert min(halves) < 10


def test_damage_in_the_middle_is_reported_or_passed_over(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(30), wave=tone(1.2, 48000)[None], gap=10)
    content, random, messages = path.read_bytes(), np.random.default_rng(0), []
    for trial in range(12):
        broken, place = bytearray(content), random.integers(1000, len(content) - 400)
        broken[place : place + 300] = random.bytes(300)
        try:
            assert read_window(Content(bytes(broken), f"trial {trial}"), BOTH, 0.5).video.shape == (5, 3, 16, 16)
        except PerceiversError as error:
            messages.append(str(error))
    assert all("trial" in message for message in messages)
    cut = Content(content[: len(content) // 4], "what is left")
    assert not read_window(cut, BOTH, 1.0).audio_mask.all()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_from_clip_to_clip(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(10), wave=tone(0.4, 48000)[None])

    def pages():
        return int(Path("/proc/self/statm").read_text().split()[1])

    for number in range(350):
        read_window(path, BOTH, 0.5)
        if number == 100:
            before = pages()
    assert (pages() - before) * 4096 < 10e6  # a frame or stream kept from each would be more
