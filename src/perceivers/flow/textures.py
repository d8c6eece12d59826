"""Surfaces and outlines of generated scenes: photographs, the user's images, noise; polygons, blobs, strokes.

Shape suffixes: T textures, S shapes, C colors, Y rows, X columns, P points of an outline, W its waves
"""

import math
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from sklearn.datasets import load_sample_images
from torch import Tensor

from perceivers.data.image_files import SUFFIXES, read_frame
from perceivers.errors import PerceiversError
from perceivers.files import find_files
from perceivers.progress import track

TEXTURE_SIZE = 320  # side of a texture in pixels
SHAPE_SIZE = 128  # side of a shape's map of distances
PHOTOGRAPHS = [
    *("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "hubble_deep_field", "immunohistochemistry"),
    *("moon", "retina", "rocket"),
]
"""Those that scikit-image has without downloading; scikit-learn has two more."""


def make_textures(folder: str | Path | None, count: int, seed: int) -> Tensor:
    """Makes square textures to paint scenes with, bytes [T, 3, TEXTURE_SIZE, TEXTURE_SIZE].

    They are crops of the images in a folder (also in subfolders). By default, two thirds are crops of the photographs
    in scikit-image and scikit-learn, and one third is noise.

    Raises:
        PerceiversError: the folder does not exist, or none of its images can be read.
    """
    random = np.random.default_rng(seed)
    images = load_photographs() if folder is None else read_images(Path(folder), count, random)
    crops = math.ceil(count * 2 / 3) if folder is None else count
    textures = [crop_texture(images[index % len(images)], random) for index in range(crops)]
    textures += [make_noise(random) for _ in range(count - crops)]
    return torch.stack(textures)


def load_photographs() -> list[Tensor]:
    """Loads the photographs in scikit-image and scikit-learn, bytes [3, Y, X]."""
    arrays = [getattr(skimage.data, name)() for name in PHOTOGRAPHS] + load_sample_images().images
    return [torch.from_numpy(np.atleast_3d(array).copy()).permute(2, 0, 1).expand(3, -1, -1) for array in arrays]


def read_images(folder: Path, max_count: int, random: Generator) -> list[Tensor]:
    """Reads up to `max_count` random images of a folder, bytes [3, Y, X]; unreadable ones are skipped."""
    if not os.path.isdir(folder):
        raise PerceiversError(f"there is no folder of textures {folder}: give one with images.")
    paths = find_files(folder, SUFFIXES, report=True)
    images: list[Tensor] = []
    for index in track(random.permutation(len(paths)), "textures"):
        if len(images) == max_count:
            break
        try:
            images.append(read_frame(paths[index]))
        except PerceiversError as error:
            print(f"Skipped: {error}", file=sys.stderr)
    if not images:
        raise PerceiversError(f"{folder} has no image that can be read: give a folder with images.")
    return images


def crop_texture(image_CYX: Tensor, random: Generator) -> Tensor:
    """Crops a random square, from a third to all of the shorter side, and resizes it to a texture."""
    height, width = image_CYX.shape[1:]
    side = math.ceil(min(height, width) * random.uniform(1 / 3, 1))
    top, left = random.integers(height - side + 1), random.integers(width - side + 1)
    square = image_CYX[None, :, top : top + side, left : left + side].float()
    if side != TEXTURE_SIZE:
        square = F.interpolate(square, (TEXTURE_SIZE,) * 2, mode="bilinear", antialias=True, align_corners=False)
    return square[0].round().byte()


def make_noise(random: Generator) -> Tensor:
    """Makes color noise whose amplitude falls with a power of the frequency, as in natural images."""
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
    """Makes polygons, blobs and thin strokes, some of several parts, some with holes.

    Returns float16 [S, SHAPE_SIZE, SHAPE_SIZE]: distances to the outline as fractions of the side, positive inside.
    """
    random = np.random.default_rng(seed)
    return torch.stack([compute_distances(draw_shape(random)) for _ in range(count)])


def draw_shape(random: Generator) -> NDArray[np.uint8]:
    """Draws a shape, 1 inside, at twice the size of its map of distances."""
    inside_YX = np.zeros((2 * SHAPE_SIZE,) * 2, np.uint8)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        kind = random.random()
        if kind < 0.4:
            fill(inside_YX, make_polygon(random))
        elif kind < 0.7:
            fill(inside_YX, make_blob(random))
        else:
            stroke = to_pixels(make_curve(random))
            cv2.polylines(inside_YX, [stroke], False, 1, thickness=int(random.integers(6, 40)))
    for _ in range(random.choice([0, 0, 1, 2])):
        hole_P2 = random.uniform(0.1, 0.35) * make_blob(random) + random.uniform(-0.4, 0.4, 2)
        fill(inside_YX, hole_P2, 0)
    if not inside_YX.any():
        fill(inside_YX, make_blob(random))
    inside_YX[[0, -1]] = inside_YX[:, [0, -1]] = 0  # all beyond the border is outside
    return inside_YX


def make_polygon(random: Generator) -> NDArray[np.float64]:
    """Makes the corners [P, 2] in [-1, 1] of a polygon around 0, not always convex."""
    angle_P = np.sort(random.uniform(0, 2 * np.pi, random.integers(3, 11)))
    return random.uniform(0.3, 0.95, len(angle_P))[:, None] * np.stack([np.cos(angle_P), np.sin(angle_P)], 1)


def make_blob(random: Generator) -> NDArray[np.float64]:
    """Makes a smooth closed curve [P, 2] in [-1, 1] around 0."""
    angle_P = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    wave_W1, phase_W1 = np.arange(1, 6)[:, None], random.uniform(0, 2 * np.pi, (5, 1))
    height_W1 = 0.4 * random.normal(size=(5, 1)) / wave_W1
    radius_P = np.maximum(1 + (height_W1 * np.cos(wave_W1 * angle_P + phase_W1)).sum(0), 0.1)
    return (0.9 * radius_P / radius_P.max())[:, None] * np.stack([np.cos(angle_P), np.sin(angle_P)], 1)


def make_curve(random: Generator) -> NDArray[np.float64]:
    """Makes a Bezier curve [P, 2] in [-1, 1]."""
    step_P1 = np.linspace(0, 1, 30)[:, None]
    corners = random.uniform(-0.85, 0.85, (4, 2))
    parts = [math.comb(3, k) * step_P1**k * (1 - step_P1) ** (3 - k) * corner for k, corner in enumerate(corners)]
    return np.sum(parts, 0)


def to_pixels(points_P2: NDArray[np.float64]) -> NDArray[np.int32]:
    """Converts coordinates in [-1, 1] to pixels of a drawing."""
    return np.rint((points_P2 + 1) * SHAPE_SIZE - 0.5).astype(np.int32)


def fill(inside_YX: NDArray[np.uint8], points_P2: NDArray[np.float64], value: int = 1) -> None:
    """Fills a closed curve."""
    cv2.fillPoly(inside_YX, [to_pixels(points_P2)], value)


def compute_distances(inside_YX: NDArray[np.uint8]) -> Tensor:
    """Returns the distance to a drawing's outline, at half its size, as a fraction of the side; positive inside."""
    within, without = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (inside_YX, 1 - inside_YX))
    signed = torch.from_numpy(within - without) / len(inside_YX)
    return F.avg_pool2d(signed[None], 2)[0].half()
