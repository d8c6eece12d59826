"""Optical flow in pictures: the color is the direction, its strength the length.

Shape suffixes: Y rows, X columns, C colors (3), N colors of the wheel (55)
"""

import io
import math
from pathlib import Path

from perceivers.extras import require_extra

require_extra("vision")

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.flow.files import masked
from perceivers.model.saving import write

MARGIN = (235, 235, 235)  # not white, which is a picture's own color where nothing moves


def flow_picture(flow: Tensor, largest: float | None = None) -> Tensor:
    """Shows flow in the colors of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011).

    The hue is the direction (red to the right, yellow down, cyan-blue left, violet up), the saturation the length,
    from white (no flow).

    Args:
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        largest: length in pixels that has full color; longer vectors are darkened. The longest vector's, if not given.

    Returns:
        bytes [3, Y, X]; black where the flow is not known.

    Raises:
        PerceiversError: the shape is wrong, or `largest` is not above 0.
    """
    flow_2YX = masked(flow)
    x_YX, y_YX = flow_2YX.double().nan_to_num()
    length_YX1 = (torch.hypot(x_YX, y_YX) / full_color(flow_2YX, largest))[..., None]
    last = len(WHEEL_NC) - 1
    place_YX = (torch.atan2(-y_YX, -x_YX) / math.pi + 1) / 2 * last % last
    index_YX = place_YX.long()
    hue_YXC = torch.lerp(WHEEL_NC[index_YX], WHEEL_NC[(index_YX + 1) % len(WHEEL_NC)], (place_YX - index_YX)[..., None])
    color_YXC = torch.where(length_YX1 <= 1, 255 - length_YX1 * (255 - hue_YXC), 0.75 * hue_YXC)
    return color_YXC.byte().permute(2, 0, 1) * ~flow_2YX[0].isnan()


def check_picture_path(path: str | Path) -> None:
    """Raises a PerceiversError unless a picture can be written to a file of this suffix."""
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise PerceiversError(f"{path} is no picture by its suffix: use .png.")


def write_picture(path: str | Path, flow: Tensor, valid: Tensor | None = None, largest: float | None = None) -> None:
    """Writes `flow_picture` with a legend at its right: the color of each direction, and which length is full color.

    Args:
        path: a picture file of any format that Pillow writes; a file there is replaced.
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        valid: bool [Y, X], False where it is not known either.
        largest: length in pixels that has full color; the longest vector's, if not given.

    Raises:
        PerceiversError: the suffix is no picture's, the path cannot be written to, or the arguments are not allowed.
    """
    check_picture_path(path)
    flow_2YX = masked(flow, valid)
    largest = full_color(flow_2YX, largest)
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
    """The colors of all vectors up to `largest` pixels, where they point to, and an arrow of that length."""
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


def full_color(flow_2YX: Tensor, largest: float | None) -> float:
    """`largest`, or the length of the longest vector if not given; 1 if nothing moves."""
    if largest is None:
        return torch.hypot(*flow_2YX.double().nan_to_num()).max().item() or 1.0
    check_largest(largest)
    return largest


def check_largest(largest: float | None) -> None:
    """Raises a PerceiversError unless it is a length that can have full color, or not given."""
    if largest is not None and not 0 < largest < math.inf:
        raise PerceiversError(f"largest = {largest} is not allowed: it is a length in pixels, above 0.")


def to_image(picture_CYX: Tensor) -> Image.Image:
    """From bytes."""
    return Image.fromarray(picture_CYX.permute(1, 2, 0).contiguous().numpy())


def color_wheel() -> Tensor:
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


WHEEL_NC = color_wheel()
