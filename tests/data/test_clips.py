import io
import wave

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from perceivers import PerceiversError

pytest.importorskip("av")
from perceivers.data.clips import ClipData, ClipDataset, Window, collate, read_window
from perceivers.data.loader import Item
from perceivers.data.video import Content, read_clip
from tests.data.test_video import flash_and_click, make, numbers, ramp, tone

SOUND = Window(samples=800, sample_rate=8000)  # 0.1 s
BOTH = Window(frames=5, size=(16, 16), samples=9600)  # 0.2 s


def wav(samples, sample_rate=8000):
    """The bytes of a recording of 16 bits."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.asarray(samples) * 32767).round().astype("<i2").tobytes())
    return content.getvalue()


def stairs(count):
    """Recordings of which every sample tells its number."""
    return np.arange(count) / 4096


@pytest.mark.parametrize(("place", "first"), [(0.0, 0), (0.25, 300), (0.5, 600), (1.0, 1200)])
def test_a_window_moves_from_the_beginning_of_a_clip_to_its_end(place, first):
    seen = read_window(Content(wav(stairs(2000)), "a recording"), SOUND, place)
    assert seen.video is seen.shown is None
    assert seen.heard.all()
    torch.testing.assert_close(seen.audio * 4096, first + torch.arange(800.0), atol=0.2, rtol=0)


@pytest.mark.parametrize(("place", "before"), [(0.0, 0), (0.5, 300), (1.0, 600)])
def test_a_clip_shorter_than_its_window_is_masked_around(tmp_path, place, before):
    (tmp_path / "a.wav").write_bytes(wav(stairs(201)[1:]))
    seen = read_window(tmp_path / "a.wav", SOUND, place)
    assert torch.equal(seen.heard.nonzero()[:, 0], torch.arange(before, before + 200))
    torch.testing.assert_close(seen.audio[seen.heard] * 4096, 1 + torch.arange(200.0), atol=0.2, rtol=0)
    assert (seen.audio[~seen.heard] == 0).all()


def test_frames_and_sound_begin_at_the_same_moment(tmp_path):
    pictures, sound = flash_and_click(at=4.0, seconds=6)
    path = make(tmp_path / "a.mkv", pictures, wave=sound)
    window = Window(frames=25, size=(16, 16), samples=48000)
    seen = read_window(path, window, place=3.6 / 5)
    assert int(seen.video.float().mean((1, 2, 3)).argmax()) == 10  # at 4.0 s
    assert abs(int(seen.audio.abs().argmax()) - round(0.4 * 48000)) <= 5
    clip = read_clip(path, 3.6, frames=25, size=16)
    assert torch.equal(seen.video, clip.video)
    torch.testing.assert_close(seen.audio, clip.audio)
    assert seen.shown.all()
    assert seen.heard.all()


def test_a_video_shorter_than_its_window_is_masked_around(tmp_path):
    path = make(tmp_path / "a.mkv", ramp(3), wave=tone(0.12, 48000)[None])
    for place, before in ((0.0, 0), (1.0, 2)):
        seen = read_window(path, BOTH, place)
        assert seen.shown.nonzero()[:, 0].tolist() == [before, before + 1, before + 2]
        assert numbers(seen.video[seen.shown]) == [0, 1, 2]
        heard = seen.heard.nonzero()[:, 0]
        assert abs(int(heard[0]) - before * 1920) < 100
        assert abs(len(heard) - 5760) < 100


def test_a_missing_modality_is_masked_not_faked(tmp_path):
    silent = read_window(make(tmp_path / "a.mkv", ramp(10)), BOTH, 0.5)
    assert silent.shown.all()
    assert not silent.heard.any()
    (tmp_path / "b.wav").write_bytes(wav(stairs(4000)))
    blind = read_window(tmp_path / "b.wav", BOTH, 0.5)
    assert not blind.shown.any()
    assert not blind.video.any()
    assert blind.heard.all()


def test_what_a_window_cannot_show(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(stairs(4000)))
    with pytest.raises(PerceiversError, match=r"a\.wav has no moving pictures: leave it out"):
        read_window(tmp_path / "a.wav", Window(frames=3), 0.0)
    with pytest.raises(PerceiversError, match=r"a\.mkv has no sound: leave it out"):
        read_window(make(tmp_path / "a.mkv", ramp(10)), SOUND, 0.0)
    with pytest.raises(PerceiversError, match="a recording cannot be read"):
        read_window(Content(b"RIFF and no more", "a recording"), SOUND, 0.0)
    with pytest.raises(PerceiversError, match="an empty one is empty, or nothing of it can be decoded"):
        read_window(Content(wav([]), "an empty one"), SOUND, 0.0)
    with pytest.raises(PerceiversError, match=r"none\.wav is not a file"):
        read_window(tmp_path / "none.wav", SOUND, 0.0)


def test_sound_that_is_no_number_is_refused(tmp_path):
    samples = np.zeros(4000, dtype=np.float32)
    samples[2000] = np.nan
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    with pytest.raises(PerceiversError, match=r"the sound of .*a\.wav has NaN"):
        read_window(tmp_path / "a.wav", SOUND, 0.5)


def make_folder(root):
    """Two classes of three recordings; the first sample of each but a broken one tells which it is."""
    for label, name in enumerate(("high", "low")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            samples = np.full(1000, (3 * label + number + 1) / 10)
            (root / name / f"{number}.wav").write_bytes(wav(samples))
    (root / "low" / "1.wav").write_bytes(b"nothing")
    return root


def test_clips_of_a_folder_become_batches_without_those_that_cannot_be_read(tmp_path):
    clips = ClipData(str(make_folder(tmp_path / "data"))).open()
    assert clips.training.classes == ["high", "low"]
    assert (len(clips.training), len(clips.evaluation)) == (5, 1)
    every = ClipData(str(tmp_path / "data"), held_out=0.5).open()
    order = [int(every.training.describe(i)[-5]) + 3 * every.training.labels[i] for i in range(3)]
    batch = collate([ClipDataset(every.training, SOUND, 1)[Item(i, 0)] for i in range(3)])
    readable = [number for number in order if number != 4]
    torch.testing.assert_close(batch["audio"][:, 400], (torch.tensor(readable) + 1) / 10, atol=1e-3, rtol=0)
    assert batch["label"].tolist() == [number // 3 for number in readable]
    assert [problem for problem in batch["problems"] if "low/1.wav cannot be read" not in problem] == []
    assert len(batch["problems"]) == (4 in order)
    assert "video" not in batch
    assert set(collate([{"problem": "broken"}])) == {"problems"}


def test_training_places_windows_at_random_and_evaluation_evenly(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav(stairs(2000)))
    clips = ClipData(str(tmp_path), held_out=0.5).open().training

    def first(windows, *item):
        return round(float(ClipDataset(clips, SOUND, windows)[Item(*item)]["seen"].audio[0]) * 4096)

    assert [first(3, number, 0) for number in range(3)] == [0, 600, 1200]
    assert first(1, 0, 0) == 600
    places = {first(None, 0, seed) for seed in range(20)}
    assert len(places) > 15
    assert min(places) < 300 < 900 < max(places) <= 1200
    assert first(None, 0, 7) == first(None, 0, 7)
    dataset = ClipDataset(clips, SOUND, 3)
    assert (len(dataset), dataset[Item(2, 0)]["clip"]) == (3, 0)


def test_recordings_in_a_column_of_a_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["low", "high"])})
    (tmp_path / "data").mkdir()
    for split, count in (("train", 4), ("test", 2)):
        sounds = [{"bytes": wav(np.full(900, (i + 1) / 10)), "path": f"{i}.wav"} for i in range(count)]
        rows = [{"audio": sound, "label": i % 2} for i, sound in enumerate(sounds)]
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = ClipData(str(tmp_path / "data")).open()
    assert splits.training.classes == ["low", "high"]
    assert splits.evaluation.labels == [0, 1]
    torch.testing.assert_close(splits.training.read(3, SOUND, 0.5).audio, torch.full((800,), 0.4), atol=1e-3, rtol=0)
    with pytest.raises(PerceiversError, match=r"data.clip_column: .* has no column 'sound'"):
        ClipData(str(tmp_path / "data"), clip_column="sound").open()


def test_the_spoken_digits(shared_data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = ClipData(str(shared_data / "spoken_digits")).open()
    assert (len(splits.training), len(splits.evaluation)) == (2700, 300)
    assert splits.training.classes == list("0123456789")
    seen = splits.evaluation.read(0, Window(samples=8000, sample_rate=8000), 0.5)
    assert 1000 < seen.heard.sum() <= 8000
    assert seen.audio[seen.heard].std() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"held_out": 1.0}, "data.held_out = 1.0 is not allowed"),
        ({"windows": 0}, "data.windows = 0 is not allowed"),
    ],
)
def test_values_that_are_not_allowed(fields, message):
    with pytest.raises(PerceiversError, match=message):
        ClipData("clips", **fields)
    with pytest.raises(PerceiversError, match=r"data\.path is not given"):
        ClipData().open()
