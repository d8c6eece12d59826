from fractions import Fraction

import numpy as np
import pytest
import torch

from perceivers import PerceiversError

av = pytest.importorskip("av")
from perceivers.data import video  # noqa: E402
from perceivers.data.video import read_clip, read_frames  # noqa: E402
from perceivers.data.video_writer import write_video  # noqa: E402

STEP = 8  # gray levels from one frame of `ramp` to the next, so that compression does not hide the number


def ramp(count, height=32, width=32):
    return [np.full((height, width, 3), STEP * index, dtype=np.uint8) for index in range(count)]


def numbers(video):
    return (video.float().mean((1, 2, 3)) / STEP).round().int().tolist()


def make(path, pictures, rate=25, moments=None, wave=None, sample_rate=48000, pause=(0, 0), rotation=0, **settings):
    """Writes a file; `moments` of the frames in milliseconds, and sound [channels, samples].

    From `pause[0]` seconds on, the sound comes `pause[1]` seconds later.
    """
    settings = {"codec": "libx264", "pix_fmt": "yuv420p", "sound": "pcm_s16le", "gap": 250} | settings
    with av.open(str(path), "w") as container:
        options = {"g": str(settings["gap"]), "sc_threshold": "0"} if settings["codec"] == "libx264" else {}
        video = container.add_stream(settings["codec"], rate=rate, options=options)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = settings["pix_fmt"]
        if settings["pix_fmt"] == "gray":
            video.color_range = 2  # full
        if rotation:
            video.set_display_rotation(rotation)
        if moments:
            video.codec_context.time_base = Fraction(1, 1000)
        if wave is not None:
            layout = {1: "mono", 2: "stereo"}[len(wave)]
            sound = container.add_stream(settings["sound"], rate=sample_rate, layout=layout)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave, dtype=np.float32), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
        for index, picture in enumerate(pictures):
            image = av.VideoFrame.from_ndarray(picture, "rgb24")
            image.pts, image.time_base = (moments[index], Fraction(1, 1000)) if moments else (index, Fraction(1, rate))
            container.mux(video.encode(image))
        container.mux(video.encode(None))
        if wave is not None:
            cutter = av.AudioResampler(sound.codec_context.format.name, frame_size=480)
            for piece in cutter.resample(frame) + cutter.resample(None):
                piece.pts += round(sample_rate * pause[1]) if piece.pts >= sample_rate * pause[0] else 0
                container.mux(sound.encode(piece))
            container.mux(sound.encode(None))
    return path


def tone(seconds, sample_rate, frequency=440.0):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * sample_rate)) / sample_rate)


def flash_and_click(at=4.0, seconds=6):
    pictures = [np.full((32, 32, 3), 255 * (index == round(at * 25)), dtype=np.uint8) for index in range(seconds * 25)]
    wave = np.zeros((1, seconds * 48000))
    wave[:, round(at * 48000) : round(at * 48000) + 5] = 0.9
    return pictures, wave


