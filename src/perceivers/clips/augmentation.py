"""Augmentation of training clips: their speed, and the spectrum, noise and gaps of their sound.

Shape suffixes: S samples, F frequencies of a spectrum from 0 to half the sample rate, P points of a curve
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from perceivers.checks import Checked, Range, check_field
from perceivers.clips.model import Window
from perceivers.clips.windows import ClipWindow

CURVE_POINTS = 8
"""Number of random points of the curve of the equalizer."""

SPEED_STEPS = 128
"""The speed is a multiple of 1 / 128, since spectra of few prime factors are fast."""


@dataclass
class SoundAugmentation(Checked):
    """Augmentation of training clips with sound, with the random numbers of each sample.

    Attributes:
        speed: range of the factor of the speed of a clip, which also multiplies the frequencies of its sound; its
            logarithm is uniform. By default the speed is unchanged.
        equalizer: largest gain and attenuation, in dB, of a random smooth filter of the sound.
        frequency_mask: largest fraction of the frequencies in a random band that is removed.
        noise: range of the ratio of sound to noise, in dB, of white noise; by default there is none.
        time_mask: largest fraction of the window in a random interval of the sound that is masked.
    """

    section = "augmentation."

    speed: tuple[float, float] | None = None
    equalizer: Annotated[float, Range(least=0)] = 0.0
    frequency_mask: Annotated[float, Range(least=0, below=1)] = 0.0
    noise: tuple[float, float] | None = None
    time_mask: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.speed or (1.0, 1.0)
        check_field("augmentation.speed", self.speed, 0 < low <= high < math.inf, "two numbers above 0, in order")
        low, high = self.noise or (0.0, 0.0)
        check_field("augmentation.noise", self.noise, -math.inf < low <= high < math.inf, "two numbers, in order")

    def draw_window(self, window: Window, generator: Generator) -> Window:
        """Returns a window that is longer or shorter by a random factor, the change of the speed."""
        if self.speed is None:
            return window
        low, high = map(math.log, self.speed)
        steps = max(1, round(SPEED_STEPS * math.exp(draw_uniform(low, high, generator))))
        samples = None if window.samples is None else math.ceil(window.samples * steps / SPEED_STEPS)
        return replace(window, rate=window.rate * SPEED_STEPS / steps, samples=samples)

    def augment_sound(self, clip: ClipWindow, window: Window, generator: Generator) -> ClipWindow:
        """Resamples the sound of a drawn window to the samples of the model's `window`, filters it, and masks it."""
        sound_S, mask_S, samples = clip.audio, clip.audio_mask, window.samples
        if sound_S is None or mask_S is None or samples is None:
            return clip
        if len(sound_S) != samples or self.equalizer or self.frequency_mask:
            x_F = resample_spectrum(torch.fft.rfft(sound_S), len(sound_S), samples)
            x_F = x_F * draw_curve(self.equalizer, len(x_F), generator)
            x_F[draw_interval(self.frequency_mask, len(x_F), generator)] = 0
            sound_S, mask_S = torch.fft.irfft(x_F, samples), resample_mask(mask_S, samples)
        if self.noise is not None and mask_S.any():
            noise_S = torch.randn(samples, generator=generator)
            ratio = 10 ** (draw_uniform(*self.noise, generator) / 20)
            sound_S = sound_S + noise_S * (rms(sound_S[mask_S]) / (ratio * rms(noise_S[mask_S])))
        if self.time_mask:
            mask_S = mask_S.clone()
            mask_S[draw_interval(self.time_mask, samples, generator)] = False
        return replace(clip, audio=sound_S * mask_S, audio_mask=mask_S)


def resample_spectrum(x_F: Tensor, before: int, after: int) -> Tensor:
    """Returns the spectrum of a signal of `before` samples after resampling it to `after` samples.

    Frequencies, in cycles of the whole signal, are kept, and those above half the new sample rate are removed.
    """
    if before == after:
        return x_F
    kept = (min(before, after) + 1) // 2  # without the frequency at half of the lower sample rate
    return torch.cat([x_F[:kept], x_F.new_zeros(after // 2 + 1 - kept)]) * (after / before)


def resample_mask(mask_S: Tensor, samples: int) -> Tensor:
    """Returns a mask at another number of samples, from the nearest ones."""
    return F.interpolate(mask_S[None, None].float(), samples, mode="nearest-exact")[0, 0] > 0


def draw_uniform(low: float, high: float, generator: Generator) -> float:
    """Draws a number from a range."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def draw_curve(decibels: float, size: int, generator: Generator) -> Tensor:
    """Draws factors [size] of up to so many decibels more or less, linear in dB between evenly spaced points."""
    gain_P = decibels * (2 * torch.rand(CURVE_POINTS, generator=generator) - 1)
    return 10 ** (F.interpolate(gain_P[None, None], size, mode="linear", align_corners=True)[0, 0] / 20)


def draw_interval(fraction: float, size: int, generator: Generator) -> slice:
    """Draws an interval of up to a fraction of `size`, anywhere inside."""
    length = round(draw_uniform(0, fraction * size, generator))
    begin = int(torch.randint(size - length + 1, (), generator=generator))
    return slice(begin, begin + length)


def rms(sound_S: Tensor) -> Tensor:
    """Returns the root mean square of samples, at least 1e-9."""
    return sound_S.square().mean().sqrt().clamp_min(1e-9)
