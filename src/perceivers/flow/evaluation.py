"""Evaluates optical flow on pairs with known flow, beside classical methods: `perceivers evaluate`.

Shape suffixes: Y rows, X columns, C colors (3)
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.flow.datasets import FlowPair, FlowPairs
from perceivers.flow.estimate import OVERLAP, estimate_tiled, warn_if_padded
from perceivers.flow.metrics import FlowErrors, end_point_error
from perceivers.flow.pictures import MARGIN, draw_flow, draw_legend, resolve_max_flow, to_image
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write
from perceivers.progress import track

Method = Callable[[Tensor], Tensor]
"""Estimates the flow, float32 [2, Y, X], of two frames, bytes [2, 3, Y, X]."""

MODEL = "model"  # the model's name among the methods
NO_INITIAL_FLOW: Any = None  # OpenCV's methods need no initial flow, unlike their type hints
DIS_MIN_SIZE = 32  # minimum number of rows and columns: OpenCV crashes on wide frames with fewer rows
ERROR_SCALE = 5  # end-point error in pixels that has full color; the same in all pictures, for comparison
ERROR_COLOR = (200, 0, 0)


def zero_flow(frames: Tensor) -> Tensor:
    """Predicts that nothing moves: the error is the length of the true flow."""
    return torch.zeros(2, *frames.shape[-2:])


def farneback(frames: Tensor) -> Tensor:
    """Farneback's method (2003), with the parameters of OpenCV's examples."""
    one, two = to_gray(frames)
    flow_YX2: Any = cv2.calcOpticalFlowFarneback(
        one, two, NO_INITIAL_FLOW, pyr_scale=0.5, levels=3, winsize=15, iterations=3, poly_n=5, poly_sigma=1.2, flags=0
    )
    return torch.from_numpy(flow_YX2).permute(2, 0, 1)


def dis_flow(preset: int, frames: Tensor) -> Tensor:
    """Dense inverse search (Kroeger et al., 2016) with one of OpenCV's presets."""
    height, width = frames.shape[-2:]
    if min(height, width) < DIS_MIN_SIZE:
        found = f"{width} x {height} pixels are too few for the comparison with DIS"
        raise PerceiversError(f"{found}: leave out frames with fewer than {DIS_MIN_SIZE} rows or columns.")
    one, two = to_gray(frames)
    flow_YX2 = cv2.DISOpticalFlow.create(preset).calc(one, two, NO_INITIAL_FLOW)
    return torch.from_numpy(np.asarray(flow_YX2, np.float32)).permute(2, 0, 1)


