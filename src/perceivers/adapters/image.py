"""Images in: features of the image on a grid, and where they are (section 6, tables 5 and 6).

The image adapter is put together from features (pixels, patches, a convolution) and positions (Fourier, learned).
Shape suffixes: B batch, Y rows, X columns, F channels of the features; others as in `perceivers.model.adapter`
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from perceivers.adapters.array import with_positions
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, read_array
from perceivers.model.batch_norm import BatchNorm2d
from perceivers.model.config import Configurable
from perceivers.model.eager import is_concrete
from perceivers.model.kernels.half_precision import convolve
from perceivers.model.linear import Linear, lecun_normal_
from perceivers.model.positions import Positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Patches(Configurable, nn.Module):
    """Cuts an image into square patches and, if `channels` are given, projects each linearly.

    Patches of size 1 are pixels, and their projection is a 1x1 convolution.

    Args:
        size: side of a patch in pixels.
        in_channels: channels of the image.
        channels: F; the plain values of the patch, `in_channels * size ** 2`, if not given.
        overlapping: take the patch around every pixel, zeros beyond the border, instead of patches side by side.

    Examples:
        >>> import torch
        >>> Patches(4)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 8, 8, 48])
    """

    def __init__(
        self, size: int = 1, in_channels: int = 3, channels: int | None = None, overlapping: bool = False
    ) -> None:
        super().__init__()
        self.size = size
        self.in_channels = in_channels
        self.overlapping = overlapping
        values = in_channels * size**2
        self.channels = values if channels is None else channels
        self.projection = None if channels is None else Linear(values, channels)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        """[B, in_channels, Y * size, X * size] -> [B, Y, X, F]; overlapping, [B, in_channels, Y, X] -> [B, Y, X, F]."""
        height, width = images_BCYX.shape[-2:]
        if self.overlapping:
            before, after = (self.size - 1) // 2, self.size // 2
            padded = nn.functional.pad(images_BCYX, (before, after, before, after))
            patches = padded.unfold(-2, self.size, 1).unfold(-2, self.size, 1)  # B C Y X size size
            return self.project(patches.permute(0, 2, 3, 4, 5, 1).flatten(3))
        if height % self.size or width % self.size:
            raise PerceiversError(
                f"an image of {height} x {width} pixels cannot be cut into patches of {self.size} x {self.size}: "
                f"resize it to multiples of {self.size}."
            )
        patches = images_BCYX.unflatten(-1, (-1, self.size)).unflatten(-3, (-1, self.size))  # B C Y size X size
        return self.project(patches.permute(0, 2, 4, 3, 5, 1).flatten(3))

    def project(self, values: Tensor) -> Tensor:
        """Projects the values of patches, if there is a projection."""
        return values if self.projection is None else self.projection(values.to(self.projection.weight.dtype))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of features of an image."""
        return (height, width) if self.overlapping else (height // self.size, width // self.size)


class ConvStem(Configurable, nn.Module):
    """A 7x7 convolution of stride 2, batch normalization, ReLU, and 3x3 max pooling of stride 2: a quarter each side.

    Args:
        channels: F.
        in_channels: channels of the image.
        padding: "same" as in the original (TensorFlow's: for even sizes by one more below and to the right), or
            "transformers" as in that library, which pads evenly and does not pad before pooling: its features are
            shifted by half a pixel and have a row and a column less (55 instead of 56 for 224 pixels).

    Examples:
        >>> import torch
        >>> ConvStem(64)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 8, 8, 64])
    """

    def __init__(
        self, channels: int = 64, in_channels: int = 3, padding: Literal["same", "transformers"] = "same"
    ) -> None:
        super().__init__()
        self.channels = channels
        self.in_channels = in_channels
        self.padding = padding
        self.convolution = nn.Conv2d(in_channels, channels, 7, stride=2, bias=False)
        lecun_normal_(self.convolution.weight)
        self.norm = BatchNorm2d(channels)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        """[B, in_channels, height, width] -> [B, Y, X, F], see `grid`."""
        same = self.padding == "same"
        # Convolution and pooling are several times as fast, and the result is contiguous.
        images_BCYX = images_BCYX.to(self.convolution.weight.dtype).contiguous(memory_format=torch.channels_last)
        images_BCYX = pad_same(images_BCYX, 7, 2) if same else nn.functional.pad(images_BCYX, (3, 3, 3, 3))
        x_BFYX = self.norm(convolve(self.convolution, images_BCYX)).relu()
        return self.pool(pad_same(x_BFYX, 3, 2) if same else x_BFYX).movedim(1, -1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of features of an image: a quarter of its size, rounded up ("same")."""
        more = 1 if self.padding == "same" else -1
        return ((height + 1) // 2 + more) // 2, ((width + 1) // 2 + more) // 2


def scale_colors(data: Tensor) -> Tensor:
    """Returns the colors of images or video as floats in [0, 1]; raises a PerceiversError for any but these or bytes.

    Floats far outside that range, such as those from 0 to 255, are refused; how far depends on no batch: 10.
    """
    if data.dtype in (torch.uint8, torch.uint16):
        return data.float() / (255 if data.dtype == torch.uint8 else 65535)
    if not data.is_floating_point() and data.dtype != torch.bool:
        raise PerceiversError(
            f"colors of {data.dtype} were given: give torch.uint8 from 0 to 255, or floats from 0 to 1."
        )
    colors = data.float()
    if is_concrete(colors) and colors.numel() and (most := float(colors.detach().abs().amax())) > 10:
        raise PerceiversError(f"colors of up to {most:g} were given: give floats from 0 to 1, or bytes (torch.uint8).")
    return colors


def pad_same(x_BFYX: Tensor, kernel: int, stride: int) -> Tensor:
    """Pads with zeros, so that a window of `kernel` pixels in steps of `stride` has ceil(size / stride) positions."""
    padding: list[int] = []
    for size in reversed(x_BFYX.shape[-2:]):
        positions = -(-size // stride)
        total = max((positions - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return nn.functional.pad(x_BFYX, padding)


class ImageInput(InputAdapter):
    """Images as features concatenated with their positions.

    Args:
        size: height and width of the images in training, in pixels.
        features: turns images into a grid of feature vectors.
        positions: position encoding of that grid.
        mean: of each color over the training images; with it and `std`, images in [0, 1] are normalized.
        std: standard deviation of each color.
        crop: fraction of the side of the resized image that evaluation keeps (224 of 256 pixels in the paper).

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> from perceivers.adapters import Patches
        >>> image = ImageInput((32, 32), Patches(4), FourierPositions((8, 8), bands=4))
        >>> image(torch.rand(2, 3, 32, 32)).x_BMC.shape  # 48 values of a patch, 18 of its position
        torch.Size([2, 64, 66])
    """

    def __init__(
        self,
        size: Sequence[int],
        features: Patches | ConvStem,
        positions: Positions,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        crop: float = 1.0,
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise PerceiversError(f"mean has {len(mean)} colors, but std has {len(std)}: give one number for each.")
        self.size = (size[0], size[1])
        self.crop = crop
        self.in_channels = len(mean)
        self.features = features
        self.positions = positions
        self.channels = features.channels + positions.channels
        self.normalization = (tuple(mean), tuple(std))

    def forward(self, data: Tensor) -> InputArray:
        """Takes images [B, in_channels, height, width] in [0, 1], or bytes in 0 ... 255."""
        features_BYXF = self.extract_features(data)
        grid = tuple(features_BYXF.shape[1:3])
        return InputArray(with_positions(features_BYXF.flatten(1, 2), self.positions, grid), grid=grid)

    def extract_features(self, data: Tensor) -> Tensor:
        """Returns the features [B, Y, X, F] of images, without their positions."""
        data, _ = read_array(data)
        if data.dim() != 4 or data.shape[1] != self.in_channels:
            raise PerceiversError(
                f"images of shape {tuple(data.shape)} were given, "
                f"but [batch, {self.in_channels} colors, height, width] is expected."
            )
        images = scale_colors(data)
        mean, std = torch.tensor(self.normalization, dtype=torch.float32, device=data.device)[..., None, None]
        features_BYXF: Tensor = self.features((images - mean) / std)
        return features_BYXF
