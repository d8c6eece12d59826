"""Optical flow on pairs whose flow is known, beside classical methods: `perceivers evaluate`.

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
from tqdm import tqdm

from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FramePairInput
from perceivers.flow.datasets import FlowPair, FlowPairs
from perceivers.flow.estimate import OVERLAP, notice_padding, tiled
from perceivers.flow.metrics import FlowErrors, end_point_error
from perceivers.flow.pictures import MARGIN, flow_picture, full_color, legend, to_image
from perceivers.inference import find_adapter
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import write

Method = Callable[[Tensor], Tensor]
"""From two frames, bytes [2, 3, Y, X], to their flow, float32 [2, Y, X]."""

MODEL = "model"
"""What the model is called among the methods."""

NO_START: Any = None
"""OpenCV's methods may start from a flow; its type hints say that they must."""

DIS_SMALLEST = 32
"""Fewest rows and columns: wide frames of fewer rows crash OpenCV."""

ERROR_SCALE = 5
"""Pixels of end-point error that have full color in pictures; the same in all, so that pictures can be compared."""
WORST = (200, 0, 0)


def no_flow(frames: Tensor) -> Tensor:
    """Nothing moves: the error is the length of the true flow."""
    return torch.zeros(2, *frames.shape[-2:])


def farneback(frames: Tensor) -> Tensor:
    """Farneback's method (2003), with the parameters of OpenCV's examples."""
    before_YX, after_YX = gray(frames)
    flow_YX2 = cv2.calcOpticalFlowFarneback(
        before_YX,
        after_YX,
        NO_START,
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )
    return from_opencv(flow_YX2)


def dis(preset: int, frames: Tensor) -> Tensor:
    """Dense inverse search (Kroeger et al., 2016) with one of OpenCV's presets."""
    height, width = frames.shape[-2:]
    if min(height, width) < DIS_SMALLEST:
        raise PerceiversError(
            f"frames of {width} x {height} pixels are too small for dense inverse search, with which the model is "
            f"compared: leave out frames of fewer than {DIS_SMALLEST} rows or columns."
        )
    before_YX, after_YX = gray(frames)
    return from_opencv(cv2.DISOpticalFlow.create(preset).calc(before_YX, after_YX, NO_START))


CLASSICAL: dict[str, Method] = {
    "zero flow": no_flow,
    "Farneback": farneback,
    "DIS fast": partial(dis, cv2.DISOPTICAL_FLOW_PRESET_FAST),
    "DIS medium": partial(dis, cv2.DISOPTICAL_FLOW_PRESET_MEDIUM),
}
"""What the model is compared with."""


def gray(frames: Tensor) -> list[Any]:
    """Bytes [Y, X] of each frame."""
    return [cv2.cvtColor(frame_CYX.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2GRAY) for frame_CYX in frames]


def from_opencv(flow_YX2: Any) -> Tensor:
    """-> [2, Y, X]."""
    return torch.from_numpy(np.asarray(flow_YX2, np.float32)).permute(2, 0, 1)


@dataclass(frozen=True)
class FlowScore:
    """How a method does on a data set.

    Attributes:
        errors: over all pairs, by the names of `FlowErrors.compute`.
        sequences: end-point error of each sequence of which any flow is known, in pixels.
        seconds: what a pair takes: the median, which the first pair's preparations do not change.
    """

    errors: dict[str, float]
    sequences: dict[str, float]
    seconds: float


def convention(layout: str) -> Literal["pixels", "pairs"]:
    """Over what a data set's end-point error is averaged; see `perceivers.flow.metrics`."""
    return "pairs" if layout.startswith(("kitti", "middlebury")) else "pixels"


