"""Labeled images from a folder, a Hugging Face data set, or the digits of scikit-learn."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from perceivers.checks import Checked, ProperFraction
from perceivers.data.image_files import SUFFIXES, evaluation_view, read_image, to_tensor, training_view
from perceivers.data.labeled import Labeled, LabeledSamples, Splits, random_split
from perceivers.data.labeled_files import open_evaluation, open_splits
from perceivers.data.loader import SampleIndex
from perceivers.data.splits import Part, choose_splits
from perceivers.errors import PerceiversError
from perceivers.files import require_file


@dataclass(frozen=True)
class LabeledImages(Labeled):
    """Images with class labels."""

    noun, suffixes, features = "image", SUFFIXES, ("Image",)

    def read(self, index: int, in_channels: int) -> Image.Image:
        """Reads an image as gray (1 channel) or RGB (3), see `read_image`."""
        source = self.source.open(self.indices[index])
        source = require_file(source) if isinstance(source, str | Path) else source
        return read_image(source, self.describe(index), "L" if in_channels == 1 else "RGB")


@dataclass(frozen=True)
class Pixels:
    """Gray images in an array [images, Y, X] of bytes."""

    pixels: np.ndarray[Any, Any]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        return f"digit {index}"

    def checksum(self) -> str:
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()


@dataclass
class ImageData(Checked):
    """The images of a run.

    Attributes:
        path: "digits" for the 1,797 handwritten digits of scikit-learn; a folder with a folder of images for each
            class, directly or under train/ and val/; a folder of parquet files; or the name of a data set on the Hub.
        validation_fraction: fraction of the images to evaluate on if the data set has no evaluation split.
        image_column: column of a Hugging Face data set that holds the images; by default found by its type.
        label_column: column that holds the labels; by default found by its type.
    """

    section = "data."

    path: str = "digits"
    validation_fraction: ProperFraction = 0.1
    image_column: str | None = None
    label_column: str | None = None

    def open(self) -> Splits[LabeledImages]:
        """Finds the images; raises a PerceiversError if there are none, or only one class."""
        if self.path == "digits":
            return load_digit_images()
        return open_splits(LabeledImages, self.path, self.validation_fraction, self.image_column, self.label_column)


def open_evaluation_images(
    path: str, split: str | None = None, validation_fraction: float | None = None
) -> tuple[LabeledImages, Part]:
    """Finds the images to evaluate a model on, see `open_evaluation`; of the digits, the third that is held out."""
    if path == "digits":
        return choose_digits(split)
    return open_evaluation(LabeledImages, path, split, validation_fraction)


def choose_digits(split: str | None) -> tuple[LabeledImages, Part]:
    """Returns a split of the digits: "test", by default, or "train"."""
    digits = load_digit_images()
    parts = {"train": digits.training, "test": digits.evaluation}
    ((name, _), *_) = choose_splits(parts, split, "digits")
    return parts[name], Part("image", len(parts[name]), sum(map(len, parts.values())), name)


def load_digit_images() -> Splits[LabeledImages]:
    """Loads the 1,797 handwritten digits of 8 x 8 pixels of scikit-learn, a fixed third of which is held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = Pixels((bunch.images / 16 * 255).round().astype(np.uint8))
    images = LabeledImages([str(name) for name in bunch.target_names], bunch.target.tolist(), pixels, range(1797))
    return random_split(images, 1 / 3)


@dataclass(eq=False)
class ImageDataset(LabeledSamples):
    """Labeled images of the same size, as batches of "image", bytes [B, C, Y, X], and "label" [B].

    Attributes:
        size: height and width.
        in_channels: 1 or 3.
        crop: as in `evaluation_view`.
        area: range of the random area of `training_view`; None for the evaluation view.
    """

    images: LabeledImages
    size: tuple[int, int]
    in_channels: int
    crop: float
    area: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        try:
            image = self.images.read(item.sample, self.in_channels)
        except PerceiversError as error:
            return {"problem": str(error)}
        if self.area is None:
            view = evaluation_view(image, self.size, self.crop)
        else:
            view = training_view(image, self.size, self.area, torch.Generator().manual_seed(item.seed))
        return {"image": to_tensor(view), "label": self.images.labels[item.sample]}
