"""Labelled images from an image folder, a Hugging Face data set, or the digits that scikit-learn carries.

Shape suffixes: B batch, C colours, Y rows, X columns
"""

import math
from dataclasses import dataclass
from typing import Any

from perceivers.extras import need

need("vision")

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from perceivers.data.labelled_files import Labelled, Splits, hold_out, open_splits
from perceivers.data.loader import Item
from perceivers.errors import PerceiversError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})


@dataclass(frozen=True)
class LabelledImages(Labelled):
    """Images with class labels."""

    noun, suffixes, features = "image", SUFFIXES, ("Image",)

    def read(self, index: int, colours: int) -> Image.Image:
        """Decodes an image to grey (1 colour) or RGB (3); transparent parts become white, 16 bits 8.

        Raises:
            PerceiversError: it cannot be decoded; names it.
        """
        try:
            source = self.source.open(self.indices[index])
            image = source if isinstance(source, Image.Image) else Image.open(source)
            image.load()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise PerceiversError(f"{self.describe(index)} cannot be decoded as an image.") from error
        if image.mode.startswith("I"):
            image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if colours == 1 else "RGB")


@dataclass(frozen=True)
class Pixels:
    """Grey images in an array [images, Y, X] of bytes."""

    pixels: np.ndarray[Any, Any]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        return f"digit {index}"


@dataclass
class ImageData:
    """Which labelled images to use.

    Attributes:
        path: "digits" for the 1,797 handwritten digits of scikit-learn; a folder with a folder of images a class,
            directly or under train/ and val/; a folder of parquet files; or the name of a data set on the hub.
        held_out: part of the images to evaluate on where the data set has no split of its own for that.
        image_column: column of a Hugging Face data set that holds the images; found by its type, if not given.
        label_column: column that holds the labels; likewise.
    """

    path: str = "digits"
    held_out: float = 0.1
    image_column: str | None = None
    label_column: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise PerceiversError(f"data.held_out = {self.held_out} is not allowed: it is a part between 0 and 1.")

    def open(self) -> Splits[LabelledImages]:
        """Finds the images.

        Raises:
            PerceiversError: there are none, or only one class.
        """
        if self.path == "digits":
            return digits()
        return open_splits(LabelledImages, self.path, self.held_out, self.image_column, self.label_column)


def digits() -> Splits[LabelledImages]:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries, a fixed third held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = Pixels((bunch.images / 16 * 255).round().astype(np.uint8))
    images = LabelledImages([str(name) for name in bunch.target_names], bunch.target.tolist(), pixels, range(1797))
    return hold_out(images, 1 / 3)


def evaluation_view(image: Image.Image, size: tuple[int, int], crop: float) -> Image.Image:
    """Resizes (bicubic) and crops the middle: `crop` is the part of the resized side that is kept (224 / 256)."""
    height, width = size
    scale = max(height / image.height, width / image.width) / crop
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def training_view(
    image: Image.Image, size: tuple[int, int], area: tuple[float, float], generator: torch.Generator
) -> Image.Image:
    """Resizes (bicubic) a random part of the image, of a random area and a random shape from 3:4 to 4:3."""
    height, width = size
    low, high = area
    for _ in range(10):
        draw = torch.rand(4, generator=generator).tolist()
        part = image.width * image.height * (low + (high - low) * draw[0])
        ratio = math.exp(math.log(3 / 4) + draw[1] * (math.log(4 / 3) - math.log(3 / 4)))
        crop_width, crop_height = round(math.sqrt(part * ratio)), round(math.sqrt(part / ratio))
        if 0 < crop_width <= image.width and 0 < crop_height <= image.height:
            left = int(draw[2] * (image.width - crop_width + 1))
            top = int(draw[3] * (image.height - crop_height + 1))
            box = (left, top, left + crop_width, top + crop_height)
            return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return evaluation_view(image, size, 1.0)


class ImageDataset(Dataset[dict[str, Any]]):
    """Labelled images as tensors of one size.

    Args:
        images: the images.
        size: height and width of the tensors.
        colours: 1 or 3.
        crop: of `evaluation_view`.
        area: bounds of the random area of `training_view`; None for the evaluation view.
    """

    def __init__(
        self,
        images: LabelledImages,
        size: tuple[int, int],
        colours: int,
        crop: float,
        area: tuple[float, float] | None = None,
    ) -> None:
        self.images, self.size, self.colours, self.crop, self.area = images, size, colours, crop, area

    def __getitem__(self, item: Item) -> dict[str, Any]:
        """An image that cannot be decoded gives a "problem" instead of an image."""
        try:
            image = self.images.read(item.sample, self.colours)
        except PerceiversError as error:
            return {"problem": str(error)}
        if self.area is None:
            view = evaluation_view(image, self.size, self.crop)
        else:
            view = training_view(image, self.size, self.area, torch.Generator().manual_seed(item.seed))
        return {"image": to_tensor(view), "label": self.images.labels[item.sample]}


def to_tensor(image: Image.Image) -> Tensor:
    """-> bytes [C, Y, X]."""
    pixels_YXC = np.array(image)
    return torch.from_numpy(pixels_YXC[None] if pixels_YXC.ndim == 2 else pixels_YXC.transpose(2, 0, 1).copy())


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """-> "image" bytes [B, C, Y, X], "label" [B], and the "problems" of those left out.

    A batch of which nothing could be decoded has "problems" alone.
    """
    good = [sample for sample in samples if "image" in sample]
    problems = [sample["problem"] for sample in samples if "problem" in sample]
    if not good:
        return {"problems": problems}
    return {
        "image": torch.stack([sample["image"] for sample in good]),
        "label": torch.tensor([sample["label"] for sample in good]),
        "problems": problems,
    }
