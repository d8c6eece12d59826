"""Generates pairs of frames with exact flow: layered scenes in the manner of AutoFlow (Sun et al., 2021).

The paper trains on AutoFlow (section 4.2), whose generator was not released.

A scene is a background and shapes in front of each other, each with its own texture and motion: a perspective motion,
bent by shears whose length varies as a sine. Both have closed inverses, so flow is exact in both directions, even where
the content is occluded.

Shape suffixes: B scenes, Y rows, X columns, P points, C colors
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.flow.datasets import FlowPair, write_pair
from perceivers.flow.layouts import CHAIRS_SPLITS
from perceivers.flow.scenes import Layers, SceneConfig, SceneRandom, draw_layers
from perceivers.flow.textures import make_shapes, make_textures
from perceivers.model.saving import atomic_write
from perceivers.progress import track

TEXTURES, SHAPES = 384, 512
"""Numbers of textures and shapes; every layer shows another part of one, rotated, scaled and recolored."""

EXPOSURE, MOMENTS = 0.5, 5
"""Motion blur: exposure as a fraction of the time between frames, and the number of moments that are averaged."""

VALIDATION_STEP = 20  # every 20th pair that is written is for validation


class ScenePairs(NamedTuple):
    """Two frames of each scene, and their flow.

    Attributes:
        frames: [B, 2, 3, Y, X] in [0, 1].
        forward: [B, 2, Y, X]: motion of each pixel's content from the first frame to the second, in pixels, to the
            right and down.
        backward: the same from the second frame to the first.
        occluded: bool [B, Y, X], where the second frame does not show the content of the first.
        uncovered: where the first frame does not show the content of the second.
    """

    frames: Tensor
    forward: Tensor
    backward: Tensor
    occluded: Tensor
    uncovered: Tensor


class RenderedFrame(NamedTuple):
    """A frame; the flow from each of its pixels to the first frame; and the index of the foremost layer there."""

    color_BCP: Tensor
    flow_B2P: Tensor
    layer_BP: Tensor


class FlowGenerator:
    """Generates pairs on a device; a seed (from 0 to 2**32 - 1) always gives the same pair.

    Raises:
        PerceiversError: the folder of textures has no images.
    """

    def __init__(self, scenes: SceneConfig, device: torch.device | str = "cpu") -> None:
        self.scenes = scenes
        self.device = torch.device(device)
        self.textures = make_textures(scenes.textures, TEXTURES, scenes.seed).to(device)
        self.shapes = make_shapes(SHAPES, scenes.seed).to(device)
        y, x = torch.meshgrid(*(torch.arange(side, device=device) for side in scenes.size), indexing="ij")
        self.point_2P = torch.stack([x, y]).flatten(1).float()

    @torch.no_grad()
    def generate(self, seeds: Sequence[int]) -> ScenePairs:
        """Generates the pairs for these seeds in full precision, even under autocast."""
        pixels = self.point_2P.shape[1]  # on a CPU one scene a thread, or more if they fit in its cache
        group = 64 if self.device.type != "cpu" else max(torch.get_num_threads(), 2**16 // pixels)
        with torch.autocast(self.device.type, enabled=False):
            groups = [self.generate_group(part.tolist()) for part in torch.tensor(seeds).split(group)]
        return ScenePairs(*(torch.cat(parts) for parts in zip(*groups, strict=True)))

    def generate_group(self, seeds: Sequence[int]) -> ScenePairs:
        """Generates a few pairs at once."""
        size = self.scenes.size
        random = SceneRandom(seeds, self.device)
        layers = draw_layers(random, self.scenes, len(self.textures), len(self.shapes))
        is_blurred_B = random.uniform() < self.scenes.blur
        first, second = self.render(layers, (0.0, 1.0), is_blurred_B)
        frames = torch.stack([first.color_BCP, second.color_BCP], 1).unflatten(-1, size)
        forward = self.compute_forward_flow(layers, first.layer_BP)
        occluded = find_occluded(first.layer_BP, second.layer_BP, self.point_2P + forward, size)
        uncovered = find_occluded(second.layer_BP, first.layer_BP, self.point_2P + second.flow_B2P, size)
        maps = (part.unflatten(-1, size) for part in (forward, second.flow_B2P, occluded, uncovered))
        return ScenePairs(apply_lighting(frames, random, self.scenes), *maps)

    def render(self, layers: Layers, times: Sequence[float], is_blurred_B: Tensor) -> list[RenderedFrame]:
        """Renders frames at these times, some of them with motion blur."""
        sharp = self.render_sharp(layers, times)
        if not is_blurred_B.any():
            return sharp
        moments = torch.linspace(-EXPOSURE / 2, EXPOSURE / 2, MOMENTS)
        exposed = self.render_sharp(layers, [time + moment for time in times for moment in moments.tolist()])
        for index, frame in enumerate(sharp):
            colors = [part.color_BCP for part in exposed[index * MOMENTS : (index + 1) * MOMENTS]]
            frame.color_BCP[is_blurred_B] = torch.stack(colors).mean(0)[is_blurred_B]
        return sharp

    def render_sharp(self, layers: Layers, times: Sequence[float]) -> list[RenderedFrame]:
        """Renders frames without motion blur, layer over layer."""
        frames: list[RenderedFrame] = []
        for layer in range(len(layers)):
            # index_select copies whole images, several times as fast as indexing.
            texture_BCYX = self.textures.index_select(0, layers.texture[:, layer]).float()
            shape_B1YX = self.shapes.index_select(0, layers.shape[:, layer])[:, None].float()
            for index, time in enumerate(times):
                origin_B2P = layers.move_back(layer, time, self.point_2P)
                color_BCP = layers.get_color(layer, origin_B2P, texture_BCYX)
                flow_B2P = origin_B2P - self.point_2P
                if layer == 0:
                    layer_BP = torch.zeros_like(flow_B2P[:, 0], dtype=torch.int16)
                    frames.append(RenderedFrame(color_BCP, flow_B2P, layer_BP))
                    continue
                opacity_BP = layers.get_opacity(layer, origin_B2P, shape_B1YX)
                is_seen_BP = opacity_BP > 0.5
                color, flow, foremost = frames[index]
                color.lerp_(color_BCP, opacity_BP[:, None])
                flow.copy_(torch.where(is_seen_BP[:, None], flow_B2P, flow))
                foremost.masked_fill_(is_seen_BP, layer)
        return frames

    def compute_forward_flow(self, layers: Layers, layer_BP: Tensor) -> Tensor:
        """Returns the motion [B, 2, P] of the foremost layer at each pixel of the first frame."""
        flow_B2P = layers.move(0, 1.0, self.point_2P) - self.point_2P
        for layer in range(1, len(layers)):
            moved_B2P = layers.move(layer, 1.0, self.point_2P) - self.point_2P
            flow_B2P = torch.where((layer_BP == layer)[:, None], moved_B2P, flow_B2P)
        return flow_B2P


def write_scenes(scenes: SceneConfig, folder: str | Path, count: int) -> None:
    """Writes pairs in the layout of FlyingChairs, every 20th for validation, and their config, `scenes.json`.

    Existing pairs, from an interrupted call or a smaller count, are kept.

    Raises:
        PerceiversError: the folder has other files, or pairs of other scenes, or cannot be written to.
    """
    folder = Path(folder)
    config = json.dumps(asdict(scenes), indent=2, default=str) + "\n"
    config_file = folder / "scenes.json"
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not config_file.is_file())):
        raise PerceiversError(f"{folder} has other files: choose a new folder.")
    if config_file.is_file() and config_file.read_text() != config:
        raise PerceiversError(f"{folder} has pairs of other scenes, see {config_file}: choose a new folder.")
    generator = FlowGenerator(scenes)
    atomic_write(config_file, lambda file: file.write_text(config))
    for number in track(range(1, count + 1), "pairs"):
        if not (folder / f"{number:05d}_flow.flo").exists():  # the last of its files to be written
            pair = generator.generate([(scenes.seed * 2**20 + number) % 2**32])
            frames = (255 * pair.frames[0]).round().byte()
            write_pair(folder, number, FlowPair(frames, pair.forward[0], pair.occluded[0]))
    lines = "".join("2\n" if number % VALIDATION_STEP == 0 else "1\n" for number in range(1, count + 1))
    atomic_write(folder / CHAIRS_SPLITS, lambda file: file.write_text(lines))


def apply_lighting(frames_B2CYX: Tensor, random: SceneRandom, scenes: SceneConfig) -> Tensor:
    """Changes the lighting of some second frames, and puts fog into both frames of some scenes."""
    is_lit_B, is_foggy_B = random.uniform() < scenes.lighting, random.uniform() < scenes.fog
    gain_B, gain_B1YX = random.normal(), random.normal(1, 3, 3)
    density_B, density_B1YX = random.uniform(low=0.1, high=0.5), random.normal(1, 4, 4)
    gray_B, color_BC = random.uniform(low=0.5, high=1.0), random.normal(3)
    if is_lit_B.any():
        gain_B1YX = (1 + 0.25 * gain_B[:, None, None, None] + 0.15 * resize(gain_B1YX, scenes.size)).clamp(0.3, 2)
        frames_B2CYX[is_lit_B, 1] *= gain_B1YX[is_lit_B]
    if is_foggy_B.any():
        density_B1YX = (density_B[:, None, None, None] + 0.2 * resize(density_B1YX, scenes.size)).clamp(0, 0.8)
        fog_B1C11 = (gray_B[:, None] + 0.05 * color_BC)[:, None, :, None, None]
        frames_B2CYX[is_foggy_B] = frames_B2CYX[is_foggy_B].lerp(fog_B1C11[is_foggy_B], density_B1YX[is_foggy_B, None])
    return frames_B2CYX.clamp_(0, 1)


def resize(values_B1YX: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolates a few values smoothly over a frame."""
    return F.interpolate(values_B1YX, size, mode="bicubic", align_corners=True)


def find_occluded(layer_BP: Tensor, other_layer_BP: Tensor, end_B2P: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns where the flow ends outside the other frame or on another of its layers; bool [B, P]."""
    height, width = size
    x_BP, y_BP = end_B2P.round().long().unbind(1)
    is_inside_BP = (x_BP >= 0) & (x_BP < width) & (y_BP >= 0) & (y_BP < height)
    pixel_BP = y_BP.clamp(0, height - 1) * width + x_BP.clamp(0, width - 1)
    return ~is_inside_BP | (other_layer_BP.gather(1, pixel_BP) != layer_BP)
