"""Training augmentation of images, on tensors in batches (section 4.4: RandAugment, CutMix, MixUp).

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
"""So many images of a batch get the same operations of RandAugment."""


@dataclass
class Augmentation(Checked):
    """How training images are changed.

    Attributes:
        area: bounds of the part of an image's area that is cut out and resized; None takes the evaluation's view.
        shift: pixels by which an image is shifted at most, to each side.
        flip: mirror half of the images.
        layers: operations of RandAugment applied one after another.
        magnitude: their strength, on a scale from 0 to 10.
        cutmix: parameter of the beta distribution of CutMix's area; 0 for no CutMix.
        mixup: parameter of the beta distribution of MixUp's ratio; 0 for no MixUp. With both, each gets half a batch.
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
        check_field("augmentation.area", self.area, 0 < low <= high <= 1, "two parts from 0 to 1")


class Augment(nn.Module):
    """Applies an `Augmentation` to batches; its random numbers are torch's."""

    def __init__(self, config: Augmentation, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        steps: list[nn.Module] = []
        if config.shift:
            steps.append(K.RandomCrop(size, padding=config.shift))
        if config.flip:
            steps.append(K.RandomHorizontalFlip())
        self.steps = nn.Sequential(*steps)
        # kornia counts magnitudes to 30, the paper to 10
        self.randaugment = RandAugment(config.layers, round(config.magnitude * 3)) if config.layers else None

    @torch.no_grad()
    def forward(self, images_BCYX: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and class indices -> images in [0, 1] and class probabilities [B, K]."""
        images_BCYX = self.steps(images_BCYX.float() / 255)
        if self.randaugment is not None:  # draws its operations once a call
            images_BCYX = torch.cat([self.randaugment(group) for group in images_BCYX.split(RANDAUGMENT_GROUP)])
        targets_BK = F.one_hot(labels_B, self.classes).float()
        if self.config.mixup and self.config.cutmix:  # each gets half of the batch
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
        """Each image becomes a weighted mean of itself and another, and so does its label (Zhang et al., 2018)."""
        ratio_B = beta(self.config.mixup, targets_BK)
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        images_BCYX = torch.lerp(images_BCYX[other], images_BCYX, ratio_B[:, None, None, None])
        return images_BCYX, torch.lerp(targets_BK[other], targets_BK, ratio_B[:, None])

    def cutmix(self, images_BCYX: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """A rectangle of each image is replaced by another's, the label in proportion (Yun et al., 2019)."""
        part_B = (1 - beta(self.config.cutmix, targets_BK)).sqrt()
        rows_BY, columns_BX = (window(part_B, size) for size in images_BCYX.shape[-2:])
        cut_BYX = rows_BY[:, :, None] & columns_BX[:, None, :]
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        kept_B = 1 - cut_BYX.float().mean((1, 2))
        images_BCYX = torch.where(cut_BYX[:, None], images_BCYX[other], images_BCYX)
        return images_BCYX, torch.lerp(targets_BK[other], targets_BK, kept_B[:, None])


def beta(concentration: float, like_BK: Tensor) -> Tensor:
    """Numbers [B] from the symmetric beta distribution."""
    gamma_2B = torch._standard_gamma(like_BK.new_full((2, len(like_BK)), concentration))
    return gamma_2B[0] / gamma_2B.sum(0).clamp_min(1e-30)


def window(part_B: Tensor, size: int) -> Tensor:
    """For each image a window of this part of `size` places, around a random place, cut at the ends; -> [B, size]."""
    middle_B = torch.rand_like(part_B) * size
    place_X = torch.arange(size, device=part_B.device) + 0.5
    return (place_X - middle_B[:, None]).abs() < part_B[:, None] * size / 2
