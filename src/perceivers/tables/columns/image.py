"""Pictures, in and out. Shape suffixes: B batch, C colors, Y rows, X columns, P points."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanMetric, Metric

from perceivers.adapters.array import ArrayOutput
from perceivers.adapters.image import ImageInput, Patches
from perceivers.checks import Count, check_field
from perceivers.data.image_files import evaluation_view, read_image, to_tensor, training_view
from perceivers.model.adapter import InputAdapter
from perceivers.model.positions import FourierPositions
from perceivers.tables.columns.column import Column
from perceivers.tables.columns.files import open_cell, read_some

SAMPLE = 200
"""Pictures that are read to learn the mean and standard deviation of colors."""


class Image(Column):
    """A picture: the path of a file, its content, or a data URI; it is resized and cropped to a square.

    As an output, it is predicted at all of its pixels, and trained at random ones.

    Args:
        size: side in pixels.
        patch: side of the patches that are elements of the input.
        colors: 3, or 1 for gray.
        crop: least fraction of the area that training crops at random; 1 for none.
        flip: whether training mirrors pictures at random.
        points: pixels that a training step predicts of each picture.
        mean, std: of each color; learned.
    """

    kind = "image"
    is_raw = True
    is_dense = True

    def __init__(
        self,
        size: Count = 64,
        patch: Count = 8,
        colors: Literal[1, 3] = 3,
        crop: float = 0.5,
        flip: bool = True,
        points: Count = 256,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        check_field("image: size", size, size > 0 and size % patch == 0, f"a multiple of patch = {patch}")
        for name, value in (("mean", mean), ("std", std)):
            check_field(f"image: {name}", value, len(value) in (0, colors), f"{colors} numbers")
        check_field("image: crop", crop, 0 < crop <= 1, "above 0 and at most 1")
        self.size, self.patch, self.colors, self.crop, self.flip, self.points = size, patch, colors, crop, flip, points
        self.mean, self.std = list(mean) or [0.5] * colors, list(std) or [0.25] * colors

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        if self.config.get("mean"):
            return self
        pixels = read_some(cells, lambda cell: self.read(cell, root), SAMPLE)
        all_CP = torch.cat([picture.flatten(1).float() / 255 for picture in pixels], 1)
        return self.change(mean=all_CP.mean(1).tolist(), std=all_CP.std(1).clamp_min(1e-3).tolist())

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns bytes [C, Y, X]."""
        image = read_image(open_cell(cell, root), describe_cell(cell), "RGB" if self.colors == 3 else "L")
        return to_tensor(evaluation_view(image, (self.size, self.size), 1.0))

    def augment(self, value: Tensor, generator: torch.Generator) -> Tensor:
        if self.flip and torch.rand((), generator=generator) < 0.5:
            value = value.flip(-1)
        if self.crop == 1:
            return value
        image = PillowImage.fromarray(value.movedim(0, -1).squeeze(-1).numpy())
        return to_tensor(training_view(image, (self.size, self.size), (self.crop, 1.0), generator))

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.zeros(self.colors, self.size, self.size, dtype=torch.uint8)

    def input_adapter(self, channels: int) -> InputAdapter:
        grid = (self.size // self.patch,) * 2
        patches = Patches(self.patch, self.colors, channels)
        return ImageInput((self.size, self.size), patches, FourierPositions(grid, bands=4), self.mean, self.std)

    def output_adapter(self, name: str, channels: int) -> ArrayOutput:
        return ArrayOutput(self.colors, FourierPositions((self.size, self.size), bands=max(4, self.size // 4)))

    def choose_points(self, generator: torch.Generator | None = None) -> Tensor | None:
        count = self.size**2
        return None if self.points >= count else torch.randperm(count, generator=generator)[: self.points]

    def normalize(self, target: Tensor) -> Tensor:
        """Returns bytes [B, C, Y, X] as normalized colors [B, Y * X, C]."""
        mean_C, std_C = torch.tensor([self.mean, self.std], device=target.device)
        return (target.flatten(2).mT / 255 - mean_C) / std_C

    def loss(self, predicted: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
        color_BPC = self.normalize(target)
        if points is None:
            return (predicted.flatten(1, 2) - color_BPC).square().mean((1, 2))
        return (predicted - color_BPC[:, points]).square().mean((1, 2))

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns colors in [0, 1], [B, Y, X, C]."""
        mean_C, std_C = torch.tensor([self.mean, self.std], device=predicted.device)
        return (predicted.float() * std_C + mean_C).clamp(0, 1)

    def truth(self, target: Tensor) -> Tensor:
        return target.movedim(1, -1).contiguous() / 255

    def metrics(self) -> dict[str, Metric]:
        """Returns PSNR in dB, averaged over the pictures, and the mean absolute error of colors in [0, 1]."""
        return {"psnr": Psnr(), "mae": MeanAbsoluteError()}

    def write(self, answers: Tensor) -> list[list[Any]]:
        """Returns PNG files as data URIs."""
        return [[to_data_uri(to_pillow(color_YXC))] for color_YXC in answers]

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns the picture, red where weights are above their mean."""
        pixels_CYX = self.read(cell, root)
        image = to_pillow(pixels_CYX.movedim(0, -1) / 255)
        if weights is not None:
            image = overlay(image, above_mean(weights).reshape((self.size // self.patch,) * 2))
        return f'<img width="{max(128, 2 * self.size)}" alt="" src="{to_data_uri(image)}">'


class Psnr(MeanMetric):
    """The peak signal-to-noise ratio in dB of each picture in [0, 1], averaged."""

    def update(self, color_BYXC: Tensor, target_BYXC: Tensor) -> None:  # type: ignore[override]
        error_B = (color_BYXC - target_BYXC).square().flatten(1).mean(1).clamp_min(1e-10)
        super().update(-10 * error_B.log10())


def describe_cell(cell: Any) -> str:
    """Returns the name of a picture in messages."""
    return cell if isinstance(cell, str) and not cell.startswith("data:") else "the picture"


def to_pillow(color_YXC: Tensor) -> PillowImage.Image:
    """Returns colors in [0, 1] as a picture."""
    return PillowImage.fromarray((color_YXC * 255).round().byte().squeeze(-1).cpu().numpy())


def to_data_uri(image: PillowImage.Image) -> str:
    """Returns a picture as the data URI of a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def above_mean(weights: Tensor) -> Tensor:
    """Returns by how much weights are above their mean, from 0 to 1 for the largest one."""
    above = (weights - weights.mean()).clamp_min(0)
    return above / above.max().clamp_min(1e-9)


def overlay(image: PillowImage.Image, heat_YX: Tensor) -> PillowImage.Image:
    """Returns a picture that is red where the heat is 1, and as it is where it is 0."""
    gray = np.asarray(image.convert("RGB"), dtype=np.float32)
    heat = heat_YX.numpy().astype(np.float32)
    size = (image.width, image.height)
    heat_YX1 = np.asarray(PillowImage.fromarray(heat).resize(size, PillowImage.Resampling.BILINEAR))[..., None]
    mixed = gray * (1 - 0.6 * heat_YX1) + np.array([220.0, 30.0, 30.0]) * 0.6 * heat_YX1
    return PillowImage.fromarray(mixed.clip(0, 255).astype(np.uint8))
