"""Generated scenes: layers, each with a random texture, outline and motion.

Shape suffixes: B scenes, L layers (0 is the background), Y rows, X columns, P points, C colors
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.checks import Checked, Fraction, Range, check_field
from perceivers.flow.textures import TEXTURE_SIZE

SHEARS = 2  # per layer, each in a direction of its own
NonNegative = Annotated[float, Range(least=0)]


@dataclass
class SceneConfig(Checked):
    """The appearance of generated scenes.

    Attributes:
        size: height and width of the frames in pixels.
        textures: a folder of images to paint with; by default photographs that come with the package, and noise.
        shapes: minimum and maximum number of shapes in front of the background.
        motion: mean motion of the background in pixels; a shape moves relative to it by the same mean.
        motion_exponent: of exponentially distributed lengths of motion, of the same mean; above 1: a heavier tail.
        rotation_scale: typical motion of a layer's border by rotation, zoom and perspective, as a fraction of `motion`.
        shear_scale: the same for the non-rigid deformation.
        blur: fraction of scenes with motion blur.
        fog: fraction of scenes with fog.
        lighting: fraction of scenes whose second frame is lit differently.
        seed: of textures and shapes.
    """

    section = "scenes."

    size: tuple[int, int] = (368, 496)
    textures: str | Path | None = None
    shapes: tuple[int, int] = (3, 8)
    motion: NonNegative = 10.0
    motion_exponent: Annotated[float, Range(above=0)] = 1.0
    rotation_scale: NonNegative = 0.5
    shear_scale: NonNegative = 0.2
    blur: Fraction = 0.0
    fog: Fraction = 0.0
    lighting: Fraction = 0.0
    seed: Annotated[int, Range(least=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.shapes
        check_field("scenes.size", self.size, min(self.size) >= 8, "height and width, at least 8 pixels")
        check_field("scenes.shapes", self.shapes, 0 <= least <= most, "minimum and maximum, at least 0")


@dataclass(frozen=True)
class Layers:
    """The appearance of the layers of scenes, and their motion up to a time, which is 1 in the second frame.

    A point x of the first frame, relative to the layer's center, moves to x' = shift + R x / (1 + perspective . x),
    where R rotates and zooms. Each shear then adds amplitude * sin(wave . x' + phase). It is perpendicular to the wave
    vector, so it leaves wave . x' unchanged and is inverted by subtraction.

    Attributes:
        center: in pixels.
        shift, turn, zoom, perspective: in pixels, radians, the zoom's logarithm, 1 / pixels.
        wave, amplitude, phase: of the shears, in radians / pixel, pixels, radians.
        texture, shape: indices among all textures and shapes.
        texture_map, shape_map: [B, L, 2, 3], from the first frame to coordinates of texture and shape in [-1, 1].
        extent: side of the shape in pixels of the first frame.
        gain, offset: [B, L, C], of the texture's colors.
        is_present: bool [B, L].
    """

    center: Tensor
    shift: Tensor
    turn: Tensor
    zoom: Tensor
    perspective: Tensor
    wave: Tensor
    amplitude: Tensor
    phase: Tensor
    texture: Tensor
    texture_map: Tensor
    shape: Tensor
    shape_map: Tensor
    extent: Tensor
    gain: Tensor
    offset: Tensor
    is_present: Tensor

    def __len__(self) -> int:
        """Returns the number of layers up to the last that any of the scenes has."""
        return int(self.is_present.sum(1).max())

    def get_homography(self, layer: int, time: float) -> Tensor:
        """Returns the motion without the shears, on homogeneous coordinates; [B, 3, 3]."""
        turn_B, zoom_B = time * self.turn[:, layer], (time * self.zoom[:, layer]).exp()
        sine_B, cosine_B = zoom_B * turn_B.sin(), zoom_B * turn_B.cos()
        matrix_B33 = torch.eye(3, device=turn_B.device).repeat(len(turn_B), 1, 1)
        matrix_B33[:, :2, :2] = torch.stack([cosine_B, -sine_B, sine_B, cosine_B], 1).unflatten(1, (2, 2))
        matrix_B33[:, 2, :2] = time * self.perspective[:, layer]
        center_B2 = self.center[:, layer]
        return translate(center_B2 + time * self.shift[:, layer]) @ matrix_B33 @ translate(-center_B2)

    def move(self, layer: int, time: float, point_2P: Tensor) -> Tensor:
        """Moves points of the first frame to their positions at a time; -> [B, 2, P]."""
        point_B2P = transform(self.get_homography(layer, time), point_2P)
        for index in range(SHEARS):
            point_B2P = self.shear(layer, index, point_B2P, time)
        return point_B2P

    def move_back(self, layer: int, time: float, point_2P: Tensor) -> Tensor:
        """Moves points at a time to their positions in the first frame; -> [B, 2, P]."""
        point_B2P = point_2P.expand(len(self.center), -1, -1)
        if time == 0:
            return point_B2P
        for index in reversed(range(SHEARS)):
            point_B2P = self.shear(layer, index, point_B2P, -time)
        return transform(torch.linalg.inv(self.get_homography(layer, time)), point_B2P)

    def shear(self, layer: int, index: int, point_B2P: Tensor, time: float) -> Tensor:
        """Moves points by one of the shears; -> [B, 2, P]."""
        wave_B12, phase_B11 = self.wave[:, layer, index, None], self.phase[:, layer, index, None, None]
        angle_B1P = torch.baddbmm(phase_B11, wave_B12, point_B2P)
        return torch.baddbmm(point_B2P, time * self.amplitude[:, layer, index, :, None], angle_B1P.sin_())

    def get_color(self, layer: int, point_B2P: Tensor, texture_BCYX: Tensor) -> Tensor:
        """Returns the colors [B, C, P] in [0, 1] of points of the first frame, from textures of bytes."""
        color_BCP = sample(texture_BCYX, self.texture_map[:, layer], point_B2P, "reflection")
        return color_BCP.mul_(self.gain[:, layer, :, None] / 255).add_(self.offset[:, layer, :, None]).clamp_(0, 1)

    def get_opacity(self, layer: int, point_B2P: Tensor, shape_B1YX: Tensor) -> Tensor:
        """Returns the opacity [B, P] of points of the first frame: 0 outside the shape, 1 inside, over one pixel."""
        inside_BP = sample(shape_B1YX, self.shape_map[:, layer], point_B2P, "border")[:, 0]
        return inside_BP.mul_(self.extent[:, layer, None]).add_(0.5).clamp_(0, 1) * self.is_present[:, layer, None]


def draw_layers(random: "SceneRandom", config: SceneConfig, textures: int, shapes: int) -> Layers:
    """Draws the layers of scenes at random, from the background to the foremost shape."""
    height, width = config.size
    count = 1 + config.shapes[1]
    side = math.sqrt(height * width)
    sizes = torch.tensor([width, height], device=random.device)
    index = torch.arange(count, device=random.device)
    is_background = index == 0
    extent = torch.where(is_background, 1.5 * side, side * random.logarithmic(count, low=0.15, high=1.2))
    center = torch.where(is_background[:, None], sizes / 2, random.uniform(count, 2) * sizes)
    radius = extent / 2  # where the motion is `rotation_scale` and `shear_scale`

    length = (-random.uniform(count).clamp_min(1e-6).log()) ** config.motion_exponent
    length = length / math.gamma(1 + config.motion_exponent)
    shift = config.motion * length[..., None] * random.direction(count)
    shift = torch.where(is_background[:, None], shift, shift + shift[:, :1])
    turning = config.rotation_scale * config.motion / radius
    bending = config.shear_scale * config.motion * random.normal(count, SHEARS)
    wave_length = radius[..., None] * random.logarithmic(count, SHEARS, low=0.7, high=3.0)
    along = random.direction(count, SHEARS)
    steepest = 0.5 * wave_length / (2 * math.pi)

    texture_radius = TEXTURE_SIZE / 2 * random.logarithmic(count, low=0.7, high=2.0)
    texture_map = draw_affine(center, texture_radius, random, aspect=1.2)
    texture_map[..., 2] += random.uniform(count, 2, low=-1, high=1)
    return Layers(
        center=center,
        shift=shift,
        turn=turning * random.normal(count) / 2,
        zoom=turning * random.normal(count) / 2,
        perspective=turning[..., None] / radius[..., None] * random.normal(count, 2) / 4,
        wave=along * 2 * math.pi / wave_length[..., None],
        amplitude=perpendicular(along) * torch.minimum(bending.abs(), steepest)[..., None],
        phase=random.uniform(count, SHEARS, high=2 * math.pi),
        texture=random.integers(0, textures, count),
        texture_map=texture_map,
        shape=random.integers(0, shapes, count),
        shape_map=draw_affine(center, radius, random, aspect=2.0),
        extent=extent,
        gain=random.uniform(count, 1, low=0.5, high=1.2) * random.uniform(count, 3, low=0.7, high=1.3),
        offset=random.uniform(count, 1, low=-0.1, high=0.25).expand(-1, -1, 3),
        is_present=index <= random.integers(config.shapes[0], config.shapes[1] + 1)[:, None],
    )


def draw_affine(center_BL2: Tensor, radius_BL: Tensor, random: "SceneRandom", aspect: float) -> Tensor:
    """Draws maps [B, L, 2, 3] of circles to rotated ellipses of radius 1 around 0, with at most this aspect ratio."""
    layers = radius_BL.shape[1]
    direction = random.direction(layers)
    longer = random.logarithmic(layers, low=1 / math.sqrt(aspect), high=math.sqrt(aspect))[..., None]
    axes = torch.stack([direction * longer, perpendicular(direction) / longer], -2)
    matrix = axes / radius_BL[..., None, None]
    return torch.cat([matrix, -matrix @ center_BL2[..., None]], -1)


def perpendicular(direction: Tensor) -> Tensor:
    """Returns vectors [..., 2], turned by a quarter."""
    return torch.stack([-direction[..., 1], direction[..., 0]], -1)


def translate(shift_B2: Tensor) -> Tensor:
    """Returns the translations on homogeneous coordinates; [B, 3, 3]."""
    matrix_B33 = torch.eye(3, device=shift_B2.device).repeat(len(shift_B2), 1, 1)
    matrix_B33[:, :2, 2] = shift_B2
    return matrix_B33


def transform(matrix_B33: Tensor, point_B2P: Tensor) -> Tensor:
    """Applies matrices to points [B, 2, P] or [2, P] in homogeneous coordinates; -> [B, 2, P]."""
    point_B2P = point_B2P.expand(len(matrix_B33), -1, -1)
    moved_B3P = torch.baddbmm(matrix_B33[..., 2:], matrix_B33[..., :2], point_B2P)
    return moved_B3P[:, :2].div_(moved_B3P[:, 2:])


def sample(image_BCYX: Tensor, map_B23: Tensor, point_B2P: Tensor, padding: str) -> Tensor:
    """Samples images [B, C, P] at points that a map takes to [-1, 1]."""
    grid_BP2 = torch.baddbmm(map_B23[..., 2:], map_B23[..., :2], point_B2P).mT
    return F.grid_sample(image_BCYX, grid_BP2[:, None], padding_mode=padding, align_corners=False)[:, :, 0]


class SceneRandom:
    """Random numbers of scenes; those of each scene depend on its seed alone, below 2**32."""

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        assert all(0 <= seed < 2**32 for seed in seeds)  # torch's generator ignores higher digits
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """-> [B, *shape], from `low` to `high`."""
        numbers = torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])
        return low + (high - low) * numbers.to(self.device)

    def logarithmic(self, *shape: int, low: float, high: float) -> Tensor:
        """-> [B, *shape], from `low` to `high`, with uniform logarithm."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """-> [B, *shape], from `low` to less than `high`."""
        return self.uniform(*shape, low=low, high=high).long().clamp_max(high - 1)

    def normal(self, *shape: int) -> Tensor:
        """-> [B, *shape], standard normal."""
        return torch.stack([torch.randn(shape, generator=generator) for generator in self.generators]).to(self.device)

    def direction(self, *shape: int) -> Tensor:
        """-> [B, *shape, 2], of length 1."""
        angle = self.uniform(*shape, high=2 * math.pi)
        return torch.stack([angle.cos(), angle.sin()], -1)
