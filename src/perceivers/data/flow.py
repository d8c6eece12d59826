"""Optical flow in files and in pictures.

Flow is a tensor float32 [2, Y, X] in pixels: how far the content of each pixel moves to the right (first) and
downwards (second). Where it is not known it is NaN.

Shape suffixes: Y rows, X columns, C colours (3), N colours of the wheel (55)
"""

import io
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from perceivers.extras import need

need("vision")

import kornia_rs
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from perceivers.data.images import to_tensor
from perceivers.model.errors import PerceiversError
from perceivers.model.saving import write

Array = np.ndarray[Any, Any]

FLO_MAGIC = b"PIEH"  # 202021.25 as a little-endian float
LARGEST_KNOWN = 1e9  # in pixels; Middlebury writes more where the flow is not known
UNKNOWN = 1e10
KITTI_ZERO, KITTI_STEPS = 2**15, 64  # the level of zero flow; levels a pixel

MARGIN = (235, 235, 235)  # not white, which is a picture's own colour where nothing moves


def read_frame(path: str | Path) -> Tensor:
    """Reads an image as bytes [3, Y, X], turned upright as its EXIF data say.

    Grey becomes three equal colours, transparent parts become white. 16 bits are scaled to 8, and so are floating
    point images, which go from 0 to 1.

    Raises:
        PerceiversError: there is no such file, it cannot be decoded, or its values leave the range.
    """
    path = existing(path)
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode[0] in "IF":
                image = eight_bits(image, path)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return to_tensor(image.convert("RGB"))
    except PerceiversError:
        raise
    except Exception as error:  # the decoders raise many kinds
        raise PerceiversError(f"{path} cannot be decoded as an image: it is truncated, damaged or no image.") from error


def eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Scales a grey image of integers (16 bits) or floating point numbers (0 to 1)."""
    values_YX = np.asarray(image)
    top = 1 if image.mode == "F" else 2**16 - 1
    if not ((values_YX >= 0) & (values_YX <= top)).all():
        raise PerceiversError(f"{path} has values outside 0 to {top}: save it with 8 or 16 bits.")
    return Image.fromarray(np.rint(values_YX / top * 255).astype(np.uint8))


def check_flow_path(path: str | Path) -> None:
    """Raises a PerceiversError unless flow can be read from and written to a file of this suffix."""
    if Path(path).suffix.lower() not in FORMATS:
        raise PerceiversError(f"{path} is no flow file by its suffix: use one of {', '.join(FORMATS)}.")


def read_flow(path: str | Path) -> tuple[Tensor, Tensor]:
    """Reads a flow file; its suffix says which kind it is.

    `.flo` is Middlebury's format, `.png` KITTI's (16-bit RGB), `.npy` an array [Y, X, 2] of floating point numbers.

    Returns:
        The flow, float32 [2, Y, X] in pixels, to the right and downwards, NaN where it is not known; and where it is
        known, bool [Y, X].

    Raises:
        PerceiversError: there is no such file, or it is not such a flow file or damaged.
    """
    check_flow_path(path)
    path = existing(path)
    flow_YX2 = FORMATS[path.suffix.lower()].read(path).astype(np.float32)
    if flow_YX2.size == 0:
        raise PerceiversError(f"{path} holds no pixels: its shape is {list(flow_YX2.shape)}.")
    flow_2YX = masked(torch.from_numpy(flow_YX2).permute(2, 0, 1).contiguous())
    return flow_2YX, ~flow_2YX[0].isnan()


def write_flow(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> None:
    """Writes a file that `read_flow` reads; its suffix says which kind.

    `.flo` and `.npy` keep float32 exactly, `.png` rounds to 1/64 pixel.

    Args:
        path: where to; a file there is replaced.
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        valid: bool [Y, X], False where it is not known either.

    Raises:
        PerceiversError: the suffix is another, the path cannot be written to, the shapes are wrong, or the flow is too
            large for KITTI's format (-512 to 511.98 pixels).
    """
    check_flow_path(path)
    flow_YX2 = np.ascontiguousarray(masked(flow, valid).permute(1, 2, 0).numpy())
    FORMATS[Path(path).suffix.lower()].write(Path(path), flow_YX2)


def flow_picture(flow: Tensor, largest: float | None = None) -> Tensor:
    """Shows flow in the colours of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011).

    The hue is the direction (red to the right, yellow down, cyan-blue left, violet up), the saturation the length,
    from white (no flow).

    Args:
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        largest: length in pixels that has full colour; longer vectors are darkened. The longest vector's, if not given.

    Returns:
        bytes [3, Y, X]; black where the flow is not known.

    Raises:
        PerceiversError: the shape is wrong, or `largest` is not above 0.
    """
    flow_2YX = masked(flow)
    x_YX, y_YX = flow_2YX.double().nan_to_num()
    length_YX1 = (torch.hypot(x_YX, y_YX) / full_colour(flow_2YX, largest))[..., None]
    last = len(WHEEL_NC) - 1
    place_YX = (torch.atan2(-y_YX, -x_YX) / math.pi + 1) / 2 * last % last
    index_YX = place_YX.long()
    hue_YXC = torch.lerp(WHEEL_NC[index_YX], WHEEL_NC[(index_YX + 1) % len(WHEEL_NC)], (place_YX - index_YX)[..., None])
    colour_YXC = torch.where(length_YX1 <= 1, 255 - length_YX1 * (255 - hue_YXC), 0.75 * hue_YXC)
    return colour_YXC.byte().permute(2, 0, 1) * ~flow_2YX[0].isnan()


def check_picture_path(path: str | Path) -> None:
    """Raises a PerceiversError unless a picture can be written to a file of this suffix."""
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise PerceiversError(f"{path} is no picture by its suffix: use .png.")


def write_picture(path: str | Path, flow: Tensor, valid: Tensor | None = None, largest: float | None = None) -> None:
    """Writes `flow_picture` with a legend at its right: the colour of each direction, and which length is full colour.

    Args:
        path: a picture file of any format that Pillow writes; a file there is replaced.
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        valid: bool [Y, X], False where it is not known either.
        largest: length in pixels that has full colour; the longest vector's, if not given.

    Raises:
        PerceiversError: the suffix is no picture's, the path cannot be written to, or the arguments are not allowed.
    """
    check_picture_path(path)
    flow_2YX = masked(flow, valid)
    largest = full_colour(flow_2YX, largest)
    picture = to_image(flow_picture(flow_2YX, largest))
    margin = legend(largest, max(48, min(picture.size) // 4))
    page = Image.new("RGB", (picture.width + margin.width, max(picture.height, margin.height)), MARGIN)
    page.paste(picture, (0, (page.height - picture.height) // 2))
    page.paste(margin, (picture.width, (page.height - margin.height) // 2))
    content = io.BytesIO()
    try:
        page.save(content, Image.registered_extensions()[Path(path).suffix.lower()])
    except Exception as error:  # the encoders raise many kinds
        raise PerceiversError(f"{path} cannot hold this picture ({error}): use .png.") from error
    write(Path(path), lambda file: file.write_bytes(content.getvalue()))


def legend(largest: float, diameter: int) -> Image.Image:
    """The colours of all vectors up to `largest` pixels, where they point to, and an arrow of that length."""
    fine = 4 * diameter  # reduced in the end, which smooths the edges
    axis = torch.linspace(-1, 1, fine)
    disc = to_image(flow_picture(torch.stack(torch.meshgrid(axis, axis, indexing="xy")), 1.0))
    circle = Image.new("L", disc.size)
    ImageDraw.Draw(circle).ellipse((0, 0, fine - 1, fine - 1), fill=255)
    wheel = Image.composite(disc, Image.new("RGB", disc.size, MARGIN), circle)
    middle, right, head = fine // 2, fine - 1, fine // 20
    draw = ImageDraw.Draw(wheel)
    draw.line((middle, middle, right - head, middle), fill="black", width=fine // 100 + 2)
    draw.polygon(((right, middle), (right - 2 * head, middle - head), (right - 2 * head, middle + head)), fill="black")
    label, font = f"{float(f'{largest:.3g}'):g} px", ImageFont.load_default(max(11, diameter // 7))
    text_width, text_height = (math.ceil(end) for end in font.getbbox(label)[2:])
    gap = diameter // 6
    width, height = max(diameter, text_width) + 2 * gap, diameter + text_height + 5 * gap // 2
    page = Image.new("RGB", (width, height), MARGIN)
    page.paste(wheel.reduce(4), ((width - diameter) // 2, gap))
    ImageDraw.Draw(page).text(((width - text_width) // 2, diameter + 3 * gap // 2), label, "black", font)
    return page


def full_colour(flow_2YX: Tensor, largest: float | None) -> float:
    """`largest`, or the length of the longest vector if not given; 1 if nothing moves."""
    if largest is None:
        return torch.hypot(*flow_2YX.double().nan_to_num()).max().item() or 1.0
    check_largest(largest)
    return largest


def check_largest(largest: float | None) -> None:
    """Raises a PerceiversError unless it is a length that can have full colour, or not given."""
    if largest is not None and not 0 < largest < math.inf:
        raise PerceiversError(f"largest = {largest} is not allowed: it is a length in pixels, above 0.")


def masked(flow: Tensor, valid: Tensor | None = None) -> Tensor:
    """-> float32 [2, Y, X] on the CPU, NaN where `valid` is False or either part is NaN or beyond all measure."""
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise PerceiversError(f"flow has the shape {tuple(flow.shape)}: [2, height, width] is expected.")
    if valid is not None and valid.shape != flow.shape[1:]:
        raise PerceiversError(f"valid has the shape {tuple(valid.shape)}: {tuple(flow.shape[1:])} is expected.")
    flow_2YX = flow.detach().float().cpu()
    known_YX = (flow_2YX.abs() <= LARGEST_KNOWN).all(0)
    if valid is not None:
        known_YX &= valid.cpu().bool()
    return flow_2YX.masked_fill(~known_YX, math.nan)


def read_flo(path: Path) -> Array:
    """-> [Y, X, 2]."""
    content = path.read_bytes()
    if content[:4] != FLO_MAGIC:
        raise PerceiversError(f"{path} is no Middlebury flow file: it does not begin with {FLO_MAGIC.decode()}.")
    if len(content) < 12:
        raise PerceiversError(f"{path} is truncated: it ends before the size of the flow.")
    width, height = struct.unpack("<ii", content[4:12])
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise PerceiversError(
            f"{path} is truncated or damaged: it says that its flow is {width} x {height} pixels, "
            f"but has {len(content) - 12} bytes of flow."
        )
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)


def write_flo(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    height, width, _ = flow_YX2.shape
    content = np.nan_to_num(flow_YX2, nan=UNKNOWN).astype("<f4").tobytes()
    write(path, lambda file: file.write_bytes(FLO_MAGIC + struct.pack("<ii", width, height) + content))


def read_kitti(path: Path) -> Array:
    """-> [Y, X, 2]."""
    try:
        levels_YXC = kornia_rs.io.read_image(str(path))
    except Exception as error:  # no narrower kind is promised
        raise PerceiversError(f"{path} cannot be decoded as a PNG image ({str(error).strip('.')}).") from error
    if levels_YXC.dtype != np.uint16 or levels_YXC.shape[-1] != 3:
        raise PerceiversError(
            f"{path} is no KITTI flow file: it has {levels_YXC.shape[-1]} colours of {8 * levels_YXC.itemsize} bits, "
            "3 of 16 bits are expected."
        )
    flow_YX2 = (levels_YXC[..., :2].astype(np.float32) - KITTI_ZERO) / KITTI_STEPS
    flow_YX2[levels_YXC[..., 2] == 0] = np.nan
    return flow_YX2


def write_kitti(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    known_YX = ~np.isnan(flow_YX2[..., 0])
    levels_YX2 = np.rint(np.nan_to_num(flow_YX2) * KITTI_STEPS) + KITTI_ZERO
    if levels_YX2.min() < 0 or levels_YX2.max() >= 2**16:
        raise PerceiversError(
            f"cannot write {path}: its flow reaches {np.nanmax(np.abs(flow_YX2)):g} pixels, "
            "but KITTI's format ends at -512 and 511.98: use .flo or .npy."
        )
    levels_YXC = np.dstack([levels_YX2 * known_YX[..., None], known_YX]).astype(np.uint16)
    write(path, lambda file: kornia_rs.io.write_image_png_u16(str(file), levels_YXC, "rgb"))


def read_array(path: Path) -> Array:
    """-> [Y, X, 2]."""
    try:
        with path.open("rb") as file:
            flow_YX2: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, MemoryError) as error:
        raise PerceiversError(f"{path} cannot be read as a NumPy array: it is truncated, damaged or none.") from error
    if flow_YX2.ndim != 3 or flow_YX2.shape[2] != 2 or flow_YX2.dtype.kind != "f":
        raise PerceiversError(
            f"{path} holds {flow_YX2.dtype} {list(flow_YX2.shape)}: floating point [height, width, 2] is expected."
        )
    return flow_YX2


def write_array(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    content = io.BytesIO()
    np.save(content, flow_YX2)
    write(path, lambda file: file.write_bytes(content.getvalue()))


class Format(NamedTuple):
    """How one kind of flow file is read and written; not known is NaN or beyond all measure in [Y, X, 2]."""

    read: Callable[[Path], Array]
    write: Callable[[Path, Array], None]


FORMATS = {
    ".flo": Format(read_flo, write_flo),
    ".png": Format(read_kitti, write_kitti),
    ".npy": Format(read_array, write_array),
}


def existing(path: str | Path) -> Path:
    """The path of a file that can be read."""
    path = Path(path)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise PerceiversError(f"{path} is no file that can be read: give the path of one.")
    return path


def to_image(picture_CYX: Tensor) -> Image.Image:
    """From bytes."""
    return Image.fromarray(picture_CYX.permute(1, 2, 0).contiguous().numpy())


def colour_wheel() -> Tensor:
    """-> [N, C], from 0 to 255."""
    steps = 15, 6, 4, 11, 13, 6  # perceived differences are about equal
    corners = [
        (255, 0, 0),
        (255, 255, 0),
        (0, 255, 0),
        (0, 255, 255),
        (0, 0, 255),
        (255, 0, 255),
        (255, 0, 0),
    ]
    return torch.tensor(
        [
            [start + (end - start) // 255 * (255 * step // count) for start, end in zip(here, there, strict=True)]
            for count, here, there in zip(steps, corners, corners[1:], strict=False)
            for step in range(count)
        ],
        dtype=torch.float64,
    )


WHEEL_NC = colour_wheel()
