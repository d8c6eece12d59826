"""What generated scenes consist of: layers with a texture, an outline and a motion each, drawn by chance.

Shape suffixes: B scenes, L layers (0 is the background), S shears, Y rows, X columns, P pixels, C colors
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

SHEARS = 2
"""Of each layer, along directions of their own: two bend it both ways."""


@dataclass
class Scenes(Checked):
    """What generated scenes look like.

    Attributes:
        size: height and width of the frames in pixels.
        textures: a folder of images to paint with; photographs and noise that come with the package, if not given.
        shapes: fewest and most shapes in front of the background.
        motion: pixels that the background moves on average; a shape moves as much again, on average, on top of that.
        tail: how much more often than an exponential distribution has them there are long motions: the lengths are
            exponentially distributed numbers to this power, scaled to the mean `motion`.
        turning: pixels that rotation, zoom and perspective together typically move the border of a layer, as a part of
            `motion`.
        bending: the same of the non-rigid deformation.
        blur: part of the scenes with motion blur.
        fog: part of the scenes with fog.
        lighting: part of the scenes whose second frame is lighted otherwise.
        seed: of textures and shapes.
    """

    section = "scenes."

    size: tuple[int, int] = (368, 496)
    textures: str | Path | None = None
    shapes: tuple[int, int] = (3, 8)
    motion: Annotated[float, Range(least=0)] = 10.0
    tail: Annotated[float, Range(above=0)] = 1.0
    turning: Annotated[float, Range(least=0)] = 0.5
    bending: Annotated[float, Range(least=0)] = 0.2
    blur: Fraction = 0.0
    fog: Fraction = 0.0
    lighting: Fraction = 0.0
    seed: Annotated[int, Range(least=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        fewest, most = self.shapes
        check_field("scenes.size", self.size, min(self.size) >= 8, "height and width, at least 8 pixels")
        check_field("scenes.shapes", self.shapes, 0 <= fewest <= most, "fewest and most, at least 0")


@dataclass(frozen=True)
class Layers:
    """How the layers of scenes look, and how they move until a time, which is 1 in the second frame.

    A place x of the first frame, seen from the layer's centre, moves to x' = shift + R x / (1 + tilt . x), where R
    turns and zooms. Every shear then moves it by swing * sin(wave . x' + phase). The swing stands upright on the
    wave, so that this does not change wave . x' and is undone by subtracting the same.

    Attributes:
        centre: in pixels.
        shift, turn, zoom, tilt: in pixels, radians, the zoom's logarithm, 1 / pixels.
        wave, swing, phase: of the shears, in radians / pixel, pixels, radians.
        texture, shape: which of all.
        texture_map, shape_map: [B, L, 2, 3], from places in the first frame to places in texture and shape in [-1, 1].
        extent: pixels that a shape's side has in the first frame.
        gain, offset: [B, L, C], of the texture's colors.
        present: bool [B, L].
    """

    centre: Tensor
    shift: Tensor
    turn: Tensor
    zoom: Tensor
    tilt: Tensor
    wave: Tensor
    swing: Tensor
    phase: Tensor
    texture: Tensor
    texture_map: Tensor
    shape: Tensor
    shape_map: Tensor
    extent: Tensor
    gain: Tensor
    offset: Tensor
    present: Tensor

    @property
    def count(self) -> int:
        """Number of layers up to the last that any of the scenes has."""
        return int(self.present.sum(1).max())

    def perspective(self, layer: int, time: float) -> Tensor:
        """The motion but for the shears, on homogeneous coordinates; -> [B, 3, 3]."""
        turn_B, zoom_B = time * self.turn[:, layer], (time * self.zoom[:, layer]).exp()
        sine_B, cosine_B = zoom_B * turn_B.sin(), zoom_B * turn_B.cos()
        matrix_B33 = torch.eye(3, device=turn_B.device).repeat(len(turn_B), 1, 1)
        matrix_B33[:, 0, 0], matrix_B33[:, 0, 1] = cosine_B, -sine_B
        matrix_B33[:, 1, 0], matrix_B33[:, 1, 1] = sine_B, cosine_B
        matrix_B33[:, 2, :2] = time * self.tilt[:, layer]
        centre_B2 = self.centre[:, layer]
        return translation(centre_B2 + time * self.shift[:, layer]) @ matrix_B33 @ translation(-centre_B2)

    def move(self, layer: int, time: float, place_2P: Tensor) -> Tensor:
        """From places in the first frame to those at a time; -> [B, 2, P]."""
        place_B2P = transform(self.perspective(layer, time), place_2P)
        for shear in range(SHEARS):
            place_B2P = self.sheared(layer, shear, place_B2P, time)
        return place_B2P

    def undo(self, layer: int, time: float, place_2P: Tensor) -> Tensor:
        """From places at a time to those in the first frame; -> [B, 2, P]."""
        place_B2P = place_2P.expand(len(self.centre), -1, -1)
        if time == 0:
            return place_B2P
        for shear in reversed(range(SHEARS)):
            place_B2P = self.sheared(layer, shear, place_B2P, -time)
        return transform(torch.linalg.inv(self.perspective(layer, time)), place_B2P)

    def sheared(self, layer: int, shear: int, place_B2P: Tensor, time: float) -> Tensor:
        """Places, moved by one of the shears; -> [B, 2, P]."""
        wave_B12, phase_B11 = self.wave[:, layer, shear, None], self.phase[:, layer, shear, None, None]
        angle_B1P = torch.baddbmm(phase_B11, wave_B12, place_B2P)
        return torch.baddbmm(place_B2P, time * self.swing[:, layer, shear, :, None], angle_B1P.sin_())

    def color(self, layer: int, place_B2P: Tensor, texture_BCYX: Tensor) -> Tensor:
        """Of places in the first frame, from textures of bytes; -> [B, C, P] in [0, 1]."""
        color_BCP = sample(texture_BCYX, self.texture_map[:, layer], place_B2P, "reflection")
        return color_BCP.mul_(self.gain[:, layer, :, None] / 255).add_(self.offset[:, layer, :, None]).clamp_(0, 1)

    def opacity(self, layer: int, place_B2P: Tensor, shape_B1YX: Tensor) -> Tensor:
        """Of places in the first frame, 0 outside of the shape, 1 inside, over one pixel; -> [B, P]."""
        inside_BP = sample(shape_B1YX, self.shape_map[:, layer], place_B2P, "border")[:, 0]
        return inside_BP.mul_(self.extent[:, layer, None]).add_(0.5).clamp_(0, 1) * self.present[:, layer, None]


def draw_layers(draw: "Draw", scenes: Scenes, textures: int, shapes: int) -> Layers:
    """Draws the layers of scenes, from the background to the foremost shape."""
    height, width = scenes.size
    most = 1 + scenes.shapes[1]
    side = math.sqrt(height * width)
    sizes = torch.tensor([width, height], device=draw.device)
    is_background = torch.arange(most, device=draw.device) == 0
    extent = torch.where(is_background, 1.5 * side, side * draw.logarithmic(most, low=0.15, high=1.2))
    centre = torch.where(is_background[:, None], sizes / 2, draw.uniform(most, 2) * sizes)
    reach = extent / 2  # from the centre to the border, where motion is `turning` and `bending`

    length = (-draw.uniform(most).clamp_min(1e-6).log()) ** scenes.tail / math.gamma(1 + scenes.tail)
    shift = scenes.motion * length[..., None] * draw.direction(most)
    shift = torch.where(is_background[:, None], shift, shift + shift[:, :1])
    turning = scenes.turning * scenes.motion / reach
    bending = scenes.bending * scenes.motion * draw.normal(most, SHEARS)
    wave_length = reach[..., None] * draw.logarithmic(most, SHEARS, low=0.7, high=3.0)
    along = draw.direction(most, SHEARS)
    upright = torch.stack([-along[..., 1], along[..., 0]], -1)
    steepest = 0.5 * wave_length / (2 * math.pi)

    texture_map = affine(centre, TEXTURE_SIZE / 2 * draw.logarithmic(most, low=0.7, high=2.0), draw, aspect=1.2)
    texture_map[..., 2] += draw.uniform(most, 2, low=-1, high=1)
    return Layers(
        centre=centre,
        shift=shift,
        turn=turning * draw.normal(most) / 2,
        zoom=turning * draw.normal(most) / 2,
        tilt=turning[..., None] / reach[..., None] * draw.normal(most, 2) / 4,
        wave=along * 2 * math.pi / wave_length[..., None],
        swing=upright * torch.minimum(bending.abs(), steepest)[..., None],
        phase=draw.uniform(most, SHEARS, high=2 * math.pi),
        texture=draw.integers(0, textures, most),
        texture_map=texture_map,
        shape=draw.integers(0, shapes, most),
        shape_map=affine(centre, extent / 2, draw, aspect=2.0),
        extent=extent,
        gain=draw.uniform(most, 1, low=0.5, high=1.2) * draw.uniform(most, 3, low=0.7, high=1.3),
        offset=draw.uniform(most, 1, low=-0.1, high=0.25).expand(-1, -1, 3),
        present=torch.arange(most, device=draw.device)
        <= draw.integers(scenes.shapes[0], scenes.shapes[1] + 1)[:, None],
    )


def affine(centre_BL2: Tensor, radius_BL: Tensor, draw: "Draw", aspect: float) -> Tensor:
    """A map that takes a circle around the centre to one of radius 1, turned, and longer one way; -> [B, L, 2, 3]."""
    layers = radius_BL.shape[1]
    direction = draw.direction(layers)
    upright = torch.stack([-direction[..., 1], direction[..., 0]], -1)
    longer = draw.logarithmic(layers, low=1 / math.sqrt(aspect), high=math.sqrt(aspect))
    matrix = torch.stack([direction * longer[..., None], upright / longer[..., None]], -2) / radius_BL[..., None, None]
    return torch.cat([matrix, -matrix @ centre_BL2[..., None]], -1)


def translation(shift_B2: Tensor) -> Tensor:
    """On homogeneous coordinates; -> [B, 3, 3]."""
    matrix_B33 = torch.eye(3, device=shift_B2.device).repeat(len(shift_B2), 1, 1)
    matrix_B33[:, :2, 2] = shift_B2
    return matrix_B33


def transform(matrix_B33: Tensor, place_B2P: Tensor) -> Tensor:
    """Applies a matrix to places [B, 2, P] or [2, P] by homogeneous coordinates; -> [B, 2, P]."""
    place_B2P = place_B2P.expand(len(matrix_B33), -1, -1)
    moved_B3P = torch.baddbmm(matrix_B33[..., 2:], matrix_B33[..., :2], place_B2P)
    return moved_B3P[:, :2].div_(moved_B3P[:, 2:])


def sample(image_BCYX: Tensor, map_B23: Tensor, place_B2P: Tensor, beyond: str) -> Tensor:
    """The values of an image at places that a map brings to [-1, 1]; -> [B, C, P]."""
    grid_BP2 = torch.baddbmm(map_B23[..., 2:], map_B23[..., :2], place_B2P).mT
    sampled_BC1P = F.grid_sample(image_BCYX, grid_BP2[:, None], padding_mode=beyond, align_corners=False)
    return sampled_BC1P[:, :, 0]


class Draw:
    """Random numbers of scenes; those of each depend on its seed alone.

    Args:
        seeds: of the scenes, less than 2**32: torch's generator takes no more digits into account.
        device: where the numbers are wanted.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        assert all(0 <= seed < 2**32 for seed in seeds)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """-> [B, *shape], from `low` to `high`."""
        numbers = torch.stack([torch.rand(shape, generator=generator) for generator in self.generators])
        return low + (high - low) * numbers.to(self.device)

    def logarithmic(self, *shape: int, low: float, high: float) -> Tensor:
        """-> [B, *shape], from `low` to `high`, as often in each octave."""
        return self.uniform(*shape, low=math.log(low), high=math.log(high)).exp()

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """-> [B, *shape], from `low` to less than `high`."""
        return self.uniform(*shape, low=low, high=high).long().clamp_max(high - 1)

    def normal(self, *shape: int) -> Tensor:
        """-> [B, *shape], of mean 0 and deviation 1."""
        numbers = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        return numbers.to(self.device)

    def direction(self, *shape: int) -> Tensor:
        """-> [B, *shape, 2], of length 1."""
        angle = self.uniform(*shape, high=2 * math.pi)
        return torch.stack([angle.cos(), angle.sin()], -1)
