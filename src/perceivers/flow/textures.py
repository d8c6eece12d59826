"""Surfaces and outlines of generated scenes: photographs, the user's images, noise; polygons, blobs, strokes.

Shape suffixes: T textures, S shapes, C colors, Y rows, X columns, P points of an outline,
    W waves of one
"""

import math
import sys
from pathlib import Path

from perceivers.extras import require_extra

require_extra("vision")

import cv2
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor
from tqdm import tqdm

from perceivers.data.image_files import SUFFIXES, read_frame
from perceivers.errors import PerceiversError

TEXTURE_SIZE = 320
"""Side of a texture in pixels."""

SHAPE_SIZE = 128
"""Side of a shape's map of distances."""

PHOTOGRAPHS = [
    *("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "immunohistochemistry"),
    *("moon", "retina", "rocket"),
]
"""What scikit-image brings without downloading; scikit-learn brings two more."""


def make_textures(folder: str | Path | None, count: int, seed: int) -> Tensor:
    """Square textures to paint scenes with.

    Args:
        folder: of images, also in folders below, parts of which become textures; if not given, two of three textures
            are parts of the photographs that come with scikit-image and scikit-learn, the others are made of noise.
        count: how many.
        seed: of which parts of which images, and of the noise.

    Returns:
        bytes [T, 3, TEXTURE_SIZE, TEXTURE_SIZE].

    Raises:
        PerceiversError: the folder does not exist, or none of its images can be read.
    """
    random = np.random.default_rng(seed)
    if folder is not None:
        images, cut = read_images(Path(folder), count, random), count
    else:
        images, cut = photographs(), math.ceil(count * 2 / 3)
    textures = [part(images[place % len(images)], random) for place in range(cut)]
    textures += [noise(random) for _ in range(count - cut)]
    return torch.stack(textures)


def photographs() -> list[Tensor]:
    """The photographs that come with scikit-image and scikit-learn, bytes [3, Y, X]."""
    arrays = [getattr(skimage.data, name)() for name in PHOTOGRAPHS] + load_sample_images().images
    return [torch.from_numpy(np.atleast_3d(array).copy()).permute(2, 0, 1).expand(3, -1, -1) for array in arrays]


def read_images(folder: Path, most: int, random: Generator) -> list[Tensor]:
    """Up to `most` images of a folder, drawn at random, bytes [3, Y, X]; those that cannot be read are left out."""
    if not folder.is_dir():
        raise PerceiversError(f"there is no folder of textures {folder}: give one with images.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images: list[Tensor] = []
    for place in tqdm(random.permutation(len(paths)), "textures", disable=None):
        if len(images) == most:
            break
        try:
            images.append(read_frame(paths[place]))
        except PerceiversError as error:
            print(f"Skipped: {error}", file=sys.stderr)
    if not images:
        raise PerceiversError(f"{folder} has no image that can be read: give a folder with images.")
    return images


def part(image_CYX: Tensor, random: Generator) -> Tensor:
    """A square part of an image, from a third to all of its shorter side, brought to the size of a texture."""
    height, width = image_CYX.shape[1:]
    side = math.ceil(min(height, width) * random.uniform(1 / 3, 1))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    square = image_CYX[None, :, top : top + side, left : left + side].float()
    if side != TEXTURE_SIZE:
        square = F.interpolate(square, (TEXTURE_SIZE,) * 2, mode="bilinear", antialias=True, align_corners=False)
    return square[0].round().byte()


def noise(random: Generator) -> Tensor:
    """Colored noise whose amplitude falls with a power of the frequency, as that of natural images does."""
    white = random.standard_normal((3, TEXTURE_SIZE, TEXTURE_SIZE))
    frequency_Y, frequency_X = np.fft.fftfreq(TEXTURE_SIZE), np.fft.rfftfreq(TEXTURE_SIZE)
    frequency_YX = np.hypot(frequency_Y[:, None], frequency_X)
    frequency_YX[0, 0] = np.inf  # no mean
    spectrum = np.fft.rfft2(white) * frequency_YX ** -random.uniform(0.8, 1.8)
    noise_CYX = np.fft.irfft2(spectrum, s=white.shape[1:])
    noise_CYX /= noise_CYX.std((1, 2), keepdims=True)
    mixed_CYX = np.einsum("dc,cyx->dyx", random.standard_normal((3, 3)), noise_CYX)  # colors that vary together
    if random.random() < 0.3:  # bands with sharp edges
        mixed_CYX = np.sin(mixed_CYX * random.uniform(2, 6)) * 2
    level_CYX = random.uniform(60, 200, (3, 1, 1)) + random.uniform(15, 45) * mixed_CYX
    return torch.from_numpy(level_CYX.round().clip(0, 255).astype(np.uint8))


def make_shapes(count: int, seed: int) -> Tensor:
    """Outlines of things: polygons, blobs, thin strokes, some of several parts, some with holes.

    Returns:
        float16 [S, SHAPE_SIZE, SHAPE_SIZE]: the distance to the outline as a part of the side, positive inside.
    """
    random = np.random.default_rng(seed)
    return torch.stack([distances(outline(random)) for _ in range(count)])


def outline(random: Generator) -> NDArray[np.uint8]:
    """Draws a shape, 1 inside, at twice the size of its map."""
    inside_YX = np.zeros((2 * SHAPE_SIZE,) * 2, np.uint8)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        kind = random.random()
        if kind < 0.4:
            draw(inside_YX, polygon(random))
        elif kind < 0.7:
            draw(inside_YX, blob(random))
        else:
            stroke_P2 = curve(random)
            cv2.polylines(inside_YX, [pixels(stroke_P2)], False, 1, thickness=int(random.integers(6, 40)))
    for _ in range(random.choice([0, 0, 1, 2])):
        hole_P2 = random.uniform(0.1, 0.35) * blob(random) + random.uniform(-0.4, 0.4, 2)
        draw(inside_YX, hole_P2, 0)
    if not inside_YX.any():
        draw(inside_YX, blob(random))
    inside_YX[[0, -1]] = inside_YX[:, [0, -1]] = 0  # what lies beyond is outside
    return inside_YX


def polygon(random: Generator) -> NDArray[np.float64]:
    """Corners around the middle in [-1, 1], [P, 2]; not always convex."""
    angle_P = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 11)))
    return random.uniform(0.3, 0.95, len(angle_P))[:, None] * np.stack([np.cos(angle_P), np.sin(angle_P)], 1)


