"""Augmentation of batches of training images (section 4.4: RandAugment, CutMix, MixUp).

Shape suffixes: B batch, C colors, Y rows, X columns, K classes
"""

from dataclasses import dataclass
from typing import Annotated

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from kornia.augmentation.auto import RandAugment
from torch import Tensor, nn

from perceivers.checks import Checked, Range, check_field

RANDAUGMENT_GROUP = 16
"""Number of images of a batch that get the same operations of RandAugment."""


@dataclass
class Augmentation(Checked):
    """Augmentation of training images.

    Attributes:
        area: range of the fraction of the area of an image that is cropped and resized; by default the crop of
            evaluation is used.
        shift: maximum shift of an image to each side, in pixels.
        flip: mirror half of the images.
        layers: number of operations of RandAugment.
        magnitude: their strength, on a scale from 0 to 10.
        cutmix: parameter of the beta distribution of the area of CutMix; 0 for no CutMix.
        mixup: parameter of the beta distribution of the ratio of MixUp; 0 for no MixUp. With both, each gets half of a
            batch.
    """

    section = "augmentation."

    area: tuple[float, float] | None = None
    shift: Annotated[int, Range(least=0)] = 0
    flip: bool = False
    layers: Annotated[int, Range(least=0)] = 0
    magnitude: Annotated[float, Range(least=0.2, most=9.8)] = 5.0
    cutmix: Annotated[float, Range(least=0)] = 0.0
    mixup: Annotated[float, Range(least=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.area or (1.0, 1.0)
        check_field("augmentation.area", self.area, 0 < low <= high <= 1, "two fractions from 0 to 1, in order")


class Augment(nn.Module):
    """Applies an `Augmentation` to batches, with the random numbers of torch."""

    def __init__(self, config: Augmentation, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        shift = [K.RandomCrop(size, padding=config.shift)] if config.shift else []
        flip = [K.RandomHorizontalFlip()] if config.flip else []
        self.shift_and_flip = nn.Sequential(*shift, *flip)
        # kornia counts magnitudes to 30, the paper to 10
        self.randaugment = RandAugment(config.layers, round(config.magnitude * 3)) if config.layers else None

    @torch.no_grad()
    def forward(self, images_BCYX: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Takes bytes and class indices; returns images in [0, 1] and class probabilities [B, K]."""
        images_BCYX = self.shift_and_flip(images_BCYX.float() / 255)
        if self.randaugment is not None:  # draws its operations once per call
            images_BCYX = torch.cat([self.randaugment(group) for group in images_BCYX.split(RANDAUGMENT_GROUP)])
        targets_BK = F.one_hot(labels_B, self.classes).float()
        if self.config.mixup and self.config.cutmix:
            half = len(images_BCYX) // 2
            images, targets = self.mixup(images_BCYX[:half], targets_BK[:half])
            others, other_targets = self.cutmix(images_BCYX[half:], targets_BK[half:])
            return torch.cat([images, others]), torch.cat([targets, other_targets])
        if self.config.mixup:
            return self.mixup(images_BCYX, targets_BK)
        if self.config.cutmix:
            return self.cutmix(images_BCYX, targets_BK)
        return images_BCYX, targets_BK

    def mixup(self, images_BCYX: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces images and labels by weighted means with others (Zhang et al., 2018)."""
        ratio_B = sample_beta(self.config.mixup, targets_BK)
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        images_BCYX = torch.lerp(images_BCYX[other], images_BCYX, ratio_B[:, None, None, None])
        return images_BCYX, torch.lerp(targets_BK[other], targets_BK, ratio_B[:, None])

    def cutmix(self, images_BCYX: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Replaces a rectangle of each image by that of another, and its label in proportion (Yun et al., 2019)."""
        side_B = (1 - sample_beta(self.config.cutmix, targets_BK)).sqrt()
        rows_BY, columns_BX = (sample_interval(side_B, size) for size in images_BCYX.shape[-2:])
        cut_BYX = rows_BY[:, :, None] & columns_BX[:, None, :]
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        kept_B = 1 - cut_BYX.float().mean((1, 2))
        images_BCYX = torch.where(cut_BYX[:, None], images_BCYX[other], images_BCYX)
        return images_BCYX, torch.lerp(targets_BK[other], targets_BK, kept_B[:, None])


def sample_beta(concentration: float, like_BK: Tensor) -> Tensor:
    """Draws numbers [B] from the symmetric beta distribution."""
    gamma_2B = torch._standard_gamma(like_BK.new_full((2, len(like_BK)), concentration))
    return gamma_2B[0] / gamma_2B.sum(0).clamp_min(1e-30)


def sample_interval(fraction_B: Tensor, size: int) -> Tensor:
    """Draws an interval for each image, a fraction of `size` around a random center, clipped; a mask [B, size]."""
    center_B = torch.rand_like(fraction_B) * size
    pixel_X = torch.arange(size, device=fraction_B.device) + 0.5
    return (pixel_X - center_B[:, None]).abs() < fraction_B[:, None] * size / 2
