"""Audio in and out: patches of raw samples, learned filters or a mel spectrogram (sections 4.3, 4.6; tables 5, 6).

Shape suffixes: B batch, S samples, T time steps, F frequencies, L mel bands; others as in `perceivers.model.adapter`
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.adapters.array import ArrayOutput, with_positions
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, read_array
from perceivers.model.batch_norm import BatchNorm1d
from perceivers.model.kernels.half_precision import convolve
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import lecun_normal_
from perceivers.model.positions import Positions


class AudioInput(InputAdapter):
    """A mono recording cut into patches of samples, each with its position.

    Args:
        patch: samples per patch.
        positions: position encoding of the patches in time.
        sample_rate: samples per second of the training data.
        normalize: whether to scale each recording to the same level, see `normalize_level`.
        scale: standard deviation of the samples of the training data, by which they are divided.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> AudioInput(16, FourierPositions((100,), bands=8))(torch.zeros(2, 1600)).x_BMC.shape
        torch.Size([2, 100, 33])
    """

    def __init__(
        self,
        patch: int,
        positions: Positions,
        sample_rate: int = 48000,
        normalize: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.patch, self.normalize, self.scale = patch, normalize, scale
        self.positions = positions
        self.sample_rate = sample_rate
        self.channels = patch + positions.channels

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes samples [B, S] in [-1, 1], or `InputArray(samples, mask)`: a patch with any real sample is real."""
        sound_BS, mask_BM = samples_and_patch_mask(data, self.patch, self.normalize)
        patches = sound_BS.div(self.scale).unflatten(1, (-1, self.patch))
        grid = (patches.shape[1],)
        return InputArray(with_positions(patches, self.positions, grid), mask_BM, grid)


