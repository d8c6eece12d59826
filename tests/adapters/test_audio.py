import math

import pytest
import torch

from perceivers import FourierPositions, InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.audio import mel_filters


def positions():
    return FourierPositions((6,), 3, (24,))


def test_patches_hold_their_samples_and_their_place():
    adapter = AudioInput(4, positions())
    sound = torch.rand(2, 24) * 2 - 1
    array = adapter(sound)
    assert array.grid == (6,)
    assert array.x_BMC.shape == (2, 6, adapter.channels) == (2, 6, 4 + 7)
    assert torch.equal(array.x_BMC[1, 4, :4], sound[1, 16:20])
    angles = torch.pi * 0.6 * torch.tensor([1, 6.5, 12])  # place 4 of 0 ... 5; up to half the number of samples
    want = torch.cat([torch.tensor([0.6]), angles.sin(), angles.cos()])
    torch.testing.assert_close(array.x_BMC[1, 4, 4:], want, atol=1e-5, rtol=0)


def test_longer_sound_is_taken():
    assert AudioInput(4, positions())(torch.rand(1, 40)).x_BMC.shape[1] == 10


def test_a_patch_with_a_real_sample_is_real():
    mask = torch.zeros(2, 24, dtype=torch.bool)
    mask[0, 7:9] = True
    array = AudioInput(4, positions())(InputArray(torch.rand(2, 24), mask))
    assert array.mask_BM.tolist() == [[False, True, True, False, False, False], [False] * 6]
    adapter = MelInput((2, 5), FourierPositions((4, 2), 2), bands=10, hop=3, window=6, sample_rate=8000)
    array = adapter(InputArray(torch.rand(2, 24), mask))  # patches of 6 samples, two bands of each moment
    assert array.mask_BM.tolist() == [[False, False, True, True, False, False, False, False], [False] * 8]


def model():
    model = PerceiverIO(
        {"audio": AudioInput(4, positions())}, {"audio": AudioOutput(4, positions())}, 3, 16, 1, heads=2
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_samples_stand_where_their_query_asked():
    chosen = model()
    encoded = chosen.encode({"audio": torch.rand(2, 24)})
    sound = chosen.decode(encoded)["audio"]
    assert sound.shape == (2, 24)
    y_BOE = chosen.decoder(chosen.outputs["audio"].positions()[4].expand(2, 1, -1), encoded.latents)
    torch.testing.assert_close(sound[:, 16:20], chosen.heads["audio"](y_BOE)[:, 0])


@pytest.mark.parametrize("points", [[3, 0, 5, 3], [[3, 0], [5, 1]]])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_some_patches_are_those_of_the_full_sound(points, max_memory):
    chosen = model()
    encoded = chosen.encode({"audio": torch.rand(2, 24)})
    points = torch.tensor(points)
    full = chosen.decode(encoded, max_memory=None)["audio"].view(2, 6, 4)
    some = chosen.decode(encoded, {"audio": points}, max_memory)["audio"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(2, -1)[..., None], 1))


def test_wrong_sound_is_refused():
    for shape in ((1, 23), (24,), (1, 24, 1)):
        with pytest.raises(PerceiversError, match=r"is expected, with samples a multiple of 4"):
            AudioInput(4, positions())(torch.rand(*shape))


def test_mel_filters_are_librosas():
    """`librosa.filters.mel(sr=16000, n_fft=32, n_mels=5)`, version 0.11.0: bands below and above 1,000 Hz."""
    want = torch.zeros(5, 17)
    want[0, 1:3] = torch.tensor([1.97798e-3, 2.232e-5])
    want[1, 2:4] = torch.tensor([1.66716e-3, 4.6617e-4])
    want[2, 3:6] = torch.tensor([7.9041e-4, 7.9628e-4, 3.2026e-4])
    want[3, 4:10] = torch.tensor([1.7635e-4, 4.5979e-4, 5.9526e-4, 4.2649e-4, 2.5772e-4, 8.895e-5])
    want[4, 6:11] = torch.tensor([3.288e-5, 1.3337e-4, 2.3387e-4, 3.3436e-4, 3.5903e-4])
    want[4, 11:16] = torch.tensor([2.9919e-4, 2.3935e-4, 1.7951e-4, 1.1968e-4, 5.984e-5])
    torch.testing.assert_close(mel_filters(5, 32, 16000), want, atol=1e-8, rtol=0)


