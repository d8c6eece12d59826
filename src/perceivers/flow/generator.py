"""Pairs of frames with exact flow, made from nothing: layered scenes in the manner of AutoFlow.

The paper trains on AutoFlow (section 4.2; Sun et al., 2021), whose generator was not released.

A scene is a background and shapes in front of each other, each with a texture and a motion of its own: a perspective
motion, bent by shears whose size varies as a sine along the sheared direction. Each of these has a closed inverse, so
that flow is exact in both directions, also where its content cannot be seen.

Shape suffixes: B scenes, L layers (0 is the background), S shears, Y rows, X columns, P pixels, C colors
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from perceivers.errors import PerceiversError
from perceivers.flow.datasets import FlowPair, write_pair
from perceivers.flow.layouts import CHAIRS_SPLITS
from perceivers.flow.scenes import Draw, Layers, Scenes, draw_layers
from perceivers.flow.textures import make_shapes, make_textures
from perceivers.model.saving import write

TEXTURES, SHAPES = 384, 512
"""How many there are to choose from; every layer shows another part of one, turned, scaled and colored."""

EXPOSURE, MOMENTS = 0.5, 5
"""Motion blur: part of the time between frames that a frame is exposed, and how many moments it is the mean of."""

VALIDATION = 20
"""One of so many pairs that are written is for validation."""


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
        """The pairs of these seeds, whatever the precision of what is around."""
        with torch.autocast(self.device.type, enabled=False):  # coordinates of 8 bits are wrong by a part of a pixel
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

    def render(self, layers: Layers, times: Sequence[float], blurred_B: Tensor) -> "list[Rendered]":
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

    def paint(self, layers: Layers, times: Sequence[float]) -> "list[Rendered]":
        """Frames of a moment, painted layer over layer."""
        painted: list[Rendered] = []
        for layer in range(layers.count):
            texture_BCYX = self.textures[layers.texture[:, layer]].float()
            shape_B1YX = self.shapes[layers.shape[:, layer], None].float()
            for place, time in enumerate(times):
                origin_B2P = layers.undo(layer, time, self.place_2P)
                color_BCP = layers.color(layer, origin_B2P, texture_BCYX)
                flow_B2P = origin_B2P - self.place_2P
                if layer == 0:
                    painted.append(Rendered(color_BCP, flow_B2P, torch.zeros_like(flow_B2P[:, 0], dtype=torch.int16)))
                    continue
                opacity_BP = layers.opacity(layer, origin_B2P, shape_B1YX)
                seen_BP = opacity_BP > 0.5
                painted[place].frame_BCP.lerp_(color_BCP, opacity_BP[:, None])
                painted[place].flow_B2P.copy_(torch.where(seen_BP[:, None], flow_B2P, painted[place].flow_B2P))
                painted[place].top_BP.masked_fill_(seen_BP, layer)
        return painted

    def forward_flow(self, layers: Layers, top_BP: Tensor) -> Tensor:
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


def light(frames_B2CYX: Tensor, draw: Draw, scenes: Scenes) -> Tensor:
    """Lights the second frame otherwise, in some scenes, and puts fog into both, in others."""
    lighted_B, foggy_B = draw.uniform() < scenes.lighting, draw.uniform() < scenes.fog
    gain_B, gain_B1YX = draw.normal(), draw.normal(1, 3, 3)
    density_B, density_B1YX = draw.uniform(low=0.1, high=0.5), draw.normal(1, 4, 4)
    grey_B, color_BC = draw.uniform(low=0.5, high=1.0), draw.normal(3)
    if lighted_B.any():
        gain_B1YX = (1 + 0.25 * gain_B[:, None, None, None] + 0.15 * smooth(gain_B1YX, scenes.size)).clamp(0.3, 2)
        frames_B2CYX[lighted_B, 1] *= gain_B1YX[lighted_B]
    if foggy_B.any():
        density_B1YX = (density_B[:, None, None, None] + 0.2 * smooth(density_B1YX, scenes.size)).clamp(0, 0.8)
        fog_B1C11 = (grey_B[:, None] + 0.05 * color_BC)[:, None, :, None, None]
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