def evaluate(
    model: PerceiverIO,
    pairs: FlowPairs,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    pictures: str | Path | None = None,
    progress: bool = False,
) -> dict[str, FlowScore]:
    """Errors of a model and of the classical methods on the same pairs, by the methods' names, the model first.

    Args:
        model: an optical flow model.
        pairs: frames and their flow.
        overlap: fewest pixels by which neighbouring tiles of the model overlap.
        batch_size: tiles computed at a time.
        pictures: a folder to which a picture of each pair is written, as `comparison` draws it, below the layout's
            name; pictures of these names that are there are replaced.
        progress: show a bar.

    Raises:
        PerceiversError: the model is of another kind, a file of the pairs or a picture's folder is not usable, no
            pixel's flow is known, or the model's flow is not finite.
    """
    _, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    sizes: set[tuple[int, int]] = set()

    def of_model(frames: Tensor) -> Tensor:
        return tiled(model, frames / 255, overlap, batch_size, progress=False)

    methods: dict[str, Method] = {MODEL: of_model, **CLASSICAL}
    average = convention(pairs.layout)
    total = {name: FlowErrors(average) for name in methods}
    parts = {name: defaultdict[str, FlowErrors](lambda: FlowErrors(average)) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for index in tqdm(range(len(pairs)), pairs.layout, disable=None if progress else True):
        pair = pairs[index]
        height, width = pair.frames.shape[-2:]
        if (height, width) not in sizes:
            notice_padding(height, width, adapter.size)
            sizes.add((height, width))
        for name, method in methods.items():
            start = time.perf_counter()
            flow_2YX = method(pair.frames)
            seconds[name].append(time.perf_counter() - start)
            for errors in (total[name], parts[name][pairs.sequences[index]]):
                errors.update(flow_2YX, pair.flow, pair.occluded)
            if name == MODEL and pictures is not None:
                write_comparison(Path(pictures) / pairs.layout / f"{pairs.names[index]}.png", pair, flow_2YX)
    if not total[MODEL].pixels_R[0]:
        raise PerceiversError(f"the flow of no pixel of {pairs.layout} is known: nothing can be evaluated on it.")
    return {
        name: FlowScore(
            {key: float(value) for key, value in total[name].compute().items()},
            {key: float(errors.compute()["epe"]) for key, errors in parts[name].items() if errors.pixels_R[0]},
            median(seconds[name]),
        )
        for name in methods
    }


def write_comparison(path: Path, pair: FlowPair, flow: Tensor) -> None:
    """Writes what `comparison` draws as PNG."""
    page = comparison(pair, flow)
    write(path, lambda file: page.save(file, "PNG"))


def comparison(pair: FlowPair, flow: Tensor) -> Image.Image:
    """The first frame, predicted and true flow in the same colors, and the error, side by side, then the wheel.

    The longest true vector has full color.

    Args:
        pair: the frames, and their flow where it is known.
        flow: the prediction, [2, Y, X].
    """
    largest = full_color(pair.flow, None)
    error_YX = end_point_error(flow, pair.flow)
    panels = {
        "first frame": pair.frames[0],
        "predicted flow": flow_picture(flow, largest),
        "true flow": flow_picture(pair.flow, largest),
        f"end-point error, {error_YX.nanmean():.2f} px on average": error_picture(error_YX),
    }
    height, width = pair.frames.shape[-2:]
    size = max(11, height // 20)
    font, line, gap = ImageFont.load_default(size), 2 * size, size
    lengths = [max(width, int(font.getlength(label)) + 1) for label in panels]
    wheel = legend(largest, max(48, min(height, width) // 4))
    page = Image.new("RGB", (sum(lengths) + 4 * gap + wheel.width, max(height + 2 * line, wheel.height)), MARGIN)
    draw = ImageDraw.Draw(page)
    x = gap
    for (label, picture_CYX), length in zip(panels.items(), lengths, strict=True):
        draw.text((x, size // 3), label, "black", font)
        page.paste(to_image(picture_CYX), (x, line))
        x += length + gap
    page.paste(wheel, (page.width - wheel.width, 0))
    page.paste(error_legend(lengths[-1], line, font), (page.width - wheel.width - lengths[-1], line + height))
    return page


def error_picture(error_YX: Tensor) -> Tensor:
    """Bytes [C, Y, X]: from white, no error, to dark red, `ERROR_SCALE` pixels or more; black where not known."""
    part_YX = (error_YX.nan_to_num() / ERROR_SCALE).clamp(0, 1)
    worst_C11 = torch.tensor(WORST)[:, None, None]
    return (255 - part_YX * (255 - worst_C11)).round().byte() * ~error_YX.isnan()


def error_legend(width: int, height: int, font: Any) -> Image.Image:
    """All colors of `error_picture`, and what they mean."""
    strip = to_image(error_picture(torch.linspace(0, ERROR_SCALE, width).expand(height, width)))
    draw = ImageDraw.Draw(strip)
    draw.text((2, height / 2), "0", "black", font, anchor="lm")
    draw.text((width - 2, height / 2), f"{ERROR_SCALE} px or more", "white", font, anchor="rm")
    return strip