def test_spectrograms_are_librosas():
    """`librosa.feature.melspectrogram(y=..., sr=16000, n_fft=512, hop_length=256, n_mels=20)` of a rising tone."""
    tone = 0.5 * torch.sin(2 * torch.pi * torch.linspace(100, 7000, 4096, dtype=torch.float64).cumsum(0) / 16000)
    adapter = MelInput((1, 1), FourierPositions((16, 20), 2), bands=20, hop=256, window=512, sample_rate=16000)
    power_LT = (10 ** (4 * adapter.spectrogram(tone[None].float())[0] - 4)).T
    assert power_LT.shape == (20, 16)
    places = torch.tensor([[0, 0], [3, 1], [10, 5], [15, 9], [19, 15]])
    want = torch.tensor([9.86402, 16.5602, 0.525817, 7.66218, 3.92482])
    torch.testing.assert_close(power_LT[places[:, 0], places[:, 1]], want, rtol=1e-3, atol=0)
    torch.testing.assert_close(
        power_LT.sum(0)[[0, 7, 15]], torch.tensor([18.7536, 13.3178, 6.31988]), rtol=1e-3, atol=0
    )
    silence = adapter.spectrogram(torch.zeros(1, 512))
    torch.testing.assert_close(silence, torch.full_like(silence, (math.log10(1e-10) + 4) / 4))


def test_patches_of_a_spectrogram_hold_their_part_of_it_and_their_place():
    adapter = MelInput((2, 5), FourierPositions((4, 4), 2), bands=20, hop=64, window=128, sample_rate=8000)
    sound = torch.rand(3, 512) * 2 - 1
    spectrogram_BTL = adapter.spectrogram(sound)
    array = adapter(sound)
    assert array.grid == (4, 4)
    assert array.x_BMC.shape == (3, 16, adapter.channels) == (3, 16, 10 + 10)
    place = 2 * 4 + 3  # spectra 4 and 5, bands 15 to 19
    assert torch.equal(array.x_BMC[1, place, :10], spectrogram_BTL[1, 4:6, 15:20].flatten())
    torch.testing.assert_close(array.x_BMC[1, place, 10:12], torch.tensor([1 / 3, 1.0]))  # of 0 ... 3 each


def test_autocast_hardly_rounds_a_spectrogram():
    adapter = MelInput((1, 1), FourierPositions((8, 20), 2), bands=20, hop=64, window=128, sample_rate=8000)
    sound = torch.rand(1, 512) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        rounded = adapter.spectrogram(sound)
    torch.testing.assert_close(rounded, adapter.spectrogram(sound), atol=2e-3, rtol=0)


def test_wrong_spectrograms_are_refused():
    positions = FourierPositions((4, 4), 2)
    for shape in ((1, 500), (512,), (1, 0)):
        with pytest.raises(PerceiversError, match=r"is expected, with samples a multiple of 128"):
            MelInput((2, 5), positions, bands=20, hop=64, window=128)(torch.rand(*shape))
    with pytest.raises(PerceiversError, match="bands = 20 cannot be cut into patches of 3"):
        MelInput((2, 3), positions, bands=20)


def test_filters_find_tones_wherever_they_are_in_a_patch():
    adapter = ConvAudioInput(64, FourierPositions((10,), 4), 8000, filters=8).eval()
    time = torch.arange(640) / 8000
    kernel = torch.sin(2 * torch.pi * 700 * torch.arange(64) / 8000)
    with torch.no_grad():
        adapter.convolution.weight.copy_(torch.zeros(8, 1, 64))
        adapter.convolution.weight[3, 0] = kernel
        tones = torch.stack([torch.sin(2 * torch.pi * f * time + phase) for f in (700, 2500) for phase in (0, 2)])
        x_BMF, mask_BM, grid = adapter(tones)[:3]
    assert x_BMF.shape == (4, 10, 8 + 9)
    assert mask_BM is None
    assert grid == (10,)
    strength = x_BMF[:, 1:-1, 3].mean(1)
    torch.testing.assert_close(strength[0], strength[1], rtol=0.1, atol=0)
    assert strength[:2].min() > 20 * strength[2:].max()
    torch.testing.assert_close(strength[0], torch.tensor(32.0), rtol=0.1, atol=0)  # 64 samples of sin^2


