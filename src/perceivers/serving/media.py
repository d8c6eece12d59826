"""Pictures and videos in requests and answers. Shape suffixes: C colors, Y rows, X columns."""

import io

import torch
from PIL import Image
from torch import Tensor

from perceivers.data.image_files import FORMATS
from perceivers.errors import PerceiversError
from perceivers.serving.service import file_type

MAX_PIXELS = 2**25
"""Pixels of the largest picture that is decoded."""

HEAT = (255, 96, 0)
"""Color of attention."""

Picture = file_type("image/*")
"""A picture in any usual format, in a request."""

Png = file_type("image/png")
"""A picture in an answer."""

Video = file_type("video/*")
"""A video in a request."""

Mp4 = file_type("video/mp4")
"""A video in an answer."""


def open_picture(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> io.BytesIO:
    """Returns the content of a picture as a file; raises a PerceiversError, before decoding, if it is too large."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
    except Image.DecompressionBombError:
        pixels = max_pixels + 1
    except Exception as error:  # decoders raise many kinds
        raise PerceiversError(f"{name} cannot be decoded as an image.") from error
    if pixels > max_pixels:
        raise PerceiversError(f"{name} has too many pixels: send at most {max_pixels:,}.")
    return io.BytesIO(content)


def write_png(picture: Tensor) -> bytes:
    """Returns bytes [C, Y, X], gray, RGB or RGBA, as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).squeeze(-1).cpu().numpy()).save(content, "PNG")
    return content.getvalue()


def draw_attention(weight_YX: Tensor) -> Tensor:
    """Draws weights as a color whose opacity is the weight, relative to the largest; bytes [4, Y, X]."""
    alpha_YX = (255 * weight_YX / weight_YX.max().clamp_min(1e-30)).round().byte()
    color_CYX = torch.tensor(HEAT, dtype=torch.uint8, device=weight_YX.device)[:, None, None].expand(
        3, *weight_YX.shape
    )
    return torch.cat([color_CYX, alpha_YX[None]])
