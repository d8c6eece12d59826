"""Reads, resizes and crops images. Shape suffixes: C colors, Y rows, X columns."""

import math
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.files import LIMIT, check_count, get_limit, require_file

LARGEST_RESIZED = 2**24  # pixels of an image that is resized as a whole before it is cropped
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga", ".pcx", ".sgi", ".psd", ".ico", ".dds", ".qoi"}
)
FORMATS = (
    "JPEG", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000", "MPO", "PCX", "SGI", "PSD", "ICO",
    "DDS", "QOI", "TGA",
)  # fmt: skip
"""Formats of Pillow that are read, by content; not EPS, which is a program that Pillow runs."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transformations that turn an image upright, by its orientation in EXIF."""


def read_frame(path: str | Path) -> Tensor:
    """Reads an image as bytes [3, Y, X], see `read_image`."""
    return to_tensor(read_image(require_file(path), path))


def read_image(source: Path | BinaryIO | Image.Image, name: object, mode: Literal["L", "RGB"] = "RGB") -> Image.Image:
    """Reads an image with 8 bits, gray ("L") or RGB, on white, turned upright by its EXIF data.

    Gray levels of 16 bits, and floating point numbers from 0 to 1, are scaled.

    Args:
        source: the file, its content, or the decoded image.
        name: its name in errors.
        mode: "L" for gray, "RGB" for colors.

    Raises:
        PerceiversError: it cannot be decoded, has other values, or more pixels than `check_count` allows.
    """
    if Image.MAX_IMAGE_PIXELS and get_limit() > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = get_limit()
    try:
        image = source if isinstance(source, Image.Image) else Image.open(source, formats=FORMATS)
        with image:
            check_count(name, image.width * image.height, "pixels")
            image.load()
            turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            if turn is not None:  # one of them is 0
                image = image.transpose(turn)
            if image.mode[0] in "IF":
                image = to_uint8(image, name)
            elif image.mode in ("LAB", "La"):
                image = lab_to_rgb(image) if image.mode == "LAB" else image.convert("LA")
            image = flatten_transparency(image)
            return image if image.mode == mode else image.convert(mode)
    except PerceiversError:
        raise
    except Image.DecompressionBombError as error:
        raise PerceiversError(f"{name} has too many pixels: set {LIMIT} to allow it.") from error
    except Exception as error:  # the decoders raise many kinds
        raise PerceiversError(f"{name} cannot be decoded as an image.") from error


def flatten_transparency(image: Image.Image) -> Image.Image:
    """Puts an image with transparency on a white background."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def to_uint8(image: Image.Image, name: object) -> Image.Image:
    """Scales a gray image of integers (16 bits) or floating point numbers (0 to 1) to bytes."""
    values_YX = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF" and 0 < values_YX.max() < 256:
        raise PerceiversError(f"{name} has gray levels of 32 bits, but none above 255: save it with 8 or 16 bits.")
    top = 1 if image.mode == "F" else 2**16 - 1
    if not ((values_YX >= 0) & (values_YX <= top)).all():
        raise PerceiversError(f"{name} has values outside 0 to {top}: save it with 8 or 16 bits.")
    return Image.fromarray(np.rint(np.multiply(values_YX, 255 / top, dtype=np.float32)).astype(np.uint8))


def lab_to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image in the CIELAB color space, which `Image.convert` cannot."""
    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.applyTransform(image, ImageCms.buildTransform(lab, rgb, "LAB", "RGB"))
    assert converted is not None
    return converted


def evaluation_view(image: Image.Image, size: tuple[int, int], crop: float) -> Image.Image:
    """Resizes (bicubic) and center-crops an image; `crop` is the kept fraction of the resized side (224 / 256)."""
    height, width = size
    scale = max(height / image.height, width / image.width) / crop
    rows, columns = round(image.height * scale), round(image.width * scale)
    left, top = (columns - width) // 2, (rows - height) // 2
    if rows * columns > LARGEST_RESIZED:  # a very thin image, of which only the crop is resized
        x, y = image.width / columns, image.height / rows
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    resized = image.resize((columns, rows), Image.Resampling.BICUBIC)
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
