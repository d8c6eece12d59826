import json
import math

import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.clips.distances import log_spectral_distance, psnr, snr
from perceivers.clips.reconstruct import autoencode
from perceivers.data.video import read_clip, read_frames
from perceivers.data.video_writer import write_video
from tests.support.cli import fails
from tests.support.models import classifier, coder

FRAMES, SIZE, SAMPLES, SAMPLE_RATE = 4, (16, 16), 1280, 8000


def make_clip(path, frames=12, sound=True):
    """Noise of a gray that rises, and a tone that does."""
    video = [(20 * index + torch.randint(30, (3, 16, 24))).byte() for index in range(frames)]
    time = torch.arange(frames / 25 * SAMPLE_RATE) / SAMPLE_RATE
    tone = time * torch.sin(2 * math.pi * 440 * time)
    write_video(path, video, 25, tone if sound else None, SAMPLE_RATE)
    return path


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4")


@torch.no_grad()
def all_at_once(model, clip, label, masked=True, start=0.0):
    read = read_clip(clip, start, FRAMES, 25, SIZE, SAMPLE_RATE)
    audio = torch.zeros(SAMPLES) if read.audio is None else read.audio
    data = {"video": read.video[None] / 255, "audio": audio[None], "label": torch.tensor([label])}
    encoded = model.encode(data, {"label": torch.tensor([[True]])} if masked else None)
    return {name: answer[0] for name, answer in model.decode(encoded, max_memory=None).items()}


def decibels(decoded, original):
    """Of signals between 0 and 1 or around 0, with a peak of 1."""
    errors = np.asarray(decoded, dtype=np.float64) - np.asarray(original, dtype=np.float64)
    return 10 * np.log10(1.0 / np.mean(errors**2))