def test_patches_of_filters_are_those_of_their_samples():
    adapter = ConvAudioInput(64, FourierPositions((10,), 4), filters=4).eval()
    sound, mask = torch.randn(1, 640), torch.arange(640)[None] < 100
    masked, found = adapter(InputArray(sound, mask))[:2]
    assert found.tolist() == [[True, True, *[False] * 8]]
    assert masked.equal(adapter(sound * mask).x_BMC)
    before = adapter(sound).x_BMC
    sound[:, 320:384] += 1
    after = adapter(sound).x_BMC
    changed = (after - before).abs().amax(-1)[0] > 0
    assert changed[4:7].any()
    assert not changed[:4].any()
    assert not changed[7:].any()
    assert changed[5]
    with pytest.raises(PerceiversError, match=r"stride = 5 is not allowed: it must divide patch = 64"):
        ConvAudioInput(64, FourierPositions((10,), 4), stride=5)


SOUND = torch.randn(1, 640, generator=torch.Generator().manual_seed(0))
SOUND_INPUTS = {
    "samples": AudioInput(64, FourierPositions((10,), 4), 8000, normalize=True),
    "conv": ConvAudioInput(64, FourierPositions((10,), 4), 8000, filters=8, normalize=True).eval(),
    "mel": MelInput((2, 20), FourierPositions((5, 1), 4), 20, 64, 128, 8000, normalize=True),
}


@pytest.mark.parametrize("adapter", SOUND_INPUTS.values(), ids=SOUND_INPUTS)
@pytest.mark.parametrize("is_masked", [False, True])
def test_normalized_sound_does_not_depend_on_its_level(adapter, is_masked):
    sound = torch.cat([SOUND, SOUND.flip(1)])
    mask = torch.arange(640) < torch.tensor([[384], [640]]) if is_masked else None
    (loud, real), (quiet, _) = (adapter(InputArray(gain * sound, mask))[:2] for gain in (1.0, 0.01))
    torch.testing.assert_close(quiet, loud, atol=1e-4, rtol=1e-3)
    if is_masked:
        assert real[0].float().mean() == pytest.approx(0.6)
        other = sound + 5 * ~mask
        torch.testing.assert_close(adapter(InputArray(other, mask))[0], loud)
    assert not adapter(torch.zeros(1, 640))[0].isnan().any()


def test_the_level_of_normalized_samples():
    mask = torch.arange(640)[None] < 320
    samples = SOUND_INPUTS["samples"](InputArray(SOUND, mask))[0][..., :64]
    assert samples[:, :5].square().mean().sqrt() == pytest.approx(0.1, rel=1e-4)


def test_normalized_bands_have_a_mean_of_zero_over_the_real_time():
    adapter, mask = SOUND_INPUTS["mel"], torch.arange(640)[None] < 384
    patches_BTC = adapter(InputArray(SOUND, mask))[0][..., :40]
    bands_BTL = patches_BTC.unflatten(2, (2, 20)).flatten(1, 2)
    torch.testing.assert_close(bands_BTL[:, :6].mean(1), torch.zeros(1, 20), atol=1e-6, rtol=0)
    plain = MelInput((2, 20), adapter.positions, 20, 64, 128, 8000)
    level = 0.1 / SOUND[mask].square().mean().sqrt()
    expected = plain.spectrogram(SOUND * level * mask)
    torch.testing.assert_close(
        adapter(InputArray(SOUND, mask))[0][0, 1, :20], (expected[0, 2] - expected[0, :6].mean(0)), atol=1e-5, rtol=0
    )


def test_normalized_filters_have_a_mean_of_zero_over_the_real_time():
    adapter, mask = SOUND_INPUTS["conv"], torch.arange(640)[None] < 384
    outputs_BTF = adapter(InputArray(SOUND, mask))[0][..., :8]
    torch.testing.assert_close(outputs_BTF[:, :6].mean(1), torch.zeros(1, 8), atol=1e-5, rtol=0)