class ConvAudioInput(InputAdapter):
    """A mono recording as the output of learned filters per patch, each with its position.

    Applies a convolution, batch normalization, ReLU and max pooling over each patch of samples, like the paper's
    preprocessing of images (section 6); the paper has none of audio. Pooling makes it independent of the phase.

    Args:
        patch: samples per patch.
        positions: position encoding of the patches.
        sample_rate: samples per second.
        filters: number of filters.
        kernel: samples per filter.
        stride: step of the convolution, in samples; it divides the patch.
        normalize: whether to scale each recording to the same level, see `normalize_level`, and to subtract the mean
            over time from the logarithm of the output of each filter, so that a constant filter has no effect.

    Raises:
        PerceiversError: the stride does not divide the patch, or is larger than the kernel.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> ConvAudioInput(160, FourierPositions((10,), bands=4), filters=32)(torch.zeros(2, 1600)).x_BMC.shape
        torch.Size([2, 10, 41])
    """

    def __init__(
        self,
        patch: int,
        positions: Positions,
        sample_rate: int = 48000,
        filters: int = 64,
        kernel: int = 64,
        stride: int = 4,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if patch % stride or stride > kernel:
            raise PerceiversError(
                f"stride = {stride} is not allowed: it must divide patch = {patch}, and be at most kernel = {kernel}."
            )
        self.patch, self.positions, self.sample_rate = patch, positions, sample_rate
        self.padding = ((kernel - stride) // 2, kernel - stride - (kernel - stride) // 2)
        self.convolution = nn.Conv1d(1, filters, kernel, stride, bias=False)
        lecun_normal_(self.convolution.weight)
        self.norm = BatchNorm1d(filters)
        self.pool = nn.MaxPool1d(patch // stride)
        self.normalize = normalize
        self.channels = filters + positions.channels

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes samples [B, S] in [-1, 1], or `InputArray(samples, mask)`: a patch with any real sample is real."""
        sound_BS, mask_BM = samples_and_patch_mask(data, self.patch, self.normalize)
        padded_B1S = F.pad(sound_BS, self.padding)[:, None].to(self.convolution.weight.dtype)
        x_BMF = self.pool(self.norm(convolve(self.convolution, padded_B1S)).relu()).mT
        if self.normalize:
            x_BMF = subtract_mean((x_BMF.float() + 0.01).log(), mask_BM)
        grid = (x_BMF.shape[1],)
        return InputArray(with_positions(x_BMF, self.positions, grid), mask_BM, grid)


def samples_and_patch_mask(
    data: Tensor | InputArray, patch: int, normalize: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Returns samples [B, S], which must fill patches of `patch` samples, and the mask of the patches [B, T]."""
    sound_BS, mask_BS = read_array(data)
    if sound_BS.dim() != 2 or not sound_BS.shape[1] or sound_BS.shape[1] % patch:
        raise PerceiversError(
            f"sound of shape {tuple(sound_BS.shape)} was given, "
            f"but [batch, samples] is expected, with samples a multiple of {patch}."
        )
    sound_BS = normalize_level(sound_BS.float(), mask_BS) if normalize else sound_BS.float()
    return sound_BS, None if mask_BS is None else mask_BS.unflatten(1, (-1, patch)).any(-1)


def normalize_level(sound_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
    """Scales the real samples of each recording to a root mean square of 0.1; silence remains silence."""
    power_B1 = mean_over_time(sound_BS.square()[..., None], mask_BS)[..., 0]
    return sound_BS * (0.1 / power_B1.sqrt().clamp_min(1e-5))


def subtract_mean(x_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Subtracts from each channel its mean over the real elements of a recording."""
    return x_BTF - mean_over_time(x_BTF, mask_BT)


def mean_over_time(x_BTF: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Returns the mean over the real elements, [B, 1, F]; 0 if there are none."""
    if mask_BT is None:
        return x_BTF.mean(1, keepdim=True)
    real_BT1 = mask_BT[..., None].to(x_BTF.dtype)
    return (x_BTF * real_BT1).sum(1, keepdim=True) / real_BT1.sum(1, keepdim=True).clamp_min(1)


class MelInput(InputAdapter):
    """A mono recording as a log-mel spectrogram, cut into patches of time and frequency, each with its position.

    The spectrogram equals librosa's, with centered Hann windows, zero padding, and Slaney's mel bands of equal area.
    Powers, at least 1e-10, are scaled to (log10 + 4) / 4, which is mostly in the range -1.5 ... 1.

    Args:
        patch: size of a patch in spectra and bands.
        positions: position encoding of the patches in time and frequency.
        bands: number of mel bands from 0 to half the sample rate, a multiple of `patch[1]`.
        hop: samples between spectra.
        window: samples per spectrum.
        sample_rate: samples per second.
        normalize: whether to scale each recording to the same level, see `normalize_level`, and to subtract from each
            band its mean over time, so that a constant filter has no effect.

    Raises:
        PerceiversError: `bands` is not a multiple of `patch[1]`.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> mel = MelInput((2, 8), FourierPositions((10, 5), bands=4), bands=40, hop=128, window=512, sample_rate=8000)
        >>> mel(torch.zeros(2, 20 * 128)).x_BMC.shape  # 20 spectra of 40 bands in patches of 2 x 8
        torch.Size([2, 50, 34])
    """

    def __init__(
        self,
        patch: Sequence[int],
        positions: Positions,
        bands: int = 128,
        hop: int = 512,
        window: int = 2048,
        sample_rate: int = 48000,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if bands % patch[1]:
            raise PerceiversError(f"bands = {bands} cannot be cut into patches of {patch[1]}: choose a multiple.")
        self.patch = (patch[0], patch[1])
        self.positions = positions
        self.bands, self.hop, self.window, self.sample_rate = bands, hop, window, sample_rate
        self.normalize = normalize
        self.channels = patch[0] * patch[1] + positions.channels

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes samples [B, S] in [-1, 1], or `InputArray(samples, mask)`.

        A patch is real if any sample from the center of its first spectrum to that of the next patch is real.
        """
        sound_BS, mask_BT = samples_and_patch_mask(data, self.hop * self.patch[0], self.normalize)
        x_BTL = self.spectrogram(sound_BS)
        if self.normalize:
            x_BTL = subtract_mean(x_BTL, None if mask_BT is None else mask_BT.repeat_interleave(self.patch[0], 1))
        patches = x_BTL.unflatten(2, (-1, self.patch[1])).unflatten(1, (-1, self.patch[0]))
        patches = patches.transpose(2, 3)  # B T L, and within a patch: time, band
        grid = tuple(patches.shape[1:3])
        mask_BM = None if mask_BT is None else mask_BT.repeat_interleave(grid[1], 1)
        return InputArray(with_positions(patches.flatten(3).flatten(1, 2), self.positions, grid), mask_BM, grid)

    def spectrogram(self, sound_BS: Tensor) -> Tensor:
        """Returns the scaled log-mel spectrogram, [B, T, L]."""
        hann_S = torch.hann_window(self.window, device=sound_BS.device)
        x_BFT = torch.stft(sound_BS, self.window, self.hop, window=hann_S, pad_mode="constant", return_complex=True)
        power_BTF = x_BFT[..., : sound_BS.shape[1] // self.hop].abs().square().mT
        filters_LF = mel_filters(self.bands, self.window, self.sample_rate, sound_BS.device)
        power_BTL = linear(power_BTF, filters_LF).float()  # autocast lowers only the precision of the product
        return (power_BTL.clamp_min(1e-10).log10() + 4) / 4


def mel_filters(bands: int, window: int, sample_rate: int, device: torch.device | None = None) -> Tensor:
    """Returns the weights of the frequencies 0 ... sample_rate / 2 in each mel band, [L, window / 2 + 1].

    Bands are triangles that extend to the centers of their neighbors, evenly spaced on Slaney's scale, which is linear
    up to 1,000 Hz (15 mel) and logarithmic above (27 mel per factor of 6.4). Each has area 1 (in Hz).
    """
    above = 27 / math.log(6.4)
    highest = 3 * sample_rate / 2 / 200 if sample_rate <= 2000 else 15 + above * math.log(sample_rate / 2000)
    mel = torch.linspace(0, highest, bands + 2, dtype=torch.float64, device=device)
    edge = torch.where(mel < 15, 200 / 3 * mel, 1000 * ((mel - 15) / above).exp())
    low_L1, middle_L1, high_L1 = edge[:-2, None], edge[1:-1, None], edge[2:, None]
    frequency_F = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64, device=device)
    rising, falling = (frequency_F - low_L1) / (middle_L1 - low_L1), (high_L1 - frequency_F) / (high_L1 - middle_L1)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (high_L1 - low_L1)).float()


class AudioOutput(ArrayOutput):
    """The samples of each patch, queried by its position.

    Args:
        patch: samples per patch.
        positions: position encoding of the patches, which is the query; its grid gives their number.
        scale: standard deviation of the samples of the training data, by which the decoded ones are multiplied.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions, PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> output = AudioOutput(16, FourierPositions((100,), bands=8))
        >>> model = PerceiverIO({"points": ArrayInput(2)}, {"sound": output}, latents=4, channels=16, depth=1)
        >>> model({"points": torch.randn(1, 7, 2)})["sound"].shape
        torch.Size([1, 1600])
    """

    def __init__(self, patch: int, positions: Positions, scale: float = 1.0) -> None:
        super().__init__(patch, positions)
        self.patch, self.scale = patch, scale

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns samples [B, S], or [B, P, patch] of some patches."""
        y_BOE = y_BOE * self.scale
        return y_BOE if indices is not None else y_BOE.flatten(1)