CLASSICAL: dict[str, Method] = {
    "zero flow": zero_flow,
    "Farneback": farneback,
    "DIS fast": partial(dis_flow, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "DIS medium": partial(dis_flow, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
}
"""Methods that the model is compared with."""


def to_gray(frames: Tensor) -> list[Any]:
    """Converts each frame to bytes [Y, X]."""
    return [cv2.cvtColor(frame_CYX.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for frame_CYX in frames]


@dataclass(frozen=True)
class FlowScore:
    """The scores of a method on a data set.

    Attributes:
        errors: over all pairs, by the names of `FlowErrors.compute`.
        sequences: end-point error of each sequence with known flow, in pixels.
        seconds: median time per pair, which is not affected by the first pair's preparations.
    """

    errors: dict[str, float]
    sequences: dict[str, float]
    seconds: float


def evaluate(
    model: PerceiverIO,
    pairs: FlowPairs,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    pictures: str | Path | None = None,
) -> dict[str, FlowScore]:
    """Measures the errors of a model, and of the classical methods, on the same pairs.

    Args:
        model, overlap, batch_size: as in `estimate_flow`.
        pairs: frames and their flow.
        pictures: a folder for the picture of each pair by `draw_comparison`, in a subfolder with the layout's name;
            existing pictures of these names are replaced.

    Returns:
        Scores by the method's name, the model first.

    Raises:
        PerceiversError: the model is of another kind, a file of the pairs or the folder of pictures is not usable, no
            pixel has known flow, or the model's flow is not finite.
    """
    sizes: set[torch.Size] = set()

    def run_model(frames: Tensor) -> Tensor:
        return estimate_tiled(model, frames / 255, overlap, batch_size)

    methods: dict[str, Method] = {MODEL: run_model, **CLASSICAL}
    average: Literal["pixels", "pairs"] = "pairs" if pairs.layout.startswith(("kitti", "middlebury")) else "pixels"
    total = {name: FlowErrors(average) for name in methods}
    by_sequence = {name: defaultdict[str, FlowErrors](lambda: FlowErrors(average)) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for index in track(range(len(pairs)), f"pairs of {pairs.layout}"):
        pair = pairs[index]
        if pair.frames.shape not in sizes:
            warn_if_padded(model, pair.frames)
            sizes.add(pair.frames.shape)
        for name, method in methods.items():
            start = time.perf_counter()
            flow_2YX = method(pair.frames)
            seconds[name].append(time.perf_counter() - start)
            for errors in (total[name], by_sequence[name][pairs.sequences[index]]):
                errors.update(flow_2YX, pair.flow, pair.occluded)
            if name == MODEL and pictures is not None:
                page = draw_comparison(pair, flow_2YX)
                file = Path(pictures) / pairs.layout / f"{pairs.names[index]}.png"
                atomic_write(file, partial(page.save, format="PNG"))
    if not total[MODEL].pixels_R[0]:
        raise PerceiversError(f"no pixel of {pairs.layout} has known flow: choose other pairs.")
    return {
        name: FlowScore(
            {key: float(value) for key, value in errors.compute().items()},
            {key: float(part.compute()["epe"]) for key, part in by_sequence[name].items() if part.pixels_R[0]},
            median(seconds[name]),
        )
        for name, errors in total.items()
    }


def draw_comparison(pair: FlowPair, flow: Tensor) -> Image.Image:
    """Draws the first frame, predicted and true flow in the same colors, and the error, side by side, with a legend.

    The longest true vector has full color.
    """
    max_flow = resolve_max_flow(pair.flow, None)
    error_YX = end_point_error(flow, pair.flow)
    panels = {
        "first frame": pair.frames[0],
        "predicted flow": draw_flow(flow, max_flow),
        "true flow": draw_flow(pair.flow, max_flow),
        f"end-point error, {error_YX.nanmean():.2f} px on average": draw_error(error_YX),
    }
    height, width = pair.frames.shape[-2:]
    size = max(11, height // 20)
    font, line, gap = ImageFont.load_default(size), 2 * size, size
    lengths = [max(width, int(font.getlength(label)) + 1) for label in panels]
    wheel = draw_legend(max_flow, max(48, min(height, width) // 4))
    page = Image.new("RGB", (sum(lengths) + 4 * gap + wheel.width, max(height + 2 * line, wheel.height)), MARGIN)
    draw = ImageDraw.Draw(page)
    x = gap
    for (label, picture_CYX), length in zip(panels.items(), lengths, strict=True):
        draw.text((x, size // 3), label, "black", font)
        page.paste(to_image(picture_CYX), (x, line))
        x += length + gap
    page.paste(wheel, (page.width - wheel.width, 0))
    page.paste(draw_error_legend(lengths[-1], line, font), (page.width - wheel.width - lengths[-1], line + height))
    return page


def draw_error(error_YX: Tensor) -> Tensor:
    """Draws errors as bytes [C, Y, X], from white (none) to dark red (`ERROR_SCALE` pixels); black where unknown."""
    part_YX = (error_YX.nan_to_num() / ERROR_SCALE).clamp(0, 1)
    color_C11 = torch.tensor(ERROR_COLOR)[:, None, None]
    return (255 - part_YX * (255 - color_C11)).round().byte() * ~error_YX.isnan()


def draw_error_legend(width: int, height: int, font: Any) -> Image.Image:
    """Draws all colors of `draw_error` and their errors."""
    strip = to_image(draw_error(torch.linspace(0, ERROR_SCALE, width).expand(height, width)))
    draw = ImageDraw.Draw(strip)
    draw.text((2, height / 2), "0", "black", font, anchor="lm")
    draw.text((width - 2, height / 2), f"{ERROR_SCALE} px or more", "white", font, anchor="rm")
    return strip
