"""Labelled images from an image folder, a Hugging Face data set, or the digits that scikit-learn carries.

Shape suffixes: B batch, C colours, Y rows, X columns
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from perceivers.extras import need

need("vision")

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from perceivers.data.loader import Item
from perceivers.model.errors import PerceiversError, nearest

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"}
TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("validation", "val", "valid", "dev", "test")


class Source(Protocol):
    """Where images come from, one at a time, by index."""

    def open(self, index: int) -> Any:
        """A file's path or content, as PIL opens it, or an image."""

    def describe(self, index: int) -> str:
        """Names the image in a message: its file, or its row."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with class labels.

    Attributes:
        classes: names of the classes.
        labels: class index of each image.
        source: where the images come from.
        indices: their indices there.
    """

    classes: list[str]
    labels: Sequence[int]
    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Names an image in a message."""
        return self.source.describe(self.indices[index])

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

    def part(self, indices: Sequence[int]) -> "LabelledImages":
        """Some of the images."""
        labels, places = [self.labels[i] for i in indices], [self.indices[i] for i in indices]
        return LabelledImages(self.classes, labels, self.source, places)


@dataclass(frozen=True)
class Files:
    """Image files."""

    paths: list[Path]

    def open(self, index: int) -> Path:
        return self.paths[index]

    def describe(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class Rows:
    """Encoded images in a column of a Hugging Face data set."""

    table: Any
    column: str
    name: str

    def open(self, index: int) -> Any:
        entry = self.table[index][self.column]
        return entry["path"] if entry["bytes"] is None else io.BytesIO(entry["bytes"])

    def describe(self, index: int) -> str:
        return f"row {index} of {self.name}"


@dataclass(frozen=True)
class Pixels:
    """Grey images in an array [images, Y, X] of bytes."""

    pixels: np.ndarray[Any, Any]

    def open(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def describe(self, index: int) -> str:
        return f"digit {index}"


@dataclass(frozen=True)
class ImageSplits:
    """The images to train on and those to evaluate on."""

    training: LabelledImages
    evaluation: LabelledImages


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

    def open(self) -> ImageSplits:
        """Finds the images.

        Raises:
            PerceiversError: there are none, or only one class.
        """
        if self.path == "digits":
            splits = digits()
        elif not Path(self.path).exists():
            splits = self.hugging_face(self.path)
        elif not Path(self.path).is_dir():
            raise PerceiversError(f"data.path = {self.path} is a file: give the folder that holds the images.")
        elif next(Path(self.path).rglob("*.parquet"), None) is not None:
            splits = self.hugging_face(self.path)
        else:
            splits = self.folder(Path(self.path))
        if len(splits.training.classes) < 2:
            raise PerceiversError(
                f"{self.path} has only the class {splits.training.classes[0]!r}: a classifier needs at least two."
            )
        return splits

    def folder(self, root: Path) -> ImageSplits:
        """Splits of an image folder."""
        training = next((root / name for name in TRAINING_NAMES if (root / name).is_dir()), None)
        evaluation = next((root / name for name in EVALUATION_NAMES if (root / name).is_dir()), None)
        if training is None:
            return self.hold_out(image_folder(root))
        images = image_folder(training)
        return ImageSplits(images, image_folder(evaluation, images.classes)) if evaluation else self.hold_out(images)

    def hugging_face(self, name: str) -> ImageSplits:
        """Splits of a Hugging Face data set, from the hub or a local folder."""
        import datasets

        try:
            splits = datasets.load_dataset(name)
        except Exception as error:  # the library raises many kinds; each means that it cannot be had
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = (
                "cannot be read as a data set"
                if Path(name).exists()
                else "is neither a folder nor a data set of the hub"
            )
            raise PerceiversError(f"data.path = {name} {kind}: {reason}") from error
        training = next((splits[split] for split in TRAINING_NAMES if split in splits), None)
        evaluation = next((splits[split] for split in EVALUATION_NAMES if split in splits), None)
        if training is None:
            only = next(iter(splits.values()))
            return self.hold_out(self.rows(only, name))
        images = self.rows(training, f"{name} (train)")
        if evaluation is None:
            return self.hold_out(images)
        return ImageSplits(images, self.rows(evaluation, f"{name} ({evaluation.split})", images.classes))

    def rows(self, table: Any, name: str, classes: list[str] | None = None) -> LabelledImages:
        """The rows of one split; `classes` are those of the training split, if that is another."""
        import datasets

        image = self.image_column or column(table, datasets.Image, "image", name)
        label = self.label_column or column(table, datasets.ClassLabel, "label", name)
        for field, value in (("image_column", image), ("label_column", label)):
            if value not in table.features:
                raise PerceiversError(f"data.{field}: {name} has no column {value!r}: {nearest(value, table.features)}")
        feature = table.features[label]
        labels: list[Any] = list(table[label])
        if isinstance(feature, datasets.ClassLabel):
            names = list(feature.names)
        else:
            labels = [str(value) for value in labels]
            names = sorted(set(labels)) if classes is None else classes
            unknown = set(labels) - set(names)
            if unknown:
                raise PerceiversError(f"{name} has the class {min(unknown)!r}, which the training images do not have.")
            labels = [names.index(value) for value in labels]
        rows = Rows(table.cast_column(image, datasets.Image(decode=False)), image, name)
        return LabelledImages(names, labels, rows, range(len(labels)))

    def hold_out(self, images: LabelledImages) -> ImageSplits:
        """Divides images at random, always the same way."""
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
        count = max(1, round(self.held_out * len(images)))
        return ImageSplits(images.part(order[count:]), images.part(order[:count]))


def column(table: Any, kind: type, usual: str, name: str) -> str:
    """The column of a data set that is of this kind, or has the usual name."""
    found: list[str] = [field for field, feature in table.features.items() if isinstance(feature, kind)]
    if not found and usual in table.features:
        found = [usual]
    if len(found) != 1:
        raise PerceiversError(
            f"{name} has the columns {', '.join(table.features)}: say with data.{usual}_column which holds the {usual}."
        )
    return found[0]


def image_folder(root: Path, classes: list[str] | None = None) -> LabelledImages:
    """A folder of images for each class, its name the class.

    Raises:
        PerceiversError: there are no images, or a class that is not among `classes`.
    """
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise PerceiversError(f"{root} has no images: a folder of images for each class is expected in it.")
    names = list(found) if classes is None else classes
    unknown = [name for name in found if name not in names]
    if unknown:
        raise PerceiversError(f"{root / unknown[0]} is a class that the training images do not have.")
    files = [file for paths in found.values() for file in paths]
    labels = [names.index(name) for name, paths in found.items() for _ in paths]
    return LabelledImages(names, labels, Files(files), range(len(files)))


def digits() -> ImageSplits:
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn carries, a fixed third held out."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = Pixels((bunch.images / 16 * 255).round().astype(np.uint8))
    images = LabelledImages([str(name) for name in bunch.target_names], bunch.target.tolist(), pixels, range(1797))
    return ImageData(held_out=1 / 3).hold_out(images)


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