@pytest.mark.parametrize(
    ("start", "rate", "expected"),
    [
        (0, 25, [0, 1, 2, 3, 4]),
        (0.2, 25, [5, 6, 7, 8, 9]),
        (0.21, 25, [5, 6, 7, 8, 9]),
        (0.0, 12.5, [0, 2, 4, 6, 8]),
        (0.4, 50, [10, 10, 11, 11, 12]),
        (0.1, 10, [2, 5, 7, 10, 12]),
        (1.0, 25, [25, 26, 27, 28, 29]),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_each_frame_is_the_one_shown_at_its_moment(tmp_path, suffix, start, rate, expected):
    path = make(tmp_path / f"a.{suffix}", ramp(30), codec="mpeg4" if suffix == "avi" else "libx264")
    clip = read_clip(path, start, frames=5, rate=rate, size=16)
    assert clip.video.dtype == torch.uint8
    assert clip.video.shape == (5, 3, 16, 16)
    assert numbers(clip.video) == expected
    assert clip.audio is None


def test_moments_that_the_file_rounds_are_met(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(30), rate=30)  # its clock ticks in milliseconds
    assert numbers(read_clip(path, 0.0, frames=30, rate=30, size=8).video) == list(range(30))
    assert numbers(read_clip(path, 10 / 30, frames=20, rate=30, size=8).video) == list(range(10, 30))


def test_variable_frame_rate_counts_from_the_first_frame(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(6), moments=[5000, 5100, 5110, 5400, 5900, 6000])
    clip = read_clip(path, 0.0, frames=11, rate=10, size=8)
    assert numbers(clip.video) == [0, 1, 2, 2, 3, 3, 3, 3, 3, 4, 5]


@pytest.mark.parametrize("suffix", ["mkv", "mov", "ts"])
@pytest.mark.parametrize("gap", [10, 1000])
def test_flash_and_click_stay_together(tmp_path, suffix, gap):
    pictures, wave = flash_and_click()
    path = make(tmp_path / f"a.{suffix}", pictures, wave=wave, gap=gap, sound="pcm_s16le" if suffix != "ts" else "mp2")
    clip = read_clip(path, start=3.52, frames=16, rate=25, size=8)
    assert clip.video.float().mean((1, 2, 3)).argmax() == 12
    assert clip.audio.shape == (30720,)
    assert abs(int(clip.audio.abs().argmax()) - 0.48 * 48000) <= 48


def test_a_late_clip_is_not_decoded_from_the_beginning(tmp_path, monkeypatch):
    frame_intervals, decoded = video.frame_intervals, []
    monkeypatch.setattr(
        video,
        "frame_intervals",
        lambda frames, duration: frame_intervals((decoded.append(frame) or frame for frame in frames), duration),
    )
    path = make(tmp_path / "a.mp4", ramp(30) * 5, gap=10)
    assert numbers(read_clip(path, 5.4, 5, 25, 8).video) == [15, 16, 17, 18, 19]
    assert len(decoded) <= 16


def test_sound_is_resampled_to_mono(tmp_path):
    wave = np.stack([0.5 * tone(2, 44100), 0.3 * tone(2, 44100)])
    path = make(tmp_path / "a.mkv", ramp(30) + ramp(20), wave=wave, sample_rate=44100)
    clip = read_clip(path, start=0.5, frames=25, rate=25, size=8, sample_rate=48000)
    assert clip.audio.dtype == torch.float32
    assert clip.audio.shape == (48000,)
    spectrum = torch.fft.rfft(clip.audio).abs() / 24000
    assert spectrum.argmax() == 440
    assert spectrum[440] == pytest.approx(0.4, abs=0.002)
    expected = 0.4 * torch.from_numpy(tone(2, 48000)[24000:72000])
    assert (clip.audio - expected).abs().max() < 0.03  # within the millisecond of the container's clock


def test_resampled_sound_is_complete_and_within_its_range(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(25), wave=np.sign(tone(1, 44100, 441.5))[None], sample_rate=44100)
    audio = read_clip(path, 0.0, 25, 25, 8).audio
    assert audio.abs().max() == 1  # the filter overshoots
    assert audio[-12:].abs().min() > 0.5  # what the filter holds back comes too


@pytest.mark.parametrize(("frames", "rate", "sample_rate", "samples"), [(7, 30, 48000, 11200), (1, 23.976, 16000, 667)])
def test_number_of_samples(tmp_path, frames, rate, sample_rate, samples):
    path = make(tmp_path / "a.mkv", ramp(25), wave=tone(1, 44100)[None], sample_rate=44100)
    clip = read_clip(path, 0.1, frames, rate, 8, sample_rate)
    assert clip.audio.shape == (samples,)
    assert clip.audio[-1] != 0


def test_silence_where_there_is_no_sound(tmp_path):
    for pause in (0.0, 0.3):
        path = make(tmp_path / "a.mkv", ramp(25), wave=np.full((1, 33600), 0.5), pause=(pause, 0.25))
        level = read_clip(path, 0.0, 25, 25, 8).audio.reshape(20, 2400).mean(1)  # 50 ms each
        before = round(pause * 20)
        expected = [0.5] * before + [0] * 5 + [0.5] * (14 - before) + [0]
        assert level.numpy() == pytest.approx(np.array(expected), abs=0.02)


def test_sound_that_ends_too_early_is_refused(tmp_path):
    path = make(tmp_path / "b.mkv", ramp(25), wave=np.full((1, 38400), 0.5))
    with pytest.raises(PerceiversError, match=r"sound of .*b.mkv lasts 0.80 s, .* to 1.00 s: ask for fewer"):
        read_clip(path, 0.0, 25, 25, 8)
    with pytest.raises(PerceiversError, match=r"sound of .*b.mkv lasts 0.80 s, .* 1.00 s: start at 0.40 s or before"):
        read_clip(path, 0.6, 10, 25, 8)
    assert read_clip(path, 0.4, 10, 25, 8).audio.min() > 0.4


def test_frames_are_resized_and_cut_in_the_middle(tmp_path):
    picture = np.zeros((33, 99, 3), dtype=np.uint8)
    picture[:, 33:66] = (200, 100, 50)
    path = make(tmp_path / "a.mkv", [picture] * 3, pix_fmt="yuv444p")
    clip = read_clip(path, 0.0, 1, 25, size=22)
    middle = clip.video[0, :, 2:-2, 3:-3]
    assert (middle.float() - torch.tensor([200.0, 100, 50])[:, None, None]).abs().max() < 12
    assert read_clip(path, 0.0, 1, 25, size=(10, 30)).video.shape == (1, 3, 10, 30)
    assert read_clip(path, 0.0, 1, 25, size=(10, 30)).video[0, 0, 5, [2, 27]].max() < 12


@pytest.mark.parametrize("rotation", [90, -90, 180])
def test_rotated_video_is_turned_upright(tmp_path, rotation):
    upright = np.zeros((48, 32, 3), dtype=np.uint8)
    upright[:16] = 250  # a sky
    path = make(tmp_path / "a.mp4", [np.ascontiguousarray(np.rot90(upright, -rotation // 90))] * 2, rotation=rotation)
    (frame, _) = read_frames(path).frames
    assert frame.shape == (3, 48, 32)
    assert frame[:, 2:14].min() > 240
    assert frame[:, 18:].max() < 10


@pytest.mark.parametrize("pix_fmt", ["gray", "yuv420p10le", "yuvj420p"])
def test_grey_10_bit_and_full_range_video(tmp_path, pix_fmt):
    path = make(tmp_path / "a.mkv", ramp(30), pix_fmt=pix_fmt)
    clip = read_clip(path, 0.2, 20, 25, 8)
    assert (clip.video.float().mean((1, 2, 3)) - STEP * torch.arange(5, 25)).abs().max() < 3


def test_frames_of_a_file_come_one_at_a_time(tmp_path):
    path = make(tmp_path / "a.mp4", ramp(30, 18, 34), rate=30)
    read = read_frames(path)
    assert (read.rate, read.count) == (30, 30)
    first = next(read.frames)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 18, 34)
    assert numbers(torch.stack([first, *read.frames])) == list(range(30))
    assert read_frames(make(tmp_path / "a.mkv", ramp(3))).count is None


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_what_is_written_can_be_read(tmp_path, monkeypatch, suffix, codec):
    if codec == "mpeg4":
        monkeypatch.setattr(av, "codecs_available", {"mpeg4", "aac"})
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 63), torch.linspace(0, 1, 95), indexing="ij")
    frames = [
        torch.stack([rows, columns, 0.5 + 0.5 * torch.sin(6 * rows + index / 5)]).mul(255).byte() for index in range(50)
    ]
    rate = Fraction(30000, 1001)
    sound = torch.from_numpy(0.5 * tone(2, 48000) * np.linspace(0, 1, 96000)).float()
    path = tmp_path / "new" / f"a.{suffix}"
    write_video(path, iter(frames), 29.97, sound)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    read = read_frames(path)
    assert float(read.rate) == pytest.approx(float(rate), rel=1e-3)
    back = torch.stack(list(read.frames))
    assert back.shape == (50, 3, 64, 96)  # both sides are odd
    error = (back[..., :63, :95].float() - torch.stack(frames).float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 37
    assert (back[..., 63, :].float() - back[..., 62, :].float()).abs().mean() < 3
    clip = read_clip(path, 10 * 1001 / 30000, frames=30, rate=float(rate), size=(64, 96))
    assert torch.equal(clip.video, back[10:40])
    for skip in (0, 10):
        audio = read_clip(path, skip * 1001 / 30000, frames=30, rate=float(rate), size=8).audio
        expected = sound[round(skip * 1001 / 30000 * 48000) :][: len(audio)]
        assert (audio - expected).abs().max() < 0.03
    with av.open(str(path)) as container:
        (video,) = container.streams.video
        assert (video.pix_fmt, video.codec_context.name) == ("yuv420p", {"libx264": "h264"}.get(codec, codec))


def test_written_flash_and_click_stay_together(tmp_path):
    pictures, wave = flash_and_click()
    frames = [torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures]
    write_video(tmp_path / "a.mp4", frames, 25, torch.from_numpy(wave[0]))
    clip = read_clip(tmp_path / "a.mp4", start=3.52, frames=16, rate=25, size=8)
    assert clip.video.float().mean((1, 2, 3)).argmax() == 12
    assert abs(int(clip.audio.abs().argmax()) - 0.48 * 48000) <= 48


def test_sound_of_another_length_than_the_pictures(tmp_path):
    frames = [torch.full((3, 16, 16), 9, dtype=torch.uint8)] * 10
    for seconds in (0.2, 1.0):
        write_video(tmp_path / "a.mp4", frames, 25, torch.full((round(seconds * 16000),), 0.5), 16000)
        assert sum(1 for _ in read_frames(tmp_path / "a.mp4").frames) == 10
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) == pytest.approx(16000 * seconds, abs=1024)


def test_nothing_is_left_of_a_video_that_fails(tmp_path):
    def frames(count):
        for _ in range(count):
            yield torch.zeros(3, 16, 16, dtype=torch.uint8)
        raise RuntimeError("no more")

    for count in (0, 1, 30):
        with pytest.raises(RuntimeError, match="no more"):
            write_video(tmp_path / "a.mp4", frames(count), 25)
    with pytest.raises(PerceiversError, match=r"no frames to write to .*a.mp4"):
        write_video(tmp_path / "a.mp4", [], 25)
    with pytest.raises(PerceiversError, match=r"frame 1 for .*a.mp4 has shape \[3, 16, 18\], but the first has"):
        write_video(tmp_path / "a.mp4", [torch.zeros(3, 16, width, dtype=torch.uint8) for width in (16, 18)], 25)
    with pytest.raises(PerceiversError, match=r"rate = 0 is not allowed for .*a.mp4"):
        write_video(tmp_path / "a.mp4", frames(1), 0)
    with pytest.raises(PerceiversError, match=r"a.webm .* must end in .mp4, .mkv, .mov"):
        write_video(tmp_path / "a.webm", frames(1), 25)
    with pytest.raises(PerceiversError, match=r"cannot write .*a.mp4: "):
        write_video(tmp_path / "a.mp4", [torch.zeros(3, 16, 16, dtype=torch.uint8)], 25, torch.zeros(9), 16001)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": -1.0}, r"start = -1.0 is not allowed for .*a.mkv"),
        ({"start": float("nan")}, r"start = nan is not allowed"),
        ({"frames": 0}, r"0 frames at 25 per second of .*a.mkv"),
        ({"rate": 0}, r"10 frames at 0 per second of .*a.mkv"),
        ({"start": 0.9}, r"a.mkv lasts 1.00 s, but .* from 0.90 s to 1.30 s: start at 0.60 s or before"),
        ({"start": 3600.0}, r"a.mkv lasts 1.00 s, but .* from 3600.00 s to 3600.40 s: start at 0.60 s or before"),
        ({"frames": 26}, r"a.mkv lasts 1.00 s, but .* from 0.00 s to 1.04 s: ask for fewer frames"),
    ],
)
def test_a_clip_that_does_not_lie_in_the_file_is_refused(tmp_path, settings, message):
    path = make(tmp_path / "a.mkv", ramp(25))
    with pytest.raises(PerceiversError, match=message):
        read_clip(**{"path": path, "frames": 10, "rate": 25, "size": 8} | settings)
    read_clip(path, 0.6, 10, 25, 8)


def test_unreadable_files_are_refused(tmp_path):
    path = tmp_path / "a.mp4"
    with pytest.raises(PerceiversError, match=r"a.mp4 is not a readable file"):
        read_clip(path)
    path.write_text("not a video")
    for read in (read_clip, read_frames):
        with pytest.raises(PerceiversError, match=r"a.mp4 cannot be read as a video \(Invalid data.*\)"):
            read(path)
    whole = make(path, ramp(30)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PerceiversError, match=r"a.mp4 cannot be read as a video .*truncated"):
        read_clip(path)
    noise = [np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8) for index in range(50)]
    whole = make(tmp_path / "a.mkv", noise).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PerceiversError, match=r"b.mkv (lasts \d.\d\d s, but|cannot be read as a video)"):
        read_clip(tmp_path / "b.mkv", 1.2)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
    for read in (read_clip, read_frames):
        with pytest.raises(PerceiversError, match=r"a.wav has no video"):
            read(tmp_path / "a.wav")


