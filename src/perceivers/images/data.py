"""Labelled images from an image folder, a Hugging Face data set, or the digits that scikit-learn carries.

Shape suffixes: B batch, C colors, Y rows, X columns
"""

from dataclasses import dataclass
from typing import Any

from perceivers.extras import require_extra

require_extra("vision")

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from perceivers.checks import Checked, ProperFraction
from perceivers.data.image_files import SUFFIXES, evaluation_view, to_tensor, training_view
from perceivers.data.labelled_files import Labelled, Splits, hold_out, open_splits
from perceivers.data.loader import SampleIndex, Samples
from perceivers.errors import PerceiversError


@dataclass(frozen=True)
class LabelledImages(Labelled):
    """Images with class labels."""

    noun, suffixes, features = "image", SUFFIXES, ("Image",)

    def read(self, index: int, in_channels: int) -> Image.Image:
        """Decodes an image to gray (1 color) or RGB (3); transparent parts become white, 16 bits 8.

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
        return image.convert("L" if in_channels == 1 else "RGB")


@dataclass(frozen=True)
class Pixels:
    """Gray images in an array [images, Y, X] of bytes."""

    pixels: np.ndarray[Any, Any]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        return f"digit {index}"


@dataclass
class ImageData(Checked):
    """Which labelled images to use.

    Attributes:
        path: "digits" for the 1,797 handwritten digits of scikit-learn; a folder with a folder of images a class,
            directly or under train/ and val/; a folder of parquet files; or the name of a data set on the hub.
        held_out: part of the images to evaluate on where the data set has no split of its own for that.
        image_column: column of a Hugging Face data set that holds the images; found by its type, if not given.
        label_column: column that holds the labels; likewise.
    """

    section = "data."

    path: str = "digits"
    held_out: ProperFraction = 0.1
    image_column: str | None = None
    label_column: str | None = None

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


class ImageDataset(Samples):
    """Labelled images as tensors of one size.

    Args:
        images: the images.
        size: height and width of the tensors.
        colors: 1 or 3.
        crop: of `evaluation_view`.
        area: bounds of the random area of `training_view`; None for the evaluation view.
    """

    def __init__(
        self,
        images: LabelledImages,
        size: tuple[int, int],
        in_channels: int,
        crop: float,
        area: tuple[float, float] | None = None,
    ) -> None:
        self.images, self.size, self.in_channels, self.crop, self.area = images, size, in_channels, crop, area

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        """An image that cannot be decoded gives a "problem" instead of an image."""
        try:
            image = self.images.read(item.sample, self.in_channels)
        except PerceiversError as error:
            return {"problem": str(error)}
        if self.area is None:
            view = evaluation_view(image, self.size, self.crop)
        else:
            view = training_view(image, self.size, self.area, torch.Generator().manual_seed(item.seed))
        return {"image": to_tensor(view), "label": self.images.labels[item.sample]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
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
