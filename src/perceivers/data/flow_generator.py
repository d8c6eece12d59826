"""Pairs of frames with exact flow, made from nothing: layered scenes in the manner of AutoFlow.

The paper trains on AutoFlow (section 4.2; Sun et al., 2021), whose generator was not released.

A scene is a background and shapes in front of each other, each with a texture and a motion of its own: a perspective
motion, bent by shears whose size varies as a sine along the sheared direction. Each of these has a closed inverse, so
that flow is exact in both directions, also where its content cannot be seen.

Shape suffixes: B scenes, L layers (0 is the background), S shears, Y rows, X columns, P pixels, C colours
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from perceivers.data.flow_layouts import CHAIRS_SPLITS
from perceivers.data.flow_sets import FlowPair, write_pair
from perceivers.data.textures import TEXTURE_SIZE, make_shapes, make_textures
from perceivers.model.errors import PerceiversError
from perceivers.model.saving import write

SHEARS = 2
TEXTURES, SHAPES = 384, 512
"""How many there are to choose from; every layer shows another part of one, turned, scaled and coloured."""

EXPOSURE, MOMENTS = 0.5, 5
"""Motion blur: part of the time between frames that a frame is exposed, and how many moments it is the mean of."""

VALIDATION = 20
"""One of so many pairs that are written is for validation."""


@dataclass
class Scenes:
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

    size: tuple[int, int] = (368, 496)
    textures: str | Path | None = None
    shapes: tuple[int, int] = (3, 8)
    motion: float = 10.0
    tail: float = 1.0
    turning: float = 0.5
    bending: float = 0.2
    blur: float = 0.0
    fog: float = 0.0
    lighting: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "size": (len(self.size) == 2 and min(self.size, default=0) >= 8, "height and width, at least 8 pixels"),
            "shapes": (len(self.shapes) == 2 and 0 <= self.shapes[0] <= self.shapes[1], "fewest and most, at least 0"),
            "motion": (self.motion >= 0, "at least 0"),
            "tail": (self.tail > 0, "larger than 0"),
            "turning": (self.turning >= 0, "at least 0"),
            "bending": (self.bending >= 0, "at least 0"),
            "seed": (self.seed >= 0, "at least 0"),
        } | {name: (0 <= getattr(self, name) <= 1, "from 0 to 1") for name in ("blur", "fog", "lighting")}
        for field, (allowed, expected) in rules.items():
            if not allowed:
                raise PerceiversError(f"scenes.{field} = {getattr(self, field)} is not allowed: it must be {expected}.")


class ScenePairs(NamedTuple):
    """Two frames of each scene, and how it moves.

    Attributes:
        frames: [B, 2, 3, Y, X] in [0, 1].
        forward: [B, 2, Y, X]: pixels that the content of each pixel of the first frame moves, to the right and down.
        backward: the same from the second frame to the first.
        occluded: bool [B, Y, X]: where the content of the first frame cannot be seen in the second.
        uncovered: where that of the second cannot be seen in the first.
    """

    frames: Tensor
    forward: Tensor
    backward: Tensor
    occluded: Tensor
    uncovered: Tensor


class FlowGenerator:
    """Makes pairs; the pair of a seed (from 0 to 2**32 - 1) is always the same.

    Args:
        scenes: what they look like.
        device: where they are made.

    Raises:
        PerceiversError: there are no textures in the folder.
    """

    def __init__(self, scenes: Scenes, device: torch.device | str = "cpu") -> None:
        self.scenes = scenes
        self.device = torch.device(device)
        self.textures = make_textures(scenes.textures, TEXTURES, scenes.seed).to(device)
        self.shapes = make_shapes(SHAPES, scenes.seed).to(device)
        y, x = torch.meshgrid(*(torch.arange(side, device=device) for side in scenes.size), indexing="ij")
        self.place_2P = torch.stack([x, y]).flatten(1).float()

    @torch.no_grad()
    def pairs(self, seeds: Sequence[int]) -> ScenePairs:
        """The pairs of these seeds."""
        made = [self.make(some) for some in torch.tensor(seeds).split(self.group)]
        return ScenePairs(*(torch.cat(parts) for parts in zip(*made, strict=True)))

    @property
    def group(self) -> int:
        """How many scenes are made together: on a CPU one a thread, or more if they stay in its cache."""
        pixels = self.place_2P.shape[1]
        return 64 if self.device.type != "cpu" else max(torch.get_num_threads(), 2**16 // pixels)

    def make(self, seeds: Tensor) -> ScenePairs:
        """The pairs of a few seeds, made together."""
        size = self.scenes.size
        draw = Draw(seeds.tolist(), self.device)
        layers = draw_layers(draw, self.scenes, len(self.textures), len(self.shapes))
        blurred_B = draw.uniform() < self.scenes.blur
        first, second = self.render(layers, (0.0, 1.0), blurred_B)
        frames = torch.stack([first.frame_BCP, second.frame_BCP], 1).unflatten(-1, size)
        forward = self.forward_flow(layers, first.top_BP)
        occluded = hidden(first.top_BP, second.top_BP, self.place_2P + forward, size)
        uncovered = hidden(second.top_BP, first.top_BP, self.place_2P + second.flow_B2P, size)
        flat = forward, second.flow_B2P, occluded, uncovered
        return ScenePairs(light(frames, draw, self.scenes), *(field.unflatten(-1, size) for field in flat))

    def render(self, layers: "Layers", times: Sequence[float], blurred_B: Tensor) -> "list[Rendered]":
        """Frames at these times: 0 in the first frame, 1 in the second."""
        sharp = self.paint(layers, times)
        if not blurred_B.any():
            return sharp
        moments = torch.linspace(-EXPOSURE / 2, EXPOSURE / 2, MOMENTS)
        blurred = self.paint(layers, [time + moment for time in times for moment in moments.tolist()])
        for place, rendered in enumerate(sharp):
            parts = [part.frame_BCP for part in blurred[place * MOMENTS : (place + 1) * MOMENTS]]
            rendered.frame_BCP[blurred_B] = torch.stack(parts).mean(0)[blurred_B]
        return sharp

    def paint(self, layers: "Layers", times: Sequence[float]) -> "list[Rendered]":
        """Frames of a moment, painted layer over layer."""
        painted: list[Rendered] = []
        for layer in range(layers.count):
            texture_BCYX = self.textures[layers.texture[:, layer]].float()
            shape_B1YX = self.shapes[layers.shape[:, layer], None].float()
            for place, time in enumerate(times):
                origin_B2P = layers.undo(layer, time, self.place_2P)
                colour_BCP = layers.colour(layer, origin_B2P, texture_BCYX)
                flow_B2P = origin_B2P - self.place_2P
                if layer == 0:
                    painted.append(Rendered(colour_BCP, flow_B2P, torch.zeros_like(flow_B2P[:, 0], dtype=torch.int16)))
                    continue
                opacity_BP = layers.opacity(layer, origin_B2P, shape_B1YX)
                seen_BP = opacity_BP > 0.5
                painted[place].frame_BCP.lerp_(colour_BCP, opacity_BP[:, None])
                painted[place].flow_B2P.copy_(torch.where(seen_BP[:, None], flow_B2P, painted[place].flow_B2P))
                painted[place].top_BP.masked_fill_(seen_BP, layer)
        return painted

    def forward_flow(self, layers: "Layers", top_BP: Tensor) -> Tensor:
        """How far the layer on top of each pixel of the first frame moves; -> [B, 2, P]."""
        flow_B2P = layers.move(0, 1.0, self.place_2P) - self.place_2P
        for layer in range(1, layers.count):
            moved_B2P = layers.move(layer, 1.0, self.place_2P) - self.place_2P
            flow_B2P = torch.where((top_BP == layer)[:, None], moved_B2P, flow_B2P)
        return flow_B2P


def write_scenes(scenes: Scenes, folder: str | Path, count: int) -> None:
    """Writes pairs in the layout of FlyingChairs, one of `VALIDATION` for validation, and `scenes.json`.

    Pairs that are there already, from an interrupted call or a smaller count, are kept.

    Raises:
        PerceiversError: the folder holds something else, or pairs of other scenes, or cannot be written to.
    """
    folder = Path(folder)
    described = json.dumps(asdict(scenes) | {"textures": scenes.textures and str(scenes.textures)}, indent=2) + "\n"
    note = folder / "scenes.json"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not note.is_file())):
        raise PerceiversError(f"{folder} holds something else: choose a new folder.")
    if note.is_file() and note.read_text() != described:
        raise PerceiversError(f"{folder} holds pairs of other scenes, see {note}: choose a new folder.")
    generator = FlowGenerator(scenes)
    write(note, lambda file: file.write_text(described))
    for number in tqdm(range(1, count + 1), "pairs", disable=None):
        if not (folder / f"{number:05d}_flow.flo").exists():  # the last of its files to be written
            pair = generator.pairs([(scenes.seed * 2**20 + number) % 2**32])
            frames = (255 * pair.frames[0]).round().byte()
            write_pair(folder, number, FlowPair(frames, pair.forward[0], pair.occluded[0]))
    lines = "".join("2\n" if number % VALIDATION == 0 else "1\n" for number in range(1, count + 1))
    write(folder / CHAIRS_SPLITS, lambda file: file.write_text(lines))


class Rendered(NamedTuple):
    """A frame; from each of its pixels the flow to the first frame; and which layer is on top there."""

    frame_BCP: Tensor
    flow_B2P: Tensor
    top_BP: Tensor


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
        gain, offset: [B, L, C], of the texture's colours.
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

    def colour(self, layer: int, place_B2P: Tensor, texture_BCYX: Tensor) -> Tensor:
        """Of places in the first frame, from textures of bytes; -> [B, C, P] in [0, 1]."""
        colour_BCP = sample(texture_BCYX, self.texture_map[:, layer], place_B2P, "reflection")
        return colour_BCP.mul_(self.gain[:, layer, :, None] / 255).add_(self.offset[:, layer, :, None]).clamp_(0, 1)

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


def light(frames_B2CYX: Tensor, draw: "Draw", scenes: Scenes) -> Tensor:
    """Lights the second frame otherwise, in some scenes, and puts fog into both, in others."""
    lighted_B, foggy_B = draw.uniform() < scenes.lighting, draw.uniform() < scenes.fog
    gain_B, gain_B1YX = draw.normal(), draw.normal(1, 3, 3)
    density_B, density_B1YX = draw.uniform(low=0.1, high=0.5), draw.normal(1, 4, 4)
    grey_B, colour_BC = draw.uniform(low=0.5, high=1.0), draw.normal(3)
    if lighted_B.any():
        gain_B1YX = (1 + 0.25 * gain_B[:, None, None, None] + 0.15 * smooth(gain_B1YX, scenes.size)).clamp(0.3, 2)
        frames_B2CYX[lighted_B, 1] *= gain_B1YX[lighted_B]
    if foggy_B.any():
        density_B1YX = (density_B[:, None, None, None] + 0.2 * smooth(density_B1YX, scenes.size)).clamp(0, 0.8)
        fog_B1C11 = (grey_B[:, None] + 0.05 * colour_BC)[:, None, :, None, None]
        frames_B2CYX[foggy_B] = frames_B2CYX[foggy_B].lerp(fog_B1C11[foggy_B], density_B1YX[foggy_B, None])
    return frames_B2CYX.clamp_(0, 1)


def smooth(values_B1YX: Tensor, size: tuple[int, int]) -> Tensor:
    """A few values, brought to the size of a frame."""
    return F.interpolate(values_B1YX, size, mode="bicubic", align_corners=True)


def hidden(here_BP: Tensor, there_BP: Tensor, end_B2P: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the pixel nearest to the end of the flow shows another layer than here, or lies outside; -> bool [B, P]."""
    height, width = size
    x_BP, y_BP = end_B2P.round().long().unbind(1)
    inside_BP = (x_BP >= 0) & (x_BP < width) & (y_BP >= 0) & (y_BP < height)
    pixel_BP = y_BP.clamp(0, height - 1) * width + x_BP.clamp(0, width - 1)
    return ~inside_BP | (there_BP.gather(1, pixel_BP) != here_BP)


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