def blob(random: Generator) -> NDArray[np.float64]:
    """A smooth closed curve around the middle in [-1, 1], [P, 2]."""
    angle_P = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    wave_W1, phase_W1 = np.arange(1, 6)[:, None], random.uniform(0, 2 * np.pi, (5, 1))
    height_W1 = 0.4 * random.normal(size=(5, 1)) / wave_W1
    radius_P = np.maximum(1 + (height_W1 * np.cos(wave_W1 * angle_P + phase_W1)).sum(0), 0.1)
    return (0.9 * radius_P / radius_P.max())[:, None] * np.stack([np.cos(angle_P), np.sin(angle_P)], 1)


def curve(random: Generator) -> NDArray[np.float64]:
    """A curve of Bezier's from one place in [-1, 1] to another, [P, 2]."""
    step_P1 = np.linspace(0, 1, 30)[:, None]
    corners = random.uniform(-0.85, 0.85, (4, 2))
    parts = [math.comb(3, k) * step_P1**k * (1 - step_P1) ** (3 - k) * corner for k, corner in enumerate(corners)]
    return np.sum(parts, 0)


def pixels(points_P2: NDArray[np.float64]) -> NDArray[np.int32]:
    """From [-1, 1] to places in a drawing."""
    return np.rint((points_P2 + 1) * SHAPE_SIZE - 0.5).astype(np.int32)


def draw(inside_YX: NDArray[np.uint8], points_P2: NDArray[np.float64], value: int = 1) -> None:
    """Fills a closed curve."""
    cv2.fillPoly(inside_YX, [pixels(points_P2)], value)


def distances(inside_YX: NDArray[np.uint8]) -> Tensor:
    """Of a drawing at twice the size: how far each place is inside (positive) or outside, as a part of the side."""
    within, without = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (inside_YX, 1 - inside_YX))
    signed = torch.from_numpy(within - without) / len(inside_YX)
    return F.avg_pool2d(signed[None], 2)[0].half()
