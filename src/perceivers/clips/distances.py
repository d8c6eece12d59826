"""How far reconstructions are from what they reconstruct. Shape suffixes: S samples, F frequencies, T times."""

import torch
from torch import Tensor


def psnr(decoded: Tensor, original: Tensor) -> Tensor:
    """Returns the peak signal-to-noise ratio in dB, for a peak of 1; infinite if there is no difference."""
    return -10 * (decoded - original).square().mean().log10()


def snr(decoded: Tensor, original: Tensor) -> Tensor:
    """Returns the signal-to-noise ratio in dB: 0 for silence, infinite if there is no difference."""
    return 10 * (original.square().sum() / (decoded - original).square().sum()).log10()


def log_spectral_distance(decoded_S: Tensor, original_S: Tensor, window: int = 256, floor: float = 1e-4) -> Tensor:
    """Returns the root mean square over frequencies of the difference of two power spectra in dB, averaged over time.

    Spectra are those of Hann windows, every quarter of their length; powers are at least `floor`.
    """
    hann_S = torch.hann_window(window, device=original_S.device)
    ours_FT, theirs_FT = (
        torch.stft(x_S, window, window // 4, window=hann_S, pad_mode="constant", return_complex=True).abs().square()
        for x_S in (decoded_S, original_S)
    )
    difference_FT = 10 * (ours_FT.clamp_min(floor).log10() - theirs_FT.clamp_min(floor).log10())
    return difference_FT.square().mean(0).sqrt().mean()