def test_real_video(shared_data):
    path = shared_data / "video" / "flipping_a_pancake.mkv"
    whole = read_clip(path, 0.0, frames=200, rate=25, size=64)
    part = read_clip(path, 4.0, frames=50, rate=25, size=64)
    assert torch.equal(part.video, whole.video[100:150])
    assert part.video.float().std() > 20
    sound = torch.stack([part.audio, whole.audio[4 * 48000 : 6 * 48000]])
    assert torch.corrcoef(sound)[0, 1] > 0.99
    read = read_frames(path)
    assert next(read.frames).shape == (3, 240, 426)
    assert float(read.rate) == pytest.approx(29.97, abs=0.1)


def test_frames_that_change_their_size_are_refused(tmp_path):
    """MPEG transport streams can be joined; the second one has another size."""
    content = b""
    for side in (32, 48):
        with av.open(str(tmp_path / "part.ts"), "w", format="mpegts") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for picture in ramp(4, side, side):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            container.mux(stream.encode(None))
        content += (tmp_path / "part.ts").read_bytes()
    (tmp_path / "a.ts").write_bytes(content)
    with pytest.raises(PerceiversError, match=r"a\.ts has frames of different sizes: convert it to one size"):
        list(read_frames(tmp_path / "a.ts").frames)


def test_large_frames_are_refused_unless_the_limit_is_raised(tmp_path, monkeypatch):
    make(tmp_path / "a.mp4", ramp(3))
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "1023")
    for read in (read_frames, read_clip):
        with pytest.raises(PerceiversError, match=r"a\.mp4 has 1,024 pixels in a frame, more than 1,023"):
            read(tmp_path / "a.mp4")
