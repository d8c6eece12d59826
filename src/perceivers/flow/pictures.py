"""Draws optical flow: the hue is the direction, the saturation the length.

Shape suffixes: Y rows, X columns, C colors (3), N colors of the wheel (55)
"""

import io
import math
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.flow.files import invalidate
from perceivers.model.saving import atomic_write

MARGIN = (235, 235, 235)  # not white, the color of zero flow


def draw_flow(flow: Tensor, max_flow: float | None = None) -> Tensor:
    """Draws flow in the colors of Baker et al., "A Database and Evaluation Methodology for Optical Flow" (2011).

    Flow is red to the right, yellow down, cyan-blue left, violet up, and white if nothing moves.

    Args:
        flow: [2, Y, X] in pixels, to the right and down; NaN where unknown.
        max_flow: length in pixels that has full color, by default the longest vector's; longer vectors are darkened.

    Returns:
        bytes [3, Y, X]; black where the flow is unknown.

    Raises:
        PerceiversError: the shape is wrong, or `max_flow` is not above 0.
    """
    flow_2YX = invalidate(flow)
    x_YX, y_YX = flow_2YX.double().nan_to_num()
    length_YX1 = (torch.hypot(x_YX, y_YX) / resolve_max_flow(flow_2YX, max_flow))[..., None]
    last = len(WHEEL_NC) - 1
    angle_YX = (torch.atan2(-y_YX, -x_YX) / math.pi + 1) / 2 * last % last
    index_YX = angle_YX.long()
    hue_YXC = torch.lerp(WHEEL_NC[index_YX], WHEEL_NC[(index_YX + 1) % len(WHEEL_NC)], (angle_YX - index_YX)[..., None])
    color_YXC = torch.where(length_YX1 <= 1, 255 - length_YX1 * (255 - hue_YXC), 0.75 * hue_YXC)
    return color_YXC.byte().permute(2, 0, 1) * ~flow_2YX[0].isnan()


def check_picture_path(path: str | Path) -> None:
    """Raises a PerceiversError unless the suffix is that of a picture that can be written."""
    if Image.registered_extensions().get(Path(path).suffix.lower()) not in Image.SAVE:
        raise PerceiversError(f"{path} does not have the suffix of a picture: use .png.")


def write_picture(path: str | Path, flow: Tensor, valid: Tensor | None = None, max_flow: float | None = None) -> None:
    """Writes the picture of `draw_flow` with a legend at its right.

    Args:
        path: a picture file of any format that Pillow writes; an existing file is replaced.
        flow: [2, Y, X] in pixels, to the right and down; NaN where unknown.
        valid: bool [Y, X], False where the flow is unknown, too.
        max_flow: length in pixels that has full color, by default the longest vector's.

    Raises:
        PerceiversError: the suffix is not a picture's, the path cannot be written to, or the arguments are not allowed.
    """
    check_picture_path(path)
    flow_2YX = invalidate(flow, valid)
    max_flow = resolve_max_flow(flow_2YX, max_flow)
    picture = to_image(draw_flow(flow_2YX, max_flow))
    margin = draw_legend(max_flow, max(48, min(picture.size) // 4))
    page = Image.new("RGB", (picture.width + margin.width, max(picture.height, margin.height)), MARGIN)
    page.paste(picture, (0, (page.height - picture.height) // 2))
    page.paste(margin, (picture.width, (page.height - margin.height) // 2))
    content = io.BytesIO()
    try:
        page.save(content, Image.registered_extensions()[Path(path).suffix.lower()])
    except Exception as error:  # encoders raise errors of many classes
        raise PerceiversError(f"{path} cannot hold this picture ({error}): use .png.") from error
    atomic_write(Path(path), lambda file: file.write_bytes(content.getvalue()))


def draw_legend(max_flow: float, diameter: int) -> Image.Image:
    """Draws a disc with the color of each vector up to `max_flow` pixels, and an arrow of that length."""
    fine = 4 * diameter  # reduced at the end, which smooths the edges
    axis = torch.linspace(-1, 1, fine)
    disc = to_image(draw_flow(torch.stack(torch.meshgrid(axis, axis, indexing="xy")), 1.0))
    circle = Image.new("L", disc.size)
    ImageDraw.Draw(circle).ellipse((0, 0, fine - 1, fine - 1), fill=255)
    wheel = Image.composite(disc, Image.new("RGB", disc.size, MARGIN), circle)
    middle, right, head = fine // 2, fine - 1, fine // 20
    draw = ImageDraw.Draw(wheel)
    draw.line((middle, middle, right - head, middle), fill="black", width=fine // 100 + 2)
    draw.polygon(((right, middle), (right - 2 * head, middle - head), (right - 2 * head, middle + head)), fill="black")
    label, font = f"{float(f'{max_flow:.3g}'):g} px", ImageFont.load_default(max(11, diameter // 7))
    text_width, text_height = (math.ceil(end) for end in font.getbbox(label)[2:])
    gap = diameter // 6
    width, height = max(diameter, text_width) + 2 * gap, diameter + text_height + 5 * gap // 2
    page = Image.new("RGB", (width, height), MARGIN)
    page.paste(wheel.reduce(4), ((width - diameter) // 2, gap))
    ImageDraw.Draw(page).text(((width - text_width) // 2, diameter + 3 * gap // 2), label, "black", font)
    return page


def resolve_max_flow(flow_2YX: Tensor, max_flow: float | None) -> float:
    """Returns `max_flow` or, by default, the length of the longest vector; 1 if nothing moves."""
    if max_flow is None:
        return torch.hypot(*flow_2YX.double().nan_to_num()).max().item() or 1.0
    check_max_flow(max_flow)
    return max_flow


def check_max_flow(max_flow: float | None) -> None:
    """Raises a PerceiversError unless a length, if given, can have full color."""
    if max_flow is not None and not 0 < max_flow < math.inf:
        raise PerceiversError(f"max_flow = {max_flow} is not allowed: it must be a length in pixels, above 0.")


def to_image(picture_CYX: Tensor) -> Image.Image:
    """Converts bytes [3, Y, X] to an image."""
    return Image.fromarray(picture_CYX.permute(1, 2, 0).contiguous().numpy())


def make_color_wheel() -> Tensor:
    """Returns colors [N, C] from 0 to 255 whose perceived differences are about equal."""
    corners = [(255, 0, 0), (255, 255, 0), (0, 255, 0), (0, 255, 255), (0, 0, 255), (255, 0, 255), (255, 0, 0)]
    colors = [
        [start + (end - start) // 255 * (255 * step // steps) for start, end in zip(*ends, strict=True)]
        for steps, ends in zip((15, 6, 4, 11, 13, 6), pairwise(corners), strict=True)
        for step in range(steps)
    ]
    return torch.tensor(colors, dtype=torch.float64)


WHEEL_NC = make_color_wheel()
