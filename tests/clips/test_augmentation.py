import math

import numpy as np
import pytest
import torch

from perceivers import PerceiversError

pytest.importorskip("av")
from perceivers.clips.augmentation import SoundAugmentation, draw_curve
from perceivers.clips.data import ClipData
from perceivers.clips.model import Window
from perceivers.clips.windows import ClipWindow
from perceivers.data.loader import SampleIndex
from tests.clips.test_windows import numbers, wav
from tests.data.test_video import make, ramp, tone

WINDOW = Window(samples=800, sample_rate=8000)
ALL = {"speed": (0.7, 1.4), "equalizer": 6.0, "frequency_mask": 0.3, "noise": (0.0, 20.0), "time_mask": 0.4}


def sine(cycles, samples):
    return torch.sin(2 * math.pi * cycles * torch.arange(samples) / samples + 0.3)


def noise(samples=800):
    return torch.randn(samples, generator=torch.Generator().manual_seed(5))


def augment(sound, seed=0, mask=None, window=WINDOW, **settings):
    mask = torch.ones(len(sound), dtype=torch.bool) if mask is None else mask
    clip = ClipWindow(None, None, sound, mask)
    generator = torch.Generator().manual_seed(seed)
    augmented = SoundAugmentation(**settings).augment_sound(clip, window, generator)
    return augmented.audio, augmented.audio_mask


@pytest.fixture
def tones(tmp_path):
    """Two recordings of a tone of 400 Hz, the first twice as long as a window, the second half as long."""
    for name, samples in (("a", 1600), ("b", 400)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav(0.5 * sine(samples / 20, samples).numpy()))
    return ClipData(str(tmp_path), validation_fraction=0.1)


def datasets(data, **settings):
    return data.datasets(data.open(), WINDOW, SoundAugmentation(**settings))


@pytest.mark.parametrize("before", [560, 799, 800, 801, 1120])
def test_resampling_keeps_the_cycles_of_a_sine(before):
    sound, mask = augment(sine(40, before))
    torch.testing.assert_close(sound, sine(40, 800), atol=1e-3, rtol=0)
    assert mask.all()


def test_resampling_removes_what_the_sample_rate_cannot_represent():
    sound, _ = augment(sine(40, 1600) + sine(500, 1600))
    torch.testing.assert_close(sound, sine(40, 800), atol=1e-3, rtol=0)


def test_the_mask_is_resampled_with_the_sound():
    mask = torch.arange(1600) >= 1000
    sound, found = augment(torch.ones(1600), mask=mask)
    assert found.equal(torch.arange(800) >= 500)
    assert not sound[:500].any()


@pytest.mark.parametrize("speed", [0.8, 1.25])
@pytest.mark.parametrize("cache_gb", [0.0, 0.1])
def test_speed_multiplies_frequencies_and_divides_durations(tones, speed, cache_gb):
    tones.cache_gb = cache_gb
    training, evaluation = datasets(tones, speed=(speed, speed))
    samples = {len(training.clips.describe(i)): training[SampleIndex(i, 3)] for i in range(len(training))}
    for sample in samples.values():
        real = sample["audio"][sample["audio_mask"]]
        is_long = len(real) == 800
        assert is_long or len(real) == pytest.approx(400 / speed, abs=2)
        spectrum = torch.fft.rfft(real, 8000).abs()
        assert int(spectrum.argmax()) == pytest.approx(400 * speed, rel=0.02)
    plain = evaluation[SampleIndex(0, 3)]
    assert int(torch.fft.rfft(plain["audio"], 8000).abs().argmax()) == pytest.approx(400, rel=0.02)