@pytest.mark.parametrize("label", [0, 5])
def test_a_frame_at_a_time_is_all_at_once_whatever_the_label(clip, label):
    model, encoded = coder(), []
    expected, seen = all_at_once(model, clip, label), all_at_once(model, clip, label, masked=False)
    assert (expected["label"] - seen["label"]).abs().max() > 1e-3, "an unmasked label makes a difference"
    model.encoder.register_forward_hook(lambda *call: encoded.append(call))
    result = autoencode(model, clip)
    assert len(encoded) == 1
    assert result.video.shape == (FRAMES, 3, *SIZE)
    torch.testing.assert_close(result.video, expected["video"].clamp(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.audio, expected["audio"].clamp(-1, 1), rtol=1e-4, atol=1e-5)
    probability = expected["label"].softmax(0).tolist()
    assert result.classes == pytest.approx({str(index): value for index, value in enumerate(probability)}, rel=1e-4)
    assert list(result.classes.values()) == sorted(result.classes.values(), reverse=True)


def test_one_frame_is_decoded_at_a_time(clip):
    model, asked = coder(), []
    model.decoder.attention.query.register_forward_hook(lambda *call: asked.append(call[2].shape[1]))
    autoencode(model, clip)
    assert sorted(asked) == sorted([1, SAMPLES // 16] + [SIZE[0] * SIZE[1]] * FRAMES)


def test_values_outside_the_range_are_cut(clip):
    model = coder()
    model.heads["video"].bias.data = torch.tensor([100.0, -100.0, 0.0])
    model.heads["audio"].bias.data += torch.tensor([100.0, -100.0]).repeat(8)
    result = autoencode(model, clip)
    assert (result.video[:, 0] == 1).all()
    assert (result.video[:, 1] == 0).all()
    assert torch.equal(result.audio, torch.tensor([1.0, -1.0]).repeat(SAMPLES // 2))


def test_the_names_of_the_classes(clip):
    result = autoencode(coder(class_names=["a", "b", "c", "b", "d", "e", "f"]), clip)
    assert sorted(result.classes) == ["a", "b (1)", "b (3)", "c", "d", "e", "f"]


def test_psnr_by_its_definition():
    original = torch.rand(3, 5)
    assert psnr(original + 0.1, original) == pytest.approx(20.0, abs=1e-4)
    assert psnr(1 - original, original) == pytest.approx(decibels(1 - original, original), abs=1e-4)
    assert psnr(original, original) == math.inf


def test_signal_to_noise_by_its_definition():
    original = torch.randn(1000)
    assert snr(0 * original, original) == 0
    assert float(snr(0.9 * original, original)) == pytest.approx(20, abs=1e-4)
    assert float(snr(1.1 * original, original)) == pytest.approx(20, abs=1e-4)


def test_the_spectral_distance_of_a_quieter_sound_is_the_difference_in_decibels():
    original = torch.randn(4000)
    assert float(log_spectral_distance(original / 10, original)) == pytest.approx(20, abs=0.1)
    assert log_spectral_distance(-original, original) == 0
    assert log_spectral_distance(original[:100], original[:100]) == 0, "shorter than a window"


def test_what_is_measured(clip):
    model = coder()
    result, original = autoencode(model, clip), read_clip(clip, 0, FRAMES, 25, SIZE, SAMPLE_RATE)
    assert result.video_psnr == pytest.approx(decibels(result.video, original.video / 255.0), abs=1e-4)
    assert result.audio_psnr == pytest.approx(decibels(result.audio, original.audio), abs=1e-4)


def test_a_later_start(clip):
    model = coder()
    later = all_at_once(model, clip, 0, start=0.2)
    assert (later["video"] - all_at_once(model, clip, 0)["video"]).abs().max() > 1e-3
    torch.testing.assert_close(
        autoencode(model, clip, start=0.2).video, later["video"].clamp(0, 1), rtol=1e-4, atol=1e-5
    )


def test_the_video_shows_the_clip_beside_what_was_decoded(clip, tmp_path):
    model = coder()
    model.heads["video"].weight.data.zero_()
    model.heads["video"].bias.data = torch.tensor([0.25, 0.5, 0.75])
    result = autoencode(model, clip, tmp_path / "out.mp4")
    original = read_clip(clip, 0, FRAMES, 25, SIZE, SAMPLE_RATE)
    written = read_frames(tmp_path / "out.mp4")
    frames = torch.stack(list(written.frames)).float()
    assert written.rate == 25
    assert frames.shape == (FRAMES, 3, SIZE[0], 2 * SIZE[1])
    left, right = frames.split(SIZE[1], -1)
    assert (left.mean((1, 2, 3)) - original.video.float().mean((1, 2, 3))).abs().max() < 3
    expected = 255 * torch.tensor([0.25, 0.5, 0.75])[:, None, None]
    assert (right[..., 2:] - expected).abs().mean() < 3  # away from the seam, where colors are shared
    sound = read_clip(tmp_path / "out.mp4", 0, FRAMES, 25, SIZE, SAMPLE_RATE).audio
    similar = torch.corrcoef(torch.stack([sound, result.audio]))[0, 1]
    assert similar > 0.5


def test_without_sound_silence_is_heard_with_a_notice(tmp_path, caplog):
    model, silent = coder(), make_clip(tmp_path / "silent.mp4", sound=False)
    result = autoencode(model, silent, tmp_path / "out.mp4")
    assert result.audio_psnr is None
    assert caplog.messages == [f"{silent} has no sound: silence is used instead."]
    expected = all_at_once(model, silent, 0)
    torch.testing.assert_close(result.audio, expected["audio"].clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert math.isfinite(result.video_psnr)


def test_a_clip_with_sound_gives_no_notice(clip, caplog):
    assert autoencode(coder(), clip).audio_psnr is not None
    assert not caplog.records


def test_a_given_model_can_be_trained_afterwards(clip):
    model = coder()
    result = autoencode(model, clip, dtype="bfloat16")
    data = {"video": result.video[None], "audio": result.audio[None], "label": torch.tensor([0])}
    model.train()(data)["label"].sum().backward()
    assert model.encoder.latents.grad is not None


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("none/out.mp4", "there is no folder .*none; make it"),
        ("out.gif", "out.gif cannot be written as a video"),
        ("folder.mp4", "folder.mp4: it is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_computed(clip, tmp_path, out, message):
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PerceiversError, match=message):
        autoencode("not loaded", clip, tmp_path / out)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def folder(tmp_path):
    coder(class_names=list("abcdefg")).save(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command_prints_and_writes(folder, clip, tmp_path, capsys):
    out = str(tmp_path / "out.mkv")
    expected = autoencode(folder, clip, start=0.12)
    main(["autoencode", folder, str(clip), "--out", out, "--start", "0.12", "--top", "2"])
    first, *classes = capsys.readouterr().out.splitlines()
    figures = (expected.video_psnr, expected.audio_psnr, expected.audio_snr)
    video, audio, snr = (f"{value:.2f} dB" for value in figures)
    assert first == f"{out}: PSNR of the video {video}, PSNR of the sound {audio}, signal-to-noise ratio {snr}."
    assert classes == [f"{100 * value:8.2f}%  {name}" for name, value in list(expected.classes.items())[:2]]
    assert len(list(read_frames(out).frames)) == FRAMES
    main(["autoencode", folder, str(clip), "--out", out, "--start", "0.12", "--top", "3", "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ["out", "video_psnr", "audio_psnr", "audio_snr", "classes"]
    assert answer["out"] == out
    assert answer["video_psnr"] == pytest.approx(expected.video_psnr, abs=1e-3)
    assert answer["audio_psnr"] == pytest.approx(expected.audio_psnr, abs=1e-3)
    assert list(answer["classes"]) == list(expected.classes)[:3]


def test_the_command_without_sound(folder, tmp_path, capsys):
    silent, out = make_clip(tmp_path / "silent.mp4", sound=False), str(tmp_path / "out.mp4")
    main(["autoencode", folder, str(silent), "--out", out])
    assert capsys.readouterr().out.splitlines()[0].endswith(" dB, no sound.")
    main(["autoencode", folder, str(silent), "--out", out, "--json"])
    assert json.loads(capsys.readouterr().out)["audio_psnr"] is None


def test_what_the_command_cannot_do_ends_in_one_sentence(folder, clip, tmp_path, capsys):
    classifier().save(tmp_path / "classifier")
    out = ["--out", str(tmp_path / "out.mp4")]
    for arguments, message in [
        ([folder, str(make_clip(tmp_path / "short.mp4", frames=3)), *out], "short.mp4 lasts 0.12 s, but the clip is"),
        ([folder, str(clip), *out, "--start", "0.4"], "clip.mp4 lasts 0.48 s, but the clip is from 0.40 s"),
        ([folder, str(clip), *out, "--start=-1"], "start = -1.0 is not allowed"),
        ([folder, str(tmp_path / "none.mp4"), *out], "none.mp4 is not a readable file"),
        ([folder, f"{folder}/config.json", *out], "config.json cannot be read as a video"),
        ([str(tmp_path / "classifier"), str(clip), *out], "cannot do autoencode, which needs one VideoInput"),
        ([folder, str(clip), "--out", str(tmp_path / "none" / "out.mp4")], "there is no folder"),
        ([folder, str(clip), "--out", str(tmp_path / "out.avi")], "out.avi cannot be written as a video"),
    ]:
        assert message in fails(capsys, "autoencode", *arguments)
        assert not list(tmp_path.glob("*out*"))
