"""Training augmentation of images, on tensors in batches (section 4.4: RandAugment, CutMix, MixUp).

Shape suffixes: B batch, C colours, Y rows, X columns, K classes
"""

from dataclasses import dataclass
from typing import cast

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from kornia.augmentation.auto import RandAugment
from torch import Tensor, nn

from perceivers.experiments.training import check


@dataclass
class Augmentation:
    """How training images are changed.

    Attributes:
        area: bounds of the part of an image's area that is cut out and resized; None takes the evaluation's view.
        shift: pixels by which an image is shifted at most, to each side.
        flip: mirror half of the images.
        layers: operations of RandAugment applied one after another.
        magnitude: their strength, from 0 to 10.
        cutmix: parameter of the beta distribution of CutMix's area; 0 for no CutMix.
        mixup: parameter of the beta distribution of MixUp's ratio; 0 for no MixUp. With both, a batch gets either.
    """

    area: tuple[float, float] | None = None
    shift: int = 0
    flip: bool = False
    layers: int = 0
    magnitude: float = 5.0
    cutmix: float = 0.0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if self.area is not None:
            check("augmentation.area", self.area, 0 < self.area[0] <= self.area[1] <= 1, "two parts from 0 to 1")
        for field in ("shift", "layers", "cutmix", "mixup"):
            check(f"augmentation.{field}", getattr(self, field), getattr(self, field) >= 0, "at least 0")
        check("augmentation.magnitude", self.magnitude, 0 < self.magnitude < 10, "between 0 and 10")


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
        if config.layers:
            steps.append(
                RandAugment(config.layers, round(config.magnitude * 3))
            )  # kornia counts to 30, the paper to 10
        self.steps = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images_BCYX: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and class indices -> images in [0, 1] and class probabilities [B, K]."""
        images_BCYX = self.steps(images_BCYX.float() / 255)
        targets_BK = F.one_hot(labels_B, self.classes).float()
        mixes = [mix for mix, on in ((self.cutmix, self.config.cutmix), (self.mixup, self.config.mixup)) if on]
        if not mixes:
            return images_BCYX, targets_BK
        return mixes[int(torch.randint(len(mixes), ()))](images_BCYX, targets_BK)

    def mixup(self, images_BCYX: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Each image becomes a weighted mean of itself and another, and so does its label (Zhang et al., 2018)."""
        ratio = beta(self.config.mixup)
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        return torch.lerp(images_BCYX[other], images_BCYX, ratio), torch.lerp(targets_BK[other], targets_BK, ratio)

    def cutmix(self, images_BCYX: Tensor, targets_BK: Tensor) -> tuple[Tensor, Tensor]:
        """A rectangle of each image is replaced by another's, the label in proportion (Yun et al., 2019)."""
        height, width = images_BCYX.shape[-2:]
        side = (1 - beta(self.config.cutmix)) ** 0.5
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        dy, dx = round(height * side / 2), round(width * side / 2)
        rows, columns = slice(max(0, y - dy), min(height, y + dy)), slice(max(0, x - dx), min(width, x + dx))
        other = torch.randperm(len(images_BCYX), device=images_BCYX.device)
        mixed = images_BCYX.clone()
        mixed[:, :, rows, columns] = images_BCYX[other][:, :, rows, columns]
        kept = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return mixed, torch.lerp(targets_BK[other], targets_BK, kept)


def beta(concentration: float) -> float:
    """A number from the symmetric beta distribution."""
    return cast(float, torch.distributions.Beta(concentration, concentration).sample().item())
