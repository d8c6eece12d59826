import json

import numpy as np
import pytest
import torch

from benchmarks import multimodal
from benchmarks.multimodal import CONFIGS, RUNS, accuracy, folder, keeps_up, windows, without_model, write_digits
from perceivers.clips.data import ClipData
from perceivers.clips.model import Window
from perceivers.clips.windows import read_window
from perceivers.data.video_writer import write_video
from perceivers.images.data import load_digit_images
from perceivers.training.config import read_config
from tests.clips.test_windows import wav

SEEN = Window(frames=2, size=(16, 16), samples=8192, sample_rate=8000)


def test_every_run_is_a_config():
    for run in RUNS.values():
        read_config(CONFIGS / run.config, [*run.changes, "--data.path=somewhere"])


@pytest.fixture
def written(tmp_path):
    """Clips of digits 0 and 1 of a folder of recordings, which are tones."""
    for split, count in (("train", 12), ("val", 6)):
        for label in (0, 1):
            (tmp_path / "spoken" / split / str(label)).mkdir(parents=True)
            for number in range(count):
                samples = 0.5 * np.sin(2 * np.pi * (300 + 900 * label) * np.arange(2400) / 8000)
                (tmp_path / "spoken" / split / str(label) / f"{number}.wav").write_bytes(wav(samples))
    write_digits(tmp_path / "spoken", tmp_path / "clips")
    return ClipData(str(tmp_path / "clips")).open()


def test_a_digit_is_seen_and_heard_or_one_of_both(written):
    assert (len(written.training), len(written.evaluation)) == (24, 12)
    images = load_digit_images()
    known = {0: [], 1: []}
    for place in range(len(images.training)):
        if images.training.labels[place] in known:
            known[images.training.labels[place]].append(np.asarray(images.training.read(place, 1), dtype=np.float32))
    kinds = []
    for index in range(24):
        seen = read_window(written.training.media(index), SEEN, 0.0)
        assert seen.video_mask.all()
        assert seen.audio_mask.all()
        picture = seen.video[0].float().mean(0).unflatten(0, (8, 2)).unflatten(2, (8, 2)).mean((1, 3)).numpy()
        label = written.training.labels[index]
        near = min(np.abs(picture - other).mean() for other in known[label])
        is_noise, silent = near > 25, seen.audio.std() < 0.01
        assert not (is_noise and silent)
        if not silent:
            spectrum = torch.fft.rfft(seen.audio).abs()
            assert int(spectrum.argmax()) * 8000 / 8192 == pytest.approx(300 + 900 * label, rel=0.05)
        kinds.append((bool(is_noise), bool(silent)))
    assert len(set(kinds)) == 3


def test_the_table_is_read_from_the_runs(tmp_path):
    run = folder(tmp_path, "digits, mel, without theo")
    assert run.name == "digits_mel_without_theo"
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"val_top1": 0.875, "seconds": 120, "parameters": 640000}))
    (run / "config.json").write_text(json.dumps({"trainer": {"max_epochs": 12}}))
    table = accuracy(tmp_path, ["digits, mel, without theo"])
    assert table.splitlines()[-1] == "| digits, mel, without theo | 87.5% | 12 | 2 | 0.64M |"


def test_what_no_model_would_be_right_about(tmp_path):
    """Frames that are black and white in turn, and a constant sound."""
    video = [torch.full((3, 64, 64), 255 * (number % 2), dtype=torch.uint8) for number in range(200)]
    write_video(tmp_path / "a.mkv", video, 25, torch.full((8 * 16000,), 0.1), 16000)
    training, evaluation = windows(tmp_path / "a.mkv")
    assert len(training) > len(evaluation) == 2
    found, sound = without_model(tmp_path / "a.mkv")
    assert found == pytest.approx(-10 * np.log10(0.25), abs=0.5)
    assert sound == pytest.approx(20, abs=1)


def test_reading_beside_training(tmp_path):
    video = [torch.full((3, 64, 64), 255 * (number % 2), dtype=torch.uint8) for number in range(200)]
    write_video(tmp_path / "a.mkv", video, 25, torch.full((8 * 16000,), 0.1), 16000)
    log = folder(tmp_path, "clip, 40 latents") / "csv/version_0/metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text("step,examples_per_second\n9,10.0\n19,24.0\n29,30.0\n")
    *_, file, memory, trained = keeps_up(tmp_path, ["clip, 40 latents"], tmp_path / "a.mkv").splitlines()
    assert trained == "| trained on: clip, 40 latents | 24 |"
    assert float(memory.split("|")[2]) > 3 * float(file.split("|")[2]) > 0  # cut from memory, not decoded


def test_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(multimodal, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/multimodal.md").write_text(f"before\n{multimodal.START}old\n{multimodal.END}after\n")
    run = folder(tmp_path, "seen")
    run.mkdir()
    (run / "metrics.json").write_text(json.dumps({"val_top1": 0.5, "seconds": 60, "parameters": 640000}))
    (run / "config.json").write_text(json.dumps({"trainer": {"max_epochs": 3}}))
    multimodal.report(tmp_path, tmp_path / "none.mkv")
    text = (tmp_path / "docs/multimodal.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| seen | 50.0% | 3 | 1 | 0.64M |" in text
