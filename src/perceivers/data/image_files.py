"""Reads, resizes and crops images. Shape suffixes: C colors, Y rows, X columns."""

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from perceivers.errors import PerceiversError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff"})


def read_frame(path: str | Path) -> Tensor:
    """Reads an image as bytes [3, Y, X], RGB on white, turned upright by its EXIF data, or raises a PerceiversError.

    Images of 16 bits, and floating point images from 0 to 1, are scaled to 8 bits.
    """
    path = require_file(path)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                image = to_uint8(image, path)
            return to_tensor(flatten_transparency(image).convert("RGB"))
    except PerceiversError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise PerceiversError(
            f"{path} cannot be decoded as an image: it is truncated, damaged or not an image."
        ) from error


def flatten_transparency(image: Image.Image) -> Image.Image:
    """Puts an image with transparency on a white background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def to_uint8(image: Image.Image, path: Path) -> Image.Image:
    """Scales a gray image of integers (16 bits) or floating point numbers (0 to 1) to bytes."""
    values_YX = np.asarray(image)
    top = 1 if image.mode == "F" else 2**16 - 1
    if not ((values_YX >= 0) & (values_YX <= top)).all():
        raise PerceiversError(f"{path} has values outside 0 to {top}: save it with 8 or 16 bits.")
    return Image.fromarray(np.rint(values_YX / top * 255).astype(np.uint8))


def require_file(path: str | Path) -> Path:
    """Returns the path of a file; raises a PerceiversError if it cannot be read."""
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise PerceiversError(f"{path} is not a readable file: give the path of one.")
    return path


def evaluation_view(image: Image.Image, size: tuple[int, int], crop: float) -> Image.Image:
    """Resizes (bicubic) and center-crops an image; `crop` is the kept fraction of the resized side (224 / 256)."""
    height, width = size
    scale = max(height / image.height, width / image.width) / crop
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def training_view(
    image: Image.Image, size: tuple[int, int], area: tuple[float, float], generator: torch.Generator
) -> Image.Image:
    """Crops and resizes (bicubic) a random part of an image, with a random area and an aspect ratio from 3:4 to 4:3."""
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


def to_tensor(image: Image.Image) -> Tensor:
    """Returns bytes [C, Y, X]."""
    pixels_YXC = np.array(image)
    return torch.from_numpy(pixels_YXC[None] if pixels_YXC.ndim == 2 else pixels_YXC.transpose(2, 0, 1).copy())