def test_speed_is_that_of_the_frames_too(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        make(tmp_path / name / "1.mkv", ramp(20), rate=20, wave=tone(1.0, 8000)[None], sample_rate=8000)
    data, window = ClipData(str(tmp_path)), Window(4, (16, 16), 20.0, 1600, 8000)
    splits = data.open()
    for speed in (1.0, 2.0):
        augmentation = SoundAugmentation(speed=(speed, speed))
        training, _ = data.datasets(splits, window, augmentation)
        sample = training[SampleIndex(0, 0)]
        assert (np.diff(numbers(sample["video"])) == speed).all()
        assert sample["audio"].shape == (1600,)


def test_the_factor_of_the_speed_is_in_its_range():
    settings = SoundAugmentation(speed=(0.5, 2.0))
    generator = torch.Generator().manual_seed(0)
    samples = torch.tensor([settings.draw_window(WINDOW, generator).samples for _ in range(400)])
    assert 400 <= samples.min() < 420
    assert 1550 < samples.max() <= 1600
    assert (samples < 800).float().mean() == pytest.approx(0.5, abs=0.06)  # the logarithm is uniform


def test_samples_are_unchanged_without_augmentation(tones):
    (off, _), (none, _) = datasets(tones), tones.datasets(tones.open(), WINDOW)
    for seed in range(3):
        assert off[SampleIndex(0, seed)]["audio"].equal(none[SampleIndex(0, seed)]["audio"])
        assert off[SampleIndex(0, seed)]["audio_mask"].equal(none[SampleIndex(0, seed)]["audio_mask"])


def test_the_seed_of_a_sample_decides_its_augmentation(tones):
    training, evaluation = datasets(tones, **ALL)
    first, again, other = (training[SampleIndex(0, seed)] for seed in (4, 4, 5))
    assert first["audio"].equal(again["audio"])
    assert first["audio_mask"].equal(again["audio_mask"])
    assert not first["audio"].equal(other["audio"])
    assert not first["audio"][~first["audio_mask"]].any()
    assert evaluation.augmentation is None


def test_the_equalizer_is_a_smooth_filter_within_its_range():
    decibels = []
    for seed in range(20):
        sound, _ = augment(noise(), seed, equalizer=6.0)
        decibels.append(20 * (torch.fft.rfft(sound).abs() / torch.fft.rfft(noise()).abs())[1:-1].log10())
    gains = torch.stack(decibels)
    assert gains.abs().max() < 6.01
    assert gains.std(0).min() > 1
    assert gains.diff(dim=1).abs().max() < 0.6
    assert (gains.amax(1) - gains.amin(1)).min() > 2
    ends = draw_curve(6.0, 401, torch.Generator().manual_seed(1))[[0, -1]]
    points = 12 * torch.rand(8, generator=torch.Generator().manual_seed(1)) - 6
    torch.testing.assert_close(ends, 10 ** (points[[0, -1]] / 20))


def test_a_band_of_frequencies_is_removed():
    widths = []
    for seed in range(20):
        sound, _ = augment(noise(), seed, frequency_mask=0.25)
        before, after = torch.fft.rfft(noise()), torch.fft.rfft(sound)
        removed = (after.abs() < 1e-3 * before.abs()).nonzero().flatten()
        torch.testing.assert_close(after.abs().sum(), before.abs().sum() - before.abs()[removed].sum())
        assert removed.equal(torch.arange(removed[0], removed[-1] + 1) if len(removed) else removed)
        widths.append(len(removed))
    assert max(widths) <= round(0.25 * 401)
    assert max(widths) > 70
    assert min(widths) < 30


@pytest.mark.parametrize("ratio", [0.0, 10.0, 30.0])
def test_noise_has_its_ratio_to_the_sound(ratio):
    mask = torch.arange(800) < 600
    sound = 0.1 * sine(40, 800) * mask
    noisy, found = augment(sound, mask=mask, noise=(ratio, ratio), equalizer=0.0)
    assert found.equal(mask)
    power = sound[mask].square().mean() / (noisy - sound)[mask].square().mean()
    assert 10 * power.log10() == pytest.approx(ratio, abs=1e-2)
    assert not noisy[600:].any()
    assert not augment(torch.zeros(800), mask=torch.zeros(800, dtype=torch.bool), noise=(0.0, 0.0))[0].any()


def test_an_interval_of_the_sound_is_masked():
    begins, lengths = [], []
    for seed in range(50):
        sound, mask = augment(torch.ones(800), seed, time_mask=0.25)
        gone = (~mask).nonzero().flatten()
        lengths.append(len(gone))
        assert sound.equal(mask.float())
        if len(gone):
            begins.append(int(gone[0]))
            assert int(gone[-1]) - begins[-1] + 1 == len(gone)
    assert max(lengths) <= 200
    assert sum(lengths) / 50 == pytest.approx(100, rel=0.25)
    assert min(begins) < 80
    assert max(begins) > 550


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speed": (1.2, 0.8)}, r"augmentation\.speed = .* is not allowed: it must be two numbers above 0, in order"),
        ({"speed": (0.0, 1.0)}, r"augmentation\.speed = .* two numbers above 0"),
        ({"speed": (0.5, math.inf)}, r"augmentation\.speed = .* two numbers above 0"),
        ({"noise": (20.0, 5.0)}, r"augmentation\.noise = .* is not allowed: it must be two numbers, in order"),
        ({"equalizer": -1.0}, r"augmentation\.equalizer = -1\.0 is not allowed: it must be at least 0"),
        ({"frequency_mask": 1.0}, r"augmentation\.frequency_mask = 1\.0 is not allowed"),
        ({"time_mask": 1.0}, r"augmentation\.time_mask = 1\.0 is not allowed"),
    ],
)
def test_wrong_settings_are_refused(fields, message):
    with pytest.raises(PerceiversError, match=message):
        SoundAugmentation(**fields)
